//! The receive buffer of a connection: bytes arrive at its end and are used up from its front.
//!
//! It starts small, doubles while single reads fill it (a busy client), grows beyond that only for a payload that needs it,
//! which then takes the buffer along, and is small again when its client is quiet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

/// What a quiet client costs.
const START_BYTES: usize = 16 << 10;
/// As far as it doubles for busy clients. Longer messages take the buffer along: see [`Inbox::detach`].
pub(super) const BUSY_BYTES: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Inbox {
    /// Always initialized to its full length.
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub fn new() -> Self {
        Self { buf: vec![0; START_BYTES], start: 0, end: 0 }
    }

    /// The bytes received and not yet used.
    pub fn window(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes of memory it takes.
    pub fn capacity(&self) -> usize {
        self.buf.len()
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

    /// Drops `used` bytes from the front and hands them out without copying; what came after them moves to a new buffer.
    pub fn detach(&mut self, used: usize) -> Bytes {
        let split = self.start + used;
        assert!(split <= self.end, "more bytes used than received");
        let rest = self.buf[split..self.end].to_vec();
        let end = rest.len();
        let mut next = rest;
        next.resize(end.max(START_BYTES), 0);
        let mut taken = std::mem::replace(&mut self.buf, next);
        taken.truncate(split);
        let message = Bytes::from(taken).slice(self.start..);
        (self.start, self.end) = (0, end);
        message
    }

    /// Gives back memory, if there is nothing in it.
    pub fn shrink(&mut self) {
        if self.is_empty() && self.buf.len() > START_BYTES {
            *self = Self::new();
        }
    }

    pub fn is_small(&self) -> bool {
        self.buf.len() <= START_BYTES
    }

    /// Makes the buffer able to hold `total` bytes from the front of the window, and a useful rest beside.
    pub fn make_room(&mut self, total: usize) {
        let room = self.buf.len() - self.start;
        if room >= total && self.buf.len() - self.end >= self.buf.len() / 4 {
            return;
        }
        if total > self.buf.len() {
            // Beyond what a busy client has, exactly what is needed: it is given away.
            let len = if total > BUSY_BYTES { total } else { total.next_power_of_two() };
            let mut larger = vec![0; len];
            larger[..self.end - self.start].copy_from_slice(&self.buf[self.start..self.end]);
            self.buf = larger;
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn fill(inbox: &mut Inbox, mut bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        while !bytes.is_empty() {
            inbox.make_room(1);
            assert!(inbox.poll_fill(&mut bytes, &mut cx).is_ready());
        }
    }

    #[test]
    fn a_large_message_takes_the_buffer_along() {
        let mut inbox = Inbox::new();
        let sent: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
        fill(&mut inbox, &sent[..100]);
        inbox.make_room(2 << 20);
        assert_eq!(inbox.capacity(), 2 << 20, "exactly what is needed");
        let mut cx = Context::from_waker(Waker::noop());
        let mut rest = &sent[100..];
        assert!(inbox.poll_fill(&mut rest, &mut cx).is_ready());
        assert_eq!(inbox.window(), &sent[..2 << 20]);
        inbox.consume(28);
        let message = inbox.detach((2 << 20) - 100);
        assert_eq!(message, &sent[28..(2 << 20) - 72]);
        assert_eq!((inbox.window(), inbox.is_small()), (&sent[(2 << 20) - 72..2 << 20], true));
    }

    #[test]
    fn a_busy_clients_buffer_grows_and_a_quiet_ones_shrinks() {
        let mut inbox = Inbox::new();
        fill(&mut inbox, &[7; 600 << 10]);
        assert!(inbox.capacity() > 600 << 10 && inbox.capacity() <= BUSY_BYTES);
        inbox.shrink();
        assert_eq!(inbox.window().len(), 600 << 10, "what is in it stays");
        inbox.consume(600 << 10);
        assert!(!inbox.is_small());
        inbox.shrink();
        assert!(inbox.is_small() && inbox.is_empty());
    }
}
