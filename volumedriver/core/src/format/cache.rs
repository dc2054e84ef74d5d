//! What the read cache's file says of itself: a header, and after a clean end the catalogue of what lies where.
//!
//! The header is overwritten with [`FileState::InUse`] before the first change of the file, and with [`FileState::Closed`]
//! when a catalogue and all that it names are durable. So a catalogue that is believed is exact, and after a crash there is
//! none. Pages carry the stamp of the header they belong to.

use bytes::BufMut;

use super::frame::{CRC_BYTES, Frame, HEAD_BYTES, Reader, count32};
use super::journal::BLOCK_BYTES;
use crate::fault::{Fault, Result};
use crate::units::{ClusterCrc, ClusterSize, Epoch, Location, NodeId, VolumeId};

const HEADER: Frame = Frame { name: "cache file header", magic: *b"VDCH", version: 1 };
const PAGE: Frame = Frame { name: "cache catalogue page", magic: *b"VDCP", version: 1 };

/// Bytes of a catalogue page.
pub const PAGE_BYTES: usize = 64 * 1024;
const PAGE_HEAD_BYTES: usize = 20;
const LOG_BYTES: usize = 24;
const ENTRY_BYTES: usize = 20;
/// Bytes for logs and entries.
const PAGE_ROOM: usize = PAGE_BYTES - HEAD_BYTES - CRC_BYTES - PAGE_HEAD_BYTES;

/// The last [`BLOCK_BYTES`] of the cache's file.
///
/// Body of its frame, which is one block long, magic `VDCH`, version 1:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 16 | node |
/// | 16 | 4 | cluster_size |
/// | 20 | 4 | region_slots |
/// | 24 | 4 | regions |
/// | 28 | 4 | state: 0 in use, 1 closed |
/// | 32 | 8 | closed: stamp |
/// | 40 | 4 | closed: hand |
/// | 44 | 4 | closed: pages |
/// | 48 | 4032 | zeroes |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheHeader {
    pub node: NodeId,
    pub cluster_size: ClusterSize,
    pub region_slots: u32,
    pub regions: u32,
    pub state: FileState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Nothing is known of what lies in it.
    InUse,
    /// So many pages with this stamp say what lies in it; `hand` is the region to be taken back next.
    Closed { stamp: u64, hand: u32, pages: u32 },
}

impl CacheHeader {
    pub fn encode(&self, out: &mut [u8; BLOCK_BYTES]) {
        let (state, stamp, hand, pages) = match self.state {
            FileState::InUse => (0, 0, 0, 0),
            FileState::Closed { stamp, hand, pages } => (1, stamp, hand, pages),
        };
        let mut body = Vec::with_capacity(48);
        body.put_slice(&self.node.0);
        body.put_u32_le(self.cluster_size.to_u32());
        body.put_u32_le(self.region_slots);
        body.put_u32_le(self.regions);
        body.put_u32_le(state);
        body.put_u64_le(stamp);
        body.put_u32_le(hand);
        body.put_u32_le(pages);
        HEADER.fill(out, &[&body]);
    }

    pub fn decode(block: &[u8]) -> Result<Self> {
        if block.len() != BLOCK_BYTES {
            let len = block.len();
            return Err(Fault::corrupt(format!("a cache file header of {len} bytes")));
        }
        let mut reader = HEADER.body(block)?;
        let node = NodeId(reader.array()?);
        let cluster_size = ClusterSize::new(reader.u32()?.into());
        let cluster_size = cluster_size.map_err(|why| reader.corrupt(why))?;
        let (region_slots, regions) = (reader.u32()?, reader.u32()?);
        let state = reader.u32()?;
        let (stamp, hand, pages) = (reader.u64()?, reader.u32()?, reader.u32()?);
        let state = match (state, stamp, hand, pages) {
            (0, 0, 0, 0) => FileState::InUse,
            (1, ..) => FileState::Closed { stamp, hand, pages },
            _ => return Err(reader.corrupt(format!("state {state}"))),
        };
        reader.end_padded()?;
        Ok(Self { node, cluster_size, region_slots, regions, state })
    }
}

/// A page of the catalogue, [`PAGE_BYTES`] long.
///
/// Body of its frame, magic `VDCP`, version 1:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | stamp |
/// | 8 | 4 | number of the page, from 0 |
/// | 12 | 4 | logs |
/// | 16 | 4 | entries |
/// | 20 | 24 each | logs: volume (16), epoch (8) |
/// | then | 20 each | entries: slot (4), index among the logs (4), location (8, a map word), CRC-32 of the cluster (4) |
/// | then | | zeroes |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachePage {
    pub stamp: u64,
    pub number: u32,
    logs: Vec<(VolumeId, Epoch)>,
    entries: Vec<(u32, u32, Location, ClusterCrc)>,
}

/// A cluster and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    pub slot: u32,
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub at: Location,
    pub crc: ClusterCrc,
}

impl CachePage {
    #[must_use]
    pub fn new(stamp: u64, number: u32) -> Self {
        Self { stamp, number, logs: Vec::new(), entries: Vec::new() }
    }

    /// Adds an entry; `false` when the page is full.
    pub fn push(&mut self, entry: &CacheEntry) -> bool {
        let log = (entry.volume, entry.epoch);
        let known = self.logs.iter().rposition(|known| *known == log);
        let logs = self.logs.len() + usize::from(known.is_none());
        if logs * LOG_BYTES + (self.entries.len() + 1) * ENTRY_BYTES > PAGE_ROOM {
            return false;
        }
        let number = known.unwrap_or_else(|| {
            self.logs.push(log);
            self.logs.len() - 1
        });
        self.entries.push((entry.slot, count32(number), entry.at, entry.crc));
        true
    }

    pub fn entries(&self) -> impl Iterator<Item = CacheEntry> + '_ {
        self.entries.iter().filter_map(|(slot, log, at, crc)| {
            let (volume, epoch) = *self.logs.get(usize::try_from(*log).ok()?)?;
            Some(CacheEntry { slot: *slot, volume, epoch, at: *at, crc: *crc })
        })
    }

    pub fn encode(&self, out: &mut [u8; PAGE_BYTES]) {
        let mut body = Vec::with_capacity(PAGE_HEAD_BYTES + PAGE_ROOM);
        body.put_u64_le(self.stamp);
        body.put_u32_le(self.number);
        body.put_u32_le(count32(self.logs.len()));
        body.put_u32_le(count32(self.entries.len()));
        for (volume, epoch) in &self.logs {
            body.put_slice(&volume.0);
            body.put_u64_le(epoch.0);
        }
        for (slot, log, at, crc) in &self.entries {
            body.put_u32_le(*slot);
            body.put_u32_le(*log);
            body.put_u64_le(at.to_word());
            body.put_u32_le(crc.0);
        }
        PAGE.fill(out, &[&body]);
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() != PAGE_BYTES {
            let len = bytes.len();
            return Err(Fault::corrupt(format!("a cache catalogue page of {len} bytes")));
        }
        let mut reader = PAGE.body(bytes)?;
        let (stamp, number) = (reader.u64()?, reader.u32()?);
        let (logs, entries) = (reader.u32()?, reader.u32()?);
        let log = |r: &mut Reader<'_>| Ok((VolumeId(r.array()?), Epoch(r.u64()?)));
        let logs = reader.items(logs, LOG_BYTES, log)?;
        let entries = reader.items(entries, ENTRY_BYTES, |r| {
            let (slot, log, word, crc) = (r.u32()?, r.u32()?, r.u64()?, r.u32()?);
            if usize::try_from(log).is_ok_and(|log| log >= logs.len()) {
                return Err(r.corrupt(format!("it has no log {log}")));
            }
            let at = Location::from_word(word);
            let at = at.ok_or_else(|| r.corrupt(format!("{word:#x} is no location")))?;
            Ok((slot, log, at, ClusterCrc(crc)))
        })?;
        reader.end_padded()?;
        Ok(Self { stamp, number, logs, entries })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::fault::Kind;
    use crate::units::ScoSeq;

    fn entry() -> impl Strategy<Value = CacheEntry> {
        let at = (1..=Location::MAX_SCO, 0..Location::MAX_CLUSTERS);
        let at = at.prop_map(|(sco, index)| Location { sco: ScoSeq(sco), index });
        (any::<u32>(), 0..3_u8, any::<u64>(), at, any::<u32>()).prop_map(
            |(slot, volume, epoch, at, crc)| CacheEntry {
                slot,
                volume: VolumeId([volume; 16]),
                epoch: Epoch(epoch % 3),
                at,
                crc: ClusterCrc(crc),
            },
        )
    }

    fn encoded(page: &CachePage) -> Box<[u8; PAGE_BYTES]> {
        let mut out = Box::new([0xee; PAGE_BYTES]);
        page.encode(&mut out);
        out
    }

    proptest! {
        #[test]
        fn pages_come_back_and_damage_is_seen(
            entries in vec(entry(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0..8,
        ) {
            let mut page = CachePage::new(77, 5);
            prop_assert!(entries.iter().all(|entry| page.push(entry)));
            let mut bytes = encoded(&page);
            let back = CachePage::decode(&bytes[..]).unwrap();
            prop_assert_eq!(back.entries().collect::<Vec<_>>(), entries);
            prop_assert_eq!(back, page);
            bytes[at.index(PAGE_BYTES)] ^= 1_u8 << bit;
            prop_assert_eq!(CachePage::decode(&bytes[..]).unwrap_err().kind, Kind::Corrupt);
        }

        #[test]
        fn nonsense_is_an_error_or_comes_back(body in vec(0..3_u8, 0..200)) {
            let mut bytes = Box::new([0; PAGE_BYTES]);
            PAGE.fill(&mut bytes, &[&body]);
            if let Ok(page) = CachePage::decode(&bytes[..]) {
                prop_assert_eq!(&encoded(&page), &bytes);
            }
        }
    }

    #[test]
    fn a_page_takes_as_much_as_fits() {
        let entry = |n: u32, epoch| CacheEntry {
            slot: n,
            volume: VolumeId([1; 16]),
            epoch: Epoch(epoch),
            at: Location { sco: ScoSeq(1), index: n & 0xffff },
            crc: ClusterCrc(n),
        };
        for (epochs, fitting) in [(1, 3273), (u64::MAX, 1488)] {
            let mut page = CachePage::new(1, 0);
            let taken = (0..).take_while(|n| page.push(&entry(*n, u64::from(*n) % epochs))).count();
            assert_eq!(taken, fitting);
            assert_eq!(CachePage::decode(&encoded(&page)[..]).unwrap(), page);
        }
    }

    #[test]
    fn states_that_nobody_writes_are_refused() {
        let header = CacheHeader {
            node: NodeId([1; 16]),
            cluster_size: ClusterSize::DEFAULT,
            region_slots: 256,
            regions: 64,
            state: FileState::Closed { stamp: 0, hand: 0, pages: 0 },
        };
        let mut block = [0; BLOCK_BYTES];
        header.encode(&mut block);
        assert_eq!(CacheHeader::decode(&block).unwrap(), header);
        for (offset, byte) in [(12 + 28, 2), (12 + 16, 1), (12 + 60, 1)] {
            let mut wrong = block;
            wrong[offset] = byte;
            assert_eq!(CacheHeader::decode(&wrong).unwrap_err().kind, Kind::Corrupt);
            let mut body = wrong[12..BLOCK_BYTES - 4].to_vec();
            body.truncate(100);
            HEADER.fill(&mut wrong, &[&body]);
            assert_eq!(CacheHeader::decode(&wrong).unwrap_err().kind, Kind::Corrupt);
        }
        assert_eq!(CacheHeader::decode(&block[1..]).unwrap_err().kind, Kind::Corrupt);
    }
}
