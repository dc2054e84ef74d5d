//! SCO (storage container object): clusters in write order, then a footer that describes them.
//!
//! The object is `cluster_count * cluster_size` bytes of data, the footer, and a trailer of fixed length, so that a reader who
//! fetched the last few KiB of an object finds from the trailer how much more of the footer there is. An SCO that is compressed
//! or encrypted is stored in frames instead (see [`framed`](super::framed)); the trailer tells which.

use bytes::{BufMut, Bytes};

use super::change::{self, CHANGE_BYTES, Checksums};
use super::frame::{Frame, count32, stored_crc};
use super::{Change, ChangeKind};
use crate::fault::{Fault, Result};
use crate::units::{ClusterCrc, ClusterSize, Epoch, ScoId, ScoSeq, Seq, VolumeId};

const FOOTER: Frame = Frame { name: "SCO footer", magic: *b"VDSF", version: 1 };
const TRAILER: Frame = Frame { name: "SCO trailer", magic: *b"VDST", version: 1 };
const FRAMED_TRAILER: Frame = Frame { version: 2, ..TRAILER };

/// Bytes of the trailer at the very end of an SCO.
pub const TRAILER_BYTES: usize = 64;

/// What the footer of an SCO says. The object is `cluster_count * cluster_size` bytes of data, then the footer, then the
/// trailer, which holds every field but the changes.
///
/// Body of the footer's frame, magic `VDSF`, version 1:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | number of changes |
/// | 4 | ... | the changes (table at [`Change`]), with checksums |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoFooter {
    pub volume: VolumeId,
    pub id: ScoId,
    pub cluster_size: ClusterSize,
    pub cluster_count: u32,
    /// In order of `seq`.
    pub changes: Vec<Change>,
}

/// How the clusters of an SCO are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoForm {
    /// As they are; the footer is a [`ScoFooter`].
    Plain,
    /// In frames; the footer is a [`FramedEnd`](super::framed::FramedEnd).
    Framed,
}

/// The last [`TRAILER_BYTES`] of an SCO.
///
/// Body of its frame, magic `VDST`, version 1 (plain) or 2 (in frames):
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | footer_bytes |
/// | 4 | 4 | footer_crc |
/// | 8 | 4 | cluster_size |
/// | 12 | 4 | cluster_count |
/// | 16 | 16 | volume |
/// | 32 | 8 | epoch of the SCO's name |
/// | 40 | 8 | position of the SCO's name |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoTrailer {
    pub form: ScoForm,
    pub volume: VolumeId,
    pub id: ScoId,
    pub cluster_size: ClusterSize,
    pub cluster_count: u32,
    /// Bytes of the footer that ends where the trailer begins.
    pub footer_bytes: u32,
    /// The checksum which that footer ends with: the two belong together.
    pub footer_crc: u32,
}

impl ScoFooter {
    /// Footer and trailer: what follows the data in the object.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut body =
            Vec::with_capacity(4 + self.changes.len() * (CHANGE_BYTES + change::CLUSTER_CRC_BYTES));
        body.put_u32_le(count32(self.changes.len()));
        self.changes.iter().for_each(|c| c.encode(Checksums::Carried, &mut body));
        let mut out = Vec::new();
        FOOTER.wrap(&body, &mut out);
        let trailer = ScoTrailer {
            form: ScoForm::Plain,
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

    /// Decodes the end of a plain SCO: exactly its footer and its trailer.
    pub fn decode(footer_and_trailer: &[u8]) -> Result<Self> {
        let trailer = ScoTrailer::decode(footer_and_trailer)?;
        if trailer.form != ScoForm::Plain {
            return Err(Fault::invalid(format!("SCO {} is in frames", trailer.id)));
        }
        let mut reader = FOOTER.body(trailer.footer_in(footer_and_trailer)?)?;
        let changes = reader.counted(CHANGE_BYTES, |r| Change::decode(r, Checksums::Carried))?;
        reader.end()?;
        let ScoTrailer { volume, id, cluster_size, cluster_count, .. } = trailer;
        let footer = Self { volume, id, cluster_size, cluster_count, changes };
        footer.check().map_err(|fault| fault.about(format!("SCO {id}")))?;
        Ok(footer)
    }

    /// The changes are in order and fill the SCO exactly, with one checksum for each of its clusters.
    pub fn check(&self) -> Result<()> {
        change::check_sco(&self.changes, self.cluster_count, Seq(0))?;
        if self.crcs().len() != usize::try_from(self.cluster_count).unwrap_or(usize::MAX) {
            return Err(Fault::corrupt("not one checksum for each cluster"));
        }
        Ok(())
    }

    /// Checksums of the clusters by their index in the SCO.
    #[must_use]
    pub fn crcs(&self) -> Vec<ClusterCrc> {
        let data = self.changes.iter().filter_map(|change| match &change.kind {
            ChangeKind::Data { crcs, .. } => Some(crcs.as_slice()),
            ChangeKind::Hole | ChangeKind::Zero => None,
        });
        data.flatten().copied().collect()
    }
}

impl ScoTrailer {
    pub(super) fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut body = Vec::with_capacity(TRAILER_BYTES);
        body.put_u32_le(self.footer_bytes);
        body.put_u32_le(self.footer_crc);
        body.put_u32_le(self.cluster_size.to_u32());
        body.put_u32_le(self.cluster_count);
        body.put_slice(&self.volume.0);
        body.put_u64_le(self.id.epoch.0);
        body.put_u64_le(self.id.seq.0);
        let mut out = [0; TRAILER_BYTES];
        let frame = match self.form {
            ScoForm::Plain => TRAILER,
            ScoForm::Framed => FRAMED_TRAILER,
        };
        frame.fill(&mut out, &[&body]);
        out
    }

    /// The footer this trailer speaks of, from the bytes of both.
    pub(super) fn footer_in<'a>(&self, footer_and_trailer: &'a [u8]) -> Result<&'a [u8]> {
        let footer = footer_and_trailer
            .split_last_chunk::<TRAILER_BYTES>()
            .map_or(&[][..], |(footer, _)| footer);
        if u32::try_from(footer.len()) != Ok(self.footer_bytes)
            || stored_crc(footer) != Some(self.footer_crc)
        {
            return Err(Fault::corrupt(
                "SCO footer is damaged: it is not the one its trailer speaks of",
            ));
        }
        Ok(footer)
    }

    /// Decodes the trailer from the end of an SCO, or of any last part of it.
    pub fn decode(end_of_object: &[u8]) -> Result<Self> {
        let Some((_, bytes)) = end_of_object.split_last_chunk::<TRAILER_BYTES>() else {
            return Err(Fault::corrupt("SCO trailer is damaged: the object is shorter than one"));
        };
        let form = match bytes.get(4..8) {
            Some([1, 0, 0, 0]) => ScoForm::Plain,
            _ => ScoForm::Framed,
        };
        let mut reader = match form {
            ScoForm::Plain => TRAILER.body(bytes)?,
            ScoForm::Framed => FRAMED_TRAILER.body(bytes)?,
        };
        let (footer_bytes, footer_crc) = (reader.u32()?, reader.u32()?);
        let cluster_size = reader.u32()?;
        let cluster_count = reader.u32()?;
        let volume = VolumeId(reader.array()?);
        let id = ScoId { epoch: Epoch(reader.u64()?), seq: ScoSeq(reader.u64()?) };
        let cluster_size = ClusterSize::new(cluster_size.into()).map_err(|f| reader.corrupt(f))?;
        reader.end()?;
        Ok(Self { form, volume, id, cluster_size, cluster_count, footer_bytes, footer_crc })
    }
}
