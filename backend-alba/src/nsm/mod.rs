//! NSM (namespace manager): namespaces and object manifests in tables ([`kv`]), every change durable when it returns.
//!
//! | key | value |
//! |---|---|
//! | `v` | version of this table, 3 (text) |
//! | `n` name | namespace: its id, the name of its preset, its home (see [`keys::NamespaceRecord`]) |
//! | `l` namespace id | the namespace lives and takes objects; 8 bytes that no change of an object outlives |
//! | `m` namespace id, name | manifest of an object |
//! | `f` OSD, fragment id | namespace id, name: the fragment's file is live |
//! | `r` fragment id | OSD: the fragment's file is to be removed |
//! | `x` namespace id | the namespace is deleted, its objects are to be dropped |
//! | `s` OSD | what is known of it (JSON) |
//! | `p` name | preset (JSON) |
//! | `d` | name of the preset of new namespaces |
//! | `u` | 16 bytes that are others whenever a namespace takes a preset |
//! | `i` | text, in shared tables: the backend it belongs to, and its number there |
//! | `k` | text, in the first of shared tables: how many clusters there are |
//! | `y` | nothing: the NSM is being rebuilt (see [`rebuild`]), until then it is not to be used |
//! | `w` | nothing: it was rebuilt, and files without a manifest are to stay |
//! | `g` | current GC epoch, 4 bytes big-endian (see `epochs`) |
//! | `e` | least GC epoch whose fragments become live, 4 bytes big-endian |
//! | `j` job, part | work item (JSON; see [`crate::maintenance::work`]) |
//! | `a` agent | a value the agent changes while it lives |
//! | `b` OSD | a value agents change that reach the OSD |
//! | `o` post | the agent that does what one of all does |
//! | `hs` | settings of maintenance (JSON) |
//! | `ht` | a sum of what the last tour of all objects was about |
//! | `hv` | text: when the last scrub of all fragments began, milliseconds since 1970 |
//! | `t` | nothing: written to learn whether the table takes changes again |
//!
//! There may be several tables, called clusters. The first has what concerns the whole backend (`n s p d u k w g j a b o h`), each
//! has the `e l m f r x` of the namespaces that were given to it when they were created: a namespace's objects are all in one, its
//! home, so that sequences are atomic.
//!
//! Changes are optimistic: what they depend on is read, and a commit makes them if all of that is still as it was; if not,
//! they begin again. Every change of an object depends on `l`, so that none is made in a namespace that is gone.
//!
//! When it is not known whether a commit was made, it is looked up: an object's id and a fragment's id are never used twice,
//! so a manifest that has them was put by this commit. What cannot be looked up either is `Unavailable`, and may still come.

pub mod etcd;
pub mod kv;
pub mod memory;
pub mod rocks;

mod epochs;
pub mod identity;
mod keys;
mod namespaces;
mod objects;
pub mod rebuild;
mod records;
mod removals;
mod retry;
mod survey;
mod tally;
mod upgrade;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quick_cache::sync::Cache;

use crate::fault::{Fault, Result};
use crate::manifest::{Fragment, Manifest};
use crate::outside::Outside;
use keys::SpaceId;
use kv::{Commit, Key, Kv, Value};
use tally::Tally;

pub use records::{OsdRecord, OsdRole};
pub use removals::Removal;
pub use survey::Located;
pub use tally::Totals;
pub use upgrade::LOCAL_NODE;
pub use work::Record;

/// Namespaces whose place is remembered.
const SPACES: usize = 8192;
/// Entries read at once where all are read.
const PAGE: usize = 1000;

/// Outcome of a put-if-absent that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Created,
    /// An object of this name was there before; it is unchanged.
    Exists,
}

/// What must hold for a sequence to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Exists,
    Absent,
    /// The object exists and its CRC-32 is this.
    HasCrc(u32),
}

/// A change of one name whose bytes, if any, are stored already.
#[derive(Clone, Debug)]
pub enum Change {
    Put(Manifest),
    Delete,
}

impl Change {
    /// What it makes live.
    fn fragments(&self) -> &[Fragment] {
        match self {
            Self::Put(manifest) => &manifest.fragments,
            Self::Delete => &[],
        }
    }
}

/// Names in byte order, and whether there are more after the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub names: Vec<String>,
    pub more: bool,
}

#[derive(Debug)]
pub struct Nsm {
    clusters: Vec<Cluster>,
    /// Where namespaces were found. What is done there is made sure of by their `l`.
    spaces: Cache<String, Arc<Space>>,
    tally: Tally,
    outside: Outside,
}

#[derive(Debug)]
struct Cluster {
    kv: Arc<dyn Kv>,
    /// The last change failed, and none has succeeded since.
    is_failing: AtomicBool,
}

/// Where the objects of a namespace are.
#[derive(Debug)]
struct Space {
    id: SpaceId,
    home: usize,
    preset: String,
    /// Value of its `l`.
    life: Value,
    /// Value of the `e` of its home.
    enabled: Option<Value>,
}

impl Nsm {
    /// Over these tables, in this order always; brings older ones up to date.
    pub async fn open(tables: Vec<Arc<dyn Kv>>, outside: Outside) -> Result<Self> {
        let nsm = Self::of(tables, outside)?;
        nsm.check_whole().await?;
        nsm.begin().await
    }

    async fn over(tables: Vec<Arc<dyn Kv>>, outside: Outside) -> Result<Self> {
        Self::of(tables, outside)?.begin().await
    }

    fn of(tables: Vec<Arc<dyn Kv>>, outside: Outside) -> Result<Self> {
        let cluster = |kv| Cluster { kv, is_failing: AtomicBool::new(false) };
        let clusters: Vec<Cluster> = tables.into_iter().map(cluster).collect();
        let Some(first) = clusters.first() else {
            return Err(Fault::invalid("the NSM needs at least one table"));
        };
        let tally = Tally::new(first.kv.is_shared());
        Ok(Self { clusters, spaces: Cache::new(SPACES), tally, outside })
    }

    async fn begin(self) -> Result<Self> {
        for home in 0..self.clusters.len() {
            self.upgrade(home).await?;
        }
        Ok(self)
    }

    /// Others may change it too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.clusters.iter().any(|cluster| cluster.kv.is_shared())
    }

    #[must_use]
    pub fn cluster_count(&self) -> usize {
        self.clusters.len()
    }

    /// The cluster that is asked first for an object of this namespace.
    #[must_use]
    pub fn asked_of(&self, namespace: &str) -> usize {
        self.spaces.get(namespace).map_or(0, |space| space.home)
    }

    /// Fails while changes fail, as they do on a full disk. To be asked before bytes are stored: a put whose change fails
    /// must keep them, because nobody knows whether the change will be there after the next start.
    pub async fn check_takes_changes(&self) -> Result<()> {
        for (home, cluster) in self.clusters.iter().enumerate() {
            if cluster.is_failing.load(Ordering::Relaxed) {
                let mut commit = Commit::default();
                commit.put(keys::TRIAL.to_vec(), []);
                self.commit(home, commit).await?;
            }
        }
        Ok(())
    }

    async fn commit(&self, home: usize, commit: Commit) -> Result<bool> {
        let cluster = self.cluster(home)?;
        let outcome = cluster.kv.commit(commit).await;
        cluster.is_failing.store(outcome.is_err(), Ordering::Relaxed);
        outcome
    }

    async fn read<const N: usize>(
        &self,
        home: usize,
        keys: [Key; N],
    ) -> Result<[Option<Value>; N]> {
        let values = self.cluster(home)?.kv.get(keys.into()).await?;
        let wrong =
            |values: Vec<Option<Value>>| Fault::bug(format!("{} values of {N} keys", values.len()));
        values.try_into().map_err(wrong)
    }

    fn cluster(&self, home: usize) -> Result<&Cluster> {
        let missing = || Fault::unavailable(format!("cluster {home} of the NSM was not given"));
        self.clusters.get(home).ok_or_else(missing)
    }

    /// All entries whose keys begin with this, from a key on, in steps: `None` for the next step when there are no more.
    async fn step(
        &self,
        home: usize,
        prefix: &[u8],
        from: Key,
        limit: usize,
    ) -> Result<(Vec<(Key, Value)>, Option<Key>)> {
        let found = self.cluster(home)?.kv.range(from, kv::after_prefix(prefix), limit).await?;
        let next = found.last().filter(|_| found.len() >= limit);
        let next = next.map(|(key, _)| [&key[..], &[0]].concat());
        Ok((found, next))
    }

    /// All entries whose keys begin with this, without it.
    async fn all(&self, home: usize, prefix: &[u8]) -> Result<Vec<(Key, Value)>> {
        let mut all = Vec::new();
        let mut from = Some(prefix.to_vec());
        while let Some(key) = from {
            let (found, next) = self.step(home, prefix, key, PAGE).await?;
            let rest = |(key, value): (Key, Value)| (key[prefix.len()..].to_vec(), value);
            all.extend(found.into_iter().map(rest));
            from = next;
        }
        Ok(all)
    }

    /// Names below `area`.
    async fn page(
        &self,
        home: usize,
        area: Key,
        (prefix, after): (&str, &str),
        limit: usize,
    ) -> Result<Page> {
        let wanted = [&area[..], prefix.as_bytes()].concat();
        let from = if after < prefix {
            wanted.clone()
        } else {
            // The least key greater than `after`.
            [&area[..], after.as_bytes(), &[0]].concat()
        };
        let limit = limit.saturating_add(1);
        let mut found =
            self.cluster(home)?.kv.range(from, kv::after_prefix(&wanted), limit).await?;
        let more = found.len() == limit;
        if more {
            found.pop();
        }
        let name = |(key, _): (Key, Value)| {
            String::from_utf8_lossy(key.get(area.len()..).unwrap_or_default()).into_owned()
        };
        Ok(Page { names: found.into_iter().map(name).collect(), more })
    }
}

#[cfg(test)]
mod tests;
