//! The replies of a connection on their way to the socket.
//!
//! Small ones are collected in one buffer; long pieces of read data are sent from where they are. Bytes leave in the order
//! in which they came.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

/// Pieces from this size on are not copied, bytes.
const SHARE_BYTES: usize = 16 << 10;
/// Most pieces handed to the socket at once.
const SLICES: usize = 64;
/// What the collecting buffer may keep of its memory once it is empty, bytes.
const KEEP_BYTES: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Bytes>,
    /// What comes after the pieces.
    tail: Vec<u8>,
    /// Bytes of the first piece, or else of the tail, that are already sent.
    sent: usize,
    /// Bytes in the pieces.
    pieces_bytes: usize,
    /// Bytes were handed to the stream since it was last flushed (TLS keeps some to itself).
    unflushed: bool,
}

impl Outbox {
    /// Bytes not yet sent.
    pub fn len(&self) -> usize {
        self.pieces_bytes + self.tail.len() - self.sent
    }

    /// Everything has left, also what the stream kept to itself.
    pub fn is_gone(&self) -> bool {
        self.len() == 0 && !self.unflushed
    }

    /// The end of the queue, to append replies to. What was in it before must stay.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    pub fn push(&mut self, data: Bytes) {
        if data.len() < SHARE_BYTES {
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.pieces_bytes += tail.len();
            self.pieces.push_back(tail.into());
        }
        self.pieces_bytes += data.len();
        self.pieces.push_back(data);
    }

    /// Sends as much as the stream takes at once; pending if it takes nothing. The queue must not be gone.
    pub fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = Pin::new(stream);
        if self.len() == 0 {
            ready!(stream.poll_flush(cx))?;
            self.unflushed = false;
            return Poll::Ready(Ok(()));
        }
        let took = if self.pieces.is_empty() {
            stream.poll_write(cx, &self.tail[self.sent..])
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.fill(&mut slices);
            stream.poll_write_vectored(cx, &slices[..count])
        };
        let took = ready!(took)?;
        if took == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.advance(took);
        Poll::Ready(Ok(()))
    }

    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let all = self.pieces.iter().map(|piece| &piece[..]).chain([&self.tail[..]]);
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(all) {
            *slice = IoSlice::new(if count == 0 { &bytes[self.sent..] } else { bytes });
            count += 1;
        }
        count
    }

    fn advance(&mut self, took: usize) {
        self.sent += took;
        while let Some(first) = self.pieces.front() {
            if self.sent < first.len() {
                return;
            }
            self.sent -= first.len();
            self.pieces_bytes -= first.len();
            self.pieces.pop_front();
        }
        assert!(self.sent <= self.tail.len(), "more bytes sent than queued");
        if self.sent == self.tail.len() {
            self.sent = 0;
            self.tail.clear();
            self.tail.shrink_to(KEEP_BYTES);
        }
    }
}
