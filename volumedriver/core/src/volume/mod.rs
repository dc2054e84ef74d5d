//! The state machine of one volume: pure decisions, no waiting.
//!
//! A change goes through `plan_*` (decide sequence and location, change nothing) and `commit_*` (publish to the map); between the
//! two the caller appends to the write buffer without waiting, so that journal order is sequence order (INV-2). Sealed SCOs
//! leave through [`Volume::next_upload`] in log order and come back through [`Volume::commit_published`] once the manifest
//! that names them is durable (INV-4).
//!
//! Knows nothing of sockets, files, objects' transport or time.

pub mod credits;
pub mod span;

use std::collections::VecDeque;

use crate::fault::{Fault, Result};
use crate::format::change::Mark;
use crate::format::manifest::{Origin, Shape, ShapeChange, TlogRef};
use crate::format::sco::ScoFooter;
use crate::format::tlog::TlogSco;
use crate::format::{Change, ChangeKind};
use crate::map::Map;
use crate::units::{
    ByteCount, ClusterAddr, ClusterCount, ClusterCrc, ClusterSize, Epoch, Location, ManifestNo,
    Mapping, ScoId, ScoSeq, Seq, VolumeId,
};

/// A decided write: its order and where its clusters will live. Consumed by [`Volume::commit_write`].
#[must_use]
#[derive(Debug)]
pub struct WritePlan {
    pub seq: Seq,
    pub sco: ScoId,
    pub first_index: u32,
    pub addr: ClusterAddr,
    pub count: u32,
}

/// A decided trim or zeroing. Consumed by [`Volume::commit_mark`].
#[must_use]
#[derive(Debug)]
pub struct MarkPlan {
    pub seq: Seq,
    pub sco: ScoId,
    pub addr: ClusterAddr,
    pub count: ClusterCount,
    pub mark: Mark,
}

/// A change as an SCO in memory holds it: checksums of all its clusters lie in one flat list beside.
#[derive(Clone, Copy, Debug)]
struct Entry {
    seq: Seq,
    addr: ClusterAddr,
    count: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Data { first_index: u32 },
    Mark(Mark),
}

/// An SCO that is being filled.
#[derive(Debug)]
struct OpenSco {
    id: ScoId,
    entries: Vec<Entry>,
    crcs: Vec<ClusterCrc>,
}

/// An SCO that takes no more changes and is not published yet.
#[derive(Debug)]
pub struct SealedSco {
    id: ScoId,
    entries: Vec<Entry>,
    crcs: Vec<ClusterCrc>,
}

/// Most trims and zeroings without data in one SCO: bounds its footer when the guest writes nothing.
const MAX_ENTRIES: usize = 1 << 17;

impl OpenSco {
    fn new(id: ScoId) -> Self {
        Self { id, entries: Vec::new(), crcs: Vec::new() }
    }
    fn cluster_count(&self) -> u32 {
        self.crcs.len() as u32
    }
}

impl SealedSco {
    #[must_use]
    pub fn id(&self) -> ScoId {
        self.id
    }
    #[must_use]
    pub fn cluster_count(&self) -> u32 {
        self.crcs.len() as u32
    }
    #[must_use]
    pub fn crcs(&self) -> &[ClusterCrc] {
        &self.crcs
    }
    #[must_use]
    pub fn last_seq(&self) -> Option<Seq> {
        self.entries.last().map(|e| e.seq)
    }
    fn changes(&self, with_crcs: bool) -> Vec<Change> {
        self.entries.iter().map(|e| self.change(e, with_crcs)).collect()
    }
    fn change(&self, entry: &Entry, with_crcs: bool) -> Change {
        let kind = match entry.what {
            What::Mark(Mark::Hole) => ChangeKind::Hole,
            What::Mark(Mark::Zero) => ChangeKind::Zero,
            What::Data { first_index } => {
                let first = first_index as usize;
                let crcs =
                    if with_crcs { &self.crcs[first..first + entry.count as usize] } else { &[] };
                ChangeKind::Data { first_index, crcs: crcs.to_vec() }
            }
        };
        Change { seq: entry.seq, addr: entry.addr, count: ClusterCount(entry.count), kind }
    }
    /// The footer to put behind its data.
    #[must_use]
    pub fn footer(&self, volume: VolumeId, cluster_size: ClusterSize) -> ScoFooter {
        ScoFooter {
            volume,
            id: self.id,
            cluster_size,
            cluster_count: self.cluster_count(),
            changes: self.changes(true),
        }
    }
    /// Its part of a TLog, once the object of `object_bytes` is stored.
    #[must_use]
    pub fn tlog_entry(&self, object_bytes: u64) -> TlogSco {
        TlogSco {
            id: self.id,
            cluster_count: self.cluster_count(),
            object_bytes,
            changes: self.changes(false),
        }
    }
}

/// One volume.
pub struct Volume {
    id: VolumeId,
    epoch: Epoch,
    shape: Shape,
    head: ManifestNo,
    map: Map,
    sco_clusters: u32,
    last_seq: Seq,
    open: OpenSco,
    sealed: VecDeque<SealedSco>,
}

impl Volume {
    /// A volume whose opening manifest `head` (in `shape`) is durable, before any local replay.
    #[must_use]
    pub fn new(id: VolumeId, shape: Shape, head: ManifestNo, map: Map) -> Self {
        let epoch = shape.openings.last().map_or(Epoch(1), |o| o.epoch);
        let sco_clusters = sco_clusters(&shape);
        let last_seq = shape.last_seq;
        let open = OpenSco::new(ScoId { epoch, seq: shape.last_sco.next() });
        Self { id, epoch, shape, head, map, sco_clusters, last_seq, open, sealed: VecDeque::new() }
    }
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.id
    }
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
    #[must_use]
    pub fn head(&self) -> ManifestNo {
        self.head
    }
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.shape.size
    }
    #[must_use]
    pub fn cluster_size(&self) -> ClusterSize {
        self.shape.cluster_size
    }
    /// Last change accepted.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.last_seq
    }
    pub fn map(&mut self) -> &mut Map {
        &mut self.map
    }
    /// The SCO that would take the next change, and how full it is.
    #[must_use]
    pub fn open_sco(&self) -> (ScoId, u32) {
        (self.open.id, self.open.cluster_count())
    }
    #[must_use]
    pub fn has_open_changes(&self) -> bool {
        !self.open.entries.is_empty()
    }
    /// No SCO position is left: nothing can be written any more.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.open.id.seq.0 > Location::MAX_SCO
    }
    /// Bytes of data in SCOs that are not published.
    #[must_use]
    pub fn backlog(&self) -> ByteCount {
        let sealed: u64 = self.sealed.iter().map(|s| u64::from(s.cluster_count())).sum();
        let clusters = sealed + u64::from(self.open.cluster_count());
        self.shape.cluster_size.bytes_of(ClusterCount(clusters))
    }

    /// True when the open SCO must be sealed before it can take `count` more clusters.
    #[must_use]
    pub fn must_seal_for(&self, count: u32) -> bool {
        self.has_open_changes()
            && (self.open.cluster_count() + count > self.sco_clusters
                || self.open.entries.len() >= MAX_ENTRIES)
    }
    /// Decides a write of `count` clusters (at most one atomic operation) to the open SCO.
    pub fn plan_write(&self, addr: ClusterAddr, count: u32) -> WritePlan {
        assert!(!self.must_seal_for(count), "seal before planning");
        let first_index = self.open.cluster_count();
        WritePlan { seq: self.last_seq.next(), sco: self.open.id, first_index, addr, count }
    }
    /// Publishes a planned write whose data is in the write buffer. `crcs` has one entry per cluster.
    pub fn commit_write(&mut self, plan: WritePlan, crcs: &[ClusterCrc]) {
        assert_eq!(plan.seq, self.last_seq.next(), "plans are committed in order");
        assert_eq!(crcs.len(), plan.count as usize);
        let what = What::Data { first_index: plan.first_index };
        let count = u64::from(plan.count);
        self.open.entries.push(Entry { seq: plan.seq, addr: plan.addr, count, what });
        self.open.crcs.extend_from_slice(crcs);
        self.last_seq = plan.seq;
        let at = Mapping::At(Location { sco: plan.sco.seq, index: plan.first_index });
        self.map.set(plan.addr, ClusterCount(count), at, plan.seq);
    }
    /// Decides a trim or zeroing of whole clusters.
    pub fn plan_mark(&self, addr: ClusterAddr, count: ClusterCount, mark: Mark) -> MarkPlan {
        assert!(!self.must_seal_for(0), "seal before planning");
        MarkPlan { seq: self.last_seq.next(), sco: self.open.id, addr, count, mark }
    }
    /// Publishes a planned trim or zeroing that is in the write buffer.
    pub fn commit_mark(&mut self, plan: MarkPlan) {
        assert_eq!(plan.seq, self.last_seq.next(), "plans are committed in order");
        let what = What::Mark(plan.mark);
        self.open.entries.push(Entry { seq: plan.seq, addr: plan.addr, count: plan.count.0, what });
        self.last_seq = plan.seq;
        self.map.set(plan.addr, plan.count, mapping_of(plan.mark), plan.seq);
    }
    /// Ends the open SCO; its seal is in the write buffer. A no-op would be a caller's mistake: there are changes in it.
    pub fn commit_seal(&mut self) {
        self.commit_seal_of(self.epoch);
    }

    /// The same for a seal of this epoch. Who seals an SCO gives it its name: what an earlier owner left unsealed may be on
    /// the backend under its own name, with more in it, if the end of the journal was lost since.
    pub fn commit_seal_of(&mut self, epoch: Epoch) {
        assert!(self.has_open_changes(), "an SCO without changes is never sealed");
        let seq = self.open.id.seq;
        let next = OpenSco::new(ScoId { epoch: self.epoch, seq: seq.next() });
        let OpenSco { entries, crcs, .. } = std::mem::replace(&mut self.open, next);
        self.sealed.push_back(SealedSco { id: ScoId { epoch, seq }, entries, crcs });
    }

    /// Ends what is not sealed; nothing follows it. Otherwise the last sealed SCO may lack its end (a seal tells of clusters, not
    /// of trims) and be on the backend with it: so that one gets a name of this epoch, too. Whether an SCO was ended.
    pub fn end_log(&mut self) -> bool {
        if self.has_open_changes() {
            self.commit_seal();
            return true;
        }
        if let Some(last) = self.sealed.back_mut() {
            last.id.epoch = self.epoch;
        }
        false
    }

    /// The sealed SCOs in log order; the uploader keeps its own place in them.
    #[must_use]
    pub fn next_upload(&self, after: ScoSeq) -> Option<&SealedSco> {
        self.sealed.iter().find(|s| s.id.seq > after)
    }
    /// The oldest `count` sealed SCOs.
    pub fn oldest_sealed(&self, count: usize) -> impl Iterator<Item = &SealedSco> {
        self.sealed.iter().take(count)
    }
    /// Last change in a sealed SCO that is not published; 0 when there is none.
    #[must_use]
    pub fn sealed_seq(&self) -> Seq {
        self.sealed.back().and_then(SealedSco::last_seq).unwrap_or_default()
    }
    #[must_use]
    pub fn sealed_count(&self) -> usize {
        self.sealed.len()
    }

    /// The shape change that publishes the oldest `count` sealed SCOs under `tlog`.
    #[must_use]
    pub fn plan_published(&self, count: usize, tlog: TlogRef) -> ShapeChange {
        let mut origins = Vec::new();
        let mut current = self.shape.origins.last().map(|o| (o.volume, o.epoch));
        let mut last_seq = self.shape.last_seq;
        for sco in self.sealed.iter().take(count) {
            if current != Some((self.id, sco.id.epoch)) {
                current = Some((self.id, sco.id.epoch));
                origins.push(Origin {
                    first_sco: sco.id.seq,
                    volume: self.id,
                    epoch: sco.id.epoch,
                });
            }
            last_seq = sco.last_seq().unwrap_or(last_seq);
        }
        ShapeChange::Published { tlog, last_seq, origins }
    }
    /// Manifest `no` with these changes is durable.
    pub fn commit_manifest(&mut self, no: ManifestNo, changes: &[ShapeChange]) -> Result<()> {
        for change in changes {
            self.shape.apply(no, change)?;
            if let ShapeChange::Resized(size) = change {
                self.map.grow(self.shape.cluster_size.clusters_covering(*size));
            }
        }
        self.sco_clusters = sco_clusters(&self.shape);
        self.head = no;
        Ok(())
    }
    /// The oldest sealed SCO is named by a durable manifest: the changes to move to the map's base.
    #[must_use]
    pub fn oldest_changes(&self) -> Option<(ScoSeq, Vec<Change>)> {
        self.sealed.front().map(|s| (s.id.seq, s.changes(false)))
    }
    /// Moves the oldest sealed SCO to the map's base (its pages are loaded) and gives it up.
    pub fn commit_published(&mut self, changes: &[Change]) -> Result<SealedSco> {
        let Some(sco) = self.sealed.pop_front() else {
            return Err(Fault::bug("published an SCO that was not sealed"));
        };
        self.map.publish(sco.id.seq, changes);
        Ok(sco)
    }

    /// Takes back changes of an un-published SCO found in the write buffer, in log order (INV-2). Changes that are not the
    /// next in order are refused: something between was lost. So are those that no earlier owner of this volume can have
    /// made, whatever their checksum says.
    pub fn replay(&mut self, id: ScoId, changes: &[Change]) -> Result<()> {
        let expected = self.open.id.seq;
        if self.has_open_changes() || id.seq != expected || self.is_used_up() {
            return Err(Fault::corrupt(format!(
                "the write buffer holds SCO {id} where position {expected} must come next; what was between is lost"
            )));
        }
        if id.epoch >= self.epoch {
            return Err(Fault::corrupt(format!(
                "the write buffer holds SCO {id} of an epoch before which {} began",
                self.epoch
            )));
        }
        self.map.check(changes).map_err(|fault| fault.about(format!("SCO {id}")))?;
        self.open.id = id;
        for change in changes {
            self.replay_change(id, change)?;
        }
        Ok(())
    }

    fn replay_change(&mut self, id: ScoId, change: &Change) -> Result<()> {
        if change.seq != self.last_seq.next() {
            return Err(Fault::corrupt(format!(
                "SCO {id} in the write buffer goes from change {} to {}",
                self.last_seq, change.seq
            )));
        }
        match &change.kind {
            ChangeKind::Data { first_index, crcs } => {
                if *first_index != self.open.cluster_count() || crcs.len() as u64 != change.count.0
                {
                    return Err(Fault::corrupt(format!(
                        "change {} in SCO {id} is misplaced",
                        change.seq
                    )));
                }
                let count = crcs.len() as u32;
                let first_index = *first_index;
                let plan =
                    WritePlan { seq: change.seq, sco: id, first_index, addr: change.addr, count };
                self.commit_write(plan, crcs);
            }
            ChangeKind::Hole | ChangeKind::Zero => {
                let mark = if change.kind == ChangeKind::Hole { Mark::Hole } else { Mark::Zero };
                let (seq, addr, count) = (change.seq, change.addr, change.count);
                self.commit_mark(MarkPlan { seq, sco: id, addr, count, mark });
            }
        }
        Ok(())
    }
}

fn mapping_of(mark: Mark) -> Mapping {
    match mark {
        Mark::Hole => Mapping::Hole,
        Mark::Zero => Mapping::Zero,
    }
}

/// Clusters an SCO of this shape takes.
fn sco_clusters(shape: &Shape) -> u32 {
    let clusters = shape.sco_size.0 / shape.cluster_size.bytes();
    clusters.clamp(1, u64::from(Location::MAX_CLUSTERS)) as u32
}

#[cfg(test)]
mod tests;
