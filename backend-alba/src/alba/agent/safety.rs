//! The disk-safety report: every object of the backend judged by where it lies now.

use std::collections::BTreeSet;

use super::Inner;
use crate::alba::Alba;
use crate::fault::{Fault, Kind, Result};
use crate::maintenance::safety::{Bucket, Report, Tally, World};
use crate::name::{self, OsdId};

/// Manifests read at once.
const STEP: usize = 500;

/// How safe the objects are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Safety {
    /// By namespace, policy and number of fragments.
    pub lines: Vec<SafetyLine>,
    /// OSDs that were counted as dead.
    pub dead: Vec<OsdId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetyLine {
    pub namespace: String,
    pub bucket: Bucket,
    pub tally: Tally,
}

impl Alba {
    /// How many more failures the objects survive, of all namespaces or one, as things are now and as if these OSDs were
    /// dead too. What does not answer now counts as dead.
    pub async fn safety(&self, dead: &[OsdId], namespace: Option<&str>) -> Result<Safety> {
        let inner = &self.inner;
        let mut world = World { nodes: inner.nodes().await?, dead: inner.agent.dead() };
        for osd in dead {
            if !world.nodes.contains_key(osd) {
                return Err(Fault::not_found(format!("there is no OSD {osd}")));
            }
            world.dead.insert(*osd);
        }
        // One that was claimed through another server is not silent for that.
        inner.meet_osds(world.nodes.keys().copied()).await;
        for osd in world.nodes.keys().copied().collect::<Vec<OsdId>>() {
            let is_silent = match inner.osds.get(osd) {
                Ok(member) => {
                    member.room().await.is_err_and(|fault| fault.kind == Kind::Unavailable)
                }
                Err(_) => true,
            };
            if is_silent {
                world.dead.insert(osd);
            }
        }
        let namespaces = match namespace {
            Some(namespace) => {
                name::check_namespace(namespace)?;
                inner.nsm.preset_of(namespace).await?;
                vec![namespace.to_string()]
            }
            None => {
                inner.nsm.namespace_presets().await?.into_iter().map(|(name, _)| name).collect()
            }
        };
        let mut safety = Safety::default();
        for namespace in namespaces {
            let report = inner.report(&namespace, &world).await?;
            safety.lines.extend(report.buckets.into_iter().map(|(bucket, tally)| {
                let namespace = namespace.clone();
                SafetyLine { namespace, bucket, tally }
            }));
        }
        safety.dead = world.dead.into_iter().collect::<BTreeSet<OsdId>>().into_iter().collect();
        Ok(safety)
    }
}

impl Inner {
    async fn report(&self, namespace: &str, world: &World) -> Result<Report> {
        let mut report = Report::default();
        let mut after = String::new();
        loop {
            let found = self.nsm.manifests(namespace, &after, STEP).await?;
            let Some((last, _)) = found.last() else { return Ok(report) };
            after.clone_from(last);
            for (_, manifest) in found {
                report.add(&manifest?, world);
            }
        }
    }
}
