//! Journal record: one 4 KiB header block, then the payload clusters in the order the header lists them.
//!
//! [`RecordBuilder`] writes headers on the hot path without allocating; [`RecordHeader`] is what recovery reads back.

use bytes::BufMut;

use super::change::{self, CHANGE_BYTES, CLUSTER_CRC_BYTES, Checksums, Mark};
use super::frame::{CRC_BYTES, Frame, HEAD_BYTES, Reader, count32, ours};
use super::{Change, ChangeKind};
use crate::fault::{Fault, Result};
use crate::units::{
    ClusterAddr, ClusterCount, ClusterCrc, ClusterSize, Epoch, Location, MAX_OP_CLUSTERS, ScoSeq,
    Seq, VolumeId,
};

/// Bytes of the header block; records and payloads are multiples of it.
pub const BLOCK_BYTES: usize = 4096;

const FRAME: Frame = Frame { name: "journal record", magic: *b"VDJR", version: 1 };
/// Bytes of a record's own fields, before its sections.
const RECORD_BYTES: usize = 32;
const SECTION_BYTES: usize = 40;
/// Where in a section its number of entries stands.
const ENTRY_COUNT_AT: usize = 36;
const SECTIONS_LIMIT: usize = BLOCK_BYTES - HEAD_BYTES - RECORD_BYTES - CRC_BYTES;
const SCO_BYTES: usize = 8;
const SEAL_BYTES: usize = SCO_BYTES + 4;
/// Top byte of an entry's first word.
const CHANGE: u64 = 0;
const SEAL: u64 = 1;
const KIND_UNIT: u64 = 1 << 56;

// The largest atomic operation fits an empty record.
const _: () = assert!(
    SECTION_BYTES + SCO_BYTES + CHANGE_BYTES + MAX_OP_CLUSTERS * CLUSTER_CRC_BYTES
        <= SECTIONS_LIMIT
);
// So do 100 operations of one cluster of one volume.
const _: () =
    assert!(SECTION_BYTES + 100 * (SCO_BYTES + CHANGE_BYTES + CLUSTER_CRC_BYTES) <= SECTIONS_LIMIT);

/// The header block of a record.
///
/// Body of its frame, which is one block long, magic `VDJR`, version 1:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | segment_use |
/// | 8 | 8 | record |
/// | 16 | 8 | durable_record |
/// | 24 | 4 | payload_bytes |
/// | 28 | 4 | number of sections |
/// | 32 | ... | the sections (table at [`Section`]) |
/// | ... | ... | zeroes |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// `use_no` of the segment it was written to: bytes of an earlier use never match.
    pub segment_use: u64,
    /// Records are numbered without gaps over all segments.
    pub record: u64,
    /// Every record up to this one was durable before this one was written.
    pub durable_record: u64,
    pub payload_bytes: u32,
    pub sections: Vec<Section>,
}

/// The entries of one volume in a record, in order of their sequence.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 16 | volume |
/// | 16 | 8 | epoch |
/// | 24 | 8 | previous_seq |
/// | 32 | 4 | cluster_size |
/// | 36 | 4 | number of entries |
/// | 40 | ... | the entries (table at [`Entry`]) |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub cluster_size: ClusterSize,
    /// Last sequence of this volume before this section, wherever it was journalled.
    pub previous_seq: Seq,
    pub entries: Vec<Entry>,
}

/// One entry of a section.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 7 | sco |
/// | 7 | 1 | 0 change, 1 seal |
/// | 8 | ... | change: as the table at [`Change`] says, with checksums |
/// | 8 | 4 | seal: cluster_count |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A change that belongs to SCO `sco`; its data clusters are the next of the payload.
    Change { sco: ScoSeq, change: Change },
    /// The SCO is complete with this many clusters and ends the changes up to here; only a sealed SCO is ever uploaded.
    Seal { sco: ScoSeq, cluster_count: u32 },
}

impl RecordHeader {
    /// Writes the header block. `Bug` when it does not fit one, or is not a record that decoding would accept.
    pub fn encode(&self, out: &mut [u8; BLOCK_BYTES]) -> Result<()> {
        self.check().map_err(|fault| Fault::bug(fault.message))?;
        let mut builder = RecordBuilder::new();
        for section in &self.sections {
            if !section.push_to(&mut builder) {
                return Err(Fault::bug(format!(
                    "journal record {} does not fit its block",
                    self.record
                )));
            }
        }
        builder.finish(self.segment_use, self.record, self.durable_record, self.payload_bytes, out);
        Ok(())
    }

    /// Decodes one block.
    pub fn decode(block: &[u8]) -> Result<Self> {
        if block.len() != BLOCK_BYTES {
            return Err(Fault::corrupt(format!(
                "journal record is {} bytes, not {BLOCK_BYTES}",
                block.len()
            )));
        }
        let mut reader = FRAME.body(block)?;
        let (segment_use, record, durable_record) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let payload_bytes = reader.u32()?;
        let sections = reader.counted(SECTION_BYTES, Section::decode)?;
        reader.end_padded()?;
        let header = Self { segment_use, record, durable_record, payload_bytes, sections };
        header.check().map_err(|fault| fault.about(format!("journal record {record}")))?;
        Ok(header)
    }

    /// Sequences increase in each section, and the payload is as long as the data clusters listed.
    pub fn check(&self) -> Result<()> {
        if self.durable_record >= self.record {
            return Err(Fault::corrupt(format!(
                "it calls record {} durable before itself",
                self.durable_record
            )));
        }
        let mut payload = 0_u64;
        for section in &self.sections {
            payload = payload.saturating_add(section.check()?);
        }
        if payload != u64::from(self.payload_bytes) {
            let said = self.payload_bytes;
            return Err(Fault::corrupt(format!(
                "it says {said} bytes of payload, its entries have {payload}"
            )));
        }
        Ok(())
    }
}

impl Section {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let volume = VolumeId(reader.array()?);
        let (epoch, previous_seq) = (Epoch(reader.u64()?), Seq(reader.u64()?));
        let cluster_size = reader.u32()?;
        let cluster_size = ClusterSize::new(cluster_size.into()).map_err(|f| reader.corrupt(f))?;
        let entries = reader.counted(SEAL_BYTES, Entry::decode)?;
        Ok(Self { volume, epoch, cluster_size, previous_seq, entries })
    }

    /// Gives its payload in bytes.
    fn check(&self) -> Result<u64> {
        if self.entries.is_empty() || self.epoch.0 == 0 {
            return Err(Fault::corrupt("a section has no entries or no epoch"));
        }
        let mut last = self.previous_seq;
        let mut clusters = 0_u64;
        for entry in &self.entries {
            let change = match entry {
                Entry::Change { sco, change } if is_position(*sco) => change,
                Entry::Seal { sco, cluster_count }
                    if is_position(*sco) && *cluster_count <= Location::MAX_CLUSTERS =>
                {
                    continue;
                }
                other => return Err(Fault::corrupt(format!("no SCO is like this: {other:?}"))),
            };
            change.check()?;
            if change.seq <= last {
                return Err(Fault::corrupt(format!(
                    "change {} comes after change {last}",
                    change.seq
                )));
            }
            last = change.seq;
            if let ChangeKind::Data { crcs, .. } = &change.kind {
                if u64::try_from(crcs.len()) != Ok(change.count.0) {
                    return Err(Fault::corrupt(format!(
                        "change {last} has not one checksum per cluster"
                    )));
                }
                clusters = clusters.saturating_add(change.count.0);
            }
        }
        Ok(clusters.saturating_mul(self.cluster_size.bytes()))
    }

    fn push_to(&self, builder: &mut RecordBuilder) -> bool {
        let source = Source {
            volume: self.volume,
            epoch: self.epoch,
            cluster_size: self.cluster_size,
            previous_seq: self.previous_seq,
        };
        // Never continues the section before it, so that what is decoded is what was encoded.
        builder.close();
        self.entries.iter().all(|entry| match entry {
            Entry::Seal { sco, cluster_count } => builder.push_seal(source, *sco, *cluster_count),
            Entry::Change { sco, change } => builder.push_change(source, *sco, change),
        })
    }
}

fn is_position(sco: ScoSeq) -> bool {
    (1..=Location::MAX_SCO).contains(&sco.0)
}

impl Entry {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let word = reader.u64()?;
        let sco = ScoSeq(word % KIND_UNIT);
        match word / KIND_UNIT {
            CHANGE => Ok(Self::Change { sco, change: Change::decode(reader, Checksums::Carried)? }),
            SEAL => Ok(Self::Seal { sco, cluster_count: reader.u32()? }),
            other => Err(reader.corrupt(format!("an entry is of unknown kind {other}"))),
        }
    }
}

/// Whose entry it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub cluster_size: ClusterSize,
    /// Last sequence of this volume before this entry; noted when the entry is the first of a section.
    pub previous_seq: Seq,
}

/// A write of `crcs.len()` consecutive clusters.
#[derive(Clone, Copy, Debug)]
pub struct DataEntry<'a> {
    pub seq: Seq,
    pub addr: ClusterAddr,
    pub first_index: u32,
    /// One for each cluster, at least one.
    pub crcs: &'a [ClusterCrc],
}

/// A range that became a hole or zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkEntry {
    pub seq: Seq,
    pub addr: ClusterAddr,
    pub count: ClusterCount,
    pub mark: Mark,
}

/// Gathers entries into one header block. A `push_` that answers `false` changed nothing: the record is full, finish it and
/// push again. Allocates once, when it is made.
#[derive(Debug)]
pub struct RecordBuilder {
    /// The sections, without the record's own fields.
    sections: Vec<u8>,
    section_count: u32,
    payload_bytes: u64,
    open: Option<OpenSection>,
}

#[derive(Debug)]
struct OpenSection {
    source: Source,
    start: usize,
    entry_count: u32,
    last_seq: Seq,
}

impl Default for RecordBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordBuilder {
    #[must_use]
    pub fn new() -> Self {
        Self {
            sections: Vec::with_capacity(SECTIONS_LIMIT),
            section_count: 0,
            payload_bytes: 0,
            open: None,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Bytes of the clusters pushed so far.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Whether an entry with this many checksums (0 for marks and seals) still fits.
    #[must_use]
    pub fn fits(&self, source: &Source, crcs: usize) -> bool {
        self.has_room(source, SCO_BYTES + CHANGE_BYTES + crcs.saturating_mul(CLUSTER_CRC_BYTES))
    }

    #[must_use]
    pub fn push_data(&mut self, source: Source, sco: ScoSeq, data: DataEntry<'_>) -> bool {
        if !self.fits(&source, data.crcs.len()) {
            return false;
        }
        let count = count32(data.crcs.len());
        assert!(count > 0, "a write covers at least one cluster");
        self.begin(source, sco, CHANGE);
        self.advance(data.seq);
        change::put_data(data.seq, data.addr, count, data.first_index, &mut self.sections);
        change::put_crcs(data.crcs, &mut self.sections);
        self.payload_bytes += u64::from(count) * source.cluster_size.bytes();
        true
    }

    #[must_use]
    pub fn push_mark(&mut self, source: Source, sco: ScoSeq, mark: MarkEntry) -> bool {
        if !self.fits(&source, 0) {
            return false;
        }
        assert!(mark.count.0 > 0, "a mark covers at least one cluster");
        self.begin(source, sco, CHANGE);
        self.advance(mark.seq);
        change::put_mark(mark.seq, mark.addr, mark.count, mark.mark, &mut self.sections);
        true
    }

    #[must_use]
    pub fn push_seal(&mut self, source: Source, sco: ScoSeq, cluster_count: u32) -> bool {
        if !self.has_room(&source, SEAL_BYTES) {
            return false;
        }
        self.begin(source, sco, SEAL);
        self.sections.put_u32_le(cluster_count);
        true
    }

    /// Any change; [`RecordBuilder::push_data`] and [`RecordBuilder::push_mark`] do without one.
    #[must_use]
    pub fn push_change(&mut self, source: Source, sco: ScoSeq, change: &Change) -> bool {
        let Change { seq, addr, count, kind } = change;
        let mark = match kind {
            ChangeKind::Data { first_index, crcs } => {
                let data = DataEntry { seq: *seq, addr: *addr, first_index: *first_index, crcs };
                return self.push_data(source, sco, data);
            }
            ChangeKind::Hole => Mark::Hole,
            ChangeKind::Zero => Mark::Zero,
        };
        self.push_mark(source, sco, MarkEntry { seq: *seq, addr: *addr, count: *count, mark })
    }

    /// Writes the header block of what was pushed, and begins anew. `payload_bytes` must be what the entries say.
    pub fn finish(
        &mut self,
        segment_use: u64,
        record: u64,
        durable_record: u64,
        payload_bytes: u32,
        out: &mut [u8; BLOCK_BYTES],
    ) {
        self.close();
        assert_eq!(
            self.payload_bytes,
            u64::from(payload_bytes),
            "the payload is what the entries list"
        );
        assert!(durable_record < record, "a record is durable only after it was written");
        let mut fields = [0; RECORD_BYTES];
        let mut rest = fields.as_mut_slice();
        rest.put_u64_le(segment_use);
        rest.put_u64_le(record);
        rest.put_u64_le(durable_record);
        rest.put_u32_le(payload_bytes);
        rest.put_u32_le(self.section_count);
        FRAME.fill(out, &[&fields, &self.sections]);
        self.sections.clear();
        self.section_count = 0;
        self.payload_bytes = 0;
    }

    fn continues(&self, source: &Source) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let Source { volume, epoch, cluster_size, .. } = open.source;
            (volume, epoch, cluster_size) == (source.volume, source.epoch, source.cluster_size)
        })
    }

    fn has_room(&self, source: &Source, entry_bytes: usize) -> bool {
        let section_bytes = if self.continues(source) { 0 } else { SECTION_BYTES };
        self.sections.len().saturating_add(section_bytes).saturating_add(entry_bytes)
            <= SECTIONS_LIMIT
    }

    /// Starts an entry, in a new section if need be.
    fn begin(&mut self, source: Source, sco: ScoSeq, kind: u64) {
        assert!(is_position(sco), "SCO position {sco}");
        if !self.continues(&source) {
            self.close();
            self.open_section(source);
        }
        if let Some(open) = &mut self.open {
            open.entry_count += 1;
        }
        self.sections.put_u64_le(kind * KIND_UNIT + sco.0);
    }

    fn advance(&mut self, seq: Seq) {
        if let Some(open) = &mut self.open {
            assert!(
                seq > open.last_seq,
                "change {seq} is journalled after change {}",
                open.last_seq
            );
            open.last_seq = seq;
        }
    }

    fn open_section(&mut self, source: Source) {
        let start = self.sections.len();
        self.open =
            Some(OpenSection { source, start, entry_count: 0, last_seq: source.previous_seq });
        self.section_count += 1;
        self.sections.put_slice(&source.volume.0);
        self.sections.put_u64_le(source.epoch.0);
        self.sections.put_u64_le(source.previous_seq.0);
        self.sections.put_u32_le(source.cluster_size.to_u32());
        self.sections.put_u32_le(0);
    }

    /// Notes how many entries the open section got.
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let section = self.sections.get_mut(open.start + ENTRY_COUNT_AT..).unwrap_or_default();
        let count = ours(section.first_chunk_mut());
        *count = open.entry_count.to_le_bytes();
    }
}

/// A cluster of a record's payload that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCluster {
    /// Position among all clusters of the payload.
    pub position: u64,
    pub volume: VolumeId,
    pub seq: Seq,
    pub addr: ClusterAddr,
    pub sco: ScoSeq,
    pub index: u32,
}

/// The clusters whose checksum does not match, in order; clusters that `payload` is too short to hold are among them.
#[must_use]
pub fn verify_payload(header: &RecordHeader, payload: &[u8]) -> Vec<BadCluster> {
    let mut bad = Vec::new();
    let mut rest = payload;
    let mut position = 0;
    for section in &header.sections {
        let cluster_bytes = usize::try_from(section.cluster_size.bytes()).unwrap_or(usize::MAX);
        for entry in &section.entries {
            let Entry::Change { sco, change } = entry else { continue };
            let ChangeKind::Data { first_index, crcs } = &change.kind else { continue };
            for (crc, n) in crcs.iter().zip(0_u32..) {
                let (cluster, after) = rest.split_at_checked(cluster_bytes).unwrap_or((&[], &[]));
                rest = after;
                if cluster.is_empty() || ClusterCrc::of(cluster) != *crc {
                    bad.push(BadCluster {
                        position,
                        volume: section.volume,
                        seq: change.seq,
                        addr: change.addr + ClusterCount(n.into()),
                        sco: *sco,
                        index: first_index.saturating_add(n),
                    });
                }
                position += 1;
            }
        }
    }
    bad
}
