//! The real world: O_DIRECT files, RocksDB, the object store of the configuration, the machine's clock.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::io::disk::{RealDisk, RealFile};
use crate::local::Pages;
use crate::store::AnyStore;
use crate::world::World;

/// Belongs to one shard's thread.
#[derive(Clone)]
pub struct RealWorld {
    disk: RealDisk,
    store: AnyStore,
    pages: Pages,
    origin: Instant,
}

impl RealWorld {
    pub fn new(disk: RealDisk, store: AnyStore, pages: Pages) -> Self {
        Self { disk, store, pages, origin: Instant::now() }
    }
    /// The same world with another directory for its files.
    #[must_use]
    pub fn with_disk(&self, disk: RealDisk) -> Self {
        Self { disk, ..self.clone() }
    }
}

impl World for RealWorld {
    type Disk = RealDisk;
    type Store = AnyStore;
    type Pages = Pages;

    fn disk(&self) -> &RealDisk {
        &self.disk
    }
    fn store(&self) -> &AnyStore {
        &self.store
    }
    fn pages(&self) -> &Pages {
        &self.pages
    }
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
    fn sleep(&self, how_long: Duration) -> impl Future<Output = ()> + 'static {
        tokio::time::sleep(how_long)
    }
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }
    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
    fn adopt(&self, file: Arc<File>) -> Option<RealFile> {
        self.disk.adopt(file).ok()
    }
    fn random_id(&self) -> [u8; 16] {
        *uuid::Uuid::new_v4().as_bytes()
    }
}
