//! A contested life: another host takes the volumes over while the first goes on, perhaps cut off from the store, perhaps after
//! standing still, and does not know (P3, INV-6).
//!
//! Each side has its own guests. Those of the new owner go on from the history that the store had at the takeover; the model of
//! the old one must agree with that: everything it was told is on the backend is there. Nothing it does afterwards may show.

use std::rc::Rc;
use std::time::Duration;

use volumedriver_core::fault::{Fault, Kind, Result};

use super::engine::{Engine, State, Volume};
use super::guest::{Excuse, Guest, Step};
use super::life::Sim;
use crate::model::{OpNo, Place};
use crate::world::rng::Rng;

/// Longer than any change of a host that was cut off is on its way.
const LATE: Duration = Duration::from_secs(90);
/// The old owner must have learned of its successor within this time after it asked for an upload.
const LEARNS_WITHIN: Duration = Duration::from_secs(3600);

/// What keeps the old owner from knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ignorance {
    /// Nothing: it was merely not asked.
    Unasked,
    CutOff,
    StandsStill,
}

impl Sim {
    /// The serving host's volumes are taken over by the other host; both sides go on for a while.
    pub(super) async fn contest(
        &self,
        outgoing: &Engine,
        old: &[Rc<Volume>],
        rng: &mut Rng,
        budget: u64,
    ) -> Result<()> {
        let (loser, winner) = (self.serving.get(), 1 - self.serving.get());
        let stale = self.stale_guests();
        let ignorance = rng.pick(&[
            (2, Ignorance::Unasked),
            (3, Ignorance::CutOff),
            (2, Ignorance::StandsStill),
        ]);
        self.set_ignorance(loser, ignorance, true);
        if ignorance == Ignorance::CutOff {
            self.go_on_alone(&stale, old, rng, budget / 4).await;
        }
        // From here on a crash of the new owner is what ends the life.
        self.contested.set(true);
        self.serving.set(winner);
        // Until it has a volume, the winner's host has nothing of it but what is on the backend.
        self.kept.iter().for_each(|kept| kept.set(Place::Backend));
        if rng.coin() {
            self.universe.crash_after(winner, rng.between(300, 6000));
        }
        let engine =
            self.open_engine(self.universe.world_of(winner), self.nodes[winner].get()).await?;
        *self.opened.borrow_mut() = Some(engine.clone());
        let (mut new, mut taken) = (Vec::new(), Vec::new());
        for (n, guest) in stale.iter().enumerate().take(old.len()) {
            let volume = self.open(&engine, n).await?;
            let Some(words) = self.take_over(n, guest, &volume).await else { return Ok(()) };
            taken.push(words);
            new.push(volume);
        }
        engine.shard.settle();
        let heals_at = rng.below(budget + 1);
        for step in 0..budget {
            if step == heals_at {
                self.set_ignorance(loser, ignorance, false);
            }
            if !self.take_step() {
                break;
            }
            let awake = ignorance != Ignorance::StandsStill || step >= heals_at;
            if awake && rng.chance(400_000) {
                self.try_step(&stale, old, rng);
            } else {
                let guests = self.guests.borrow().clone();
                self.step(&guests, &new, rng).await;
            }
            if rng.chance(30_000) {
                tokio::time::sleep(Duration::from_millis(rng.below(20_000))).await;
            }
        }
        self.set_ignorance(loser, ignorance, false);
        let guests = self.guests.borrow().clone();
        for guest in guests {
            guest.settle().await;
        }
        self.end_of_contest(outgoing, &stale, old, taken).await
    }

    /// The guests of the owner that is about to be replaced; they stand being told so.
    fn stale_guests(&self) -> Vec<Rc<Guest>> {
        let stale = self.guests.borrow().clone();
        let (before, universe, loser) =
            (self.excused.clone(), self.universe.clone(), self.serving.get());
        let excused: Excuse = Rc::new(move |step: Step, fault: &Fault| {
            let broken = || universe.broken_writes(loser) > 0;
            matches!(fault.kind, Kind::Fenced | Kind::Closed)
                || (fault.kind == Kind::Unavailable && !step.only_reads() && broken())
                || before(step, fault)
        });
        for guest in &stale {
            *guest.excused.borrow_mut() = excused.clone();
        }
        stale
    }

    fn set_ignorance(&self, host: usize, ignorance: Ignorance, begins: bool) {
        match ignorance {
            Ignorance::Unasked => {}
            Ignorance::CutOff => self.universe.partition(host, begins),
            Ignorance::StandsStill => self.universe.pause(host, begins),
        }
    }

    /// Requests to a host that is cut off; nobody waits for them.
    async fn go_on_alone(
        &self,
        stale: &[Rc<Guest>],
        old: &[Rc<Volume>],
        rng: &mut Rng,
        steps: u64,
    ) {
        for _ in 0..steps {
            if !self.take_step() {
                return;
            }
            self.try_step(stale, old, rng);
            tokio::time::sleep(Duration::from_millis(rng.below(500))).await;
        }
    }

    /// A request of the old owner's guests, if one of them has room for one more.
    fn try_step(&self, stale: &[Rc<Guest>], old: &[Rc<Volume>], rng: &mut Rng) {
        let n = rng.below(old.len() as u64) as usize;
        let guest = stale[n].clone();
        if guest.waiting().len() >= self.plan.depth as usize {
            return;
        }
        let (step, volume, rng_of_step) = (Step::draw(rng), old[n].clone(), rng.fork());
        let number = guest.begin(step);
        tokio::task::spawn_local(async move {
            guest.perform(&volume, number, step, rng_of_step).await;
        });
    }

    /// The new owner's guest, with what the volume showed at first. `None` when something was wrong.
    async fn take_over(&self, n: usize, stale: &Guest, volume: &Volume) -> Option<Vec<OpNo>> {
        let guest = Rc::new(stale.taken_over(self.excused.clone()));
        let words = guest.look(volume).await?;
        let outcome = guest.model.borrow_mut().recover(words.clone(), Place::Backend);
        self.guests.borrow_mut()[n] = guest.clone();
        self.kept[n].set(Place::Journal);
        guest.settle_for(outcome).then_some(words)
    }

    /// The old owner learns the truth as soon as it asks for an upload; everything it was ever told to be on the backend was
    /// there when the new one took over.
    async fn end_of_contest(
        &self,
        outgoing: &Engine,
        stale: &[Rc<Guest>],
        old: &[Rc<Volume>],
        taken: Vec<Vec<OpNo>>,
    ) -> Result<()> {
        let loser = 1 - self.serving.get();
        for ((guest, volume), words) in stale.iter().zip(old).zip(taken) {
            if !self.universe.is_down(loser) && !self.is_broken() {
                self.make_it_learn(outgoing, guest, volume).await;
            }
            // Also what it learned just now to have been uploaded before.
            let told = guest.model.borrow().check(words, Place::Backend);
            if let Err(what) = told {
                self.findings.add(format!("P3: lost at the takeover: {what}"));
            }
        }
        // What is still on its way arrives now.
        tokio::time::sleep(LATE).await;
        Ok(())
    }

    async fn make_it_learn(&self, outgoing: &Engine, guest: &Guest, volume: &Volume) {
        if volume.last_seq() <= volume.published_seq() {
            return;
        }
        let loser = 1 - self.serving.get();
        let drained = match tokio::time::timeout(LEARNS_WITHIN, guest.drain(volume)).await {
            Ok(drained) => drained,
            // It crashed meanwhile.
            Err(_) if self.universe.is_down(loser) => return,
            Err(_) => {
                let state = outgoing.describe();
                self.findings
                    .add(format!("P3: a stale owner waits for an upload for ever:{state}"));
                return;
            }
        };
        if drained {
            return;
        }
        let broken = self.universe.broken_writes(loser) > 0;
        let flips = self.plan.faults.store.flip_on_read > 0;
        if !broken && !flips && volume.state() != State::Fenced {
            let state = volume.state();
            self.findings.add(format!("P3: a stale owner that asked is {state:?}"));
        }
        guest.check_nothing_is_acknowledged(volume).await;
    }
}
