//! `bsim`: runs the whole backend in its simulated world, seed after seed, on all cores, and prints the line that reproduces
//! what it finds.

use clap::Parser;
use suite::backend::canary::Canary;
use suite::backend::{self, Run};
use suite::seeds::{self, Args};

#[derive(Parser)]
#[command(about = "The whole backend in a simulated world, checked against a model")]
struct Bsim {
    #[command(flatten)]
    args: Args<Canary>,
}

fn main() -> std::process::ExitCode {
    let args = Bsim::parse().args;
    seeds::run("bsim", &args, |seed, steps, canary| backend::run(Run { seed, steps, canary }))
}
