//! The simulated world: one or more hosts (a disk and a page store each) and one object store, on virtual time.
//!
//! - Everything random comes from the world's own [`Rng`], so a seed gives the same run again; the [`trace`](Universe::trace)
//!   is a hash over every call, its time and its outcome, and proves it.
//! - Every call passes gates before and after its effect; a crash can be set at the n-th gate of a host. From then on no call
//!   of that life of the host ever returns; what was under way happens, happens later, or never.
//! - A crashed host is started again with [`Universe::restart`]: the disk then shows what a real one could show.
//! - A host may be cut off from the store, or stand still for a while, and not know it afterwards.
//!
//! It must run on a current-thread runtime with paused time, inside a `LocalSet`.

pub mod disk;
pub mod faults;
mod journal;
pub mod keys;
pub mod order;
pub mod pages;
pub mod rng;
pub mod store;
#[cfg(test)]
mod tests;

use std::cell::{RefCell, RefMut};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use volumedriver::world::World;
use volumedriver_core::units::{PageNo, ScoId, VolumeId};

use disk::{DiskState, SimDisk};
use faults::{Crash, Drive, Faults};
use journal::Journal;
use order::Damaged;
use pages::{PagesState, SimPages};
use rng::{Rng, mix};
use store::{SimStore, StoreState};

/// The whole simulated outside. Cheap to clone; all clones are the same universe.
#[derive(Clone)]
pub struct Universe(Rc<Shared>);

struct Shared {
    state: RefCell<State>,
    origin: Instant,
    crashed: Notify,
    /// A host that stood still goes on.
    resumed: Notify,
}

pub(crate) struct State {
    pub rng: Rng,
    pub faults: Faults,
    pub hosts: Vec<Host>,
    pub store: StoreState,
    /// What the world itself saw broken (orders of puts, reused names), in the order it happened.
    pub violations: Vec<String>,
    pub damaged: Damaged,
    trace: u64,
    next_flight: u64,
}

/// One machine: its local state, and how often it was started.
#[derive(Default)]
pub(crate) struct Host {
    /// By [`Drive`].
    pub drives: [DiskState; 2],
    pub pages: PagesState,
    pub journal: Journal,
    life: u64,
    gates: u64,
    crash_at: Option<u64>,
    down: bool,
    /// None of its calls goes on.
    pub paused: bool,
    /// Nothing it sends to the store is answered.
    pub partitioned: bool,
}

impl Host {
    pub fn drive(&mut self, drive: Drive) -> &mut DiskState {
        &mut self.drives[drive as usize]
    }
}

/// What one life of a host sees of the universe.
#[derive(Clone)]
pub(crate) struct Link {
    shared: Rc<Shared>,
    pub host: usize,
    /// Where its files are.
    pub drive: Drive,
    life: u64,
}

/// The world of one life of one host, as the engine takes it.
#[derive(Clone)]
pub struct SimWorld {
    link: Link,
    disk: SimDisk,
    store: SimStore,
    pages: SimPages,
}

impl Universe {
    /// A universe with one host. Must be called inside the runtime (it reads the paused clock).
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        let state = State {
            rng: Rng::new(seed),
            faults,
            hosts: vec![Host::default()],
            store: StoreState::default(),
            violations: Vec::new(),
            damaged: Damaged::Never,
            trace: mix(seed),
            next_flight: 0,
        };
        let state = RefCell::new(state);
        Self(Rc::new(Shared {
            state,
            origin: Instant::now(),
            crashed: Notify::new(),
            resumed: Notify::new(),
        }))
    }

    /// The world as host 0's present life sees it.
    #[must_use]
    pub fn world(&self) -> SimWorld {
        self.world_of(0)
    }

    #[must_use]
    pub fn world_of(&self, host: usize) -> SimWorld {
        let life = self.state().hosts[host].life;
        let link = Link { shared: self.0.clone(), host, drive: Drive::Buffer, life };
        SimWorld {
            disk: SimDisk(link.clone()),
            store: SimStore(link.clone()),
            pages: SimPages(link.clone()),
            link,
        }
    }

    /// Adds a host with an empty disk.
    pub fn add_host(&self) -> usize {
        let mut state = self.state();
        state.hosts.push(Host::default());
        state.hosts.len() - 1
    }

    /// Lets a host crash at its n-th gate from now.
    pub fn crash_after(&self, host: usize, gates: u64) {
        let mut state = self.state();
        let host = &mut state.hosts[host];
        host.crash_at = Some(host.gates + gates);
    }

    /// Takes a host's planned crash back.
    pub fn call_off_crash(&self, host: usize) {
        self.state().hosts[host].crash_at = None;
    }

    /// Stops every host this instant.
    pub fn crash_now(&self) {
        let mut state = self.state();
        for host in 0..state.hosts.len() {
            state.stop(host);
        }
        drop(state);
        self.0.crashed.notify_waiters();
    }

    /// Returns when the host that `which` names has crashed; it may come to name another.
    pub async fn crashed(&self, which: impl Fn() -> usize) {
        loop {
            let crashed = self.0.crashed.notified();
            if self.is_down(which()) {
                return;
            }
            crashed.await;
        }
    }

    #[must_use]
    pub fn is_down(&self, host: usize) -> bool {
        self.state().hosts[host].down
    }

    /// Lets a host stand still, or go on.
    pub fn pause(&self, host: usize, paused: bool) {
        self.state().hosts[host].paused = paused;
        if !paused {
            self.0.resumed.notify_waiters();
        }
    }

    /// Cuts a host off from the store, or connects it again.
    pub fn partition(&self, host: usize, partitioned: bool) {
        self.state().hosts[host].partitioned = partitioned;
    }

    /// Starts host 0 again after a crash of this kind; everything of its former life must have been dropped.
    pub fn restart(&self, crash: Crash) -> SimWorld {
        self.restart_host(0, crash)
    }

    pub fn restart_host(&self, host: usize, crash: Crash) -> SimWorld {
        let now = self.now();
        self.state().restart(host, crash, now);
        self.world_of(host)
    }

    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.origin.elapsed()
    }

    /// Changes what may go wrong from now on.
    pub fn change_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// Hash over all calls so far: equal for equal runs.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.state().trace
    }

    /// Gates that host 0 has passed so far: the places where it could have crashed.
    #[must_use]
    pub fn gates(&self) -> u64 {
        self.state().hosts[0].gates
    }

    /// Names and lengths of a host's files.
    #[must_use]
    pub fn files(&self, host: usize) -> Vec<(String, u64)> {
        self.state().hosts[host].drive(Drive::Buffer).names()
    }

    /// What a reader of one of a host's files sees.
    #[must_use]
    pub fn file_bytes(&self, host: usize, name: &str) -> Vec<u8> {
        self.state().hosts[host].drive(Drive::Buffer).contents(name).unwrap_or_default().to_vec()
    }

    /// Blocks of a host's files that cannot be read can be again.
    pub fn heal(&self, host: usize) {
        self.state().hosts[host].drive(Drive::Buffer).heal();
    }

    /// From now on the operator accepts that damage reaches the store.
    pub fn accept_damage(&self) {
        self.state().damaged = Damaged::Accepted;
    }

    /// The file of a host's read cache.
    #[must_use]
    pub fn cache_file(&self, host: usize) -> Option<Vec<u8>> {
        let mut state = self.state();
        let disk = state.hosts[host].drive(Drive::Cache);
        let (name, _) = disk.names().pop()?;
        disk.contents(&name).map(<[u8]>::to_vec)
    }

    /// Replaces bytes of the file of a host's read cache for good.
    pub fn overwrite_in_cache(&self, host: usize, at: u64, bytes: &[u8]) -> bool {
        let mut state = self.state();
        let disk = state.hosts[host].drive(Drive::Cache);
        disk.names().pop().is_some_and(|(name, _)| disk.overwrite(&name, at, bytes))
    }

    /// Makes a block of the file of a host's read cache unreadable until it is written again.
    pub fn lose_cache_block(&self, host: usize, at: u64) -> bool {
        let mut state = self.state();
        let disk = state.hosts[host].drive(Drive::Cache);
        disk.names().pop().is_some_and(|(name, _)| disk.lose_block(&name, at))
    }

    /// Flips a bit of one of host 0's files for good; false when it is not that long.
    pub fn flip_in_file(&self, name: &str, byte: u64, bit: u32) -> bool {
        self.state().hosts[0].drive(Drive::Buffer).flip(name, byte, bit)
    }

    /// Replaces bytes of one of a host's files for good.
    pub fn overwrite_in_file(&self, host: usize, name: &str, at: u64, bytes: &[u8]) -> bool {
        self.state().hosts[host].drive(Drive::Buffer).overwrite(name, at, bytes)
    }

    /// Makes a block of one of a host's files unreadable until it is written again.
    pub fn lose_block(&self, host: usize, name: &str, at: u64) -> bool {
        self.state().hosts[host].drive(Drive::Buffer).lose_block(name, at)
    }

    /// The bug planted in this world.
    #[must_use]
    pub fn canary(&self) -> Option<faults::Canary> {
        self.state().faults.canary
    }

    /// Lets a page of a host's page store decay, if it has any; which.
    pub fn decay_page(&self, host: usize) -> Option<(VolumeId, u64)> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.hosts[host].pages.decay(state.faults.canary, &mut state.rng)
    }

    /// Writes and syncs of a host's disk that failed for good since it was started.
    #[must_use]
    pub fn broken_writes(&self, host: usize) -> u64 {
        self.state().hosts[host].drive(Drive::Buffer).broken
    }

    /// Cuts off one of host 0's files for good.
    pub fn truncate_file(&self, name: &str, len: u64) -> bool {
        self.state().hosts[0].drive(Drive::Buffer).truncate(name, len)
    }

    /// Most bytes that a host's files took at any time.
    #[must_use]
    pub fn peak_disk_bytes(&self, host: usize) -> u64 {
        self.state().hosts[host].drive(Drive::Buffer).peak_bytes
    }

    /// The same of the files of its read cache.
    #[must_use]
    pub fn peak_cache_bytes(&self, host: usize) -> u64 {
        self.state().hosts[host].drive(Drive::Cache).peak_bytes
    }

    /// The process of a host starts again, the host does not: what its disk failed to sync is lost, or like anything unsynced.
    pub fn start_process_again(&self, host: usize) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.hosts[host].journal = Journal::default();
        state.hosts[host].drives.iter_mut().for_each(|disk| disk.settle_doomed(&mut state.rng));
    }

    /// Most SCO puts that one host had under way to a namespace at one time.
    #[must_use]
    pub fn peak_scos(&self, namespace: &str) -> usize {
        self.state().store.peak_scos.get(namespace).copied().unwrap_or_default()
    }

    /// Most bytes of puts that were under way at one time.
    #[must_use]
    pub fn peak_flying_bytes(&self) -> u64 {
        self.state().store.peak_flying_bytes
    }

    /// Namespace, name and length of every object, sorted.
    #[must_use]
    pub fn objects(&self) -> Vec<(String, String, u64)> {
        let state = self.state();
        let spaces = state.store.namespaces.iter();
        let all = spaces.flat_map(|(space, content)| {
            content
                .objects
                .iter()
                .map(|(name, o)| (space.clone(), name.clone(), o.body.len() as u64))
        });
        all.collect()
    }

    /// Replaces an object's bytes behind the store's back; `None` loses the object. False when there is none.
    pub fn damage_object(
        &self,
        namespace: &str,
        name: &str,
        damage: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>,
    ) -> bool {
        self.state().store.damage(namespace, name, damage)
    }

    /// An object's bytes.
    #[must_use]
    pub fn object(&self, namespace: &str, name: &str) -> Option<bytes::Bytes> {
        self.state().store.body(namespace, name).cloned()
    }

    /// Whether a volume's manifests name this SCO of its own.
    #[must_use]
    pub fn is_published(&self, volume: VolumeId, sco: ScoId) -> bool {
        let state = self.state();
        let origin = state
            .store
            .shape_of(volume)
            .and_then(|shape| shape.origin_of(sco.seq).filter(|_| sco.seq <= shape.last_sco));
        origin.is_some_and(|origin| origin.epoch == sco.epoch)
    }

    /// Brings back an object as it was before it was damaged or lost.
    pub fn restore_object(&self, namespace: &str, name: &str, body: bytes::Bytes) {
        self.state().store.restore(namespace, name, body);
    }

    /// Puts an object in place behind the store's back; nothing of it is checked.
    pub fn plant_object(&self, namespace: &str, name: &str, body: bytes::Bytes) {
        self.state().store.plant(namespace, name, body);
    }

    /// Puts a file in place behind host 0's back.
    pub fn plant_file(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let id = state.take_flight_no();
        state.hosts[0].drive(Drive::Buffer).plant(name, id, bytes);
    }

    /// Puts a page in place behind host 0's back.
    pub fn plant_page(&self, volume: VolumeId, page: PageNo, bytes: bytes::Bytes) {
        self.state().hosts[0].pages.plant(volume, page, bytes);
    }

    /// What the world saw broken so far.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    pub(crate) fn state(&self) -> RefMut<'_, State> {
        self.0.state.borrow_mut()
    }
}

impl State {
    /// Ends a host's life: from now on none of its calls returns.
    fn stop(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        host.life += 1;
        host.down = true;
        host.crash_at = None;
        (host.paused, host.partitioned) = (false, false);
    }

    fn restart(&mut self, host: usize, crash: Crash, now: Duration) {
        if !self.hosts[host].down {
            self.stop(host);
        }
        self.store.abandon_host(host, now, &mut self.rng);
        let host = &mut self.hosts[host];
        host.down = false;
        host.journal = Journal::default();
        // The read cache's disk may be another one, which nobody thinks of.
        let forgotten = crash == Crash::DiscardLocal && self.rng.coin();
        let of_cache = if forgotten { Crash::Kill } else { crash };
        host.drive(Drive::Buffer).crash(crash, &mut self.rng);
        host.drive(Drive::Cache).crash(of_cache, &mut self.rng);
        host.pages.crash(crash, &mut self.rng);
        self.note(crash as u64);
    }

    /// Adds to the trace.
    pub fn note(&mut self, word: u64) {
        self.trace = mix(self.trace.rotate_left(1) ^ word);
    }

    pub fn take_flight_no(&mut self) -> u64 {
        self.next_flight += 1;
        self.next_flight
    }
}

/// A hash of a name, for the trace.
fn name_word(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

impl Link {
    pub fn now(&self) -> Duration {
        self.shared.origin.elapsed()
    }

    pub fn state(&self) -> RefMut<'_, State> {
        self.shared.state.borrow_mut()
    }

    pub fn is_over(&self) -> bool {
        self.state().hosts[self.host].life != self.life
    }

    /// A point where the host may crash. Never returns once this life is over, nor while the host stands still.
    pub async fn gate(&self, what: &str, detail: u64) {
        loop {
            let resumed = self.shared.resumed.notified();
            if !self.state().hosts[self.host].paused {
                break;
            }
            resumed.await;
        }
        if !self.pass(what, detail) {
            std::future::pending::<()>().await;
        }
    }

    fn pass(&self, what: &str, detail: u64) -> bool {
        if self.is_over() {
            return false;
        }
        let now = self.now();
        let mut state = self.state();
        state.apply_due(now);
        state.note(name_word(what) ^ mix(detail) ^ now.as_nanos() as u64);
        let host = &mut state.hosts[self.host];
        host.gates += 1;
        if host.crash_at.is_some_and(|at| host.gates >= at) {
            state.stop(self.host);
            drop(state);
            self.shared.crashed.notify_waiters();
            return false;
        }
        true
    }

    /// A virtual delay: none (but other tasks run), or up to `longest` milliseconds.
    pub async fn delay(&self, shortest: u64, longest: u64, delayed: u32) {
        let ms = {
            let mut state = self.state();
            let delayed = state.rng.chance(delayed);
            if delayed { state.rng.between(shortest, longest) } else { 0 }
        };
        match ms {
            0 => tokio::task::yield_now().await,
            ms => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }
}

impl SimWorld {
    /// The same, with the read cache's disk for its files.
    #[must_use]
    pub fn with_cache_disk(&self) -> Self {
        let link = Link { drive: Drive::Cache, ..self.link.clone() };
        Self { disk: SimDisk(link.clone()), link, ..self.clone() }
    }

    /// The universe this world is part of.
    #[must_use]
    pub fn universe(&self) -> Universe {
        Universe(self.link.shared.clone())
    }
}

impl World for SimWorld {
    type Disk = SimDisk;
    type Store = SimStore;
    type Pages = SimPages;

    fn disk(&self) -> &SimDisk {
        &self.disk
    }
    fn store(&self) -> &SimStore {
        &self.store
    }
    fn pages(&self) -> &SimPages {
        &self.pages
    }
    fn now(&self) -> Duration {
        self.link.now()
    }
    fn sleep(&self, how_long: Duration) -> impl Future<Output = ()> + 'static {
        tokio::time::sleep(how_long)
    }
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.link.is_over() {
            // Nothing of a life that is over may be noticed any more, not even that its tasks are gone.
            tokio::task::spawn_local(async move {
                let _never_polled = task;
                std::future::pending::<()>().await
            });
        } else {
            tokio::task::spawn_local(task);
        }
    }
    fn adopt(&self, file: std::sync::Arc<std::fs::File>) -> Option<disk::SimFile> {
        let (namespace, name, len) = self.link.state().store.adopt(&file)?;
        Some(disk::SimFile::of_object(self.link.clone(), namespace, name, len))
    }
    fn random_id(&self) -> [u8; 16] {
        self.link.state().rng.bytes16()
    }
}
