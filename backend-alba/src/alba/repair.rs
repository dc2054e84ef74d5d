//! Making the fragments anew that an object lacks: lost, damaged, never stored, or on an OSD that is to be emptied.
//!
//! A fragment is rebuilt from k others, written under a new id to an OSD that placement chooses, and then takes the old one's
//! place in the manifest in one step, if the manifest is still what it was. So two repairs of one object, or a repair and a
//! deletion, do each other no harm, and a crash in the middle leaves an orphan.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::lane::{Lanes, Order};
use super::{Inner, fetch};
use crate::erasure;
use crate::fault::{Fault, Result};
use crate::maintenance::pace::step_bytes;
use crate::manifest::{Fragment, Manifest};
use crate::name::{FragmentId, OsdId};
use crate::osd::Priority;
use crate::trailer::Part;

/// Objects noticed and not repaired yet, at most; those beyond are left to verification.
pub(super) const NOTICES: usize = 1024;
/// A fragment that takes longer for a step is rebuilt from others.
const LEAVING_PATIENCE: Duration = Duration::from_secs(5);

/// An object that somebody found to need repair.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    namespace: Arc<str>,
    name: Arc<str>,
    damaged: Vec<FragmentId>,
    is_needed: bool,
}

impl Notice {
    /// Some of its fragments were damaged or missing when they were read.
    pub fn damaged(namespace: &Arc<str>, name: &Arc<str>, fragments: &[Fragment]) -> Self {
        let damaged: Vec<FragmentId> = fragments.iter().map(|fragment| fragment.file).collect();
        let is_needed = !damaged.is_empty();
        Self { namespace: namespace.clone(), name: name.clone(), damaged, is_needed }
    }

    /// It was put with fewer fragments than it should have.
    pub fn lacking(namespace: &Arc<str>, name: &Arc<str>) -> Self {
        let (namespace, name) = (namespace.clone(), name.clone());
        Self { namespace, name, damaged: Vec::new(), is_needed: true }
    }
}

/// What is known to be lost or damaged.
#[derive(Clone, Debug, Default)]
pub(super) struct Ill {
    pub fragments: HashSet<FragmentId>,
    /// With all their fragments.
    pub osds: HashSet<OsdId>,
}

impl Ill {
    fn holds(&self, fragment: &Fragment) -> bool {
        self.osds.contains(&fragment.osd) || self.fragments.contains(&fragment.file)
    }
}

/// What a look at an object came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Repaired {
    /// Fragments made.
    pub made: u64,
    pub bytes: u64,
    /// Fragments it still lacks, because no OSD may take them now.
    pub lacking: u64,
}

/// Repairs what is noticed, one object after the other; ends with the backend.
pub(super) fn start(inner: &Arc<Inner>, mut notices: mpsc::Receiver<Notice>) {
    let backend: Weak<Inner> = Arc::downgrade(inner);
    inner.blocking.spawn_in_background(async move {
        while let Some(notice) = notices.recv().await {
            let Some(inner) = backend.upgrade() else { return };
            let fragments = notice.damaged.iter().copied().collect();
            let ill = Ill { fragments, osds: inner.agent.dead() };
            let (namespace, name) = (&notice.namespace, &notice.name);
            match inner.repair(namespace, name, &ill).await {
                // Noticed by several reads: one of them was enough.
                Ok(done) if done == Repaired::default() => {}
                Ok(done) => {
                    tracing::info!(%namespace, %name, ?done, "repaired an object in passing");
                    if done.lacking > 0 {
                        inner.agent.note_lacking(namespace, name);
                    }
                }
                Err(fault) => {
                    tracing::warn!(%namespace, %name, %fault, "an object needs repair");
                    inner.agent.note_lacking(namespace, name);
                }
            }
        }
    });
}

/// Which fragment goes to which of the chosen OSDs. One that has a bad fragment gets that one anew: beside another it would
/// have two, should the bad one stay.
fn assign(wanted: &[usize], chosen: Vec<OsdId>, bad: &[Fragment]) -> Vec<(usize, OsdId)> {
    let index_on = |osd: OsdId| {
        let there = bad.iter().find(|fragment| fragment.osd == osd);
        there.map(|fragment| usize::from(fragment.index)).filter(|index| wanted.contains(index))
    };
    let (again, others): (Vec<OsdId>, Vec<OsdId>) =
        chosen.into_iter().partition(|osd| index_on(*osd).is_some());
    let mut targets: Vec<(usize, OsdId)> =
        again.into_iter().filter_map(|osd| Some((index_on(osd)?, osd))).collect();
    let taken: Vec<usize> = targets.iter().map(|(index, _)| *index).collect();
    let rest = wanted.iter().copied().filter(|index| !taken.contains(index));
    targets.extend(rest.zip(others));
    targets
}

impl Inner {
    pub(super) fn notice(&self, notice: Notice) {
        if notice.is_needed && self.notices.try_send(notice).is_err() {
            tracing::debug!("too many objects need repair: one is left to verification");
        }
    }

    /// Brings an object to all fragments of its policy.
    pub(super) async fn repair(
        self: &Arc<Self>,
        namespace: &Arc<str>,
        name: &Arc<str>,
        ill: &Ill,
    ) -> Result<Repaired> {
        let found = self.nsm.object(namespace, name).await?;
        let Some((manifest, preset)) = found else { return Ok(Repaired::default()) };
        let (bad, good): (Vec<Fragment>, Vec<Fragment>) =
            manifest.fragments.iter().copied().partition(|fragment| self.is_bad(fragment, ill));
        let is_good = |index: &usize| good.iter().any(|f| usize::from(f.index) == *index);
        let wanted: Vec<usize> = (0..manifest.policy.total()).filter(|n| !is_good(n)).collect();
        if wanted.is_empty() {
            return Ok(Repaired::default());
        }
        let held: Vec<OsdId> = good.iter().map(|fragment| fragment.osd).collect();
        let len = manifest.layout().fragment_len();
        let chosen = self.osds.extend(&preset, manifest.policy, &held, (wanted.len(), len)).await;
        let targets = assign(&wanted, chosen, &bad);
        let made = match &targets[..] {
            [] => 0,
            targets => {
                let order = Order::again(namespace, name, &manifest);
                self.rebuild(&order, &Arc::new(manifest), targets, (&bad, ill)).await?
            }
        };
        Ok(Repaired { made, bytes: made * len, lacking: wanted.len() as u64 - made })
    }

    /// It is not as its policy says.
    pub(super) fn lacks(&self, manifest: &Manifest, ill: &Ill) -> bool {
        manifest.fragments.len() < manifest.policy.total()
            || manifest.fragments.iter().any(|fragment| self.is_bad(fragment, ill))
    }

    /// Copies a fragment to another OSD; `false` when the object was changed meanwhile.
    pub(super) async fn relocate(
        self: &Arc<Self>,
        namespace: &Arc<str>,
        name: &Arc<str>,
        manifest: Manifest,
        fragment: Fragment,
        target: OsdId,
    ) -> Result<bool> {
        let order = Order::again(namespace, name, &manifest);
        let targets = [(usize::from(fragment.index), target)];
        let moved = (&[fragment][..], &Ill::default());
        Ok(self.rebuild(&order, &Arc::new(manifest), &targets, moved).await? > 0)
    }

    fn is_bad(&self, fragment: &Fragment, ill: &Ill) -> bool {
        let is_leaving = self.osds.get(fragment.osd).is_ok_and(|member| !member.may_keep());
        is_leaving || ill.holds(fragment)
    }

    /// Makes fragments of these indexes on these OSDs, in place of the bad ones; returns how many.
    async fn rebuild(
        self: &Arc<Self>,
        order: &Order,
        manifest: &Arc<Manifest>,
        targets: &[(usize, OsdId)],
        (bad, ill): (&[Fragment], &Ill),
    ) -> Result<u64> {
        let layout = manifest.layout();
        let (object, object_crc) = (manifest.id, manifest.crc);
        let part = Part { object, layout, object_crc, index: 0 };
        let mut lanes = Lanes::open(self, order, part, (targets, 1)).await;
        let begun = Instant::now();
        let outcome = async {
            if lanes.count() == 0 {
                return Err(lanes.first_fault());
            }
            self.copy(manifest, targets, (bad, ill), &mut lanes).await?;
            let all = lanes.count();
            let finished = lanes.finish(Some(object_crc), all, begun.elapsed()).await;
            // Some are better than none.
            if lanes.stored().is_empty() { finished } else { Ok(()) }
        };
        let outcome = match outcome.await {
            Ok(()) => self.exchange(order, manifest, bad, &mut lanes).await,
            Err(fault) => Err(fault),
        };
        lanes.discard().await;
        outcome
    }

    /// From the fragments that are replaced where they can be read, else from k of the others, to the lanes, step by step.
    async fn copy(
        self: &Arc<Self>,
        manifest: &Arc<Manifest>,
        targets: &[(usize, OsdId)],
        (bad, ill): (&[Fragment], &Ill),
        lanes: &mut Lanes,
    ) -> Result<()> {
        let layout = manifest.layout();
        let (lost, leaving): (Vec<Fragment>, Vec<Fragment>) =
            bad.iter().copied().partition(|fragment| ill.holds(fragment));
        let without: HashSet<usize> = lost.iter().map(|fragment| fragment.index.into()).collect();
        let wanted: Vec<usize> = targets.iter().map(|(index, _)| *index).collect();
        let len = layout.fragment_len();
        let mut from = 0;
        while from < len {
            let to = len.min(from + step_bytes(self.agent.settings().bytes_per_second));
            let span = layout.grains(from, to);
            from = to;
            self.agent.pace_bytes((span.1 - span.0) * wanted.len() as u64).await;
            let rebuilt = match self.read_leaving(manifest, &wanted, &leaving, span).await {
                Some(read) => read,
                None => {
                    let present = fetch::sources(self, manifest, span, &without).await?;
                    let (policy, indexes) = (layout.policy, wanted.clone());
                    let work = move || erasure::rebuild(policy, &present, &indexes);
                    self.blocking.run(work).await?
                }
            };
            let mut shares = vec![Vec::new(); layout.policy.total()];
            for (index, bytes) in wanted.iter().zip(rebuilt) {
                shares[*index].push(bytes);
            }
            lanes.append(shares, 1).await?;
        }
        Ok(())
    }

    /// A fragment that is only to lie elsewhere is as good as any: reading it is a k-th of the work of rebuilding it. `None`
    /// when not all that is wanted can be had so.
    async fn read_leaving(
        &self,
        manifest: &Manifest,
        wanted: &[usize],
        leaving: &[Fragment],
        span: (u64, u64),
    ) -> Option<Vec<Bytes>> {
        let layout = manifest.layout();
        let mut read = Vec::with_capacity(wanted.len());
        for index in wanted {
            let fragment = leaving.iter().find(|f| usize::from(f.index) == *index)?;
            let reading = self.read_fragment(layout, fragment, span, Priority::Background);
            match timeout(LEAVING_PATIENCE, reading).await {
                Ok(Ok(bytes)) => read.push(bytes),
                Ok(Err(_)) | Err(_) => return None,
            }
        }
        Some(read)
    }

    /// What was made takes the place of what was bad.
    async fn exchange(
        self: &Arc<Self>,
        order: &Order,
        manifest: &Arc<Manifest>,
        bad: &[Fragment],
        lanes: &mut Lanes,
    ) -> Result<u64> {
        let old = |index: u8| bad.iter().find(|fragment| fragment.index == index).copied();
        let made = lanes.stored();
        for fragment in &made {
            let known = old(fragment.index).map(|fragment| fragment.crc);
            let known = known.or(manifest.policy.is_copies().then_some(manifest.crc));
            if known.is_some_and(|crc| crc != fragment.crc) {
                let (index, name) = (fragment.index, &order.name);
                let message = format!("object {name:?}: fragment {index} was rebuilt differently");
                return Err(Fault::bug(message));
            }
        }
        let moves: Vec<(Option<Fragment>, Option<Fragment>)> =
            made.iter().map(|fragment| (old(fragment.index), Some(*fragment))).collect();
        let count = moves.len() as u64;
        let (namespace, name) = (&order.namespace, &order.name);
        let fits = |now: &Manifest, new: &Fragment| self.osds.fits(now, new, bad);
        let object = (&**namespace, &**name);
        let outcome = self.nsm.move_fragments(object, manifest.id, &moves, &fits).await;
        lanes.settle(matches!(outcome, Ok(true)), outcome.as_ref().err());
        self.wakes.notify_one();
        // Changed meanwhile: someone else repaired or deleted it.
        Ok(if outcome? { count } else { 0 })
    }
}
