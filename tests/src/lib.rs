//! Tests of the whole: the simulated world, the model, and what the tests of real processes share.

pub mod alba;
pub mod backend;
pub mod daemon;
pub mod model;
pub mod nbd;
pub mod scenarios;
pub mod seeds;
pub mod servers;
pub mod sim;
pub mod tidy;
pub mod tool;
pub mod witness;
pub mod world;

/// Whether the long versions of the tests are asked for (`make soak`).
#[must_use]
pub fn soak() -> bool {
    std::env::var_os("SOAK").is_some_and(|value| !value.is_empty())
}
