//! Maintenance, the half that waits: every process that has the backend open is an agent, and agents share the work.
//!
//! Work is items in the NSM (see [`crate::maintenance::work`]): an agent takes one by writing its name into it, works on it
//! object by object, writes down how far it has come, and leaves it when another has it. What there is one of (planning,
//! collecting, rebalancing, removing) is a post that an agent holds. An agent lives while it changes its own record again
//! and again; the others notice when it does not, by their own time ([`crate::maintenance::lease`]), strike it off, and take
//! what it had. Nothing depends on there being only one: all that is done to an object is a change of its manifest if it
//! still is what was read, and all that is removed is noted for removal or can never become live.
//!
//! A table of this process alone needs no leases: then this agent is the only one and has every post.

mod detect;
mod item;
mod object;
mod plan;
mod rebalance;
mod roll;
mod safety;
mod verify;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Alba, Inner};
use crate::fault::{Fault, Result};
use crate::maintenance::pace::Throttle;
use crate::maintenance::settings::Raw;
use crate::maintenance::work::Range;
use crate::maintenance::{Item, ItemKey, JobId, Settings, Task};
use crate::name::{self, OsdId};
use crate::nsm::Record;
use item::Lane;

pub use safety::{Safety, SafetyLine};

/// Longest pause between two looks at the settings and the other agents.
const LONGEST_TICK: Duration = Duration::from_secs(2);
const SHORTEST_TICK: Duration = Duration::from_millis(20);
/// An OSD that takes longer for a step is left alone.
const PATIENCE: Duration = Duration::from_secs(30);
/// Objects remembered to lack fragments that could not be made.
const MOST_LACKING: usize = 10_000;

/// What this agent knows.
#[derive(Debug)]
pub(super) struct Agent {
    began: Instant,
    settings: Mutex<Settings>,
    bytes: Mutex<Throttle>,
    objects: Mutex<Throttle>,
    removals: Mutex<Throttle>,
    /// OSDs that have been silent for too long.
    dead: Mutex<HashSet<OsdId>>,
    roll: Mutex<roll::Roll>,
    /// Whose turn it is to change this agent's own record.
    signing: tokio::sync::Mutex<()>,
    /// Objects that lacked fragments when they were last looked at.
    lacking: Mutex<BTreeSet<(Arc<str>, Arc<str>)>>,
    /// Rung when there may be new work.
    bell: Arc<Notify>,
}

impl Agent {
    pub fn new(id: [u8; 16]) -> Self {
        let settings = Raw::default().check();
        Self {
            began: Instant::now(),
            // The defaults are legal: a test says so.
            settings: Mutex::new(settings.unwrap_or_else(|fault| panic!("{fault}"))),
            bytes: Mutex::default(),
            objects: Mutex::default(),
            removals: Mutex::default(),
            dead: Mutex::default(),
            roll: Mutex::new(roll::Roll::new(id)),
            signing: tokio::sync::Mutex::default(),
            lacking: Mutex::default(),
            bell: Arc::default(),
        }
    }

    pub fn settings(&self) -> Settings {
        *locked(&self.settings)
    }

    /// Those who wait for work look again.
    pub fn ring(&self) {
        self.bell.notify_waiters();
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// OSDs that maintenance counts as dead.
    pub fn dead(&self) -> HashSet<OsdId> {
        locked(&self.dead).clone()
    }

    /// Waits until so many more bytes may be moved.
    pub async fn pace_bytes(&self, bytes: u64) {
        let wait = locked(&self.bytes).take(bytes, self.settings().bytes_per_second, self.now());
        tokio::time::sleep(wait).await;
    }

    async fn pace_object(&self) {
        let wait = locked(&self.objects).take(1, self.settings().objects_per_second, self.now());
        tokio::time::sleep(wait).await;
    }

    /// Waits until so many more files may be removed.
    pub async fn pace_removals(&self, count: u64) {
        let rate = self.settings().removals_per_second;
        let wait = locked(&self.removals).take(count, rate, self.now());
        tokio::time::sleep(wait).await;
    }

    /// An object could not be given all its fragments: it is tried again now and then.
    pub fn note_lacking(&self, namespace: &Arc<str>, name: &Arc<str>) {
        let mut lacking = locked(&self.lacking);
        if lacking.len() < MOST_LACKING {
            lacking.insert((namespace.clone(), name.clone()));
        }
    }

    fn put_settings(&self, settings: Settings) {
        let before = std::mem::replace(&mut *locked(&self.settings), settings);
        if before != settings {
            let now = self.now();
            for throttle in [&self.bytes, &self.objects, &self.removals] {
                locked(throttle).reset(now);
            }
        }
    }

    fn tick(&self) -> Duration {
        let settings = self.settings();
        let least = settings.lease.min(settings.auto_repair_timeout).min(settings.tour_interval);
        (least / 4).clamp(SHORTEST_TICK, LONGEST_TICK)
    }
}

/// Starts the work; it ends with the backend.
pub(super) fn start(inner: &Arc<Inner>) {
    // With the priority of clients: an agent that is not heard loses its work.
    tokio::spawn(heart(Arc::downgrade(inner)));
    for lane in [Lane::Empty, Lane::Tour, Lane::Scrub, Lane::Asked] {
        inner.blocking.spawn_in_background(item::work(Arc::downgrade(inner), lane));
    }
    inner.blocking.spawn_in_background(rebalance::run(Arc::downgrade(inner)));
}

/// Everything that happens again and again.
async fn heart(backend: Weak<Inner>) {
    let mut watch = detect::Watch::default();
    let mut planner = plan::Planner::default();
    loop {
        let Some(inner) = backend.upgrade() else { return };
        if let Err(fault) = inner.beat(&mut watch, &mut planner).await {
            tracing::warn!(%fault, "maintenance cannot look after the backend");
        }
        let tick = inner.agent.tick();
        drop(inner);
        tokio::time::sleep(tick).await;
    }
}

impl Inner {
    async fn beat(
        self: &Arc<Self>,
        watch: &mut detect::Watch,
        planner: &mut plan::Planner,
    ) -> Result<()> {
        self.load_settings().await?;
        self.refresh_epoch().await?;
        self.call_roll(&mut watch.agents).await?;
        self.detect(watch).await?;
        if self.holds("plan").await? {
            self.plan(planner).await?;
        }
        self.agent.ring();
        Ok(())
    }

    async fn load_settings(&self) -> Result<()> {
        let settings = self.raw_settings().await?.0.check()?;
        self.agent.put_settings(settings);
        Ok(())
    }

    async fn raw_settings(&self) -> Result<(Raw, Option<Vec<u8>>)> {
        let Some(value) = self.nsm.record(&Record::Settings).await? else {
            return Ok((Raw::default(), None));
        };
        let broken = |e: serde_json::Error| Fault {
            source: Some(Box::new(e)),
            ..Fault::corrupt("NSM record of the maintenance settings")
        };
        Ok((serde_json::from_slice(&value).map_err(broken)?, Some(value)))
    }

    /// The node of each OSD.
    async fn nodes(&self) -> Result<HashMap<OsdId, String>> {
        let osds = self.nsm.osds().await?.into_iter();
        Ok(osds.map(|(id, record)| (id, record.node)).collect())
    }
}

/// Maintenance by request.
impl Alba {
    pub async fn maintenance(&self) -> Result<Raw> {
        Ok(self.inner.raw_settings().await?.0)
    }

    /// Changes settings, `NAME=VALUE` each, all or none; returns all settings as they are then.
    pub async fn change_maintenance(&self, changes: &[String]) -> Result<Raw> {
        loop {
            let (mut raw, before) = self.inner.raw_settings().await?;
            for change in changes {
                raw = raw.with(change)?;
            }
            let failed = |e: serde_json::Error| Fault {
                source: Some(Box::new(e)),
                ..Fault::bug("settings cannot be written as JSON")
            };
            let after = serde_json::to_vec(&raw).map_err(failed)?;
            let record = Record::Settings;
            if self.inner.nsm.change_record(&record, before.as_ref(), Some(after)).await? {
                self.inner.agent.put_settings(raw.check()?);
                self.inner.agent.ring();
                return Ok(raw);
            }
        }
    }

    /// All work items, those that are done too if somebody asked for them.
    pub async fn work(&self) -> Result<Vec<(ItemKey, Item)>> {
        let items = self.inner.nsm.items().await?.into_iter();
        items.map(|(key, value)| Ok((key, Item::decode(&value)?))).collect()
    }

    /// Asks for work on a namespace's objects, or on all.
    pub async fn start_work(&self, task: Task, namespace: Option<&str>) -> Result<JobId> {
        let range = match namespace {
            Some(namespace) => {
                name::check_namespace(namespace)?;
                self.inner.nsm.preset_of(namespace).await?;
                Range::of_namespace(namespace)
            }
            None => Range::default(),
        };
        let job = self.inner.create_job(task, range).await?;
        self.inner.agent.ring();
        Ok(job)
    }

    /// What was done stays done. `false` when there is no such job.
    pub async fn cancel_work(&self, job: JobId) -> Result<bool> {
        let mut was_there = false;
        for (key, _) in self.inner.nsm.items().await?.into_iter().filter(|(key, _)| key.job == job)
        {
            was_there |= self.inner.forget_item(key).await?;
        }
        Ok(was_there)
    }

    /// The node of each OSD that is known.
    pub async fn nodes(&self) -> Result<HashMap<OsdId, String>> {
        self.inner.nodes().await
    }
}

// What is locked is replaced or changed by steps that do not panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
