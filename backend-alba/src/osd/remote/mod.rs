//! The OSD behind a socket: a client of `alba asd`. The contract is `proto/osd.proto`.
//!
//! The channel connects when first used and again whenever the connection is lost. Every call ends within a time; whoever no
//! longer waits for one may drop it. What arrives is not believed: the checksums of a fragment's blocks must combine to the one
//! its manifest has, and each block must match its own.

mod writer;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};
use volumedriver_proto::osd as wire;
use wire::osd_client::OsdClient;
use wire::update::What;

use self::writer::{Gathering, SMALL_BYTES, Streamed};
use super::patience::{DEADLINE, SLOW_DEADLINE, for_bytes};
use super::read::{check, combined};
use super::{
    Assert, Fragment, FragmentWriter, Osd, Priority, Purpose, Room, Sequence, Small, Title,
};
use super::{Update, Wanted};
use crate::fault::{Fault, Kind, Result};
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::net::bulk::{self, Item, OSD_READ, Part};
use crate::net::{Address, Gathered, MAX_MESSAGE_BYTES, Tls, endpoint, explain};
use crate::preset;
use crate::trailer::{BLOCK_BYTES, Trailer, blocks_of};

/// What it says of its room is believed for so long, while it answers: not every put must ask.
const ROOM_FOR: Duration = Duration::from_millis(500);

/// An OSD that belongs to a backend.
#[derive(Clone, Debug)]
pub struct Remote {
    id: OsdId,
    alba: AlbaId,
    address: Address,
    channel: Channel,
    client: OsdClient<Channel>,
    /// Of a call that moves no bytes.
    deadline: Duration,
    room: Arc<Mutex<Option<(Instant, Room)>>>,
}

/// What an OSD says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub id: OsdId,
    /// The backend it belongs to.
    pub owner: Option<AlbaId>,
    pub node: String,
    pub labels: Vec<String>,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
}

/// Asks whoever listens there what it is.
pub async fn describe(address: &Address, tls: Option<&Tls>) -> Result<Described> {
    let mut client = client(endpoint(address, tls)?);
    let asked = client.describe(wire::DescribeRequest {});
    let said = within(DEADLINE, asked).await.map_err(|f| f.about(place(address)))?.into_inner();
    let broken = || Fault::unavailable(format!("{}: it names no OSD", place(address)));
    let is_legal = preset::check_word("node", &said.node).is_ok();
    if !is_legal || preset::check_labels(&said.labels).is_err() {
        return Err(broken());
    }
    let owner = if said.alba_id.is_empty() {
        None
    } else {
        Some(AlbaId(said.alba_id[..].try_into().map_err(|_| broken())?))
    };
    Ok(Described {
        id: OsdId(said.osd_id[..].try_into().map_err(|_| broken())?),
        owner,
        node: said.node,
        labels: said.labels,
        capacity_bytes: said.capacity_bytes,
        used_bytes: said.used_bytes,
    })
}

fn client(channel: Channel) -> OsdClient<Channel> {
    OsdClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn place(address: &Address) -> String {
    format!("asd://{address}")
}

async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T> {
    match tokio::time::timeout(deadline, call).await {
        Ok(outcome) => outcome.map_err(|status| fault_of(&status)),
        Err(_) => {
            Err(Fault::unavailable(format!("it did not answer within {} s", deadline.as_secs())))
        }
    }
}

/// An OSD that fails in whatever way is one to be read around.
fn fault_of(status: &Status) -> Fault {
    // A server's own statuses have no source; with one, the connection failed.
    let is_local = std::error::Error::source(status).is_some();
    let kind = match status.code() {
        _ if is_local => Kind::Unavailable,
        Code::ResourceExhausted => Kind::NoSpace,
        Code::DataLoss => Kind::Corrupt,
        Code::NotFound => Kind::NotFound,
        Code::InvalidArgument | Code::OutOfRange => Kind::Bug,
        Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => Kind::Unavailable,
        Code::Aborted => Kind::AssertFailed,
        Code::AlreadyExists | Code::PermissionDenied => Kind::Unavailable,
        // Another OSD answers there, or it is another backend's now.
        Code::FailedPrecondition => Kind::Unavailable,
        Code::Unimplemented | Code::Internal | Code::Unavailable => Kind::Unavailable,
        Code::Unauthenticated => Kind::Unavailable,
    };
    Fault::new(kind, explain(status))
}

impl Remote {
    /// Names the OSD; the connection is made when first needed.
    pub fn new((id, alba): (OsdId, AlbaId), address: Address, tls: Option<&Tls>) -> Result<Self> {
        let channel = endpoint(&address, tls)?;
        let (client, deadline, room) = (client(channel.clone()), DEADLINE, Arc::default());
        Ok(Self { id, alba, address, channel, client, deadline, room })
    }

    #[cfg(test)]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Makes it the backend's. `Invalid`, with its name, when it is another's.
    pub async fn claim(&self) -> Result<()> {
        let request = wire::ClaimRequest { pair: self.pair() };
        let claim = async |mut client: OsdClient<Channel>| client.claim(request).await;
        self.own(tokio::time::timeout(self.deadline, claim(self.client.clone())).await)
    }

    fn own<T, E>(&self, outcome: Result<Result<T, Status>, E>) -> Result<()> {
        let outcome = match outcome {
            Err(_) => Err(Fault::unavailable("it does not answer")),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                Err(Fault::invalid(status.message()))
            }
            Ok(Err(status)) => Err(fault_of(&status)),
        };
        self.named(outcome)
    }

    // Replaced whole.
    fn last_room(&self) -> MutexGuard<'_, Option<(Instant, Room)>> {
        self.room.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn pair(&self) -> Option<wire::Pair> {
        Some(wire::Pair { osd_id: as_bytes(self.id.0), alba_id: as_bytes(self.alba.0) })
    }

    fn named<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|fault| {
            if fault.kind == Kind::Unavailable {
                *self.last_room() = None;
            }
            fault.about(format!("OSD {}", place(&self.address)))
        })
    }

    async fn call<T, F: Future<Output = Result<tonic::Response<T>, Status>>>(
        &self,
        deadline: Duration,
        call: impl FnOnce(OsdClient<Channel>) -> F,
    ) -> Result<T> {
        let outcome = within(deadline, call(self.client.clone())).await;
        self.named(outcome.map(tonic::Response::into_inner))
    }
}

#[async_trait]
impl Osd for Remote {
    fn id(&self) -> OsdId {
        self.id
    }
    fn place(&self) -> String {
        place(&self.address)
    }

    async fn room(&self) -> Result<Room> {
        let known = *self.last_room();
        if let Some((at, room)) = known
            && at.elapsed() < ROOM_FOR
        {
            return Ok(room);
        }
        let request = wire::RoomRequest { pair: self.pair() };
        let said = self.call(self.deadline, async |mut client| client.room(request).await).await?;
        let sizes = (said.capacity_bytes, said.used_bytes);
        let room = Room::new(sizes, said.reserve_bytes, said.left_bytes);
        *self.last_room() = Some((Instant::now(), room));
        Ok(room)
    }

    async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>> {
        if title.part.layout.fragment_len() <= SMALL_BYTES {
            return Ok(Box::new(Gathering::begin(self, title).await?));
        }
        Ok(Box::new(Streamed::begin(self, &title).await?))
    }

    async fn open(&self, wanted: Wanted, priority: Priority) -> Result<Option<Arc<dyn Fragment>>> {
        let Wanted { file, len, crc } = wanted;
        let request = wire::OpenRequest {
            pair: self.pair(),
            fragment_id: as_bytes(file.0),
            len,
            crc32: crc,
            priority: as_priority(priority),
        };
        // One whose trailer is damaged is read as a whole.
        let deadline = for_bytes(self.deadline, len);
        let said = match self.call(deadline, async |mut client| client.open(request).await).await {
            Err(fault) if fault.kind == Kind::NotFound => return Ok(None),
            said => said?,
        };
        let block_crcs = said.block_crc32s;
        if block_crcs.len() as u64 != blocks_of(len) || combined(&block_crcs, len) != crc {
            let message = format!("bytes 0..{len}: its checksums are not those of its manifest");
            return self.named(Err(Fault::corrupt(message)));
        }
        let (osd, is_removed) = (self.clone(), AtomicBool::new(false));
        let block_crcs = block_crcs.into();
        Ok(Some(Arc::new(RemoteFragment { osd, file, len, block_crcs, is_removed })))
    }

    /// Its files are in another machine, or as good as that.
    async fn open_raw(&self, _file: FragmentId) -> Result<Option<File>> {
        Ok(None)
    }

    async fn remove(&self, file: FragmentId) -> Result<()> {
        self.apply(Sequence::removing([file])).await.map(drop)
    }

    async fn apply(&self, sequence: Sequence) -> Result<Vec<u32>> {
        self.named(sequence.check())?;
        let is_alone = sequence.asserts.is_empty() && sequence.stores().next().is_none();
        let is_quick = is_alone && sequence.updates.len() == 1;
        let deadline = if is_quick { self.deadline } else { SLOW_DEADLINE };
        let request = wire::ApplyRequest {
            pair: self.pair(),
            asserts: sequence.asserts.iter().map(as_assert).collect(),
            priority: as_priority(sequence.priority),
            updates: sequence.updates.into_iter().map(|update| self.update(update)).collect(),
        };
        let apply = async |mut client: OsdClient<Channel>| client.apply(request).await;
        self.call(deadline, apply).await.map(|said| said.crc32s)
    }

    async fn describe(&self, file: FragmentId) -> Result<Option<Trailer>> {
        let request = wire::InspectRequest { pair: self.pair(), fragment_id: as_bytes(file.0) };
        let inspect = async |mut client: OsdClient<Channel>| client.inspect(request).await;
        let said = match self.call(SLOW_DEADLINE, inspect).await {
            Err(fault) if fault.kind == Kind::NotFound => return Ok(None),
            said => said?.trailer,
        };
        let wrong = || Fault::corrupt(format!("what it says of fragment {file} is of another"));
        let trailer = Trailer::from_end(&said);
        let own = trailer.and_then(|own| if own.id == file { Ok(own) } else { Err(wrong()) });
        self.named(own).map(Some)
    }

    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        let request = wire::ListRequest { pair: self.pair(), shard: shard.into() };
        let list = async |mut client: OsdClient<Channel>| client.list(request).await;
        let said = self.call(SLOW_DEADLINE, list).await?;
        let parse = |id: &Bytes| Some(FragmentId(id[..].try_into().ok()?));
        Ok(said.fragment_ids.iter().filter_map(parse).filter(|id| id.0[0] == shard).collect())
    }

    async fn release(&self, _alba: AlbaId) -> Result<()> {
        let request = wire::ReleaseRequest { pair: self.pair() };
        let release = async |mut client: OsdClient<Channel>| client.release(request).await;
        *self.last_room() = None;
        self.own(tokio::time::timeout(self.deadline, release(self.client.clone())).await)
    }
}

impl Remote {
    fn update(&self, update: Update) -> wire::Update {
        let what = match update {
            Update::Remove(file) => What::Remove(as_bytes(file.0)),
            Update::Store(small) => What::Store(self.store(small)),
        };
        wire::Update { what: Some(what) }
    }

    fn store(&self, small: Small) -> wire::Store {
        let Small { title, bytes, object_crc } = small;
        let title = wire::Title { pair: None, ..self.title(&title) };
        let fragment = match &bytes[..] {
            [whole] => whole.clone(),
            pieces => pieces.concat().into(),
        };
        wire::Store { title: Some(Box::new(title)), fragment, object_crc32: object_crc }
    }

    fn title(&self, title: &Title) -> wire::Title {
        let layout = title.part.layout;
        wire::Title {
            pair: self.pair(),
            fragment_id: as_bytes(title.file.0),
            namespace: title.namespace.to_string(),
            name: title.name.to_string(),
            object_id: as_bytes(title.part.object.0),
            object_len: layout.len,
            policy: Bytes::copy_from_slice(&layout.policy.to_bytes()),
            unit: layout.unit,
            index: title.part.index.into(),
            created_ms: title.created_ms,
            metadata: title.purpose == Purpose::Metadata,
            priority: as_priority(title.priority),
        }
    }
}

struct RemoteFragment {
    osd: Remote,
    file: FragmentId,
    len: u64,
    block_crcs: Box<[u32]>,
    is_removed: AtomicBool,
}

impl RemoteFragment {
    async fn receive(&self, request: wire::ReadRequest) -> Result<Bytes, Status> {
        let len = request.len;
        let asked = stream::iter([Part::Message(request)]);
        let mut chunks = bulk::call(&self.osd.channel, OSD_READ, asked).await?;
        let mut gathered = Gathered::of(len);
        while let Some(item) = chunks.next().await? {
            let bytes = match item {
                Item::Bytes(bytes) | Item::Message(wire::ReadResponse { chunk: bytes }) => bytes,
            };
            gathered.add(bytes).map_err(Status::data_loss)?;
        }
        gathered.finish().map_err(Status::unavailable)
    }
}

#[async_trait]
impl Fragment for RemoteFragment {
    /// Whole blocks come over the wire: what is checked is what was read.
    async fn read(self: Arc<Self>, from: u64, to: u64, priority: Priority) -> Result<Bytes> {
        if from >= to {
            return Ok(Bytes::new());
        }
        let start = from - from % BLOCK_BYTES;
        let len = to.next_multiple_of(BLOCK_BYTES).min(self.len).saturating_sub(start);
        let request = wire::ReadRequest {
            pair: self.osd.pair(),
            fragment_id: as_bytes(self.file.0),
            offset: start,
            len,
            priority: as_priority(priority),
        };
        let outcome = within(for_bytes(self.osd.deadline, len), self.receive(request)).await;
        let outcome =
            outcome.and_then(|blocks| check(&self.block_crcs, start, &blocks).map(|()| blocks));
        let blocks = match outcome {
            Err(fault) if fault.kind == Kind::NotFound => {
                self.is_removed.store(true, Ordering::Relaxed);
                let message = format!("bytes 0..{}: its file is missing", self.len);
                self.osd.named(Err(Fault::corrupt(message)))
            }
            outcome => self.osd.named(outcome),
        }?;
        Ok(blocks.slice((from - start) as usize..(to - start) as usize))
    }

    fn read_here(&self, _from: u64, _to: u64) -> Option<Result<Bytes>> {
        None
    }
    fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Relaxed)
    }
}

fn as_assert(assert: &Assert) -> wire::Assert {
    let (file, whole) = match assert {
        Assert::Absent(file) => (*file, None),
        Assert::Present(Wanted { file, len, crc }) => {
            (*file, Some(wire::Whole { len: *len, crc32: *crc }))
        }
    };
    wire::Assert { fragment_id: as_bytes(file.0), whole }
}

fn as_priority(priority: Priority) -> i32 {
    let priority = match priority {
        Priority::Foreground => wire::Priority::Foreground,
        Priority::Background => wire::Priority::Background,
    };
    priority.into()
}

fn as_bytes(id: [u8; 16]) -> Bytes {
    Bytes::copy_from_slice(&id)
}
