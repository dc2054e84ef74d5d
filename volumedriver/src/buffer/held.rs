//! What the buffer holds of one volume: which clusters of which SCO lie where.
//!
//! Offsets are bytes in a segment file, segments are indices into the tail's list.

use std::collections::BTreeMap;

use volumedriver_core::format::ChangeKind;
use volumedriver_core::units::{ClusterCrc, ClusterSize, Epoch, ScoId, ScoSeq, Seq};

/// Consecutive clusters of an SCO that lie one after the other in a segment.
pub(super) struct Run {
    /// Who wrote them.
    pub epoch: Epoch,
    pub first_index: u32,
    pub segment: usize,
    pub offset: u64,
    /// One per cluster.
    pub crcs: Vec<ClusterCrc>,
}

impl Run {
    fn end(&self) -> u32 {
        self.first_index + self.crcs.len() as u32
    }
}

/// An SCO that is not disposed of yet.
#[derive(Default)]
pub(super) struct HeldSco {
    /// In order of their first index, without overlap.
    pub runs: Vec<Run>,
    /// Segments with entries of this SCO, each once.
    pub segments: Vec<usize>,
}

/// A part of what is asked for, contiguous in one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub segment: usize,
    pub offset: u64,
    pub first_index: u32,
    pub crcs: Vec<ClusterCrc>,
}

pub(super) struct HeldVolume {
    pub cluster_size: ClusterSize,
    pub last_seq: Seq,
    pub scos: BTreeMap<ScoSeq, HeldSco>,
    pub bytes: u64,
}

impl HeldVolume {
    pub fn new(cluster_size: ClusterSize) -> Self {
        Self { cluster_size, last_seq: Seq(0), scos: BTreeMap::new(), bytes: 0 }
    }

    /// Notes that a segment has an entry of this SCO. `true` the first time.
    pub fn pin(&mut self, sco: ScoSeq, segment: usize) -> bool {
        let held = self.scos.entry(sco).or_default();
        // Appending goes on in the newest segment, so this looks at one element.
        let known = held.segments.iter().rev().any(|known| *known == segment);
        if !known {
            held.segments.push(segment);
        }
        !known
    }

    /// Notes where clusters of a pinned SCO lie. `false`: they overlap what is there, nothing changed.
    pub fn place(
        &mut self,
        sco: ScoId,
        first_index: u32,
        crcs: &[ClusterCrc],
        (segment, offset): (usize, u64),
    ) -> bool {
        let cluster_bytes = self.cluster_size.bytes();
        let ScoId { epoch, seq } = sco;
        let Some(held) = self.scos.get_mut(&seq) else { return false };
        let end = held.runs.last().map_or(0, Run::end);
        if first_index < end {
            return false;
        }
        self.bytes += crcs.len() as u64 * cluster_bytes;
        if let Some(last) = held.runs.last_mut()
            && (last.epoch, last.segment) == (epoch, segment)
            && last.end() == first_index
            && last.offset + last.crcs.len() as u64 * cluster_bytes == offset
        {
            last.crcs.extend_from_slice(crcs);
        } else {
            held.runs.push(Run { epoch, first_index, segment, offset, crcs: crcs.to_vec() });
        }
        true
    }

    /// Visits where the clusters lie, in order: (segment, offset, first index, checksums). `false` when not all are held;
    /// then some may have been visited.
    pub fn visit(
        &self,
        sco: ScoSeq,
        index: u32,
        count: u32,
        mut visit: impl FnMut(usize, u64, u32, &[ClusterCrc]) -> bool,
    ) -> bool {
        let Some(held) = self.scos.get(&sco) else { return false };
        let Some(end) = index.checked_add(count) else { return false };
        let mut at = index;
        let start = held.runs.partition_point(|run| run.end() <= index);
        for run in held.runs.iter().skip(start) {
            if at >= end {
                break;
            }
            if run.first_index > at {
                return false;
            }
            let skip = (at - run.first_index) as usize;
            let take = ((run.end().min(end)) - at) as usize;
            let offset = run.offset + skip as u64 * self.cluster_size.bytes();
            if !visit(run.segment, offset, at, &run.crcs[skip..skip + take]) {
                return false;
            }
            at += take as u32;
        }
        at == end
    }

    pub fn pieces(&self, sco: ScoSeq, index: u32, count: u32) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        self.visit(sco, index, count, |segment, offset, first_index, crcs| {
            pieces.push(Piece { segment, offset, first_index, crcs: crcs.to_vec() });
            true
        })
        .then_some(pieces)
    }

    /// Whether what an older epoch wrote under this SCO position is superseded by a change of `epoch`: one that writes
    /// where clusters are already, rather than behind them.
    pub fn gives_way(&self, sco: ScoSeq, epoch: Epoch, kind: &ChangeKind) -> bool {
        let (Some(held), ChangeKind::Data { first_index, .. }) = (self.scos.get(&sco), kind) else {
            return false;
        };
        let written = held.runs.last().filter(|run| run.epoch < epoch).map_or(0, Run::end);
        *first_index < written
    }

    /// Forgets the clusters that epochs before this one wrote under an SCO position. The segments stay pinned: `epoch` may
    /// have entries there too.
    pub fn supersede(&mut self, sco: ScoSeq, epoch: Epoch) {
        let Some(held) = self.scos.get_mut(&sco) else { return };
        let old = held.runs.extract_if(.., |run| run.epoch < epoch);
        let clusters: usize = old.map(|run| run.crcs.len()).sum();
        self.bytes -= clusters as u64 * self.cluster_size.bytes();
    }

    /// Takes out an SCO; returns the segments it had entries in.
    pub fn take(&mut self, sco: ScoSeq) -> Vec<usize> {
        let Some(held) = self.scos.remove(&sco) else { return Vec::new() };
        let clusters: usize = held.runs.iter().map(|run| run.crcs.len()).sum();
        self.bytes -= clusters as u64 * self.cluster_size.bytes();
        held.segments
    }
}
