//! The simulation of the whole backend: seeds keep the promises, a seed gives the same run again, planted bugs are found.

use suite::backend::canary::Canary;
use suite::backend::{Outcome, Run, run};

const STEPS: u64 = 100;

fn sim(seed: u64, canary: Option<Canary>) -> Outcome {
    run(Run { seed, steps: STEPS, canary })
}

#[test]
fn a_few_hundred_seeds_keep_every_promise() {
    let (mut objects, mut undecided) = (0, 0);
    for seed in 2_000_000..2_000_200 {
        let outcome = sim(seed, None);
        let reproduce = format!("reproduce: make bsim SEED={seed} STEPS={STEPS}");
        assert!(outcome.violations.is_empty(), "{}\n{reproduce}", outcome.violations.join("\n"));
        objects += outcome.objects;
        undecided += outcome.undecided;
    }
    assert!(objects > 1000, "only {objects} objects were there at the end");
    assert!(undecided < 20, "{undecided} histories were too long to decide");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..10 {
        let (one, two) = (sim(seed, None), sim(seed, None));
        assert_eq!((one.trace, one.calls), (two.trace, two.calls), "seed {seed}");
    }
    assert_ne!(sim(1, None).trace, sim(2, None).trace);
}

/// The driver must notice the planted bug within this many seeds.
fn found_within(seeds: u64, canary: Canary) {
    let found = (0..seeds).find(|seed| !sim(*seed, Some(canary)).violations.is_empty());
    assert!(found.is_some(), "{seeds} seeds did not find {canary:?}");
}

#[test]
fn canary_manifests_before_their_fragments_are_found() {
    found_within(60, Canary::ManifestFirst);
}

#[test]
fn canary_unchecked_fragments_are_found() {
    found_within(20, Canary::UncheckedFragment);
}

#[test]
fn canary_a_put_without_guard_is_found() {
    found_within(60, Canary::UnguardedPut);
}

#[test]
fn canary_a_collector_without_guard_is_found() {
    found_within(200, Canary::NoEpochGuard);
}

#[test]
fn canary_files_gone_before_their_manifest_are_found() {
    found_within(20, Canary::DroppedFirst);
}

#[test]
fn canary_what_is_not_repaired_is_found() {
    found_within(20, Canary::Unrepaired);
}

#[test]
fn canary_what_is_not_collected_is_found() {
    found_within(20, Canary::Uncollected);
}

#[test]
fn canary_work_that_does_not_end_is_found() {
    found_within(10, Canary::UnendingWork);
}

#[test]
fn canary_half_a_commit_is_found() {
    found_within(200, Canary::HalfCommit);
}
