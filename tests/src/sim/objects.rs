//! An SCO that decays or is lost on the store for a while (P2, P4): reads of its clusters may fail, no others do, nothing else
//! shows, and once it is restored all is well.

use std::collections::BTreeSet;

use bytes::Bytes;
use volumedriver_core::format::ChangeKind;
use volumedriver_core::format::names;
use volumedriver_core::units::VolumeId;

use crate::world::Universe;
use crate::world::order::footer_of;
use crate::world::rng::Rng;

/// An object that is not what it was.
pub(super) struct Spoilt {
    pub volume: VolumeId,
    pub what: String,
    name: String,
    body: Bytes,
    /// Addresses of the clusters that may be concerned.
    clusters: BTreeSet<u64>,
}

impl Spoilt {
    /// Spoils a published SCO of one of these volumes, if there is any.
    pub fn plant(universe: &Universe, volumes: &[VolumeId], rng: &mut Rng) -> Option<Self> {
        let volume = volumes[rng.below(volumes.len() as u64) as usize];
        let namespace = names::namespace(volume);
        let mut scos = universe.objects();
        scos.retain(|(space, name, _)| *space == namespace && name.starts_with(names::SCO_PREFIX));
        let nth = rng.below(scos.len() as u64) as usize;
        let (_, name, _) = scos.into_iter().nth(nth)?;
        let body = universe.object(&namespace, &name)?;
        let footer = footer_of(&body).ok()?;
        if !universe.is_published(volume, footer.id) {
            return None;
        }
        let width = footer.cluster_size.bytes();
        let data_bytes = u64::from(footer.cluster_count) * width;
        let lost = rng.chance(300_000);
        let byte = rng.below(body.len() as u64);
        let hit = (!lost && byte < data_bytes).then_some(byte / width);
        let mut clusters = BTreeSet::new();
        for change in &footer.changes {
            let ChangeKind::Data { first_index, .. } = &change.kind else { continue };
            let all = (0..change.count.0)
                .filter(|n| hit.is_none_or(|hit| hit == u64::from(*first_index) + n));
            clusters.extend(all.map(|n| change.addr.0 + n));
        }
        let mut spoilt = body.to_vec();
        spoilt[byte as usize] ^= 1 << rng.below(8);
        universe.damage_object(&namespace, &name, |_| (!lost).then_some(spoilt));
        let what = if lost { format!("{name} is lost") } else { format!("byte {byte} of {name}") };
        Some(Self { volume, what, name, body, clusters })
    }

    /// Whether a read of this cluster may fail.
    #[must_use]
    pub fn concerns(&self, cluster: u64) -> bool {
        self.clusters.contains(&cluster)
    }

    /// The operator brings back what it was.
    pub fn restore(&self, universe: &Universe) {
        let body = self.body.clone();
        universe.restore_object(&names::namespace(self.volume), &self.name, body);
    }
}
