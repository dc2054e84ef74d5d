//! A disk that keeps two images of every file: what a reader sees, and what a power cut cannot take away.
//!
//! - A write lands in the visible image when it completes; `sync`, or `Durability::Now` for exactly its own bytes, copies it
//!   to the durable image.
//! - A write that is under way when the host stops lands sector by sector, or not.
//! - At a power cut every unsynced block of 4 KiB independently stays, vanishes, or is torn between sectors of 512 bytes.
//! - Creating and removing are durable when they return; interrupted, either outcome is possible.
//! - Errors say what they do on a real machine: bytes that cannot be read are `Corrupt`, a failed write or sync is
//!   `Unavailable`, and a write that found no room (thin provisioning, copy on write) is `NoSpace`.

use std::collections::{BTreeMap, BTreeSet};

use volumedriver::io::buf::{AlignedBuf, AreaSlice};
use volumedriver::world::{Disk, DiskFile, Durability};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::cache::{self, CacheHeader};

use super::faults::{Canary, Crash, DiskFaults, Drive, PASSING, is_in};
use super::journal::Written;
use super::rng::Rng;
use super::{Host, Link, State, mix, name_word};

/// Unit that is durable or not, bytes.
const BLOCK: usize = 4096;
/// Unit that a disk never tears, bytes.
const SECTOR: usize = 512;

#[derive(Clone)]
pub struct SimDisk(pub(crate) Link);

/// An open file. It stays readable after its name is removed.
#[derive(Clone)]
pub struct SimFile {
    link: Link,
    content: Content,
    len: u64,
}

#[derive(Clone)]
enum Content {
    /// A file of this disk, by number.
    File(u64),
    /// An object in the store's own files: namespace and name.
    Object(String, String),
}

impl SimFile {
    /// An object of the store, as a file.
    pub(crate) fn of_object(link: Link, namespace: String, name: String, len: u64) -> Self {
        Self { link, content: Content::Object(namespace, name), len }
    }

    /// The file's number, for the trace and messages; 0 for an object.
    fn id(&self) -> u64 {
        match self.content {
            Content::File(id) => id,
            Content::Object(..) => 0,
        }
    }
}

/// All files of one host.
#[derive(Default)]
pub(crate) struct DiskState {
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, FileState>,
    /// Files under creation and names under removal: undecided if the host stops now.
    creating: BTreeMap<u64, (String, u64)>,
    removing: BTreeMap<u64, String>,
    /// Writes under way, by number: what of them lands is open.
    writes: BTreeMap<u64, FlyingWrite>,
    /// How often in a row each place (file, offset) has failed.
    failed: BTreeMap<(u64, u64), u8>,
    /// Most bytes that files took at any time.
    pub peak_bytes: u64,
    /// Writes and syncs that failed for good since the host was started.
    pub broken: u64,
}

#[derive(Default)]
struct FileState {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Blocks whose visible bytes are not durable.
    dirty: BTreeSet<usize>,
    /// Those of which a sync failed: no later sync covers them unless they are written again.
    doomed: BTreeSet<usize>,
    /// Blocks that cannot be read until they are written again.
    unreadable: BTreeSet<usize>,
}

struct FlyingWrite {
    file: u64,
    offset: usize,
    data: Vec<u8>,
}

impl FileState {
    fn zeroed(len: u64) -> Self {
        let zeroes = || vec![0; len as usize];
        Self { visible: zeroes(), durable: zeroes(), ..Self::default() }
    }

    fn write(&mut self, offset: usize, data: &[u8], durability: Durability) {
        self.visible[offset..offset + data.len()].copy_from_slice(data);
        let blocks = offset / BLOCK..(offset + data.len()).div_ceil(BLOCK);
        self.unreadable.retain(|block| !blocks.contains(block));
        self.doomed.retain(|block| !blocks.contains(block));
        match durability {
            Durability::Later => self.dirty.extend(blocks),
            Durability::Now => {
                self.durable[offset..offset + data.len()].copy_from_slice(data);
                for block in blocks {
                    self.dirty.remove(&block);
                }
            }
        }
    }

    /// Makes the visible bytes of a block durable.
    fn harden(&mut self, block: usize) {
        let range = block * BLOCK..(block + 1) * BLOCK;
        self.durable[range.clone()].copy_from_slice(&self.visible[range]);
    }

    /// The host starts again. A block of which a sync failed is lost, or still in the device's cache like any other.
    fn settle_doomed(&mut self, rng: &mut Rng) {
        for block in std::mem::take(&mut self.doomed) {
            if rng.coin() {
                self.dirty.insert(block);
            } else {
                let range = block * BLOCK..(block + 1) * BLOCK;
                self.visible[range.clone()].copy_from_slice(&self.durable[range]);
            }
        }
    }

    /// What a power cut leaves: afterwards both images are the same.
    fn cut_power(&mut self, style: CutStyle, rng: &mut Rng) {
        for block in std::mem::take(&mut self.dirty) {
            match style.fate(rng) {
                Fate::Stays => self.harden(block),
                Fate::Vanishes => {}
                Fate::Torn => self.tear(block, rng),
            }
            let range = block * BLOCK..(block + 1) * BLOCK;
            self.visible[range.clone()].copy_from_slice(&self.durable[range]);
        }
    }

    fn tear(&mut self, block: usize, rng: &mut Rng) {
        for sector in 0..BLOCK / SECTOR {
            let start = block * BLOCK + sector * SECTOR;
            if rng.coin() {
                self.durable[start..start + SECTOR]
                    .copy_from_slice(&self.visible[start..start + SECTOR]);
            }
        }
    }
}

/// How a whole disk behaves in one power cut; drawn once per cut so that extremes are met often.
#[derive(Clone, Copy)]
enum CutStyle {
    AllStays,
    AllVanishes,
    Mixed,
}

#[derive(Clone, Copy)]
enum Fate {
    Stays,
    Vanishes,
    Torn,
}

impl CutStyle {
    fn draw(rng: &mut Rng) -> Self {
        rng.pick(&[(1, Self::AllStays), (3, Self::AllVanishes), (6, Self::Mixed)])
    }
    fn fate(self, rng: &mut Rng) -> Fate {
        match self {
            Self::AllStays => Fate::Stays,
            Self::AllVanishes => Fate::Vanishes,
            Self::Mixed => rng.pick(&[(5, Fate::Stays), (5, Fate::Vanishes), (2, Fate::Torn)]),
        }
    }
}

impl DiskState {
    pub fn used_bytes(&self) -> u64 {
        self.names().iter().map(|(_, len)| len).sum()
    }

    /// The disk as the host finds it when it starts again.
    pub fn crash(&mut self, crash: Crash, rng: &mut Rng) {
        if crash == Crash::DiscardLocal {
            *self = Self { peak_bytes: self.peak_bytes, ..Self::default() };
            return;
        }
        self.failed.clear();
        self.broken = 0;
        for (_, write) in std::mem::take(&mut self.writes) {
            self.land_partly(&write, rng);
        }
        for (id, (name, len)) in std::mem::take(&mut self.creating) {
            if rng.coin() {
                self.names.insert(name, id);
                self.files.insert(id, FileState::zeroed(len));
            }
        }
        for (_, name) in std::mem::take(&mut self.removing) {
            if rng.coin() {
                self.names.remove(&name);
            }
        }
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|id, _| named.contains(id));
        self.settle_doomed(rng);
        if crash == Crash::PowerLoss {
            let style = CutStyle::draw(rng);
            for file in self.files.values_mut() {
                file.cut_power(style, rng);
            }
        }
    }

    pub fn settle_doomed(&mut self, rng: &mut Rng) {
        self.files.values_mut().for_each(|file| file.settle_doomed(rng));
    }

    /// A write that nobody waits for any more: all of it, none of it, or any of its sectors.
    fn land_partly(&mut self, write: &FlyingWrite, rng: &mut Rng) {
        let Some(file) = self.files.get_mut(&write.file) else { return };
        let fate = rng.pick(&[(3, Fate::Stays), (2, Fate::Vanishes), (4, Fate::Torn)]);
        let torn_after = rng.below(write.data.len() as u64 * 2);
        for (n, sector) in write.data.chunks(SECTOR).enumerate() {
            let lands = match fate {
                Fate::Stays => true,
                Fate::Vanishes => false,
                Fate::Torn if (n * SECTOR) as u64 >= torn_after => false,
                Fate::Torn => rng.chance(900_000),
            };
            if lands {
                let start = write.offset + n * SECTOR;
                file.visible[start..start + sector.len()].copy_from_slice(sector);
                file.dirty.insert(start / BLOCK);
            }
        }
    }

    /// Whether this access of a place fails, or goes wrong: with this chance, but not too often in a row.
    fn goes_wrong(&mut self, place: (u64, u64), per_million: u32, rng: &mut Rng) -> bool {
        if !rng.chance(per_million) {
            self.failed.remove(&place);
            return false;
        }
        let times = self.failed.entry(place).or_insert(0);
        *times += 1;
        let wrong = *times <= PASSING;
        if !wrong {
            self.failed.remove(&place);
        }
        wrong
    }

    /// Flips one bit of a file's durable bytes (and what a reader sees), if it is that long.
    pub fn flip(&mut self, name: &str, byte: u64, bit: u32) -> bool {
        let Some(file) = self.names.get(name).and_then(|id| self.files.get_mut(id)) else {
            return false;
        };
        let byte = byte as usize;
        if byte >= file.visible.len() {
            return false;
        }
        file.visible[byte] ^= 1 << bit;
        file.durable[byte] ^= 1 << bit;
        true
    }

    /// Makes a file with these contents, in place of one of the same name.
    pub fn plant(&mut self, name: &str, id: u64, bytes: Vec<u8>) {
        let file = FileState { durable: bytes.clone(), visible: bytes, ..FileState::zeroed(0) };
        self.names.insert(name.to_owned(), id);
        self.files.insert(id, file);
    }

    /// Replaces bytes of a file, durably.
    pub fn overwrite(&mut self, name: &str, at: u64, bytes: &[u8]) -> bool {
        let Some(file) = self.names.get(name).and_then(|id| self.files.get_mut(id)) else {
            return false;
        };
        let range = at as usize..at as usize + bytes.len();
        let fits = range.end <= file.visible.len();
        if fits {
            file.visible[range.clone()].copy_from_slice(bytes);
            file.durable[range].copy_from_slice(bytes);
        }
        fits
    }

    /// Makes a block unreadable until it is written again.
    pub fn lose_block(&mut self, name: &str, at: u64) -> bool {
        let Some(file) = self.names.get(name).and_then(|id| self.files.get_mut(id)) else {
            return false;
        };
        file.unreadable.insert(at as usize / BLOCK)
    }

    /// What could not be read can be.
    pub fn heal(&mut self) {
        self.files.values_mut().for_each(|file| file.unreadable.clear());
    }

    /// Cuts a file off, durably.
    pub fn truncate(&mut self, name: &str, len: u64) -> bool {
        let Some(file) = self.names.get(name).and_then(|id| self.files.get_mut(id)) else {
            return false;
        };
        file.visible.truncate(len as usize);
        file.durable.truncate(len as usize);
        file.dirty.retain(|block| ((block + 1) * BLOCK) as u64 <= len);
        true
    }

    pub fn names(&self) -> Vec<(String, u64)> {
        let len = |id| self.files.get(id).map_or(0, |f| f.visible.len() as u64);
        self.names.iter().map(|(name, id)| (name.clone(), len(id))).collect()
    }

    pub fn contents(&self, name: &str) -> Option<&[u8]> {
        Some(&self.files.get(self.names.get(name)?)?.visible)
    }
}

impl State {
    fn disk(&mut self, link: &Link) -> &mut DiskState {
        self.hosts[link.host].drive(link.drive)
    }

    /// Lets a write complete; a dropped one is settled by [`FlyingGuard`].
    fn land(&mut self, link: &Link, flight: u64, durability: Durability) {
        let canary = self.faults.canary;
        let skipped = canary == Some(Canary::SkippedFlush);
        let durability = if skipped { Durability::Later } else { durability };
        let disk = self.disk(link);
        let Some(write) = disk.writes.remove(&flight) else { return };
        if canary == Some(Canary::UnmarkedCache) && is_mark(&write.data) {
            return;
        }
        if let Some(file) = disk.files.get_mut(&write.file) {
            file.write(write.offset, &write.data, durability);
        }
    }
}

/// Whether this is what the read cache's file says while it is in use.
fn is_mark(data: &[u8]) -> bool {
    CacheHeader::decode(data).is_ok_and(|header| header.state == cache::FileState::InUse)
}

/// Settles a write whose future was dropped while the host lives on: the device still carries it out.
struct FlyingGuard<'a> {
    link: &'a Link,
    flight: u64,
}

impl Drop for FlyingGuard<'_> {
    fn drop(&mut self) {
        if !self.link.is_over() {
            self.link.state().land(self.link, self.flight, Durability::Later);
        }
    }
}

impl Link {
    async fn disk_delay(&self) {
        let now = self.now();
        let (longest, delayed, slower) = {
            let state = self.state();
            let disk = state.faults.of(self.drive);
            let slower = if is_in(&disk.slow, now) { disk.slow_ms } else { 0 };
            (disk.delay_ms, disk.delayed, slower)
        };
        self.delay(1, longest.max(1), delayed).await;
        if slower > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(slower)).await;
        }
    }

    /// What the disk's faults say now.
    fn disk_says<T>(&self, ask: impl FnOnce(&DiskFaults, std::time::Duration) -> T) -> T {
        let now = self.now();
        ask(self.state().faults.of(self.drive), now)
    }
}

fn input_output_error(what: &str, name: impl std::fmt::Display) -> Fault {
    Fault::unavailable(format!("{what} of local file {name}: simulated input/output error"))
}

fn unreadable(name: impl std::fmt::Display) -> Fault {
    Fault::corrupt(format!("bytes of local file {name} cannot be read: simulated medium error"))
}

fn no_space(what: &str, name: impl std::fmt::Display) -> Fault {
    Fault::no_space(format!("{what} of local file {name}: the simulated disk is full"))
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn list(&self) -> Result<Vec<(String, u64)>> {
        self.0.gate("disk.list", 0).await;
        self.0.disk_delay().await;
        self.0.gate("disk.listed", 0).await;
        let mut state = self.0.state();
        let mut names = state.disk(&self.0).names();
        // "In any order": never a sorted one that the engine could come to rely on.
        let turn = state.rng.below(names.len() as u64 + 1) as usize;
        let len = names.len().max(1);
        names.rotate_left(turn % len);
        Ok(names)
    }

    async fn create(&self, name: &str, len: u64) -> Result<SimFile> {
        let link = &self.0;
        link.gate("disk.create", name_word(name) ^ len).await;
        if link.disk_says(|disk, now| is_in(&disk.full, now)) {
            return Err(no_space("creating", name));
        }
        let id = {
            let mut state = link.state();
            let id = state.take_flight_no();
            let capacity = state.faults.of(link.drive).capacity;
            let disk = state.disk(link);
            if disk.used_bytes().saturating_add(len) > capacity {
                return Err(Fault::no_space(format!(
                    "creating {name}: {len} bytes do not fit on the disk"
                )));
            }
            if disk.names.contains_key(name) {
                return Err(Fault::invalid(format!("creating {name}: the file exists")));
            }
            disk.creating.insert(id, (name.to_string(), len));
            id
        };
        link.disk_delay().await;
        link.gate("disk.creating", 0).await;
        {
            let mut state = link.state();
            let disk = state.disk(link);
            disk.creating.remove(&id);
            disk.names.insert(name.to_string(), id);
            disk.files.insert(id, FileState::zeroed(len));
            disk.peak_bytes = disk.peak_bytes.max(disk.used_bytes());
        }
        link.gate("disk.created", 0).await;
        Ok(SimFile { link: link.clone(), content: Content::File(id), len })
    }

    async fn open(&self, name: &str) -> Result<SimFile> {
        self.0.gate("disk.open", name_word(name)).await;
        let mut state = self.0.state();
        let disk = state.disk(&self.0);
        let id = disk.names.get(name).copied();
        let file = id.and_then(|id| Some((id, disk.files.get(&id)?)));
        let (id, file) =
            file.ok_or_else(|| Fault::invalid(format!("there is no local file {name}")))?;
        let len = file.visible.len() as u64;
        Ok(SimFile { link: self.0.clone(), content: Content::File(id), len })
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let link = &self.0;
        link.gate("disk.remove", name_word(name)).await;
        let flight = {
            let mut state = link.state();
            let flight = state.take_flight_no();
            state.disk(link).removing.insert(flight, name.to_string());
            flight
        };
        link.disk_delay().await;
        link.gate("disk.removing", 0).await;
        let gone = {
            let mut state = link.state();
            let disk = state.disk(link);
            disk.removing.remove(&flight);
            disk.names.remove(name)
        };
        link.gate("disk.removed", 0).await;
        gone.map(|_| ()).ok_or_else(|| Fault::invalid(format!("there is no local file {name}")))
    }
}

impl SimFile {
    fn check(&self, what: &str, offset: u64, len: usize) -> Result<()> {
        let aligned = offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK);
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.len);
        if aligned && inside {
            return Ok(());
        }
        let message = format!("{what} of {len} bytes at {offset} in a file of {} bytes", self.len);
        self.link.state().violations.push(format!("disk misused: {message}"));
        Err(Fault::invalid(message))
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> u64 {
        self.len
    }

    async fn read_at(&self, mut buf: AlignedBuf, offset: u64) -> Result<AlignedBuf> {
        let link = &self.link;
        let id = self.id();
        link.gate("file.read", id << 48 ^ offset ^ (buf.len() as u64) << 32).await;
        self.check("read", offset, buf.len())?;
        link.disk_delay().await;
        link.gate("file.reading", 0).await;
        let mut guard = link.state();
        let state = &mut *guard;
        let faults = state.faults.of(link.drive);
        let (fails, flips) = (faults.read_error, faults.flip_on_read);
        let disk = state.hosts[link.host].drive(link.drive);
        let place = (id, offset);
        let fails = disk.goes_wrong(place, fails, &mut state.rng);
        let flips = !fails && disk.goes_wrong(place, flips, &mut state.rng);
        if fails {
            return Err(unreadable(id));
        }
        state.copy_content(link, &self.content, offset, &mut buf)?;
        if flips && !buf.is_empty() {
            let bit = state.rng.below(buf.len() as u64 * 8) as usize;
            buf[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(buf)
    }

    async fn write_at(
        &self,
        slices: Vec<AreaSlice>,
        offset: u64,
        durability: Durability,
    ) -> Result<()> {
        let link = &self.link;
        let data = slices.iter().fold(Vec::new(), |mut all, slice| {
            all.extend_from_slice(slice);
            all
        });
        let print = u64::from(crc32fast::hash(&data));
        let id = self.id();
        link.gate("file.write", mix(id << 48 ^ offset) ^ print ^ (durability as u64)).await;
        self.check("write", offset, data.len())?;
        link.check_journal((id, offset as usize), &data);
        let flight = {
            let mut state = link.state();
            let flight = state.take_flight_no();
            let write = FlyingWrite { file: id, offset: offset as usize, data };
            state.disk(link).writes.insert(flight, write);
            flight
        };
        let guard = FlyingGuard { link, flight };
        link.disk_delay().await;
        link.gate("file.writing", 0).await;
        let outcome = link.finish_write(flight, (id, offset), durability);
        drop(guard);
        link.gate("file.written", 0).await;
        outcome
    }

    async fn sync(&self) -> Result<()> {
        let link = &self.link;
        let id = self.id();
        link.gate("file.sync", id).await;
        let covered: Vec<usize> = {
            let mut state = link.state();
            let file = state.disk(link).files.get(&id);
            file.map(|f| f.dirty.iter().copied().collect()).unwrap_or_default()
        };
        link.disk_delay().await;
        link.gate("file.syncing", covered.len() as u64).await;
        let outcome = link.finish_sync(id, covered);
        link.gate("file.synced", 0).await;
        outcome
    }
}

impl Link {
    /// Looks at a write to the journal that begins now.
    fn check_journal(&self, place: (u64, usize), data: &[u8]) {
        if self.drive != Drive::Buffer {
            return;
        }
        let mut guard = self.state();
        let state = &mut *guard;
        let Host { drives, journal, .. } = &mut state.hosts[self.host];
        let files = &drives[Drive::Buffer as usize].files;
        let is_durable = |written: &Written| {
            let blocks = written.offset / BLOCK..(written.offset + written.len) / BLOCK;
            files.get(&written.file).is_none_or(|file| {
                let any = |of: &BTreeSet<usize>| of.range(blocks.clone()).next().is_some();
                !any(&file.dirty) && !any(&file.doomed)
            })
        };
        let broken = journal.check_write(&state.store, place, data, is_durable);
        state.violations.extend(broken);
    }

    fn finish_write(&self, flight: u64, place: (u64, u64), durability: Durability) -> Result<()> {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        let faults = state.faults.of(self.drive);
        let (full, dead) = (is_in(&faults.full, now), is_in(&faults.dead, now));
        let fails = faults.write_error;
        let disk = state.hosts[self.host].drive(self.drive);
        let passing = disk.goes_wrong(place, fails, &mut state.rng);
        if !full && !dead && !passing {
            state.land(self, flight, durability);
            return Ok(());
        }
        disk.broken += u64::from(dead);
        if let Some(write) = disk.writes.remove(&flight) {
            disk.land_partly(&write, &mut state.rng);
        }
        let fails = state.faults.canary == Some(Canary::FullDiskFails);
        match full && !dead && !fails {
            true => Err(no_space("writing", place.0)),
            false => Err(input_output_error("writing", place.0)),
        }
    }

    fn finish_sync(&self, id: u64, covered: Vec<usize>) -> Result<()> {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        let faults = state.faults.of(self.drive);
        let fails = is_in(&faults.dead, now) || state.rng.chance(faults.sync_error);
        let canary = state.faults.canary;
        let disk = state.hosts[self.host].drive(self.drive);
        disk.broken += u64::from(fails);
        let file = disk.files.get_mut(&id).filter(|_| canary != Some(Canary::SkippedFlush));
        if let Some(file) = file {
            for block in covered {
                if !file.dirty.remove(&block) {
                    continue;
                }
                // Of a sync that fails some may be durable, or none; what is not stays so, whatever is synced later.
                match fails && state.rng.coin() {
                    true => drop(file.doomed.insert(block)),
                    false => file.harden(block),
                }
            }
        }
        let fails = fails && canary != Some(Canary::IgnoredSyncError);
        if fails { Err(input_output_error("syncing", id)) } else { Ok(()) }
    }
}

impl State {
    /// What a reader of a file sees from `offset` on.
    fn copy_content(
        &self,
        link: &Link,
        content: &Content,
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let (start, end) = (offset as usize, offset as usize + out.len());
        match content {
            Content::File(id) => {
                let file = self.hosts[link.host].drives[link.drive as usize].files.get(id);
                let file = file.ok_or_else(|| input_output_error("reading", id))?;
                if file.unreadable.range(start / BLOCK..end.div_ceil(BLOCK)).next().is_some() {
                    return Err(unreadable(id));
                }
                out.copy_from_slice(&file.visible[start..end]);
            }
            Content::Object(namespace, name) => {
                let body = self.store.body(namespace, name).ok_or_else(|| unreadable(name))?;
                out.copy_from_slice(&body[start..end]);
                // Where it decayed is a matter of its name.
                let word = mix(name_word(namespace) ^ mix(name_word(name)));
                let decayed = word % 1_000_000 < u64::from(self.faults.disk.decayed_files);
                let byte = (mix(word) % body.len() as u64) as usize;
                if decayed && (start..end).contains(&byte) {
                    out[byte - start] ^= 1 << (word % 8);
                }
            }
        }
        Ok(())
    }
}
