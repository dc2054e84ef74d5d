//! A simulated OSD: a machine with one disk, its moods, and what it holds.
//!
//! What was finished survives a crash of the machine, what was not may stay as a torn file or vanish. A machine may be down,
//! hang, be full or read-only, lie in its answers, and lose or damage what it holds; of the last, only as much as
//! [`super::truth::Truth`] allows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use backend_alba::fault::{Fault, Kind, Result};
use backend_alba::name::{FragmentId, ObjectId, OsdId};
use backend_alba::osd::{Purpose, Room, Title};
use backend_alba::trailer::{BLOCK_BYTES, Part, Trailer};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::canary::Canary;
use super::truth::Truth;
use super::world::{End, Line, World, locked};

/// With the bug planted, bytes are durable so much later than is said.
const UNSYNCED: Duration = Duration::from_secs(10);

/// More than a run stores.
pub const ROOMY: u64 = 1 << 30;

/// How a machine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Up,
    /// Every call fails.
    Down,
    /// No call ends.
    Hung,
}

/// What it says that is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A bit of what is read is another.
    Flip,
    /// Less than asked.
    Short,
    /// Bytes of another fragment, with its checksums: as an old version would be.
    Other,
    /// A fragment is stored that is not.
    Stored,
}

pub struct Machine {
    pub no: usize,
    pub id: OsdId,
    pub node: String,
    world: World,
    /// Which has the machines.
    truth: Weak<Truth>,
    /// Calls to it end by themselves after this time, as over a network; `None`: like a disk's, not before it answers.
    deadline: Option<Duration>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    files: BTreeMap<FragmentId, File>,
    mood: Mood,
    /// Counts its starts: what was being written in an earlier one is lost.
    boot: u64,
    capacity: u64,
    is_full: bool,
    is_read_only: bool,
    is_dead: bool,
    lie: Option<Lie>,
    /// Every call takes so much longer.
    slow: Duration,
}

/// A fragment's file.
#[derive(Clone)]
pub struct File {
    title: Title,
    object_crc: u32,
    pub bytes: Bytes,
    /// As they were when it was finished.
    pub block_crcs: Arc<[u32]>,
    pub is_finished: bool,
    pub is_damaged: bool,
    parts: Vec<Bytes>,
    len: u64,
    durable_at: Duration,
}

impl File {
    #[must_use]
    pub fn object(&self) -> ObjectId {
        self.title.part.object
    }
    /// Fragments of a put's object that may be lost before its manifest is there.
    #[must_use]
    pub fn slack(&self) -> usize {
        let policy = self.title.part.layout.policy;
        policy.least() - policy.data()
    }

    fn trailer(&self) -> Trailer {
        let Title { file: id, namespace, name, part, created_ms, .. } = &self.title;
        Trailer {
            id: *id,
            len: self.len,
            crc: crc32fast::hash(&self.bytes),
            created_ms: *created_ms,
            namespace: namespace.to_string(),
            name: name.to_string(),
            part: Part { object_crc: self.object_crc, ..*part },
            block_crcs: self.block_crcs.to_vec(),
        }
    }
}

/// How a fragment is damaged for good.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    Flipped,
    Truncated,
    Gone,
}

impl Machine {
    #[must_use]
    pub fn new(no: usize, node: String, world: World, truth: &Arc<Truth>, capacity: u64) -> Self {
        let deadline = world.draw(|rng| match rng.below(3) {
            0 => None,
            _ => Some(Duration::from_secs(rng.between(2, 10))),
        });
        let id = OsdId([no as u8 + 1; 16]);
        let state = State {
            files: BTreeMap::new(),
            mood: Mood::Up,
            boot: 0,
            capacity,
            is_full: false,
            is_read_only: false,
            is_dead: false,
            lie: None,
            slow: Duration::ZERO,
        };
        let (state, changed) = (Mutex::new(state), Notify::new());
        let truth = Arc::downgrade(truth);
        Self { no, id, node, world, truth, deadline, state, changed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// A call of a process: `work` is done when the request arrives and the machine is up.
    pub async fn call<T>(
        &self,
        line: &Line,
        what: u64,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let (end, begun) = (End::Osd(self.no), Instant::now());
        line.go(end, what ^ ((self.no as u64) << 56)).await?;
        let slow = self.state().slow;
        sleep(slow).await;
        self.up(begun).await?;
        let outcome = work(self);
        self.world.trace(what ^ u64::from(outcome.is_ok()));
        line.come(end).await?;
        outcome
    }

    async fn up(&self, begun: Instant) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            let mood = self.state().mood;
            match mood {
                Mood::Up => return Ok(()),
                Mood::Down => return Err(Fault::unavailable("the machine is down")),
                Mood::Hung => {}
            }
            match self.deadline {
                None => changed.await,
                Some(deadline) => {
                    let late = |_| Fault::unavailable("the machine does not answer");
                    timeout_at(begun + deadline, changed).await.map_err(late)?;
                }
            }
        }
    }

    // ---- what processes ask of it

    pub fn room(&self) -> Room {
        let state = self.state();
        let used = state.used();
        let left = if state.is_full { 0 } else { state.capacity.saturating_sub(used) };
        Room::new((state.capacity, used), state.capacity / 50, left)
    }

    /// For one more fragment of this length.
    #[must_use]
    pub fn has_room(&self, len: u64) -> bool {
        self.room().free_for(Purpose::Data) > len
    }
    /// It never fills in a run.
    #[must_use]
    pub fn is_roomy(&self) -> bool {
        self.state().capacity >= ROOMY
    }

    /// Begins a file; returns the boot it belongs to.
    pub fn create(&self, title: &Title) -> Result<u64> {
        let mut state = self.state();
        state.check_writable()?;
        let len = title.part.layout.fragment_len();
        let room = state.capacity.saturating_sub(state.used());
        if state.is_full || len > room {
            return Err(Fault::new(Kind::NoSpace, "the machine is full"));
        }
        let file = File {
            title: title.clone(),
            object_crc: 0,
            bytes: Bytes::new(),
            block_crcs: Arc::default(),
            is_finished: false,
            is_damaged: false,
            parts: Vec::new(),
            len,
            durable_at: Duration::ZERO,
        };
        if state.files.insert(title.file, file).is_some() {
            self.world.find(format!("fragment {} is made twice", title.file));
        }
        Ok(state.boot)
    }

    pub fn append(&self, id: FragmentId, boot: u64, pieces: Vec<Bytes>) -> Result<()> {
        let mut state = self.state();
        state.check_writable()?;
        state.open_file(id, boot)?.parts.extend(pieces);
        Ok(())
    }

    /// Durable when it returns, if the machine does not lie; with the checksum of what it got.
    pub fn finish(&self, (id, boot): (FragmentId, u64), object_crc: Option<u32>) -> Result<u32> {
        let now = self.world.now();
        let mut state = self.state();
        state.check_writable()?;
        let lies = state.lie == Some(Lie::Stored);
        let file = state.open_file(id, boot)?;
        let bytes = match &file.parts[..] {
            [one] => one.clone(),
            parts => parts.concat().into(),
        };
        if bytes.len() as u64 != file.len {
            return Err(Fault::invalid(format!("{} of {} bytes came", bytes.len(), file.len)));
        }
        file.parts = Vec::new();
        file.block_crcs = bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect();
        file.bytes = bytes;
        file.is_finished = true;
        if self.world.has(Canary::ManifestFirst) {
            file.durable_at = now + UNSYNCED;
        }
        let crc = crc32fast::hash(&file.bytes);
        file.object_crc = object_crc.unwrap_or(crc);
        let file = file.clone();
        let may_lie = || self.truth.upgrade().is_some_and(|truth| truth.take_unnamed(id, &file));
        if lies && may_lie() {
            state.files.remove(&id);
        }
        Ok(crc)
    }

    /// What a fragment's file says of itself.
    pub fn trailer(&self, id: FragmentId) -> Option<Trailer> {
        let state = self.state();
        state.files.get(&id).filter(|file| file.is_finished).map(File::trailer)
    }

    /// The checksums of a fragment's blocks.
    pub fn sums(&self, id: FragmentId) -> Option<(u64, Arc<[u32]>)> {
        let state = self.state();
        let file = match state.lie {
            Some(Lie::Other) if self.lies_now() => state.files.values().find(|f| f.is_finished),
            _ => state.files.get(&id),
        };
        let file = file.filter(|file| file.is_finished)?;
        Some((file.bytes.len() as u64, file.block_crcs.clone()))
    }

    /// Bytes nobody has checked yet; `None` when the file is missing.
    pub fn read(&self, id: FragmentId, from: u64, to: u64) -> Option<Bytes> {
        let state = self.state();
        let file = state.files.get(&id).filter(|file| file.is_finished)?;
        let cut = |file: &File| {
            let len = file.bytes.len() as u64;
            file.bytes.slice(from.min(len) as usize..to.min(len) as usize)
        };
        let bytes = cut(file);
        Some(match state.lie {
            Some(Lie::Flip) if self.lies_now() => self.flipped(&bytes),
            Some(Lie::Short) if self.lies_now() => bytes.slice(..bytes.len() / 2),
            Some(Lie::Other) if self.lies_now() => {
                let other =
                    state.files.values().find(|f| f.is_finished && f.object() != file.object());
                other.map_or(bytes, cut)
            }
            _ => bytes,
        })
    }

    pub fn remove(&self, id: FragmentId) -> Result<()> {
        let mut state = self.state();
        if state.is_read_only {
            return Err(Fault::unavailable("the file system is read-only"));
        }
        state.files.remove(&id);
        Ok(())
    }

    pub fn list(&self, shard: u8) -> Vec<FragmentId> {
        self.state().files.keys().filter(|id| id.0[0] == shard).copied().collect()
    }

    /// Its writer went away before it finished.
    pub fn give_up(&self, id: FragmentId, boot: u64) {
        let mut state = self.state();
        if state.open_file(id, boot).is_ok() {
            state.files.remove(&id);
        }
    }

    fn lies_now(&self) -> bool {
        self.world.draw(|rng| rng.below(10) < 6)
    }

    fn flipped(&self, bytes: &Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        if !bytes.is_empty() {
            let bit = self.world.draw(|rng| rng.below(bytes.len() as u64 * 8)) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        bytes.into()
    }

    // ---- what happens to it

    pub fn set_mood(&self, mood: Mood) {
        {
            let mut state = self.state();
            state.mood = if state.is_dead { Mood::Down } else { mood };
        }
        self.changed.notify_waiters();
    }
    pub fn set_lie(&self, lie: Option<Lie>) {
        self.state().lie = lie;
    }
    pub fn set_full(&self, is_full: bool) {
        self.state().is_full = is_full;
    }
    pub fn set_read_only(&self, is_read_only: bool) {
        self.state().is_read_only = is_read_only;
    }
    pub fn set_slow(&self, slow: Duration) {
        self.state().slow = slow;
    }

    /// Nothing is wrong with it.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        let state = self.state();
        state.mood == Mood::Up && state.lie.is_none() && !state.is_full && !state.is_read_only
    }

    /// Down for good.
    pub fn die(&self) {
        self.state().is_dead = true;
        self.crash();
    }
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    pub fn heal(&self) {
        let mut state = self.state();
        (state.lie, state.is_full, state.is_read_only) = (None, false, false);
        state.slow = Duration::ZERO;
        drop(state);
        self.set_mood(Mood::Up);
    }

    /// Down until its mood is set again; what was not durable is gone, or torn.
    pub fn crash(&self) {
        let now = self.world.now();
        let keeps_torn = self.world.draw(|rng| rng.coin());
        let mut state = self.state();
        state.boot += 1;
        state.files.retain(|_, file| {
            let is_durable = file.is_finished && file.durable_at <= now;
            is_durable || (keeps_torn && !file.is_finished)
        });
        drop(state);
        self.set_mood(Mood::Down);
    }

    /// All finished files.
    #[must_use]
    pub fn finished(&self) -> Vec<FragmentId> {
        let state = self.state();
        state.files.iter().filter(|(_, file)| file.is_finished).map(|(id, _)| *id).collect()
    }
    /// All that it would list.
    #[must_use]
    pub fn held(&self) -> Vec<FragmentId> {
        self.state().files.keys().copied().collect()
    }
    #[must_use]
    pub fn file(&self, id: FragmentId) -> Option<File> {
        self.state().files.get(&id).cloned()
    }
    /// It is there as it was written.
    #[must_use]
    pub fn is_intact(&self, id: FragmentId) -> bool {
        self.state().files.get(&id).is_some_and(|file| file.is_finished && !file.is_damaged)
    }

    pub fn damage(&self, id: FragmentId, damage: Damage) {
        let mut state = self.state();
        match damage {
            Damage::Gone => {
                state.files.remove(&id);
            }
            Damage::Flipped | Damage::Truncated => {
                // No byte of an empty one is another.
                let file = state.files.get_mut(&id).filter(|file| !file.bytes.is_empty());
                let Some(file) = file else { return };
                file.is_damaged = true;
                file.bytes = match damage {
                    Damage::Flipped => self.flipped(&file.bytes),
                    Damage::Truncated | Damage::Gone => file.bytes.slice(..file.bytes.len() / 2),
                };
            }
        }
    }
}

impl State {
    fn used(&self) -> u64 {
        self.files.values().map(|file| file.len).sum()
    }

    fn check_writable(&self) -> Result<()> {
        if self.is_read_only {
            return Err(Fault::unavailable("the file system is read-only"));
        }
        Ok(())
    }

    fn open_file(&mut self, id: FragmentId, boot: u64) -> Result<&mut File> {
        let is_same = boot == self.boot;
        let open = self.files.get_mut(&id).filter(|file| is_same && !file.is_finished);
        open.ok_or_else(|| Fault::unavailable("the machine knows nothing of this fragment"))
    }
}
