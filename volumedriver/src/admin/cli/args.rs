//! The command line. Errors of use are clap's (exit status 2).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use volumedriver_core::fault::Result;
use volumedriver_core::units::ByteCount;

use crate::config::{BackendUrl, Endpoint, size};
use crate::inspect::InspectArgs;

/// Block volumes for hypervisors on an object store.
#[derive(Debug, Parser)]
#[command(name = "volumedriver", version)]
pub struct Cli {
    /// The daemon's directory: its local state and its management socket
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground
    Serve(ServeArgs),
    /// Virtual disks
    #[command(subcommand)]
    Vdisk(VdiskCommand),
    /// The object backend
    #[command(subcommand)]
    Backend(BackendCommand),
    /// The node and its vDisks
    Status,
    /// What Prometheus scrapes
    Metrics,
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Decode files and objects; needs no daemon
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Configuration file (TOML); `config keys` lists what may be in it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where NBD clients connect: unix:PATH or HOST:PORT; may be given several times
    #[arg(long, value_name = "ENDPOINT")]
    pub nbd: Vec<Endpoint>,
    /// The object backend: embedded:DIRECTORY, alba://HOST:PORT/PREFIX?preset=NAME, alba:unix:PATH or
    /// s3://BUCKET/PREFIX?endpoint=URL&...
    #[arg(long, value_name = "URL")]
    pub backend: Option<BackendUrl>,
    /// Throw away the local state (write buffer, map, cache) and open the vDisks from the backend alone
    #[arg(long)]
    pub discard_local: bool,
    /// How long stopping may take to bring data to the backend; the rest stays in the write buffer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub drain_timeout: u64,
}

#[derive(Debug, Subcommand)]
pub enum VdiskCommand {
    /// Make a vDisk and serve it
    Create {
        name: String,
        /// Like 4GiB, 4G, 4096M or a number of bytes
        #[arg(long, value_parser = read_size)]
        size: ByteCount,
        /// 4KiB to 64KiB, a power of two; default: the vPool's
        #[arg(long, value_parser = read_size)]
        cluster_size: Option<ByteCount>,
        /// 1MiB to 128MiB; default: the configuration's
        #[arg(long, value_parser = read_size)]
        sco_size: Option<ByteCount>,
    },
    /// All vDisks
    List,
    /// One vDisk
    Show { name: String },
    /// Make a vDisk larger
    Resize {
        name: String,
        #[arg(long, value_parser = read_size)]
        size: ByteCount,
    },
    /// Delete a vDisk with all its data
    Delete {
        name: String,
        /// Also when clients are attached
        #[arg(long)]
        force: bool,
    },
    /// Take a vDisk that is read-only for damage back into use as it is shown now; what is lost stays lost
    AcceptLoss {
        name: String,
        /// Do it; without, say what would be accepted
        #[arg(long)]
        yes: bool,
        /// Also when clients are attached
        #[arg(long)]
        force: bool,
    },
    /// Wait until everything written so far is on the backend
    Flush { name: String },
}

#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Ask the backend now
    Status,
    /// Find out whether a bucket does what is asked of it; takes some seconds
    Probe,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file as a whole
    Check { file: PathBuf },
    /// The effective values: of the running daemon, or of a file
    Show {
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Every key: what it means, its default, what is legal
    Keys,
    /// Let the daemon read its file again
    Reload,
}

fn read_size(text: &str) -> Result<ByteCount> {
    size::parse(text)
}
