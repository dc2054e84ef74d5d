//! One life of the host after another: open, verify what the crash left, work until the end or the next crash.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{LocalSet, spawn_local};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::NodeId;

use super::engine::{Engine, Volume};
use super::guest::{Guest, Step, is_damage};
use super::plan::Plan;
use super::{Findings, Outcome, runtime};
use crate::model::Place;
use crate::world::faults::Crash;
use crate::world::rng::{Rng, mix};
use crate::world::{SimWorld, Universe};

/// Virtual time in which a life must get its work done, beyond any outage: what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// Everything of a run that outlives the host's lives.
struct Sim {
    plan: Plan,
    universe: Universe,
    guests: Vec<Rc<Guest>>,
    findings: Findings,
    node: Cell<NodeId>,
    steps_left: Cell<u64>,
    crashes: u64,
    /// The engine of this life.
    opened: RefCell<Option<Engine>>,
    /// Per guest: whether its volume was ever created, and the worst that happened since it was last verified.
    created: Vec<Cell<bool>>,
    kept: Vec<Cell<Place>>,
}

/// Runs all lives of one plan.
pub(super) fn run(plan: Plan, findings: &Findings) -> Outcome {
    let runtime = runtime();
    let _inside = runtime.enter();
    let universe = Universe::new(plan.run.seed, plan.faults.clone());
    let flips = plan.faults.store.flip_on_read > 0 || plan.faults.disk.flip_on_read > 0;
    let excused: Rc<dyn Fn(&Fault) -> bool> = Rc::new(move |fault| flips && is_damage(fault));
    let guest = |(n, volume): (usize, &super::plan::VolumePlan)| {
        Rc::new(Guest::new(volume.clone(), n as u32 + 1, findings.clone(), excused.clone()))
    };
    let guests: Vec<Rc<Guest>> = plan.volumes.iter().enumerate().map(guest).collect();
    let mut sim = Sim {
        node: Cell::new(NodeId([1; 16])),
        steps_left: Cell::new(plan.run.steps),
        created: guests.iter().map(|_| Cell::new(false)).collect(),
        kept: guests.iter().map(|_| Cell::new(Place::Journal)).collect(),
        findings: findings.clone(),
        plan,
        universe,
        guests,
        crashes: 0,
        opened: RefCell::default(),
    };
    let lives = sim.plan.lives;
    for life in 0..=lives + 1 {
        // The last but one ends without a crash planned; the last only looks.
        sim.live(&runtime, life >= lives);
        if sim.is_broken() {
            break;
        }
    }
    sim.outcome()
}

impl Sim {
    fn is_broken(&self) -> bool {
        self.findings.any() || !self.universe.violations().is_empty()
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
        self.guests.iter().for_each(|guest| guest.reset());
        if let Some(gates) = gates {
            self.universe.crash_after(gates);
        }
        let lives = self.plan.lives;
        let budget = if last { self.steps_left.get() } else { self.plan.run.steps / lives.max(1) };
        {
            let local = LocalSet::new();
            let world = self.universe.world();
            let life = async {
                tokio::select! {
                    biased;
                    () = self.universe.crashed() => {}
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
        self.universe.restart(crash);
        self.let_cache_rot();
        if crash == Crash::DiscardLocal {
            self.node.set(NodeId(rng.bytes16()));
            self.kept.iter().for_each(|kept| kept.set(Place::Backend));
        }
    }

    /// The read cache's disk loses bits between two lives.
    fn let_cache_rot(&self) {
        let mut rng = Rng::new(mix(self.plan.run.seed ^ 0xcac4_e0f5_ee45_0002) ^ self.crashes);
        let files = self.universe.files();
        for (name, len) in files.iter().filter(|(name, _)| name.starts_with("cache-")) {
            for _ in 0..rng.pick(&[(1, 0), (1, 8), (1, 400)]) {
                self.universe.flip_in_file(name, rng.below(*len), rng.below(8) as u32);
            }
        }
    }

    async fn work(&self, world: SimWorld, rng: &mut Rng, budget: u64) -> Result<()> {
        let engine = Engine::open(world, self.node.get(), self.plan.buffer).await?;
        *self.opened.borrow_mut() = Some(engine.clone());
        let mut volumes = Vec::new();
        for n in 0..self.guests.len() {
            volumes.push(self.open(&engine, n).await?);
        }
        for (n, volume) in volumes.iter().enumerate() {
            if !self.guests[n].recover(volume, self.kept[n].get()).await {
                return Ok(());
            }
            self.kept[n].set(Place::Journal);
        }
        self.guests_work(&volumes, rng, budget).await;
        self.check_ceilings();
        if rng.coin() { self.close(&engine).await } else { Ok(()) }
    }

    /// A clean end: what was acknowledged is journalled afterwards.
    async fn close(&self, engine: &Engine) -> Result<()> {
        let asked: Vec<_> =
            self.guests.iter().map(|guest| guest.model.borrow_mut().ask_sync()).collect();
        engine.close().await?;
        for (guest, asked) in self.guests.iter().zip(asked) {
            guest.model.borrow_mut().synced(asked, Place::Journal);
        }
        Ok(())
    }

    /// Who waits for what.
    fn stuck(&self) -> String {
        let mut text = format!("P4: something waits for ever at {:?};", self.universe.now());
        for guest in &self.guests {
            text += &format!(" {}: {:?};", guest.plan.name, guest.waiting());
        }
        if let Some(engine) = &*self.opened.borrow() {
            text += &engine.describe();
        }
        text
    }

    async fn open(&self, engine: &Engine, n: usize) -> Result<Rc<Volume>> {
        let plan = &self.guests[n].plan;
        while !self.created[n].get() {
            match engine.create(plan).await {
                Ok(volume) => {
                    self.created[n].set(true);
                    return Ok(volume);
                }
                Err(fault) if is_passing(&fault) || (self.guests[n].excused)(&fault) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(fault) => return Err(fault),
            }
        }
        loop {
            match engine.open_volume(plan).await {
                // What was flipped on its way once is read well another time.
                Err(fault) if (self.guests[n].excused)(&fault) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => return other,
            }
        }
    }

    async fn guests_work(&self, volumes: &[Rc<Volume>], rng: &mut Rng, budget: u64) {
        for _ in 0..budget {
            if self.steps_left.get() == 0 || self.is_broken() {
                break;
            }
            self.steps_left.set(self.steps_left.get() - 1);
            let n = rng.below(volumes.len() as u64) as usize;
            let guest = self.guests[n].clone();
            guest.enter(self.plan.depth as usize).await;
            let (step, volume, rng_of_step) = (Step::draw(rng), volumes[n].clone(), rng.fork());
            let number = guest.begin(step);
            spawn_local(async move { guest.perform(&volume, number, step, rng_of_step).await });
            if rng.chance(30_000) {
                tokio::time::sleep(Duration::from_millis(rng.below(20_000))).await;
            }
        }
        for guest in &self.guests {
            guest.settle().await;
        }
    }

    /// P5: the write buffer and the read cache keep within their files.
    fn check_ceilings(&self) {
        let sizes = self.plan.buffer;
        let ceiling = sizes.segment_bytes * u64::from(sizes.segment_count) + sizes.cache_disk_bytes;
        let peak = self.universe.peak_disk_bytes();
        if peak > ceiling {
            self.findings.add(format!("P5: local files took {peak} bytes of {ceiling}"));
        }
    }
}

fn is_passing(fault: &Fault) -> bool {
    use volumedriver_core::fault::Kind;
    matches!(fault.kind, Kind::Unavailable | Kind::NoSpace)
}
