//! Manifest: a chain of small immutable objects, put if absent by number; the shape of a volume.
//!
//! A manifest is a list of [`ShapeChange`]s on top of the manifest before it, or (a checkpoint) the whole [`Shape`].
//! Number n+1 is the linearization point of a change and the fence between owners. The opening manifest of each epoch is
//! never deleted: a stale owner's next number is at most the opening number of its successor, so its put always collides.

use bytes::{BufMut, Bytes};

use super::frame::{Frame, Reader, count32, ours};
use crate::fault::{Fault, Result};
use crate::units::{
    ByteCount, ClusterSize, Epoch, Location, MAX_NUMBER, MAX_VOLUME_BYTES, ManifestNo, NodeId,
    RunNo, SECTOR_BYTES, ScoSeq, Seq, TlogNo, VolumeId,
};

const FRAME: Frame = Frame { name: "manifest", magic: *b"VDMF", version: 1 };
/// Longest volume name, bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// Largest SCO, bytes of data.
pub const MAX_SCO_BYTES: u64 = 128 * 1024 * 1024;

const CHECKPOINT: u8 = 1;
const DELTA: u8 = 2;
const OPENED: u8 = 1;
const RESIZED: u8 = 2;
const SCO_SIZE_SET: u8 = 3;
const PUBLISHED: u8 = 4;
const COMPACTED: u8 = 5;
const ORIGIN_BYTES: usize = 32;
const OPENING_BYTES: usize = 32;
const TLOG_BYTES: usize = 40;
const RUN_BYTES: usize = 48;
const RUN_NO_BYTES: usize = 8;
/// The shortest change: a kind and one number.
const CHANGE_BYTES: usize = 9;

/// One manifest object.
///
/// Body of its frame, magic `VDMF`, version 1:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 16 | volume |
/// | 16 | 8 | no |
/// | 24 | 8 | epoch |
/// | 32 | 16 | node |
/// | 48 | 1 | 1 checkpoint, 2 delta |
/// | 49 | ... | checkpoint: the shape (table at [`Shape`]) |
/// | 49 | 4 | delta: number of changes |
/// | 53 | ... | delta: the changes (table at [`ShapeChange`]) |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub volume: VolumeId,
    pub no: ManifestNo,
    pub epoch: Epoch,
    /// The node whose local state the owner works on.
    pub node: NodeId,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The whole shape as of this manifest.
    Checkpoint(Shape),
    /// Changes to the shape of manifest `no - 1`.
    Delta(Vec<ShapeChange>),
}

/// The shape of a volume as of one manifest: everything a new owner needs to open it.
///
/// | bytes | field |
/// |---|---|
/// | 1 | length of the name |
/// | 1..=255 | name, UTF-8 |
/// | 8 | size |
/// | 4 | cluster_size |
/// | 8 | sco_size |
/// | 8 | last_seq |
/// | 8 | last_sco |
/// | 8 | last_tlog |
/// | 4 + 32 n | number of origins, the origins (table at [`Origin`]) |
/// | 4 + 48 n | number of runs, the runs (table at [`RunRef`]) |
/// | 4 + 40 n | number of TLogs, the TLogs (table at [`TlogRef`]) |
/// | 4 + 32 n | number of openings, the openings (table at [`Opening`]) |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub name: String,
    pub size: ByteCount,
    pub cluster_size: ClusterSize,
    pub sco_size: ByteCount,
    /// Last change published (in an SCO whose TLog is listed here).
    pub last_seq: Seq,
    /// Last SCO published.
    pub last_sco: ScoSeq,
    pub last_tlog: TlogNo,
    /// Which volume and epoch wrote the SCOs from a position on, ascending. An SCO position belongs to the last entry at or
    /// below it.
    pub origins: Vec<Origin>,
    /// Map runs, oldest first; together with `tlogs` they give the whole map.
    pub runs: Vec<RunRef>,
    /// TLogs after the newest run, in order.
    pub tlogs: Vec<TlogRef>,
    /// Opening manifest of each epoch: (epoch, number, node), ascending.
    pub openings: Vec<Opening>,
}

/// Who wrote the SCOs from a position on.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | first_sco |
/// | 8 | 16 | volume |
/// | 24 | 8 | epoch |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub first_sco: ScoSeq,
    pub volume: VolumeId,
    pub epoch: Epoch,
}

/// The manifest with which an epoch began.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | epoch |
/// | 8 | 8 | no |
/// | 16 | 16 | node |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    pub epoch: Epoch,
    pub no: ManifestNo,
    pub node: NodeId,
}

/// A published TLog.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | no |
/// | 8 | 8 | epoch |
/// | 16 | 8 | first_sco |
/// | 24 | 8 | last_sco |
/// | 32 | 8 | object_bytes |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlogRef {
    pub no: TlogNo,
    pub epoch: Epoch,
    pub first_sco: ScoSeq,
    pub last_sco: ScoSeq,
    pub object_bytes: u64,
}

/// A map run.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | no |
/// | 8 | 8 | epoch |
/// | 16 | 8 | first_tlog |
/// | 24 | 8 | last_tlog |
/// | 32 | 8 | object_bytes |
/// | 40 | 8 | entry_count |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRef {
    pub no: RunNo,
    pub epoch: Epoch,
    /// The run holds what TLogs `first_tlog..=last_tlog` (and the runs it replaced) made of the map.
    pub first_tlog: TlogNo,
    pub last_tlog: TlogNo,
    pub object_bytes: u64,
    pub entry_count: u64,
}

/// One change of a [`Shape`].
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 1 | kind: 1 opened, 2 resized, 3 SCO size set, 4 published, 5 compacted |
/// | 1 | 32 | opened: the opening |
/// | 1 | 8 | resized, SCO size set: bytes |
/// | 1 | 40 | published: tlog |
/// | 41 | 8 | published: last_seq |
/// | 49 | 4 + 32 n | published: number of origins, the origins |
/// | 1 | 48 | compacted: run |
/// | 49 | 4 + 8 n | compacted: number of runs replaced, their numbers |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShapeChange {
    Opened(Opening),
    Resized(ByteCount),
    ScoSizeSet(ByteCount),
    /// SCOs up to `last_sco` and changes up to `last_seq` are published; `origin` when their writer differs from the last one.
    Published {
        tlog: TlogRef,
        last_seq: Seq,
        origins: Vec<Origin>,
    },
    /// `run` holds the map up to its `last_tlog`; TLogs up to there and the runs listed are no longer needed.
    Compacted {
        run: RunRef,
        replaced: Vec<RunNo>,
    },
}

/// The rule for names of volumes: 1 to 255 bytes of UTF-8 without control characters and `/`.
pub fn check_volume_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Fault::invalid(format!(
            "a volume name has 1 to {MAX_NAME_BYTES} bytes, this has {}",
            name.len()
        )));
    }
    if name.chars().any(|c| c.is_control() || c == '/') {
        return Err(Fault::invalid(format!(
            "volume name {name:?} has a control character or a '/'"
        )));
    }
    Ok(())
}

pub(super) fn check_size(size: ByteCount) -> Result<()> {
    if size.0 == 0 || !size.0.is_multiple_of(SECTOR_BYTES) || size.0 > MAX_VOLUME_BYTES {
        return Err(Fault::invalid(format!(
            "volume size {size} is not a multiple of {SECTOR_BYTES} from {SECTOR_BYTES} to {MAX_VOLUME_BYTES} bytes"
        )));
    }
    Ok(())
}

pub(super) fn check_sco_size(sco_size: ByteCount, cluster_size: ClusterSize) -> Result<()> {
    let most = MAX_SCO_BYTES.min(cluster_size.bytes() * u64::from(Location::MAX_CLUSTERS));
    let least = cluster_size.bytes();
    if !sco_size.0.is_multiple_of(least) || !(least..=most).contains(&sco_size.0) {
        return Err(Fault::invalid(format!(
            "SCO size {sco_size} is not a multiple of the cluster size from {least} to {most} bytes"
        )));
    }
    Ok(())
}

impl Manifest {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut body = Vec::new();
        body.put_slice(&self.volume.0);
        body.put_u64_le(self.no.0);
        body.put_u64_le(self.epoch.0);
        body.put_slice(&self.node.0);
        match &self.body {
            Body::Checkpoint(shape) => {
                body.put_u8(CHECKPOINT);
                shape.encode(&mut body);
            }
            Body::Delta(changes) => {
                body.put_u8(DELTA);
                put_list(changes, &mut body, ShapeChange::encode);
            }
        }
        let mut out = Vec::new();
        FRAME.wrap(&body, &mut out);
        out.into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = FRAME.body(bytes)?;
        let volume = VolumeId(reader.array()?);
        let (no, epoch) = (ManifestNo(reader.u64()?), Epoch(reader.u64()?));
        let node = NodeId(reader.array()?);
        let body = match reader.u8()? {
            CHECKPOINT => Body::Checkpoint(Shape::decode(&mut reader)?),
            DELTA => Body::Delta(reader.counted(CHANGE_BYTES, ShapeChange::decode)?),
            other => return Err(reader.corrupt(format!("its body is of unknown kind {other}"))),
        };
        reader.end()?;
        let manifest = Self { volume, no, epoch, node, body };
        manifest.check().map_err(|fault| Fault::corrupt(format!("manifest {no}: {fault}")))?;
        Ok(manifest)
    }

    /// Makes sense by itself; whether a delta fits the shape before it is for [`Shape::apply`] to say.
    pub fn check(&self) -> Result<()> {
        if self.no.0 == 0 || self.epoch.0 == 0 {
            return Err(Fault::invalid("it has no number or no epoch"));
        }
        if self.no.0 > MAX_NUMBER || self.epoch.0 > MAX_NUMBER {
            let epoch = self.epoch;
            return Err(Fault::invalid(format!("no volume reaches its number or epoch {epoch}")));
        }
        let shape = match &self.body {
            Body::Checkpoint(shape) => shape,
            Body::Delta(_) if self.no.0 == 1 => {
                return Err(Fault::invalid("the first one is a delta"));
            }
            Body::Delta(changes) => {
                return changes.iter().try_for_each(|change| self.check_change(change));
            }
        };
        if shape.epoch() != self.epoch || shape.openings.iter().any(|opening| opening.no > self.no)
        {
            return Err(Fault::invalid(format!(
                "its shape was not opened for its epoch {}",
                self.epoch
            )));
        }
        shape.check()
    }

    fn check_change(&self, change: &ShapeChange) -> Result<()> {
        let own = Opening { epoch: self.epoch, no: self.no, node: self.node };
        match change {
            ShapeChange::Opened(opening) if *opening != own => {
                Err(Fault::invalid(format!("it is said to open epoch {}", opening.epoch)))
            }
            _ => Ok(()),
        }
    }
}

impl Shape {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(ours(u8::try_from(self.name.len()).ok()));
        out.put_slice(self.name.as_bytes());
        out.put_u64_le(self.size.0);
        out.put_u32_le(self.cluster_size.to_u32());
        out.put_u64_le(self.sco_size.0);
        out.put_u64_le(self.last_seq.0);
        out.put_u64_le(self.last_sco.0);
        out.put_u64_le(self.last_tlog.0);
        put_list(&self.origins, out, Origin::encode);
        put_list(&self.runs, out, RunRef::encode);
        put_list(&self.tlogs, out, TlogRef::encode);
        put_list(&self.openings, out, Opening::encode);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let name_bytes = reader.u8()?;
        let name = std::str::from_utf8(reader.bytes(name_bytes.into())?)
            .map_err(|e| reader.corrupt(e))?
            .to_owned();
        let size = ByteCount(reader.u64()?);
        let cluster_size = reader.u32()?;
        let cluster_size = ClusterSize::new(cluster_size.into()).map_err(|f| reader.corrupt(f))?;
        Ok(Self {
            name,
            size,
            cluster_size,
            sco_size: ByteCount(reader.u64()?),
            last_seq: Seq(reader.u64()?),
            last_sco: ScoSeq(reader.u64()?),
            last_tlog: TlogNo(reader.u64()?),
            origins: reader.counted(ORIGIN_BYTES, Origin::decode)?,
            runs: reader.counted(RUN_BYTES, RunRef::decode)?,
            tlogs: reader.counted(TLOG_BYTES, TlogRef::decode)?,
            openings: reader.counted(OPENING_BYTES, Opening::decode)?,
        })
    }
}

fn put_list<T>(items: &[T], out: &mut Vec<u8>, put: impl Fn(&T, &mut Vec<u8>)) {
    out.put_u32_le(count32(items.len()));
    items.iter().for_each(|item| put(item, out));
}

impl ShapeChange {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Opened(opening) => {
                out.put_u8(OPENED);
                opening.encode(out);
            }
            Self::Resized(size) => {
                out.put_u8(RESIZED);
                out.put_u64_le(size.0);
            }
            Self::ScoSizeSet(size) => {
                out.put_u8(SCO_SIZE_SET);
                out.put_u64_le(size.0);
            }
            Self::Published { tlog, last_seq, origins } => {
                out.put_u8(PUBLISHED);
                tlog.encode(out);
                out.put_u64_le(last_seq.0);
                put_list(origins, out, Origin::encode);
            }
            Self::Compacted { run, replaced } => {
                out.put_u8(COMPACTED);
                run.encode(out);
                put_list(replaced, out, |no, out| out.put_u64_le(no.0));
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(match reader.u8()? {
            OPENED => Self::Opened(Opening::decode(reader)?),
            RESIZED => Self::Resized(ByteCount(reader.u64()?)),
            SCO_SIZE_SET => Self::ScoSizeSet(ByteCount(reader.u64()?)),
            PUBLISHED => Self::Published {
                tlog: TlogRef::decode(reader)?,
                last_seq: Seq(reader.u64()?),
                origins: reader.counted(ORIGIN_BYTES, Origin::decode)?,
            },
            COMPACTED => Self::Compacted {
                run: RunRef::decode(reader)?,
                replaced: reader.counted(RUN_NO_BYTES, |r| r.u64().map(RunNo))?,
            },
            other => return Err(reader.corrupt(format!("a change is of unknown kind {other}"))),
        })
    }
}

impl Origin {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.first_sco.0);
        out.put_slice(&self.volume.0);
        out.put_u64_le(self.epoch.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            first_sco: ScoSeq(reader.u64()?),
            volume: VolumeId(reader.array()?),
            epoch: Epoch(reader.u64()?),
        })
    }
}

impl Opening {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.no.0);
        out.put_slice(&self.node.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            epoch: Epoch(reader.u64()?),
            no: ManifestNo(reader.u64()?),
            node: NodeId(reader.array()?),
        })
    }
}

impl TlogRef {
    fn encode(&self, out: &mut Vec<u8>) {
        let Self { no, epoch, first_sco, last_sco, object_bytes } = *self;
        [no.0, epoch.0, first_sco.0, last_sco.0, object_bytes]
            .iter()
            .for_each(|n| out.put_u64_le(*n));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            no: TlogNo(reader.u64()?),
            epoch: Epoch(reader.u64()?),
            first_sco: ScoSeq(reader.u64()?),
            last_sco: ScoSeq(reader.u64()?),
            object_bytes: reader.u64()?,
        })
    }
}

impl RunRef {
    fn encode(&self, out: &mut Vec<u8>) {
        let Self { no, epoch, first_tlog, last_tlog, object_bytes, entry_count } = *self;
        let numbers = [no.0, epoch.0, first_tlog.0, last_tlog.0, object_bytes, entry_count];
        numbers.iter().for_each(|n| out.put_u64_le(*n));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            no: RunNo(reader.u64()?),
            epoch: Epoch(reader.u64()?),
            first_tlog: TlogNo(reader.u64()?),
            last_tlog: TlogNo(reader.u64()?),
            object_bytes: reader.u64()?,
            entry_count: reader.u64()?,
        })
    }
}
