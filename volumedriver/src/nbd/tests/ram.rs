//! Volumes in memory behind the traits the sessions use, and a server for them on a thread of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::watch;

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::request::{Allocation, Extent, Reply, Request, ZeroMode};
use volumedriver_core::units::{ByteCount, ByteOffset};

use crate::nbd::{Budget, Export, Exports, Limits, Listener, Server, SessionStats, Tls, serve};
use crate::shard::ExportInfo;

/// Bytes per block whose allocation is known.
const BLOCK: usize = 4096;

/// Whether requests that could be answered at once are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    AtOnce,
    AlwaysSubmit,
}

/// Holds requests up until it is opened, from any thread.
#[derive(Clone, Default)]
pub struct Gate(Arc<(AtomicBool, AtomicUsize)>);

impl Gate {
    pub fn open(&self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
    /// Requests that stand before it, or went through.
    pub fn waiting(&self) -> usize {
        self.0.1.load(Ordering::Relaxed)
    }
    async fn pass(&self) {
        self.0.1.fetch_add(1, Ordering::Relaxed);
        while !self.0.0.load(Ordering::Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

#[derive(Clone)]
pub struct Ram(Rc<Inner>);

struct Inner {
    info: ExportInfo,
    speed: Speed,
    gate: Gate,
    data: RefCell<Vec<u8>>,
    states: RefCell<Vec<Allocation>>,
}

impl Ram {
    pub fn new(name: &str, size: usize, speed: Speed) -> Self {
        Self::with(name, size, speed, false, Self::open())
    }
    pub fn read_only(name: &str, size: usize) -> Self {
        Self::with(name, size, Speed::AtOnce, true, Self::open())
    }
    pub fn behind(name: &str, size: usize, gate: Gate) -> Self {
        Self::with(name, size, Speed::AlwaysSubmit, false, gate)
    }
    fn open() -> Gate {
        let gate = Gate::default();
        gate.open();
        gate
    }
    fn with(name: &str, size: usize, speed: Speed, read_only: bool, gate: Gate) -> Self {
        let info = ExportInfo {
            name: name.to_string(),
            size: ByteCount(size as u64),
            preferred_block: BLOCK as u32,
            read_only,
        };
        Self(Rc::new(Inner {
            info,
            speed,
            gate,
            data: RefCell::new(vec![0; size]),
            states: RefCell::new(vec![Allocation::Hole; size.div_ceil(BLOCK)]),
        }))
    }
    fn mark(&self, offset: u64, len: usize, state: Allocation) {
        let (start, end) = (offset as usize, offset as usize + len);
        self.0.states.borrow_mut()[start / BLOCK..end.div_ceil(BLOCK)].fill(state);
    }
    fn zero(&self, offset: u64, len: u64, state: Allocation) {
        let (start, end) = (offset as usize, (offset + len) as usize);
        self.0.data.borrow_mut()[start..end].fill(0);
        let (first, last) = (start.div_ceil(BLOCK), end / BLOCK);
        if first < last {
            self.0.states.borrow_mut()[first..last].fill(state);
        }
    }
    fn put(&self, offset: u64, data: &[u8]) {
        let start = offset as usize;
        self.0.data.borrow_mut()[start..start + data.len()].copy_from_slice(data);
        self.mark(offset, data.len(), Allocation::Data);
    }
    fn status(&self, offset: u64, len: u64, max: u32) -> Vec<Extent> {
        let states = self.0.states.borrow();
        let mut extents: Vec<Extent> = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let state = states[at as usize / BLOCK];
            let next = ((at / BLOCK as u64 + 1) * BLOCK as u64).min(end);
            let full = extents.len() == max as usize;
            match extents.last_mut() {
                Some(last) if last.state == state => last.len += ByteCount(next - at),
                _ if full => break,
                _ => extents.push(Extent { len: ByteCount(next - at), state }),
            }
            at = next;
        }
        extents
    }
}

impl Export for Ram {
    fn info(&self) -> ExportInfo {
        self.0.info.clone()
    }
    fn try_write(&self, offset: ByteOffset, data: &[u8]) -> Option<Result<()>> {
        let aligned = (offset.0 as usize | data.len()).is_multiple_of(BLOCK);
        if self.0.speed == Speed::AlwaysSubmit || !aligned {
            return None;
        }
        self.put(offset.0, data);
        Some(Ok(()))
    }
    fn try_read(&self, offset: ByteOffset, out: &mut [u8]) -> Option<Result<()>> {
        if self.0.speed == Speed::AlwaysSubmit {
            return None;
        }
        let start = offset.0 as usize;
        out.copy_from_slice(&self.0.data.borrow()[start..start + out.len()]);
        Some(Ok(()))
    }
    async fn submit(&self, request: Request) -> Result<Reply> {
        tokio::task::yield_now().await;
        self.0.gate.pass().await;
        match request {
            Request::Read { offset, len } => {
                let range = offset.0 as usize..(offset.0 + len.0) as usize;
                let data = self.0.data.borrow();
                return Ok(Reply::Data(
                    data[range].chunks(64 << 10).map(Bytes::copy_from_slice).collect(),
                ));
            }
            Request::Write { offset, data, .. } => self.put(offset.0, &data),
            Request::Flush | Request::Cache { .. } => {}
            Request::Trim { offset, len, .. } => self.zero(offset.0, len.0, Allocation::Hole),
            Request::WriteZeroes { offset, len, mode, .. } => {
                let state = match mode {
                    ZeroMode::MayPunch => Allocation::Hole,
                    ZeroMode::Allocate => Allocation::Zero,
                };
                self.zero(offset.0, len.0, state);
            }
            Request::Status { offset, len, max_extents } => {
                return Ok(Reply::Extents(self.status(offset.0, len.0, max_extents)));
            }
        }
        Ok(Reply::Done)
    }
}

#[derive(Default)]
pub struct Rams(BTreeMap<String, Ram>);

impl Rams {
    pub fn of(rams: impl IntoIterator<Item = Ram>) -> Self {
        Self(rams.into_iter().map(|ram| (ram.0.info.name.clone(), ram)).collect())
    }
}

impl Exports for Rams {
    type Export = Ram;
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
    fn find(&self, name: &str) -> Result<Ram> {
        let found = self.0.get(name).cloned();
        found.ok_or_else(|| Fault::invalid(format!("no volume {name:?}")))
    }
}

/// A server on its own thread; stopped and joined when dropped.
pub struct Running {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl Running {
    pub fn start(rams: impl FnOnce() -> Rams + Send + 'static, limits: Limits) -> Self {
        Self::with_tls(rams, limits, Tls::Off)
    }
    pub fn with_tls(
        rams: impl FnOnce() -> Rams + Send + 'static,
        limits: Limits,
        tls: Tls,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (stop, stopped) = watch::channel(false);
        let path = dir.path().join("nbd");
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            on_local(async move {
                let listener = Listener::unix(&path).expect("listening");
                ready.send(()).expect("someone waits");
                let stats = Rc::new(SessionStats::default());
                let budget = Budget::new(128 << 20);
                let server = Rc::new(Server { exports: rams(), tls, limits, stats, budget });
                serve(listener, server, stopped).await;
            });
        });
        listening.recv().expect("the server started");
        Self { stop, thread: Some(thread), dir }
    }
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd")
    }
    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the server panicked");
        }
    }
}

/// Runs a future as the shards do: one thread, local tasks.
pub fn on_local<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), future)
}
