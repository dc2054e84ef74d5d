//! What a frontend may ask of a volume, and what it gets back.
//!
//! Offsets and lengths are bytes, multiples of [`SECTOR_BYTES`](crate::units::SECTOR_BYTES), inside the volume; the engine
//! checks that again and answers `Invalid`.

use bytes::Bytes;

use crate::units::{ByteCount, ByteOffset};

/// Whether a change must be on stable storage (at the volume's flush level) before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fua {
    No,
    Yes,
}

/// How WRITE_ZEROES may zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// A hole is fine (it reads as zeroes). Always fast.
    MayPunch,
    /// The range must stay allocated: later writes to it must not fail for lack of space.
    Allocate,
}

/// One request. Reads and cache hints change nothing; the others carry [`Fua`] where the protocols do.
#[derive(Clone, Debug)]
pub enum Request {
    Read {
        offset: ByteOffset,
        len: ByteCount,
    },
    Write {
        offset: ByteOffset,
        data: Bytes,
        fua: Fua,
    },
    Flush,
    Trim {
        offset: ByteOffset,
        len: ByteCount,
        fua: Fua,
    },
    WriteZeroes {
        offset: ByteOffset,
        len: ByteCount,
        mode: ZeroMode,
        fua: Fua,
    },
    /// Bring the range into the read cache.
    Cache {
        offset: ByteOffset,
        len: ByteCount,
    },
    /// Allocation of the range, at most `max_extents` extents from its start.
    Status {
        offset: ByteOffset,
        len: ByteCount,
        max_extents: u32,
    },
}

/// The answer to a [`Request`] that succeeded.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Write, flush, trim, zeroes, cache.
    Done,
    /// Read: pieces in order, together exactly `len` bytes.
    Data(Vec<Bytes>),
    /// Status: extents in order from `offset`, adjacent ones different, at least one, together at most `len` bytes.
    Extents(Vec<Extent>),
}

/// A run of bytes with one allocation state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub len: ByteCount,
    pub state: Allocation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Mapped to data.
    Data,
    /// Allocated, reads as zeroes.
    Zero,
    /// A hole: reads as zeroes.
    Hole,
}
