//! Room on an OSD: what its file system has and its ceiling allows, less what is promised and what is kept in reserve.
//!
//! A full backend must still take what keeps volumes readable and frees room: small manifests are put, objects are deleted,
//! and both make the NSM write. So data leaves the whole reserve alone, metadata half of it, and the NSM has the rest.
//!
//! What is promised to puts whose files are not allocated yet counts as taken: puts side by side cannot overdraw.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::directory::OBJECTS;
use crate::fault::{Fault, Kind, Result};

/// What the NSM takes when it flushes, compacts and begins new log files: the reserve is not smaller, on a file system that
/// is several times as large.
const LEAST_RESERVE_BYTES: u64 = 32 << 20;
/// The reserve is never more than this part of a small file system.
const LARGEST_SHARE: u64 = 8;

/// What an object is for: decides how much room its put must leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Leaves the reserve alone.
    Data,
    /// Small, and nothing could be opened, published or freed without it: may take half of the reserve.
    Metadata,
}

/// How much of its file system an OSD may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Part kept in reserve, percent of the capacity.
    pub reserve_percent: u64,
    /// The reserve is at most this, bytes.
    pub reserve_bytes: u64,
    /// Most bytes of objects' files; `None`: what the file system has.
    pub capacity_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reserve_percent: 1, reserve_bytes: 1 << 30, capacity_bytes: None }
    }
}

impl Limits {
    pub(super) fn reserve(&self, capacity: u64) -> u64 {
        let part = capacity / 100 * self.reserve_percent;
        let least = LEAST_RESERVE_BYTES.min(capacity / LARGEST_SHARE);
        part.max(least).min(self.reserve_bytes)
    }
}

/// What there is, and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// What puts of data may still take: the reserve is not in it.
    pub free_bytes: u64,
    pub reserve_bytes: u64,
    /// Free bytes and those of the reserve; what was promised is not in it.
    pub left_bytes: u64,
}

impl Room {
    #[must_use]
    pub fn new(
        (capacity_bytes, used_bytes): (u64, u64),
        reserve_bytes: u64,
        left_bytes: u64,
    ) -> Self {
        let free_bytes = left_bytes.saturating_sub(reserve_bytes);
        Self { capacity_bytes, used_bytes, free_bytes, reserve_bytes, left_bytes }
    }

    /// What a put for this purpose may take.
    #[must_use]
    pub fn free_for(&self, purpose: Purpose) -> u64 {
        let kept = match purpose {
            Purpose::Data => self.reserve_bytes,
            Purpose::Metadata => self.reserve_bytes / 2,
        };
        self.left_bytes.saturating_sub(kept)
    }
}

/// The room of one directory's file system.
#[derive(Debug)]
pub struct Space {
    root: PathBuf,
    limits: Limits,
    /// Bytes promised to puts whose files are not allocated yet.
    promised: AtomicU64,
    /// Bytes of the objects' files, promised ones included; counted only under a ceiling.
    held: AtomicU64,
}

impl Space {
    /// Under a ceiling, counts what lies there already.
    pub fn open(root: &Path, limits: Limits) -> io::Result<Arc<Self>> {
        let held = if limits.capacity_bytes.is_some() { bytes_of_files(root)? } else { 0 };
        let (promised, held) = (AtomicU64::new(0), AtomicU64::new(held));
        Ok(Arc::new(Self { root: root.to_path_buf(), limits, promised, held }))
    }

    pub fn room(&self) -> Result<Room> {
        let promised = self.promised.load(Ordering::Relaxed);
        self.room_beside(promised, self.held.load(Ordering::Relaxed))
    }

    fn room_beside(&self, promised: u64, held: u64) -> Result<Room> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| {
            Fault::io(format!("no statistics of {}", self.root.display()), e.into())
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let ceiling = self.limits.capacity_bytes.unwrap_or(u64::MAX);
        let capacity_bytes = bytes(stat.f_blocks).min(ceiling);
        let left_bytes =
            bytes(stat.f_bavail).saturating_sub(promised).min(ceiling.saturating_sub(held));
        let used_bytes = match self.limits.capacity_bytes {
            Some(_) => held,
            None => bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        };
        let reserve_bytes = self.limits.reserve(capacity_bytes);
        Ok(Room::new((capacity_bytes, used_bytes), reserve_bytes, left_bytes))
    }

    /// Promises room for a file of this length. `NoSpace` when it does not fit.
    pub fn take(self: &Arc<Self>, bytes: u64, purpose: Purpose) -> Result<Taken> {
        let counted = if self.counts() { bytes } else { 0 };
        let promised = self.promised.fetch_add(bytes, Ordering::Relaxed);
        let held = self.held.fetch_add(counted, Ordering::Relaxed);
        let taken = Taken { space: self.clone(), bytes, counted, promised: bytes };
        let free = self.room_beside(promised, held)?.free_for(purpose);
        if bytes > free {
            return Err(Fault::new(Kind::NoSpace, format!("{bytes} bytes asked, {free} free")));
        }
        Ok(taken)
    }

    /// A file of this length is gone.
    pub fn gone(&self, bytes: u64) {
        if self.counts() {
            subtract(&self.held, bytes);
        }
    }

    /// Whether files are counted, so that [`Space::gone`] must be told of them.
    pub fn counts(&self) -> bool {
        self.limits.capacity_bytes.is_some()
    }
}

/// Room of one file being written; given back when dropped before [`Taken::keep`].
#[derive(Debug)]
pub struct Taken {
    space: Arc<Space>,
    bytes: u64,
    /// The part of it that counts against a ceiling.
    counted: u64,
    /// The part of it the file system does not know of yet.
    promised: u64,
}

impl Taken {
    /// The file system has set this much aside for the file.
    pub fn allocated(&mut self, bytes: u64) {
        let rest = self.bytes.saturating_sub(bytes).min(self.promised);
        subtract(&self.space.promised, self.promised - rest);
        self.promised = rest;
    }

    /// The file stays: what it takes is given back by [`Space::gone`].
    pub fn keep(&mut self) {
        self.allocated(self.bytes);
        self.counted = 0;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        subtract(&self.space.promised, self.promised);
        subtract(&self.space.held, self.counted);
    }
}

fn subtract(from: &AtomicU64, bytes: u64) {
    let less = |now: u64| Some(now.saturating_sub(bytes));
    // Never fails: the closure always has an answer.
    let _ = from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

fn bytes_of_files(root: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for shard in fs::read_dir(root.join(OBJECTS))? {
        for file in fs::read_dir(shard?.path())? {
            match file?.metadata() {
                Ok(metadata) => bytes += metadata.len(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(bytes)
}
