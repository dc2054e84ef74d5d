//! Newtypes for every address, length, count, identity and sequence, and the only legal conversions between them.
//!
//! `addr + count` compiles, `addr + addr` does not.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

use crate::fault::{Fault, Result};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! address {
    ($addr:ident, $count:ident) => {
        impl Add<$count> for $addr {
            type Output = $addr;
            fn add(self, count: $count) -> $addr {
                $addr(self.0 + count.0)
            }
        }
        impl AddAssign<$count> for $addr {
            fn add_assign(&mut self, count: $count) {
                self.0 += count.0;
            }
        }
        impl Sub<$addr> for $addr {
            type Output = $count;
            fn sub(self, earlier: $addr) -> $count {
                $count(self.0 - earlier.0)
            }
        }
        impl Add for $count {
            type Output = $count;
            fn add(self, more: $count) -> $count {
                $count(self.0 + more.0)
            }
        }
        impl AddAssign for $count {
            fn add_assign(&mut self, more: $count) {
                self.0 += more.0;
            }
        }
        impl Sub for $count {
            type Output = $count;
            fn sub(self, less: $count) -> $count {
                $count(self.0 - less.0)
            }
        }
    };
}

number!(
    /// Byte address in a volume.
    ByteOffset
);
number!(
    /// A number of bytes.
    ByteCount
);
address!(ByteOffset, ByteCount);
number!(
    /// Cluster address in a volume: byte address / cluster size.
    ClusterAddr
);
number!(
    /// A number of clusters.
    ClusterCount
);
address!(ClusterAddr, ClusterCount);
number!(
    /// Order of a change (write, trim, zero) within one volume, from 1; 0 means "before the first change".
    /// One value per atomic operation (at most [`MAX_OP_BYTES`] of data).
    Seq
);
number!(
    /// Ownership epoch of a volume, from 1. Every opening of a volume takes a higher one.
    Epoch
);
number!(
    /// Position of an SCO in its volume's log, from 1. Never reused, not even by another epoch once published.
    ScoSeq
);
number!(
    /// Position of a TLog in its volume's log, from 1.
    TlogNo
);
number!(
    /// Position in the manifest chain, from 1.
    ManifestNo
);
number!(
    /// Identity of a map run on the backend: (the manifest number it was written for).
    RunNo
);
number!(
    /// Page of the map: cluster address / [`PAGE_CLUSTERS`].
    PageNo
);

impl Seq {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl Epoch {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl ScoSeq {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl ManifestNo {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl TlogNo {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Largest sequence, epoch, or number of a manifest or TLog that is taken from outside: there is room to count on from it.
pub const MAX_NUMBER: u64 = (1 << 61) - 1;
/// Smallest unit a guest may address, bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Clusters per map page.
pub const PAGE_CLUSTERS: u64 = 512;
/// Most bytes of a guest's write that are atomic over a crash. Longer requests are cut into operations of this size.
pub const MAX_OP_BYTES: u64 = 256 * 1024;
/// Most clusters of one operation: one more than its bytes fill, because it may begin inside one.
pub const MAX_OP_CLUSTERS: usize = (MAX_OP_BYTES / ClusterSize::MIN as u64) as usize + 1;
/// Largest volume, bytes: 1 PiB (the map's arithmetic allows more; this is what is tested).
pub const MAX_VOLUME_BYTES: u64 = 1 << 50;

/// Bytes per cluster: a power of two from 4 KiB to 64 KiB, fixed when the volume is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterSize(u32);

impl ClusterSize {
    pub const MIN: u32 = 4 * 1024;
    pub const MAX: u32 = 64 * 1024;
    pub const DEFAULT: Self = Self(Self::MIN);

    pub fn new(bytes: u64) -> Result<Self> {
        match u32::try_from(bytes) {
            Ok(b) if b.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&b) => Ok(Self(b)),
            _ => Err(Fault::invalid(format!(
                "cluster size {bytes} is not a power of two from {} to {} bytes",
                Self::MIN,
                Self::MAX
            ))),
        }
    }
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }
    /// The bytes as formats store them.
    #[must_use]
    pub fn to_u32(self) -> u32 {
        self.0
    }
    /// The cluster that holds this byte.
    #[must_use]
    pub fn cluster_of(self, offset: ByteOffset) -> ClusterAddr {
        ClusterAddr(offset.0 >> self.0.trailing_zeros())
    }
    /// First byte of a cluster.
    #[must_use]
    pub fn start_of(self, addr: ClusterAddr) -> ByteOffset {
        ByteOffset(addr.0 << self.0.trailing_zeros())
    }
    #[must_use]
    pub fn bytes_of(self, count: ClusterCount) -> ByteCount {
        ByteCount(count.0 << self.0.trailing_zeros())
    }
    /// Whole clusters that cover this many bytes.
    #[must_use]
    pub fn clusters_covering(self, bytes: ByteCount) -> ClusterCount {
        ClusterCount(bytes.0.div_ceil(self.bytes()))
    }
    #[must_use]
    pub fn is_aligned(self, offset: ByteOffset, len: ByteCount) -> bool {
        (offset.0 | len.0) & (self.bytes() - 1) == 0
    }
}

/// Identity of a volume, never reused (random, 128 bits). Its backend namespace is `vd-<hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeId({self})")
    }
}
impl std::str::FromStr for VolumeId {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Fault::invalid(format!("volume id {text:?} is not 32 hexadecimal digits"));
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut id = [0; 16];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Self(id))
    }
}

/// Identity of a node's local state (its data directory), made anew when that state is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub [u8; 16]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        VolumeId(self.0).fmt(f)
    }
}

/// Name of an SCO: the epoch that opened it and its position in the log. The pair is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScoId {
    pub epoch: Epoch,
    pub seq: ScoSeq,
}

impl fmt::Display for ScoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:012x}", self.epoch.0, self.seq.0)
    }
}

/// Where a cluster lives: its SCO's position in the log and its index in it. The same before and after upload.
///
/// As a map word (see [`Location::to_word`]): SCO position in bits 16..63, index in bits 0..16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    pub sco: ScoSeq,
    pub index: u32,
}

impl Location {
    /// Largest SCO position a location can hold: 2^47 - 1.
    pub const MAX_SCO: u64 = (1 << 47) - 1;
    /// Most clusters in one SCO: 128 MiB of 4 KiB clusters take 2^15 of these 2^16.
    pub const MAX_CLUSTERS: u32 = 1 << 16;

    #[must_use]
    pub fn to_word(self) -> u64 {
        assert!(self.sco.0 >= 1 && self.sco.0 <= Self::MAX_SCO && self.index < Self::MAX_CLUSTERS);
        self.sco.0 << 16 | u64::from(self.index)
    }
    /// `None` for words that are no location (see [`Mapping`]).
    #[must_use]
    pub fn from_word(word: u64) -> Option<Self> {
        let sco = ScoSeq(word >> 16);
        (sco.0 >= 1 && sco.0 <= Self::MAX_SCO)
            .then_some(Self { sco, index: (word & 0xffff) as u32 })
    }
}

/// What the map says of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Never written or trimmed: reads as zeroes, takes no space.
    Hole,
    /// Zeroed with the wish to stay allocated (WRITE_ZEROES with NO_HOLE): reads as zeroes.
    Zero,
    At(Location),
}

impl Mapping {
    const HOLE_WORD: u64 = 0;
    const ZERO_WORD: u64 = 1;

    /// The map's 64-bit word: 0 hole, 1 zero, else a location.
    #[must_use]
    pub fn to_word(self) -> u64 {
        match self {
            Self::Hole => Self::HOLE_WORD,
            Self::Zero => Self::ZERO_WORD,
            Self::At(location) => location.to_word(),
        }
    }
    /// `None` for a word no version ever wrote.
    #[must_use]
    pub fn from_word(word: u64) -> Option<Self> {
        match word {
            Self::HOLE_WORD => Some(Self::Hole),
            Self::ZERO_WORD => Some(Self::Zero),
            word => Location::from_word(word).map(Self::At),
        }
    }
    /// The mapping of the `n`th cluster after this one in a run of consecutive clusters.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        match self {
            Self::At(Location { sco, index }) => {
                Self::At(Location { sco, index: index + n as u32 })
            }
            other => other,
        }
    }
}

/// CRC-32 (IEEE 802.3) of a whole cluster. Not CRC-32C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ClusterCrc(pub u32);

impl ClusterCrc {
    #[must_use]
    pub fn of(cluster: &[u8]) -> Self {
        Self(crc32fast::hash(cluster))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster_size() -> impl Strategy<Value = ClusterSize> {
        (12_u32..=16).prop_map(|shift| ClusterSize::new(1 << shift).unwrap())
    }

    fn location() -> impl Strategy<Value = Location> {
        (1..=Location::MAX_SCO, 0..Location::MAX_CLUSTERS)
            .prop_map(|(sco, index)| Location { sco: ScoSeq(sco), index })
    }

    #[test]
    fn cluster_sizes_are_the_five_powers_of_two() {
        let legal = [4096, 8192, 16_384, 32_768, 65_536];
        for bytes in (0..=1 << 17).chain([1 << 32, (1 << 32) + 4096, u64::MAX]) {
            let size = ClusterSize::new(bytes).map(ClusterSize::bytes);
            match legal.contains(&bytes) {
                true => assert_eq!(size.unwrap(), bytes),
                false => assert_eq!(size.unwrap_err().kind, crate::fault::Kind::Invalid),
            }
        }
    }

    #[test]
    fn words_are_laid_out_as_documented() {
        let at = |sco, index| Mapping::At(Location { sco: ScoSeq(sco), index });
        let words = [
            (Mapping::Hole, 0),
            (Mapping::Zero, 1),
            (at(1, 0), 0x1_0000),
            (at(0x1234, 0xabcd), 0x1234_abcd),
            (at((1 << 47) - 1, 0xffff), 0x7fff_ffff_ffff_ffff),
        ];
        for (mapping, word) in words {
            assert_eq!(mapping.to_word(), word);
            assert_eq!(Mapping::from_word(word), Some(mapping));
        }
        for word in [2, 0xffff, 1 << 63, u64::MAX] {
            assert_eq!(Mapping::from_word(word), None, "{word:#x}");
        }
    }

    #[test]
    #[should_panic]
    fn a_location_without_an_sco_has_no_word() {
        let _ = Location { sco: ScoSeq(0), index: 5 }.to_word();
    }

    #[test]
    #[should_panic]
    fn a_location_beyond_the_largest_sco_has_no_word() {
        let _ = Location { sco: ScoSeq(1), index: Location::MAX_CLUSTERS }.to_word();
    }

    #[test]
    fn ids_are_spelled_in_hexadecimal() {
        let id = ScoId { epoch: Epoch(31), seq: ScoSeq(2748) };
        assert_eq!(id.to_string(), "0000001f-000000000abc");
        let volume: VolumeId = "000102030405060708090a0b0c0d0eff".parse().unwrap();
        assert_eq!(volume.0[..3], [0, 1, 2]);
        assert_eq!(volume.0[15], 255);
        for text in ["", "00", "+0102030405060708090a0b0c0d0e0f0", "é102030405060708090a0b0c0d0e0f"]
        {
            assert!(text.parse::<VolumeId>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_byte_lies_in_its_cluster(size in cluster_size(), offset in 0..MAX_VOLUME_BYTES) {
            let offset = ByteOffset(offset);
            let addr = size.cluster_of(offset);
            let start = size.start_of(addr);
            prop_assert!(start <= offset && offset < start + ByteCount(size.bytes()));
            prop_assert_eq!(size.cluster_of(start), addr);
            prop_assert_eq!(addr.0, offset.0 / size.bytes());
        }

        #[test]
        fn covering_is_the_least_that_covers(size in cluster_size(), bytes in 0..MAX_VOLUME_BYTES) {
            let count = size.clusters_covering(ByteCount(bytes));
            prop_assert!(size.bytes_of(count).0 >= bytes);
            prop_assert!(count.0 == 0 || size.bytes_of(count - ClusterCount(1)).0 < bytes);
            prop_assert_eq!(count.0 == 0, bytes == 0);
        }

        #[test]
        fn aligned_means_both_ends(size in cluster_size(), offset in 0..1_u64 << 40, len in 0..1_u64 << 40) {
            let by_division = offset % size.bytes() == 0 && len % size.bytes() == 0;
            prop_assert_eq!(size.is_aligned(ByteOffset(offset), ByteCount(len)), by_division);
            let (offset, len) = (offset << 16, len << 16);
            prop_assert!(size.is_aligned(ByteOffset(offset), ByteCount(len)));
            prop_assert!(!size.is_aligned(ByteOffset(offset + 512), ByteCount(len)));
        }

        #[test]
        fn a_location_comes_back_from_its_word(location in location()) {
            prop_assert_eq!(Location::from_word(location.to_word()), Some(location));
        }

        #[test]
        fn a_word_means_one_thing(word in any::<u64>()) {
            if let Some(mapping) = Mapping::from_word(word) {
                prop_assert_eq!(mapping.to_word(), word);
            }
        }

        #[test]
        fn locations_sort_as_their_words(a in location(), b in location()) {
            prop_assert_eq!(a.cmp(&b), a.to_word().cmp(&b.to_word()));
        }

        #[test]
        fn the_nth_of_a_run_counts_up(location in location(), n in 0..1000_u64) {
            let room = u64::from(Location::MAX_CLUSTERS - 1 - location.index);
            let n = n.min(room);
            let nth = Mapping::At(location).nth(n);
            prop_assert_eq!(nth.to_word(), location.to_word() + n);
            prop_assert_eq!(Mapping::Hole.nth(n), Mapping::Hole);
            prop_assert_eq!(Mapping::Zero.nth(n), Mapping::Zero);
        }

        #[test]
        fn an_id_is_read_as_spelled(id: [u8; 16]) {
            prop_assert_eq!(VolumeId(id).to_string().parse::<VolumeId>().unwrap(), VolumeId(id));
        }
    }
}
