//! `alba serve`: opens the backend, answers until a signal, finishes what is in flight.

use std::io::{self, Write as _};

use backend_alba::server::Server;
use backend_alba::{Alba, Config, Fault, Result};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::ServeOptions;

pub(super) async fn run(options: ServeOptions) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let listen = |kind| signal(kind).map_err(|e| Fault::io("signals cannot be received", e));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let ServeOptions { data_dir, nsm, osds, osd_capacity, listen: address } = options;
    let config = Config { nsm, osds, osd_capacity_bytes: osd_capacity, ..Config::new(data_dir) };
    let alba = Alba::open(config).await?;
    let server = Server::bind(&address).await?;
    announce(&server)?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("finishing what is in flight");
    };
    server.serve(alba.clone(), stop).await?;
    alba.close().await;
    Ok(())
}

/// The one line on stdout that scripts wait for.
fn announce(server: &Server) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready {}", server.address())
        .and_then(|()| out.flush())
        .map_err(|e| Fault::io("cannot write to stdout", e))
}
