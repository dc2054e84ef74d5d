//! `bsim`: runs the whole backend in its simulated world, seed after seed, and prints the line that reproduces what it finds.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use suite::backend::canary::Canary;
use suite::backend::{Outcome, Run, run};

#[derive(Parser)]
#[command(about = "The whole backend in a simulated world, checked against a model")]
struct Args {
    /// First seed; with it alone, only this one runs
    #[arg(long)]
    seed: Option<u64>,
    /// Number of seeds, one after the other
    #[arg(long)]
    seeds: Option<u64>,
    /// Requests per seed
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// Plant this bug in the world
    #[arg(long)]
    canary: Option<CanaryName>,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Stop after this many failing seeds
    #[arg(long, default_value_t = 5)]
    failures: u64,
    /// Tell what each seed came to
    #[arg(long)]
    verbose: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum CanaryName {
    ManifestFirst,
    UncheckedFragment,
    NoEpochGuard,
    DroppedFirst,
    UnguardedPut,
    HalfCommit,
    Unrepaired,
    Uncollected,
    UnendingWork,
}

impl From<CanaryName> for Canary {
    fn from(name: CanaryName) -> Self {
        match name {
            CanaryName::ManifestFirst => Self::ManifestFirst,
            CanaryName::UncheckedFragment => Self::UncheckedFragment,
            CanaryName::NoEpochGuard => Self::NoEpochGuard,
            CanaryName::DroppedFirst => Self::DroppedFirst,
            CanaryName::UnguardedPut => Self::UnguardedPut,
            CanaryName::HalfCommit => Self::HalfCommit,
            CanaryName::Unrepaired => Self::Unrepaired,
            CanaryName::Uncollected => Self::Uncollected,
            CanaryName::UnendingWork => Self::UnendingWork,
        }
    }
}

/// What all threads share.
struct Batch {
    args: Args,
    next: AtomicU64,
    end: u64,
    failing: AtomicU64,
    sum: Mutex<Outcome>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    }
    let first = args.seed.unwrap_or(0);
    let seeds = args.seeds.unwrap_or(if args.seed.is_some() { 1 } else { 10_000 });
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let (next, end) = (AtomicU64::new(first), first.saturating_add(seeds));
    let batch = Batch { args, next, end, failing: AtomicU64::new(0), sum: Mutex::default() };
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| batch.work());
        }
    });
    batch.report(first, began.elapsed())
}

impl Batch {
    fn work(&self) {
        let mut told = Instant::now();
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end || self.failing.load(Ordering::Relaxed) >= self.args.failures {
                return;
            }
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                eprintln!("at seed {seed}");
            }
            let (steps, canary) = (self.args.steps, self.args.canary.map(Canary::from));
            let began = Instant::now();
            let outcome = run(Run { seed, steps, canary });
            if self.args.verbose {
                println!("seed {seed}: {:.2} s, {outcome:?}", began.elapsed().as_secs_f64());
            }
            self.count(seed, &outcome);
        }
    }

    fn count(&self, seed: u64, outcome: &Outcome) {
        if let Ok(mut sum) = self.sum.lock() {
            sum.steps += outcome.steps;
            sum.kills += outcome.kills;
            sum.troubles += outcome.troubles;
            sum.objects += outcome.objects;
            sum.calls += outcome.calls;
            sum.undecided += outcome.undecided;
        }
        if !outcome.violations.is_empty() {
            self.failing.fetch_add(1, Ordering::Relaxed);
            println!("seed {seed}:");
            outcome.violations.iter().for_each(|v| println!("  {v}"));
            println!("  reproduce: make bsim SEED={seed} STEPS={}", self.args.steps);
        }
    }

    fn report(&self, first: u64, took: Duration) -> ExitCode {
        let sum = self.sum.lock().map(|sum| sum.clone()).unwrap_or_default();
        let ran = self.next.load(Ordering::Relaxed).min(self.end) - first;
        let failing = self.failing.load(Ordering::Relaxed);
        println!(
            "{ran} seeds, {} requests, {} kills, {} troubles, {} objects at the end, {} calls in {:.1} s: \
             {failing} seeds with violations, {} histories undecided",
            sum.steps,
            sum.kills,
            sum.troubles,
            sum.objects,
            sum.calls,
            took.as_secs_f64(),
            sum.undecided,
        );
        ExitCode::from(u8::from(failing > 0))
    }
}
