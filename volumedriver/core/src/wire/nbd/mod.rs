//! The server's half of the NBD protocol as pure functions over bytes: [`Handshake`] (option haggling), [`Decoder`]
//! (requests of the transmission phase) and [`reply`] (encoding).
//!
//! Nothing here waits or holds payloads: callers own the receive buffer, hand in the bytes from its front and are told how
//! many were used. The same bytes give the same messages however they arrive split.
//!
//! Source: the NBD protocol document (doc/proto.md of the NetworkBlockDevice project) and its `EXTENDED_HEADERS`
//! extension; doc comments name the heading they follow. Offsets and lengths are bytes.

mod handshake;
mod meta;
pub mod numbers;
pub mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use handshake::{Advance, Agreed, Catalog, Description, Handshake, Next, TlsPolicy};
pub use meta::{Context, Contexts};
pub use request::{Ask, Command, Decoded, Decoder, Event, Extents, Fragments, Refusal, Tag};

use crate::fault::Kind;

/// Largest payload of one request or reply chunk, bytes ("Size constraints": portable clients stay within 2^25).
pub const MAX_PAYLOAD_BYTES: u32 = 1 << 25;
/// Longest string the protocol allows, bytes ("Conventions").
pub const MAX_STRING_BYTES: usize = 4096;
/// Longest option data taken as a whole, bytes; longer data is skipped and refused.
pub const MAX_OPTION_BYTES: usize = 64 * 1024;
/// Most extents in one block status reply (the protocol advises fewer than 2^20).
pub const MAX_EXTENTS: u32 = 1 << 15;

/// Which headers both sides use in the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests; reads, errors and block status are answered by structured reply chunks.
    Structured,
    /// Extended requests and extended reply chunks only.
    Extended,
}

/// "Error values": the only ones the protocol allows that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    Perm,
    Io,
    Inval,
    NoSpc,
    Overflow,
    NotSup,
    Shutdown,
}

impl Errno {
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }
}

impl From<Kind> for Errno {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Invalid => Self::Inval,
            Kind::NoSpace => Self::NoSpc,
            Kind::Unavailable | Kind::Corrupt | Kind::Bug => Self::Io,
            Kind::Fenced | Kind::Closed => Self::Shutdown,
        }
    }
}

/// Takes big-endian numbers and strings off the front of a message; `None` once it is too short.
struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*chunk)
    }
    fn u16(&mut self) -> Option<u16> {
        self.chunk().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.chunk().map(u32::from_be_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_be_bytes)
    }
    /// A 32-bit length and as many bytes.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
