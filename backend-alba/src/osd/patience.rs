//! How long an OSD behind a network may take: whatever takes longer has failed, and is read or written around.

use std::time::Duration;

/// A call that moves no bytes ends within this time.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// One that does has this much more for each MiB: it is late below 2 MiB/s.
const DEADLINE_PER_MIB: Duration = Duration::from_millis(500);
/// A fragment is durable, or a folder listed, within this time.
pub(super) const SLOW_DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn for_bytes(deadline: Duration, len: u64) -> Duration {
    let mib = u32::try_from(len >> 20).unwrap_or(u32::MAX);
    deadline.saturating_add(DEADLINE_PER_MIB.saturating_mul(mib))
}
