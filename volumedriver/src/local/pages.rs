//! The page store over RocksDB.
//!
//! | key | value |
//! |---|---|
//! | volume id (16) `00` | number of the last TLog the pages contain, u64 big-endian |
//! | volume id (16) `01` page number (8, big-endian) | encoded page |

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DB, WriteBatch, WriteOptions};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::{PageNo, TlogNo, VolumeId};

use super::{PAGES, blocking, family, fault_of};
use crate::world::{PageBatch, PageStore};

const APPLIED: u8 = 0;
const PAGE: u8 = 1;
const END: u8 = 2;

/// See the module's header. Cheap to clone.
#[derive(Clone)]
pub struct Pages {
    db: Arc<DB>,
}

impl Pages {
    pub(super) fn new(db: Arc<DB>) -> Self {
        Self { db }
    }
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DB) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let db = self.db.clone();
        blocking(move || work(&db)).await
    }
}

fn mark(volume: VolumeId, kind: u8) -> Vec<u8> {
    [volume.0.as_slice(), &[kind]].concat()
}

fn page_key(volume: VolumeId, page: PageNo) -> Vec<u8> {
    [volume.0.as_slice(), &[PAGE], &page.0.to_be_bytes()].concat()
}

fn unlogged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

impl PageStore for Pages {
    async fn get(&self, volume: VolumeId, pages: Vec<PageNo>) -> Result<Vec<Option<Bytes>>> {
        self.with(move |db| {
            let cf = family(db, PAGES)?;
            let keys: Vec<_> = pages.iter().map(|page| page_key(volume, *page)).collect();
            let found = db.batched_multi_get_cf(cf, &keys, true);
            let owned = |value: Option<rocksdb::DBPinnableSlice<'_>>| {
                value.map(|v| Bytes::copy_from_slice(&v))
            };
            found.into_iter().map(|value| value.map(owned).map_err(fault_of)).collect()
        })
        .await
    }

    async fn put(&self, volume: VolumeId, batch: PageBatch) -> Result<()> {
        self.with(move |db| {
            let cf = family(db, PAGES)?;
            let mut write = WriteBatch::default();
            for (first, count) in batch.holes {
                let end = page_key(volume, PageNo(first.0.saturating_add(count)));
                write.delete_range_cf(cf, page_key(volume, first), end);
            }
            for (page, bytes) in &batch.pages {
                write.put_cf(cf, page_key(volume, *page), bytes);
            }
            write.put_cf(cf, mark(volume, APPLIED), batch.applied.0.to_be_bytes());
            db.write_opt(write, &unlogged()).map_err(fault_of)
        })
        .await
    }

    async fn applied(&self, volume: VolumeId) -> Result<Option<TlogNo>> {
        self.with(move |db| {
            let found = db.get_cf(family(db, PAGES)?, mark(volume, APPLIED)).map_err(fault_of)?;
            found.map(|bytes| number(&bytes).map(TlogNo)).transpose()
        })
        .await
    }

    async fn sync(&self) -> Result<()> {
        self.with(|db| db.flush_cf(family(db, PAGES)?).map_err(fault_of)).await
    }

    async fn drop_volume(&self, volume: VolumeId) -> Result<()> {
        self.with(move |db| {
            let cf = family(db, PAGES)?;
            let mut write = WriteBatch::default();
            write.delete_range_cf(cf, mark(volume, APPLIED), mark(volume, END));
            db.write_opt(write, &unlogged()).map_err(fault_of)
        })
        .await
    }
}

fn number(bytes: &[u8]) -> Result<u64> {
    let bytes =
        bytes.try_into().map_err(|_| Fault::corrupt("the page store's TLog mark is damaged"))?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_come_back_holes_vanish_and_volumes_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (pages, _) = crate::local::open(dir.path()).await.unwrap();
        let (a, b) = (VolumeId([1; 16]), VolumeId([2; 16]));
        let put = |no: u64| (PageNo(no), Bytes::from(format!("page {no}")));
        let batch = PageBatch {
            pages: vec![put(1), put(2), put(300)],
            applied: TlogNo(5),
            ..PageBatch::default()
        };
        pages.put(a, batch.clone()).await.unwrap();
        pages.put(b, batch).await.unwrap();
        let holes =
            PageBatch { holes: vec![(PageNo(1), 2)], applied: TlogNo(6), ..PageBatch::default() };
        pages.put(a, holes).await.unwrap();
        let got = pages.get(a, vec![PageNo(1), PageNo(2), PageNo(300)]).await.unwrap();
        assert_eq!(got, [None, None, Some(Bytes::from("page 300"))]);
        assert_eq!(pages.applied(a).await.unwrap(), Some(TlogNo(6)));
        assert_eq!(pages.applied(b).await.unwrap(), Some(TlogNo(5)));
        pages.drop_volume(a).await.unwrap();
        assert_eq!(pages.applied(a).await.unwrap(), None);
        assert_eq!(pages.get(a, vec![PageNo(300)]).await.unwrap(), [None]);
        assert_eq!(pages.get(b, vec![PageNo(2)]).await.unwrap(), [Some(Bytes::from("page 2"))]);
    }
}
