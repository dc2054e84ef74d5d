//! The object stores: implementations of [`ObjectStore`], and which of them a URL means.
//!
//! | URL | store |
//! |---|---|
//! | `embedded:PATH` | the backend in this process, on a local directory |
//! | `alba:HOST:PORT`, `alba://HOST:PORT/PREFIX` | `alba serve` over TCP, namespaces under a prefix |
//! | `alba:unix:PATH`, `alba+unix:PATH` | `alba serve` over a unix socket |
//!
//! Work is done on the service runtime, whatever thread asks: a caller only waits. Decorators: [`retry`] repeats what may
//! pass, [`count`] measures each attempt.

pub mod alba;
#[cfg(test)]
mod conformance;
pub mod count;
pub mod embedded;
pub mod location;
mod pace;
pub mod retry;
mod service;

use std::sync::Arc;

use bytes::Bytes;
use volumedriver_core::fault::Result;
use volumedriver_core::units::ByteCount;

use crate::metrics::StoreMetrics;
use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};
use count::Counted;
use location::Location;
use retry::{Patience, Retried, RuntimeClock};

/// A store as the engine uses it.
pub type Decorated<S> = Retried<Counted<S>, RuntimeClock>;

/// The store a URL means, with its decorators.
#[derive(Clone)]
pub enum AnyStore {
    Embedded(Decorated<embedded::Embedded>),
    Alba(Decorated<alba::AlbaStore>),
}

impl AnyStore {
    /// Opens a store whose work is done on the runtime this is awaited on. A server that does not answer yet is no error.
    /// An embedded one holds at most `capacity`.
    pub async fn open(
        url: &str,
        capacity: Option<ByteCount>,
        metrics: &StoreMetrics,
    ) -> Result<Self> {
        match url.parse()? {
            Location::Embedded(path) => {
                let osd_capacity_bytes = capacity.map(|bytes| bytes.0);
                let config =
                    backend_alba::Config { osd_capacity_bytes, ..backend_alba::Config::new(path) };
                let store = embedded::Embedded::open(config).await?;
                Ok(Self::Embedded(decorated(store, metrics)))
            }
            Location::Alba { address, prefix } => {
                let store = alba::AlbaStore::connect(&address, prefix)?;
                Ok(Self::Alba(decorated(store, metrics)))
            }
        }
    }
}

fn decorated<S: ObjectStore>(store: S, metrics: &StoreMetrics) -> Decorated<S> {
    Retried::new(Counted::new(store, metrics.clone()), RuntimeClock, Patience::default())
}

macro_rules! of_any {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            AnyStore::Embedded($store) => $call,
            AnyStore::Alba($store) => $call,
        }
    };
}

impl ObjectStore for AnyStore {
    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        of_any!(self, store => store.create_namespace(namespace).await)
    }
    async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        of_any!(self, store => store.delete_namespace(namespace).await)
    }
    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        of_any!(self, store => store.list_namespaces(prefix).await)
    }
    async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        of_any!(self, store => store.put_if_absent(namespace, name, body, purpose).await)
    }
    async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        of_any!(self, store => store.get_range(namespace, name, offset, len).await)
    }
    async fn head(&self, namespace: &str, name: &str) -> Result<Option<ObjectInfo>> {
        of_any!(self, store => store.head(namespace, name).await)
    }
    async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        of_any!(self, store => store.list(namespace, prefix, after, limit).await)
    }
    async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        of_any!(self, store => store.delete(namespace, name).await)
    }
    fn pace(&self, bytes_per_s: Option<u64>) {
        of_any!(self, store => store.pace(bytes_per_s));
    }
    async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<Arc<std::fs::File>>> {
        of_any!(self, store => store.local_file(namespace, name).await)
    }
}
