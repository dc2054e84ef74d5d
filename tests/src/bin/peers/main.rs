//! What `benches/backend` compares an object backend with: the loads of `alba bench` on other stores, and servers in memory that
//! show how fast a client and its transport are without any store behind them.

mod memory;
mod raw;
mod s3;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use backend_alba::bench::{Keep, Measured, Plan, Target, run};
use backend_alba::server::Address;
use backend_alba::{Fault, Result};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

// As in `alba`: the servers in memory are what it would be without a store.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures a bucket; prints JSON as `alba bench` does.
    S3 {
        /// s3://BUCKET/PREFIX?endpoint=...; what is put below the prefix is deleted.
        url: String,
        /// A file in the form of ~/.aws/credentials.
        keys: PathBuf,
        #[command(flatten)]
        plan: Plan,
    },
    /// Measures `serve raw`: bytes over sockets, one connection for each operation in flight, nothing else.
    Raw {
        address: Address,
        #[command(flatten)]
        plan: Plan,
    },
    /// A server whose objects are computed and whose puts are passed over; until it is killed.
    Serve { kind: Kind, address: Address },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// What `raw` measures.
    Raw,
    /// What `alba bench` measures: the contract of the object backend.
    Grpc,
    /// What `s3` measures. Over TCP only.
    S3,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    match runtime.block_on(perform(Args::parse().command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("peers: {fault}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(command: Command) -> Result<()> {
    match command {
        Command::S3 { url, keys, plan } => {
            measure(s3::Bucket::open(&url, &keys).await?, &plan).await
        }
        Command::Raw { address, plan } => measure(raw::Client::of(address), &plan).await,
        Command::Serve { kind: Kind::Raw, address } => raw::serve(&address).await,
        Command::Serve { kind: Kind::Grpc, address } => memory::serve_grpc(&address).await,
        Command::Serve { kind: Kind::S3, address } => memory::serve_s3(&address).await,
    }
}

async fn measure(target: impl Target, plan: &Plan) -> Result<()> {
    let results = run(Arc::new(target), plan, Keep::Nothing, |_| ()).await?;
    let results: Vec<Value> = results.iter().map(Measured::json).collect();
    println!("{:#}", json!({ "results": results }));
    Ok(())
}

/// Scripts wait for this line.
fn announce(address: &impl std::fmt::Display) {
    println!("ready {address}");
}

/// An object's length, which its name begins with.
fn len_of(name: &str) -> Result<u64> {
    let number = name.split_once('-').and_then(|(len, _)| len.parse().ok());
    number.ok_or_else(|| Fault::not_found(format!("object {name:?} is none of a benchmark's")))
}
