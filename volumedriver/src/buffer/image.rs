//! A segment file read into memory by recovery, with the places that cannot be read.

use std::ops::Range;

use volumedriver_core::fault::{Kind, Result};
use volumedriver_core::format::ChangeKind;
use volumedriver_core::format::journal::{
    BLOCK_BYTES, BadCluster, Entry, RecordHeader, verify_payload,
};
use volumedriver_core::units::ClusterCrc;

use super::device;
use crate::io::buf::AlignedBuf;
use crate::world::DiskFile;

/// Bytes read at a time where a large read failed.
const CAREFUL_READ: usize = 64 << 10;
/// Stands where nothing could be read: unlike zeroes, a block of it is no guest's cluster but by its own intent.
const UNREADABLE: u8 = 0xdb;

pub(super) struct Image {
    pub bytes: AlignedBuf,
    /// Offsets of blocks that the disk cannot read; here they are filled with what no record and no cluster is.
    pub holes: Vec<u64>,
}

impl Image {
    /// Reads the file, in small pieces where need be. `spare` is used if it has the right length.
    pub async fn read<F: DiskFile>(file: &F, spare: Option<AlignedBuf>) -> Result<Self> {
        let len = file.len() as usize;
        let buf = match spare {
            Some(buf) if buf.len() == len => buf,
            Some(_) | None => AlignedBuf::zeroed(len),
        };
        match file.read_at(buf, 0).await {
            Ok(bytes) => return Ok(Self { bytes, holes: Vec::new() }),
            Err(fault) if fault.kind == Kind::Corrupt => {
                tracing::warn!(%fault, "reading a write buffer segment in small pieces");
            }
            Err(fault) => return Err(fault),
        }
        let mut image = Self { bytes: AlignedBuf::zeroed(len), holes: Vec::new() };
        for offset in (0..len).step_by(CAREFUL_READ) {
            let piece = CAREFUL_READ.min(len - offset);
            if image.read_piece(file, offset, piece).await? {
                continue;
            }
            for block in (offset..offset + piece).step_by(BLOCK_BYTES) {
                if !image.read_piece(file, block, BLOCK_BYTES).await? {
                    image.bytes[block..block + BLOCK_BYTES].fill(UNREADABLE);
                    image.holes.push(block as u64);
                }
            }
        }
        tracing::error!(
            blocks = image.holes.len(),
            "blocks of a write buffer segment are unreadable"
        );
        Ok(image)
    }

    /// `false`: it cannot be read.
    async fn read_piece<F: DiskFile>(&mut self, file: &F, at: usize, len: usize) -> Result<bool> {
        match device::read(file, len, at as u64).await {
            Ok(read) => self.bytes[at..at + len].copy_from_slice(&read),
            Err(fault) if fault.kind == Kind::Corrupt => return Ok(false),
            Err(fault) => return Err(fault),
        }
        Ok(true)
    }

    /// The record header at this place. If one is `due` there and none is found, the place is read once more: a bit may have
    /// flipped on its way.
    pub async fn record<F: DiskFile>(
        &mut self,
        file: &F,
        at: usize,
        due: bool,
    ) -> Result<Option<RecordHeader>> {
        let Some(block) = self.bytes.get(at..at + BLOCK_BYTES) else { return Ok(None) };
        let found = RecordHeader::decode(block).ok();
        if found.is_some() || !due || block.iter().all(|byte| *byte == 0) {
            return Ok(found);
        }
        let is_record = |block: &[u8]| RecordHeader::decode(block).is_ok();
        self.read_again(file, at..at + BLOCK_BYTES, is_record).await?;
        Ok(self.bytes.get(at..at + BLOCK_BYTES).and_then(|block| RecordHeader::decode(block).ok()))
    }

    /// The clusters of a record's payload that do not match their checksums, even when they are read again.
    pub async fn bad_clusters<F: DiskFile>(
        &mut self,
        file: &F,
        at: usize,
        record: &RecordHeader,
    ) -> Result<Vec<BadCluster>> {
        let payload = at..at + record.payload_bytes as usize;
        if verify_payload(record, &self.bytes[payload.clone()]).is_empty() {
            return Ok(Vec::new());
        }
        // Each by itself: another one may be beyond repair.
        for (range, crc) in clusters_of(record, at) {
            if ClusterCrc::of(&self.bytes[range.clone()]) != crc {
                self.read_again(file, range, |cluster| ClusterCrc::of(cluster) == crc).await?;
            }
        }
        Ok(verify_payload(record, &self.bytes[payload]))
    }

    /// Replaces a range by what is read there now, if that is good.
    async fn read_again<F: DiskFile>(
        &mut self,
        file: &F,
        range: Range<usize>,
        is_good: impl Fn(&[u8]) -> bool,
    ) -> Result<()> {
        match device::read_good(file, range.len(), range.start as u64, is_good).await {
            Ok((bytes, true)) => self.bytes[range].copy_from_slice(&bytes),
            Ok((_, false)) => {}
            Err(fault) if fault.kind == Kind::Corrupt => {}
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    pub fn has_hole(&self, range: Range<usize>) -> bool {
        self.holes.iter().any(|hole| range.contains(&(*hole as usize)))
    }

    /// Headers of whole records, of whatever use, one after the other.
    pub fn records(&self) -> impl Iterator<Item = RecordHeader> {
        let mut at = BLOCK_BYTES;
        std::iter::from_fn(move || {
            while let Some(block) = self.bytes.get(at..at + BLOCK_BYTES) {
                at += BLOCK_BYTES;
                if let Ok(record) = RecordHeader::decode(block) {
                    at += record.payload_bytes as usize;
                    return Some(record);
                }
            }
            None
        })
    }
}

/// Where the clusters of a record lie whose payload begins here, and their checksums.
fn clusters_of(record: &RecordHeader, mut at: usize) -> Vec<(Range<usize>, ClusterCrc)> {
    let mut clusters = Vec::new();
    for section in &record.sections {
        let width = section.cluster_size.bytes() as usize;
        for entry in &section.entries {
            let Entry::Change { change, .. } = entry else { continue };
            let ChangeKind::Data { crcs, .. } = &change.kind else { continue };
            for crc in crcs {
                clusters.push((at..at + width, *crc));
                at += width;
            }
        }
    }
    clusters
}
