//! Where a server listens and how a client reaches it: TCP or a unix socket, tuned for streams of 1 MiB chunks. TCP is plain,
//! or TLS with certificates on both sides.

pub mod bulk;
mod chunks;
mod tls;

use std::fmt;
use std::future::Future;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::fault::{Fault, Result};

pub use chunks::{CHUNK_BYTES, Chunks, Gathered};
pub use tls::{Tls, TlsFiles, explain};

/// Longest message either side takes: a chunk or a page of names, with room for the framing.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const FRAME_BYTES: u32 = 1 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests of one connection at once.
const MAX_STREAMS: u32 = 256;

/// `HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Fault::invalid(format!("address {text:?} is neither HOST:PORT nor unix:PATH"));
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(bad()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        Ok(Self::Tcp(text.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound socket that does not answer yet.
pub struct Server {
    listener: Listener,
    address: Address,
    tls: Option<Tls>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Server {
    /// With TLS, clients over TCP must show a certificate; unix sockets are plain in any case.
    pub async fn bind(address: &Address, tls: Option<Tls>) -> Result<Self> {
        let io = |e| Fault::io(format!("cannot listen on {address}"), e);
        match address {
            Address::Tcp(text) => {
                let listener = TcpListener::bind(text).await.map_err(io)?;
                let address = Address::Tcp(listener.local_addr().map_err(io)?.to_string());
                Ok(Self { listener: Listener::Tcp(listener), address, tls })
            }
            Address::Unix(path) => {
                make_way(path).await?;
                let listener = UnixListener::bind(path).map_err(io)?;
                let (listener, address) = (Listener::Unix(listener), address.clone());
                Ok(Self { listener, address, tls: None })
            }
        }
    }

    /// What was bound: with the port the system chose, if it was asked to.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves until `stop`, then finishes what is in flight.
    pub async fn serve(self, routes: Routes, stop: impl Future<Output = ()> + Send) -> Result<()> {
        let mut builder = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(MAX_STREAMS)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
        if let Some(tls) = &self.tls {
            builder = tls.serve(builder)?;
        }
        let router = builder.add_routes(routes);
        let served = match self.listener {
            Listener::Tcp(listener) => {
                let incoming = TcpListenerStream::new(listener);
                let incoming = tokio_stream::StreamExt::map(incoming, without_delay);
                router.serve_with_incoming_shutdown(incoming, stop).await
            }
            Listener::Unix(listener) => {
                router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop).await
            }
        };
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
        served
            .map_err(|e| Fault { source: Some(Box::new(e)), ..Fault::unavailable("serving ended") })
    }
}

fn without_delay(
    socket: std::io::Result<tokio::net::TcpStream>,
) -> std::io::Result<tokio::net::TcpStream> {
    socket.inspect(|socket| {
        // A socket without it is slower, not wrong.
        let _ = socket.set_nodelay(true);
    })
}

/// Removes a socket nobody listens on any more; refuses anything else.
async fn make_way(path: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let taken =
        |why: &str| Fault::invalid(format!("cannot listen on unix:{}: {why}", path.display()));
    if !found.file_type().is_socket() {
        return Err(taken("something that is no socket has this name"));
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(taken("another process listens on it"));
    }
    std::fs::remove_file(path)
        .map_err(|e| Fault::io(format!("cannot remove {}", path.display()), e))
}

/// A channel that connects when first used and again whenever the connection is lost. Over TCP it is TLS if that is given.
pub fn endpoint(address: &Address, tls: Option<&Tls>) -> Result<Channel> {
    let uri = match address {
        Address::Tcp(text) if tls.is_some() => format!("https://{text}"),
        Address::Tcp(text) => format!("http://{text}"),
        // Never resolved: the connector below knows the path.
        Address::Unix(_) => "http://alba.unix".to_string(),
    };
    let bad =
        |e| Fault { source: Some(Box::new(e)), ..Fault::invalid(format!("address {address}")) };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(bad)?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let Address::Unix(path) = address.clone() else {
        let endpoint = match tls {
            Some(tls) => tls.connect(endpoint)?,
            None => endpoint,
        };
        return Ok(endpoint.connect_lazy());
    };
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    })))
}
