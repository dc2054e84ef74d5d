//! Files through io_uring, and the runtime of a shard: the only file that names `tokio-uring` or `io-uring`.
//!
//! The runtime is tokio-uring's. Reads and writes go to a ring of our own beside it, because tokio-uring knows neither a
//! per-write O_DSYNC nor vectors of slices that it keeps alive. One ring per thread; one task of the thread, the driver,
//! submits what was pushed since its last turn and hands out completions, so a burst of requests costs one system call.
//!
//! Invariant: the memory and the file of an operation are owned by its slot in the table until the kernel has completed it,
//! whether or not anybody still waits for it; dropping the ring waits for every operation in flight.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use tokio::io::unix::AsyncFd;
use volumedriver_core::fault::{Fault, Result};

use super::buf::{AlignedBuf, AreaSlice};
use super::disk::MAX_PARTS;
use crate::world::Durability;

/// Operations the kernel has at a time; more wait their turn in memory (each with a future that awaits it).
const DEPTH: usize = 256;
/// Completions handed out before those who waited for them get their turn.
const REAPED: usize = 16;
/// While reads come back at least this often, the next is waited for awake: to fall asleep and be woken takes a virtual machine
/// about as long as the read.
const AWAKE: Duration = Duration::from_micros(40);
/// Entries of tokio-uring's own ring, of which we use none.
const IDLE_ENTRIES: u32 = 8;

/// Runs a shard on this thread until the future ends.
pub fn run_on_uring<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(IDLE_ENTRIES))
        .map_err(|error| Fault::unavailable("cannot start a shard on io_uring").because(error))?;
    Ok(runtime.block_on(future))
}

/// Tries whether the kernel gives us a ring that knows the operations used here.
pub fn probe() -> io::Result<()> {
    let ring = build()?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed =
        [opcode::Read::CODE, opcode::Writev::CODE, opcode::Write::CODE, opcode::Fsync::CODE];
    if needed.iter().all(|code| probe.is_supported(*code)) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring lacks read, write or fsync"))
    }
}

/// The cheapest ring this kernel gives for use by one thread.
fn build() -> io::Result<IoUring> {
    let entries = DEPTH as u32;
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries)
        .or_else(|_| IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(entries))
        .or_else(|_| IoUring::builder().build(entries))
}

/// What the kernel reads from or writes to while an operation is under way.
enum Payload {
    Read(AlignedBuf),
    Write { _slices: Vec<AreaSlice>, vectors: Vec<libc::iovec> },
    Sync,
}

enum Stage {
    Waiting(Option<Waker>),
    Done(i32),
    /// Nobody waits any more; the slot is freed at completion.
    Orphaned,
}

struct Slot {
    stage: Stage,
    payload: Payload,
    _file: Arc<File>,
}

impl Slot {
    fn is_read(&self) -> bool {
        matches!(self.payload, Payload::Read(_))
    }
}

struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Built operations for which the ring had no room yet.
    waiting: VecDeque<squeue::Entry>,
    /// Pushed and not completed.
    in_flight: usize,
    /// Reads handed over and not completed.
    reads: usize,
}

/// How often reads come back.
#[derive(Clone, Copy)]
struct Rhythm {
    last: Instant,
    /// Mean time between two, of the latest.
    gap: Duration,
}

impl Rhythm {
    fn note(&mut self, count: u32, now: Instant) {
        let gap = now.saturating_duration_since(self.last).min(AWAKE * 8) / count;
        self.gap = (self.gap * 7 + gap) / 8;
        self.last = now;
    }

    /// The next is due any moment.
    fn is_quick(&self) -> bool {
        self.gap < AWAKE && self.last.elapsed() < AWAKE
    }
}

/// A ring and its operations, on the thread that made it.
pub struct Ring {
    uring: RefCell<IoUring>,
    table: RefCell<Table>,
    driver: RefCell<Option<Waker>>,
    /// Entries were pushed since the last submission.
    unsubmitted: Cell<bool>,
    rhythm: Cell<Rhythm>,
}

thread_local! {
    static RING: RefCell<Weak<Ring>> = const { RefCell::new(Weak::new()) };
}

impl Ring {
    /// This thread's ring; made, with its driver task, at the first call. Must be called inside the runtime.
    pub fn of_thread() -> io::Result<Rc<Self>> {
        if let Some(ring) = RING.with_borrow(Weak::upgrade) {
            return Ok(ring);
        }
        let uring = build()?;
        // The kernel signals every batch of completions. Nobody reads the counter: it is watched for edges.
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let signal = rustix::event::eventfd(0, flags)?;
        uring.submitter().register_eventfd(signal.as_raw_fd())?;
        let interest = tokio::io::Interest::READABLE;
        // SAFETY: the `OwnedFd` names an open descriptor as long as it lives, and `AsyncFd` owns it.
        let signal = unsafe { AsyncFd::register_with_interest(signal, interest) };
        let signal = signal.map_err(|error| io::Error::other(error.to_string()))?;
        let ring = Rc::new(Self {
            uring: RefCell::new(uring),
            table: RefCell::new(Table {
                slots: Vec::new(),
                free: Vec::new(),
                waiting: VecDeque::new(),
                in_flight: 0,
                reads: 0,
            }),
            driver: RefCell::new(None),
            unsubmitted: Cell::new(false),
            rhythm: Cell::new(Rhythm { last: Instant::now(), gap: AWAKE }),
        });
        RING.set(Rc::downgrade(&ring));
        tokio::task::spawn_local(drive(ring.clone(), signal));
        Ok(ring)
    }

    /// Reads at most the whole buffer; returns it with the number of bytes read.
    async fn read_once(
        self: &Rc<Self>,
        file: &Arc<File>,
        mut buf: AlignedBuf,
        from: usize,
        offset: u64,
    ) -> (AlignedBuf, io::Result<usize>) {
        let rest = &mut buf[from..];
        // The length is a u32 for the kernel; what is cut off comes in the next turn of the caller's loop.
        let len = u32::try_from(rest.len()).unwrap_or(1 << 30);
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), rest.as_mut_ptr(), len)
            .offset(offset)
            .build();
        let (payload, result) = self.submit(entry, Payload::Read(buf), file.clone()).await;
        match payload {
            Payload::Read(buf) => (buf, result),
            Payload::Write { .. } | Payload::Sync => unreachable!("a read keeps its buffer"),
        }
    }

    pub async fn read(
        self: &Rc<Self>,
        file: Arc<File>,
        mut buf: AlignedBuf,
        offset: u64,
    ) -> io::Result<AlignedBuf> {
        let mut done = 0;
        while done < buf.len() {
            let (back, result) = self.read_once(&file, buf, done, offset + done as u64).await;
            buf = back;
            match result? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(buf)
    }

    pub async fn write(
        self: &Rc<Self>,
        file: Arc<File>,
        slices: Vec<AreaSlice>,
        offset: u64,
        durability: Durability,
    ) -> io::Result<()> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut done = 0;
        while done < total {
            let vectors = vectors(&slices, done);
            let payload = Payload::Write { _slices: slices.clone(), vectors };
            let at = offset + done as u64;
            let entry = write_entry(file.as_raw_fd(), &payload, at, durability);
            match self.submit(entry, payload, file.clone()).await.1? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written,
            }
        }
        Ok(())
    }

    pub async fn sync(self: &Rc<Self>, file: Arc<File>) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.submit(entry, Payload::Sync, file).await.1.map(|_| ())
    }

    /// Hands one operation to the kernel at the driver's next turn. The entry points into the payload's heap memory, which
    /// does not move with the payload.
    fn submit(
        self: &Rc<Self>,
        entry: squeue::Entry,
        payload: Payload,
        file: Arc<File>,
    ) -> Operation {
        let slot = Slot { stage: Stage::Waiting(None), payload, _file: file };
        let mut table = self.table.borrow_mut();
        table.reads += usize::from(slot.is_read());
        let key = table.free.pop().unwrap_or_else(|| {
            table.slots.push(None);
            table.slots.len() - 1
        });
        table.slots[key] = Some(slot);
        table.waiting.push_back(entry.user_data(key as u64));
        drop(table);
        self.wake_driver();
        Operation { ring: self.clone(), key: Some(key) }
    }

    fn wake_driver(&self) {
        if !self.unsubmitted.replace(true)
            && let Some(waker) = self.driver.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// Submits what waits and hands out what is complete; whether there is more of either.
    fn turn(&self) -> io::Result<bool> {
        self.unsubmitted.set(false);
        if self.push_waiting() {
            match self.uring.borrow().submit() {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let reaped = self.reap();
        Ok(reaped == REAPED || (reaped > 0 && !self.table.borrow().waiting.is_empty()))
    }

    /// A read is under way that should be back in a moment.
    fn is_expecting(&self) -> bool {
        self.table.borrow().reads > 0 && self.rhythm.get().is_quick()
    }

    /// Moves waiting operations into the submission queue as far as there is room; returns whether the kernel has to be
    /// called: for them, or for completions that it holds back until then.
    fn push_waiting(&self) -> bool {
        let mut uring = self.uring.borrow_mut();
        let mut table = self.table.borrow_mut();
        let mut queue = uring.submission();
        let mut pushed = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        while table.in_flight < DEPTH && !queue.is_full() {
            let Some(entry) = table.waiting.pop_front() else { break };
            // SAFETY: every pointer in the entry leads into the payload of its slot, which stays there until the completion
            // of this very operation is reaped, and the slot also keeps the file descriptor open.
            if unsafe { queue.push(&entry) }.is_err() {
                table.waiting.push_front(entry);
                break;
            }
            table.in_flight += 1;
            pushed = true;
        }
        pushed
    }

    /// Takes completions, at most [`REAPED`], and wakes those who wait; returns how many there were.
    fn reap(&self) -> usize {
        let mut wakers = Vec::new();
        let mut uring = self.uring.borrow_mut();
        let mut table = self.table.borrow_mut();
        let (mut count, reads) = (0, table.reads);
        for completion in uring.completion().take(REAPED) {
            count += 1;
            table.in_flight -= 1;
            table.complete(completion.user_data() as usize, completion.result(), &mut wakers);
        }
        let reads = (reads - table.reads) as u32;
        drop((uring, table));
        if reads > 0 {
            let mut rhythm = self.rhythm.get();
            rhythm.note(reads, Instant::now());
            self.rhythm.set(rhythm);
        }
        wakers.into_iter().for_each(Waker::wake);
        count
    }
}

impl Table {
    fn complete(&mut self, key: usize, result: i32, wakers: &mut Vec<Waker>) {
        let Some(slot) = self.slots.get_mut(key).and_then(Option::as_mut) else {
            unreachable!("completion of operation {key} that is not under way")
        };
        self.reads -= usize::from(slot.is_read());
        match std::mem::replace(&mut slot.stage, Stage::Done(result)) {
            Stage::Waiting(waker) => wakers.extend(waker),
            Stage::Orphaned => {
                self.slots[key] = None;
                self.free.push(key);
            }
            Stage::Done(_) => unreachable!("operation {key} completed twice"),
        }
    }
}

impl Drop for Ring {
    /// The kernel may still use memory of operations in flight: wait for them before the table goes.
    fn drop(&mut self) {
        self.table.borrow_mut().waiting.clear();
        while self.table.borrow().in_flight > 0 {
            let waited = self.uring.borrow().submit_and_wait(1);
            if self.reap() == 0 && waited.is_err_and(|error| !is_passing(&error)) {
                // Nothing tells any more when the kernel is done with the memory: give it up rather than free it.
                std::mem::take(&mut self.table.borrow_mut().slots)
                    .into_iter()
                    .for_each(std::mem::forget);
                return;
            }
        }
    }
}

/// Errors of a submission after which trying again is right.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// The pieces of the slices from byte `done` on.
fn vectors(slices: &[AreaSlice], done: usize) -> Vec<libc::iovec> {
    let mut skip = done;
    let mut vectors = Vec::with_capacity(slices.len().min(MAX_PARTS));
    for slice in slices {
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        if vectors.len() == MAX_PARTS {
            break;
        }
        let rest = &slice[std::mem::take(&mut skip)..];
        vectors
            .push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
    }
    vectors
}

fn write_entry(fd: RawFd, payload: &Payload, offset: u64, durability: Durability) -> squeue::Entry {
    let Payload::Write { vectors, .. } = payload else { unreachable!("payload of a write") };
    let flags = match durability {
        Durability::Later => 0,
        Durability::Now => libc::RWF_DSYNC,
    };
    opcode::Writev::new(types::Fd(fd), vectors.as_ptr(), vectors.len() as u32)
        .offset(offset)
        .rw_flags(flags)
        .build()
}

/// The driver task: woken when something was pushed or completed.
async fn drive(ring: Rc<Ring>, signal: AsyncFd<OwnedFd>) {
    poll_fn(|context| {
        remember(&ring.driver, context);
        loop {
            match signal.poll_read_ready(context) {
                Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
                Poll::Ready(Err(error)) => {
                    tracing::error!(%error, "the ring cannot be polled; file operations of this shard stop");
                    return Poll::Ready(());
                }
                Poll::Pending => break,
            }
        }
        let more = ring.turn().unwrap_or_else(|error| {
            tracing::error!(%error, "io_uring refuses submissions; trying again");
            true
        });
        if more || ring.is_expecting() {
            ring.unsubmitted.set(true);
            context.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

fn remember(place: &RefCell<Option<Waker>>, context: &Context<'_>) {
    let mut place = place.borrow_mut();
    if !place.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
        *place = Some(context.waker().clone());
    }
}

/// One operation handed to the ring. Dropping it early leaves the memory with the ring until the kernel is done.
struct Operation {
    ring: Rc<Ring>,
    /// Its slot; `None` once the result was taken.
    key: Option<usize>,
}

impl Future for Operation {
    type Output = (Payload, io::Result<usize>);

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(key) = self.key else { unreachable!("polled after it was ready") };
        let taken = self.ring.table.borrow_mut().take_done(key, context);
        let Some((payload, result)) = taken else { return Poll::Pending };
        self.key = None;
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Poll::Ready((payload, result))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.ring.table.borrow_mut().abandon(key);
        }
    }
}

impl Table {
    /// Frees the slot when its operation is complete, else notes who waits.
    fn take_done(&mut self, key: usize, context: &Context<'_>) -> Option<(Payload, i32)> {
        let place = self.slots.get_mut(key)?;
        let result = match &mut place.as_mut()?.stage {
            Stage::Done(result) => *result,
            Stage::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                return None;
            }
            Stage::Orphaned => unreachable!("operation {key} was given up and is still polled"),
        };
        let slot = place.take()?;
        self.free.push(key);
        Some((slot.payload, result))
    }

    fn abandon(&mut self, key: usize) {
        let Some(slot) = self.slots.get_mut(key).and_then(Option::as_mut) else { return };
        match slot.stage {
            Stage::Waiting(_) => slot.stage = Stage::Orphaned,
            Stage::Done(_) => {
                self.slots[key] = None;
                self.free.push(key);
            }
            Stage::Orphaned => {}
        }
    }
}
