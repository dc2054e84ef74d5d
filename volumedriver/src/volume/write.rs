//! Write: cut into atomic operations, wait for credits, append to the write buffer, publish to the map.
//!
//! A write of up to 256 KiB is one operation, wherever it begins; an operation is of whole clusters. Clusters a request covers only partly are read, merged and written as
//! part of the same operation; the merge counts only if the cluster's mapping has not changed meanwhile (a location is never
//! used twice, so an equal mapping means equal bytes), else it is done again.

use tokio::sync::futures::Notified;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::request::Fua;
use volumedriver_core::units::{
    ByteCount, ByteOffset, ClusterAddr, ClusterCount, ClusterCrc, MAX_OP_BYTES, MAX_OP_CLUSTERS,
    Mapping,
};
use volumedriver_core::volume::Volume as Core;
use volumedriver_core::volume::credits::{Grant, SOFT};
use volumedriver_core::volume::span::{self, Piece};

use super::{State, Volume};
use crate::config::settings::AckLevel;
use crate::metrics::{RequestKind, Stage};
use crate::world::World;

/// Part of its share below which a volume holds little.
const HOLDS_LITTLE: f64 = 0.1;
/// Part of the buffer that volumes which hold much may fill.
const LEFT_BY_OTHERS: f64 = 0.9;

impl<W: World> Volume<W> {
    /// See [`crate::shard::Handle::try_write`].
    pub fn try_write(&self, offset: ByteOffset, data: &[u8]) -> Option<Result<()>> {
        if self.waiting.get() > 0 || *self.state.borrow() != State::Running {
            return None;
        }
        if self.settings.borrow().ack != AckLevel::Memory {
            return None;
        }
        let len = data.len() as u64;
        let mut core = self.core.borrow_mut();
        let cluster = core.cluster_size();
        let fits = len <= MAX_OP_BYTES;
        if !fits || len == 0 || !cluster.is_aligned(offset, ByteCount(len)) {
            return None;
        }
        if span::check(offset, ByteCount(len), core.size()).is_err() || !self.credit_now(len) {
            return None;
        }
        let addr = cluster.cluster_of(offset);
        let count = (len / cluster.bytes()) as u32;
        let metrics = &self.shared.metrics;
        let began = metrics.sample().then(|| self.shared.world.now());
        self.append_write(&mut core, addr, count, data)?;
        metrics.request(RequestKind::Write, len);
        if let Some(began) = began {
            let took = self.shared.world.now().saturating_sub(began);
            metrics.stage(Stage::BufferAppend, took);
            metrics.stage(Stage::WriteReply, took);
        }
        Some(Ok(()))
    }

    pub(super) async fn write(&self, offset: ByteOffset, data: &[u8], fua: Fua) -> Result<()> {
        self.check_writable()?;
        let (cluster, size) = {
            let core = self.core.borrow();
            (core.cluster_size(), core.size())
        };
        let len = ByteCount(data.len() as u64);
        span::check(offset, len, size)?;
        let mut rest = data;
        for piece in span::pieces(cluster, offset, len) {
            let (now, later) = rest.split_at_checked(piece.len as usize).unwrap_or((rest, &[]));
            rest = later;
            self.write_piece(piece, now).await?;
        }
        self.acknowledge(fua).await
    }

    /// Waits for what the acknowledgement level and FUA ask for.
    pub(super) async fn acknowledge(&self, fua: Fua) -> Result<()> {
        if fua == Fua::Yes {
            return self.flush().await;
        }
        let ack = self.settings.borrow().ack;
        match ack {
            AckLevel::Memory => Ok(()),
            AckLevel::Buffer => self.flush_journal().await,
        }
    }

    async fn write_piece(&self, piece: Piece, data: &[u8]) -> Result<()> {
        let cluster = self.core.borrow().cluster_size();
        if !piece.cuts_first(cluster) && !piece.cuts_last(cluster) {
            return self
                .append_waiting(cluster.bytes() * u64::from(piece.count), |core| {
                    self.append_write(core, piece.addr, piece.count, data).map(|()| true)
                })
                .await
                .map(|_| ());
        }
        loop {
            let (merged, before) = Box::pin(self.merge(piece, data)).await?;
            let bytes = merged.len() as u64;
            let done = self
                .append_waiting(bytes, |core| {
                    if self.edges_now(core, piece) != Some(before) {
                        return Some(false);
                    }
                    self.append_write(core, piece.addr, piece.count, &merged).map(|()| true)
                })
                .await?;
            if done {
                return Ok(());
            }
        }
    }

    /// The piece as whole clusters, and the mappings of its edge clusters that the merge is based on.
    async fn merge(&self, piece: Piece, data: &[u8]) -> Result<(Vec<u8>, [Mapping; 2])> {
        let cluster = self.core.borrow().cluster_size();
        let last = piece.addr + ClusterCount(u64::from(piece.count) - 1);
        let first_mapping = self.mapping_of(piece.addr).await?;
        let last_mapping = self.mapping_of(last).await?;
        let mut merged = vec![0; (u64::from(piece.count) * cluster.bytes()) as usize];
        let width = cluster.bytes() as usize;
        if piece.cuts_first(cluster) {
            self.read_mapping(piece.addr, first_mapping, &mut merged[..width]).await?;
        }
        if piece.cuts_last(cluster) && (piece.count > 1 || !piece.cuts_first(cluster)) {
            let at = merged.len() - width;
            self.read_mapping(last, last_mapping, &mut merged[at..]).await?;
        }
        let start = piece.skip as usize;
        merged[start..start + data.len()].copy_from_slice(data);
        Ok((merged, [first_mapping, last_mapping]))
    }

    /// The present mappings of the edge clusters, if their pages are loaded.
    fn edges_now(&self, core: &mut Core, piece: Piece) -> Option<[Mapping; 2]> {
        let last = piece.addr + ClusterCount(u64::from(piece.count) - 1);
        Some([core.map().lookup_one(piece.addr).ok()?, core.map().lookup_one(last).ok()?])
    }

    pub(super) async fn mapping_of(&self, addr: ClusterAddr) -> Result<Mapping> {
        loop {
            let found = self.core.borrow_mut().map().lookup_one(addr);
            match found {
                Ok(mapping) => return Ok(mapping),
                Err(missing) => self.load_pages(missing.pages).await?,
            }
        }
    }

    /// Appends and publishes one write of whole clusters; `None`: no room in the buffer, nothing changed.
    fn append_write(
        &self,
        core: &mut Core,
        addr: ClusterAddr,
        count: u32,
        data: &[u8],
    ) -> Option<()> {
        self.seal_if_full(core, count)?;
        if core.is_used_up() {
            return None;
        }
        let width = core.cluster_size().bytes() as usize;
        let mut crcs = [ClusterCrc::default(); MAX_OP_CLUSTERS];
        let crcs = crcs.get_mut(..count as usize)?;
        for (crc, cluster) in crcs.iter_mut().zip(data.chunks_exact(width)) {
            *crc = ClusterCrc::of(cluster);
        }
        let plan = core.plan_write(addr, count);
        self.log.append_data(plan.seq, addr, plan.sco.seq, plan.first_index, crcs, data)?;
        core.commit_write(plan, crcs);
        self.note_open();
        Some(())
    }

    /// Makes the open SCO ready for `count` more clusters.
    pub(super) fn seal_if_full(&self, core: &mut Core, count: u32) -> Option<()> {
        if core.must_seal_for(count) {
            self.seal_now(core)?;
        }
        Some(())
    }

    /// Seals the open SCO; `None`: no room in the buffer for the seal.
    pub(super) fn seal_now(&self, core: &mut Core) -> Option<()> {
        let (sco, count) = core.open_sco();
        self.log.append_seal(sco.seq, count)?;
        core.commit_seal();
        let since = self.open_since.take().unwrap_or_else(|| self.shared.world.now());
        self.oldest_since.borrow_mut().push_back(since);
        self.sealed.notify_one();
        Some(())
    }

    pub(super) fn note_open(&self) {
        if self.open_since.get().is_none() {
            self.open_since.set(Some(self.shared.world.now()));
        }
    }

    /// True when the write costs no waiting now; takes the credits.
    fn credit_now(&self, bytes: u64) -> bool {
        let fill = self.fill();
        if fill < SOFT {
            return true;
        }
        self.shared.pressure.notify_one();
        let now = self.shared.world.now();
        self.credits.borrow_mut().ask(bytes, fill, now) == Grant::Now
    }

    /// How full this volume's share of the buffer is, or the whole buffer; the latter does not concern a volume that holds
    /// little: those that hold much stop early enough to leave it room.
    pub fn fill(&self) -> f64 {
        let buffer = &self.shared.buffer;
        let capacity = buffer.capacity_bytes().max(1) as f64;
        let share = capacity * f64::from(self.settings.borrow().buffer_share_percent) / 100.0;
        let own = self.log.held_bytes() as f64 / share.max(1.0);
        if own < HOLDS_LITTLE {
            return own;
        }
        own.max(buffer.used_bytes() as f64 / (capacity * LEFT_BY_OTHERS))
    }

    /// Waits in line for credits and room, then appends. The line keeps writers in order of arrival.
    pub(super) async fn append_waiting<T>(
        &self,
        bytes: u64,
        mut append: impl FnMut(&mut Core) -> Option<T>,
    ) -> Result<T> {
        if self.waiting.get() == 0 && self.credit_now(bytes) {
            self.check_writable()?;
            if let Some(done) = append(&mut self.core.borrow_mut()) {
                return Ok(done);
            }
        }
        let began = self.shared.world.now();
        let _place = Place::take(&self.waiting);
        let _turn = self.turn.acquire().await.map_err(|_| Fault::closed("closed"))?;
        let done = self.append_in_turn(bytes, &mut append).await;
        self.shared.metrics.stage(Stage::CreditWait, self.shared.world.now().saturating_sub(began));
        done
    }

    async fn append_in_turn<T>(
        &self,
        bytes: u64,
        append: &mut impl FnMut(&mut Core) -> Option<T>,
    ) -> Result<T> {
        let mut granted = false;
        loop {
            self.check_writable()?;
            let drained = self.drained.notified();
            if !granted {
                let now = self.shared.world.now();
                let grant = self.credits.borrow_mut().ask(bytes, self.fill(), now);
                match grant {
                    Grant::Now => granted = true,
                    Grant::After(wait) => {
                        self.shared.pressure.notify_one();
                        self.shared.world.sleep(wait).await;
                        continue;
                    }
                    Grant::WhenDrained => {
                        self.relieve();
                        self.wait_for_room(drained).await;
                        continue;
                    }
                }
            }
            if let Some(done) = append(&mut self.core.borrow_mut()) {
                return Ok(done);
            }
            self.relieve();
            self.wait_for_room(drained).await;
        }
    }

    /// The buffer is full: what is in the open SCO must leave too.
    fn relieve(&self) {
        self.shared.pressure.notify_one();
        let mut core = self.core.borrow_mut();
        if core.has_open_changes() && core.sealed_count() == 0 {
            // Without room even for the seal, other volumes' uploads free some first.
            let _no_room = self.seal_now(&mut core);
        }
    }

    /// Until this volume drained or a segment of the buffer became free.
    async fn wait_for_room(&self, drained: Notified<'_>) {
        futures_util::pin_mut!(drained);
        let room = self.shared.buffer.room();
        futures_util::pin_mut!(room);
        futures_util::future::select(drained, room).await;
    }

    /// The fault to report when the write buffer itself failed.
    pub(super) fn buffer_fault(&self, fault: Fault) -> Fault {
        match fault.kind {
            Kind::Closed => fault,
            _ => fault.about(format!("vDisk {}", self.name)),
        }
    }
}

/// A place in the line of those who wait.
pub(super) struct Place<'a>(&'a std::cell::Cell<usize>);

impl<'a> Place<'a> {
    pub fn take(waiting: &'a std::cell::Cell<usize>) -> Self {
        waiting.set(waiting.get() + 1);
        Self(waiting)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
