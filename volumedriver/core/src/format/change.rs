//! Codec and checks of a [`Change`], the element that journal records, SCO footers and TLogs have in common.

use bytes::BufMut;

use super::frame::{Reader, ours};
use super::{Change, ChangeKind};
use crate::fault::{Fault, Result};
use crate::units::{ClusterAddr, ClusterCount, ClusterCrc, Location, MAX_NUMBER, Seq};

/// Whether a format carries the checksums of data clusters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksums {
    Carried,
    LeftOut,
}

/// What a range without data became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Hole,
    Zero,
}

/// Bytes of a change without its checksums.
pub(super) const CHANGE_BYTES: usize = 24;
/// Bytes of one cluster's checksum.
pub(super) const CLUSTER_CRC_BYTES: usize = 4;
/// Cluster addresses stay below this (a volume addressed by 64-bit byte offsets ends at 2^52).
const ADDR_LIMIT: u64 = 1 << 56;
const DATA: u8 = 1;
const HOLE: u8 = 2;
const ZERO: u8 = 3;

fn put_start(seq: Seq, addr: ClusterAddr, kind: u8, out: &mut impl BufMut) {
    assert!(addr.0 < ADDR_LIMIT, "cluster address {addr} is beyond every volume");
    out.put_u64_le(seq.0);
    out.put_u64_le(u64::from(kind) << 56 | addr.0);
}

pub(super) fn put_data(
    seq: Seq,
    addr: ClusterAddr,
    count: u32,
    first_index: u32,
    out: &mut impl BufMut,
) {
    put_start(seq, addr, DATA, out);
    out.put_u32_le(count);
    out.put_u32_le(first_index);
}

pub(super) fn put_crcs(crcs: &[ClusterCrc], out: &mut impl BufMut) {
    crcs.iter().for_each(|crc| out.put_u32_le(crc.0));
}

pub(super) fn put_mark(
    seq: Seq,
    addr: ClusterAddr,
    count: ClusterCount,
    mark: Mark,
    out: &mut impl BufMut,
) {
    let kind = match mark {
        Mark::Hole => HOLE,
        Mark::Zero => ZERO,
    };
    put_start(seq, addr, kind, out);
    out.put_u64_le(count.0);
}

impl Change {
    /// The change; its checksums after it where the format carries them.
    pub(super) fn encode(&self, checksums: Checksums, out: &mut impl BufMut) {
        match &self.kind {
            ChangeKind::Data { first_index, crcs } => {
                let count = ours(u32::try_from(self.count.0).ok());
                put_data(self.seq, self.addr, count, *first_index, out);
                if checksums == Checksums::Carried {
                    assert_eq!(
                        u64::try_from(crcs.len()),
                        Ok(self.count.0),
                        "one checksum per cluster"
                    );
                    put_crcs(crcs, out);
                }
            }
            ChangeKind::Hole => put_mark(self.seq, self.addr, self.count, Mark::Hole, out),
            ChangeKind::Zero => put_mark(self.seq, self.addr, self.count, Mark::Zero, out),
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>, checksums: Checksums) -> Result<Self> {
        let seq = Seq(reader.u64()?);
        let word = reader.u64()?;
        let addr = ClusterAddr(word % ADDR_LIMIT);
        let (count, kind) = match u8::try_from(word >> 56) {
            Ok(DATA) => {
                let (count, first_index) = (reader.u32()?, reader.u32()?);
                let carried = if checksums == Checksums::Carried { count } else { 0 };
                let crcs = reader.items(carried, CLUSTER_CRC_BYTES, |r| r.u32().map(ClusterCrc))?;
                (u64::from(count), ChangeKind::Data { first_index, crcs })
            }
            Ok(HOLE) => (reader.u64()?, ChangeKind::Hole),
            Ok(ZERO) => (reader.u64()?, ChangeKind::Zero),
            _ => {
                return Err(
                    reader.corrupt(format!("change {seq} is of unknown kind {}", word >> 56))
                );
            }
        };
        Ok(Self { seq, addr, count: ClusterCount(count), kind })
    }

    /// The change makes sense by itself.
    pub(super) fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Fault::corrupt(format!("change {} {what}", self.seq)));
        if self.seq.0 == 0 {
            return bad("has no sequence");
        }
        if self.seq.0 > MAX_NUMBER {
            return bad("has a sequence that no volume reaches");
        }
        if self.count.0 == 0 {
            return bad("covers no cluster");
        }
        if self.addr.0.checked_add(self.count.0).is_none_or(|end| end > ADDR_LIMIT) {
            return bad("reaches beyond every volume");
        }
        let last_index = match self.kind {
            ChangeKind::Data { first_index, .. } => {
                u64::from(first_index).saturating_add(self.count.0)
            }
            ChangeKind::Hole | ChangeKind::Zero => 0,
        };
        if last_index > u64::from(Location::MAX_CLUSTERS) {
            return bad("reaches beyond every SCO");
        }
        Ok(())
    }
}

/// The changes of one SCO: sequences increase strictly from `after`, data fills the SCO without gaps to exactly
/// `cluster_count`. Gives the last sequence.
pub(super) fn check_sco(changes: &[Change], cluster_count: u32, after: Seq) -> Result<Seq> {
    let mut last = after;
    let mut index = 0;
    for change in changes {
        change.check()?;
        if change.seq <= last {
            return Err(Fault::corrupt(format!("change {} comes after change {last}", change.seq)));
        }
        last = change.seq;
        if let ChangeKind::Data { first_index, .. } = change.kind {
            if u64::from(first_index) != index {
                let seq = change.seq;
                return Err(Fault::corrupt(format!(
                    "change {seq} is at index {first_index}, not at {index}"
                )));
            }
            index = index.saturating_add(change.count.0);
        }
    }
    if cluster_count > Location::MAX_CLUSTERS || index != u64::from(cluster_count) {
        return Err(Fault::corrupt(format!("an SCO of {cluster_count} clusters lists {index}")));
    }
    Ok(last)
}
