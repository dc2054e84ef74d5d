//! One connection from its first byte to its last: handshake, TLS if the client starts it, transmission phase.

use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::wire::nbd::{Agreed, Catalog, Description, Handshake, Next, TlsPolicy};

use super::budget::Claim;
use super::inbox::Inbox;
use super::stats::add;
use super::transmission::{Ending, Transmission};
use super::{Export, Exports, Server, SessionStats};

/// For telling a client that there is no place for it.
const TURN_AWAY: Duration = Duration::from_secs(3);

/// How the handshake ended.
enum Outcome<E> {
    Transmit(Agreed, E, Inbox),
    /// The handshake goes on once TLS is set up.
    StartTls(Handshake),
    Closed(Option<&'static str>),
}

/// Serves one connection to its end.
pub(super) async fn run<S, X>(mut stream: S, server: Rc<Server<X>>, shutdown: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    X: Exports,
{
    let deadline = Instant::now() + server.limits.handshake;
    let talk = Talk { server: &server, shutdown, deadline };
    let handshake = Handshake::new(server.tls.policy());
    let first = talk.within(async {
        stream.write_all(&Handshake::greeting()).await?;
        negotiate(&mut stream, handshake, &Listing(&server.exports)).await
    });
    match first.await {
        Some(Outcome::StartTls(handshake)) => talk.over_tls(stream, handshake).await,
        Some(outcome) => talk.conclude(stream, outcome).await,
        None => {}
    }
}

/// Tells a client that there is no place for it, as far as the protocol can, and closes.
pub(super) async fn turn_away<S, X>(mut stream: S, server: &Server<X>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let told = async {
        stream.write_all(&Handshake::greeting()).await?;
        // Whatever it asks for, there is none.
        let full = Full(server.limits.connections);
        negotiate(&mut stream, Handshake::new(TlsPolicy::Off), &full).await.map(drop)
    };
    // Best effort.
    let _ = tokio::time::timeout(TURN_AWAY, told).await;
}

/// No exports, because the server has as many connections as it may.
struct Full(usize);

impl Catalog for Full {
    type Export = std::convert::Infallible;

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn find(&self, _name: &str) -> Result<(Description, Self::Export)> {
        Err(Fault::no_space(format!(
            "this server has {} connections and takes no more; [nbd] connections_count bounds them",
            self.0
        )))
    }
}

/// A connection, apart from its stream.
struct Talk<'a, X> {
    server: &'a Server<X>,
    shutdown: watch::Receiver<bool>,
    /// For the whole of the handshake.
    deadline: Instant,
}

impl<X: Exports> Talk<'_, X> {
    /// A part of the handshake; `None`: it failed or took too long, and the connection is to be closed.
    async fn within<T>(&self, part: impl Future<Output = io::Result<T>>) -> Option<T> {
        let mut stop = self.shutdown.clone();
        let outcome = tokio::select! {
            outcome = tokio::time::timeout_at(self.deadline, part) => outcome,
            _ = stop.wait_for(|down| *down) => return None,
        };
        match outcome {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => tracing::debug!(%error, "NBD connection lost in the handshake"),
            Err(_) => tracing::info!("NBD handshake took too long; connection closed"),
        }
        add(&self.server.stats.handshakes_failed, 1);
        None
    }

    async fn over_tls<S>(self, stream: S, handshake: Handshake)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(acceptor) = self.server.tls.acceptor() else { return };
        let Some(mut stream) = self.within(acceptor.accept(stream)).await else { return };
        let listing = Listing(&self.server.exports);
        let rest = negotiate(&mut stream, handshake.secured(), &listing);
        if let Some(outcome) = self.within(rest).await {
            self.conclude(stream, outcome).await;
        }
    }

    async fn conclude<S>(mut self, mut stream: S, outcome: Outcome<X::Export>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stats = &*self.server.stats;
        match outcome {
            Outcome::Transmit(agreed, export, inbox) => {
                let claim = Claim::new(Rc::clone(&self.server.budget));
                let shared = (&self.server.limits, stats, claim);
                let transmission = Transmission::new(&mut stream, export, agreed, inbox, shared);
                let ending = transmission.run(&mut self.shutdown).await;
                log(&ending, stats);
            }
            Outcome::Closed(why) => {
                add(&stats.handshakes_failed, 1);
                if let Some(why) = why {
                    add(&stats.protocol_errors, 1);
                    tracing::info!(why, "NBD handshake ended");
                }
            }
            // A handshake over TLS answers a second start with an error.
            Outcome::StartTls(_) => {}
        }
        // Ends TLS if it runs. Best effort: the peer may be gone already.
        let _ = tokio::time::timeout(self.server.limits.drain, stream.shutdown()).await;
    }
}

fn log(ending: &Ending, stats: &SessionStats) {
    match ending {
        Ending::Clean => tracing::debug!("NBD client disconnected"),
        Ending::Broken(why) => {
            add(&stats.protocol_errors, 1);
            tracing::warn!(why, "NBD client broke the protocol; connection closed");
        }
        Ending::Lost(error) => tracing::debug!(%error, "NBD connection lost"),
        Ending::Unfinished => {
            tracing::warn!("NBD connection closed with requests still in flight");
        }
        Ending::Stalled => {
            add(&stats.stalled, 1);
            tracing::warn!(
                "NBD client closed: others waited for memory that it held, and it neither sent what it announced \
                 nor read what it asked for"
            );
        }
    }
}

async fn negotiate<S, C>(
    stream: &mut S,
    mut handshake: Handshake,
    catalog: &C,
) -> io::Result<Outcome<C::Export>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    C: Catalog,
{
    let mut inbox = Inbox::new();
    let mut out = Vec::new();
    loop {
        let step = handshake.advance(inbox.window(), catalog, &mut out);
        inbox.consume(step.used);
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        match step.next {
            Next::More if step.used > 0 => {}
            Next::More => {
                inbox.make_room(inbox.window().len() + 1);
                if poll_fn(|cx| inbox.poll_fill(stream, cx)).await? == 0 {
                    return Ok(Outcome::Closed(None));
                }
            }
            Next::Transmit(agreed, export) => {
                inbox.shrink();
                return Ok(Outcome::Transmit(agreed, export, inbox));
            }
            // What came in the clear must not be taken for something said over TLS.
            Next::StartTls if !inbox.is_empty() => {
                return Ok(Outcome::Closed(Some("bytes in the clear after starting TLS")));
            }
            Next::StartTls => return Ok(Outcome::StartTls(handshake)),
            Next::Close(why) => return Ok(Outcome::Closed(why)),
        }
    }
}

/// The exports as the handshake asks for them.
struct Listing<'a, X>(&'a X);

impl<X: Exports> Catalog for Listing<'_, X> {
    type Export = X::Export;

    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn find(&self, name: &str) -> Result<(Description, X::Export)> {
        let export = self.0.find(name)?;
        let info = export.info();
        let description = Description {
            name: info.name,
            size: info.size.0,
            preferred_block: info.preferred_block,
            read_only: info.read_only,
        };
        Ok((description, export))
    }
}
