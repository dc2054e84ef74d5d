//! `alba`: serves an object backend, and the commands to look into one.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::run(cli::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("alba: {message}");
            ExitCode::FAILURE
        }
    }
}
