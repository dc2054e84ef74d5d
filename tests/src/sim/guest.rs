//! The guests: requests in flight, each noted in the model and checked against it.
//!
//! Like a real guest's page cache they never have two changes of one range in flight, except in deliberate races, whose
//! outcome is read back before the range is let go.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use volumedriver::config::settings::{AckLevel, FlushLevel};
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::request::{Allocation, Fua, Reply, Request, ZeroMode};
use volumedriver_core::units::{ByteCount, ByteOffset, SECTOR_BYTES};

use super::Findings;
use super::engine::{State, Volume};
use super::plan::VolumePlan;
use crate::model::{Asked, Fill, Model, OpNo, Place, Span, UNREADABLE};
use crate::world::rng::Rng;

const SECTOR: u64 = SECTOR_BYTES;

/// What one request does.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Write(Fua),
    /// The synchronous door, where it is open.
    WriteNow,
    Read,
    ReadNow,
    Flush,
    Trim(Fua),
    Zeroes(ZeroMode, Fua),
    Status,
    Cache,
    Resize,
    Drain,
    /// As many publications as make a checkpoint of the map, and perhaps time enough for what it replaces to be deleted.
    Churn,
    Race,
}

/// More TLogs than make a run.
const CHURNS: usize = 40;
/// Longer than a replaced object is kept.
const OUT_OF_GRACE: Duration = Duration::from_secs(700);

impl Step {
    /// Whether it only asks, and so must be answered even by a volume that takes no writes.
    #[must_use]
    pub fn only_reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadNow | Self::Status | Self::Cache)
    }

    pub fn draw(rng: &mut Rng) -> Self {
        use Step::{
            Cache, Churn, Drain, Flush, Race, Read, ReadNow, Resize, Status, Trim, Write, WriteNow,
            Zeroes,
        };
        let fua = if rng.chance(100_000) { Fua::Yes } else { Fua::No };
        let mode = if rng.coin() { ZeroMode::MayPunch } else { ZeroMode::Allocate };
        rng.pick(&[
            (340, Write(fua)),
            (80, WriteNow),
            (180, Read),
            (40, ReadNow),
            (80, Flush),
            (50, Trim(fua)),
            (50, Zeroes(mode, fua)),
            (30, Status),
            (20, Cache),
            (10, Resize),
            (10, Drain),
            (2, Churn),
            (30, Race),
        ])
    }
}

/// Whether a step may fail with this.
pub type Excuse = Rc<dyn Fn(Step, &Fault) -> bool>;

/// One guest and its volume, through all lives of the host.
pub struct Guest {
    pub plan: VolumePlan,
    pub model: RefCell<Model>,
    pub findings: Findings,
    /// Errors that the faults of this run excuse.
    pub excused: RefCell<Excuse>,
    locks: RefCell<Vec<Span>>,
    poisoned: RefCell<Vec<Span>>,
    unlocked: Notify,
    /// Steps under way, by number.
    in_flight: RefCell<BTreeMap<u64, Step>>,
    next: Cell<u64>,
}

/// A range no other change may touch. If it is dropped without [`Lock::release`], the change failed: nobody knows what is
/// there then, and the range is left alone for the rest of this life.
struct Lock<'a> {
    guest: &'a Guest,
    span: Span,
    failed: bool,
}

impl Lock<'_> {
    fn release(mut self) {
        self.failed = false;
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        let mut locks = self.guest.locks.borrow_mut();
        if let Some(n) = locks.iter().position(|span| *span == self.span) {
            locks.swap_remove(n);
        }
        if self.failed {
            self.guest.poisoned.borrow_mut().push(self.span);
        }
        self.guest.unlocked.notify_waiters();
    }
}

impl Guest {
    #[must_use]
    pub fn new(plan: VolumePlan, tag: u32, findings: Findings, excused: Excuse) -> Self {
        let sectors = (plan.size / SECTOR) as usize;
        let cluster = (plan.cluster_size.bytes() / SECTOR) as usize;
        Self::with_model(plan, Model::new(tag, sectors, cluster), findings, excused)
    }

    /// The guest that goes on with the volume under a new owner, while this one does not know of it yet.
    #[must_use]
    pub fn taken_over(&self, excused: Excuse) -> Self {
        let model = self.model.borrow().taken_over();
        Self::with_model(self.plan.clone(), model, self.findings.clone(), excused)
    }

    fn with_model(plan: VolumePlan, model: Model, findings: Findings, excused: Excuse) -> Self {
        Self {
            plan,
            model: RefCell::new(model),
            findings,
            excused: RefCell::new(excused),
            locks: RefCell::default(),
            poisoned: RefCell::default(),
            unlocked: Notify::new(),
            in_flight: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// The host is up again: nothing is in flight.
    pub fn reset(&self) {
        self.locks.borrow_mut().clear();
        self.poisoned.borrow_mut().clear();
        self.in_flight.borrow_mut().clear();
    }

    /// Waits until fewer than `depth` requests are in flight.
    pub async fn enter(&self, depth: usize) {
        while self.in_flight.borrow().len() >= depth {
            self.unlocked.notified().await;
        }
    }

    /// Waits until nothing is in flight.
    pub async fn settle(&self) {
        self.enter(1).await;
    }

    /// What is under way, for a message.
    #[must_use]
    pub fn waiting(&self) -> Vec<Step> {
        self.in_flight.borrow().values().copied().collect()
    }

    /// Waits for the range; `None` when a change failed there.
    async fn lock(&self, span: Span) -> Option<Lock<'_>> {
        loop {
            let changed = self.unlocked.notified();
            if self.poisoned.borrow().iter().any(|bad| bad.overlaps(span)) {
                return None;
            }
            if !self.locks.borrow().iter().any(|held| held.overlaps(span)) {
                self.locks.borrow_mut().push(span);
                return Some(Lock { guest: self, span, failed: true });
            }
            changed.await;
        }
    }

    fn complain(&self, step: Step, what: impl std::fmt::Display) {
        self.findings.add(format!("{} {step:?}: {what}", self.plan.name));
    }

    /// Notes an error that nothing excuses; true if there was none at all.
    fn accept<T>(&self, step: Step, outcome: Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(fault) if self.excuses(step, &fault) => None,
            Err(fault) => {
                self.complain(step, format!("P4: failed with {:?}: {fault}", fault.kind));
                None
            }
        }
    }

    /// Whether the faults of this run excuse that a step fails with this.
    pub fn excuses(&self, step: Step, fault: &Fault) -> bool {
        let excused = self.excused.borrow().clone();
        excused(step, fault)
    }

    /// Notes that a step begins; its number.
    pub fn begin(&self, step: Step) -> u64 {
        self.next.set(self.next.get() + 1);
        self.in_flight.borrow_mut().insert(self.next.get(), step);
        self.next.get()
    }

    /// Carries out a step that was begun, from asking to answer.
    pub async fn perform(&self, volume: &Volume, number: u64, step: Step, rng: Rng) {
        self.carry_out(volume, step, rng).await;
        self.in_flight.borrow_mut().remove(&number);
        self.unlocked.notify_waiters();
    }

    async fn carry_out(&self, volume: &Volume, step: Step, mut rng: Rng) {
        match step {
            Step::Write(fua) => self.write(volume, self.any_span(&mut rng), fua).await,
            Step::WriteNow => self.write_now(volume, step, &mut rng).await,
            Step::Read => self.read(volume, self.any_span(&mut rng)).await,
            Step::ReadNow => self.read_now(volume, step, &mut rng),
            Step::Flush => self.flush(volume).await,
            Step::Trim(fua) => self.trim(volume, step, fua, &mut rng).await,
            Step::Zeroes(mode, fua) => self.zero(volume, step, mode, fua, &mut rng).await,
            Step::Status => self.status(volume, step, &mut rng).await,
            Step::Cache => {
                let (offset, len) = bytes_of(self.any_span(&mut rng));
                self.accept(step, volume.submit(Request::Cache { offset, len }).await);
            }
            Step::Resize => self.resize(volume, step, &mut rng).await,
            Step::Drain => drop(self.drain(volume).await),
            Step::Churn => self.churn(volume, &mut rng).await,
            Step::Race => self.race(volume, step, &mut rng).await,
        }
    }

    /// A range: mostly small and aligned, often in a hot part of the volume.
    fn any_span(&self, rng: &mut Rng) -> Span {
        let sectors = self.model.borrow().sectors() as u64;
        let cluster = self.plan.cluster_size.bytes() / SECTOR;
        let count = match rng.below(100) {
            0..60 => cluster * rng.between(1, 8),
            60..80 => rng.between(1, 24),
            80..95 => rng.between(1, 512),
            _ => rng.between(1, 2048),
        };
        let count = count.min(sectors);
        let room = sectors - count;
        let reach = if rng.coin() { room.min(sectors / 8) } else { room };
        let mut first = rng.between(0, reach);
        if count.is_multiple_of(cluster) && !rng.chance(50_000) {
            first -= first % cluster;
        }
        Span { first: first as usize, count: count as usize }
    }

    /// How far an acknowledged plain change has come.
    fn acknowledged(&self, fua: Fua) -> Option<Place> {
        match (fua, self.plan.settings.ack) {
            (Fua::Yes, _) => Some(self.flush_place()),
            (Fua::No, AckLevel::Buffer) => Some(Place::Journal),
            (Fua::No, AckLevel::Memory) => None,
        }
    }

    fn flush_place(&self) -> Place {
        match self.plan.settings.flush {
            FlushLevel::Journal => Place::Journal,
            FlushLevel::Backend => Place::Backend,
        }
    }

    /// Sends a change that the model was told of.
    async fn change(
        &self,
        volume: &Volume,
        step: Step,
        asked: &Asked,
        request: Request,
        fua: Fua,
    ) -> bool {
        let outcome = volume.submit(request).await;
        let answered = self.accept(step, outcome).is_some();
        if answered {
            self.check_owner(volume, step);
            self.model.borrow_mut().done(asked, self.acknowledged(fua));
        }
        answered
    }

    /// P3: an owner that knows it is fenced acknowledges nothing more.
    fn check_owner(&self, volume: &Volume, step: Step) {
        if volume.state() == State::Fenced {
            self.complain(step, "P3: acknowledged by an owner that knows it is fenced");
        }
    }

    /// P3, asked again: neither door lets anything in.
    pub async fn check_nothing_is_acknowledged(&self, volume: &Volume) {
        if volume.state() != State::Fenced {
            return;
        }
        let data = vec![1; self.plan.cluster_size.bytes() as usize];
        let offset = ByteOffset(0);
        let now = volume.try_write(offset, &data).is_some_and(|outcome| outcome.is_ok());
        let write = Request::Write { offset, data: data.into(), fua: Fua::No };
        let later = volume.submit(write).await.is_ok();
        if now || later || volume.submit(Request::Flush).await.is_ok() {
            self.complain(Step::Flush, "P3: a fenced owner acknowledged a write or a flush");
        }
    }

    fn write_request(&self, asked: &Asked, span: Span, fua: Fua) -> Request {
        let data = Bytes::from(self.model.borrow().bytes(asked.op, span));
        Request::Write { offset: ByteOffset(span.first as u64 * SECTOR), data, fua }
    }

    /// Writes, and lets the range go once that is acknowledged.
    pub async fn write(&self, volume: &Volume, span: Span, fua: Fua) {
        let Some(lock) = self.lock(span).await else { return };
        let asked = self.model.borrow_mut().ask(span, Fill::Data);
        let request = self.write_request(&asked, span, fua);
        if self.change(volume, Step::Write(fua), &asked, request, fua).await {
            lock.release();
        }
    }

    async fn write_now(&self, volume: &Volume, step: Step, rng: &mut Rng) {
        let span = self.any_span(rng);
        let Some(lock) = self.lock(span).await else { return };
        let asked = self.model.borrow_mut().ask(span, Fill::Data);
        let data = self.model.borrow().bytes(asked.op, span);
        let (offset, _) = bytes_of(span);
        match volume.try_write(offset, &data) {
            Some(outcome) => {
                if self.accept(step, outcome).is_some() {
                    self.model.borrow_mut().done(&asked, None);
                    lock.release();
                }
            }
            None => {
                let request = self.write_request(&asked, span, Fua::No);
                if self.change(volume, step, &asked, request, Fua::No).await {
                    lock.release();
                }
            }
        }
    }

    async fn trim(&self, volume: &Volume, step: Step, fua: Fua, rng: &mut Rng) {
        let span = self.any_span(rng);
        let Some(lock) = self.lock(span).await else { return };
        let asked = self.model.borrow_mut().ask(span, Fill::Zeroes);
        let (offset, len) = bytes_of(span);
        if self.change(volume, step, &asked, Request::Trim { offset, len, fua }, fua).await {
            lock.release();
        }
    }

    async fn zero(&self, volume: &Volume, step: Step, mode: ZeroMode, fua: Fua, rng: &mut Rng) {
        let span = self.any_span(rng);
        let Some(lock) = self.lock(span).await else { return };
        let asked = self.model.borrow_mut().ask(span, Fill::Zeroes);
        let (offset, len) = bytes_of(span);
        let request = Request::WriteZeroes { offset, len, mode, fua };
        if self.change(volume, step, &asked, request, fua).await {
            lock.release();
        }
    }

    pub async fn read(&self, volume: &Volume, span: Span) {
        let step = Step::Read;
        let asked = self.model.borrow_mut().ask_read(span);
        let (offset, len) = bytes_of(span);
        let outcome = volume.submit(Request::Read { offset, len }).await;
        let data = match self.accept(step, outcome) {
            Some(Reply::Data(pieces)) => pieces.concat(),
            Some(other) => return self.complain(step, format!("answered with {other:?}")),
            None => return,
        };
        let checked = self.model.borrow_mut().check_read(&asked, &data);
        if let Err(what) = checked {
            self.complain(step, format!("P2: {what}"));
        }
    }

    fn read_now(&self, volume: &Volume, step: Step, rng: &mut Rng) {
        let span = self.any_span(rng);
        let asked = self.model.borrow_mut().ask_read(span);
        let mut data = vec![0xaa; span.count * SECTOR as usize];
        let (offset, _) = bytes_of(span);
        let Some(outcome) = volume.try_read(offset, &mut data) else {
            return self.model.borrow_mut().forget_read(&asked);
        };
        if self.accept(step, outcome).is_some() {
            let checked = self.model.borrow_mut().check_read(&asked, &data);
            if let Err(what) = checked {
                self.complain(step, format!("P2: {what}"));
            }
        }
    }

    pub async fn flush(&self, volume: &Volume) {
        let asked = self.model.borrow_mut().ask_sync();
        if self.accept(Step::Flush, volume.submit(Request::Flush).await).is_some() {
            self.check_owner(volume, Step::Flush);
            self.model.borrow_mut().synced(asked, self.flush_place());
        }
    }

    /// Waits until everything is uploaded; whether it was.
    pub async fn drain(&self, volume: &Volume) -> bool {
        let asked = self.model.borrow_mut().ask_sync();
        let drained = self.accept(Step::Drain, volume.drain().await).is_some();
        if drained {
            self.check_owner(volume, Step::Drain);
            self.model.borrow_mut().synced(asked, Place::Backend);
        }
        drained
    }

    async fn churn(&self, volume: &Volume, rng: &mut Rng) {
        let cluster = (self.plan.cluster_size.bytes() / SECTOR) as usize;
        for n in 0..=CHURNS {
            if n == CHURNS && rng.coin() {
                tokio::time::sleep(OUT_OF_GRACE).await;
            }
            let clusters = self.model.borrow().sectors() / cluster;
            let first = rng.below(clusters as u64) as usize * cluster;
            self.write(volume, Span { first, count: cluster }, Fua::No).await;
            if !self.drain(volume).await {
                return;
            }
        }
    }

    async fn resize(&self, volume: &Volume, step: Step, rng: &mut Rng) {
        let whole = Span { first: 0, count: usize::MAX / 2 };
        let Some(lock) = self.lock(whole).await else { return };
        let now = self.model.borrow().sectors() as u64;
        let most = self.plan.max_size / SECTOR;
        let cluster = self.plan.cluster_size.bytes() / SECTOR;
        let wanted = rng.between(now, most.max(now)) / cluster * cluster;
        self.model.borrow_mut().ask_resize(wanted as usize);
        let outcome = volume.resize(ByteCount(wanted * SECTOR)).await;
        if self.accept(step, outcome).is_some() {
            self.check_owner(volume, step);
            self.model.borrow_mut().resized(wanted as usize);
            lock.release();
        }
    }

    async fn status(&self, volume: &Volume, step: Step, rng: &mut Rng) {
        let span = self.any_span(rng);
        let asked = self.model.borrow_mut().ask_read(span);
        let (offset, len) = bytes_of(span);
        let max_extents = rng.between(1, 64) as u32;
        let outcome = volume.submit(Request::Status { offset, len, max_extents }).await;
        let extents = match self.accept(step, outcome) {
            Some(Reply::Extents(extents)) => extents,
            Some(other) => return self.complain(step, format!("answered with {other:?}")),
            None => return,
        };
        let total: u64 = extents.iter().map(|e| e.len.0).sum();
        let differ = extents.windows(2).all(|pair| pair[0].state != pair[1].state);
        if extents.is_empty() || extents.len() > max_extents as usize || total > len.0 || !differ {
            return self.complain(
                step,
                format!("{len} bytes, {max_extents} extents: answered {extents:?}"),
            );
        }
        let mut first = span.first;
        for extent in extents {
            let part = Span { first, count: (extent.len.0 / SECTOR) as usize };
            first += part.count;
            if extent.state != Allocation::Data
                && let Err(what) = self.model.borrow().check_zeroes(&asked, part)
            {
                self.complain(step, format!("said to be {:?}: {what}", extent.state));
            }
        }
        self.model.borrow_mut().forget_read(&asked);
    }

    /// Two or three overlapping writes at once; then one reads what came of it.
    async fn race(&self, volume: &Volume, step: Step, rng: &mut Rng) {
        let sectors = self.model.borrow().sectors() as u64;
        let first = rng.below(sectors.saturating_sub(64));
        let union = Span { first: first as usize, count: 64.min(sectors) as usize };
        let Some(lock) = self.lock(union).await else { return };
        let mut racers: Vec<(Asked, Span)> = Vec::new();
        for _ in 0..rng.between(2, 3) {
            let skip = rng.below(32) as usize;
            let count = rng.between(1, 32) as usize;
            let span = Span {
                first: union.first + skip,
                count: count.min(union.count - skip.min(union.count)),
            };
            if span.count > 0 && span.end() <= union.end() {
                racers.push((self.model.borrow_mut().ask(span, Fill::Data), span));
            }
        }
        let sent = racers
            .iter()
            .map(|(asked, span)| volume.submit(self.write_request(asked, *span, Fua::No)));
        let outcomes = futures_util::future::join_all(sent).await;
        let answered =
            outcomes.into_iter().filter_map(|outcome| self.accept(step, outcome)).count();
        let (offset, len) = bytes_of(union);
        let read = volume.submit(Request::Read { offset, len }).await;
        let Some(Reply::Data(pieces)) = self.accept(step, read) else { return };
        if answered < racers.len() {
            return;
        }
        let racers: Vec<Asked> = racers.into_iter().map(|(asked, _)| asked).collect();
        let settled = self.model.borrow_mut().settle_race(&racers, union.first, &pieces.concat());
        match settled {
            Ok(()) => lock.release(),
            Err(what) => self.complain(step, what),
        }
    }

    /// Reads, several times if need be: what was flipped on its way once is read well another time. `None` for what cannot be
    /// read at all.
    async fn read_again(&self, volume: &Volume, span: Span) -> Result<Option<Vec<u8>>> {
        const ATTEMPTS: usize = 100;
        let (offset, len) = bytes_of(span);
        for _ in 0..ATTEMPTS {
            match volume.submit(Request::Read { offset, len }).await {
                Ok(Reply::Data(pieces)) => return Ok(Some(pieces.concat())),
                Ok(other) => return Err(Fault::bug(format!("a read answered {other:?}"))),
                Err(fault) if self.excuses(Step::Read, &fault) => {}
                Err(fault) if is_damage(&fault) => {
                    tracing::info!(%fault, ?span, "cannot be read");
                    return Ok(None);
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(None)
    }

    /// The whole volume as it is now; sectors that cannot be read are [`UNREADABLE`]. `None` when something was wrong.
    pub async fn look(&self, volume: &Volume) -> Option<Vec<OpNo>> {
        const PART: usize = 2048;
        let sectors = (volume.size().0 / SECTOR) as usize;
        let mut words = Vec::with_capacity(sectors);
        for first in (0..sectors).step_by(PART) {
            let span = Span { first, count: PART.min(sectors - first) };
            words.extend(self.look_at(volume, span).await?);
        }
        Some(words)
    }

    async fn look_at(&self, volume: &Volume, span: Span) -> Option<Vec<OpNo>> {
        let whole = match self.read_again(volume, span).await {
            Ok(whole) => whole,
            Err(fault) => {
                self.complain(Step::Read, format!("after a restart: {fault}"));
                return None;
            }
        };
        let Some(data) = whole else {
            // Damage concerns single clusters.
            let cluster = (self.plan.cluster_size.bytes() / SECTOR) as usize;
            if span.count <= cluster {
                return Some(vec![UNREADABLE; span.count]);
            }
            let mut words = Vec::with_capacity(span.count);
            for first in (span.first..span.end()).step_by(cluster) {
                let part = Span { first, count: cluster.min(span.end() - first) };
                words.extend(Box::pin(self.look_at(volume, part)).await?);
            }
            return Some(words);
        };
        let decoded = self.model.borrow().decode(span.first, &data);
        decoded
            .map_err(|what| self.complain(Step::Read, format!("P2 after a restart: {what}")))
            .ok()
    }

    /// Reads the whole volume after a crash and checks it against P1. False when it could not be read.
    pub async fn recover(&self, volume: &Volume, kept: Place) -> bool {
        let Some(words) = self.look(volume).await else { return false };
        if let Some(bad) = words.iter().position(|word| *word == UNREADABLE) {
            self.complain(
                Step::Read,
                format!("P2: sector {bad} cannot be read, and nothing is damaged"),
            );
            return false;
        }
        self.settle_for(self.model.borrow_mut().recover(words, kept))
    }

    /// As [`Guest::recover`], after the loss of a cluster was accepted: it may be unreadable, and is written anew.
    pub async fn recover_without(&self, volume: &Volume, kept: Place, cluster: u64) -> bool {
        let Some(words) = self.look(volume).await else { return false };
        let sectors = (self.plan.cluster_size.bytes() / SECTOR) as usize;
        let lost = Span { first: cluster as usize * sectors, count: sectors };
        let bad = |n: &usize| words[*n] == UNREADABLE && !(lost.first..lost.end()).contains(n);
        if let Some(bad) = (0..words.len()).find(bad) {
            self.complain(Step::Read, format!("P2: sector {bad} cannot be read, {lost:?} is lost"));
            return false;
        }
        if !self.settle_for(self.model.borrow_mut().recover(words, kept)) {
            return false;
        }
        self.write(volume, lost, Fua::Yes).await;
        // Before that is on the backend, the damaged cluster may come back with it.
        self.drain(volume).await
    }

    /// As [`Guest::recover`], after the end of the journal decayed: what was flushed may be missing.
    pub async fn recover_torn(&self, volume: &Volume) -> bool {
        let Some(words) = self.look(volume).await else { return false };
        self.settle_for(self.model.borrow_mut().recover_torn(words))
    }

    /// Notes what the model complains of; whether it did not.
    pub fn settle_for(&self, outcome: Result<(), String>) -> bool {
        if let Err(what) = &outcome {
            self.complain(Step::Read, what);
        }
        outcome.is_ok()
    }
}

fn bytes_of(span: Span) -> (ByteOffset, ByteCount) {
    (ByteOffset(span.first as u64 * SECTOR), ByteCount(span.count as u64 * SECTOR))
}

/// Whether reads may fail with this in runs where bits flip.
#[must_use]
pub fn is_damage(fault: &Fault) -> bool {
    fault.kind == Kind::Corrupt
}
