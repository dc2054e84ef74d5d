//! What the disk can see of the ordering invariants, by the formats alone, at every write of a segment file:
//!
//! - INV-1, INV-3: a record says of others that they are durable only when they are.
//! - INV-2: records are numbered without a gap, the changes of a volume too, and what follows says what came before.
//! - INV-4: a segment that was filled in this life is wiped or used again only once everything in it is published, or another
//!   node owned the volume later.
//!
//! And at every batch of pages INV-5: it is not ahead of the manifest.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};

use volumedriver_core::format::journal::{BLOCK_BYTES, Entry, RecordHeader, Section};
use volumedriver_core::format::names;
use volumedriver_core::format::segment::SegmentHeader;
use volumedriver_core::units::{Epoch, NodeId, ScoSeq, Seq, TlogNo, VolumeId};

use super::Link;
use super::store::StoreState;

/// Records whose durability nobody stated yet, and a few more for repetitions.
const REMEMBERED: usize = 4096;

/// What one life of a host wrote to its journal.
#[derive(Default)]
pub(crate) struct Journal {
    records: BTreeMap<u64, Written>,
    /// Those that came before one with a lower number: several writes are under way at a time.
    early: BTreeMap<u64, Vec<Section>>,
    /// Every record up to this one came.
    last: Option<u64>,
    stated: u64,
    /// Per owner of a volume, its last change.
    seqs: BTreeMap<(VolumeId, Epoch), Seq>,
    /// Per segment file, whose it is and what it holds since its header was written.
    segments: BTreeMap<u64, (NodeId, Vec<Change>)>,
}

/// Where a record lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub file: u64,
    pub offset: usize,
    pub len: usize,
    print: u32,
}

struct Change {
    volume: VolumeId,
    epoch: Epoch,
    sco: ScoSeq,
}

impl Journal {
    /// Takes note of a write to a segment file that begins now; what it breaks. `is_durable`: whether a record is.
    pub fn check_write(
        &mut self,
        store: &StoreState,
        (file, offset): (u64, usize),
        data: &[u8],
        is_durable: impl Fn(&Written) -> bool,
    ) -> Option<String> {
        if offset == 0 {
            return self.check_header(store, file, data);
        }
        let mut at = 0;
        while let Some(block) = data.get(at..at + BLOCK_BYTES) {
            let Ok(header) = RecordHeader::decode(block) else { return None };
            let len = BLOCK_BYTES + header.payload_bytes as usize;
            // Without the checksum at its end, which would make all of them equal.
            let print = crc32fast::hash(&block[..BLOCK_BYTES - 4]);
            let written = Written { file, offset: offset + at, len, print };
            if let Some(broken) = self.check_record(&header, written, &is_durable) {
                return Some(format!("record {}: {broken}", header.record));
            }
            at += len;
        }
        None
    }

    fn check_record(
        &mut self,
        header: &RecordHeader,
        written: Written,
        is_durable: impl Fn(&Written) -> bool,
    ) -> Option<String> {
        if self.records.get(&header.record) == Some(&written) {
            return None; // The same again, after an error.
        }
        // What an earlier life left is durable when the first of this one is made.
        let last = *self.last.get_or_insert(header.durable_record);
        if self.records.contains_key(&header.record) || header.record <= last {
            return Some("INV-2: there was one of this number".to_owned());
        }
        if let Some(broken) = self.check_stated(header.durable_record, is_durable) {
            return Some(broken);
        }
        self.records.insert(header.record, written);
        if self.records.len() > REMEMBERED {
            self.records.pop_first();
        }
        self.hold(&header.sections, written.file);
        self.early.insert(header.record, header.sections.clone());
        let mut next = last + 1;
        let mut broken = None;
        while let Some(sections) = self.early.remove(&next) {
            broken = sections.iter().find_map(|section| self.check_section(section)).or(broken);
            self.last = Some(next);
            next += 1;
        }
        broken
    }

    /// All records up to this one are said to be durable.
    fn check_stated(&mut self, upto: u64, is_durable: impl Fn(&Written) -> bool) -> Option<String> {
        if upto <= self.stated {
            return None;
        }
        let mut news = self.records.range((Excluded(self.stated), Included(upto)));
        let lost = news.find(|(_, written)| !is_durable(written)).map(|(lost, _)| *lost);
        let missing = self.last.filter(|last| upto > *last);
        self.stated = upto;
        let lost = lost.or(missing.map(|last| last + 1))?;
        Some(format!("INV-3: it says all up to {upto} are durable, {lost} is not"))
    }

    /// Notes what the segment holds from now on.
    fn hold(&mut self, sections: &[Section], file: u64) {
        let Some((_, held)) = self.segments.get_mut(&file) else { return };
        for Section { volume, epoch, entries, .. } in sections {
            held.extend(entries.iter().filter_map(|entry| match entry {
                Entry::Change { sco, .. } => {
                    Some(Change { volume: *volume, epoch: *epoch, sco: *sco })
                }
                Entry::Seal { .. } => None,
            }));
        }
    }

    fn check_section(&mut self, section: &Section) -> Option<String> {
        let Section { volume, epoch, previous_seq, .. } = *section;
        let last = self.seqs.entry((volume, epoch)).or_insert(previous_seq);
        if *last != previous_seq {
            return Some(format!(
                "INV-2: volume {volume} goes from change {last} to {previous_seq}"
            ));
        }
        for entry in &section.entries {
            let Entry::Change { change, .. } = entry else { continue };
            if change.seq != last.next() {
                let seq = change.seq;
                return Some(format!("INV-2: volume {volume} goes from change {last} to {seq}"));
            }
            *last = change.seq;
        }
        None
    }

    fn check_header(&mut self, store: &StoreState, file: u64, data: &[u8]) -> Option<String> {
        let lost = self.segments.remove(&file).and_then(|(node, held)| {
            held.into_iter().find(|change| !change.is_disposable(store, node))
        });
        // What lies there from now on is no record of before.
        self.records.retain(|_, written| written.file != file);
        if let Ok(header) = SegmentHeader::decode(data.get(..BLOCK_BYTES)?) {
            self.segments.insert(file, (header.node, Vec::new()));
        }
        lost.map(|Change { volume, epoch, sco }| {
            format!("INV-4: SCO {sco} of volume {volume} in epoch {epoch} is given up unpublished")
        })
    }
}

impl Change {
    /// Whether it is on the backend, or another node's ownership made it obsolete.
    fn is_disposable(&self, store: &StoreState, node: NodeId) -> bool {
        let Some(shape) = store.shape_of(self.volume) else { return true };
        let later = shape.openings.iter().any(|o| o.epoch > self.epoch && o.node != node);
        later || self.sco <= shape.last_sco
    }
}

impl Link {
    /// INV-5: pages that stand for this TLog are put.
    pub fn check_pages(&self, volume: VolumeId, applied: TlogNo) {
        let mut state = self.state();
        let Some(shape) = state.store.shape_of(volume) else { return };
        let last = shape.last_tlog;
        if applied > last {
            let space = names::namespace(volume);
            let broken =
                format!("INV-5: pages of {space} stand for TLog {applied}, its last is {last}");
            state.violations.push(broken);
        }
    }
}
