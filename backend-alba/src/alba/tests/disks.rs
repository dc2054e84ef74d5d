//! A backend that several processes share: one table and several OSDs, all in memory, the OSDs behind switches.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Mutex;

use async_trait::async_trait;

use super::faulty::{Mood, Switch};
use super::*;
use crate::nsm::kv::{Commit, Key, Kv, Value};
use crate::nsm::memory::Memory;
use crate::osd::{Fragment, FragmentWriter, Osd, Priority, Room, Wanted};
use crate::outside::Outside;
use crate::preset::Raw;

/// What of each OSD outlives the processes that use it.
#[derive(Clone, Debug)]
pub struct Disk {
    pub id: OsdId,
    pub node: String,
    pub switch: Switch,
    pub capacity: u64,
    held: Arc<Mutex<HashMap<FragmentId, Bytes>>>,
}

impl Disk {
    pub fn new(n: usize, node: &str) -> Self {
        let (id, node) = (OsdId([n as u8 + 1; 16]), node.to_string());
        Self { id, node, switch: Switch::default(), capacity: 1 << 30, held: Arc::default() }
    }
    pub fn held(&self) -> HashMap<FragmentId, Bytes> {
        self.held.lock().unwrap().clone()
    }
    pub fn used(&self) -> u64 {
        self.held.lock().unwrap().values().map(|bytes| bytes.len() as u64).sum()
    }
    pub fn add(&self, file: FragmentId, bytes: Bytes) {
        self.held.lock().unwrap().insert(file, bytes);
    }
    pub fn lose(&self, file: FragmentId) -> bool {
        self.held.lock().unwrap().remove(&file).is_some()
    }
    /// Flips a bit of it.
    pub fn damage(&self, file: FragmentId) {
        let mut held = self.held.lock().unwrap();
        let bytes = held.get_mut(&file).unwrap();
        let mut wrong = bytes.to_vec();
        wrong[0] ^= 1;
        *bytes = wrong.into();
    }
}

#[async_trait]
impl Osd for Disk {
    fn id(&self) -> OsdId {
        self.id
    }
    fn place(&self) -> String {
        format!("memory {}", self.id)
    }
    async fn room(&self) -> Result<Room> {
        self.switch.pass().await?;
        Ok(Room::new(
            (self.capacity, self.used()),
            0,
            self.capacity - self.used().min(self.capacity),
        ))
    }
    async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>> {
        self.switch.pass().await?;
        if self.switch.mood() == Mood::Full || self.used() >= self.capacity {
            return Err(Fault::new(Kind::NoSpace, "it is full"));
        }
        let (disk, file) = (self.clone(), title.file);
        // Listed from its beginning, as files are.
        assert!(disk.held.lock().unwrap().insert(file, Bytes::new()).is_none(), "used twice");
        Ok(Box::new(DiskWriter { disk, file, bytes: Vec::new(), is_kept: false }))
    }
    async fn open(&self, wanted: Wanted, _priority: Priority) -> Result<Option<Arc<dyn Fragment>>> {
        self.switch.pass().await?;
        let found = self.held.lock().unwrap().get(&wanted.file).cloned();
        let Some(bytes) = found else { return Ok(None) };
        let (disk, file) = (self.clone(), wanted.file);
        Ok(Some(Arc::new(DiskFragment { disk, file, bytes, crc: wanted.crc })))
    }
    async fn open_raw(&self, _file: FragmentId) -> Result<Option<File>> {
        Ok(None)
    }
    async fn remove(&self, file: FragmentId) -> Result<()> {
        self.switch.pass().await?;
        self.lose(file);
        Ok(())
    }
    async fn describe(&self, _file: FragmentId) -> Result<Option<crate::trailer::Trailer>> {
        Ok(None)
    }
    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        self.switch.pass().await?;
        let held = self.held.lock().unwrap();
        Ok(held.keys().filter(|id| id.0[0] == shard).copied().collect())
    }
}

struct DiskWriter {
    disk: Disk,
    file: FragmentId,
    bytes: Vec<u8>,
    is_kept: bool,
}

#[async_trait]
impl FragmentWriter for DiskWriter {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        self.disk.switch.pass().await?;
        pieces.iter().for_each(|piece| self.bytes.extend_from_slice(piece));
        Ok(())
    }
    async fn finish(&mut self, _object_crc: Option<u32>) -> Result<u32> {
        self.disk.switch.pass().await?;
        self.disk.add(self.file, self.bytes.clone().into());
        Ok(crc32fast::hash(&self.bytes))
    }
    fn keep(&mut self) {
        self.is_kept = true;
    }
    async fn discard(self: Box<Self>) {}
}

impl Drop for DiskWriter {
    fn drop(&mut self) {
        if !self.is_kept {
            self.disk.lose(self.file);
        }
    }
}

#[derive(Debug)]
struct DiskFragment {
    disk: Disk,
    file: FragmentId,
    bytes: Bytes,
    crc: u32,
}

#[async_trait]
impl Fragment for DiskFragment {
    async fn read(self: Arc<Self>, from: u64, to: u64, _priority: Priority) -> Result<Bytes> {
        self.disk.switch.pass().await?;
        if crc32fast::hash(&self.bytes) != self.crc {
            return Err(Fault::corrupt("its bytes are others"));
        }
        Ok(self.bytes.slice(from as usize..to as usize))
    }
    fn read_here(&self, _from: u64, _to: u64) -> Option<Result<Bytes>> {
        None
    }
    fn is_removed(&self) -> bool {
        !self.disk.held.lock().unwrap().contains_key(&self.file)
    }
}

/// The backend, and the processes that have it open.
pub struct Shared {
    table: Arc<Memory>,
    pub disks: Vec<Disk>,
    id: AlbaId,
}

#[derive(Debug)]
struct Slow(Arc<Memory>);

#[async_trait]
impl Kv for Slow {
    fn place(&self) -> String {
        self.0.place()
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn writes_at_once(&self) -> usize {
        self.0.writes_at_once()
    }
    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Value>>> {
        self.0.get(keys).await
    }
    async fn range(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        self.0.range(from, to, limit).await
    }
    async fn commit(&self, commit: Commit) -> Result<bool> {
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.0.commit(commit).await
    }
}

/// What makes a test short.
pub const QUICK: [&str; 5] = [
    "auto_repair_timeout_ms=1500",
    "lease_ms=1500",
    "tour_interval_ms=1000",
    "collect_interval_ms=200",
    "bytes_per_second=0",
];

impl Shared {
    pub fn new(nodes: &[&str]) -> Self {
        let disks = nodes.iter().enumerate().map(|(n, node)| Disk::new(n, node)).collect();
        Self { table: Arc::default(), disks, id: AlbaId::random() }
    }

    /// Another process, with these settings for all.
    pub async fn open(&self, settings: &[&str]) -> Alba {
        self.open_on(self.table.clone(), settings).await
    }

    /// One whose changes of the table take a while.
    pub async fn open_slowly(&self, settings: &[&str]) -> Alba {
        self.open_on(Arc::new(Slow(self.table.clone())), settings).await
    }

    async fn open_on(&self, table: Arc<dyn Kv>, settings: &[&str]) -> Alba {
        let given = |disk: &Disk| GivenOsd {
            osd: Box::new(disk.clone()),
            node: disk.node.clone(),
            labels: Vec::new(),
        };
        let alba = Alba::assemble(Parts {
            config: Config { orphan_grace: Duration::from_millis(50), ..Config::new("unused") },
            id: self.id,
            tables: vec![table],
            osds: self.disks.iter().map(given).collect(),
            outside: Outside::default(),
            threads: Threads::Here,
        });
        let alba = alba.await.unwrap();
        let changes: Vec<String> = settings.iter().map(ToString::to_string).collect();
        alba.change_maintenance(&changes).await.unwrap();
        alba
    }

    /// With one namespace of these policies.
    pub async fn begin(&self, policies: &[&str], settings: &[&str]) -> Alba {
        let alba = self.open(settings).await;
        let raw = Raw { fragment_bytes: 65_536, ..Raw::of(policies) };
        alba.put_preset("test", raw).await.unwrap();
        alba.create_namespace_with("ns", Some("test")).await.unwrap();
        alba
    }

    pub fn disk(&self, osd: OsdId) -> &Disk {
        self.disks.iter().find(|disk| disk.id == osd).unwrap()
    }
    /// All fragments there are.
    pub fn fragments(&self) -> usize {
        self.disks.iter().map(|disk| disk.held().len()).sum()
    }
}

/// Objects `0`.. of different bytes, some of them too small to be coded.
pub async fn fill(alba: &Alba, count: u64) {
    for n in 0..count {
        let body = body_of(n);
        let put = alba.put_if_absent("ns", &n.to_string(), vec![body], Purpose::Data).await;
        assert_eq!(put.unwrap(), Put::Created);
    }
}

pub fn body_of(n: u64) -> Bytes {
    noise(if n % 8 == 7 { 3000 } else { 40_000 + n as usize }, n + 1)
}

/// All objects are what was put.
pub async fn check(alba: &Alba, count: u64) {
    for n in 0..count {
        let body = body_of(n);
        let len = body.len() as u64;
        let got = alba.get_range("ns", &n.to_string(), 0, len).await.unwrap();
        assert!(got == Some(body), "object {n}");
    }
}

/// Waits until all that is stored is stored in full and on OSDs that are not among these, and the report agrees.
pub async fn eventually_full(alba: &Alba, without: &[OsdId]) {
    let mut why = String::new();
    for _ in 0..600 {
        let safety = alba.safety(&[], None).await.unwrap();
        let lacks = safety.lines.iter().find(|line| {
            let full = line.bucket.policy.total();
            line.bucket.fragments < full
                || line.tally.standing.osds < line.bucket.policy.parity() as i32
        });
        let mut found = lacks.map(|line| format!("{line:?}"));
        for osd in without {
            if !alba.inner.nsm.fragments_of(*osd, None, 1).await.unwrap().is_empty() {
                found = Some(format!("OSD {osd} still has fragments"));
            }
        }
        match found {
            None => return,
            Some(found) => why = found,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not repaired in 30 s: {why}");
}
