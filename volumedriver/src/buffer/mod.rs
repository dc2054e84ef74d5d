//! The write buffer: one journal per shard, shared by its volumes, on prewritten segment files.
//!
//! What is appended lies in memory at once, at the very position it will have in its file, so that (segment, offset) serves
//! memory and disk alike. One writer task streams it out; a flush makes it durable for all volumes together.
//!
//! | file | what it is |
//! |---|---|
//! | `tail` | the journal's state: appending, closing records, freeing; changed without waiting |
//! | `segment` | one segment file and the images in memory of what it gets |
//! | `held` | per volume: which clusters of which SCO lie where |
//! | `writer` | the task that writes, commits, recycles and grows |
//! | `habit` | whether a flush is about to come |
//! | `device` | access to the files that stands a full or failing device for a while |
//! | `read` | clusters back out of memory or files |
//! | `image` | a segment file in memory, with the places that cannot be read |
//! | `recover` | what a crash left: scanning the files, deciding where the journal ends |
//! | `replay` | the surviving records per volume, and what is known to be lost |
//!
//! Invariants:
//! - A record holds whole operations, lies in one segment, and is written after all records before it were handed over.
//! - Segments are freed oldest first, so that the used ones are always a contiguous stretch of the journal. A freed segment's
//!   header is wiped before a younger one's, and before any header is written.
//! - A segment's records end where any segment of a later use begins (`first_record`). Recovery goes on in a fresh segment
//!   whose `first_record` follows the last record it kept, so what it dropped can never come back.
//! - Once a flush was acknowledged and the journal is quiet, a record without entries says so (a *note*): what decays after
//!   that is known to have been durable, and is never taken for a torn tail.
//! - Uses are numbered from a random start: a guest cannot write a cluster that passes for a record.
//! - Data leaves the last `1/16` of the last free segment to seals, without which nothing could be uploaded and freed.

mod device;
mod habit;
mod held;
mod image;
mod read;
mod recover;
mod replay;
mod segment;
mod tail;
mod writer;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::change::Mark;
use volumedriver_core::format::journal::{DataEntry, MarkEntry, Source};
use volumedriver_core::units::{
    ClusterAddr, ClusterCount, ClusterCrc, ClusterSize, Epoch, NodeId, ScoId, ScoSeq, Seq, VolumeId,
};

use crate::world::{Disk, World};
use read::Damaged;
pub use replay::{Damage, Replayed, ReplayedSco, ReplayedVolume};
use tail::Tail;
pub use tail::{Counters, MIN_SEGMENT_BYTES};

#[derive(Clone, Debug)]
pub struct BufferConfig {
    pub node: NodeId,
    pub shard: u32,
    /// Length of a segment file, bytes: a multiple of 4 KiB, at least 1 MiB. Existing files keep theirs.
    pub segment_bytes: u64,
    /// At least 2.
    pub segment_count: u32,
    /// Memory for images of the latest segments' contents, bytes.
    pub memory_bytes: u64,
    /// A write is started when this many bytes are pending.
    pub batch_bytes: u64,
    /// ... or when bytes have been pending for this long.
    pub linger: Duration,
}

impl BufferConfig {
    /// The defaults: 64 segments of 64 MiB, 256 MiB of memory.
    #[must_use]
    pub fn new(node: NodeId, shard: u32) -> Self {
        Self {
            node,
            shard,
            segment_bytes: 64 << 20,
            segment_count: 64,
            memory_bytes: 256 << 20,
            batch_bytes: 128 << 10,
            linger: Duration::from_millis(2),
        }
    }

    fn check(&self) -> Result<()> {
        let bytes = self.segment_bytes;
        if !(MIN_SEGMENT_BYTES..=1 << 31).contains(&bytes) || !bytes.is_multiple_of(4096) {
            return Err(Fault::invalid(format!(
                "segment size {bytes} is not a multiple of 4096 from {MIN_SEGMENT_BYTES} bytes to 2 GiB"
            )));
        }
        if !(2..=10_000).contains(&self.segment_count) {
            return Err(Fault::invalid(format!(
                "{} write buffer segments: there must be 2 to 10000",
                self.segment_count
            )));
        }
        Ok(())
    }
}

/// The write buffer of one shard. Cheap to clone, stays on its thread.
pub struct Buffer<W: World> {
    inner: Rc<Inner<W>>,
}

impl<W: World> Clone for Buffer<W> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

type FileOf<W> = <<W as World>::Disk as Disk>::File;

struct Inner<W: World> {
    world: W,
    config: BufferConfig,
    tail: RefCell<Tail<FileOf<W>>>,
    /// The writer has something to look at.
    work: Notify,
    /// A write that was in flight ended.
    written: Notify,
    /// Space or memory became free.
    room: Notify,
}

impl<W: World> Buffer<W> {
    /// Opens the buffer in the world's disk, creating what is missing, and returns what a crash left in it. Refuses
    /// segments of another node or shard, and of a later format, before anything is changed.
    pub async fn open(world: W, config: BufferConfig) -> Result<(Self, Replayed)> {
        config.check()?;
        let (tail, replayed) = recover::open(&world, &config).await?;
        let inner = Rc::new(Inner {
            world: world.clone(),
            config,
            tail: RefCell::new(tail),
            work: Notify::new(),
            written: Notify::new(),
            room: Notify::new(),
        });
        world.spawn(writer::run(inner.clone()));
        Ok((Self { inner }, replayed))
    }

    /// The log of one volume: the door to appending and reading. Knows what was replayed or appended for it before.
    pub fn attach(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        cluster_size: ClusterSize,
        previous_seq: Seq,
    ) -> VolumeLog<W> {
        self.inner.tail.borrow_mut().held(volume, cluster_size).last_seq = previous_seq;
        VolumeLog { inner: self.inner.clone(), volume, epoch, cluster_size }
    }

    /// Gives up everything held for a volume that is gone.
    pub fn forget(&self, volume: VolumeId) {
        self.inner.tail.borrow_mut().forget(volume);
        self.inner.freed();
    }

    /// Every volume there is was opened: what none of them needs may be freed. Until then the traces of damage stay.
    pub fn settle(&self) {
        self.inner.tail.borrow_mut().settle();
        self.inner.freed();
    }

    /// Makes everything appended before this call durable, for all volumes.
    pub async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    /// Bytes of all segments there are or may be.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        let tail = self.inner.tail.borrow();
        let missing = self.inner.config.segment_count.saturating_sub(tail.segment_count());
        let growth = if tail.full_disk() { 0 } else { missing };
        tail.segment_bytes() + u64::from(growth) * self.inner.config.segment_bytes
    }

    /// Bytes of the used segments, of the newest only what is taken.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.inner.tail.borrow().used_bytes()
    }

    /// Volumes that keep the oldest segments from being freed, the oldest first.
    #[must_use]
    pub fn pressing(&self) -> Vec<VolumeId> {
        self.inner.tail.borrow().pressing()
    }

    /// Resolves when room was made after this call: a segment was freed or created, or memory written out.
    pub async fn room(&self) {
        self.inner.room.notified().await;
    }

    /// Why the journal takes no more; `None` while all is well.
    #[must_use]
    pub fn failure(&self) -> Option<Fault> {
        self.inner.tail.borrow().failure()
    }

    /// What was written so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.tail.borrow().counters
    }

    /// Flushes and ends; appends are refused from now on, reads go on.
    pub async fn close(&self) -> Result<()> {
        self.inner.tail.borrow_mut().stop_appends();
        let mut result = self.inner.flush().await;
        let note = {
            let mut tail = self.inner.tail.borrow_mut();
            if tail.wants_note() { tail.append_note() } else { None }
        };
        if let (Ok(()), Some(note)) = (&result, note) {
            result = self.inner.flush_upto(note).await;
        }
        self.inner.tail.borrow_mut().closed = true;
        self.inner.work.notify_one();
        result
    }

    /// Most memory for the latest segments' contents, bytes.
    #[must_use]
    pub fn most_memory_bytes(&self) -> u64 {
        self.inner.config.memory_bytes
    }

    /// Memory for the latest segments' contents, bytes: bounded by [`BufferConfig::memory_bytes`], or four images of 4 MiB
    /// if that is more, and what seals need.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.inner.tail.borrow().image_bytes()
    }
}

impl<W: World> Inner<W> {
    async fn flush(&self) -> Result<()> {
        let last = {
            let mut tail = self.tail.borrow_mut();
            tail.habit.flushed();
            tail.last_appended()
        };
        self.flush_upto(last).await
    }

    async fn flush_upto(&self, target: u64) -> Result<()> {
        let waiting = {
            let mut tail = self.tail.borrow_mut();
            if let Some(failure) = tail.failure() {
                return Err(failure);
            }
            if tail.durable_record >= target {
                return Ok(());
            }
            let (sender, receiver) = oneshot::channel();
            tail.waiters.push((target, sender));
            receiver
        };
        self.work.notify_one();
        match waiting.await {
            Ok(result) => result,
            Err(_) => Err(Fault::closed("the write buffer ended before the flush was done")),
        }
    }

    /// After space may have been freed.
    fn freed(&self) {
        self.room.notify_waiters();
        self.work.notify_one();
    }
}

/// One volume's part of the buffer. Cheap to clone, stays on its thread.
pub struct VolumeLog<W: World> {
    inner: Rc<Inner<W>>,
    volume: VolumeId,
    epoch: Epoch,
    cluster_size: ClusterSize,
}

impl<W: World> Clone for VolumeLog<W> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), ..*self }
    }
}

impl<W: World> VolumeLog<W> {
    /// Appends one write of whole clusters, at most [`volumedriver_core::units::MAX_OP_CLUSTERS`]: readable at once, journalled
    /// soon or at the next flush. `None` changed nothing: there is no room now (wait for [`Buffer::room`]), or the journal
    /// failed (see [`Buffer::failure`]).
    ///
    /// # Panics
    /// When `data` is not `crcs.len()` clusters, or the clusters of an SCO are not appended in order of their index.
    #[must_use]
    pub fn append_data(
        &self,
        seq: Seq,
        addr: ClusterAddr,
        sco: ScoSeq,
        first_index: u32,
        crcs: &[ClusterCrc],
        data: &[u8],
    ) -> Option<()> {
        assert_eq!(data.len() as u64, crcs.len() as u64 * self.cluster_size.bytes());
        let entry = DataEntry { seq, addr, first_index, crcs };
        self.appended(|tail, source| tail.append_data(source, sco, entry, data))
    }

    /// Appends that a range became a hole or zeroes; as [`VolumeLog::append_data`].
    #[must_use]
    pub fn append_mark(
        &self,
        seq: Seq,
        addr: ClusterAddr,
        count: ClusterCount,
        mark: Mark,
        sco: ScoSeq,
    ) -> Option<()> {
        let entry = MarkEntry { seq, addr, count, mark };
        self.appended(|tail, source| tail.append_mark(source, sco, entry))
    }

    /// Appends that an SCO is complete; as [`VolumeLog::append_data`], but finds room longer.
    #[must_use]
    pub fn append_seal(&self, sco: ScoSeq, cluster_count: u32) -> Option<()> {
        self.appended(|tail, source| tail.append_seal(source, sco, cluster_count))
    }

    fn appended(
        &self,
        append: impl FnOnce(&mut Tail<FileOf<W>>, Source) -> Option<()>,
    ) -> Option<()> {
        let mut tail = self.inner.tail.borrow_mut();
        let before = tail.pending_bytes();
        let source = Source {
            volume: self.volume,
            epoch: self.epoch,
            cluster_size: self.cluster_size,
            previous_seq: tail.held(self.volume, self.cluster_size).last_seq,
        };
        let result = append(&mut tail, source);
        if result.is_some() {
            tail.habit.appended();
        }
        let after = tail.pending_bytes();
        let batch = self.inner.config.batch_bytes;
        let crossed = before < batch && after >= batch;
        if before == 0 || crossed || result.is_none() {
            self.inner.work.notify_one();
        }
        result
    }

    /// Clusters from `index` on into the whole of `out`, if all of them are in memory. `false` leaves `out` undefined.
    #[must_use]
    pub fn read_now(&self, sco: ScoSeq, index: u32, out: &mut [u8]) -> bool {
        self.inner.tail.borrow().read_now(self.volume, sco, index, out)
    }

    /// The clusters, verified if they had to be read from a file. `None` when the buffer does not hold all of them.
    /// `Corrupt` names the first damaged cluster.
    pub async fn read(&self, sco: ScoSeq, index: u32, count: u32) -> Result<Option<Vec<Bytes>>> {
        read::clusters(&self.inner, self.volume, sco, (index, count), Damaged::Refused).await
    }

    /// `count` clusters of an SCO from `first` on, for its upload. `Invalid` when the buffer does not hold them.
    pub async fn sco_part(&self, sco: ScoSeq, first: u32, count: u32) -> Result<Vec<Bytes>> {
        let known = self.inner.tail.borrow().cluster_count(self.volume, sco).is_some();
        let found = match (known, count) {
            (true, 0) => return Ok(Vec::new()),
            (true, _) => self.read(sco, first, count).await?,
            (false, _) => None,
        };
        found.ok_or_else(|| self.not_held(sco))
    }

    fn not_held(&self, sco: ScoSeq) -> Fault {
        let volume = self.volume;
        Fault::invalid(format!(
            "the write buffer does not hold all of SCO {sco} of volume {volume}"
        ))
    }

    /// As [`VolumeLog::sco_part`], but what is damaged comes as it is: it does not match its checksum.
    pub async fn sco_part_as_it_is(
        &self,
        sco: ScoSeq,
        first: u32,
        count: u32,
    ) -> Result<Vec<Bytes>> {
        if count == 0 {
            return self.sco_part(sco, first, 0).await;
        }
        let range = (first, count);
        let found = read::clusters(&self.inner, self.volume, sco, range, Damaged::AsItIs).await?;
        found.ok_or_else(|| self.not_held(sco))
    }

    /// SCOs up to this one are published: what is held of them here may go.
    pub fn dispose(&self, up_to: ScoSeq) {
        self.inner.tail.borrow_mut().dispose(self.volume, up_to);
        self.inner.freed();
    }

    /// The changes up to this one were replayed: what is appended next says that it follows them.
    pub fn resume(&self, last_seq: Seq) {
        self.inner.tail.borrow_mut().held(self.volume, self.cluster_size).last_seq = last_seq;
    }

    /// Keeps the buffer's contents as they are until the volume is forgotten: the next opening must find the same damage.
    pub fn keep(&self) {
        self.inner.tail.borrow_mut().keep(self.volume);
    }

    /// What epochs before this one wrote under the SCO's position is obsolete.
    pub fn supersede(&self, sco: ScoId) {
        self.inner.tail.borrow_mut().supersede(self.volume, sco.seq, sco.epoch);
    }

    /// Gives up what is held under one SCO position, out of order.
    pub fn give_up(&self, sco: ScoSeq) {
        self.inner.tail.borrow_mut().give_up(self.volume, sco);
        self.inner.freed();
    }

    /// Bytes of clusters held for the volume.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.inner.tail.borrow().held_bytes(self.volume)
    }

    /// Why the journal takes no more; `None` while all is well.
    #[must_use]
    pub fn failure(&self) -> Option<Fault> {
        self.inner.tail.borrow().failure()
    }
}
