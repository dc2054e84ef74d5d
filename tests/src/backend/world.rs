//! What all parts of the simulated world share: randomness, the trace, and the lines between processes and the rest.
//!
//! Every call of a process crosses its [`Line`]: a killed process's calls never return, a call into a partition fails after a
//! while, and each takes a time. So a kill takes effect at whatever call the process is in, and what was on its way may still
//! arrive.

use std::collections::HashSet;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use backend_alba::fault::{Fault, Result};
use tokio::time::{Instant, sleep};

use super::canary::Canary;
use crate::world::rng::{Rng, mix};

/// A call into a partition, or to who does not answer, fails after this time at the latest.
const PATIENCE: Duration = Duration::from_secs(10);
/// A process that reads by what it remembers learns within this time that the NSM answers again.
const NOTICED_AFTER: Duration = Duration::from_secs(6);

/// Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Shared>);

struct Shared {
    rng: Mutex<Rng>,
    trace: AtomicU64,
    calls: AtomicU64,
    /// Counts whatever begins to go wrong.
    troubles: AtomicU64,
    /// By then the NSM answers again, microseconds.
    silent_until: AtomicU64,
    findings: Mutex<Vec<String>>,
    canary: Option<Canary>,
    /// The run is over: what is dropped from now on does nothing.
    is_over: AtomicBool,
    began: Instant,
}

/// Tells whether anything holds on to a world.
pub struct Remains(Weak<Shared>);

impl Remains {
    #[must_use]
    pub fn any(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl World {
    #[must_use]
    pub fn new(rng: Rng, canary: Option<Canary>) -> Self {
        Self(Arc::new(Shared {
            rng: Mutex::new(rng),
            trace: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            troubles: AtomicU64::new(0),
            silent_until: AtomicU64::new(0),
            findings: Mutex::default(),
            canary,
            is_over: AtomicBool::new(false),
            began: Instant::now(),
        }))
    }

    pub fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut locked(&self.0.rng))
    }

    #[must_use]
    pub fn has(&self, canary: Canary) -> bool {
        self.0.canary == Some(canary)
    }

    /// Whatever happens goes into the trace.
    pub fn trace(&self, what: u64) {
        let now = self.now().as_micros() as u64;
        let before = self.0.trace.load(Ordering::Relaxed);
        self.0.trace.store(mix(before ^ mix(now) ^ what.rotate_left(17)), Ordering::Relaxed);
        self.0.calls.fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.began.elapsed()
    }
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.0.trace.load(Ordering::Relaxed)
    }
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    pub fn note_trouble(&self) {
        self.0.troubles.fetch_add(1, Ordering::Relaxed);
    }
    #[must_use]
    pub fn troubles(&self) -> u64 {
        self.0.troubles.load(Ordering::Relaxed)
    }

    /// Something keeps the NSM from answering for so long.
    pub fn note_silence(&self, long: Duration) {
        let until = (self.now() + long + NOTICED_AFTER).as_micros() as u64;
        self.0.silent_until.fetch_max(until, Ordering::Relaxed);
    }
    /// All processes know that the NSM answers, and have since then.
    #[must_use]
    pub fn is_heard_since(&self, then: Duration) -> bool {
        then > Duration::from_micros(self.0.silent_until.load(Ordering::Relaxed))
    }
    /// What is left of it when a run is over.
    #[must_use]
    pub fn remains(&self) -> Remains {
        Remains(Arc::downgrade(&self.0))
    }

    pub fn find(&self, what: impl Into<String>) {
        let mut findings = locked(&self.0.findings);
        let at = self.now().as_secs_f64();
        findings.push(format!("at {at:.3} s: {}", what.into()));
    }
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        locked(&self.0.findings).clone()
    }

    pub fn end(&self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }

    /// The time one way takes: mostly short, sometimes not.
    pub fn way(&self) -> Duration {
        self.draw(|rng| {
            let micros = match rng.below(100) {
                0 => rng.between(5_000, 120_000),
                1..=10 => rng.between(1_000, 5_000),
                _ => rng.between(50, 1_000),
            };
            Duration::from_micros(micros)
        })
    }
}

/// Whom a line leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    Osd(usize),
    Table(usize),
}

/// A process's connection to the rest of the world, for as long as the process lives.
#[derive(Clone)]
pub struct Line {
    pub world: World,
    process: usize,
    is_dead: Arc<AtomicBool>,
    cuts: Arc<Cuts>,
}

/// Partitions, by process and end.
#[derive(Default)]
pub struct Cuts(Mutex<HashSet<(usize, End)>>);

impl Cuts {
    pub fn cut(&self, process: usize, end: End) {
        locked(&self.0).insert((process, end));
    }
    pub fn heal(&self, process: usize, end: End) {
        locked(&self.0).remove(&(process, end));
    }
    pub fn heal_all(&self) {
        locked(&self.0).clear();
    }
    #[must_use]
    pub fn is_cut(&self, process: usize, end: End) -> bool {
        locked(&self.0).contains(&(process, end))
    }
}

impl Line {
    #[must_use]
    pub fn new(world: World, process: usize, cuts: Arc<Cuts>) -> Self {
        Self { world, process, is_dead: Arc::default(), cuts }
    }

    pub fn kill(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }
    #[must_use]
    pub fn is_cut(&self, end: End) -> bool {
        self.cuts.is_cut(self.process, end)
    }

    /// The way there: returns when the request has arrived.
    pub async fn go(&self, end: End, what: u64) -> Result<()> {
        self.live().await;
        self.world.trace(what);
        sleep(self.world.way()).await;
        self.cross(end).await?;
        // What was under way when its sender died arrives, or not.
        if self.is_dead() && self.world.draw(Rng::coin) {
            pending::<()>().await;
        }
        Ok(())
    }

    /// The way back: the answer may be lost.
    pub async fn come(&self, end: End) -> Result<()> {
        sleep(self.world.way()).await;
        self.live().await;
        self.cross(end).await
    }

    /// Never returns once the process is dead.
    pub async fn live(&self) {
        if self.is_dead() {
            pending::<()>().await;
        }
    }

    async fn cross(&self, end: End) -> Result<()> {
        if !self.is_cut(end) {
            return Ok(());
        }
        let patience = self.world.draw(|rng| match rng.below(3) {
            0 => Duration::ZERO,
            _ => PATIENCE.mul_f64(rng.below(1000) as f64 / 1000.0),
        });
        sleep(patience).await;
        self.live().await;
        Err(Fault::unavailable("the network is cut"))
    }
}

// What is locked is changed by steps that do not panic.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
