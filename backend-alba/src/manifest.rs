//! Manifest of an object: what the NSM knows of it. Bytes to struct and back, no I/O.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | placement, 1: the whole object in one file of one OSD, block checksums in that file's trailer |
//! | 2 | 16 | OSD |
//! | 18 | 16 | object id |
//! | 34 | 8 | length, bytes |
//! | 42 | 4 | CRC-32 (IEEE) of the whole object |
//! | 46 | 8 | created, milliseconds since 1970 |
//!
//! Numbers are little-endian. Other placements (replicas, erasure coding) get other placement numbers.

use bytes::{Buf, BufMut};

use crate::fault::{Fault, Result};
use crate::name::{ObjectId, OsdId};

const VERSION: u8 = 1;
const PLACEMENT_WHOLE_FILE: u8 = 1;

/// Length of an encoded manifest, bytes.
pub const MANIFEST_BYTES: usize = 54;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub osd: OsdId,
    pub id: ObjectId,
    pub len: u64,
    /// CRC-32 (IEEE) of the whole object.
    pub crc: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

impl Manifest {
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(VERSION);
        out.put_u8(PLACEMENT_WHOLE_FILE);
        out.put_slice(&self.osd.0);
        out.put_slice(&self.id.0);
        out.put_u64_le(self.len);
        out.put_u32_le(self.crc);
        out.put_u64_le(self.created_ms);
    }

    pub fn decode(mut bytes: &[u8]) -> Result<Self> {
        let given = bytes.len();
        let broken = |why: String| Fault::corrupt(format!("object manifest: {why}"));
        let version = bytes.try_get_u8().map_err(|_| broken("empty".into()))?;
        if version != VERSION {
            return Err(broken(format!("version {version} is unknown to this release")));
        }
        if given != MANIFEST_BYTES {
            return Err(broken(format!("{given} bytes, not {MANIFEST_BYTES}")));
        }
        let placement = bytes.get_u8();
        if placement != PLACEMENT_WHOLE_FILE {
            return Err(broken(format!("placement {placement} is unknown to this release")));
        }
        let mut id = || {
            let mut id = [0; 16];
            bytes.copy_to_slice(&mut id);
            id
        };
        let (osd, id) = (OsdId(id()), ObjectId(id()));
        let (len, crc) = (bytes.get_u64_le(), bytes.get_u32_le());
        Ok(Self { osd, id, len, crc, created_ms: bytes.get_u64_le() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn golden() -> Vec<u8> {
        let mut bytes = vec![1, 1];
        bytes.extend([0xaa; 16]);
        bytes.extend([0xbb; 16]);
        bytes.extend([0x00, 0x00, 0x00, 0x04, 0, 0, 0, 0]);
        bytes.extend([0x78, 0x56, 0x34, 0x12]);
        bytes.extend([0x00, 0x10, 0xa5, 0xd4, 0xe8, 0, 0, 0]);
        bytes
    }

    #[test]
    fn version_1_is_as_the_table_says() {
        let manifest = Manifest {
            osd: OsdId([0xaa; 16]),
            id: ObjectId([0xbb; 16]),
            len: 64 << 20,
            crc: 0x1234_5678,
            created_ms: 0xe8_d4a5_1000,
        };
        let mut bytes = Vec::new();
        manifest.encode(&mut bytes);
        assert_eq!(bytes, golden());
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    }

    #[test]
    fn other_versions_and_lengths_are_refused() {
        for (at, value) in [(0, 0), (0, 2), (1, 0), (1, 2)] {
            let mut bytes = golden();
            bytes[at] = value;
            assert!(Manifest::decode(&bytes).is_err());
        }
        assert!(Manifest::decode(&[golden(), vec![0]].concat()).is_err());
        assert!(Manifest::decode(&golden()[..53]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(0u8..4, 0..80)) {
            if let Ok(manifest) = Manifest::decode(&bytes) {
                let mut again = Vec::new();
                manifest.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
