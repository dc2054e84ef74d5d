//! What maintenance reads: manifests by name, fragments by OSD, and storing an object anew.

use std::collections::{HashMap, HashSet};

use super::keys::{self, NamespaceRecord};
use super::kv::{Key, Value};
use super::namespaces::Found;
use super::objects::{add, drop_fragments, living};
use super::retry::Retry;
use super::{Nsm, epochs};
use crate::fault::{Fault, Result};
use crate::manifest::Manifest;
use crate::name::{FragmentId, OsdId};

/// A live fragment of an OSD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub file: FragmentId,
    /// Of the object; `None` when the namespace is being deleted.
    pub namespace: Option<String>,
    pub name: String,
    home: usize,
}

impl Nsm {
    /// Up to `limit` objects of the namespace after this name. A manifest that cannot be read is an error in its place.
    pub async fn manifests(
        &self,
        namespace: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, Result<Manifest>)>> {
        let Some(Found { space, .. }) = self.find(namespace, |_| []).await? else {
            return Ok(Vec::new());
        };
        let area = keys::key(b'm', &space.id);
        let from = if after.is_empty() {
            area.clone()
        } else {
            [&area[..], after.as_bytes(), &[0]].concat()
        };
        let (found, _) = self.step(space.home, &area, from, limit).await?;
        let named = |(key, value): (Key, Value)| {
            let name = String::from_utf8_lossy(key.get(area.len()..).unwrap_or_default());
            let manifest = Manifest::decode(&value).map_err(|fault| fault.about(&name));
            (name.into_owned(), manifest)
        };
        Ok(found.into_iter().map(named).collect())
    }

    /// Up to `limit` live fragments of an OSD after this one, in no order that matters; none when there are no more.
    pub async fn fragments_of(
        &self,
        osd: OsdId,
        after: Option<&Located>,
        limit: usize,
    ) -> Result<Vec<Located>> {
        let area = keys::key(b'f', &osd.0);
        let mut from = match after {
            Some(located) => [&keys::fragment(osd, located.file)[..], &[0]].concat(),
            None => area.clone(),
        };
        for home in after.map_or(0, |located| located.home)..self.clusters.len() {
            let (found, _) = self.step(home, &area, from, limit).await?;
            if !found.is_empty() {
                let names = self.namespace_names().await?;
                let located = |(key, value): (Key, Value)| {
                    let file = FragmentId(keys::as_id(key.get(area.len()..).unwrap_or_default())?);
                    let (id, name) = value.split_at_checked(16).unwrap_or((&value, &[]));
                    let namespace = names.get(&keys::as_id(id)?).cloned();
                    let name = String::from_utf8_lossy(name).into_owned();
                    Ok(Located { file, namespace, name, home })
                };
                return found.into_iter().map(located).collect();
            }
            from = area.clone();
        }
        Ok(Vec::new())
    }

    async fn namespace_names(&self) -> Result<HashMap<[u8; 16], String>> {
        let named = |(name, value): (Key, Value)| {
            let record = NamespaceRecord::decode(&value)?;
            Ok((record.id, String::from_utf8_lossy(&name).into_owned()))
        };
        self.all(0, b"n").await?.into_iter().map(named).collect()
    }

    /// Which of these fragments are named by manifests.
    pub async fn live_of(&self, osd: OsdId, files: &[FragmentId]) -> Result<HashSet<FragmentId>> {
        let mut live = HashSet::new();
        for some in files.chunks(super::PAGE / 10) {
            for cluster in &self.clusters {
                let keys = some.iter().map(|file| keys::fragment(osd, *file)).collect();
                let values = cluster.kv.get(keys).await?;
                if values.len() != some.len() {
                    return Err(Fault::bug("a table answers other keys than were asked"));
                }
                let named = some.iter().zip(values).filter(|(_, value)| value.is_some());
                live.extend(named.map(|(file, _)| *file));
            }
        }
        Ok(live)
    }

    /// The object's new bytes, which are the same ones stored otherwise, take the place of the old if its manifest is still
    /// that one; the old fragments are noted for removal. `false` when it is another; then nothing is changed.
    pub async fn replace(
        &self,
        namespace: &str,
        name: &str,
        old: &Manifest,
        new: &Manifest,
    ) -> Result<bool> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let found = self.find(namespace, |space| [keys::object(space.id, name)]).await?;
            let Some(Found { space, values: [value] }) = found else { return Ok(false) };
            let now = value.as_deref().map(Manifest::decode).transpose()?;
            if now.as_ref().is_some_and(|now| now.id == new.id) {
                // By this call, though it was not known.
                return Ok(true);
            }
            if now.as_ref() != Some(old) {
                return Ok(false);
            }
            let mut commit = living(&space);
            epochs::enable(&mut commit, &space, &new.fragments)?;
            commit.is_still(keys::object(space.id, name), value);
            drop_fragments(&mut commit, space.home, old);
            add(&mut commit, space.id, name, new);
            match self.commit(space.home, commit).await {
                Ok(true) => return Ok(true),
                Ok(false) => retry.again().await?,
                Err(fault) => {
                    let is_new = |now: &Manifest| now.id == new.id;
                    let now = self.get(namespace, name).await;
                    let is_made = now.is_ok_and(|now| now.as_ref().is_some_and(is_new));
                    return if is_made { Ok(true) } else { Err(fault) };
                }
            }
        }
    }
}
