//! The registry in memory, for tests: all it promises, for as long as the process lives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use volumedriver_core::fault::Result;

use super::{Created, Registry};

/// Shared by its clones. Keys that were retired stay until [`Memory::forget_retired`].
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    keys: BTreeMap<String, Bytes>,
    retired: Vec<String>,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.state().keys.keys().cloned().collect()
    }

    /// As if their time had come.
    pub fn forget_retired(&self) {
        let mut state = self.state();
        for key in std::mem::take(&mut state.retired) {
            state.keys.remove(&key);
        }
    }
}

impl Registry for Memory {
    async fn create(&self, key: &str, value: Bytes) -> Result<Created> {
        let mut state = self.state();
        if let Some(found) = state.keys.get(key) {
            return Ok(Created::Before(found.clone()));
        }
        state.keys.insert(key.to_owned(), value);
        Ok(Created::Now)
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        Ok(self.state().keys.get(key).cloned())
    }

    async fn retire(&self, key: &str, old: Bytes, new: Bytes, _life: Duration) -> Result<bool> {
        let mut state = self.state();
        let same = state.keys.get(key) == Some(&old);
        if same {
            state.keys.insert(key.to_owned(), new);
            state.retired.push(key.to_owned());
        }
        Ok(same)
    }

    async fn remove(&self, key: &str, old: Bytes) -> Result<()> {
        let mut state = self.state();
        if state.keys.get(key) == Some(&old) {
            state.keys.remove(key);
        }
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.state().keys.remove(key);
        Ok(())
    }

    async fn delete_all(&self, prefix: &str) -> Result<()> {
        self.state().keys.retain(|key, _| !key.starts_with(prefix));
        Ok(())
    }
}
