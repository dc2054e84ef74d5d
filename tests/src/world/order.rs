//! What the store can see of the ordering invariants: INV-4 and INV-6 at every put, INV-8 at every delete.
//!
//! It follows each volume's manifest chain as the objects arrive, by the same rules a new owner would read it.

use bytes::Bytes;
use volumedriver::codec::Opened;
use volumedriver_core::fault::Result;
use volumedriver_core::format::ChangeKind;
use volumedriver_core::format::manifest::{Body, Manifest, Shape, ShapeChange, TlogRef};
use volumedriver_core::format::names;
use volumedriver_core::format::sco::{ScoFooter, ScoForm, ScoTrailer, TRAILER_BYTES};
use volumedriver_core::format::tlog::{Tlog, TlogSco};
use volumedriver_core::units::{ClusterCrc, ManifestNo};

use super::keys;
use super::rng::Rng;
use super::store::Namespace;

/// A volume as its manifests so far describe it.
#[derive(Default)]
pub(crate) struct Chain {
    shape: Option<Shape>,
    last: ManifestNo,
    /// The newest checkpoint: older manifests are not needed to read the chain.
    checkpoint: ManifestNo,
}

impl Chain {
    pub fn shape(&self) -> Option<&Shape> {
        self.shape.as_ref()
    }
}

/// Whether clusters that do not match their checksum may reach the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Damaged {
    #[default]
    Never,
    /// The operator accepts what is lost.
    Accepted,
}

/// Takes note of an object that is being put for the first time; an error says which invariant that breaks.
pub(crate) fn check_put(
    space: &mut Namespace,
    name: &str,
    body: &[u8],
    damaged: Damaged,
) -> Option<String> {
    let outcome = if name.starts_with(names::MANIFEST_PREFIX) {
        check_manifest(space, name, body)
    } else if name.starts_with(names::TLOG_PREFIX) {
        Tlog::decode(body).map(|tlog| missing_sco(space, &tlog))
    } else if name.starts_with(names::SCO_PREFIX) {
        contents_of(body).map(|(footer, clusters)| {
            let named = names::sco(footer.id);
            if named != name {
                return Some(format!("the footer says {named}"));
            }
            let sound = clusters.chunks(footer.cluster_size.bytes() as usize).map(ClusterCrc::of);
            (damaged == Damaged::Never && !sound.eq(footer.crcs()))
                .then(|| "its clusters do not match its footer".to_owned())
        })
    } else {
        Ok(None)
    };
    outcome
        .unwrap_or_else(|fault| Some(fault.to_string()))
        .map(|broken| format!("put of {name}: {broken}"))
}

fn missing_sco(space: &Namespace, tlog: &Tlog) -> Option<String> {
    let is_there = |sco: &TlogSco| {
        space
            .objects
            .get(&names::sco(sco.id))
            .is_some_and(|o| o.body.len() as u64 == sco.object_bytes)
    };
    let missing = tlog.scos.iter().find(|sco| !is_there(sco))?;
    Some(format!("INV-4: SCO {} is not there with {} bytes", missing.id, missing.object_bytes))
}

fn check_manifest(space: &mut Namespace, name: &str, body: &[u8]) -> Result<Option<String>> {
    let manifest = Manifest::decode(body)?;
    let chain = &mut space.chain;
    if names::manifest_no(name) != Some(manifest.no) || manifest.no.0 != chain.last.0 + 1 {
        return Ok(Some(format!("it is number {} after {}", manifest.no, chain.last)));
    }
    let before = chain.shape.as_ref().map(Shape::epoch).unwrap_or_default();
    if manifest.epoch < before {
        return Ok(Some(format!("INV-6: epoch {} writes after epoch {before}", manifest.epoch)));
    }
    chain.last = manifest.no;
    let news = match manifest.body {
        Body::Checkpoint(shape) => {
            chain.checkpoint = manifest.no;
            chain.shape.insert(shape).clone()
        }
        Body::Delta(changes) => {
            let Some(shape) = chain.shape.as_mut() else {
                return Ok(Some("the chain begins with a delta".to_string()));
            };
            changes.iter().try_for_each(|change| shape.apply(manifest.no, change))?;
            named_by(&changes, shape)
        }
    };
    Ok(missing_part(space, &news))
}

/// A shape with only those TLogs and runs that these changes add.
fn named_by(changes: &[ShapeChange], shape: &Shape) -> Shape {
    let mut news = Shape { runs: Vec::new(), tlogs: Vec::new(), ..shape.clone() };
    for change in changes {
        match change {
            ShapeChange::Published { tlog, .. } => news.tlogs.push(*tlog),
            ShapeChange::Compacted { run, .. } => news.runs.push(*run),
            ShapeChange::Opened(_) | ShapeChange::Resized(_) | ShapeChange::ScoSizeSet(_) => {}
        }
    }
    news
}

fn missing_part(space: &Namespace, shape: &Shape) -> Option<String> {
    let has = |name: &str, bytes: u64| {
        space.objects.get(name).is_some_and(|object| object.body.len() as u64 == bytes)
    };
    let tlog_name = |tlog: &TlogRef| names::tlog(tlog.epoch, tlog.no);
    if let Some(tlog) = shape.tlogs.iter().find(|tlog| !has(&tlog_name(tlog), tlog.object_bytes)) {
        return Some(format!("INV-4: {} is not there", tlog_name(tlog)));
    }
    let run_name =
        |run: &volumedriver_core::format::manifest::RunRef| names::run(run.epoch, run.no);
    let run = shape.runs.iter().find(|run| !has(&run_name(run), run.object_bytes))?;
    Some(format!("INV-4: {} is not there", run_name(run)))
}

/// What is wrong with deleting this object now (INV-8): the latest manifest still reaches it.
pub(crate) fn check_delete(space: &Namespace, name: &str) -> Option<String> {
    let chain = &space.chain;
    let shape = chain.shape.as_ref()?;
    space.objects.get(name)?;
    let reached = if let Some(no) = names::manifest_no(name) {
        no >= chain.checkpoint || shape.openings.iter().any(|opening| opening.no == no)
    } else if name.starts_with(names::SCO_PREFIX) {
        // Without a cleaner every published SCO stays.
        let published = shape.last_sco.0;
        let position = name.rsplit('-').next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
        position.is_some_and(|position| position <= published)
            && shape.origins.iter().any(|o| name.contains(&format!("{:08x}-", o.epoch.0)))
    } else {
        shape.tlogs.iter().any(|tlog| names::tlog(tlog.epoch, tlog.no) == name)
            || shape.runs.iter().any(|run| names::run(run.epoch, run.no) == name)
    };
    reached.then(|| format!("INV-8: {name} is deleted, and manifest {} reaches it", chain.last))
}

/// Footer and clusters of an SCO, however it is stored.
fn contents_of(body: &[u8]) -> Result<(ScoFooter, Vec<u8>)> {
    let trailer = ScoTrailer::decode(body)?;
    let data_bytes = body.len().saturating_sub(trailer.footer_bytes as usize + TRAILER_BYTES);
    match trailer.form {
        ScoForm::Plain => Ok((footer_of(body)?, body[..data_bytes].to_vec())),
        ScoForm::Framed => {
            let Opened { footer, frames } = Opened::open(&body[data_bytes..], &*keys::ring()?)?;
            let clusters = match frames.range(0, footer.cluster_count) {
                Some(range) => {
                    let stored = &body[range.start as usize..range.end as usize];
                    frames.unpack(0, footer.cluster_count, stored)?.to_vec()
                }
                None => Vec::new(),
            };
            Ok((footer, clusters))
        }
    }
}

/// Whether these are SCOs of the same clusters, built in other ways: a crash does not remember how.
pub(crate) fn is_same_sco(name: &str, one: &[u8], other: &[u8], damaged: Damaged) -> bool {
    let both = (contents_of(one), contents_of(other));
    let same = match damaged {
        Damaged::Never => matches!(both, (Ok(one), Ok(other)) if one == other),
        // What was stored before it decayed is the better one.
        Damaged::Accepted => matches!(both, (Ok(one), Ok(other)) if one.0 == other.0),
    };
    name.starts_with(names::SCO_PREFIX) && same
}

pub(crate) fn footer_of(body: &[u8]) -> Result<ScoFooter> {
    let trailer = ScoTrailer::decode(body)?;
    let end = trailer.footer_bytes as usize + TRAILER_BYTES;
    ScoFooter::decode(&body[body.len().saturating_sub(end)..])
}

/// The SCO with one flipped bit in a cluster and a footer that agrees with it; `None` for other objects, and for most.
pub(crate) fn damage_sco(name: &str, body: &Bytes, rng: &mut Rng) -> Option<Bytes> {
    if !name.starts_with(names::SCO_PREFIX) || rng.coin() {
        return None;
    }
    let mut footer = footer_of(body).ok()?;
    let cluster_bytes = footer.cluster_size.bytes() as usize;
    let data_bytes = footer.cluster_count as usize * cluster_bytes;
    let mut damaged = body[..data_bytes].to_vec();
    // One bit in each cluster, so that the damage is met soon.
    for cluster in damaged.chunks_mut(cluster_bytes) {
        cluster[rng.below(cluster_bytes as u64) as usize] ^= 1 << rng.below(8);
    }
    for change in &mut footer.changes {
        if let ChangeKind::Data { first_index, crcs } = &mut change.kind {
            let first = *first_index as usize;
            for (n, crc) in crcs.iter_mut().enumerate() {
                let start = (first + n) * cluster_bytes;
                *crc = ClusterCrc::of(&damaged[start..start + cluster_bytes]);
            }
        }
    }
    damaged.extend_from_slice(&footer.encode());
    Some(damaged.into())
}
