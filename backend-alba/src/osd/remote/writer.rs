//! Writing a fragment of an ASD: a stream of chunks, or, for a small one, a single call once it is whole.

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use crc32fast::Hasher;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use volumedriver_proto::osd as wire;
use wire::write_request::Part as Message;
use wire::write_response::State;

use super::{Remote, within};
use crate::fault::{Fault, Kind, Result};
use crate::name::FragmentId;
use crate::net::Chunks;
use crate::net::bulk::{self, Item, OSD_WRITE, Part, Receiver};
use crate::osd::patience::{DEADLINE, SLOW_DEADLINE, for_bytes};
use crate::osd::{FragmentWriter, Osd as _, Sequence, Small, Title};
use crate::trailer;

/// Fragments up to this length go in one call: a stream costs a round trip more.
pub(super) const SMALL_BYTES: u64 = 64 << 10;
/// Chunks between the writer of a fragment and its stream.
const QUEUE: usize = 2;

/// What may be left of a fragment; removed when dropped, unless it was kept.
struct Trace {
    osd: Remote,
    file: FragmentId,
    end: End,
}

/// How far the end of a fragment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is being written: a stream that breaks leaves nothing there.
    Open,
    /// It may be there.
    Asked,
    Kept,
    Removed,
}

impl Trace {
    fn of(osd: &Remote, file: FragmentId) -> Self {
        Self { osd: osd.clone(), file, end: End::Open }
    }

    async fn remove(&mut self) {
        if self.end != End::Asked {
            return;
        }
        self.end = End::Removed;
        if let Err(fault) = self.osd.remove(self.file).await {
            tracing::warn!(%fault, fragment = %self.file, "an unwanted fragment stays until it is collected");
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.end != End::Asked {
            return;
        }
        let (osd, file) = (self.osd.clone(), self.file);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // What cannot be removed now is collected later.
            runtime.spawn(async move { osd.remove(file).await });
        }
    }
}

/// One that goes up while it is being made.
pub(super) struct Streamed {
    trace: Trace,
    len: u64,
    /// `None` once nothing more may come.
    steps: Option<mpsc::Sender<Part<wire::WriteRequest>>>,
    /// Never locked: what arrives over HTTP is not `Sync` by itself.
    answers: Mutex<Receiver<wire::WriteResponse>>,
    sum: Hasher,
}

impl Streamed {
    /// Begun there, with room for it.
    pub(super) async fn begin(osd: &Remote, title: &Title) -> Result<Self> {
        let (steps, queue) = mpsc::channel(QUEUE);
        let first = message(Message::Title(osd.title(title)));
        let begin = async {
            // There is room for one: nobody has sent before.
            let _ = steps.send(first).await;
            let queue = ReceiverStream::new(queue);
            let mut answers = bulk::call(&osd.channel, OSD_WRITE, queue).await?;
            match state(answers.next().await?) {
                Some(State::Begun(_)) => Ok(answers),
                _ => Err(Status::internal("a fragment was begun without an answer")),
            }
        };
        let begun = within(osd.deadline, begin).await;
        let answers = osd.named(begun)?;
        let (trace, len) = (Trace::of(osd, title.file), title.part.layout.fragment_len());
        let answers = Mutex::new(answers);
        Ok(Self { trace, len, steps: Some(steps), answers, sum: Hasher::new() })
    }

    async fn send(&mut self, part: Part<wire::WriteRequest>) -> Result<()> {
        let lost = || Fault::unavailable("this fragment was given up before");
        let steps = self.steps.as_ref().ok_or_else(lost)?;
        let send = steps.send(part);
        match tokio::time::timeout(SLOW_DEADLINE, send).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => {
                // The stream has ended: it says why.
                self.steps = None;
                Err(self.answer().await.err().unwrap_or_else(lost))
            }
            Err(_) => {
                self.steps = None;
                Err(Fault::unavailable("it takes no bytes"))
            }
        }
    }

    fn answers(&mut self) -> &mut Receiver<wire::WriteResponse> {
        self.answers.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn answer(&mut self) -> Result<u32> {
        let deadline = for_bytes(SLOW_DEADLINE, self.len);
        let answer = within(deadline, self.answers().next()).await?;
        let is_over = answer.is_none();
        match state(answer) {
            Some(State::Stored(stored)) => Ok(stored.crc32),
            _ if !is_over => Err(Fault::unavailable("it answered something else than was asked")),
            _ => Err(Fault::unavailable("it ended the stream of a fragment")),
        }
    }

    async fn end(&mut self, object_crc32: Option<u32>) -> Result<u32> {
        self.trace.end = End::Asked;
        self.send(message(Message::Finish(wire::Finish { object_crc32 }))).await?;
        let (stored, sent) = (self.answer().await?, self.sum.clone().finalize());
        if stored != sent {
            let message = format!("it stored bytes with checksum {stored:08x}, not {sent:08x}");
            return Err(Fault::unavailable(message));
        }
        Ok(stored)
    }
}

#[async_trait]
impl FragmentWriter for Streamed {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        pieces.iter().for_each(|piece| self.sum.update(piece));
        for chunk in Chunks::of(pieces) {
            let sent = self.send(Part::Chunk(chunk)).await;
            self.trace.osd.named(sent)?;
        }
        Ok(())
    }

    async fn finish(&mut self, object_crc: Option<u32>) -> Result<u32> {
        let ended = self.end(object_crc).await;
        self.trace.osd.named(ended)
    }

    fn keep(&mut self) {
        self.trace.end = End::Kept;
    }

    async fn discard(mut self: Box<Self>) {
        self.steps = None;
        if self.trace.end == End::Open {
            // The OSD answers once nothing is left.
            let _ = tokio::time::timeout(DEADLINE, self.answers().next()).await;
        }
        self.trace.remove().await;
    }
}

fn message(part: Message) -> Part<wire::WriteRequest> {
    Part::Message(wire::WriteRequest { part: Some(part) })
}

fn state(answer: Option<Item<wire::WriteResponse>>) -> Option<State> {
    match answer? {
        Item::Message(wire::WriteResponse { state }) => state,
        Item::Bytes(_) => None,
    }
}

/// One that is small: gathered, and sent when it is whole.
pub(super) struct Gathering {
    trace: Trace,
    title: Title,
    len: u64,
    pieces: Vec<Bytes>,
    gathered: u64,
}

impl Gathering {
    /// Nothing is sent yet, so that there is room is only what was said lately.
    pub(super) async fn begin(osd: &Remote, title: Title) -> Result<Self> {
        let len = title.part.layout.fragment_len();
        let bytes = trailer::file_bytes(len, title.namespace.len() + title.name.len());
        let free = osd.room().await?.free_for(title.purpose);
        if bytes > free {
            let message = format!("{bytes} bytes asked, {free} free");
            return osd.named(Err(Fault::new(Kind::NoSpace, message)));
        }
        let (trace, pieces, gathered) = (Trace::of(osd, title.file), Vec::new(), 0);
        Ok(Self { trace, title, len, pieces, gathered })
    }

    fn check(&self, fits: bool) -> Result<()> {
        let (given, announced) = (self.gathered, self.len);
        let wrong = || Fault::invalid(format!("{given} bytes given, {announced} announced"));
        if fits { Ok(()) } else { self.trace.osd.named(Err(wrong())) }
    }
}

#[async_trait]
impl FragmentWriter for Gathering {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        self.gathered += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.check(self.gathered <= self.len)?;
        self.pieces.extend(pieces);
        Ok(())
    }

    async fn finish(&mut self, object_crc: Option<u32>) -> Result<u32> {
        self.check(self.gathered == self.len)?;
        let mut sum = Hasher::new();
        self.pieces.iter().for_each(|piece| sum.update(piece));
        let (title, bytes) = (self.title.clone(), std::mem::take(&mut self.pieces));
        self.trace.end = End::Asked;
        let sequence = Sequence::storing(Small { title, bytes, object_crc });
        // The assert is ours, not the client's: the id is new, so that OSD is not to be trusted.
        let distrusted = |fault: Fault| match fault.kind {
            Kind::AssertFailed => Fault { kind: Kind::Unavailable, ..fault },
            _ => fault,
        };
        let stored = self.trace.osd.apply(sequence).await.map_err(distrusted)?;
        let sent = sum.finalize();
        if stored != [sent] {
            let message = format!("it stored bytes with checksums {stored:08x?}, not {sent:08x}");
            return self.trace.osd.named(Err(Fault::unavailable(message)));
        }
        Ok(sent)
    }

    fn keep(&mut self) {
        self.trace.end = End::Kept;
    }

    async fn discard(mut self: Box<Self>) {
        self.trace.remove().await;
    }
}
