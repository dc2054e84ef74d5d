//! The backend as one value: cheap to clone, used by the gRPC server and in-process alike.
//!
//! Order of a put: the bytes are durable in an OSD, then the manifest is put if absent. Order of a delete: the manifest goes
//! and the file is noted for removal in one step, then the file goes. Whatever a crash leaves of either is finished or
//! collected after the next start (see `collect`).
//!
//! Calls run on the tokio runtime they are awaited on; files and RocksDB are touched on its blocking threads only, by at
//! most `Config::blocking_count` at once.

mod blocking;
mod collect;
mod data_dir;
mod get;
mod put;
mod status;

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::fault::{Fault, Result};
use crate::manifest::Manifest;
use crate::name::{self, AlbaId, ObjectId, OsdId};
use crate::nsm::{Change, Condition, Nsm, Page};
use crate::osd::{Limits, Osd, Space};
use blocking::Blocking;
use data_dir::DataDir;
use get::OpenObjects;

pub use get::Reader;
pub use put::Upload;
pub use status::{OsdState, OsdStatus, Status};

/// Names given at once at most.
pub const MAX_LIST: usize = 10_000;
/// Longest value a sequence can put, bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Most asserts and updates of one sequence together.
pub const MAX_SEQUENCE: usize = 1000;

/// How a backend is opened. [`Config::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Metadata and lock of the backend; created when missing.
    pub data_dir: PathBuf,
    /// Directories for objects, on any file systems; `data_dir`/osd when none is given.
    pub osds: Vec<PathBuf>,
    /// Longest object, bytes. Default 1 GiB.
    pub max_object_bytes: u64,
    /// Uploads at once; more wait. Default 32.
    pub put_count: usize,
    /// Reads at once; more wait. Default 64.
    pub get_count: usize,
    /// Blocking threads in use at once. Default 16.
    pub blocking_count: usize,
    /// Objects kept open for reading. Default 256.
    pub open_count: usize,
    /// Most bytes of objects' files on each OSD; default: what its file system has.
    pub osd_capacity_bytes: Option<u64>,
    /// Part of each OSD that puts of data leave free for metadata, percent; default 1. At least 32 MiB (on a small one an
    /// eighth of it) and at most `reserve_bytes`, default 1 GiB.
    pub reserve_percent: u64,
    pub reserve_bytes: u64,
    /// So long after the start, files that a crash left without a manifest are removed; at once when room is short. Default
    /// 10 minutes.
    pub orphan_grace: Duration,
}

impl Config {
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            osds: Vec::new(),
            max_object_bytes: 1 << 30,
            put_count: 32,
            get_count: 64,
            blocking_count: 16,
            open_count: 256,
            osd_capacity_bytes: None,
            reserve_percent: 1,
            reserve_bytes: 1 << 30,
            orphan_grace: Duration::from_secs(600),
        }
    }
}

/// An open backend. The directories are unlocked when the last clone is dropped and background work has ended.
#[derive(Clone)]
pub struct Alba {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    id: AlbaId,
    nsm: Nsm,
    /// Of the file system the NSM is on.
    nsm_space: Arc<Space>,
    osds: Vec<Osd>,
    open_objects: OpenObjects,
    /// Objects whose bytes are written but whose manifest is not put yet: no orphans.
    unfinished: Mutex<HashSet<ObjectId>>,
    blocking: Blocking,
    /// Wakes the removal of deleted objects.
    wakes: Arc<Notify>,
    /// Rung when a put did not fit.
    shortage: Arc<Notify>,
    // Near the end, so that the lock outlives the database.
    _data_dir: DataDir,
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
        let blocking = Blocking::new(&config);
        let permits = blocking.clone();
        let inner = Arc::new(permits.run(move || Inner::open(config, blocking)).await?);
        collect::start(&inner);
        Ok(Self { inner })
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
        drop(self);
        while alive.changed().await.is_ok() {}
    }

    /// `false` when the namespace was there before.
    pub async fn create_namespace(&self, namespace: &str) -> Result<bool> {
        name::check_namespace(namespace)?;
        let namespace = namespace.to_string();
        self.run(move |inner| inner.nsm.create_namespace(&namespace)).await
    }

    /// Its objects are gone when this returns, their space comes back in the background. `false` when there is none.
    pub async fn delete_namespace(&self, namespace: &str) -> Result<bool> {
        name::check_namespace(namespace)?;
        let namespace = namespace.to_string();
        let deleted = self.run(move |inner| inner.nsm.delete_namespace(&namespace)).await?;
        self.inner.wakes.notify_one();
        Ok(deleted)
    }

    /// Up to `limit` names (0: as many as are given at once) with this prefix, greater than `after`.
    pub async fn list_namespaces(&self, prefix: &str, after: &str, limit: usize) -> Result<Page> {
        let (prefix, after) = (prefix.to_string(), after.to_string());
        self.run(move |inner| inner.nsm.list_namespaces(&prefix, &after, list_limit(limit))).await
    }

    /// What is known of an object; `None` when there is none.
    pub async fn head(&self, namespace: &str, name: &str) -> Result<Option<Manifest>> {
        let (namespace, name) = check_names(namespace, name)?;
        self.run(move |inner| inner.nsm.get(&namespace, &name)).await
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
        let (namespace, prefix, after) =
            (namespace.to_string(), prefix.to_string(), after.to_string());
        self.run(move |inner| inner.nsm.list(&namespace, &prefix, &after, list_limit(limit))).await
    }

    /// `false` when there was no such object.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<bool> {
        let (namespace, name) = check_names(namespace, name)?;
        self.run(move |inner| {
            let gone = inner.nsm.delete(&namespace, &name)?;
            inner.remove_files(gone.as_slice());
            Ok(gone.is_some())
        })
        .await
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
        let namespace = namespace.to_string();
        self.run(move |inner| inner.apply_sequence(&namespace, &asserts, updates)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        self.inner.blocking.run(move || work(&inner)).await
    }
}

impl Inner {
    fn open(config: Config, blocking: Blocking) -> Result<Self> {
        let data_dir = DataDir::open(&config.data_dir)?;
        let nsm = Nsm::open(&config.data_dir.join("nsm"))?;
        let paths = match &config.osds[..] {
            [] => vec![config.data_dir.join("osd")],
            given => given.to_vec(),
        };
        let (reserve_percent, reserve_bytes) = (config.reserve_percent, config.reserve_bytes);
        let limits =
            Limits { reserve_percent, reserve_bytes, capacity_bytes: config.osd_capacity_bytes };
        let nsm_limits = Limits { capacity_bytes: None, ..limits };
        let nsm_space = Space::open(&config.data_dir, nsm_limits)
            .map_err(|e| Fault::io("no statistics of the data directory", e))?;
        let open = |path: &PathBuf| Osd::open(path, data_dir.id, limits);
        let osds = paths.iter().map(open).collect::<Result<Vec<Osd>>>()?;
        for osd in &osds {
            nsm.note_osd(osd.id, osd.path())?;
        }
        Ok(Self {
            open_objects: OpenObjects::new(config.open_count),
            id: data_dir.id,
            config,
            nsm,
            nsm_space,
            osds,
            unfinished: Mutex::default(),
            blocking,
            wakes: Arc::default(),
            shortage: Arc::default(),
            _data_dir: data_dir,
            alive: watch::channel(()).0,
        })
    }

    fn apply_sequence(
        self: &Arc<Self>,
        namespace: &str,
        asserts: &[(String, Condition)],
        updates: Vec<(String, Update)>,
    ) -> Result<()> {
        let mut changes = Vec::new();
        let mut written = Vec::new();
        for (name, update) in updates {
            let change = match update {
                Update::Delete => Change::Delete,
                Update::Put(value) => {
                    let (manifest, draft) = self.store_value(namespace, &name, value)?;
                    written.push(draft);
                    Change::Put(manifest)
                }
            };
            changes.push((name, change));
        }
        let outcome = self.nsm.apply(namespace, asserts, &changes);
        put::settle(written, outcome.is_ok(), outcome.as_ref().err());
        self.remove_files(&outcome?);
        Ok(())
    }

    /// The OSD an object lies on; `Unavailable` when it was not given to this process.
    fn osd(&self, id: OsdId) -> Result<&Osd> {
        let absent = || Fault::unavailable(format!("OSD {id} is absent; start with its directory"));
        self.osds.iter().find(|osd| osd.id == id).ok_or_else(absent)
    }

    /// Removes files whose manifests are gone. What cannot be removed now is tried again after the next start.
    fn remove_files(&self, gone: &[Manifest]) {
        let removed = |m: &&Manifest| self.remove_file(m.id, m.osd);
        let ids: Vec<ObjectId> = gone.iter().filter(removed).map(|m| m.id).collect();
        if let Err(fault) = self.nsm.removed(&ids) {
            tracing::warn!(%fault, "removed files stay noted for removal");
        }
    }

    fn remove_file(&self, id: ObjectId, osd: OsdId) -> bool {
        let outcome = self.osd(osd).and_then(|osd| osd.remove(id));
        self.open_objects.forget(id);
        if let Err(fault) = &outcome {
            tracing::warn!(%fault, object = %id, "a deleted object's file stays for now");
        }
        outcome.is_ok()
    }

    // Ids are added and removed one by one, so a panic elsewhere leaves the set right.
    fn unfinished(&self) -> MutexGuard<'_, HashSet<ObjectId>> {
        self.unfinished.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.wakes.notify_one();
        self.shortage.notify_one();
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
