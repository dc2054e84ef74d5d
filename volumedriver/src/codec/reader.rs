//! Reads clusters out of an SCO in frames.

use std::ops::Range;

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::framed::{
    FrameTable, FramedEnd, FramedHead, FramedSco, TABLE_FRAME, TAG_BYTES,
};
use volumedriver_core::format::sco::ScoFooter;

use super::pack::unpack;
use super::ring::KeyRing;
use super::seal::ObjectKey;

/// What it takes to read clusters of an SCO in frames.
pub struct Frames {
    pub head: FramedHead,
    pub table: FrameTable,
    pub(super) key: Option<ObjectKey>,
}

/// The end of an SCO in frames, decrypted.
pub struct Opened {
    pub footer: ScoFooter,
    pub frames: Frames,
}

impl Opened {
    /// Decodes exactly footer and trailer. `Invalid`: the ring lacks the key.
    pub fn open(end: &[u8], ring: &KeyRing) -> Result<Self> {
        let FramedEnd { head, table } = FramedEnd::decode(end)?;
        let key = ring.key_of(&head)?;
        let sco = match &key {
            None => head.decode_table(table)?,
            Some(key) => head.decode_table(&open_table(&head, key, table)?)?,
        };
        let FramedSco { head, frames: table, footer } = sco;
        Ok(Self { footer, frames: Frames { head, table, key } })
    }
}

fn open_table(head: &FramedHead, key: &ObjectKey, sealed: &[u8]) -> Result<Vec<u8>> {
    let mut plain = vec![0; sealed.len().saturating_sub(TAG_BYTES as usize)];
    key.open((head, TABLE_FRAME, head.packing), sealed, &mut plain).ok_or_else(|| {
        Fault::corrupt(format!(
            "SCO footer is damaged: it was not encrypted so for SCO {}",
            head.id
        ))
    })?;
    Ok(plain)
}

impl Frames {
    /// The bytes of the object that hold `count` clusters from `first` on; `None` when it has not that many.
    #[must_use]
    pub fn range(&self, first: u32, count: u32) -> Option<Range<u64>> {
        self.table.range(&self.head.frames_of(first, count))
    }

    /// `count` clusters from `first` on, out of the bytes of their [`range`](Self::range). An error names the first frame that
    /// is damaged.
    pub fn unpack(&self, first: u32, count: u32, stored: &[u8]) -> Result<Bytes> {
        let frames = self.head.frames_of(first, count);
        let (base, _) = self.head.clusters_of(frames.start);
        let plain_bytes: usize = frames.clone().map(|n| self.head.plain_bytes(n) as usize).sum();
        let mut plain = vec![0; plain_bytes];
        let mut scratch = Vec::new();
        let (mut rest, mut out) = (stored, &mut plain[..]);
        for frame in frames {
            let (into, after) = out.split_at_mut(self.head.plain_bytes(frame) as usize);
            rest = self.unpack_frame(frame, rest, into, &mut scratch)?;
            out = after;
        }
        let cluster = self.head.cluster_size.bytes() as usize;
        let from = (first - base) as usize * cluster;
        let wanted = from..from + count as usize * cluster;
        if wanted.end > plain_bytes {
            return Err(Fault::corrupt(format!(
                "cluster {} is beyond the last",
                first + count - 1
            )));
        }
        Ok(Bytes::from(plain).slice(wanted))
    }

    /// Unpacks the frame that `stored` begins with; what follows it.
    fn unpack_frame<'a>(
        &self,
        frame: u32,
        stored: &'a [u8],
        plain: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<&'a [u8]> {
        let damaged = |what: &str| {
            let (first, count) = self.head.clusters_of(frame);
            let last = (first + count).saturating_sub(1);
            Fault::corrupt(format!("clusters {first} to {last} are damaged: {what}"))
        };
        let place = self.table.get(frame);
        let (place, packing) = place.ok_or_else(|| damaged("there is no such frame"))?;
        let bytes = (place.end - place.start) as usize;
        let (packed, after) =
            stored.split_at_checked(bytes).ok_or_else(|| damaged("the frame is cut short"))?;
        match &self.key {
            None => unpack(packing, packed, plain).map_err(|what| damaged(&what))?,
            Some(key) => {
                scratch.resize(bytes.saturating_sub(TAG_BYTES as usize), 0);
                let opened = key.open((&self.head, frame, packing), packed, scratch);
                opened.ok_or_else(|| damaged("the frame was not encrypted so for this place"))?;
                unpack(packing, scratch, plain).map_err(|what| damaged(&what))?;
            }
        }
        Ok(after)
    }
}
