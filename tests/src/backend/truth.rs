//! What is really so: which manifests there are, which of their fragments are intact, and so how much more may go wrong.
//!
//! The promise is that nothing is lost while failures stay within m. So the world destroys a fragment only if every object
//! keeps k intact ones whatever happens next: those that its manifest names, those that a commit under way would name, and of
//! an object without a manifest the c that its put will count on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use backend_alba::manifest::Manifest;
use backend_alba::name::{FragmentId, ObjectId, OsdId};

use super::machine::{Damage, File, Machine};
use super::table::Table;
use super::world::locked;

type Lost = BTreeSet<FragmentId>;

pub struct Truth {
    tables: Vec<Arc<Table>>,
    machines: Mutex<Vec<Arc<Machine>>>,
    /// Stored fragments that were lost before a manifest named them.
    unnamed_lost: Mutex<BTreeMap<ObjectId, Lost>>,
}

/// A manifest and where it is.
pub struct Named {
    /// Of the namespace, as it stands in keys.
    pub space: [u8; 16],
    pub name: String,
    pub manifest: Manifest,
}

impl Truth {
    #[must_use]
    pub fn new(tables: Vec<Arc<Table>>) -> Arc<Self> {
        let (machines, unnamed_lost) = (Mutex::default(), Mutex::default());
        Arc::new(Self { tables, machines, unnamed_lost })
    }

    pub fn set_machines(&self, machines: &[Arc<Machine>]) {
        *locked(&self.machines) = machines.to_vec();
        self.tables.iter().for_each(|table| table.set_machines(machines));
    }

    pub fn machine(&self, osd: OsdId) -> Option<Arc<Machine>> {
        locked(&self.machines).iter().find(|machine| machine.id == osd).cloned()
    }

    /// All manifests of namespaces that live.
    #[must_use]
    pub fn manifests(&self) -> Vec<Named> {
        let mut all = Vec::new();
        for table in &self.tables {
            let living: BTreeSet<Vec<u8>> =
                table.all(b'l').into_iter().map(|(key, _)| key).collect();
            let named = table.all(b'm').into_iter().filter_map(named);
            all.extend(named.filter(|n| living.contains(&[&b"l"[..], &n.space[..]].concat())));
        }
        all
    }

    /// Those too that a commit under way would put.
    fn possible(&self) -> Vec<Named> {
        let mut all = Vec::new();
        for table in &self.tables {
            all.extend(table.all(b'm').into_iter().chain(table.pending(b'm')).filter_map(named));
        }
        all
    }

    #[must_use]
    pub fn is_intact(&self, osd: OsdId, file: FragmentId) -> bool {
        self.machine(osd).is_some_and(|machine| machine.is_intact(file))
    }

    /// Fragments of an object that are there as they were written.
    #[must_use]
    pub fn intact(&self, manifest: &Manifest) -> usize {
        let fragments = manifest.fragments.iter();
        fragments.filter(|f| self.is_intact(f.osd, f.file)).count()
    }

    /// Destroys these fragments of a machine if the promise allows it.
    pub fn destroy(&self, machine: &Machine, files: &[FragmentId], damage: Damage) -> bool {
        let gone: Lost = files.iter().copied().filter(|file| machine.is_intact(*file)).collect();
        let possible = self.possible();
        let named: Lost =
            possible.iter().flat_map(|n| &n.manifest.fragments).map(|f| f.file).collect();
        let mut unnamed = locked(&self.unnamed_lost).clone();
        for file in gone.difference(&named) {
            let Some(stored) = machine.file(*file) else { continue };
            let lost = unnamed.entry(stored.object()).or_default();
            lost.insert(*file);
            let has_manifest = possible.iter().any(|n| n.manifest.id == stored.object());
            if !has_manifest && lost.len() > stored.slack() {
                return false;
            }
        }
        if !possible.iter().all(|n| self.survives(&n.manifest, &gone, &unnamed)) {
            return false;
        }
        *locked(&self.unnamed_lost) = unnamed;
        gone.iter().for_each(|file| machine.damage(*file, damage));
        true
    }

    /// Whether an object keeps enough without these.
    fn survives(
        &self,
        manifest: &Manifest,
        gone: &Lost,
        unnamed: &BTreeMap<ObjectId, Lost>,
    ) -> bool {
        let (mut left, mut named) = (0, Lost::new());
        for f in &manifest.fragments {
            named.insert(f.file);
            left += usize::from(!gone.contains(&f.file) && self.is_intact(f.osd, f.file));
        }
        let lost = unnamed.get(&manifest.id);
        // What it may yet be said to have.
        let later = lost.map_or(0, |lost| lost.difference(&named).count());
        let is_touched = gone.intersection(&named).next().is_some() || later > 0;
        !is_touched || left >= manifest.policy.data() + later
    }

    /// Whether a fragment that no manifest names yet may be lost; then it counts as lost.
    pub fn take_unnamed(&self, id: FragmentId, file: &File) -> bool {
        if self.possible().iter().any(|named| named.manifest.id == file.object()) {
            return false;
        }
        let mut lost = locked(&self.unnamed_lost);
        let lost = lost.entry(file.object()).or_default();
        let may_go = lost.len() < file.slack();
        if may_go {
            lost.insert(id);
        }
        may_go
    }
}

fn named((key, value): (Vec<u8>, Vec<u8>)) -> Option<Named> {
    let space = key.get(1..17)?.try_into().ok()?;
    let name = String::from_utf8_lossy(key.get(17..)?).into_owned();
    Some(Named { space, name, manifest: Manifest::decode(&value).ok()? })
}
