//! TLog: the ordered list (address -> location) of consecutive SCOs.

use bytes::{BufMut, Bytes};

use super::Change;
use super::change::{self, CHANGE_BYTES, Checksums};
use super::frame::{Frame, Reader, count32};
use super::manifest::TlogRef;
use crate::fault::{Fault, Result};
use crate::units::{Epoch, Location, ScoId, ScoSeq, Seq, TlogNo, VolumeId};

const FRAME: Frame = Frame { name: "TLog", magic: *b"VDTL", version: 1 };
const SCO_BYTES: usize = 32;

/// One TLog object.
///
/// Body of its frame, magic `VDTL`, version 1:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 16 | volume |
/// | 16 | 8 | epoch |
/// | 24 | 8 | no |
/// | 32 | 4 | number of SCOs |
/// | 36 | ... | the SCOs (table at [`TlogSco`]) |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tlog {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub no: TlogNo,
    /// In log order; positions increase strictly.
    pub scos: Vec<TlogSco>,
}

/// The part of a TLog that concerns one SCO.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | epoch of the SCO's name |
/// | 8 | 8 | position of the SCO's name |
/// | 16 | 4 | cluster_count |
/// | 20 | 8 | object_bytes |
/// | 28 | 4 | number of changes |
/// | 32 | ... | the changes (table at [`Change`]), without checksums |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlogSco {
    pub id: ScoId,
    pub cluster_count: u32,
    /// Whole object, data and footer.
    pub object_bytes: u64,
    /// Without checksums (they are in the SCO footer).
    pub changes: Vec<Change>,
}

impl Tlog {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut body = Vec::new();
        body.put_slice(&self.volume.0);
        body.put_u64_le(self.epoch.0);
        body.put_u64_le(self.no.0);
        body.put_u32_le(count32(self.scos.len()));
        self.scos.iter().for_each(|sco| sco.encode(&mut body));
        let mut out = Vec::new();
        FRAME.wrap(&body, &mut out);
        out.into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = FRAME.body(bytes)?;
        let volume = VolumeId(reader.array()?);
        let epoch = Epoch(reader.u64()?);
        let no = TlogNo(reader.u64()?);
        let scos = reader.counted(SCO_BYTES, TlogSco::decode)?;
        reader.end()?;
        let tlog = Self { volume, epoch, no, scos };
        tlog.check().map_err(|fault| fault.about(format!("TLog {no}")))?;
        Ok(tlog)
    }

    /// It is the TLog that `volume`'s manifest names.
    ///
    /// # Errors
    /// `Corrupt`, with what is wrong.
    pub fn check_named(&self, volume: VolumeId, named: &TlogRef) -> Result<()> {
        let ends = (self.scos.first().map(|s| s.id.seq), self.scos.last().map(|s| s.id.seq));
        let same = (self.volume, self.epoch, self.no) == (volume, named.epoch, named.no);
        if same && ends == (Some(named.first_sco), Some(named.last_sco)) {
            return Ok(());
        }
        Err(Fault::corrupt(format!(
            "it is TLog {} of volume {} and epoch {}, with SCOs {ends:?}",
            self.no, self.volume, self.epoch
        )))
    }

    /// Positions and sequences increase strictly, and each SCO's changes fill it exactly.
    pub fn check(&self) -> Result<()> {
        if self.no.0 == 0 || self.epoch.0 == 0 || self.scos.is_empty() {
            return Err(Fault::corrupt("it has no number, no epoch or no SCO"));
        }
        let (mut last_sco, mut last_seq) = (ScoSeq(0), Seq(0));
        for sco in &self.scos {
            if sco.id.seq <= last_sco || sco.id.seq.0 > Location::MAX_SCO {
                return Err(Fault::corrupt(format!(
                    "SCO {} comes after position {last_sco}",
                    sco.id
                )));
            }
            if sco.id.epoch > self.epoch {
                return Err(Fault::corrupt(format!(
                    "SCO {} is of a later epoch than {}",
                    sco.id, self.epoch
                )));
            }
            last_sco = sco.id.seq;
            last_seq = change::check_sco(&sco.changes, sco.cluster_count, last_seq)
                .map_err(|fault| fault.about(format!("SCO {}", sco.id)))?;
        }
        Ok(())
    }
}

impl TlogSco {
    fn encode(&self, out: &mut impl BufMut) {
        out.put_u64_le(self.id.epoch.0);
        out.put_u64_le(self.id.seq.0);
        out.put_u32_le(self.cluster_count);
        out.put_u64_le(self.object_bytes);
        out.put_u32_le(count32(self.changes.len()));
        self.changes.iter().for_each(|c| c.encode(Checksums::LeftOut, out));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            id: ScoId { epoch: Epoch(reader.u64()?), seq: ScoSeq(reader.u64()?) },
            cluster_count: reader.u32()?,
            object_bytes: reader.u64()?,
            changes: reader.counted(CHANGE_BYTES, |r| Change::decode(r, Checksums::LeftOut))?,
        })
    }
}
