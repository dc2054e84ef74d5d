//! The door for frontends: find a volume by name, send it requests from any thread.
//!
//! On the volume's own thread a request is a plain call; from elsewhere it crosses a bounded channel and the answer comes
//! back through a oneshot.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::future::LocalBoxFuture;
use tokio::sync::{mpsc, oneshot};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::request::{Reply, Request};
use volumedriver_core::units::{ByteCount, ByteOffset, VolumeId};

use super::unknown;
use crate::volume::{State, Volume};
use crate::world::World;

/// Requests from other threads that may wait for a shard.
const CROSSING: usize = 1024;

/// What a frontend must tell its client about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    pub name: String,
    pub size: ByteCount,
    /// Preferred request size and alignment, bytes (the cluster size).
    pub preferred_block: u32,
    pub read_only: bool,
}

/// A volume as its thread sees it, whatever its world.
trait Local {
    fn try_write(&self, offset: ByteOffset, data: &[u8]) -> Option<Result<()>>;
    fn try_read(&self, offset: ByteOffset, out: &mut [u8]) -> Option<Result<()>>;
    fn submit(self: Rc<Self>, request: Request) -> LocalBoxFuture<'static, Result<Reply>>;
}

impl<W: World> Local for Volume<W> {
    fn try_write(&self, offset: ByteOffset, data: &[u8]) -> Option<Result<()>> {
        Volume::try_write(self, offset, data)
    }
    fn try_read(&self, offset: ByteOffset, out: &mut [u8]) -> Option<Result<()>> {
        Volume::try_read(self, offset, out)
    }
    fn submit(self: Rc<Self>, request: Request) -> LocalBoxFuture<'static, Result<Reply>> {
        Box::pin(async move { Volume::submit(&self, request).await })
    }
}

/// The volumes of this thread, if it is a shard's.
#[derive(Default)]
struct Here {
    shard: u64,
    slots: Vec<Option<Rc<dyn Local>>>,
}

thread_local! {
    static HERE: RefCell<Here> = RefCell::default();
}

struct Crossing {
    slot: usize,
    request: Request,
    reply: oneshot::Sender<Result<Reply>>,
}

/// One attachable volume.
struct Entry {
    id: VolumeId,
    name: String,
    preferred_block: u32,
    size: AtomicU64,
    read_only: AtomicBool,
    shard: u64,
    slot: usize,
    crossing: mpsc::Sender<Crossing>,
}

/// The door to one volume. Cheap to clone, may be used from any thread.
#[derive(Clone)]
pub struct Handle {
    entry: Arc<Entry>,
}

impl Handle {
    pub fn info(&self) -> ExportInfo {
        ExportInfo {
            name: self.entry.name.clone(),
            size: ByteCount(self.entry.size.load(Ordering::Relaxed)),
            preferred_block: self.entry.preferred_block,
            read_only: self.entry.read_only.load(Ordering::Relaxed),
        }
    }

    /// Calls the volume if this is its thread.
    fn here<T>(&self, call: impl FnOnce(&Rc<dyn Local>) -> T) -> Option<T> {
        HERE.with_borrow(|here| {
            if here.shard != self.entry.shard {
                return None;
            }
            here.slots.get(self.entry.slot)?.as_ref().map(call)
        })
    }

    /// Carries out the request. Waits when the volume is over its share of the buffer; never fails because of load.
    pub async fn submit(&self, request: Request) -> Result<Reply> {
        if let Some(volume) = self.here(Rc::clone) {
            return volume.submit(request).await;
        }
        let (reply, answer) = oneshot::channel();
        let crossing = Crossing { slot: self.entry.slot, request, reply };
        let gone = || Fault::closed(format!("vDisk {} is closed", self.entry.name));
        self.entry.crossing.send(crossing).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// The write, if it can be acknowledged this instant: we are on the volume's thread, the range is cluster-aligned, there
    /// are credits and the acknowledgement level is `memory`. `None` changes nothing: use [`Handle::submit`].
    /// Calls made in order take effect in order.
    pub fn try_write(&self, offset: ByteOffset, data: &[u8]) -> Option<Result<()>> {
        self.here(|volume| volume.try_write(offset, data))?
    }

    /// The read, if every byte is in memory and we are on the volume's thread; fills the whole buffer. `None` leaves it undefined.
    pub fn try_read(&self, offset: ByteOffset, out: &mut [u8]) -> Option<Result<()>> {
        self.here(|volume| volume.try_read(offset, out))?
    }
}

/// A name that is taken.
enum Known {
    Opening,
    Failed(String),
    Open(Handle),
}

/// Finds volumes by name; what frontends hold.
#[derive(Clone, Default)]
pub struct Directory {
    names: Arc<RwLock<BTreeMap<String, Known>>>,
}

impl Directory {
    fn read<T>(&self, look: impl FnOnce(&BTreeMap<String, Known>) -> T) -> T {
        look(&self.names.read().unwrap_or_else(PoisonError::into_inner))
    }
    fn write<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Known>) -> T) -> T {
        change(&mut self.names.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Names of all volumes that can be attached, sorted.
    pub fn names(&self) -> Vec<String> {
        let open = |(name, known): (&String, &Known)| {
            matches!(known, Known::Open(_)).then(|| name.clone())
        };
        self.read(|names| names.iter().filter_map(open).collect())
    }

    /// The handle of an open volume. `Invalid`: no volume of this name. `Unavailable`: it is still being opened. The empty name
    /// stands for the only volume, if there is just one.
    pub fn find(&self, name: &str) -> Result<Handle> {
        if let ("", [only]) = (name, self.names().as_slice()) {
            return self.find(only);
        }
        self.read(|names| match names.get(name) {
            None => Err(unknown(name)),
            Some(Known::Opening) => {
                Err(Fault::unavailable(format!("vDisk {name} is being opened; try again")))
            }
            Some(Known::Failed(why)) => {
                Err(Fault::unavailable(format!("vDisk {name} cannot be opened: {why}")))
            }
            Some(Known::Open(handle)) => Ok(handle.clone()),
        })
    }

    /// Doors to the volume that frontends hold.
    pub fn connections(&self, name: &str) -> u64 {
        self.read(|names| match names.get(name) {
            Some(Known::Open(handle)) => Arc::strong_count(&handle.entry) as u64 - 1,
            _ => 0,
        })
    }

    /// The name is taken by a volume that is being opened.
    pub fn announce(&self, name: &str) {
        self.write(|names| names.insert(name.to_owned(), Known::Opening));
    }
    /// Opening it failed for good.
    pub fn failed(&self, name: &str, why: String) {
        self.write(|names| names.insert(name.to_owned(), Known::Failed(why)));
    }
    pub fn remove(&self, name: &str) {
        self.write(|names| names.remove(name));
    }
    /// The size or state of a volume changed.
    pub fn refresh<W: World>(&self, volume: &Volume<W>) {
        self.read(|names| {
            if let Some(Known::Open(handle)) = names.get(volume.name()) {
                handle.entry.size.store(volume.size().0, Ordering::Relaxed);
                let read_only = volume.state() != State::Running;
                handle.entry.read_only.store(read_only, Ordering::Relaxed);
            }
        });
    }
}

/// The thread's side of the door: volumes are put on show here and answer what crosses.
pub struct Desk {
    shard: u64,
    directory: Directory,
    crossing: mpsc::Sender<Crossing>,
}

impl Desk {
    /// Makes this thread a shard's thread; `run` must be polled on it.
    pub fn new(directory: Directory) -> (Self, impl Future<Output = ()> + 'static) {
        static SHARDS: AtomicU64 = AtomicU64::new(1);
        let shard = SHARDS.fetch_add(1, Ordering::Relaxed);
        HERE.with_borrow_mut(|here| *here = Here { shard, slots: Vec::new() });
        let (crossing, arriving) = mpsc::channel(CROSSING);
        (Self { shard, directory, crossing }, answer(arriving))
    }

    /// Frontends find the volume from now on.
    pub fn show<W: World>(&self, volume: &Rc<Volume<W>>) {
        let local: Rc<dyn Local> = volume.clone();
        let slot = HERE.with_borrow_mut(|here| {
            here.slots.push(Some(local));
            here.slots.len() - 1
        });
        let entry = Entry {
            id: volume.id(),
            name: volume.name().to_owned(),
            preferred_block: volume.cluster_size().bytes() as u32,
            size: AtomicU64::new(volume.size().0),
            read_only: AtomicBool::new(volume.state() != State::Running),
            shard: self.shard,
            slot,
            crossing: self.crossing.clone(),
        };
        let handle = Handle { entry: Arc::new(entry) };
        self.directory.write(|names| names.insert(volume.name().to_owned(), Known::Open(handle)));
    }

    /// Frontends no longer find the volume, and handles they hold answer `Closed`.
    pub fn hide(&self, id: VolumeId) {
        let slot = self.directory.write(|names| {
            let name = names.iter().find_map(|(name, known)| match known {
                Known::Open(handle) if handle.entry.id == id => {
                    Some((name.clone(), handle.entry.slot))
                }
                _ => None,
            });
            name.map(|(name, slot)| {
                names.remove(&name);
                slot
            })
        });
        HERE.with_borrow_mut(|here| {
            if let Some(place) = slot.and_then(|slot| here.slots.get_mut(slot)) {
                *place = None;
            }
        });
    }
}

/// Answers requests from other threads until all handles are gone.
async fn answer(mut arriving: mpsc::Receiver<Crossing>) {
    while let Some(Crossing { slot, request, reply }) = arriving.recv().await {
        let volume = HERE.with_borrow(|here| here.slots.get(slot).cloned().flatten());
        let Some(volume) = volume else { continue };
        tokio::task::spawn_local(async move {
            // A dropped receiver means the asker has gone: the request is done all the same.
            let _unheard = reply.send(volume.submit(request).await);
        });
    }
}
