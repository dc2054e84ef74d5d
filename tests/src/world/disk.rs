//! A disk that keeps two images of every file: what a reader sees, and what a power cut cannot take away.
//!
//! - A write lands in the visible image when it completes; `sync`, or `Durability::Now` for exactly its own bytes, copies it
//!   to the durable image.
//! - A write that is under way when the host stops lands sector by sector, or not.
//! - At a power cut every unsynced block of 4 KiB independently stays, vanishes, or is torn between sectors of 512 bytes.
//! - Creating and removing are durable when they return; interrupted, either outcome is possible.

use std::collections::{BTreeMap, BTreeSet};

use volumedriver::io::buf::{AlignedBuf, AreaSlice};
use volumedriver::world::{Disk, DiskFile, Durability};
use volumedriver_core::fault::{Fault, Result};

use super::faults::{Canary, Crash, DiskFaults, Faults};
use super::rng::Rng;
use super::{Link, State, mix, name_word};

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
    id: u64,
    len: u64,
    device: Device,
}

/// Which of the host's devices a file lies on: they fail separately.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    Buffer,
    Cache,
}

impl Device {
    fn of(name: &str) -> Self {
        if name.starts_with("cache-") { Self::Cache } else { Self::Buffer }
    }
    fn faults(self, faults: &Faults) -> &DiskFaults {
        match self {
            Self::Buffer => &faults.disk,
            Self::Cache => &faults.cache,
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
    /// Most bytes that files took at any time.
    pub peak_bytes: u64,
}

#[derive(Default)]
struct FileState {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Blocks whose visible bytes are not durable.
    dirty: BTreeSet<usize>,
}

struct FlyingWrite {
    file: u64,
    offset: usize,
    data: Vec<u8>,
}

impl FileState {
    fn zeroed(len: u64) -> Self {
        let len = len as usize;
        Self { visible: vec![0; len], durable: vec![0; len], dirty: BTreeSet::new() }
    }

    fn write(&mut self, offset: usize, data: &[u8], durability: Durability) {
        self.visible[offset..offset + data.len()].copy_from_slice(data);
        let blocks = offset / BLOCK..(offset + data.len()).div_ceil(BLOCK);
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
        if crash == Crash::PowerLoss {
            let style = CutStyle::draw(rng);
            for file in self.files.values_mut() {
                file.cut_power(style, rng);
            }
        }
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
        &mut self.hosts[link.host].disk
    }

    /// Lets a write complete; a dropped one is settled by [`FlyingGuard`].
    fn land(&mut self, link: &Link, flight: u64, durability: Durability) {
        let skipped = self.faults.canary == Some(Canary::SkippedFlush);
        let durability = if skipped { Durability::Later } else { durability };
        let disk = self.disk(link);
        let Some(write) = disk.writes.remove(&flight) else { return };
        if let Some(file) = disk.files.get_mut(&write.file) {
            file.write(write.offset, &write.data, durability);
        }
    }
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
    async fn disk_delay(&self, device: Device) {
        let (longest, delayed) = {
            let state = self.state();
            let faults = device.faults(&state.faults);
            (faults.delay_ms, faults.delayed)
        };
        self.delay(1, longest.max(1), delayed).await;
    }
}

fn input_output_error(what: &str, name: impl std::fmt::Display) -> Fault {
    Fault::unavailable(format!("{what} of local file {name}: simulated input/output error"))
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn list(&self) -> Result<Vec<(String, u64)>> {
        self.0.gate("disk.list", 0).await;
        self.0.disk_delay(Device::Buffer).await;
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
        let device = Device::of(name);
        link.gate("disk.create", name_word(name) ^ len).await;
        let id = {
            let mut state = link.state();
            let (id, capacity) = (state.take_flight_no(), device.faults(&state.faults).capacity);
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
        link.disk_delay(device).await;
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
        Ok(SimFile { link: link.clone(), id, len, device })
    }

    async fn open(&self, name: &str) -> Result<SimFile> {
        self.0.gate("disk.open", name_word(name)).await;
        let mut state = self.0.state();
        let disk = state.disk(&self.0);
        let id = disk.names.get(name).copied();
        let file = id.and_then(|id| Some((id, disk.files.get(&id)?)));
        let (id, file) =
            file.ok_or_else(|| Fault::invalid(format!("there is no local file {name}")))?;
        let (len, device) = (file.visible.len() as u64, Device::of(name));
        Ok(SimFile { link: self.0.clone(), id, len, device })
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
        link.disk_delay(Device::of(name)).await;
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
        link.gate("file.read", self.id << 48 ^ offset ^ (buf.len() as u64) << 32).await;
        self.check("read", offset, buf.len())?;
        link.disk_delay(self.device).await;
        link.gate("file.reading", 0).await;
        let mut guard = link.state();
        let state = &mut *guard;
        if state.rng.chance(self.device.faults(&state.faults).read_error) {
            return Err(input_output_error("reading", self.id));
        }
        let flip = state.rng.chance(self.device.faults(&state.faults).flip_on_read);
        let Some(file) = state.hosts[link.host].disk.files.get(&self.id) else {
            return Err(input_output_error("reading", self.id));
        };
        let start = offset as usize;
        let len = buf.len();
        buf.copy_from_slice(&file.visible[start..start + len]);
        if flip && !buf.is_empty() {
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
        link.gate("file.write", mix(self.id << 48 ^ offset) ^ print ^ (durability as u64)).await;
        self.check("write", offset, data.len())?;
        let flight = {
            let mut state = link.state();
            let flight = state.take_flight_no();
            let write = FlyingWrite { file: self.id, offset: offset as usize, data };
            state.disk(link).writes.insert(flight, write);
            flight
        };
        let guard = FlyingGuard { link, flight };
        link.disk_delay(self.device).await;
        link.gate("file.writing", 0).await;
        let failed = {
            let mut guard = link.state();
            let state = &mut *guard;
            let failed = state.rng.chance(self.device.faults(&state.faults).write_error);
            if failed {
                let disk = &mut state.hosts[link.host].disk;
                if let Some(write) = disk.writes.remove(&flight) {
                    disk.land_partly(&write, &mut state.rng);
                }
            } else {
                state.land(link, flight, durability);
            }
            failed
        };
        drop(guard);
        link.gate("file.written", 0).await;
        if failed { Err(input_output_error("writing", self.id)) } else { Ok(()) }
    }

    async fn sync(&self) -> Result<()> {
        let link = &self.link;
        link.gate("file.sync", self.id).await;
        let covered: Vec<usize> = {
            let mut state = link.state();
            let file = state.disk(link).files.get(&self.id);
            file.map(|f| f.dirty.iter().copied().collect()).unwrap_or_default()
        };
        link.disk_delay(self.device).await;
        link.gate("file.syncing", covered.len() as u64).await;
        {
            let mut guard = link.state();
            let state = &mut *guard;
            if state.rng.chance(self.device.faults(&state.faults).write_error) {
                return Err(input_output_error("syncing", self.id));
            }
            let skipped = state.faults.canary == Some(Canary::SkippedFlush);
            if let Some(file) = state.disk(link).files.get_mut(&self.id)
                && !skipped
            {
                for block in covered {
                    if file.dirty.remove(&block) {
                        file.harden(block);
                    }
                }
            }
        }
        link.gate("file.synced", 0).await;
        Ok(())
    }
}
