//! P5: what the configuration bounds stays within its bounds, looked at after every request.

use volumedriver_core::format::names;

use super::engine::Engine;
use super::life::Sim;

/// Images of the write buffer are this long at most, and there may always be this many.
const IMAGE_BYTES: u64 = 4 << 20;
const LEAST_IMAGES: u64 = 4;
/// Footer of an SCO, and the TLog, manifest and map run that may be on their way beside SCOs.
const METADATA_BYTES: u64 = 1 << 20;

/// What changes from request to request.
pub(super) fn sample(sim: &Sim, engine: &Engine) {
    let sizes = sim.sizes();
    let image = sizes.segment_bytes.min(IMAGE_BYTES);
    let images = (sizes.memory_bytes / IMAGE_BYTES).max(LEAST_IMAGES);
    // A seal must find memory even when there is none left for data.
    let ceiling = images * image + 2 * image;
    let memory = engine.shard.shared().buffer.memory_bytes();
    if memory > ceiling {
        sim.findings.add(format!("P5: {memory} bytes of memory for the write buffer of {ceiling}"));
    }
    let cached = engine.shard.shared().cache.counts().ram.used_bytes;
    if cached > sizes.cache_bytes {
        let most = sizes.cache_bytes;
        sim.findings.add(format!("P5: the read cache takes {cached} bytes of {most}"));
    }
}

/// What the world kept the peaks of.
pub(super) fn check(sim: &Sim, engine: &Engine) {
    sample(sim, engine);
    let (sizes, universe) = (sim.plan.buffer, &sim.universe);
    let ceiling = sizes.segment_bytes * u64::from(sizes.segment_count);
    for host in 0..2 {
        let peak = universe.peak_disk_bytes(host);
        if peak > ceiling {
            sim.findings.add(format!("P5: local files took {peak} bytes of {ceiling}"));
        }
        let most = sim.plan.trouble.cache.sizes.iter().copied().max().unwrap_or(0);
        let peak = universe.peak_cache_bytes(host);
        if peak > most {
            sim.findings.add(format!("P5: the file of the read cache took {peak} bytes of {most}"));
        }
    }
    let mut flying = 0;
    for volume in &sim.plan.volumes {
        let most = volume.settings.upload_concurrency;
        let scos = universe.peak_scos(&names::namespace(volume.id));
        if scos > most {
            sim.findings.add(format!("P5: {scos} SCOs on their way at once, {most} may be"));
        }
        flying += (volume.settings.sco_size.0 + METADATA_BYTES) * most as u64 + METADATA_BYTES;
    }
    // Of both hosts, when they contest the volumes.
    let peak = universe.peak_flying_bytes();
    if peak > 2 * flying {
        sim.findings.add(format!("P5: {peak} bytes of puts under way at once, {flying} may be"));
    }
}
