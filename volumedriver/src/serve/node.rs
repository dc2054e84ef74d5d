//! The daemon's node: one shard's thread with its volumes and NBD listeners, and the service threads' doors to it.

use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use volumedriver_core::fault::{Fault, Result};

use super::host::Host;
use super::probing::{self, Opened, Prober};
use super::{Ground, Node, Options};
use crate::admin::door::{Command, Door, door};
use crate::codec::KeyRing;
use crate::config::{Config, Endpoint, IoEngine};
use crate::io::{self, Requested};
use crate::local::{self, Pages, Registry};
use crate::metrics::{Metrics, raise};
use crate::nbd::{self, Budget, Limits, Listener, Server, SessionStats};
use crate::shard::{Desk, Directory};
use crate::store::AnyStore;
use volumedriver_core::units::NodeId;

/// See the module's header.
pub struct ShardNode {
    door: Door,
    endpoints: Vec<String>,
    stop: oneshot::Sender<Duration>,
    ended: tokio::sync::Mutex<oneshot::Receiver<Result<()>>>,
    thread: JoinHandle<()>,
}

/// Serves until a signal says otherwise. Not generic, so that all of the engine is compiled here, once.
pub fn run(options: Options) -> Result<()> {
    super::run::<ShardNode>(options)
}

/// What the service threads prepare for the shard's thread.
pub(super) struct Kit {
    pub config: Arc<Config>,
    pub node: NodeId,
    pub engine: io::Engine,
    pub store: AnyStore,
    pub prober: Prober,
    pub pages: Pages,
    pub registry: Registry,
    pub keys: Arc<KeyRing>,
    pub metrics: Arc<Metrics>,
    pub commands: mpsc::Receiver<Command>,
    pub started: oneshot::Sender<Result<Vec<String>>>,
    pub stop: oneshot::Receiver<Duration>,
}

impl Node for ShardNode {
    type Engine = Door;

    async fn start(ground: &Ground) -> Result<Self> {
        let config = ground.config.clone();
        let requested = match config.node.io {
            IoEngine::Auto => Requested::Auto,
            IoEngine::Uring => Requested::Uring,
            IoEngine::Psync => Requested::Psync,
        };
        let engine = io::choose(requested)?;
        let pages_dir = ground.data.path().join(super::PAGES_DIR);
        super::datadir::create_dir(&pages_dir)?;
        let (pages, registry) = local::open(&pages_dir).await?;
        let Opened { store, prober } =
            probing::open(&config, ground.data.path(), &ground.metrics.store).await?;
        let keys = load_keys(&config).await?;
        let (door, commands) = door();
        let (started, starting) = oneshot::channel();
        let (stop, stopping) = oneshot::channel();
        let (done, ended) = oneshot::channel();
        let kit = Kit {
            node: ground.data.node(),
            metrics: ground.metrics.clone(),
            config,
            engine,
            store,
            prober,
            pages,
            registry,
            keys,
            commands,
            started,
            stop: stopping,
        };
        let thread = std::thread::Builder::new().name("shard-0".to_owned());
        let run = move || {
            let result = io::run(engine, run_shard(kit)).and_then(|inner| inner);
            // The node may be gone already: then nobody asks how it ended.
            let _unheard = done.send(result);
        };
        let thread = thread
            .spawn(run)
            .map_err(|e| Fault::unavailable("a thread cannot be started").because(e))?;
        let endpoints = match starting.await {
            Ok(Ok(endpoints)) => endpoints,
            Ok(Err(fault)) => {
                // Not before the thread has put everything down: the process may end right after.
                put_down(thread).await;
                return Err(fault);
            }
            Err(_) => {
                put_down(thread).await;
                return Err(shard_end(ended.await));
            }
        };
        Ok(Self { door, endpoints, stop, ended: tokio::sync::Mutex::new(ended), thread })
    }

    fn engine(&self) -> Door {
        self.door.clone()
    }

    fn nbd_endpoints(&self) -> Vec<String> {
        self.endpoints.clone()
    }

    async fn failed(&self) -> Fault {
        shard_end((&mut *self.ended.lock().await).await)
    }

    async fn drain(self, within: Duration) -> Result<()> {
        let outcome = match self.stop.send(within) {
            Ok(()) => match self.ended.into_inner().await {
                Ok(result) => result,
                Err(_) => Err(Fault::bug("the shard's thread panicked")),
            },
            Err(_) => Err(Fault::bug("the shard's thread had ended before")),
        };
        put_down(self.thread).await;
        outcome
    }
}

/// The keys that the configuration names.
async fn load_keys(config: &Config) -> Result<Arc<KeyRing>> {
    let sources = config.key_sources();
    let loaded = tokio::task::spawn_blocking(move || KeyRing::load(&sources)).await;
    loaded.map_err(|e| Fault::bug("keys were not read to the end").because(e))?.map(Arc::new)
}

/// Waits until the thread is gone, what it kept for itself included: the databases in there must be closed before the
/// process runs the clean-up at its exit.
async fn put_down(thread: JoinHandle<()>) {
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    if !matches!(joined, Ok(Ok(()))) {
        tracing::error!("the shard's thread panicked");
    }
}

fn shard_end(ended: Result<Result<()>, oneshot::error::RecvError>) -> Fault {
    match ended {
        Ok(Err(fault)) => fault,
        Ok(Ok(())) => Fault::bug("the shard's thread ended by itself"),
        Err(_) => Fault::bug("the shard's thread panicked"),
    }
}

/// The shard's thread from start to end.
async fn run_shard(kit: Kit) -> Result<()> {
    let directory = Directory::default();
    let (desk, crossing) = Desk::new(directory.clone());
    tokio::task::spawn_local(crossing);
    let Kit { started, stop, commands, .. } = kit;
    let kit = super::host::Kit {
        config: kit.config,
        node: kit.node,
        engine: kit.engine,
        store: kit.store,
        prober: kit.prober,
        pages: kit.pages,
        registry: kit.registry,
        keys: kit.keys,
        metrics: kit.metrics,
    };
    let (config, metrics) = (kit.config.clone(), kit.metrics.clone());
    let up = async {
        let host = Host::open(kit, desk, directory.clone()).await?;
        let (quit, quitting) = watch::channel(false);
        let (endpoints, sessions) = listen(&config, directory, quitting, metrics).await?;
        Ok((host, quit, endpoints, sessions))
    };
    let (host, quit, endpoints, sessions) = match up.await {
        Ok((host, quit, endpoints, sessions)) => (host, quit, endpoints, sessions),
        Err(fault) => {
            // Nobody waits any more if the daemon was told to stop meanwhile.
            let _unheard = started.send(Err(fault));
            return Ok(());
        }
    };
    let _unheard = started.send(Ok(endpoints));
    tokio::task::spawn_local(host.clone().answer(commands));
    let within = stop.await.unwrap_or_default();
    let began = std::time::Instant::now();
    let _all_gone = quit.send(true);
    for session in sessions {
        if session.await.is_err() {
            tracing::error!("an NBD listener panicked");
        }
    }
    host.close(within.saturating_sub(began.elapsed())).await
}

type Sessions = Vec<tokio::task::JoinHandle<()>>;

async fn listen(
    config: &Config,
    directory: Directory,
    quitting: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
) -> Result<(Vec<String>, Sessions)> {
    let limits = Limits {
        connections: config.nbd.connections,
        requests: config.nbd.inflight_requests,
        held_bytes: config.nbd.inflight.0 as usize,
        handshake: config.nbd.handshake_timeout,
        ..Limits::default()
    };
    let tls = nbd::Tls::load(&config.nbd.tls)?;
    let stats = Rc::new(SessionStats::default());
    let budget = Budget::new(usize::try_from(config.nbd.memory.0).unwrap_or(usize::MAX));
    tokio::task::spawn_local(publish(stats.clone(), budget.clone(), metrics));
    let server = Rc::new(Server { exports: directory, tls, limits, stats, budget });
    let (mut endpoints, mut sessions) = (Vec::new(), Vec::new());
    for endpoint in &config.nbd.listen {
        let listener = bind(endpoint).await.map_err(|f| f.about(format!("NBD on {endpoint}")))?;
        endpoints.push(listener.name().to_owned());
        let serving = nbd::serve(listener, server.clone(), quitting.clone());
        sessions.push(tokio::task::spawn_local(serving));
    }
    Ok((endpoints, sessions))
}

/// Brings what sessions count to where it is scraped.
async fn publish(stats: Rc<SessionStats>, budget: Rc<Budget>, metrics: Arc<Metrics>) {
    let nbd = &metrics.nbd;
    loop {
        nbd.connections.set(i64::try_from(stats.connections.get()).unwrap_or(i64::MAX));
        nbd.memory.set(i64::try_from(budget.taken()).unwrap_or(i64::MAX));
        raise(&nbd.opened, stats.accepted.get());
        raise(&nbd.turned_away, stats.turned_away.get());
        raise(&nbd.handshakes_failed, stats.handshakes_failed.get());
        raise(&nbd.protocol_errors, stats.protocol_errors.get());
        raise(&nbd.stalled, stats.stalled.get());
        tokio::time::sleep(super::host::GAUGE_PERIOD).await;
    }
}

async fn bind(endpoint: &Endpoint) -> Result<Listener> {
    match endpoint {
        Endpoint::Unix(path) => Listener::unix(path),
        Endpoint::Tcp { host, port } => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let cannot = |e| Fault::invalid(format!("{host} cannot be resolved")).because(e);
            let mut found = tokio::net::lookup_host((host, *port)).await.map_err(cannot)?;
            let address = found.next();
            let address =
                address.ok_or_else(|| Fault::invalid(format!("{host} has no address")))?;
            Listener::tcp(address).await
        }
    }
}
