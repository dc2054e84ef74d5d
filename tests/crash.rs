//! kill -9 of a real daemon under a verifying writer (P1; SCENARIOS 1-4, 9, 10, 17).
//!
//! `ROUNDS=1000 SEED=7 cargo test --release -p suite --test crash` chooses how long and which.

use std::thread;
use std::time::{Duration, Instant};

use suite::daemon::{Daemon, SMALL};
use suite::soak;
use suite::witness::{Random, Witness};

const SIZE: &str = "64MiB";
const SIZE_BYTES: u64 = 64 << 20;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Works on the disk until the daemon is killed after this long.
fn kill_under_load(daemon: &mut Daemon, mut witness: Witness, after: Duration) -> Witness {
    let socket = daemon.socket();
    let writer = thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(60);
        let outcome = witness.work(&socket, "disk", end);
        assert!(outcome.is_err(), "the connection outlived the daemon");
        witness
    });
    thread::sleep(after);
    daemon.kill9();
    let witness = writer.join();
    witness.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn kill_9_again_and_again_loses_nothing_flushed() {
    let rounds = number("ROUNDS", if soak() { 1000 } else { 25 });
    let seed = number("SEED", 1);
    let mut daemon = Daemon::start(SMALL);
    daemon.create("disk", SIZE);
    let mut random = Random::new(seed);
    let mut witness = Witness::new(SIZE_BYTES, seed);
    let mut slowest = Duration::ZERO;
    for round in 1..=rounds {
        let after = Duration::from_millis(30 + random.below(600));
        witness = kill_under_load(&mut daemon, witness, after);
        let opened = daemon.try_start().unwrap_or_else(|why| panic!("round {round}: {why}"));
        slowest = slowest.max(opened);
        let judgement = witness.judge_and_accept(&daemon.socket(), "disk");
        judgement.unwrap_or_else(|why| panic!("SEED={seed}, round {round}: {why}"));
    }
    println!(
        "{rounds} rounds, {} changes and {} flushes acknowledged, slowest start {slowest:?}",
        witness.acknowledged, witness.flushes
    );
    assert!(witness.acknowledged > rounds * 100, "too little load: {}", witness.acknowledged);
    assert!(witness.flushes > rounds, "too few flushes: {}", witness.flushes);
    daemon.stop();
}

#[test]
fn two_starts_without_io_change_nothing() {
    let mut daemon = Daemon::start(SMALL);
    daemon.create("disk", SIZE);
    let witness = Witness::new(SIZE_BYTES, 2);
    let mut witness = kill_under_load(&mut daemon, witness, Duration::from_millis(700));
    daemon.restart();
    witness.judge_and_accept(&daemon.socket(), "disk").unwrap();
    for _ in 0..2 {
        daemon.kill9();
        daemon.restart();
        // Nothing was changed since it was accepted: every block must show the same.
        witness.judge_and_accept(&daemon.socket(), "disk").unwrap();
    }
}

/// The local state is lost: what the backend has is a prefix, and holds all that was flushed to the backend.
#[test]
fn the_backend_alone_gives_a_prefix() {
    let mut daemon = Daemon::start(SMALL);
    daemon.create("disk", SIZE);
    let mut witness = Witness::new(SIZE_BYTES, 3);
    let socket = daemon.socket();
    witness.work(&socket, "disk", Instant::now() + Duration::from_secs(2)).unwrap();
    daemon.flush_to_backend("disk");
    witness.mark_published();
    let mut witness = kill_under_load(&mut daemon, witness, Duration::from_secs(2));
    witness.lose_local_state();
    daemon.argument("--discard-local");
    daemon.restart();
    witness.judge_and_accept(&socket, "disk").unwrap();
    // And it is a volume like any other again.
    let mut witness = kill_under_load(&mut daemon, witness, Duration::from_secs(1));
    daemon.drop_arguments();
    daemon.restart();
    witness.judge_and_accept(&socket, "disk").unwrap();
    daemon.stop();
}
