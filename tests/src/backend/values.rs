//! What objects hold: bytes that tell which put they came from.

use backend_alba::fault::{Fault, Kind};
use bytes::Bytes;

use crate::world::rng::mix;

/// The value of one put; no two puts have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

#[derive(Clone, Copy, Debug)]
pub struct Value {
    pub id: ValueId,
    pub len: u64,
}

impl Value {
    /// This range of its bytes.
    #[must_use]
    pub fn bytes(self, from: u64, to: u64) -> Vec<u8> {
        let words = from / 8..to.div_ceil(8);
        let mut bytes = Vec::with_capacity((to - from) as usize + 16);
        for n in words {
            bytes.extend_from_slice(&mix((u64::from(self.id.0) << 32) ^ (n + 1)).to_le_bytes());
        }
        let skip = (from % 8) as usize;
        bytes.drain(..skip);
        bytes.truncate((to - from) as usize);
        bytes
    }

    /// All of it, in a few pieces.
    #[must_use]
    pub fn pieces(self, count: u64) -> Vec<Bytes> {
        let all = Bytes::from(self.bytes(0, self.len));
        let step = (self.len / count.max(1)).max(1) as usize;
        (0..all.len()).step_by(step).map(|at| all.slice(at..(at + step).min(all.len()))).collect()
    }

    #[must_use]
    pub fn crc(self) -> u32 {
        crc32fast::hash(&self.bytes(0, self.len))
    }

    /// Whether these are its bytes from there on.
    #[must_use]
    pub fn has(self, from: u64, bytes: &[u8]) -> bool {
        let to = from + bytes.len() as u64;
        to <= self.len && self.bytes(from, to) == bytes
    }
}

/// For people.
#[must_use]
pub fn told(fault: &Fault) -> String {
    format!("{:?}: {fault}", fault.kind)
}

/// What a failure of a legal change says about its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It may have happened, or still will.
    Unknown,
    /// It did not happen, and never will.
    NotMade,
    NoNamespace,
    Refused,
    /// It should not fail like this.
    Wrong,
}

#[must_use]
pub fn outcome_of(fault: &Fault) -> Outcome {
    match fault.kind {
        Kind::Unavailable => Outcome::Unknown,
        // Corrupt: what was stored could not be read back.
        Kind::NoSpace | Kind::Corrupt | Kind::Outdated => Outcome::NotMade,
        Kind::NotFound => Outcome::NoNamespace,
        Kind::AssertFailed => Outcome::Refused,
        Kind::Invalid | Kind::Bug => Outcome::Wrong,
    }
}
