//! What decays in a host's journal while the host is down, and what must come of it.
//!
//! The journal is read by its formats alone, not by the engine's recovery. One thing decays at a time, so that what is lost is
//! known exactly:
//!
//! | what decays | what must come of it |
//! |---|---|
//! | a cluster known to have been durable | not published: read-only, naming change and cluster; every other cluster reads well |
//! | the header of such a record | held what is not published: read-only, naming what is lost; a prefix is shown |
//! | a record that nothing calls durable yet | it and what follows is dropped, nothing else, and nothing is said |
//! | the same, but the disk cannot read it | that is no torn write: as if it had been durable |
//! | the header of a segment | nothing: its records say what it is |
//! | anything else | nothing |

use std::collections::BTreeMap;
use std::fmt;

use volumedriver_core::format::ChangeKind;
use volumedriver_core::format::journal::{BLOCK_BYTES, Entry, RecordHeader, verify_payload};
use volumedriver_core::format::segment::SegmentHeader;
use volumedriver_core::units::{ClusterCrc, Epoch, NodeId, ScoSeq, Seq, VolumeId};

use super::engine::{State, Volume};
use crate::world::Universe;
use crate::world::faults::Canary;
use crate::world::rng::Rng;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A whole record of the journal, and where its header lies.
#[derive(Clone)]
struct Found {
    file: String,
    at: u64,
    header: RecordHeader,
}

/// A change that the journal has.
#[derive(Clone, Debug)]
struct Held {
    record: u64,
    epoch: Epoch,
    sco: ScoSeq,
    seq: Seq,
    clusters: std::ops::Range<u64>,
}

/// What decayed.
#[derive(Clone, Debug)]
enum What {
    /// A cluster of this change of a volume.
    Cluster(VolumeId, Held, u64),
    /// The header of this record.
    Record(u64),
    /// This record, which nothing calls durable.
    Tail(u64),
    /// Something that nobody misses.
    Spare(&'static str),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(volume, change, cluster) => {
                let (seq, record) = (change.seq, change.record);
                write!(f, "cluster {cluster} of change {seq} of volume {volume} in record {record}")
            }
            Self::Record(record) => write!(f, "the header of record {record}"),
            Self::Tail(record) => write!(f, "record {record}, which nothing calls durable"),
            Self::Spare(what) => f.write_str(what),
        }
    }
}

/// Something that decayed, and what the volumes had before.
pub struct Decay {
    what: What,
    node: NodeId,
    held: BTreeMap<VolumeId, Vec<Held>>,
    /// The last record with a section of each volume.
    last_record: BTreeMap<VolumeId, u64>,
}

/// What a volume must do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Go on as if nothing had happened.
    GoOn,
    /// Go on with what is left of its journal: at least up to this change.
    GoOnTorn(Seq),
    /// Be read-only and say why, and show everything but this cluster, which `shows` something if a later change covers it.
    Name { cluster: u64, shows: bool },
    /// Be read-only and say why, and show a prefix.
    NameGap,
    /// Nothing of it is lost, but nobody can know that: both are right.
    Doubt,
}

impl Decay {
    /// Lets something of this host's journal decay; `None` when there is nothing.
    pub fn plant(universe: &Universe, host: usize, node: NodeId, rng: &mut Rng) -> Option<Self> {
        let image = |(name, _): (String, u64)| {
            let bytes = universe.file_bytes(host, &name);
            (name, bytes)
        };
        let images: BTreeMap<String, Vec<u8>> =
            universe.files(host).into_iter().map(image).collect();
        let (journal, watermark) = live_records(&images);
        if journal.is_empty() {
            return None;
        }
        let mut last_record = BTreeMap::new();
        for found in &journal {
            for section in &found.header.sections {
                last_record.insert(section.volume, found.header.record);
            }
        }
        let unchecked = universe.canary() == Some(Canary::UncheckedReplay);
        let target = Target { universe, host, images, journal, watermark, unchecked };
        let what = match rng.below(11) {
            _ if unchecked => target.cluster(rng)?,
            0..4 => target.cluster(rng)?,
            4..7 => target.header(rng)?,
            7 | 8 => target.tail(rng)?,
            9 => target.segment_header(rng)?,
            _ => target.spare(rng)?,
        };
        Some(Self { what, node, held: held_by_volume(&target.journal), last_record })
    }

    #[must_use]
    pub fn what(&self) -> String {
        self.what.to_string()
    }

    /// What this volume, as it was just opened, must do.
    #[must_use]
    pub fn duty(&self, volume: &Volume) -> Duty {
        let all = self.held.get(&volume.id()).map_or(&[][..], Vec::as_slice);
        let held: Vec<&Held> = all.iter().filter(|held| self.is_needed(volume, held)).collect();
        match &self.what {
            What::Spare(_) => Duty::GoOn,
            What::Tail(record) => {
                let kept = held.iter().filter(|held| held.record < *record).map(|held| held.seq);
                match held.iter().any(|held| held.record >= *record) {
                    true => Duty::GoOnTorn(kept.max().unwrap_or_default()),
                    false => Duty::GoOn,
                }
            }
            What::Cluster(of, change, cluster) => {
                if *of != volume.id() || !self.is_needed(volume, change) {
                    return Duty::GoOn;
                }
                let covers =
                    |held: &&&Held| held.seq > change.seq && held.clusters.contains(cluster);
                Duty::Name { cluster: *cluster, shows: held.iter().any(|held| covers(&held)) }
            }
            What::Record(record) => {
                let later = self.last_record.get(&volume.id()).is_some_and(|last| last > record);
                match held.iter().any(|held| held.record == *record) {
                    true => Duty::NameGap,
                    // A later section of the volume says what came before it.
                    false if later => Duty::GoOn,
                    false => Duty::Doubt,
                }
            }
        }
    }

    /// Whether the volume has this change from the journal alone: not published, and no other owner came after it.
    fn is_needed(&self, volume: &Volume, held: &Held) -> bool {
        volume.with_core(|core| {
            let shape = core.shape();
            let mut later = shape.openings.iter().filter(|opening| opening.epoch > held.epoch);
            held.sco > shape.last_sco && later.all(|opening| opening.node == self.node)
        })
    }

    /// What is wrong with the state of a volume that was just opened.
    pub fn judge(&self, volume: &Volume, duty: Duty) -> Result<(), String> {
        let what = &self.what;
        let why = match volume.state() {
            State::ReadOnly(why) => why,
            state => match duty {
                Duty::GoOnTorn(upto) if volume.last_seq() < upto => {
                    let last = volume.last_seq();
                    return Err(format!("P1: it goes on from {last}, {upto} is whole: {what}"));
                }
                Duty::GoOn | Duty::GoOnTorn(_) | Duty::Doubt => return Ok(()),
                Duty::Name { .. } | Duty::NameGap => {
                    return Err(format!("P1: it is {state:?} although this decayed: {what}"));
                }
            },
        };
        let named = match what {
            What::Cluster(_, change, cluster) => {
                why.contains(&format!("change {} wrote from cluster {cluster} on", change.seq))
            }
            What::Record(_) => {
                ["lost", "may hold", "from change"].iter().any(|word| why.contains(word))
            }
            What::Tail(_) | What::Spare(_) => true,
        };
        match duty {
            Duty::GoOn | Duty::GoOnTorn(_) => {
                Err(format!("P4: it is read-only ({why}), and all that decayed is {what}"))
            }
            Duty::Name { .. } | Duty::NameGap | Duty::Doubt if !named => {
                Err(format!("P1: {why:?} does not name what is lost: {what}"))
            }
            Duty::Name { .. } | Duty::NameGap | Duty::Doubt => Ok(()),
        }
    }
}

/// The records in force, in order: contiguous, whole, and not shut out by a segment begun later. And up to where any record
/// says that all are durable: also one that is torn itself, or lies behind it.
fn live_records(images: &BTreeMap<String, Vec<u8>>) -> (Vec<Found>, u64) {
    let header = |(name, bytes): (&String, &Vec<u8>)| {
        let header = SegmentHeader::decode(bytes.get(..BLOCK_BYTES)?).ok()?;
        Some((header.use_no, header.first_record, name.clone()))
    };
    let mut used: Vec<(u64, u64, String)> = images.iter().filter_map(header).collect();
    used.sort_unstable();
    let mut live: Vec<Found> = Vec::new();
    let (mut watermark, mut ended) = (0, false);
    for (n, (use_no, first_record, file)) in used.iter().enumerate() {
        let end = used[n + 1..].iter().map(|(_, first, _)| *first).min().unwrap_or(u64::MAX);
        let bytes = &images[file];
        let mut at = BLOCK_BYTES;
        while at < bytes.len() {
            let found = record_at(bytes, at, *use_no).filter(|header| header.record < end);
            let Some(header) = found else {
                at += BLOCK_BYTES;
                continue;
            };
            let payload_at = at + BLOCK_BYTES;
            let length = header.payload_bytes as usize;
            let payload = bytes.get(payload_at..payload_at + length).unwrap_or_default();
            watermark = watermark.max(header.durable_record);
            let next = live.last().map_or(*first_record, |last| last.header.record + 1);
            ended |= header.record != next || !verify_payload(&header, payload).is_empty();
            if !ended {
                live.push(Found { file: file.clone(), at: at as u64, header });
            }
            at = payload_at + length;
        }
    }
    (live, watermark)
}

fn record_at(bytes: &[u8], at: usize, use_no: u64) -> Option<RecordHeader> {
    let header = RecordHeader::decode(bytes.get(at..at + BLOCK_BYTES)?).ok()?;
    (header.segment_use == use_no).then_some(header)
}

fn held_by_volume(journal: &[Found]) -> BTreeMap<VolumeId, Vec<Held>> {
    let mut held: BTreeMap<VolumeId, Vec<Held>> = BTreeMap::new();
    for found in journal {
        for section in &found.header.sections {
            let changes = section.entries.iter().filter_map(|entry| match entry {
                Entry::Change { sco, change } => Some(Held {
                    record: found.header.record,
                    epoch: section.epoch,
                    sco: *sco,
                    seq: change.seq,
                    clusters: change.addr.0..change.addr.0 + change.count.0,
                }),
                Entry::Seal { .. } => None,
            });
            held.entry(section.volume).or_default().extend(changes);
        }
    }
    held
}

/// Where to strike.
struct Target<'a> {
    universe: &'a Universe,
    host: usize,
    images: BTreeMap<String, Vec<u8>>,
    journal: Vec<Found>,
    watermark: u64,
    unchecked: bool,
}

impl Target<'_> {
    fn any(&self, wanted: impl Fn(&Found) -> bool, rng: &mut Rng) -> Option<Found> {
        let wanted: Vec<&Found> = self.journal.iter().filter(|found| wanted(found)).collect();
        wanted.get(rng.below(wanted.len() as u64) as usize).map(|found| (*found).clone())
    }

    /// Flips a bit in this block, or makes it unreadable.
    fn strike(&self, file: &str, block: u64, unreadable: bool, rng: &mut Rng) {
        if unreadable {
            assert!(self.universe.lose_block(self.host, file, block));
            return;
        }
        let byte = block + rng.below(BLOCK);
        let flipped = self.images[file][byte as usize] ^ 1 << rng.below(8);
        assert!(self.universe.overwrite_in_file(self.host, file, byte, &[flipped]));
    }

    /// A cluster of a record that is known to have been durable.
    fn cluster(&self, rng: &mut Rng) -> Option<What> {
        let durable =
            |found: &Found| found.header.record <= self.watermark && found.header.payload_bytes > 0;
        let found = self.any(durable, rng)?;
        let blocks = u64::from(found.header.payload_bytes) / BLOCK;
        let block = found.at + BLOCK + rng.below(blocks) * BLOCK;
        self.strike_payload(&found, block, rng)
    }

    fn strike_payload(&self, found: &Found, block: u64, rng: &mut Rng) -> Option<What> {
        let mut offset = found.at + BLOCK;
        for (s, section) in found.header.sections.iter().enumerate() {
            let width = section.cluster_size.bytes();
            for (e, entry) in section.entries.iter().enumerate() {
                let Entry::Change { sco, change } = entry else { continue };
                let ChangeKind::Data { crcs, .. } = &change.kind else { continue };
                let end = offset + crcs.len() as u64 * width;
                if block >= end {
                    offset = end;
                    continue;
                }
                let nth = (block - offset) / width;
                let start = offset + nth * width;
                self.strike(&found.file, block, !self.unchecked && rng.coin(), rng);
                if self.unchecked {
                    self.agree(found, (s, e, nth as usize), start..start + width);
                    return Some(What::Spare("a cluster and its checksum"));
                }
                let held = Held {
                    record: found.header.record,
                    epoch: section.epoch,
                    sco: *sco,
                    seq: change.seq,
                    clusters: change.addr.0..change.addr.0 + change.count.0,
                };
                return Some(What::Cluster(section.volume, held, change.addr.0 + nth));
            }
        }
        None
    }

    /// Makes the checksum in the record's header agree with what the cluster has become.
    fn agree(&self, found: &Found, at: (usize, usize, usize), cluster: std::ops::Range<u64>) {
        let (section, entry, nth) = at;
        let mut header = found.header.clone();
        let now = self.universe.file_bytes(self.host, &found.file);
        let crc = ClusterCrc::of(&now[cluster.start as usize..cluster.end as usize]);
        if let Entry::Change { change, .. } = &mut header.sections[section].entries[entry]
            && let ChangeKind::Data { crcs, .. } = &mut change.kind
        {
            crcs[nth] = crc;
        }
        let mut block = [0; BLOCK_BYTES];
        header.encode(&mut block).expect("it was decoded from a block");
        assert!(self.universe.overwrite_in_file(self.host, &found.file, found.at, &block));
    }

    /// The header of a record that is known to have been durable.
    fn header(&self, rng: &mut Rng) -> Option<What> {
        let found = self.any(|found| found.header.record <= self.watermark, rng)?;
        let unreadable = rng.coin();
        self.strike(&found.file, found.at, unreadable, rng);
        Some(What::Record(found.header.record))
    }

    /// A record that nothing calls durable.
    fn tail(&self, rng: &mut Rng) -> Option<What> {
        let found = self.any(|found| found.header.record > self.watermark, rng)?;
        let (record, payload) = (found.header.record, u64::from(found.header.payload_bytes));
        let last = self.journal.last().is_some_and(|last| last.header.record == record);
        if last && rng.coin() {
            self.strike(&found.file, found.at, true, rng);
            return Some(What::Record(record));
        }
        let block = found.at + rng.below(1 + payload / BLOCK) * BLOCK;
        self.strike(&found.file, block, false, rng);
        Some(What::Tail(record))
    }

    /// The header of a segment with records.
    fn segment_header(&self, rng: &mut Rng) -> Option<What> {
        let found = self.any(|_| true, rng)?;
        let unreadable = rng.coin();
        self.strike(&found.file, 0, unreadable, rng);
        Some(What::Spare("the header of a segment"))
    }

    /// A block that no live record takes.
    fn spare(&self, rng: &mut Rng) -> Option<What> {
        let nth = rng.below(self.images.len() as u64) as usize;
        let (file, bytes) = self.images.iter().nth(nth)?;
        let block = rng.below(bytes.len() as u64 / BLOCK) * BLOCK;
        let taken = |found: &Found| {
            let end = found.at + BLOCK + u64::from(found.header.payload_bytes);
            found.file == *file && (block == 0 || (found.at..end).contains(&block))
        };
        if self.journal.iter().any(taken) {
            return None;
        }
        self.strike(file, block, false, rng);
        Some(What::Spare("a block that nothing needs"))
    }
}
