//! `inspect sco`: trailer, footer, and every cluster against its checksum.

use serde_json::Value;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::sco::{ScoFooter, ScoTrailer, TRAILER_BYTES};
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::units::ClusterCrc;

use super::file::Source;
use super::{Doc, Findings, Rows};

/// Bytes read at a time when clusters are verified; a multiple of every cluster size.
const CHUNK_BYTES: u64 = 1 << 20;
/// Clusters named one by one when they are damaged.
const MAX_NAMED: usize = 100;

pub fn inspect(object: &impl Source, all: bool) -> Result<Findings> {
    let name = object.name();
    let about = |fault: Fault| fault.about(&name);
    let len = object.len();
    let trailer_at = len.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| {
        Fault::corrupt(format!("{name}: {len} bytes are less than the trailer of an SCO"))
    })?;
    let trailer = ScoTrailer::decode(&object.read(trailer_at, TRAILER_BYTES)?);
    let trailer = trailer.map_err(|fault| about(fault.about(format!("at {trailer_at}"))))?;
    let data_bytes = u64::from(trailer.cluster_count) * trailer.cluster_size.bytes();
    let expected = data_bytes + u64::from(trailer.footer_bytes) + TRAILER_BYTES as u64;
    if expected != len {
        return Err(Fault::corrupt(format!(
            "{name}: the trailer speaks of {expected} bytes, there are {len}"
        )));
    }
    let end = object.read(data_bytes, trailer.footer_bytes as usize + TRAILER_BYTES)?;
    let footer = ScoFooter::decode(&end);
    let footer = footer.map_err(|fault| about(fault.about(format!("at {data_bytes}"))))?;
    let bad = verify(object, &footer)?;
    Ok(findings(&name, len, &trailer, &footer, &bad, all))
}

fn findings(
    name: &str,
    len: u64,
    trailer: &ScoTrailer,
    footer: &ScoFooter,
    bad: &[u32],
    all: bool,
) -> Findings {
    let (first, last) = (footer.changes.first(), footer.changes.last());
    let mut fields: Vec<(&str, Doc)> = vec![
        ("object_bytes", len.into()),
        ("volume", footer.volume.to_string().into()),
        ("id", footer.id.to_string().into()),
        ("epoch", footer.id.epoch.0.into()),
        ("position", footer.id.seq.0.into()),
        ("cluster_size_bytes", footer.cluster_size.bytes().into()),
        ("cluster_count", footer.cluster_count.into()),
        ("footer_bytes", trailer.footer_bytes.into()),
        ("change_count", footer.changes.len().into()),
        ("first_seq", first.map(|change| change.seq.0).into()),
        ("last_seq", last.map(|change| change.seq.0).into()),
        ("damaged_cluster_count", bad.len().into()),
    ];
    if all {
        fields.push(("changes", Doc::Rows(change_rows(&footer.changes))));
    }
    let size = footer.cluster_size.bytes();
    let place = |index: &u32| {
        format!(
            "{name}: cluster {index} (at {}) does not match its checksum",
            u64::from(*index) * size
        )
    };
    Findings { doc: Doc::Fields(fields), damage: bad.iter().take(MAX_NAMED).map(place).collect() }
}

/// Indices of the clusters that do not match.
fn verify(object: &impl Source, footer: &ScoFooter) -> Result<Vec<u32>> {
    let cluster = footer.cluster_size.bytes();
    let crcs = footer.crcs();
    let mut bad = Vec::new();
    let mut index = 0;
    for crcs in crcs.chunks((CHUNK_BYTES / cluster) as usize) {
        let bytes = object.read(u64::from(index) * cluster, crcs.len() * cluster as usize)?;
        for (crc, bytes) in crcs.iter().zip(bytes.chunks(cluster as usize)) {
            if ClusterCrc::of(bytes) != *crc {
                bad.push(index);
            }
            index += 1;
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
