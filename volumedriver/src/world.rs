//! The only way the engine touches the outside: local disk, page store, object store, clock, tasks.
//!
//! The real world is wired in `main`; the simulated world lives in `tests/` and runs this very engine, so every call of
//! these traits is a point where a crash, an error or a delay can be placed. Futures stay on their shard's thread (they need
//! not be `Send`).

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use volumedriver_core::fault::Result;
use volumedriver_core::units::{PageNo, TlogNo, VolumeId};

use crate::io::buf::{AlignedBuf, AreaSlice};

/// Everything outside, as one value that a shard clones freely.
pub trait World: Clone + 'static {
    type Disk: Disk;
    type Store: ObjectStore;
    type Pages: PageStore;

    fn disk(&self) -> &Self::Disk;
    fn store(&self) -> &Self::Store;
    fn pages(&self) -> &Self::Pages;
    /// Monotonic time since an arbitrary origin.
    fn now(&self) -> Duration;
    fn sleep(&self, how_long: Duration) -> impl Future<Output = ()> + 'static;
    /// Runs a task on this shard's thread until it ends; it is dropped when the shard is.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
    /// Works something out that takes long (a millisecond and more), off the shard's thread where this world has others.
    fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> {
        async move { work() }
    }
    /// A file the store handed out ([`ObjectStore::local_file`]), opened for direct reads; `None` where this world has no such.
    fn adopt(&self, _file: std::sync::Arc<std::fs::File>) -> Option<<Self::Disk as Disk>::File> {
        None
    }
    /// 128 bits nobody has seen before.
    fn random_id(&self) -> [u8; 16];
}

/// Local files of one shard, by plain name (no directories). Offsets, lengths and buffers of reads and writes are multiples
/// of 4 KiB: files are opened with O_DIRECT.
pub trait Disk: Clone + 'static {
    type File: DiskFile;

    /// Names and lengths of all files, in any order.
    fn list(&self) -> impl Future<Output = Result<Vec<(String, u64)>>>;
    /// Creates a file of this length, every byte written with zeroes (not merely allocated), durable with its name.
    /// `NoSpace` when it does not fit; then nothing is left behind.
    fn create(&self, name: &str, len: u64) -> impl Future<Output = Result<Self::File>>;
    /// As [`Disk::create`], but the room is only taken, nothing is written: quick at any length, slower to write to the
    /// first time.
    fn reserve(&self, name: &str, len: u64) -> impl Future<Output = Result<Self::File>> {
        self.create(name, len)
    }
    fn open(&self, name: &str) -> impl Future<Output = Result<Self::File>>;
    /// Durable when it returns.
    fn remove(&self, name: &str) -> impl Future<Output = Result<()>>;
}

/// Whether a write is durable when it returns, or only after the next [`DiskFile::sync`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Later,
    /// O_DSYNC: the written bytes (only these) are on stable storage.
    Now,
}

pub trait DiskFile: Clone + 'static {
    /// Bytes in the file.
    fn len(&self) -> u64;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills the whole buffer from `offset` or fails.
    fn read_at(&self, buf: AlignedBuf, offset: u64) -> impl Future<Output = Result<AlignedBuf>>;
    /// Writes all slices one after the other from `offset`. On an error any part of them may have been written.
    fn write_at(
        &self,
        slices: Vec<AreaSlice>,
        offset: u64,
        durability: Durability,
    ) -> impl Future<Output = Result<()>>;
    /// Makes every write that returned before this call durable.
    fn sync(&self) -> impl Future<Output = Result<()>>;
}

/// Encoded map pages of all volumes, kept locally. Derivable from the backend: a crash may lose the latest batches, but in
/// order, and each batch is all or nothing.
pub trait PageStore: Clone + 'static {
    /// Pages as last put, `None` where there is none.
    fn get(
        &self,
        volume: VolumeId,
        pages: Vec<PageNo>,
    ) -> impl Future<Output = Result<Vec<Option<Bytes>>>>;
    /// Applies a batch atomically, and with it the number of the last TLog whose changes the pages contain.
    fn put(&self, volume: VolumeId, batch: PageBatch) -> impl Future<Output = Result<()>>;
    /// The TLog number of the last batch that is there; `None` before the first.
    fn applied(&self, volume: VolumeId) -> impl Future<Output = Result<Option<TlogNo>>>;
    /// Makes all batches so far survive a crash.
    fn sync(&self) -> impl Future<Output = Result<()>>;
    /// Forgets everything about the volume.
    fn drop_volume(&self, volume: VolumeId) -> impl Future<Output = Result<()>>;
}

#[derive(Clone, Debug, Default)]
pub struct PageBatch {
    /// Ranges of pages (first, count) to delete before the puts: they became holes.
    pub holes: Vec<(PageNo, u64)>,
    pub pages: Vec<(PageNo, Bytes)>,
    pub applied: TlogNo,
}

/// Outcome of a put-if-absent that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Created,
    /// An object of this name was there before (perhaps from our own earlier attempt whose reply was lost).
    Exists,
}

/// What an object is for: decides who may have a store's last room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What a guest wrote, and what can wait as long.
    Data,
    /// Small, and nothing could be opened, published or freed without it: a store full of data still takes some.
    Metadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    pub len: u64,
    /// CRC-32 (IEEE) of the whole object.
    pub crc: u32,
}

/// Immutable objects in namespaces. Errors: `Unavailable` (retry later: the outcome of a change is then unknown, it may
/// happen even after the error), `NoSpace`, `Corrupt` (the store itself found damage), `Invalid`.
pub trait ObjectStore: Clone + 'static {
    /// Succeeds also when the namespace exists.
    fn create_namespace(&self, namespace: &str) -> impl Future<Output = Result<()>>;
    /// Deletes the namespace with all its objects; succeeds also when there is none.
    fn delete_namespace(&self, namespace: &str) -> impl Future<Output = Result<()>>;
    /// Complete, sorted; may be stale by a bounded time on some stores.
    fn list_namespaces(&self, prefix: &str) -> impl Future<Output = Result<Vec<String>>>;
    /// The body is the concatenation of the pieces. Durable when it returns `Created`.
    fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> impl Future<Output = Result<Put>>;
    /// Exactly `len` bytes from `offset`; `None` when there is no such object; `Invalid` past its end.
    fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Option<Bytes>>>;
    /// `None` when there is no such object.
    fn head(&self, namespace: &str, name: &str)
    -> impl Future<Output = Result<Option<ObjectInfo>>>;
    /// Up to `limit` names with this prefix after `after`, sorted; may be stale.
    fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<String>>>;
    /// Succeeds also when there is no such object.
    fn delete(&self, namespace: &str, name: &str) -> impl Future<Output = Result<()>>;
    /// How fast puts may hand their bytes over from now on, bytes per second of all together; `None`: as fast as they can.
    /// Of no interest to a store that shares no disk with this node.
    fn pace(&self, _bytes_per_s: Option<u64>) {}
    /// It lies on a disk of this node, as the write buffer does.
    fn is_on_this_disk(&self) -> bool {
        false
    }
    /// A local file that holds the object's bytes from its first byte on, for reading without the store in between. The
    /// bytes are unverified. `None` when the store has no such thing or no such object.
    fn local_file(
        &self,
        _namespace: &str,
        _name: &str,
    ) -> impl Future<Output = Result<Option<std::sync::Arc<std::fs::File>>>> {
        async { Ok(None) }
    }
}
