//! The `volumedriver` binary: the command line, and the wiring of the daemon.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use volumedriver::admin::cli::args::{Cli, Command, ServeArgs};
use volumedriver::admin::cli::{self, Form};
use volumedriver::admin::live::Source;
use volumedriver::config::Overrides;
use volumedriver::serve::datadir::LocalState;
use volumedriver::serve::{self, Options};
use volumedriver_core::fault::{Fault, Result};

/// The C library's allocator costs a tenth of a read: its heaps of other threads than the first grow by system calls.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("volumedriver: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let form = if cli.json { Form::Json } else { Form::Human };
    let data_dir = cli.data_dir.as_deref();
    match cli.command {
        Command::Serve(args) => run_daemon(args, data_dir),
        Command::Inspect(args) => serve::inspect(&args, data_dir, form),
        command => cli::run(command, data_dir)?.print(form),
    }
}

/// The daemon, until a signal ends it. Logs go to stderr (`RUST_LOG`, default `info`).
fn run_daemon(args: ServeArgs, data_dir: Option<&Path>) -> Result<()> {
    // The S3 library would tell who we are at every start.
    let usual = || EnvFilter::new("info,aws_config=warn");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| usual());
    tracing_subscriber::fmt().compact().with_env_filter(filter).with_writer(std::io::stderr).init();
    let data_dir = data_dir.ok_or_else(|| {
        Fault::invalid("serve needs --data-dir DIR: where the daemon keeps its local state")
    })?;
    let overrides = Overrides { nbd: args.nbd, backend: args.backend };
    let local = if args.discard_local { LocalState::Discard } else { LocalState::Keep };
    serve::node::run(Options {
        source: Source { file: args.config, data_dir: data_dir.to_owned(), overrides },
        local,
        drain: Duration::from_secs(args.drain_timeout),
    })
}
