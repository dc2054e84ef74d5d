//! One segment file: its state, and the images in memory of what was appended to it.
//!
//! All offsets are bytes in the file.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use volumedriver_core::units::VolumeId;

use super::tail::BLOCK;
use crate::io::buf::{Area, AreaSlice};

/// Bytes of one image; the last of a segment may be shorter.
pub(super) const CHUNK_BYTES: u64 = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// The file's header is that of its use.
    Written,
    /// To be written before the first record.
    Due,
    /// Free; the file may have the header of an earlier use, to be wiped.
    Stale,
    /// Free; the file's header is zeroes.
    Blank,
}

pub(super) struct Segment<F> {
    pub file: F,
    pub len: u64,
    pub use_no: u64,
    pub first_record: u64,
    pub header: Header,
    /// End of what is appended.
    pub end: u64,
    /// End of what was handed to a write.
    pub started: u64,
    /// Stretches handed to a write that has not succeeded.
    pub in_flight: Vec<(u64, u64)>,
    /// Plain writes returned since the last sync began.
    pub unsynced: bool,
    /// Reads of the file under way.
    pub readers: u32,
    pub chunks: Vec<Option<Area>>,
    /// Number of SCOs, per volume, with entries in it.
    pub pins: HashMap<VolumeId, u32>,
    /// Volumes that are damaged and need it as it is.
    pub kept_for: HashSet<VolumeId>,
}

impl<F> Segment<F> {
    pub fn new(file: F, len: u64, header: Header) -> Self {
        let chunks = (0..len.div_ceil(CHUNK_BYTES)).map(|_| None).collect();
        Self {
            file,
            len,
            use_no: 0,
            first_record: 0,
            header,
            end: BLOCK,
            started: BLOCK,
            in_flight: Vec::new(),
            unsynced: false,
            readers: 0,
            chunks,
            pins: HashMap::new(),
            kept_for: HashSet::new(),
        }
    }

    /// Everything below is in the file.
    pub fn stored(&self) -> u64 {
        self.in_flight.iter().map(|(start, _)| *start).fold(self.started, u64::min)
    }

    /// Bytes of one image.
    pub fn chunk_len(&self, chunk: usize) -> u64 {
        (self.len - chunk as u64 * CHUNK_BYTES).min(CHUNK_BYTES)
    }

    /// The parts of a stretch by chunk: (chunk, range in it).
    pub fn parts(start: u64, end: u64) -> impl Iterator<Item = (usize, Range<usize>)> {
        let chunks = start / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES);
        chunks.map(move |chunk| {
            let base = chunk * CHUNK_BYTES;
            let from = start.max(base) - base;
            let to = end.min(base + CHUNK_BYTES) - base;
            (chunk as usize, from as usize..to as usize)
        })
    }

    /// The stretch in memory, as few slices as there are chunks; `None` when a part is not there.
    pub fn image(&self, start: u64, end: u64) -> Option<Vec<AreaSlice>> {
        Self::parts(start, end)
            .map(|(chunk, range)| {
                let area = self.chunks.get(chunk)?.as_ref()?;
                area.holds(range.clone()).then(|| area.slice(range))
            })
            .collect()
    }

    /// Copies a stretch out of memory into the front of `out`; `false` when a part is not there.
    pub fn copy_image(&self, start: u64, out: &mut [u8]) -> bool {
        let mut rest = out;
        for (chunk, range) in Self::parts(start, start + rest.len() as u64) {
            let Some(Some(area)) = self.chunks.get(chunk) else { return false };
            if !area.holds(range.clone()) {
                return false;
            }
            let (here, after) = rest.split_at_mut(range.len());
            here.copy_from_slice(area.bytes(range));
            rest = after;
        }
        true
    }

    /// Copies to a stretch whose images were made.
    pub fn fill(&mut self, start: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (chunk, range) in Self::parts(start, start + bytes.len() as u64) {
            let (here, after) = rest.split_at(range.len());
            match &mut self.chunks[chunk] {
                Some(area) => area.fill(range.start, here),
                None => unreachable!("chunk {chunk} was made before it is filled"),
            }
            rest = after;
        }
    }

    /// An SCO of the volume with entries here is gone.
    pub fn unpin(&mut self, volume: VolumeId) {
        if let Some(count) = self.pins.get_mut(&volume) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&volume);
            }
        }
    }
}
