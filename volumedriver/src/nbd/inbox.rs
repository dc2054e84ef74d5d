//! The receive buffer of a connection: bytes arrive at its end and are used up from its front.
//!
//! It starts small, doubles while single reads fill it (a busy client), grows beyond that only for a payload that needs it,
//! and shrinks again after a while without such payloads.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

const START_BYTES: usize = 64 << 10;
/// As far as it doubles for busy clients.
const BUSY_BYTES: usize = 1 << 20;
/// Times of being empty before a buffer grown for a large payload shrinks.
const PATIENCE: u32 = 256;

#[derive(Default)]
pub(super) struct Inbox {
    /// Always initialized to its full length.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    empties: u32,
}

impl Inbox {
    pub fn new() -> Self {
        Self { buf: vec![0; START_BYTES], start: 0, end: 0, empties: 0 }
    }

    /// The bytes received and not yet used.
    pub fn window(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops `used` bytes from the front.
    pub fn consume(&mut self, used: usize) {
        self.start += used;
        assert!(self.start <= self.end, "more bytes used than received");
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Makes the buffer able to hold `total` bytes from the front of the window, and a useful rest beside.
    pub fn make_room(&mut self, total: usize) {
        if self.is_empty() && total <= BUSY_BYTES && self.buf.len() > BUSY_BYTES {
            self.empties += 1;
            if self.empties > PATIENCE {
                self.buf = vec![0; BUSY_BYTES];
                self.empties = 0;
            }
        }
        let room = self.buf.len() - self.start;
        if room >= total && self.buf.len() - self.end >= self.buf.len() / 4 {
            return;
        }
        if total > self.buf.len() {
            let mut larger = vec![0; total.next_power_of_two()];
            larger[..self.end - self.start].copy_from_slice(&self.buf[self.start..self.end]);
            self.buf = larger;
            self.empties = 0;
        } else {
            self.buf.copy_within(self.start..self.end, 0);
        }
        self.end -= self.start;
        self.start = 0;
    }

    /// Receives what is there; 0 bytes: the peer has closed its side. The buffer must not be full.
    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut space = ReadBuf::new(&mut self.buf[self.end..]);
        assert!(space.remaining() > 0, "receiving into a full buffer");
        ready!(Pin::new(stream).poll_read(cx, &mut space))?;
        let (got, filled) = (space.filled().len(), space.remaining() == 0);
        self.end += got;
        if filled && self.buf.len() < BUSY_BYTES {
            self.buf.resize(self.buf.len() * 2, 0);
        }
        Poll::Ready(Ok(got))
    }
}
