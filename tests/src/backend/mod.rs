//! The simulation of the whole backend: several processes that run this very code on virtual time, on OSDs, tables and a
//! network that fail, with clients whose every answer is checked.
//!
//! One seed decides everything. Promised, and checked: what was acknowledged stays, as long as no object loses more than m
//! of its fragments; no wrong byte is ever read; put-if-absent, deletes and sequences are linearizable, whatever is unknown
//! of their outcome; everything that is called ends. After quiet time, in which what is not dead is well again, every object
//! has all fragments of its policy that there is a place for, no work is left over, and no file that no manifest names.
//!
//! | file | what it is |
//! |---|---|
//! | `plan` | what a seed stands for |
//! | `life` | one run from start to end |
//! | `chaos` | what goes wrong |
//! | `canary` | bugs that are planted |
//! | `world` | randomness, the trace, the lines between processes and all else |
//! | `estate` | the machines, the tables, the network |
//! | `health` | whether all is well again after quiet time |
//! | `machine`, `osd` | a simulated OSD, and a process's client of it |
//! | `table` | a simulated cluster of the NSM |
//! | `truth` | what is really stored, and how much more may be lost |
//! | `client` | a client, which checks what it is told |
//! | `book`, `values` | what was put where |
//! | `history` | whether some order explains what was seen |

mod book;
pub mod canary;
mod chaos;
mod client;
mod estate;
mod health;
mod history;
mod life;
mod machine;
mod osd;
mod plan;
mod table;
mod truth;
mod values;
mod world;

use std::panic::{self, AssertUnwindSafe};

use crate::seeds;
use crate::sim::{quietly, runtime, take_panics};
use canary::Canary;
use plan::Plan;
use world::World;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub seed: u64,
    pub steps: u64,
    pub canary: Option<Canary>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub steps: u64,
    pub kills: u64,
    pub troubles: u64,
    /// There at the end.
    pub objects: u64,
    /// Calls over the network.
    pub calls: u64,
    /// Groups of names whose history was too long to decide.
    pub undecided: u64,
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
        self.kills += other.kills;
        self.troubles += other.troubles;
        self.objects += other.objects;
        self.calls += other.calls;
        self.undecided += other.undecided;
    }
    fn sum(&self) -> String {
        let Self { steps, kills, troubles, objects, calls, undecided, .. } = self;
        format!(
            "{steps} requests, {kills} kills, {troubles} troubles, {objects} objects at the end, {calls} calls, \
             {undecided} histories undecided"
        )
    }
}

/// Runs one seed.
#[must_use]
pub fn run(run: Run) -> Outcome {
    quietly(|| {
        let ran = panic::catch_unwind(AssertUnwindSafe(|| {
            let plan = Plan::draw(run);
            let runtime = runtime();
            let (mut outcome, remains) = runtime.block_on(async {
                let world = World::new(plan.rng.clone().fork(), run.canary);
                let outcome = life::run(plan, world.clone()).await;
                world.end();
                (outcome, world.remains())
            });
            drop(runtime);
            if remains.any() {
                outcome.violations.push("something of the run outlives it: a leak".into());
            }
            outcome
        }));
        let mut outcome = ran.unwrap_or_default();
        outcome.violations.extend(take_panics());
        outcome
    })
}
