//! Planning: what is to be done by itself becomes work items. One agent of all does it.
//!
//! - An OSD that is dead or decommissioning and still holds fragments is to be emptied.
//! - A tour of all objects is made when something changed that may place them better or worse (OSDs, their roles and nodes,
//!   who is dead, presets, which namespace has which), and every now and then.
//! - All fragments are read and checked now and then: what decays where nobody reads is noticed by nobody else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Inner, locked};
use crate::alba::repair::Notice;
use crate::fault::Result;
use crate::maintenance::work::{Position, Range};
use crate::maintenance::{Item, ItemKey, JobId, State, Task};
use crate::name::OsdId;
use crate::nsm::{OsdRole, Record};

/// What could not be done is tried again after this time at most.
const LONGEST_AGAIN: Duration = Duration::from_secs(60);
/// Jobs that are done and kept for those who asked.
const MOST_DONE: usize = 100;
/// Names of a namespace in one part of a job.
const PART_NAMES: usize = 10_000;

/// What the planner remembers from beat to beat.
#[derive(Default)]
pub(super) struct Planner {
    /// When each OSD was last planned to be emptied.
    emptied: HashMap<OsdId, Instant>,
    toured: Option<Instant>,
    retried: Option<Instant>,
}

impl Inner {
    pub(super) async fn plan(self: &Arc<Self>, planner: &mut Planner) -> Result<()> {
        let settings = self.agent.settings();
        let again = (settings.auto_repair_timeout / 8).min(LONGEST_AGAIN);
        let items = self.nsm.items().await?;
        let items: Vec<(ItemKey, Item)> = items
            .into_iter()
            .map(|(key, value)| Ok((key, Item::decode(&value)?)))
            .collect::<Result<_>>()?;
        self.forget_done(&items).await?;
        if settings.repair {
            self.plan_emptying(planner, &items, again).await?;
            self.retry_lacking(planner, again);
        }
        if settings.repair || settings.rewrite {
            self.plan_tour(planner, &items).await?;
        }
        if !settings.scrub_interval.is_zero() {
            self.plan_scrub(&items).await?;
        }
        Ok(())
    }

    /// The oldest of what is done and nobody has looked away.
    async fn forget_done(&self, items: &[(ItemKey, Item)]) -> Result<()> {
        let done = items.iter().filter(|(_, item)| item.state == State::Done);
        let mut done: Vec<&(ItemKey, Item)> = done.collect();
        done.sort_by_key(|(_, item)| item.created_ms);
        for (key, _) in done.iter().take(done.len().saturating_sub(MOST_DONE)) {
            self.forget_item(*key).await?;
        }
        Ok(())
    }

    async fn plan_emptying(
        &self,
        planner: &mut Planner,
        items: &[(ItemKey, Item)],
        again: Duration,
    ) -> Result<()> {
        let dead = self.agent.dead();
        for (osd, record) in self.nsm.osds().await? {
            let is_leaving = record.role == OsdRole::Decommissioning || dead.contains(&osd);
            let task = Task::empty(osd);
            let is_planned = items.iter().any(|(_, item)| item.task == task);
            let is_early = planner.emptied.get(&osd).is_some_and(|at| at.elapsed() < again);
            if !is_leaving || is_planned || is_early {
                continue;
            }
            if !self.nsm.fragments_of(osd, None, 1).await?.is_empty() {
                planner.emptied.insert(osd, Instant::now());
                self.create_job(task, Range::default()).await?;
            }
        }
        Ok(())
    }

    fn retry_lacking(&self, planner: &mut Planner, again: Duration) {
        if planner.retried.is_some_and(|at| at.elapsed() < again) {
            return;
        }
        planner.retried = Some(Instant::now());
        let mut lacking = locked(&self.agent.lacking);
        while self.notices.capacity() > 0
            && let Some((namespace, name)) = lacking.pop_first()
        {
            self.notice(Notice::lacking(&namespace, &name));
        }
    }

    async fn plan_tour(&self, planner: &mut Planner, items: &[(ItemKey, Item)]) -> Result<()> {
        if items.iter().any(|(_, item)| item.task == Task::Tour) {
            return Ok(());
        }
        let Some(now) = self.what_places_objects().await? else { return Ok(()) };
        let before = self.nsm.record(&Record::Tour).await?;
        let began = *planner.toured.get_or_insert_with(Instant::now);
        let is_due = began.elapsed() >= self.agent.settings().tour_interval;
        if before.as_ref() == Some(&now) && !is_due {
            return Ok(());
        }
        planner.toured = Some(Instant::now());
        self.create_job(Task::Tour, Range::default()).await?;
        self.nsm.change_record(&Record::Tour, before.as_ref(), Some(now)).await?;
        Ok(())
    }

    /// The time of day decides, as no agent need live from one scrub to the next: a clock that jumps costs one too many.
    async fn plan_scrub(&self, items: &[(ItemKey, Item)]) -> Result<()> {
        if items.iter().any(|(_, item)| item.task == Task::Scrub) {
            return Ok(());
        }
        let now = self.outside.now_ms();
        let before = self.nsm.record(&Record::Scrub).await?;
        let began = before.as_deref().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        // A backend that is new has nothing old.
        let is_first = before.is_none();
        let since = now.checked_sub(began.unwrap_or(0)).map(Duration::from_millis);
        let interval = self.agent.settings().scrub_interval;
        if !is_first && since.is_some_and(|since| since < interval) {
            return Ok(());
        }
        if !is_first {
            self.create_job(Task::Scrub, Range::default()).await?;
        }
        let now = now.to_string().into_bytes();
        self.nsm.change_record(&Record::Scrub, before.as_ref(), Some(now)).await?;
        Ok(())
    }

    /// A sum of all that decides how objects are best placed. `None` where there is no choice: one OSD.
    async fn what_places_objects(&self) -> Result<Option<Vec<u8>>> {
        let osds = self.nsm.osds().await?;
        if osds.len() < 2 {
            return Ok(None);
        }
        let dead = self.agent.dead();
        let mut text = String::new();
        for (id, record) in &osds {
            let (role, node, labels) = (record.role, &record.node, &record.labels);
            text.push_str(&format!("{id} {role:?} {node} {labels:?} {}\n", dead.contains(id)));
        }
        for (name, preset) in self.nsm.presets().await? {
            text.push_str(&format!("{name} {}\n", preset.version));
        }
        for (namespace, preset) in self.nsm.namespace_presets().await? {
            text.push_str(&format!("{namespace} {preset}\n"));
        }
        let sums = [crc32fast::hash(text.as_bytes()), text.len() as u32];
        Ok(Some(sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()))
    }

    /// Cut into parts, so that agents can share it.
    pub(super) async fn create_job(&self, task: Task, range: Range) -> Result<JobId> {
        // The lowest bits: higher ones of a UUID say what kind it is.
        let job = JobId((self.outside.random)() as u64 & (u64::MAX >> 2));
        let cuts = match (&task, &range.namespace) {
            (Task::Empty { .. }, _) => Vec::new(),
            (_, Some(namespace)) => self.cuts_of(namespace).await?,
            (_, None) => self.namespace_cuts().await?,
        };
        for (part, range) in range.split(&cuts).into_iter().enumerate() {
            let part = u16::try_from(part).unwrap_or(u16::MAX);
            let record = Record::Item(ItemKey { job, part });
            let item = Item::new(task.clone(), range, self.outside.now_ms());
            self.nsm.change_record(&record, None, Some(item.encode()?)).await?;
        }
        Ok(job)
    }

    async fn cuts_of(&self, namespace: &str) -> Result<Vec<Position>> {
        let mut cuts: Vec<Position> = Vec::new();
        loop {
            let after = cuts.last().map_or("", |cut| cut.name.as_str()).to_string();
            let page = self.nsm.list(namespace, "", &after, PART_NAMES).await?;
            let Some(last) = page.names.last().filter(|_| page.more) else { return Ok(cuts) };
            cuts.push(Position::new(namespace, last));
        }
    }

    async fn namespace_cuts(&self) -> Result<Vec<Position>> {
        let namespaces = self.nsm.namespace_presets().await?;
        Ok(namespaces.iter().skip(1).map(|(name, _)| Position::before(name)).collect())
    }

    pub(super) async fn forget_item(&self, key: ItemKey) -> Result<bool> {
        let record = Record::Item(key);
        loop {
            let Some(value) = self.nsm.record(&record).await? else { return Ok(false) };
            if self.nsm.change_record(&record, Some(&value), None).await? {
                return Ok(true);
            }
        }
    }
}
