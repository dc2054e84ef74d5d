//! The buffer over a disk that crashes, and over the real one with both engines.

mod crash;
mod disk;
mod real;
mod recovery;

use std::time::{Duration, Instant};

use bytes::Bytes;
use volumedriver_core::fault::Result;
use volumedriver_core::units::{
    ClusterAddr, ClusterCrc, ClusterSize, Epoch, NodeId, PageNo, ScoSeq, Seq, TlogNo, VolumeId,
};

use super::*;
use crate::world::{ObjectInfo, ObjectStore, PageBatch, PageStore, Purpose, Put};

/// A world with nothing but a disk and a clock.
#[derive(Clone)]
pub struct DiskWorld<D> {
    pub disk: D,
    pub start: Instant,
}

impl<D: Disk> DiskWorld<D> {
    pub fn new(disk: D) -> Self {
        Self { disk, start: Instant::now() }
    }
}

impl<D: Disk> World for DiskWorld<D> {
    type Disk = D;
    type Store = Nothing;
    type Pages = Nothing;

    fn disk(&self) -> &D {
        &self.disk
    }
    fn store(&self) -> &Nothing {
        &Nothing
    }
    fn pages(&self) -> &Nothing {
        &Nothing
    }
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
    fn sleep(&self, how_long: Duration) -> impl Future<Output = ()> + 'static {
        tokio::time::sleep(how_long)
    }
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }
    fn random_id(&self) -> [u8; 16] {
        *uuid::Uuid::new_v4().as_bytes()
    }
}

/// The store and the page store of a world where the buffer must not need them.
#[derive(Clone, Debug)]
pub struct Nothing;

const NOT_HERE: &str = "the write buffer uses nothing but the disk";

impl PageStore for Nothing {
    async fn get(&self, _: VolumeId, _: Vec<PageNo>) -> Result<Vec<Option<Bytes>>> {
        panic!("{NOT_HERE}")
    }
    async fn put(&self, _: VolumeId, _: PageBatch) -> Result<()> {
        panic!("{NOT_HERE}")
    }
    async fn applied(&self, _: VolumeId) -> Result<Option<TlogNo>> {
        panic!("{NOT_HERE}")
    }
    async fn sync(&self) -> Result<()> {
        panic!("{NOT_HERE}")
    }
    async fn drop_volume(&self, _: VolumeId) -> Result<()> {
        panic!("{NOT_HERE}")
    }
}

impl ObjectStore for Nothing {
    async fn create_namespace(&self, _: &str) -> Result<()> {
        panic!("{NOT_HERE}")
    }
    async fn delete_namespace(&self, _: &str) -> Result<()> {
        panic!("{NOT_HERE}")
    }
    async fn list_namespaces(&self, _: &str) -> Result<Vec<String>> {
        panic!("{NOT_HERE}")
    }
    async fn put_if_absent(&self, _: &str, _: &str, _: Vec<Bytes>, _: Purpose) -> Result<Put> {
        panic!("{NOT_HERE}")
    }
    async fn get_range(&self, _: &str, _: &str, _: u64, _: u64) -> Result<Option<Bytes>> {
        panic!("{NOT_HERE}")
    }
    async fn head(&self, _: &str, _: &str) -> Result<Option<ObjectInfo>> {
        panic!("{NOT_HERE}")
    }
    async fn list(&self, _: &str, _: &str, _: Option<&str>, _: u32) -> Result<Vec<String>> {
        panic!("{NOT_HERE}")
    }
    async fn delete(&self, _: &str, _: &str) -> Result<()> {
        panic!("{NOT_HERE}")
    }
}

pub const NODE: NodeId = NodeId([7; 16]);

pub fn small_config() -> BufferConfig {
    BufferConfig {
        segment_bytes: 1 << 20,
        segment_count: 4,
        memory_bytes: 16 << 20,
        ..BufferConfig::new(NODE, 3)
    }
}

pub fn volume(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

/// Clusters of 4 KiB that differ for each (seed, cluster).
pub fn clusters(seed: u64, count: u64) -> (Vec<u8>, Vec<ClusterCrc>) {
    let mut data = Vec::with_capacity(count as usize * 4096);
    for n in 0..count {
        let mut word =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xd134_2543_de82_ef95);
        for _ in 0..512 {
            word = word
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            data.extend_from_slice(&word.to_le_bytes());
        }
    }
    let crcs = data.chunks(4096).map(ClusterCrc::of).collect();
    (data, crcs)
}

/// Appends one write whose content, address and sequence follow from `n`; into SCO 1 at index `n`.
pub fn append_one<W: World>(log: &VolumeLog<W>, n: u64) -> Option<()> {
    let (data, crcs) = clusters(n, 1);
    log.append_data(Seq(n + 1), ClusterAddr(n * 3), ScoSeq(1), n as u32, &crcs, &data)
}

pub async fn check_one<W: World>(log: &VolumeLog<W>, n: u64) {
    let (expected, _) = clusters(n, 1);
    let found = log.read(ScoSeq(1), n as u32, 1).await;
    let found = found.unwrap_or_else(|fault| panic!("cluster {n}: {fault}"));
    let found = found.unwrap_or_else(|| panic!("cluster {n} is not in the buffer")).concat();
    assert!(found == expected, "cluster {n} has other bytes");
}

pub fn attach<W: World>(buffer: &Buffer<W>, n: u8, epoch: u64, seq: u64) -> VolumeLog<W> {
    buffer.attach(volume(n), Epoch(epoch), ClusterSize::DEFAULT, Seq(seq))
}
