//! An object store that answers late, wrongly, twice or not at all, and still keeps its contract.
//!
//! Changes happen atomically. One that is under way when its caller stops (crash, or the future dropped), or whose reply is
//! lost, happens at once, happens up to [`LATEST`] later, or never. The store itself never crashes.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use volumedriver::world::{ObjectInfo, ObjectStore, Purpose, Put};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::manifest::Shape;
use volumedriver_core::format::names;
use volumedriver_core::units::VolumeId;

use super::faults::{Canary, StoreFaults, is_in};
use super::order::Damaged;
use super::rng::Rng;
use super::{Link, State, mix, name_word, order};

/// A change whose caller got no answer happens within this time, or never.
pub const LATEST: Duration = Duration::from_secs(60);
/// How long the planted late SCO puts take.
const REORDERED_BY: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct SimStore(pub(crate) Link);

#[derive(Default)]
pub(crate) struct StoreState {
    pub namespaces: BTreeMap<String, Namespace>,
    /// Changes that will happen, by the time they do.
    due: BTreeMap<(Duration, u64), Change>,
    /// Changes whose caller still waits: (host, change).
    flying: BTreeMap<u64, (usize, Change)>,
    /// Most bytes of puts under way at one time.
    pub peak_flying_bytes: u64,
    /// Most SCO puts of one host under way to a namespace at one time.
    pub peak_scos: BTreeMap<String, usize>,
    pub puts: u64,
    /// What stands for objects handed out as local files, until they are adopted.
    handed_out: Vec<(Arc<File>, String, String)>,
}

#[derive(Default)]
pub(crate) struct Namespace {
    pub objects: BTreeMap<String, Object>,
    /// Deleted objects: name, and the time it was there (for stale lists).
    buried: Vec<(String, Duration, Duration)>,
    pub chain: order::Chain,
}

pub(crate) struct Object {
    /// What was put, whatever became of it since.
    put: Bytes,
    pub body: Bytes,
    /// What readers get instead, under [`Canary::UncheckedChecksum`].
    forged: Option<Bytes>,
    born: Duration,
}

#[derive(Clone)]
pub(crate) enum Change {
    CreateNamespace(String),
    DeleteNamespace(String),
    Put(String, String, Bytes, Purpose),
    Delete(String, String),
}

/// What becomes of one change, drawn when it is asked for.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Happens,
    Refused,
    ReplyLost,
    HappensLate,
}

impl Change {
    fn namespace(&self) -> &str {
        match self {
            Self::CreateNamespace(namespace)
            | Self::DeleteNamespace(namespace)
            | Self::Put(namespace, ..)
            | Self::Delete(namespace, _) => namespace,
        }
    }
}

impl Change {
    fn lacks_room(&self, faults: &StoreFaults, now: Duration) -> bool {
        let Self::Put(.., purpose) = self else { return false };
        is_in(&faults.full, now) || *purpose == Purpose::Data && is_in(&faults.full_of_data, now)
    }
}

impl Outcome {
    /// What a host cut off from the store sends: most of it is lost, some arrives late.
    fn draw_cut_off(rng: &mut Rng) -> Self {
        rng.pick(&[(6, Self::Refused), (2, Self::HappensLate)])
    }

    fn draw(faults: &StoreFaults, now: Duration, rng: &mut Rng) -> Self {
        if is_in(&faults.outages, now) {
            rng.pick(&[(8, Self::Refused), (1, Self::ReplyLost), (1, Self::HappensLate)])
        } else if is_in(&faults.brownouts, now) {
            rng.pick(&[
                (4, Self::Happens),
                (2, Self::Refused),
                (1, Self::ReplyLost),
                (1, Self::HappensLate),
            ])
        } else if rng.chance(faults.error_before) {
            Self::Refused
        } else if rng.chance(faults.lost_reply) {
            Self::ReplyLost
        } else if rng.chance(faults.late_success) {
            Self::HappensLate
        } else {
            Self::Happens
        }
    }
}

impl StoreState {
    /// The changes a stopped host was waiting for.
    pub fn abandon_host(&mut self, host: usize, now: Duration, rng: &mut Rng) {
        let flights: Vec<u64> =
            self.flying.iter().filter(|(_, f)| f.0 == host).map(|(n, _)| *n).collect();
        for flight in flights {
            self.abandon(flight, now, rng);
        }
    }

    /// Decides what becomes of a change nobody waits for: it happens very soon, later, or never.
    fn abandon(&mut self, flight: u64, now: Duration, rng: &mut Rng) {
        let Some((_, change)) = self.flying.remove(&flight) else { return };
        match rng.below(3) {
            0 => {}
            1 => self.schedule(now, flight, change),
            _ => self.schedule(now + later(rng), flight, change),
        }
    }

    fn schedule(&mut self, when: Duration, flight: u64, change: Change) {
        self.due.insert((when, flight), change);
    }

    /// A volume as its manifests so far describe it.
    pub fn shape_of(&self, volume: VolumeId) -> Option<&Shape> {
        self.namespaces.get(&names::namespace(volume))?.chain.shape()
    }

    fn object(&self, namespace: &str, name: &str) -> Option<&Object> {
        self.namespaces.get(namespace)?.objects.get(name)
    }

    /// An object's bytes.
    pub fn body(&self, namespace: &str, name: &str) -> Option<&Bytes> {
        self.object(namespace, name).map(|object| object.forged.as_ref().unwrap_or(&object.body))
    }

    /// The object that a file handed out stands for, and its length.
    pub fn adopt(&mut self, file: &Arc<File>) -> Option<(String, String, u64)> {
        let at = self.handed_out.iter().position(|(given, ..)| Arc::ptr_eq(given, file))?;
        let (_, namespace, name) = self.handed_out.swap_remove(at);
        let len = self.body(&namespace, &name)?.len() as u64;
        Some((namespace, name, len))
    }

    fn count_flying(&mut self, host: usize, namespace: &str) {
        let puts = self.flying.values().filter_map(|(_, change)| match change {
            Change::Put(_, _, body, _) => Some(body.len() as u64),
            Change::CreateNamespace(_) | Change::DeleteNamespace(_) | Change::Delete(..) => None,
        });
        self.peak_flying_bytes = self.peak_flying_bytes.max(puts.sum());
        let scos = self.flying.values().filter(|(of, change)| match change {
            Change::Put(space, name, _, _) => {
                *of == host && space == namespace && name.starts_with(names::SCO_PREFIX)
            }
            Change::CreateNamespace(_) | Change::DeleteNamespace(_) | Change::Delete(..) => false,
        });
        let scos = scos.count();
        let peak = self.peak_scos.entry(namespace.to_owned()).or_default();
        *peak = scos.max(*peak);
    }

    fn delete(&mut self, namespace: &str, name: &str, now: Duration) {
        if let Some(space) = self.namespaces.get_mut(namespace)
            && let Some(object) = space.objects.remove(name)
        {
            space.buried.push((name.to_string(), object.born, now));
        }
    }

    pub fn damage(
        &mut self,
        namespace: &str,
        name: &str,
        damage: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>,
    ) -> bool {
        let Some(space) = self.namespaces.get_mut(namespace) else { return false };
        let Some(object) = space.objects.get_mut(name) else { return false };
        match damage(object.body.to_vec()) {
            Some(body) => object.body = body.into(),
            None => drop(space.objects.remove(name)),
        }
        true
    }

    pub fn restore(&mut self, namespace: &str, name: &str, body: Bytes) {
        let Some(space) = self.namespaces.get_mut(namespace) else { return };
        let object = Object { put: body.clone(), body, forged: None, born: Duration::ZERO };
        space.objects.insert(name.to_owned(), object);
    }

    pub fn plant(&mut self, namespace: &str, name: &str, body: Bytes) {
        let space = self.namespaces.entry(namespace.to_owned()).or_default();
        let object = Object { put: body.clone(), body, forged: None, born: Duration::ZERO };
        // What it breaks is intended; what follows is judged by it.
        let _broken = order::check_put(space, name, &object.body, Damaged::Never);
        space.objects.insert(name.to_owned(), object);
    }

    /// Names as they were at `seen`.
    fn names_at(&self, namespace: &str, seen: Duration, now: Duration) -> Vec<String> {
        let Some(space) = self.namespaces.get(namespace) else { return Vec::new() };
        let fresh = seen == now;
        let live =
            space.objects.iter().filter(|(_, o)| fresh || o.born <= seen).map(|(n, _)| n.clone());
        let gone = space.buried.iter().filter(|(_, born, died)| *born <= seen && seen < *died);
        let mut names: Vec<String> = live.chain(gone.map(|(n, _, _)| n.clone())).collect();
        names.sort();
        names.dedup();
        names
    }
}

fn later(rng: &mut Rng) -> Duration {
    Duration::from_millis(rng.between(1, LATEST.as_millis() as u64))
}

impl State {
    /// Carries out the changes whose time has come.
    pub fn apply_due(&mut self, now: Duration) {
        while let Some(entry) = self.store.due.first_entry() {
            let (when, _) = *entry.key();
            if when > now {
                return;
            }
            let change = entry.remove();
            self.note(when.as_nanos() as u64);
            // Nobody waits for the outcome any more.
            if !change.lacks_room(&self.faults.store, when) {
                drop(self.happen(change, when));
            }
        }
    }

    fn happen(&mut self, change: Change, now: Duration) -> Result<Put> {
        match change {
            Change::CreateNamespace(namespace) => {
                self.store.namespaces.entry(namespace).or_default();
                Ok(Put::Created)
            }
            Change::DeleteNamespace(namespace) => {
                self.store.namespaces.remove(&namespace);
                Ok(Put::Created)
            }
            Change::Delete(namespace, name) => {
                let space = self.store.namespaces.get(&namespace);
                self.violations.extend(space.and_then(|space| order::check_delete(space, &name)));
                self.store.delete(&namespace, &name, now);
                Ok(Put::Created)
            }
            Change::Put(namespace, name, body, _) => self.happen_put(&namespace, name, body, now),
        }
    }

    fn happen_put(
        &mut self,
        namespace: &str,
        name: String,
        body: Bytes,
        now: Duration,
    ) -> Result<Put> {
        let canary = self.faults.canary;
        if let Some(old) = self.store.object(namespace, &name) {
            // Two owners may race for a manifest number: that is the fence. Any other name belongs to one content.
            let same = old.put == body || order::is_same_sco(&name, &old.put, &body, self.damaged);
            if !same && !name.starts_with(names::MANIFEST_PREFIX) {
                self.violations
                    .push(format!("name reused: {namespace}/{name} was put with other content"));
            }
            let fenced = name.starts_with(names::MANIFEST_PREFIX);
            if canary != Some(Canary::ReusedName) && !(canary == Some(Canary::NoFence) && fenced) {
                return Ok(Put::Exists);
            }
        }
        let Some(space) = self.store.namespaces.get_mut(namespace) else {
            return Err(Fault::invalid(format!("there is no namespace {namespace}")));
        };
        self.violations.extend(order::check_put(space, &name, &body, self.damaged));
        let forging = canary == Some(Canary::UncheckedChecksum);
        let forged = forging.then(|| order::damage_sco(&name, &body, &mut self.rng)).flatten();
        space.objects.insert(name, Object { put: body.clone(), body, forged, born: now });
        self.store.puts += 1;
        Ok(Put::Created)
    }
}

/// Settles a change whose future was dropped while its host lives on.
struct FlyingGuard<'a> {
    link: &'a Link,
    flight: u64,
}

impl Drop for FlyingGuard<'_> {
    fn drop(&mut self) {
        if self.link.is_over() {
            return; // the restart settles it
        }
        let now = self.link.now();
        let mut guard = self.link.state();
        let state = &mut *guard;
        state.store.abandon(self.flight, now, &mut state.rng);
    }
}

fn unavailable(what: &str) -> Fault {
    Fault::unavailable(format!("{what}: simulated failure of the object store"))
}

impl Link {
    async fn store_delay(&self) {
        let (shortest, longest) = self.state().faults.store.delay_ms;
        let delayed = if longest > 0 { 800_000 } else { 0 };
        self.delay(shortest, longest, delayed).await;
    }

    async fn change(&self, what: &str, word: u64, change: Change) -> Result<Put> {
        self.gate(what, word).await;
        let now = self.now();
        let (flight, outcome) = {
            let mut guard = self.state();
            let state = &mut *guard;
            let outcome = Outcome::draw(&state.faults.store, now, &mut state.rng);
            let outcome = match state.hosts[self.host].partitioned {
                true => Outcome::draw_cut_off(&mut state.rng),
                false => outcome,
            };
            let flight = state.take_flight_no();
            let namespace = change.namespace().to_owned();
            state.store.flying.insert(flight, (self.host, change));
            state.store.count_flying(self.host, &namespace);
            (flight, outcome)
        };
        let guard = FlyingGuard { link: self, flight };
        self.store_delay().await;
        self.gate("store.changing", outcome as u64).await;
        let result = self.finish(what, flight, outcome);
        drop(guard);
        self.gate("store.changed", u64::from(result.is_ok())).await;
        result
    }

    fn finish(&self, what: &str, flight: u64, outcome: Outcome) -> Result<Put> {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        let Some((_, change)) = state.store.flying.remove(&flight) else {
            return Err(unavailable(what));
        };
        // Cut off since it was sent: the answer does not come back.
        let cut_off = state.hosts[self.host].partitioned && outcome == Outcome::Happens;
        let outcome = if cut_off { Outcome::ReplyLost } else { outcome };
        if change.lacks_room(&state.faults.store, now) {
            return Err(Fault::no_space(format!("{what}: the simulated object store is full")));
        }
        match outcome {
            Outcome::Refused => Err(unavailable(what)),
            Outcome::HappensLate => {
                let when = now + later(&mut state.rng);
                state.store.schedule(when, flight, change);
                Err(unavailable(what))
            }
            Outcome::ReplyLost => {
                // Even a refusal is not heard.
                drop(state.happen(change, now));
                Err(unavailable(what))
            }
            Outcome::Happens => state.happen_or_postpone(flight, change, now),
        }
    }

    /// A question to the store: fails in outages and at the given rate, changes nothing.
    async fn ask(&self, what: &str, word: u64) -> Result<()> {
        self.gate(what, word).await;
        self.store_delay().await;
        let now = self.now();
        let fails = {
            let mut guard = self.state();
            let state = &mut *guard;
            let faults = &state.faults.store;
            let cut_off = state.hosts[self.host].partitioned;
            let rate = if is_in(&faults.brownouts, now) { 500_000 } else { faults.error_before };
            cut_off || is_in(&faults.outages, now) || state.rng.chance(rate)
        };
        self.gate("store.asked", u64::from(fails)).await;
        if fails { Err(unavailable(what)) } else { Ok(()) }
    }
}

impl State {
    fn happen_or_postpone(&mut self, flight: u64, change: Change, now: Duration) -> Result<Put> {
        let reordered = self.faults.canary == Some(Canary::ReorderedManifest);
        if let Change::Put(_, name, ..) = &change
            && reordered
            && name.starts_with(names::SCO_PREFIX)
        {
            self.store.schedule(now + REORDERED_BY, flight, change);
            return Ok(Put::Created);
        }
        self.happen(change, now)
    }
}

impl ObjectStore for SimStore {
    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        let change = Change::CreateNamespace(namespace.to_string());
        self.0.change("store.create_namespace", name_word(namespace), change).await.map(|_| ())
    }

    async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        let change = Change::DeleteNamespace(namespace.to_string());
        self.0.change("store.delete_namespace", name_word(namespace), change).await.map(|_| ())
    }

    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        self.0.ask("store.list_namespaces", name_word(prefix)).await?;
        let state = self.0.state();
        Ok(state.store.namespaces.keys().filter(|n| n.starts_with(prefix)).cloned().collect())
    }

    async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        let body = Bytes::from(body.concat());
        let word = name_word(name) ^ mix(u64::from(crc32fast::hash(&body)));
        let change = Change::Put(namespace.to_string(), name.to_string(), body, purpose);
        self.0.change("store.put", word, change).await
    }

    async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        self.0.ask("store.get", name_word(name) ^ mix(offset ^ len << 40)).await?;
        let mut guard = self.0.state();
        let state = &mut *guard;
        let Some(object) = state.store.object(namespace, name) else { return Ok(None) };
        let end = offset.checked_add(len).filter(|end| *end <= object.body.len() as u64);
        let Some(end) = end else {
            let there = object.body.len();
            return Err(Fault::invalid(format!(
                "{name}: {len} bytes at {offset} of an object of {there}"
            )));
        };
        let body = object.forged.as_ref().unwrap_or(&object.body);
        let body = body.slice(offset as usize..end as usize);
        if body.is_empty() || !state.rng.chance(state.faults.store.flip_on_read) {
            return Ok(Some(body));
        }
        let mut damaged = body.to_vec();
        let bit = state.rng.below(damaged.len() as u64 * 8) as usize;
        damaged[bit / 8] ^= 1 << (bit % 8);
        Ok(Some(damaged.into()))
    }

    async fn head(&self, namespace: &str, name: &str) -> Result<Option<ObjectInfo>> {
        self.0.ask("store.head", name_word(name)).await?;
        let state = self.0.state();
        let info =
            |o: &Object| ObjectInfo { len: o.body.len() as u64, crc: crc32fast::hash(&o.body) };
        Ok(state.store.object(namespace, name).map(info))
    }

    async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        self.0.ask("store.list", name_word(prefix)).await?;
        let now = self.0.now();
        let mut guard = self.0.state();
        let state = &mut *guard;
        let staleness = state.rng.below(state.faults.store.stale_list.as_millis() as u64 + 1);
        let seen = now.saturating_sub(Duration::from_millis(staleness));
        let names = state.store.names_at(namespace, seen, now).into_iter();
        let wanted =
            names.filter(|n| n.starts_with(prefix) && after.is_none_or(|a| n.as_str() > a));
        Ok(wanted.take(limit as usize).collect())
    }

    async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<Arc<File>>> {
        self.0.gate("store.local_file", name_word(name)).await;
        let mut state = self.0.state();
        if !state.faults.store.local_files || state.store.body(namespace, name).is_none() {
            return Ok(None);
        }
        // The bytes come from the world; the file only stands for them.
        let file = File::open("/dev/null").map(Arc::new);
        let file = file.map_err(|error| Fault::unavailable("no descriptor left").because(error))?;
        state.store.handed_out.push((file.clone(), namespace.to_owned(), name.to_owned()));
        Ok(Some(file))
    }

    async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        let change = Change::Delete(namespace.to_string(), name.to_string());
        self.0.change("store.delete", name_word(name) ^ 1, change).await.map(|_| ())
    }
}
