//! SCO in frames: its clusters compressed, encrypted or both, and still read a few at a time.
//!
//! The object is the frames one after the other, the footer, and the trailer ([`ScoTrailer`], version 2). A frame is a run of
//! clusters packed by itself. What clusters an SCO holds and at which index is as in a plain one. Nothing here compresses or
//! encrypts: this file says which bytes lie where, and what the cipher is told.
//!
//! Decisions:
//!
//! 1. *Frames of 32 KiB.* Of a server's log, frames of 4, 16, 32 and 64 KiB leave 53, 48, 47 and 46 % with lz4, and 32, 28, 27 and
//!    27 % with zstd. A 4 KiB read fetches and unpacks one frame: of 32 KiB 18 µs with lz4, 50 µs with zstd, 9 µs more when
//!    encrypted (`benches/codec`, a busy core), little beside the way to the backend. A cluster of 64 KiB is a frame of its own.
//!    The size is in the footer, so another one needs no new version.
//! 2. *Plain SCOs stay as they are*, byte for byte: without compression and encryption version 1 is written, and read directly
//!    from local files where the store has such.
//! 3. *The table of frames is part of the footer*, which a reader needs for the checksums anyway: no further round trip.
//! 4. *A frame that does not shrink is stored as it is*; each frame says how it is packed.
//! 5. *Checksums are of the plain clusters*, end to end; they lie in the footer, which is encrypted like a frame: a CRC-32 of a
//!    guessable cluster would give it away.
//! 6. *A key is used for one object*: HKDF-SHA256 of the master key with the object's name and 128 random bits that are drawn
//!    whenever an SCO is built. The nonce is the number of the frame, the footer's is `2^32 - 1`: within one building no number
//!    comes twice, and two buildings of one SCO (a crash before its outcome was known) have two keys, whatever their bytes.
//! 7. *The name is bound*: volume, epoch, position, sizes, frame number and packing are authenticated with every frame, so that
//!    none can be taken for another. Which clusters a volume shows is decided by its map, which is not authenticated.
//! 8. *The key is named* by an id derived from it. A new key is used for SCOs built from then on; older ones are read with theirs.
//!
//! Not hidden: the object's length (so, how well it compressed), the volume's id, the SCO's name, the number and size of its
//! clusters, the kind of compression, the id of the key. Addresses and checksums are hidden here; addresses are in TLogs and map
//! runs, which are not encrypted.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use bytes::{BufMut, Bytes};

use super::change::{self, CHANGE_BYTES, Checksums};
use super::frame::{Frame, Reader, count32, stored_crc};
use super::sco::{ScoFooter, ScoForm, ScoTrailer};
use super::{Change, ChangeKind};
use crate::fault::{Fault, Result};
use crate::units::{ClusterSize, Location, ScoId, VolumeId};

const FOOTER: Frame = Frame { name: "SCO footer", magic: *b"VDSF", version: 2 };
const KEY_FRAME: Frame = Frame { name: "key marker", magic: *b"VDKY", version: 1 };

/// Bytes of plain clusters that a frame of a new SCO holds (at least one cluster).
pub const FRAME_BYTES: u32 = 32 << 10;
/// Most that a frame may hold: bounds what is allocated to unpack one.
pub const MAX_FRAME_BYTES: u32 = 1 << 20;
/// Authentication tag behind every encrypted frame, and behind an encrypted table.
pub const TAG_BYTES: u32 = 16;
/// Bytes of one frame in the table.
const ENTRY_BYTES: usize = 4;
/// Number of the frame that stands for the footer's table, as nonce and in what is authenticated.
pub const TABLE_FRAME: u32 = u32::MAX;

/// Names a master key: derived from it, tells nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}
impl FromStr for KeyId {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let id = u64::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes()));
        id.ok().filter(|id| id.to_string() == text).ok_or_else(|| {
            Fault::invalid(format!("key id {text:?} is not 16 lower-case hexadecimal digits"))
        })
    }
}

/// How bytes are packed, before they are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Stored,
    Lz4,
    Zstd,
}

impl Packing {
    fn code(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }
    fn from_code(code: u8) -> Option<Self> {
        [Self::Stored, Self::Lz4, Self::Zstd].into_iter().find(|packing| packing.code() == code)
    }
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// What an object is encrypted with (AES-256-GCM).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    pub key: KeyId,
    /// Drawn when the SCO is built.
    pub salt: [u8; 16],
}

/// What of an SCO in frames can be read without a key.
///
/// Body of the footer's frame, magic `VDSF`, version 2 (name and sizes are in the trailer):
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 1 | packing that was asked for: 0 none, 1 lz4, 2 zstd |
/// | 1 | 1 | cipher: 0 none, 1 AES-256-GCM |
/// | 2 | 2 | zero |
/// | 4 | 4 | frame_clusters |
/// | 8 | 8 | key id; zero without cipher |
/// | 16 | 16 | salt; zero without cipher |
/// | 32 | ... | the table (at [`FramedSco`]), encrypted if there is a cipher |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramedHead {
    pub volume: VolumeId,
    pub id: ScoId,
    pub cluster_size: ClusterSize,
    pub cluster_count: u32,
    pub packing: Packing,
    /// Clusters in a frame; the last may have fewer.
    pub frame_clusters: u32,
    pub seal: Option<Seal>,
}

/// One frame of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredFrame {
    pub packing: Packing,
    /// In the object, tag included.
    pub stored_bytes: u32,
}

/// The end of a framed SCO, whose table may still be encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramedEnd<'a> {
    pub head: FramedHead,
    pub table: &'a [u8],
}

/// An SCO in frames whose table is known.
///
/// The table:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 n | frames: stored bytes (24 bits), packing (8 bits); n follows from the number of clusters |
/// | 4 n | 4 | number of changes |
/// | 4 n + 4 | ... | the changes (table at [`Change`]), with checksums |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FramedSco {
    pub head: FramedHead,
    pub frames: FrameTable,
    /// As of a plain SCO.
    pub footer: ScoFooter,
}

/// Where the frames lie in the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameTable {
    /// Where each ends, and how it is packed.
    frames: Vec<(u64, Packing)>,
}

impl FramedHead {
    /// The head of a new SCO with these contents, in frames of up to `frame_bytes` ([`FRAME_BYTES`]) or one cluster.
    #[must_use]
    pub fn new(footer: &ScoFooter, packing: Packing, frame_bytes: u32, seal: Option<Seal>) -> Self {
        let most = frame_bytes.min(MAX_FRAME_BYTES);
        let frame_clusters = (most / footer.cluster_size.to_u32()).max(1);
        let ScoFooter { volume, id, cluster_size, cluster_count, .. } = *footer;
        Self { volume, id, cluster_size, cluster_count, packing, frame_clusters, seal }
    }

    #[must_use]
    pub fn frame_count(&self) -> u32 {
        self.cluster_count.div_ceil(self.frame_clusters)
    }

    /// Clusters of a frame: first index, and number (0 beyond the last frame).
    #[must_use]
    pub fn clusters_of(&self, frame: u32) -> (u32, u32) {
        let first = frame.saturating_mul(self.frame_clusters);
        (first, self.cluster_count.saturating_sub(first).min(self.frame_clusters))
    }

    /// Bytes of the plain clusters of a frame.
    #[must_use]
    pub fn plain_bytes(&self, frame: u32) -> u32 {
        self.clusters_of(frame).1.saturating_mul(self.cluster_size.to_u32())
    }

    /// The frames that hold `count` clusters from `first` on.
    #[must_use]
    pub fn frames_of(&self, first: u32, count: u32) -> Range<u32> {
        first / self.frame_clusters..first.saturating_add(count).div_ceil(self.frame_clusters)
    }

    /// What is added to a frame by encryption.
    #[must_use]
    pub fn tag_bytes(&self) -> u32 {
        if self.seal.is_some() { TAG_BYTES } else { 0 }
    }

    /// What the object's key is derived with, as the `info` of HKDF.
    ///
    /// | offset | bytes | field |
    /// |---|---|---|
    /// | 0 | 16 | `volumedriver sco` |
    /// | 16 | 16 | volume |
    /// | 32 | 8 | epoch of the SCO's name |
    /// | 40 | 8 | position of the SCO's name |
    /// | 48 | 16 | salt |
    #[must_use]
    pub fn key_info(&self, seal: &Seal) -> [u8; 64] {
        let mut info = [0; 64];
        let mut out = &mut info[..];
        out.put_slice(b"volumedriver sco");
        out.put_slice(&self.volume.0);
        out.put_u64_le(self.id.epoch.0);
        out.put_u64_le(self.id.seq.0);
        out.put_slice(&seal.salt);
        info
    }

    /// What is authenticated with a frame beside its bytes.
    ///
    /// | offset | bytes | field |
    /// |---|---|---|
    /// | 0 | 4 | `VDSA` |
    /// | 4 | 4 | version of the footer: 2 |
    /// | 8 | 16 | volume |
    /// | 24 | 8 | epoch of the SCO's name |
    /// | 32 | 8 | position of the SCO's name |
    /// | 40 | 4 | cluster_size |
    /// | 44 | 4 | cluster_count |
    /// | 48 | 4 | frame_clusters |
    /// | 52 | 4 | number of the frame; `2^32 - 1`: the table |
    /// | 56 | 4 | bytes of the frame's plain clusters; of the table: 0 |
    /// | 60 | 1 | packing of the frame; of the table: the one that was asked for |
    /// | 61 | 3 | zero |
    #[must_use]
    pub fn bound(&self, frame: u32, packing: Packing) -> [u8; 64] {
        let mut bound = [0; 64];
        let mut out = &mut bound[..];
        out.put_slice(b"VDSA");
        out.put_u32_le(FOOTER.version);
        out.put_slice(&self.volume.0);
        out.put_u64_le(self.id.epoch.0);
        out.put_u64_le(self.id.seq.0);
        out.put_u32_le(self.cluster_size.to_u32());
        out.put_u32_le(self.cluster_count);
        out.put_u32_le(self.frame_clusters);
        out.put_u32_le(frame);
        out.put_u32_le(if frame == TABLE_FRAME { 0 } else { self.plain_bytes(frame) });
        out.put_u8(packing.code());
        bound
    }

    /// Footer and trailer around a table, which is encrypted already if it has to be.
    #[must_use]
    pub fn encode_end(&self, table: &[u8]) -> Bytes {
        let mut body = Vec::with_capacity(32 + table.len());
        body.put_u8(self.packing.code());
        body.put_u8(u8::from(self.seal.is_some()));
        body.put_u16_le(0);
        body.put_u32_le(self.frame_clusters);
        let Seal { key, salt } = self.seal.unwrap_or(Seal { key: KeyId([0; 8]), salt: [0; 16] });
        body.put_slice(&key.0);
        body.put_slice(&salt);
        body.put_slice(table);
        let mut out = Vec::new();
        FOOTER.wrap(&body, &mut out);
        let trailer = ScoTrailer {
            form: ScoForm::Framed,
            volume: self.volume,
            id: self.id,
            cluster_size: self.cluster_size,
            cluster_count: self.cluster_count,
            footer_bytes: count32(out.len()),
            footer_crc: stored_crc(&out).unwrap_or_default(),
        };
        out.put_slice(&trailer.encode());
        out.into()
    }

    /// Decodes the table of this SCO, which is plain.
    pub fn decode_table(&self, table: &[u8]) -> Result<FramedSco> {
        let mut reader = FOOTER.part(table);
        let mut end = 0;
        let mut frame = 0;
        let frames = reader.items(self.frame_count(), ENTRY_BYTES, |reader| {
            let stored = StoredFrame::decode(reader)?;
            stored.check(self, frame).map_err(|what| reader.corrupt(what))?;
            frame += 1;
            end += u64::from(stored.stored_bytes);
            Ok((end, stored.packing))
        })?;
        let changes = reader.counted(CHANGE_BYTES, |r| Change::decode(r, Checksums::Carried))?;
        reader.end()?;
        let Self { volume, id, cluster_size, cluster_count, .. } = *self;
        let footer = ScoFooter { volume, id, cluster_size, cluster_count, changes };
        footer.check().map_err(|fault| fault.about(format!("SCO {id}")))?;
        Ok(FramedSco { head: *self, frames: FrameTable { frames }, footer })
    }
}

/// The table of an SCO with these frames and changes, plain.
#[must_use]
pub fn encode_table(frames: &[StoredFrame], changes: &[Change]) -> Vec<u8> {
    let change_bytes = |change: &Change| match &change.kind {
        ChangeKind::Data { crcs, .. } => CHANGE_BYTES + change::CLUSTER_CRC_BYTES * crcs.len(),
        ChangeKind::Hole | ChangeKind::Zero => CHANGE_BYTES,
    };
    let bytes: usize = changes.iter().map(change_bytes).sum();
    let mut table = Vec::with_capacity(ENTRY_BYTES * frames.len() + 4 + bytes);
    for frame in frames {
        let [low, middle, high, _] = frame.stored_bytes.to_le_bytes();
        table.put_slice(&[low, middle, high, frame.packing.code()]);
    }
    table.put_u32_le(count32(changes.len()));
    changes.iter().for_each(|change| change.encode(Checksums::Carried, &mut table));
    table
}

impl StoredFrame {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let [low, middle, high, code] = reader.array()?;
        let packing = Packing::from_code(code)
            .ok_or_else(|| reader.corrupt(format!("a frame is packed in unknown way {code}")))?;
        Ok(Self { packing, stored_bytes: u32::from_le_bytes([low, middle, high, 0]) })
    }

    /// A frame is as long as its clusters if it is stored, else shorter.
    fn check(&self, head: &FramedHead, frame: u32) -> Result<(), String> {
        let (most, tag) = (head.plain_bytes(frame), head.tag_bytes());
        let packed = self.stored_bytes.checked_sub(tag);
        let fits = match self.packing {
            Packing::Stored => packed == Some(most),
            Packing::Lz4 | Packing::Zstd => packed.is_some_and(|bytes| (1..most).contains(&bytes)),
        };
        let bytes = self.stored_bytes;
        fits.then_some(()).ok_or_else(|| {
            format!(
                "frame {frame} of {most} bytes takes {bytes} bytes packed with {}",
                self.packing.name()
            )
        })
    }
}

impl<'a> FramedEnd<'a> {
    /// Decodes the end of an SCO in frames: exactly its footer and its trailer.
    pub fn decode(footer_and_trailer: &'a [u8]) -> Result<Self> {
        let trailer = ScoTrailer::decode(footer_and_trailer)?;
        if trailer.form != ScoForm::Framed {
            return Err(Fault::invalid(format!("SCO {} is not in frames", trailer.id)));
        }
        let footer = trailer.footer_in(footer_and_trailer)?;
        let mut reader = FOOTER.body(footer)?;
        let code = reader.u8()?;
        let packing = Packing::from_code(code)
            .ok_or_else(|| reader.corrupt(format!("packing {code} is unknown")))?;
        let cipher = reader.u8()?;
        let zero: [u8; 2] = reader.array()?;
        let frame_clusters = reader.u32()?;
        let seal = Seal { key: KeyId(reader.array()?), salt: reader.array()? };
        let unused = Seal { key: KeyId([0; 8]), salt: [0; 16] };
        let seal = match cipher {
            0 if seal == unused => None,
            1 => Some(seal),
            _ => return Err(reader.corrupt(format!("cipher {cipher} is unknown, or has no key"))),
        };
        let frame_bytes = frame_clusters.checked_mul(trailer.cluster_size.to_u32());
        if zero != [0; 2] || !frame_bytes.is_some_and(|b| (1..=MAX_FRAME_BYTES).contains(&b)) {
            return Err(reader.corrupt(format!("no frame has {frame_clusters} clusters")));
        }
        if trailer.cluster_count > Location::MAX_CLUSTERS {
            return Err(reader.corrupt(format!("no SCO has {} clusters", trailer.cluster_count)));
        }
        let ScoTrailer { volume, id, cluster_size, cluster_count, .. } = trailer;
        let head =
            FramedHead { volume, id, cluster_size, cluster_count, packing, frame_clusters, seal };
        Ok(Self { head, table: reader.rest() })
    }
}

impl FrameTable {
    /// Bytes of all frames: where the footer begins.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.frames.last().map_or(0, |(end, _)| *end)
    }
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
    /// Where a frame lies in the object, and how it is packed; `None` beyond the last.
    #[must_use]
    pub fn get(&self, frame: u32) -> Option<(Range<u64>, Packing)> {
        let at = usize::try_from(frame).ok()?;
        let (end, packing) = *self.frames.get(at)?;
        let start = at.checked_sub(1).and_then(|before| self.frames.get(before));
        Some((start.map_or(0, |(end, _)| *end)..end, packing))
    }
    /// Where these frames lie; `None` when there are none, or not all of them.
    #[must_use]
    pub fn range(&self, frames: &Range<u32>) -> Option<Range<u64>> {
        let (first, _) = self.get(frames.start)?;
        let (last, _) = self.get(frames.end.checked_sub(1)?)?;
        (first.start < last.end).then_some(first.start..last.end)
    }
    /// Frames packed each way: stored, lz4, zstd.
    #[must_use]
    pub fn count(&self, packing: Packing) -> usize {
        self.frames.iter().filter(|(_, how)| *how == packing).count()
    }
}

/// Says that SCOs of a volume are encrypted with a key, so that opening the volume without it is refused. Put before the first
/// such SCO; its bytes follow from its name.
///
/// Body of its frame, magic `VDKY`, version 1:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 16 | volume |
/// | 16 | 8 | key id |
#[must_use]
pub fn encode_key_marker(volume: VolumeId, key: KeyId) -> Bytes {
    let mut out = Vec::new();
    KEY_FRAME.wrap(&[&volume.0[..], &key.0].concat(), &mut out);
    out.into()
}

/// The volume and key that a marker is of.
pub fn decode_key_marker(bytes: &[u8]) -> Result<(VolumeId, KeyId)> {
    let mut reader = KEY_FRAME.body(bytes)?;
    let marker = (VolumeId(reader.array()?), KeyId(reader.array()?));
    reader.end()?;
    Ok(marker)
}
