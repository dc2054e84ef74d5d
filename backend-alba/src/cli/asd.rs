//! `alba asd`: one disk behind a socket, until a signal.

use std::path::PathBuf;
use std::time::Duration;

use backend_alba::server::{Address, OsdService, Place, Server, endpoint, explain};
use backend_alba::{Asd, Result};
use clap::Args;
use tonic::transport::Channel;
use volumedriver_proto::alba_osds as wire;
use wire::alba_osds_client::AlbaOsdsClient;

use super::serve::{Signals, announce, log};
use super::tls::TlsOptions;

#[derive(Args)]
pub(super) struct AsdOptions {
    /// The disk: a directory; created when missing. An empty one becomes an OSD that no backend has claimed yet.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDRESS")]
    listen: Address,
    /// The failure domain it belongs to; default: the host part of the address.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// What presets can ask for; may be repeated.
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Most bytes of fragments; default: all of its file system but a small reserve.
    #[arg(long, value_name = "BYTES")]
    capacity: Option<u64>,
    /// Operations on the disk at once.
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    threads: usize,
    /// A server to which it announces itself every few seconds, so that `alba osd list` shows it; may be repeated.
    #[arg(long = "announce", value_name = "ADDRESS")]
    servers: Vec<Address>,
    /// Where servers reach it, when that is not what it listens on.
    #[arg(long, value_name = "ADDRESS")]
    advertise: Option<Address>,
    #[command(flatten)]
    tls: TlsOptions,
}

/// After a signal, what is in flight may take so long.
const DRAIN: Duration = Duration::from_secs(20);
/// How often it announces itself.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(10);

pub(super) async fn run(options: AsdOptions) -> Result<()> {
    log("info");
    let signals = Signals::listen()?;
    let tls = options.tls.load()?;
    let node = options.node.unwrap_or_else(|| host(&options.listen));
    let place = Place::new(node, options.labels)?;
    let (data_dir, threads) = (options.data_dir, options.threads);
    let osd = Asd::open(data_dir, options.capacity, threads).await?;
    let server = Server::bind(&options.listen, tls.clone()).await?;
    let place_of = options.advertise.unwrap_or_else(|| server.address().clone());
    for to in options.servers {
        let client = AlbaOsdsClient::new(endpoint(&to, tls.as_ref())?);
        tokio::spawn(keep_announcing(client, to, place_of.to_string()));
    }
    announce(&server)?;
    let stop = async move {
        signals.end().await;
        tokio::spawn(end_anyway());
    };
    server.serve(OsdService::new(osd, place).routes(), stop).await
}

/// What is being written still is named by no manifest; whoever writes it goes elsewhere.
async fn end_anyway() {
    tokio::time::sleep(DRAIN).await;
    tracing::warn!("clients do not end what they have begun: ending without them");
    std::process::exit(0);
}

/// Until the process ends.
async fn keep_announcing(mut client: AlbaOsdsClient<Channel>, to: Address, address: String) {
    let mut was_heard = true;
    loop {
        let request = wire::AnnounceOsdRequest { address: address.clone() };
        let told = tokio::time::timeout(ANNOUNCE_EVERY, client.announce_osd(request)).await;
        let is_heard = matches!(told, Ok(Ok(_)));
        if was_heard && let Ok(Err(status)) = &told {
            tracing::warn!(%to, why = explain(status), "a server does not hear of this OSD");
        }
        was_heard = is_heard;
        tokio::time::sleep(ANNOUNCE_EVERY).await;
    }
}

fn host(address: &Address) -> String {
    match address {
        Address::Tcp(text) => text.rsplit_once(':').map_or("local", |(host, _)| host).into(),
        Address::Unix(_) => "local".into(),
    }
}
