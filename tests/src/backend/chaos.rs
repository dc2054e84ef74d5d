//! What goes wrong, and for how long: each event heals by itself after a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::estate::Estate;
use super::machine::{Damage, Lie, Machine, Mood};
use super::table::Trouble;
use super::world::End;
use crate::world::rng::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    KillProcess,
    CrashMachine,
    HangMachine,
    SlowMachine,
    FillMachine,
    FillAll,
    ReadOnlyMachine,
    Lie,
    Damage,
    WipeMachine,
    CutMachine,
    CutTable,
    TableOutage,
    TableTrouble,
    PowerCut,
    ChangeRole,
    /// Nothing happens for a while.
    Calm,
}

/// Most files damaged at once.
const MOST_DAMAGED: u64 = 6;

impl Estate {
    /// Begins an event that concerns no process.
    pub fn strike(
        self: &Arc<Self>,
        event: Event,
        processes: usize,
        trouble: Trouble,
        rng: &mut Rng,
    ) {
        self.world.note_trouble();
        let machine = self.machines[rng.below(self.machines.len() as u64) as usize].clone();
        let table = self.tables[rng.below(self.tables.len() as u64) as usize].clone();
        let process = rng.below(processes as u64) as usize;
        let cuts = self.cuts.clone();
        let long = duration(rng);
        match event {
            Event::CrashMachine => {
                machine.crash();
                later(long, move || machine.set_mood(Mood::Up));
            }
            Event::HangMachine => {
                machine.set_mood(Mood::Hung);
                later(long, move || machine.set_mood(Mood::Up));
            }
            Event::SlowMachine => {
                machine.set_slow(Duration::from_millis(rng.between(20, 3000)));
                later(long, move || machine.set_slow(Duration::ZERO));
            }
            Event::FillMachine => {
                machine.set_full(true);
                later(long, move || machine.set_full(false));
            }
            Event::FillAll => {
                let all = self.machines.clone();
                all.iter().for_each(|machine| machine.set_full(true));
                later(long, move || all.iter().for_each(|machine| machine.set_full(false)));
            }
            Event::ReadOnlyMachine => {
                machine.set_read_only(true);
                later(long, move || machine.set_read_only(false));
            }
            Event::Lie => {
                let lies = [Lie::Flip, Lie::Short, Lie::Other, Lie::Stored];
                machine.set_lie(Some(lies[rng.below(4) as usize]));
                later(long, move || machine.set_lie(None));
            }
            Event::Damage => self.damage(&machine, rng),
            Event::WipeMachine => {
                let all = machine.finished();
                self.truth.destroy(&machine, &all, Damage::Gone);
            }
            Event::CutMachine => {
                let end = End::Osd(machine.no);
                cuts.cut(process, end);
                later(long, move || cuts.heal(process, end));
            }
            Event::CutTable => {
                let end = End::Table(table.no);
                self.world.note_silence(long);
                cuts.cut(process, end);
                later(long, move || cuts.heal(process, end));
            }
            Event::TableOutage => {
                self.world.note_silence(long);
                table.set_out(true);
                later(long, move || table.set_out(false));
            }
            Event::TableTrouble => {
                table.set_trouble(trouble);
                later(long * 2, move || table.set_trouble(Trouble::default()));
            }
            Event::PowerCut => {
                self.power_cut();
                let all = self.machines.clone();
                later(long / 4, move || all.iter().for_each(|machine| machine.set_mood(Mood::Up)));
            }
            Event::KillProcess | Event::ChangeRole | Event::Calm => {}
        }
    }

    /// A few files of a machine, as far as the promise allows.
    fn damage(&self, machine: &Machine, rng: &mut Rng) {
        let files = machine.finished();
        for _ in 0..rng.between(1, MOST_DAMAGED) {
            if files.is_empty() {
                return;
            }
            let file = files[rng.below(files.len() as u64) as usize];
            let damage =
                rng.pick(&[(3, Damage::Flipped), (2, Damage::Truncated), (2, Damage::Gone)]);
            self.truth.destroy(machine, &[file], damage);
        }
    }
}

/// Mostly seconds, sometimes a minute or two.
pub fn duration(rng: &mut Rng) -> Duration {
    let ms = match rng.below(8) {
        0 => rng.between(30_000, 150_000),
        1..=3 => rng.between(50, 2_000),
        _ => rng.between(1_000, 20_000),
    };
    Duration::from_millis(ms)
}

fn later(after: Duration, what: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        sleep(after).await;
        what();
    });
}
