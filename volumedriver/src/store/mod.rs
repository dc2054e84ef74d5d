//! The object stores: implementations of [`ObjectStore`], and which of them a URL means ([`BackendUrl`]).
//!
//! Work is done on the service runtime, whatever thread asks: a caller only waits. Decorators: [`retry`] repeats what may
//! pass, [`count`] measures each attempt, [`fenced`] puts names by the registry's word. [`probe`] finds out whether a
//! store does what is asked of it.

pub mod alba;
pub mod candidate;
pub mod conformance;
pub mod count;
pub mod embedded;
#[cfg(test)]
mod fake;
pub mod fenced;
mod pace;
pub mod probe;
pub mod retry;
pub mod s3;
mod service;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use volumedriver_core::fault::Result;
use volumedriver_core::units::ByteCount;

use crate::cluster::etcd::Etcd;
use crate::config::{BackendUrl, RegistryUrl};
use crate::metrics::StoreMetrics;
use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};
use candidate::{Candidate, Fitness};
use count::Counted;
use fenced::Fenced;
use retry::{Patience, Retried, RuntimeClock};
use s3::S3Store;

/// A store as the engine uses it.
pub type Decorated<S> = Retried<Counted<S>, RuntimeClock>;

/// The store a URL means, with its decorators.
#[derive(Clone)]
pub enum AnyStore {
    Embedded(Decorated<embedded::Embedded>),
    Alba(Decorated<alba::AlbaStore>),
    S3(Decorated<S3Store>),
    FencedS3(Retried<Fenced<Counted<S3Store>, Etcd>, RuntimeClock>),
}

/// A store and what belongs to it.
#[derive(Clone, Debug)]
pub struct Place {
    pub url: BackendUrl,
    /// Most that an embedded one holds.
    pub capacity: Option<ByteCount>,
    /// File with the keys of an S3 one.
    pub s3_credentials: Option<PathBuf>,
    /// Guards names with these beginnings in an S3 one.
    pub registry: Option<RegistryUrl>,
    pub fenced: &'static [&'static str],
}

impl Place {
    /// Nothing but a URL.
    #[must_use]
    pub fn new(url: BackendUrl) -> Self {
        Self { url, capacity: None, s3_credentials: None, registry: None, fenced: &[] }
    }
}

impl AnyStore {
    /// Opens a store whose work is done on the runtime this is awaited on. A server that does not answer yet is no error.
    pub async fn open(place: &Place, metrics: &StoreMetrics) -> Result<Self> {
        match &place.url {
            BackendUrl::Embedded(path) => {
                let osd_capacity_bytes = place.capacity.map(|bytes| bytes.0);
                let config =
                    backend_alba::Config { osd_capacity_bytes, ..backend_alba::Config::new(path) };
                let store = embedded::Embedded::open(config).await?;
                Ok(Self::Embedded(decorated(store, metrics)))
            }
            BackendUrl::Alba(url) => {
                Ok(Self::Alba(decorated(alba::AlbaStore::connect(url)?, metrics)))
            }
            // Nobody who opens it like this writes: that a bucket may be used is the probe's word.
            BackendUrl::S3(url) => {
                let candidate = Candidate::open(url, place).await?;
                Ok(candidate.engage(Fitness { parts: false }, metrics))
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
            // Boxed: what is in them is deep, and a request over the network costs more.
            AnyStore::S3($store) => Box::pin(async move { $call }).await,
            AnyStore::FencedS3($store) => Box::pin(async move { $call }).await,
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
    fn is_on_this_disk(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }
    fn pace(&self, bytes_per_s: Option<u64>) {
        match self {
            Self::Embedded(store) => store.pace(bytes_per_s),
            Self::Alba(store) => store.pace(bytes_per_s),
            Self::S3(store) => store.pace(bytes_per_s),
            Self::FencedS3(store) => store.pace(bytes_per_s),
        }
    }
    async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<Arc<std::fs::File>>> {
        of_any!(self, store => store.local_file(namespace, name).await)
    }
}
