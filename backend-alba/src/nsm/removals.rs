//! Fragments: which files are live, and which are to be removed.

use super::kv::{Commit, Durability, Key, Value};
use super::objects::drop_fragments;
use super::{Nsm, keys};
use crate::fault::Result;
use crate::manifest::Manifest;
use crate::name::{FragmentId, OsdId};

/// Names read in one step of dropping a namespace.
const DROP_STEP: usize = 512;

/// A fragment's file that is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    pub file: FragmentId,
    pub osd: OsdId,
    /// Where it is noted.
    pub(super) home: usize,
}

impl Nsm {
    /// Some manifest names this fragment.
    pub async fn is_live(&self, osd: OsdId, file: FragmentId) -> Result<bool> {
        for home in 0..self.clusters.len() {
            let [live] = self.read(home, [keys::fragment(osd, file)]).await?;
            if live.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Up to `limit` files noted for removal, of those after this one.
    pub async fn removals(&self, after: Option<Removal>, limit: usize) -> Result<Vec<Removal>> {
        let mut from = match after {
            Some(removal) => [&keys::removal(removal.file)[..], &[0]].concat(),
            None => b"r".to_vec(),
        };
        for home in after.map_or(0, |removal| removal.home)..self.clusters.len() {
            let (found, _) = self.step(home, b"r", from, limit).await?;
            if !found.is_empty() {
                let noted = |(key, value): (Key, Value)| {
                    let file = FragmentId(keys::as_id(&key[1..])?);
                    Ok(Removal { file, osd: OsdId(keys::as_id(&value)?), home })
                };
                return found.into_iter().map(noted).collect();
            }
            from = b"r".to_vec();
        }
        Ok(Vec::new())
    }

    /// These files are gone. Not durable at once: removing a file twice does no harm.
    pub async fn removed(&self, removals: &[Removal]) -> Result<()> {
        for home in 0..self.clusters.len() {
            let here: Vec<&Removal> = removals.iter().filter(|r| r.home == home).collect();
            for some in here.chunks(self.cluster(home)?.kv.writes_at_once()) {
                let mut commit = Commit { durability: Durability::Later, ..Commit::default() };
                for removal in some {
                    commit.delete(keys::removal(removal.file));
                }
                self.commit(home, commit).await?;
            }
        }
        Ok(())
    }

    /// Notes the files of some objects of a deleted namespace for removal; `false` when none is left to drop.
    pub async fn drop_some(&self) -> Result<bool> {
        for home in 0..self.clusters.len() {
            let (tombs, _) = self.step(home, b"x", b"x".to_vec(), 1).await?;
            if let Some((tomb, _)) = tombs.into_iter().next() {
                self.drop_step(home, tomb).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Nothing comes to a namespace without life, so whoever else does the same does it to the same objects.
    async fn drop_step(&self, home: usize, tomb: Key) -> Result<()> {
        let prefix = keys::key(b'm', &tomb[1..]);
        let (objects, next) = self.step(home, &prefix, prefix.clone(), DROP_STEP).await?;
        let most = self.cluster(home)?.kv.writes_at_once();
        let mut commit = Commit::default();
        for (key, value) in objects {
            let mut more = Commit::default();
            more.delete(key);
            drop_fragments(&mut more, home, &Manifest::decode(&value)?);
            if commit.writes.len() + more.writes.len() > most {
                self.commit(home, std::mem::take(&mut commit)).await?;
            }
            commit.writes.extend(more.writes);
        }
        if next.is_none() {
            commit.delete(tomb);
        }
        self.commit(home, commit).await.map(drop)
    }
}
