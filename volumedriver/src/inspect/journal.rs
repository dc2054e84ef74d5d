//! `inspect journal`: segments of the write buffer and the records in them.
//!
//! A segment ends where no record of its use follows. What was written last may be torn by a crash; a damaged record with a
//! good one after it, or one that a later record calls durable, is damage.

use std::path::{Path, PathBuf};

use serde_json::Value;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::journal::{BLOCK_BYTES, RecordHeader, verify_payload};
use volumedriver_core::format::segment::SegmentHeader;

use super::file::{FileBytes, Source};
use super::{Doc, Findings, Rows};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Longest payload that is read, bytes; records are far smaller.
const MAX_PAYLOAD_BYTES: u32 = 1 << 30;

/// One record, read and verified.
struct Record {
    offset: u64,
    header: RecordHeader,
    /// What is wrong with its payload; empty when nothing is.
    bad: Vec<String>,
}

/// One segment file.
struct Segment {
    name: String,
    header: SegmentHeader,
    records: Vec<Record>,
    /// Where the records end, and why there.
    end: u64,
    ending: String,
    damage: Vec<String>,
}

pub fn inspect(path: &Path, all: bool) -> Result<Findings> {
    let about = |e: std::io::Error| {
        Fault::invalid(format!("{}: cannot be read", path.display())).because(e)
    };
    if !path.metadata().map_err(about)?.is_dir() {
        let segment = read_segment(&FileBytes::open(path)?)?;
        return Ok(findings(&[segment], &[], all));
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(about)? {
        let entry = entry.map_err(about)?;
        if entry.file_type().map_err(about)?.is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    let (mut segments, mut others) = (Vec::new(), Vec::new());
    for path in &paths {
        let file = FileBytes::open(path)?;
        match read_segment(&file) {
            Ok(segment) => segments.push(segment),
            Err(fault) => others.push((file.name(), is_blank(&file)?, fault)),
        }
    }
    segments.sort_by_key(|segment| segment.header.use_no);
    Ok(findings(&segments, &others, all))
}

/// A file that is not a segment in use: its name, whether its first block is all zeroes, why it is none.
type Other = (String, bool, Fault);

fn is_blank(file: &FileBytes) -> Result<bool> {
    let first =
        file.read(0, BLOCK_BYTES.min(usize::try_from(file.len()).unwrap_or(BLOCK_BYTES)))?;
    Ok(first.iter().all(|byte| *byte == 0))
}

fn read_segment(file: &impl Source) -> Result<Segment> {
    let name = file.name();
    let about = |fault: Fault| fault.about(&name);
    if file.len() < BLOCK {
        return Err(Fault::corrupt(format!("{name}: shorter than a segment's header")));
    }
    let header = SegmentHeader::decode(&file.read(0, BLOCK_BYTES)?).map_err(about)?;
    let mut segment = Segment {
        name,
        header,
        records: Vec::new(),
        end: BLOCK,
        ending: String::new(),
        damage: Vec::new(),
    };
    if header.segment_bytes != file.len() {
        segment.damage.push(format!(
            "{}: {} bytes long, its header says {}",
            segment.name,
            file.len(),
            header.segment_bytes
        ));
    }
    read_records(file, &mut segment)?;
    judge(file, &mut segment)?;
    Ok(segment)
}

fn read_records(file: &impl Source, segment: &mut Segment) -> Result<()> {
    loop {
        let offset = segment.end;
        if offset + BLOCK > file.len() {
            segment.ending = "the file is full".to_owned();
            return Ok(());
        }
        let block = file.read(offset, BLOCK_BYTES)?;
        let due = match segment.records.last() {
            Some(last) => last.header.record + 1,
            None => segment.header.first_record,
        };
        match record_of(&block, segment.header.use_no, due) {
            Ok(header) => {
                let Some(record) = read_payload(file, offset, header)? else {
                    segment.ending = format!("record {due} reaches beyond the file");
                    return Ok(());
                };
                segment.end = offset + BLOCK + u64::from(record.header.payload_bytes);
                segment.records.push(record);
            }
            Err(why) => {
                segment.ending = why;
                return Ok(());
            }
        }
    }
}

/// The record header in this block, if it is the one due; else why the segment ends here.
fn record_of(block: &[u8], segment_use: u64, due: u64) -> Result<RecordHeader, String> {
    if block.iter().all(|byte| *byte == 0) {
        return Err("never written".to_owned());
    }
    match RecordHeader::decode(block) {
        Ok(header) if header.segment_use != segment_use => {
            Err(format!("a record of use {}, an earlier one", header.segment_use))
        }
        Ok(header) if header.record != due => {
            Err(format!("record {} where record {due} is due", header.record))
        }
        Ok(header) => Ok(header),
        Err(fault) if fault.kind == Kind::Corrupt => Err("no record".to_owned()),
        Err(fault) => Err(fault.message),
    }
}

/// `None`: the payload does not lie in the file.
fn read_payload(file: &impl Source, offset: u64, header: RecordHeader) -> Result<Option<Record>> {
    let start = offset + BLOCK;
    let fits = start.checked_add(header.payload_bytes.into()).is_some_and(|end| end <= file.len());
    if !fits || header.payload_bytes > MAX_PAYLOAD_BYTES {
        return Ok(None);
    }
    let payload = file.read(start, header.payload_bytes as usize)?;
    let bad = verify_payload(&header, &payload);
    let describe = |bad: &volumedriver_core::format::journal::BadCluster| {
        format!(
            "change {} of volume {}, cluster {} (SCO {} index {})",
            bad.seq, bad.volume, bad.addr, bad.sco, bad.index
        )
    };
    let bad = bad.iter().map(describe).collect();
    Ok(Some(Record { offset, header, bad }))
}

/// Tells a torn tail from damage.
fn judge(file: &impl Source, segment: &mut Segment) -> Result<()> {
    let durable = segment.records.iter().map(|r| r.header.durable_record).max().unwrap_or(0);
    let last = segment.records.len().saturating_sub(1);
    let name = segment.name.clone();
    let mut damage = Vec::new();
    for (n, record) in segment.records.iter().enumerate() {
        let Some(first) = record.bad.first() else { continue };
        if n < last || record.header.record <= durable {
            damage.push(format!(
                "{name}: record {} at {}: {} damaged clusters, the first is {first}",
                record.header.record,
                record.offset,
                record.bad.len()
            ));
        }
    }
    if let Some((offset, record)) = later_record(file, segment)? {
        damage.push(format!(
            "{name}: records end at {} ({}), but record {record} of the same use lies at {offset}",
            segment.end, segment.ending
        ));
    }
    segment.damage.extend(damage);
    Ok(())
}

/// A good record of this use behind the end of the log.
fn later_record(file: &impl Source, segment: &Segment) -> Result<Option<(u64, u64)>> {
    let mut offset = segment.end;
    while offset + BLOCK <= file.len() {
        if let Ok(header) = RecordHeader::decode(&file.read(offset, BLOCK_BYTES)?)
            && header.segment_use == segment.header.use_no
        {
            return Ok(Some((offset, header.record)));
        }
        offset += BLOCK;
    }
    Ok(None)
}

fn findings(segments: &[Segment], others: &[Other], all: bool) -> Findings {
    let mut damage: Vec<String> =
        segments.iter().flat_map(|segment| segment.damage.iter().cloned()).collect();
    damage.extend(gaps(segments));
    damage.extend(others.iter().filter(|other| !other.1).map(|other| other.2.to_string()));
    let mut fields: Vec<(&str, Doc)> = vec![(
        "segments",
        Doc::Rows(Rows {
            columns: &[
                "file",
                "node",
                "shard",
                "use",
                "bytes",
                "first_record",
                "record_count",
                "ends_at",
                "ending",
            ],
            rows: segments.iter().map(segment_row).collect(),
        }),
    )];
    if !others.is_empty() {
        let row = |(name, blank, fault): &Other| {
            let what = if *blank { "blank".to_owned() } else { fault.to_string() };
            vec![name.clone().into(), what.into()]
        };
        let rows = others.iter().map(row).collect();
        fields.push(("other_files", Doc::Rows(Rows { columns: &["file", "what"], rows })));
    }
    if all {
        let rows = segments.iter().flat_map(|s| &s.records).flat_map(record_rows).collect();
        fields.push((
            "records",
            Doc::Rows(Rows {
                columns: &[
                    "record",
                    "offset",
                    "payload_bytes",
                    "durable",
                    "volume",
                    "epoch",
                    "previous_seq",
                    "entry_count",
                    "damaged",
                ],
                rows,
            }),
        ));
    }
    Findings { doc: Doc::Fields(fields), damage }
}

/// Records are numbered without gaps over the segments of one shard.
fn gaps(segments: &[Segment]) -> Vec<String> {
    let pairs = segments.iter().zip(segments.iter().skip(1));
    let consecutive = pairs.filter(|(a, b)| {
        let (a, b) = (&a.header, &b.header);
        a.node == b.node && a.shard == b.shard && a.use_no + 1 == b.use_no
    });
    let gap = |(a, b): (&Segment, &Segment)| {
        let due = a.records.last().map_or(a.header.first_record, |last| last.header.record + 1);
        (due != b.header.first_record).then(|| {
            format!(
                "{}: ends before record {due}, the next segment ({}) begins with record {}",
                a.name, b.name, b.header.first_record
            )
        })
    };
    consecutive.filter_map(gap).collect()
}

fn segment_row(segment: &Segment) -> Vec<Value> {
    vec![
        segment.name.clone().into(),
        segment.header.node.to_string().into(),
        segment.header.shard.into(),
        segment.header.use_no.into(),
        segment.header.segment_bytes.into(),
        segment.header.first_record.into(),
        segment.records.len().into(),
        segment.end.into(),
        segment.ending.clone().into(),
    ]
}

/// One row per section.
fn record_rows(record: &Record) -> Vec<Vec<Value>> {
    let header = &record.header;
    let row = |section: &volumedriver_core::format::journal::Section| {
        vec![
            header.record.into(),
            record.offset.into(),
            header.payload_bytes.into(),
            header.durable_record.into(),
            section.volume.to_string().into(),
            section.epoch.0.into(),
            section.previous_seq.0.into(),
            section.entries.len().into(),
            record.bad.len().into(),
        ]
    };
    header.sections.iter().map(row).collect()
}
