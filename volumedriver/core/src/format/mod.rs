//! Bytes <-> structs of everything that is stored: one file per format.
//!
//! Every format begins with `MAGIC VERSION LENGTH` and is covered by checksums; every decoder takes hostile bytes and answers
//! with a typed error, never a panic. All integers are little-endian.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

pub mod cache;
pub mod change;
mod frame;
pub mod framed;
pub mod journal;
pub mod manifest;
pub mod names;
pub mod page;
pub mod run;
pub mod sco;
pub mod segment;
mod shape;
pub mod tlog;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use crate::units::{ClusterAddr, ClusterCount, ClusterCrc, Seq};

/// One atomic change in the log of a volume, as journal records, SCO footers and TLogs carry it.
///
/// Data clusters lie consecutively: cluster `addr + i` is at index `first_index + i` of the SCO the change belongs to.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | seq |
/// | 8 | 7 | addr |
/// | 15 | 1 | kind: 1 data, 2 hole, 3 zero |
/// | 16 | 4 | data: count |
/// | 20 | 4 | data: first_index |
/// | 24 | 4 * count | data, in formats that carry checksums: CRC-32 (IEEE) of each cluster |
/// | 16 | 8 | hole, zero: count |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub seq: Seq,
    pub addr: ClusterAddr,
    pub count: ClusterCount,
    pub kind: ChangeKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// `crcs` has `count` entries where the format carries checksums (journal, SCO footer), and is empty in a TLog.
    Data { first_index: u32, crcs: Vec<ClusterCrc> },
    /// The range became a hole (trim, zeroes with permission to punch). Belongs to an SCO's log but takes no cluster in it.
    Hole,
    /// The range became allocated zeroes.
    Zero,
}
