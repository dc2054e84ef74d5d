//! `sim`: runs the engine in the simulated world, seed after seed, on all cores, and prints the line that reproduces what
//! it finds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use suite::sim::{self, Outcome, Run};
use suite::world::faults::Canary;

#[derive(Parser)]
#[command(about = "The engine in the simulated world, checked against a model")]
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
    #[arg(long, value_parser = canary)]
    canary: Option<Canary>,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Stop after this many failing seeds
    #[arg(long, default_value_t = 5)]
    failures: usize,
}

/// The canary of this name.
fn canary(name: &str) -> Result<Canary, String> {
    let found = Canary::ALL.into_iter().find(|canary| canary.name() == name);
    found.ok_or_else(|| {
        let names = Canary::ALL.map(Canary::name).join(", ");
        format!("there is no canary {name:?}; there are {names}")
    })
}

/// What all threads share.
struct Batch {
    args: Args,
    next: AtomicU64,
    end: u64,
    steps: AtomicU64,
    crashes: AtomicU64,
    objects: AtomicU64,
    failing: Mutex<Vec<u64>>,
    /// Seed and start of what each thread runs now.
    running: Mutex<Vec<Option<(u64, Instant)>>>,
}

fn main() -> std::process::ExitCode {
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
    let batch = Batch {
        next: AtomicU64::new(first),
        end: first.saturating_add(seeds),
        args,
        steps: AtomicU64::new(0),
        crashes: AtomicU64::new(0),
        objects: AtomicU64::new(0),
        failing: Mutex::default(),
        running: Mutex::new(vec![None; threads]),
    };
    let began = Instant::now();
    let mut told = began;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                scope.spawn({
                    let batch = &batch;
                    move || batch.work(n)
                })
            })
            .collect();
        while workers.iter().any(|w| !w.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            batch.watch();
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                eprintln!("at seed {}", batch.next.load(Ordering::Relaxed));
            }
        }
    });
    batch.report(began.elapsed())
}

impl Batch {
    fn work(&self, thread: usize) {
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            let enough = self.failing.lock().is_ok_and(|f| f.len() >= self.args.failures);
            if seed >= self.end || enough {
                return;
            }
            self.note(thread, Some((seed, Instant::now())));
            let run = Run { seed, steps: self.args.steps, canary: self.args.canary };
            self.count(seed, &sim::run(run));
            self.note(thread, None);
        }
    }

    fn reproduce(&self, seed: u64) -> String {
        let canary = self.args.canary.map(|canary| format!(" ARGS=\"--canary {}\"", canary.name()));
        let steps = self.args.steps;
        format!("reproduce: make sim SEED={seed} STEPS={steps}{}", canary.unwrap_or_default())
    }

    fn note(&self, thread: usize, what: Option<(u64, Instant)>) {
        if let Ok(mut running) = self.running.lock()
            && let Some(place) = running.get_mut(thread)
        {
            *place = what;
        }
    }

    fn count(&self, seed: u64, outcome: &Outcome) {
        self.steps.fetch_add(outcome.steps, Ordering::Relaxed);
        self.crashes.fetch_add(outcome.crashes, Ordering::Relaxed);
        self.objects.fetch_add(outcome.objects, Ordering::Relaxed);
        if outcome.violations.is_empty() {
            return;
        }
        if let Ok(mut failing) = self.failing.lock() {
            failing.push(seed);
            println!("seed {seed}:");
            outcome.violations.iter().for_each(|v| println!("  {v}"));
            println!("  {}", self.reproduce(seed));
        }
    }

    /// A run takes milliseconds; one that takes a minute spins.
    fn watch(&self) {
        let Ok(running) = self.running.lock() else { return };
        for (seed, since) in running.iter().flatten() {
            if since.elapsed() > Duration::from_secs(60) {
                println!("seed {seed} spins without virtual time passing");
                println!("  {}", self.reproduce(*seed));
                std::process::exit(2);
            }
        }
    }

    fn report(&self, took: Duration) -> std::process::ExitCode {
        let failing = self.failing.lock().map(|f| f.len()).unwrap_or(usize::MAX);
        let first = self.args.seed.unwrap_or(0);
        let ran = self.next.load(Ordering::Relaxed).min(self.end) - first;
        println!(
            "{ran} seeds, {} steps, {} crashes, {} objects in {:.1} s: {failing} seeds with violations",
            self.steps.load(Ordering::Relaxed),
            self.crashes.load(Ordering::Relaxed),
            self.objects.load(Ordering::Relaxed),
            took.as_secs_f64(),
        );
        std::process::ExitCode::from(u8::from(failing > 0))
    }
}
