//! The registry of vDisks on one node: name -> volume. Synced: what it says survives any crash.
//!
//! The backend's manifests carry the names too, so a lost registry is rebuilt from them.
//!
//! | key | value |
//! |---|---|
//! | name, UTF-8 | standing (1): 1 present, 2 being deleted; volume id (16) |

use std::sync::Arc;

use rocksdb::{DB, IteratorMode, WriteOptions};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::VolumeId;

use super::{REGISTRY, blocking, family, fault_of};

const PRESENT: u8 = 1;
const LEAVING: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Present,
    /// A deletion began and must be finished.
    Leaving,
}

/// One vDisk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub id: VolumeId,
    pub standing: Standing,
}

/// See the module's header. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    db: Arc<DB>,
}

impl Registry {
    pub(super) fn new(db: Arc<DB>) -> Self {
        Self { db }
    }

    /// All vDisks, by name.
    pub async fn list(&self) -> Result<Vec<Entry>> {
        let db = self.db.clone();
        blocking(move || {
            let entries = db.iterator_cf(family(&db, REGISTRY)?, IteratorMode::Start);
            entries.map(|item| decode(&item.map_err(fault_of)?)).collect()
        })
        .await
    }

    /// Takes a name or changes the standing of its holder.
    pub async fn put(&self, entry: &Entry) -> Result<()> {
        let standing = match entry.standing {
            Standing::Present => PRESENT,
            Standing::Leaving => LEAVING,
        };
        let value = [&[standing], entry.id.0.as_slice()].concat();
        let (db, name) = (self.db.clone(), entry.name.clone());
        blocking(move || {
            db.put_cf_opt(family(&db, REGISTRY)?, name, value, &synced()).map_err(fault_of)
        })
        .await
    }

    pub async fn remove(&self, name: &str) -> Result<()> {
        let (db, name) = (self.db.clone(), name.to_owned());
        blocking(move || {
            db.delete_cf_opt(family(&db, REGISTRY)?, name, &synced()).map_err(fault_of)
        })
        .await
    }
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn decode((key, value): &(Box<[u8]>, Box<[u8]>)) -> Result<Entry> {
    let damaged = || {
        Fault::corrupt(
            "an entry of the vDisk registry is damaged; start with --discard-local to rebuild it",
        )
    };
    let name = String::from_utf8(key.to_vec()).map_err(|_| damaged())?;
    let (standing, id) = value.split_first().ok_or_else(damaged)?;
    let id = VolumeId(id.try_into().map_err(|_| damaged())?);
    let standing = match *standing {
        PRESENT => Standing::Present,
        LEAVING => Standing::Leaving,
        _ => return Err(damaged()),
    };
    Ok(Entry { name, id, standing })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let entry =
            |name: &str, standing| Entry { name: name.into(), id: VolumeId([7; 16]), standing };
        {
            let (_, registry) = crate::local::open(dir.path()).await.unwrap();
            registry.put(&entry("b", Standing::Present)).await.unwrap();
            registry.put(&entry("a", Standing::Present)).await.unwrap();
            registry.put(&entry("a", Standing::Leaving)).await.unwrap();
            registry.put(&entry("c", Standing::Present)).await.unwrap();
            registry.remove("c").await.unwrap();
        }
        let (_, registry) = crate::local::open(dir.path()).await.unwrap();
        let found = registry.list().await.unwrap();
        assert_eq!(found, [entry("a", Standing::Leaving), entry("b", Standing::Present)]);
    }
}
