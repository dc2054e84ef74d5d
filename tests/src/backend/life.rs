//! One run: processes and their clients among everything that goes wrong, then quiet, then the reckoning.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backend_alba::{Alba, OsdRole};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Outcome;
use super::book::{Book, Name, space_name};
use super::canary::Canary;
use super::chaos::{Event, duration};
use super::client::{Client, Task};
use super::estate::{Estate, until};
use super::history::NAMES;
use super::machine::Damage;
use super::plan::Plan;
use super::world::{Line, World, locked};
use crate::world::rng::Rng;

/// Steps for which a group of names is in use.
const GROUP_STEPS: u64 = 40;
/// With these maintenance has done all there is to do after a few minutes.
const QUIET: [&str; 9] = [
    "auto_repair_timeout_ms=20000",
    "lease_ms=8000",
    "tour_interval_ms=20000",
    "scrub_interval_ms=30000",
    "collect_interval_ms=30000",
    "collect_grace_ms=2000",
    "rebalance_band_percent=5",
    "bytes_per_second=0",
    "repair=true",
];
/// And with these it does nothing more unless something changes.
const IDLE: [&str; 2] = ["tour_interval_ms=3600000", "scrub_interval_ms=0"];

/// Whatever is called ends within this time, whatever happens.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Everything is well again within this time.
const QUIET_PATIENCE: Duration = Duration::from_secs(900);

struct Life {
    plan: Plan,
    world: World,
    estate: Arc<Estate>,
    book: Book,
    processes: Vec<Process>,
    in_flight: Arc<AtomicU64>,
    rng: Rng,
    steps: u64,
    kills: u64,
}

/// One process, or the place of one that is dead.
struct Process {
    line: Line,
    alba: Arc<Mutex<Option<Alba>>>,
    tasks: Vec<AbortHandle>,
}

/// Counts what is under way, also when it is dropped half-way.
struct InFlight(Arc<AtomicU64>);

impl InFlight {
    fn new(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub async fn run(plan: Plan, world: World) -> Outcome {
    let mut rng = plan.rng.clone();
    let estate = Estate::build(&plan, &world);
    let mut life = Life {
        rng: rng.fork(),
        world,
        estate,
        book: Book::default(),
        processes: Vec::new(),
        in_flight: Arc::default(),
        steps: 0,
        kills: 0,
        plan,
    };
    life.begin().await;
    life.work().await;
    life.calm_down().await;
    life.get_well().await;
    life.reckon().await;
    life.outcome()
}

impl Life {
    async fn begin(&mut self) {
        for no in 0..self.plan.processes {
            let process = self.boot(no);
            self.processes.push(process);
        }
        self.all_up().await;
        let Some(alba) = self.alba(0) else { return self.world.find("no process begins") };
        for (name, _) in self.estate.presets() {
            let preset = self.estate.preset(name, &mut self.rng);
            if let Err(fault) = alba.put_preset(name, preset).await {
                self.world.find(format!("preset {name}: {fault}"));
            }
        }
        if let Err(fault) = alba.change_maintenance(&self.plan.maintenance).await {
            self.world.find(format!("maintenance: {fault}"));
        }
        for space in 0..self.plan.spaces {
            let client = self.client(0, alba.clone());
            client.work(Task::CreateNamespace(space)).await;
        }
    }

    fn boot(&self, no: usize) -> Process {
        let line = Line::new(self.world.clone(), no, self.estate.cuts.clone());
        let alba: Arc<Mutex<Option<Alba>>> = Arc::default();
        let (estate, place, its_line) = (self.estate.clone(), alba.clone(), line.clone());
        let booting = tokio::spawn(async move {
            loop {
                match Alba::assemble(estate.parts(&its_line)).await {
                    Ok(opened) => {
                        *locked(&place) = Some(opened);
                        return;
                    }
                    Err(_) => sleep(Duration::from_millis(500)).await,
                }
            }
        });
        Process { line, alba, tasks: vec![booting.abort_handle()] }
    }

    fn kill(&mut self, no: usize) {
        self.kills += 1;
        let process = &mut self.processes[no];
        process.line.kill();
        process.tasks.drain(..).for_each(|task| task.abort());
        locked(&process.alba).take();
    }

    fn alba(&self, no: usize) -> Option<Alba> {
        locked(&self.processes[no].alba).clone()
    }

    async fn all_up(&self) -> bool {
        until(PATIENCE, || (0..self.processes.len()).all(|no| self.alba(no).is_some())).await
    }

    fn client(&mut self, process: usize, alba: Alba) -> Client {
        let (book, world, estate) = (self.book.clone(), self.world.clone(), self.estate.clone());
        Client { alba, process, book, world, estate, rng: self.rng.fork() }
    }

    // ---- while things go wrong

    async fn work(&mut self) {
        while self.steps < self.plan.run.steps {
            self.steps += 1;
            let pause = self.rng.below(self.plan.pause_ms);
            sleep(Duration::from_millis(pause)).await;
            self.revive();
            if self.rng.below(self.plan.calm) == 0 {
                self.trouble().await;
            }
            self.ask();
            let (depth, in_flight) = (self.plan.depth, self.in_flight.clone());
            let has_room = || in_flight.load(Ordering::Relaxed) < depth;
            until(Duration::from_secs(20), has_room).await;
        }
    }

    /// Processes that have been dead for a while are started again.
    fn revive(&mut self) {
        for no in 0..self.processes.len() {
            if self.processes[no].line.is_dead() && self.rng.below(3) == 0 {
                self.processes[no] = self.boot(no);
            }
        }
    }

    async fn trouble(&mut self) {
        let event = self.rng.pick(&self.plan.events);
        match event {
            Event::Calm => sleep(duration(&mut self.rng)).await,
            Event::KillProcess => {
                let no = self.rng.below(self.processes.len() as u64) as usize;
                self.world.note_trouble();
                self.kill(no);
            }
            Event::ChangeRole => self.change_role(),
            Event::PowerCut => {
                (0..self.processes.len()).for_each(|no| self.kill(no));
                self.strike(event);
            }
            _ => self.strike(event),
        }
    }

    fn strike(&mut self, event: Event) {
        let processes = self.processes.len();
        self.estate.strike(event, processes, self.plan.trouble, &mut self.rng);
    }

    fn change_role(&mut self) {
        let no = self.rng.below(self.processes.len() as u64) as usize;
        let machine = self.rng.below(self.estate.machines.len() as u64) as usize;
        let osd = self.estate.machines[machine].id;
        let role = self.rng.pick(&[
            (3, OsdRole::Active),
            (1, OsdRole::Disabled),
            (1, OsdRole::Decommissioning),
        ]);
        let Some(alba) = self.alba(no) else { return };
        let task = tokio::spawn(async move { alba.set_osd_role(osd, role).await });
        self.processes[no].tasks.push(task.abort_handle());
    }

    /// A client of some process does something.
    fn ask(&mut self) {
        let no = self.rng.below(self.processes.len() as u64) as usize;
        let task = self.task();
        let Some(alba) = self.alba(no) else { return };
        let client = self.client(no, alba);
        let (in_flight, world) = (InFlight::new(&self.in_flight), self.world.clone());
        let running = tokio::spawn(async move {
            if timeout(PATIENCE, client.work(task)).await.is_err() {
                world.find(format!("process {no}: {task:?} does not end"));
            }
            drop(in_flight);
        });
        let tasks = &mut self.processes[no].tasks;
        tasks.retain(|task| !task.is_finished());
        tasks.push(running.abort_handle());
    }

    fn task(&mut self) -> Task {
        let space = self.rng.below(self.plan.spaces as u64) as usize;
        let of_space = match self.rng.below(80) {
            0 => Some(Task::CreateNamespace(space)),
            1 => Some(Task::DeleteNamespace(space)),
            _ => None,
        };
        if let Some(task) = of_space.filter(|_| self.book.space_has_room(space)) {
            return task;
        }
        let group = (self.steps / GROUP_STEPS + self.rng.below(2)) as usize;
        let name = Name { space, group, at: self.rng.below(NAMES as u64) as usize };
        if !self.book.has_room(name) {
            return Task::ChangePreset(space);
        }
        self.rng.pick(&[
            (30, Task::Put(name)),
            (12, Task::Upload(name)),
            (4, Task::AbandonedUpload(name)),
            (25, Task::Read(name)),
            (8, Task::ReadWhole(name)),
            (5, Task::List(name)),
            (12, Task::Delete(name)),
            (14, Task::Sequence(name)),
            (3, Task::ChangePreset(space)),
        ])
    }

    // ---- afterwards

    /// Everything heals, everyone is up, what was under way ends.
    async fn calm_down(&mut self) {
        self.estate.heal();
        // Whatever began before heals by itself within this time, and heals nothing any more.
        for no in 0..self.processes.len() {
            if self.processes[no].line.is_dead() {
                self.processes[no] = self.boot(no);
            }
        }
        if !self.all_up().await {
            self.world.find("a process does not begin though all is well");
        }
        let in_flight = self.in_flight.clone();
        if !until(PATIENCE * 2, || in_flight.load(Ordering::Relaxed) == 0).await {
            self.world.find("what clients asked for does not end");
        }
        let tables = self.estate.tables.clone();
        until(PATIENCE, || tables.iter().all(|table| !table.has_pending())).await;
        self.activate().await;
        sleep(Duration::from_secs(300)).await;
        self.estate.heal();
    }

    async fn activate(&self) {
        let Some(alba) = self.alba(0) else { return };
        for machine in &self.estate.machines {
            if let Err(fault) = alba.set_osd_role(machine.id, OsdRole::Active).await {
                self.world.find(format!("a role is not set: {fault}"));
            }
        }
    }

    /// Some machines are dead, everything else is well, and maintenance is quick: it makes up for all that went wrong.
    async fn get_well(&mut self) {
        let Some(alba) = self.alba(0) else { return };
        for _ in 0..self.plan.dying {
            let no = self.rng.below(self.estate.machines.len() as u64) as usize;
            let machine = &self.estate.machines[no];
            if self.estate.truth.destroy(machine, &machine.finished(), Damage::Gone) {
                machine.die();
            }
        }
        let canary = match () {
            () if self.world.has(Canary::Unrepaired) => &["repair=false", "scrub_interval_ms=0"],
            () if self.world.has(Canary::Uncollected) => &["collect=false"][..],
            () => &[],
        };
        self.maintain(&alba, &[&QUIET, canary].concat()).await;
        self.wait_for("not as safe as it can be", Estate::ailments).await;
        self.maintain(&alba, &IDLE).await;
        self.wait_for("left over", Estate::leftovers).await;
    }

    async fn maintain(&self, alba: &Alba, settings: &[&str]) {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        if let Err(fault) = alba.change_maintenance(&settings).await {
            self.world.find(format!("maintenance: {fault}"));
        }
    }

    /// Looks until there is nothing of this any more.
    async fn wait_for(&self, what: &str, look: impl Fn(&Estate) -> Vec<String>) {
        let begun = Instant::now();
        loop {
            let found = look(&self.estate);
            let Some(first) = found.first() else { return };
            if begun.elapsed() > QUIET_PATIENCE {
                return self.world.find(format!("{} {what}: {first}", found.len()));
            }
            sleep(Duration::from_secs(5)).await;
        }
    }

    async fn reckon(&mut self) {
        let Some(alba) = self.alba(self.processes.len() - 1) else { return };
        let client = self.client(self.processes.len() - 1, alba.clone());
        let names = self.book.names();
        for name in names {
            // Twice: it stays as it is.
            client.head(name).await;
            if let Err(fault) = client.read_all(name).await {
                self.world.find(format!("{name:?} is lost: {fault}"));
            }
            client.list(name).await;
        }
        for named in self.estate.truth.manifests() {
            let (intact, policy) =
                (self.estate.truth.intact(&named.manifest), named.manifest.policy);
            if intact < policy.data() {
                self.world.find(format!("{} has {intact} fragments of {policy}", named.name));
            }
        }
        self.check_spaces(&alba).await;
        drop((client, alba));
        self.close().await;
    }

    async fn check_spaces(&self, alba: &Alba) {
        if let Err(fault) = alba.list_namespaces("", "", 0).await {
            self.world.find(format!("namespaces are not listed: {fault}"));
        }
        for space in 0..self.plan.spaces {
            let _ = alba.preset_of(&space_name(space)).await;
        }
    }

    /// Everything ends when it is told to.
    async fn close(&self) {
        for (no, process) in self.processes.iter().enumerate() {
            let Some(alba) = locked(&process.alba).take() else { continue };
            if timeout(PATIENCE, alba.close()).await.is_err() {
                self.world.find(format!("process {no} does not close"));
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let (mut found, undecided) = self.book.check();
        let mut violations = self.world.findings();
        violations.append(&mut found);
        Outcome {
            steps: self.steps,
            kills: self.kills,
            troubles: self.world.troubles(),
            objects: self.estate.truth.manifests().len() as u64,
            calls: self.world.calls(),
            undecided,
            trace: self.world.trace_hash(),
            violations,
        }
    }
}
