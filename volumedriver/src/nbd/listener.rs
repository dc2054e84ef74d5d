//! Accepting connections on a unix socket or a TCP port, and shutting down.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use volumedriver_core::fault::{Fault, Result};

use super::stats::add;
use super::{Exports, Server, session};

/// Wait before accepting again after an error such as running out of file descriptors: doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Clients that are being told that there is no place for them; more are closed without a word.
const TURNING_AWAY: u64 = 32;
/// A TCP peer that has said nothing for so long is asked whether it is there, this often, so many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 6);
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
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = tune(&stream) {
                    // It has closed already; the session will notice.
                    tracing::debug!(%peer, %error, "options of an NBD connection cannot be set");
                }
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
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Without keep-alive a connection whose peer lost power or its network would stay forever.
fn tune(stream: &TcpStream) -> io::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, count)?;
    Ok(())
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
    let mut trouble = Trouble::default();
    loop {
        let accepted = async {
            trouble.wait().await;
            listener.accept().await
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|down| *down) => break,
            Some(_) = sessions.join_next() => {}
            accepted = accepted => match accepted {
                Ok(stream) => {
                    trouble.end(&listener.name);
                    admit(stream, &server, &shutdown, &mut sessions);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => trouble.count(&listener.name, &error),
            }
        }
    }
    drop(listener);
    let all = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(server.limits.drain + GRACE, all).await.is_err() {
        tracing::warn!("NBD sessions did not end in time");
    }
}

/// Errors of accepting, one after the other. Who connects meanwhile waits in the socket's queue.
#[derive(Default)]
struct Trouble {
    errors: u32,
    /// When to accept again.
    until: Option<Instant>,
}

impl Trouble {
    async fn wait(&self) {
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Said once, not at every attempt.
    fn count(&mut self, listener: &str, error: &io::Error) {
        if self.errors == 0 {
            tracing::warn!(
                listener,
                %error,
                "new NBD connections cannot be accepted; they wait, the others go on"
            );
        }
        self.until = Some(Instant::now() + self.pause());
        self.errors = self.errors.saturating_add(1);
    }

    fn pause(&self) -> Duration {
        let (first, longest) = RETRY;
        first.saturating_mul(1 << self.errors.min(16)).min(longest)
    }

    fn end(&mut self, listener: &str) {
        if std::mem::take(self).errors > 0 {
            tracing::info!(listener, "NBD connections are accepted again");
        }
    }
}

fn admit<X: Exports>(
    stream: Stream,
    server: &Rc<Server<X>>,
    shutdown: &watch::Receiver<bool>,
    sessions: &mut JoinSet<()>,
) {
    if server.stats.connections.get() >= server.limits.connections as u64 {
        return turn_away(stream, server, sessions);
    }
    add(&server.stats.accepted, 1);
    let place = Place::take(server);
    let (server, shutdown) = (Rc::clone(server), shutdown.clone());
    match stream {
        Stream::Unix(stream) => sessions.spawn_local(hold(place, stream, server, shutdown)),
        Stream::Tcp(stream) => sessions.spawn_local(hold(place, stream, server, shutdown)),
    };
}

fn turn_away<X: Exports>(stream: Stream, server: &Rc<Server<X>>, sessions: &mut JoinSet<()>) {
    let stats = &server.stats;
    add(&stats.turned_away, 1);
    if stats.turning_away.get() >= TURNING_AWAY {
        return;
    }
    tracing::warn!(limit = server.limits.connections, "NBD connection turned away");
    add(&stats.turning_away, 1);
    let server = Rc::clone(server);
    sessions.spawn_local(async move {
        match stream {
            Stream::Unix(stream) => session::turn_away(stream, &server).await,
            Stream::Tcp(stream) => session::turn_away(stream, &server).await,
        }
        let turning_away = &server.stats.turning_away;
        turning_away.set(turning_away.get().saturating_sub(1));
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tcp_peer_that_vanished_is_noticed() {
        let listener = Listener::tcp("127.0.0.1:0".parse().expect("an address")).await;
        let listener = listener.expect("listening");
        let _peer = TcpStream::connect(listener.name()).await.expect("connected");
        let Ok(Stream::Tcp(stream)) = listener.accept().await else { panic!("not accepted") };
        let (idle, interval, count) = KEEPALIVE;
        assert_eq!(sockopt::socket_keepalive(&stream), Ok(true));
        assert_eq!(sockopt::tcp_keepidle(&stream), Ok(idle));
        assert_eq!(sockopt::tcp_keepintvl(&stream), Ok(interval));
        assert_eq!(sockopt::tcp_keepcnt(&stream), Ok(count));
        assert_eq!(stream.nodelay().ok(), Some(true));
    }

    #[test]
    fn accepting_is_tried_again_ever_more_seldom() {
        let error = io::Error::from_raw_os_error(24);
        let mut trouble = Trouble::default();
        for pause in [20, 40, 80, 160, 320, 640, 1000, 1000, 1000] {
            assert_eq!(trouble.pause(), Duration::from_millis(pause));
            trouble.count("here", &error);
        }
        trouble.end("here");
        assert_eq!(trouble.pause(), Duration::from_millis(20));
    }
}
