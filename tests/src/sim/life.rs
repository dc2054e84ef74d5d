//! One life of a host after another: open, verify what the crash left, work until the end or the next crash.
//!
//! Two hosts exist. One serves the volumes; in a contested life (see [`rivals`](super::rivals)) the other takes them over while
//! the first goes on as if nothing had happened, and from then on it is the one that serves.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{LocalSet, spawn_local};
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::request::{Fua, Request};
use volumedriver_core::units::{ByteOffset, NodeId};

use super::caches;
use super::ceilings;
use super::decay::{Decay, Duty};
use super::engine::{Engine, State, Volume};
use super::guest::{Excuse, Guest, Step, is_damage};
use super::objects::Spoilt;
use super::plan::{BufferSizes, Plan};
use super::{Findings, Outcome, runtime};
use crate::model::{Place, Span, UNREADABLE};
use crate::world::faults::Crash;
use crate::world::rng::Rng;
use crate::world::{SimWorld, Universe};

/// Virtual time in which a life must get its work done, beyond any outage: what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);
const HOSTS: usize = 2;

/// Everything of a run that outlives the hosts' lives.
pub(super) struct Sim {
    pub plan: Plan,
    pub universe: Universe,
    /// Per volume, the guest of the owner who serves it.
    pub guests: RefCell<Vec<Rc<Guest>>>,
    pub findings: Findings,
    pub excused: Excuse,
    /// Identity of each host's local state.
    pub nodes: [Cell<NodeId>; HOSTS],
    /// The host that serves, or last did.
    pub serving: Rc<Cell<usize>>,
    /// Another host took over during this life.
    pub contested: Cell<bool>,
    pub steps_left: Cell<u64>,
    crashes: u64,
    /// The engine of this life that serves.
    pub opened: RefCell<Option<Engine>>,
    /// Per volume: whether it was ever created, and the worst that happened since it was last verified.
    created: Vec<Cell<bool>>,
    pub kept: Vec<Cell<Place>>,
    /// What decayed since the last life; stays while a volume is read-only because of it.
    decay: RefCell<Option<Decay>>,
    /// Volumes, by number, whose journal's end it tore off, not verified since.
    torn: RefCell<BTreeMap<usize, Duty>>,
    read_only: Cell<bool>,
    /// The operator began to accept what is lost: per volume, what that is. Stays until all are verified as accepted.
    accepting: RefCell<Option<Vec<Duty>>>,
    /// An object on the store that is not what it was.
    spoilt: RefCell<Option<Rc<Spoilt>>>,
    /// Number of the present life, from 0.
    life: Cell<usize>,
    /// Whether anything ever decayed in each host's cache file.
    cache_decayed: [Cell<bool>; HOSTS],
}

/// Runs all lives of one plan.
pub(super) fn run(plan: Plan, findings: &Findings) -> Outcome {
    let runtime = runtime();
    let _inside = runtime.enter();
    let universe = Universe::new(plan.run.seed, plan.faults.clone());
    universe.add_host();
    let serving = Rc::new(Cell::new(0));
    let excused = excuse(&plan, &universe, serving.clone());
    let guest = |(n, volume): (usize, &super::plan::VolumePlan)| {
        Rc::new(Guest::new(volume.clone(), n as u32 + 1, findings.clone(), excused.clone()))
    };
    let guests: Vec<Rc<Guest>> = plan.volumes.iter().enumerate().map(guest).collect();
    let mut sim = Sim {
        nodes: [1, 2].map(|n| Cell::new(NodeId([n; 16]))),
        serving,
        contested: Cell::new(false),
        steps_left: Cell::new(plan.run.steps),
        created: guests.iter().map(|_| Cell::new(false)).collect(),
        kept: guests.iter().map(|_| Cell::new(Place::Journal)).collect(),
        findings: findings.clone(),
        excused,
        plan,
        universe,
        guests: RefCell::new(guests),
        crashes: 0,
        opened: RefCell::default(),
        decay: RefCell::default(),
        torn: RefCell::default(),
        read_only: Cell::new(false),
        accepting: RefCell::default(),
        spoilt: RefCell::default(),
        life: Cell::new(0),
        cache_decayed: Default::default(),
    };
    let lives = sim.plan.lives;
    for life in 0..=lives + 1 {
        sim.life.set(life as usize);
        // The last but one ends without a crash planned; the last only looks.
        sim.live(&runtime, life >= lives);
        if sim.is_broken() {
            break;
        }
    }
    sim.outcome()
}

/// Bits that flip on their way from the store may not be put right by asking again; and once the disk failed a write or a
/// sync for good, the write buffer takes no more, which readers must not notice.
fn excuse(plan: &Plan, universe: &Universe, serving: Rc<Cell<usize>>) -> Excuse {
    let flips = plan.faults.store.flip_on_read > 0;
    let universe = universe.clone();
    Rc::new(move |step, fault| {
        let broken = || universe.broken_writes(serving.get()) > 0;
        (flips && is_damage(fault))
            || (fault.kind == Kind::Unavailable && !step.only_reads() && broken())
    })
}

impl Sim {
    pub fn is_broken(&self) -> bool {
        self.findings.any() || !self.universe.violations().is_empty()
    }

    pub fn guest(&self, n: usize) -> Rc<Guest> {
        self.guests.borrow()[n].clone()
    }

    fn outcome(&self) -> Outcome {
        let mut violations = self.findings.all();
        violations.extend(self.universe.violations());
        violations.truncate(12);
        Outcome {
            steps: self.plan.run.steps - self.steps_left.get(),
            crashes: self.crashes,
            objects: self.universe.objects().len() as u64,
            trace: self.universe.trace(),
            violations,
        }
    }

    /// One life, from opening to its end; then what the end leaves behind.
    fn live(&mut self, runtime: &tokio::runtime::Runtime, last: bool) {
        let (crash, gates) = self.plan.draw_end();
        let gates = gates.filter(|_| !last);
        let mut rng = self.plan.rng.fork();
        for guest in self.guests.borrow().iter() {
            guest.reset();
            *guest.excused.borrow_mut() = self.excused.clone();
        }
        if let Some(gates) = gates {
            self.universe.crash_after(self.serving.get(), gates);
        }
        self.contested.set(false);
        let lives = self.plan.lives;
        let budget = if last { self.steps_left.get() } else { self.plan.run.steps / lives.max(1) };
        {
            let local = LocalSet::new();
            let world = self.universe.world_of(self.serving.get());
            let life = async {
                tokio::select! {
                    biased;
                    () = self.universe.crashed(|| self.serving.get()) => {}
                    outcome = tokio::time::timeout(PATIENCE, self.work(world, &mut rng, budget)) => {
                        match outcome {
                            Ok(Ok(())) => {}
                            Ok(Err(fault)) => self.findings.add(format!("the engine failed: {fault}")),
                            Err(_) => self.findings.add(self.stuck()),
                        }
                    }
                }
            };
            local.block_on(runtime, life);
            self.universe.crash_now();
            self.opened.take();
        }
        self.crashes += 1;
        self.restart(crash, &mut rng);
    }

    /// Both hosts are started again; which one serves next, and what of its local state there is.
    fn restart(&mut self, crash: Crash, rng: &mut Rng) {
        let owner = self.serving.get();
        self.restore_spoilt();
        let trouble = &mut self.plan.trouble.rng;
        // The operator's decision about damage is to give the local state up, sooner or later.
        let gives_up = self.read_only.get() && trouble.coin();
        let crash = if gives_up { Crash::DiscardLocal } else { crash };
        let others =
            trouble.pick(&[(4, Crash::Kill), (3, Crash::PowerLoss), (1, Crash::DiscardLocal)]);
        for host in 0..HOSTS {
            let crash = if host == owner { crash } else { others };
            tracing::info!(host, owner = host == owner, ?crash, "starts again");
            self.universe.restart_host(host, crash);
            if crash == Crash::DiscardLocal {
                self.nodes[host].set(NodeId(rng.bytes16()));
            }
        }
        if crash == Crash::DiscardLocal {
            self.kept.iter().for_each(|kept| kept.set(Place::Backend));
            self.read_only.set(false);
            self.decay.take();
            self.torn.take();
        }
        // The host that lost the volumes may get them back: what it has of them is out of date.
        if self.contested.get() && self.plan.trouble.rng.chance(400_000) {
            self.serving.set(1 - owner);
            self.kept.iter().for_each(|kept| kept.set(Place::Backend));
        }
        self.let_decay();
        self.let_caches_decay();
        self.let_object_decay();
    }

    fn let_caches_decay(&mut self) {
        for host in 0..HOSTS {
            let wrong = || caches::check(&self.universe, host);
            if !self.cache_decayed[host].get()
                && let Some(wrong) = wrong()
            {
                self.findings.add(wrong);
            }
            let trouble = &mut self.plan.trouble;
            if trouble.rng.chance(trouble.cache.decays) {
                self.cache_decayed[host].set(true);
                caches::decay(&self.universe, host, &mut trouble.rng);
            }
        }
    }

    fn let_object_decay(&mut self) {
        let trouble = &mut self.plan.trouble;
        // What else decayed, or flips on its way, would leave it open which of them a reader meets.
        let alone = self.decay.borrow().is_none() && self.plan.faults.store.flip_on_read == 0;
        if trouble.rng.chance(trouble.objects_decay) && alone && !self.read_only.get() {
            let ids: Vec<_> = self.plan.volumes.iter().map(|volume| volume.id).collect();
            let spoilt = Spoilt::plant(&self.universe, &ids, &mut trouble.rng);
            if let Some(spoilt) = &spoilt {
                tracing::info!(volume = %spoilt.volume, what = spoilt.what, "an object decayed");
            }
            *self.spoilt.borrow_mut() = spoilt.map(Rc::new);
        }
    }

    fn let_decay(&mut self) {
        let (host, trouble) = (self.serving.get(), &mut self.plan.trouble);
        if trouble.rng.chance(trouble.pages_decay) {
            for _ in 0..trouble.rng.between(1, 3) {
                self.universe.decay_page(host);
            }
        }
        // One thing at a time: what decayed before the last life is judged first.
        let judged = self.decay.borrow().is_none();
        if judged && trouble.rng.chance(trouble.journal_decays) {
            let node = self.nodes[host].get();
            let decay = Decay::plant(&self.universe, host, node, &mut trouble.rng);
            if let Some(decay) = &decay {
                tracing::info!(host, what = %decay.what(), "decayed");
            }
            *self.decay.borrow_mut() = decay;
        }
    }

    async fn work(&self, world: SimWorld, rng: &mut Rng, budget: u64) -> Result<()> {
        let engine = self.open_engine(world, self.nodes[self.serving.get()].get()).await?;
        *self.opened.borrow_mut() = Some(engine.clone());
        let mut volumes = Vec::new();
        let mut duties = Vec::new();
        for n in 0..self.created.len() {
            let volume = self.open(&engine, n).await?;
            let duty = self.standing_duty(n, self.judge(&volume));
            tracing::info!(vdisk = volume.name(), ?duty, state = ?volume.state(), "opened");
            duties.push(duty);
            volumes.push(volume);
        }
        engine.shard.settle();
        let any_read_only = volumes.iter().any(|volume| volume.state() != State::Running);
        self.read_only.set(any_read_only);
        self.look_at_spoilt(&volumes).await;
        for (n, volume) in volumes.iter().enumerate() {
            if !self.verify(n, volume, duties[n]).await {
                return Ok(());
            }
        }
        if any_read_only {
            // What they hold in the write buffer stays there: the others would soon wait for room.
            if self.decay.borrow().is_none() || rng.coin() {
                return Ok(());
            }
            if !self.accept_losses(&engine, &mut volumes, &duties).await? {
                return Ok(());
            }
        }
        self.torn.take();
        if self.decay.take().is_some() {
            // What decays next is alone again.
            self.universe.heal(self.serving.get());
        }
        self.accepting.take();
        self.sweep(&volumes, rng).await;
        if rng.chance(self.plan.trouble.contests) {
            let before = rng.below(budget + 1);
            self.guests_work(&volumes, rng, before).await;
            return self.contest(&engine, &volumes, rng, budget - before).await;
        }
        self.guests_work(&volumes, rng, budget).await;
        self.sweep(&volumes, rng).await;
        ceilings::check(self, &engine);
        if rng.coin() { self.close(&engine).await } else { Ok(()) }
    }

    /// Sizes of the present life.
    pub fn sizes(&self) -> BufferSizes {
        let by_turns = &self.plan.trouble.cache.sizes;
        let turn = self.life.get() % by_turns.len().max(1);
        match by_turns.get(turn) {
            // Little memory, so that clusters have to leave it for the disk.
            Some(&ssd_bytes) => {
                let cache_bytes = self.plan.buffer.cache_bytes.min(256 << 10);
                BufferSizes { ssd_bytes, cache_bytes, ..self.plan.buffer }
            }
            None => self.plan.buffer,
        }
    }

    /// Opens the serving host's engine, as a supervisor would: again and again while the disk is full or failing.
    pub async fn open_engine(&self, world: SimWorld, node: NodeId) -> Result<Engine> {
        let host = self.serving.get();
        loop {
            let may_be_warm = caches::may_be_warm(&self.universe, host);
            match Engine::open(world.clone(), node, self.sizes()).await {
                Ok(engine) => {
                    let known = engine.shard.shared().cache.counts().ssd.used_bytes;
                    if known > 0 && !may_be_warm {
                        let what = format!("the read cache knows {known} bytes after a crash");
                        self.findings.add(what);
                    }
                    return Ok(engine);
                }
                Err(fault) if is_passing(&fault) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    self.universe.start_process_again(host);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// The operator takes what the read-only volumes show for their content; false when something was wrong.
    async fn accept_losses(
        &self,
        engine: &Engine,
        volumes: &mut [Rc<Volume>],
        duties: &[Duty],
    ) -> Result<bool> {
        if self.universe.broken_writes(self.serving.get()) > 0 {
            return Ok(false);
        }
        self.accepting.borrow_mut().get_or_insert_with(|| duties.to_vec());
        self.universe.accept_damage();
        for (n, volume) in volumes.iter_mut().enumerate() {
            if !matches!(volume.state(), State::ReadOnly(_)) {
                continue;
            }
            let guest = self.guest(n);
            let Some(shown) = guest.look(volume).await else { return Ok(false) };
            *volume = match engine.accept_loss(&guest.plan).await {
                Ok(volume) => volume,
                // Bits flip on their way, or the disk fails: it stays what it was.
                Err(fault) if is_passing(&fault) || guest.excuses(Step::Read, &fault) => {
                    return Ok(false);
                }
                Err(fault) => return Err(fault),
            };
            if volume.state() != State::Running {
                let state = volume.state();
                self.findings.add(format!("P4: {state:?} after its loss was accepted"));
                return Ok(false);
            }
            let Some(found) = guest.look(volume).await else { return Ok(false) };
            // What was stored before it decayed is whole there.
            let differs = |(was, is): (&u32, &u32)| was != is && *was != UNREADABLE;
            if found.len() != shown.len() || shown.iter().zip(&found).any(differs) {
                self.findings.add("P1: accepting a loss changed what is shown".to_owned());
            }
            if !self.verify(n, volume, Duty::GoOn).await {
                return Ok(false);
            }
        }
        self.read_only.set(false);
        Ok(!self.is_broken())
    }

    /// Small reads of a stretch of each volume, which go through the read cache.
    pub async fn sweep(&self, volumes: &[Rc<Volume>], rng: &mut Rng) {
        const READS: u64 = 64;
        if self.sizes().ssd_bytes == 0 {
            return;
        }
        for (n, volume) in volumes.iter().enumerate() {
            let guest = self.guest(n);
            let sectors = guest.model.borrow().sectors();
            let cluster = (guest.plan.cluster_size.bytes() / 512) as usize;
            let mut first = rng.below(sectors as u64) as usize / cluster * cluster;
            for _ in 0..READS {
                let count = cluster * rng.between(1, 31) as usize;
                let count = count.min(sectors - first);
                guest.read(volume, Span { first, count }).await;
                first = (first + count) % sectors;
            }
        }
    }

    /// While an object is not what it was, reads of its clusters may fail, and nothing else. Then it is restored.
    async fn look_at_spoilt(&self, volumes: &[Rc<Volume>]) {
        let Some(spoilt) = self.spoilt.borrow().clone() else { return };
        for (n, volume) in volumes.iter().enumerate().filter(|(_, v)| v.id() == spoilt.volume) {
            let guest = self.guest(n);
            let Some(words) = guest.look(volume).await else { return };
            let sectors = (guest.plan.cluster_size.bytes() / 512) as usize;
            let bad = |n: &usize| words[*n] == UNREADABLE && !spoilt.concerns((n / sectors) as u64);
            if let Some(sector) = (0..words.len()).find(bad) {
                let what = &spoilt.what;
                self.findings.add(format!("P2: sector {sector} cannot be read for {what}"));
            }
            let checked = guest.model.borrow().check(words, self.kept[n].get());
            guest.settle_for(checked);
            if volume.state() != State::Running {
                self.findings.add(format!("P4: {:?} for {}", volume.state(), spoilt.what));
            }
        }
        self.restore_spoilt();
    }

    fn restore_spoilt(&self) {
        if let Some(spoilt) = self.spoilt.take() {
            spoilt.restore(&self.universe);
        }
    }

    /// A torn end that an earlier life met and did not live to verify: what was left may be published by now, under the names of
    /// what was lost.
    fn standing_duty(&self, n: usize, duty: Duty) -> Duty {
        if self.decay.borrow().is_none() {
            return duty;
        }
        let mut torn = self.torn.borrow_mut();
        match duty {
            Duty::GoOnTorn(_) => *torn.entry(n).or_insert(duty),
            _ => torn.get(&n).copied().unwrap_or(duty),
        }
    }

    /// Whether a volume that was just opened does about damage what it must.
    fn judge(&self, volume: &Volume) -> Duty {
        let decay = self.decay.borrow();
        let Some(decay) = &*decay else { return Duty::GoOn };
        let duty = decay.duty(volume);
        // Without its write buffer a volume may be read-only for that reason alone.
        if self.universe.broken_writes(self.serving.get()) > 0 {
            return duty;
        }
        if let Err(what) = decay.judge(volume, duty) {
            self.findings.add(format!("{}: {what}", volume.name()));
        }
        duty
    }

    /// Reads the volume and checks it; false when something was wrong.
    async fn verify(&self, n: usize, volume: &Volume, duty: Duty) -> bool {
        let (guest, kept) = (self.guest(n), self.kept[n].get());
        let accepted = self.accepting.borrow().as_ref().map(|duties| duties[n]);
        let duty = accepted.unwrap_or(duty);
        if let State::ReadOnly(_) = volume.state() {
            return self.verify_read_only(&guest, volume, duty, kept).await;
        }
        let fine = match duty {
            Duty::GoOnTorn(_) if kept == Place::Journal => guest.recover_torn(volume).await,
            Duty::NameGap | Duty::Doubt if accepted.is_some() => guest.recover_torn(volume).await,
            Duty::Name { cluster, shows: false } if accepted.is_some() => {
                guest.recover_without(volume, kept, cluster).await
            }
            _ => guest.recover(volume, kept).await,
        };
        self.kept[n].set(Place::Journal);
        fine
    }

    /// A volume with damage shows what it has, refuses writes at once, and lets nobody wait.
    async fn verify_read_only(
        &self,
        guest: &Guest,
        volume: &Volume,
        duty: Duty,
        kept: Place,
    ) -> bool {
        let Some(words) = guest.look(volume).await else { return false };
        let accepted = self.accepting.borrow().is_some();
        let bad: Vec<usize> = (0..words.len()).filter(|n| words[*n] == UNREADABLE).collect();
        let sectors = (guest.plan.cluster_size.bytes() / 512) as usize;
        let lost: Vec<usize> = match duty {
            Duty::Name { cluster, shows: false } => {
                let first = cluster as usize * sectors;
                (first..first + sectors).collect()
            }
            _ => Vec::new(),
        };
        let explained = bad.is_empty() && accepted;
        if bad != lost && !explained {
            guest.settle_for(Err(format!("P2: sectors {bad:?} cannot be read, {lost:?} are lost")));
        }
        let outcome = match duty {
            Duty::NameGap => guest.model.borrow().clone().recover_torn(words),
            Duty::Doubt if accepted => guest.model.borrow().clone().recover_torn(words),
            _ => guest.model.borrow().check(words, kept),
        };
        guest.settle_for(outcome);
        let write =
            Request::Write { offset: ByteOffset(0), data: vec![1; 512].into(), fua: Fua::No };
        if volume.submit(write).await.is_ok() {
            guest.settle_for(Err("P1: a read-only volume took a write".to_owned()));
        }
        // Either may fail; neither may wait for ever.
        drop(volume.submit(Request::Flush).await);
        drop(volume.drain().await);
        !self.is_broken()
    }

    /// A clean end: what was acknowledged is journalled afterwards.
    async fn close(&self, engine: &Engine) -> Result<()> {
        let guests = self.guests.borrow().clone();
        let asked: Vec<_> =
            guests.iter().map(|guest| guest.model.borrow_mut().ask_sync()).collect();
        match engine.close().await {
            Ok(()) => {}
            Err(_) if self.universe.broken_writes(self.serving.get()) > 0 => return Ok(()),
            // An end does not wait for room for ever.
            Err(fault) if fault.kind == Kind::NoSpace => return Ok(()),
            Err(fault) => return Err(fault),
        }
        for (guest, asked) in guests.iter().zip(asked) {
            guest.model.borrow_mut().synced(asked, Place::Journal);
        }
        Ok(())
    }

    /// Who waits for what.
    fn stuck(&self) -> String {
        let mut text = format!("P4: something waits for ever at {:?};", self.universe.now());
        for guest in self.guests.borrow().iter() {
            text += &format!(" {}: {:?};", guest.plan.name, guest.waiting());
        }
        if let Some(engine) = &*self.opened.borrow() {
            text += &engine.describe();
        }
        text
    }

    pub async fn open(&self, engine: &Engine, n: usize) -> Result<Rc<Volume>> {
        let guest = self.guest(n);
        // Another coding in every life: what a crash left half stored is built again in another way.
        let plan = &guest.plan.coded(self.plan.run.seed, self.crashes);
        while !self.created[n].get() {
            match engine.create(plan).await {
                Ok(volume) => {
                    self.created[n].set(true);
                    return Ok(volume);
                }
                Err(fault) if is_passing(&fault) || guest.excuses(Step::Read, &fault) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(fault) => return Err(fault),
            }
        }
        loop {
            match engine.open_volume(plan).await {
                // What was flipped on its way once is read well another time.
                Err(fault) if guest.excuses(Step::Read, &fault) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => return other,
            }
        }
    }

    async fn guests_work(&self, volumes: &[Rc<Volume>], rng: &mut Rng, budget: u64) {
        let guests = self.guests.borrow().clone();
        for _ in 0..budget {
            if !self.take_step() {
                break;
            }
            self.step(&guests, volumes, rng).await;
            if let Some(engine) = self.opened.borrow().as_ref() {
                ceilings::sample(self, engine);
            }
            if rng.chance(30_000) {
                tokio::time::sleep(Duration::from_millis(rng.below(20_000))).await;
            }
        }
        for guest in guests {
            guest.settle().await;
        }
    }

    /// Whether there is another step to take, and no reason to stop.
    pub fn take_step(&self) -> bool {
        let left = self.steps_left.get();
        if left == 0 || self.is_broken() {
            return false;
        }
        self.steps_left.set(left - 1);
        true
    }

    /// One request of one of these guests; waits only until fewer than the most are in flight.
    pub async fn step(&self, guests: &[Rc<Guest>], volumes: &[Rc<Volume>], rng: &mut Rng) {
        let n = rng.below(volumes.len() as u64) as usize;
        let guest = guests[n].clone();
        guest.enter(self.plan.depth as usize).await;
        let (step, volume, rng_of_step) = (Step::draw(rng), volumes[n].clone(), rng.fork());
        let number = guest.begin(step);
        spawn_local(async move { guest.perform(&volume, number, step, rng_of_step).await });
    }
}

pub(super) fn is_passing(fault: &Fault) -> bool {
    matches!(fault.kind, Kind::Unavailable | Kind::NoSpace)
}
