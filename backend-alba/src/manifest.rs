//! Manifest of an object: what the NSM knows of it. Bytes to struct and back, no I/O.
//!
//! Version 2, numbers little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version, 2 |
//! | 1 | 1 | codec (see [`Codec`]) |
//! | 2 | 4 | policy: k, m, c, x |
//! | 6 | 1 | checksum, 1: CRC-32 (IEEE) of each 64 KiB, in the fragment's trailer |
//! | 7 | 1 | number of fragments, n |
//! | 8 | 4 | unit, bytes |
//! | 12 | 16 | object id |
//! | 28 | 8 | length, bytes |
//! | 36 | 4 | CRC-32 (IEEE) of the whole object |
//! | 40 | 8 | created, milliseconds since 1970 |
//! | 48 | 37 n | fragments by rising index: index (1), OSD (16), file (16), CRC-32 of the fragment (4) |
//!
//! A fragment that is not listed is not stored. Version 1 knew objects in one file of one OSD only and is still read:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | placement, 1 |
//! | 2 | 16 | OSD |
//! | 18 | 16 | object id, also the name of the file |
//! | 34 | 8 | length, bytes |
//! | 42 | 4 | CRC-32 (IEEE) of the whole object |
//! | 46 | 8 | created, milliseconds since 1970 |

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
use crate::name::{FragmentId, ObjectId, OsdId};
use crate::preset::Policy;

const VERSION: u8 = 2;
const CHECKSUM_CRC32: u8 = 1;
const FIXED_BYTES: usize = 48;
const FRAGMENT_BYTES: usize = 37;

const VERSION_1: u8 = 1;
const VERSION_1_BYTES: usize = 54;
const PLACEMENT_WHOLE_FILE: u8 = 1;

/// A stored fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Its place in the code, below k + m.
    pub index: u8,
    pub osd: OsdId,
    pub file: FragmentId,
    /// CRC-32 (IEEE) of all of it.
    pub crc: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub id: ObjectId,
    pub len: u64,
    /// CRC-32 (IEEE) of the whole object.
    pub crc: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// What the object was put under; k + m of them is all there can be.
    pub policy: Policy,
    pub codec: Codec,
    /// See [`Layout`].
    pub unit: u32,
    /// By rising index, each at most once, at least k of them.
    pub fragments: Vec<Fragment>,
}

impl Manifest {
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout { len: self.len, policy: self.policy, unit: self.unit }
    }

    /// The fragment of this index, if it is stored.
    #[must_use]
    pub fn fragment(&self, index: usize) -> Option<&Fragment> {
        self.fragments.iter().find(|fragment| usize::from(fragment.index) == index)
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + FRAGMENT_BYTES * self.fragments.len());
        out.put_u8(VERSION);
        out.put_u8(self.codec.number());
        out.put_slice(&self.policy.to_bytes());
        out.put_u8(CHECKSUM_CRC32);
        let count = u8::try_from(self.fragments.len());
        assert!(count.is_ok(), "no policy has {} fragments", self.fragments.len());
        out.put_u8(count.unwrap_or(u8::MAX));
        out.put_u32_le(self.unit);
        out.put_slice(&self.id.0);
        out.put_u64_le(self.len);
        out.put_u32_le(self.crc);
        out.put_u64_le(self.created_ms);
        for fragment in &self.fragments {
            out.put_u8(fragment.index);
            out.put_slice(&fragment.osd.0);
            out.put_slice(&fragment.file.0);
            out.put_u32_le(fragment.crc);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let decoded = match bytes.first() {
            Some(&VERSION) => decode_2(bytes),
            Some(&VERSION_1) => decode_1(bytes),
            Some(version) => {
                Err(Fault::corrupt(format!("version {version} is unknown to this release")))
            }
            None => Err(Fault::corrupt("it is empty")),
        };
        decoded.map_err(|fault| fault.about("object manifest"))
    }
}

fn decode_2(mut bytes: &[u8]) -> Result<Manifest> {
    let given = bytes.len();
    if given < FIXED_BYTES {
        return Err(Fault::corrupt(format!("{given} bytes, at least {FIXED_BYTES} expected")));
    }
    bytes.advance(1);
    let codec = Codec::from_number(bytes.get_u8())?;
    let policy = Policy::from_bytes([(); 4].map(|()| bytes.get_u8()))?;
    let (checksum, count) = (bytes.get_u8(), usize::from(bytes.get_u8()));
    if checksum != CHECKSUM_CRC32 {
        return Err(Fault::corrupt(format!("checksum {checksum} is unknown to this release")));
    }
    let unit = bytes.get_u32_le();
    let id = ObjectId(id(&mut bytes));
    let (len, crc, created_ms) = (bytes.get_u64_le(), bytes.get_u32_le(), bytes.get_u64_le());
    if bytes.len() != count * FRAGMENT_BYTES {
        return Err(Fault::corrupt(format!("{given} bytes do not hold {count} fragments")));
    }
    let fragments: Vec<Fragment> = (0..count)
        .map(|_| Fragment {
            index: bytes.get_u8(),
            osd: OsdId(self::id(&mut bytes)),
            file: FragmentId(self::id(&mut bytes)),
            crc: bytes.get_u32_le(),
        })
        .collect();
    let manifest = Manifest { id, len, crc, created_ms, policy, codec, unit, fragments };
    check(&manifest)?;
    Ok(manifest)
}

fn check(manifest: &Manifest) -> Result<()> {
    let Manifest { policy, fragments, .. } = manifest;
    manifest.layout().check()?;
    if manifest.codec != Codec::of(*policy) {
        let codec = manifest.codec.number();
        let message = format!("codec {codec} does not go with policy {policy}");
        return Err(Fault::corrupt(message));
    }
    let rising = fragments.is_sorted_by(|a, b| a.index < b.index);
    let last = fragments.last().map_or(0, |last| usize::from(last.index));
    if !rising || last >= policy.total() {
        let message = format!("its fragments are not those of policy {policy} in order");
        return Err(Fault::corrupt(message));
    }
    Ok(())
}

fn decode_1(mut bytes: &[u8]) -> Result<Manifest> {
    let given = bytes.len();
    if given != VERSION_1_BYTES {
        return Err(Fault::corrupt(format!("{given} bytes, not {VERSION_1_BYTES}")));
    }
    bytes.advance(1);
    let placement = bytes.get_u8();
    if placement != PLACEMENT_WHOLE_FILE {
        return Err(Fault::corrupt(format!("placement {placement} is unknown to this release")));
    }
    let (osd, id) = (OsdId(id(&mut bytes)), id(&mut bytes));
    let (len, crc) = (bytes.get_u64_le(), bytes.get_u32_le());
    let policy = Policy::SINGLE;
    let manifest = Manifest {
        id: ObjectId(id),
        len,
        crc,
        created_ms: bytes.get_u64_le(),
        policy,
        codec: Codec::of(policy),
        unit: 1 << 20,
        fragments: vec![Fragment { index: 0, osd, file: FragmentId(id), crc }],
    };
    check(&manifest)?;
    Ok(manifest)
}

/// The length was checked before.
fn id(bytes: &mut &[u8]) -> [u8; 16] {
    let mut id = [0; 16];
    bytes.copy_to_slice(&mut id);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the table of version 1 says.
    pub(crate) fn golden_1() -> Vec<u8> {
        let mut bytes = vec![1, 1];
        bytes.extend([0xaa; 16]);
        bytes.extend([0xbb; 16]);
        bytes.extend([0x00, 0x00, 0x00, 0x04, 0, 0, 0, 0]);
        bytes.extend([0x78, 0x56, 0x34, 0x12]);
        bytes.extend([0x00, 0x10, 0xa5, 0xd4, 0xe8, 0, 0, 0]);
        bytes
    }

    fn golden_2() -> Vec<u8> {
        let mut bytes = vec![2, 2, 4, 2, 5, 3, 1, 2];
        bytes.extend([0, 0, 0x10, 0]);
        bytes.extend([0xbb; 16]);
        bytes.extend([0x00, 0x00, 0x00, 0x04, 0, 0, 0, 0]);
        bytes.extend([0x78, 0x56, 0x34, 0x12]);
        bytes.extend([0x00, 0x10, 0xa5, 0xd4, 0xe8, 0, 0, 0]);
        for (index, fill, crc) in [(0u8, 0x11u8, [1, 0, 0, 0]), (5, 0x22, [0, 0, 0, 2])] {
            bytes.push(index);
            bytes.extend([fill; 16]);
            bytes.extend([fill + 1; 16]);
            bytes.extend(crc);
        }
        bytes
    }

    fn fragment(index: u8, fill: u8, crc: u32) -> Fragment {
        Fragment { index, osd: OsdId([fill; 16]), file: FragmentId([fill + 1; 16]), crc }
    }

    #[test]
    fn version_2_is_as_the_table_says() {
        let manifest = Manifest {
            id: ObjectId([0xbb; 16]),
            len: 64 << 20,
            crc: 0x1234_5678,
            created_ms: 0xe8_d4a5_1000,
            policy: "4,2,5,3".parse().unwrap(),
            codec: Codec::ReedSolomonSimd3,
            unit: 1 << 20,
            fragments: vec![fragment(0, 0x11, 1), fragment(5, 0x22, 0x0200_0000)],
        };
        assert_eq!(manifest.encode(), golden_2());
        assert_eq!(Manifest::decode(&golden_2()).unwrap(), manifest);
    }

    #[test]
    fn version_1_is_an_object_in_one_file() {
        let manifest = Manifest::decode(&golden_1()).unwrap();
        let whole = Fragment {
            index: 0,
            osd: OsdId([0xaa; 16]),
            file: FragmentId([0xbb; 16]),
            crc: 0x1234_5678,
        };
        assert_eq!((manifest.id, manifest.len), (ObjectId([0xbb; 16]), 64 << 20));
        assert_eq!((manifest.crc, manifest.created_ms), (0x1234_5678, 0xe8_d4a5_1000));
        assert_eq!((manifest.policy, manifest.fragments.clone()), (Policy::SINGLE, vec![whole]));
        assert_eq!(manifest.layout().fragment_len(), 64 << 20);
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }

    #[test]
    fn what_no_release_wrote_is_refused() {
        for (at, value) in
            [(0, 0), (0, 3), (1, 0), (1, 1), (1, 3), (2, 0), (4, 7), (6, 0), (7, 1), (8, 1)]
        {
            let mut bytes = golden_2();
            bytes[at] = value;
            assert!(Manifest::decode(&bytes).is_err(), "byte {at} = {value}");
        }
        for (at, value) in [(48, 5), (85, 6), (85, 0)] {
            let mut bytes = golden_2();
            bytes[at] = value;
            assert!(Manifest::decode(&bytes).is_err(), "index {at} = {value}");
        }
        for bytes in [golden_1(), golden_2()] {
            assert!(Manifest::decode(&[&bytes[..], &[0]].concat()).is_err());
            for len in 0..bytes.len() {
                assert!(Manifest::decode(&bytes[..len]).is_err(), "{len} bytes");
            }
        }
        let placed = [&[1, 2], &golden_1()[2..]].concat();
        assert!(Manifest::decode(&placed).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes in proptest::collection::vec(0u8..4, 0..130), count: bool) {
            if count && bytes.len() > 48 {
                bytes.truncate(48 + (bytes.len() - 48) / 37 * 37);
                bytes[7] = ((bytes.len() - 48) / 37) as u8;
                bytes[8] = 64;
            }
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
            }
        }
    }
}
