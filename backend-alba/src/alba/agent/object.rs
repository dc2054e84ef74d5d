//! What is done with one object.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::item::Subject;
use super::{Inner, locked};
use crate::alba::repair::Ill;
use crate::fault::Result;
use crate::maintenance::{Counts, Task};
use crate::manifest::Manifest;
use crate::preset::{Policy, Preset};

/// What is looked up once for the objects of a step.
#[derive(Default)]
pub(super) struct Shelf {
    presets: Mutex<HashMap<String, Preset>>,
    /// Of these policies, the first that can be satisfied now.
    possible: Mutex<HashMap<Vec<Policy>, Option<Policy>>>,
}

impl Shelf {
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Inner {
    pub(super) async fn treat(
        self: &Arc<Self>,
        task: &Task,
        subject: Subject,
        shelf: &Shelf,
    ) -> Result<Counts> {
        let settings = self.agent.settings();
        let mut counts = Counts { objects: 1, ..Counts::default() };
        let (namespace, name): (Arc<str>, Arc<str>) =
            (subject.at.namespace.as_str().into(), subject.at.name.as_str().into());
        let manifest = subject.manifest.transpose()?;
        let ill = Ill { osds: self.agent.dead(), ..Ill::default() };
        let (repairs, rewrites, verifies) = match task {
            Task::Tour => (settings.repair, settings.rewrite, None),
            Task::Repair | Task::Empty { .. } => (true, false, None),
            Task::Rewrite => (false, true, None),
            Task::Scrub => (false, false, Some((true, false))),
            Task::Verify { checksum, unreachable_is_missing } => {
                (false, false, Some((*checksum, *unreachable_is_missing)))
            }
        };
        if let (Some(how), Some(manifest)) = (verifies, &manifest) {
            counts += self.verify_object(&namespace, &name, manifest, how).await?;
        }
        if rewrites
            && let Some(manifest) = &manifest
            && self.is_stored_otherwise(&namespace, manifest, shelf).await?
        {
            self.agent.pace_object().await;
            if self.rewrite(&namespace, &name, manifest).await? {
                counts.rewritten += 1;
                counts.bytes += manifest.len;
                return Ok(counts);
            }
        }
        let may_lack = manifest.as_ref().is_none_or(|manifest| self.lacks(manifest, &ill));
        if repairs && may_lack {
            self.agent.pace_object().await;
            let done = self.repair(&namespace, &name, &ill).await?;
            counts.made += done.made;
            counts.bytes += done.bytes;
            counts.lacking += done.lacking;
        }
        Ok(counts)
    }

    /// Its preset would store it otherwise, and can.
    async fn is_stored_otherwise(
        &self,
        namespace: &str,
        manifest: &Manifest,
        shelf: &Shelf,
    ) -> Result<bool> {
        let Some(preset) = self.preset_on(shelf, namespace).await? else { return Ok(false) };
        let policies: Vec<Policy> =
            preset.policies.iter().map(|policy| policy.for_len(manifest.len)).collect();
        let is_cut_well = manifest.policy.is_copies() || manifest.unit == preset.unit;
        let rank = policies.iter().position(|policy| *policy == manifest.policy);
        if rank == Some(0) && is_cut_well {
            return Ok(false);
        }
        let possible = self.possible_on(shelf, &preset, manifest, &policies).await;
        let best = possible.and_then(|best| policies.iter().position(|policy| *policy == best));
        Ok(match (best, rank) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(best), Some(rank)) => best < rank || (best == rank && !is_cut_well),
        })
    }

    async fn preset_on(&self, shelf: &Shelf, namespace: &str) -> Result<Option<Preset>> {
        if let Some(preset) = locked(&shelf.presets).get(namespace) {
            return Ok(Some(preset.clone()));
        }
        let preset = match self.preset_of(namespace).await {
            Ok(preset) => preset,
            // Deleted meanwhile.
            Err(fault) if fault.kind == crate::Kind::NotFound => return Ok(None),
            Err(fault) => return Err(fault),
        };
        locked(&shelf.presets).insert(namespace.to_string(), preset.clone());
        Ok(Some(preset))
    }

    async fn possible_on(
        &self,
        shelf: &Shelf,
        preset: &Preset,
        manifest: &Manifest,
        policies: &[Policy],
    ) -> Option<Policy> {
        if let Some(known) = locked(&shelf.possible).get(policies) {
            return *known;
        }
        let possible = self.osds.possible(preset, manifest.len).await;
        locked(&shelf.possible).insert(policies.to_vec(), possible);
        possible
    }
}
