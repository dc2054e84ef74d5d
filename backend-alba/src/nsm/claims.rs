//! Names that a change is looking at or writing just now. Whoever wants one of them waits.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard};

type Name = ([u8; 16], String);

#[derive(Debug, Default)]
pub(super) struct Claims {
    taken: Mutex<HashSet<Name>>,
    released: Condvar,
}

/// Held names; released when dropped.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    names: Vec<Name>,
}

impl Claims {
    /// Waits until none of these names is claimed, then claims all of them at once, so that two claims cannot wait for
    /// each other.
    pub(super) fn claim(&self, namespace: [u8; 16], names: BTreeSet<&str>) -> Claim<'_> {
        let names: Vec<Name> =
            names.into_iter().map(|name| (namespace, name.to_string())).collect();
        let mut taken = self.lock();
        while names.iter().any(|name| taken.contains(name)) {
            taken = self.released.wait(taken).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        taken.extend(names.iter().cloned());
        Claim { claims: self, names }
    }

    // Names are added and removed whole, so a panic elsewhere leaves the set right.
    fn lock(&self) -> MutexGuard<'_, HashSet<Name>> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut taken = self.claims.lock();
        for name in &self.names {
            taken.remove(name);
        }
        self.claims.released.notify_all();
    }
}
