//! The service with its streams of bytes taken and sent by [`bulk`], and all else by the generated code.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::{Request, Status};
use volumedriver_proto::alba as wire;
use wire::alba_server::{Alba as Service, AlbaServer};

use crate::net::MAX_MESSAGE_BYTES;
use crate::net::bulk::{self, GET_RANGE, Item, PUT, Part, Receiver};

/// What takes puts as their bytes come; its `put` of the generated trait is not called.
#[tonic::async_trait]
pub trait TakesPuts: Service {
    async fn take(&self, parts: Receiver<wire::PutRequest>) -> Result<wire::PutOutcome, Status>;
}

/// Methods that are taken here and not by the generated code.
pub trait Streams: Sized + Send + Sync + 'static {
    /// What answers the method of this path, if it is such a one.
    fn method(path: &str) -> Option<Method<Self>>;
}

pub type Method<S> = fn(Arc<S>, http::Request<Body>) -> Answering;

/// An answer to come.
pub type Answering = BoxFuture<'static, Result<http::Response<Body>, Status>>;

/// The service: what it takes itself, then the generated code.
pub struct Bulk<S, G = AlbaServer<S>> {
    service: Arc<S>,
    generated: G,
}

impl<S, G: Clone> Clone for Bulk<S, G> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), generated: self.generated.clone() }
    }
}

impl<S: TakesPuts> Bulk<S> {
    pub fn new(service: S) -> Self {
        let service = Arc::new(service);
        let generated = AlbaServer::from_arc(service.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { service, generated }
    }
}

impl<S, G> Bulk<S, G> {
    pub(super) fn before(generated: G, service: Arc<S>) -> Self {
        Self { service, generated }
    }
}

impl<S, G: NamedService> NamedService for Bulk<S, G> {
    const NAME: &'static str = G::NAME;
}

type Answer = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

impl<S, G> tower::Service<http::Request<Body>> for Bulk<S, G>
where
    S: Streams,
    G: tower::Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = Answer,
        >,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(method) = S::method(request.uri().path()) else {
            return self.generated.call(request);
        };
        let answering = method(self.service.clone(), request);
        Box::pin(async move { Ok(answering.await.unwrap_or_else(Status::into_http)) })
    }
}

impl<S: TakesPuts> Streams for S {
    fn method(path: &str) -> Option<Method<Self>> {
        match path {
            PUT => Some(|service, request| Box::pin(async move { put(&*service, request).await })),
            GET_RANGE => Some(|service, request| {
                Box::pin(async move { get_range(&*service, request).await })
            }),
            _ => None,
        }
    }
}

async fn put(
    service: &impl TakesPuts,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let outcome = service.take(Receiver::of_request(request.into_body())).await?;
    let answer = wire::PutResponse { outcome: outcome.into() };
    Ok(bulk::answer(stream::iter([Ok(Part::Message(answer))])))
}

async fn get_range<S: TakesPuts>(
    service: &S,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let asked = Receiver::<wire::GetRangeRequest>::of_request(request.into_body()).only().await?;
    let chunks = service.get_range(Request::new(asked)).await?.into_inner();
    let as_part = |message: wire::GetRangeResponse| match message {
        wire::GetRangeResponse { info: None, chunk } => Part::Chunk(chunk),
        message => Part::Message(message),
    };
    Ok(bulk::answer(chunks.map(move |message| message.map(as_part))))
}

/// One part of a put.
pub(super) enum PutPart {
    Header(wire::PutHeader),
    /// Any bytes of a chunk.
    Bytes(Bytes),
    Crc32(u32),
}

/// The next part of a put. A chunk that comes here as a message is not one of the contract's, or comes with what is not.
pub(super) async fn next_part(
    parts: &mut Receiver<wire::PutRequest>,
) -> Result<Option<PutPart>, Status> {
    let part = match parts.next().await? {
        None => return Ok(None),
        Some(Item::Bytes(bytes)) => return Ok(Some(PutPart::Bytes(bytes))),
        Some(Item::Message(message)) => message.part,
    };
    match part {
        Some(wire::put_request::Part::Header(header)) => Ok(Some(PutPart::Header(header))),
        Some(wire::put_request::Part::Chunk(chunk)) => {
            let (size, most) = (chunk.len(), super::CHUNK_BYTES);
            if size as u64 > most {
                let message = format!("a chunk of {size} bytes, at most {most} are legal");
                return Err(Status::invalid_argument(message));
            }
            // It came with fields that nobody knows: those need not stay in memory.
            Ok(Some(PutPart::Bytes(Bytes::copy_from_slice(&chunk))))
        }
        Some(wire::put_request::Part::Crc32(crc)) => Ok(Some(PutPart::Crc32(crc))),
        None => Err(Status::invalid_argument("a put message with nothing in it")),
    }
}
