//! Access to segment files that stands what a device does for a while: it is full, it fails and succeeds again.
//!
//! A full device (thin provisioning, a filesystem that copies on write) is waited for: load makes things wait, not fail. An
//! error is tried a few times: what is written and read are whole blocks at a fixed place, so doing it again changes
//! nothing. A sync is never repeated: after a failed one nobody knows what the device lost.

use std::time::Duration;

use volumedriver_core::fault::{Kind, Result};

use super::{FileOf, Inner};
use crate::io::buf::{AlignedBuf, AreaSlice};
use crate::world::{DiskFile, Durability, World};

/// Attempts at one access before its error counts.
const ATTEMPTS: u32 = 5;
/// After a failed write; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// After a write that found the device full.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// Writes until it is written, waiting for room as long as it takes; once the buffer is being closed, not for long.
pub(super) async fn write<W: World>(
    inner: &Inner<W>,
    file: &FileOf<W>,
    slices: Vec<AreaSlice>,
    offset: u64,
    durability: Durability,
) -> Result<()> {
    let (mut failed, mut full) = (0, 0);
    loop {
        let fault = match file.write_at(slices.clone(), offset, durability).await {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        let pause = match fault.kind {
            Kind::NoSpace => {
                full += 1;
                if full > ATTEMPTS && inner.tail.borrow().is_stopping() {
                    return Err(fault);
                }
                FULL_PAUSE
            }
            Kind::Unavailable => {
                failed += 1;
                if failed >= ATTEMPTS {
                    return Err(fault);
                }
                FIRST_PAUSE * (1 << failed)
            }
            _ => return Err(fault),
        };
        if full + failed == 1 {
            tracing::warn!(%fault, "the write buffer cannot be written; trying again");
        }
        inner.world.sleep(pause).await;
    }
}

/// Reads, again if need be: an error may pass.
pub(super) async fn read<F: DiskFile>(file: &F, len: usize, offset: u64) -> Result<AlignedBuf> {
    let mut attempts = 1;
    loop {
        match file.read_at(AlignedBuf::recycled(len), offset).await {
            Err(fault) if attempts < ATTEMPTS && is_passing(fault.kind) => attempts += 1,
            outcome => return outcome,
        }
    }
}

/// Reads until `is_good`; gives the last attempt's bytes and whether they are.
pub(super) async fn read_good<F: DiskFile>(
    file: &F,
    len: usize,
    offset: u64,
    is_good: impl Fn(&[u8]) -> bool,
) -> Result<(AlignedBuf, bool)> {
    let mut attempts = 1;
    loop {
        let bytes = read(file, len, offset).await?;
        let good = is_good(&bytes);
        if good || attempts >= ATTEMPTS {
            return Ok((bytes, good));
        }
        attempts += 1;
    }
}

/// A disk calls bytes that cannot be read `Corrupt`; what else is wrong with it may be over soon, too.
fn is_passing(kind: Kind) -> bool {
    matches!(kind, Kind::Corrupt | Kind::Unavailable)
}
