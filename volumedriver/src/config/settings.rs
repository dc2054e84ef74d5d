//! What the engine reads of the configuration: one plain struct per volume, already checked.
//!
//! Everything but the SCO size may change while the volume is open; a new SCO size counts from the next SCO on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::ByteCount;

use super::keys::KeySource;

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

/// How SCOs are compressed when they are built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    #[default]
    None,
    Lz4,
    /// Level 1 to 19.
    Zstd(u8),
}

/// How SCOs are encrypted when they are built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encryption {
    #[default]
    None,
    Aes256Gcm,
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
    /// Of SCOs that are built from now on.
    pub compression: Compression,
    pub encryption: Encryption,
    /// Where the master keys are; the first key there encrypts, all of them decrypt.
    pub encryption_key: Arc<[KeySource]>,
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
            compression: Compression::default(),
            encryption: Encryption::default(),
            encryption_key: Arc::default(),
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

/// Levels that zstd takes; higher ones need more memory than they save space in frames this small.
const ZSTD_LEVELS: std::ops::RangeInclusive<u8> = 1..=19;

impl FromStr for Compression {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let level = match text {
            "none" => return Ok(Self::None),
            "lz4" => return Ok(Self::Lz4),
            "zstd" => return Ok(Self::Zstd(1)),
            _ => text.strip_prefix("zstd:").and_then(|level| level.parse().ok()),
        };
        let level = level.filter(|level| ZSTD_LEVELS.contains(level)).map(Self::Zstd);
        level
            .filter(|read| read.to_string() == text)
            .ok_or_else(|| Fault::invalid("there is no such compression"))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Aes256Gcm => "aes-256-gcm",
        })
    }
}
