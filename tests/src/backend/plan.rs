//! What a seed stands for: how many machines, nodes, tables and processes, which presets, and what goes wrong how often.

use std::time::Duration;

use super::Run;
use super::chaos::Event;
use super::machine::ROOMY;
use super::table::Trouble;
use crate::world::rng::Rng;

#[derive(Clone, Debug)]
pub struct Plan {
    pub run: Run,
    /// The node of each machine.
    pub nodes: Vec<usize>,
    pub capacity: u64,
    pub tables: usize,
    pub processes: usize,
    pub spaces: usize,
    pub presets: Vec<(String, Vec<String>)>,
    /// Operations at once.
    pub depth: u64,
    /// Longest pause between two steps, milliseconds.
    pub pause_ms: u64,
    /// Of so many steps one is trouble, by weight.
    pub calm: u64,
    pub events: Vec<(u32, Event)>,
    /// Of commits, while they fail.
    pub trouble: Trouble,
    /// Of maintenance, while things go wrong.
    pub maintenance: Vec<String>,
    /// Before a process collects for the first time.
    pub orphan_grace: Duration,
    /// Machines that never come back, as far as the promise allows.
    pub dying: usize,
    pub rng: Rng,
}

/// Everything that can happen, with its usual weight.
const EVENTS: [(u32, Event); 17] = [
    (8, Event::KillProcess),
    (8, Event::CrashMachine),
    (5, Event::HangMachine),
    (3, Event::SlowMachine),
    (4, Event::FillMachine),
    (3, Event::ReadOnlyMachine),
    (6, Event::Lie),
    (6, Event::Damage),
    (2, Event::WipeMachine),
    (6, Event::CutMachine),
    (3, Event::CutTable),
    (4, Event::TableOutage),
    (8, Event::TableTrouble),
    (2, Event::PowerCut),
    (2, Event::FillAll),
    (3, Event::ChangeRole),
    (2, Event::Calm),
];

impl Plan {
    #[must_use]
    pub fn draw(run: Run) -> Self {
        let mut rng = Rng::new(run.seed ^ 0x6273_696d);
        let machines = rng.between(3, 9) as usize;
        let node_count = rng.between(1, 5).min(machines as u64) as usize;
        let nodes: Vec<usize> = (0..machines).map(|no| no % node_count).collect();
        let presets = presets(&mut rng, machines, node_count);
        // Some kinds of trouble are missing in each run, so that the others show by themselves.
        let events = EVENTS.iter().filter(|_| rng.below(3) > 0).copied();
        let mut events: Vec<(u32, Event)> = events.collect();
        events.push((1, Event::Calm));
        let trouble = Trouble {
            lost_answer: rng.below(300_000) as u32,
            not_made: rng.below(200_000) as u32,
            made_later: rng.below(200_000) as u32,
        };
        let is_quick = rng.coin();
        Self {
            run,
            nodes,
            capacity: if rng.below(4) == 0 { 8 << 20 } else { ROOMY },
            tables: rng.pick(&[(3, 1), (1, 2), (1, 3)]),
            processes: rng.between(1, 3) as usize,
            spaces: rng.between(1, 3) as usize,
            presets,
            depth: rng.between(1, 8),
            pause_ms: rng.pick(&[(2, 20), (3, 200), (2, 3000)]),
            calm: rng.between(3, 12),
            events,
            trouble,
            maintenance: if is_quick { quick_maintenance(&mut rng) } else { Vec::new() },
            orphan_grace: Duration::from_secs(if is_quick { 1 } else { 600 }),
            dying: rng.pick(&[(3, 0), (2, 1), (1, 2)]),
            rng,
        }
    }
}

/// So quick that it all happens in a run, and more than is wise: machines are dead that only hang, agents that only wait, and
/// puts are too late.
fn quick_maintenance(rng: &mut Rng) -> Vec<String> {
    let mut ms = |name: &str, from: u64, to: u64| format!("{name}_ms={}", rng.between(from, to));
    vec![
        ms("auto_repair_timeout", 2_000, 120_000),
        ms("lease", 500, 30_000),
        ms("tour_interval", 2_000, 120_000),
        ms("scrub_interval", 10_000, 300_000),
        ms("collect_interval", 500, 20_000),
        ms("collect_grace", 0, 1_500),
        format!("rebalance_band_percent={}", rng.between(1, 10)),
        format!("bytes_per_second={}", rng.pick(&[(1, 0), (1, 1 << 20)])),
    ]
}

/// A few presets that these machines satisfy while all of them are well.
fn presets(rng: &mut Rng, machines: usize, nodes: usize) -> Vec<(String, Vec<String>)> {
    const SHAPES: [(usize, usize); 8] =
        [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 2), (5, 3), (1, 0)];
    let mut presets = Vec::new();
    for name in ["a", "b", "c"] {
        let mut policies = Vec::new();
        for _ in 0..rng.between(1, 3) {
            let (data, parity) = SHAPES[rng.below(SHAPES.len() as u64) as usize];
            let total = data + parity;
            if total > machines {
                continue;
            }
            let least = rng.between(data as u64, total as u64);
            let per_node = total.div_ceil(nodes).max(rng.between(1, total as u64) as usize);
            policies.push(format!("{data},{parity},{least},{per_node}"));
        }
        if policies.is_empty() {
            policies.push(format!("2,1,2,{}", 3usize.div_ceil(nodes)));
        }
        presets.push((name.to_string(), policies));
    }
    presets
}
