//! The manifest chain on the backend: find its head, load the shape, add to it.
//!
//! Adding manifest n+1 is the linearization point of every change of a volume's shape and the fence between owners: a put of a
//! number that exists with other bytes means another owner has taken over (INV-6). A put whose outcome is unknown is repeated
//! with the same bytes until it is known.

use std::time::Duration;

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::manifest::{Body, Manifest, Opening, Shape, ShapeChange};
use volumedriver_core::format::names;
use volumedriver_core::units::{Epoch, MAX_NUMBER, ManifestNo, NodeId, VolumeId};

use crate::world::{ObjectStore, Purpose, Put, World};

/// Every so many manifests the whole shape is written instead of a change.
const CHECKPOINT_EVERY: u64 = 64;
/// More than any manifest takes, bytes: bounds what is read at once.
const MANIFEST_BYTES: u64 = 256 << 20;
/// Pauses between attempts while the store is unavailable.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Repeats `attempt` while the store is out of reach or full, with growing pauses, until it has an answer or `closing` says
/// to give up.
pub(super) async fn until_answered<W: World, T>(
    world: &W,
    what: &str,
    closing: impl Fn() -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt().await {
            Err(fault) if matches!(fault.kind, Kind::Unavailable | Kind::NoSpace) => {
                if closing() {
                    return Err(Fault::closed(format!("{what}: given up")).because(fault));
                }
                tracing::warn!(what, %fault, "the backend does not answer; trying again");
                world.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            other => return other,
        }
    }
}

/// Puts an object until it certainly is there with these bytes. `Fenced`: one with other bytes is.
pub(super) async fn put_certainly<W: World>(
    world: &W,
    namespace: &str,
    name: &str,
    body: Vec<Bytes>,
    closing: impl Fn() -> bool,
) -> Result<()> {
    let purpose = purpose_of(name);
    let put = async || world.store().put_if_absent(namespace, name, body.clone(), purpose).await;
    if until_answered(world, name, &closing, put).await? == Put::Created {
        return Ok(());
    }
    let head = async || world.store().head(namespace, name).await;
    let found = until_answered(world, name, &closing, head).await?;
    let mut crc = crc32fast::Hasher::new();
    body.iter().for_each(|piece| crc.update(piece));
    let len: u64 = body.iter().map(|piece| piece.len() as u64).sum();
    match found {
        Some(info) if info.len == len && info.crc == crc.finalize() => Ok(()),
        Some(_) => Err(Fault::fenced(format!(
            "{namespace}/{name} exists with other content: another owner has taken over"
        ))),
        None => Err(Fault::unavailable(format!("{namespace}/{name} exists, but cannot be found"))),
    }
}

/// Manifests and TLogs name what is stored already: without them it could be neither found nor given up, and a volume not
/// even be opened. SCOs and runs can wait for room.
fn purpose_of(name: &str) -> Purpose {
    let metadata = [names::MANIFEST_PREFIX, names::TLOG_PREFIX, names::KEY_PREFIX];
    match metadata.iter().any(|prefix| name.starts_with(prefix)) {
        true => Purpose::Metadata,
        false => Purpose::Data,
    }
}

/// What the chain says of a volume.
#[derive(Clone, Debug)]
pub struct Found {
    pub head: ManifestNo,
    pub shape: Shape,
}

/// Reads the chain; `None` when there is no manifest at all. The listing may be stale, so the numbers after its end are tried.
pub async fn load<W: World>(world: &W, volume: VolumeId) -> Result<Option<Found>> {
    let namespace = names::namespace(volume);
    let listed = list_numbers(world, &namespace).await?;
    let mut tail = Vec::new();
    let mut next = listed.last().map_or(ManifestNo(1), |last| last.next());
    while let Some(manifest) = get(world, volume, &namespace, next).await? {
        tail.push(manifest);
        next = next.next();
    }
    let mut chain = Vec::new();
    for &no in listed.iter().rev() {
        let Some(manifest) = get(world, volume, &namespace, no).await? else {
            return Err(Fault::corrupt(format!(
                "{namespace}: manifest {no} is listed but missing"
            )));
        };
        let whole = matches!(manifest.body, Body::Checkpoint(_));
        chain.push(manifest);
        if whole {
            break;
        }
    }
    chain.reverse();
    chain.append(&mut tail);
    shape_of(&namespace, chain)
}

async fn list_numbers<W: World>(world: &W, namespace: &str) -> Result<Vec<ManifestNo>> {
    const PAGE: u32 = 1000;
    let mut numbers = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let prefix = names::MANIFEST_PREFIX;
        let list = async || world.store().list(namespace, prefix, after.as_deref(), PAGE).await;
        let names = until_answered(world, namespace, || false, list).await?;
        let no = |name: &String| names::manifest_no(name).filter(|no| no.0 <= MAX_NUMBER);
        numbers.extend(names.iter().filter_map(no));
        match names.last() {
            Some(last) if names.len() == PAGE as usize => after = Some(last.clone()),
            _ => return Ok(numbers),
        }
    }
}

async fn get<W: World>(
    world: &W,
    volume: VolumeId,
    namespace: &str,
    no: ManifestNo,
) -> Result<Option<Manifest>> {
    let name = names::manifest(no);
    // Each question is repeated by itself: a long chain would never be read in one go from a store that fails now and then.
    let head = async || world.store().head(namespace, &name).await;
    let Some(info) = until_answered(world, &name, || false, head).await? else { return Ok(None) };
    check_length(namespace, &name, info.len)?;
    let get = async || world.store().get_range(namespace, &name, 0, info.len).await;
    let Some(bytes) = until_answered(world, &name, || false, get).await? else { return Ok(None) };
    decode(volume, namespace, no, &bytes).map(Some)
}

fn check_length(namespace: &str, name: &str, len: u64) -> Result<()> {
    match len {
        0..=MANIFEST_BYTES => Ok(()),
        _ => Err(Fault::corrupt(format!("{namespace}/{name}: no manifest has {len} bytes"))),
    }
}

fn decode(volume: VolumeId, namespace: &str, no: ManifestNo, bytes: &[u8]) -> Result<Manifest> {
    let name = names::manifest(no);
    let manifest = Manifest::decode(bytes).map_err(|f| f.about(format!("{namespace}/{name}")))?;
    if manifest.no != no || manifest.volume != volume {
        return Err(Fault::corrupt(format!("{namespace}/{name} holds another volume's manifest")));
    }
    Ok(manifest)
}

/// Whether nobody of a later epoch has added to the chain after `head`. Asks just once: an error when there is no answer.
pub(super) async fn is_latest<W: World>(
    world: &W,
    volume: VolumeId,
    head: ManifestNo,
    epoch: Epoch,
) -> Result<bool> {
    let namespace = names::namespace(volume);
    let mut no = head.next();
    loop {
        let name = names::manifest(no);
        let Some(info) = world.store().head(&namespace, &name).await? else { return Ok(true) };
        check_length(&namespace, &name, info.len)?;
        let bytes = world.store().get_range(&namespace, &name, 0, info.len).await?;
        let Some(bytes) = bytes else { return Ok(true) };
        // Our own may have arrived before we heard of it.
        if decode(volume, &namespace, no, &bytes)?.epoch > epoch {
            return Ok(false);
        }
        no = no.next();
    }
}

/// Applies the manifests after the last checkpoint to it.
fn shape_of(namespace: &str, chain: Vec<Manifest>) -> Result<Option<Found>> {
    let mut found: Option<Found> = None;
    for manifest in chain {
        let head = manifest.no;
        match (manifest.body, &mut found) {
            (Body::Checkpoint(shape), _) => found = Some(Found { head, shape }),
            (Body::Delta(changes), Some(so_far)) if so_far.head.next() == head => {
                for change in &changes {
                    so_far.shape.apply(head, change).map_err(|f| f.about(namespace))?;
                }
                so_far.head = head;
            }
            (Body::Delta(_), _) => {
                return Err(Fault::corrupt(format!(
                    "{namespace}: manifest {head} has no manifest before it"
                )));
            }
        }
    }
    Ok(found)
}

/// Takes the next epoch for `node`: after this no earlier owner can add to the chain. Retries over manifests that appear
/// meanwhile (late puts of the owner before).
pub async fn take_over<W: World>(
    world: &W,
    volume: VolumeId,
    node: NodeId,
    mut found: Found,
) -> Result<Found> {
    let namespace = names::namespace(volume);
    loop {
        let no = found.head.next();
        match follow(world, volume, node, found.clone(), || false).await {
            Ok(taken) => return Ok(taken),
            Err(fault) if fault.kind == Kind::Fenced => {
                found = load(world, volume).await?.unwrap_or(found);
                if found.head < no {
                    return Err(Fault::unavailable(format!(
                        "{namespace}: manifest {no} cannot be read yet"
                    )));
                }
            }
            Err(fault) => return Err(fault),
        }
    }
}

/// Takes the epoch after `found` for `node`. `Fenced`: there is a manifest after it already.
pub(super) async fn follow<W: World>(
    world: &W,
    volume: VolumeId,
    node: NodeId,
    found: Found,
    closing: impl Fn() -> bool,
) -> Result<Found> {
    let Found { head, mut shape } = found;
    let no = head.next();
    let epoch = shape.openings.last().map_or(Epoch(1), |o| o.epoch.next());
    let opened = ShapeChange::Opened(Opening { epoch, no, node });
    shape.apply(no, &opened)?;
    let manifest = next_manifest(volume, epoch, node, no, &shape, vec![opened]);
    let (namespace, name) = (names::namespace(volume), names::manifest(no));
    put_certainly(world, &namespace, &name, vec![manifest.encode()], closing).await?;
    Ok(Found { head: no, shape })
}

/// Manifest `no` with these changes, or the whole of `shape` (which has them applied) when a checkpoint is due.
pub(super) fn next_manifest(
    volume: VolumeId,
    epoch: Epoch,
    node: NodeId,
    no: ManifestNo,
    shape: &Shape,
    changes: Vec<ShapeChange>,
) -> Manifest {
    let body = if no.0.is_multiple_of(CHECKPOINT_EVERY) || no.0 == 1 {
        Body::Checkpoint(shape.clone())
    } else {
        Body::Delta(changes)
    };
    Manifest { volume, no, epoch, node, body }
}
