//! Bodies in chunks, so that no message is big.

use bytes::{Bytes, BytesMut};

/// Most bytes of a chunk.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// Cuts and gathers a body into chunks of [`CHUNK_BYTES`]; long pieces are sliced without copying.
pub struct Chunks {
    body: std::vec::IntoIter<Bytes>,
    left: Bytes,
}

impl Chunks {
    #[must_use]
    pub fn of(body: Vec<Bytes>) -> Self {
        Self { body: body.into_iter(), left: Bytes::new() }
    }
}

impl Iterator for Chunks {
    type Item = Bytes;
    fn next(&mut self) -> Option<Bytes> {
        const CHUNK: usize = CHUNK_BYTES as usize;
        let mut gathered = BytesMut::new();
        loop {
            if self.left.is_empty() {
                match self.body.next() {
                    Some(piece) => self.left = piece,
                    None => return (!gathered.is_empty()).then(|| gathered.freeze()),
                }
            }
            if gathered.is_empty() && self.left.len() >= CHUNK / 2 {
                return Some(self.left.split_to(CHUNK.min(self.left.len())));
            }
            let fits = (CHUNK - gathered.len()).min(self.left.len());
            if gathered.capacity() == 0 {
                gathered.reserve(CHUNK);
            }
            gathered.extend_from_slice(&self.left.split_to(fits));
            if gathered.len() == CHUNK {
                return Some(gathered.freeze());
            }
        }
    }
}

/// A range that arrives in chunks and must have exactly so many bytes. One that comes in a single chunk is not copied.
pub struct Gathered {
    len: u64,
    one: Bytes,
    all: BytesMut,
}

impl Gathered {
    #[must_use]
    pub fn of(len: u64) -> Self {
        Self { len, one: Bytes::new(), all: BytesMut::new() }
    }

    /// Bytes so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        (self.one.len() + self.all.len()) as u64
    }

    /// In words what is wrong when more arrives than was asked for.
    pub fn add(&mut self, chunk: Bytes) -> Result<(), String> {
        let got = self.count();
        if got + chunk.len() as u64 > self.len {
            return Err(format!("more than the {} bytes asked for arrive", self.len));
        }
        if got == 0 {
            self.one = chunk;
            return Ok(());
        }
        if self.all.is_empty() {
            self.all.reserve(usize::try_from(self.len).unwrap_or_default());
            self.all.extend_from_slice(&std::mem::take(&mut self.one));
        }
        self.all.extend_from_slice(&chunk);
        Ok(())
    }

    /// In words what is wrong when the end came too early.
    pub fn finish(self) -> Result<Bytes, String> {
        let got = self.count();
        if got < self.len {
            return Err(format!("{got} of {} bytes arrived", self.len));
        }
        Ok(if self.all.is_empty() { self.one } else { self.all.freeze() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_in_chunks_has_the_length_asked_for() {
        let gathered = |len: u64, chunks: &[&'static [u8]]| {
            let mut gathered = Gathered::of(len);
            for chunk in chunks {
                gathered.add(Bytes::from_static(chunk))?;
            }
            gathered.finish()
        };
        assert_eq!(gathered(0, &[]).unwrap(), "");
        assert_eq!(gathered(3, &[b"abc"]).unwrap(), "abc");
        assert_eq!(gathered(6, &[b"", b"ab", b"", b"cde", b"f"]).unwrap(), "abcdef");
        assert!(gathered(3, &[b"ab"]).unwrap_err().contains("2 of 3"));
        assert!(gathered(3, &[b"ab", b"cd"]).unwrap_err().contains("more than the 3"));
        assert!(gathered(1, &[b"ab"]).unwrap_err().contains("more than the 1"));
    }

    #[test]
    fn what_is_cut_and_gathered_is_the_body() {
        let lens = [3, 0, 1, 700_000, 5, 2 << 20, (1 << 20) - 1, 1, 1, 600_000, 600_000, 9];
        let body: Vec<Bytes> = lens.iter().zip(0u8..).map(|(n, b)| vec![b; *n].into()).collect();
        let chunks: Vec<Bytes> = Chunks::of(body.clone()).collect();
        assert_eq!(chunks.concat(), body.concat());
        assert!(chunks.iter().all(|chunk| (1..=1 << 20).contains(&chunk.len())));
        assert!(chunks.len() < 12, "{}", chunks.len());
        assert_eq!(Chunks::of(Vec::new()).count(), 0);
    }
}
