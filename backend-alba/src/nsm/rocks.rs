//! The table in RocksDB, in a directory of this process alone.
//!
//! One thread makes the commits. What has gathered while it was syncing is the next group: guards are checked one commit
//! after the other against the table and the group so far, and one write with one sync makes all of them. Gets are answered
//! on the thread that asks when what they need is in memory, and on a blocking thread otherwise.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Buf;
use rocksdb::{
    DB, Direction, ErrorKind, IteratorMode, MergeOperands, Options, ReadOptions, ReadTier,
    WriteBatch, WriteOptions,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::kv::{Commit, Durability, Guard, Key, Kv, Value, Write};
use crate::fault::{Fault, Kind, Result};

/// Commits that wait at most; more callers wait for a place.
const QUEUE: usize = 1024;
/// Commits of one group at most.
const GROUP: usize = 256;
/// Blocking threads that read at once.
const READERS: usize = 8;

#[derive(Debug)]
pub struct Rocks {
    db: Arc<DB>,
    /// `None` once it is closing.
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    readers: Arc<Semaphore>,
    place: String,
}

#[derive(Debug)]
struct Job {
    commit: Commit,
    answer: oneshot::Sender<Result<bool>>,
}

impl Rocks {
    /// Opens or creates it. Blocks.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(8 << 20);
        options.set_max_total_wal_size(32 << 20);
        options.set_max_open_files(128);
        options.set_keep_log_file_num(4);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        options.set_merge_operator_associative("alba.totals", merge_totals);
        let opened = DB::open(&options, path).map_err(|e| store_fault("cannot open the NSM", e));
        let db = Arc::new(opened?);
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer = std::thread::Builder::new().name("alba-nsm".into()).spawn({
            let db = db.clone();
            move || write_groups(&db, jobs)
        });
        let writer = writer.map_err(|e| Fault::io("cannot start the NSM's thread", e))?;
        let readers = Arc::new(Semaphore::new(READERS));
        let place = path.display().to_string();
        Ok(Self { db, queue: Some(queue), writer: Some(writer), readers, place })
    }

    /// What needs no device; `None` when something does.
    fn get_here(&self, keys: &[Key]) -> Result<Option<Vec<Option<Value>>>> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            match self.db.get_opt(key, &options) {
                Ok(value) => values.push(value),
                Err(e) if e.kind() == ErrorKind::Incomplete => return Ok(None),
                Err(e) => return Err(store_fault("cannot read the NSM", e)),
            }
        }
        Ok(Some(values))
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DB) -> Result<T, rocksdb::Error> + Send + 'static,
    ) -> Result<T> {
        let permit = self.readers.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Fault::bug("the NSM's readers were closed"))?;
        // Not kept open by what has not begun.
        let db = Arc::downgrade(&self.db);
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let db = db.upgrade().ok_or_else(|| Fault::unavailable("the NSM was closed"))?;
            work(&db).map_err(|e| store_fault("cannot read the NSM", e))
        });
        let ended =
            |e| Fault { source: Some(Box::new(e)), ..Fault::bug("a read of the NSM did not end") };
        task.await.map_err(ended)?
    }
}

#[async_trait]
impl Kv for Rocks {
    fn place(&self) -> String {
        self.place.clone()
    }
    fn is_shared(&self) -> bool {
        false
    }
    fn writes_at_once(&self) -> usize {
        10_000
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Value>>> {
        match self.get_here(&keys)? {
            Some(values) => Ok(values),
            None => self.read(move |db| keys.iter().map(|key| db.get(key)).collect()).await,
        }
    }

    async fn range(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        let read = move |db: &DB| {
            let mut options = ReadOptions::default();
            options.set_iterate_upper_bound(to);
            let entries = db.iterator_opt(IteratorMode::From(&from, Direction::Forward), options);
            let owned = |(key, value): (Box<[u8]>, Box<[u8]>)| (key.into(), value.into());
            entries.take(limit).map(|entry| entry.map(owned)).collect()
        };
        self.read(read).await
    }

    async fn commit(&self, commit: Commit) -> Result<bool> {
        let ended = || Fault::bug("the NSM's thread has ended");
        let (answer, answered) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or_else(ended)?;
        queue.send(Job { commit, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

impl Drop for Rocks {
    /// The directory is free when this returns.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the NSM's thread has panicked");
        }
        // Reads that nobody waits for any more.
        while Arc::strong_count(&self.db) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The thread that makes the commits.
fn write_groups(db: &DB, mut jobs: mpsc::Receiver<Job>) {
    let mut waiting = Vec::new();
    while jobs.blocking_recv_many(&mut waiting, GROUP) > 0 {
        let mut group =
            Group { db, batch: WriteBatch::default(), sync: false, pending: HashMap::new() };
        let added: Vec<_> =
            waiting.drain(..).map(|job| (group.add(job.commit), job.answer)).collect();
        let written = group.write();
        // What was refused may have been refused for a commit of this group: it is told when that is durable.
        for (added, answer) in added {
            let outcome = match (added, &written) {
                (Ok(true), Err(fault)) => Err(Fault::new(fault.kind, fault.to_string())),
                (added, _) => added,
            };
            // Nobody may wait any more.
            drop(answer.send(outcome));
        }
    }
}

/// Commits that become one write.
struct Group<'a> {
    db: &'a DB,
    batch: WriteBatch,
    sync: bool,
    /// What the commits so far make of their keys.
    pending: HashMap<Key, Option<Value>>,
}

impl Group<'_> {
    /// Takes it in if its guards hold.
    fn add(&mut self, commit: Commit) -> Result<bool> {
        for guard in &commit.guards {
            if !self.holds(guard)? {
                return Ok(false);
            }
        }
        self.sync |= commit.durability == Durability::Now;
        for write in commit.writes {
            match write {
                Write::Put(key, value) => {
                    self.batch.put(&key, &value);
                    self.pending.insert(key, Some(value));
                }
                Write::Delete(key) => {
                    self.batch.delete(&key);
                    self.pending.insert(key, None);
                }
            }
        }
        Ok(true)
    }

    fn holds(&self, guard: &Guard) -> Result<bool> {
        if let Some(pending) = self.pending.get(&guard.key) {
            return Ok(*pending == guard.expected);
        }
        let found = self.db.get_pinned(&guard.key);
        let found = found.map_err(|e| store_fault("cannot read the NSM", e))?;
        Ok(found.as_deref() == guard.expected.as_deref())
    }

    fn write(self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut options = WriteOptions::default();
        options.set_sync(self.sync);
        // Never "no space, nothing was changed": what failed half-way may be read from the log by the next start.
        self.db.write_opt(self.batch, &options).map_err(|e| Fault {
            kind: Kind::Unavailable,
            ..store_fault("cannot write the NSM", e)
        })
    }
}

/// Tables before version 3 counted the objects of namespaces by merging; they are opened with it, and then count no more.
fn merge_totals(_key: &[u8], before: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    let of = |mut bytes: &[u8]| [(); 2].map(|()| bytes.try_get_i64_le().unwrap_or_default());
    let mut sum = of(before.unwrap_or_default());
    for operand in operands {
        sum.iter_mut().zip(of(operand)).for_each(|(sum, more)| *sum = sum.saturating_add(more));
    }
    Some(sum.iter().flat_map(|number| number.to_le_bytes()).collect())
}

fn store_fault(what: &str, error: rocksdb::Error) -> Fault {
    let text = error.to_string();
    let kind = match error.kind() {
        ErrorKind::Corruption => Kind::Corrupt,
        _ if text.contains("No space left") => Kind::NoSpace,
        _ => Kind::Unavailable,
    };
    Fault { source: Some(Box::new(error)), ..Fault::new(kind, what) }
}
