//! What the engine reads of the configuration: one plain struct per volume, already checked.
//!
//! Everything but the SCO size may change while the volume is open; a new SCO size counts from the next SCO on.

use std::fmt;
use std::time::Duration;

use volumedriver_core::units::ByteCount;

/// What a plain write (no FUA) has reached when it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AckLevel {
    /// The bounded in-memory tail, like a disk's volatile cache.
    #[default]
    Memory,
    /// The journal in the write buffer, on stable storage.
    Buffer,
}

/// What FLUSH and FUA wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlushLevel {
    /// Everything before is on stable storage in the write buffer.
    #[default]
    Journal,
    /// Everything before is uploaded and named by the manifest.
    Backend,
}

/// The settings of one volume: its vPool's, with the vDisk's own in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiskSettings {
    pub ack: AckLevel,
    pub flush: FlushLevel,
    /// How far ahead of a sequential reader the backend is asked; 0 is off.
    pub readahead: ByteCount,
    /// The most of the write buffer this volume may hold, 1–100.
    pub buffer_share_percent: u32,
    /// An open SCO with flushed data is sealed and uploaded after this long even when it is not full.
    pub upload_max_delay: Duration,
    /// SCOs of this volume on their way to the backend at the same time.
    pub upload_concurrency: usize,
    /// Map pages held in memory.
    pub map_memory: ByteCount,
    /// Data bytes after which an SCO is sealed.
    pub sco_size: ByteCount,
}

impl Default for VdiskSettings {
    /// The defaults over the embedded backend.
    fn default() -> Self {
        Self {
            ack: AckLevel::default(),
            flush: FlushLevel::default(),
            readahead: ByteCount(512 << 10),
            buffer_share_percent: 50,
            upload_max_delay: Duration::from_secs(30),
            upload_concurrency: 4,
            map_memory: ByteCount(64 << 20),
            sco_size: ByteCount(16 << 20),
        }
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Buffer => "buffer",
        })
    }
}

impl fmt::Display for FlushLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Journal => "journal",
            Self::Backend => "backend",
        })
    }
}
