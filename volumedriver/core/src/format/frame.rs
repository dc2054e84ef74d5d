//! The envelope that every stored value of fixed shape shares, and the checked reader its body is decoded with.
//!
//! The envelope is the same in every version of every format, so damage is told apart from a version this program does not
//! know: the checksum is looked at first, the version after it.

use bytes::BufMut;

use crate::fault::{Fault, Result};

/// Which format a frame holds.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | magic |
/// | 4 | 4 | version |
/// | 8 | 4 | len: bytes of the whole frame, checksum included |
/// | 12 | len - 16 | body, as the format's own table says |
/// | len - 4 | 4 | CRC-32 (IEEE) of everything before it |
pub(super) struct Frame {
    /// What a person calls it.
    pub name: &'static str,
    pub magic: [u8; 4],
    pub version: u32,
}

/// Bytes before the body.
pub(super) const HEAD_BYTES: usize = 12;
/// Bytes of the checksum after the body.
pub(super) const CRC_BYTES: usize = 4;

impl Frame {
    /// Writes the bytes before the body of a frame that will be `len` bytes long.
    pub fn put_head(&self, len: usize, out: &mut impl BufMut) {
        out.put_slice(&self.magic);
        out.put_u32_le(self.version);
        out.put_u32_le(count32(len));
    }
    /// A frame around `body`.
    pub fn wrap(&self, body: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.reserve(HEAD_BYTES + body.len() + CRC_BYTES);
        self.put_head(HEAD_BYTES + body.len() + CRC_BYTES, out);
        out.put_slice(body);
        let crc = crc32fast::hash(out.get(start..).unwrap_or_default());
        out.put_u32_le(crc);
    }
    /// A frame that fills `block`: `body`, then zeroes. The body must leave room for the envelope.
    pub fn fill<const N: usize>(&self, block: &mut [u8; N], body: &[&[u8]]) {
        let (covered, crc) = ours(block.split_last_chunk_mut::<CRC_BYTES>());
        let mut out = &mut *covered;
        self.put_head(N, &mut out);
        body.iter().for_each(|part| out.put_slice(part));
        out.fill(0);
        *crc = crc32fast::hash(covered).to_le_bytes();
    }
    /// Reads a part of a body that was taken out of its frame.
    pub fn part<'a>(&self, bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, name: self.name }
    }
    /// The body of the frame that `bytes` are, neither shorter nor longer.
    pub fn body<'a>(&self, bytes: &'a [u8]) -> Result<Reader<'a>> {
        let mut reader = Reader { rest: bytes, name: self.name };
        if reader.array()? != self.magic {
            return Err(reader.corrupt("it does not begin with the magic"));
        }
        let version = reader.u32()?;
        let len = reader.u32()?;
        if u32::try_from(bytes.len()) != Ok(len) {
            return Err(reader.corrupt(format!("it says {len} bytes, there are {}", bytes.len())));
        }
        let (covered, crc) = bytes
            .split_last_chunk::<CRC_BYTES>()
            .ok_or_else(|| reader.corrupt("it is cut short"))?;
        if crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
            return Err(reader.corrupt("its checksum does not match"));
        }
        if version != self.version {
            return Err(Fault::invalid(format!(
                "{} has format version {version}; this program reads version {}: use a newer program",
                self.name, self.version
            )));
        }
        reader.rest = covered.get(HEAD_BYTES..).ok_or_else(|| reader.corrupt("it is cut short"))?;
        Ok(reader)
    }
}

/// The checksum that a frame ends with. (The CRC of a frame with its checksum is the same for all frames: it tells nothing.)
pub(super) fn stored_crc(frame: &[u8]) -> Option<u32> {
    frame.last_chunk().map(|crc| u32::from_le_bytes(*crc))
}

/// A count or length that a 32-bit field must hold.
#[track_caller]
pub(super) fn count32(count: usize) -> u32 {
    ours(u32::try_from(count).ok())
}

/// What an encoder needs of a value. It is ours, never a stranger's, and was checked when it was given.
///
/// # Panics
/// When it is not there: then stopping is better than storing what nobody can read.
#[track_caller]
#[expect(clippy::expect_used, reason = "encoders only")]
pub(super) fn ours<T>(value: Option<T>) -> T {
    value.expect("an encoder was given what its format cannot hold")
}

/// Takes integers off the front of bytes that cannot be trusted.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    name: &'static str,
}

impl<'a> Reader<'a> {
    pub fn corrupt(&self, what: impl std::fmt::Display) -> Fault {
        Fault::corrupt(format!("{} is damaged: {what}", self.name))
    }
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or_else(|| self.corrupt("it is cut short"))?;
        self.rest = rest;
        Ok(*head)
    }
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| self.corrupt("it is cut short"))?;
        self.rest = rest;
        Ok(head)
    }
    pub fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
    /// `count` items of at least `least_bytes` each, so that what is allocated is bounded by what was read.
    pub fn items<T>(
        &mut self,
        count: u32,
        least_bytes: usize,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count.saturating_mul(least_bytes) > self.rest.len() {
            return Err(self.corrupt(format!("it counts {count} items, there is no room for them")));
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }
    /// A 32-bit count, then that many items.
    pub fn counted<T>(
        &mut self,
        least_bytes: usize,
        item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.u32()?;
        self.items(count, least_bytes, item)
    }
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }
    /// Nothing may follow.
    pub fn end(self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(self.corrupt(format!("{left} bytes follow its end"))),
        }
    }
    /// Only zeroes may follow.
    pub fn end_padded(self) -> Result<()> {
        match self.rest.iter().any(|b| *b != 0) {
            false => Ok(()),
            true => Err(self.corrupt("its padding is not zero")),
        }
    }
}
