//! A running configuration against a changed file: what applies now, and what only after a restart.

use volumedriver_core::fault::Result;

use super::check::{Checker, Entry};
use super::field::Change;
use super::{Config, VpoolConfig, sections};

/// The outcome of a reload that was accepted.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// What the daemon runs with from now on: the live part of the new file, the rest as it was.
    pub config: Config,
    pub applied: Vec<ChangedEntry>,
    pub needs_restart: Vec<ChangedEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedEntry {
    pub section: String,
    pub key: &'static str,
    /// As TOML; empty where there was none.
    pub old: String,
    pub new: String,
}

impl Config {
    /// Takes over what may change while the daemon runs. `Invalid` when that part does not go with the values that only a
    /// restart changes; then nothing is taken over.
    pub fn reload(&self, new: Self) -> Result<Reloaded> {
        let (mut applied, mut needs_restart) = (Vec::new(), Vec::new());
        for (change, entry) in changes(&self.entries, &new.entries) {
            match change {
                Change::Live => applied.push(entry),
                Change::Restart => needs_restart.push(entry),
            }
        }
        let config = self.with_live_part_of(new);
        let checker =
            Checker { file: "with the values in effect until a restart", entries: Vec::new() };
        sections::check_shares(&checker, &config)?;
        Ok(Reloaded { config, applied, needs_restart })
    }

    fn with_live_part_of(&self, new: Self) -> Self {
        let live = |e: &&Entry| e.field.change == Change::Live;
        let kept = self.entries.iter().filter(|e| !live(e));
        let taken = new.entries.iter().filter(live);
        let entries = kept.chain(taken).cloned().collect();
        let VpoolConfig { cluster_size, settings, .. } = new.vpool;
        let vpool = VpoolConfig { cluster_size, settings, ..self.vpool.clone() };
        Self { vpool, vdisks: new.vdisks, entries, ..self.clone() }
    }
}

fn changes(old: &[Entry], new: &[Entry]) -> Vec<(Change, ChangedEntry)> {
    let same_key = |a: &Entry, b: &Entry| a.section == b.section && a.field.key == b.field.key;
    let find = |list: &[Entry], e: &Entry| {
        list.iter()
            .find(|other| same_key(other, e))
            .map(|other| other.value.clone())
            .unwrap_or_default()
    };
    let removed = old.iter().filter(|e| !new.iter().any(|other| same_key(other, e)));
    new.iter()
        .chain(removed)
        .map(|e| (e, find(old, e), find(new, e)))
        .filter(|(_, old, new)| old != new)
        .map(|(e, old, new)| {
            (
                e.field.change,
                ChangedEntry { section: e.section.clone(), key: e.field.key, old, new },
            )
        })
        .collect()
}
