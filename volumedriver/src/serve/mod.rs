//! The daemon from its start to its end.
//!
//! 1. configuration, lock and identity of the data directory
//! 2. store, shard and NBD listeners: a [`Node`]
//! 3. management socket, metrics over HTTP
//! 4. `ready`
//! 5. signals: SIGHUP reads the configuration again, SIGTERM and SIGINT drain and end, a second one ends at once

pub mod datadir;
mod host;
mod identity;
mod inspecting;
pub mod node;
mod probing;
#[cfg(test)]
mod tests;
mod world;

use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use volumedriver_core::fault::{Fault, Result};

use crate::admin::live::{LiveConfig, Source};
use crate::admin::{Engine, http, server, socket};
use crate::config::Config;
use crate::io;
use crate::metrics::Metrics;
use datadir::{CachePlace, DataDir, LocalState, PAGES_DIR, Places};

pub use inspecting::inspect;

/// How the daemon was started.
#[derive(Clone, Debug)]
pub struct Options {
    pub source: Source,
    pub local: LocalState,
    /// How long stopping may take to bring data to the backend.
    pub drain: Duration,
}

/// What a node is built on.
pub struct Ground {
    pub config: Arc<Config>,
    pub data: DataDir,
    pub metrics: Arc<Metrics>,
}

/// Store, shard and NBD listeners of a daemon.
pub trait Node: Sized {
    type Engine: Engine;
    /// Accepts NBD clients when it returns.
    fn start(ground: &Ground) -> impl Future<Output = Result<Self>>;
    fn engine(&self) -> Self::Engine;
    /// Where clients really connect.
    fn nbd_endpoints(&self) -> Vec<String>;
    /// Done when the node cannot go on.
    fn failed(&self) -> impl Future<Output = Fault>;
    /// Takes no more clients, finishes requests in flight, journals everything, uploads what `within` allows.
    fn drain(self, within: Duration) -> impl Future<Output = Result<()>>;
}

/// Serves until a signal says otherwise.
pub fn run<N: Node>(options: Options) -> Result<()> {
    let config = Arc::new(options.source.load()?);
    let pages = config.data_dir.join(PAGES_DIR);
    let derived: [&Path; 1] = [&pages];
    let cache = CachePlace { directory: &config.cache.directory, is_used: config.cache.ssd.0 > 0 };
    let places = Places { buffer: &config.buffer.directory, cache, derived: &derived };
    let data = DataDir::open(&config.data_dir, config.node.shards, options.local, places)?;
    raise_descriptor_limit(config.nbd.connections);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.node.service_threads)
        .thread_name("service")
        .enable_all()
        .build()
        .map_err(|e| Fault::unavailable("threads cannot be started").because(e))?;
    let ground = Ground { config, data, metrics: Arc::new(Metrics::new()) };
    runtime.block_on(serve::<N>(options, ground))
}

/// File descriptors for databases, segments and objects, beside one for each connection.
const OTHER_DESCRIPTORS: u64 = 2048;

/// Takes as many file descriptors as the system grants, and says when that is too few for what is configured.
fn raise_descriptor_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of file descriptors cannot be raised");
        }
    }
    let needed = OTHER_DESCRIPTORS + connections as u64;
    if let Some(granted) = getrlimit(Resource::Nofile).current.filter(|granted| *granted < needed) {
        tracing::warn!(
            granted,
            needed,
            "too few file descriptors for [nbd] connections_count = {connections}: when they run out, new clients wait; \
             raise the limit (ulimit -n, LimitNOFILE=)"
        );
    }
}

async fn serve<N: Node>(options: Options, ground: Ground) -> Result<()> {
    let mut signals = Signals::listen()?;
    let live = Arc::new(LiveConfig::new(options.source, ground.config.clone()));
    let node = N::start(&ground).await?;
    let (stop, stopped) = watch::channel(());
    let mut services = Services::new();
    let started = start_services(&mut services, &ground, &node, &live, &stopped).await;
    let outcome = match started.and_then(|()| announce(&node.nbd_endpoints())) {
        Ok(()) => attend(&node, &live, &mut signals, &mut services).await,
        Err(fault) => Err(fault),
    };
    // Services see the sender gone and end; what they are doing is finished while the node drains.
    drop(stop);
    tracing::info!(seconds = options.drain.as_secs(), "draining");
    let drained = tokio::select! {
        drained = node.drain(options.drain) => drained,
        () = signals.stop() => {
            eprintln!("volumedriver: stopped at once by a second signal");
            io::exit_now(1);
        }
    };
    services.shutdown().await;
    // An earlier failure says more than what follows from it.
    outcome.and(drained)
}

/// Until a signal says "stop" or something fails.
async fn attend<N: Node>(
    node: &N,
    live: &LiveConfig,
    signals: &mut Signals,
    services: &mut Services,
) -> Result<()> {
    loop {
        tokio::select! {
            request = signals.next() => match request {
                SignalRequest::Reload => reload(live, &node.engine()).await,
                SignalRequest::Stop => return Ok(()),
            },
            fault = node.failed() => return Err(fault),
            Some(ended) = services.join_next() => return Err(service_fault(ended)),
        }
    }
}

type Services = JoinSet<Result<()>>;

async fn start_services<N: Node>(
    services: &mut Services,
    ground: &Ground,
    node: &N,
    live: &Arc<LiveConfig>,
    stopped: &watch::Receiver<()>,
) -> Result<()> {
    let listener = socket::bind(&socket::path(ground.data.path()))?;
    let service = server::Service {
        engine: node.engine(),
        config: live.clone(),
        metrics: ground.metrics.clone(),
        node: ground.data.node(),
        nbd_endpoints: node.nbd_endpoints(),
        started: Instant::now(),
    };
    services.spawn(server::serve(listener, service, stop_of(stopped)));
    if let Some(address) = ground.config.metrics.listen {
        let listener = TcpListener::bind(address).await.map_err(|e| {
            Fault::unavailable(format!("[metrics] listen = {address}: cannot listen there"))
                .because(e)
        })?;
        services.spawn(http::serve(
            listener,
            node.engine(),
            ground.metrics.clone(),
            stop_of(stopped),
        ));
    }
    Ok(())
}

/// Done when the sender is gone.
fn stop_of(stopped: &watch::Receiver<()>) -> impl Future<Output = ()> + Send + 'static {
    let mut stopped = stopped.clone();
    async move { while stopped.changed().await.is_ok() {} }
}

fn service_fault(ended: Result<Result<()>, tokio::task::JoinError>) -> Fault {
    match ended {
        Ok(Ok(())) => Fault::bug("a service ended by itself"),
        Ok(Err(fault)) => fault,
        Err(panic) => Fault::bug("a service panicked").because(panic),
    }
}

/// The one line on stdout that scripts wait for.
fn announce(endpoints: &[String]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready {}", endpoints.join(" "))
        .and_then(|()| out.flush())
        .map_err(|e| Fault::unavailable("cannot write to stdout").because(e))
}

async fn reload(live: &LiveConfig, engine: &impl Engine) {
    match live.reload(engine).await {
        Ok(reloaded) => {
            for change in &reloaded.applied {
                tracing::info!(change.section, change.key, change.new, "configuration: applied");
            }
            for change in &reloaded.needs_restart {
                tracing::warn!(
                    change.section,
                    change.key,
                    change.new,
                    "configuration: needs a restart"
                );
            }
        }
        Err(fault) => {
            tracing::error!("configuration not reloaded, everything stays as it was: {fault}")
        }
    }
}

enum SignalRequest {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|e| Fault::unavailable("signals cannot be received").because(e))
        };
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.hangup.recv() => SignalRequest::Reload,
            _ = self.terminate.recv() => SignalRequest::Stop,
            _ = self.interrupt.recv() => SignalRequest::Stop,
        }
    }

    /// Done at the next signal that means "stop".
    async fn stop(&mut self) {
        while let SignalRequest::Reload = self.next().await {}
    }
}
