//! The node's local database (RocksDB): map pages of all volumes, and the registry of vDisks.
//!
//! Two column families with different promises. Pages are derivable from the backend: no write-ahead log, so that a crash
//! loses the latest batches, in order, each whole or not at all. The registry is written through the log and synced.
//! RocksDB blocks, so every call runs on a blocking thread.

mod pages;
mod registry;

use std::path::Path;
use std::sync::Arc;

use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, Options};
use volumedriver_core::fault::{Fault, Result};

pub use pages::Pages;
pub use registry::{Entry, Registry, Standing};

const PAGES: &str = "pages";
const REGISTRY: &str = "registry";
const BLOCK_CACHE_BYTES: usize = 64 << 20;
const PAGES_MEMTABLE_BYTES: usize = 32 << 20;

/// Opens (or creates) the database in this directory.
pub async fn open(dir: &Path) -> Result<(Pages, Registry)> {
    let dir = dir.to_owned();
    let db = blocking(move || open_db(&dir)).await?;
    let db = Arc::new(db);
    Ok((Pages::new(db.clone()), Registry::new(db)))
}

fn open_db(dir: &Path) -> Result<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_open_files(256);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_bloom_filter(10.0, false);
    let mut pages = Options::default();
    pages.set_block_based_table_factory(&table);
    pages.set_write_buffer_size(PAGES_MEMTABLE_BYTES);
    pages.set_compression_type(DBCompressionType::Lz4);
    let families = [
        ColumnFamilyDescriptor::new(PAGES, pages),
        ColumnFamilyDescriptor::new(REGISTRY, Options::default()),
    ];
    DB::open_cf_descriptors(&options, dir, families)
        .map_err(|e| fault_of(e).about(format!("local database {}", dir.display())))
}

/// Runs something that blocks on a thread made for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ended = |e| Fault::closed("the local database is closing").because(e);
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}

fn fault_of(error: rocksdb::Error) -> Fault {
    use rocksdb::ErrorKind;
    let text = error.to_string();
    let full = text.contains("No space left");
    match error.kind() {
        _ if full => Fault::no_space("the disk of the local database is full; free some space"),
        ErrorKind::Corruption => Fault::corrupt(
            "the local database is damaged; start with --discard-local to rebuild it",
        ),
        ErrorKind::ShutdownInProgress => Fault::closed("the local database is closing"),
        _ => Fault::unavailable("the local database failed"),
    }
    .because(error)
}

fn family<'a>(db: &'a DB, name: &str) -> Result<&'a rocksdb::ColumnFamily> {
    db.cf_handle(name).ok_or_else(|| Fault::bug(format!("column family {name} is missing")))
}
