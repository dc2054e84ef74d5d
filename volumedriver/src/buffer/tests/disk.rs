//! A disk in memory that forgets, on a crash, some of what was not synced: any sector of 512 bytes by itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use volumedriver_core::fault::{Fault, Result};

use super::DiskWorld;
use crate::io::buf::{AlignedBuf, AreaSlice};
use crate::world::{Disk, DiskFile, Durability, World};

const SECTOR: usize = 512;

#[derive(Default)]
struct Image {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that are not durable yet, oldest first: (a sector's offset, bytes).
    pending: Vec<(usize, Vec<u8>)>,
    /// Offsets that cannot be read.
    unreadable: Vec<usize>,
}

#[derive(Default)]
struct State {
    files: RefCell<BTreeMap<String, Rc<RefCell<Image>>>>,
    seed: Cell<u64>,
    /// Calls until the power goes; `None`: never.
    fuse: Cell<Option<u64>>,
    fail_writes: Cell<bool>,
    room_bytes: Cell<Option<u64>>,
}

#[derive(Clone, Default)]
pub struct CrashDisk(Rc<State>);

#[derive(Clone)]
pub struct CrashFile {
    disk: CrashDisk,
    image: Rc<RefCell<Image>>,
}

pub fn step(seed: &Cell<u64>) -> u64 {
    let mut x = seed.get() | 1;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    seed.set(x);
    x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
}

impl CrashDisk {
    pub fn seeded(seed: u64) -> Self {
        let disk = Self::default();
        disk.0.seed.set(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678);
        disk
    }
    pub fn random(&self, below: u64) -> u64 {
        step(&self.0.seed) % below
    }
    pub fn crash_after(&self, calls: u64) {
        self.0.fuse.set(Some(calls));
    }
    pub fn is_down(&self) -> bool {
        self.0.fuse.get() == Some(0)
    }
    pub fn fail_writes(&self) {
        self.0.fail_writes.set(true);
    }
    pub fn limit_room(&self, bytes: u64) {
        self.0.room_bytes.set(Some(bytes));
    }
    /// Each sector in flight survives or not, by itself; then the power is back.
    pub fn restart(&self) {
        for image in self.0.files.borrow().values() {
            let mut image = image.borrow_mut();
            for (at, bytes) in std::mem::take(&mut image.pending) {
                if self.random(2) == 0 {
                    image.durable[at..at + SECTOR].copy_from_slice(&bytes);
                }
            }
            image.live = image.durable.clone();
        }
        self.0.fuse.set(None);
    }
    /// Changes bytes as a decaying disk does.
    pub fn damage(&self, name: &str, offset: usize) {
        let files = self.0.files.borrow();
        let mut image = files[name].borrow_mut();
        image.live[offset] ^= 0x10;
        image.durable[offset] ^= 0x10;
    }
    /// From now on the byte there cannot be read.
    pub fn make_unreadable(&self, name: &str, offset: usize) {
        self.0.files.borrow()[name].borrow_mut().unreadable.push(offset);
    }
    pub fn find(&self, needle: &[u8]) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        for (name, image) in &*self.0.files.borrow() {
            let blocks = image.borrow();
            let hits = blocks.live.chunks(4096).enumerate().filter(|(_, b)| b.starts_with(needle));
            found.extend(hits.map(|(n, _)| (name.clone(), n * 4096)));
        }
        found
    }
    pub fn put_block(&self, name: &str, offset: usize, block: &[u8]) {
        let files = self.0.files.borrow();
        let mut image = files[name].borrow_mut();
        image.live[offset..offset + block.len()].copy_from_slice(block);
        image.durable[offset..offset + block.len()].copy_from_slice(block);
    }
    pub fn block(&self, name: &str, offset: usize) -> Vec<u8> {
        self.0.files.borrow()[name].borrow().live[offset..offset + 4096].to_vec()
    }
    /// One call: burns the fuse and takes a random time. Never returns once the power is gone.
    async fn call(&self) {
        match self.0.fuse.get() {
            Some(0) => std::future::pending().await,
            Some(left) => self.0.fuse.set(Some(left - 1)),
            None => {}
        }
        for _ in 0..self.random(4) {
            tokio::task::yield_now().await;
        }
        if self.is_down() {
            std::future::pending().await
        }
    }
}

impl Disk for CrashDisk {
    type File = CrashFile;

    async fn list(&self) -> Result<Vec<(String, u64)>> {
        let files = self.0.files.borrow();
        Ok(files
            .iter()
            .map(|(name, image)| (name.clone(), image.borrow().live.len() as u64))
            .collect())
    }
    async fn create(&self, name: &str, len: u64) -> Result<CrashFile> {
        self.call().await;
        self.made(name, len)
    }
    async fn open(&self, name: &str) -> Result<CrashFile> {
        let image = self.0.files.borrow().get(name).cloned();
        let image = image.ok_or_else(|| Fault::invalid("no such file"))?;
        Ok(CrashFile { disk: self.clone(), image })
    }
    async fn remove(&self, _: &str) -> Result<()> {
        Err(Fault::bug("the buffer removes nothing"))
    }
}

impl CrashDisk {
    fn made(&self, name: &str, len: u64) -> Result<CrashFile> {
        let used: usize =
            self.0.files.borrow().values().map(|image| image.borrow().live.len()).sum();
        if self.0.room_bytes.get().is_some_and(|room| used as u64 + len > room) {
            return Err(Fault::no_space("the disk is full"));
        }
        let zeroes = vec![0; len as usize];
        let image = Image { live: zeroes.clone(), durable: zeroes, ..Image::default() };
        let image = Rc::new(RefCell::new(image));
        self.0.files.borrow_mut().insert(name.to_owned(), image.clone());
        Ok(CrashFile { disk: self.clone(), image })
    }
}

impl DiskFile for CrashFile {
    fn len(&self) -> u64 {
        self.image.borrow().live.len() as u64
    }
    async fn read_at(&self, mut buf: AlignedBuf, offset: u64) -> Result<AlignedBuf> {
        self.disk.call().await;
        let at = offset as usize;
        let len = buf.len();
        if self.image.borrow().unreadable.iter().any(|bad| (at..at + len).contains(bad)) {
            return Err(Fault::corrupt("the disk reports a medium error"));
        }
        buf.copy_from_slice(&self.image.borrow().live[at..at + len]);
        Ok(buf)
    }
    async fn write_at(
        &self,
        slices: Vec<AreaSlice>,
        offset: u64,
        durability: Durability,
    ) -> Result<()> {
        let mut at = offset as usize;
        let mut stretch = Vec::new();
        for slice in &slices {
            stretch.extend_from_slice(slice);
        }
        let start = at;
        for sector in stretch.chunks(SECTOR) {
            // Under way already: a crash from here on may leave it or not.
            self.image.borrow_mut().pending.push((at, sector.to_vec()));
            at += SECTOR;
        }
        self.disk.call().await;
        if self.disk.0.fail_writes.get() {
            return Err(Fault::unavailable("the disk reports an I/O error"));
        }
        let mut image = self.image.borrow_mut();
        image.live[start..at].copy_from_slice(&stretch);
        if durability == Durability::Now {
            image.durable[start..at].copy_from_slice(&stretch);
            image.pending.retain(|(sector, _)| !(start..at).contains(sector));
        }
        Ok(())
    }
    async fn sync(&self) -> Result<()> {
        let before = self.image.borrow().live.clone();
        self.disk.call().await;
        let mut image = self.image.borrow_mut();
        let image = &mut *image;
        // What returned before the call is in `before`; what is still under way stays pending.
        image.pending.retain(|(at, bytes)| before[*at..*at + SECTOR] != bytes[..]);
        image.durable = before;
        Ok(())
    }
}

/// A world whose time passes only by being looked at.
#[derive(Clone)]
pub struct CrashWorld {
    inner: DiskWorld<CrashDisk>,
    ticks: Rc<Cell<u64>>,
}

impl CrashWorld {
    pub fn new(disk: CrashDisk) -> Self {
        Self { inner: DiskWorld::new(disk), ticks: Rc::default() }
    }
}

impl World for CrashWorld {
    type Disk = CrashDisk;
    type Store = super::Nothing;
    type Pages = super::Nothing;

    fn disk(&self) -> &CrashDisk {
        self.inner.disk()
    }
    fn store(&self) -> &super::Nothing {
        self.inner.store()
    }
    fn pages(&self) -> &super::Nothing {
        self.inner.pages()
    }
    fn now(&self) -> Duration {
        self.ticks.set(self.ticks.get() + 1);
        Duration::from_micros(self.ticks.get() * 100)
    }
    fn sleep(&self, how_long: Duration) -> impl Future<Output = ()> + 'static {
        let turns = how_long.as_micros() / 100;
        let ticks = self.ticks.clone();
        async move {
            for _ in 0..turns.min(100) {
                ticks.set(ticks.get() + 1);
                tokio::task::yield_now().await;
            }
        }
    }
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.inner.spawn(task);
    }
    fn random_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&step(&self.inner.disk.0.seed).to_le_bytes());
        id
    }
}

/// Runs one life of the daemon: until the future ends or the power goes.
pub fn live<T>(disk: &CrashDisk, future: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("runtime: {error}"));
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let power = async {
            while !disk.is_down() {
                tokio::task::yield_now().await;
            }
        };
        match futures_util::future::select(std::pin::pin!(future), std::pin::pin!(power)).await {
            futures_util::future::Either::Left((value, _)) => Some(value),
            futures_util::future::Either::Right(_) => None,
        }
    })
}
