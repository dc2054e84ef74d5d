//! What can be typed, and what runs it.

mod asd;
mod client;
mod osd;
mod recover;
mod serve;
mod tls;

use std::path::PathBuf;

use backend_alba::server::Address;
use backend_alba::{EtcdPlace, OsdPlace};
use clap::{Args, Parser, Subcommand};

/// An object backend: namespaces of immutable objects.
#[derive(Parser)]
#[command(version)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a backend until SIGTERM or SIGINT.
    Serve(ServeOptions),
    /// Rebuild the metadata of a backend that has lost them from its OSDs; nobody may serve it meanwhile.
    Recover(recover::RecoverOptions),
    /// Serve one disk to a backend until SIGTERM or SIGINT.
    Asd(asd::AsdOptions),
    /// What the backend holds and how its OSDs are.
    Status {
        #[command(flatten)]
        server: ServerOptions,
    },
    /// OSDs.
    #[command(subcommand)]
    Osd(osd::OsdCommand),
    /// Namespaces.
    #[command(subcommand)]
    Namespace(NamespaceCommand),
    /// Objects.
    #[command(subcommand)]
    Object(ObjectCommand),
}

#[derive(Args)]
struct ServeOptions {
    /// Metadata and lock of the backend; created when missing.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// A cluster of etcd that holds the metadata, shared by all that serve the same backend; may be repeated, with the
    /// namespaces spread over them. Without any, RocksDB in the data directory.
    #[arg(long = "nsm", value_name = "etcd://HOST:PORT[,HOST:PORT]...[/PREFIX]")]
    nsm: Vec<EtcdPlace>,
    /// A directory for objects; may be repeated. Without any, `osd` in the data directory. Nodes are failure domains;
    /// directories without one share one.
    #[arg(long = "osd", value_name = "DIR[,node=NAME][,label=NAME]...")]
    osds: Vec<OsdPlace>,
    /// No directory of its own: all OSDs are claimed (`alba osd claim`).
    #[arg(long, conflicts_with = "osds")]
    no_osd: bool,
    /// Most bytes of objects on each OSD; default: all of its file system but a small reserve.
    #[arg(long, value_name = "BYTES")]
    osd_capacity: Option<u64>,
    /// HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDRESS")]
    listen: Address,
    #[command(flatten)]
    tls: tls::TlsOptions,
}

#[derive(Args)]
struct ServerOptions {
    /// The server: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDRESS")]
    connect: Address,
    /// One JSON document instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tls: tls::TlsOptions,
}

#[derive(Subcommand)]
enum NamespaceCommand {
    /// Names, in byte order.
    List {
        #[arg(long, default_value = "")]
        prefix: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Succeeds also when it exists.
    Create {
        namespace: String,
        /// How its objects are stored; default: the server's
        #[arg(long)]
        preset: Option<String>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Deletes it with all its objects.
    Delete {
        namespace: String,
        #[command(flatten)]
        server: ServerOptions,
    },
}

#[derive(Subcommand)]
enum ObjectCommand {
    /// Names, in byte order.
    List {
        namespace: String,
        #[arg(long, default_value = "")]
        prefix: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Length, checksum and age.
    Head {
        namespace: String,
        name: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Puts a file, if there is no object of this name.
    Put {
        namespace: String,
        name: String,
        file: PathBuf,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Gets an object, or a range of it.
    Get {
        namespace: String,
        name: String,
        /// Where to: a file that does not exist yet, or - for standard output.
        file: PathBuf,
        #[arg(long, default_value_t = 0)]
        offset: u64,
        #[arg(long)]
        length: Option<u64>,
        #[command(flatten)]
        server: ServerOptions,
    },
    Delete {
        namespace: String,
        name: String,
        #[command(flatten)]
        server: ServerOptions,
    },
}

/// Runs what was typed; the error is a sentence for the person who typed it.
pub fn run(options: Options) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("threads cannot be started: {e}"))?;
    runtime.block_on(async {
        match options.command {
            Command::Serve(options) => serve::run(options).await.map_err(|fault| fault.to_string()),
            Command::Recover(options) => {
                recover::run(options).await.map_err(|fault| fault.to_string())
            }
            Command::Asd(options) => asd::run(options).await.map_err(|fault| fault.to_string()),
            Command::Status { server } => client::status(&server).await,
            Command::Osd(command) => osd::run(command).await,
            Command::Namespace(command) => client::namespace(command).await,
            Command::Object(command) => client::object(command).await,
        }
    })
}
