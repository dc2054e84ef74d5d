//! A test bench for scripted scenarios: one volume in one universe, one life after another, told what to do.

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
use super::guest::Guest;
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
    created: Rc<std::cell::Cell<bool>>,
    kept: Place,
    runtime: Runtime,
}

/// What a script works with: the opened volume and its guest.
pub struct Live {
    pub engine: Engine,
    pub volume: Rc<Volume>,
    pub guest: Rc<Guest>,
    pub universe: Universe,
}

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
        cache_disk_bytes: 0,
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
            Universe::new(seed, faults)
        };
        let findings = Findings::default();
        let excused: Rc<dyn Fn(&Fault) -> bool> = Rc::new(|_| false);
        Self {
            guest: Rc::new(Guest::new(plan, 1, findings.clone(), excused)),
            universe,
            sizes: small_sizes(),
            node: NodeId([1; 16]),
            findings,
            created: Rc::default(),
            kept: Place::Journal,
            runtime,
        }
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
            self.universe.crash_after(gates);
        }
        let end = {
            let local = LocalSet::new();
            let life = async {
                tokio::select! {
                    biased;
                    () = self.universe.crashed() => End::Crashed,
                    end = tokio::time::timeout(PATIENCE, self.work(script)) => {
                        end.expect("the script waits for ever")
                    }
                }
            };
            let end = local.block_on(&self.runtime, life);
            self.universe.crash_now();
            end
        };
        self.universe.restart(crash);
        if crash == Crash::DiscardLocal {
            self.kept = Place::Backend;
            self.node = NodeId(self.universe.state().rng.bytes16());
        }
        self.check();
        end
    }

    async fn work<T>(&self, script: impl AsyncFnOnce(&Live) -> T) -> End<T> {
        let engine = match Engine::open(self.universe.world(), self.node, self.sizes).await {
            Ok(engine) => engine,
            Err(fault) => return End::Refused(fault),
        };
        match self.open(&engine).await {
            Ok(volume) => {
                let (guest, universe) = (self.guest.clone(), self.universe.clone());
                End::Finished(script(&Live { engine, volume, guest, universe }).await)
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
        self.guest.drain(&self.volume).await;
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
