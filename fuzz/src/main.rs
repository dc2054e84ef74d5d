//! Hands libFuzzer's inputs to the target that the environment variable `FUZZ_TARGET` names. Started by `fuzz/run`.

#![no_main]

use std::sync::OnceLock;

use volumedriver_fuzz::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

fn choose() -> Target {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match volumedriver_fuzz::find(&name) {
        Some(target) => target,
        None => {
            let known: Vec<_> = volumedriver_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
            eprintln!("FUZZ_TARGET is {name:?}, must be one of {}", known.join(", "));
            std::process::exit(2);
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.get_or_init(choose)(bytes));
