//! A simulated cluster of the NSM: the table in memory behind a network and a store that fail.
//!
//! A commit's outcome may be unknown: it was made and the answer is lost, it was not made, or it is made later.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use backend_alba::fault::{Fault, Result};
use backend_alba::name::{FragmentId, OsdId};
use backend_alba::nsm::kv::{Commit, Guard, Key, Kv, Value, Write};
use backend_alba::nsm::memory::Memory;
use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::canary::Canary;
use super::machine::{Damage, Machine};
use super::world::{End, Line, World, locked};

/// A commit that comes late comes within this time.
pub const LATEST: Duration = Duration::from_secs(60);

pub struct Table {
    pub no: usize,
    world: World,
    memory: Memory,
    state: Mutex<State>,
    /// For the bugs that are planted.
    machines: Mutex<Vec<Weak<Machine>>>,
}

#[derive(Default)]
struct State {
    is_out: bool,
    trouble: Trouble,
    /// Commits that will be made later.
    pending: BTreeMap<u64, Commit>,
    next: u64,
}

/// Commits whose outcome stays unknown, per million.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    pub lost_answer: u32,
    pub not_made: u32,
    pub made_later: u32,
}

enum Fate {
    Fine,
    LostAnswer,
    NotMade,
    MadeLater,
}

impl Table {
    #[must_use]
    pub fn new(no: usize, world: World) -> Arc<Self> {
        let (memory, state) = (Memory::default(), Mutex::default());
        Arc::new(Self { no, world, memory, state, machines: Mutex::default() })
    }

    pub fn set_machines(&self, machines: &[Arc<Machine>]) {
        *locked(&self.machines) = machines.iter().map(Arc::downgrade).collect();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
    pub fn set_out(&self, is_out: bool) {
        self.state().is_out = is_out;
    }
    pub fn set_trouble(&self, trouble: Trouble) {
        self.state().trouble = trouble;
    }
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.state().pending.is_empty()
    }
    #[must_use]
    pub fn is_fine(&self) -> bool {
        !self.state().is_out
    }

    /// All entries whose keys begin with this.
    #[must_use]
    pub fn all(&self, kind: u8) -> Vec<(Key, Value)> {
        let found = self.memory.range(vec![kind], vec![kind + 1], usize::MAX).now_or_never();
        found.and_then(Result::ok).unwrap_or_default()
    }

    /// What commits that come later would put under keys that begin with this.
    #[must_use]
    pub fn pending(&self, kind: u8) -> Vec<(Key, Value)> {
        let state = self.state();
        let writes = state.pending.values().flat_map(|commit| &commit.writes);
        let puts = writes.filter_map(|write| match write {
            Write::Put(key, value) if key.first() == Some(&kind) => {
                Some((key.clone(), value.clone()))
            }
            Write::Put(..) | Write::Delete(_) => None,
        });
        puts.collect()
    }

    async fn make(&self, mut commit: Commit) -> Result<bool> {
        commit.guards.retain(|guard| !self.is_forgotten(guard));
        if self.world.has(Canary::UnendingWork) {
            commit.writes.retain(|write| !matches!(write, Write::Delete(key) if key[0] == b'j'));
        }
        self.memory.commit(commit).await
    }

    /// With a bug planted, some guards are not looked at.
    fn is_forgotten(&self, guard: &Guard) -> bool {
        match guard.key.first() {
            Some(b'e') => self.world.has(Canary::NoEpochGuard),
            Some(b'm') => self.world.has(Canary::UnguardedPut) && guard.expected.is_none(),
            _ => false,
        }
    }

    fn drop_first(&self, commit: &Commit) {
        let machines = locked(&self.machines).clone().into_iter();
        let machines: Vec<Arc<Machine>> =
            machines.filter_map(|machine| machine.upgrade()).collect();
        for write in &commit.writes {
            if let Write::Put(key, osd) = write
                && let (Some(b'r'), Ok(file)) = (key.first(), key[1..].try_into())
                && let Some(machine) = machines.iter().find(|m| OsdId(m.id.0).0[..] == osd[..16])
            {
                machine.damage(FragmentId(file), Damage::Gone);
            }
        }
    }

    fn fate(&self) -> Fate {
        let Trouble { lost_answer, not_made, made_later } = self.state().trouble;
        let drawn = self.world.draw(|rng| rng.below(1_000_000)) as u32;
        match drawn {
            _ if drawn < lost_answer => Fate::LostAnswer,
            _ if drawn < lost_answer + not_made => Fate::NotMade,
            _ if drawn < lost_answer + not_made + made_later => Fate::MadeLater,
            _ => Fate::Fine,
        }
    }

    fn make_later(self: &Arc<Self>, commit: Commit) {
        let delay = self.world.draw(|rng| rng.between(1, LATEST.as_millis() as u64));
        let no = {
            let mut state = self.state();
            state.next += 1;
            let no = state.next;
            state.pending.insert(no, commit.clone());
            no
        };
        let table = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(delay)).await;
            let made = table.make(commit).await;
            table.world.trace(0x1a7e ^ u64::from(made.is_ok_and(|made| made)));
            table.state().pending.remove(&no);
        });
    }
}

/// A process's client of a table.
pub struct TableClient {
    pub table: Arc<Table>,
    pub line: Line,
}

impl TableClient {
    async fn go(&self, what: u64) -> Result<()> {
        self.line.go(End::Table(self.table.no), what).await?;
        self.check_out()
    }
    async fn come(&self) -> Result<()> {
        self.line.come(End::Table(self.table.no)).await
    }
    fn check_out(&self) -> Result<()> {
        if self.table.state().is_out {
            return Err(Fault::unavailable("the table is out of order"));
        }
        Ok(())
    }
}

impl fmt::Debug for TableClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {}", self.table.no)
    }
}

#[async_trait]
impl Kv for TableClient {
    fn place(&self) -> String {
        format!("table {}", self.table.no)
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn writes_at_once(&self) -> usize {
        100
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Value>>> {
        self.go(20).await?;
        let found = self.table.memory.get(keys).await;
        self.come().await?;
        found
    }

    async fn range(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        self.go(21).await?;
        let found = self.table.memory.range(from, to, limit).await;
        self.come().await?;
        found
    }

    async fn commit(&self, commit: Commit) -> Result<bool> {
        self.go(22).await?;
        if self.line.world.has(Canary::DroppedFirst) {
            self.table.drop_first(&commit);
        }
        let unknown = |why: &str| Err(Fault::unavailable(format!("table: {why}")));
        match self.table.fate() {
            Fate::Fine => {
                let made = self.table.make(commit).await;
                self.line.world.trace(23 ^ u64::from(made.as_ref().is_ok_and(|made| *made)));
                self.come().await?;
                made
            }
            Fate::LostAnswer => {
                let mut commit = commit;
                if self.line.world.has(Canary::HalfCommit) {
                    commit.writes.truncate(commit.writes.len().div_ceil(2));
                }
                self.table.make(commit).await?;
                self.come().await?;
                unknown("the answer is lost")
            }
            Fate::NotMade => {
                self.come().await?;
                unknown("no answer")
            }
            Fate::MadeLater => {
                self.table.make_later(commit);
                self.come().await?;
                unknown("no answer yet")
            }
        }
    }
}
