//! OSDs: where fragments are kept. One trait for every kind: a local directory, a disk behind gRPC (`alba asd`), a bucket,
//! a namespace of another ALBA.
//!
//! A fragment is written once, read by verified ranges, and removed; its id is never used twice. What an OSD answers is
//! checked by whoever asked: an OSD may lie.

mod asd;
mod bucket;
pub mod conformance;
mod directory;
mod far;
mod gate;
mod local;
mod marker;
mod objects;
mod patience;
mod place;
mod query;
mod read;
mod remote;
mod room;
mod sequence;
mod unreachable;
mod write;

use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::fault::Result;
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::trailer::{Part, Trailer};

pub use asd::Asd;
pub use directory::Directory;
pub use gate::Priority;
pub use local::{Bare, Local, Ownership};
pub use place::{Claimed, Place, asd_address, connect, is_anywhere, kind};
pub use remote::{Described, Remote, describe};
pub use room::{Limits, Purpose, Room, Space};
pub use sequence::{Assert, MAX_PARTS, Sequence, Small, Update};
pub use unreachable::Unreachable;

/// What a new fragment is to be.
#[derive(Clone, Debug)]
pub struct Title {
    pub file: FragmentId,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Its place in its object; the object's checksum is given at the end.
    pub part: Part,
    /// Of the object, milliseconds since 1970.
    pub created_ms: u64,
    pub purpose: Purpose,
    pub priority: Priority,
}

/// What the manifest says a fragment is: anything else under its id is damage.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub file: FragmentId,
    pub len: u64,
    pub crc: u32,
}

/// A place for fragments. Calls end: one that hangs is given up by the caller.
#[async_trait]
pub trait Osd: Debug + Send + Sync {
    fn id(&self) -> OsdId;
    /// Where it is, for people.
    fn place(&self) -> String;
    async fn room(&self) -> Result<Room>;
    /// Begins a fragment. `NoSpace` when it does not fit.
    async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>>;
    /// `None` when there is no such fragment.
    async fn open(&self, wanted: Wanted, priority: Priority) -> Result<Option<Arc<dyn Fragment>>>;
    /// Its fragments are files of this machine.
    fn has_files(&self) -> bool {
        false
    }
    /// The fragment's file, if it has one in this machine, for unverified reads from offset 0 on; `None` when it is not there.
    async fn open_raw(&self, file: FragmentId) -> Result<Option<File>>;
    /// Succeeds also when there is none.
    async fn remove(&self, file: FragmentId) -> Result<()>;
    /// Asserts, then updates; returns the checksums of what was stored, in order.
    async fn apply(&self, sequence: Sequence) -> Result<Vec<u32>> {
        sequence::one_by_one(self, sequence).await
    }
    /// What a fragment's file says of itself; `None` when there is none. `Corrupt` when it says nothing that makes sense.
    async fn describe(&self, file: FragmentId) -> Result<Option<Trailer>>;
    /// All fragments whose id begins with this byte, also those being written.
    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>>;
    /// Makes it nobody's; kinds that know no owner have nothing to do.
    async fn release(&self, _alba: AlbaId) -> Result<()> {
        Ok(())
    }
}

/// A fragment being written; removed when dropped before [`FragmentWriter::keep`].
#[async_trait]
pub trait FragmentWriter: Send + Sync {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<()>;
    /// Durable when it returns, with its CRC-32. The object's checksum may be left out when it is the fragment's.
    async fn finish(&mut self, object_crc: Option<u32>) -> Result<u32>;
    /// It stays: a manifest names it, or may name it.
    fn keep(&mut self);
    /// Removed when this returns, unless it was kept.
    async fn discard(self: Box<Self>);
}

/// An open fragment.
#[async_trait]
pub trait Fragment: Send + Sync {
    /// A range that lies in the fragment, verified. `Corrupt` names what does not match.
    async fn read(self: Arc<Self>, from: u64, to: u64, priority: Priority) -> Result<Bytes>;
    /// The same for callers that may block, without changing threads. `None` for kinds that cannot.
    fn read_here(&self, from: u64, to: u64) -> Option<Result<Bytes>>;
    /// It was removed since it was opened.
    fn is_removed(&self) -> bool;
}

#[cfg(test)]
mod tests;
