//! Management of one node: what can be asked of the engine, and the gRPC service on the data directory's socket that asks.
//!
//! Must not know: SCOs, locations, the shard's insides. The engine is behind [`Engine`]; questions cross to its thread by the
//! bounded channel of [`door`].

pub mod cli;
pub mod client;
mod convert;
pub mod door;
pub mod http;
pub mod live;
pub mod server;
pub mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use volumedriver_core::fault::Result;
use volumedriver_core::units::{ByteCount, ClusterSize, Epoch, ManifestNo, Seq, VolumeId};

use crate::config::{Config, VdiskSettings};
use crate::metrics::CacheCounts;

/// What management asks of the engine. Errors come back as they are; an unknown or a taken name is `Invalid`.
pub trait Engine: Clone + Send + Sync + 'static {
    /// Durable on the backend, open and attachable when it returns.
    fn create(&self, spec: CreateSpec) -> impl Future<Output = Result<VdiskInfo>> + Send;
    /// Sorted by name.
    fn list(&self) -> impl Future<Output = Result<Vec<VdiskInfo>>> + Send;
    fn show(&self, name: String) -> impl Future<Output = Result<VdiskInfo>> + Send;
    /// Grows only.
    fn resize(
        &self,
        name: String,
        size: ByteCount,
    ) -> impl Future<Output = Result<VdiskInfo>> + Send;
    fn delete(&self, name: String, attached: Attached) -> impl Future<Output = Result<()>> + Send;
    /// Makes what a read-only vDisk shows its content, for good; what was lost stays lost. `Invalid` when it is not read-only.
    fn accept_loss(
        &self,
        name: String,
        attached: Attached,
    ) -> impl Future<Output = Result<VdiskInfo>> + Send;
    /// Returns when everything acknowledged so far is on the backend and named by the manifest.
    fn flush(&self, name: String) -> impl Future<Output = Result<VdiskInfo>> + Send;
    fn status(&self) -> impl Future<Output = Result<EngineStatus>> + Send;
    /// Asks the backend now. An unreachable backend is an answer, not an error.
    fn backend(&self) -> impl Future<Output = Result<BackendInfo>> + Send;
    /// Probes the backend now; takes some seconds. `Invalid` where there is nothing to probe.
    fn probe(&self) -> impl Future<Output = Result<ProbeInfo>> + Send;
    /// The settings of volumes count from now on.
    fn reload(&self, config: Arc<Config>) -> impl Future<Output = Result<()>> + Send;
}

/// A vDisk to be made. The name was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSpec {
    pub name: String,
    pub size: ByteCount,
    pub cluster_size: ClusterSize,
    pub settings: VdiskSettings,
}

/// Whether a vDisk may be taken away from clients on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    Refuse,
    Disconnect,
}

/// One vDisk as management sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiskInfo {
    pub name: String,
    pub id: VolumeId,
    pub size: ByteCount,
    pub cluster_size: ClusterSize,
    pub settings: VdiskSettings,
    pub state: VdiskState,
    pub epoch: Epoch,
    pub manifest: ManifestNo,
    /// Last change acknowledged.
    pub last_seq: Seq,
    /// Last change on the backend and in the manifest.
    pub published_seq: Seq,
    /// Bytes not yet on the backend.
    pub backlog: ByteCount,
    /// Age of the oldest of them.
    pub upload_lag: Duration,
    pub connections: u64,
    pub space: SpaceInfo,
    /// Ids of the keys without which it cannot be read.
    pub keys: Vec<String>,
}

/// What was uploaded since the vDisk was opened, and the room that takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceInfo {
    pub data: ByteCount,
    pub stored: ByteCount,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VdiskState {
    Opening,
    Running,
    /// Serves reads; why not writes.
    ReadOnly(String),
    /// Serves nothing; why.
    Failed(String),
    Closing,
}

impl VdiskState {
    /// The state's name, for labels and tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Running => "running",
            Self::ReadOnly(_) => "read-only",
            Self::Failed(_) => "failed",
            Self::Closing => "closing",
        }
    }
    /// Why it is not running.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::ReadOnly(why) | Self::Failed(why) => why,
            Self::Opening | Self::Running | Self::Closing => "",
        }
    }
}

/// The engine as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// The I/O engine in use: `uring` or `psync`.
    pub io_engine: &'static str,
    pub shards: u32,
    pub buffer_capacity: ByteCount,
    pub buffer_used: ByteCount,
    pub cache: CacheInfo,
    /// Sorted by name.
    pub vdisks: Vec<VdiskInfo>,
}

/// The read cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    pub counts: CacheCounts,
    pub disk: CacheDisk,
}

/// The disk tier of the read cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheDisk {
    Off,
    /// Finds its way in what an earlier run left; already answers.
    Warming,
    Serving,
    /// Why.
    Offline(String),
    Closed,
}

/// The backend's answer to the question just asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    pub url: String,
    /// The number of volumes' namespaces, or why there was no answer.
    pub namespaces: Result<u64, String>,
    pub latency: Duration,
}

/// What a probe of the backend found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeInfo {
    pub checks: Vec<ProbeCheck>,
    /// Why a vPool would not be opened on it.
    pub refusal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeCheck {
    pub what: String,
    /// What it does instead of what it should.
    pub lie: Option<String>,
}
