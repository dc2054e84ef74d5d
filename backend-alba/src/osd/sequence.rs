//! Several changes of one OSD as one: asserts about its fragments, then updates.
//!
//! - Unless every assert holds nothing is done, and the fault is `AssertFailed`.
//! - No two sequences that name the same fragment run at the same time, on kinds that others cannot change behind their back
//!   (directories and ASDs; see [`one_by_one`] for the rest).
//! - What a sequence stores is durable when it returns. One that fails has stored nothing, but may have removed some of what
//!   it was to remove: fragments that are to go have no readers, and are removed again.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use super::{Osd, Priority, Title, Wanted};
use crate::fault::{Fault, Kind, Result};
use crate::name::FragmentId;

/// Most asserts and updates of a sequence together.
pub const MAX_PARTS: usize = 1024;
/// Longest fragment that a sequence stores, bytes.
pub const MAX_SMALL_BYTES: usize = 1 << 20;
/// Most fragments that a sequence stores, and bytes of them.
const MAX_STORED: usize = 64;
const MAX_BYTES: usize = 2 << 20;
/// Removed at once by kinds that know no sequences.
const REMOVED_SIDE_BY_SIDE: usize = 16;

/// Asserts, then updates.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    pub asserts: Vec<Assert>,
    /// Each of another fragment.
    pub updates: Vec<Update>,
    pub priority: Priority,
}

#[derive(Clone, Copy, Debug)]
pub enum Assert {
    /// There is no such fragment, not even one being written.
    Absent(FragmentId),
    /// It is there, and says of itself that it is this one.
    Present(Wanted),
}

#[derive(Clone, Debug)]
pub enum Update {
    Store(Small),
    /// Succeeds also when there is none.
    Remove(FragmentId),
}

/// A fragment that comes whole; its priority is that of the sequence.
#[derive(Clone, Debug)]
pub struct Small {
    pub title: Title,
    pub bytes: Vec<Bytes>,
    /// May be left out when it is the fragment's.
    pub object_crc: Option<u32>,
}

impl Sequence {
    #[must_use]
    pub fn removing(files: impl IntoIterator<Item = FragmentId>) -> Self {
        let updates = files.into_iter().map(Update::Remove).collect();
        Self { updates, ..Self::default() }
    }

    /// A new fragment, and no other.
    #[must_use]
    pub fn storing(small: Small) -> Self {
        let priority = small.title.priority;
        let asserts = vec![Assert::Absent(small.title.file)];
        Self { asserts, updates: vec![Update::Store(small)], priority }
    }

    /// What it stores, in order.
    pub fn stores(&self) -> impl Iterator<Item = &Small> {
        self.updates.iter().filter_map(|update| match update {
            Update::Store(small) => Some(small),
            Update::Remove(_) => None,
        })
    }

    /// What it removes, in order.
    pub fn removes(&self) -> impl Iterator<Item = FragmentId> {
        self.updates.iter().filter_map(|update| match update {
            Update::Store(_) => None,
            Update::Remove(file) => Some(*file),
        })
    }

    /// `Invalid` when it is none that an OSD would take.
    pub fn check(&self) -> Result<()> {
        let parts = self.asserts.len() + self.updates.len();
        if parts > MAX_PARTS {
            let message = format!("a sequence of {parts} parts, at most {MAX_PARTS} are legal");
            return Err(Fault::invalid(message));
        }
        let mut updated = HashSet::new();
        if let Some(file) =
            self.updates.iter().map(Update::file).find(|file| !updated.insert(*file))
        {
            let message = format!("a sequence updates fragment {file} twice");
            return Err(Fault::invalid(message));
        }
        let lens: Vec<usize> = self.stores().map(Small::len).collect();
        if let Some(len) = lens.iter().find(|len| **len > MAX_SMALL_BYTES) {
            let message = format!("{len} bytes at once, at most {MAX_SMALL_BYTES} are legal");
            return Err(Fault::invalid(message));
        }
        if lens.len() > MAX_STORED {
            let count = lens.len();
            let message = format!("{count} fragments at once, at most {MAX_STORED} are legal");
            return Err(Fault::invalid(message));
        }
        let bytes: usize = lens.iter().sum();
        if bytes > MAX_BYTES {
            let message = format!("a sequence of {bytes} bytes, at most {MAX_BYTES} are legal");
            return Err(Fault::invalid(message));
        }
        Ok(())
    }

    /// All fragments that it names.
    fn files(&self) -> HashSet<FragmentId> {
        let asserted = self.asserts.iter().map(Assert::file);
        asserted.chain(self.updates.iter().map(Update::file)).collect()
    }
}

impl Small {
    /// Of the fragment, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.iter().map(Bytes::len).sum()
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Assert {
    fn file(&self) -> FragmentId {
        match self {
            Self::Absent(file) => *file,
            Self::Present(wanted) => wanted.file,
        }
    }

    /// That it does not hold.
    pub(super) fn failed(&self) -> Fault {
        let message = match self {
            Self::Absent(file) => format!("fragment {file} is there"),
            Self::Present(Wanted { file, len, crc }) => {
                format!("there is no fragment {file} of {len} bytes with checksum {crc:08x}")
            }
        };
        Fault::new(Kind::AssertFailed, message)
    }
}

impl Update {
    fn file(&self) -> FragmentId {
        match self {
            Self::Store(small) => small.title.file,
            Self::Remove(file) => *file,
        }
    }
}

/// The sequence by calls of the other methods, for kinds that know no sequences. Between its steps others may change what it
/// asserts; but a fragment's id is never used twice, and nobody but its backend writes or removes it.
pub async fn one_by_one<O: Osd + ?Sized>(osd: &O, sequence: Sequence) -> Result<Vec<u32>> {
    sequence.check()?;
    for assert in &sequence.asserts {
        let holds = match assert {
            Assert::Absent(file) => osd.describe(*file).await.map(|found| found.is_none()),
            Assert::Present(wanted) => {
                osd.open(*wanted, sequence.priority).await.map(|found| found.is_some())
            }
        };
        match holds {
            Ok(true) => {}
            Ok(false) => return Err(assert.failed()),
            // What is there is something else.
            Err(fault) if fault.kind == Kind::Corrupt => return Err(assert.failed()),
            Err(fault) => return Err(fault),
        }
    }
    let mut stored = Vec::new();
    let outcome = change(osd, &sequence, &mut stored).await;
    for (mut writer, _) in stored {
        match outcome {
            Ok(_) => writer.keep(),
            Err(_) => writer.discard().await,
        }
    }
    outcome
}

type Stored = (Box<dyn super::FragmentWriter>, u32);

async fn change<O: Osd + ?Sized>(
    osd: &O,
    sequence: &Sequence,
    stored: &mut Vec<Stored>,
) -> Result<Vec<u32>> {
    for small in sequence.stores() {
        let title = Title { priority: sequence.priority, ..small.title.clone() };
        let mut writer = osd.create(title).await?;
        let written = match writer.append(small.bytes.clone()).await {
            Ok(()) => writer.finish(small.object_crc).await,
            Err(fault) => Err(fault),
        };
        match written {
            Ok(crc) => stored.push((writer, crc)),
            Err(fault) => {
                writer.discard().await;
                return Err(fault);
            }
        }
    }
    let removes: Vec<_> = sequence.removes().map(|file| osd.remove(file)).collect();
    let removed: Vec<Result<()>> =
        stream::iter(removes).buffer_unordered(REMOVED_SIDE_BY_SIDE).collect().await;
    removed.into_iter().collect::<Result<()>>()?;
    Ok(stored.iter().map(|(_, crc)| *crc).collect())
}

/// Fragments that sequences under way name.
#[derive(Debug, Default)]
pub(super) struct Turns {
    named: Mutex<HashSet<FragmentId>>,
    ended: Condvar,
}

/// While it lives no other sequence that names one of these runs.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    files: HashSet<FragmentId>,
}

impl Turns {
    /// Blocks until no other sequence names one of its fragments.
    pub(super) fn wait_for(&self, sequence: &Sequence) -> Turn<'_> {
        let files = sequence.files();
        let mut named = self.named();
        while !named.is_disjoint(&files) {
            named = self.ended.wait(named).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        named.extend(&files);
        Turn { turns: self, files }
    }

    // Each change is whole before anything can panic.
    fn named(&self) -> MutexGuard<'_, HashSet<FragmentId>> {
        self.named.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.named().retain(|file| !self.files.contains(file));
        self.turns.ended.notify_all();
    }
}
