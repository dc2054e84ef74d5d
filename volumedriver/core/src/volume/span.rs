//! Cutting byte ranges into atomic operations on whole clusters.

use crate::fault::{Fault, Result};
use crate::units::{
    ByteCount, ByteOffset, ClusterAddr, ClusterCount, ClusterSize, MAX_OP_BYTES, SECTOR_BYTES,
};

/// Checks a guest's range: sector-aligned and inside the volume.
pub fn check(offset: ByteOffset, len: ByteCount, size: ByteCount) -> Result<()> {
    if !(offset.0 | len.0).is_multiple_of(SECTOR_BYTES) {
        return Err(Fault::invalid(format!(
            "range of {len} bytes at {offset} is not a multiple of {SECTOR_BYTES} bytes"
        )));
    }
    match offset.0.checked_add(len.0) {
        Some(end) if end <= size.0 => Ok(()),
        _ => Err(Fault::invalid(format!(
            "range of {len} bytes at {offset} ends beyond the {size} bytes of the volume"
        ))),
    }
}

/// One atomic operation's part of a request: the clusters it touches and the bytes of the request in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub addr: ClusterAddr,
    pub count: u32,
    /// First byte of the request in this piece, relative to the start of the piece's first cluster.
    pub skip: u64,
    /// Bytes of the request in this piece.
    pub len: u64,
}

impl Piece {
    /// The first cluster is not fully covered.
    #[must_use]
    pub fn cuts_first(&self, cluster: ClusterSize) -> bool {
        self.skip != 0 || self.len < cluster.bytes()
    }
    /// The last cluster is not fully covered.
    #[must_use]
    pub fn cuts_last(&self, cluster: ClusterSize) -> bool {
        !(self.skip + self.len).is_multiple_of(cluster.bytes())
    }
}

/// The pieces of a range, in order. A range of at most [`MAX_OP_BYTES`] is one piece wherever it begins (a guest may take
/// so small a write for atomic); a longer one is cut at cluster boundaries into pieces of at most that much.
pub fn pieces(
    cluster: ClusterSize,
    offset: ByteOffset,
    len: ByteCount,
) -> impl Iterator<Item = Piece> {
    let per_op = MAX_OP_BYTES.max(cluster.bytes());
    let whole = len.0 <= per_op;
    let mut at = offset.0;
    let end = offset.0 + len.0;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let addr = cluster.cluster_of(ByteOffset(at));
        let start = cluster.start_of(addr).0;
        let stop = if whole { end } else { end.min(start + per_op) };
        let piece = Piece {
            addr,
            count: cluster.clusters_covering(ByteCount(stop - start)).0 as u32,
            skip: at - start,
            len: stop - at,
        };
        at = stop;
        Some(piece)
    })
}

/// The whole clusters inside a range, and the partial edges: (head, middle, tail) as byte ranges.
#[must_use]
pub fn inner(cluster: ClusterSize, offset: ByteOffset, len: ByteCount) -> Inner {
    let end = offset.0 + len.0;
    let first = offset.0.div_ceil(cluster.bytes()) * cluster.bytes();
    let last = end / cluster.bytes() * cluster.bytes();
    if first >= last {
        return Inner {
            head: (offset, len),
            addr: ClusterAddr(0),
            count: ClusterCount(0),
            tail: (offset, ByteCount(0)),
        };
    }
    let addr = cluster.cluster_of(ByteOffset(first));
    Inner {
        head: (offset, ByteCount(first - offset.0)),
        addr,
        count: cluster.cluster_of(ByteOffset(last)) - addr,
        tail: (ByteOffset(last), ByteCount(end - last)),
    }
}

/// See [`inner`]. `count` may be 0: then the whole range is `head`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    pub head: (ByteOffset, ByteCount),
    pub addr: ClusterAddr,
    pub count: ClusterCount,
    pub tail: (ByteOffset, ByteCount),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MAX_OP_CLUSTERS;

    #[test]
    fn pieces_cover_the_range_once_and_stay_atomic() {
        let cluster = ClusterSize::DEFAULT;
        for (offset, len) in
            [(0, 4096), (512, 512), (3584, 1024), (0, 1 << 20), (512, (1 << 20) + 1024)]
        {
            let mut at = offset;
            for p in pieces(cluster, ByteOffset(offset), ByteCount(len)) {
                assert_eq!(cluster.start_of(p.addr).0 + p.skip, at);
                assert!(p.len <= MAX_OP_BYTES && p.count as usize <= MAX_OP_CLUSTERS);
                assert!(p.skip + p.len <= u64::from(p.count) * 4096);
                assert!(p.skip + p.len > u64::from(p.count - 1) * 4096);
                at += p.len;
            }
            assert_eq!(at, offset + len);
        }
    }

    #[test]
    fn a_write_of_an_operations_size_is_one_piece_wherever_it_begins() {
        for bytes in [4096, 8192, 16_384, 32_768, 65_536] {
            let cluster = ClusterSize::new(bytes).unwrap();
            for offset in (0..2 * bytes).step_by(512) {
                for len in [512, MAX_OP_BYTES - 512, MAX_OP_BYTES] {
                    let all: Vec<Piece> =
                        pieces(cluster, ByteOffset(offset), ByteCount(len)).collect();
                    let [piece] = all[..] else { panic!("{len} at {offset}: {all:?}") };
                    assert_eq!(
                        (cluster.start_of(piece.addr).0 + piece.skip, piece.len),
                        (offset, len)
                    );
                    let most = MAX_OP_BYTES / bytes + 1;
                    assert!(u64::from(piece.count) <= most, "{len} at {offset} of {bytes}");
                }
            }
            let longer = pieces(cluster, ByteOffset(512), ByteCount(MAX_OP_BYTES + 512));
            assert_eq!(longer.count(), 2);
        }
    }

    #[test]
    fn inner_splits_head_middle_tail() {
        let cluster = ClusterSize::DEFAULT;
        let i = inner(cluster, ByteOffset(512), ByteCount(12288));
        assert_eq!(i.head, (ByteOffset(512), ByteCount(3584)));
        assert_eq!((i.addr, i.count), (ClusterAddr(1), ClusterCount(2)));
        assert_eq!(i.tail, (ByteOffset(12288), ByteCount(512)));
        let i = inner(cluster, ByteOffset(512), ByteCount(1024));
        assert_eq!((i.head, i.count.0, i.tail.1.0), ((ByteOffset(512), ByteCount(1024)), 0, 0));
        let i = inner(cluster, ByteOffset(4096), ByteCount(4096));
        assert_eq!((i.head.1.0, i.addr.0, i.count.0, i.tail.1.0), (0, 1, 1, 0));
    }

    #[test]
    fn ranges_outside_or_off_the_sector_are_refused() {
        let size = ByteCount(1 << 20);
        assert!(check(ByteOffset(0), ByteCount(1 << 20), size).is_ok());
        assert!(check(ByteOffset(512), ByteCount(1 << 20), size).is_err());
        assert!(check(ByteOffset(u64::MAX - 511), ByteCount(512), size).is_err());
        assert!(check(ByteOffset(1), ByteCount(512), size).is_err());
    }
}
