//! What a crash left in the segment files, and where the journal ends.
//!
//! 1. Headers are read and put in the order of their use; foreign ones are refused before anything is changed.
//! 2. Each used segment is scanned for records: block by block after a bad one, since whole records may lie behind it.
//!    Records that a later segment's `first_record` shuts out are dropped.
//! 3. The highest `durable_record` any record states is the watermark. What is missing or bad up to it is damage. Above it the
//!    journal ends at the first record that is missing or bad: a torn tail, which nobody was promised.
//! 4. The files are synced, so that what is kept is durable, and the next record goes to a fresh segment.

use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::journal::{BLOCK_BYTES, BadCluster, RecordHeader, verify_payload};
use volumedriver_core::format::segment::SegmentHeader;

use super::replay::{Replay, ReplayedVolume};
use super::tail::{BLOCK, Header, Segment, Tail, segment_name};
use super::{BufferConfig, FileOf};
use crate::io::buf::{AlignedBuf, AreaSlice};
use crate::world::{Disk, DiskFile, Durability, World};

/// Bytes read at a time where a large read failed.
const CAREFUL_READ: u64 = 64 << 10;
/// Segments needed to begin.
const MIN_SEGMENTS: usize = 2;

/// A segment file as found.
struct FoundFile<F> {
    number: u32,
    file: F,
    state: Found,
}

enum Found {
    /// Never used, or wiped.
    Blank,
    /// Neither blank nor a header.
    Unreadable,
    /// With the number of its first record, unless its header was lost and is inferred.
    Used { use_no: u64, first_record: Option<u64> },
}

/// A record whose header is whole.
pub(super) struct FoundRecord {
    /// Index among the used segments, and where its payload begins there.
    pub used: usize,
    pub payload_at: u64,
    pub header: RecordHeader,
    pub bad: Vec<BadCluster>,
}

impl FoundRecord {
    fn end(&self) -> u64 {
        self.payload_at + u64::from(self.header.payload_bytes)
    }
}

pub(super) async fn open<W: World>(
    world: &W,
    config: &BufferConfig,
) -> Result<(Tail<FileOf<W>>, Vec<ReplayedVolume>)> {
    let mut files = find_files(world, config).await?;
    let spare_number = files.iter().map(|file| file.number + 1).max().unwrap_or(0);
    let next_number = make_missing(world, config, &mut files, spare_number).await?;
    // What a killed process left in the device's cache counts from now on, so it must survive a power cut: wiped headers too,
    // or a segment that was freed long ago comes back between younger ones.
    for found in &files {
        found.file.sync().await?;
    }
    let unreadable = infer_lost_header(&mut files);
    let (used, rest) = split_used(files)?;
    let records = scan_all(&used).await?;
    let journal = Journal::decide(&used, records);
    let (next_record, next_use) = next_numbers(world, &used, &journal);
    let mut tail = Tail::new(next_record, next_use, config.memory_bytes);
    tail.next_number = next_number;
    let damaged = !journal.lost.is_empty() || unreadable;
    let volumes = fill_tail(&mut tail, used, journal);
    for found in rest {
        let len = found.file.len();
        match found.state {
            // It may hold what is missing: left alone for whoever wants to rescue it.
            Found::Unreadable if damaged && !volumes.is_empty() => {
                tail.add_unusable(Segment::new(found.file, len, Header::Stale));
            }
            Found::Unreadable => tail.add_free(Segment::new(found.file, len, Header::Stale)),
            Found::Blank | Found::Used { .. } => {
                tail.add_free(Segment::new(found.file, len, Header::Blank));
            }
        }
    }
    continue_if_full(&mut tail).await?;
    Ok((tail, volumes))
}

/// Opens the segment files and reads their headers; refuses what is not ours.
async fn find_files<W: World>(
    world: &W,
    config: &BufferConfig,
) -> Result<Vec<FoundFile<FileOf<W>>>> {
    let mut names = world.disk().list().await?;
    names.sort();
    let mut files = Vec::new();
    for (name, len) in names {
        let Some(number) = name.strip_prefix("segment-").and_then(|n| n.parse().ok()) else {
            continue;
        };
        if name != segment_name(number) {
            continue;
        }
        if len < super::MIN_SEGMENT_BYTES || !len.is_multiple_of(BLOCK) || len > 1 << 31 {
            return Err(Fault::invalid(format!(
                "write buffer file {name} is {len} bytes long, which no segment is; move it away"
            )));
        }
        let file = world.disk().open(&name).await?;
        let state = read_header(&file, &name, config).await?;
        files.push(FoundFile { number, file, state });
    }
    Ok(files)
}

async fn read_header<F: DiskFile>(file: &F, name: &str, config: &BufferConfig) -> Result<Found> {
    let block = match file.read_at(AlignedBuf::zeroed(BLOCK_BYTES), 0).await {
        Ok(block) => block,
        Err(fault) if fault.kind == Kind::Corrupt => return Ok(Found::Unreadable),
        Err(fault) => return Err(fault),
    };
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Found::Blank);
    }
    let header = match SegmentHeader::decode(&block) {
        Ok(header) => header,
        Err(fault) if fault.kind == Kind::Corrupt => {
            tracing::warn!(%fault, "write buffer file {name} has no readable header");
            return Ok(Found::Unreadable);
        }
        Err(fault) => return Err(fault.about(format!("write buffer file {name}"))),
    };
    if header.node != config.node || header.shard != config.shard {
        return Err(Fault::invalid(format!(
            "write buffer file {name} belongs to node {} shard {}, this is node {} shard {}; \
             name another directory",
            header.node, header.shard, config.node, config.shard
        )));
    }
    if header.segment_bytes != file.len() {
        return Err(Fault::invalid(format!(
            "write buffer file {name} is {} bytes long, its header says {}",
            file.len(),
            header.segment_bytes
        )));
    }
    let sane = header.use_no < u64::MAX / 2 && (1..u64::MAX / 2).contains(&header.first_record);
    let SegmentHeader { use_no, first_record, .. } = header;
    Ok(match sane {
        true => Found::Used { use_no, first_record: Some(first_record) },
        false => Found::Unreadable,
    })
}

/// Makes the first segments, as many as are needed to begin; more come later. Returns the next free number.
async fn make_missing<W: World>(
    world: &W,
    config: &BufferConfig,
    files: &mut Vec<FoundFile<FileOf<W>>>,
    mut number: u32,
) -> Result<u32> {
    while files.len() < MIN_SEGMENTS {
        let file = world.disk().create(&segment_name(number), config.segment_bytes).await?;
        files.push(FoundFile { number, file, state: Found::Blank });
        number += 1;
    }
    Ok(number)
}

/// If just one use is missing in the sequence and just one file has no header, they belong together. Returns whether files
/// without header are left.
fn infer_lost_header<F: DiskFile>(files: &mut [FoundFile<F>]) -> bool {
    let use_of = |file: &FoundFile<F>| match file.state {
        Found::Used { use_no, .. } => Some(use_no),
        Found::Blank | Found::Unreadable => None,
    };
    let mut uses: Vec<u64> = files.iter().filter_map(use_of).collect();
    uses.sort_unstable();
    let after_gap = uses.windows(2).filter(|pair| matches!(pair, [a, b] if b - a == 2));
    let missing: Vec<u64> = after_gap.filter_map(|pair| Some(pair.first()? + 1)).collect();
    let mut lost: Vec<_> =
        files.iter_mut().filter(|file| matches!(file.state, Found::Unreadable)).collect();
    if let ([use_no], [file]) = (&missing[..], &mut lost[..]) {
        file.state = Found::Used { use_no: *use_no, first_record: None };
        return false;
    }
    !lost.is_empty()
}

struct UsedFile<F> {
    file: F,
    use_no: u64,
    first_record: Option<u64>,
}

/// The files in use in the order of their use, and the others.
type Split<F> = (Vec<UsedFile<F>>, Vec<FoundFile<F>>);

/// The used segments in the order of their use, and the others.
fn split_used<F>(files: Vec<FoundFile<F>>) -> Result<Split<F>> {
    let mut used = Vec::new();
    let mut rest = Vec::new();
    for found in files {
        match found.state {
            Found::Used { use_no, first_record } => {
                used.push(UsedFile { file: found.file, use_no, first_record });
            }
            Found::Blank | Found::Unreadable => rest.push(found),
        }
    }
    used.sort_by_key(|segment| segment.use_no);
    for pair in used.windows(2) {
        if let [one, other] = pair
            && one.use_no == other.use_no
        {
            return Err(Fault::corrupt(format!(
                "two write buffer segments claim to be use {}; one is a copy, move it away",
                one.use_no
            )));
        }
    }
    Ok((used, rest))
}

/// Records of all segments, each segment's only up to where a later one begins.
async fn scan_all<F: DiskFile>(used: &[UsedFile<F>]) -> Result<Vec<FoundRecord>> {
    let mut records = Vec::new();
    let mut image: Option<AlignedBuf> = None;
    for index in 0..used.len() {
        let Some(segment) = used.get(index) else { break };
        let later = used.iter().skip(index + 1).filter_map(|later| later.first_record);
        let end = later.min().unwrap_or(u64::MAX);
        if segment.first_record.is_some_and(|first| first >= end) {
            continue;
        }
        let file = &segment.file;
        let buf = match image.take() {
            Some(buf) if buf.len() as u64 == file.len() => buf,
            Some(_) | None => AlignedBuf::zeroed(file.len() as usize),
        };
        let bytes = read_whole(file, buf).await?;
        records.extend(scan(index, segment, &bytes).into_iter().filter(|r| r.header.record < end));
        image = Some(bytes);
    }
    Ok(records)
}

/// Reads a segment; what cannot be read is left as zeroes, which no record is.
async fn read_whole<F: DiskFile>(file: &F, buf: AlignedBuf) -> Result<AlignedBuf> {
    match file.read_at(buf, 0).await {
        Ok(buf) => return Ok(buf),
        Err(fault) if fault.kind == Kind::Corrupt => {
            tracing::warn!(%fault, "reading a write buffer segment in small pieces");
        }
        Err(fault) => return Err(fault),
    }
    let mut whole = AlignedBuf::zeroed(file.len() as usize);
    let piece_bytes = CAREFUL_READ as usize;
    for (piece, offset) in whole.chunks_mut(piece_bytes).zip((0..).step_by(piece_bytes)) {
        if read_into(file, piece, offset).await? {
            continue;
        }
        for (block, at) in piece.chunks_mut(BLOCK_BYTES).zip((offset..).step_by(BLOCK_BYTES)) {
            read_into(file, block, at).await?;
        }
    }
    Ok(whole)
}

/// `false`: it cannot be read, and the piece is as it was.
async fn read_into<F: DiskFile>(file: &F, piece: &mut [u8], offset: u64) -> Result<bool> {
    match file.read_at(AlignedBuf::zeroed(piece.len()), offset).await {
        Ok(read) => piece.copy_from_slice(&read),
        Err(fault) if fault.kind == Kind::Corrupt => return Ok(false),
        Err(fault) => return Err(fault),
    }
    Ok(true)
}

/// Every whole record header of this use, with the clusters of its payload that are bad.
fn scan<F>(used: usize, segment: &UsedFile<F>, bytes: &[u8]) -> Vec<FoundRecord> {
    let mut records: Vec<FoundRecord> = Vec::new();
    let mut next_record = segment.first_record.unwrap_or(1);
    let mut at = BLOCK_BYTES;
    while let Some(block) = bytes.get(at..at + BLOCK_BYTES) {
        at += BLOCK_BYTES;
        let Ok(record) = RecordHeader::decode(block) else { continue };
        let fits = record.segment_use == segment.use_no
            && (next_record..u64::MAX / 2).contains(&record.record)
            && record.durable_record < record.record;
        let Some(payload) = bytes.get(at..at + record.payload_bytes as usize) else { continue };
        if !fits {
            continue;
        }
        let bad = verify_payload(&record, payload);
        next_record = record.record + 1;
        records.push(FoundRecord { used, payload_at: at as u64, header: record, bad });
        at += payload.len();
    }
    records
}

/// The records that survive, and the durable ones that are missing.
pub(super) struct Journal {
    pub records: Vec<FoundRecord>,
    /// Missing record numbers: (first, last, position in `records` where they belong).
    pub lost: Vec<(u64, u64, usize)>,
    last_record: u64,
}

impl Journal {
    fn decide<F>(used: &[UsedFile<F>], found: Vec<FoundRecord>) -> Self {
        let durable = found.iter().map(|record| record.header.durable_record).max().unwrap_or(0);
        // A segment begun earlier than any record says where the journal begins.
        let first = used.iter().filter_map(|segment| segment.first_record).min().unwrap_or(1);
        let mut journal = Self { records: Vec::new(), lost: Vec::new(), last_record: first - 1 };
        for record in found {
            let (number, expected) = (record.header.record, journal.last_record + 1);
            if number > expected && expected <= durable {
                let last = durable.min(number - 1);
                journal.lost.push((expected, last, journal.records.len()));
                journal.last_record = last;
            }
            let next = number == journal.last_record + 1;
            if !next || (!record.bad.is_empty() && number > durable) {
                break;
            }
            journal.last_record = number;
            journal.records.push(record);
        }
        journal
    }
}

fn next_numbers<W: World>(
    world: &W,
    used: &[UsedFile<FileOf<W>>],
    journal: &Journal,
) -> (u64, u64) {
    let next_use = match used.last() {
        Some(newest) => newest.use_no + 1,
        None => random_start(world),
    };
    (journal.last_record + 1, next_use)
}

/// A number a guest cannot guess, with room to count up.
fn random_start<W: World>(world: &W) -> u64 {
    let id = world.random_id();
    let low = id.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    low >> 2
}

/// Hands segments and records over to the tail and gathers what the volumes get to see.
fn fill_tail<F: DiskFile>(
    tail: &mut Tail<F>,
    used: Vec<UsedFile<F>>,
    journal: Journal,
) -> Vec<ReplayedVolume> {
    let mut dead = Vec::new();
    // Where each used segment is in the tail; `None` for one without a surviving record.
    let mut places = Vec::new();
    for (index, UsedFile { file, use_no, first_record }) in used.into_iter().enumerate() {
        let end = journal.records.iter().rev().find(|record| record.used == index);
        let mut segment = Segment::new(file.clone(), file.len(), Header::Stale);
        let Some(end) = end.map(FoundRecord::end) else {
            dead.push(segment);
            places.push(None);
            continue;
        };
        segment.use_no = use_no;
        segment.first_record = first_record.unwrap_or_default();
        segment.header = Header::Written;
        segment.end = end;
        segment.started = end;
        places.push(Some(tail.segments.len()));
        tail.add_used(segment);
    }
    dead.into_iter().for_each(|segment| tail.add_free(segment));
    let volumes = Replay::run(tail, &places, journal);
    tail.free_oldest();
    volumes
}

/// With no segment free there is no fresh one to go on in. Then the newest is cleared behind its last record, after which
/// nothing there can be taken for a continuation.
async fn continue_if_full<F: DiskFile>(tail: &mut Tail<F>) -> Result<()> {
    if tail.free_count() > 0 {
        return Ok(());
    }
    tail.continue_newest();
    let Some(segment) = tail.active_segment() else { return Ok(()) };
    let (file, len) = (segment.file.clone(), segment.len);
    let mut at = segment.end;
    let blank = AreaSlice::from_aligned(AlignedBuf::zeroed(1 << 20));
    while at < len {
        let part = (len - at).min(blank.len() as u64);
        file.write_at(vec![blank.part(0..part as usize)], at, Durability::Later).await?;
        at += part;
    }
    file.sync().await
}
