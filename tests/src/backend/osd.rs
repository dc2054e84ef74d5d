//! A process's client of a simulated OSD: the backend's own trait over a [`Line`]. What arrives is not believed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use backend_alba::fault::{Fault, Result};
use backend_alba::name::{FragmentId, OsdId};
use backend_alba::osd::{Fragment, FragmentWriter, Osd, Priority, Room, Title, Wanted};
use backend_alba::trailer::{BLOCK_BYTES, Trailer};
use bytes::Bytes;
use crc32fast::Hasher;

use super::canary::Canary;
use super::machine::Machine;
use super::world::{End, Line};

#[derive(Clone)]
pub struct Client {
    pub machine: Arc<Machine>,
    pub line: Line,
}

impl Client {
    async fn call<T>(&self, what: u64, work: impl FnOnce(&Machine) -> Result<T>) -> Result<T> {
        let outcome = self.machine.call(&self.line, what, work).await;
        outcome.map_err(|fault| fault.about(format!("machine {}", self.machine.no)))
    }

    fn is_reachable(&self) -> bool {
        let is_cut = self.line.is_cut(End::Osd(self.machine.no));
        !self.line.is_dead() && !is_cut && !self.line.world.is_over()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine {}", self.machine.no)
    }
}

#[async_trait]
impl Osd for Client {
    fn id(&self) -> OsdId {
        self.machine.id
    }
    fn place(&self) -> String {
        format!("machine {}", self.machine.no)
    }
    async fn room(&self) -> Result<Room> {
        self.call(1, |machine| Ok(machine.room())).await
    }
    async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>> {
        let file = title.file;
        let boot = self.call(2, |machine| machine.create(&title)).await?;
        let (client, sum) = (self.clone(), Hasher::new());
        Ok(Box::new(Writer { client, file, boot, sum, stage: Stage::Open }))
    }
    async fn open(&self, wanted: Wanted, _priority: Priority) -> Result<Option<Arc<dyn Fragment>>> {
        let told = self.call(3, |machine| Ok(machine.sums(wanted.file))).await?;
        let Some((len, block_crcs)) = told else { return Ok(None) };
        let is_believed = self.line.world.has(Canary::UncheckedFragment);
        if !is_believed && (len, combined(&block_crcs, len)) != (wanted.len, wanted.crc) {
            let machine = self.machine.no;
            return Err(Fault::corrupt(format!("machine {machine}: it is another fragment")));
        }
        let (client, is_removed) = (self.clone(), AtomicBool::new(false));
        Ok(Some(Arc::new(Opened { client, wanted, block_crcs, is_removed })))
    }
    async fn open_raw(&self, _file: FragmentId) -> Result<Option<std::fs::File>> {
        Ok(None)
    }
    async fn remove(&self, file: FragmentId) -> Result<()> {
        self.call(4, |machine| machine.remove(file)).await
    }
    async fn describe(&self, file: FragmentId) -> Result<Option<Trailer>> {
        self.call(11, |machine| Ok(machine.trailer(file))).await
    }
    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        self.call(5, |machine| Ok(machine.list(shard))).await
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// Its end was asked for: it may be there.
    Asked,
    Kept,
    Removed,
}

struct Writer {
    client: Client,
    file: FragmentId,
    boot: u64,
    sum: Hasher,
    stage: Stage,
}

#[async_trait]
impl FragmentWriter for Writer {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        pieces.iter().for_each(|piece| self.sum.update(piece));
        let (file, boot) = (self.file, self.boot);
        self.client.call(6, |machine| machine.append(file, boot, pieces)).await
    }

    async fn finish(&mut self, object_crc: Option<u32>) -> Result<u32> {
        self.stage = Stage::Asked;
        let file = (self.file, self.boot);
        let stored = self.client.call(7, |machine| machine.finish(file, object_crc)).await?;
        if stored != self.sum.clone().finalize() {
            return Err(Fault::unavailable("it stored other bytes"));
        }
        Ok(stored)
    }

    fn keep(&mut self) {
        self.stage = Stage::Kept;
    }

    async fn discard(mut self: Box<Self>) {
        if self.stage == Stage::Kept {
            return;
        }
        let file = self.file;
        self.stage = Stage::Removed;
        // What cannot be removed now is collected later.
        let _ = self.client.call(8, |machine| machine.remove(file)).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.client.is_reachable() {
            return;
        }
        match self.stage {
            Stage::Kept | Stage::Removed => {}
            Stage::Open => self.client.machine.give_up(self.file, self.boot),
            Stage::Asked => {
                let (client, file) = (self.client.clone(), self.file);
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime
                        .spawn(async move { client.call(9, |machine| machine.remove(file)).await });
                }
            }
        }
    }
}

struct Opened {
    client: Client,
    wanted: Wanted,
    block_crcs: Arc<[u32]>,
    is_removed: AtomicBool,
}

#[async_trait]
impl Fragment for Opened {
    /// Whole blocks come: what is checked is what was read.
    async fn read(self: Arc<Self>, from: u64, to: u64, _priority: Priority) -> Result<Bytes> {
        if from >= to {
            return Ok(Bytes::new());
        }
        let (file, start) = (self.wanted.file, from - from % BLOCK_BYTES);
        let end = to.next_multiple_of(BLOCK_BYTES).min(self.wanted.len);
        let answer = self.client.call(10, |machine| Ok(machine.read(file, start, end))).await?;
        let Some(answer) = answer else {
            self.is_removed.store(true, Ordering::Relaxed);
            return Err(Fault::corrupt("its file is missing"));
        };
        let blocks = if self.client.line.world.has(Canary::UncheckedFragment) {
            filled(&answer, end - start)
        } else {
            self.check(start, &answer)?;
            if (answer.len() as u64) < end - start {
                return Err(Fault::corrupt("less than was asked for"));
            }
            answer
        };
        Ok(blocks.slice((from - start) as usize..(to - start) as usize))
    }
    fn read_here(&self, _from: u64, _to: u64) -> Option<Result<Bytes>> {
        None
    }
    fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Relaxed)
    }
}

impl Opened {
    fn check(&self, start: u64, blocks: &[u8]) -> Result<()> {
        let crcs = self.block_crcs.iter().skip((start / BLOCK_BYTES) as usize);
        for (block, crc) in blocks.chunks(BLOCK_BYTES as usize).zip(crcs) {
            if crc32fast::hash(block) != *crc {
                return Err(Fault::corrupt("bytes do not match their checksum"));
            }
        }
        Ok(())
    }
}

/// As long as was asked for, whatever came.
fn filled(bytes: &Bytes, len: u64) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes.resize(len as usize, 0);
    bytes.into()
}

/// The checksum of a fragment of this length whose blocks have these.
fn combined(block_crcs: &[u32], len: u64) -> u32 {
    let mut whole = Hasher::new();
    let mut left = len;
    for crc in block_crcs {
        let block = left.min(BLOCK_BYTES);
        whole.combine(&Hasher::new_with_initial_len(*crc, block));
        left -= block;
    }
    whole.finalize()
}
