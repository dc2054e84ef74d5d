//! The backend as one value: cheap to clone, used by the gRPC server and in-process alike.
//!
//! Order of a put: the fragments are durable on OSDs, then the manifest is put if absent. Order of a delete: the manifest goes
//! and the files are noted for removal in one step, then the files go. Whatever a crash leaves of either is finished or
//! collected after the next start (see `collect`).
//!
//! Calls run on the tokio runtime they are awaited on; files and RocksDB are touched on its blocking threads only, by at
//! most `Config::blocking_count` at once.

mod admin;
mod agent;
mod blocking;
mod collect;
mod config;
mod data_dir;
mod fetch;
mod get;
mod lane;
mod late;
mod members;
mod open;
mod osds;
mod put;
mod recover;
mod remember;
mod remove;
mod repair;
mod rewrite;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

use crate::fault::{Fault, Kind, Result};
use crate::manifest::Manifest;
use crate::name::{self, AlbaId};
use crate::nsm::{Change, Condition, Nsm, Page};
use crate::osd::{Purpose, Space};
use crate::outside::Outside;
use crate::preset::Preset;
use agent::Agent;
use blocking::Blocking;
use data_dir::DataDir;
use get::OpenFragments;
use members::Watch;
use osds::Osds;
use remember::Remembered;
use repair::Notice;

pub use admin::Presets;
pub use agent::{Safety, SafetyLine};
pub use blocking::Threads;
pub use config::{Config, Elsewhere, OsdGiven, OsdPlace};
pub use get::Reader;
pub use members::{Candidate, Purged};
pub use open::Parts;
pub use osds::GivenOsd;
pub use put::Upload;
pub use recover::{Recovered, give_up_the_rest, recover};
pub use status::{OsdState, OsdStatus, Status};

/// Names given at once at most.
pub const MAX_LIST: usize = 10_000;
/// Longest value a sequence can put, bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Most asserts and updates of one sequence together.
pub const MAX_SEQUENCE: usize = 1000;

/// Times a sequence begins that takes too long.
const ATTEMPTS: usize = 3;

/// An open backend. The directories are unlocked when the last clone is dropped and background work has ended.
#[derive(Clone)]
pub struct Alba {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    id: AlbaId,
    nsm: Nsm,
    /// Of the file system the NSM is on, when it is on one of this machine.
    nsm_space: Option<Arc<Space>>,
    outside: Outside,
    osds: Osds,
    watch: Watch,
    open_fragments: OpenFragments,
    remembered: Remembered,
    /// The GC epoch as it was lately.
    epoch: AtomicU32,
    agent: Agent,
    blocking: Blocking,
    /// Wakes the removal of deleted objects.
    wakes: Arc<Notify>,
    /// Rung when a put did not fit.
    shortage: Arc<Notify>,
    /// Objects that were found to need repair.
    notices: mpsc::Sender<Notice>,
    // Near the end, so that the lock outlives the database.
    _data_dir: Option<DataDir>,
    // Last: its receivers know when all of the above is gone.
    alive: watch::Sender<()>,
}

/// One update of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Replaces what is there.
    Put(Bytes),
    Delete,
}

impl Alba {
    /// Opens or creates a backend and starts its background work on the runtime this is awaited on.
    pub async fn open(config: Config) -> Result<Self> {
        let (places, elsewhere) = (config.places(), config.elsewhere.clone());
        let alba = open::in_directory(config, places, osds::directories).await?;
        if let Err(fault) = alba.claim_given(elsewhere).await {
            alba.close().await;
            return Err(fault);
        }
        Ok(alba)
    }

    /// A backend of parts that are there already, with its background work on the runtime this is awaited on.
    pub async fn assemble(parts: Parts) -> Result<Self> {
        open::of_parts(parts).await
    }

    #[must_use]
    pub fn id(&self) -> AlbaId {
        self.inner.id
    }
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Returns once the last clone is dropped, all work has ended and the directories are unlocked.
    pub async fn close(self) {
        let mut alive = self.inner.alive.subscribe();
        self.inner.leave().await;
        drop(self);
        while alive.changed().await.is_ok() {}
    }

    /// With the default preset. `false` when the namespace was there before.
    pub async fn create_namespace(&self, namespace: &str) -> Result<bool> {
        self.create_namespace_with(namespace, None).await
    }

    /// With this preset, or the default one.
    pub async fn create_namespace_with(
        &self,
        namespace: &str,
        preset: Option<&str>,
    ) -> Result<bool> {
        name::check_namespace(namespace)?;
        self.inner.nsm.create_namespace(namespace, preset).await
    }

    /// Its objects are gone when this returns, their space comes back in the background. `false` when there is none.
    pub async fn delete_namespace(&self, namespace: &str) -> Result<bool> {
        name::check_namespace(namespace)?;
        let deleted = self.inner.nsm.delete_namespace(namespace).await?;
        self.inner.wakes.notify_one();
        Ok(deleted)
    }

    /// Up to `limit` names (0: as many as are given at once) with this prefix, greater than `after`.
    pub async fn list_namespaces(&self, prefix: &str, after: &str, limit: usize) -> Result<Page> {
        self.inner.nsm.list_namespaces(prefix, after, list_limit(limit)).await
    }

    /// What is known of an object; `None` when there is none.
    pub async fn head(&self, namespace: &str, name: &str) -> Result<Option<Manifest>> {
        check_names(namespace, name)?;
        let found = self.inner.look(&namespace.into(), &name.into()).await?;
        Ok(found.map(Arc::unwrap_or_clone))
    }

    /// As [`Alba::list_namespaces`], of objects. A namespace that is not there is empty.
    pub async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Page> {
        name::check_namespace(namespace)?;
        self.inner.nsm.list(namespace, prefix, after, list_limit(limit)).await
    }

    /// `false` when there was no such object.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<bool> {
        check_names(namespace, name)?;
        self.inner.remembered.forget(namespace, name);
        let deleted = self.inner.nsm.delete(namespace, name).await;
        self.inner.remembered.forget(namespace, name);
        // If it is gone after all, its files are noted.
        let deleted = deleted.inspect_err(|_| self.inner.wakes.notify_one())?;
        let Some(gone) = deleted else { return Ok(false) };
        Box::pin(self.inner.remove_files(&gone)).await;
        Ok(true)
    }

    /// Checks all asserts and makes all updates of one namespace, or none.
    pub async fn apply_sequence(
        &self,
        namespace: &str,
        asserts: Vec<(String, Condition)>,
        updates: Vec<(String, Update)>,
    ) -> Result<()> {
        name::check_namespace(namespace)?;
        check_sequence(&asserts, &updates)?;
        let (inner, namespace) = (self.inner.clone(), namespace.to_string());
        let apply = async move { inner.apply_sequence(namespace, asserts, updates).await };
        put::to_its_end(Box::pin(apply)).await
    }
}

impl Inner {
    async fn apply_sequence(
        self: &Arc<Self>,
        namespace: String,
        asserts: Vec<(String, Condition)>,
        updates: Vec<(String, Update)>,
    ) -> Result<()> {
        for _ in 1..ATTEMPTS {
            match self.try_sequence(&namespace, &asserts, &updates).await {
                // It took so long that what it stored is being collected.
                Err(fault) if fault.kind == Kind::Outdated => self.refresh_epoch().await?,
                outcome => return outcome,
            }
        }
        self.try_sequence(&namespace, &asserts, &updates).await
    }

    async fn try_sequence(
        self: &Arc<Self>,
        namespace: &str,
        asserts: &[(String, Condition)],
        updates: &[(String, Update)],
    ) -> Result<()> {
        let preset = self.preset_of(namespace).await?;
        let (mut changes, mut written) = (Vec::new(), Vec::new());
        for (name, update) in updates {
            let change = match update {
                Update::Delete => Change::Delete,
                Update::Put(value) => {
                    let len = value.len() as u64;
                    let order = self.order(namespace, name, len, Purpose::Metadata);
                    let (manifest, lanes) =
                        self.store(&preset, &order, std::slice::from_ref(value)).await?;
                    written.push((order, manifest.id, lanes));
                    Change::Put(manifest)
                }
            };
            changes.push((name.clone(), change));
        }
        let outcome = self.nsm.apply(namespace, asserts, &changes).await;
        changes.iter().for_each(|(name, _)| self.remembered.forget(namespace, name));
        for (order, id, mut lanes) in written {
            lanes.settle(outcome.is_ok(), outcome.as_ref().err());
            match &outcome {
                Ok(_) => late::record(self, &order, id, lanes),
                Err(_) => lanes.discard().await,
            }
        }
        self.remove_files(&outcome?).await;
        Ok(())
    }

    async fn preset_of(&self, namespace: &str) -> Result<Preset> {
        self.nsm.preset(&self.nsm.preset_of(namespace).await?).await?.check()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.wakes.notify_one();
        self.shortage.notify_one();
        self.agent.ring();
    }
}

fn check_names(namespace: &str, object: &str) -> Result<(String, String)> {
    name::check_namespace(namespace)?;
    name::check_object(object)?;
    Ok((namespace.to_string(), object.to_string()))
}

fn check_sequence(asserts: &[(String, Condition)], updates: &[(String, Update)]) -> Result<()> {
    let count = asserts.len() + updates.len();
    if count > MAX_SEQUENCE {
        return Err(Fault::invalid(format!(
            "a sequence of {count} parts, at most {MAX_SEQUENCE} are legal"
        )));
    }
    for (name, _) in asserts {
        name::check_object(name)?;
    }
    let mut seen = BTreeSet::new();
    for (name, update) in updates {
        name::check_object(name)?;
        if !seen.insert(name) {
            return Err(Fault::invalid(format!("a sequence updates object {name:?} twice")));
        }
        if let Update::Put(value) = update
            && value.len() > MAX_VALUE_BYTES
        {
            let len = value.len();
            return Err(Fault::invalid(format!(
                "a value of {len} bytes, at most {MAX_VALUE_BYTES} are legal"
            )));
        }
    }
    Ok(())
}

fn list_limit(asked: usize) -> usize {
    if asked == 0 { MAX_LIST } else { asked.min(MAX_LIST) }
}

#[cfg(test)]
mod tests;
