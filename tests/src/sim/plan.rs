//! What a seed stands for: the volumes and their settings, what goes wrong, and how the host's lives end.

use std::time::Duration;

use volumedriver::config::settings::{
    AckLevel, Compression, Encryption, FlushLevel, VdiskSettings,
};
use volumedriver_core::units::{ByteCount, ClusterSize, VolumeId};

use super::Run;
use crate::world::faults::{Canary, Crash, DiskFaults, Faults, PageFaults, StoreFaults, Window};
use crate::world::keys;
use crate::world::rng::{Rng, mix};

const MIB: u64 = 1 << 20;
/// Sets the draws of [`Trouble`] apart from all others.
const TROUBLE: u64 = 0x7472_6f75_626c_6531;
/// The same for the draws of compression and encryption.
const CODING: u64 = 0x636f_6469_6e67_5f31;

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
    pub trouble: Trouble,
    /// Source of everything that is drawn on the way.
    pub rng: Rng,
}

/// What else happens to the hosts.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// How often, in a million, something decays while the host is down: of the journal, and of the page store.
    pub journal_decays: u32,
    pub pages_decay: u32,
    /// How often, in a million, another host takes over during a life.
    pub contests: u32,
    /// How often, in a million, an object decays or is lost on the store for a life that only looks.
    pub objects_decay: u32,
    pub cache: CacheTrouble,
    /// Source of everything drawn about trouble on the way.
    pub rng: Rng,
}

/// What happens to the disk tier of the read cache. There may be none.
#[derive(Clone, Debug, Default)]
pub struct CacheTrouble {
    /// Sizes it has by turns, from life to life; 0 for none.
    pub sizes: Vec<u64>,
    /// How often, in a million, its file decays while the host is down.
    pub decays: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct BufferSizes {
    pub segment_bytes: u64,
    pub segment_count: u32,
    pub memory_bytes: u64,
    pub batch_bytes: u64,
    pub cache_bytes: u64,
    /// The disk tier of the read cache; 0 for none.
    pub ssd_bytes: u64,
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
        let buffer = draw_buffer(&mut rng);
        let count = rng.pick(&[(6, 1), (3, 2), (1, 3)]);
        let volumes = (0..count).map(|n| draw_volume(n, &mut rng)).collect();
        let lives = rng.between(1, 5);
        let depth = rng.pick(&[(2, 1), (3, 4), (3, 8), (1, 16)]);
        let trouble = Trouble::draw(run, &mut faults);
        Self { run, faults, buffer, volumes, lives, depth, trouble, rng }
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

impl Trouble {
    /// A third of the runs has none of it; the others have local trouble, contested volumes, or both.
    fn draw(run: Run, faults: &mut Faults) -> Self {
        let mut rng = Rng::new(mix(run.seed ^ TROUBLE));
        let (local, contested) = rng.pick(&[
            (4, (false, false)),
            (4, (true, false)),
            (3, (false, true)),
            (1, (true, true)),
        ]);
        let mut trouble = Self {
            journal_decays: 0,
            pages_decay: 0,
            contests: 0,
            objects_decay: 0,
            cache: CacheTrouble::default(),
            rng: rng.fork(),
        };
        if local {
            draw_disk_trouble(&mut faults.disk, &mut rng);
            faults.pages = draw_page_trouble(&mut rng);
            faults.store.local_files = rng.coin();
            faults.disk.decayed_files = rng.pick(&[(1, 0), (1, 500_000)]);
            trouble.journal_decays = rng.pick(&[(1, 0), (2, 500_000)]);
            trouble.pages_decay = rng.pick(&[(1, 0), (1, 500_000)]);
        }
        if contested {
            trouble.contests = 600_000;
        }
        if rng.coin() {
            trouble.cache = draw_cache(faults, &mut rng);
        }
        if rng.chance(200_000) {
            faults.store.brownouts.push(draw_window(&mut rng));
        }
        if rng.chance(150_000) {
            trouble.objects_decay = 500_000;
        }
        match run.canary {
            Some(Canary::IgnoredSyncError) => faults.disk.sync_error = 20_000,
            Some(Canary::UncheckedCache) => {
                trouble.cache = CacheTrouble { sizes: vec![2 * MIB], decays: 1_000_000 };
                faults.cache_disk = DiskFaults::default();
            }
            Some(Canary::UnmarkedCache) => {
                trouble.cache = CacheTrouble { sizes: vec![2 * MIB], decays: 0 };
                faults.cache_disk = DiskFaults::default();
            }
            Some(Canary::UncheckedReplay) => trouble.journal_decays = 1_000_000,
            Some(Canary::UncheckedPage) => trouble.pages_decay = 1_000_000,
            Some(Canary::FullDiskFails) => faults.disk.full.push(draw_window(&mut rng)),
            Some(Canary::NoFence) => trouble.contests = 1_000_000,
            _ => {}
        }
        trouble
    }
}

/// A cache disk that is well, ails, or breaks; its size may change, or it may be taken out and put in again.
fn draw_cache(faults: &mut Faults, rng: &mut Rng) -> CacheTrouble {
    let size = rng.between(5, 16) * MIB / 4;
    let sizes =
        rng.pick(&[(4, [size; 3]), (2, [size, 0, size]), (1, [size, size / 2, 0])]).to_vec();
    let disk = &mut faults.cache_disk;
    disk.delay_ms = rng.pick(&[(3, 0), (1, 3), (1, 200)]);
    disk.delayed = 200_000;
    if rng.coin() {
        draw_disk_trouble(disk, rng);
        // Silence is what breaks it, not slowness.
        disk.slow_ms = rng.pick(&[(1, disk.slow_ms), (1, 20_000)]);
        disk.capacity = rng.pick(&[(9, u64::MAX), (1, size / 2)]);
    }
    CacheTrouble { sizes, decays: rng.pick(&[(1, 0), (1, 500_000)]) }
}

/// What passes is drawn often, what breaks the write buffer for the rest of a life seldom.
fn draw_disk_trouble(disk: &mut DiskFaults, rng: &mut Rng) {
    let rate = rng.pick(&[(1, 0), (1, 10_000), (1, 100_000)]);
    disk.read_error = rate;
    disk.flip_on_read = rng.pick(&[(1, 0), (1, rate)]);
    disk.write_error = rng.pick(&[(1, 0), (1, rate)]);
    for _ in 0..rng.pick(&[(2, 0), (2, 1), (1, 3)]) {
        disk.full.push(draw_window(rng));
    }
    if rng.chance(300_000) {
        disk.slow.push(draw_window(rng));
        disk.slow_ms = rng.between(50, 5_000);
    }
    if rng.chance(150_000) {
        disk.sync_error = rng.pick(&[(1, 1_000), (1, 20_000)]);
    }
    if rng.chance(100_000) {
        disk.dead.push(draw_window(rng));
    }
}

fn draw_page_trouble(rng: &mut Rng) -> PageFaults {
    let rate = rng.pick(&[(1, 0), (1, 10_000), (1, 200_000)]);
    let full = (0..rng.pick(&[(2, 0), (1, 1)])).map(|_| draw_window(rng)).collect();
    PageFaults { read_error: rate, write_error: rate, sync_error: rate, full }
}

fn draw_buffer(rng: &mut Rng) -> BufferSizes {
    BufferSizes {
        segment_bytes: rng.pick(&[(3, MIB), (2, 2 * MIB), (1, 4 * MIB)]),
        segment_count: rng.between(3, 6) as u32,
        memory_bytes: rng.pick(&[(2, MIB), (2, 2 * MIB), (1, 8 * MIB)]),
        batch_bytes: rng.pick(&[(1, 16 << 10), (2, 128 << 10), (1, 512 << 10)]),
        cache_bytes: rng.pick(&[(1, 0), (2, 256 << 10), (2, 4 * MIB)]),
        ssd_bytes: 0,
    }
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
        ..VdiskSettings::default()
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

impl VolumePlan {
    /// The same with a coding of this life of its host. A quarter of the runs has plain SCOs only.
    #[must_use]
    pub fn coded(&self, seed: u64, life: u64) -> Self {
        let mut plan = self.clone();
        let mut rng = Rng::new(mix(seed ^ CODING));
        if rng.below(4) > 0 {
            let mut rng = Rng::new(mix(rng.below(u64::MAX) ^ mix(life) ^ u64::from(self.id.0[0])));
            draw_coding(&mut plan.settings, &mut rng);
        }
        plan
    }
}

/// How SCOs are built: a third of them plain.
fn draw_coding(settings: &mut VdiskSettings, rng: &mut Rng) {
    settings.encryption_key = [keys::source()].into();
    if rng.below(3) == 0 {
        (settings.compression, settings.encryption) = (Compression::None, Encryption::None);
        return;
    }
    settings.compression =
        rng.pick(&[(1, Compression::None), (2, Compression::Lz4), (2, Compression::Zstd(1))]);
    settings.encryption = rng.pick(&[(1, Encryption::None), (2, Encryption::Aes256Gcm)]);
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
