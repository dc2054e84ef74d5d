//! Manifests remembered of a shared NSM, so that what was read before can be read while it does not answer.
//!
//! As long as it answers it is asked every time: a name may have been deleted and put anew by another process. Once it does
//! not, what is remembered counts, and it is asked again and again in the background until it does, whether anybody reads
//! or not: what is read a few seconds after it answers is as it is. Neither an object's id nor a fragment's is ever used
//! twice, so the worst that an old manifest leads to is an object that somebody has just deleted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::{sleep, timeout};

use super::Inner;
use crate::fault::{Fault, Kind, Result};
use crate::manifest::Manifest;

/// Who has something to go by waits no longer for the NSM.
const PATIENCE: Duration = Duration::from_secs(2);

/// While a cluster of it does not answer it is asked this often.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// Of a cluster that answers.
const NO_SILENCE: u64 = 0;

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

#[derive(Debug)]
pub(super) struct Remembered {
    manifests: Cache<Name, Arc<Manifest>>,
    /// Of each cluster of the NSM: the number of its silence, if it did not answer when it was last asked.
    silence: Vec<AtomicU64>,
    /// Silences so far.
    silences: AtomicU64,
}

impl Remembered {
    /// So many manifests at most, of an NSM of so many clusters.
    pub fn new(count: usize, clusters: usize) -> Self {
        let silence = (0..clusters).map(|_| AtomicU64::new(NO_SILENCE)).collect();
        let silences = AtomicU64::new(NO_SILENCE);
        Self { manifests: Cache::new(count.max(1)), silence, silences }
    }

    /// It was deleted, or another one put.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.manifests.remove(&(Arc::from(namespace), Arc::from(name)));
    }

    /// The silence a cluster is in.
    pub fn silence(&self, home: usize) -> Option<u64> {
        let number = self.silence.get(home)?.load(Ordering::Relaxed);
        (number != NO_SILENCE).then_some(number)
    }

    /// Its number, if it begins now.
    fn begin_silence(&self, home: usize) -> Option<u64> {
        let number = self.silences.fetch_add(1, Ordering::Relaxed) + 1;
        let place = self.silence.get(home)?;
        let begun =
            place.compare_exchange(NO_SILENCE, number, Ordering::Relaxed, Ordering::Relaxed);
        begun.is_ok().then_some(number)
    }

    fn end_silence(&self, home: usize) {
        let Some(place) = self.silence.get(home) else { return };
        if place.swap(NO_SILENCE, Ordering::Relaxed) != NO_SILENCE {
            tracing::info!(cluster = home, "the NSM answers again");
        }
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
            return self.ask(&key).await;
        };
        let home = self.nsm.asked_of(namespace);
        if self.remembered.silence(home).is_some() {
            return Ok(Some(known));
        }
        match self.ask_for_a_while(&key).await {
            Err(fault) if fault.kind == Kind::Unavailable => {
                if let Some(silence) = self.remembered.begin_silence(home) {
                    tracing::warn!(cluster = home, %fault, "reading by what is remembered of the NSM");
                    tokio::spawn(ask_until_it_answers(Arc::downgrade(self), home, silence, key));
                }
                Ok(Some(known))
            }
            answered => answered,
        }
    }

    async fn ask_for_a_while(&self, key: &Name) -> Result<Option<Arc<Manifest>>> {
        let late = |_| Fault::unavailable("the NSM takes long to answer");
        timeout(PATIENCE, self.ask(key)).await.map_err(late).flatten()
    }

    async fn ask(&self, key: &Name) -> Result<Option<Arc<Manifest>>> {
        let home = self.nsm.asked_of(&key.0);
        let outcome = self.nsm.get(&key.0, &key.1).await;
        if !outcome.as_ref().is_err_and(|fault| fault.kind == Kind::Unavailable) {
            self.remembered.end_silence(home);
        }
        let found = outcome?.map(Arc::new);
        match &found {
            Some(manifest) => self.remembered.manifests.insert(key.clone(), manifest.clone()),
            None => drop(self.remembered.manifests.remove(key)),
        }
        Ok(found)
    }
}

/// Ends with this silence, or with the backend.
async fn ask_until_it_answers(backend: Weak<Inner>, home: usize, silence: u64, key: Name) {
    loop {
        sleep(ASKED_EVERY).await;
        let Some(inner) = backend.upgrade() else { return };
        if inner.remembered.silence(home) != Some(silence) {
            return;
        }
        match inner.ask_for_a_while(&key).await {
            Err(fault) if fault.kind == Kind::Unavailable => {
                tracing::debug!(%fault, "the NSM still does not answer");
            }
            // Perhaps of another cluster by now: the namespace was deleted and created anew.
            Ok(_) | Err(_) => return inner.remembered.end_silence(home),
        }
    }
}
