//! What a seed stands for: the volumes and their settings, what goes wrong, and how the host's lives end.

use std::time::Duration;

use volumedriver::config::settings::{AckLevel, FlushLevel, VdiskSettings};
use volumedriver_core::units::{ByteCount, ClusterSize, VolumeId};

use super::Run;
use crate::world::faults::{Crash, DiskFaults, Faults, StoreFaults, Window};
use crate::world::rng::{Rng, mix};

const MIB: u64 = 1 << 20;

/// One run, drawn from its seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub run: Run,
    pub faults: Faults,
    pub buffer: BufferSizes,
    pub volumes: Vec<VolumePlan>,
    /// Times the host is started again.
    pub lives: u64,
    /// Requests in flight per volume, at most.
    pub depth: u64,
    /// Source of everything that is drawn on the way.
    pub rng: Rng,
}

#[derive(Clone, Copy, Debug)]
pub struct BufferSizes {
    pub segment_bytes: u64,
    pub segment_count: u32,
    pub memory_bytes: u64,
    pub batch_bytes: u64,
    pub cache_bytes: u64,
    /// The read cache's disk, 0 for none.
    pub cache_disk_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct VolumePlan {
    pub id: VolumeId,
    pub name: String,
    pub size: u64,
    pub max_size: u64,
    pub cluster_size: ClusterSize,
    pub settings: VdiskSettings,
}

impl Plan {
    #[must_use]
    pub fn draw(run: Run) -> Self {
        let mut rng = Rng::new(mix(run.seed));
        let mut faults = draw_faults(&mut rng);
        faults.canary = run.canary;
        let mut buffer = draw_buffer(&mut rng);
        draw_cache_disk(run.seed, &mut buffer, &mut faults);
        let count = rng.pick(&[(6, 1), (3, 2), (1, 3)]);
        let volumes = (0..count).map(|n| draw_volume(n, &mut rng)).collect();
        let lives = rng.between(1, 5);
        let depth = rng.pick(&[(2, 1), (3, 4), (3, 8), (1, 16)]);
        Self { run, faults, buffer, volumes, lives, depth, rng }
    }

    /// How this life ends: the kind of crash, and after how many gates (`None`: a clean end).
    pub fn draw_end(&mut self) -> (Crash, Option<u64>) {
        let crash =
            self.rng.pick(&[(5, Crash::Kill), (5, Crash::PowerLoss), (2, Crash::DiscardLocal)]);
        let gates = match self.rng.below(8) {
            0 => None,
            1 | 2 => Some(self.rng.between(1, 300)),
            3 | 4 => Some(self.rng.between(100, 1500)),
            _ => Some(self.rng.between(300, 6000)),
        };
        (crash, gates)
    }
}

fn draw_buffer(rng: &mut Rng) -> BufferSizes {
    BufferSizes {
        segment_bytes: rng.pick(&[(3, MIB), (2, 2 * MIB), (1, 4 * MIB)]),
        segment_count: rng.between(3, 6) as u32,
        memory_bytes: rng.pick(&[(2, MIB), (2, 2 * MIB), (1, 8 * MIB)]),
        batch_bytes: rng.pick(&[(1, 16 << 10), (2, 128 << 10), (1, 512 << 10)]),
        cache_bytes: rng.pick(&[(1, 0), (2, 256 << 10), (2, 4 * MIB)]),
        cache_disk_bytes: 0,
    }
}

/// The read cache's disk may do whatever it likes. Drawn apart, so that the rest of a seed's plan is the same without it.
fn draw_cache_disk(seed: u64, sizes: &mut BufferSizes, faults: &mut Faults) {
    let mut rng = Rng::new(mix(seed ^ 0xcac4_e0f5_ee45_0001));
    sizes.cache_disk_bytes = rng.pick(&[(2, 0), (3, 2 * MIB), (2, 4 * MIB)]);
    if sizes.cache_disk_bytes > 0 && rng.coin() {
        // Small enough for the disk to be used.
        sizes.cache_bytes = sizes.cache_bytes.min(64 << 10);
    }
    faults.cache = DiskFaults {
        delay_ms: rng.pick(&[(4, 0), (3, 3), (2, 200), (1, 20_000)]),
        delayed: rng.pick(&[(2, 20_000), (1, 500_000)]),
        flip_on_read: rng.pick(&[(3, 0), (1, 20_000), (1, 500_000)]),
        read_error: rng.pick(&[(4, 0), (1, 3_000)]),
        write_error: rng.pick(&[(4, 0), (1, 30_000)]),
        capacity: rng.pick(&[(9, u64::MAX), (1, MIB)]),
    };
}

fn draw_volume(n: u64, rng: &mut Rng) -> VolumePlan {
    let cluster = rng.pick(&[(8, 4096), (1, 16 << 10), (1, 64 << 10)]);
    let size = rng.pick(&[(3, 2), (3, 4), (2, 8)]) * MIB + rng.pick(&[(3, 0), (1, cluster)]);
    let settings = VdiskSettings {
        ack: rng.pick(&[(3, AckLevel::Memory), (1, AckLevel::Buffer)]),
        flush: rng.pick(&[(4, FlushLevel::Journal), (1, FlushLevel::Backend)]),
        readahead: ByteCount(rng.pick(&[(1, 0), (1, 128 << 10), (1, 512 << 10)])),
        buffer_share_percent: rng.pick(&[(2, 50), (1, 30), (1, 100)]),
        upload_max_delay: Duration::from_millis(rng.pick(&[(1, 200), (1, 2_000), (1, 30_000)])),
        upload_concurrency: rng.between(1, 4) as usize,
        map_memory: ByteCount(rng.pick(&[(1, 64 << 10), (1, MIB), (1, 64 * MIB)])),
        sco_size: ByteCount(rng.pick(&[(4, MIB), (1, 2 * MIB)])),
    };
    VolumePlan {
        id: VolumeId(rng.bytes16()),
        name: format!("disk{n}"),
        size,
        max_size: size + 4 * MIB,
        cluster_size: ClusterSize::new(cluster).unwrap_or(ClusterSize::DEFAULT),
        settings,
    }
}

/// Faults that no promise may suffer from. Half of the runs have a healthy store.
fn draw_faults(rng: &mut Rng) -> Faults {
    let disk = DiskFaults {
        delay_ms: rng.pick(&[(3, 0), (3, 3), (1, 200)]),
        delayed: rng.pick(&[(1, 50_000), (1, 500_000)]),
        ..DiskFaults::default()
    };
    let mut store = StoreFaults {
        delay_ms: rng.pick(&[(1, (0, 0)), (4, (1, 20)), (1, (500, 2_000))]),
        ..StoreFaults::default()
    };
    if rng.coin() {
        let rate = rng.pick(&[(3, 10_000), (2, 100_000), (1, 300_000)]);
        store.error_before = rate;
        store.lost_reply = rate;
        store.late_success = rate / 2;
    }
    if rng.chance(300_000) {
        store.stale_list = Duration::from_secs(rng.between(1, 30));
    }
    for _ in 0..rng.pick(&[(3, 0), (2, 1), (1, 3)]) {
        store.outages.push(draw_window(rng));
    }
    if rng.chance(150_000) {
        store.flip_on_read = rng.pick(&[(1, 5_000), (1, 50_000)]);
    }
    if rng.chance(150_000) {
        store.full.push(draw_window(rng));
    }
    Faults { disk, store, ..Faults::default() }
}

fn draw_window(rng: &mut Rng) -> Window {
    let start = Duration::from_millis(rng.between(0, 60_000));
    Window { start, end: start + Duration::from_millis(rng.between(100, 120_000)) }
}
