//! `inspect object` and `inspect run`: objects of the backend, decoded by their names.

use bytes::Bytes;
use serde_json::Value;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::framed;
use volumedriver_core::format::names;
use volumedriver_core::format::run::{MapExtent, RunIndex, TRAILER_BYTES, Tail, decode_tail};
use volumedriver_core::units::Mapping;

use super::file::{Fetched, Source};
use super::{Doc, Findings, Rows, View, manifest, sco, tlog};
use crate::world::ObjectStore;

/// Largest object that is fetched, bytes: the largest SCO with its footer, or a large map run.
const MAX_OBJECT_BYTES: u64 = 1 << 30;
/// Bytes fetched at a time.
const CHUNK_BYTES: u64 = 4 << 20;

pub async fn inspect(store: &impl ObjectStore, object: &str, view: &View) -> Result<Findings> {
    let (namespace, name) = object
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
        .ok_or_else(|| Fault::invalid(format!("{object:?} is not NAMESPACE/NAME")))?;
    let fetched = fetch(store, namespace, name).await?;
    if names::sco_id(name).is_some() {
        sco::inspect(&fetched, view)
    } else if names::tlog_id(name).is_some() {
        tlog::inspect(&fetched, view.all)
    } else if names::manifest_no(name).is_some() {
        manifest::inspect(&fetched)
    } else if names::run_id(name).is_some() {
        inspect_run(&fetched, view.all)
    } else if names::key_id(name).is_some() {
        inspect_key(&fetched)
    } else {
        Err(Fault::invalid(format!(
            "{object}: {} bytes, but the name is not one of an SCO, TLog, manifest, map run or key marker",
            fetched.bytes.len()
        )))
    }
}

/// The whole object.
pub async fn fetch(store: &impl ObjectStore, namespace: &str, name: &str) -> Result<Fetched> {
    let shown = format!("{namespace}/{name}");
    let missing = || Fault::invalid(format!("{shown}: there is no such object"));
    let info = store.head(namespace, name).await?.ok_or_else(missing)?;
    if info.len > MAX_OBJECT_BYTES {
        return Err(Fault::invalid(format!("{shown}: {} bytes are too many to look at", info.len)));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(info.len).unwrap_or_default());
    while (bytes.len() as u64) < info.len {
        let offset = bytes.len() as u64;
        let len = CHUNK_BYTES.min(info.len - offset);
        let piece = store.get_range(namespace, name, offset, len).await;
        let piece = piece.map_err(|fault| fault.about(&shown))?.ok_or_else(missing)?;
        if piece.len() as u64 != len {
            return Err(Fault::corrupt(format!(
                "{shown}: the store gave {} of {len} bytes at {offset}",
                piece.len()
            )));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Fetched { name: shown, bytes: bytes.into() })
}

/// A key marker.
fn inspect_key(object: &Fetched) -> Result<Findings> {
    let (volume, key) =
        framed::decode_key_marker(&object.bytes).map_err(|fault| fault.about(&object.name))?;
    Ok(Findings::sound(Doc::Fields(vec![
        ("object_bytes", object.len().into()),
        ("volume", volume.to_string().into()),
        ("key", key.to_string().into()),
    ])))
}

/// A map run: its header and blocks; every block is decoded, its extents are listed when `all` are wanted.
pub fn inspect_run(object: &impl Source, all: bool) -> Result<Findings> {
    let name = object.name();
    let index = run_index(object)?;
    let mut damage = Vec::new();
    let mut extents = Vec::new();
    for block in &index.blocks {
        let len = usize::try_from(block.bytes.end - block.bytes.start).unwrap_or(usize::MAX);
        let decoded = object.read(block.bytes.start, len).and_then(|bytes| block.decode(&bytes));
        match decoded {
            Ok(decoded) if all => extents.extend(decoded),
            Ok(_) => {}
            Err(fault) => damage.push(format!("{name}: block at {}: {fault}", block.bytes.start)),
        }
    }
    let mut fields: Vec<(&str, Doc)> = vec![
        ("object_bytes", object.len().into()),
        ("volume", index.header.volume.to_string().into()),
        ("epoch", index.header.epoch.0.into()),
        ("number", index.header.no.0.into()),
        ("extent_count", index.header.entry_count.into()),
        ("block_count", index.blocks.len().into()),
        ("damaged_block_count", damage.len().into()),
    ];
    if all {
        fields.push(("extents", Doc::Rows(extent_rows(&extents))));
    }
    Ok(Findings { doc: Doc::Fields(fields), damage })
}

/// The block index of a run.
pub fn run_index(object: &impl Source) -> Result<RunIndex> {
    let about = |fault: Fault| fault.about(object.name());
    let mut tail_bytes = (TRAILER_BYTES as u64).min(object.len());
    loop {
        let tail: Bytes = object.read(object.len() - tail_bytes, tail_bytes as usize)?;
        match decode_tail(object.len(), &tail).map_err(about)? {
            Tail::Index(index) => return Ok(index),
            Tail::Longer(longer) if longer > tail_bytes && longer <= object.len() => {
                tail_bytes = longer;
            }
            Tail::Longer(longer) => {
                return Err(about(Fault::corrupt(format!(
                    "its index is said to take {longer} bytes"
                ))));
            }
        }
    }
}

pub fn extent_rows(extents: &[MapExtent]) -> Rows {
    Rows {
        columns: &["first_cluster", "cluster_count", "kind", "sco", "index"],
        rows: extents.iter().map(extent_row).collect(),
    }
}

fn extent_row(extent: &MapExtent) -> Vec<Value> {
    let (kind, sco, index) = match extent.mapping {
        Mapping::Hole => ("hole", None, None),
        Mapping::Zero => ("zero", None, None),
        Mapping::At(at) => ("data", Some(at.sco.0), Some(at.index)),
    };
    vec![extent.addr.0.into(), extent.count.0.into(), kind.into(), sco.into(), index.into()]
}
