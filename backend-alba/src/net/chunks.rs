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

#[cfg(test)]
mod tests {
    use super::*;

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
