//! `sim`: runs the engine in the simulated world, seed after seed, on all cores, and prints the line that reproduces what
//! it finds.

use clap::Parser;
use suite::seeds::{self, Args};
use suite::sim::{self, Run};
use suite::world::faults::Canary;

#[derive(Parser)]
#[command(about = "The engine in the simulated world, checked against a model")]
struct Sim {
    #[command(flatten)]
    args: Args<Canary>,
}

fn main() -> std::process::ExitCode {
    let args = Sim::parse().args;
    seeds::run("sim", &args, |seed, steps, canary| sim::run(Run { seed, steps, canary }))
}
