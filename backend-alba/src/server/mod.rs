//! The gRPC service over [`Alba`]: requests in, answers and statuses out. The contract is `proto/alba.proto`.
//!
//! Lengths that a client claims are compared, never allocated: an upload holds what has arrived, up to a few MiB.

mod admin;
mod bulk;
mod osd;
mod osds;

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use volumedriver_proto::alba as wire;
use wire::alba_server::Alba as Service;

use crate::alba::{Alba, OsdState, OsdStatus, Reader, Update, Upload};
use crate::fault::{Fault, Kind, Result};
use crate::manifest::Manifest;
use crate::nsm::{Condition, OsdRole, Put};
use crate::osd::Purpose;

use bulk::PutPart;

pub use crate::net::bulk::{Item, Receiver, get_range, put};
pub use crate::net::{
    Address, CHUNK_BYTES, Chunks, MAX_MESSAGE_BYTES, Server, Tls, TlsFiles, endpoint, explain,
};
pub use bulk::{Bulk, TakesPuts};
pub use osd::{OsdService, Place};

/// A client that sends nothing for so long has gone.
const CHUNK_PATIENCE: Duration = Duration::from_secs(60);

/// The service; cheap to clone.
#[derive(Clone)]
pub struct AlbaService {
    alba: Alba,
}

impl AlbaService {
    #[must_use]
    pub fn new(alba: Alba) -> Self {
        Self { alba }
    }

    /// All services of a server.
    #[must_use]
    pub fn routes(self) -> Routes {
        let osds = osds::OsdsService::of(self.alba.clone());
        let admin = admin::AdminService::new(self.alba.clone()).server();
        Routes::new(Bulk::new(self)).add_service(osds).add_service(admin)
    }

    async fn receive(&self, mut parts: Receiver<wire::PutRequest>) -> Result<Put, Status> {
        let Some(PutPart::Header(header)) = next_part(&mut parts).await? else {
            return Err(Status::invalid_argument("the first message of a put is not its header"));
        };
        let (len, crc) = (header.len, Some(header.crc32));
        let purpose = if header.metadata { Purpose::Metadata } else { Purpose::Data };
        let (namespace, name) = (&header.namespace, &header.name);
        let mut upload = self.alba.begin_put(namespace, name, (len, purpose), crc).await?;
        if upload.exists() {
            return Ok(Put::Exists);
        }
        receive_bytes(&mut parts, &mut upload, len).await?;
        Ok(upload.finish().await?)
    }
}

#[tonic::async_trait]
impl TakesPuts for AlbaService {
    async fn take(&self, parts: Receiver<wire::PutRequest>) -> Result<wire::PutOutcome, Status> {
        Ok(match self.receive(parts).await? {
            Put::Created => wire::PutOutcome::Created,
            Put::Exists => wire::PutOutcome::Exists,
        })
    }
}

async fn receive_bytes(
    parts: &mut Receiver<wire::PutRequest>,
    upload: &mut Upload,
    len: u64,
) -> Result<(), Status> {
    let (mut left, mut is_ended) = (len, false);
    while let Some(part) = next_part(parts).await? {
        let bytes = match part {
            PutPart::Bytes(bytes) if !is_ended => bytes,
            PutPart::Crc32(crc) if !is_ended => {
                upload.expect(crc);
                is_ended = true;
                continue;
            }
            PutPart::Header(_) => {
                return Err(Status::invalid_argument("a put with two headers"));
            }
            PutPart::Bytes(_) | PutPart::Crc32(_) => {
                return Err(Status::invalid_argument("a put goes on after its checksum"));
            }
        };
        let more = || Status::invalid_argument(format!("more bytes than the {len} announced"));
        left = left.checked_sub(bytes.len() as u64).ok_or_else(more)?;
        upload.push(bytes).await?;
    }
    Ok(())
}

async fn next_part(parts: &mut Receiver<wire::PutRequest>) -> Result<Option<PutPart>, Status> {
    let late = |_| Status::deadline_exceeded("no chunk arrived in time");
    tokio::time::timeout(CHUNK_PATIENCE, bulk::next_part(parts)).await.map_err(late)?
}

type RangeChunks = Pin<Box<dyn Stream<Item = Result<wire::GetRangeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Service for AlbaService {
    async fn create_namespace(
        &self,
        request: Request<wire::CreateNamespaceRequest>,
    ) -> Result<Response<wire::CreateNamespaceResponse>, Status> {
        let wire::CreateNamespaceRequest { namespace, preset } = request.into_inner();
        let created = self.alba.create_namespace_with(&namespace, preset.as_deref()).await?;
        Ok(Response::new(wire::CreateNamespaceResponse { created }))
    }

    async fn delete_namespace(
        &self,
        request: Request<wire::DeleteNamespaceRequest>,
    ) -> Result<Response<wire::DeleteNamespaceResponse>, Status> {
        let deleted = self.alba.delete_namespace(&request.into_inner().namespace).await?;
        Ok(Response::new(wire::DeleteNamespaceResponse { deleted }))
    }

    async fn list_namespaces(
        &self,
        request: Request<wire::ListNamespacesRequest>,
    ) -> Result<Response<wire::ListNamespacesResponse>, Status> {
        let wire::ListNamespacesRequest { prefix, after, limit } = request.into_inner();
        let page = self.alba.list_namespaces(&prefix, &after, as_limit(limit)).await?;
        let (namespaces, more) = (page.names, page.more);
        Ok(Response::new(wire::ListNamespacesResponse { namespaces, more }))
    }

    async fn put(
        &self,
        _request: Request<Streaming<wire::PutRequest>>,
    ) -> Result<Response<wire::PutResponse>, Status> {
        Err(Status::internal("puts are taken as their bytes come"))
    }

    type GetRangeStream = RangeChunks;

    async fn get_range(
        &self,
        request: Request<wire::GetRangeRequest>,
    ) -> Result<Response<RangeChunks>, Status> {
        let wire::GetRangeRequest { namespace, name, offset, len } = request.into_inner();
        let found = self.alba.open_object(&namespace, &name).await?;
        let reader = found.ok_or_else(|| no_object(&namespace, &name))?;
        let len = reader.check_range(offset, len)?;
        Ok(Response::new(chunks(reader, offset, len)))
    }

    async fn head(
        &self,
        request: Request<wire::HeadRequest>,
    ) -> Result<Response<wire::HeadResponse>, Status> {
        let wire::HeadRequest { namespace, name } = request.into_inner();
        let found = self.alba.head(&namespace, &name).await?;
        let manifest = found.ok_or_else(|| no_object(&namespace, &name))?;
        Ok(Response::new(wire::HeadResponse { info: Some(info(&manifest)) }))
    }

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListResponse>, Status> {
        let wire::ListRequest { namespace, prefix, after, limit } = request.into_inner();
        let page = self.alba.list(&namespace, &prefix, &after, as_limit(limit)).await?;
        Ok(Response::new(wire::ListResponse { names: page.names, more: page.more }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteRequest>,
    ) -> Result<Response<wire::DeleteResponse>, Status> {
        let wire::DeleteRequest { namespace, name } = request.into_inner();
        let deleted = self.alba.delete(&namespace, &name).await?;
        Ok(Response::new(wire::DeleteResponse { deleted }))
    }

    async fn apply_sequence(
        &self,
        request: Request<wire::ApplySequenceRequest>,
    ) -> Result<Response<wire::ApplySequenceResponse>, Status> {
        let wire::ApplySequenceRequest { namespace, asserts, updates } = request.into_inner();
        let asserts = asserts.into_iter().map(as_assert).collect::<Result<_, Status>>()?;
        let updates = updates.into_iter().map(as_update).collect::<Result<_, Status>>()?;
        self.alba.apply_sequence(&namespace, asserts, updates).await?;
        Ok(Response::new(wire::ApplySequenceResponse {}))
    }

    async fn status(
        &self,
        _request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let status = self.alba.status().await?;
        Ok(Response::new(wire::StatusResponse {
            alba_id: status.id.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            capacity_bytes: status.capacity_bytes(),
            used_bytes: status.used_bytes(),
            namespaces: status.namespaces,
            objects: status.objects,
            object_bytes: status.object_bytes,
            osds: status.osds.into_iter().map(osd).collect(),
        }))
    }
}

/// The range in chunks that end where a block of the object does, each read while the one before it is sent.
fn chunks(reader: Reader, offset: u64, len: u64) -> RangeChunks {
    let first = wire::GetRangeResponse { info: Some(info(&reader.manifest)), chunk: Bytes::new() };
    let end = offset + len;
    let reader = std::sync::Arc::new(reader);
    let starts = stream::iter(ChunkStarts { at: offset, end });
    let read = move |(from, to): (u64, u64)| {
        let reader = reader.clone();
        async move {
            let chunk = reader.read(from, to - from).await?;
            Ok(wire::GetRangeResponse { info: None, chunk })
        }
    };
    // The first error ends the stream for tonic.
    Box::pin(stream::once(async move { Ok(first) }).chain(starts.map(read).buffered(2)))
}

/// From a chunk's start to its end.
struct ChunkStarts {
    at: u64,
    end: u64,
}

impl Iterator for ChunkStarts {
    type Item = (u64, u64);
    fn next(&mut self) -> Option<(u64, u64)> {
        let from = self.at;
        self.at = (from - from % CHUNK_BYTES + CHUNK_BYTES).min(self.end);
        (from < self.end).then_some((from, self.at))
    }
}

fn as_limit(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn no_object(namespace: &str, name: &str) -> Status {
    Status::not_found(format!("there is no object {name:?} in namespace {namespace:?}"))
}

fn info(manifest: &Manifest) -> wire::ObjectInfo {
    let Manifest { len, crc, created_ms, .. } = *manifest;
    wire::ObjectInfo { len, crc32: crc, created_ms }
}

fn as_assert(assert: wire::Assert) -> Result<(String, Condition), Status> {
    let condition = match assert.condition {
        Some(wire::assert::Condition::Exists(_)) => Condition::Exists,
        Some(wire::assert::Condition::Absent(_)) => Condition::Absent,
        Some(wire::assert::Condition::HasCrc32(crc)) => Condition::HasCrc(crc),
        None => return Err(Status::invalid_argument("an assert without a condition")),
    };
    Ok((assert.name, condition))
}

fn as_update(update: wire::Update) -> Result<(String, Update), Status> {
    let change = match update.change {
        Some(wire::update::Change::Put(value)) => Update::Put(value),
        Some(wire::update::Change::Remove(_)) => Update::Delete,
        None => return Err(Status::invalid_argument("an update without a change")),
    };
    Ok((update.name, change))
}

fn osd(osd: OsdStatus) -> wire::Osd {
    let state = match osd.state {
        OsdState::Ready => wire::OsdState::Ready,
        OsdState::Full => wire::OsdState::Full,
        OsdState::Absent => wire::OsdState::Absent,
        OsdState::Failing => wire::OsdState::Failing,
    };
    wire::Osd {
        osd_id: osd.id.to_string(),
        path: osd.path.to_string_lossy().into_owned(),
        state: state.into(),
        capacity_bytes: osd.capacity_bytes,
        used_bytes: osd.used_bytes,
        reason: osd.reason,
        node: osd.node,
        labels: osd.labels,
        role: role(osd.role).into(),
    }
}

fn role(role: OsdRole) -> wire::OsdRole {
    match role {
        OsdRole::Active => wire::OsdRole::Active,
        OsdRole::Disabled => wire::OsdRole::Disabled,
        OsdRole::Decommissioning => wire::OsdRole::Decommissioning,
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let code = match fault.kind {
            Kind::Invalid => tonic::Code::InvalidArgument,
            Kind::NotFound => tonic::Code::NotFound,
            Kind::AssertFailed => tonic::Code::FailedPrecondition,
            Kind::NoSpace => tonic::Code::ResourceExhausted,
            Kind::Outdated | Kind::Unavailable => tonic::Code::Unavailable,
            Kind::Corrupt => tonic::Code::DataLoss,
            Kind::Bug => tonic::Code::Internal,
        };
        Self::new(code, fault.to_string())
    }
}

#[cfg(test)]
mod tests;
