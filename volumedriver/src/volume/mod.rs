//! A volume that waits: one file per operation, each reads top-down.
//!
//! All state belongs to the shard's thread. The pure state machine ([`volumedriver_core::volume::Volume`]) is borrowed only
//! between awaits. Writes are accepted in the order in which they are appended to the write buffer; that order is the order
//! of their sequence, of replay and of the backend (INV-2, INV-4).

mod backend;
mod burst;
pub mod chain;
mod checkpoint;
mod flush;
mod loss;
mod open;
mod pages;
mod read;
mod resize;
mod status;
mod trim;
mod upload;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tracing::Instrument;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::framed::KeyId;
use volumedriver_core::request::{Reply, Request};
use volumedriver_core::units::{ByteCount, ClusterSize, NodeId, ScoSeq, Seq, TlogNo, VolumeId};
use volumedriver_core::volume::Volume as Core;
use volumedriver_core::volume::credits::Credits;

pub use backend::{Backend, Most};
pub use burst::Inflow;
pub use loss::NOBODY;
pub use open::{Left, Spec, create};

use crate::buffer::{Buffer, VolumeLog};
use crate::cache::ReadCache;
use crate::config::settings::VdiskSettings;
use crate::metrics::{RequestKind, ShardMetrics, Stage};
use crate::world::World;

/// Closing waits this long for a backend call in flight.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What may be asked of a volume right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    /// Readable; writes are refused with this reason until the operator decides.
    ReadOnly(String),
    /// Another owner took over.
    Fenced,
    Closed,
}

/// What all volumes of a shard share.
pub struct Shared<W: World> {
    pub world: W,
    pub node: NodeId,
    pub buffer: Buffer<W>,
    pub cache: Rc<ReadCache<W>>,
    pub backend: Backend<W>,
    pub metrics: ShardMetrics,
    /// Rung when a writer finds the buffer short of room: the shard then seals what pins the oldest segments.
    pub pressure: Notify,
    pub inflow: RefCell<Inflow>,
}

/// What was uploaded since the volume was opened, and how much room it takes on the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Of clusters.
    pub data_bytes: u64,
    /// Of the objects they are in.
    pub stored_bytes: u64,
}

impl Space {
    fn add(&mut self, data_bytes: u64, stored_bytes: u64) {
        self.data_bytes += data_bytes;
        self.stored_bytes += stored_bytes;
    }
}

/// One open volume.
pub struct Volume<W: World> {
    shared: Rc<Shared<W>>,
    id: VolumeId,
    name: String,
    core: RefCell<Core>,
    log: VolumeLog<W>,
    settings: RefCell<VdiskSettings>,
    state: RefCell<State>,
    credits: RefCell<Credits>,
    /// Writers that must wait do so in order of arrival.
    turn: Semaphore,
    waiting: Cell<usize>,
    /// Requests that wait for uploads.
    awaiting: Cell<usize>,
    /// Rung when SCOs were published and their room given back, and when the state changes.
    drained: Notify,
    /// Rung when there is an SCO to upload, or the volume closes.
    sealed: Notify,
    /// One manifest at a time.
    chain: Semaphore,
    published_seq: Cell<Seq>,
    /// Last TLog whose changes the page store holds.
    applied: Cell<TlogNo>,
    /// Last TLog whose changes are all in the map's base.
    based: Cell<TlogNo>,
    /// Number of TLogs at which the next checkpoint is tried.
    compact_at: Cell<usize>,
    /// Why nothing is uploaded any more.
    uploads_ended: RefCell<Option<Fault>>,
    /// When the first change of the open SCO was accepted.
    open_since: Cell<Option<Duration>>,
    /// When the oldest unpublished SCO got its first change.
    oldest_since: RefCell<VecDeque<Duration>>,
    streams: RefCell<read::Streams>,
    /// Objects no manifest names any more, and since when.
    obsolete: RefCell<VecDeque<(Duration, String)>>,
    uploader_done: Notify,
    /// Keys that SCOs of the volume are encrypted with.
    keys: RefCell<BTreeSet<KeyId>>,
    space: RefCell<Space>,
    /// The operator accepts what is lost: damaged clusters are uploaded as they are.
    accepting: Cell<bool>,
}

impl<W: World> Volume<W> {
    pub fn id(&self) -> VolumeId {
        self.id
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn size(&self) -> ByteCount {
        self.core.borrow().size()
    }
    pub fn cluster_size(&self) -> ClusterSize {
        self.core.borrow().cluster_size()
    }
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }
    pub fn settings(&self) -> VdiskSettings {
        self.settings.borrow().clone()
    }
    /// Takes effect with the next request; a new SCO size with the next SCO.
    pub fn set_settings(&self, settings: VdiskSettings) {
        *self.settings.borrow_mut() = settings;
        self.drained.notify_waiters();
    }
    /// What was uploaded since it was opened.
    pub fn space(&self) -> Space {
        *self.space.borrow()
    }
    /// The keys without which it cannot be read.
    pub fn keys(&self) -> Vec<KeyId> {
        self.keys.borrow().iter().copied().collect()
    }
    /// Every change up to here is on the backend and named by a manifest.
    pub fn published_seq(&self) -> Seq {
        self.published_seq.get()
    }
    /// Last change accepted.
    pub fn last_seq(&self) -> Seq {
        self.core.borrow().last_seq()
    }
    /// The pure state, for status reports.
    pub fn with_core<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.core.borrow_mut())
    }
    /// How long the open SCO has had changes in it; `None` when it has none.
    pub fn open_age(&self) -> Option<Duration> {
        self.open_since.get().map(|at| self.shared.world.now().saturating_sub(at))
    }
    /// SCOs that wait for their upload.
    pub fn sealed_count(&self) -> usize {
        self.core.borrow().sealed_count()
    }
    /// Bytes not yet on the backend.
    pub fn backlog(&self) -> ByteCount {
        self.core.borrow().backlog()
    }
    /// Bytes it holds in the write buffer.
    pub fn held(&self) -> ByteCount {
        ByteCount(self.log.held_bytes())
    }
    /// Age of the oldest change that is not on the backend.
    pub fn upload_lag(&self) -> Duration {
        let since = self.oldest_since.borrow().front().copied().or(self.open_since.get());
        since.map_or(Duration::ZERO, |at| self.shared.world.now().saturating_sub(at))
    }

    /// Carries out one request.
    pub async fn submit(&self, request: Request) -> Result<Reply> {
        let (kind, bytes) = measure(&request);
        let metrics = &self.shared.metrics;
        let began = metrics.sample().then(|| self.shared.world.now());
        let span = tracing::debug_span!("request", vdisk = self.name, ?kind, bytes);
        // Each kind in a box of its own size: a future is moved several times on its way.
        let result = match request {
            Request::Read { offset, len } => {
                self.read(offset, len).instrument(span).await.map(Reply::Data)
            }
            other => Box::pin(self.change_or_ask(other).instrument(span)).await,
        };
        match &result {
            Ok(_) => metrics.request(kind, bytes),
            Err(_) => metrics.request_failed(kind),
        }
        let stage = if kind == RequestKind::Read { Stage::ReadReply } else { Stage::WriteReply };
        if let (Some(began), RequestKind::Read | RequestKind::Write) = (began, kind) {
            metrics.stage(stage, self.shared.world.now().saturating_sub(began));
        }
        result
    }

    /// Times a stage of a request's way.
    async fn staged<T>(&self, stage: Stage, work: impl Future<Output = T>) -> T {
        let began = self.shared.world.now();
        let done = work.await;
        self.shared.metrics.stage(stage, self.shared.world.now().saturating_sub(began));
        done
    }

    async fn change_or_ask(&self, request: Request) -> Result<Reply> {
        match request {
            Request::Read { offset, len } => self.read(offset, len).await.map(Reply::Data),
            Request::Write { offset, data, fua } => {
                self.write(offset, &data, fua).await.map(|()| Reply::Done)
            }
            Request::Flush => self.flush().await.map(|()| Reply::Done),
            Request::Trim { offset, len, fua } => {
                self.trim(offset, len, fua).await.map(|()| Reply::Done)
            }
            Request::WriteZeroes { offset, len, mode, fua } => {
                self.write_zeroes(offset, len, mode, fua).await.map(|()| Reply::Done)
            }
            Request::Cache { offset, len } => self.warm(offset, len).await.map(|()| Reply::Done),
            Request::Status { offset, len, max_extents } => {
                Box::pin(self.status(offset, len, max_extents)).await.map(Reply::Extents)
            }
        }
    }

    /// `Err` says why a change is refused.
    fn check_writable(&self) -> Result<()> {
        match &*self.state.borrow() {
            State::Running if self.core.borrow().is_used_up() => Err(Fault::no_space(format!(
                "vDisk {} has used all its SCO positions; copy it to a new one",
                self.name
            ))),
            State::Running => self.shared.buffer.failure().map_or(Ok(()), Err),
            State::ReadOnly(why) => {
                Err(Fault::unavailable(format!("vDisk {} is read-only: {why}", self.name)))
            }
            State::Fenced => Err(self.fenced()),
            State::Closed => Err(Fault::closed(format!("vDisk {} is closed", self.name))),
        }
    }

    fn fenced(&self) -> Fault {
        Fault::fenced(format!("vDisk {} was taken over by another owner", self.name))
    }

    /// Reads go on while the volume is read-only or fenced with local data; only a closed one refuses.
    fn check_readable(&self) -> Result<()> {
        match &*self.state.borrow() {
            State::Running | State::ReadOnly(_) => Ok(()),
            State::Fenced => Err(self.fenced()),
            State::Closed => Err(Fault::closed(format!("vDisk {} is closed", self.name))),
        }
    }

    /// Every reason for being read-only stays; being fenced or closed is for good.
    fn enter(&self, state: State) {
        let next = match (&*self.state.borrow(), state) {
            (State::Closed | State::Fenced, _) => None,
            (State::ReadOnly(why), State::ReadOnly(more)) if why.contains(&more) => None,
            (State::ReadOnly(why), State::ReadOnly(more)) => {
                Some(State::ReadOnly(format!("{why}; {more}")))
            }
            (_, state) => Some(state),
        };
        if let Some(next) = next {
            tracing::warn!(vdisk = self.name, state = ?next, "state of the vDisk changed");
            *self.state.borrow_mut() = next;
        }
        self.drained.notify_waiters();
        self.sealed.notify_one();
    }

    /// Another owner took over: what only this node has is obsolete, and must not hold the room of others.
    fn enter_fenced(&self) {
        let obsolete = self.held();
        self.enter(State::Fenced);
        if obsolete.0 > 0 {
            tracing::error!(vdisk = self.name, %obsolete, "bytes in the write buffer are obsolete and dropped");
        }
        self.log.dispose(ScoSeq(u64::MAX));
    }

    fn is_closing(&self) -> bool {
        matches!(*self.state.borrow(), State::Closed | State::Fenced)
    }

    /// Stops the uploader and refuses further requests. What is journalled stays in the buffer for the next opening.
    pub async fn close(&self) {
        *self.state.borrow_mut() = State::Closed;
        self.drained.notify_waiters();
        self.sealed.notify_one();
        if self.uploads_ended.borrow().is_none() {
            let done = self.uploader_done.notified();
            let patience = self.shared.world.sleep(CLOSE_PATIENCE);
            futures_util::pin_mut!(done, patience);
            futures_util::future::select(done, patience).await;
        }
        // Not the last one published: its changes may be on their way into the base still.
        if let Err(fault) = self.persist_pages(self.based.get()).await {
            tracing::warn!(vdisk = self.name, %fault, "map pages not written; they are made again from TLogs");
        }
    }
}

/// Kind and bytes of a request, for the metrics.
fn measure(request: &Request) -> (RequestKind, u64) {
    match request {
        Request::Read { len, .. } => (RequestKind::Read, len.0),
        Request::Write { data, .. } => (RequestKind::Write, data.len() as u64),
        Request::Flush => (RequestKind::Flush, 0),
        Request::Trim { len, .. } => (RequestKind::Trim, len.0),
        Request::WriteZeroes { len, .. } => (RequestKind::WriteZeroes, len.0),
        Request::Cache { len, .. } => (RequestKind::Cache, len.0),
        Request::Status { len, .. } => (RequestKind::Status, len.0),
    }
}
