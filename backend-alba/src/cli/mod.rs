//! What can be typed, and what runs it.

mod admin;
mod asd;
mod bench;
mod client;
mod osd;
mod recover;
mod serve;
mod tls;

use std::path::PathBuf;

use backend_alba::server::Address;
use backend_alba::{EtcdPlace, OsdGiven};
use clap::{Args, Parser, Subcommand};
use volumedriver_proto::alba_admin::TaskKind;

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
    /// Presets: how objects are stored.
    #[command(subcommand)]
    Preset(PresetCommand),
    /// Disk safety: how many more failures of OSDs and nodes the objects survive.
    Safety {
        /// Of this namespace only.
        #[arg(long, value_name = "NAMESPACE")]
        namespace: Option<String>,
        /// As if this OSD were dead too; may be repeated.
        #[arg(long = "dead", value_name = "OSD")]
        dead: Vec<String>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Work under way.
    #[command(subcommand)]
    Work(WorkCommand),
    /// Reads every byte of a namespace's fragments and repairs what is missing or damaged, in the background.
    Verify {
        namespace: String,
        /// Only look whether each fragment is there.
        #[arg(long)]
        existence: bool,
        /// What lies on an OSD that does not answer counts as missing.
        #[arg(long)]
        unreachable_is_missing: bool,
        #[command(flatten)]
        job: JobOptions,
    },
    /// Stores a namespace's objects anew that its preset would store otherwise now, in the background.
    Rewrite {
        namespace: String,
        #[command(flatten)]
        job: JobOptions,
    },
    /// Makes anew what a namespace's objects lack, in the background.
    Repair {
        namespace: String,
        #[command(flatten)]
        job: JobOptions,
    },
    /// What maintenance does by itself, and how fast.
    #[command(subcommand)]
    Maintenance(MaintenanceCommand),
    /// Measures puts, gets and ranges, and checks every byte it reads.
    Bench(bench::BenchOptions),
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
    /// A directory for objects, or the URL of an OSD that is claimed at the start: asd://HOST:PORT,
    /// s3://BUCKET/PREFIX?endpoint=URL&credentials=FILE, alba://HOST:PORT/NAMESPACE?preset=NAME; may be repeated. Without
    /// any, `osd` in the data directory. Nodes are failure domains; directories without one share one.
    #[arg(long = "osd", value_name = "DIR|URL[,node=NAME][,label=NAME]...")]
    osds: Vec<OsdGiven>,
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
        /// How its objects are stored; default: the default preset.
        #[arg(long)]
        preset: Option<String>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Shows its preset, or changes it.
    Preset {
        namespace: String,
        /// Objects put from now on follow this preset; those that are there are stored anew in the background.
        #[arg(long, value_name = "PRESET")]
        set: Option<String>,
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
    /// How it is stored: its policy, and where each fragment is.
    Show {
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

#[derive(Args)]
struct JobOptions {
    /// Return when it is done, with what came of it.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Subcommand)]
enum PresetCommand {
    List {
        #[command(flatten)]
        server: ServerOptions,
    },
    Show {
        name: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Creates it, or replaces it with its next version.
    Set {
        name: String,
        /// k,m,c,x: k fragments hold the data, m the parity, a put is done at c, no node holds more than x. Best first; may be
        /// repeated.
        #[arg(long = "policy", value_name = "K,M,C,X", required = true)]
        policies: Vec<String>,
        /// Bytes of an object that lie together in one fragment; default 1 MiB.
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        fragment_bytes: u32,
        /// Read every fragment back before a put is done.
        #[arg(long)]
        verify_upload: bool,
        /// Only OSDs with this label; may be repeated.
        #[arg(long = "label", value_name = "NAME")]
        labels: Vec<String>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Refused while a namespace uses it.
    Delete {
        name: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// New namespaces get this preset.
    Default {
        name: String,
        #[command(flatten)]
        server: ServerOptions,
    },
}

#[derive(Subcommand)]
enum WorkCommand {
    List {
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Ends a job, or forgets one that is done. What was done stays done.
    Cancel {
        job: String,
        #[command(flatten)]
        server: ServerOptions,
    },
}

#[derive(Subcommand)]
enum MaintenanceCommand {
    Show {
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Changes settings, all or none.
    Set {
        #[arg(value_name = "NAME=VALUE", required = true)]
        changes: Vec<String>,
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
            Command::Preset(command) => admin::preset(command).await,
            Command::Safety { namespace, dead, server } => {
                admin::safety(namespace, dead, &server).await
            }
            Command::Work(command) => admin::work(command).await,
            Command::Verify { namespace, existence, unreachable_is_missing, job } => {
                let kind = admin::verify_kind(existence);
                admin::start(kind, namespace, unreachable_is_missing, &job).await
            }
            Command::Rewrite { namespace, job } => {
                admin::start(TaskKind::Rewrite, namespace, false, &job).await
            }
            Command::Repair { namespace, job } => {
                admin::start(TaskKind::Repair, namespace, false, &job).await
            }
            Command::Maintenance(command) => admin::maintenance(command).await,
            Command::Bench(options) => bench::run(options).await.map_err(|fault| fault.to_string()),
        }
    })
}
