//! `inspect sco`: trailer, footer, and every cluster against its checksum.

use serde_json::Value;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::framed::{FramedEnd, FramedHead, Packing};
use volumedriver_core::format::sco::{ScoFooter, ScoForm, ScoTrailer, TRAILER_BYTES};
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::units::ClusterCrc;

use super::file::Source;
use super::{Doc, Findings, Rows, View};
use crate::codec::{Frames, Opened};

/// Bytes read at a time when clusters are verified; a multiple of every cluster size.
const CHUNK_BYTES: u64 = 1 << 20;
/// Clusters named one by one when they are damaged.
const MAX_NAMED: usize = 100;

pub fn inspect(object: &impl Source, view: &View) -> Result<Findings> {
    let name = object.name();
    let about = |fault: Fault| fault.about(&name);
    let len = object.len();
    let trailer_at = len.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| {
        Fault::corrupt(format!("{name}: {len} bytes are less than the trailer of an SCO"))
    })?;
    let trailer = ScoTrailer::decode(&object.read(trailer_at, TRAILER_BYTES)?);
    let trailer = trailer.map_err(|fault| about(fault.about(format!("at {trailer_at}"))))?;
    let end_bytes = u64::from(trailer.footer_bytes) + TRAILER_BYTES as u64;
    let data_bytes = match trailer.form {
        ScoForm::Plain => u64::from(trailer.cluster_count) * trailer.cluster_size.bytes(),
        ScoForm::Framed => len.saturating_sub(end_bytes),
    };
    let expected = data_bytes + end_bytes;
    if expected != len {
        return Err(Fault::corrupt(format!(
            "{name}: the trailer speaks of {expected} bytes, there are {len}"
        )));
    }
    let end = object.read(data_bytes, trailer.footer_bytes as usize + TRAILER_BYTES)?;
    let about = |fault: Fault| about(fault.about(format!("at {data_bytes}")));
    let mut fields = head_fields(len, &trailer);
    match trailer.form {
        ScoForm::Plain => {
            let footer = ScoFooter::decode(&end).map_err(about)?;
            let bad = verify(object, &footer)?;
            Ok(findings(&name, fields, (&footer, bad), view))
        }
        ScoForm::Framed => {
            let FramedEnd { head, .. } = FramedEnd::decode(&end).map_err(about)?;
            fields.extend(framed_fields(&head));
            if head.seal.is_some_and(|seal| !view.keys.has(seal.key)) {
                fields.push(("verified", "no: give the key with --key".into()));
                return Ok(Findings::sound(Doc::Fields(fields)));
            }
            let Opened { footer, frames } = Opened::open(&end, &view.keys).map_err(about)?;
            fields.extend(frame_fields(&frames, data_bytes));
            let bad = verify_frames(object, &footer, &frames)?;
            Ok(findings(&name, fields, (&footer, bad), view))
        }
    }
}

type Fields = Vec<(&'static str, Doc)>;

fn head_fields(len: u64, trailer: &ScoTrailer) -> Fields {
    vec![
        ("object_bytes", len.into()),
        ("volume", trailer.volume.to_string().into()),
        ("id", trailer.id.to_string().into()),
        ("epoch", trailer.id.epoch.0.into()),
        ("position", trailer.id.seq.0.into()),
        ("cluster_size_bytes", trailer.cluster_size.bytes().into()),
        ("cluster_count", trailer.cluster_count.into()),
        ("footer_bytes", trailer.footer_bytes.into()),
    ]
}

/// What can be known without a key.
fn framed_fields(head: &FramedHead) -> Fields {
    let key = head.seal.map(|seal| seal.key.to_string());
    vec![
        ("compression", head.packing.name().into()),
        ("encryption", if key.is_some() { "aes-256-gcm" } else { "none" }.into()),
        ("key", key.into()),
        ("frame_cluster_count", head.frame_clusters.into()),
        ("frame_count", head.frame_count().into()),
    ]
}

fn frame_fields(frames: &Frames, data_bytes: u64) -> Fields {
    let (table, head) = (&frames.table, &frames.head);
    let plain = u64::from(head.cluster_count) * head.cluster_size.bytes();
    let percent = data_bytes * 100 / plain.max(1);
    vec![
        ("frames_stored_count", table.count(Packing::Stored).into()),
        ("frames_lz4_count", table.count(Packing::Lz4).into()),
        ("frames_zstd_count", table.count(Packing::Zstd).into()),
        ("data_bytes", plain.into()),
        ("stored_data_bytes", data_bytes.into()),
        ("stored_percent", percent.into()),
    ]
}

fn findings(
    name: &str,
    mut fields: Fields,
    (footer, bad): (&ScoFooter, Vec<Bad>),
    view: &View,
) -> Findings {
    let (first, last) = (footer.changes.first(), footer.changes.last());
    fields.extend([
        ("change_count", footer.changes.len().into()),
        ("first_seq", first.map(|change| change.seq.0).into()),
        ("last_seq", last.map(|change| change.seq.0).into()),
        ("damaged_cluster_count", bad.iter().map(|bad| bad.count).sum::<u32>().into()),
    ]);
    if view.all {
        fields.push(("changes", Doc::Rows(change_rows(&footer.changes))));
    }
    let said = |bad: &Bad| format!("{name}: {}", bad.what);
    Findings { doc: Doc::Fields(fields), damage: bad.iter().take(MAX_NAMED).map(said).collect() }
}

/// Clusters that are damaged.
struct Bad {
    count: u32,
    what: String,
}

fn mismatch(index: u32, at: &str) -> Bad {
    Bad { count: 1, what: format!("cluster {index} ({at}) does not match its checksum") }
}

/// The clusters that do not match.
fn verify(object: &impl Source, footer: &ScoFooter) -> Result<Vec<Bad>> {
    let cluster = footer.cluster_size.bytes();
    let crcs = footer.crcs();
    let mut bad = Vec::new();
    let mut index = 0;
    for crcs in crcs.chunks((CHUNK_BYTES / cluster) as usize) {
        let bytes = object.read(u64::from(index) * cluster, crcs.len() * cluster as usize)?;
        for (crc, bytes) in crcs.iter().zip(bytes.chunks(cluster as usize)) {
            if ClusterCrc::of(bytes) != *crc {
                bad.push(mismatch(index, &format!("at {}", u64::from(index) * cluster)));
            }
            index += 1;
        }
    }
    Ok(bad)
}

/// The same out of frames: one that cannot be unpacked is damaged as a whole.
fn verify_frames(object: &impl Source, footer: &ScoFooter, frames: &Frames) -> Result<Vec<Bad>> {
    let crcs = footer.crcs();
    let mut bad = Vec::new();
    for frame in 0..frames.head.frame_count() {
        let (first, count) = frames.head.clusters_of(frame);
        let Some(range) = frames.range(first, count) else { continue };
        let stored = object.read(range.start, (range.end - range.start) as usize)?;
        match frames.unpack(first, count, &stored) {
            Err(fault) => {
                bad.push(Bad { count, what: format!("at {}: {}", range.start, fault.message) });
            }
            Ok(plain) => {
                let crcs = crcs.iter().skip(first as usize);
                let clusters = plain.chunks(frames.head.cluster_size.bytes() as usize);
                let wrong = (first..).zip(clusters.zip(crcs));
                let wrong = wrong.filter(|(_, (bytes, crc))| ClusterCrc::of(bytes) != **crc);
                let place = format!("in frame {frame} at {}", range.start);
                bad.extend(wrong.map(|(index, _)| mismatch(index, &place)));
            }
        }
    }
    Ok(bad)
}

/// Changes as rows; `index` is where the data lies in the SCO.
pub fn change_rows(changes: &[Change]) -> Rows {
    Rows {
        columns: &["seq", "first_cluster", "cluster_count", "kind", "index"],
        rows: changes.iter().map(change_row).collect(),
    }
}

fn change_row(change: &Change) -> Vec<Value> {
    let (kind, index) = match &change.kind {
        ChangeKind::Data { first_index, .. } => ("data", Some(*first_index)),
        ChangeKind::Hole => ("hole", None),
        ChangeKind::Zero => ("zero", None),
    };
    vec![
        change.seq.0.into(),
        change.addr.0.into(),
        change.count.0.into(),
        kind.into(),
        index.into(),
    ]
}
