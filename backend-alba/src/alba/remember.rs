//! Manifests remembered of a shared NSM, so that what was read before can be read while it does not answer.
//!
//! As long as it answers it is asked every time: a name may have been deleted and put anew by another process. Once it does
//! not, what is remembered counts, and it is asked again in the background until it does. Neither an object's id nor a
//! fragment's is ever used twice, so the worst that an old manifest leads to is an object that somebody has just deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::timeout;

use super::Inner;
use crate::fault::{Fault, Kind, Result};
use crate::manifest::Manifest;

/// Who has something to go by waits no longer for the NSM.
const PATIENCE: Duration = Duration::from_secs(2);

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

#[derive(Debug)]
pub(super) struct Remembered {
    manifests: Cache<Name, Arc<Manifest>>,
    /// The NSM did not answer when it was last asked.
    is_silent: AtomicBool,
    is_asking: AtomicBool,
}

impl Remembered {
    pub fn new(count: usize) -> Self {
        let (is_silent, is_asking) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { manifests: Cache::new(count.max(1)), is_silent, is_asking }
    }

    /// It was deleted, or another one put.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.manifests.remove(&(Arc::from(namespace), Arc::from(name)));
    }
}

impl Inner {
    /// The manifest as it is now, or as it was when the NSM last answered. `None` when there is no such object.
    pub(super) async fn look(
        self: &Arc<Self>,
        namespace: &Arc<str>,
        name: &Arc<str>,
    ) -> Result<Option<Arc<Manifest>>> {
        if !self.nsm.is_shared() {
            return Ok(self.nsm.get(namespace, name).await?.map(Arc::new));
        }
        let key = (namespace.clone(), name.clone());
        let Some(known) = self.remembered.manifests.get(&key) else {
            return self.ask(key).await;
        };
        if self.remembered.is_silent.load(Ordering::Relaxed) {
            self.ask_in_background(key);
            return Ok(Some(known));
        }
        let late = |_| Fault::unavailable("the NSM takes long to answer");
        match timeout(PATIENCE, self.ask(key)).await.map_err(late).flatten() {
            Err(fault) if fault.kind == Kind::Unavailable => {
                if !self.remembered.is_silent.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%fault, "reading by what is remembered of the NSM");
                }
                Ok(Some(known))
            }
            answered => answered,
        }
    }

    async fn ask(&self, key: Name) -> Result<Option<Arc<Manifest>>> {
        let found = self.nsm.get(&key.0, &key.1).await?.map(Arc::new);
        if self.remembered.is_silent.swap(false, Ordering::Relaxed) {
            tracing::info!("the NSM answers again");
        }
        match &found {
            Some(manifest) => self.remembered.manifests.insert(key, manifest.clone()),
            None => drop(self.remembered.manifests.remove(&key)),
        }
        Ok(found)
    }

    /// One at a time.
    fn ask_in_background(self: &Arc<Self>, key: Name) {
        if !self.remembered.is_asking.swap(true, Ordering::Relaxed) {
            let inner = self.clone();
            tokio::spawn(async move {
                if let Err(fault) = inner.ask(key).await {
                    tracing::debug!(%fault, "the NSM still does not answer");
                }
                inner.remembered.is_asking.store(false, Ordering::Relaxed);
            });
        }
    }
}
