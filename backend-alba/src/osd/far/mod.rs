//! A namespace of another ALBA, as a store of fragments: each is an object there, coded once more by a preset of its own. The
//! contract is `proto/alba.proto`.

#[cfg(test)]
mod tests;
mod url;

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use crc32fast::Hasher;
use futures_util::stream::{self, Stream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};
use volumedriver_proto::alba as wire;
use wire::alba_client::AlbaClient;
use wire::put_request::Part;

pub use self::url::{AlbaUrl, is_one};
use super::objects::{Created, Objects, Page};
use super::{Limits, Room};
use crate::fault::{Fault, Kind, Result};
use crate::name::AlbaId;
use crate::net::{Gathered, MAX_MESSAGE_BYTES, Tls, endpoint, explain};

/// The longest object another ALBA takes by default, bytes.
const LONGEST: u64 = 1 << 30;
/// What it says of its room is believed for so long: it asks all of its OSDs.
const ROOM_FOR: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct FarAlba {
    url: AlbaUrl,
    client: AlbaClient<Channel>,
    room: Mutex<Option<(Instant, Room)>>,
}

impl FarAlba {
    /// Connects when first used. The TLS of the server where the URL says nothing of it.
    pub fn new(url: AlbaUrl, tls: Option<&Tls>) -> Result<Self> {
        let own = url.tls.as_ref().map(Tls::load).transpose()?;
        let channel = endpoint(&url.address, own.as_ref().or(tls))?;
        let client = AlbaClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { url, client, room: Mutex::default() })
    }

    /// Makes sure that its namespace is there. `Invalid` when it is a namespace of `ours` itself: nothing would end.
    pub async fn prepare(&self, ours: AlbaId) -> Result<()> {
        let mut client = self.client.clone();
        let status = client.status(wire::StatusRequest {}).await.map_err(fault_of)?.into_inner();
        if status.alba_id == ours.to_string() {
            return Err(Fault::invalid("it is the backend itself, not another one"));
        }
        let (namespace, preset) = (self.url.namespace.clone(), self.url.preset.clone());
        let create = wire::CreateNamespaceRequest { namespace, preset };
        client.create_namespace(create).await.map(drop).map_err(|status| match status.code() {
            Code::NotFound | Code::InvalidArgument => Fault::invalid(status.message()),
            _ => fault_of(status),
        })
    }

    // Replaced whole.
    fn last_room(&self) -> MutexGuard<'_, Option<(Instant, Room)>> {
        self.room.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn send(
        &self,
        messages: impl Stream<Item = wire::PutRequest> + Send + 'static,
    ) -> Result<Created> {
        let put = self.client.clone().put(messages).await.map_err(fault_of)?;
        match put.into_inner().outcome() {
            wire::PutOutcome::Created => Ok(Created::Now),
            wire::PutOutcome::Exists => Ok(Created::Exists),
            wire::PutOutcome::Unspecified => {
                Err(Fault::unavailable("it does not say what became of a put"))
            }
        }
    }

    fn header(&self, key: &str, len: u64, crc32: u32) -> wire::PutRequest {
        let (namespace, name) = (self.url.namespace.clone(), key.to_owned());
        let header = wire::PutHeader { namespace, name, len, crc32, metadata: false };
        message(Part::Header(header))
    }

    async fn head(&self, key: &str) -> Result<Option<u64>> {
        let (namespace, name) = (self.url.namespace.clone(), key.to_owned());
        let request = wire::HeadRequest { namespace, name };
        match self.client.clone().head(request).await {
            Ok(head) => {
                let broken = || Fault::unavailable("it says nothing of an object that is there");
                head.into_inner().info.map(|info| Some(info.len)).ok_or_else(broken)
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(fault_of(status)),
        }
    }

    async fn receive(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, Status> {
        let (namespace, name) = (self.url.namespace.clone(), key.to_owned());
        let request = wire::GetRangeRequest { namespace, name, offset, len: Some(len) };
        let mut messages = self.client.clone().get_range(request).await?.into_inner();
        let mut gathered = Gathered::of(len);
        while let Some(wire::GetRangeResponse { chunk, .. }) = messages.message().await? {
            gathered.add(chunk).map_err(Status::unavailable)?;
        }
        gathered.finish().map_err(Status::unavailable)
    }
}

#[async_trait]
impl Objects for FarAlba {
    fn place(&self) -> String {
        self.url.to_string()
    }
    fn longest(&self) -> u64 {
        LONGEST
    }

    /// Of all its OSDs together: what its preset makes of a fragment is not in it.
    async fn room(&self) -> Result<Room> {
        let known = *self.last_room();
        if let Some((at, room)) = known
            && at.elapsed() < ROOM_FOR
        {
            return Ok(room);
        }
        let said = self.client.clone().status(wire::StatusRequest {}).await.map_err(fault_of)?;
        let (capacity, used) = (said.get_ref().capacity_bytes, said.get_ref().used_bytes);
        let left = capacity.saturating_sub(used);
        let room = Room::new((capacity, used), Limits::default().reserve(capacity), left);
        *self.last_room() = Some((Instant::now(), room));
        Ok(room)
    }

    async fn put(&self, key: &str, len: u64, body: mpsc::Receiver<Bytes>) -> Result<()> {
        let rest = stream::unfold((body, len, Some(Hasher::new())), next);
        let header = self.header(key, len, 0);
        match self.send(stream::StreamExt::chain(stream::iter([header]), rest)).await? {
            Created::Now => Ok(()),
            Created::Exists => Err(Fault::unavailable("there is a fragment of this id already")),
        }
    }

    async fn put_if_absent(&self, key: &str, value: Bytes) -> Result<Created> {
        let header = self.header(key, value.len() as u64, crc32fast::hash(&value));
        self.send(stream::iter([header, message(Part::Chunk(value))])).await
    }

    async fn get(&self, key: &str, from: u64, len: u64) -> Result<Option<Bytes>> {
        match self.receive(key, from, len).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(status) => match status.code() {
                Code::NotFound => Ok(None),
                // Past its end.
                Code::InvalidArgument | Code::OutOfRange => Err(Fault::corrupt(status.message())),
                _ => Err(fault_of(status)),
            },
        }
    }

    async fn end(&self, key: &str, len: u64) -> Result<Option<(u64, Bytes)>> {
        let Some(whole) = self.head(key).await? else { return Ok(None) };
        let len = len.min(whole);
        if len == 0 {
            return Ok(Some((0, Bytes::new())));
        }
        Ok(self.get(key, whole - len, len).await?.map(|end| (whole, end)))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let (namespace, name) = (self.url.namespace.clone(), key.to_owned());
        let request = wire::DeleteRequest { namespace, name };
        match self.client.clone().delete(request).await {
            Err(status) if status.code() != Code::NotFound => Err(fault_of(status)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn list(&self, prefix: &str, after: &str) -> Result<Page> {
        let namespace = self.url.namespace.clone();
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        let request = wire::ListRequest { namespace, prefix, after, limit: 0 };
        let listed = self.client.clone().list(request).await.map_err(fault_of)?.into_inner();
        Ok(Page { keys: listed.names, more: listed.more })
    }
}

fn message(part: Part) -> wire::PutRequest {
    wire::PutRequest { part: Some(part) }
}

type Body = (mpsc::Receiver<Bytes>, u64, Option<Hasher>);

/// The next message of a put: what comes through the queue, then its checksum. A queue that ends early ends the messages
/// without one, and the other side keeps nothing.
async fn next((mut queue, left, sum): Body) -> Option<(wire::PutRequest, Body)> {
    let mut sum = sum?;
    if left == 0 {
        let end = message(Part::Crc32(sum.finalize()));
        return Some((end, (queue, 0, None)));
    }
    let chunk = queue.recv().await?;
    sum.update(&chunk);
    let left = left.saturating_sub(chunk.len() as u64);
    Some((message(Part::Chunk(chunk)), (queue, left, Some(sum))))
}

/// An OSD that fails in whatever way is one to be read and written around.
fn fault_of(status: Status) -> Fault {
    // A server's own statuses have no source; with one, the connection failed.
    let is_local = std::error::Error::source(&status).is_some();
    let kind = match status.code() {
        _ if is_local => Kind::Unavailable,
        Code::ResourceExhausted => Kind::NoSpace,
        Code::DataLoss => Kind::Corrupt,
        Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => Kind::Unavailable,
        // Its namespace, or what it takes for legal, is not what it was.
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound => Kind::Unavailable,
        Code::AlreadyExists | Code::PermissionDenied | Code::Aborted => Kind::Unavailable,
        Code::FailedPrecondition | Code::Unauthenticated => Kind::Unavailable,
        Code::Unimplemented | Code::Internal | Code::Unavailable => Kind::Unavailable,
    };
    Fault::new(kind, explain(&status))
}
