//! The table in memory, gone with the process: for simulations, which put what may go wrong around it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;

use super::kv::{Commit, Guard, Key, Kv, Value, Write};
use crate::fault::Result;

#[derive(Debug, Default)]
pub struct Memory {
    table: Mutex<BTreeMap<Key, Value>>,
}

impl Memory {
    // Changed by steps that do not panic.
    fn table(&self) -> MutexGuard<'_, BTreeMap<Key, Value>> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[async_trait]
impl Kv for Memory {
    fn place(&self) -> String {
        "memory".into()
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn writes_at_once(&self) -> usize {
        1000
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Value>>> {
        let table = self.table();
        Ok(keys.iter().map(|key| table.get(key).cloned()).collect())
    }

    async fn range(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let table = self.table();
        let found = table.range(from..to).take(limit);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, commit: Commit) -> Result<bool> {
        let mut table = self.table();
        let holds = |guard: &Guard| table.get(&guard.key) == guard.expected.as_ref();
        if !commit.guards.iter().all(holds) {
            return Ok(false);
        }
        for write in commit.writes {
            match write {
                Write::Put(key, value) => table.insert(key, value),
                Write::Delete(key) => table.remove(&key),
            };
        }
        Ok(true)
    }
}
