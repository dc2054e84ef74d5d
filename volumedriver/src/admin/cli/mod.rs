//! The commands that talk to a daemon, and those about configuration files.
//!
//! A result is a table and a JSON document at once; printing it, and errors, is the caller's part.

pub mod args;
mod config;
mod node;
mod vdisk;

use std::future::Future;
use std::path::Path;

use volumedriver_core::fault::{Fault, Result};

use super::client::{self, Client, fault_of};
use args::{BackendCommand, Command};

pub use crate::inspect::{Form, Report};

/// Carries out a command that needs no wiring of the daemon: everything but `serve` and `inspect`.
pub fn run(command: Command, data_dir: Option<&Path>) -> Result<Report> {
    match command {
        Command::Config(command) => config::run(command, data_dir),
        Command::Vdisk(command) => ask(data_dir, |client| vdisk::run(client, command)),
        Command::Backend(BackendCommand::Status) => ask(data_dir, node::backend),
        Command::Backend(BackendCommand::Probe) => ask(data_dir, node::probe),
        Command::Status => ask(data_dir, node::status),
        Command::Metrics => ask(data_dir, node::metrics),
        Command::Serve(_) | Command::Inspect(_) => Err(Fault::bug("not a command for a daemon")),
    }
}

/// Connects to the daemon of the data directory and asks.
fn ask<F: Future<Output = Result<Report, tonic::Status>>>(
    data_dir: Option<&Path>,
    question: impl FnOnce(Client) -> F,
) -> Result<Report> {
    let data_dir = data_dir
        .ok_or_else(|| Fault::invalid("--data-dir DIR is needed: it says which daemon to ask"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fault::unavailable("cannot start").because(e))?;
    runtime.block_on(async {
        let client = client::connect(data_dir).await?;
        question(client).await.map_err(|status| fault_of(&status))
    })
}
