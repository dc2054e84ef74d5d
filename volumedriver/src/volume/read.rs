//! Read: look the range up, then per extent zeroes | write buffer (memory or file) | read cache | backend.
//!
//! Every byte that comes from a disk or a backend is checked against its cluster's checksum (P2).

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use volumedriver_core::cache::CacheKey;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::run::MapExtent;
use volumedriver_core::units::{
    ByteCount, ByteOffset, ClusterAddr, ClusterCount, Location, Mapping,
};
use volumedriver_core::volume::span;

use super::backend::ScoKey;
use super::chain::until_answered;
use super::{State, Volume};
use crate::metrics::{RequestKind, Stage};
use crate::world::World;

/// Extents of one request fetched at the same time.
const FETCHES: usize = 16;
/// Reads this long are a scan: they do not go through the read cache.
const SCAN_CLUSTERS: u32 = 32;
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Recognises sequential readers: the ends of the latest reads, and how far each is being read ahead.
#[derive(Default)]
pub(super) struct Streams {
    ends: [(ClusterAddr, u64); 8],
    next: usize,
}

impl Streams {
    /// Notes a read; clusters to read ahead of it (0: not sequential).
    fn note(&mut self, addr: ClusterAddr, count: ClusterCount, most: u64) -> u64 {
        let end = addr + count;
        if let Some(stream) = self.ends.iter_mut().find(|(at, _)| *at == addr && addr.0 != 0) {
            let window = (stream.1 * 2).clamp(count.0, most.max(count.0));
            *stream = (end, window);
            return window;
        }
        let slot = self.next % self.ends.len();
        if let Some(stream) = self.ends.get_mut(slot) {
            *stream = (end, count.0);
        }
        self.next = self.next.wrapping_add(1);
        0
    }
}

impl<W: World> Volume<W> {
    /// See [`crate::shard::Handle::try_read`].
    pub fn try_read(&self, offset: ByteOffset, out: &mut [u8]) -> Option<Result<()>> {
        if !matches!(*self.state.borrow(), State::Running | State::ReadOnly(_)) {
            return None;
        }
        let len = ByteCount(out.len() as u64);
        let mut core = self.core.borrow_mut();
        let cluster = core.cluster_size();
        if !cluster.is_aligned(offset, len) || span::check(offset, len, core.size()).is_err() {
            return None;
        }
        let metrics = &self.shared.metrics;
        let began = metrics.sample().then(|| self.shared.world.now());
        let mut addr = cluster.cluster_of(offset);
        for out in out.chunks_exact_mut(cluster.bytes() as usize) {
            match core.map().lookup_one(addr).ok()? {
                Mapping::Hole | Mapping::Zero => out.fill(0),
                Mapping::At(at) => {
                    if !self.log.read_now(at.sco, at.index, out) {
                        let origin = core.shape().origin_of(at.sco)?;
                        let key = cache_key(ScoKey::new(origin, at.sco), at.index);
                        if !self.shared.cache.get_now(&key, out) {
                            return None;
                        }
                    }
                }
            }
            addr += ClusterCount(1);
        }
        metrics.request(RequestKind::Read, len.0);
        if let Some(began) = began {
            let took = self.shared.world.now().saturating_sub(began);
            metrics.stage(Stage::ReadMemory, took);
            metrics.stage(Stage::ReadReply, took);
        }
        Some(Ok(()))
    }

    pub(super) async fn read(&self, offset: ByteOffset, len: ByteCount) -> Result<Vec<Bytes>> {
        self.check_readable()?;
        let (cluster, size) = {
            let core = self.core.borrow();
            (core.cluster_size(), core.size())
        };
        span::check(offset, len, size)?;
        if len.0 == 0 {
            return Ok(Vec::new());
        }
        let addr = cluster.cluster_of(offset);
        let skip = offset - cluster.start_of(addr);
        let count = cluster.clusters_covering(skip + len);
        let ahead = self.read_ahead(addr, count);
        let extents = self.extents(addr, count).await?;
        let fetched = match extents.as_slice() {
            [extent] => vec![self.fetch(*extent, ahead).await?],
            _ => Box::pin(self.fetch_all(extents, ahead)).await?,
        };
        Ok(trim_pieces(fetched.into_iter().flatten(), skip.0, len.0))
    }

    async fn fetch_all(&self, extents: Vec<MapExtent>, ahead: u64) -> Result<Vec<Vec<Bytes>>> {
        let fetches = stream::iter(extents).map(|extent| self.fetch(extent, ahead));
        fetches.buffered(FETCHES).try_collect().await
    }

    fn read_ahead(&self, addr: ClusterAddr, count: ClusterCount) -> u64 {
        let most = self.settings.borrow().readahead.0 / self.core.borrow().cluster_size().bytes();
        if most == 0 { 0 } else { self.streams.borrow_mut().note(addr, count, most) }
    }

    /// Brings the range into the read cache.
    pub(super) async fn warm(&self, offset: ByteOffset, len: ByteCount) -> Result<()> {
        self.check_readable()?;
        span::check(offset, len, self.size())?;
        let cluster = self.core.borrow().cluster_size();
        let stop = offset.0 + len.0;
        let mut at = offset.0;
        while at < stop {
            let step = (stop - at).min(1 << 20);
            let addr = cluster.cluster_of(ByteOffset(at));
            let upto = cluster.cluster_of(ByteOffset(at + step + cluster.bytes() - 1));
            for extent in self.extents(addr, upto - addr).await? {
                self.fetch(extent, 0).await?;
            }
            at += step;
        }
        Ok(())
    }

    /// The mappings of a range, with the pages loaded that takes.
    pub(super) async fn extents(
        &self,
        addr: ClusterAddr,
        count: ClusterCount,
    ) -> Result<Vec<MapExtent>> {
        loop {
            let mut extents = Vec::new();
            let found = self.core.borrow_mut().map().lookup(addr, count, &mut |e| extents.push(e));
            match found {
                Ok(()) => return Ok(extents),
                Err(missing) => self.load_pages(missing.pages).await?,
            }
        }
    }

    /// One cluster with this mapping, into `out`.
    pub(super) async fn read_mapping(
        &self,
        addr: ClusterAddr,
        mapping: Mapping,
        out: &mut [u8],
    ) -> Result<()> {
        let count = ClusterCount(1);
        let pieces = self.fetch(MapExtent { addr, count, mapping }, 0).await?;
        let mut at = 0;
        for piece in pieces {
            let Some(part) = out.get_mut(at..at + piece.len()) else {
                return Err(Fault::bug("a cluster came back longer than asked"));
            };
            part.copy_from_slice(&piece);
            at += piece.len();
        }
        Ok(())
    }

    async fn fetch(&self, extent: MapExtent, ahead: u64) -> Result<Vec<Bytes>> {
        let cluster = self.core.borrow().cluster_size();
        let Mapping::At(at) = extent.mapping else {
            return Ok(zeroes(cluster.bytes_of(extent.count).0));
        };
        let about = |fault: Fault| {
            // What an owner had that was replaced meanwhile is gone: that is no damage.
            if *self.state.borrow() == State::Fenced {
                return self.fenced().because(fault);
            }
            let start = cluster.start_of(extent.addr);
            fault.about(format!("vDisk {} from byte {start}", self.name))
        };
        let count = extent.count.0 as u32;
        let buffered = self.log.read(at.sco, at.index, count);
        if let Some(pieces) = self.staged(Stage::ReadBuffer, buffered).await.map_err(about)? {
            return Ok(pieces);
        }
        self.fetch_published(at, count, ahead as u32).await.map_err(about)
    }

    /// From the read cache, and what it lacks from the backend.
    async fn fetch_published(&self, at: Location, count: u32, ahead: u32) -> Result<Vec<Bytes>> {
        let origin = self.core.borrow().shape().origin_of(at.sco);
        let origin =
            origin.ok_or_else(|| Fault::corrupt(format!("SCO {} has no origin", at.sco)))?;
        let key = ScoKey::new(origin, at.sco);
        if count >= SCAN_CLUSTERS {
            return Ok(vec![self.ask_backend(key, at.index, count, 0).await?]);
        }
        let cached = self.shared.cache.get_run(cache_key(key, at.index), count);
        let mut pieces = self.staged(Stage::ReadCache, cached).await;
        let found = pieces.len() as u32;
        if found < count {
            pieces.push(self.fetch_missing(key, at.index + found, count - found, ahead).await?);
        }
        Ok(pieces)
    }

    /// Reads clusters that are not in the read cache, perhaps more than asked, and puts them there.
    async fn fetch_missing(
        &self,
        key: ScoKey,
        first: u32,
        count: u32,
        ahead: u32,
    ) -> Result<Bytes> {
        let cluster = self.cluster_size();
        let bytes = self.ask_backend(key, first, count, ahead).await?;
        for (index, one) in (first..).zip(bytes.chunks_exact(cluster.bytes() as usize)) {
            self.shared.cache.insert(cache_key(key, index), one);
        }
        let asked = cluster.bytes_of(ClusterCount(u64::from(count))).0 as usize;
        Ok(bytes.slice(..asked.min(bytes.len())))
    }

    /// A backend out of reach makes a reader wait, like a disk that is slow; it is no reason for an error.
    async fn ask_backend(&self, key: ScoKey, first: u32, count: u32, ahead: u32) -> Result<Bytes> {
        let ask = async || {
            let mut wanted = count;
            if ahead > wanted {
                let all =
                    Box::pin(self.shared.backend.cluster_count(key, self.cluster_size())).await?;
                wanted = ahead.min(all.saturating_sub(first)).max(wanted);
            }
            self.shared.backend.read(key, self.cluster_size(), first, wanted).await
        };
        let answer = match self.staged(Stage::ReadBackend, ask()).await {
            Err(fault) if fault.kind == Kind::Unavailable => {
                Box::pin(until_answered(&self.shared.world, "read", || self.is_closing(), ask))
                    .await
            }
            answer => answer,
        };
        match answer {
            // What is read ahead may be damaged: that must not fail what was asked for.
            Err(fault) if fault.kind == Kind::Corrupt && ahead > count => {
                Box::pin(self.ask_backend(key, first, count, 0)).await
            }
            answer => answer,
        }
    }
}

fn cache_key(key: ScoKey, index: u32) -> CacheKey {
    CacheKey { origin: key.volume, sco: key.id, index }
}

fn zeroes(mut len: u64) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while len > 0 {
        let step = len.min(ZEROES.len() as u64);
        pieces.push(Bytes::from_static(&ZEROES).slice(..step as usize));
        len -= step;
    }
    pieces
}

/// Cuts `skip` bytes off the front and everything after `len`.
fn trim_pieces(pieces: impl Iterator<Item = Bytes>, mut skip: u64, mut len: u64) -> Vec<Bytes> {
    let mut out: Vec<Bytes> = Vec::new();
    for mut piece in pieces {
        let cut = skip.min(piece.len() as u64);
        skip -= cut;
        piece = piece.slice(cut as usize..);
        piece.truncate(len.min(piece.len() as u64) as usize);
        len -= piece.len() as u64;
        if !piece.is_empty() {
            out.push(piece);
        }
    }
    out
}
