//! Working on items: taken, done object by object, their progress written down, left when another has them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::{Instant, timeout};

use super::Inner;
use super::object::Shelf;
use crate::fault::{Fault, Result};
use crate::maintenance::work::{Position, Range};
use crate::maintenance::{Counts, Item, ItemKey, State, Task};
use crate::manifest::Manifest;
use crate::name::OsdId;
use crate::nsm::Record;

/// Objects of one step.
const STEP: usize = 64;
/// Progress is written down this often at most, and when an item is done.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// Namespaces without objects passed in one step.
const EMPTY_NAMESPACES: usize = 100;

/// What is worked on side by side: an OSD's emptying does not wait for somebody's verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Empty,
    Tour,
    Scrub,
    Asked,
}

impl Lane {
    fn takes(self, task: &Task) -> bool {
        self == match task {
            Task::Empty { .. } => Self::Empty,
            Task::Tour => Self::Tour,
            Task::Scrub => Self::Scrub,
            Task::Repair | Task::Rewrite | Task::Verify { .. } => Self::Asked,
        }
    }
}

/// An item this agent has.
struct Held {
    key: ItemKey,
    item: Item,
    /// As it was last written.
    value: Vec<u8>,
    saved: Instant,
    /// The last fragment looked at when an OSD is emptied.
    located: Option<crate::nsm::Located>,
}

/// An object to be worked on.
pub(super) struct Subject {
    pub at: Position,
    /// `None` when only its name is known.
    pub manifest: Option<Result<Manifest>>,
}

/// Takes one item after the other; ends with the backend.
pub(super) async fn work(backend: Weak<Inner>, lane: Lane) {
    loop {
        let Some(inner) = backend.upgrade() else { return };
        let held = match inner.take_item(lane).await {
            Ok(Some(held)) => held,
            Ok(None) => {
                wait(inner).await;
                continue;
            }
            Err(fault) => {
                tracing::warn!(%fault, "work items cannot be taken");
                wait(inner).await;
                continue;
            }
        };
        drop(inner);
        let (job, kind) = (held.key.job, held.item.task.name());
        if let Err(fault) = finish(&backend, held).await {
            tracing::warn!(%fault, %job, kind, "a work item is interrupted");
            let Some(inner) = backend.upgrade() else { return };
            wait(inner).await;
        }
    }
}

/// Without keeping the backend open meanwhile.
async fn wait(inner: Arc<Inner>) {
    let (tick, bell) = (inner.agent.tick(), inner.agent.bell.clone());
    drop(inner);
    // A bell that rang before does no harm: all look again after a tick.
    let _ = timeout(tick, bell.notified()).await;
}

async fn finish(backend: &Weak<Inner>, mut held: Held) -> Result<()> {
    let mut shelf = Shelf::default();
    loop {
        let Some(inner) = backend.upgrade() else { return Ok(()) };
        let is_done = inner.step(&mut held, &mut shelf).await?;
        let is_due = is_done || held.saved.elapsed() >= SAVE_EVERY;
        let is_ours = !is_due || inner.save_item(&mut held, is_done).await?;
        if is_done || !is_ours {
            return Ok(());
        }
    }
}

impl Inner {
    /// An item that is nobody's, or was an agent's that is gone.
    async fn take_item(&self, lane: Lane) -> Result<Option<Held>> {
        if !self.is_on_roll() {
            return Ok(None);
        }
        for (key, value) in self.nsm.items().await? {
            let mut item = Item::decode(&value)?;
            let me = self.agent_name();
            let is_free = item.owner.as_ref().is_none_or(|owner| !self.is_present(owner));
            // What this agent had before is not in its hands: a step of it failed.
            let is_mine = item.owner.as_ref() == Some(&me);
            if item.state != State::Open || !lane.takes(&item.task) || !(is_free || is_mine) {
                continue;
            }
            item.owner = Some(me);
            let after = item.encode()?;
            let record = Record::Item(key);
            if self.nsm.change_record(&record, Some(&value), Some(after.clone())).await? {
                let (saved, located) = (Instant::now(), None);
                return Ok(Some(Held { key, item, value: after, saved, located }));
            }
        }
        Ok(None)
    }

    /// `false` when it is no longer ours.
    async fn save_item(&self, held: &mut Held, is_done: bool) -> Result<bool> {
        if is_done {
            (held.item.state, held.item.owner) = (State::Done, None);
            let counts = held.item.counts;
            tracing::info!(job = %held.key.job, kind = held.item.task.name(), ?counts, "a work item is done");
        }
        let after = held.item.encode()?;
        let kept = (!is_done || !held.item.task.is_planned()).then(|| after.clone());
        let record = Record::Item(held.key);
        let is_ours = self.nsm.change_record(&record, Some(&held.value), kept).await?;
        (held.value, held.saved) = (after, Instant::now());
        Ok(is_ours)
    }

    /// Some objects more; `true` when there are no more.
    async fn step(self: &Arc<Self>, held: &mut Held, shelf: &mut Shelf) -> Result<bool> {
        let subjects = match &held.item.task {
            Task::Empty { osd } => self.subjects_on(osd, &mut held.located).await?,
            Task::Tour | Task::Scrub | Task::Repair | Task::Rewrite | Task::Verify { .. } => {
                self.subjects_in(&held.item.rest()).await?
            }
        };
        let Some(last) = subjects.last().map(|subject| subject.at.clone()) else {
            return Ok(true);
        };
        shelf.clear();
        let (task, at_once) = (&held.item.task, self.agent.settings().concurrency);
        let shelf = &*shelf;
        let work = |subject| async move { self.treat_or_tell(task, subject, shelf).await };
        let mut outcomes = stream::iter(subjects.into_iter().map(work)).buffer_unordered(at_once);
        let (mut counts, mut note) = (Counts::default(), None);
        while let Some((count, told)) = outcomes.next().await {
            counts += count;
            note = told.or(note);
        }
        drop(outcomes);
        held.item.counts += counts;
        held.item.note = note.unwrap_or_else(|| std::mem::take(&mut held.item.note));
        held.item.at = Some(last);
        Ok(false)
    }

    /// What is wrong with one object keeps nobody from the others.
    async fn treat_or_tell(
        self: &Arc<Self>,
        task: &Task,
        subject: Subject,
        shelf: &Shelf,
    ) -> (Counts, Option<String>) {
        let at = subject.at.clone();
        match Box::pin(self.treat(task, subject, shelf)).await {
            Ok(counts) => (counts, None),
            Err(fault) => {
                let Position { namespace, name } = at;
                tracing::warn!(%namespace, %name, %fault, "maintenance cannot treat an object");
                let told = format!("object {name:?} in namespace {namespace:?}: {fault}");
                (Counts { objects: 1, failed: 1, ..Counts::default() }, Some(told))
            }
        }
    }

    async fn subjects_on(
        &self,
        osd: &str,
        located: &mut Option<crate::nsm::Located>,
    ) -> Result<Vec<Subject>> {
        let bad = || Fault::corrupt(format!("a work item of OSD {osd:?}"));
        let osd = OsdId::parse(osd).ok_or_else(bad)?;
        loop {
            let found = self.nsm.fragments_of(osd, located.as_ref(), STEP).await?;
            let Some(last) = found.last().cloned() else { return Ok(Vec::new()) };
            *located = Some(last);
            let subjects: Vec<Subject> = found
                .into_iter()
                .filter_map(|f| Some(Position { namespace: f.namespace?, name: f.name }))
                .map(|at| Subject { at, manifest: None })
                .collect();
            if !subjects.is_empty() {
                return Ok(subjects);
            }
        }
    }

    /// The next objects of a range; none when there are no more.
    async fn subjects_in(&self, range: &Range) -> Result<Vec<Subject>> {
        let mut at = match (&range.after, &range.namespace) {
            (Some(after), _) => after.clone(),
            (None, Some(namespace)) => Position::before(namespace),
            (None, None) => match self.namespace_after("").await? {
                Some(first) => Position::before(&first),
                None => return Ok(Vec::new()),
            },
        };
        loop {
            for _ in 0..EMPTY_NAMESPACES {
                let found = self.nsm.manifests(&at.namespace, &at.name, STEP).await?;
                let subjects = found.into_iter().map(|(name, manifest)| Subject {
                    at: Position::new(&at.namespace, &name),
                    manifest: Some(manifest),
                });
                let subjects: Vec<Subject> =
                    subjects.filter(|subject| range.holds(&subject.at)).collect();
                let is_over = range.to.as_ref().is_some_and(|to| to.namespace <= at.namespace);
                if !subjects.is_empty() || is_over || range.namespace.is_some() {
                    return Ok(subjects);
                }
                match self.namespace_after(&at.namespace).await? {
                    Some(next) => at = Position::before(&next),
                    None => return Ok(Vec::new()),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn namespace_after(&self, namespace: &str) -> Result<Option<String>> {
        Ok(self.nsm.list_namespaces("", namespace, 1).await?.names.pop())
    }
}
