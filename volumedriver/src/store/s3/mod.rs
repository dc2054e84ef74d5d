//! A bucket on any server that speaks S3.
//!
//! | file | what |
//! |---|---|
//! | `keys` | where things lie in the bucket |
//! | `connect` | credentials, TLS, endpoint |
//! | `put` | put-if-absent: in one request, or in parts |
//! | `get` | ranges (asked for twice when the first is slow), heads |
//! | `names` | namespaces, lists, deletions, uploads that were given up |
//! | `window` | how many requests the server gets at once |
//! | `hedge` | when a second GET is worth its while |
//! | `body` | bodies on their way, and whether they move |
//! | `refusal` | what a server's "no" means, and what to do about it |
//!
//! Put-if-absent is `If-None-Match: *`, on the put or on the completion of an upload in parts. 412 is `Exists`; 409 (somebody
//! else is at it) is asked again. Servers that only claim to do this exist: the probe finds out ([`probe`](super::probe)).
//! The integrity of a body is the reader's to check (every format of ours carries checksums); over plain HTTP or without a
//! checksum for the server, damage on the way is found when it is read.

mod body;
mod connect;
mod get;
mod hedge;
mod keys;
mod names;
mod put;
mod refusal;
#[cfg(test)]
mod tests;
mod window;

use std::collections::HashSet;
use std::error::Error;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use bytes::Bytes;
use volumedriver_core::fault::{Fault, Result};

use self::body::Progress;
use self::hedge::Latencies;
use self::keys::Keys;
use self::refusal::{Meaning, Refusal};
use self::window::{Class, Window};
use super::service::Service;
use crate::config::{ChecksumMode, S3Url};
use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};

/// Calls under way or waiting for the window; more wait at the door.
const CALLS: usize = 1024;
/// A request without a body, or its answer, is given up when nothing has moved for this long.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same for bodies on their way up: what the system has taken may still be in its buffers on a slow line.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(60);

/// A bucket's prefix as an object store.
#[derive(Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
    service: Service,
    parts: Parts,
}

/// Which objects are uploaded in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    Never,
    /// Those of more bytes than this.
    Above(u64),
}

struct Inner {
    client: Client,
    bucket: String,
    keys: Keys,
    checksum: ChecksumMode,
    window: Window,
    latencies: Latencies,
    /// Namespaces whose marker we have seen.
    known: Mutex<HashSet<String>>,
}

impl S3Store {
    /// Sets everything up; nothing is asked of the server yet. Work is done on the runtime this is awaited on.
    pub async fn open(url: &S3Url, credentials: Option<&Path>) -> Result<Self> {
        let inner = Inner {
            client: connect::client(url, credentials).await?,
            bucket: url.bucket.clone(),
            keys: Keys::new(&url.prefix),
            checksum: url.checksum,
            window: Window::default(),
            latencies: Latencies::default(),
            known: Mutex::default(),
        };
        let parts = url.multipart_above.map_or(Parts::Never, Parts::Above);
        Ok(Self { inner: Arc::new(inner), service: Service::with(CALLS), parts })
    }

    #[must_use]
    pub fn parts(&self) -> Parts {
        self.parts
    }

    /// The same store, with another opinion on which objects are uploaded in parts.
    #[must_use]
    pub fn with_parts(&self, parts: Parts) -> Self {
        Self { parts, ..self.clone() }
    }

    /// Gives up uploads in parts that nobody has finished for a day, in the background.
    pub fn sweep(&self) {
        let inner = self.inner.clone();
        self.service.behind(async move {
            match inner.abort_uploads(&inner.keys.objects(), names::Age::Abandoned).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "gave up uploads that nobody finished"),
                Err(fault) => tracing::debug!(%fault, "unfinished uploads cannot be looked for"),
            }
        });
    }

    async fn call<T: Send + 'static, F>(&self, work: impl FnOnce(Arc<Inner>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        // The futures of the library are large.
        self.service.run(Box::pin(work(self.inner.clone()))).await
    }
}

/// How long a request may go without anything moving, and who waits behind whom.
struct Manner {
    class: Class,
    patience: Duration,
    progress: Progress,
}

impl Manner {
    fn new(class: Class) -> Self {
        Self { class, patience: PATIENCE, progress: Progress::new() }
    }
    fn upload(class: Class) -> Self {
        Self { patience: UPLOAD_PATIENCE, ..Self::new(class) }
    }
}

impl Inner {
    /// Waits for a place in the window, asks, and takes note of what the answer says about the server's load. Calls come
    /// boxed: the library's futures are large.
    async fn ask<T, E>(
        &self,
        manner: Manner,
        call: Pin<Box<impl Future<Output = Result<T, SdkError<E, HttpResponse>>>>>,
    ) -> Result<T, Refusal>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let answer = async { call.await.map_err(Refusal::from) };
        self.through_window(manner, answer).await
    }

    /// As [`Self::ask`], for work that is more than one answer: a body that is read.
    async fn through_window<T>(
        &self,
        manner: Manner,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let place = self.window.enter(manner.class).await;
        let answer = match manner.progress.watch(manner.patience, work).await {
            Ok(answer) => answer,
            Err(stalled) => Err(stalled.into()),
        };
        match &answer {
            Err(refusal) if refusal.meaning == Meaning::SlowDown => place.slow_down(),
            Err(refusal) if refusal.may_pass() => {}
            Ok(_) | Err(_) => place.answered(),
        }
        answer
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a fault is about.
    fn about(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    fn fault(&self, key: &str) -> impl FnOnce(Refusal) -> Fault {
        let about = self.about(key);
        move |refusal| refusal.into_fault(&about)
    }
}

impl ObjectStore for S3Store {
    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        let namespace = namespace.to_owned();
        self.call(|inner| async move { inner.create_namespace(&namespace).await }).await
    }

    async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        let namespace = namespace.to_owned();
        self.call(|inner| async move { inner.delete_namespace(&namespace).await }).await
    }

    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        let prefix = prefix.to_owned();
        self.call(|inner| async move { inner.list_namespaces(&prefix).await }).await
    }

    async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        let (namespace, name, parts) = (namespace.to_owned(), name.to_owned(), self.parts);
        let class = match purpose {
            Purpose::Data => Class::Bulk,
            Purpose::Metadata => Class::Urgent,
        };
        let put = |inner: Arc<Inner>| async move {
            let key = inner.keys.object(&namespace, &name)?;
            inner.check_namespace(&namespace).await?;
            inner.put(put::Upload::new(key, body, class), parts).await
        };
        self.call(put).await
    }

    async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let get = |inner: Arc<Inner>| async move {
            let key = inner.keys.object(&namespace, &name)?;
            inner.get_range(&key, offset, len).await
        };
        self.call(get).await
    }

    async fn head(&self, namespace: &str, name: &str) -> Result<Option<ObjectInfo>> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let head = |inner: Arc<Inner>| async move {
            let key = inner.keys.object(&namespace, &name)?;
            inner.head(&key).await
        };
        self.call(head).await
    }

    async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        let (namespace, prefix) = (namespace.to_owned(), prefix.to_owned());
        let after = after.map(str::to_owned);
        let list = |inner: Arc<Inner>| async move {
            let base = inner.keys.objects_of(&namespace)?;
            inner.list(&base, &prefix, after.as_deref(), limit).await
        };
        self.call(list).await
    }

    async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let delete = |inner: Arc<Inner>| async move {
            let key = inner.keys.object(&namespace, &name)?;
            inner.delete(&key).await.map_err(inner.fault(&key))
        };
        self.call(delete).await
    }
}
