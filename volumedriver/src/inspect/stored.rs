//! `inspect vdisk` and `inspect map`: what the backend alone knows of a vDisk.

use serde_json::Value;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::manifest::{Body, Manifest, Shape};
use volumedriver_core::format::names;
use volumedriver_core::format::run::MapExtent;
use volumedriver_core::format::tlog::Tlog;
use volumedriver_core::map::checkpoint::collapse;
use volumedriver_core::map::merge::{Holes, merge_runs};
use volumedriver_core::units::{ClusterAddr, ClusterCount, ManifestNo, VolumeId};

use super::manifest::{kind, shape_doc};
use super::object::{extent_rows, fetch, run_index};
use super::{Doc, Findings, Rows};
use crate::inspect::file::Source;
use crate::world::ObjectStore;

/// Names asked for at a time.
const LIST_LIMIT: u32 = 1000;
/// Manifests a chain may have before it is called damaged: far more than between two checkpoints.
const MAX_CHAIN: usize = 1_000_000;

/// A volume's manifests on the backend, and the shape they make.
struct Chain {
    namespace: String,
    volume: VolumeId,
    /// From the newest checkpoint on.
    manifests: Vec<Manifest>,
    /// Manifests before that checkpoint that are still there.
    older: usize,
    shape: Shape,
}

pub async fn inspect_vdisk(store: &impl ObjectStore, name: &str) -> Result<Findings> {
    let chain = find(store, name).await?;
    let rows = chain.manifests.iter().map(manifest_row).collect();
    let manifests = Rows { columns: &["manifest", "kind", "epoch", "node", "change_count"], rows };
    let doc = Doc::Fields(vec![
        ("namespace", chain.namespace.clone().into()),
        ("volume", chain.volume.to_string().into()),
        ("manifest", chain.manifests.last().map(|m| m.no.0).into()),
        ("epoch", chain.shape.epoch().0.into()),
        ("older_manifest_count", chain.older.into()),
        ("chain", Doc::Rows(manifests)),
        ("shape", shape_doc(&chain.shape)),
    ]);
    Ok(Findings { doc, damage: missing_objects(store, &chain).await? })
}

fn manifest_row(manifest: &Manifest) -> Vec<Value> {
    let changes = match &manifest.body {
        Body::Checkpoint(_) => None,
        Body::Delta(changes) => Some(changes.len()),
    };
    vec![
        manifest.no.0.into(),
        kind(manifest).into(),
        manifest.epoch.0.into(),
        manifest.node.to_string().into(),
        changes.into(),
    ]
}

/// TLogs and runs that the shape names and the store does not have, or has otherwise.
async fn missing_objects(store: &impl ObjectStore, chain: &Chain) -> Result<Vec<String>> {
    let tlogs = chain.shape.tlogs.iter().map(|t| (names::tlog(t.epoch, t.no), t.object_bytes));
    let runs = chain.shape.runs.iter().map(|r| (names::run(r.epoch, r.no), r.object_bytes));
    let mut damage = Vec::new();
    for (name, bytes) in tlogs.chain(runs) {
        let shown = format!("{}/{name}", chain.namespace);
        match store.head(&chain.namespace, &name).await? {
            Some(info) if info.len == bytes => {}
            Some(info) => {
                damage.push(format!("{shown}: {} bytes, the manifest says {bytes}", info.len))
            }
            None => damage.push(format!("{shown}: missing")),
        }
    }
    Ok(damage)
}

/// Where clusters are, from runs and TLogs.
pub async fn inspect_map(
    store: &impl ObjectStore,
    name: &str,
    first: u64,
    count: u64,
) -> Result<Findings> {
    let chain = find(store, name).await?;
    let clusters = chain.shape.cluster_size.clusters_covering(chain.shape.size).0;
    if count == 0 || first.checked_add(count).is_none_or(|end| end > clusters) {
        return Err(Fault::invalid(format!(
            "{name} has clusters 0 to {}: --first {first} --count {count} is not in it",
            clusters - 1
        )));
    }
    let range = Range { first: ClusterAddr(first), end: ClusterAddr(first + count) };
    let mut newest_first = vec![tlog_extents(store, &chain, range).await?];
    for run in chain.shape.runs.iter().rev() {
        let object = fetch(store, &chain.namespace, &names::run(run.epoch, run.no)).await?;
        let index = run_index(&object)?;
        let mut extents = Vec::new();
        for block in index.blocks.iter().filter(|b| b.first < range.end && b.end > range.first) {
            let len = (block.bytes.end - block.bytes.start) as usize;
            let decoded = block.decode(&object.read(block.bytes.start, len)?);
            let decoded = decoded.map_err(|fault| fault.about(object.name()))?;
            extents.extend(decoded.into_iter().filter_map(|extent| range.cut(extent)));
        }
        newest_first.push(extents);
    }
    let sources = newest_first.into_iter().map(Vec::into_iter).collect();
    let extents: Vec<MapExtent> = merge_runs(sources, Holes::Drop).collect();
    let mapped: u64 = extents.iter().map(|extent| extent.count.0).sum();
    Ok(Findings::sound(Doc::Fields(vec![
        ("volume", chain.volume.to_string().into()),
        ("manifest", chain.manifests.last().map(|m| m.no.0).into()),
        ("cluster_size_bytes", chain.shape.cluster_size.bytes().into()),
        ("first_cluster", first.into()),
        ("cluster_count", count.into()),
        ("mapped_cluster_count", mapped.into()),
        ("extents", Doc::Rows(extent_rows(&extents))),
    ])))
}

async fn tlog_extents(
    store: &impl ObjectStore,
    chain: &Chain,
    range: Range,
) -> Result<Vec<MapExtent>> {
    let mut scos = Vec::new();
    for tlog in &chain.shape.tlogs {
        let object = fetch(store, &chain.namespace, &names::tlog(tlog.epoch, tlog.no)).await?;
        let tlog = Tlog::decode(&object.bytes).map_err(|fault| fault.about(&object.name))?;
        scos.push(tlog.scos);
    }
    let newest = collapse(scos.iter().map(Vec::as_slice));
    Ok(newest.into_iter().filter_map(|extent| range.cut(extent)).collect())
}

#[derive(Clone, Copy)]
struct Range {
    first: ClusterAddr,
    end: ClusterAddr,
}

impl Range {
    /// The part of an extent within.
    fn cut(self, extent: MapExtent) -> Option<MapExtent> {
        let addr = extent.addr.max(self.first);
        let end = (extent.addr + extent.count).min(self.end);
        (addr < end).then(|| MapExtent {
            addr,
            count: ClusterCount(end.0 - addr.0),
            mapping: extent.mapping.nth(addr.0 - extent.addr.0),
        })
    }
}

/// By namespace, by id, or by name.
async fn find(store: &impl ObjectStore, name: &str) -> Result<Chain> {
    let volume = names::volume_of(name).or_else(|| name.parse().ok());
    let missing = || Fault::invalid(format!("{name}: there is no such vDisk on the backend"));
    if let Some(volume) = volume {
        return load(store, volume).await?.ok_or_else(missing);
    }
    let mut unreadable = 0;
    for namespace in store.list_namespaces(names::NAMESPACE_PREFIX).await? {
        let Some(volume) = names::volume_of(&namespace) else { continue };
        match load(store, volume).await {
            Ok(Some(chain)) if chain.shape.name == name => return Ok(chain),
            Ok(_) => {}
            Err(fault) => {
                tracing::warn!("{fault}");
                unreadable += 1;
            }
        }
    }
    match unreadable {
        0 => Err(missing()),
        some => Err(missing().about(format!("{some} vDisks could not be read"))),
    }
}

/// `None`: no manifest is there.
async fn load(store: &impl ObjectStore, volume: VolumeId) -> Result<Option<Chain>> {
    let namespace = names::namespace(volume);
    let mut numbers = list_manifests(store, &namespace).await?;
    let mut manifests = Vec::new();
    let shape = loop {
        let Some(no) = numbers.pop() else { break None };
        let manifest = read_manifest(store, &namespace, volume, no).await?;
        if let Body::Checkpoint(shape) = &manifest.body {
            let shape = shape.clone();
            manifests.push(manifest);
            break Some(shape);
        }
        manifests.push(manifest);
    };
    if manifests.is_empty() {
        return Ok(None);
    }
    manifests.reverse();
    let no_checkpoint =
        || Fault::corrupt(format!("{namespace}: no checkpoint among its manifests"));
    let mut shape = shape.ok_or_else(no_checkpoint)?;
    apply(&namespace, &mut shape, &manifests)?;
    Ok(Some(Chain { namespace, volume, manifests, older: numbers.len(), shape }))
}

/// The deltas after the checkpoint, which comes first.
fn apply(namespace: &str, shape: &mut Shape, manifests: &[Manifest]) -> Result<()> {
    let mut last: Option<ManifestNo> = None;
    for manifest in manifests {
        if let Some(last) = last.filter(|last| last.next() != manifest.no) {
            return Err(Fault::corrupt(format!(
                "{namespace}: manifest {} comes after {last}, the ones between are missing",
                manifest.no
            )));
        }
        last = Some(manifest.no);
        let Body::Delta(changes) = &manifest.body else { continue };
        for change in changes {
            let applied = shape.apply(manifest.no, change);
            applied.map_err(|fault| {
                Fault::corrupt(format!("{namespace}: manifest {}: {fault}", manifest.no))
            })?;
        }
    }
    Ok(())
}

async fn list_manifests(store: &impl ObjectStore, namespace: &str) -> Result<Vec<ManifestNo>> {
    let mut names = Vec::<String>::new();
    loop {
        let after = names.last().map(String::as_str);
        let more = store.list(namespace, names::MANIFEST_PREFIX, after, LIST_LIMIT).await?;
        let end = more.len() < LIST_LIMIT as usize;
        names.extend(more);
        if names.len() > MAX_CHAIN {
            return Err(Fault::corrupt(format!("{namespace}: more than {MAX_CHAIN} manifests")));
        }
        if end {
            break;
        }
    }
    Ok(names.iter().filter_map(|name| names::manifest_no(name)).collect())
}

async fn read_manifest(
    store: &impl ObjectStore,
    namespace: &str,
    volume: VolumeId,
    no: ManifestNo,
) -> Result<Manifest> {
    let object = fetch(store, namespace, &names::manifest(no)).await?;
    let manifest = Manifest::decode(&object.bytes).map_err(|fault| fault.about(&object.name))?;
    if manifest.no != no || manifest.volume != volume {
        return Err(Fault::corrupt(format!(
            "{}: it says it is manifest {} of {}",
            object.name, manifest.no, manifest.volume
        )));
    }
    Ok(manifest)
}
