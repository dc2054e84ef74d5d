//! A backend behind `alba serve`, over gRPC. The contract is `proto/alba.proto`.
//!
//! The channel connects when first used and again whenever the connection is lost; every call has a deadline. Bodies travel
//! in chunks, so no message is big.

use std::time::Duration;

use backend_alba::server::{
    Address, Chunks, Item, MAX_MESSAGE_BYTES, Tls, TlsFiles, endpoint, explain,
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_proto::alba as wire;
use wire::alba_client::AlbaClient;

use super::service::Service;
use crate::config::{AlbaTls, AlbaUrl};
use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};

/// Deadline of a call that moves no body.
const DEADLINE: Duration = Duration::from_secs(15);
/// A body has the deadline and this much per MiB: it is late below 2 MiB/s.
const DEADLINE_PER_MIB: Duration = Duration::from_millis(500);
/// Names asked for at once.
const PAGE: u32 = 1000;

#[derive(Clone)]
pub struct AlbaStore {
    client: AlbaClient<Channel>,
    /// The same connection, for bytes.
    channel: Channel,
    prefix: String,
    /// Of the namespaces we create; `None`: the server's default.
    preset: Option<String>,
    service: Service,
}

impl AlbaStore {
    /// Names the server; the connection is made when first needed. Its work is done on the runtime this is called on.
    pub fn connect(url: &AlbaUrl) -> Result<Self> {
        let invalid = |fault: backend_alba::Fault| Fault::invalid(fault.to_string());
        let address: Address = url.endpoint.to_string().parse().map_err(invalid)?;
        let tls = url.tls.as_ref().map(load_tls).transpose()?;
        let channel = endpoint(&address, tls.as_ref()).map_err(invalid)?;
        let client = AlbaClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (prefix, preset) = (url.prefix.clone(), url.preset.clone());
        Ok(Self { client, channel, prefix, preset, service: Service::here() })
    }

    /// As the server knows it. No name stays none: the prefix alone is not one of our namespaces.
    fn namespace(&self, namespace: &str) -> String {
        if namespace.is_empty() { String::new() } else { format!("{}{namespace}", self.prefix) }
    }

    /// Runs a call within a deadline that allows for a body of this length.
    async fn call<T: Send + 'static, F>(
        &self,
        body_len: u64,
        call: impl FnOnce(AlbaClient<Channel>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let mib = u32::try_from(body_len >> 20).unwrap_or(u32::MAX);
        let deadline = DEADLINE.saturating_add(DEADLINE_PER_MIB.saturating_mul(mib));
        let call = call(self.client.clone());
        let within = async move {
            match tokio::time::timeout(deadline, call).await {
                Ok(outcome) => outcome.map_err(Failure::into_fault),
                Err(_) => Err(Fault::unavailable(format!(
                    "the object backend did not answer within {} s",
                    deadline.as_secs()
                ))),
            }
        };
        self.service.run(within).await
    }
}

impl ObjectStore for AlbaStore {
    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        let (namespace, preset) = (self.namespace(namespace), self.preset.clone());
        let request = wire::CreateNamespaceRequest { namespace, preset };
        let create = |mut client: AlbaClient<Channel>| async move {
            client.create_namespace(request).await?;
            Ok(())
        };
        self.call(0, create).await
    }

    async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        let request = wire::DeleteNamespaceRequest { namespace: self.namespace(namespace) };
        let delete = |mut client: AlbaClient<Channel>| async move {
            client.delete_namespace(request).await?;
            Ok(())
        };
        self.call(0, delete).await
    }

    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        let prefix = format!("{}{prefix}", self.prefix);
        let cut = self.prefix.len();
        let mut names: Vec<String> = Vec::new();
        let mut after = String::new();
        loop {
            let request = wire::ListNamespacesRequest {
                prefix: prefix.clone(),
                after: after.clone(),
                limit: PAGE,
            };
            let list = |mut client: AlbaClient<Channel>| async move {
                Ok(client.list_namespaces(request).await?.into_inner())
            };
            let page = self.call(0, list).await?;
            names.extend(
                page.namespaces.iter().filter_map(|name| Some(name.get(cut..)?.to_string())),
            );
            match page.namespaces.last() {
                // A server that repeats itself must not keep us here.
                Some(last) if page.more && *last > after => after.clone_from(last),
                _ => return Ok(names),
            }
        }
    }

    async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        let len = body.iter().map(|piece| piece.len() as u64).sum();
        let (namespace, name) = (self.namespace(namespace), name.to_string());
        let metadata = purpose == Purpose::Metadata;
        // The checksum is added where the body is walked over.
        let header = wire::PutHeader { namespace, name, len, crc32: 0, metadata };
        let channel = self.channel.clone();
        self.call(len, |_| put(channel, header, body)).await
    }

    async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        let (namespace, name) = (self.namespace(namespace), name.to_string());
        let request = wire::GetRangeRequest { namespace, name, offset, len: Some(len) };
        let channel = self.channel.clone();
        self.call(len, |_| get_range(channel, request)).await
    }

    async fn head(&self, namespace: &str, name: &str) -> Result<Option<ObjectInfo>> {
        let request = wire::HeadRequest { namespace: self.namespace(namespace), name: name.into() };
        let head = |mut client: AlbaClient<Channel>| async move {
            let info = client.head(request).await;
            let info = match info {
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                other => other?.into_inner().info,
            };
            let missing = || Failure::from(Status::internal("a head without its information"));
            info.ok_or_else(missing).map(Some)
        };
        let info = self.call(0, head).await?;
        Ok(info.map(|info| ObjectInfo { len: info.len, crc: info.crc32 }))
    }

    async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        let mut after = after.unwrap_or_default().to_string();
        let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
        while names.len() < wanted {
            let left = u32::try_from(wanted - names.len()).unwrap_or(u32::MAX);
            let request = wire::ListRequest {
                namespace: self.namespace(namespace),
                prefix: prefix.into(),
                after: after.clone(),
                limit: left.min(PAGE),
            };
            let list = |mut client: AlbaClient<Channel>| async move {
                Ok(client.list(request).await?.into_inner())
            };
            let page = self.call(0, list).await?;
            names.extend(page.names);
            match names.last() {
                Some(last) if page.more && *last > after => after.clone_from(last),
                _ => break,
            }
        }
        names.truncate(wanted);
        Ok(names)
    }

    async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        let request =
            wire::DeleteRequest { namespace: self.namespace(namespace), name: name.into() };
        let delete = |mut client: AlbaClient<Channel>| async move {
            client.delete(request).await?;
            Ok(())
        };
        self.call(0, delete).await
    }
}

fn load_tls(files: &AlbaTls) -> Result<Tls> {
    let AlbaTls { certificate, key, ca } = files.clone();
    let files = TlsFiles { certificate, key, authority: ca };
    Tls::load(&files).map_err(|fault| Fault::invalid(fault.to_string()))
}

async fn put(channel: Channel, header: wire::PutHeader, body: Vec<Bytes>) -> Result<Put, Failure> {
    let mut crc = crc32fast::Hasher::new();
    body.iter().for_each(|piece| crc.update(piece));
    let header = wire::PutHeader { crc32: crc.finalize(), ..header };
    let chunks = stream::iter(Chunks::of(body));
    let answer = backend_alba::server::put(&channel, header, chunks).await?;
    match answer.outcome() {
        wire::PutOutcome::Created => Ok(Put::Created),
        wire::PutOutcome::Exists => Ok(Put::Exists),
        wire::PutOutcome::Unspecified => {
            Err(Status::internal("a put was answered without an outcome").into())
        }
    }
}

async fn get_range(
    channel: Channel,
    request: wire::GetRangeRequest,
) -> Result<Option<Bytes>, Failure> {
    let len = request.len.unwrap_or_default();
    let mut parts = match backend_alba::server::get_range(&channel, request).await {
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        answered => answered?,
    };
    let mut one = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(part) = parts.next().await? {
        let bytes = match part {
            Item::Bytes(bytes) => bytes,
            Item::Message(message) => message.chunk,
        };
        let received = (one.len() + all.len() + bytes.len()) as u64;
        if received > len {
            return Err(Status::internal(format!("more than the {len} bytes asked for")).into());
        }
        if received == len && one.is_empty() && all.is_empty() {
            // The whole range in one piece needs no copy.
            one = bytes;
        } else if !bytes.is_empty() {
            if all.is_empty() {
                all.reserve(usize::try_from(len).unwrap_or_default());
            }
            all.extend_from_slice(&bytes);
        }
    }
    let bytes = if one.is_empty() { all.freeze() } else { one };
    if bytes.len() as u64 != len {
        // The stream ended early without a status of its own: the connection was cut.
        return Err(Status::unavailable(format!("{} of {len} bytes arrived", bytes.len())).into());
    }
    Ok(Some(bytes))
}

/// A status on its way to being a [`Fault`].
struct Failure(Box<Status>);

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

impl Failure {
    // No `From`: one more way to make a `Fault` would leave `?` undecided elsewhere.
    fn into_fault(self) -> Fault {
        let Self(status) = self;
        use std::error::Error as _;
        // A server's own statuses have no source; with one, the connection broke.
        let is_local = status.source().is_some();
        let kind = match status.code() {
            Code::Internal if is_local => Kind::Unavailable,
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition => Kind::Invalid,
            Code::AlreadyExists | Code::OutOfRange | Code::Unimplemented => Kind::Invalid,
            Code::PermissionDenied | Code::Unauthenticated => Kind::Invalid,
            Code::ResourceExhausted => Kind::NoSpace,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Kind::Unavailable,
            // tonic reports a broken connection as Unknown; nothing in the contract answers it or Aborted.
            Code::Unknown | Code::Aborted => Kind::Unavailable,
            Code::DataLoss => Kind::Corrupt,
            Code::Internal | Code::Ok => Kind::Bug,
        };
        Fault::new(kind, format!("object backend: {}", explain(&status)))
    }
}
