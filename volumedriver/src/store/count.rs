//! Measures every call of a store: how many, how long, how many bytes.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use volumedriver_core::fault::Result;

use crate::metrics::{Outcome, StoreMetrics, StoreVerb};
use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};

/// A store whose calls are measured.
#[derive(Clone)]
pub struct Counted<S> {
    store: S,
    metrics: StoreMetrics,
}

impl<S: ObjectStore> Counted<S> {
    pub fn new(store: S, metrics: StoreMetrics) -> Self {
        Self { store, metrics }
    }

    async fn count<T>(
        &self,
        verb: StoreVerb,
        bytes: u64,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let outcome = call.await;
        let kind = if outcome.is_ok() { Outcome::Done } else { Outcome::Failed };
        self.metrics.observe(verb, kind, started.elapsed(), bytes);
        outcome
    }
}

impl<S: ObjectStore> ObjectStore for Counted<S> {
    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        self.count(StoreVerb::Namespace, 0, self.store.create_namespace(namespace)).await
    }
    async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        self.count(StoreVerb::Namespace, 0, self.store.delete_namespace(namespace)).await
    }
    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        self.count(StoreVerb::Namespace, 0, self.store.list_namespaces(prefix)).await
    }
    async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        let len = body.iter().map(|piece| piece.len() as u64).sum();
        let put = self.store.put_if_absent(namespace, name, body, purpose);
        self.count(StoreVerb::Put, len, put).await
    }
    async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        self.count(StoreVerb::Get, len, self.store.get_range(namespace, name, offset, len)).await
    }
    async fn head(&self, namespace: &str, name: &str) -> Result<Option<ObjectInfo>> {
        self.count(StoreVerb::Head, 0, self.store.head(namespace, name)).await
    }
    async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        self.count(StoreVerb::List, 0, self.store.list(namespace, prefix, after, limit)).await
    }
    async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        self.count(StoreVerb::Delete, 0, self.store.delete(namespace, name)).await
    }
    fn pace(&self, bytes_per_s: Option<u64>) {
        self.store.pace(bytes_per_s);
    }
    fn is_on_this_disk(&self) -> bool {
        self.store.is_on_this_disk()
    }
    async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<Arc<std::fs::File>>> {
        self.store.local_file(namespace, name).await
    }
}
