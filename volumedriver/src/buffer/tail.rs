//! The state of the write buffer: segments, their images in memory, the record being built; changed without ever waiting.
//!
//! All offsets are bytes in a segment file. A segment goes free → active (one at a time) → full → free.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::journal::{
    BLOCK_BYTES, DataEntry, MarkEntry, RecordBuilder, Source,
};
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::units::{ClusterSize, Epoch, ScoId, ScoSeq, VolumeId};

use super::habit::Habit;
use super::held::HeldVolume;
use super::segment::{CHUNK_BYTES, Header, Segment};
use crate::io::buf::Area;

pub const MIN_SEGMENT_BYTES: u64 = 1 << 20;
/// Bytes of the header block of segments and records.
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;
/// Most payload bytes of one record.
const MAX_PAYLOAD: u64 = (1 << 20) - BLOCK;
/// Most bytes of one write to a file.
pub(super) const MAX_WRITE: u64 = 1 << 20;
/// The part of the last free segment that is left to seals.
const SEAL_SHARE: u64 = 16;

/// What was written since the buffer was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub records: u64,
    /// Bytes of clusters appended.
    pub data_bytes: u64,
    /// Bytes written to segment files, headers and padding included.
    pub written_bytes: u64,
    pub writes: u64,
    /// Durable at once: one device round trip.
    pub durable_writes: u64,
    pub syncs: u64,
}

struct OpenRecord {
    segment: usize,
    offset: u64,
    payload: u64,
}

/// A finished record that is not handed to a write yet.
struct Built {
    record: u64,
    segment: usize,
    start: u64,
    end: u64,
}

/// Records that are written at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    pub segment: usize,
    pub start: u64,
    pub end: u64,
    pub last_record: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Data,
    Seal,
}

pub(super) type Waiter = (u64, oneshot::Sender<Result<()>>);

pub(super) struct Tail<F> {
    pub segments: Vec<Segment<F>>,
    /// Used segments, oldest first; the last may be active.
    order: VecDeque<usize>,
    active: Option<usize>,
    /// Free segments, longest free first.
    free: VecDeque<usize>,
    open: Option<OpenRecord>,
    builder: RecordBuilder,
    queue: VecDeque<Built>,
    queued_bytes: u64,
    /// Number of the record being built or built next.
    next_record: u64,
    next_use: u64,
    /// Every record up to this one is durable.
    pub durable_record: u64,
    /// Every record up to this one was handed to a write.
    pub started_record: u64,
    /// The newest record with an entry.
    last_entry: u64,
    /// What the newest record says of `durable_record`.
    stated_record: u64,
    /// Chunks in memory, oldest first: (segment, chunk).
    images: VecDeque<(usize, usize)>,
    image_limit: usize,
    spare: Vec<Area>,
    /// An append found no memory; tell when there is some.
    pub starved: bool,
    volumes: HashMap<VolumeId, HeldVolume>,
    failure: Option<(Kind, String)>,
    pub waiters: Vec<Waiter>,
    pub habit: Habit,
    pub writes_in_flight: u32,
    stopping: bool,
    pub closed: bool,
    /// Something is lost, and which volumes that concerns is not decided: nothing is freed that tells of it.
    undecided: bool,
    pub growth: Growth,
    /// Number in the name of the next segment file.
    pub next_number: u32,
    pub counters: Counters,
}

/// Whether more segment files are being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    Possible,
    UnderWay,
    /// The disk was full at this time; tried again later.
    FullDisk(std::time::Duration),
}

impl<F> Tail<F> {
    pub fn new(next_record: u64, next_use: u64, memory_bytes: u64) -> Self {
        let chunks = usize::try_from(memory_bytes / CHUNK_BYTES).unwrap_or(usize::MAX);
        Self {
            segments: Vec::new(),
            order: VecDeque::new(),
            active: None,
            free: VecDeque::new(),
            open: None,
            builder: RecordBuilder::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            next_record,
            next_use,
            durable_record: next_record - 1,
            started_record: next_record - 1,
            last_entry: next_record - 1,
            stated_record: next_record - 1,
            images: VecDeque::new(),
            image_limit: chunks.max(4),
            spare: Vec::new(),
            starved: false,
            volumes: HashMap::new(),
            failure: None,
            waiters: Vec::new(),
            habit: Habit::default(),
            writes_in_flight: 0,
            stopping: false,
            closed: false,
            undecided: false,
            growth: Growth::Possible,
            next_number: 0,
            counters: Counters::default(),
        }
    }

    /// Recovery found that something is lost: whoever opens a volume must be able to keep the traces.
    pub fn hold(&mut self) {
        self.undecided = true;
    }

    /// Every volume was opened and keeps what it must.
    pub fn settle(&mut self) {
        self.undecided = false;
        self.free_oldest();
    }

    /// Keeps all segments in use until the volume is forgotten: they show what it lost.
    pub fn keep(&mut self, volume: VolumeId) {
        for index in &self.order {
            self.segments[*index].kept_for.insert(volume);
        }
    }

    /// Adds a segment that may be taken into use.
    pub fn add_free(&mut self, segment: Segment<F>) {
        self.free.push_back(self.segments.len());
        self.segments.push(segment);
    }

    /// Adds a segment with records, younger than those before.
    pub fn add_used(&mut self, segment: Segment<F>) {
        self.order.push_back(self.segments.len());
        self.segments.push(segment);
    }

    /// Adds a segment that stays as it is.
    pub fn add_unusable(&mut self, segment: Segment<F>) {
        self.segments.push(segment);
    }

    /// The name of the next segment file to make.
    pub fn next_name(&mut self) -> String {
        let name = segment_name(self.next_number);
        self.next_number += 1;
        name
    }

    /// Appends behind the last record of the newest used segment; only right when nothing lies behind it in its file.
    pub fn continue_newest(&mut self) {
        self.active = self.order.back().copied();
    }

    pub fn held(&mut self, volume: VolumeId, cluster_size: ClusterSize) -> &mut HeldVolume {
        self.volumes.entry(volume).or_insert_with(|| HeldVolume::new(cluster_size))
    }

    pub fn segment_count(&self) -> u32 {
        self.segments.len() as u32
    }

    pub fn segment_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    pub fn used_bytes(&self) -> u64 {
        let taken = |index: &usize| {
            let segment = &self.segments[*index];
            if self.active == Some(*index) { segment.end } else { segment.len }
        };
        self.order.iter().map(taken).sum()
    }

    pub fn full_disk(&self) -> bool {
        matches!(self.growth, Growth::FullDisk(_))
    }

    /// Bytes of memory for images, in use or spare.
    pub fn image_bytes(&self) -> u64 {
        let len = |&(segment, chunk): &(usize, usize)| self.segments[segment].chunk_len(chunk);
        let spare: u64 = self.spare.iter().map(|area| area.len() as u64).sum();
        self.images.iter().map(len).sum::<u64>() + spare
    }

    pub fn held_bytes(&self, volume: VolumeId) -> u64 {
        self.volumes.get(&volume).map_or(0, |held| held.bytes)
    }

    pub fn pressing(&self) -> Vec<VolumeId> {
        let oldest = self.order.len().div_ceil(4);
        let mut volumes = Vec::new();
        for index in self.order.iter().take(oldest) {
            let mut pinning: Vec<_> = self.segments[*index].pins.keys().copied().collect();
            pinning.sort_unstable();
            pinning.retain(|volume| !volumes.contains(volume));
            volumes.extend(pinning);
        }
        volumes
    }

    // ---- failure and end

    pub fn failure(&self) -> Option<Fault> {
        self.failure.as_ref().map(|(kind, message)| Fault::new(*kind, message.clone()))
    }

    /// The journal can be trusted no more; the first reason stays.
    pub fn fail(&mut self, fault: &Fault) {
        if self.failure.is_none() {
            tracing::error!(%fault, "the write buffer failed; it takes no more writes");
            self.failure = Some((fault.kind, format!("the write buffer failed: {fault}")));
        }
        for (_, waiter) in std::mem::take(&mut self.waiters) {
            // A waiter that is gone needs no answer.
            let _ = waiter.send(Err(Fault::new(fault.kind, fault.to_string())));
        }
    }

    pub fn stop_appends(&mut self) {
        self.stopping = true;
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    fn refuses(&self) -> bool {
        self.stopping || self.failure.is_some()
    }

    // ---- appending

    /// Number of the last record that has an entry.
    pub fn last_appended(&self) -> u64 {
        self.last_entry
    }

    /// Whether everything is durable, and no record says so yet of the last one. Until one does, recovery cannot tell a
    /// record that decayed from one that was never acknowledged.
    pub fn wants_note(&self) -> bool {
        self.stated_record < self.last_entry
            && self.durable_record >= self.last_entry
            && self.failure.is_none()
    }

    /// What recovery found: the newest record with an entry, and the newest that is said to be durable.
    pub fn resume(&mut self, last_entry: u64, stated_record: u64) {
        (self.last_entry, self.stated_record) = (last_entry, stated_record);
    }

    /// Appends a record without entries, which says how far the journal is durable; its number. `None`: no room for it now,
    /// a later record will say it.
    pub fn append_note(&mut self) -> Option<u64> {
        // The last free segment is left to those who have something to write.
        let another = if self.free.len() > 1 { self.free.front().copied() } else { None };
        let segment = self.active.or(another).filter(|_| self.open.is_none())?;
        let offset = self.segments[segment].end;
        let end = offset + BLOCK;
        if end > self.limit(segment, Purpose::Data)
            || !self.make_images(segment, offset, end, Purpose::Data)
        {
            return None;
        }
        self.activate(segment);
        self.segments[segment].end = end;
        self.open = Some(OpenRecord { segment, offset, payload: 0 });
        self.close_record();
        Some(self.next_record - 1)
    }

    pub fn pending_bytes(&self) -> u64 {
        self.queued_bytes + self.open.as_ref().map_or(0, |open| BLOCK + open.payload)
    }

    pub fn append_data(
        &mut self,
        source: Source,
        sco: ScoSeq,
        entry: DataEntry<'_>,
        data: &[u8],
    ) -> Option<()> {
        let (segment, offset) =
            self.place(&source, entry.crcs.len(), data.len() as u64, Purpose::Data)?;
        assert!(self.builder.push_data(source, sco, entry), "a new record holds any operation");
        self.segments[segment].fill(offset, data);
        self.counters.data_bytes += data.len() as u64;
        self.pin(&source, sco, segment);
        let held = self.held(source.volume, source.cluster_size);
        held.last_seq = entry.seq;
        let id = ScoId { epoch: source.epoch, seq: sco };
        let placed = held.place(id, entry.first_index, entry.crcs, (segment, offset));
        assert!(placed, "clusters of SCO {sco} are appended in order of their index");
        Some(())
    }

    pub fn append_mark(&mut self, source: Source, sco: ScoSeq, entry: MarkEntry) -> Option<()> {
        let (segment, _) = self.place(&source, 0, 0, Purpose::Data)?;
        assert!(self.builder.push_mark(source, sco, entry), "a new record holds a mark");
        self.pin(&source, sco, segment);
        self.held(source.volume, source.cluster_size).last_seq = entry.seq;
        Some(())
    }

    pub fn append_seal(&mut self, source: Source, sco: ScoSeq, cluster_count: u32) -> Option<()> {
        let (segment, _) = self.place(&source, 0, 0, Purpose::Seal)?;
        assert!(self.builder.push_seal(source, sco, cluster_count), "a new record holds a seal");
        self.pin(&source, sco, segment);
        Some(())
    }

    /// Notes that a segment has an entry of this SCO.
    pub fn pin(&mut self, source: &Source, sco: ScoSeq, segment: usize) {
        let held = self.held(source.volume, source.cluster_size);
        if held.pin(sco, segment) {
            *self.segments[segment].pins.entry(source.volume).or_insert(0) += 1;
        }
    }

    /// Notes where recovery found a change. Clusters of an older epoch give way to those of a younger one.
    pub fn replay(
        &mut self,
        segment: usize,
        source: &Source,
        sco: ScoSeq,
        change: &Change,
        offset: u64,
    ) {
        let held = self.held(source.volume, source.cluster_size);
        held.last_seq = held.last_seq.max(change.seq);
        if held.gives_way(sco, source.epoch, &change.kind) {
            held.supersede(sco, source.epoch);
        }
        self.pin(source, sco, segment);
        if let ChangeKind::Data { first_index, crcs } = &change.kind {
            let held = self.held(source.volume, source.cluster_size);
            let id = ScoId { epoch: source.epoch, seq: sco };
            if !held.place(id, *first_index, crcs, (segment, offset)) {
                tracing::error!(
                    volume = %source.volume, %sco, first_index,
                    "the write buffer has clusters of an SCO twice; the later ones are unreachable"
                );
            }
        }
    }

    /// Notes where recovery found that an SCO is sealed.
    pub fn replay_seal(&mut self, segment: usize, source: &Source, sco: ScoSeq) {
        self.pin(source, sco, segment);
    }

    pub fn active_segment(&self) -> Option<&Segment<F>> {
        self.active.map(|active| &self.segments[active])
    }

    /// Finds room in the open record, or in a new one, for an entry with its payload; returns where the payload goes.
    fn place(
        &mut self,
        source: &Source,
        crcs: usize,
        payload: u64,
        purpose: Purpose,
    ) -> Option<(usize, u64)> {
        if self.refuses() {
            return None;
        }
        if let Some(open) = &self.open {
            let (segment, at) = (open.segment, open.offset + BLOCK + open.payload);
            let fits = self.builder.fits(source, crcs)
                && open.payload + payload <= MAX_PAYLOAD
                && at + payload <= self.limit(segment, purpose);
            if fits {
                let place = self.extend(segment, at, payload, purpose)?;
                self.last_entry = self.next_record;
                return Some(place);
            }
        }
        let segment = self.segment_for(BLOCK + payload, purpose)?;
        let offset = self.segments[segment].end;
        if !self.make_images(segment, offset, offset + BLOCK + payload, purpose) {
            return None;
        }
        self.close_record();
        self.activate(segment);
        let offset = self.segments[segment].end;
        self.segments[segment].end = offset + BLOCK + payload;
        self.open = Some(OpenRecord { segment, offset, payload });
        self.last_entry = self.next_record;
        Some((segment, offset + BLOCK))
    }

    fn extend(
        &mut self,
        segment: usize,
        at: u64,
        payload: u64,
        purpose: Purpose,
    ) -> Option<(usize, u64)> {
        if !self.make_images(segment, at, at + payload, purpose) {
            return None;
        }
        self.segments[segment].end = at + payload;
        if let Some(open) = &mut self.open {
            open.payload += payload;
        }
        Some((segment, at))
    }

    /// Where appending to a segment must end.
    fn limit(&self, segment: usize, purpose: Purpose) -> u64 {
        let len = self.segments[segment].len;
        let last = match self.active {
            Some(active) if active == segment => self.free.is_empty(),
            Some(_) | None => self.free.len() <= 1,
        };
        match purpose {
            Purpose::Data if last => len - (len / SEAL_SHARE).next_multiple_of(BLOCK),
            Purpose::Data | Purpose::Seal => len,
        }
    }

    /// The segment where a new record of this length goes: the active one or the next free one.
    fn segment_for(&self, bytes: u64, purpose: Purpose) -> Option<usize> {
        let has_room = |index: &usize| {
            let start = self.segments[*index].end;
            start + bytes <= self.limit(*index, purpose)
        };
        let active = self.active.filter(has_room);
        active.or_else(|| self.free.front().copied().filter(has_room))
    }

    /// Takes a free segment into use.
    fn activate(&mut self, segment: usize) {
        if self.active == Some(segment) {
            return;
        }
        let position = self.free.pop_front();
        assert_eq!(position, Some(segment), "only the first free segment is taken");
        let taken = &mut self.segments[segment];
        taken.use_no = self.next_use;
        taken.first_record = self.next_record;
        taken.header = Header::Due;
        self.next_use += 1;
        self.active = Some(segment);
        self.order.push_back(segment);
    }

    /// Finishes the record being built, if any.
    pub fn close_record(&mut self) {
        let Some(open) = self.open.take() else { return };
        let segment = &mut self.segments[open.segment];
        let mut block = [0; BLOCK_BYTES];
        self.builder.finish(
            segment.use_no,
            self.next_record,
            self.durable_record,
            open.payload as u32,
            &mut block,
        );
        segment.fill(open.offset, &block);
        let end = open.offset + BLOCK + open.payload;
        let record = self.next_record;
        self.queue.push_back(Built { record, segment: open.segment, start: open.offset, end });
        self.queued_bytes += end - open.offset;
        self.next_record += 1;
        self.stated_record = self.durable_record;
        self.counters.records += 1;
    }

    /// Takes finished records that lie one after the other, as many as one write takes.
    pub fn next_batch(&mut self) -> Option<Batch> {
        let first = self.queue.front()?;
        let mut batch = Batch {
            segment: first.segment,
            start: first.start,
            end: first.start,
            last_record: first.record,
        };
        while let Some(next) = self.queue.front()
            && next.segment == batch.segment
            && (batch.end == batch.start || next.end - batch.start <= MAX_WRITE)
        {
            batch.end = next.end;
            batch.last_record = next.record;
            self.queue.pop_front();
        }
        self.queued_bytes -= batch.end - batch.start;
        let segment = &mut self.segments[batch.segment];
        segment.started = batch.end;
        segment.in_flight.push((batch.start, batch.end));
        self.started_record = batch.last_record;
        self.writes_in_flight += 1;
        Some(batch)
    }

    pub fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// A write ended. A failed stretch stays noted, so that its image is never dropped.
    pub fn batch_written(&mut self, batch: &Batch, durable: bool, result: Result<()>) {
        self.writes_in_flight -= 1;
        match result {
            Ok(()) => {
                let segment = &mut self.segments[batch.segment];
                segment.in_flight.retain(|stretch| *stretch != (batch.start, batch.end));
                segment.unsynced |= !durable;
                self.counters.writes += 1;
                self.counters.durable_writes += u64::from(durable);
                self.counters.written_bytes += batch.end - batch.start;
                self.free_oldest();
            }
            Err(fault) => self.fail(&fault),
        }
    }

    /// Answers the flushes that are covered now.
    pub fn answer_waiters(&mut self) {
        let durable = self.durable_record;
        let (covered, rest) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition::<Vec<_>, _>(|(target, _)| *target <= durable);
        self.waiters = rest;
        for (_, waiter) in covered {
            // A waiter that is gone needs no answer.
            let _ = waiter.send(Ok(()));
        }
    }

    // ---- images

    /// Makes sure that a stretch can be filled. `false`: there is no memory now.
    fn make_images(&mut self, segment: usize, start: u64, end: u64, purpose: Purpose) -> bool {
        for (chunk, _) in Segment::<F>::parts(start, end) {
            if self.segments[segment].chunks[chunk].is_some() {
                continue;
            }
            while self.images.len() >= self.image_limit && self.evict_oldest() {}
            if self.images.len() >= self.image_limit && purpose == Purpose::Data {
                self.starved = true;
                return false;
            }
            let len = self.segments[segment].chunk_len(chunk) as usize;
            let area = match self.spare.iter().rposition(|area| area.len() == len) {
                Some(at) => self.spare.swap_remove(at),
                None => Area::new(len),
            };
            self.segments[segment].chunks[chunk] = Some(area);
            self.images.push_back((segment, chunk));
        }
        true
    }

    /// Drops the oldest image if all of it is in its file.
    fn evict_oldest(&mut self) -> bool {
        let Some(&(index, chunk)) = self.images.front() else { return false };
        let segment = &mut self.segments[index];
        let all_stored = segment.started == segment.end && segment.in_flight.is_empty();
        let filled_up = self.active != Some(index) && all_stored;
        let end = chunk as u64 * CHUNK_BYTES + segment.chunk_len(chunk);
        if !filled_up && segment.stored() < end {
            return false;
        }
        recycle(segment.chunks[chunk].take(), &mut self.spare);
        self.images.pop_front();
        true
    }

    // ---- freeing

    pub fn dispose(&mut self, volume: VolumeId, up_to: ScoSeq) {
        let Some(held) = self.volumes.get_mut(&volume) else { return };
        while let Some((&sco, _)) = held.scos.first_key_value()
            && sco <= up_to
        {
            for segment in held.take(sco) {
                self.segments[segment].unpin(volume);
            }
        }
        self.free_oldest();
    }

    /// Forgets what epochs before this one wrote under an SCO position.
    pub fn supersede(&mut self, volume: VolumeId, sco: ScoSeq, epoch: Epoch) {
        if let Some(held) = self.volumes.get_mut(&volume) {
            held.supersede(sco, epoch);
        }
    }

    /// Gives up what is held of one SCO.
    pub fn give_up(&mut self, volume: VolumeId, sco: ScoSeq) {
        let Some(held) = self.volumes.get_mut(&volume) else { return };
        for segment in held.take(sco) {
            self.segments[segment].unpin(volume);
        }
        self.free_oldest();
    }

    pub fn forget(&mut self, volume: VolumeId) {
        for segment in &mut self.segments {
            segment.kept_for.remove(&volume);
        }
        self.dispose(volume, ScoSeq(u64::MAX));
        self.volumes.remove(&volume);
        self.free_oldest();
    }

    /// Frees used segments from the oldest on, as far as nobody needs them.
    pub fn free_oldest(&mut self) {
        while let Some(&index) = self.order.front() {
            let segment = &mut self.segments[index];
            let idle = segment.readers == 0
                && segment.in_flight.is_empty()
                && segment.started == segment.end;
            let needed = !segment.pins.is_empty() || !segment.kept_for.is_empty();
            if self.undecided || self.active == Some(index) || needed || !idle {
                return;
            }
            segment.header = Header::Stale;
            segment.end = BLOCK;
            segment.started = BLOCK;
            for chunk in &mut segment.chunks {
                recycle(chunk.take(), &mut self.spare);
            }
            self.images.retain(|image| image.0 != index);
            self.spare.truncate(self.image_limit.saturating_sub(self.images.len()));
            self.order.pop_front();
            self.free.push_back(index);
        }
    }

    /// The longest freed segment whose old header is still in its file.
    pub fn next_stale(&self) -> Option<usize> {
        self.free.iter().copied().find(|index| self.segments[*index].header == Header::Stale)
    }

    // ---- reading

    pub fn cluster_count(&self, volume: VolumeId, sco: ScoSeq) -> Option<u32> {
        let runs = &self.volumes.get(&volume)?.scos.get(&sco)?.runs;
        Some(runs.last().map_or(0, |run| run.first_index + run.crcs.len() as u32))
    }

    pub fn volume(&self, volume: VolumeId) -> Option<&HeldVolume> {
        self.volumes.get(&volume)
    }

    pub fn read_now(&self, volume: VolumeId, sco: ScoSeq, index: u32, out: &mut [u8]) -> bool {
        let Some(held) = self.volumes.get(&volume) else { return false };
        let cluster_bytes = held.cluster_size.bytes() as usize;
        let Ok(count) = u32::try_from(out.len() / cluster_bytes) else { return false };
        if !out.len().is_multiple_of(cluster_bytes) {
            return false;
        }
        let mut rest = out;
        held.visit(sco, index, count, |segment, offset, _, crcs| {
            let bytes = crcs.len() * cluster_bytes;
            let (here, after) = std::mem::take(&mut rest).split_at_mut(bytes);
            rest = after;
            self.segments[segment].copy_image(offset, here)
        })
    }
}

pub(super) fn segment_name(number: u32) -> String {
    format!("segment-{number:04}")
}

fn recycle(area: Option<Area>, spare: &mut Vec<Area>) {
    if let Some(mut area) = area
        && area.renew()
    {
        spare.push(area);
    }
}
