//! The OSDs given to this process: their place, their role, their health, and which of them may take a fragment.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::Config;
use crate::fault::{Fault, Kind, Result};
use crate::health::Health;
use crate::manifest::{Fragment, Manifest};
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::nsm::{Nsm, OsdRecord, OsdRole};
use crate::osd::{
    self, Directory, FragmentWriter, Local, Osd, Priority, Purpose, Room, Sequence, Title,
    Unreachable, Wanted,
};
use crate::outside::Outside;
use crate::placement::{self, Candidate, Choice};
use crate::preset::{Policy, Preset};

/// An OSD that does not say within this time how much room it has gets no fragment of this put.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);
/// Files that are not removed within this time stay noted for removal.
const REMOVE_PATIENCE: Duration = Duration::from_secs(20);
/// Reads longer than this say nothing about how quickly an OSD answers.
const SHORT_READ_BYTES: u64 = 1 << 20;

/// All OSDs given to this process. They come and go: whoever looks sees those of the moment.
pub(super) struct Osds {
    present: RwLock<Arc<Present>>,
    outside: Outside,
}

pub(super) struct Present {
    pub members: Vec<Arc<Member>>,
    /// Of all OSDs of the backend.
    pub nodes: HashMap<OsdId, String>,
}

/// An OSD and what is known of it.
#[derive(Debug)]
pub(super) struct Member {
    osd: Arc<dyn Osd>,
    pub node: String,
    pub labels: Vec<String>,
    /// It is known, but could not be opened.
    is_open: bool,
    role: Mutex<OsdRole>,
    health: Mutex<Health>,
    since: Instant,
}

/// An OSD that is there, and where it stands.
#[derive(Debug)]
pub struct GivenOsd {
    pub osd: Box<dyn Osd>,
    /// The failure domain it belongs to.
    pub node: String,
    pub labels: Vec<String>,
}

impl GivenOsd {
    /// What is noted of it in the NSM, when nothing was before.
    pub(super) fn record(&self) -> OsdRecord {
        let (path, role) = (self.osd.place(), OsdRole::Active);
        OsdRecord { path, node: self.node.clone(), labels: self.labels.clone(), role }
    }
}

/// Opens the directories of the configuration. An OSD that cannot be reached is left out when there are others; one that is
/// not ours never is. Blocks.
pub(super) fn directories(config: &Config, alba: AlbaId) -> Result<Vec<GivenOsd>> {
    let places = config.places();
    let threads = if places.len() > 1 { config.osd_thread_count } else { config.blocking_count };
    let mut given = Vec::new();
    let mut unreachable = None;
    for place in places {
        let directory = match Directory::open(&place.path, alba, config.limits()) {
            Ok(directory) => directory,
            Err(fault) if fault.kind == Kind::Unavailable => {
                tracing::warn!(%fault, "going on without an OSD");
                unreachable = Some(fault);
                continue;
            }
            Err(fault) => return Err(fault),
        };
        let osd = Box::new(Local::new(directory, threads));
        given.push(GivenOsd { osd, node: place.node, labels: place.labels });
    }
    match (given.is_empty(), unreachable) {
        (true, Some(fault)) => Err(fault),
        _ => Ok(given),
    }
}

impl Osds {
    /// Notes them in the NSM.
    pub async fn new(given: Vec<GivenOsd>, nsm: &Nsm, outside: &Outside) -> Result<Self> {
        let mut members = Vec::new();
        for given in given {
            let role = nsm.note_osd(given.osd.id(), given.record()).await?;
            let GivenOsd { osd, node, labels } = given;
            members.push(Arc::new(Member::new(osd, node, labels, role)));
        }
        let nodes = nsm.osds().await?.into_iter().map(|(id, record)| (id, record.node)).collect();
        let present = RwLock::new(Arc::new(Present { members, nodes }));
        Ok(Self { present, outside: outside.clone() })
    }

    pub fn all(&self) -> Vec<Arc<Member>> {
        self.present().members.clone()
    }
    pub fn count(&self) -> usize {
        self.present().members.len()
    }

    pub fn replace(&self, present: Present) {
        *self.present.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(present);
    }

    /// In place of what was known of it before.
    pub fn add(&self, member: Arc<Member>) {
        let before = self.present();
        let mut members = before.members.clone();
        members.retain(|known| known.id() != member.id());
        let mut nodes = before.nodes.clone();
        nodes.insert(member.id(), member.node.clone());
        members.push(member);
        self.replace(Present { members, nodes });
    }

    /// Somebody has the directory open.
    pub fn is_open(&self, place: &str) -> bool {
        let here = |member: &Arc<Member>| member.is_open && member.place() == place;
        self.present().members.iter().any(here)
    }

    /// It is the backend's, whether this process can reach it or not.
    pub fn is_known(&self, id: OsdId) -> bool {
        self.present().nodes.contains_key(&id)
    }

    // What is locked is replaced whole.
    pub fn present(&self) -> Arc<Present> {
        self.present.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// `Unavailable` when it was not given to this process.
    pub fn get(&self, id: OsdId) -> Result<Arc<Member>> {
        let absent = || {
            Fault::unavailable(format!(
                "OSD {id} is absent: its directory was not given, or it was purged"
            ))
        };
        let present = self.present();
        let found = present.members.iter().find(|member| member.id() == id).cloned();
        found.ok_or_else(absent)
    }

    /// The policy and the OSDs for an object of this length. When those that are well do not suffice, those that failed a
    /// moment ago are tried too.
    pub async fn choose(
        &self,
        preset: &Preset,
        len: u64,
        purpose: Purpose,
        without: &HashSet<OsdId>,
    ) -> Result<Choice> {
        let policies: Vec<Policy> = preset.policies.iter().map(|p| p.for_len(len)).collect();
        let present = self.present();
        let usable = present.members.iter().filter(|m| m.may_take(preset));
        let usable: Vec<&Arc<Member>> = usable.filter(|m| !without.contains(&m.id())).collect();
        let well: Vec<&Arc<Member>> = usable.iter().copied().filter(|m| m.is_well()).collect();
        if !well.is_empty() && well.len() < usable.len() {
            let choice = self.choose_of(&policies, &well, len, purpose).await;
            if choice.is_ok() {
                return choice;
            }
        }
        self.choose_of(&policies, &usable, len, purpose).await
    }

    async fn choose_of(
        &self,
        policies: &[Policy],
        usable: &[&Arc<Member>],
        len: u64,
        purpose: Purpose,
    ) -> Result<Choice> {
        // With nothing to choose from nobody's room matters: the OSD itself says whether it fits.
        let rooms = if usable.len() > 1 {
            join_all(usable.iter().map(|member| member.room_for(purpose))).await
        } else {
            usable.iter().map(|_| Ok(u64::MAX)).collect()
        };
        let least = policies.iter().map(|p| len / p.data() as u64).min().unwrap_or(len);
        let mut candidates = Vec::new();
        let mut is_full = false;
        for (member, free) in usable.iter().zip(&rooms) {
            match free {
                Ok(free) if *free > least => candidates.push(member.candidate(*free)),
                Ok(_) => is_full = true,
                Err(fault) => tracing::debug!(%fault, "an OSD takes no fragment"),
            }
        }
        placement::choose(policies.iter().copied(), &candidates, || self.outside.fraction())
            .ok_or_else(|| {
                let kind = if is_full { Kind::NoSpace } else { Kind::Unavailable };
                Fault::new(kind, self.why_none(policies, candidates.len()))
            })
    }

    fn why_none(&self, policies: &[Policy], usable: usize) -> String {
        let given = self.count();
        let list: Vec<String> = policies.iter().map(ToString::to_string).collect();
        let list = list.join(", ");
        format!(
            "{usable} of {given} OSDs can take a fragment now, which satisfies none of the policies {list}"
        )
    }

    /// The first policy of the preset that an object of this length could be put under now.
    pub async fn possible(&self, preset: &Preset, len: u64) -> Option<Policy> {
        let none = HashSet::new();
        let choice = self.choose(preset, len, Purpose::Data, &none).await;
        choice.ok().map(|choice| choice.policy)
    }

    /// Up to `count` more OSDs for an object that has fragments on `held`.
    pub async fn extend(
        &self,
        preset: &Preset,
        policy: Policy,
        held: &[OsdId],
        (count, fragment_len): (usize, u64),
    ) -> Vec<OsdId> {
        let present = self.present();
        let node = |id: &OsdId| present.nodes.get(id).cloned();
        let taken: Vec<String> = held.iter().filter_map(node).collect();
        let mut candidates = Vec::new();
        for member in &present.members {
            if held.contains(&member.id()) || !member.may_take(preset) || !member.is_well() {
                continue;
            }
            if let Ok(free) = member.room_for(Purpose::Data).await
                && free > fragment_len
            {
                candidates.push(member.candidate(free));
            }
        }
        placement::extend(policy, &taken, &candidates, count, || self.outside.fraction())
    }

    /// Whether this fragment of an object may lie where it does, given all others: no other is on its OSD, and its node has
    /// no more than the policy allows, not counting those that are `bad` and stay for want of another place.
    pub fn fits(&self, manifest: &Manifest, fragment: &Fragment, bad: &[Fragment]) -> bool {
        let present = self.present();
        let node = present.nodes.get(&fragment.osd);
        let all = manifest.fragments.iter();
        let others: Vec<&Fragment> = all.filter(|other| other.index != fragment.index).collect();
        let is_alone = others.iter().all(|other| other.osd != fragment.osd);
        let is_near =
            |other: &&&Fragment| present.nodes.get(&other.osd) == node && !bad.contains(other);
        let on_node = others.iter().filter(is_near).count();
        is_alone && (node.is_none() || on_node < manifest.policy.per_node())
    }

    /// After this time a read is unusually slow.
    pub fn patience(&self) -> Duration {
        let mut latencies: Vec<Duration> =
            self.present().members.iter().map(|m| m.health().latency()).collect();
        latencies.sort_unstable();
        let usual = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
        (usual * 5).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }
}

impl Member {
    pub fn new(osd: Box<dyn Osd>, node: String, labels: Vec<String>, role: OsdRole) -> Self {
        let (role, health) = (Mutex::new(role), Mutex::default());
        let (osd, is_open) = (osd.into(), true);
        Self { osd, node, labels, is_open, role, health, since: Instant::now() }
    }

    /// One that is known and cannot be opened.
    pub fn unreachable(id: OsdId, record: &OsdRecord) -> Self {
        let OsdRecord { path: place, node, labels, role } = record.clone();
        let why = format!("OSD {place} cannot be opened");
        let osd = Box::new(Unreachable { id, place, why });
        Self { is_open: false, ..Self::new(osd, node, labels, role) }
    }

    /// The same OSD, about which something else is known now.
    pub fn changed(&self, record: &OsdRecord) -> Self {
        let (node, labels) = (record.node.clone(), record.labels.clone());
        let (role, health) = (Mutex::new(record.role), Mutex::new(self.health()));
        let (osd, is_open, since) = (self.osd.clone(), self.is_open, self.since);
        Self { osd, node, labels, is_open, role, health, since }
    }

    /// The record says of it what is known here, but perhaps for its role.
    pub fn is_as(&self, record: &OsdRecord) -> bool {
        (self.place().as_str(), &self.node, &self.labels)
            == (record.path.as_str(), &record.node, &record.labels)
    }

    /// Makes it nobody's.
    pub async fn release(&self, alba: AlbaId) -> Result<()> {
        self.osd.release(alba).await
    }

    pub fn id(&self) -> OsdId {
        self.osd.id()
    }
    pub fn place(&self) -> String {
        self.osd.place()
    }
    pub fn role(&self) -> OsdRole {
        *locked(&self.role)
    }
    pub fn set_role(&self, role: OsdRole) {
        *locked(&self.role) = role;
    }
    pub fn health(&self) -> Health {
        locked(&self.health).clone()
    }
    /// Its fragments are files of this machine.
    pub fn has_files(&self) -> bool {
        self.osd.has_files()
    }
    /// Its fragments are good where they are.
    pub fn may_keep(&self) -> bool {
        self.role() != OsdRole::Decommissioning
    }

    /// New fragments, of some preset.
    pub fn may_take_any(&self) -> bool {
        self.role() == OsdRole::Active && self.is_well()
    }

    fn may_take(&self, preset: &Preset) -> bool {
        self.role() == OsdRole::Active
            && preset.labels.iter().all(|label| self.labels.contains(label))
    }

    pub fn is_well(&self) -> bool {
        self.health().may_try(self.since.elapsed())
    }

    fn candidate(&self, free: u64) -> Candidate {
        let health = self.health();
        let slowness = 1.0 + health.latency().as_secs_f64() * 10.0;
        let weight = free as f64 * health.score() / slowness;
        Candidate { osd: self.id(), node: self.node.clone(), weight: weight.max(1.0) }
    }

    /// Asks no longer than is worth it.
    pub async fn room(&self) -> Result<Room> {
        let late = |_| Fault::unavailable(format!("OSD {} does not answer", self.place()));
        let asked = tokio::time::timeout(ROOM_PATIENCE, self.osd.room()).await;
        let outcome = asked.map_err(late).and_then(|room| room);
        // Knowing its room says nothing about whether it takes bytes.
        outcome.inspect_err(|fault| self.note_failure(fault))
    }

    async fn room_for(&self, purpose: Purpose) -> Result<u64> {
        self.room().await.map(|room| room.free_for(purpose))
    }

    pub async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>> {
        let created = self.osd.create(title).await;
        created.inspect_err(|fault| self.note_failure(fault))
    }

    pub async fn open(
        &self,
        wanted: Wanted,
        priority: Priority,
    ) -> Result<Option<Arc<dyn osd::Fragment>>> {
        self.note(self.osd.open(wanted, priority).await)
    }

    pub async fn read(
        &self,
        fragment: Arc<dyn osd::Fragment>,
        (from, to): (u64, u64),
        priority: Priority,
    ) -> Result<bytes::Bytes> {
        let begun = Instant::now();
        let outcome = self.note(fragment.read(from, to, priority).await);
        if outcome.is_ok() && to - from <= SHORT_READ_BYTES {
            locked(&self.health).took(begun.elapsed());
        }
        outcome
    }

    pub async fn open_raw(&self, file: FragmentId) -> Result<Option<std::fs::File>> {
        self.note(self.osd.open_raw(file).await)
    }

    /// Files, with one call. What that says of its health is for the caller to note.
    pub async fn remove(&self, files: &[FragmentId]) -> Result<()> {
        let late = |_| Fault::unavailable(format!("OSD {} does not answer", self.place()));
        let sequence = Sequence::removing(files.iter().copied());
        let removed = tokio::time::timeout(REMOVE_PATIENCE, self.osd.apply(sequence)).await;
        removed.map_err(late).and_then(|removed| removed).map(drop)
    }

    pub async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        self.note(self.osd.list(shard).await)
    }

    /// Remembers what an operation came to.
    pub fn note<T>(&self, outcome: Result<T>) -> Result<T> {
        match &outcome {
            Ok(_) => locked(&self.health).succeeded(),
            Err(fault) => self.note_failure(fault),
        }
        outcome
    }

    /// A full OSD is not ill, and a damaged fragment says little about the rest.
    pub fn note_failure(&self, fault: &Fault) {
        if matches!(fault.kind, Kind::Unavailable) {
            locked(&self.health).failed(self.since.elapsed());
        }
    }

    /// It has kept someone waiting for so long, and still does.
    pub fn note_slow(&self, waited: Duration) {
        locked(&self.health).took(waited);
    }
}

// What is locked is replaced or changed by steps that do not panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
