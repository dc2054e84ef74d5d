//! `alba bench`: how fast a backend is, running or in this process, in a namespace of its own.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backend_alba::bench::{self, Check, Keep, Measured, Plan, Size, Target};
use backend_alba::preset::{Policy, Raw};
use backend_alba::server::{self, Address, Chunks, Item, MAX_MESSAGE_BYTES, endpoint};
use backend_alba::{Alba, Config, Fault, OsdPlace, Purpose, Put, Result};
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tokio_stream::iter;
use tonic::transport::Channel;
use volumedriver_proto::{alba as wire, alba_admin};
use wire::alba_client::AlbaClient;

use alba_admin::alba_admin_client::AlbaAdminClient;

use super::client::{print, print_json, table, told};
use super::serve::{Signals, log};
use super::tls::TlsOptions;

#[derive(Args)]
pub(super) struct BenchOptions {
    /// A running server: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDRESS", required_unless_present = "data_dir")]
    connect: Option<Address>,
    /// Or a backend in this process: its data directory, created when missing. No server may have it open.
    #[arg(long, value_name = "DIR", conflicts_with = "connect")]
    data_dir: Option<PathBuf>,
    /// A directory for objects of the backend in this process; may be repeated.
    #[arg(long = "osd", value_name = "DIR[,node=NAME][,label=NAME]...", requires = "data_dir")]
    osds: Vec<OsdPlace>,
    /// How the objects are stored; default: the backend's default preset.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Or by this policy alone; for a namespace that is new.
    #[arg(long, value_name = "K,M,C,X", conflicts_with = "preset")]
    policy: Option<Policy>,
    /// The objects go to this namespace and stay there, to be read by another run. Default: a new namespace, which is deleted.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    plan: Plan,
    /// One JSON document instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tls: TlsOptions,
}

/// The backend, and our namespace in it.
#[derive(Clone)]
struct Store {
    backend: Backend,
    namespace: String,
    /// That was made for this run.
    preset: Option<String>,
}

#[derive(Clone)]
enum Backend {
    Here(Alba),
    There(Channel),
}

pub(super) async fn run(options: BenchOptions) -> Result<()> {
    log("warn");
    let signals = Signals::listen()?;
    let backend = open(&options).await?;
    let store = Store::create(backend, &options).await?;
    let keep = if options.namespace.is_some() { Keep::Objects } else { Keep::Nothing };
    let target: Arc<dyn Target> = Arc::new(store.clone());
    let outcome = tokio::select! {
        outcome = measure(target, &options, keep) => outcome,
        () = signals.end() => Err(Fault::unavailable("interrupted")),
    };
    let removed = if keep == Keep::Nothing { store.remove().await } else { Ok(()) };
    if let Backend::Here(alba) = store.backend {
        alba.close().await;
    }
    outcome.and(removed)
}

async fn open(options: &BenchOptions) -> Result<Backend> {
    let tls = options.tls.load()?;
    match (&options.connect, &options.data_dir) {
        (Some(address), _) => Ok(Backend::There(endpoint(address, tls.as_ref())?)),
        (None, Some(data_dir)) => {
            let config = Config { osds: options.osds.clone(), tls, ..Config::new(data_dir) };
            Ok(Backend::Here(Alba::open(config).await?))
        }
        (None, None) => Err(Fault::invalid("give --connect or --data-dir")),
    }
}

async fn measure(target: Arc<dyn Target>, options: &BenchOptions, keep: Keep) -> Result<()> {
    let print = |text: &str| print(text).map_err(Fault::unavailable);
    if !options.json {
        print(&table(&[COLUMNS.map(String::from).to_vec()]))?;
    }
    // Each line as it is measured, so in columns of fixed width.
    let each = |measured: &Measured| {
        if !options.json {
            // The run goes on without whoever read it.
            let _ = print(&table(&[row(measured)]));
        }
    };
    let results = bench::run(target, &options.plan, keep, each).await?;
    if options.json {
        let results: Vec<Value> = results.iter().map(Measured::json).collect();
        print_json(&json!({ "results": results })).map_err(Fault::unavailable)?;
    }
    Ok(())
}

/// Each as wide as its column.
const COLUMNS: [&str; 9] = [
    "OPERATION",
    "OBJECT   ",
    "MOVED    ",
    "IN FLIGHT",
    "   MIB/S",
    " PER SECOND",
    "  P50 MS",
    "  P99 MS",
    "  MAX MS",
];

fn row(measured: &Measured) -> Vec<String> {
    let ms = |percent| format!("{:>8.2}", measured.percentile_ms(percent));
    vec![
        format!("{:9}", measured.operation.name()),
        format!("{:9}", Size(measured.object_bytes).to_string()),
        format!("{:9}", Size(measured.bytes).to_string()),
        format!("{:>9}", measured.in_flight),
        format!("{:>8.1}", measured.mib_per_second()),
        format!("{:>11.1}", measured.per_second()),
        ms(50),
        ms(99),
        ms(100),
    ]
}

fn said(status: tonic::Status) -> Fault {
    Fault::unavailable(told(status))
}

impl Store {
    async fn create(backend: Backend, options: &BenchOptions) -> Result<Self> {
        let fresh = || format!("bench-{}", uuid::Uuid::new_v4());
        let namespace = options.namespace.clone().unwrap_or_else(fresh);
        let made = options.policy.map(|_| format!("{namespace}-preset"));
        let store = Self { backend, namespace, preset: made };
        if let (Some(name), Some(policy)) = (&store.preset, options.policy) {
            store.put_preset(name, policy).await?;
        }
        let preset = store.preset.clone().or(options.preset.clone());
        let created = store.create_namespace(preset).await;
        if created.is_err() && options.namespace.is_none() {
            store.remove_preset().await?;
        }
        created.map(|()| store)
    }

    fn client(channel: &Channel) -> AlbaClient<Channel> {
        AlbaClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn put_preset(&self, name: &str, policy: Policy) -> Result<()> {
        let policy = policy.to_string();
        let policy = policy.trim_matches(['(', ')']);
        match &self.backend {
            Backend::Here(alba) => alba.put_preset(name, Raw::of(&[policy])).await.map(drop),
            Backend::There(channel) => {
                let (name, policies) = (name.into(), vec![policy.into()]);
                let preset = alba_admin::Preset { name, policies, ..Default::default() };
                let request = alba_admin::PutPresetRequest { preset: Some(preset) };
                let mut client = AlbaAdminClient::new(channel.clone());
                client.put_preset(request).await.map(drop).map_err(said)
            }
        }
    }

    async fn create_namespace(&self, preset: Option<String>) -> Result<()> {
        let namespace = self.namespace.clone();
        match &self.backend {
            Backend::Here(alba) => {
                alba.create_namespace_with(&namespace, preset.as_deref()).await.map(drop)
            }
            Backend::There(channel) => {
                let request = wire::CreateNamespaceRequest { namespace, preset };
                Self::client(channel).create_namespace(request).await.map(drop).map_err(said)
            }
        }
    }

    /// The namespace with all its objects, and the preset if it was made for it.
    async fn remove(&self) -> Result<()> {
        let namespace = self.namespace.clone();
        match &self.backend {
            Backend::Here(alba) => drop(alba.delete_namespace(&namespace).await?),
            Backend::There(channel) => {
                let request = wire::DeleteNamespaceRequest { namespace };
                Self::client(channel).delete_namespace(request).await.map_err(said)?;
            }
        }
        self.remove_preset().await
    }

    async fn remove_preset(&self) -> Result<()> {
        let Some(name) = self.preset.clone() else { return Ok(()) };
        match &self.backend {
            Backend::Here(alba) => alba.delete_preset(&name).await.map(drop),
            Backend::There(channel) => {
                let mut client = AlbaAdminClient::new(channel.clone());
                let request = alba_admin::DeletePresetRequest { name };
                client.delete_preset(request).await.map(drop).map_err(said)
            }
        }
    }
}

/// Either is read and written as a volumedriver does it.
#[async_trait]
impl Target for Store {
    async fn put(&self, name: &str, body: Vec<Bytes>) -> Result<()> {
        let namespace = &self.namespace;
        let is_new = match &self.backend {
            Backend::Here(alba) => {
                let put = alba.put_if_absent(namespace, name, body, Purpose::Data).await?;
                put == Put::Created
            }
            Backend::There(channel) => {
                let mut crc = crc32fast::Hasher::new();
                body.iter().for_each(|piece| crc.update(piece));
                let header = wire::PutHeader {
                    namespace: namespace.clone(),
                    name: name.into(),
                    len: body.iter().map(|piece| piece.len() as u64).sum(),
                    crc32: crc.finalize(),
                    metadata: false,
                };
                let chunks = iter(Chunks::of(body));
                let answer = server::put(channel, header, chunks).await.map_err(said)?;
                answer.outcome() == wire::PutOutcome::Created
            }
        };
        let exists = || Fault::invalid(format!("object {name:?} is there already"));
        if is_new { Ok(()) } else { Err(exists()) }
    }

    async fn get(&self, name: &str, (offset, len): (u64, u64), check: &mut Check) -> Result<()> {
        match &self.backend {
            Backend::Here(alba) => {
                let missing = || Fault::not_found(format!("object {name:?} is gone"));
                let found = alba.get_range(&self.namespace, name, offset, len).await?;
                check.take(&found.ok_or_else(missing)?)
            }
            Backend::There(channel) => {
                let (namespace, name) = (self.namespace.clone(), name.to_string());
                let request = wire::GetRangeRequest { namespace, name, offset, len: Some(len) };
                let mut parts = server::get_range(channel, request).await.map_err(said)?;
                while let Some(part) = parts.next().await.map_err(said)? {
                    match part {
                        Item::Bytes(bytes) => check.take(&bytes)?,
                        Item::Message(message) => check.take(&message.chunk)?,
                    }
                }
                Ok(())
            }
        }
    }

    async fn delete(&self, name: &str) -> Result<()> {
        match &self.backend {
            Backend::Here(alba) => alba.delete(&self.namespace, name).await.map(drop),
            Backend::There(channel) => {
                let (namespace, name) = (self.namespace.clone(), name.to_string());
                let request = wire::DeleteRequest { namespace, name };
                Self::client(channel).delete(request).await.map(drop).map_err(said)
            }
        }
    }

    async fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().cloned().unwrap_or_default();
            let (page, more) = match &self.backend {
                Backend::Here(alba) => {
                    let page = alba.list(&self.namespace, prefix, &after, 0).await?;
                    (page.names, page.more)
                }
                Backend::There(channel) => {
                    let (namespace, prefix) = (self.namespace.clone(), prefix.to_string());
                    let request = wire::ListRequest { namespace, prefix, after, limit: 0 };
                    let answer = Self::client(channel).list(request).await.map_err(said)?;
                    let page = answer.into_inner();
                    (page.names, page.more)
                }
            };
            names.extend(page);
            if !more {
                return Ok(names);
            }
        }
    }
}
