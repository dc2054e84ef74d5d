//! gRPC messages that carry bytes, without copying these: the generated code copies each chunk once where it is sent and
//! once where it arrives.
//!
//! What is on the wire is the same. A message that is nothing but a chunk is a head (5 bytes of gRPC, the tag of the field,
//! its length) and the bytes, which are handed on as they came; every other message is decoded as ever.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt as _};
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{self, HeaderMap};
use tonic::transport::Channel;
use tower::ServiceExt as _;
use volumedriver_proto::{alba as wire, osd};

use super::{CHUNK_BYTES, MAX_MESSAGE_BYTES};

/// Of gRPC: whether the message is compressed, which none is, and its length.
const PREFIX_BYTES: usize = 5;

/// Messages that may be nothing but a chunk.
pub trait Carrier: Message + Default {
    /// Of the chunk's field: its number and that it holds bytes.
    const TAG: u8;
}

const CHUNK_IS_FIELD_1: u8 = (1 << 3) | 2;
const CHUNK_IS_FIELD_2: u8 = (2 << 3) | 2;
/// There is no field 0.
const NO_CHUNK: u8 = 0;

impl Carrier for wire::PutRequest {
    const TAG: u8 = CHUNK_IS_FIELD_2;
}
impl Carrier for wire::PutResponse {
    const TAG: u8 = NO_CHUNK;
}
impl Carrier for wire::GetRangeRequest {
    const TAG: u8 = NO_CHUNK;
}
impl Carrier for wire::GetRangeResponse {
    const TAG: u8 = CHUNK_IS_FIELD_2;
}

impl Carrier for osd::WriteRequest {
    const TAG: u8 = CHUNK_IS_FIELD_2;
}
impl Carrier for osd::WriteResponse {
    const TAG: u8 = NO_CHUNK;
}
impl Carrier for osd::ReadRequest {
    const TAG: u8 = NO_CHUNK;
}
impl Carrier for osd::ReadResponse {
    const TAG: u8 = CHUNK_IS_FIELD_1;
}

/// The methods of `alba.proto` and `osd.proto` that are called in this way.
pub const PUT: &str = "/alba.v1.Alba/Put";
pub const GET_RANGE: &str = "/alba.v1.Alba/GetRange";
pub const OSD_WRITE: &str = "/alba.osd.v1.Osd/Write";
pub const OSD_READ: &str = "/alba.osd.v1.Osd/Read";

/// `Alba.Put`, with the chunks of the object.
pub async fn put(
    channel: &Channel,
    header: wire::PutHeader,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<wire::PutResponse, Status> {
    let part = Some(wire::put_request::Part::Header(header));
    let header = stream::iter([Part::Message(wire::PutRequest { part })]);
    let parts = header.chain(chunks.map(Part::Chunk));
    call::<_, wire::PutResponse>(channel, PUT, parts).await?.only().await
}

/// `Alba.GetRange`: its first message, then the bytes of the range.
pub async fn get_range(
    channel: &Channel,
    request: wire::GetRangeRequest,
) -> Result<Receiver<wire::GetRangeResponse>, Status> {
    call(channel, GET_RANGE, stream::iter([Part::Message(request)])).await
}

/// What arrives.
#[derive(Debug)]
pub enum Item<M> {
    Message(M),
    /// The next bytes of a chunk.
    Bytes(Bytes),
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum Part<M> {
    Message(M),
    Chunk(Bytes),
}

/// The messages of a stream as they arrive.
#[derive(Debug)]
pub struct Receiver<M> {
    body: Body,
    side: Side,
    /// What is left of the frame that came last.
    frame: Bytes,
    /// Of a prefix, a head or a message that is not whole yet.
    gathered: BytesMut,
    state: State,
    trailers: Option<HeaderMap>,
    _message: PhantomData<fn() -> M>,
}

/// Who receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Server,
    /// Whose stream ends with a status.
    Client,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Prefix,
    Message { len: usize },
    Chunk { left: usize },
}

impl<M: Carrier> Receiver<M> {
    /// Of a request.
    #[must_use]
    pub fn of_request(body: Body) -> Self {
        Self::new(body, Side::Server)
    }

    fn new(body: Body, side: Side) -> Self {
        let (frame, gathered, state) = (Bytes::new(), BytesMut::new(), State::Prefix);
        Self { body, side, frame, gathered, state, trailers: None, _message: PhantomData }
    }

    /// `None` at the end, if it was a good one.
    pub async fn next(&mut self) -> Result<Option<Item<M>>, Status> {
        loop {
            match self.state {
                State::Prefix => {
                    if !self.gather(PREFIX_BYTES).await? {
                        return self.end();
                    }
                    let len = message_len(&self.gathered)?;
                    self.gathered.clear();
                    self.state = State::Message { len };
                }
                State::Message { len } => match self.chunk_of(len).await? {
                    Some(left) => {
                        self.gathered.clear();
                        self.state = State::Chunk { left };
                    }
                    None => {
                        self.need(len).await?;
                        let message = M::decode(self.gathered.split().freeze());
                        self.state = State::Prefix;
                        let bad = |e| Status::internal(format!("a message cannot be decoded: {e}"));
                        return Ok(Some(Item::Message(message.map_err(bad)?)));
                    }
                },
                State::Chunk { left: 0 } => self.state = State::Prefix,
                State::Chunk { left } => {
                    // There are frames with nothing in them.
                    while self.frame.is_empty() {
                        if !self.next_frame().await? {
                            return Err(cut_off());
                        }
                    }
                    let bytes = self.frame.split_to(left.min(self.frame.len()));
                    self.state = State::Chunk { left: left - bytes.len() };
                    return Ok(Some(Item::Bytes(bytes)));
                }
            }
        }
    }

    /// A stream of one message.
    pub async fn only(mut self) -> Result<M, Status> {
        let wrong = || Status::internal("a stream that is not one message");
        let Some(Item::Message(message)) = self.next().await? else { return Err(wrong()) };
        if self.next().await?.is_some() { Err(wrong()) } else { Ok(message) }
    }

    /// The length of the chunk, if a message of this length is nothing else; its head is gathered then.
    async fn chunk_of(&mut self, len: usize) -> Result<Option<usize>, Status> {
        let mut chunk = 0;
        for at in 0..len.min(PREFIX_BYTES) {
            self.need(at + 1).await?;
            let byte = self.gathered[at];
            if at == 0 {
                if byte != M::TAG {
                    return Ok(None);
                }
                continue;
            }
            chunk |= usize::from(byte & 0x7f) << (7 * (at - 1));
            if byte & 0x80 == 0 {
                let is_all = at + 1 + chunk == len && chunk as u64 <= CHUNK_BYTES;
                return Ok(is_all.then_some(chunk));
            }
        }
        Ok(None)
    }

    async fn need(&mut self, to: usize) -> Result<(), Status> {
        if self.gather(to).await? || to == 0 { Ok(()) } else { Err(cut_off()) }
    }

    /// Until so many bytes are gathered; `false` when the stream ends before the first.
    async fn gather(&mut self, to: usize) -> Result<bool, Status> {
        while self.gathered.len() < to {
            if self.frame.is_empty() && !self.next_frame().await? {
                return if self.gathered.is_empty() { Ok(false) } else { Err(cut_off()) };
            }
            let missing = (to - self.gathered.len()).min(self.frame.len());
            self.gathered.extend_from_slice(&self.frame.split_to(missing));
        }
        Ok(true)
    }

    /// `false` at the end.
    async fn next_frame(&mut self) -> Result<bool, Status> {
        if self.trailers.is_some() {
            return Ok(false);
        }
        let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
        let Some(frame) = frame.transpose()? else { return Ok(false) };
        match frame.into_data() {
            Ok(data) => self.frame = data,
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
        Ok(self.trailers.is_none())
    }

    fn end(&self) -> Result<Option<Item<M>>, Status> {
        if self.side == Side::Server {
            return Ok(None);
        }
        match self.trailers.as_ref().and_then(Status::from_header_map) {
            Some(status) if status.code() == tonic::Code::Ok => Ok(None),
            Some(status) => Err(status),
            None => Err(cut_off()),
        }
    }
}

fn cut_off() -> Status {
    Status::unavailable("the stream was cut off")
}

fn message_len(prefix: &[u8]) -> Result<usize, Status> {
    let [flag, a, b, c, d] = *prefix else { return Err(cut_off()) };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if flag != 0 {
        return Err(Status::unimplemented("compressed messages are not taken"));
    }
    if len > MAX_MESSAGE_BYTES {
        let message = format!("a message of {len} bytes, at most {MAX_MESSAGE_BYTES} are legal");
        return Err(Status::out_of_range(message));
    }
    Ok(len)
}

/// A stream of messages as a body.
struct Sender<M, S> {
    parts: S,
    /// Frames that are ready.
    ready: VecDeque<Bytes>,
    side: Side,
    is_over: bool,
    _message: PhantomData<fn() -> M>,
}

/// The messages of an answer, with their status at the end.
pub fn answer<M: Carrier + 'static>(
    parts: impl Stream<Item = Result<Part<M>, Status>> + Send + 'static,
) -> http::Response<Body> {
    let mut answer = http::Response::new(body(parts, Side::Server));
    let kind = http::HeaderValue::from_static("application/grpc");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}

fn body<M: Carrier + 'static>(
    parts: impl Stream<Item = Result<Part<M>, Status>> + Send + 'static,
    side: Side,
) -> Body {
    let (parts, ready) = (parts.boxed(), VecDeque::new());
    Body::new(Sender { parts, ready, side, is_over: false, _message: PhantomData })
}

impl<M: Carrier, S: Stream<Item = Result<Part<M>, Status>> + Unpin> HttpBody for Sender<M, S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            let part = ready!(self.parts.poll_next_unpin(cx));
            let outcome = match part {
                Some(Ok(Part::Chunk(chunk))) => {
                    self.ready.push_back(head::<M>(chunk.len()));
                    self.ready.push_back(chunk);
                    continue;
                }
                Some(Ok(Part::Message(message))) => {
                    self.ready.push_back(whole(&message));
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::new(tonic::Code::Ok, ""),
            };
            self.is_over = true;
            return Poll::Ready(match self.side {
                Side::Client if outcome.code() == tonic::Code::Ok => None,
                Side::Client => Some(Err(outcome)),
                Side::Server => {
                    let mut trailers = HeaderMap::new();
                    Some(outcome.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
                }
            });
        }
    }
}

/// What comes before the bytes of a chunk.
fn head<M: Carrier>(chunk: usize) -> Bytes {
    let own = 1 + prost::length_delimiter_len(chunk);
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + own);
    put_prefix(&mut head, own + chunk);
    head.put_u8(M::TAG);
    // There is room for it.
    let _ = prost::encode_length_delimiter(chunk, &mut head);
    head.freeze()
}

fn whole(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + len);
    put_prefix(&mut bytes, len);
    // There is room for it.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

fn put_prefix(bytes: &mut BytesMut, len: usize) {
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
}

/// Sends a stream of messages to a method and returns its answers.
pub async fn call<M: Carrier + 'static, A: Carrier>(
    channel: &Channel,
    method: &'static str,
    parts: impl Stream<Item = Part<M>> + Send + 'static,
) -> Result<Receiver<A>, Status> {
    let mut request = http::Request::new(body(parts.map(Ok), Side::Client));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(method);
    let headers = request.headers_mut();
    headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    let kind = http::HeaderValue::from_static("application/grpc");
    headers.insert(http::header::CONTENT_TYPE, kind);
    let failed = |error| Status::from_error(Box::new(error));
    let (head, body) = channel.clone().oneshot(request).await.map_err(failed)?.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers)
        && status.code() != tonic::Code::Ok
    {
        return Err(status);
    }
    if head.status != http::StatusCode::OK {
        return Err(Status::unknown(format!("HTTP status {}", head.status)));
    }
    Ok(Receiver::new(body, Side::Client))
}

#[cfg(test)]
mod tests;
