//! Creating and opening a volume.
//!
//! Opening: read the manifest chain, take the next epoch (the fence), bring the map up to the last TLog, then replay what the
//! write buffer holds beyond it. Local state counts only if this node was the last owner; the page store only if the TLogs
//! after it still exist. What is lost or damaged is named, never skipped.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::change::Mark;
use volumedriver_core::format::framed::KeyId;
use volumedriver_core::format::manifest::{Body, Manifest, Opening, Shape, check_volume_name};
use volumedriver_core::format::names;
use volumedriver_core::map::Map;
use volumedriver_core::units::{
    ByteCount, ClusterAddr, ClusterCount, ClusterSize, Epoch, MAX_VOLUME_BYTES, ManifestNo, NodeId,
    ScoSeq, Seq, TlogNo, VolumeId,
};
use volumedriver_core::volume::Volume as Core;

use super::chain::{self, Found, put_certainly, until_answered};
use super::checkpoint::TLOGS_PER_RUN;
use super::{Shared, State, Volume, read};
use crate::buffer::{Damage, ReplayedSco, ReplayedVolume};
use crate::config::settings::VdiskSettings;
use crate::world::{ObjectStore, PageStore, World};

/// Most keys of one volume that are looked for when it is opened.
const MAX_KEYS: u32 = 1000;
/// From so long after its beginning on, the first refusal of the backend ends the making of a volume.
const CREATE_PATIENCE: Duration = Duration::from_secs(10);
/// Smallest and largest SCO, bytes.
const SCO_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=128 << 20;

/// What is fixed when a volume is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub size: ByteCount,
    pub cluster_size: ClusterSize,
    pub sco_size: ByteCount,
}

impl Spec {
    pub fn check(&self) -> Result<()> {
        check_volume_name(&self.name)?;
        check_size(self.size, self.cluster_size)?;
        if !SCO_BYTES.contains(&self.sco_size.0) {
            return Err(Fault::invalid(format!(
                "SCO size {} is not from {} to {} bytes",
                self.sco_size,
                SCO_BYTES.start(),
                SCO_BYTES.end()
            )));
        }
        Ok(())
    }
}

pub(super) fn check_size(size: ByteCount, cluster: ClusterSize) -> Result<()> {
    if size.0 == 0 || !size.0.is_multiple_of(cluster.bytes()) || size.0 > MAX_VOLUME_BYTES {
        return Err(Fault::invalid(format!(
            "size {size} is not a multiple of the cluster size {} from one cluster to {MAX_VOLUME_BYTES} bytes",
            cluster.bytes()
        )));
    }
    Ok(())
}

/// Makes the volume exist on the backend: its namespace and its first manifest.
pub async fn create<W: World>(world: &W, node: NodeId, id: VolumeId, spec: &Spec) -> Result<()> {
    spec.check()?;
    let namespace = names::namespace(id);
    world.store().create_namespace(&namespace).await?;
    let (no, epoch) = (ManifestNo(1), Epoch(1));
    let shape = Shape {
        name: spec.name.clone(),
        size: spec.size,
        cluster_size: spec.cluster_size,
        sco_size: spec.sco_size,
        last_seq: Seq(0),
        last_sco: ScoSeq(0),
        last_tlog: TlogNo(0),
        origins: Vec::new(),
        runs: Vec::new(),
        tlogs: Vec::new(),
        openings: vec![Opening { epoch, no, node }],
    };
    let manifest = Manifest { volume: id, no, epoch, node, body: Body::Checkpoint(shape) };
    let (name, body) = (names::manifest(no), vec![manifest.encode()]);
    let began = world.now();
    let too_long = || world.now().saturating_sub(began) >= CREATE_PATIENCE;
    let made = put_certainly(world, &namespace, &name, body, too_long).await;
    made.map_err(|fault| match fault.kind {
        Kind::Closed => Fault::unavailable("the backend does not take it now").because(fault),
        _ => fault,
    })
}

/// What a crash left of a volume in the write buffer.
#[derive(Default)]
pub struct Left {
    pub replayed: Option<ReplayedVolume>,
    /// What is lost and may have been of any volume; of no interest with `replayed`, which knows its own.
    pub lost: Option<Damage>,
    /// The operator accepted what this volume lost.
    pub accepted: bool,
}

/// Whose the volume was until now, as far as the write buffer has traces of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Past {
    Ours,
    /// There are traces, and they are obsolete.
    Others,
}

impl<W: World> Volume<W> {
    /// Opens the volume and starts its uploader. What the write buffer has `left` of it is taken only on success.
    pub(crate) async fn open(
        shared: Rc<Shared<W>>,
        id: VolumeId,
        settings: VdiskSettings,
        left: &mut Left,
    ) -> Result<Rc<Self>> {
        let world = shared.world.clone();
        let Some(found) = chain::load(&world, id).await? else {
            return Err(Fault::invalid(format!(
                "there is no manifest in namespace {}",
                names::namespace(id)
            )));
        };
        let keys = needed_keys(&shared, id, &found.shape.name).await?;
        let found = chain::take_over(&world, id, shared.node, found).await?;
        let applied = seed_pages(&shared, id, &found.shape).await?;
        let volume = Rc::new(Self::assemble(shared, id, settings, found, applied));
        *volume.keys.borrow_mut() = keys;
        volume.apply_tlogs(applied).await?;
        if volume.take_back(std::mem::take(left)) == Past::Others {
            volume.begin_anew().await;
        }
        if volume.uploads_ended.borrow().is_none() {
            volume.shared.world.spawn(volume.clone().run_uploader());
        }
        Ok(volume)
    }

    fn assemble(
        shared: Rc<Shared<W>>,
        id: VolumeId,
        settings: VdiskSettings,
        found: Found,
        applied: TlogNo,
    ) -> Self {
        let clusters = found.shape.cluster_size.clusters_covering(found.shape.size);
        let fresh = found.shape.last_tlog == TlogNo(0);
        let map = if fresh { Map::new_empty(clusters) } else { Map::new_unloaded(clusters) };
        let (name, last_seq) = (found.shape.name.clone(), found.shape.last_seq);
        let cluster_size = found.shape.cluster_size;
        let core = Core::new(id, found.shape, found.head, map);
        let log = shared.buffer.attach(id, core.epoch(), cluster_size, last_seq);
        Self {
            log,
            shared,
            id,
            name,
            core: RefCell::new(core),
            settings: RefCell::new(settings),
            state: RefCell::new(State::Running),
            credits: RefCell::default(),
            turn: Semaphore::new(1),
            waiting: Cell::new(0),
            awaiting: Cell::new(0),
            drained: Notify::new(),
            sealed: Notify::new(),
            chain: Semaphore::new(1),
            published_seq: Cell::new(last_seq),
            applied: Cell::new(applied),
            based: Cell::new(applied),
            compact_at: Cell::new(TLOGS_PER_RUN),
            uploads_ended: RefCell::default(),
            open_since: Cell::new(None),
            oldest_since: RefCell::default(),
            streams: RefCell::new(read::Streams::default()),
            obsolete: RefCell::default(),
            uploader_done: Notify::new(),
            keys: RefCell::default(),
            space: RefCell::default(),
            accepting: Cell::new(false),
        }
    }

    /// Applies the TLogs after `applied` to the map's base.
    async fn apply_tlogs(&self, applied: TlogNo) -> Result<()> {
        let tlogs = self.core.borrow().shape().tlogs.clone();
        for reference in tlogs.into_iter().filter(|t| t.no > applied) {
            for sco in self.fetch_tlog(reference).await?.scos {
                self.load_for(&sco.changes).await?;
                self.core.borrow_mut().map().publish(sco.id.seq, &sco.changes);
            }
            self.based.set(reference.no);
        }
        Ok(())
    }

    /// Takes back the changes the write buffer holds beyond the manifest.
    fn take_back(&self, left: Left) -> Past {
        let Left { replayed, lost, accepted } = left;
        let ours = self.was_ours_before() && !accepted;
        let past = match ours || (replayed.is_none() && lost.is_none() && !accepted) {
            true => Past::Ours,
            false => Past::Others,
        };
        let Some(replayed) = replayed else {
            if let Some(lost) = lost.filter(|_| ours) {
                self.keep_damage(format!("flushed data may be lost: {}", lost.message));
            }
            return past;
        };
        let published = self.core.borrow().shape().last_sco;
        self.log.dispose(published);
        let tail = replayed.scos.into_iter().filter(|s| s.id.seq > published).collect();
        let tail = self.without_obsolete(tail);
        let published = self.published_seq.get();
        let relevant = |d: &&Damage| {
            let unpublished = d.seqs.is_none_or(|(_, last)| last > published);
            unpublished && d.epoch.map_or(ours, |epoch| self.is_ours_since(epoch))
        };
        let damage = replayed.damage.iter().filter(relevant).map(|d| d.message.clone());
        let mut all: Vec<String> = damage.collect();
        let replay =
            self.check_cluster_size(replayed.cluster_size).and_then(|()| self.replay_tail(tail));
        all.extend(replay.err().map(|fault| fault.to_string()));
        // A seal alone tells of changes before it, too.
        let stated = replayed.stated.iter().filter(|(epoch, _)| self.is_ours_since(*epoch));
        let stated = stated.map(|(_, seq)| *seq).max().unwrap_or_default();
        let last = self.core.borrow().last_seq();
        if all.is_empty() && stated > last {
            all.push(format!("changes {} to {stated} are lost", last.next()));
        }
        // A damaged volume adds nothing to the journal: an entry behind the gap would say that there is none.
        let sealed = if all.is_empty() { self.seal_replayed() } else { Ok(()) };
        all.extend(sealed.err().map(|fault| fault.to_string()));
        if !all.is_empty() {
            let all = all.join("; ");
            self.keep_damage(format!("flushed data in the write buffer is damaged: {all}"));
        }
        past
    }

    /// Says in the journal that the volume goes on from its manifest: records lost before this have nothing of it.
    async fn begin_anew(&self) {
        if self.state() != State::Running {
            return;
        }
        let published = self.core.borrow().shape().last_sco;
        let appended = match published {
            // Nothing was ever published, so it is empty: a hole in it is none.
            ScoSeq(0) => self.punch_first(),
            // This seal of what was published long ago says nothing but that the volume was here.
            _ => self.log.append_seal(published, 0),
        };
        self.log.dispose(published);
        let flushed = self.shared.buffer.flush().await;
        if appended.is_none() || flushed.is_err() {
            let vdisk = &self.name;
            tracing::warn!(vdisk, "no room in the write buffer to say that the vDisk begins anew");
        }
    }

    fn punch_first(&self) -> Option<()> {
        let mut core = self.core.borrow_mut();
        if core.has_open_changes() {
            return Some(());
        }
        let (addr, count) = (ClusterAddr(0), ClusterCount(1));
        let plan = core.plan_mark(addr, count, Mark::Hole);
        self.log.append_mark(plan.seq, addr, count, Mark::Hole, plan.sco.seq)?;
        core.commit_mark(plan);
        self.note_open();
        Some(())
    }

    /// The volume stays as it is until the operator decides. Nothing of it is uploaded: an SCO with a gap must not get a name
    /// on the backend, and what is published is given up here, the trace of the damage with it.
    fn keep_damage(&self, why: String) {
        self.log.keep();
        *self.uploads_ended.borrow_mut() = Some(Fault::unavailable(why.clone()));
        self.enter(State::ReadOnly(why));
    }

    /// Leaves out what another owner made obsolete. What this node wrote when the volume was its own again stays.
    fn without_obsolete(&self, tail: Vec<ReplayedSco>) -> Vec<ReplayedSco> {
        let (ours, obsolete): (Vec<_>, Vec<_>) =
            tail.into_iter().partition(|sco| self.is_ours_since(sco.id.epoch));
        let changes: usize = obsolete.iter().map(|sco| sco.changes.len()).sum();
        if changes > 0 {
            tracing::error!(
                vdisk = self.name,
                changes,
                "another node owned this vDisk meanwhile: changes left in the local write buffer are obsolete and dropped"
            );
        }
        for sco in obsolete {
            match ours.iter().find(|ours| ours.id.seq == sco.id.seq) {
                Some(ours) => self.log.supersede(ours.id),
                None => self.log.give_up(sco.id.seq),
            }
        }
        ours
    }

    /// True when no other node has owned the volume after this epoch.
    fn is_ours_since(&self, epoch: Epoch) -> bool {
        let core = self.core.borrow();
        let mut later = core.shape().openings.iter().filter(|o| o.epoch > epoch);
        later.all(|o| o.node == self.shared.node)
    }

    /// True when this node owned the volume until now.
    fn was_ours_before(&self) -> bool {
        let core = self.core.borrow();
        let before = core.shape().openings.iter().rev().nth(1);
        before.is_some_and(|opening| opening.node == self.shared.node)
    }

    fn check_cluster_size(&self, found: ClusterSize) -> Result<()> {
        let ours = self.cluster_size();
        if found == ours {
            return Ok(());
        }
        Err(Fault::corrupt(format!(
            "the write buffer holds clusters of {} bytes, the volume's have {}",
            found.bytes(),
            ours.bytes()
        )))
    }

    fn replay_tail(&self, tail: Vec<ReplayedSco>) -> Result<()> {
        let mut core = self.core.borrow_mut();
        for sco in tail.into_iter().filter(|s| !s.changes.is_empty()) {
            // Changes of the next SCO prove that this one was sealed, though its seal is lost.
            let open = core.open_sco().0;
            if core.has_open_changes() && open.seq.next() == sco.id.seq {
                self.replayed_seal(&mut core, open.epoch);
            }
            core.replay(sco.id, &sco.changes)?;
            self.log.resume(core.last_seq());
            self.note_open();
            if let Some((epoch, sealed)) = sco.sealed {
                let (id, count) = core.open_sco();
                if count != sealed || epoch >= core.epoch() {
                    return Err(Fault::corrupt(format!(
                        "SCO {id} in the write buffer was sealed in epoch {epoch} with {sealed} clusters and has {count}"
                    )));
                }
                self.replayed_seal(&mut core, epoch);
            }
        }
        Ok(())
    }

    /// The last SCO replayed goes on in this epoch under the next name: its own ends here.
    fn seal_replayed(&self) -> Result<()> {
        let mut core = self.core.borrow_mut();
        if core.has_open_changes() && self.seal_now(&mut core).is_none() {
            let failure = self.shared.buffer.failure();
            let no_room = || Fault::no_space("no room in the write buffer to end its last SCO");
            return Err(failure.unwrap_or_else(no_room));
        }
        self.sealed.notify_one();
        Ok(())
    }

    /// The seal of the open SCO is in the write buffer already, from this epoch.
    fn replayed_seal(&self, core: &mut Core, epoch: Epoch) {
        core.commit_seal_of(epoch);
        let since = self.open_since.take();
        self.oldest_since.borrow_mut().extend(since);
    }
}

/// The keys that SCOs of the volume are encrypted with; refused when this node lacks one of them.
async fn needed_keys<W: World>(
    shared: &Shared<W>,
    id: VolumeId,
    name: &str,
) -> Result<BTreeSet<KeyId>> {
    let (namespace, world) = (names::namespace(id), &shared.world);
    let list = async || world.store().list(&namespace, names::KEY_PREFIX, None, MAX_KEYS).await;
    let listed = until_answered(world, &namespace, || false, list).await?;
    let keys: BTreeSet<KeyId> = listed.iter().filter_map(|name| names::key_id(name)).collect();
    let ring = shared.backend.keys();
    match keys.iter().find(|key| !ring.has(**key)) {
        Some(key) => Err(ring.lacks(*key, &format!("vDisk {name}"))),
        None => Ok(keys),
    }
}

/// Makes the page store stand for a TLog at or after the newest map run; that TLog.
async fn seed_pages<W: World>(shared: &Shared<W>, id: VolumeId, shape: &Shape) -> Result<TlogNo> {
    let pages = shared.world.pages();
    let covered = shape.runs.last().map_or(TlogNo(0), |run| run.last_tlog);
    let applied = pages.applied(id).await?;
    if let Some(applied) = applied.filter(|a| *a >= covered && *a <= shape.last_tlog) {
        return Ok(applied);
    }
    pages.drop_volume(id).await?;
    super::checkpoint::import_runs(shared, id, shape, covered).await?;
    Ok(covered)
}
