//! The ordered table under the NSM: what a store must do to hold one.
//!
//! Keys and values are bytes. A commit checks its guards and makes its writes in one atomic step; nothing else changes the
//! table. Commits of one table are linearizable, and so are gets with respect to them.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::fault::Result;

pub type Key = Vec<u8>;
pub type Value = Vec<u8>;

/// What must hold for a commit to be made: the key has exactly this value, or is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    pub key: Key,
    pub expected: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put(Key, Value),
    /// Succeeds also when the key is absent.
    Delete(Key),
}

impl Write {
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// When a commit is on stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it returns.
    #[default]
    Now,
    /// Not later than the next commit that returns durable. For what may be done twice.
    Later,
}

/// Guards and writes, all or nothing. A key is written at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    pub guards: Vec<Guard>,
    pub writes: Vec<Write>,
    pub durability: Durability,
}

impl Commit {
    pub fn is(&mut self, key: Key, value: Value) -> &mut Self {
        self.guards.push(Guard { key, expected: Some(value) });
        self
    }
    pub fn is_absent(&mut self, key: Key) -> &mut Self {
        self.guards.push(Guard { key, expected: None });
        self
    }
    /// As it was read.
    pub fn is_still(&mut self, key: Key, value: Option<Value>) -> &mut Self {
        self.guards.push(Guard { key, expected: value });
        self
    }
    pub fn put(&mut self, key: Key, value: impl Into<Value>) -> &mut Self {
        self.writes.push(Write::Put(key, value.into()));
        self
    }
    pub fn delete(&mut self, key: Key) -> &mut Self {
        self.writes.push(Write::Delete(key));
        self
    }
}

/// A table. Calls end: a store that does not answer is `Unavailable`.
#[async_trait]
pub trait Kv: Debug + Send + Sync {
    /// Where it is, for people.
    fn place(&self) -> String;
    /// Whether others than this process may change it.
    fn is_shared(&self) -> bool;
    /// Writes that one commit may certainly have. What has more may be refused (`Invalid`) with nothing changed.
    fn writes_at_once(&self) -> usize;
    /// The values of these keys, in their order.
    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Value>>>;
    /// The first `limit` keys from `from` to before `to` and their values, ascending. What one call returns need not be of
    /// one moment.
    async fn range(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>>;
    /// `false` when a guard does not hold; then nothing is changed. After `Unavailable` nobody knows whether the writes were
    /// made, or still will be: whoever needs to know looks for what only this commit can have written.
    async fn commit(&self, commit: Commit) -> Result<bool>;
}

/// The least key greater than all that begin with this.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Key {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    vec![u8::MAX; prefix.len() + 1]
}

#[cfg(test)]
pub mod conformance;

#[cfg(test)]
mod tests {
    use super::after_prefix;

    #[test]
    fn the_end_of_a_prefix_is_after_all_that_begin_with_it() {
        assert_eq!(after_prefix(b"m"), b"n");
        assert_eq!(after_prefix(b"m\xff\xff"), b"n");
        assert_eq!(after_prefix(b"a\x00"), b"a\x01");
        assert!(after_prefix(b"\xff") > b"\xff\x07".to_vec());
    }
}
