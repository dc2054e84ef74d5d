//! All there is besides the processes: machines, tables, the network; and how much of it is well.

use std::sync::Arc;
use std::time::Duration;

use backend_alba::alba::Threads;
use backend_alba::manifest::Manifest;
use backend_alba::name::AlbaId;
use backend_alba::nsm::kv::Kv;
use backend_alba::outside::Outside;
use backend_alba::preset::Raw;
use backend_alba::{Config, GivenOsd, Parts};

use super::machine::Machine;
use super::osd::Client;
use super::plan::Plan;
use super::table::{Table, TableClient, Trouble};
use super::truth::Truth;
use super::world::{Cuts, End, Line, World};
use crate::world::rng::Rng;

pub struct Estate {
    pub world: World,
    pub machines: Vec<Arc<Machine>>,
    pub tables: Vec<Arc<Table>>,
    pub truth: Arc<Truth>,
    pub cuts: Arc<Cuts>,
    presets: Vec<(String, Vec<String>)>,
    orphan_grace: Duration,
}

impl Estate {
    #[must_use]
    pub fn build(plan: &Plan, world: &World) -> Arc<Self> {
        let tables: Vec<_> = (0..plan.tables).map(|no| Table::new(no, world.clone())).collect();
        let truth = Truth::new(tables.clone());
        let machine = |(no, node): (usize, &usize)| {
            let (node, capacity) = (format!("node{node}"), plan.capacity);
            Arc::new(Machine::new(no, node, world.clone(), &truth, capacity))
        };
        let machines: Vec<_> = plan.nodes.iter().enumerate().map(machine).collect();
        truth.set_machines(&machines);
        let (presets, orphan_grace) = (plan.presets.clone(), plan.orphan_grace);
        let (world, cuts) = (world.clone(), Arc::default());
        Arc::new(Self { world, machines, tables, truth, cuts, presets, orphan_grace })
    }

    /// What a process is made of, if all it does goes over this line.
    #[must_use]
    pub fn parts(&self, line: &Line) -> Parts {
        let given = |machine: &Arc<Machine>| GivenOsd {
            osd: Box::new(Client { machine: machine.clone(), line: line.clone() }),
            node: machine.node.clone(),
            labels: Vec::new(),
        };
        let table = |table: &Arc<Table>| -> Arc<dyn Kv> {
            Arc::new(TableClient { table: table.clone(), line: line.clone() })
        };
        let (random, clock) = (self.world.clone(), self.world.clone());
        let outside = Outside {
            random: Arc::new(move || u128::from_be_bytes(random.draw(Rng::bytes16))),
            now_ms: Arc::new(move || 1_700_000_000_000 + clock.now().as_millis() as u64),
        };
        Parts {
            config: Config {
                open_count: 4096,
                // Of both kinds there are many.
                hold_bytes: 10_000,
                orphan_grace: self.orphan_grace,
                ..Config::new("simulated")
            },
            id: AlbaId([7; 16]),
            tables: self.tables.iter().map(table).collect(),
            osds: self.machines.iter().map(given).collect(),
            outside,
            threads: Threads::Here,
        }
    }

    /// Of the plan, any of them.
    #[must_use]
    pub fn preset_name(&self, rng: &mut Rng) -> String {
        self.presets[rng.below(self.presets.len() as u64) as usize].0.clone()
    }

    /// As the plan has it, in one of its forms.
    #[must_use]
    pub fn preset(&self, name: &str, rng: &mut Rng) -> Raw {
        let found = self.presets.iter().find(|(known, _)| known == name);
        let policies = found.map_or(&[][..], |(_, policies)| policies);
        let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
        let (fragment_bytes, verify_upload) = (65536 << rng.below(3), rng.below(4) == 0);
        Raw { fragment_bytes, verify_upload, ..Raw::of(&policies) }
    }

    #[must_use]
    pub fn presets(&self) -> &[(String, Vec<String>)] {
        &self.presets
    }

    /// So many of its fragments can be read by this process that the object can.
    #[must_use]
    pub fn is_readable(&self, process: usize, manifest: &Manifest) -> bool {
        let can_ask = |table: &Arc<Table>| {
            table.is_fine() && !self.cuts.is_cut(process, End::Table(table.no))
        };
        let is_good = |fragment: &&backend_alba::manifest::Fragment| {
            let machine = self.machines.iter().find(|machine| machine.id == fragment.osd);
            machine.is_some_and(|machine| {
                let is_cut = self.cuts.is_cut(process, End::Osd(machine.no));
                machine.is_fine() && !is_cut && machine.is_intact(fragment.file)
            })
        };
        let good = manifest.fragments.iter().filter(is_good).count();
        self.tables.iter().all(can_ask) && good >= manifest.policy.data()
    }

    /// Nothing is wrong any more; what is lost stays lost.
    pub fn heal(&self) {
        self.cuts.heal_all();
        self.machines.iter().for_each(|machine| machine.heal());
        for table in &self.tables {
            table.set_out(false);
            table.set_trouble(Trouble::default());
        }
    }

    pub fn power_cut(&self) {
        self.machines.iter().for_each(|machine| machine.crash());
    }
}

/// Waits until this holds, at most so long.
pub async fn until(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = tokio::time::Instant::now();
    while !holds() {
        if begun.elapsed() > patience {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    true
}
