//! Whether all is well again after quiet time, judged by what is really stored: every object is as safe as its policy
//! promises wherever there is a place for what that takes, and nothing is left of work, of deleted objects, or of puts that
//! did not end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use backend_alba::maintenance::Item;
use backend_alba::name::{FragmentId, OsdId};
use backend_alba::preset::{Preset, Raw};

use super::estate::Estate;
use super::machine::Machine;
use super::truth::Named;

/// Of a namespace, as it stands in keys.
type SpaceId = [u8; 16];

impl Estate {
    /// What keeps objects from being as safe as they can be.
    #[must_use]
    pub fn ailments(&self) -> Vec<String> {
        let presets = self.presets_of_spaces();
        let manifests = self.truth.manifests();
        let ails = |named: &Named| self.ailment(named, presets.get(&named.space));
        manifests.iter().filter_map(ails).collect()
    }

    fn ailment(&self, named: &Named, preset: Option<&Preset>) -> Option<String> {
        let Named { name, manifest, .. } = named;
        let policy = manifest.policy;
        let (mut osds, mut indexes, mut of_node) =
            (HashSet::new(), HashSet::new(), BTreeMap::<String, usize>::new());
        for fragment in &manifest.fragments {
            let machine = self.truth.machine(fragment.osd)?;
            if machine.is_dead() || !machine.is_intact(fragment.file) {
                continue;
            }
            osds.insert(fragment.osd);
            indexes.insert(fragment.index);
            *of_node.entry(machine.node.clone()).or_default() += 1;
        }
        let good = indexes.len();
        let tell = |what: String| Some(format!("{name} has {good} fragments of {policy}: {what}"));
        if osds.len() < good {
            return tell("two are on one machine".into());
        }
        if let Some((node, count)) = of_node.iter().find(|(_, count)| **count > policy.per_node()) {
            return tell(format!("{count} are on {node}"));
        }
        let has_place = |machine: &&Arc<Machine>| {
            let held = of_node.get(&machine.node).copied().unwrap_or(0);
            !machine.is_dead() && !osds.contains(&machine.id) && held < policy.per_node()
        };
        let len = manifest.layout().fragment_len();
        let has_room = |machine: &&Arc<Machine>| machine.has_room(len);
        let place = self.machines.iter().filter(has_place).find(has_room);
        if good < policy.total()
            && let Some(place) = place
        {
            return tell(format!("machine {} could have one", place.no));
        }
        let is_choosy =
            self.machines.iter().all(|machine| !machine.is_dead() && machine.is_roomy());
        let best = preset.map(|preset| (preset.policies[0].for_len(manifest.len), preset.unit))?;
        let is_best = best.0 == policy && (policy.is_copies() || best.1 == manifest.unit);
        if is_choosy && !is_best {
            return tell(format!("it should be of {} by now, cut by {}", best.0, best.1));
        }
        None
    }

    /// How each namespace that lives would have its objects stored now.
    fn presets_of_spaces(&self) -> HashMap<SpaceId, Preset> {
        let Some(first) = self.tables.first() else { return HashMap::new() };
        let parsed = |(key, value): (Vec<u8>, Vec<u8>)| {
            let name = String::from_utf8_lossy(key.get(1..)?).into_owned();
            let raw: Raw = serde_json::from_slice(&value).ok()?;
            Some((name, raw.check().ok()?))
        };
        let presets: HashMap<String, Preset> =
            first.all(b'p').into_iter().filter_map(parsed).collect();
        let of_space = |(_, value): (Vec<u8>, Vec<u8>)| {
            let (id, rest) = value.split_first_chunk::<16>()?;
            let name = rest.split(|byte| *byte == 0).next()?;
            let preset = presets.get(&*String::from_utf8_lossy(name))?;
            Some((*id, preset.clone()))
        };
        first.all(b'n').into_iter().filter_map(of_space).collect()
    }

    /// What nobody needs any more and is still there.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for table in &self.tables {
            let items = table.all(b'j').into_iter();
            found.extend(items.map(|(_, value)| {
                let item = Item::decode(&value);
                item.map_or("a work item that is none".into(), |item| {
                    format!("work: {} is {:?}: {}", item.task.name(), item.state, item.note)
                })
            }));
            found.extend(table.all(b'x').iter().map(|_| "a namespace that was deleted".into()));
            for (_, osd) in table.all(b'r') {
                let machine = osd.try_into().ok().and_then(|osd| self.truth.machine(OsdId(osd)));
                if let Some(machine) = machine.filter(|machine| !machine.is_dead()) {
                    found.push(format!("a file to be removed from machine {}", machine.no));
                }
            }
        }
        let manifests = self.truth.manifests();
        let fragments = manifests.iter().flat_map(|named| &named.manifest.fragments);
        let named: HashSet<(OsdId, FragmentId)> = fragments.map(|f| (f.osd, f.file)).collect();
        for machine in self.machines.iter().filter(|machine| !machine.is_dead()) {
            let is_orphan = |file: &FragmentId| !named.contains(&(machine.id, *file));
            found.extend(machine.held().into_iter().filter(is_orphan).map(|file| {
                format!("machine {} has file {file} that no manifest names", machine.no)
            }));
        }
        found
    }
}
