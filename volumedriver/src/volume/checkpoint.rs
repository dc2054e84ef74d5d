//! Checkpoints of the map on the backend: TLogs become sorted map runs, so that opening elsewhere costs recent TLogs only.
//!
//! A run is put before the manifest that names it; what it replaces is deleted only a grace time after that (INV-8).

use std::time::Duration;

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::Change;
use volumedriver_core::format::manifest::{RunRef, Shape, ShapeChange, TlogRef};
use volumedriver_core::format::names;
use volumedriver_core::format::run::{
    MapExtent, RunBlock, RunHeader, RunIndex, RunWriter, Tail, decode_tail,
};
use volumedriver_core::format::tlog::Tlog;
use volumedriver_core::map::checkpoint::Collapse;
use volumedriver_core::map::merge::{Holes, merge_runs};
use volumedriver_core::map::{Page, mapping_of};
use volumedriver_core::units::{
    ClusterAddr, ClusterCount, Mapping, PAGE_CLUSTERS, PageNo, RunNo, ScoSeq, TlogNo, VolumeId,
};

use super::chain::{put_certainly, until_answered};
use super::{Shared, Volume};
use crate::world::{ObjectStore, PageBatch, PageStore, World};

/// TLogs that make a run...
pub(super) const TLOGS_PER_RUN: usize = 32;
/// ... or so many bytes of them: bounds the memory of making it, about four times that.
const TLOG_BYTES_PER_RUN: u64 = 16 << 20;
/// A run is merged into a new one unless it is this many times larger.
const GROWTH: u64 = 2;
/// Runs larger than this are not merged any more: bounds the memory of a merge.
const MOST_MERGED_BYTES: u64 = 64 << 20;
/// Attempts at reading what does not match its checksum.
const FETCHES: u32 = 5;
/// First guess at the size of a run's index, bytes.
const TAIL_BYTES: u64 = 64 * 1024;
/// Map pages imported at a time: bounds memory at 64 MiB of extents per run.
const WINDOW_PAGES: u64 = 4096;
/// A replaced object is kept this long for whoever still reads by an older manifest.
const GRACE: Duration = Duration::from_secs(600);

impl<W: World> Volume<W> {
    pub(super) async fn fetch_tlog(&self, reference: TlogRef) -> Result<Tlog> {
        let (namespace, name) =
            (names::namespace(self.id), names::tlog(reference.epoch, reference.no));
        let place = Place { namespace: &namespace, name: &name, offset: 0 };
        let decode = |bytes: Bytes| Tlog::decode(&bytes);
        fetch_good(&self.shared, place, reference.object_bytes, decode, |tlog| {
            tlog.check_named(self.id, &reference)?;
            // The map takes for granted that changes lie in the volume.
            let mut core = self.core.borrow_mut();
            tlog.scos.iter().try_for_each(|sco| core.map().check(&sco.changes))
        })
        .await
    }

    /// Pages as the last manifest has them, made from its runs and TLogs. A page that is not in memory has no changes beyond
    /// that.
    pub(super) async fn rebuild_pages(&self, pages: Vec<PageNo>) -> Result<Vec<(PageNo, Page)>> {
        let shape = self.core.borrow().shape().clone();
        // Per page, oldest first.
        let mut parts: Vec<(PageNo, Vec<MapExtent>)> =
            pages.into_iter().map(|page| (page, Vec::new())).collect();
        for run in &shape.runs {
            let index = load_index(&self.shared, self.id, &shape, run).await?;
            for (page, extents) in &mut parts {
                let blocks = (run, index.blocks_for(*page));
                let found = load_blocks(&self.shared, self.id, shape.last_sco, blocks).await?;
                extents.extend(found);
            }
        }
        for reference in &shape.tlogs {
            for sco in self.fetch_tlog(*reference).await?.scos {
                for (page, extents) in &mut parts {
                    extents.extend(touching(*page, sco.id.seq, &sco.changes));
                }
            }
        }
        let build =
            |(page, extents): (PageNo, Vec<MapExtent>)| (page, Page::from_extents(page, &extents));
        Ok(parts.into_iter().map(build).collect())
    }

    /// Makes a run of the TLogs when they are many, and deletes what earlier runs replaced. What cannot be done now is done
    /// later: a checkpoint is no reason to stop uploading.
    pub(super) async fn compact_if_due(&self) -> Result<()> {
        self.delete_obsolete().await;
        let due = {
            let core = self.core.borrow();
            let (tlogs, at) = (&core.shape().tlogs, self.compact_at.get());
            let bytes: u64 = tlogs.iter().map(|tlog| tlog.object_bytes).sum();
            let most_bytes = TLOG_BYTES_PER_RUN.saturating_mul((at / TLOGS_PER_RUN) as u64);
            (tlogs.len() >= at || bytes >= most_bytes).then(|| tlogs.clone())
        };
        let Some(tlogs) = due else { return Ok(()) };
        match self.compact(tlogs).await {
            Ok(()) => self.compact_at.set(TLOGS_PER_RUN),
            Err(fault) if matches!(fault.kind, Kind::Fenced | Kind::Closed | Kind::Bug) => {
                return Err(fault);
            }
            Err(fault) => {
                tracing::error!(vdisk = self.name, %fault, "no checkpoint of the map now");
                self.compact_at.set(self.compact_at.get().saturating_add(TLOGS_PER_RUN));
            }
        }
        Ok(())
    }

    async fn compact(&self, tlogs: Vec<TlogRef>) -> Result<()> {
        let Some(last) = tlogs.last() else { return Ok(()) };
        // The page store must not depend on TLogs that a run replaces.
        self.persist_pages(last.no).await?;
        self.shared.world.pages().sync().await?;
        let newest = self.collapse(&tlogs).await?;
        let (shape, no) = {
            let core = self.core.borrow();
            (core.shape().clone(), RunNo(core.head().next().0))
        };
        let merged = mergeable(&shape, newest.len() as u64);
        let mut sources = vec![newest];
        for older in merged.iter().rev() {
            sources.push(load_run(&self.shared, self.id, &shape, older).await?);
        }
        let replaced: Vec<RunNo> = merged.iter().map(|r| r.no).collect();
        let run = self.put_run(&shape, no, sources, &replaced, last.no).await?;
        self.add_manifest(vec![ShapeChange::Compacted { run, replaced }]).await?;
        let now = self.shared.world.now();
        let old_tlogs = tlogs.iter().map(|t| names::tlog(t.epoch, t.no));
        let old_runs = merged.iter().map(|r| names::run(r.epoch, r.no));
        self.obsolete.borrow_mut().extend(old_tlogs.chain(old_runs).map(|name| (now, name)));
        Ok(())
    }

    /// The extents of these TLogs, holding the contents of one of them at a time.
    async fn collapse(&self, tlogs: &[TlogRef]) -> Result<Vec<MapExtent>> {
        let world = &self.shared.world;
        let mut collapse = Collapse::default();
        for reference in tlogs {
            let tlog = self.fetch_tlog(*reference).await?;
            let add = move || {
                tlog.scos.iter().for_each(|sco| collapse.add(sco));
                collapse
            };
            collapse = world.compute(add).await;
        }
        Ok(world.compute(move || collapse.into_extents().collect()).await)
    }

    async fn put_run(
        &self,
        shape: &Shape,
        no: RunNo,
        newest_first: Vec<Vec<MapExtent>>,
        replaced: &[RunNo],
        last_tlog: TlogNo,
    ) -> Result<RunRef> {
        let beneath = shape.runs.len() > replaced.len();
        let holes = if beneath { Holes::Keep } else { Holes::Drop };
        let epoch = self.core.borrow().epoch();
        let writer = RunWriter::new(self.id, epoch, no);
        let world = &self.shared.world;
        let (body, object_bytes, header) =
            world.compute(move || write_run(newest_first, holes, writer)).await;
        let namespace = names::namespace(self.id);
        put_certainly(world, &namespace, &names::run(epoch, no), body, || self.is_closing())
            .await?;
        let tlogs = shape.covered_by(replaced, last_tlog)?;
        let entry_count = header.entry_count;
        Ok(RunRef { no, epoch, first_tlog: *tlogs.start(), last_tlog, object_bytes, entry_count })
    }

    /// Deletes what has been obsolete for the grace time. A failure leaves it for the next round.
    async fn delete_obsolete(&self) {
        let now = self.shared.world.now();
        let namespace = names::namespace(self.id);
        loop {
            let due = self.obsolete.borrow().front().filter(|(at, _)| *at + GRACE <= now).cloned();
            let Some((_, name)) = due else { return };
            if let Err(fault) = self.shared.world.store().delete(&namespace, &name).await {
                tracing::warn!(%fault, name, "an obsolete object cannot be deleted yet");
                return;
            }
            self.obsolete.borrow_mut().pop_front();
        }
    }
}

/// What these changes of an SCO say of a page.
fn touching(page: PageNo, sco: ScoSeq, changes: &[Change]) -> impl Iterator<Item = MapExtent> {
    let (first, end) = (page.0 * PAGE_CLUSTERS, (page.0 + 1) * PAGE_CLUSTERS);
    let inside = move |change: &&Change| {
        change.addr.0 < end && change.addr.0.saturating_add(change.count.0) > first
    };
    changes.iter().filter(inside).map(move |change| MapExtent {
        addr: change.addr,
        count: change.count,
        mapping: mapping_of(sco, &change.kind),
    })
}

/// The newest runs worth merging with `entries` new ones: each less than twice what comes above it.
fn mergeable(shape: &Shape, mut entries: u64) -> Vec<RunRef> {
    let mut bytes = 0;
    let mut first = shape.runs.len();
    for run in shape.runs.iter().rev() {
        bytes = run.object_bytes.saturating_add(bytes);
        if run.entry_count > entries.saturating_mul(GROWTH) || bytes > MOST_MERGED_BYTES {
            break;
        }
        entries = run.entry_count.saturating_add(entries);
        first -= 1;
    }
    shape.runs.get(first..).unwrap_or_default().to_vec()
}

async fn fetch<W: World>(
    shared: &Shared<W>,
    namespace: &str,
    name: &str,
    offset: u64,
    len: u64,
) -> Result<Bytes> {
    let get = async || shared.world.store().get_range(namespace, name, offset, len).await;
    match until_answered(&shared.world, name, || false, get).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(Fault::corrupt(format!("{namespace}/{name} is missing on the backend"))),
        // Its length is what the manifest says: what is shorter is damaged.
        Err(fault) if fault.kind == Kind::Invalid => {
            Err(Fault::corrupt(format!("{namespace}/{name} is cut short")).because(fault))
        }
        Err(fault) => Err(fault),
    }
}

/// Where something lies on the backend.
#[derive(Clone, Copy)]
struct Place<'a> {
    namespace: &'a str,
    name: &'a str,
    offset: u64,
}

/// Reads until what came is good: a bit may have flipped on its way, and the store may have another copy (P2). Decoding may
/// take long and is done off the shard's thread; the check that follows may look at the volume.
async fn fetch_good<W: World, T: Send + 'static>(
    shared: &Shared<W>,
    place: Place<'_>,
    len: u64,
    decode: impl Fn(Bytes) -> Result<T> + Clone + Send + 'static,
    check: impl Fn(&T) -> Result<()>,
) -> Result<T> {
    let Place { namespace, name, offset } = place;
    let mut attempts = 1;
    loop {
        let bytes = fetch(shared, namespace, name, offset, len).await?;
        let decode = decode.clone();
        let decoded = shared.world.compute(move || decode(bytes)).await;
        match decoded.and_then(|good| check(&good).map(|()| good)) {
            Err(fault) if fault.kind == Kind::Corrupt && attempts < FETCHES => attempts += 1,
            outcome => return outcome.map_err(|f| f.about(format!("{namespace}/{name}"))),
        }
    }
}

/// The run that these make together.
fn write_run(
    newest_first: Vec<Vec<MapExtent>>,
    holes: Holes,
    mut writer: RunWriter,
) -> (Vec<Bytes>, u64, RunHeader) {
    let sources = newest_first.into_iter().map(Vec::into_iter).collect();
    merge_runs(sources, holes).for_each(|extent| writer.push(extent));
    writer.finish()
}

async fn load_index<W: World>(
    shared: &Shared<W>,
    volume: VolumeId,
    shape: &Shape,
    run: &RunRef,
) -> Result<RunIndex> {
    let size = shape.cluster_size.clusters_covering(shape.size);
    let (namespace, name) = (names::namespace(volume), names::run(run.epoch, run.no));
    let mut wanted = TAIL_BYTES.min(run.object_bytes);
    loop {
        let offset = run.object_bytes - wanted;
        let place = Place { namespace: &namespace, name: &name, offset };
        let object_bytes = run.object_bytes;
        let decode = move |tail: Bytes| decode_tail(object_bytes, &tail);
        let tail = fetch_good(shared, place, wanted, decode, |tail| match tail {
            Tail::Index(index) => index.check(volume, run, size),
            Tail::Longer(more) if *more > wanted && *more <= object_bytes => Ok(()),
            Tail::Longer(_) => Err(Fault::corrupt("its index does not fit")),
        });
        match tail.await? {
            Tail::Index(index) => return Ok(index),
            Tail::Longer(more) => wanted = more,
        }
    }
}

/// All extents of a run.
async fn load_run<W: World>(
    shared: &Shared<W>,
    volume: VolumeId,
    shape: &Shape,
    run: &RunRef,
) -> Result<Vec<MapExtent>> {
    let index = load_index(shared, volume, shape, run).await?;
    load_blocks(shared, volume, shape.last_sco, (run, &index.blocks)).await
}

/// The extents of neighbouring blocks of a run, which may map to SCOs up to `last_sco`.
async fn load_blocks<W: World>(
    shared: &Shared<W>,
    volume: VolumeId,
    last_sco: ScoSeq,
    (run, blocks): (&RunRef, &[RunBlock]),
) -> Result<Vec<MapExtent>> {
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return Ok(Vec::new()) };
    let (namespace, name) = (names::namespace(volume), names::run(run.epoch, run.no));
    let (from, to) = (first.bytes.start, last.bytes.end);
    let place = Place { namespace: &namespace, name: &name, offset: from };
    let index = blocks.to_vec();
    let decode = move |bytes: Bytes| {
        let mut extents = Vec::new();
        for block in &index {
            let range = (block.bytes.start - from) as usize..(block.bytes.end - from) as usize;
            extents.append(&mut block.decode(bytes.get(range).unwrap_or_default())?);
        }
        Ok(extents)
    };
    fetch_good(shared, place, to - from, decode, |extents: &Vec<MapExtent>| {
        let unpublished =
            |extent: &&MapExtent| matches!(extent.mapping, Mapping::At(at) if at.sco > last_sco);
        match extents.iter().find(unpublished) {
            None => Ok(()),
            Some(MapExtent { addr, mapping, .. }) => Err(Fault::corrupt(format!(
                "cluster {addr} maps to {mapping:?}, the last SCO is {last_sco}"
            ))),
        }
    })
    .await
}

/// Fills an empty page store from the runs of a shape, window by window.
pub(super) async fn import_runs<W: World>(
    shared: &Shared<W>,
    id: VolumeId,
    shape: &Shape,
    covered: TlogNo,
) -> Result<()> {
    let mut indexes = Vec::with_capacity(shape.runs.len());
    for run in shape.runs.iter().rev() {
        indexes.push((*run, load_index(shared, id, shape, run).await?));
    }
    let mut page = 0;
    while let Some(next) = next_page(&indexes, page) {
        let window = next..next.saturating_add(WINDOW_PAGES);
        let pages = window_pages(shared, id, shape.last_sco, &indexes, &window).await?;
        let batch = PageBatch { holes: Vec::new(), pages, applied: TlogNo(0) };
        shared.world.pages().put(id, batch).await?;
        page = window.end;
    }
    if covered > TlogNo(0) {
        let done = PageBatch { applied: covered, ..PageBatch::default() };
        shared.world.pages().put(id, done).await?;
    }
    Ok(())
}

/// The first page at or after `page` that some run speaks of.
fn next_page(indexes: &[(RunRef, RunIndex)], page: u64) -> Option<u64> {
    let from = page.checked_mul(PAGE_CLUSTERS)?;
    let next = indexes.iter().filter_map(|(_, index)| {
        let at = index.blocks.partition_point(|block| block.end.0 <= from);
        index.blocks.get(at).map(|block| block.first.0.max(from))
    });
    next.min().map(|addr| addr / PAGE_CLUSTERS)
}

/// The encoded pages of a window.
async fn window_pages<W: World>(
    shared: &Shared<W>,
    id: VolumeId,
    last_sco: ScoSeq,
    indexes: &[(RunRef, RunIndex)],
    window: &std::ops::Range<u64>,
) -> Result<Vec<(PageNo, Bytes)>> {
    let (from, to) = (window.start * PAGE_CLUSTERS, window.end.saturating_mul(PAGE_CLUSTERS));
    let mut sources = Vec::with_capacity(indexes.len());
    for (run, index) in indexes {
        let first = index.blocks.partition_point(|block| block.end.0 <= from);
        let end = index.blocks.partition_point(|block| block.first.0 < to);
        let blocks = index.blocks.get(first..end.max(first)).unwrap_or_default();
        let extents = load_blocks(shared, id, last_sco, (run, blocks)).await?;
        sources.push(extents);
    }
    Ok(shared.world.compute(move || pages_of(sources, from, to)).await)
}

/// The encoded pages of clusters `from..to`.
fn pages_of(newest_first: Vec<Vec<MapExtent>>, from: u64, to: u64) -> Vec<(PageNo, Bytes)> {
    let sources = newest_first.into_iter().map(Vec::into_iter).collect();
    let mut pages: Vec<(PageNo, Vec<MapExtent>)> = Vec::new();
    for extent in merge_runs(sources, Holes::Drop) {
        for (page, part) in split_by_page(extent, from, to) {
            match pages.last_mut() {
                Some((last, parts)) if *last == page => parts.push(part),
                _ => pages.push((page, vec![part])),
            }
        }
    }
    let encode = |(page, parts): &(PageNo, Vec<MapExtent>)| {
        (*page, Page::from_extents(*page, parts).encode(*page))
    };
    pages.iter().map(encode).collect()
}

/// The parts of an extent in `from..to` (clusters), page by page.
fn split_by_page(
    extent: MapExtent,
    from: u64,
    to: u64,
) -> impl Iterator<Item = (PageNo, MapExtent)> {
    let end = (extent.addr + extent.count).0.min(to);
    let mut at = extent.addr.0.max(from);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE_CLUSTERS;
        let stop = end.min((page + 1) * PAGE_CLUSTERS);
        let mapping = extent.mapping.nth(at - extent.addr.0);
        let part = MapExtent { addr: ClusterAddr(at), count: ClusterCount(stop - at), mapping };
        at = stop;
        Some((PageNo(page), part))
    })
}
