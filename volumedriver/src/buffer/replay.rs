//! The surviving records put in order per volume, and what is known to be lost.

use std::collections::{BTreeMap, HashMap};

use volumedriver_core::format::journal::{BadCluster, Entry, Section, Source};
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::units::{
    ClusterAddr, ClusterCount, ClusterSize, Epoch, ScoId, ScoSeq, Seq, VolumeId,
};

use super::recover::{FoundRecord, Journal};
use super::tail::Tail;

/// What the journal has.
#[derive(Debug, Default)]
pub struct Replayed {
    pub volumes: Vec<ReplayedVolume>,
    /// Records are lost that may have held changes of any volume that is not in `volumes`.
    pub lost: Option<Damage>,
}

/// What the journal has of one volume. Parts of it may have been published before: the manifest tells.
#[derive(Debug)]
pub struct ReplayedVolume {
    pub volume: VolumeId,
    pub cluster_size: ClusterSize,
    /// Per owner, the last change that it is known to have made before something it wrote here. If neither the manifest nor what
    /// is here reaches this far, changes are lost.
    pub stated: Vec<(Epoch, Seq)>,
    /// In order of their position, then of the epoch.
    pub scos: Vec<ReplayedSco>,
    pub damage: Vec<Damage>,
}

#[derive(Debug)]
pub struct ReplayedSco {
    /// With the epoch of the records that wrote it.
    pub id: ScoId,
    /// Once sealed: by which epoch, and the number of clusters.
    pub sealed: Option<(Epoch, u32)>,
    /// In order of their sequence, with checksums.
    pub changes: Vec<Change>,
}

/// Something that was durable and is not readable any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Who had written what is damaged, if known.
    pub epoch: Option<Epoch>,
    /// First and last sequence concerned, if known.
    pub seqs: Option<(Seq, Seq)>,
    /// The clusters concerned, if known.
    pub clusters: Option<(ClusterAddr, ClusterCount)>,
    pub message: String,
}

/// A volume while it is put together.
struct Growing {
    cluster_size: ClusterSize,
    last_seq: Seq,
    stated: BTreeMap<Epoch, Seq>,
    scos: BTreeMap<(ScoSeq, Epoch), ReplayedSco>,
    damage: Vec<Damage>,
}

#[derive(Default)]
pub(super) struct Replay {
    volumes: HashMap<VolumeId, Growing>,
    /// Volumes seen before records were lost and not since, and the lost records.
    suspect: HashMap<VolumeId, (u64, u64)>,
    /// First and last of all lost records.
    lost: Option<(u64, u64)>,
    order: Vec<VolumeId>,
}

impl Replay {
    /// Puts all records together; notes in the tail where their clusters lie.
    pub fn run<F>(tail: &mut Tail<F>, places: &[Option<usize>], journal: Journal) -> Replayed {
        let mut replay = Self::default();
        let mut lost = journal.lost.into_iter().peekable();
        for (position, record) in journal.records.into_iter().enumerate() {
            while let Some((first, last, _)) = lost.next_if(|lost| lost.2 <= position) {
                replay.lose(first, last);
            }
            if let Some(Some(segment)) = places.get(record.used) {
                replay.record(tail, *segment, record);
            }
        }
        for (first, last, _) in lost {
            replay.lose(first, last);
        }
        replay.finish()
    }

    fn lose(&mut self, first: u64, last: u64) {
        tracing::error!(first, last, "durable records of the write buffer are unreadable");
        self.lost.get_or_insert((first, last)).1 = last;
        for volume in self.volumes.keys() {
            self.suspect.entry(*volume).or_insert((first, last)).1 = last;
        }
    }

    fn record<F>(&mut self, tail: &mut Tail<F>, segment: usize, record: FoundRecord) {
        for bad in &record.bad {
            tracing::error!(volume = %bad.volume, addr = %bad.addr, "a cluster in the write buffer is damaged");
        }
        let mut offset = record.payload_at;
        for section in record.header.sections {
            let (volume, epoch) = (section.volume, section.epoch);
            let seqs: Vec<Seq> = section.entries.iter().filter_map(seq_of).collect();
            self.section(tail, segment, section, &mut offset);
            let ours = |bad: &&BadCluster| bad.volume == volume && seqs.contains(&bad.seq);
            if let Some(growing) = self.volumes.get_mut(&volume) {
                for bad in record.bad.iter().filter(ours) {
                    growing.damaged(epoch, bad.seq, bad.addr);
                }
            }
        }
    }

    fn section<F>(
        &mut self,
        tail: &mut Tail<F>,
        segment: usize,
        section: Section,
        offset: &mut u64,
    ) {
        let source = Source {
            volume: section.volume,
            epoch: section.epoch,
            cluster_size: section.cluster_size,
            previous_seq: section.previous_seq,
        };
        let growing = self.volumes.entry(section.volume).or_insert_with(|| {
            self.order.push(section.volume);
            Growing::new(&source)
        });
        let stated = growing.stated.entry(section.epoch).or_default();
        *stated = section.previous_seq.max(*stated);
        if let Some(lost) = self.suspect.remove(&section.volume) {
            growing.check_chain(section.epoch, section.previous_seq, lost);
        }
        for entry in section.entries {
            let bytes = payload_bytes(&entry, section.cluster_size);
            if growing.cluster_size == section.cluster_size {
                growing.entry(tail, segment, &source, entry, *offset);
            }
            *offset += bytes;
        }
    }

    fn finish(mut self) -> Replayed {
        for (volume, lost) in self.suspect {
            if let Some(growing) = self.volumes.get_mut(&volume) {
                let after = format!("changes after sequence {}", growing.last_seq);
                growing.damage.push(maybe_lost(lost, &after));
            }
        }
        let mut volumes = self.volumes;
        let finished = |volume| Some(volumes.remove(&volume)?.finish(volume));
        Replayed {
            volumes: self.order.into_iter().filter_map(finished).collect(),
            lost: self.lost.map(|lost| maybe_lost(lost, "changes")),
        }
    }
}

fn maybe_lost((first, last): (u64, u64), what: &str) -> Damage {
    Damage {
        epoch: None,
        seqs: None,
        clusters: None,
        message: format!(
            "records {first} to {last} of the write buffer are unreadable and may hold {what}"
        ),
    }
}

fn seq_of(entry: &Entry) -> Option<Seq> {
    match entry {
        Entry::Change { change, .. } => Some(change.seq),
        Entry::Seal { .. } => None,
    }
}

fn payload_bytes(entry: &Entry, cluster_size: ClusterSize) -> u64 {
    match entry {
        Entry::Change { change: Change { kind: ChangeKind::Data { crcs, .. }, .. }, .. } => {
            crcs.len() as u64 * cluster_size.bytes()
        }
        Entry::Change { .. } | Entry::Seal { .. } => 0,
    }
}

impl Growing {
    fn new(source: &Source) -> Self {
        Self {
            cluster_size: source.cluster_size,
            last_seq: source.previous_seq,
            stated: BTreeMap::new(),
            scos: BTreeMap::new(),
            damage: Vec::new(),
        }
    }

    /// Whether this volume lost something in the records that are missing before a section.
    fn check_chain(&mut self, epoch: Epoch, previous_seq: Seq, (first, last): (u64, u64)) {
        if previous_seq > self.last_seq {
            self.damage.push(Damage {
                epoch: Some(epoch),
                seqs: Some((self.last_seq.next(), previous_seq)),
                clusters: None,
                message: format!(
                    "changes {} to {previous_seq} are lost: records {first} to {last} of the write buffer are \
                     unreadable",
                    self.last_seq.next()
                ),
            });
        }
    }

    /// Notes a damaged cluster, together with the one before it when they are neighbours.
    fn damaged(&mut self, epoch: Epoch, seq: Seq, addr: ClusterAddr) {
        if let Some(Damage { seqs: Some((_, last)), clusters: Some((first, count)), .. }) =
            self.damage.last_mut()
            && *last == seq
            && *first + *count == addr
        {
            *count += ClusterCount(1);
            return;
        }
        self.damage.push(Damage {
            epoch: Some(epoch),
            seqs: Some((seq, seq)),
            clusters: Some((addr, ClusterCount(1))),
            message: format!(
                "what change {seq} wrote from cluster {addr} on does not match its checksum"
            ),
        });
    }

    fn entry<F>(
        &mut self,
        tail: &mut Tail<F>,
        segment: usize,
        source: &Source,
        entry: Entry,
        offset: u64,
    ) {
        let epoch = source.epoch;
        match entry {
            Entry::Change { sco, change } => {
                self.last_seq = self.last_seq.max(change.seq);
                tail.replay(segment, source, sco, &change, offset);
                self.sco(sco, epoch).changes.push(change);
            }
            Entry::Seal { sco, cluster_count } => {
                tail.replay_seal(segment, source, sco);
                // A later owner may seal what an earlier one wrote.
                let written = self.scos.range_mut((sco, Epoch(0))..=(sco, epoch)).next_back();
                let sealed = match written {
                    Some((_, written)) => written,
                    None => self.sco(sco, epoch),
                };
                sealed.sealed = Some((epoch, cluster_count));
            }
        }
    }

    fn sco(&mut self, seq: ScoSeq, epoch: Epoch) -> &mut ReplayedSco {
        let id = ScoId { epoch, seq };
        let new = || ReplayedSco { id, sealed: None, changes: Vec::new() };
        self.scos.entry((seq, epoch)).or_insert_with(new)
    }

    fn finish(self, volume: VolumeId) -> ReplayedVolume {
        ReplayedVolume {
            volume,
            cluster_size: self.cluster_size,
            stated: self.stated.into_iter().collect(),
            scos: self.scos.into_values().collect(),
            damage: self.damage,
        }
    }
}
