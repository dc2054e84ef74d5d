//! The driver: runs the real engine in the simulated world through many lives, and checks it against the model.
//!
//! One seed decides everything: the volumes and their settings, what goes wrong, what the guests do, when the host crashes
//! and how. Equal seeds give equal runs.
//!
//! | file | what it is |
//! |---|---|
//! | `plan` | what a seed stands for: sizes, faults, crashes |
//! | `engine` | the engine as the driver uses it |
//! | `guest` | the guests: requests in flight, each checked against the model |
//! | `rig` | a bench for scripted scenarios |
//! | `life` | one life of a host: open, verify what the crash left, work until the end or the next crash |
//! | `rivals` | a life in which another host takes the volumes over |
//! | `decay` | what the journal loses while the host is down, and what must come of it |
//! | `objects` | an SCO that is lost or decays for a while |
//! | `caches` | what a crash may leave of the read cache's file, and what decays in it |
//! | `ceilings` | what is bounded stays within its bounds |

mod caches;
mod ceilings;
mod decay;
pub mod engine;
pub mod guest;
mod life;
mod objects;
pub mod plan;
pub mod rig;
mod rivals;

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Once;

use tokio::runtime::{Builder, Runtime};

use crate::seeds;
use crate::world::faults::Canary;
use plan::Plan;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub seed: u64,
    /// Requests of all guests together.
    pub steps: u64,
    pub canary: Option<Canary>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub steps: u64,
    pub crashes: u64,
    pub objects: u64,
    /// Hash over every call of the run.
    pub trace: u64,
    /// Empty when all promises were kept.
    pub violations: Vec<String>,
}

impl seeds::Outcome for Outcome {
    fn violations(&self) -> &[String] {
        &self.violations
    }
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.crashes += other.crashes;
        self.objects += other.objects;
    }
    fn sum(&self) -> String {
        let Self { steps, crashes, objects, .. } = self;
        format!("{steps} steps, {crashes} crashes, {objects} objects")
    }
}

/// What the guests and the driver find wrong, in order. Shared by all tasks of a run.
#[derive(Clone, Default)]
pub struct Findings(Rc<RefCell<Vec<String>>>);

impl Findings {
    pub fn add(&self, what: impl Into<String>) {
        self.0.borrow_mut().push(what.into());
    }
    pub fn any(&self) -> bool {
        !self.0.borrow().is_empty()
    }
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }
}

thread_local! {
    /// Panics on this thread since the run began, in whatever task.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// Whether a seed is running, whose panics are findings and not to be printed.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics end up in [`PANICS`]: a task's would otherwise vanish with it.
fn watch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(format!("panic: {info}")));
            if !QUIET.get() {
                before(info);
            }
        }));
    });
}

pub(crate) fn take_panics() -> Vec<String> {
    PANICS.take()
}

/// A runtime on virtual time.
#[must_use]
pub fn runtime() -> Runtime {
    let built = Builder::new_current_thread().enable_time().start_paused(true).build();
    built.expect("a runtime without input and output needs nothing of the system")
}

/// Runs one seed.
#[must_use]
pub fn run(run: Run) -> Outcome {
    quietly(|| {
        let plan = Plan::draw(run);
        let findings = Findings::default();
        let found = findings.clone();
        let outcome = panic::catch_unwind(AssertUnwindSafe(move || life::run(plan, &found)));
        let mut outcome = outcome.unwrap_or_else(|_| Outcome {
            steps: 0,
            crashes: 0,
            objects: 0,
            trace: 0,
            violations: findings.all(),
        });
        outcome.violations.extend(take_panics());
        outcome
    })
}

/// Runs a seed, whose panics are findings and not to be printed.
pub(crate) fn quietly<T>(run: impl FnOnce() -> T) -> T {
    watch_panics();
    take_panics();
    QUIET.set(true);
    let outcome = run();
    QUIET.set(false);
    outcome
}
