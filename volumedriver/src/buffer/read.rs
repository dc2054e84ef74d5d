//! Clusters back out of the buffer: slices of its memory where it has them, else of the segment files, verified.
//!
//! What is damaged is an error; only for a loss that the operator accepts it is handed out as it is, or as zeroes where the disk
//! cannot read at all. Its checksum tells on.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::units::{ClusterCrc, ScoSeq, VolumeId};

use super::device;
use super::held::Piece;
use super::{FileOf, Inner};
use crate::io::buf::AreaSlice;
use crate::world::World;

/// Most bytes of one read of a file.
const MAX_READ: u64 = 1 << 20;
/// Reads of one request under way at a time.
const READS: usize = 4;

/// What becomes of clusters that do not match their checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damaged {
    Refused,
    AsItIs,
}

/// One piece of an answer, in order.
enum Part<W: World> {
    Memory(Vec<AreaSlice>),
    File(FileRead<W>),
}

/// A read of a segment file. While it lives, the segment is not used anew.
struct FileRead<W: World> {
    inner: Rc<Inner<W>>,
    file: FileOf<W>,
    piece: Piece,
    cluster_bytes: u64,
    name: (VolumeId, ScoSeq),
}

impl<W: World> Drop for FileRead<W> {
    fn drop(&mut self) {
        let mut tail = self.inner.tail.borrow_mut();
        let segment = &mut tail.segments[self.piece.segment];
        segment.readers -= 1;
        if segment.readers == 0 {
            tail.free_oldest();
            drop(tail);
            self.inner.freed();
        }
    }
}

pub(super) async fn clusters<W: World>(
    inner: &Rc<Inner<W>>,
    volume: VolumeId,
    sco: ScoSeq,
    (index, count): (u32, u32),
    damaged: Damaged,
) -> Result<Option<Vec<Bytes>>> {
    let Some(parts) = plan(inner, volume, sco, index, count) else { return Ok(None) };
    let loads = stream::iter(parts).map(|part| async move {
        match part {
            Part::Memory(slices) => {
                Ok(slices.into_iter().map(AreaSlice::into_bytes).collect::<Vec<_>>())
            }
            Part::File(read) => {
                let loaded = match damaged {
                    Damaged::Refused => read.load().await,
                    Damaged::AsItIs => read.load_as_it_is().await,
                };
                Ok(vec![loaded?])
            }
        }
    });
    let loaded: Vec<Vec<Bytes>> = loads.buffered(READS).try_collect().await?;
    Ok(Some(loaded.into_iter().flatten().collect()))
}

fn plan<W: World>(
    inner: &Rc<Inner<W>>,
    volume: VolumeId,
    sco: ScoSeq,
    index: u32,
    count: u32,
) -> Option<Vec<Part<W>>> {
    let mut tail = inner.tail.borrow_mut();
    let held = tail.volume(volume)?;
    let cluster_bytes = held.cluster_size.bytes();
    let per_read = (MAX_READ / cluster_bytes) as usize;
    let mut parts = Vec::new();
    for piece in held.pieces(sco, index, count)? {
        let end = piece.offset + piece.crcs.len() as u64 * cluster_bytes;
        if let Some(slices) = tail.segments[piece.segment].image(piece.offset, end) {
            parts.push(Part::Memory(slices));
            continue;
        }
        for (crcs, n) in piece.crcs.chunks(per_read).zip(0..) {
            let segment = &mut tail.segments[piece.segment];
            segment.readers += 1;
            let skip = n * per_read as u32;
            let piece = Piece {
                segment: piece.segment,
                offset: piece.offset + u64::from(skip) * cluster_bytes,
                first_index: piece.first_index + skip,
                crcs: crcs.to_vec(),
            };
            let (file, inner) = (segment.file.clone(), inner.clone());
            parts.push(Part::File(FileRead {
                inner,
                file,
                piece,
                cluster_bytes,
                name: (volume, sco),
            }));
        }
    }
    Some(parts)
}

impl<W: World> FileRead<W> {
    async fn load(self) -> Result<Bytes> {
        let len = self.piece.crcs.len() as u64 * self.cluster_bytes;
        let is_good = |bytes: &[u8]| self.first_bad(bytes).is_none();
        let read = device::read_good(&self.file, len as usize, self.piece.offset, is_good).await;
        let about = |fault: Fault| {
            let (volume, sco) = self.name;
            fault.about(format!("SCO {sco} of volume {volume} in the write buffer"))
        };
        let (bytes, good) = read.map_err(about)?;
        if good {
            return Ok(bytes.into_bytes());
        }
        let index = self.first_bad(&bytes).unwrap_or(self.piece.first_index);
        Err(about(Fault::corrupt(format!("cluster {index} does not match its checksum"))))
    }

    /// As [`FileRead::load`], whatever state it is in.
    async fn load_as_it_is(self) -> Result<Bytes> {
        let cluster_bytes = self.cluster_bytes as usize;
        let mut all = Vec::with_capacity(self.piece.crcs.len() * cluster_bytes);
        for (n, crc) in (0..).zip(&self.piece.crcs) {
            let offset = self.piece.offset + n * self.cluster_bytes;
            let is_good = |bytes: &[u8]| ClusterCrc::of(bytes) == *crc;
            match device::read_good(&self.file, cluster_bytes, offset, is_good).await {
                Ok((bytes, _)) => all.extend_from_slice(&bytes),
                Err(fault) if fault.kind == Kind::Corrupt => {
                    all.resize(all.len() + cluster_bytes, 0);
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(all.into())
    }

    /// Index of the first cluster that does not match its checksum.
    fn first_bad(&self, bytes: &[u8]) -> Option<u32> {
        let clusters = bytes.chunks(self.cluster_bytes as usize);
        let mut checked = clusters.zip(&self.piece.crcs).zip(self.piece.first_index..);
        checked.find(|((cluster, crc), _)| ClusterCrc::of(cluster) != **crc).map(|(_, index)| index)
    }
}
