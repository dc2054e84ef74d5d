//! The transmission phase of one connection.
//!
//! A round: take finished requests, decode and start what has been received, send, receive. Rounds repeat while anything
//! moves, up to a bound after which other tasks of the thread get their turn. While more requests are in flight or more
//! bytes held than the limits allow, or the memory that all connections share is taken, nothing is decoded or received; the
//! socket then holds the client back.
//!
//! A request in flight is a local task of its own and runs to its end even if the connection is lost; it is answered exactly
//! once (see [`Ticket`]).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Sleep;

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::request::{Extent, Fua, Reply, Request};
use volumedriver_core::units::{ByteCount, ByteOffset};
use volumedriver_core::wire::nbd::reply::{self, Chunk};
use volumedriver_core::wire::nbd::{
    Agreed, Ask, Contexts, Decoder, Errno, Event, Extents, Fragments, MAX_EXTENTS, Style, Tag,
};

use super::budget::Claim;
use super::inbox::{BUSY_BYTES, Inbox};
use super::outbox::Outbox;
use super::{Export, Limits, SessionStats};

/// Rounds before other tasks get their turn.
const ROUNDS: usize = 8;
/// Requests handed to the engine before it gets its turn: so that the disk works on the first while the next are decoded, and
/// a client's requests spread over its way instead of going along it in one block.
const STARTS: usize = 8;
/// Replies queued before they are sent, also when more requests are waiting, bytes.
const ROUND_BYTES: usize = 256 << 10;
/// Longest read answered at once by copying from memory, bytes.
const FAST_READ_BYTES: u32 = 256 << 10;
/// Smallest piece of zeroes sent as a hole, bytes.
const MIN_HOLE_BYTES: usize = 4096;
/// What a connection must move in [`Limits::quiet`] while others wait for memory that it holds, bytes.
const SLOWEST_BYTES: usize = 256 << 10;

/// How the transmission phase ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// The client disconnected, or the server shut down; everything is answered.
    Clean,
    /// The client broke the framing.
    Broken(&'static str),
    /// The connection failed.
    Lost(io::Error),
    /// Requests were still in flight when the bound for shutting down ran out.
    Unfinished,
    /// The client held memory that others waited for, and neither sent what it announced nor read what it asked for.
    Stalled,
}

/// Whether requests are still taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Only finish what is in flight.
    Closing(Option<&'static str>),
}

pub(super) struct Transmission<'s, S, E> {
    stream: &'s mut S,
    export: E,
    decoder: Decoder,
    style: Style,
    inbox: Inbox,
    outbox: Outbox,
    finished: Rc<Finished>,
    phase: Phase,
    in_flight: usize,
    /// Payload and reply bytes of the requests in flight.
    held: usize,
    /// Bytes the front of the inbox must reach before decoding goes on.
    need: usize,
    /// Requests handed to the engine in this turn.
    started: usize,
    claim: Claim,
    /// Bytes received and sent since the alarm was set.
    progress: usize,
    /// Set while more is held than a quiet connection holds.
    alarm: Option<Pin<Box<Sleep>>>,
    limits: &'s Limits,
    stats: &'s SessionStats,
}

impl<'s, S: AsyncRead + AsyncWrite + Unpin, E: Export> Transmission<'s, S, E> {
    pub fn new(
        stream: &'s mut S,
        export: E,
        agreed: Agreed,
        inbox: Inbox,
        shared: (&'s Limits, &'s SessionStats, Claim),
    ) -> Self {
        Self {
            stream,
            export,
            style: agreed.style,
            decoder: Decoder::new(agreed),
            inbox,
            outbox: Outbox::default(),
            finished: Rc::default(),
            phase: Phase::Open,
            in_flight: 0,
            held: 0,
            need: 1,
            started: 0,
            claim: shared.2,
            progress: 0,
            alarm: None,
            limits: shared.0,
            stats: shared.1,
        }
    }

    /// Runs until the client disconnects, the connection fails or `shutdown` becomes true.
    pub async fn run(mut self, shutdown: &mut watch::Receiver<bool>) -> Ending {
        let ending = tokio::select! {
            biased;
            ending = poll_fn(|cx| self.poll(cx)) => Some(ending),
            _ = shutdown.wait_for(|down| *down) => None,
        };
        match ending {
            Some(ending) => {
                self.see_off(shutdown).await;
                ending
            }
            None => {
                self.close(None);
                let bound = self.limits.drain;
                let rest = poll_fn(|cx| self.poll(cx));
                tokio::time::timeout(bound, rest).await.unwrap_or(Ending::Unfinished)
            }
        }
    }

    /// The connection is over. What was asked is carried out all the same, and counts as held until then: a client that asks,
    /// leaves and comes back gets no more than one that stays.
    async fn see_off(&mut self, shutdown: &mut watch::Receiver<bool>) {
        self.inbox = Inbox::default();
        self.outbox = Outbox::default();
        let rest = poll_fn(|cx| {
            for (open, _unheard) in self.finished.take(cx) {
                self.in_flight -= 1;
                self.held -= open.held;
            }
            self.claim.hold(self.held);
            if self.in_flight == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        // A server that shuts down leaves what is in flight to the volumes.
        tokio::select! {
            () = rest => {}
            _ = shutdown.wait_for(|down| *down) => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.started = 0;
        for _ in 0..ROUNDS {
            match self.round(cx) {
                Ok(Moved::Yes) if self.started >= STARTS => break,
                Ok(Moved::Yes) => {}
                Ok(Moved::No) => return self.rest(cx),
                Err(ending) => return Poll::Ready(ending),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Result<Moved, Ending> {
        let mut moved = Moved::No;
        moved |= self.take_finished(cx);
        moved |= self.decode(cx);
        let unsent = self.outbox.len();
        if !self.outbox.is_gone()
            && let Poll::Ready(sent) = self.outbox.poll_send(self.stream, cx)
        {
            sent.map_err(Ending::Lost)?;
            self.progress += unsent - self.outbox.len();
            moved = Moved::Yes;
        }
        match self.phase {
            Phase::Open => moved |= self.receive(cx)?,
            Phase::Closing(why) if self.in_flight == 0 && self.outbox.is_gone() => {
                return Err(why.map_or(Ending::Clean, Ending::Broken));
            }
            Phase::Closing(_) => {}
        }
        Ok(moved)
    }

    /// Stops taking requests.
    fn close(&mut self, why: Option<&'static str>) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing(why);
        }
    }

    fn has_room(&self) -> bool {
        self.in_flight < self.limits.requests.max(1)
            && self.held + self.outbox.len() < self.limits.held_bytes.max(1)
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> Result<Moved, Ending> {
        if !self.has_room() || self.inbox.window().len() >= self.need {
            return Ok(Moved::No);
        }
        let growth = self.need.saturating_sub(self.inbox.capacity());
        let usage = self.usage(&self.inbox) + growth;
        if growth > 0 && !self.claim.grow_to(usage, cx.waker()) {
            return Ok(Moved::No);
        }
        self.inbox.make_room(self.need);
        match self.inbox.poll_fill(self.stream, cx) {
            Poll::Pending => Ok(Moved::No),
            Poll::Ready(Err(error)) => Err(Ending::Lost(error)),
            Poll::Ready(Ok(0)) => {
                self.close(None);
                Ok(Moved::Yes)
            }
            Poll::Ready(Ok(got)) => {
                self.progress += got;
                Ok(Moved::Yes)
            }
        }
    }

    /// Bytes of memory for what was received and is to be sent.
    fn usage(&self, inbox: &Inbox) -> usize {
        self.held + self.outbox.len() + inbox.capacity()
    }

    /// Nothing moves. Watches over what is held meanwhile.
    fn rest(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.claim.hold(self.usage(&self.inbox));
        while !(self.inbox.is_small() && self.outbox.is_gone()) {
            let quiet = self.limits.quiet;
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(quiet)));
            ready!(alarm.as_mut().poll(cx));
            self.alarm = None;
            let progress = std::mem::take(&mut self.progress);
            if self.in_flight > 0 {
                continue;
            }
            if self.claim.is_in_the_way() && progress < SLOWEST_BYTES {
                return Poll::Ready(Ending::Stalled);
            }
            if progress == 0 {
                self.inbox.shrink();
                self.claim.hold(self.usage(&self.inbox));
            }
        }
        self.alarm = None;
        Poll::Pending
    }

    /// Decodes and starts complete requests while there is room for them and their replies.
    fn decode(&mut self, cx: &Context<'_>) -> Moved {
        let mut moved = Moved::No;
        if self.inbox.window().len() < self.need {
            return moved;
        }
        let arrived = Instant::now();
        // The window borrows the inbox while requests are carried out, so it is taken out for the while.
        let mut inbox = std::mem::take(&mut self.inbox);
        while self.phase == Phase::Open
            && self.has_room()
            && self.outbox.len() < ROUND_BYTES
            && self.started < STARTS
        {
            let decoded = self.decoder.decode(inbox.window());
            self.need = 1;
            match decoded.event {
                Event::Need(total) => {
                    self.need = total;
                    break;
                }
                Event::Skipped => {}
                Event::Ask(_, ask) if !self.affords(ask, &inbox, cx) => break,
                Event::Ask(tag, Ask::Write { data, fua }) if data.len() > BUSY_BYTES => {
                    let (len, used) = (data.len(), decoded.used);
                    inbox.consume(used - len);
                    self.start_write(tag, inbox.detach(len), fua, arrived);
                    moved = Moved::Yes;
                    continue;
                }
                Event::Ask(tag, ask) => self.carry_out(tag, ask, arrived),
                Event::Refuse(tag, refusal) => {
                    self.fail(tag, refusal.errno, &refusal.message, arrived);
                }
                Event::Disconnect => self.close(None),
                Event::Broken(why) => self.close(Some(why)),
            }
            inbox.consume(decoded.used);
            moved = Moved::Yes;
        }
        self.inbox = inbox;
        moved
    }

    /// Takes the memory a request needs, if there is enough; if not, it is decoded again later.
    fn affords(&mut self, ask: Ask<'_>, inbox: &Inbox, cx: &Context<'_>) -> bool {
        let need = match ask {
            Ask::Read { len, .. } => len as usize,
            Ask::Write { data, .. } if data.len() > BUSY_BYTES => 0,
            Ask::Write { data, .. } => data.len(),
            Ask::Status { .. } => MAX_EXTENTS as usize * size_of::<Extent>(),
            Ask::Flush | Ask::Trim { .. } | Ask::WriteZeroes { .. } => 0,
            Ask::Cache { .. } | Ask::Nothing => 0,
        };
        self.claim.grow_to(self.usage(inbox) + need, cx.waker())
    }

    fn carry_out(&mut self, tag: Tag, ask: Ask<'_>, arrived: Instant) {
        let offset = ByteOffset(tag.offset);
        match ask {
            Ask::Nothing => self.succeed(tag, 0, arrived),
            Ask::Read { len, fragments } => self.read(tag, len, fragments, arrived),
            Ask::Write { data, fua } => self.write(tag, data, fua, arrived),
            Ask::Flush => self.start(tag, Request::Flush, Answer::done(0), 0, arrived),
            Ask::Trim { len, fua } => {
                let request = Request::Trim { offset, len: ByteCount(len), fua };
                self.start(tag, request, Answer::done(len), 0, arrived);
            }
            Ask::WriteZeroes { len, mode, fua } => {
                let request = Request::WriteZeroes { offset, len: ByteCount(len), mode, fua };
                self.start(tag, request, Answer::done(len), 0, arrived);
            }
            Ask::Cache { len } => {
                let request = Request::Cache { offset, len: ByteCount(len) };
                self.start(tag, request, Answer::done(len), 0, arrived);
            }
            Ask::Status { len, extents, contexts } => {
                let max_extents = match extents {
                    Extents::One => 1,
                    Extents::Many => MAX_EXTENTS,
                };
                let request = Request::Status { offset, len: ByteCount(len), max_extents };
                let held = max_extents as usize * size_of::<Extent>();
                self.start(tag, request, Answer::Status { len, contexts }, held, arrived);
            }
        }
    }

    fn write(&mut self, tag: Tag, data: &[u8], fua: Fua, arrived: Instant) {
        let offset = ByteOffset(tag.offset);
        let at_once = match fua {
            Fua::No => self.export.try_write(offset, data),
            Fua::Yes => None,
        };
        match at_once {
            Some(Ok(())) => self.succeed(tag, data.len() as u64, arrived),
            Some(Err(fault)) => self.fault(tag, &fault, arrived),
            None => self.start_write(tag, Bytes::copy_from_slice(data), fua, arrived),
        }
    }

    fn start_write(&mut self, tag: Tag, data: Bytes, fua: Fua, arrived: Instant) {
        let len = data.len();
        let request = Request::Write { offset: ByteOffset(tag.offset), data, fua };
        self.start(tag, request, Answer::done(len as u64), len, arrived);
    }

    fn read(&mut self, tag: Tag, len: u32, fragments: Fragments, arrived: Instant) {
        if len <= FAST_READ_BYTES {
            match self.read_at_once(tag, len, fragments) {
                Some(Ok(())) => return self.count_success(tag, u64::from(len), arrived),
                Some(Err(fault)) => return self.fault(tag, &fault, arrived),
                None => {}
            }
        }
        let request =
            Request::Read { offset: ByteOffset(tag.offset), len: ByteCount(u64::from(len)) };
        self.start(tag, request, Answer::Read { len, fragments }, len as usize, arrived);
    }

    /// Reads straight into the output; takes it back if that cannot be done at once.
    fn read_at_once(&mut self, tag: Tag, len: u32, fragments: Fragments) -> Option<Result<()>> {
        let out = self.outbox.tail();
        let before = out.len();
        reply::data(self.style, tag, Chunk::Last, tag.offset, len, out);
        let start = out.len();
        out.resize(start + len as usize, 0);
        let outcome = self.export.try_read(ByteOffset(tag.offset), &mut out[start..]);
        let holes = self.style != Style::Simple && fragments == Fragments::Allowed;
        match &outcome {
            Some(Ok(())) if holes && is_hole(&out[start..]) => {
                out.truncate(before);
                reply::hole(self.style, tag, Chunk::Last, tag.offset, len, out);
            }
            Some(Ok(())) => {}
            Some(Err(_)) | None => out.truncate(before),
        }
        outcome
    }

    /// Hands a request to the engine as a task of its own.
    fn start(&mut self, tag: Tag, request: Request, answer: Answer, held: usize, arrived: Instant) {
        self.in_flight += 1;
        self.started += 1;
        self.held += held;
        let ticket = Ticket {
            finished: Rc::clone(&self.finished),
            open: Some(Open { tag, answer, held, arrived }),
        };
        let export = self.export.clone();
        tokio::task::spawn_local(async move {
            let outcome = export.submit(request).await;
            ticket.complete(outcome);
        });
    }

    fn take_finished(&mut self, cx: &mut Context<'_>) -> Moved {
        if self.in_flight == 0 {
            return Moved::No;
        }
        let finished = self.finished.take(cx);
        let moved = if finished.is_empty() { Moved::No } else { Moved::Yes };
        for (open, outcome) in finished {
            self.in_flight -= 1;
            self.held -= open.held;
            self.answer(open, outcome);
        }
        moved
    }

    fn answer(&mut self, open: Open, outcome: Result<Reply>) {
        let Open { tag, answer, arrived, .. } = open;
        match (answer, outcome) {
            (_, Err(fault)) => self.fault(tag, &fault, arrived),
            (Answer::Done { bytes }, Ok(Reply::Done)) => self.succeed(tag, bytes, arrived),
            (Answer::Read { len, fragments }, Ok(Reply::Data(pieces)))
                if pieces.iter().map(Bytes::len).sum::<usize>() == len as usize =>
            {
                self.send_data(tag, len, fragments, pieces);
                self.count_success(tag, u64::from(len), arrived);
            }
            (Answer::Status { len, contexts }, Ok(Reply::Extents(extents)))
                if self.send_status(tag, contexts, &extents) =>
            {
                self.count_success(tag, len, arrived);
            }
            (Answer::Done { .. } | Answer::Read { .. } | Answer::Status { .. }, Ok(_)) => {
                let fault = Fault::bug("the engine's answer does not fit the request");
                self.fault(tag, &fault, arrived);
            }
        }
    }

    fn send_data(&mut self, tag: Tag, len: u32, fragments: Fragments, pieces: Vec<Bytes>) {
        if self.style == Style::Simple || fragments == Fragments::Forbidden {
            reply::data(self.style, tag, Chunk::Last, tag.offset, len, self.outbox.tail());
            pieces.into_iter().for_each(|piece| self.outbox.push(piece));
            return;
        }
        let mut offset = tag.offset;
        let mut left = len;
        for run in runs(pieces) {
            left -= run.len;
            let last = if left == 0 { Chunk::Last } else { Chunk::More };
            let out = self.outbox.tail();
            match run.content {
                Content::Hole => reply::hole(self.style, tag, last, offset, run.len, out),
                Content::Data(pieces) => {
                    reply::data(self.style, tag, last, offset, run.len, out);
                    pieces.into_iter().for_each(|piece| self.outbox.push(piece));
                }
            }
            offset += u64::from(run.len);
        }
    }

    /// One chunk per context; `false` if the extents are empty, with nothing queued.
    fn send_status(&mut self, tag: Tag, contexts: Contexts, extents: &[Extent]) -> bool {
        let mut left = contexts.iter().count();
        contexts.iter().all(|context| {
            left -= 1;
            let last = if left == 0 { Chunk::Last } else { Chunk::More };
            reply::status(self.style, tag, last, context, extents, self.outbox.tail())
        })
    }

    fn succeed(&mut self, tag: Tag, bytes: u64, arrived: Instant) {
        reply::done(self.style, tag, self.outbox.tail());
        self.count_success(tag, bytes, arrived);
    }

    fn count_success(&self, tag: Tag, bytes: u64, arrived: Instant) {
        if let Some(stats) = self.stats.of(tag.command) {
            stats.succeeded(bytes, arrived.elapsed());
        }
    }

    fn fault(&mut self, tag: Tag, fault: &Fault, arrived: Instant) {
        tracing::debug!(command = ?tag.command, offset = tag.offset, %fault, "NBD request failed");
        self.fail(tag, Errno::from(fault.kind), &fault.to_string(), arrived);
    }

    fn fail(&mut self, tag: Tag, errno: Errno, message: &str, arrived: Instant) {
        reply::error(self.style, tag, errno, message, self.outbox.tail());
        if let Some(stats) = self.stats.of(tag.command) {
            stats.failed(arrived.elapsed());
        }
    }
}

/// Whether a round got anything done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    No,
    Yes,
}

impl std::ops::BitOrAssign for Moved {
    fn bitor_assign(&mut self, other: Self) {
        if other == Self::Yes {
            *self = Self::Yes;
        }
    }
}

/// How a finished request is answered.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Done { bytes: u64 },
    Read { len: u32, fragments: Fragments },
    Status { len: u64, contexts: Contexts },
}

impl Answer {
    fn done(bytes: u64) -> Self {
        Self::Done { bytes }
    }
}

/// A request in flight.
#[derive(Debug)]
struct Open {
    tag: Tag,
    answer: Answer,
    held: usize,
    arrived: Instant,
}

/// The duty to answer a request: consumed by [`Ticket::complete`]; dropped without it (the task panicked) it answers with
/// an error, so that no client waits forever.
struct Ticket {
    finished: Rc<Finished>,
    open: Option<Open>,
}

impl Ticket {
    fn complete(mut self, outcome: Result<Reply>) {
        if let Some(open) = self.open.take() {
            self.finished.push(open, outcome);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.finished.push(open, Err(Fault::bug("the request was abandoned")));
        }
    }
}

/// Finished requests on their way back to the connection's task.
#[derive(Default)]
struct Finished {
    ready: RefCell<Vec<(Open, Result<Reply>)>>,
    waker: Cell<Option<Waker>>,
}

impl Finished {
    fn push(&self, open: Open, outcome: Result<Reply>) {
        self.ready.borrow_mut().push((open, outcome));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
    /// Takes all there are; the task is woken when there are more.
    fn take(&self, cx: &Context<'_>) -> Vec<(Open, Result<Reply>)> {
        self.waker.set(Some(cx.waker().clone()));
        self.ready.take()
    }
}

/// Consecutive pieces of a read that go into one content chunk.
struct Run {
    len: u32,
    content: Content,
}

enum Content {
    Hole,
    Data(Vec<Bytes>),
}

fn runs(pieces: Vec<Bytes>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
        // All pieces together are as long as the read, which fits.
        let len = piece.len() as u32;
        match (runs.last_mut(), is_hole(&piece)) {
            (Some(Run { len: so_far, content: Content::Hole }), true) => *so_far += len,
            (_, true) => runs.push(Run { len, content: Content::Hole }),
            (Some(Run { len: so_far, content: Content::Data(pieces) }), false) => {
                *so_far += len;
                pieces.push(piece);
            }
            (_, false) => runs.push(Run { len, content: Content::Data(vec![piece]) }),
        }
    }
    runs
}

/// Long enough to be worth a chunk of its own, and all zeroes. Looks at the first bytes only, for most data.
fn is_hole(data: &[u8]) -> bool {
    data.len() >= MIN_HOLE_BYTES
        && data.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use volumedriver_core::wire::nbd::Command;

    use super::*;

    #[test]
    fn zero_pieces_become_holes_and_neighbours_merge() {
        let zero = Bytes::from(vec![0u8; 4096]);
        let data = Bytes::from(vec![7u8; 4096]);
        let pieces = vec![zero.clone(), zero.clone(), data.clone(), data, zero];
        let shape: Vec<_> = runs(pieces)
            .iter()
            .map(|run| (run.len, matches!(run.content, Content::Hole)))
            .collect();
        assert_eq!(shape, [(8192, true), (8192, false), (4096, true)]);
    }

    #[test]
    fn the_last_byte_decides_whether_it_is_a_hole() {
        let mut data = vec![0u8; 4096];
        assert!(is_hole(&data));
        data[4095] = 1;
        assert!(!is_hole(&data));
        assert!(!is_hole(&[0; 512]));
    }

    #[test]
    fn unused_command_has_no_counters() {
        assert!(SessionStats::default().of(Command::Disconnect).is_none());
    }
}
