//! `make compat`: what an S3 server truly does, by the probe and by the conformance suite, as a row of a table.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::task::LocalSet;
use volumedriver::config::{BackendUrl, S3Url};
use volumedriver::store::Place;
use volumedriver::store::candidate::{Candidate, Findings};
use volumedriver::store::conformance::conforms;
use volumedriver::store::s3::S3Store;

#[derive(Parser)]
struct Args {
    /// What the server is called in the table.
    name: String,
    /// s3://BUCKET/PREFIX?endpoint=...; what is below the prefix is deleted.
    url: String,
    /// A file in the form of ~/.aws/credentials.
    keys: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("| {} | not measured: {why} |", args.name);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let said = |fault: volumedriver_core::fault::Fault| fault.to_string();
    let url: BackendUrl = args.url.parse().map_err(said)?;
    let BackendUrl::S3(url) = url else { return Err(format!("{} is no bucket", args.url)) };
    let service = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let keys = Some(args.keys.clone());
    let place = Place { s3_credentials: keys, ..Place::new(BackendUrl::S3(url.clone())) };
    let candidate = service.block_on(Candidate::open(&url, &place)).map_err(said)?;
    let local = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let findings = local.block_on(candidate.probe()).map_err(said)?;
    let conformance = conformance(&service, &local, &url, args);
    println!("{}", row(&args.name, &findings, &conformance));
    Ok(())
}

fn conformance(
    service: &tokio::runtime::Runtime,
    local: &tokio::runtime::Runtime,
    url: &S3Url,
    args: &Args,
) -> String {
    let store = match service.block_on(S3Store::open(url, Some(&args.keys))) {
        Ok(store) => store,
        Err(fault) => return fault.to_string(),
    };
    let suite = async { conforms(&store).await };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        LocalSet::new().block_on(local, suite);
    }));
    match outcome {
        Ok(()) => "passes".to_owned(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let line = text.unwrap_or_default().lines().collect::<Vec<_>>().join(" ");
            format!("fails: {line}")
        }
    }
}

fn row(name: &str, findings: &Findings, conformance: &str) -> String {
    let verdict = match findings.verdict() {
        Ok(fitness) if fitness.parts => "fit".to_owned(),
        Ok(_) => "fit, without uploads in parts".to_owned(),
        Err(_) => "refused without a registry".to_owned(),
    };
    let lies = findings.lies();
    let lies = if lies.is_empty() { "all right".to_owned() } else { lies };
    format!("| {name} | {verdict} | {lies} | {conformance} |")
}
