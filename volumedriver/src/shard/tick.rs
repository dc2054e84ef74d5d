//! The shard's housekeeping: seals SCOs that wait too long or that hold back the oldest segments of a full buffer, and says how
//! fast uploads may go.

use std::rc::Weak;
use std::time::Duration;

use super::Shard;
use crate::world::{ObjectStore, World};

const PERIOD: Duration = Duration::from_secs(1);
/// The same while there are uploads.
const BUSY_PERIOD: Duration = Duration::from_millis(100);
/// Least time between two looks when writers are short of room.
const LEAST: Duration = Duration::from_millis(5);
/// Fill of the buffer above which the oldest segments are cleared.
const PRESSED: f64 = 0.5;

/// Fill of a share of the buffer, or of all of it, up to which uploads leave requests the first place at the local disk.
const RELAXED: f64 = 0.4;
/// Requests are in a hurry from so many journal syncs per second. Streams of plain writes are not: what they leave behind had
/// better leave while it is still in memory.
const HURRIED_SYNCS: f64 = 20.0;
/// Uploads beside hurried requests: this part of what comes in, but at least so many bytes per second.
const PART_OF_INFLOW: f64 = 0.5;
const LEAST_UPLOAD: f64 = 96.0 * 1024.0 * 1024.0;

/// Runs until the shard is gone.
pub(super) async fn run<W: World>(shard: Weak<Shard<W>>) {
    let mut load = Load::default();
    loop {
        let Some(shared) = shard.upgrade().map(|s| s.shared.clone()) else { return };
        {
            let period = shared.world.sleep(if load.uploading { BUSY_PERIOD } else { PERIOD });
            let pressure = shared.pressure.notified();
            futures_util::pin_mut!(period, pressure);
            futures_util::future::select(period, pressure).await;
        }
        shared.world.sleep(LEAST).await;
        drop(shared);
        let Some(shard) = shard.upgrade() else { return };
        seal_old(&shard);
        seal_pressing(&shard);
        load.pace(&shard);
    }
}

/// What requests asked of the journal, for deciding on the pace of uploads.
#[derive(Default)]
struct Load {
    since: Duration,
    bytes: u64,
    syncs: u64,
    uploading: bool,
}

impl Load {
    /// While nobody waits for uploads and the buffer has room, they do not keep requests from the disk.
    fn pace<W: World>(&mut self, shard: &Shard<W>) {
        let (buffer, now) = (&shard.shared.buffer, shard.shared.world.now());
        let counters = buffer.counters();
        let syncs = counters.syncs + counters.durable_writes;
        let seconds = now.saturating_sub(self.since).as_secs_f64().max(1e-3);
        let bytes_per_s = (counters.data_bytes - self.bytes) as f64 / seconds;
        let syncs_per_s = (syncs - self.syncs) as f64 / seconds;
        (self.since, self.bytes, self.syncs) = (now, counters.data_bytes, syncs);
        let volumes = shard.volumes.borrow();
        self.uploading = volumes.values().any(|volume| volume.sealed_count() > 0);
        let full = buffer.used_bytes() as f64 > RELAXED * buffer.capacity_bytes() as f64;
        let urgent = full || volumes.values().any(|v| v.upload_is_awaited() || v.fill() > RELAXED);
        let hurried = syncs_per_s >= HURRIED_SYNCS;
        let rate = (bytes_per_s * PART_OF_INFLOW).max(LEAST_UPLOAD);
        shard.shared.world.store().pace((hurried && !urgent).then_some(rate as u64));
    }
}

fn seal_old<W: World>(shard: &Shard<W>) {
    let volumes = shard.volumes.borrow();
    for volume in volumes.values().filter(|v| Shard::is_writable(v)) {
        if volume.open_age().is_some_and(|age| age >= volume.settings().upload_max_delay) {
            seal(volume);
        }
    }
}

fn seal_pressing<W: World>(shard: &Shard<W>) {
    let buffer = &shard.shared.buffer;
    if (buffer.used_bytes() as f64) < PRESSED * buffer.capacity_bytes() as f64 {
        return;
    }
    for id in buffer.pressing() {
        match shard.get(id) {
            Some(volume) if volume.sealed_count() == 0 => seal(&volume),
            _ => {}
        }
    }
}

fn seal<W: World>(volume: &crate::volume::Volume<W>) {
    if let Err(fault) = volume.seal() {
        tracing::debug!(vdisk = volume.name(), %fault, "cannot seal now");
    }
}
