//! What a crash left in the segment files, and where the journal ends.
//!
//! 1. Headers are read and put in the order of their use; foreign ones are refused before anything is changed. A segment
//!    whose header is lost is known by its records.
//! 2. Each used segment is scanned for records: block by block after a bad one, since whole records may lie behind it.
//!    Records that a later segment's `first_record` shuts out are dropped.
//! 3. The highest `durable_record` any record states is the watermark. What is missing or bad up to it is damage. Above it the
//!    journal ends at the first record that is missing or bad: a torn tail, which nobody was promised. What the disk cannot
//!    read is no torn tail wherever it lies: that is damage too.
//!    Where something is damaged, every segment that tells of it is kept: the next opening must come to the same verdict.
//! 4. The files are synced, so that what is kept is durable, and the next record goes to a fresh segment.

use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::journal::{BLOCK_BYTES, BadCluster, RecordHeader};
use volumedriver_core::format::segment::SegmentHeader;

use super::device;
use super::image::Image;
use super::replay::{Replay, Replayed};
use super::segment::{Header, Segment};
use super::tail::{BLOCK, Tail, segment_name};
use super::{BufferConfig, FileOf};
use crate::io::buf::{AlignedBuf, AreaSlice};
use crate::world::{Disk, DiskFile, Durability, World};

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
    /// Its header is damaged, and what it held was given up before.
    Freed,
    Used(Use),
}

/// What a segment is used for.
#[derive(Clone, Copy)]
struct Use {
    use_no: u64,
    /// `None` when its header was lost and none of its records is whole.
    first_record: Option<u64>,
    /// The file is shorter than it was.
    cut_short: bool,
}

/// A record whose header is whole.
pub(super) struct FoundRecord {
    /// Index among the used segments, and where its payload begins there.
    pub used: usize,
    pub payload_at: u64,
    pub header: RecordHeader,
    pub bad: Vec<BadCluster>,
    /// The disk cannot read all of it: that it is bad is no sign of a torn write.
    unreadable: bool,
}

impl<F> FoundFile<F> {
    fn use_no(&self) -> Option<u64> {
        match self.state {
            Found::Used(at) => Some(at.use_no),
            Found::Blank | Found::Unreadable | Found::Freed => None,
        }
    }
}

impl FoundRecord {
    fn end(&self) -> u64 {
        self.payload_at + u64::from(self.header.payload_bytes)
    }
}

pub(super) async fn open<W: World>(
    world: &W,
    config: &BufferConfig,
) -> Result<(Tail<FileOf<W>>, Replayed)> {
    let mut files = find_files(world, config).await?;
    let spare_number = files.iter().map(|file| file.number + 1).max().unwrap_or(0);
    let next_number = make_missing(world, config, &mut files, spare_number).await?;
    // What a killed process left in the device's cache counts from now on, so it must survive a power cut: wiped headers too,
    // or a segment that was freed long ago comes back between younger ones.
    for found in &files {
        found.file.sync().await?;
    }
    recognize(&mut files, config).await?;
    infer_lost_header(&mut files);
    let unreadable = files.iter().filter(|file| matches!(file.state, Found::Unreadable)).count();
    let (used, rest) = split_used(files)?;
    let scanned = scan_all(&used).await?;
    let journal = Journal::decide(&used, scanned);
    let next_use = match used.last() {
        // Some of these numbers may stand in what cannot be read.
        Some(newest) => newest.at.use_no + 1 + unreadable as u64,
        None => random_start(world),
    };
    let mut tail = Tail::new(journal.last_record + 1, next_use, config.memory_bytes);
    tail.next_number = next_number;
    tail.resume(journal.last_entry(), journal.durable_record);
    let damaged = !journal.lost.is_empty() || unreadable > 0;
    let empty = match damaged || journal.records.iter().any(|record| !record.bad.is_empty()) {
        true => Empty::Kept,
        false => Empty::Freed,
    };
    if empty == Empty::Kept {
        tail.hold();
    }
    let replayed = fill_tail(&mut tail, used, journal, empty);
    let evidence = !replayed.volumes.is_empty() || replayed.lost.is_some();
    for found in rest {
        let len = found.file.len();
        match found.state {
            // It may hold what is missing: left alone for whoever wants to rescue it.
            Found::Unreadable if damaged && evidence => {
                tail.add_unusable(Segment::new(found.file, len, Header::Stale));
            }
            Found::Unreadable | Found::Freed => {
                tail.add_free(Segment::new(found.file, len, Header::Stale));
            }
            Found::Blank | Found::Used(_) => {
                tail.add_free(Segment::new(found.file, len, Header::Blank));
            }
        }
    }
    continue_if_full(&mut tail).await?;
    Ok((tail, replayed))
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
    let is_blank = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let is_good = |block: &[u8]| is_blank(block) || SegmentHeader::decode(block).is_ok();
    let block = match device::read_good(file, BLOCK_BYTES, 0, is_good).await {
        Ok((block, _)) => block,
        Err(fault) if fault.kind == Kind::Corrupt => return Ok(Found::Unreadable),
        Err(fault) => return Err(fault),
    };
    if is_blank(&block) {
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
    let SegmentHeader { use_no, first_record, segment_bytes, .. } = header;
    let cut_short = segment_bytes > file.len();
    if segment_bytes < file.len() {
        return Err(Fault::invalid(format!(
            "write buffer file {name} is {} bytes long, its header says {segment_bytes}",
            file.len(),
        )));
    }
    if cut_short {
        tracing::error!(name, segment_bytes, "a write buffer file was cut to {} bytes", file.len());
    }
    let sane = use_no < u64::MAX / 2 && (1..u64::MAX / 2).contains(&first_record);
    Ok(match sane {
        true => Found::Used(Use { use_no, first_record: Some(first_record), cut_short }),
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

/// Gives segments whose header is damaged their place by what their records say, and a new header.
async fn recognize<F: DiskFile>(files: &mut [FoundFile<F>], config: &BufferConfig) -> Result<()> {
    let known: Vec<u64> = files.iter().filter_map(FoundFile::use_no).collect();
    let begun = first_known_record(files);
    // A segment is freed before its header is wiped: the one before the oldest may be either. Its number may be lower by more
    // than one, but its records reach to those of the oldest.
    let oldest = known.iter().min().map_or(0, |oldest| oldest.saturating_sub(1));
    let newest = known.iter().max().map_or(u64::MAX / 2, |newest| newest + 1);
    for found in files.iter_mut().filter(|file| matches!(file.state, Found::Unreadable)) {
        let mut image = Image::read(&found.file, None).await?;
        let at_start = image.record(&found.file, BLOCK_BYTES, true).await?;
        // Behind a damaged first record, its number is not known.
        let first_record = at_start.as_ref().map(|record| record.record);
        let Some(first) = at_start.or_else(|| image.records().next()) else { continue };
        let use_no = first.segment_use;
        if known.contains(&use_no) || use_no > newest {
            continue;
        }
        let last = image.records().filter(|record| record.segment_use == use_no).last();
        let reaches = |begun| last.is_some_and(|last| last.record + 1 >= begun);
        let live = use_no >= oldest || begun.is_some_and(reaches);
        tracing::error!(
            segment = segment_name(found.number),
            use_no,
            live,
            "the header of a write buffer segment is damaged; it is known by its records"
        );
        found.state = match live {
            true => Found::Used(Use { use_no, first_record, cut_short: false }),
            false => Found::Freed,
        };
        if let (true, Some(first_record)) = (live, first_record) {
            repair_header(&found.file, config, use_no, first_record).await;
        }
    }
    Ok(())
}

/// Where the records of the oldest segment with a whole header begin.
fn first_known_record<F>(files: &[FoundFile<F>]) -> Option<u64> {
    let used = files.iter().filter_map(|file| match file.state {
        Found::Used(at) => Some(at),
        Found::Blank | Found::Unreadable | Found::Freed => None,
    });
    used.min_by_key(|at| at.use_no)?.first_record
}

/// Without it the next loss of a header would be one too many.
async fn repair_header<F: DiskFile>(
    file: &F,
    config: &BufferConfig,
    use_no: u64,
    first_record: u64,
) {
    let (node, shard, segment_bytes) = (config.node, config.shard, file.len());
    let header = SegmentHeader { node, shard, use_no, first_record, segment_bytes };
    if let Err(fault) = file.write_at(vec![header_block(&header)], 0, Durability::Now).await {
        tracing::warn!(%fault, "the header cannot be written now");
    }
}

/// A header as it is written.
pub(super) fn header_block(header: &SegmentHeader) -> AreaSlice {
    let mut block = [0; BLOCK_BYTES];
    header.encode(&mut block);
    let mut buf = AlignedBuf::zeroed(BLOCK_BYTES);
    buf.copy_from_slice(&block);
    AreaSlice::from_aligned(buf)
}

/// If just one use is missing in the sequence and just one file has no header, they belong together.
fn infer_lost_header<F: DiskFile>(files: &mut [FoundFile<F>]) {
    let mut uses: Vec<u64> = files.iter().filter_map(FoundFile::use_no).collect();
    uses.sort_unstable();
    let after_gap = uses.windows(2).filter(|pair| matches!(pair, [a, b] if b - a == 2));
    let missing: Vec<u64> = after_gap.filter_map(|pair| Some(pair.first()? + 1)).collect();
    let mut lost: Vec<_> =
        files.iter_mut().filter(|file| matches!(file.state, Found::Unreadable)).collect();
    if let ([use_no], [file]) = (&missing[..], &mut lost[..]) {
        file.state = Found::Used(Use { use_no: *use_no, first_record: None, cut_short: false });
    }
}

struct UsedFile<F> {
    file: F,
    at: Use,
}

/// The files in use in the order of their use, and the others.
type Split<F> = (Vec<UsedFile<F>>, Vec<FoundFile<F>>);

/// The used segments in the order of their use, and the others.
fn split_used<F>(files: Vec<FoundFile<F>>) -> Result<Split<F>> {
    let mut used = Vec::new();
    let mut rest = Vec::new();
    for found in files {
        match found.state {
            Found::Used(at) => used.push(UsedFile { file: found.file, at }),
            Found::Blank | Found::Unreadable | Found::Freed => rest.push(found),
        }
    }
    used.sort_by_key(|segment| segment.at.use_no);
    for pair in used.windows(2) {
        if let [one, other] = pair
            && one.at.use_no == other.at.use_no
        {
            return Err(Fault::corrupt(format!(
                "two write buffer segments claim to be use {}; one is a copy, move it away",
                one.at.use_no
            )));
        }
    }
    Ok((used, rest))
}

/// What the used segments hold.
struct Scanned {
    records: Vec<FoundRecord>,
    /// Blocks that cannot be read, per used segment.
    holes: Vec<Vec<u64>>,
    /// The highest `durable_record` stated: also by records that are shut out. What they say of those before them stays true.
    durable_record: u64,
}

/// Records of all segments, each segment's only up to where a later one begins.
async fn scan_all<F: DiskFile>(used: &[UsedFile<F>]) -> Result<Scanned> {
    let holes = vec![Vec::new(); used.len()];
    let mut scanned = Scanned { records: Vec::new(), holes, durable_record: 0 };
    let mut spare: Option<AlignedBuf> = None;
    for (index, (segment, holes)) in used.iter().zip(&mut scanned.holes).enumerate() {
        let end = first_record_behind(used, index);
        let mut image = Image::read(&segment.file, spare.take()).await?;
        let found = scan(index, segment, &mut image).await?;
        let stated = found.iter().map(|record| record.header.durable_record).max();
        scanned.durable_record = scanned.durable_record.max(stated.unwrap_or(0));
        scanned.records.extend(found.into_iter().filter(|record| record.header.record < end));
        *holes = image.holes;
        spare = Some(image.bytes);
    }
    Ok(scanned)
}

/// Where a later segment begins: records of this one end before it.
fn first_record_behind<F>(used: &[UsedFile<F>], index: usize) -> u64 {
    let later = used.iter().skip(index + 1).filter_map(|later| later.at.first_record);
    later.min().unwrap_or(u64::MAX)
}

/// A later segment begins no later than this one: nothing in it counts.
fn is_shut_out<F>(used: &[UsedFile<F>], index: usize) -> bool {
    let begins = used.get(index).and_then(|segment| segment.at.first_record);
    begins.is_some_and(|begins| begins >= first_record_behind(used, index))
}

/// Every whole record header of this use, with the clusters of its payload that are bad.
async fn scan<F: DiskFile>(
    used: usize,
    segment: &UsedFile<F>,
    image: &mut Image,
) -> Result<Vec<FoundRecord>> {
    let mut records: Vec<FoundRecord> = Vec::new();
    let mut next_record = segment.at.first_record.unwrap_or(1);
    let mut at = BLOCK_BYTES;
    // Where a record ends the next one begins, or the journal ends: worth a second look.
    let mut due = true;
    while at < image.bytes.len() {
        let header_at = at;
        at += BLOCK_BYTES;
        let is_due = std::mem::take(&mut due);
        let found = image.record(&segment.file, header_at, is_due).await?;
        let Some(record) = found else { continue };
        let fits = record.segment_use == segment.at.use_no
            && (next_record..u64::MAX / 2).contains(&record.record)
            && record.durable_record < record.record;
        let end = at + record.payload_bytes as usize;
        if !fits || end > image.bytes.len() {
            continue;
        }
        next_record = record.record + 1;
        records.push(FoundRecord {
            used,
            payload_at: at as u64,
            bad: image.bad_clusters(&segment.file, at, &record).await?,
            unreadable: image.has_hole(at..end),
            header: record,
        });
        (at, due) = (end, true);
    }
    Ok(records)
}

/// The records that survive, and the durable ones that are missing.
pub(super) struct Journal {
    pub records: Vec<FoundRecord>,
    /// Missing record numbers: (first, last, position in `records` where they belong).
    pub lost: Vec<(u64, u64, usize)>,
    /// Everything up to here is known to have been durable.
    durable_record: u64,
    last_record: u64,
}

impl Journal {
    fn decide<F>(used: &[UsedFile<F>], scanned: Scanned) -> Self {
        let Scanned { records, holes, durable_record } = scanned;
        // A segment begun earlier than any record says where the journal begins; failing that, the record itself.
        let begun = used.first().and_then(|oldest| oldest.at.first_record);
        let found = records.first().map(|record| record.header.record);
        let later = used.iter().filter_map(|segment| segment.at.first_record).min();
        let first = begun.or(found.into_iter().chain(later).min()).unwrap_or(1);
        let last_record = first - 1;
        let mut journal =
            Self { records: Vec::new(), lost: Vec::new(), durable_record, last_record };
        for record in records {
            if !journal.take(record) {
                break;
            }
        }
        // Unless it is counted already: a record behind it told that one is missing.
        let counted = journal.lost.last().is_some_and(|lost| lost.2 == journal.records.len());
        if !counted && journal.ends_at_a_hole(used, &holes) {
            journal.last_record += 1;
            let lost = journal.last_record;
            journal.lost.push((lost, lost, journal.records.len()));
        }
        journal
    }

    /// Takes the next record in; `false`: the journal ends before it.
    fn take(&mut self, record: FoundRecord) -> bool {
        let (number, expected) = (record.header.record, self.last_record + 1);
        if number > expected && expected <= self.durable_record {
            let last = self.durable_record.min(number - 1);
            self.lost.push((expected, last, self.records.len()));
            self.last_record = last;
        }
        let next = number == self.last_record + 1;
        let torn = !record.bad.is_empty() && number > self.durable_record && !record.unreadable;
        if !next || torn {
            return false;
        }
        self.last_record = number;
        self.records.push(record);
        true
    }

    /// Whether the next record may lie where the disk cannot read.
    fn ends_at_a_hole<F>(&self, used: &[UsedFile<F>], holes: &[Vec<u64>]) -> bool {
        // What is shut out holds none of the records that follow, readable or not.
        let live_from = |from| (from..used.len()).find(|index| !is_shut_out(used, *index));
        let hole_at =
            |segment: usize, at: u64| holes.get(segment).is_some_and(|holes| holes.contains(&at));
        let (segment, end) = match self.records.last() {
            Some(last) => (last.used, last.end()),
            None => (live_from(0).unwrap_or(0), BLOCK),
        };
        let next = live_from(segment + 1);
        let begins_next = next.and_then(|next| used.get(next)?.at.first_record);
        // A segment that begins with the next record is the only place for it.
        let here = begins_next != Some(self.last_record + 1) && {
            let cut_short = used.get(segment).is_some_and(|segment| segment.at.cut_short);
            cut_short || hole_at(segment, end)
        };
        here || next.is_some_and(|next| hole_at(next, BLOCK))
    }

    /// The newest record that holds anything.
    fn last_entry(&self) -> u64 {
        let lost = self.lost.last().map_or(0, |(_, last, _)| *last);
        let holds = |record: &&FoundRecord| !record.header.sections.is_empty();
        let entry = self.records.iter().rev().find(holds).map_or(0, |last| last.header.record);
        entry.max(lost)
    }
}

/// A number a guest cannot guess, with room to count up.
fn random_start<W: World>(world: &W) -> u64 {
    let id = world.random_id();
    let low = id.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    low >> 2
}

/// What becomes of used segments without a surviving record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Empty {
    Freed,
    /// Something is damaged: lost records lay there, or a record that was dropped says that they were durable. The next opening
    /// must find the same, or it takes the damage for the journal's end.
    Kept,
}

/// Hands segments and records over to the tail and gathers what the volumes get to see.
fn fill_tail<F: DiskFile>(
    tail: &mut Tail<F>,
    used: Vec<UsedFile<F>>,
    journal: Journal,
    empty: Empty,
) -> Replayed {
    let mut dead = Vec::new();
    // Where each used segment is in the tail; `None` for one without a surviving record.
    let mut places = Vec::new();
    for (index, UsedFile { file, at }) in used.into_iter().enumerate() {
        let end = journal.records.iter().rev().find(|record| record.used == index);
        let mut segment = Segment::new(file.clone(), file.len(), Header::Stale);
        let end = match (end, empty) {
            (Some(end), _) => end.end(),
            // Nothing is appended to it.
            (None, Empty::Kept) => segment.len,
            (None, Empty::Freed) => {
                dead.push(segment);
                places.push(None);
                continue;
            }
        };
        segment.use_no = at.use_no;
        segment.first_record = at.first_record.unwrap_or_default();
        segment.header = Header::Written;
        segment.end = end;
        segment.started = end;
        places.push(Some(tail.segments.len()));
        tail.add_used(segment);
    }
    dead.into_iter().for_each(|segment| tail.add_free(segment));
    let replayed = Replay::run(tail, &places, journal);
    tail.free_oldest();
    replayed
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
