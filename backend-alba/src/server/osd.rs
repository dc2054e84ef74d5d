//! The gRPC service over one [`Local`] OSD (`alba asd`). The contract is `proto/osd.proto`.
//!
//! Whatever a client says is checked before it is used: an identity of another length, a layout nobody can have, a range past
//! the end of memory. Nothing is allocated by a length that a client claims.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use volumedriver_proto::osd as wire;
use wire::osd_server::{Osd as Service, OsdServer};
use wire::update::What;
use wire::write_request::Part as Message;
use wire::write_response::State;

use super::bulk::{Bulk, Method, Streams};
use super::{CHUNK_BYTES, MAX_MESSAGE_BYTES};
use crate::erasure::Layout;
use crate::fault::{Fault, Kind};
use crate::name::{self, AlbaId, FragmentId, ObjectId, OsdId};
use crate::net::bulk::{self, Item, OSD_READ, OSD_WRITE, Receiver};
use crate::osd::{Asd, Bare, FragmentWriter, Local, Osd as _, Ownership, Priority, Purpose};
use crate::osd::{Assert, MAX_PARTS, Sequence, Small, Title, Update, Wanted};
use crate::preset::{self, Policy};
use crate::trailer::Part;

/// A client that sends nothing for so long has gone.
const CHUNK_PATIENCE: Duration = Duration::from_secs(120);
/// Fragments, or sequences with some, being written at once; more wait. Each holds about 2 MiB at most.
const WRITERS: usize = 256;
/// Longest request but those of streams: a sequence of 2 MiB, and the titles of what it stores.
const MAX_REQUEST_BYTES: usize = 4 << 20;
/// Pieces of a chunk that are gathered at most: a short one may keep a long buffer.
const MAX_PIECES: usize = 64;
/// Longest object whose fragments are kept here, bytes.
const MAX_OBJECT_BYTES: u64 = 1 << 40;

/// How an ASD presents itself.
#[derive(Clone, Debug)]
pub struct Place {
    /// The failure domain it belongs to.
    pub node: String,
    pub labels: Vec<String>,
}

impl Place {
    pub fn new(node: String, labels: Vec<String>) -> Result<Self, Fault> {
        preset::check_word("node", &node)?;
        preset::check_labels(&labels)?;
        Ok(Self { node, labels })
    }
}

/// The service; cheap to clone.
#[derive(Clone)]
pub struct OsdService {
    osd: Arc<Local>,
    place: Arc<Place>,
    writers: Arc<Semaphore>,
}

impl OsdService {
    #[must_use]
    pub fn new(osd: Asd, place: Place) -> Self {
        let writers = Arc::new(Semaphore::new(WRITERS));
        Self { osd: Arc::new(osd.0), place: Arc::new(place), writers }
    }

    #[must_use]
    pub fn routes(self) -> Routes {
        let service = Arc::new(self);
        let generated = OsdServer::from_arc(service.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Routes::new(Bulk::before(generated, service))
    }

    fn id(&self) -> OsdId {
        self.osd.directory().id
    }

    /// The OSD that is meant is this one; returns who asks.
    fn check_meant(&self, pair: Option<&wire::Pair>) -> Result<AlbaId, Status> {
        let pair = pair.ok_or_else(|| Status::invalid_argument("a request to no OSD"))?;
        let (meant, id) = (OsdId(identity("osd_id", &pair.osd_id)?), self.id());
        if meant != id {
            let message = format!("OSD {id} answers here, not {meant}");
            return Err(Status::failed_precondition(message));
        }
        Ok(AlbaId(identity("alba_id", &pair.alba_id)?))
    }

    /// It is also the one of the backend that asks.
    fn check(&self, pair: Option<&wire::Pair>) -> Result<(), Status> {
        let asker = self.check_meant(pair)?;
        let refused = match self.osd.directory().owner() {
            Some(owner) if owner == asker => return Ok(()),
            Some(owner) => format!("belongs to backend {owner}, not to {asker}"),
            None => "belongs to no backend".into(),
        };
        Err(Status::failed_precondition(format!("OSD {} {refused}", self.id())))
    }

    async fn set_owner(&self, change: Ownership) -> Result<(), Status> {
        let changed = self.osd.set_owner(change).await;
        changed.map_err(|fault| match fault.kind {
            Kind::Invalid => Status::failed_precondition(fault.to_string()),
            _ => fault.into(),
        })
    }

    async fn begin(&self, title: wire::Title) -> Result<Writing, Status> {
        self.check(title.pair.as_ref())?;
        let title = as_title(title)?;
        let closed = |_| Status::internal("the bound of an OSD was closed");
        let permit = self.writers.clone().acquire_owned().await.map_err(closed)?;
        let writer = self.osd.create(title).await?;
        Ok(Writing { writer, _permit: permit })
    }

    async fn write(
        self,
        mut messages: Receiver<wire::WriteRequest>,
        answers: &mpsc::Sender<Result<wire::WriteResponse, Status>>,
    ) -> Result<(), Status> {
        let Some(Message::Title(title)) = next(&mut messages).await? else {
            return Err(Status::invalid_argument("a fragment does not begin with its title"));
        };
        let mut writing = self.begin(title).await?;
        answer(answers, State::Begun(wire::Begun {})).await;
        match writing.receive(&mut messages).await {
            Ok(crc32) => {
                // From here on it is the asker's: it removes what it does not want.
                writing.writer.keep();
                answer(answers, State::Stored(wire::Stored { crc32 })).await;
                Ok(())
            }
            Err(status) => {
                writing.writer.discard().await;
                Err(status)
            }
        }
    }
}

async fn answer(answers: &mpsc::Sender<Result<wire::WriteResponse, Status>>, state: State) {
    // Nobody waits any more: what follows is found out by the next message.
    let _ = answers.send(Ok(wire::WriteResponse { state: Some(state) })).await;
}

struct Writing {
    writer: Box<dyn FragmentWriter>,
    _permit: OwnedSemaphorePermit,
}

impl Writing {
    /// All of the fragment; its checksum.
    async fn receive(
        &mut self,
        messages: &mut Receiver<wire::WriteRequest>,
    ) -> Result<u32, Status> {
        // What came of about one chunk, in as many pieces as it came in.
        let (mut pieces, mut gathered) = (Vec::new(), 0);
        loop {
            match next(messages).await? {
                Some(Message::Chunk(chunk)) if chunk.len() as u64 <= CHUNK_BYTES => {
                    gathered += chunk.len() as u64;
                    pieces.push(chunk);
                    if gathered >= CHUNK_BYTES || pieces.len() >= MAX_PIECES {
                        gathered = 0;
                        self.writer.append(std::mem::take(&mut pieces)).await?;
                    }
                }
                Some(Message::Chunk(chunk)) => {
                    let len = chunk.len();
                    return Err(Status::invalid_argument(format!(
                        "a chunk of {len} bytes, at most {CHUNK_BYTES} are legal"
                    )));
                }
                Some(Message::Finish(finish)) => {
                    self.writer.append(pieces).await?;
                    return Ok(self.writer.finish(finish.object_crc32).await?);
                }
                Some(Message::Title(_)) => {
                    return Err(Status::invalid_argument("a fragment with two titles"));
                }
                None => {
                    // There may be too many of them.
                    self.writer.append(pieces).await?;
                    return Err(Status::cancelled("the fragment was given up"));
                }
            }
        }
    }
}

/// The next part; a chunk may come as several.
async fn next(messages: &mut Receiver<wire::WriteRequest>) -> Result<Option<Message>, Status> {
    let late = |_| Status::deadline_exceeded("no chunk arrived in time");
    let item = tokio::time::timeout(CHUNK_PATIENCE, messages.next()).await.map_err(late)??;
    match item {
        None => Ok(None),
        Some(Item::Bytes(bytes)) => Ok(Some(Message::Chunk(bytes))),
        // With fields that nobody knows: those need not stay in memory.
        Some(Item::Message(wire::WriteRequest { part: Some(Message::Chunk(chunk)) })) => {
            Ok(Some(Message::Chunk(Bytes::copy_from_slice(&chunk))))
        }
        Some(Item::Message(wire::WriteRequest { part: Some(part) })) => Ok(Some(part)),
        Some(Item::Message(wire::WriteRequest { part: None })) => {
            Err(Status::invalid_argument("a message that is no part of a fragment"))
        }
    }
}

impl Streams for OsdService {
    fn method(path: &str) -> Option<Method<Self>> {
        match path {
            OSD_WRITE => Some(|service, request| {
                Box::pin(async move { Ok(Self::clone(&service).take_write(request)) })
            }),
            OSD_READ => {
                Some(|service, request| Box::pin(async move { service.take_read(request).await }))
            }
            _ => None,
        }
    }
}

impl OsdService {
    fn take_write(self, request: http::Request<Body>) -> http::Response<Body> {
        let (answers, receiver) = mpsc::channel(2);
        let messages = Receiver::of_request(request.into_body());
        tokio::spawn(async move {
            if let Err(status) = self.write(messages, &answers).await {
                // Nobody waits any more.
                let _ = answers.send(Err(status)).await;
            }
        });
        bulk::answer(ReceiverStream::new(receiver).map(|answer| answer.map(bulk::Part::Message)))
    }

    async fn take_read(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        let asked = Receiver::<wire::ReadRequest>::of_request(request.into_body()).only().await?;
        let chunks = self.read(Request::new(asked)).await?.into_inner();
        let as_part =
            |message: wire::ReadResponse| bulk::Part::<wire::ReadResponse>::Chunk(message.chunk);
        Ok(bulk::answer(chunks.map(move |message| message.map(as_part))))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::WriteResponse, Status>> + Send>>;
type Chunks = Pin<Box<dyn Stream<Item = Result<wire::ReadResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Service for OsdService {
    async fn describe(
        &self,
        _request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        let room = self.osd.room().await?;
        Ok(Response::new(wire::DescribeResponse {
            osd_id: as_bytes(self.id().0),
            alba_id: self.osd.directory().owner().map(|id| as_bytes(id.0)).unwrap_or_default(),
            node: self.place.node.clone(),
            labels: self.place.labels.clone(),
            capacity_bytes: room.capacity_bytes,
            used_bytes: room.used_bytes,
            version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    async fn claim(
        &self,
        request: Request<wire::ClaimRequest>,
    ) -> Result<Response<wire::ClaimResponse>, Status> {
        let alba = self.check_meant(request.get_ref().pair.as_ref())?;
        self.set_owner(Ownership::Claim(alba)).await?;
        tracing::info!(backend = %alba, "claimed");
        Ok(Response::new(wire::ClaimResponse {}))
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::ReleaseResponse>, Status> {
        let alba = self.check_meant(request.get_ref().pair.as_ref())?;
        self.set_owner(Ownership::Release(alba)).await?;
        tracing::info!(backend = %alba, "released");
        Ok(Response::new(wire::ReleaseResponse {}))
    }

    async fn room(
        &self,
        request: Request<wire::RoomRequest>,
    ) -> Result<Response<wire::RoomResponse>, Status> {
        self.check(request.get_ref().pair.as_ref())?;
        let room = self.osd.room().await?;
        Ok(Response::new(wire::RoomResponse {
            capacity_bytes: room.capacity_bytes,
            used_bytes: room.used_bytes,
            reserve_bytes: room.reserve_bytes,
            left_bytes: room.left_bytes,
        }))
    }

    type WriteStream = Answers;

    /// See `take_write`.
    async fn write(
        &self,
        _request: Request<Streaming<wire::WriteRequest>>,
    ) -> Result<Response<Answers>, Status> {
        Err(Status::internal("a stream of bytes was given to the generated code"))
    }

    async fn open(
        &self,
        request: Request<wire::OpenRequest>,
    ) -> Result<Response<wire::OpenResponse>, Status> {
        let request = request.into_inner();
        self.check(request.pair.as_ref())?;
        let (priority, len) = (as_priority(request.priority), request.len);
        let file = FragmentId(identity("fragment_id", &request.fragment_id)?);
        let wanted = Wanted { file, len, crc: request.crc32 };
        let found = self.osd.blocks(wanted, priority).await?;
        let block_crc32s = found.ok_or_else(|| no_fragment(file))?;
        Ok(Response::new(wire::OpenResponse { block_crc32s }))
    }

    type ReadStream = Chunks;

    async fn read(&self, request: Request<wire::ReadRequest>) -> Result<Response<Chunks>, Status> {
        let request = request.into_inner();
        self.check(request.pair.as_ref())?;
        let file = FragmentId(identity("fragment_id", &request.fragment_id)?);
        let (offset, len) = (request.offset, request.len);
        let end = offset.checked_add(len).filter(|end| *end <= MAX_OBJECT_BYTES);
        let far = || Status::invalid_argument(format!("{len} bytes asked from {offset} on"));
        let end = end.ok_or_else(far)?;
        let found = self.osd.open_unverified(file, as_priority(request.priority)).await?;
        Ok(Response::new(chunks(found.ok_or_else(|| no_fragment(file))?, offset, end)))
    }

    async fn inspect(
        &self,
        request: Request<wire::InspectRequest>,
    ) -> Result<Response<wire::InspectResponse>, Status> {
        let wire::InspectRequest { pair, fragment_id } = request.into_inner();
        self.check(pair.as_ref())?;
        let file = FragmentId(identity("fragment_id", &fragment_id)?);
        let found = self.osd.describe(file).await?.ok_or_else(|| no_fragment(file))?;
        Ok(Response::new(wire::InspectResponse { trailer: found.encode().into() }))
    }

    async fn apply(
        &self,
        request: Request<wire::ApplyRequest>,
    ) -> Result<Response<wire::ApplyResponse>, Status> {
        let request = request.into_inner();
        self.check(request.pair.as_ref())?;
        let sequence = as_sequence(request)?;
        sequence.check().map_err(|fault| Status::invalid_argument(fault.message))?;
        let closed = |_| Status::internal("the bound of an OSD was closed");
        let _permit = match sequence.stores().next() {
            Some(_) => Some(self.writers.acquire().await.map_err(closed)?),
            None => None,
        };
        let crc32s = self.osd.apply(sequence).await.map_err(|fault| match fault.kind {
            Kind::AssertFailed => Status::aborted(fault.to_string()),
            _ => fault.into(),
        })?;
        Ok(Response::new(wire::ApplyResponse { crc32s }))
    }

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListResponse>, Status> {
        let wire::ListRequest { pair, shard } = request.into_inner();
        self.check(pair.as_ref())?;
        let none = |_| Status::invalid_argument(format!("shard {shard}, legal is 0 to 255"));
        let found = self.osd.list(u8::try_from(shard).map_err(none)?).await?;
        let fragment_ids = found.into_iter().map(|id| as_bytes(id.0)).collect();
        Ok(Response::new(wire::ListResponse { fragment_ids }))
    }
}

/// The range in chunks, each read while the one before it is sent.
fn chunks(file: Bare, offset: u64, end: u64) -> Chunks {
    let starts = (offset..end).step_by(CHUNK_BYTES as usize);
    let read = move |from: u64| {
        let file = file.clone();
        async move {
            let chunk = file.read(from, CHUNK_BYTES.min(end - from)).await?;
            Ok(wire::ReadResponse { chunk })
        }
    };
    Box::pin(stream::iter(starts).map(read).buffered(2))
}

fn as_sequence(request: wire::ApplyRequest) -> Result<Sequence, Status> {
    let parts = request.asserts.len() + request.updates.len();
    if parts > MAX_PARTS {
        let message = format!("a sequence of {parts} parts, at most {MAX_PARTS} are legal");
        return Err(Status::invalid_argument(message));
    }
    let asserts = request.asserts.into_iter().map(as_assert).collect::<Result<_, _>>()?;
    let priority = as_priority(request.priority);
    let update = |update| as_update(update, priority);
    let updates = request.updates.into_iter().map(update).collect::<Result<_, _>>()?;
    Ok(Sequence { asserts, updates, priority })
}

fn as_assert(assert: wire::Assert) -> Result<Assert, Status> {
    let file = FragmentId(identity("fragment_id", &assert.fragment_id)?);
    Ok(match assert.whole {
        None => Assert::Absent(file),
        Some(wire::Whole { len, crc32 }) => Assert::Present(Wanted { file, len, crc: crc32 }),
    })
}

fn as_update(update: wire::Update, priority: Priority) -> Result<Update, Status> {
    let nothing = || Status::invalid_argument("an update with nothing in it");
    match update.what.ok_or_else(nothing)? {
        What::Remove(id) => Ok(Update::Remove(FragmentId(identity("remove", &id)?))),
        What::Store(store) => {
            let none = || Status::invalid_argument("a fragment without a title");
            let title = Title { priority, ..as_title(*store.title.ok_or_else(none)?)? };
            let (bytes, object_crc) = (vec![store.fragment], store.object_crc32);
            Ok(Update::Store(Small { title, bytes, object_crc }))
        }
    }
}

fn as_title(title: wire::Title) -> Result<Title, Status> {
    name::check_namespace(&title.namespace)?;
    name::check_object(&title.name)?;
    let policy: [u8; 4] = exactly("policy", &title.policy)?;
    let policy = Policy::from_bytes(policy).map_err(|f| Status::invalid_argument(f.message))?;
    preset::check_fragment_bytes(title.unit)?;
    let (len, index) = (title.object_len, title.index);
    if len > MAX_OBJECT_BYTES {
        let message = format!("an object of {len} bytes, at most {MAX_OBJECT_BYTES} are legal");
        return Err(Status::invalid_argument(message));
    }
    let none = || Status::invalid_argument(format!("fragment {index} of policy {policy}"));
    let index = u8::try_from(index).ok().filter(|index| usize::from(*index) < policy.total());
    let part = Part {
        object: ObjectId(identity("object_id", &title.object_id)?),
        layout: Layout { len, policy, unit: title.unit },
        object_crc: 0,
        index: index.ok_or_else(none)?,
    };
    Ok(Title {
        file: FragmentId(identity("fragment_id", &title.fragment_id)?),
        namespace: title.namespace.into(),
        name: title.name.into(),
        part,
        created_ms: title.created_ms,
        purpose: if title.metadata { Purpose::Metadata } else { Purpose::Data },
        priority: as_priority(title.priority),
    })
}

/// What nobody knows is not urgent.
fn as_priority(priority: i32) -> Priority {
    match wire::Priority::try_from(priority) {
        Ok(wire::Priority::Foreground) => Priority::Foreground,
        Ok(wire::Priority::Background) | Err(_) => Priority::Background,
    }
}

fn identity(what: &str, bytes: &[u8]) -> Result<[u8; 16], Status> {
    exactly(what, bytes)
}

fn exactly<const N: usize>(what: &str, bytes: &[u8]) -> Result<[u8; N], Status> {
    let len = bytes.len();
    let wrong = |_| Status::invalid_argument(format!("{what} of {len} bytes, not {N}"));
    bytes.try_into().map_err(wrong)
}

fn as_bytes(id: [u8; 16]) -> Bytes {
    Bytes::copy_from_slice(&id)
}

fn no_fragment(file: FragmentId) -> Status {
    Fault::not_found(format!("there is no fragment {file}")).into()
}

#[cfg(test)]
mod tests;
