//! `alba`: serves an object backend, and the commands to look into one.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

/// The C library's allocator costs a tenth of a read: its heaps of other threads than the first grow by system calls.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run(cli::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("alba: {message}");
            ExitCode::FAILURE
        }
    }
}
