//! Trailer of a fragment's file: what lets any range of it be verified. Bytes to struct and back, no I/O.
//!
//! A fragment's file is the fragment's bytes from offset 0, zeroes, and the trailer, which ends with the file; the file's
//! length is a multiple of [`ALIGN`]. The trailer, numbers little-endian:
//!
//! | size | field |
//! |---|---|
//! | 4 each | CRC-32 (IEEE) of each block of 64 KiB, the last one of what is left |
//! | n | name of the namespace |
//! | m | name of the object |
//! | 16 | object id |
//! | 8 | length of the object |
//! | 4 | CRC-32 of the whole object |
//! | 4 | unit (see [`Layout`]) |
//! | 4 | policy: k, m, c, x |
//! | 1 | codec (see [`Codec`]) |
//! | 1 | index of the fragment |
//! | 2 | zero |
//! | 8 | magic `ALBAOBJT` |
//! | 4 | version, 2 |
//! | 4 | block size, 65536 |
//! | 8 | length of the fragment |
//! | 4 | CRC-32 of the whole fragment |
//! | 2, 2 | n, m |
//! | 16 | fragment id |
//! | 8 | created, milliseconds since 1970 |
//! | 4 | zero |
//! | 4 | CRC-32 of the trailer up to here |
//!
//! Version 1 has nothing between the names and the magic: its file is the whole object, its fragment id the object id.
//!
//! The names and the fragment's place in the object are there so that a lost NSM can be rebuilt from the files.

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

use bytes::{Buf, BufMut};

use crate::erasure::{Codec, Layout};
use crate::fault::{Fault, Result};
use crate::name::{FragmentId, ObjectId};
use crate::preset::Policy;

/// Bytes that share one checksum.
#[expect(clippy::as_conversions, reason = "constant")]
pub const BLOCK_BYTES: u64 = BLOCK as u64;
const BLOCK: u32 = 64 * 1024;
/// The length of an object's file is a multiple of this, bytes: direct I/O may read all of it.
pub const ALIGN: u64 = 4096;
/// The part of the trailer whose length never changes, bytes. It ends with the file.
pub const FIXED_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"ALBAOBJT";
const VERSION: u32 = 2;
const VERSION_1: u32 = 1;
/// The fields between the names and the magic, bytes.
const PART_BYTES: usize = 40;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    pub id: FragmentId,
    pub len: u64,
    pub crc: u32,
    pub created_ms: u64,
    pub namespace: String,
    pub name: String,
    pub part: Part,
    /// One per block of [`BLOCK_BYTES`].
    pub block_crcs: Vec<u32>,
}

/// The object a fragment belongs to, and its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub object: ObjectId,
    pub layout: Layout,
    /// CRC-32 (IEEE) of the whole object.
    pub object_crc: u32,
    pub index: u8,
}

/// Blocks of a fragment of this length.
#[must_use]
pub fn blocks_of(len: u64) -> u64 {
    len.div_ceil(BLOCK_BYTES)
}

/// Length of the file of a fragment of `len` bytes whose namespace and name have `names` bytes together.
#[must_use]
pub fn file_bytes(len: u64, names: usize) -> u64 {
    let own =
        blocks_of(len).saturating_mul(4).saturating_add(wide(names + PART_BYTES + FIXED_BYTES));
    let end = len.saturating_add(own);
    end.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
}

/// No memory holds 2^64 bytes.
fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// The length of a name, which was checked when it was given.
fn put_name_len(name: &str, out: &mut Vec<u8>) {
    let len = u16::try_from(name.len());
    assert!(len.is_ok(), "a name of {} bytes", name.len());
    out.put_u16_le(len.unwrap_or(u16::MAX));
}

impl Trailer {
    /// The zeroes after the fragment's bytes and the trailer itself: all that follows them in the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let names = self.namespace.len() + self.name.len();
        let own = 4 * self.block_crcs.len() + names + PART_BYTES + FIXED_BYTES;
        let end = (self.len + wide(own)).next_multiple_of(ALIGN);
        let zeroes = usize::try_from(end - self.len - wide(own)).unwrap_or_default();
        let mut out = Vec::with_capacity(own + zeroes);
        self.block_crcs.iter().for_each(|crc| out.put_u32_le(*crc));
        out.put_slice(self.namespace.as_bytes());
        out.put_slice(self.name.as_bytes());
        self.part.encode(&mut out);
        out.put_slice(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(BLOCK);
        out.put_u64_le(self.len);
        out.put_u32_le(self.crc);
        put_name_len(&self.namespace, &mut out);
        put_name_len(&self.name, &mut out);
        out.put_slice(&self.id.0);
        out.put_u64_le(self.created_ms);
        out.put_u32_le(0);
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        // The zeroes come first.
        out.resize(own + zeroes, 0);
        out.rotate_right(zeroes);
        out
    }

    /// How long the trailer is that ends in these last [`FIXED_BYTES`] of a file of `file_len` bytes.
    pub fn len_from_end(fixed: &[u8], file_len: u64) -> Result<u64> {
        let fixed = Fixed::decode(fixed)?;
        let own = fixed.trailer_len();
        let fits = fixed.len.checked_add(own).is_some_and(|end| end <= file_len);
        fits.then_some(own)
            .ok_or_else(|| broken(format!("object of {} bytes in {file_len}", fixed.len)))
    }

    /// Of bytes that end with one.
    pub fn from_end(bytes: &[u8]) -> Result<Self> {
        let short = || broken("too short".into());
        let fixed = bytes.len().checked_sub(FIXED_BYTES).and_then(|at| bytes.get(at..));
        let own = Fixed::decode(fixed.ok_or_else(short)?)?.trailer_len();
        let at = usize::try_from(own).ok().and_then(|own| bytes.len().checked_sub(own));
        Self::decode(at.and_then(|at| bytes.get(at..)).ok_or_else(short)?)
    }

    /// Exactly the bytes [`Trailer::len_from_end`] announced.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let at = bytes.len().checked_sub(FIXED_BYTES).ok_or_else(|| broken("too short".into()))?;
        let (head, tail) = bytes.split_at(at);
        let fixed = Fixed::decode(tail)?;
        if fixed.trailer_len() != wide(bytes.len()) {
            return Err(broken(format!("{} bytes, not {}", bytes.len(), fixed.trailer_len())));
        }
        let covered = bytes.split_last_chunk::<4>().map(|(covered, _)| covered);
        if covered.map(crc32fast::hash) != Some(fixed.own_crc) {
            return Err(broken("its checksum does not match".into()));
        }
        let (head, part) = head.split_at(head.len() - fixed.part_len());
        let part = if part.is_empty() { fixed.whole_object() } else { Part::decode(part)? };
        let (crcs, names) = head.split_at(head.len() - fixed.namespace_len - fixed.name_len);
        let (namespace, name) = names.split_at(fixed.namespace_len);
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| broken("a name is not UTF-8".into()))
        };
        Ok(Self {
            id: fixed.id,
            len: fixed.len,
            crc: fixed.crc,
            created_ms: fixed.created_ms,
            namespace: text(namespace)?,
            name: text(name)?,
            part,
            block_crcs: crcs.chunks_exact(4).map(|mut word| word.get_u32_le()).collect(),
        })
    }
}

impl Part {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_slice(&self.object.0);
        out.put_u64_le(self.layout.len);
        out.put_u32_le(self.object_crc);
        out.put_u32_le(self.layout.unit);
        out.put_slice(&self.layout.policy.to_bytes());
        out.put_u8(Codec::of(self.layout.policy).number());
        out.put_u8(self.index);
        out.put_u16_le(0);
    }

    /// [`PART_BYTES`] of them.
    fn decode(mut bytes: &[u8]) -> Result<Self> {
        let mut object = [0; 16];
        bytes.copy_to_slice(&mut object);
        let (len, object_crc, unit) = (bytes.get_u64_le(), bytes.get_u32_le(), bytes.get_u32_le());
        let policy = Policy::from_bytes([(); 4].map(|()| bytes.get_u8()))?;
        let codec = Codec::from_number(bytes.get_u8())?;
        let index = bytes.get_u8();
        if codec != Codec::of(policy) || usize::from(index) >= policy.total() {
            let codec = codec.number();
            let message = format!("codec {codec}, fragment {index} of policy {policy}");
            return Err(broken(message));
        }
        let layout = Layout { len, policy, unit };
        layout.check().map_err(|fault| fault.about("trailer"))?;
        Ok(Self { object: ObjectId(object), layout, object_crc, index })
    }
}

struct Fixed {
    version: u32,
    len: u64,
    crc: u32,
    namespace_len: usize,
    name_len: usize,
    id: FragmentId,
    created_ms: u64,
    own_crc: u32,
}

impl Fixed {
    fn decode(mut bytes: &[u8]) -> Result<Self> {
        if bytes.len() != FIXED_BYTES || !bytes.starts_with(MAGIC) {
            return Err(broken("its magic is missing".into()));
        }
        bytes.advance(MAGIC.len());
        let version = bytes.get_u32_le();
        if !matches!(version, VERSION | VERSION_1) {
            return Err(broken(format!("version {version} is unknown to this release")));
        }
        let block = bytes.get_u32_le();
        if u64::from(block) != BLOCK_BYTES {
            return Err(broken(format!("block size {block} is unknown to this release")));
        }
        let (len, crc) = (bytes.get_u64_le(), bytes.get_u32_le());
        let (namespace_len, name_len) = (bytes.get_u16_le().into(), bytes.get_u16_le().into());
        let mut id = [0; 16];
        bytes.copy_to_slice(&mut id);
        let (created_ms, _zero) = (bytes.get_u64_le(), bytes.get_u32_le());
        let own_crc = bytes.get_u32_le();
        let id = FragmentId(id);
        Ok(Self { version, len, crc, namespace_len, name_len, id, created_ms, own_crc })
    }

    fn part_len(&self) -> usize {
        if self.version == VERSION_1 { 0 } else { PART_BYTES }
    }

    /// What a file of version 1 is.
    fn whole_object(&self) -> Part {
        let layout = Layout { len: self.len, policy: Policy::SINGLE, unit: BLOCK };
        Part { object: ObjectId(self.id.0), layout, object_crc: self.crc, index: 0 }
    }

    /// No overflow: the number of blocks is below 2^48.
    fn trailer_len(&self) -> u64 {
        let names = self.namespace_len + self.name_len;
        4 * blocks_of(self.len) + wide(names + self.part_len() + FIXED_BYTES)
    }
}

fn broken(why: String) -> Fault {
    Fault::corrupt(format!("trailer: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> Trailer {
        let layout = Layout { len: 9, policy: "2,1,3,2".parse().unwrap(), unit: 1 << 16 };
        let part = Part { object: ObjectId([8; 16]), layout, object_crc: 0x0403_0201, index: 1 };
        Trailer {
            id: FragmentId([7; 16]),
            len: 5,
            crc: 0x3610_a686,
            created_ms: 0x0102,
            namespace: "ns".into(),
            name: "a/b".into(),
            part,
            block_crcs: vec![0x3610_a686],
        }
    }

    /// The tables' bytes, with this between the names and the magic.
    fn golden(version: u8, part: &[u8]) -> Vec<u8> {
        // CRC-32 of "hello" is 0x3610a686.
        let mut own = vec![0x86, 0xa6, 0x10, 0x36];
        own.extend(b"nsa/b");
        own.extend(part);
        own.extend(b"ALBAOBJT");
        own.extend([version, 0, 0, 0, 0, 0, 1, 0]);
        own.extend([5, 0, 0, 0, 0, 0, 0, 0, 0x86, 0xa6, 0x10, 0x36, 2, 0, 3, 0]);
        own.extend([7; 16]);
        own.extend([2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let crc = crc32fast::hash(&own);
        own.extend(crc.to_le_bytes());
        own
    }

    #[test]
    fn version_1_is_a_whole_object() {
        let trailer = Trailer::decode(&golden(1, &[])).unwrap();
        let layout = Layout { len: 5, policy: Policy::SINGLE, unit: 1 << 16 };
        let part = Part { object: ObjectId([7; 16]), layout, object_crc: 0x3610_a686, index: 0 };
        assert_eq!(trailer, Trailer { part, ..small() });
        let fixed = &golden(1, &[])[9..];
        assert_eq!(Trailer::len_from_end(fixed, 4096).unwrap(), 9 + FIXED_BYTES as u64);
    }

    #[test]
    fn version_2_is_as_the_table_says() {
        let mut part = vec![8; 16];
        part.extend([9, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 1, 0, 2, 1, 3, 2, 2, 1, 0, 0]);
        let own = golden(2, &part);
        assert_eq!(file_bytes(5, 5), 4096);
        let bytes = small().encode();
        assert_eq!(bytes.len(), 4096 - 5);
        assert!(bytes[..bytes.len() - own.len()].iter().all(|b| *b == 0));
        assert_eq!(&bytes[bytes.len() - own.len()..], own);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = small().encode();
        let own =
            Trailer::len_from_end(&bytes[bytes.len() - FIXED_BYTES..], 4096).unwrap() as usize;
        let good = &bytes[bytes.len() - own..];
        assert_eq!(Trailer::decode(good).unwrap(), small());
        for bit in 0..own * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_length_the_file_cannot_hold_is_refused() {
        let mut fixed = small().encode().split_off(4096 - 5 - FIXED_BYTES);
        for len in [4096, u64::MAX, u64::MAX / 2] {
            fixed[16..24].copy_from_slice(&u64::to_le_bytes(len));
            assert!(Trailer::len_from_end(&fixed, 4096).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(len in 0u64..300_000, namespace in "[a-z]{1,9}", name in "\\PC{1,40}") {
            let blocks = blocks_of(len) as u32;
            let trailer = Trailer { len, namespace, name, block_crcs: (0..blocks).collect(), ..small() };
            let bytes = trailer.encode();
            let file_len = len + bytes.len() as u64;
            prop_assert_eq!(file_len % ALIGN, 0);
            prop_assert_eq!(file_len, file_bytes(len, trailer.namespace.len() + trailer.name.len()));
            let own = Trailer::len_from_end(&bytes[bytes.len() - FIXED_BYTES..], file_len).unwrap();
            prop_assert_eq!(Trailer::decode(&bytes[bytes.len() - own as usize..]).unwrap(), trailer);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic && bytes.len() >= FIXED_BYTES {
                let at = bytes.len() - FIXED_BYTES;
                let version = bytes[at + 8] % 2 + 1;
                bytes[at..at + 16].copy_from_slice(b"ALBAOBJT\x01\0\0\0\0\0\x01\0");
                bytes[at + 8] = version;
            }
            let _ = Trailer::decode(&bytes);
            let _ = Trailer::len_from_end(&bytes[bytes.len().saturating_sub(FIXED_BYTES)..], 1 << 20);
        }
    }
}
