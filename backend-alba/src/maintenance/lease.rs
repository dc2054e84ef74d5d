//! Leases without clocks that agree: whether another agent lives is judged by watching a value it must change again and
//! again. What has not changed for a while of the watcher's own time is silent. No two clocks are ever compared, so a clock
//! that jumps or is wrong by years takes nothing from anybody.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Values and since when each is what it is, by the watcher's own time since any beginning.
#[derive(Clone, Debug)]
pub struct Watched<K> {
    seen: HashMap<K, (Vec<u8>, Duration)>,
}

impl<K: Hash + Eq + Clone> Default for Watched<K> {
    fn default() -> Self {
        Self { seen: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone> Watched<K> {
    /// What the value is now; returns for how long it has been seen to be the same.
    pub fn observe(&mut self, key: &K, value: &[u8], now: Duration) -> Duration {
        match self.seen.get(key) {
            Some((known, since)) if known == value => now.saturating_sub(*since),
            _ => {
                self.seen.insert(key.clone(), (value.to_vec(), now));
                Duration::ZERO
            }
        }
    }

    /// Forgets what is no longer there.
    pub fn retain(&mut self, mut is_there: impl FnMut(&K) -> bool) {
        self.seen.retain(|key, _| is_there(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_the_last_change_seen() {
        let at = Duration::from_secs;
        let mut watched = Watched::default();
        assert_eq!(watched.observe(&"a", b"1", at(100)), Duration::ZERO);
        assert_eq!(watched.observe(&"a", b"1", at(130)), at(30));
        assert_eq!(watched.observe(&"a", b"2", at(131)), Duration::ZERO);
        // Back to a value of before is a change too.
        assert_eq!(watched.observe(&"a", b"1", at(140)), Duration::ZERO);
        assert_eq!(watched.observe(&"b", b"1", at(140)), Duration::ZERO);
        watched.retain(|key| *key == "b");
        assert_eq!(watched.observe(&"a", b"1", at(150)), Duration::ZERO);
        assert_eq!(watched.observe(&"b", b"1", at(150)), at(10));
    }
}
