//! Whose a shared table is: clusters belong to exactly one backend, and each knows its number in it.
//!
//! Whoever comes first to an empty cluster makes it the backend's; a namespace's record names its home by that number, so
//! clusters may be given in any order, and more may be added later. None may be left out.

use std::sync::Arc;

use super::keys;
use super::kv::{Commit, Kv};
use crate::fault::{Fault, Kind, Result};
use crate::name::AlbaId;

/// A backend's clusters.
#[derive(Debug)]
pub struct Joined {
    pub id: AlbaId,
    /// By number.
    pub tables: Vec<Arc<dyn Kv>>,
}

/// What to do when no cluster belongs to a backend yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Founding {
    /// They become this one's.
    As(AlbaId),
    /// This one's should be there: then it is lost.
    Lost(AlbaId),
}

/// Finds out which backend these clusters belong to. Those that belong to none become its own.
pub async fn join(mut tables: Vec<Arc<dyn Kv>>, founding: Founding) -> Result<Joined> {
    // So that all who start a new backend begin with the same one.
    tables.sort_by_key(|table| table.place());
    let (mut known, mut fresh) = (Vec::new(), Vec::new());
    for table in tables {
        match owner(&*table).await? {
            Some((id, number)) => known.push((number, id, table)),
            None => fresh.push(table),
        }
    }
    if known.is_empty() {
        let id = match founding {
            Founding::As(id) => id,
            Founding::Lost(id) => return Err(lost(id, &fresh)),
        };
        let Some(first) = (!fresh.is_empty()).then(|| fresh.remove(0)) else {
            return Err(Fault::invalid("the NSM needs at least one table"));
        };
        let (id, number) = claim(&*first, id, 0).await?;
        known.push((number, id, first));
    }
    known.sort_by_key(|(number, ..)| *number);
    let id = known[0].1;
    if let Some((_, other, table)) = known.iter().find(|(_, other, _)| *other != id) {
        let (place, first) = (table.place(), known[0].2.place());
        return Err(Fault::invalid(format!(
            "{place} belongs to backend {other}, but {first} to {id}"
        )));
    }
    let count = count(&*known[0].2).await?.max(known.len());
    for (table, number) in fresh.into_iter().zip(count..) {
        let (owner, number) = claim(&*table, id, number).await?;
        known.push((number, owner, table));
    }
    for (n, (number, owner, table)) in known.iter().enumerate() {
        if (*number, *owner) != (n, id) {
            let place = table.place();
            return Err(Fault::invalid(format!(
                "cluster {n} of the NSM of backend {id} is not among those given: {place} is its cluster {number}"
            )));
        }
    }
    if known.len() > count {
        note_count(&*known[0].2, count, known.len()).await?;
    }
    Ok(Joined { id, tables: known.into_iter().map(|(_, _, table)| table).collect() })
}

fn lost(id: AlbaId, tables: &[Arc<dyn Kv>]) -> Fault {
    let places: Vec<String> = tables.iter().map(|table| table.place()).collect();
    let places = places.join(", ");
    Fault::new(
        Kind::Corrupt,
        format!(
            "the NSM of backend {id} is not at {places} any more; `alba recover` rebuilds it from the OSDs"
        ),
    )
}

/// The backend it belongs to, and its number there.
pub async fn owner(table: &dyn Kv) -> Result<Option<(AlbaId, usize)>> {
    let value = table.get(vec![keys::OWNER.to_vec()]).await?.pop().flatten();
    let Some(value) = value else { return Ok(None) };
    let text = String::from_utf8_lossy(&value).into_owned();
    let owner = text
        .split_once(' ')
        .and_then(|(id, number)| Some((AlbaId::parse(id)?, number.parse().ok()?)));
    let broken = || Fault::corrupt(format!("{}: {text:?} is no owner", table.place()));
    owner.ok_or_else(broken).map(Some)
}

/// Clusters there were so far: one that is not given must not be taken for a new one.
async fn count(first: &dyn Kv) -> Result<usize> {
    let value = first.get(vec![keys::CLUSTERS.to_vec()]).await?.pop().flatten();
    let Some(value) = value else { return Ok(1) };
    let text = String::from_utf8_lossy(&value).into_owned();
    let broken =
        |_| Fault::corrupt(format!("{}: {text:?} is no number of clusters", first.place()));
    text.parse().map_err(broken)
}

async fn note_count(first: &dyn Kv, before: usize, after: usize) -> Result<()> {
    let mut commit = Commit::default();
    let before = (before > 1).then(|| before.to_string().into_bytes());
    commit.is_still(keys::CLUSTERS.to_vec(), before);
    commit.put(keys::CLUSTERS.to_vec(), after.to_string());
    // If not, somebody else is adding some: all are looked at again by the next who joins.
    first.commit(commit).await.map(drop)
}

/// The owner there is now: this one, or one that was faster.
async fn claim(table: &dyn Kv, id: AlbaId, number: usize) -> Result<(AlbaId, usize)> {
    let mut commit = Commit::default();
    commit.is_absent(keys::OWNER.to_vec());
    commit.put(keys::OWNER.to_vec(), format!("{id} {number}"));
    let outcome = table.commit(commit).await;
    match owner(table).await? {
        Some(owner) => Ok(owner),
        None => {
            outcome?;
            Err(Fault::unavailable(format!("{}: its owner has just gone", table.place())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    fn table() -> Arc<dyn Kv> {
        Arc::new(Memory::default())
    }

    #[tokio::test]
    async fn clusters_know_their_backend_and_their_number() {
        let (one, two) = (AlbaId([1; 16]), AlbaId([2; 16]));
        let (a, b, c) = (table(), table(), table());
        let lost = join(vec![a.clone()], Founding::Lost(one)).await.unwrap_err();
        assert!(lost.message.contains("alba recover"), "{lost}");
        let joined = join(vec![a.clone(), b.clone()], Founding::As(one)).await.unwrap();
        assert_eq!((joined.id, joined.tables.len()), (one, 2));
        let first = joined.tables[0].clone();
        let second = joined.tables[1].clone();
        let again = join(vec![second.clone(), first.clone()], Founding::As(two)).await.unwrap();
        assert_eq!(again.id, one);
        assert!(Arc::ptr_eq(&again.tables[0], &first) && Arc::ptr_eq(&again.tables[1], &second));
        let lost = join(vec![first.clone(), table()], Founding::As(one)).await.unwrap_err();
        assert!(lost.message.contains("cluster 1"), "a lost one is not replaced: {lost}");
        let part = join(vec![second.clone()], Founding::As(one)).await.unwrap_err();
        assert!(part.message.contains("cluster 0"), "{part}");
        let more = join(vec![c.clone(), second, first], Founding::Lost(one)).await.unwrap();
        assert!(Arc::ptr_eq(&more.tables[2], &c));
        let other = table();
        join(vec![other.clone()], Founding::As(two)).await.unwrap();
        let mixed = join(vec![other, a, b, c], Founding::As(one)).await.unwrap_err();
        assert!(mixed.message.contains("belongs to backend"), "{mixed}");
        let broken = table();
        let mut commit = Commit::default();
        commit.put(keys::OWNER.to_vec(), b"nobody".to_vec());
        broken.commit(commit).await.unwrap();
        assert!(join(vec![broken], Founding::As(one)).await.is_err());
    }

    #[tokio::test]
    async fn of_two_who_found_a_backend_one_does() {
        for _ in 0..20 {
            let a = table();
            let join = |n: u8| {
                let a = a.clone();
                tokio::spawn(async move {
                    join(vec![a], Founding::As(AlbaId([n; 16]))).await.unwrap().id
                })
            };
            let (one, two) = (join(1), join(2));
            assert_eq!(one.await.unwrap(), two.await.unwrap());
        }
    }
}
