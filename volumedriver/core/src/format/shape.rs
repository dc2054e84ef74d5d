//! What may become of a [`Shape`]: the rules every manifest chain keeps, whoever wrote it.
//!
//! - TLogs are numbered without gaps from 1; the runs, oldest first, and then the TLogs cover them all exactly once.
//! - SCO positions increase; every published position has an origin.
//! - `last_seq`, the size and the epoch never go back, and no number comes near the end of its type.

use std::ops::RangeInclusive;

use super::manifest::{
    Opening, Origin, RunRef, Shape, ShapeChange, TlogRef, check_sco_size, check_size,
    check_volume_name,
};
use crate::fault::{Fault, Result};
use crate::units::{
    ByteCount, Epoch, Location, MAX_NUMBER, ManifestNo, RunNo, ScoSeq, Seq, TlogNo,
};

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Fault::invalid(otherwise())) }
}

impl Shape {
    /// The epoch of the last opening; 0 before the first.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.openings.last().map_or(Epoch(0), |opening| opening.epoch)
    }

    /// Who wrote the SCO at this position; `None` before the first origin.
    #[must_use]
    pub fn origin_of(&self, sco: ScoSeq) -> Option<Origin> {
        let after = self.origins.partition_point(|origin| origin.first_sco <= sco);
        after.checked_sub(1).and_then(|last| self.origins.get(last)).copied()
    }

    /// The TLogs a run must name that takes the place of the runs `replaced` (neighbours, in their order) and, when these
    /// are the newest or none, of the TLogs up to `last_tlog`.
    pub fn covered_by(
        &self,
        replaced: &[RunNo],
        last_tlog: TlogNo,
    ) -> Result<RangeInclusive<TlogNo>> {
        let place = self.place_of(replaced)?;
        let runs = self.runs.get(place.clone()).unwrap_or_default();
        let first = match runs.first() {
            Some(run) => run.first_tlog,
            None => self.next_uncovered(),
        };
        let newest = place.end == self.runs.len();
        let least = runs.last().map_or(first, |run| run.last_tlog);
        let most = if newest { self.last_tlog } else { least };
        ensure((least..=most).contains(&last_tlog), || {
            format!(
                "a run in place of {} runs ends with TLog {last_tlog}, not in {least}..={most}",
                runs.len()
            )
        })?;
        Ok(first..=last_tlog)
    }

    /// Makes the change, which is of manifest `no`. Changes nothing when it breaks a rule.
    pub fn apply(&mut self, no: ManifestNo, change: &ShapeChange) -> Result<()> {
        match change {
            ShapeChange::Opened(opening) => self.open(no, *opening),
            ShapeChange::Resized(size) => self.resize(*size),
            ShapeChange::ScoSizeSet(size) => {
                check_sco_size(*size, self.cluster_size)?;
                self.sco_size = *size;
                Ok(())
            }
            ShapeChange::Published { tlog, last_seq, origins } => {
                self.publish(*tlog, *last_seq, origins)
            }
            ShapeChange::Compacted { run, replaced } => self.compact(no, *run, replaced),
        }
    }

    /// Every rule of this file holds.
    pub fn check(&self) -> Result<()> {
        check_volume_name(&self.name)?;
        check_size(self.size)?;
        check_sco_size(self.sco_size, self.cluster_size)?;
        let ascending = |a: &Opening, b: &Opening| a.epoch < b.epoch && a.no < b.no;
        ensure(self.openings.is_sorted_by(ascending), || {
            "its openings do not increase".to_owned()
        })?;
        let numbers = [self.epoch().0, self.last_seq.0, self.last_tlog.0];
        ensure(numbers.iter().all(|number| *number <= MAX_NUMBER), || {
            format!("no volume reaches epoch, change and TLog {numbers:?}")
        })?;
        self.check_origins()?;
        self.check_coverage()?;
        self.check_tlogs()
    }

    fn check_origins(&self) -> Result<()> {
        let within = |origin: &Origin| (1..=self.last_sco.0).contains(&origin.first_sco.0);
        ensure(self.origins.iter().all(within), || "an origin is of no published SCO".to_owned())?;
        ensure(self.origins.is_sorted_by(follows), || "its origins do not increase".to_owned())?;
        ensure(self.last_sco.0 <= Location::MAX_SCO, || {
            format!("SCO position {} is too high", self.last_sco)
        })
    }

    fn check_coverage(&self) -> Result<()> {
        let mut next = TlogNo(1);
        let runs = self.runs.iter().map(|run| (run.first_tlog, run.last_tlog));
        let tlogs = self.tlogs.iter().map(|tlog| (tlog.no, tlog.no));
        for (first, last) in runs.chain(tlogs) {
            ensure(first == next && last >= first && last <= self.last_tlog, || {
                format!("TLogs {first} to {last} stand where TLog {next} is due")
            })?;
            next = TlogNo(last.0.saturating_add(1));
        }
        ensure(next.0 - 1 == self.last_tlog.0, || format!("nothing covers TLog {next}"))?;
        let mut nos: Vec<RunNo> = self.runs.iter().map(|run| run.no).collect();
        nos.sort_unstable();
        ensure(nos.is_sorted_by(|a, b| a < b), || "two of its runs have one number".to_owned())
    }

    fn check_tlogs(&self) -> Result<()> {
        let mut last = ScoSeq(0);
        for tlog in &self.tlogs {
            ensure(tlog.first_sco > last && tlog.last_sco >= tlog.first_sco, || {
                format!("TLog {} begins with SCO {} after SCO {last}", tlog.no, tlog.first_sco)
            })?;
            ensure(self.origin_of(tlog.first_sco).is_some(), || {
                format!("TLog {} has no origin", tlog.no)
            })?;
            last = tlog.last_sco;
        }
        ensure(last <= self.last_sco, || {
            format!("SCO {last} is listed, SCO {} is the last", self.last_sco)
        })
    }

    fn open(&mut self, no: ManifestNo, opening: Opening) -> Result<()> {
        let last = self.openings.last();
        ensure(opening.no == no, || {
            format!("manifest {no} is not the opening manifest {}", opening.no)
        })?;
        ensure(opening.epoch > self.epoch() && opening.epoch.0 <= MAX_NUMBER, || {
            format!("epoch {} follows epoch {}", opening.epoch, self.epoch())
        })?;
        ensure(last.is_none_or(|last| last.no < no), || {
            format!("manifest {no} opens an epoch once more")
        })?;
        self.openings.push(opening);
        Ok(())
    }

    fn resize(&mut self, size: ByteCount) -> Result<()> {
        check_size(size)?;
        ensure(size >= self.size, || {
            format!("a volume of {} bytes cannot shrink to {size}", self.size)
        })?;
        self.size = size;
        Ok(())
    }

    fn publish(&mut self, tlog: TlogRef, last_seq: Seq, origins: &[Origin]) -> Result<()> {
        let TlogRef { no, epoch, first_sco, last_sco, .. } = tlog;
        ensure(self.last_tlog.next() == no && no.0 <= MAX_NUMBER, || {
            format!("TLog {no} follows TLog {}", self.last_tlog)
        })?;
        ensure(epoch.0 > 0 && epoch <= self.epoch(), || {
            format!("TLog {no} is of epoch {epoch}, the volume of {}", self.epoch())
        })?;
        ensure(
            first_sco > self.last_sco && last_sco >= first_sco && last_sco.0 <= Location::MAX_SCO,
            || {
                format!(
                    "TLog {no} lists SCOs {first_sco} to {last_sco} after SCO {}",
                    self.last_sco
                )
            },
        )?;
        ensure(last_seq >= self.last_seq && last_seq.0 <= MAX_NUMBER, || {
            format!("change {last_seq} of TLog {no} follows change {}", self.last_seq)
        })?;
        let within = |origin: &Origin| (first_sco..=last_sco).contains(&origin.first_sco);
        let in_order =
            self.origins.last().into_iter().chain(origins).is_sorted_by(|a, b| follows(a, b));
        ensure(in_order && origins.iter().all(within), || {
            format!("the origins of TLog {no} are out of order")
        })?;
        let known = self.origin_of(first_sco).is_some()
            || origins.first().is_some_and(|o| o.first_sco == first_sco);
        ensure(known, || format!("SCO {first_sco} of TLog {no} has no origin"))?;
        self.tlogs.push(tlog);
        self.origins.extend_from_slice(origins);
        (self.last_tlog, self.last_sco, self.last_seq) = (no, last_sco, last_seq);
        Ok(())
    }

    fn compact(&mut self, no: ManifestNo, run: RunRef, replaced: &[RunNo]) -> Result<()> {
        let covered = self.covered_by(replaced, run.last_tlog)?;
        ensure(*covered.start() == run.first_tlog && !covered.is_empty(), || {
            format!("run {} covers TLogs {} on, not {} on", run.no, run.first_tlog, covered.start())
        })?;
        ensure(run.no.0 > 0 && run.no.0 <= no.0, || {
            format!("run {} is of a later manifest than {no}", run.no)
        })?;
        ensure(run.epoch.0 > 0 && run.epoch <= self.epoch(), || {
            format!("run {} is of epoch {}, the volume of {}", run.no, run.epoch, self.epoch())
        })?;
        ensure(self.runs.iter().all(|other| other.no != run.no), || {
            format!("there is a run {} already", run.no)
        })?;
        let place = self.place_of(replaced)?;
        self.runs.splice(place, [run]);
        self.tlogs.retain(|tlog| tlog.no > run.last_tlog);
        Ok(())
    }

    /// Where the runs `replaced` stand; the end of the list when there are none.
    fn place_of(&self, replaced: &[RunNo]) -> Result<std::ops::Range<usize>> {
        let Some(first) = replaced.first() else {
            return Ok(self.runs.len()..self.runs.len());
        };
        let start = self.runs.iter().position(|run| run.no == *first).unwrap_or(self.runs.len());
        let place = start..start.saturating_add(replaced.len());
        let stands = self
            .runs
            .get(place.clone())
            .is_some_and(|runs| runs.iter().map(|r| r.no).eq(replaced.iter().copied()));
        ensure(stands, || format!("runs {replaced:?} are not neighbours in the shape"))?;
        Ok(place)
    }

    fn next_uncovered(&self) -> TlogNo {
        TlogNo(self.runs.last().map_or(1, |run| run.last_tlog.0.saturating_add(1)))
    }
}

/// Whether `b` may stand after `a` among origins.
fn follows(a: &Origin, b: &Origin) -> bool {
    a.first_sco < b.first_sco && (a.volume != b.volume || a.epoch <= b.epoch)
}
