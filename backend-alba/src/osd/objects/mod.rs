//! The OSD whose fragments are objects of a store that knows nothing of fragments: a bucket, another ALBA.
//!
//! | key | what |
//! |---|---|
//! | `osd/<16 digits>` | a change of whose it is, text as in a directory's marker (see [`owner`]) |
//! | `<backend>/<first two digits>/<fragment id>` | a fragment, then its trailer: the bytes a directory's file has |
//!
//! What two backends store can never meet, not even on a store that let both of them claim it: neither collects what the
//! other has. Whose it is is asked before the first use and then once a minute; one that is another's is used no more.
//!
//! What arrives is not believed: the trailer's checksums must combine to the one the manifest has, and each block must match
//! its own. Every call ends within a time. A fragment goes up while it is being made; one that is given up leaves nothing.

mod fragment;
pub(super) mod owner;
mod writer;

use std::fmt::Debug;
use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::fragment::{ObjectFragment, load_trailer};
use self::writer::ObjectsWriter;
use super::gate::Gate;
use super::patience::{DEADLINE, SLOW_DEADLINE};
use super::{Fragment, FragmentWriter, Osd, Priority, Room, Title, Wanted};
use crate::fault::{Fault, Kind, Result};
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::trailer::{self, Trailer};

/// Reads and uploads of maintenance at once; more wait.
const PLACES: usize = 32;
/// That it is ours is believed for so long.
const OURS_FOR: Duration = Duration::from_secs(60);
/// Pages of one shard at most: more is no shard of ours.
const MAX_PAGES: usize = 10_000;

/// A store of immutable objects.
#[async_trait]
pub trait Objects: Debug + Send + Sync {
    /// Its URL.
    fn place(&self) -> String;
    /// The longest object it takes, bytes.
    fn longest(&self) -> u64;
    async fn room(&self) -> Result<Room>;
    /// An object of `len` bytes, which come through the queue; of a key that was never used before. Durable when it returns.
    /// A queue that ends early leaves nothing.
    async fn put(&self, key: &str, len: u64, body: mpsc::Receiver<Bytes>) -> Result<()>;
    /// A small object, unless there is one of this key. Tried again by itself, it may say `Exists` of its own.
    async fn put_if_absent(&self, key: &str, value: Bytes) -> Result<Created>;
    /// Exactly this range, which is not empty. `None` when there is no object, `Corrupt` when it is too short.
    async fn get(&self, key: &str, from: u64, len: u64) -> Result<Option<Bytes>>;
    /// Its length, and its last `len` bytes, or all of it. `None` when there is no object.
    async fn end(&self, key: &str, len: u64) -> Result<Option<(u64, Bytes)>>;
    /// Succeeds also when there is none.
    async fn delete(&self, key: &str) -> Result<()>;
    /// Some keys with this prefix, greater than `after`, in order.
    async fn list(&self, prefix: &str, after: &str) -> Result<Page>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    Now,
    /// There was one before.
    Exists,
}

#[derive(Clone, Debug, Default)]
pub struct Page {
    pub keys: Vec<String>,
    /// There are more after the last one.
    pub more: bool,
}

/// An OSD that belongs to a backend.
#[derive(Clone, Debug)]
pub struct OnObjects(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: OsdId,
    alba: AlbaId,
    objects: Arc<dyn Objects>,
    gate: Gate,
    /// Of a call that moves no bytes.
    deadline: Duration,
    /// When it was ours.
    ours: Mutex<Option<Instant>>,
}

impl OnObjects {
    /// Asks nothing yet.
    pub fn new(pair: (OsdId, AlbaId), objects: Arc<dyn Objects>) -> Self {
        Self::within(pair, objects, DEADLINE)
    }

    pub(super) fn within(
        (id, alba): (OsdId, AlbaId),
        objects: Arc<dyn Objects>,
        deadline: Duration,
    ) -> Self {
        let (gate, ours) = (Gate::new(PLACES), Mutex::default());
        Self(Arc::new(Inner { id, alba, objects, gate, deadline, ours }))
    }
}

impl Inner {
    fn key(&self, file: FragmentId) -> String {
        format!("{}{file}", self.shard(file.0[0]))
    }
    fn shard(&self, shard: u8) -> String {
        format!("{}/{shard:02x}/", self.alba)
    }

    /// Ends within the time, and names the OSD. After a failure nothing is believed to be as it was.
    async fn call<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let outcome = match tokio::time::timeout(deadline, call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let message = format!("it did not answer within {} s", deadline.as_secs_f64());
                Err(Fault::unavailable(message))
            }
        };
        self.named(outcome)
    }

    fn named<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|fault| {
            if fault.kind == Kind::Unavailable {
                *self.ours() = None;
            }
            fault.about(format!("OSD {}", self.objects.place()))
        })
    }

    // Replaced whole.
    fn ours(&self) -> MutexGuard<'_, Option<Instant>> {
        self.ours.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// `Unavailable` when it is not this OSD any more, or another backend's.
    async fn check(&self) -> Result<()> {
        if self.ours().is_some_and(|at| at.elapsed() < OURS_FOR) {
            return Ok(());
        }
        let found = self.call(self.deadline, owner::standing(&*self.objects)).await;
        // One whose marker makes no sense is out of reach until that is put right.
        let found = found.map_err(|fault| Fault { kind: Kind::Unavailable, ..fault })?;
        let said = found.map(|standing| (standing.id, standing.owner));
        if said == Some((self.id, Some(self.alba))) {
            *self.ours() = Some(Instant::now());
            return Ok(());
        }
        let message = match said {
            None => "there is no OSD".into(),
            Some((id, _)) if id != self.id => format!("it is OSD {id}, not {}", self.id),
            Some((_, None)) => "it belongs to nobody".into(),
            Some((_, Some(owner))) => {
                format!("it belongs to backend {owner}, not to {}", self.alba)
            }
        };
        self.named(Err(Fault::unavailable(message)))
    }

    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        let prefix = self.shard(shard);
        let (mut found, mut after) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let asked = self.objects.list(&prefix, &after);
            let page = self.call(SLOW_DEADLINE, asked).await?;
            let names = page.keys.iter().filter_map(|key| key.strip_prefix(&prefix));
            found.extend(names.filter_map(FragmentId::parse).filter(|id| id.0[0] == shard));
            match page.keys.last() {
                Some(last) if page.more && *last > after => after.clone_from(last),
                _ => return Ok(found),
            }
        }
        self.named(Err(Fault::unavailable(format!("{prefix} holds more than can be listed"))))
    }

    async fn remove(&self, file: FragmentId) -> Result<()> {
        self.call(self.deadline, self.objects.delete(&self.key(file))).await
    }
}

#[async_trait]
impl Osd for OnObjects {
    fn id(&self) -> OsdId {
        self.0.id
    }
    fn place(&self) -> String {
        self.0.objects.place()
    }

    async fn room(&self) -> Result<Room> {
        self.0.check().await?;
        self.0.call(self.0.deadline, self.0.objects.room()).await
    }

    async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>> {
        let inner = &self.0;
        let len = title.part.layout.fragment_len();
        let bytes = trailer::file_bytes(len, title.namespace.len() + title.name.len());
        let longest = inner.objects.longest();
        if bytes > longest {
            let message = format!("{bytes} bytes in one fragment, it takes {longest}");
            return inner.named(Err(Fault::new(Kind::NoSpace, message)));
        }
        let free = self.room().await?.free_for(title.purpose);
        if bytes > free {
            let message = format!("{bytes} bytes asked, {free} free");
            return inner.named(Err(Fault::new(Kind::NoSpace, message)));
        }
        let place = match title.priority {
            Priority::Foreground => None,
            Priority::Background => Some(inner.gate.enter(title.priority).await?),
        };
        Ok(Box::new(ObjectsWriter::begin(inner.clone(), &title, bytes, place)))
    }

    async fn open(&self, wanted: Wanted, priority: Priority) -> Result<Option<Arc<dyn Fragment>>> {
        self.0.check().await?;
        let _place = self.0.gate.enter(priority).await?;
        let opened = fragment::block_crcs(&self.0, wanted).await?;
        let fragment = |block_crcs: Vec<u32>| {
            let (osd, is_removed) = (self.0.clone(), AtomicBool::new(false));
            Arc::new(ObjectFragment { osd, wanted, block_crcs: block_crcs.into(), is_removed })
        };
        Ok(opened.map(|block_crcs| fragment(block_crcs) as Arc<dyn Fragment>))
    }

    /// Its files are in another machine.
    async fn open_raw(&self, _file: FragmentId) -> Result<Option<File>> {
        Ok(None)
    }

    async fn remove(&self, file: FragmentId) -> Result<()> {
        self.0.check().await?;
        self.0.remove(file).await
    }

    async fn describe(&self, file: FragmentId) -> Result<Option<Trailer>> {
        self.0.check().await?;
        let key = self.0.key(file);
        let said = self.0.call(SLOW_DEADLINE, load_trailer(&*self.0.objects, &key));
        let Some(trailer) = said.await? else { return Ok(None) };
        if trailer.id == file {
            return Ok(Some(trailer));
        }
        let message = format!("what it says of fragment {file} is of another");
        self.0.named(Err(Fault::corrupt(message)))
    }

    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        self.0.check().await?;
        self.0.list(shard).await
    }

    async fn release(&self, alba: AlbaId) -> Result<()> {
        let released = owner::release(&*self.0.objects, alba);
        let outcome = self.0.call(SLOW_DEADLINE, released).await;
        *self.0.ours() = None;
        outcome
    }
}
