//! Objects: their manifests found, put, moved, deleted, and changed in sequences.

use super::keys::{self, SpaceId};
use super::kv::{Commit, Key, Value};
use super::namespaces::Found;
use super::retry::Retry;
use super::tally::Delta;
use super::{Change, Condition, Nsm, Page, Put, Removal, Space, epochs};
use crate::fault::{Fault, Kind, Result};
use crate::manifest::{Fragment, Manifest};
use crate::name::ObjectId;
use crate::preset::Preset;

impl Nsm {
    /// `None` when there is no such object or no such namespace.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<Manifest>> {
        match self.find_object(namespace, name).await? {
            Some(found) => manifest_of(name, found.values[0].as_deref()),
            None => Ok(None),
        }
    }

    async fn find_object(&self, namespace: &str, name: &str) -> Result<Option<Found<1>>> {
        self.find(namespace, |space| [keys::object(space.id, name)]).await
    }

    /// How a new object of this name is to be stored; `None` when there is one.
    pub async fn target(&self, namespace: &str, name: &str) -> Result<Option<Preset>> {
        let found = self.find_object(namespace, name).await?;
        let found = found.ok_or_else(|| Self::no_namespace(namespace))?;
        if found.values[0].is_some() {
            return Ok(None);
        }
        self.preset_now(namespace, &found.space.preset).await.map(Some)
    }

    /// An object, and how it would be stored now. `None` when there is none.
    pub async fn object(&self, namespace: &str, name: &str) -> Result<Option<(Manifest, Preset)>> {
        let Some(found) = self.find_object(namespace, name).await? else { return Ok(None) };
        let Some(manifest) = manifest_of(name, found.values[0].as_deref())? else {
            return Ok(None);
        };
        let preset = self.preset_now(namespace, &found.space.preset).await?;
        Ok(Some((manifest, preset)))
    }

    pub async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Page> {
        match self.find(namespace, |_| []).await? {
            Some(Found { space, .. }) => {
                let area = keys::key(b'm', &space.id);
                self.page(space.home, area, (prefix, after), limit).await
            }
            None => Ok(Page::default()),
        }
    }

    /// The linearization point of a put.
    pub async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        manifest: &Manifest,
    ) -> Result<Put> {
        let mut retry = Retry::new(&self.outside);
        // What is remembered of the namespace will do: the commit depends on it.
        let mut known = self.spaces.get(namespace);
        loop {
            let space = match known.take() {
                Some(space) => space,
                None => {
                    let found = self.find_object(namespace, name).await?;
                    let found = found.ok_or_else(|| Self::no_namespace(namespace))?;
                    if let Some(there) = manifest_of(name, found.values[0].as_deref())? {
                        let is_this = there.id == manifest.id;
                        return Ok(if is_this { Put::Created } else { Put::Exists });
                    }
                    found.space
                }
            };
            let mut commit = living(&space);
            epochs::enable(&mut commit, &space, &manifest.fragments)?;
            commit.is_absent(keys::object(space.id, name));
            add(&mut commit, space.id, name, manifest);
            let counting = self.tally.change(space.id);
            let is_made = match self.commit(space.home, commit).await {
                Err(fault) => self.was_put(namespace, [(name, manifest.id)], fault).await?,
                Ok(is_made) => is_made,
            };
            if is_made {
                counting.made(Delta::of(manifest));
                return Ok(Put::Created);
            }
            counting.not_made();
            retry.again().await?;
        }
    }

    /// After an unknown outcome: one of these objects is there, so all of the commit was made. The fault when none is: it
    /// may still come, even where another object has its name, for that may go.
    async fn was_put(
        &self,
        namespace: &str,
        puts: impl IntoIterator<Item = (&str, ObjectId)>,
        fault: Fault,
    ) -> Result<bool> {
        if fault.kind != Kind::Unavailable {
            return Err(fault);
        }
        for (name, id) in puts {
            match self.get(namespace, name).await {
                Ok(Some(found)) if found.id == id => return Ok(true),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Err(fault)
    }

    /// Forgets an object and notes its files for removal; `None` when there is no such object.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<Option<Vec<Removal>>> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let Some(found) = self.find_object(namespace, name).await? else { return Ok(None) };
            let [Some(value)] = &found.values else { return Ok(None) };
            let manifest = decode(name, value)?;
            let space = &found.space;
            let mut commit = living(space);
            commit.is(keys::object(space.id, name), value.clone());
            commit.delete(keys::object(space.id, name));
            let gone = drop_fragments(&mut commit, space.home, &manifest);
            let counting = self.tally.change(space.id);
            // Of an unknown outcome nothing tells whether it was this commit that took it away.
            let is_made = self.commit(space.home, commit).await?;
            if is_made {
                counting.made(-Delta::of(&manifest));
                return Ok(Some(gone));
            }
            counting.not_made();
            retry.again().await?;
        }
    }

    /// Where an object's fragments lie is changed, if it still is this one and lies where it was believed to: each pair is
    /// a fragment that goes and one that comes, which must fit to where the others lie then: they may have moved since its
    /// place was chosen. `false` when that does not hold; then nothing is changed.
    pub async fn move_fragments(
        &self,
        (namespace, name): (&str, &str),
        object: ObjectId,
        moves: &[(Option<Fragment>, Option<Fragment>)],
        fits: &(dyn Fn(&Manifest, &Fragment) -> bool + Sync),
    ) -> Result<bool> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let Some(found) = self.find_object(namespace, name).await? else { return Ok(false) };
            let [Some(value)] = &found.values else { return Ok(false) };
            let mut manifest = decode(name, value)?;
            if manifest.id != object {
                return Ok(false);
            }
            let space = &found.space;
            let mut commit = living(space);
            epochs::enable(&mut commit, space, moves.iter().filter_map(|(_, new)| new.as_ref()))?;
            commit.is(keys::object(space.id, name), value.clone());
            if !make_moves(&mut commit, (space.id, name), &mut manifest, moves) {
                return Ok(false);
            }
            if !moves.iter().filter_map(|(_, new)| new.as_ref()).all(|new| fits(&manifest, new)) {
                return Ok(false);
            }
            commit.put(keys::object(space.id, name), manifest.encode());
            match self.commit(space.home, commit).await {
                Ok(true) => return Ok(true),
                Ok(false) => retry.again().await?,
                Err(fault) => {
                    let is_there = self.has_moved(namespace, name, &manifest, moves).await;
                    return if is_there { Ok(true) } else { Err(fault) };
                }
            }
        }
    }

    /// After an unknown outcome: a fragment that only these moves can have brought is there.
    async fn has_moved(
        &self,
        namespace: &str,
        name: &str,
        made: &Manifest,
        moves: &[(Option<Fragment>, Option<Fragment>)],
    ) -> bool {
        match self.get(namespace, name).await {
            Ok(Some(now)) if now.id == made.id => {
                moves.iter().filter_map(|(_, new)| *new).any(|new| now.fragments.contains(&new))
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Checks all conditions and makes all changes, or none; returns the files that are to go.
    pub async fn apply(
        &self,
        namespace: &str,
        asserts: &[(String, Condition)],
        changes: &[(String, Change)],
    ) -> Result<Vec<Removal>> {
        let mut retry = Retry::new(&self.outside);
        let mut names: Vec<&str> = asserts.iter().map(|(name, _)| name.as_str()).collect();
        names.extend(changes.iter().map(|(name, _)| name.as_str()));
        names.sort_unstable();
        names.dedup();
        loop {
            let (found, values) = self.find_all(namespace, &names).await?;
            let value = |name: &str| {
                let at = names.binary_search(&name).ok();
                at.and_then(|at| values.get(at)).and_then(Option::as_deref)
            };
            for (name, condition) in asserts {
                check(name, condition, manifest_of(name, value(name))?)?;
            }
            let space = &found.space;
            let mut commit = living(space);
            let put = changes.iter().flat_map(|(_, change)| change.fragments());
            epochs::enable(&mut commit, space, put)?;
            for (name, value) in names.iter().zip(&values) {
                commit.is_still(keys::object(space.id, name), value.clone());
            }
            let (mut gone, mut delta) = (Vec::new(), Delta::default());
            for (name, change) in changes {
                if let Some(old) = manifest_of(name, value(name))? {
                    gone.extend(drop_fragments(&mut commit, space.home, &old));
                    delta += -Delta::of(&old);
                }
                match change {
                    Change::Put(manifest) => {
                        add(&mut commit, space.id, name, manifest);
                        delta += Delta::of(manifest);
                    }
                    Change::Delete => {
                        commit.delete(keys::object(space.id, name));
                    }
                }
            }
            let counting = self.tally.change(space.id);
            let is_made = match self.commit(space.home, commit).await {
                Err(fault) => self.was_put(namespace, puts_of(changes), fault).await?,
                Ok(is_made) => is_made,
            };
            if is_made {
                counting.made(delta);
                return Ok(gone);
            }
            counting.not_made();
            retry.again().await?;
        }
    }

    /// The namespace, and what is there of these names.
    async fn find_all(
        &self,
        namespace: &str,
        names: &[&str],
    ) -> Result<(Found<0>, Vec<Option<Value>>)> {
        let found = self.find(namespace, |_| []).await?;
        let found = found.ok_or_else(|| Self::no_namespace(namespace))?;
        let keys: Vec<Key> = names.iter().map(|name| keys::object(found.space.id, name)).collect();
        let values = self.cluster(found.space.home)?.kv.get(keys).await?;
        Ok((found, values))
    }
}

fn puts_of(changes: &[(String, Change)]) -> impl Iterator<Item = (&str, ObjectId)> {
    changes.iter().filter_map(|(name, change)| match change {
        Change::Put(manifest) => Some((name.as_str(), manifest.id)),
        Change::Delete => None,
    })
}

/// A commit that depends on the namespace's life.
pub(super) fn living(space: &Space) -> Commit {
    let mut commit = Commit::default();
    commit.is(keys::life(space.id), space.life.clone());
    commit
}

fn decode(name: &str, value: &[u8]) -> Result<Manifest> {
    Manifest::decode(value).map_err(|fault| fault.about(name))
}

fn manifest_of(name: &str, value: Option<&[u8]>) -> Result<Option<Manifest>> {
    value.map(|value| decode(name, value)).transpose()
}

fn check(name: &str, condition: &Condition, found: Option<Manifest>) -> Result<()> {
    let why = match (condition, found) {
        (Condition::Exists, Some(_)) | (Condition::Absent, None) => return Ok(()),
        (Condition::HasCrc(crc), Some(m)) if m.crc == *crc => return Ok(()),
        (Condition::Exists, None) => "it does not exist".into(),
        (Condition::Absent, Some(_)) => "it exists".into(),
        (Condition::HasCrc(crc), None) => {
            format!("it does not exist, checksum {crc:08x} was asserted")
        }
        (Condition::HasCrc(crc), Some(m)) => {
            format!("its checksum is {:08x}, not {crc:08x}", m.crc)
        }
    };
    Err(Fault::new(Kind::AssertFailed, format!("assert on object {name:?} failed: {why}")))
}

pub(super) fn add(commit: &mut Commit, space: SpaceId, name: &str, manifest: &Manifest) {
    commit.put(keys::object(space, name), manifest.encode());
    for fragment in &manifest.fragments {
        add_fragment(commit, space, name, fragment);
    }
}

pub(super) fn add_fragment(commit: &mut Commit, space: SpaceId, name: &str, fragment: &Fragment) {
    let value = [&space[..], name.as_bytes()].concat();
    commit.put(keys::fragment(fragment.osd, fragment.file), value);
}

/// Their files are to be removed.
pub(super) fn drop_fragments(
    commit: &mut Commit,
    home: usize,
    manifest: &Manifest,
) -> Vec<Removal> {
    manifest.fragments.iter().for_each(|fragment| drop_fragment(commit, fragment));
    let noted = |fragment: &Fragment| Removal { file: fragment.file, osd: fragment.osd, home };
    manifest.fragments.iter().map(noted).collect()
}

fn drop_fragment(commit: &mut Commit, fragment: &Fragment) {
    commit.delete(keys::fragment(fragment.osd, fragment.file));
    commit.put(keys::removal(fragment.file), fragment.osd.0);
}

/// `false` when a fragment that goes is not there, or one that comes has its place taken.
fn make_moves(
    commit: &mut Commit,
    (space, name): (SpaceId, &str),
    manifest: &mut Manifest,
    moves: &[(Option<Fragment>, Option<Fragment>)],
) -> bool {
    for (old, new) in moves {
        if let Some(old) = old {
            let before = manifest.fragments.len();
            manifest.fragments.retain(|fragment| fragment != old);
            if manifest.fragments.len() == before {
                return false;
            }
            drop_fragment(commit, old);
        }
        if let Some(new) = new {
            if manifest.fragment(new.index.into()).is_some() {
                return false;
            }
            add_fragment(commit, space, name, new);
            manifest.fragments.push(*new);
        }
    }
    manifest.fragments.sort_by_key(|fragment| fragment.index);
    true
}
