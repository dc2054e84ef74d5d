//! Trim and write-zeroes: whole clusters become holes (or allocated zeroes) in the log; edges are written.

use volumedriver_core::fault::Result;
use volumedriver_core::format::change::Mark;
use volumedriver_core::request::{Fua, ZeroMode};
use volumedriver_core::units::{ByteCount, ByteOffset, ClusterAddr, ClusterCount, Mapping};
use volumedriver_core::volume::span;

use super::Volume;
use crate::world::World;

impl<W: World> Volume<W> {
    /// What was trimmed reads as zeroes, partial clusters at the edges too.
    pub(super) async fn trim(&self, offset: ByteOffset, len: ByteCount, fua: Fua) -> Result<()> {
        self.write_zeroes(offset, len, ZeroMode::MayPunch, fua).await
    }

    pub(super) async fn write_zeroes(
        &self,
        offset: ByteOffset,
        len: ByteCount,
        mode: ZeroMode,
        fua: Fua,
    ) -> Result<()> {
        let inner = self.check_range(offset, len)?;
        let mark = match mode {
            ZeroMode::MayPunch => Mark::Hole,
            ZeroMode::Allocate => Mark::Zero,
        };
        for (at, bytes) in [inner.head, inner.tail] {
            self.zero_edge(at, bytes).await?;
        }
        self.mark(inner.addr, inner.count, mark).await?;
        self.acknowledge(fua).await
    }

    /// Zeroes a range that covers no whole cluster, by writing; clusters that are zero already stay as they are.
    async fn zero_edge(&self, offset: ByteOffset, len: ByteCount) -> Result<()> {
        if len.0 == 0 {
            return Ok(());
        }
        let cluster = self.cluster_size();
        for piece in span::pieces(cluster, offset, len) {
            let mut zero_already = true;
            for n in 0..u64::from(piece.count) {
                let mapping = self.mapping_of(piece.addr + ClusterCount(n)).await?;
                zero_already &= matches!(mapping, Mapping::Hole | Mapping::Zero);
            }
            if !zero_already {
                let start = ByteOffset(cluster.start_of(piece.addr).0 + piece.skip);
                self.write(start, &vec![0; piece.len as usize], Fua::No).await?;
            }
        }
        Ok(())
    }

    fn check_range(&self, offset: ByteOffset, len: ByteCount) -> Result<span::Inner> {
        self.check_writable()?;
        let core = self.core.borrow();
        span::check(offset, len, core.size())?;
        Ok(span::inner(core.cluster_size(), offset, len))
    }

    async fn mark(&self, addr: ClusterAddr, count: ClusterCount, mark: Mark) -> Result<()> {
        if count.0 == 0 {
            return Ok(());
        }
        // A mark takes a header entry only; one cluster's worth of credits keeps a flood of them in bounds.
        let bytes = self.core.borrow().cluster_size().bytes();
        self.append_waiting(bytes, |core| {
            self.seal_if_full(core, 0)?;
            if core.is_used_up() {
                return None;
            }
            let plan = core.plan_mark(addr, count, mark);
            self.log.append_mark(plan.seq, addr, count, mark, plan.sco.seq)?;
            core.commit_mark(plan);
            self.note_open();
            Some(())
        })
        .await
    }
}
