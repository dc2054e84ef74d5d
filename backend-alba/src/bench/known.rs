//! Objects whose bytes are known from their names, so that whoever reads one can check every byte of it without having it.
//!
//! All are cut from one pool of noise, each from another place of it on; so a put copies nothing, and a check is a comparison.

use bytes::Bytes;

use crate::fault::{Fault, Result};
use crate::trailer::ALIGN;

/// No power of two, so that ranges of an object that were swapped are seen.
const POOL_BYTES: u64 = 61 << 20;

/// The pool.
#[derive(Clone, Debug)]
pub struct Known(Bytes);

impl Default for Known {
    fn default() -> Self {
        let align = ALIGN as usize;
        let len = POOL_BYTES as usize;
        let mut memory: Vec<u8> = Vec::with_capacity(len + align);
        // As a volumedriver's SCOs do, objects begin at a multiple of a page in memory: direct I/O takes them as they are.
        let skip = memory.as_ptr().addr().next_multiple_of(align) - memory.as_ptr().addr();
        memory.resize(skip, 0);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        while memory.len() < skip + len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            memory.extend_from_slice(&state.to_le_bytes());
        }
        Self(Bytes::from(memory).slice(skip..skip + len))
    }
}

impl Known {
    /// A range of the object of this name, whatever its length is.
    #[must_use]
    pub fn range(&self, name: &str, offset: u64, len: u64) -> Vec<Bytes> {
        let first = u64::from(crc32fast::hash(name.as_bytes())) % (POOL_BYTES / ALIGN) * ALIGN;
        let mut at = (first + offset % POOL_BYTES) % POOL_BYTES;
        let mut left = len;
        let mut pieces = Vec::new();
        while left > 0 {
            let piece = left.min(POOL_BYTES - at);
            pieces.push(self.0.slice(at as usize..(at + piece) as usize));
            (left, at) = (left - piece, (at + piece) % POOL_BYTES);
        }
        pieces
    }

    /// To be fed with what is read of this range.
    #[must_use]
    pub fn check(&self, name: &str, offset: u64, len: u64) -> Check {
        let mut pieces = self.range(name, offset, len);
        pieces.reverse();
        Check { title: name.into(), at: offset, end: offset + len, pieces }
    }
}

/// A range of an object being read.
#[derive(Debug)]
pub struct Check {
    title: String,
    at: u64,
    end: u64,
    /// What is still to come, the next piece last.
    pieces: Vec<Bytes>,
}

impl Check {
    /// The next bytes of the range.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let too_many = || {
                let (title, end) = (&self.title, self.end);
                Fault::corrupt(format!("object {title:?}: more bytes than asked for, after {end}"))
            };
            let piece = self.pieces.last_mut().ok_or_else(too_many)?;
            let len = piece.len().min(bytes.len());
            let expected = piece.split_to(len);
            if piece.is_empty() {
                self.pieces.pop();
            }
            let (now, later) = bytes.split_at(len);
            if expected != now {
                let (title, at, end) = (&self.title, self.at, self.at + len as u64);
                let message = format!("object {title:?}: bytes {at}..{end} are not what was put");
                return Err(Fault::corrupt(message));
            }
            self.at += len as u64;
            bytes = later;
        }
        Ok(())
    }

    /// All of the range must have come.
    pub fn end(self) -> Result<()> {
        if self.at < self.end {
            let Self { title, at, end, .. } = self;
            let message = format!("object {title:?}: bytes {at}..{end} did not come");
            return Err(Fault::corrupt(message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the pool from where the object without a name begins.
    const POOL_CRC: u32 = 0x83c4_8733;

    fn read(known: &Known, bytes: &[Bytes], offset: u64, len: u64) -> Result<()> {
        let mut check = known.check("a", offset, len);
        bytes.iter().try_for_each(|piece| check.take(piece))?;
        check.end()
    }

    #[test]
    fn what_was_put_passes_and_nothing_else_does() {
        let known = Known::default();
        let len = POOL_BYTES + 100_000;
        let whole: Bytes = known.range("a", 0, len).concat().into();
        assert_eq!(whole.len() as u64, len);
        assert_eq!(known.range("a", 5000, 77).concat(), whole[5000..5077]);
        read(&known, &[whole.slice(..9), whole.slice(9..)], 0, len).unwrap();
        read(&known, &[whole.slice(POOL_BYTES as usize - 10..)], POOL_BYTES - 10, 100_010).unwrap();
        for (bytes, part) in [
            (known.range("b", 0, 100), "0..100 are not"),
            (known.range("a", 4096, 100), "0..100 are not"),
            (known.range("a", 0, 99), "99..100 did not come"),
            (known.range("a", 0, 101), "more bytes than asked for"),
        ] {
            let fault = read(&known, &bytes, 0, 100).unwrap_err();
            assert!(fault.message.contains(part), "{fault}");
        }
    }

    #[test]
    fn all_processes_know_the_same() {
        let pool = Known::default().range("", 0, POOL_BYTES).concat();
        assert_eq!(crc32fast::hash(&pool), POOL_CRC);
    }

    #[test]
    fn objects_begin_at_a_page_in_memory() {
        let known = Known::default();
        let piece = &known.range("a", 0, 10)[0];
        assert!((piece.as_ptr().addr() as u64).is_multiple_of(ALIGN));
    }
}
