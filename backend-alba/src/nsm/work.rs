//! Records of maintenance, all in the first cluster: work items, agents, posts, settings. What they mean is not known here;
//! each is changed only if it still is what its changer knows.

use super::kv::{Commit, Durability, Key, Value};
use super::{Nsm, keys};
use crate::fault::Result;
use crate::maintenance::ItemKey;
use crate::name::OsdId;

/// A record of maintenance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// See [`crate::maintenance::Item`].
    Item(ItemKey),
    /// That an agent lives: a value it changes again and again.
    Agent(String),
    /// That an OSD lives: a value that agents who reach it change again and again.
    Osd(OsdId),
    /// The agent that does what one of all does.
    Post(&'static str),
    Settings,
    /// What the last tour was about.
    Tour,
    /// When the last scrub began, milliseconds since 1970: text.
    Scrub,
}

impl Record {
    fn key(&self) -> Key {
        match self {
            Self::Item(item) => keys::key(b'j', &item.to_bytes()),
            Self::Agent(id) => keys::key(b'a', id.as_bytes()),
            Self::Osd(id) => keys::key(b'b', &id.0),
            Self::Post(name) => keys::key(b'o', name.as_bytes()),
            Self::Settings => b"hs".to_vec(),
            Self::Tour => b"ht".to_vec(),
            Self::Scrub => b"hv".to_vec(),
        }
    }
}

impl Nsm {
    pub async fn record(&self, record: &Record) -> Result<Option<Value>> {
        let [value] = self.read(0, [record.key()]).await?;
        Ok(value)
    }

    /// `false` when it is not what it was believed to be; then it is unchanged.
    pub async fn change_record(
        &self,
        record: &Record,
        before: Option<&Value>,
        after: Option<Value>,
    ) -> Result<bool> {
        let mut commit = Commit { durability: Durability::Later, ..Commit::default() };
        // What is asked for is there when the answer is; the rest may be done twice.
        if matches!(record, Record::Item(_) | Record::Settings) && before.is_none() {
            commit.durability = Durability::Now;
        }
        commit.is_still(record.key(), before.cloned());
        match after {
            Some(value) => commit.put(record.key(), value),
            None => commit.delete(record.key()),
        };
        self.commit(0, commit).await
    }

    /// All work items.
    pub async fn items(&self) -> Result<Vec<(ItemKey, Value)>> {
        let items = self.all(0, b"j").await?.into_iter();
        items.map(|(key, value)| Ok((ItemKey::from_bytes(&key)?, value))).collect()
    }

    /// All agents, and the values they changed last.
    pub async fn agents(&self) -> Result<Vec<(String, Value)>> {
        let agents = self.all(0, b"a").await?.into_iter();
        Ok(agents.map(|(key, value)| (String::from_utf8_lossy(&key).into_owned(), value)).collect())
    }
}
