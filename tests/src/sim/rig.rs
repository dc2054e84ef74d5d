//! A test bench for scripted scenarios: one volume in one universe, one life after another, told what to do. During a life
//! a second host may take the volume over ([`Live::take_over`]); from then on that one serves it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use volumedriver::config::settings::VdiskSettings;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::names;
use volumedriver_core::request::{Fua, Reply, Request};
use volumedriver_core::units::{ByteCount, ByteOffset, ClusterSize, NodeId, VolumeId};

use super::engine::{Engine, Volume};
use super::guest::{Excuse, Guest};
use super::plan::{BufferSizes, VolumePlan};
use super::{Findings, runtime, take_panics, watch_panics};
use crate::model::{Place, Span};
use crate::world::Universe;
use crate::world::faults::{Crash, Faults};

/// Bytes and sectors of a cluster of the bench's volume.
pub const CLUSTER: u64 = 4096;
const SECTORS: usize = 8;
/// A scripted life takes less virtual time than this.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// The bench.
pub struct Rig {
    pub universe: Universe,
    pub guest: Rc<Guest>,
    pub sizes: BufferSizes,
    pub node: NodeId,
    findings: Findings,
    created: Rc<Cell<bool>>,
    kept: Place,
    /// The host that serves the volume, and its guest once it has taken it over.
    serving: usize,
    heir: Rc<RefCell<Option<Rc<Guest>>>>,
    runtime: Runtime,
}

/// What a script works with: the opened volume and its guest.
pub struct Live {
    pub engine: Engine,
    pub volume: Rc<Volume>,
    pub guest: Rc<Guest>,
    pub universe: Universe,
    /// The host that serves it.
    pub host: usize,
    nodes: [NodeId; 2],
    sizes: BufferSizes,
    heir: Rc<RefCell<Option<Rc<Guest>>>>,
}

/// Identity of the second host.
const OTHER_NODE: NodeId = NodeId([2; 16]);

/// How a life ended.
#[derive(Debug)]
pub enum End<T> {
    Finished(T),
    Crashed,
    /// The volume could not be opened.
    Refused(Fault),
}

impl<T> End<T> {
    /// The script's result.
    #[track_caller]
    pub fn finished(self) -> T {
        match self {
            Self::Finished(value) => value,
            Self::Crashed => panic!("the life ended in a crash"),
            Self::Refused(fault) => panic!("the volume did not open: {fault}"),
        }
    }
}

/// Small sizes: uploads, seals and recycling happen within a few megabytes.
#[must_use]
pub fn small_sizes() -> BufferSizes {
    BufferSizes {
        segment_bytes: 1 << 20,
        segment_count: 4,
        memory_bytes: 2 << 20,
        batch_bytes: 64 << 10,
        cache_bytes: 0,
        ssd_bytes: 0,
    }
}

/// Settings under which nothing is uploaded unless asked for.
#[must_use]
pub fn quiet_settings() -> VdiskSettings {
    VdiskSettings {
        sco_size: ByteCount(1 << 20),
        upload_max_delay: Duration::from_secs(24 * 3600),
        buffer_share_percent: 100,
        readahead: ByteCount(0),
        ..VdiskSettings::default()
    }
}

impl Rig {
    /// A bench with a volume of 4 MiB (not yet made).
    #[must_use]
    pub fn new(seed: u64, faults: Faults, settings: VdiskSettings) -> Self {
        watch_panics();
        take_panics();
        let plan = VolumePlan {
            id: VolumeId([0x5a; 16]),
            name: "disk".to_string(),
            size: 4 << 20,
            max_size: 8 << 20,
            cluster_size: ClusterSize::DEFAULT,
            settings,
        };
        let runtime = runtime();
        let universe = {
            let _inside = runtime.enter();
            let universe = Universe::new(seed, faults);
            universe.add_host();
            universe
        };
        let findings = Findings::default();
        let excused: Excuse = Rc::new(|_, _| false);
        Self {
            guest: Rc::new(Guest::new(plan, 1, findings.clone(), excused)),
            universe,
            sizes: small_sizes(),
            node: NodeId([1; 16]),
            findings,
            created: Rc::default(),
            kept: Place::Journal,
            serving: 0,
            heir: Rc::default(),
            runtime,
        }
    }

    /// What must have survived the last crash, from now on.
    pub fn expect(&mut self, kept: Place) {
        self.kept = kept;
    }

    /// The other host serves the volume from the next life on; what is left on it of the volume is out of date.
    pub fn change_host(&mut self) {
        self.serving = 1 - self.serving;
        self.kept = Place::Backend;
    }

    fn nodes(&self) -> [NodeId; 2] {
        [self.node, OTHER_NODE]
    }

    /// One life that nothing interrupts, then this crash.
    pub fn live<T>(&mut self, crash: Crash, script: impl AsyncFnOnce(&Live) -> T) -> End<T> {
        self.live_until(None, crash, script)
    }

    /// One life that crashes at its n-th gate, if it gets that far.
    pub fn live_until<T>(
        &mut self,
        gates: Option<u64>,
        crash: Crash,
        script: impl AsyncFnOnce(&Live) -> T,
    ) -> End<T> {
        let _inside = self.runtime.enter();
        self.guest.reset();
        if let Some(gates) = gates {
            self.universe.crash_after(self.serving, gates);
        }
        let end = {
            let local = LocalSet::new();
            let life = async {
                tokio::select! {
                    biased;
                    () = self.universe.crashed(|| self.serving_now()) => End::Crashed,
                    end = tokio::time::timeout(PATIENCE, self.work(script)) => {
                        end.expect("the script waits for ever")
                    }
                }
            };
            let end = local.block_on(&self.runtime, life);
            self.universe.crash_now();
            end
        };
        self.serving = self.serving_now();
        if let Some(heir) = self.heir.take() {
            self.guest = heir;
        }
        for host in 0..2 {
            self.universe.restart_host(host, crash);
        }
        if crash == Crash::DiscardLocal {
            self.kept = Place::Backend;
            self.node = NodeId(self.universe.state().rng.bytes16());
        }
        self.check();
        end
    }

    fn serving_now(&self) -> usize {
        if self.heir.borrow().is_some() { 1 - self.serving } else { self.serving }
    }

    async fn work<T>(&self, script: impl AsyncFnOnce(&Live) -> T) -> End<T> {
        let host = self.serving;
        let (world, node) = (self.universe.world_of(host), self.nodes()[host]);
        let engine = match Engine::open(world, node, self.sizes).await {
            Ok(engine) => engine,
            Err(fault) => return End::Refused(fault),
        };
        match self.open(&engine).await {
            Ok(volume) => {
                engine.shard.settle();
                let (guest, universe) = (self.guest.clone(), self.universe.clone());
                let (nodes, sizes, heir) = (self.nodes(), self.sizes, self.heir.clone());
                let live = Live { engine, volume, guest, universe, host, nodes, sizes, heir };
                End::Finished(script(&live).await)
            }
            Err(fault) => End::Refused(fault),
        }
    }

    async fn open(&self, engine: &Engine) -> Result<Rc<Volume>> {
        while !self.created.get() {
            match engine.create(&self.guest.plan).await {
                Ok(volume) => {
                    self.created.set(true);
                    return Ok(volume);
                }
                Err(fault) if fault.kind == Kind::Unavailable => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(fault) => return Err(fault),
            }
        }
        engine.open_volume(&self.guest.plan).await
    }

    /// The volume's objects are there: it is opened, not made.
    pub fn already_made(&self) {
        self.created.set(true);
    }

    /// Opens again and checks what the last crash left against P1; then this crash.
    pub fn verify(&mut self, crash: Crash) {
        let kept = std::mem::replace(&mut self.kept, Place::Journal);
        let fine =
            self.live(crash, async |live| live.guest.recover(&live.volume, kept).await).finished();
        self.check();
        assert!(fine, "the volume could not be read");
    }

    /// Nothing was found wrong so far.
    pub fn check(&self) {
        let mut found = self.findings.all();
        found.extend(self.universe.violations());
        found.extend(take_panics());
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[must_use]
    pub fn namespace(&self) -> String {
        names::namespace(self.guest.plan.id)
    }

    /// Names of the objects of the volume with this prefix.
    #[must_use]
    pub fn objects(&self, prefix: &str) -> Vec<String> {
        let all = self.universe.objects().into_iter().map(|(_, name, _)| name);
        all.filter(|name| name.starts_with(prefix)).collect()
    }
}

impl Live {
    /// Opens the volume on the other host.
    pub async fn open_elsewhere(&self) -> Result<(Engine, Rc<Volume>)> {
        let host = 1 - self.host;
        let world = self.universe.world_of(host);
        let engine = Engine::open(world, self.nodes[host], self.sizes).await?;
        let volume = engine.open_volume(&self.guest.plan).await?;
        engine.shard.settle();
        Ok((engine, volume))
    }

    /// The same with the volume as it was opened anew.
    #[must_use]
    pub fn with_volume(&self, volume: Rc<Volume>) -> Self {
        let (engine, guest) = (self.engine.clone(), self.guest.clone());
        let (universe, heir) = (self.universe.clone(), self.heir.clone());
        let (host, nodes, sizes) = (self.host, self.nodes, self.sizes);
        Self { engine, volume, guest, universe, host, nodes, sizes, heir }
    }

    /// The other host takes the volume over. This side's guest stands being told so from now on.
    pub async fn take_over(&self) -> Result<Self> {
        let host = 1 - self.host;
        let (engine, volume) = self.open_elsewhere().await?;
        let nothing: Excuse = Rc::new(|_, _| false);
        let guest = Rc::new(self.guest.taken_over(nothing));
        *self.guest.excused.borrow_mut() =
            Rc::new(|_, fault| matches!(fault.kind, Kind::Fenced | Kind::Closed));
        *self.heir.borrow_mut() = Some(guest.clone());
        assert!(guest.recover(&volume, Place::Backend).await, "what was taken over is wrong");
        let (universe, sizes, heir) = (self.universe.clone(), self.sizes, self.heir.clone());
        Ok(Self { engine, volume, guest, universe, host, nodes: self.nodes, sizes, heir })
    }

    /// Writes clusters through the guest's model.
    pub async fn write(&self, first: usize, count: usize) {
        self.guest.write(&self.volume, clusters(first, count), Fua::No).await;
    }
    pub async fn write_forced(&self, first: usize, count: usize) {
        self.guest.write(&self.volume, clusters(first, count), Fua::Yes).await;
    }
    pub async fn flush(&self) {
        self.guest.flush(&self.volume).await;
    }
    pub async fn drain(&self) {
        assert!(self.guest.drain(&self.volume).await, "nothing was found wrong, nor uploaded");
    }
    /// Reads clusters and checks them.
    pub async fn read(&self, first: usize, count: usize) {
        self.guest.read(&self.volume, clusters(first, count)).await;
    }
    /// Reads clusters without the model.
    pub async fn read_raw(&self, first: usize, count: usize) -> Result<Vec<u8>> {
        let (offset, len) = (ByteOffset(first as u64 * CLUSTER), ByteCount(count as u64 * CLUSTER));
        match self.volume.submit(Request::Read { offset, len }).await? {
            Reply::Data(pieces) => Ok(pieces.concat()),
            other => Err(Fault::bug(format!("a read answered {other:?}"))),
        }
    }
    /// Writes one cluster without the model.
    pub async fn write_raw(&self, cluster: usize, byte: u8) -> Result<()> {
        let data = Bytes::from(vec![byte; CLUSTER as usize]);
        let offset = ByteOffset(cluster as u64 * CLUSTER);
        self.volume.submit(Request::Write { offset, data, fua: Fua::No }).await.map(|_| ())
    }
}

#[must_use]
pub fn clusters(first: usize, count: usize) -> Span {
    Span { first: first * SECTORS, count: count * SECTORS }
}
