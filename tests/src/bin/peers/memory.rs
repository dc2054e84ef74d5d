//! Servers whose objects are computed from their names: they keep the names and nothing else.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response as Answer};
use axum::routing::get;
use backend_alba::bench::Known;
use backend_alba::server::{Address, Bulk, Chunks, Item, Receiver, Server, TakesPuts};
use backend_alba::{Fault, Result};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use volumedriver_proto::alba as wire;
use wire::alba_server::Alba;

use super::len_of;

#[derive(Clone, Default)]
struct Memory {
    known: Known,
    names: Arc<Mutex<BTreeSet<String>>>,
}

impl Memory {
    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn names_with(&self, prefix: &str, after: &str) -> Vec<String> {
        let names = self.names();
        let fits = |name: &&String| name.starts_with(prefix) && name.as_str() > after;
        names.iter().filter(fits).cloned().collect()
    }
}

pub async fn serve_grpc(address: &Address) -> Result<()> {
    let server = Server::bind(address, None).await?;
    super::announce(server.address());
    let alba = Bulk::new(Memory::default());
    server.serve(tonic::service::Routes::new(alba), std::future::pending()).await
}

type RangeChunks = Pin<Box<dyn Stream<Item = Result<wire::GetRangeResponse, Status>> + Send>>;
type Answered<T> = Result<Response<T>, Status>;

fn not_here<T>() -> Answered<T> {
    Err(Status::unimplemented("not in memory"))
}

#[tonic::async_trait]
impl Alba for Memory {
    async fn create_namespace(
        &self,
        _: Request<wire::CreateNamespaceRequest>,
    ) -> Answered<wire::CreateNamespaceResponse> {
        Ok(Response::new(wire::CreateNamespaceResponse { created: true }))
    }
    async fn delete_namespace(
        &self,
        _: Request<wire::DeleteNamespaceRequest>,
    ) -> Answered<wire::DeleteNamespaceResponse> {
        self.names().clear();
        Ok(Response::new(wire::DeleteNamespaceResponse { deleted: true }))
    }
    async fn list_namespaces(
        &self,
        _: Request<wire::ListNamespacesRequest>,
    ) -> Answered<wire::ListNamespacesResponse> {
        not_here()
    }
    async fn put(&self, _: Request<Streaming<wire::PutRequest>>) -> Answered<wire::PutResponse> {
        not_here()
    }
    type GetRangeStream = RangeChunks;
    async fn get_range(&self, request: Request<wire::GetRangeRequest>) -> Answered<RangeChunks> {
        let wire::GetRangeRequest { name, offset, len, .. } = request.into_inner();
        let whole = len_of(&name)?;
        let body = self.known.range(&name, offset, len.unwrap_or(whole));
        let info = Some(wire::ObjectInfo { len: whole, crc32: 0, created_ms: 0 });
        let first = wire::GetRangeResponse { info, chunk: Bytes::new() };
        let chunks = Chunks::of(body).map(|chunk| wire::GetRangeResponse { info: None, chunk });
        let messages = std::iter::once(first).chain(chunks);
        Ok(Response::new(Box::pin(stream::iter(messages.map(Ok)))))
    }
    async fn head(&self, _: Request<wire::HeadRequest>) -> Answered<wire::HeadResponse> {
        not_here()
    }
    async fn list(&self, request: Request<wire::ListRequest>) -> Answered<wire::ListResponse> {
        let wire::ListRequest { prefix, after, .. } = request.into_inner();
        let names = self.names_with(&prefix, &after);
        Ok(Response::new(wire::ListResponse { names, more: false }))
    }
    async fn delete(
        &self,
        request: Request<wire::DeleteRequest>,
    ) -> Answered<wire::DeleteResponse> {
        let deleted = self.names().remove(&request.into_inner().name);
        Ok(Response::new(wire::DeleteResponse { deleted }))
    }
    async fn apply_sequence(
        &self,
        _: Request<wire::ApplySequenceRequest>,
    ) -> Answered<wire::ApplySequenceResponse> {
        not_here()
    }
    async fn status(&self, _: Request<wire::StatusRequest>) -> Answered<wire::StatusResponse> {
        not_here()
    }
}

#[tonic::async_trait]
impl TakesPuts for Memory {
    async fn take(
        &self,
        mut parts: Receiver<wire::PutRequest>,
    ) -> Result<wire::PutOutcome, Status> {
        while let Some(part) = parts.next().await? {
            if let Item::Message(wire::PutRequest { part: Some(part) }) = part
                && let wire::put_request::Part::Header(header) = part
            {
                self.names().insert(header.name);
            }
        }
        Ok(wire::PutOutcome::Created)
    }
}

/// As much of S3 as the client asks for; signatures are not looked at.
pub async fn serve_s3(address: &Address) -> Result<()> {
    let Address::Tcp(text) = address else { return Err(Fault::invalid("S3 is over TCP")) };
    let io = |e| Fault::io(format!("cannot listen on {address}"), e);
    let listener = tokio::net::TcpListener::bind(text).await.map_err(io)?;
    super::announce(&listener.local_addr().map_err(io)?);
    let objects = get(get_object).put(put_object).delete(delete_object);
    let routes = Router::new()
        .route("/{bucket}", get(list_objects))
        .route("/{bucket}/", get(list_objects))
        .route("/{bucket}/{*key}", objects)
        .with_state(Memory::default());
    axum::serve(listener, routes).await.map_err(io)
}

/// The name of the object is the last part of its key.
fn name_in(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

async fn put_object(
    State(memory): State<Memory>,
    Path((_, key)): Path<(String, String)>,
    body: Body,
) -> StatusCode {
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        if piece.is_err() {
            return StatusCode::BAD_REQUEST;
        }
    }
    memory.names().insert(key);
    StatusCode::OK
}

async fn get_object(
    State(memory): State<Memory>,
    Path((_, key)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    let name = name_in(&key);
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let numbers = range.and_then(|(a, b)| Some((a.parse::<u64>().ok()?, b.parse::<u64>().ok()?)));
    let (Some((first, last)), Ok(whole)) = (numbers, len_of(name)) else {
        // The marker of the namespace.
        return if memory.names().contains(&key) { StatusCode::OK } else { StatusCode::NOT_FOUND }
            .into_response();
    };
    let pieces = memory.known.range(name, first, last + 1 - first);
    let body = Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Fault>)));
    let headers = [
        (header::CONTENT_RANGE, format!("bytes {first}-{last}/{whole}")),
        (header::CONTENT_LENGTH, (last + 1 - first).to_string()),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, body).into_response()
}

async fn delete_object(
    State(memory): State<Memory>,
    Path((_, key)): Path<(String, String)>,
) -> StatusCode {
    memory.names().remove(&key);
    StatusCode::NO_CONTENT
}

async fn list_objects(State(memory): State<Memory>, RawQuery(query): RawQuery) -> String {
    let query = query.unwrap_or_default();
    let field = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(found, _)| *found == name).map_or("", |(_, value)| value).replace("%2F", "/")
    };
    let keys = memory.names_with(&field("prefix"), &field("start-after"));
    let listed = |key: &String| format!("<Contents><Key>{key}</Key></Contents>");
    let contents: String = keys.iter().map(listed).collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>")
}
