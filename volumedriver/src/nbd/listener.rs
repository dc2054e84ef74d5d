//! Accepting connections on a unix socket or a TCP port, and shutting down.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use volumedriver_core::fault::{Fault, Result};

use super::stats::add;
use super::{Exports, Server, session};

/// Wait before accepting again after an error such as running out of file descriptors.
const RETRY: Duration = Duration::from_millis(100);
/// What sessions may take beyond their own bounds when the server shuts down.
const GRACE: Duration = Duration::from_secs(1);

/// A place where clients connect. Its unix socket file is removed when it is dropped.
pub struct Listener {
    socket: Socket,
    name: String,
}

enum Socket {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on a unix socket, replacing the socket file of a server that is gone. `Invalid`: a server is alive there, or
    /// the path is something else than a socket.
    pub fn unix(path: &Path) -> Result<Self> {
        let name = format!("unix:{}", path.display());
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path).and_then(|()| UnixListener::bind(path).map_err(cannot))
            }
            bound => bound.map_err(cannot),
        };
        let socket = socket.map_err(|fault| fault.about(format!("NBD listener {name}")))?;
        Ok(Self { socket: Socket::Unix(socket, path.to_path_buf()), name })
    }

    /// Listens on a TCP address.
    pub async fn tcp(address: SocketAddr) -> Result<Self> {
        let socket = TcpListener::bind(address).await.map_err(cannot);
        let socket = socket.map_err(|fault| fault.about(format!("NBD listener {address}")))?;
        let name = socket.local_addr().unwrap_or(address).to_string();
        Ok(Self { socket: Socket::Tcp(socket), name })
    }

    /// `unix:PATH`, or the TCP address with the port actually taken.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            // Still listening, so the file cannot yet be another server's. If it is gone already, all the better.
            let _ = std::fs::remove_file(path);
        }
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

fn cannot(error: io::Error) -> Fault {
    Fault::invalid("cannot listen").because(error)
}

fn remove_stale(path: &Path) -> Result<()> {
    let kind = std::fs::symlink_metadata(path).map_err(cannot)?.file_type();
    if !kind.is_socket() {
        return Err(Fault::invalid(
            "the path exists and is not a socket; remove it or choose another",
        ));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(cannot)
        }
        Ok(_) => {
            Err(Fault::invalid("another server is listening there; stop it or choose another path"))
        }
        Err(error) => Err(cannot(error)),
    }
}

/// Accepts and serves connections until `shutdown` becomes true; then finishes the requests in flight within
/// `limits.drain`, and closes. To be awaited inside a `LocalSet`.
pub async fn serve<X: Exports>(
    listener: Listener,
    server: Rc<Server<X>>,
    shutdown: watch::Receiver<bool>,
) {
    let mut sessions = JoinSet::new();
    let mut stop = shutdown.clone();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|down| *down) => break,
            Some(_) = sessions.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(stream) => admit(stream, &server, &shutdown, &mut sessions),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(listener = listener.name, %error, "cannot accept; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
    drop(listener);
    let all = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(server.limits.drain + GRACE, all).await.is_err() {
        tracing::warn!("NBD sessions did not end in time");
    }
}

fn admit<X: Exports>(
    stream: Stream,
    server: &Rc<Server<X>>,
    shutdown: &watch::Receiver<bool>,
    sessions: &mut JoinSet<()>,
) {
    if server.stats.connections.get() >= server.limits.connections as u64 {
        add(&server.stats.turned_away, 1);
        tracing::warn!(limit = server.limits.connections, "NBD connection turned away");
        return;
    }
    add(&server.stats.accepted, 1);
    let place = Place::take(server);
    let (server, shutdown) = (Rc::clone(server), shutdown.clone());
    match stream {
        Stream::Unix(stream) => sessions.spawn_local(hold(place, stream, server, shutdown)),
        Stream::Tcp(stream) => sessions.spawn_local(hold(place, stream, server, shutdown)),
    };
}

/// Serves the connection while it counts against the ceiling.
async fn hold<S, X>(
    _place: Place<X>,
    stream: S,
    server: Rc<Server<X>>,
    shutdown: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    X: Exports,
{
    session::run(stream, server, shutdown).await;
}

/// One of the connections the server may hold.
struct Place<X>(Rc<Server<X>>);

impl<X> Place<X> {
    fn take(server: &Rc<Server<X>>) -> Self {
        add(&server.stats.connections, 1);
        Self(Rc::clone(server))
    }
}

impl<X> Drop for Place<X> {
    fn drop(&mut self) {
        let connections = &self.0.stats.connections;
        connections.set(connections.get().saturating_sub(1));
    }
}
