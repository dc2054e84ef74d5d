//! Namespaces: created, found, deleted.
//!
//! The record `n` leads to a namespace by name and is in the first cluster; the namespace's life `l` is at its home. It
//! exists while both do. Where these are two clusters, life begins before the record comes and ends before the record goes;
//! a record without life, which a crash in between leaves, is as good as none.

use std::sync::Arc;

use super::keys::{self, NamespaceRecord};
use super::kv::{Commit, Key, Value};
use super::retry::Retry;
use super::{Nsm, Page, Space};
use crate::fault::{Fault, Result};

/// A namespace, and values read at its home while it lived.
pub(super) struct Found<const N: usize> {
    pub space: Arc<Space>,
    pub values: [Option<Value>; N],
}

impl Nsm {
    /// With the default preset when none is named. `false` when the namespace was there before.
    pub async fn create_namespace(&self, namespace: &str, preset: Option<&str>) -> Result<bool> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let (record, default) = (keys::namespace(namespace), keys::DEFAULT_PRESET.to_vec());
            let [before, default] = self.read(0, [record.clone(), default]).await?;
            if let Some(value) = &before
                && self.life_of(&NamespaceRecord::decode(value)?).await?.is_some()
            {
                return Ok(false);
            }
            let preset = match preset {
                Some(name) => name.to_string(),
                None => super::records::default_name(default.as_deref())?,
            };
            let [known] = self.read(0, [keys::preset(&preset)]).await?;
            let known = known.ok_or_else(|| super::records::no_preset(&preset))?;
            let (id, home) = (self.outside.bytes(), self.least_used().await?);
            let mut commit = Commit::default();
            commit.is_still(record.clone(), before).is(keys::preset(&preset), known);
            commit.put(record, NamespaceRecord { id, preset, home }.encode());
            commit.put(keys::PRESET_USES.to_vec(), self.outside.bytes());
            if self.begin_life(home, id, commit).await? {
                self.spaces.remove(namespace);
                return Ok(true);
            }
            retry.again().await?;
        }
    }

    async fn begin_life(&self, home: usize, id: [u8; 16], mut commit: Commit) -> Result<bool> {
        let life = || 0u64.to_le_bytes();
        if home == 0 {
            commit.put(keys::life(id), life());
            return self.commit(0, commit).await;
        }
        let mut begin = Commit::default();
        begin.put(keys::life(id), life());
        self.commit(home, begin).await?;
        let is_named = self.commit(0, commit).await?;
        if !is_named {
            let mut end = Commit::default();
            end.delete(keys::life(id));
            self.commit(home, end).await?;
        }
        Ok(is_named)
    }

    /// The cluster with the fewest namespaces.
    async fn least_used(&self) -> Result<usize> {
        if self.clusters.len() == 1 {
            return Ok(0);
        }
        let mut counts = vec![0; self.clusters.len()];
        for (_, value) in self.all(0, b"n").await? {
            if let Some(count) = counts.get_mut(NamespaceRecord::decode(&value)?.home) {
                *count += 1;
            }
        }
        let least = counts.iter().enumerate().min_by_key(|(_, count)| **count);
        Ok(least.map_or(0, |(home, _)| home))
    }

    /// Makes the namespace and its objects unreachable at once; `false` when there is none.
    pub async fn delete_namespace(&self, namespace: &str) -> Result<bool> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let [record] = self.read(0, [keys::namespace(namespace)]).await?;
            let Some(record) = record else { return Ok(false) };
            let NamespaceRecord { id, home, .. } = NamespaceRecord::decode(&record)?;
            let mut forget = Commit::default();
            forget.is(keys::namespace(namespace), record.clone());
            forget.delete(keys::namespace(namespace));
            self.spaces.remove(namespace);
            let life = self.life_of(&NamespaceRecord::decode(&record)?).await?;
            let Some(life) = life else {
                self.commit(0, forget).await?;
                return Ok(false);
            };
            let mut end = if home == 0 { std::mem::take(&mut forget) } else { Commit::default() };
            end.is(keys::life(id), life).delete(keys::life(id)).put(keys::tomb(id), []);
            if self.commit(home, end).await? {
                if home > 0 {
                    self.commit(0, forget).await?;
                }
                self.tally.forget(id);
                return Ok(true);
            }
            retry.again().await?;
        }
    }

    pub async fn list_namespaces(&self, prefix: &str, after: &str, limit: usize) -> Result<Page> {
        self.page(0, vec![b'n'], (prefix, after), limit).await
    }

    /// All namespaces, and the names of their presets.
    pub async fn namespace_presets(&self) -> Result<Vec<(String, String)>> {
        let named = |(name, value): (Key, Value)| {
            let record = NamespaceRecord::decode(&value)?;
            Ok((String::from_utf8_lossy(&name).into_owned(), record.preset))
        };
        self.all(0, b"n").await?.into_iter().map(named).collect()
    }

    async fn life_of(&self, record: &NamespaceRecord) -> Result<Option<Value>> {
        let [life] = self.read(record.home, [keys::life(record.id)]).await?;
        Ok(life)
    }

    /// The namespace and the values of some keys at its home; `None` when there is no such namespace.
    pub(super) async fn find<const N: usize>(
        &self,
        namespace: &str,
        keys: impl Fn(&Space) -> [Key; N],
    ) -> Result<Option<Found<N>>> {
        if let Some(space) = self.spaces.get(namespace)
            && let Some(found) = self.look(&space, keys(&space)).await?
        {
            return Ok(Some(found));
        }
        self.spaces.remove(namespace);
        let [record] = self.read(0, [keys::namespace(namespace)]).await?;
        let Some(record) = record else { return Ok(None) };
        let NamespaceRecord { id, preset, home } = NamespaceRecord::decode(&record)?;
        let space = Space { id, home, preset, life: Value::new(), enabled: None };
        let found = self.look(&space, keys(&space)).await?;
        if let Some(found) = &found {
            self.spaces.insert(namespace.to_string(), found.space.clone());
        }
        Ok(found)
    }

    /// `None` when it does not live. With its life as it is now.
    async fn look<const N: usize>(
        &self,
        space: &Space,
        wanted: [Key; N],
    ) -> Result<Option<Found<N>>> {
        let own = [keys::life(space.id), keys::ENABLED.to_vec()];
        let keys = own.into_iter().chain(wanted).collect();
        let mut values = self.cluster(space.home)?.kv.get(keys).await?;
        let wrong = || Fault::bug("a table answers other keys than were asked");
        if values.len() < 2 {
            return Err(wrong());
        }
        let enabled = values.remove(1);
        let Some(life) = values.remove(0) else { return Ok(None) };
        let values = values.try_into().map_err(|_| wrong())?;
        let (id, home, preset) = (space.id, space.home, space.preset.clone());
        Ok(Some(Found { space: Arc::new(Space { id, home, preset, life, enabled }), values }))
    }

    pub(super) fn no_namespace(namespace: &str) -> Fault {
        Fault::not_found(format!("there is no namespace {namespace:?}"))
    }
}
