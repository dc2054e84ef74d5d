//! Seed after seed on several threads: what the drivers `sim` and `bsim` share.

use std::fmt::Debug;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;

/// One run takes well under a second. What takes this long spins without virtual time passing.
const SPINNING: Duration = Duration::from_secs(300);
const TELL_EVERY: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Args<C: ValueEnum + Send + Sync + 'static> {
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
    #[arg(long, value_enum)]
    canary: Option<C>,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Stop after this many failing seeds
    #[arg(long, default_value_t = 5)]
    failures: u64,
    /// Tell what each seed came to
    #[arg(long)]
    verbose: bool,
}

/// What came of one run, and of all of them together.
pub trait Outcome: Debug + Default + Send {
    fn violations(&self) -> &[String];
    /// Counts add up; the rest of `other` is of no interest.
    fn add(&mut self, other: &Self);
    /// What was counted, in words.
    fn sum(&self) -> String;
}

/// As it is called on the command line.
#[must_use]
pub fn name_of(canary: impl ValueEnum) -> String {
    canary.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// What all threads share.
struct Batch<'a, C: ValueEnum + Send + Sync + 'static, O> {
    args: &'a Args<C>,
    /// The target of the Makefile that runs one seed again.
    target: &'a str,
    next: AtomicU64,
    end: u64,
    failing: AtomicU64,
    sum: Mutex<O>,
    /// Seed and start of what each thread runs now.
    running: Mutex<Vec<Option<(u64, Instant)>>>,
}

/// Runs what the arguments ask for; failure when a seed found something.
pub fn run<C, O>(
    target: &str,
    args: &Args<C>,
    one: impl Fn(u64, u64, Option<C>) -> O + Sync,
) -> ExitCode
where
    C: ValueEnum + Copy + Send + Sync + 'static,
    O: Outcome,
{
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
        args,
        target,
        next: AtomicU64::new(first),
        end: first.saturating_add(seeds),
        failing: AtomicU64::new(0),
        sum: Mutex::new(O::default()),
        running: Mutex::new(vec![None; threads]),
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let (batch, one) = (&batch, &one);
        let workers: Vec<_> =
            (0..threads).map(|n| scope.spawn(move || batch.work(n, one))).collect();
        let mut told = began;
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            batch.watch();
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                eprintln!("at seed {}", batch.next.load(Ordering::Relaxed));
            }
        }
    });
    batch.report(first, began.elapsed())
}

impl<C: ValueEnum + Copy + Send + Sync, O: Outcome> Batch<'_, C, O> {
    fn work(&self, thread: usize, one: impl Fn(u64, u64, Option<C>) -> O) {
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end || self.failing.load(Ordering::Relaxed) >= self.args.failures {
                return;
            }
            let began = Instant::now();
            self.note(thread, Some((seed, began)));
            let outcome = one(seed, self.args.steps, self.args.canary);
            self.note(thread, None);
            if self.args.verbose {
                println!("seed {seed}: {:.2} s, {outcome:?}", began.elapsed().as_secs_f64());
            }
            self.count(seed, &outcome);
        }
    }

    fn note(&self, thread: usize, what: Option<(u64, Instant)>) {
        if let Ok(mut running) = self.running.lock()
            && let Some(place) = running.get_mut(thread)
        {
            *place = what;
        }
    }

    fn reproduce(&self, seed: u64) -> String {
        let canary = self.args.canary.map(name_of);
        let canary = canary.map(|name| format!(" ARGS=\"--canary {name}\"")).unwrap_or_default();
        let (target, steps) = (self.target, self.args.steps);
        format!("reproduce: make {target} SEED={seed} STEPS={steps}{canary}")
    }

    fn count(&self, seed: u64, outcome: &O) {
        if let Ok(mut sum) = self.sum.lock() {
            sum.add(outcome);
        }
        if !outcome.violations().is_empty() {
            self.failing.fetch_add(1, Ordering::Relaxed);
            println!("seed {seed}:");
            outcome.violations().iter().for_each(|v| println!("  {v}"));
            println!("  {}", self.reproduce(seed));
        }
    }

    fn watch(&self) {
        let Ok(running) = self.running.lock() else { return };
        for (seed, since) in running.iter().flatten() {
            if since.elapsed() > SPINNING {
                println!("seed {seed} spins without virtual time passing");
                println!("  {}", self.reproduce(*seed));
                std::process::exit(2);
            }
        }
    }

    fn report(&self, first: u64, took: Duration) -> ExitCode {
        let ran = self.next.load(Ordering::Relaxed).min(self.end) - first;
        let failing = self.failing.load(Ordering::Relaxed);
        let sum = self.sum.lock().map(|sum| sum.sum()).unwrap_or_default();
        let took = took.as_secs_f64();
        println!("{ran} seeds, {sum} in {took:.1} s: {failing} seeds with violations");
        ExitCode::from(u8::from(failing > 0))
    }
}
