//! Map run: a sorted, immutable list of map extents, with a block index for partial loads.
//!
//! The object is a head, blocks of about [`BLOCK_BYTES`] that each stand alone, the index of the blocks, and a trailer. A
//! reader fetches the tail ([`decode_tail`]), and later only the blocks that cover a page ([`RunIndex::blocks_for`]). Every
//! part is an envelope of [`frame`](super::frame); bodies:
//!
//! | part | magic | body |
//! |---|---|---|
//! | head | `VDRN` | volume (16), epoch (8), run number (8) |
//! | block | `VDRB` | address of the first extent (8), extent count (4), extents |
//! | index | `VDRI` | block count (4), then per block: first address (8), end address (8), bytes (4), extent count (4) |
//! | trailer | `VDRT` | volume (16), epoch (8), run number (8), extent count (8), bytes of the index (4), CRC the index ends with (4) |
//!
//! An extent is LEB128 varints: the gap from the end of the last extent (of the first: 0); then `(count - 1) * 4 + kind`;
//! then by kind: 0 hole, 1 zero: nothing; 2 data in the last data extent's SCO: zigzag of the index minus the last one's end
//! index; 3 data in another SCO: zigzag of the SCO minus the last one (minus 0 at first), then the index. Each block starts
//! afresh.

use std::ops::Range;

use bytes::{BufMut, Bytes};

use super::frame::{CRC_BYTES, Frame, HEAD_BYTES, Reader, count32, ours, stored_crc};
use super::manifest::RunRef;
use super::page::fits_sco;
use crate::fault::{Fault, Result};
use crate::units::{
    ClusterAddr, ClusterCount, Epoch, Location, Mapping, PAGE_CLUSTERS, PageNo, RunNo, ScoSeq,
    VolumeId,
};

/// `count` clusters from `addr` map to `mapping`, `mapping.nth(1)`, ... A hole hides older runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapExtent {
    pub addr: ClusterAddr,
    pub count: ClusterCount,
    pub mapping: Mapping,
}

/// Which run an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunHeader {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub no: RunNo,
    pub entry_count: u64,
}

/// A block is closed once its extents take this much, bytes.
pub const BLOCK_BYTES: usize = 16 * 1024;
/// The trailer, bytes: the least a reader must fetch of the object's end.
pub const TRAILER_BYTES: usize = HEAD_BYTES + 48 + CRC_BYTES;

const HEAD: Frame = Frame { name: "map run head", magic: *b"VDRN", version: 1 };
const BLOCK: Frame = Frame { name: "map run block", magic: *b"VDRB", version: 1 };
const INDEX: Frame = Frame { name: "map run index", magic: *b"VDRI", version: 1 };
const TRAILER: Frame = Frame { name: "map run trailer", magic: *b"VDRT", version: 1 };

/// The head, bytes: where the first block begins.
const OBJECT_HEAD_BYTES: u64 = 48;
const INDEX_ENTRY_BYTES: usize = 24;
/// Shortest extent: gap and count, a byte each.
const LEAST_EXTENT_BYTES: usize = 2;
/// Ends of extents stay below this, so that sums of addresses never overflow.
const MAX_ADDR: u64 = 1 << 62;

const KIND_HOLE: u64 = 0;
const KIND_ZERO: u64 = 1;
const KIND_SAME_SCO: u64 = 2;
const KIND_OTHER_SCO: u64 = 3;

/// One block of a run: where it lies in the object and which addresses it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunBlock {
    pub first: ClusterAddr,
    /// End of its last extent.
    pub end: ClusterAddr,
    /// Its bytes in the object.
    pub bytes: Range<u64>,
    pub extent_count: u32,
}

impl RunBlock {
    /// The extents of this block: ascending, not overlapping.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not this block; `Invalid` for a version this program does not know.
    pub fn decode(&self, bytes: &[u8]) -> Result<Vec<MapExtent>> {
        let extents = decode_block(bytes)?;
        let first = extents.first().map(|extent| extent.addr);
        let end = extents.last().map(|extent| extent.addr + extent.count);
        let count = u32::try_from(extents.len());
        if (first, end, count) != (Some(self.first), Some(self.end), Ok(self.extent_count)) {
            return Err(Fault::corrupt(format!(
                "map run block is damaged: it covers {first:?}..{end:?}, the index says {}..{}",
                self.first, self.end
            )));
        }
        Ok(extents)
    }
}

/// What compresses an extent: the one before it in its block.
#[derive(Clone, Copy, Default)]
struct Before {
    end: u64,
    sco: u64,
    end_index: u64,
}

/// Builds a run object from ascending extents, in parts that may be sent while it goes on.
pub struct RunWriter {
    volume: VolumeId,
    epoch: Epoch,
    no: RunNo,
    entry_count: u64,
    parts: Vec<Bytes>,
    blocks: Vec<RunBlock>,
    /// The open block's extents.
    open: Vec<u8>,
    open_first: u64,
    open_count: u32,
    before: Before,
    /// End of the last extent.
    end: u64,
    offset: u64,
}

impl RunWriter {
    #[must_use]
    pub fn new(volume: VolumeId, epoch: Epoch, no: RunNo) -> Self {
        let mut body = Vec::new();
        put_identity(volume, epoch, no, &mut body);
        let mut head = Vec::new();
        HEAD.wrap(&body, &mut head);
        Self {
            volume,
            epoch,
            no,
            entry_count: 0,
            parts: vec![head.into()],
            blocks: Vec::new(),
            open: Vec::new(),
            open_first: 0,
            open_count: 0,
            before: Before::default(),
            end: 0,
            offset: OBJECT_HEAD_BYTES,
        }
    }

    /// Appends an extent; none may begin before the last one's end.
    pub fn push(&mut self, extent: MapExtent) {
        let (addr, count) = (extent.addr.0, extent.count.0);
        assert!(count > 0 && addr >= self.end, "extents of a run ascend");
        assert!(fits_sco(extent.mapping, count) && addr + count <= MAX_ADDR, "extent out of range");
        if self.open_count == 0 {
            self.open_first = addr;
            self.before = Before { end: addr, ..Before::default() };
        }
        put_extent(&extent, &mut self.before, &mut self.open);
        self.open_count += 1;
        self.entry_count += 1;
        self.end = addr + count;
        if self.open.len() >= BLOCK_BYTES {
            self.close_block();
        }
    }

    /// The parts finished so far, in order, to be sent ahead of what follows.
    pub fn take_parts(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.parts)
    }

    /// The parts not taken yet, the whole object's length, and its header.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Bytes>, u64, RunHeader) {
        self.close_block();
        let mut index = Vec::new();
        INDEX.wrap(&index_body(&self.blocks), &mut index);
        let (volume, epoch, no) = (self.volume, self.epoch, self.no);
        let header = RunHeader { volume, epoch, no, entry_count: self.entry_count };
        let mut body = Vec::new();
        put_identity(volume, epoch, no, &mut body);
        body.put_u64_le(header.entry_count);
        body.put_u32_le(count32(index.len()));
        body.put_u32_le(stored_crc(&index).unwrap_or_default());
        let mut trailer = Vec::new();
        TRAILER.wrap(&body, &mut trailer);
        for part in [index, trailer] {
            self.offset += u64::from(count32(part.len()));
            self.parts.push(part.into());
        }
        (self.parts, self.offset, header)
    }

    fn close_block(&mut self) {
        if self.open_count == 0 {
            return;
        }
        let mut body = Vec::with_capacity(12 + self.open.len());
        body.put_u64_le(self.open_first);
        body.put_u32_le(self.open_count);
        body.append(&mut self.open);
        let mut block = Vec::new();
        BLOCK.wrap(&body, &mut block);
        let end = self.offset + u64::from(count32(block.len()));
        self.blocks.push(RunBlock {
            first: ClusterAddr(self.open_first),
            end: ClusterAddr(self.end),
            bytes: self.offset..end,
            extent_count: self.open_count,
        });
        self.offset = end;
        self.open_count = 0;
        self.parts.push(block.into());
    }
}

/// The block index of a run, with the run's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunIndex {
    pub header: RunHeader,
    /// In order of address; they do not overlap.
    pub blocks: Vec<RunBlock>,
}

/// What the end of a run object gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    Index(RunIndex),
    /// The index is longer: fetch this many bytes of the object's end.
    Longer(u64),
}

/// Decodes the index from the last bytes (at least [`TRAILER_BYTES`]) of a run object that is `object_bytes` long.
///
/// # Errors
/// `Corrupt` when they are not the end of such a run; `Invalid` for a version this program does not know.
pub fn decode_tail(object_bytes: u64, tail: &[u8]) -> Result<Tail> {
    let (before, trailer) = tail
        .split_last_chunk::<TRAILER_BYTES>()
        .ok_or_else(|| Fault::corrupt("map run is cut short: no trailer"))?;
    let mut reader = TRAILER.body(trailer)?;
    let volume = VolumeId(reader.array()?);
    let (epoch, no) = (Epoch(reader.u64()?), RunNo(reader.u64()?));
    let header = RunHeader { volume, epoch, no, entry_count: reader.u64()? };
    let (index_bytes, crc) = (reader.u32()?, reader.u32()?);
    let tail_bytes = u64::from(index_bytes) + u64::from(count32(TRAILER_BYTES));
    let blocks_end = object_bytes
        .checked_sub(tail_bytes)
        .filter(|end| *end >= OBJECT_HEAD_BYTES)
        .ok_or_else(|| reader.corrupt("its index is longer than the object"))?;
    let index_len = usize::try_from(index_bytes).unwrap_or(usize::MAX);
    let Some(start) = before.len().checked_sub(index_len) else {
        return Ok(Tail::Longer(tail_bytes));
    };
    let index = before.get(start..).unwrap_or_default();
    if stored_crc(index) != Some(crc) {
        return Err(reader.corrupt("its index is another's"));
    }
    let blocks = decode_index(index, blocks_end)?;
    let extents: u64 = blocks.iter().map(|block| u64::from(block.extent_count)).sum();
    if extents != header.entry_count {
        return Err(reader.corrupt("its blocks do not add up"));
    }
    reader.end()?;
    Ok(Tail::Index(RunIndex { header, blocks }))
}

impl RunIndex {
    /// It is the run that `volume`'s manifest names, and speaks of no cluster past the volume's end.
    ///
    /// # Errors
    /// `Corrupt`, with what is wrong.
    pub fn check(&self, volume: VolumeId, named: &RunRef, size: ClusterCount) -> Result<()> {
        let RunRef { no, epoch, entry_count, .. } = *named;
        if self.header != (RunHeader { volume, epoch, no, entry_count }) {
            return Err(Fault::corrupt(format!(
                "it is not the run it is named: {:?}",
                self.header
            )));
        }
        match self.blocks.last() {
            Some(last) if last.end.0 > size.0 => Err(Fault::corrupt(format!(
                "it reaches cluster {}, the volume has {size}",
                last.end
            ))),
            _ => Ok(()),
        }
    }

    /// The blocks that say something of a page: neighbours in the object, so one read fetches them.
    #[must_use]
    pub fn blocks_for(&self, page: PageNo) -> &[RunBlock] {
        let first = page.0.saturating_mul(PAGE_CLUSTERS);
        let end = first.saturating_add(PAGE_CLUSTERS);
        let from = self.blocks.partition_point(|block| block.end.0 <= first);
        let to = self.blocks.partition_point(|block| block.first.0 < end);
        self.blocks.get(from..to).unwrap_or_default()
    }
}

/// The extents of a block without its index ([`RunBlock::decode`] checks it against that): ascending, not overlapping.
///
/// # Errors
/// `Corrupt` when the bytes are no block; `Invalid` for a version this program does not know.
pub fn decode_block(bytes: &[u8]) -> Result<Vec<MapExtent>> {
    let mut reader = BLOCK.body(bytes)?;
    let end = reader.u64()?;
    if end > MAX_ADDR {
        return Err(reader.corrupt(format!("first address {end}")));
    }
    let mut before = Before { end, ..Before::default() };
    let extents = reader.counted(LEAST_EXTENT_BYTES, |reader| take_extent(reader, &mut before))?;
    reader.end()?;
    Ok(extents)
}

fn put_identity(volume: VolumeId, epoch: Epoch, no: RunNo, out: &mut Vec<u8>) {
    out.put_slice(&volume.0);
    out.put_u64_le(epoch.0);
    out.put_u64_le(no.0);
}

fn index_body(blocks: &[RunBlock]) -> Vec<u8> {
    let mut body = Vec::with_capacity(4 + blocks.len() * INDEX_ENTRY_BYTES);
    body.put_u32_le(count32(blocks.len()));
    for block in blocks {
        body.put_u64_le(block.first.0);
        body.put_u64_le(block.end.0);
        let bytes = block.bytes.end - block.bytes.start;
        body.put_u32_le(ours(u32::try_from(bytes).ok()));
        body.put_u32_le(block.extent_count);
    }
    body
}

/// Blocks lie one after another from the object's head up to `blocks_end`.
fn decode_index(index: &[u8], blocks_end: u64) -> Result<Vec<RunBlock>> {
    let mut reader = INDEX.body(index)?;
    let (mut offset, mut end) = (OBJECT_HEAD_BYTES, 0);
    let blocks = reader.counted(INDEX_ENTRY_BYTES, |reader| {
        let (first, past) = (reader.u64()?, reader.u64()?);
        let (bytes, extent_count) = (reader.u32()?, reader.u32()?);
        if first < end || past <= first || past > MAX_ADDR || extent_count == 0 {
            return Err(reader.corrupt(format!("a block covers {first}..{past} after {end}")));
        }
        let start = offset;
        offset += u64::from(bytes);
        end = past;
        let (first, end) = (ClusterAddr(first), ClusterAddr(past));
        Ok(RunBlock { first, end, bytes: start..offset, extent_count })
    })?;
    if offset != blocks_end {
        return Err(
            reader.corrupt(format!("blocks end at {offset}, the index begins at {blocks_end}"))
        );
    }
    reader.end()?;
    Ok(blocks)
}

fn put_extent(extent: &MapExtent, before: &mut Before, out: &mut Vec<u8>) {
    put_varint(extent.addr.0 - before.end, out);
    let length = (extent.count.0 - 1) << 2;
    before.end = extent.addr.0 + extent.count.0;
    let Mapping::At(Location { sco, index }) = extent.mapping else {
        let zero = extent.mapping == Mapping::Zero;
        return put_varint(length | if zero { KIND_ZERO } else { KIND_HOLE }, out);
    };
    let index = u64::from(index);
    if sco.0 == before.sco {
        put_varint(length | KIND_SAME_SCO, out);
        put_varint(zigzag(index, before.end_index), out);
    } else {
        put_varint(length | KIND_OTHER_SCO, out);
        put_varint(zigzag(sco.0, before.sco), out);
        put_varint(index, out);
    }
    before.sco = sco.0;
    before.end_index = index + extent.count.0;
}

fn take_extent(reader: &mut Reader<'_>, before: &mut Before) -> Result<MapExtent> {
    let gap = take_varint(reader)?;
    let coded = take_varint(reader)?;
    let count = (coded >> 2) + 1;
    let addr = before.end.checked_add(gap);
    let end = addr.and_then(|addr| addr.checked_add(count)).filter(|end| *end <= MAX_ADDR);
    let (Some(addr), Some(end)) = (addr, end) else {
        return Err(reader.corrupt(format!("{count} clusters {gap} after {}", before.end)));
    };
    let mapping = match coded & 3 {
        KIND_HOLE => Mapping::Hole,
        KIND_ZERO => Mapping::Zero,
        kind => {
            if kind == KIND_SAME_SCO {
                before.end_index = unzigzag(take_varint(reader)?, before.end_index);
            } else {
                before.sco = unzigzag(take_varint(reader)?, before.sco);
                before.end_index = take_varint(reader)?;
            }
            location(before.sco, before.end_index).ok_or_else(|| {
                reader.corrupt(format!("SCO {} has no cluster {}", before.sco, before.end_index))
            })?
        }
    };
    if !fits_sco(mapping, count) {
        return Err(reader.corrupt(format!("{count} clusters from {mapping:?}")));
    }
    if let Mapping::At(_) = mapping {
        before.end_index += count;
    }
    before.end = end;
    Ok(MapExtent { addr: ClusterAddr(addr), count: ClusterCount(count), mapping })
}

fn location(sco: u64, index: u64) -> Option<Mapping> {
    let index = u32::try_from(index).ok().filter(|index| *index < Location::MAX_CLUSTERS)?;
    let sco = Some(sco).filter(|sco| (1..=Location::MAX_SCO).contains(sco)).map(ScoSeq)?;
    Some(Mapping::At(Location { sco, index }))
}

/// The difference `value - before` (both below 2^63) with its sign in the lowest bit.
fn zigzag(value: u64, before: u64) -> u64 {
    if value >= before { (value - before) << 1 } else { (before - value - 1) << 1 | 1 }
}

/// Wraps around on nonsense; what comes out is checked.
fn unzigzag(coded: u64, before: u64) -> u64 {
    match coded & 1 {
        0 => before.wrapping_add(coded >> 1),
        _ => before.wrapping_sub(coded >> 1).wrapping_sub(1),
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        out.put_u8(low | 0x80);
        value >>= 7;
    }
    let [low, ..] = value.to_le_bytes();
    out.put_u8(low);
}

fn take_varint(reader: &mut Reader<'_>) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = u64::from(reader.u8()?);
        let bits = byte & 0x7f;
        // The tenth byte has room for one bit; a last byte of 0 would be a second way to write the same number.
        if (shift == 63 && bits > 1) || (shift > 0 && byte == 0) {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(reader.corrupt("a number is malformed"))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::fault::Kind;

    fn mapping() -> impl Strategy<Value = Mapping> {
        let sco = prop_oneof![1..5_u64, 1..=Location::MAX_SCO];
        let data = (sco, 0..65_000_u32)
            .prop_map(|(sco, index)| Mapping::At(Location { sco: ScoSeq(sco), index }));
        prop_oneof![1 => Just(Mapping::Hole), 1 => Just(Mapping::Zero), 6 => data]
    }

    /// Ascending extents, some adjacent, some far apart.
    fn extents(most: usize) -> impl Strategy<Value = Vec<MapExtent>> {
        let gap = prop_oneof![Just(0), 0..100_u64, 0..1_u64 << 40];
        vec((gap, 1..500_u64, mapping()), 0..most).prop_map(|items| {
            let mut end = 0;
            let extent = |(gap, count, mapping): (u64, u64, Mapping)| {
                let addr = ClusterAddr(end + gap);
                end = addr.0 + count;
                MapExtent { addr, count: ClusterCount(count), mapping }
            };
            items.into_iter().map(extent).collect()
        })
    }

    fn write(extents: &[MapExtent]) -> (Vec<u8>, RunHeader) {
        let mut writer = RunWriter::new(VolumeId([7; 16]), Epoch(2), RunNo(3));
        let mut object = Vec::new();
        for extent in extents {
            writer.push(*extent);
            object.extend(writer.take_parts().concat());
        }
        let (parts, length, header) = writer.finish();
        object.extend(parts.concat());
        assert_eq!(object.len() as u64, length);
        (object, header)
    }

    fn index_of(object: &[u8], tail: usize) -> RunIndex {
        let length = object.len() as u64;
        match decode_tail(length, &object[object.len() - tail..]).unwrap() {
            Tail::Index(index) => index,
            Tail::Longer(tail) => index_of(object, tail as usize),
        }
    }

    fn read(object: &[u8], blocks: &[RunBlock]) -> Vec<MapExtent> {
        let bytes = |block: &RunBlock| {
            object[block.bytes.start as usize..block.bytes.end as usize].to_vec()
        };
        blocks.iter().flat_map(|block| block.decode(&bytes(block)).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn round_trip(extents in extents(40)) {
            let (object, header) = write(&extents);
            let index = index_of(&object, TRAILER_BYTES);
            prop_assert_eq!(&index.header, &header);
            prop_assert_eq!(read(&object, &index.blocks), extents);
        }

        #[test]
        fn one_flipped_bit_is_seen(extents in extents(20), at in any::<prop::sample::Index>(), bit in 0..8) {
            let (mut object, _) = write(&extents);
            let (length, at) = (object.len() as u64, at.index(object.len()));
            let index = index_of(&object, TRAILER_BYTES);
            object[at] ^= 1_u8 << bit;
            let block = index.blocks.iter().find(|block| block.bytes.contains(&(at as u64)));
            let damage = match block {
                Some(block) => {
                    let bytes = &object[block.bytes.start as usize..block.bytes.end as usize];
                    block.decode(bytes).err()
                }
                None if (at as u64) < OBJECT_HEAD_BYTES => return Ok(()),
                None => decode_tail(length, &object).err(),
            };
            prop_assert_eq!(damage.map(|fault| fault.kind), Some(Kind::Corrupt));
        }

        /// A body that passes its checksum and is nonsense.
        #[test]
        fn nonsense_is_refused_or_sorted(body in vec(any::<u8>(), 0..200), count in 0..60_u32) {
            let mut block = Vec::new();
            let body = [&7_u64.to_le_bytes()[..], &count.to_le_bytes(), &body].concat();
            BLOCK.wrap(&body, &mut block);
            if let Ok(extents) = decode_block(&block) {
                let sorted = |pair: &[MapExtent]| pair[0].addr + pair[0].count <= pair[1].addr;
                prop_assert!(extents.windows(2).all(sorted));
                prop_assert!(extents.iter().all(|extent| fits_sco(extent.mapping, extent.count.0)));
            }
            let mut index = Vec::new();
            INDEX.wrap(&body, &mut index);
            let _ = decode_index(&index, 1 << 30);
        }

        #[test]
        fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..300)) {
            prop_assert!(decode_block(&bytes).is_err());
            prop_assert!(decode_tail(bytes.len() as u64, &bytes).is_err());
        }
    }

    /// A mapped TiB-like run: 4 KiB here and there, from many SCOs.
    fn random_extents(count: u64) -> Vec<MapExtent> {
        let spread = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let extent = |n| MapExtent {
            addr: ClusterAddr(n * 4 + spread(n) % 4),
            count: ClusterCount(1),
            mapping: Mapping::At(Location {
                sco: ScoSeq(1 + spread(n + 1) % 16_384),
                index: (spread(n + 2) % 16_384) as u32,
            }),
        };
        (0..count).map(extent).collect()
    }

    #[test]
    fn random_entries_take_at_most_12_bytes() {
        let extents = random_extents(50_000);
        let (object, _) = write(&extents);
        assert!(object.len() <= 12 * extents.len(), "{} bytes", object.len());
        let index = index_of(&object, TRAILER_BYTES);
        assert!(index.blocks.len() > 10);
        assert_eq!(read(&object, &index.blocks), extents);
    }

    #[test]
    fn a_page_needs_only_its_blocks() {
        let extents = random_extents(50_000);
        let (object, _) = write(&extents);
        let index = index_of(&object, object.len());
        for page in [0, 1, 63, 64, 200, 390, 391, 10_000] {
            let (first, end) = (ClusterAddr(page * 512), ClusterAddr(page * 512 + 512));
            let in_page = |extent: &MapExtent| extent.addr >= first && extent.addr < end;
            let blocks = index.blocks_for(PageNo(page));
            assert!(blocks.len() <= 2);
            let mut got = read(&object, blocks);
            got.retain(in_page);
            let expected: Vec<_> = extents.iter().copied().filter(in_page).collect();
            assert_eq!(got, expected);
        }
    }
}
