//! The shard's housekeeping: seals SCOs that wait too long or that hold back the oldest segments of a full buffer.

use std::rc::Weak;
use std::time::Duration;

use super::Shard;
use crate::world::World;

const PERIOD: Duration = Duration::from_secs(1);
/// Least time between two looks when writers are short of room.
const LEAST: Duration = Duration::from_millis(5);
/// Fill of the buffer above which the oldest segments are cleared.
const PRESSED: f64 = 0.5;

/// Runs until the shard is gone.
pub(super) async fn run<W: World>(shard: Weak<Shard<W>>) {
    loop {
        let Some(shared) = shard.upgrade().map(|s| s.shared.clone()) else { return };
        {
            let period = shared.world.sleep(PERIOD);
            let pressure = shared.pressure.notified();
            futures_util::pin_mut!(period, pressure);
            futures_util::future::select(period, pressure).await;
        }
        shared.world.sleep(LEAST).await;
        drop(shared);
        let Some(shard) = shard.upgrade() else { return };
        seal_old(&shard);
        seal_pressing(&shard);
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
