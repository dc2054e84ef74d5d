//! NBD sessions: socket <-> `core::wire::nbd` <-> [`shard::Handle`](crate::shard::Handle).
//!
//! One task per connection on the shard's own thread; no locks. [`serve`] accepts on one [`Listener`]; a [`Server`] is
//! shared by all listeners of a thread. Requests that can be answered at once (writes into the buffer, reads from memory)
//! are, within the round that received them; the others become local tasks whose replies join a later round. All replies
//! of a round leave in one system call.
//!
//! Must not know: SCOs, locations, sockets' addresses beyond logging, other frontends.

mod budget;
mod inbox;
mod listener;
mod outbox;
mod session;
mod stats;
mod tls;
mod transmission;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use volumedriver_core::fault::Result;
use volumedriver_core::request::{Reply, Request};
use volumedriver_core::units::ByteOffset;

pub use budget::Budget;
pub use listener::{Listener, serve};
pub use stats::{CommandStats, Histogram, SessionStats};
pub use tls::Tls;

use crate::shard::{Directory, ExportInfo, Handle};

/// A volume as a session sees it. [`Handle`] in the daemon; memory in tests.
pub trait Export: Clone + 'static {
    fn info(&self) -> ExportInfo;
    /// See [`Handle::try_write`].
    fn try_write(&self, offset: ByteOffset, data: &[u8]) -> Option<Result<()>>;
    /// See [`Handle::try_read`].
    fn try_read(&self, offset: ByteOffset, out: &mut [u8]) -> Option<Result<()>>;
    /// See [`Handle::submit`]. Runs to its end even when the client is gone.
    fn submit(&self, request: Request) -> impl Future<Output = Result<Reply>>;
}

impl Export for Handle {
    fn info(&self) -> ExportInfo {
        Handle::info(self)
    }
    fn try_write(&self, offset: ByteOffset, data: &[u8]) -> Option<Result<()>> {
        Handle::try_write(self, offset, data)
    }
    fn try_read(&self, offset: ByteOffset, out: &mut [u8]) -> Option<Result<()>> {
        Handle::try_read(self, offset, out)
    }
    async fn submit(&self, request: Request) -> Result<Reply> {
        Handle::submit(self, request).await
    }
}

/// Finds exports by name. [`Directory`] in the daemon.
pub trait Exports: 'static {
    type Export: Export;
    /// Names of all exports, sorted.
    fn names(&self) -> Vec<String>;
    /// The empty name asks for a default export. See [`Directory::find`] for errors.
    fn find(&self, name: &str) -> Result<Self::Export>;
}

impl Exports for Directory {
    type Export = Handle;
    fn names(&self) -> Vec<String> {
        Directory::names(self)
    }
    fn find(&self, name: &str) -> Result<Handle> {
        Directory::find(self, name)
    }
}

/// Ceilings of a server and of each of its connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once over all listeners; further ones are told so and closed. Default 1,024.
    pub connections: usize,
    /// Requests in flight per connection; over that the socket is not read. Default 1,024, minimum 1.
    pub requests: usize,
    /// Payload and reply bytes held per connection, overshot by at most one request; [`Budget`] bounds all together.
    /// Default 64 MiB.
    pub held_bytes: usize,
    /// From accepting a connection to its transmission phase. Default 30 s.
    pub handshake: Duration,
    /// For requests in flight when the server shuts down, and for closing a connection. Default 10 s.
    pub drain: Duration,
    /// A client that moved nothing for so long is quiet: its buffers are made small. One that is in the way of others must
    /// move meanwhile. Default 10 s.
    pub quiet: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            requests: 1024,
            held_bytes: 64 << 20,
            handshake: Duration::from_secs(30),
            drain: Duration::from_secs(10),
            quiet: Duration::from_secs(10),
        }
    }
}

/// What all connections of one thread share.
pub struct Server<X> {
    pub exports: X,
    pub tls: Tls,
    pub limits: Limits,
    pub stats: Rc<SessionStats>,
    pub budget: Rc<Budget>,
}
