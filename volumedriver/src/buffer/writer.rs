//! The writer task: streams the tail out, commits flushes, writes segment headers, makes further segments.
//!
//! A commit with nothing in flight and nothing unsynced is one O_DSYNC write: one device round trip. Otherwise it writes
//! what is pending, waits for all writes, and syncs each file once. Flushes that arrive meanwhile are the next commit,
//! unless they ask for nothing more: where a flush has followed every single write so far, the commit does not wait for it.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::journal::BLOCK_BYTES;
use volumedriver_core::format::segment::SegmentHeader;

use super::device;
use super::recover::header_block;
use super::segment::{Header, Segment};
use super::tail::{BLOCK, Batch, Growth, MAX_WRITE};
use super::{FileOf, Inner};
use crate::io::buf::{AlignedBuf, AreaSlice};
use crate::world::{Disk, DiskFile, Durability, World};

/// Writes under way at a time.
const MAX_WRITES: u32 = 4;
/// Free segments made ahead of need.
const AHEAD: usize = 3;
/// After the disk was full.
const GROW_AGAIN: Duration = Duration::from_secs(10);
/// Quiet time after a commit before a record of its own says that it is durable; under load the next one does.
const NOTE_AFTER: Duration = Duration::from_millis(100);

enum Step {
    Stop,
    /// A flush waits, or is expected.
    Commit,
    /// Write down that the last commit is durable.
    Note,
    /// Wipe the header of a freed segment.
    Wipe(usize),
    Write,
    /// Nothing to do before something happens, or so much time has passed.
    Wait(Option<Duration>),
}

/// What the writer remembers between two steps.
#[derive(Default)]
struct Since {
    /// When it first saw the bytes that are pending now.
    pending: Option<Duration>,
    /// When it first saw everything durable and nothing to do.
    quiet: Option<Duration>,
}

/// Runs until the buffer is closed and all is written.
pub(super) async fn run<W: World>(inner: Rc<Inner<W>>) {
    let mut since = Since::default();
    loop {
        grow_if_needed(&inner);
        match next_step(&inner, &mut since) {
            Step::Stop => return,
            Step::Commit => {
                since = Since::default();
                if let Err(fault) = commit(&inner).await {
                    inner.fail(&fault);
                }
                inner.freed_if_starved();
            }
            Step::Note => {
                since = Since::default();
                if inner.tail.borrow_mut().append_note().is_some()
                    && let Err(fault) = commit(&inner).await
                {
                    inner.fail(&fault);
                }
            }
            Step::Wipe(segment) => {
                if let Err(fault) = wipe(&inner, segment).await {
                    inner.fail(&fault);
                }
            }
            Step::Write => {
                since = Since::default();
                inner.tail.borrow_mut().close_record();
                if let Err(fault) = start_write(&inner).await {
                    inner.fail(&fault);
                }
            }
            Step::Wait(how_long) => wait(&inner, how_long).await,
        }
    }
}

fn next_step<W: World>(inner: &Inner<W>, since: &mut Since) -> Step {
    let tail = inner.tail.borrow();
    if tail.failure().is_some() {
        return if tail.closed { Step::Stop } else { Step::Wait(None) };
    }
    if !tail.waiters.is_empty() {
        return Step::Commit;
    }
    if let Some(segment) = tail.next_stale() {
        return Step::Wipe(segment);
    }
    let now = inner.world.now();
    let pending = tail.pending_bytes();
    if pending == 0 {
        since.pending = None;
        if tail.closed {
            return Step::Stop;
        }
        return if tail.wants_note() { note_when_quiet(since, now) } else { Step::Wait(None) };
    }
    since.quiet = None;
    if tail.habit.expects_flush() {
        return Step::Commit;
    }
    if tail.writes_in_flight >= MAX_WRITES {
        return Step::Wait(None);
    }
    let waited = now.saturating_sub(*since.pending.get_or_insert(now));
    match inner.config.linger.checked_sub(waited) {
        _ if pending >= inner.config.batch_bytes => Step::Write,
        None | Some(Duration::ZERO) => Step::Write,
        Some(rest) => Step::Wait(Some(rest)),
    }
}

fn note_when_quiet(since: &mut Since, now: Duration) -> Step {
    let waited = now.saturating_sub(*since.quiet.get_or_insert(now));
    match NOTE_AFTER.checked_sub(waited) {
        None | Some(Duration::ZERO) => Step::Note,
        Some(rest) => Step::Wait(Some(rest)),
    }
}

async fn wait<W: World>(inner: &Inner<W>, how_long: Option<Duration>) {
    let work = inner.work.notified();
    match how_long {
        None => work.await,
        Some(how_long) => {
            let pause = std::pin::pin!(inner.world.sleep(how_long));
            match select(std::pin::pin!(work), pause).await {
                Either::Left(_) | Either::Right(_) => {}
            }
        }
    }
}

/// Makes everything that is appended now durable.
async fn commit<W: World>(inner: &Rc<Inner<W>>) -> Result<()> {
    let alone = {
        let mut tail = inner.tail.borrow_mut();
        tail.close_record();
        let quiet = tail.writes_in_flight == 0 && tail.segments.iter().all(|s| !s.unsynced);
        let batch =
            if quiet && tail.pending_bytes() <= MAX_WRITE { tail.next_batch() } else { None };
        batch.map(|batch| (batch, tail.has_queue()))
    };
    if let Some((batch, more)) = alone {
        // More is pending only when it goes to another segment; then both wait for the sync.
        let durability = if more { Durability::Later } else { Durability::Now };
        write(inner, batch, durability).await;
        if !more {
            return finish_commit(inner, batch.last_record);
        }
    }
    write_pending(inner).await?;
    let last_record = inner.tail.borrow().started_record;
    while inner.tail.borrow().writes_in_flight > 0 {
        inner.written.notified().await;
    }
    sync_written(inner).await?;
    finish_commit(inner, last_record)
}

fn finish_commit<W: World>(inner: &Inner<W>, last_record: u64) -> Result<()> {
    let mut tail = inner.tail.borrow_mut();
    if let Some(failure) = tail.failure() {
        return Err(failure);
    }
    tail.durable_record = tail.durable_record.max(last_record);
    tail.answer_waiters();
    Ok(())
}

async fn write_pending<W: World>(inner: &Rc<Inner<W>>) -> Result<()> {
    while inner.tail.borrow().has_queue() {
        while inner.tail.borrow().writes_in_flight >= MAX_WRITES {
            inner.written.notified().await;
        }
        start_write(inner).await?;
    }
    Ok(())
}

/// Starts the next plain write and leaves it under way.
async fn start_write<W: World>(inner: &Rc<Inner<W>>) -> Result<()> {
    let Some(batch) = inner.tail.borrow_mut().next_batch() else { return Ok(()) };
    let headed = write_header(inner, batch.segment).await;
    if let Err(fault) = headed {
        inner.tail.borrow_mut().writes_in_flight -= 1;
        return Err(fault);
    }
    let task = inner.clone();
    inner.world.spawn(async move { write_records(&task, batch, Durability::Later).await });
    Ok(())
}

async fn write<W: World>(inner: &Rc<Inner<W>>, batch: Batch, durability: Durability) {
    match write_header(inner, batch.segment).await {
        Ok(()) => write_records(inner, batch, durability).await,
        Err(fault) => inner.tail.borrow_mut().batch_written(&batch, false, Err(fault)),
    }
}

async fn write_records<W: World>(inner: &Inner<W>, batch: Batch, durability: Durability) {
    let (file, slices) = {
        let tail = inner.tail.borrow();
        let segment = &tail.segments[batch.segment];
        let Some(slices) = segment.image(batch.start, batch.end) else {
            unreachable!("images of unwritten records stay in memory")
        };
        (segment.file.clone(), slices)
    };
    let result = device::write(inner, &file, slices, batch.start, durability).await;
    let durable = durability == Durability::Now;
    let failed = result.is_err();
    inner.tail.borrow_mut().batch_written(&batch, durable, result);
    inner.written.notify_waiters();
    inner.work.notify_one();
    if failed {
        inner.room.notify_waiters();
    }
    inner.freed_if_starved();
}

impl<W: World> Inner<W> {
    /// The journal takes no more, and nobody may wait for room that never comes.
    fn fail(&self, fault: &Fault) {
        self.tail.borrow_mut().fail(fault);
        self.room.notify_waiters();
    }

    fn freed_if_starved(&self) {
        if std::mem::take(&mut self.tail.borrow_mut().starved) {
            self.room.notify_waiters();
        }
    }
}

/// Writes the header of a segment that was taken into use, before its first record.
async fn write_header<W: World>(inner: &Inner<W>, index: usize) -> Result<()> {
    if inner.tail.borrow().segments[index].header != Header::Due {
        return Ok(());
    }
    // No header of an older use may be found beside the new one.
    loop {
        let stale = inner.tail.borrow().next_stale();
        match stale {
            Some(stale) => wipe(inner, stale).await?,
            None => break,
        }
    }
    let (file, header) = {
        let tail = inner.tail.borrow();
        let segment = &tail.segments[index];
        let header = SegmentHeader {
            node: inner.config.node,
            shard: inner.config.shard,
            use_no: segment.use_no,
            first_record: segment.first_record,
            segment_bytes: segment.len,
        };
        (segment.file.clone(), header)
    };
    let block = vec![header_block(&header)];
    device::write(inner, &file, block, 0, Durability::Now).await?;
    let mut tail = inner.tail.borrow_mut();
    tail.segments[index].header = Header::Written;
    tail.counters.written_bytes += BLOCK;
    Ok(())
}

/// Overwrites the header of a freed segment, so that a recovery need not read it.
async fn wipe<W: World>(inner: &Inner<W>, index: usize) -> Result<()> {
    let file = inner.tail.borrow().segments[index].file.clone();
    let blank = vec![AreaSlice::from_aligned(AlignedBuf::zeroed(BLOCK_BYTES))];
    device::write(inner, &file, blank, 0, Durability::Now).await?;
    let mut tail = inner.tail.borrow_mut();
    tail.counters.written_bytes += BLOCK;
    let segment = &mut tail.segments[index];
    // It may have been taken into use meanwhile: then its new header is still to come.
    if segment.header == Header::Stale {
        segment.header = Header::Blank;
    }
    Ok(())
}

/// One sync of every file with plain writes since its last.
async fn sync_written<W: World>(inner: &Inner<W>) -> Result<()> {
    let files: Vec<FileOf<W>> = {
        let mut tail = inner.tail.borrow_mut();
        let unsynced = tail.segments.iter_mut().filter(|segment| segment.unsynced);
        let files: Vec<_> = unsynced
            .map(|segment| {
                segment.unsynced = false;
                segment.file.clone()
            })
            .collect();
        tail.counters.syncs += files.len() as u64;
        files
    };
    let results = join_all(files.iter().map(DiskFile::sync)).await;
    results.into_iter().collect()
}

fn grow_if_needed<W: World>(inner: &Rc<Inner<W>>) {
    let name = {
        let mut tail = inner.tail.borrow_mut();
        let due = match tail.growth {
            Growth::Possible => true,
            Growth::UnderWay => false,
            Growth::FullDisk(since) => inner.world.now().saturating_sub(since) >= GROW_AGAIN,
        };
        let wanted = tail.free_count() < AHEAD
            && tail.segment_count() < inner.config.segment_count
            && !tail.closed
            && tail.failure().is_none();
        if !due || !wanted {
            return;
        }
        tail.growth = Growth::UnderWay;
        tail.next_name()
    };
    let task = inner.clone();
    inner.world.spawn(async move { grow(&task, name).await });
}

async fn grow<W: World>(inner: &Inner<W>, name: String) {
    let len = inner.config.segment_bytes;
    let created = inner.world.disk().create(&name, len).await;
    let mut tail = inner.tail.borrow_mut();
    match created {
        Ok(file) => {
            tail.add_free(Segment::new(file, len, Header::Blank));
            tail.growth = Growth::Possible;
        }
        Err(fault) => {
            if fault.kind != Kind::NoSpace {
                tracing::warn!(%fault, "cannot make another write buffer segment");
            } else {
                tracing::warn!(%fault, "no space for another write buffer segment; going on with fewer");
            }
            tail.growth = Growth::FullDisk(inner.world.now());
        }
    }
    drop(tail);
    inner.freed();
}
