//! Files without io_uring: pread and pwritev2 on tokio's helper threads.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::ReadWriteFlags;
use volumedriver_core::fault::{Fault, Result};

use super::buf::{AlignedBuf, AreaSlice};
use crate::world::Durability;

/// Most helper threads of one shard; more requests wait their turn.
const THREADS: usize = 32;

/// A plain runtime of tokio on this thread.
pub fn run<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .build()
        .map_err(|error| Fault::unavailable("cannot start a shard's runtime").because(error))?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, future))
}

/// Runs what blocks on a helper thread.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

pub async fn read(file: Arc<File>, mut buf: AlignedBuf, offset: u64) -> io::Result<AlignedBuf> {
    blocking(move || {
        file.read_exact_at(&mut buf, offset)?;
        Ok(buf)
    })
    .await
}

pub async fn write(
    file: Arc<File>,
    slices: Vec<AreaSlice>,
    offset: u64,
    durability: Durability,
) -> io::Result<()> {
    blocking(move || write_all(&file, &slices, offset, durability)).await
}

fn write_all(
    file: &File,
    slices: &[AreaSlice],
    mut offset: u64,
    durability: Durability,
) -> io::Result<()> {
    let flags = match durability {
        Durability::Later => ReadWriteFlags::empty(),
        Durability::Now => ReadWriteFlags::DSYNC,
    };
    let mut parts: Vec<io::IoSlice> = slices.iter().map(|slice| io::IoSlice::new(slice)).collect();
    let mut parts = parts.as_mut_slice();
    while !parts.is_empty() {
        let batch = &parts[..parts.len().min(super::disk::MAX_PARTS)];
        match rustix::io::pwritev2(file, batch, offset, flags) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                io::IoSlice::advance_slices(&mut parts, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub async fn sync(file: Arc<File>) -> io::Result<()> {
    blocking(move || file.sync_data()).await
}
