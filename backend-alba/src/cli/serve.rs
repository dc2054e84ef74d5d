//! `alba serve`: opens the backend, answers until a signal, finishes what is in flight.

use std::io::{self, Write as _};

use backend_alba::server::{AlbaService, Server};
use backend_alba::{Alba, Config, Fault, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::ServeOptions;

pub(super) async fn run(options: ServeOptions) -> Result<()> {
    log("info");
    let signals = Signals::listen()?;
    let tls = options.tls.load()?;
    let ServeOptions { data_dir, nsm, osds, no_osd, osd_capacity, listen: address, .. } = options;
    let config = Config {
        nsm,
        only_claimed: no_osd,
        tls: tls.clone(),
        osd_capacity_bytes: osd_capacity,
        ..Config::new(data_dir)
    };
    let config = config.with_osds(osds);
    let alba = Alba::open(config).await?;
    let server = Server::bind(&address, tls).await?;
    announce(&server)?;
    server.serve(AlbaService::new(alba.clone()).routes(), signals.end()).await?;
    alba.close().await;
    Ok(())
}

/// To stderr: what RUST_LOG says, or else this.
pub(super) fn log(default: &str) {
    let usual = || EnvFilter::new(format!("{default},aws_config=warn"));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| usual());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

/// What ends a server.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    pub(super) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|e| Fault::io("signals cannot be received", e));
        let terminate = listen(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for one.
    pub(super) async fn end(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tracing::info!("finishing what is in flight");
    }
}

/// The one line on stdout that scripts wait for.
pub(super) fn announce(server: &Server) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready {}", server.address())
        .and_then(|()| out.flush())
        .map_err(|e| Fault::io("cannot write to stdout", e))
}
