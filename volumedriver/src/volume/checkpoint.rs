//! Checkpoints of the map on the backend: TLogs become sorted map runs, so that opening elsewhere costs recent TLogs only.
//!
//! A run is put before the manifest that names it; what it replaces is deleted only a grace time after that (INV-8).

use std::time::Duration;

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::manifest::{RunRef, Shape, ShapeChange, TlogRef};
use volumedriver_core::format::names;
use volumedriver_core::format::run::{
    MapExtent, RunBlock, RunHeader, RunIndex, RunWriter, Tail, decode_tail,
};
use volumedriver_core::format::tlog::Tlog;
use volumedriver_core::map::Page;
use volumedriver_core::map::checkpoint::Collapse;
use volumedriver_core::map::merge::{Holes, merge_runs};
use volumedriver_core::units::{
    ClusterAddr, ClusterCount, PAGE_CLUSTERS, PageNo, RunNo, TlogNo, VolumeId,
};

use super::chain::{put_certainly, until_answered};
use super::{Shared, Volume};
use crate::world::{ObjectStore, PageBatch, PageStore, World};

/// TLogs that make a run...
const TLOGS_PER_RUN: usize = 32;
/// ... or so many bytes of them: bounds the memory of making it, about four times that.
const TLOG_BYTES_PER_RUN: u64 = 16 << 20;
/// A run is merged into a new one unless it is this many times larger.
const GROWTH: u64 = 2;
/// Runs larger than this are not merged any more: bounds the memory of a merge.
const MOST_MERGED_BYTES: u64 = 64 << 20;
/// First guess at the size of a run's index, bytes.
const TAIL_BYTES: u64 = 64 * 1024;
/// Map pages imported at a time: bounds memory at 64 MiB of extents per run.
const WINDOW_PAGES: u64 = 4096;
/// Times a damaged object is asked for.
const ATTEMPTS: u32 = 3;
/// After a checkpoint failed: an object is damaged, or the page store cannot be written.
const COMPACT_AGAIN: Duration = Duration::from_secs(60);
/// A replaced object is kept this long for whoever still reads by an older manifest.
const GRACE: Duration = Duration::from_secs(600);

impl<W: World> Volume<W> {
    pub(super) async fn fetch_tlog(&self, reference: TlogRef) -> Result<Tlog> {
        let (namespace, name) =
            (names::namespace(self.id), names::tlog(reference.epoch, reference.no));
        let mut attempt = 1;
        loop {
            let bytes = fetch(&self.shared, &namespace, &name, 0, reference.object_bytes).await?;
            let decoded = self.shared.world.compute(move || Tlog::decode(&bytes)).await;
            match decoded {
                // Bytes may be damaged on their way, too.
                Err(fault) if fault.kind == Kind::Corrupt && attempt < ATTEMPTS => attempt += 1,
                other => return other.map_err(|f| f.about(format!("{namespace}/{name}"))),
            }
        }
    }

    /// Makes a run of the TLogs when they are many, and deletes what earlier runs replaced.
    pub(super) async fn compact_if_due(&self) -> Result<()> {
        self.delete_obsolete().await;
        let now = self.shared.world.now();
        if now < self.next_compaction.get() {
            return Ok(());
        }
        let due = {
            let core = self.core.borrow();
            let tlogs = &core.shape().tlogs;
            let bytes: u64 = tlogs.iter().map(|tlog| tlog.object_bytes).sum();
            let due = tlogs.len() >= TLOGS_PER_RUN || bytes >= TLOG_BYTES_PER_RUN;
            due.then(|| tlogs.clone())
        };
        let Some(tlogs) = due else { return Ok(()) };
        match self.compact(tlogs).await {
            // The map is whole without it, here and in what was published; only opening elsewhere takes longer.
            Err(fault)
                if matches!(fault.kind, Kind::Corrupt | Kind::NoSpace | Kind::Unavailable) =>
            {
                tracing::error!(vdisk = self.name, %fault, "no checkpoint of the map can be made; trying again later");
                self.next_compaction.set(now + COMPACT_AGAIN);
                Ok(())
            }
            other => other,
        }
    }

    async fn compact(&self, tlogs: Vec<TlogRef>) -> Result<()> {
        let Some(last) = tlogs.last() else { return Ok(()) };
        // The page store must not depend on TLogs that a run replaces.
        if let Err(fault) = self.persist_pages(last.no).await {
            tracing::warn!(vdisk = self.name, %fault, "map pages cannot be written; no checkpoint now");
            return Ok(());
        }
        self.shared.world.pages().sync().await?;
        let newest = self.collapse(&tlogs).await?;
        let (shape, no) = {
            let core = self.core.borrow();
            (core.shape().clone(), RunNo(core.head().next().0))
        };
        let merged = mergeable(&shape, newest.len() as u64);
        let mut draft = Draft { newest, runs: Vec::with_capacity(merged.len()) };
        for older in merged.iter().rev() {
            draft.runs.push(fetch_run(&self.shared, self.id, older).await?);
        }
        let replaced: Vec<RunNo> = merged.iter().map(|r| r.no).collect();
        let run = self.put_run(&shape, no, draft, &replaced, last.no).await?;
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
        draft: Draft,
        replaced: &[RunNo],
        last_tlog: TlogNo,
    ) -> Result<RunRef> {
        let beneath = shape.runs.len() > replaced.len();
        let holes = if beneath { Holes::Keep } else { Holes::Drop };
        let epoch = self.core.borrow().epoch();
        let writer = RunWriter::new(self.id, epoch, no);
        let world = &self.shared.world;
        let (body, object_bytes, header) =
            world.compute(move || draft.write(holes, writer)).await?;
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

/// The newest runs worth merging with `entries` new ones: each less than twice what comes above it.
fn mergeable(shape: &Shape, mut entries: u64) -> Vec<RunRef> {
    let mut bytes = 0;
    let mut first = shape.runs.len();
    for run in shape.runs.iter().rev() {
        bytes += run.object_bytes;
        if run.entry_count > entries.saturating_mul(GROWTH) || bytes > MOST_MERGED_BYTES {
            break;
        }
        entries += run.entry_count;
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
    let found = until_answered(&shared.world, name, || false, get).await?;
    found.ok_or_else(|| Fault::corrupt(format!("{namespace}/{name} is missing on the backend")))
}

async fn load_index<W: World>(
    shared: &Shared<W>,
    volume: VolumeId,
    run: &RunRef,
) -> Result<RunIndex> {
    let (namespace, name) = (names::namespace(volume), names::run(run.epoch, run.no));
    let mut wanted = TAIL_BYTES.min(run.object_bytes);
    loop {
        let at = run.object_bytes - wanted;
        let tail = fetch(shared, &namespace, &name, at, wanted).await?;
        let about = |f: Fault| f.about(format!("{namespace}/{name}"));
        match decode_tail(run.object_bytes, &tail).map_err(about)? {
            Tail::Index(index) => return Ok(index),
            Tail::Longer(more) if more > wanted && more <= run.object_bytes => wanted = more,
            Tail::Longer(_) => return Err(about(Fault::corrupt("its index does not fit"))),
        }
    }
}

/// What a checkpoint is made from.
struct Draft {
    newest: Vec<MapExtent>,
    /// Those it replaces, newest first.
    runs: Vec<Blocks>,
}

impl Draft {
    fn write(self, holes: Holes, mut writer: RunWriter) -> Result<(Vec<Bytes>, u64, RunHeader)> {
        let mut sources = vec![self.newest.into_iter()];
        for run in self.runs {
            sources.push(run.decode()?.into_iter());
        }
        merge_runs(sources, holes).for_each(|extent| writer.push(extent));
        Ok(writer.finish())
    }
}

/// Neighbouring blocks of a run, as fetched.
struct Blocks {
    object: String,
    index: Vec<RunBlock>,
    bytes: Bytes,
}

impl Blocks {
    fn decode(self) -> Result<Vec<MapExtent>> {
        let from = self.index.first().map_or(0, |block| block.bytes.start);
        let mut extents = Vec::new();
        for block in &self.index {
            let range = (block.bytes.start - from) as usize..(block.bytes.end - from) as usize;
            let part = self.bytes.get(range).unwrap_or_default();
            extents.append(&mut block.decode(part).map_err(|f| f.about(&self.object))?);
        }
        Ok(extents)
    }
}

/// All of a run.
async fn fetch_run<W: World>(shared: &Shared<W>, volume: VolumeId, run: &RunRef) -> Result<Blocks> {
    let index = load_index(shared, volume, run).await?;
    fetch_blocks(shared, volume, run, &index, 0..index.blocks.len()).await
}

async fn fetch_blocks<W: World>(
    shared: &Shared<W>,
    volume: VolumeId,
    run: &RunRef,
    index: &RunIndex,
    blocks: std::ops::Range<usize>,
) -> Result<Blocks> {
    let index = index.blocks.get(blocks).unwrap_or_default().to_vec();
    let (namespace, name) = (names::namespace(volume), names::run(run.epoch, run.no));
    let bytes = match (index.first(), index.last()) {
        (Some(first), Some(last)) => {
            let (from, to) = (first.bytes.start, last.bytes.end);
            fetch(shared, &namespace, &name, from, to - from).await?
        }
        _ => Bytes::new(),
    };
    Ok(Blocks { object: format!("{namespace}/{name}"), index, bytes })
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
        indexes.push((*run, load_index(shared, id, run).await?));
    }
    let mut page = 0;
    while let Some(next) = next_page(&indexes, page) {
        let window = next..next.saturating_add(WINDOW_PAGES);
        let pages = window_pages(shared, id, &indexes, &window).await?;
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
    indexes: &[(RunRef, RunIndex)],
    window: &std::ops::Range<u64>,
) -> Result<Vec<(PageNo, Bytes)>> {
    let (from, to) = (window.start * PAGE_CLUSTERS, window.end.saturating_mul(PAGE_CLUSTERS));
    let mut sources = Vec::with_capacity(indexes.len());
    for (run, index) in indexes {
        let first = index.blocks.partition_point(|block| block.end.0 <= from);
        let end = index.blocks.partition_point(|block| block.first.0 < to);
        sources.push(fetch_blocks(shared, id, run, index, first..end.max(first)).await?);
    }
    shared.world.compute(move || pages_of(sources, from, to)).await
}

/// The encoded pages of clusters `from..to`, from the blocks of runs, newest first.
fn pages_of(newest_first: Vec<Blocks>, from: u64, to: u64) -> Result<Vec<(PageNo, Bytes)>> {
    let mut sources = Vec::with_capacity(newest_first.len());
    for blocks in newest_first {
        sources.push(blocks.decode()?.into_iter());
    }
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
    Ok(pages.iter().map(encode).collect())
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
