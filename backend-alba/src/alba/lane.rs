//! Lanes: the fragments of one object, each being written to its OSD by a task of its own behind a short queue.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until, timeout};

use super::Inner;
use super::osds::Member;
use crate::erasure::Shares;
use crate::fault::{Fault, Kind, Result};
use crate::manifest::{Fragment, Manifest};
use crate::name::{FragmentId, OsdId};
use crate::osd::{FragmentWriter, Priority, Purpose, Title};
use crate::trailer::Part;

/// Steps that wait for an OSD at most.
const QUEUE: usize = 2;
/// A lane that keeps the others waiting for so long is given up if enough others do not.
const LAG: Duration = Duration::from_secs(2);
/// A lane that moves this little is given up in any case, unless it is the only one.
const STALL: Duration = Duration::from_secs(30);
/// Stragglers get at least so long.
const LEAST_SLACK: Duration = Duration::from_millis(50);
/// Files that nobody waits for are removed by their own tasks after this time.
const DISCARD_PATIENCE: Duration = Duration::from_secs(1);

/// What is to be put.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub len: u64,
    pub purpose: Purpose,
    pub priority: Priority,
    /// Of the object.
    pub created_ms: u64,
}

impl Order {
    /// For more fragments of an object there is.
    pub fn again(namespace: &Arc<str>, name: &Arc<str>, manifest: &Manifest) -> Self {
        let (namespace, name) = (namespace.clone(), name.clone());
        let (len, created_ms) = (manifest.len, manifest.created_ms);
        let (purpose, priority) = (Purpose::Data, Priority::Background);
        Self { namespace, name, len, purpose, priority, created_ms }
    }
}

pub(super) struct Lanes {
    lanes: Vec<Lane>,
    failed: Vec<(OsdId, Fault)>,
}

struct Lane {
    index: u8,
    member: Arc<Member>,
    /// `None` once the end was sent.
    steps: Option<mpsc::Sender<Step>>,
    progress: Progress,
    file: FragmentId,
}

enum Progress {
    Writing(JoinHandle<Result<Stored>>),
    Stored(Stored),
}

struct Stored {
    writer: Box<dyn FragmentWriter>,
    crc: u32,
}

enum Step {
    Append(Vec<Bytes>),
    /// With the object's checksum, unless it is the fragment's.
    Finish(Option<u32>),
}

/// What became of handing a step to a lane.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Yes,
    /// Its queue is full.
    Late,
    /// It has failed.
    No,
}

impl Inner {
    pub(super) fn order(&self, namespace: &str, name: &str, len: u64, purpose: Purpose) -> Order {
        let (namespace, name, priority) = (namespace.into(), name.into(), Priority::Foreground);
        Order { namespace, name, len, purpose, priority, created_ms: self.outside.now_ms() }
    }
}

impl Lanes {
    /// Begins a fragment of each index on its OSD. What fails is remembered; what takes long is left out once `least` have
    /// begun.
    pub async fn open(
        inner: &Arc<Inner>,
        order: &Order,
        part: Part,
        (places, least): (&[(usize, OsdId)], usize),
    ) -> Self {
        let begin = |(index, osd): &(usize, OsdId)| {
            let (part, osd) = (Part { index: *index as u8, ..part }, *osd);
            async move { (osd, Lane::begin(inner, order, part, osd).await) }
        };
        let mut beginning: FuturesUnordered<_> = places.iter().map(begin).collect();
        let (mut lanes, mut failed) = (Vec::new(), Vec::new());
        let mut deadline = Instant::now() + STALL;
        loop {
            tokio::select! {
                biased;
                next = beginning.next() => match next {
                    None => return Self { lanes, failed },
                    Some((_, Ok(lane))) => {
                        lanes.push(lane);
                        if lanes.len() == least {
                            deadline = Instant::now() + LAG;
                        }
                    }
                    Some((osd, Err(fault))) => failed.push((osd, fault)),
                },
                () = sleep_until(deadline), if places.len() > 1 => break,
            }
        }
        for (_, osd) in places {
            let is_known = lanes.iter().any(|lane| lane.member.id() == *osd)
                || failed.iter().any(|(failed, _)| failed == osd);
            if let (false, Ok(member)) = (is_known, inner.osds.get(*osd)) {
                failed.push((*osd, stalled(&member)));
            }
        }
        Self { lanes, failed }
    }

    pub fn count(&self) -> usize {
        self.lanes.len()
    }
    /// OSDs that failed.
    pub fn failed(&self) -> HashSet<OsdId> {
        self.failed.iter().map(|(osd, _)| *osd).collect()
    }

    /// Why it failed; a lack of room tells more than what else there was.
    pub fn first_fault(&mut self) -> Fault {
        let is_full = |(_, fault): &(OsdId, Fault)| fault.kind == Kind::NoSpace;
        let at = self.failed.iter().position(is_full).unwrap_or(0);
        match self.failed.get_mut(at) {
            Some((_, fault)) => {
                let again = Fault::new(fault.kind, fault.to_string());
                std::mem::replace(fault, again)
            }
            None => Fault::unavailable("too few OSDs take its fragments"),
        }
    }

    /// Hands each lane its share. Fails when fewer than `least` lanes are left.
    pub async fn append(&mut self, shares: Shares, least: usize) -> Result<()> {
        let step =
            |index: u8| Step::Append(shares.get(usize::from(index)).cloned().unwrap_or_default());
        self.send(step, least).await
    }

    async fn send(&mut self, step: impl Fn(u8) -> Step, least: usize) -> Result<()> {
        let patience = if self.lanes.len() > least { LAG } else { STALL };
        let mut sent = self.try_send(&step, &vec![Sent::Late; self.lanes.len()], patience).await;
        let fine = sent.iter().filter(|sent| **sent == Sent::Yes).count();
        if fine < least && patience == LAG && sent.contains(&Sent::Late) {
            sent = self.try_send(&step, &sent, STALL).await;
        }
        self.drop_failed(&sent).await;
        if self.lanes.len() < least { Err(self.first_fault()) } else { Ok(()) }
    }

    async fn try_send(
        &mut self,
        step: &impl Fn(u8) -> Step,
        before: &[Sent],
        patience: Duration,
    ) -> Vec<Sent> {
        let is_only = self.lanes.len() == 1;
        let sends = self.lanes.iter().zip(before).map(|(lane, before)| async move {
            let (Sent::Late, Some(steps)) = (before, &lane.steps) else { return *before };
            let send = steps.send(step(lane.index));
            let sent = if is_only { Ok(send.await) } else { timeout(patience, send).await };
            match sent {
                Ok(Ok(())) => Sent::Yes,
                Ok(Err(_)) => Sent::No,
                Err(_) => Sent::Late,
            }
        });
        join_all(sends).await
    }

    /// Gives up the lanes that did not take a step.
    async fn drop_failed(&mut self, sent: &[Sent]) {
        let mut kept = Vec::new();
        for (lane, sent) in std::mem::take(&mut self.lanes).into_iter().zip(sent) {
            let osd = lane.member.id();
            match (sent, lane.progress) {
                (Sent::Yes, progress) => kept.push(Lane { progress, ..lane }),
                (Sent::No, Progress::Writing(task)) => {
                    let fault = ended(task.await).err();
                    self.failed.extend(fault.map(|fault| (osd, fault)));
                }
                (Sent::Late | Sent::No, _) => self.failed.push((osd, stalled(&lane.member))),
            }
        }
        self.lanes = kept;
    }

    /// Ends all fragments and waits until `least` are stored, and a slack longer for the others.
    pub async fn finish(
        &mut self,
        object_crc: Option<u32>,
        least: usize,
        spent: Duration,
    ) -> Result<()> {
        self.send(|_| Step::Finish(object_crc), least).await?;
        let ended = self.wait_for(least, spent).await;
        let mut kept = Vec::new();
        let mut outcomes: Vec<Option<Result<Stored>>> = self.lanes.iter().map(|_| None).collect();
        ended.into_iter().for_each(|(n, outcome)| outcomes[n] = Some(outcome));
        let mut stored = 0;
        for (lane, outcome) in std::mem::take(&mut self.lanes).into_iter().zip(outcomes) {
            match outcome {
                None => kept.push(lane),
                Some(Ok(fragment)) => {
                    stored += 1;
                    kept.push(Lane { progress: Progress::Stored(fragment), ..lane });
                }
                Some(Err(fault)) => self.failed.push((lane.member.id(), fault)),
            }
        }
        self.lanes = kept;
        if stored >= least {
            return Ok(());
        }
        // Those still under way have stalled.
        for lane in self.lanes.iter().filter(|lane| matches!(lane.progress, Progress::Writing(_))) {
            self.failed.push((lane.member.id(), stalled(&lane.member)));
        }
        Err(self.first_fault())
    }

    /// Lanes that ended, by position.
    async fn wait_for(&mut self, least: usize, spent: Duration) -> Vec<(usize, Result<Stored>)> {
        let begun = Instant::now();
        let is_only = self.lanes.len() == 1;
        let running = self.lanes.iter_mut().enumerate().filter_map(|(n, lane)| {
            let Progress::Writing(task) = &mut lane.progress else { return None };
            Some(async move { (n, ended(task.await)) })
        });
        let mut running: FuturesUnordered<_> = running.collect();
        let mut done = Vec::new();
        let mut deadline = begun + STALL;
        let mut stored = 0;
        loop {
            tokio::select! {
                biased;
                next = running.next() => {
                    let Some((n, outcome)) = next else { return done };
                    stored += usize::from(outcome.is_ok());
                    done.push((n, outcome));
                    if stored == least {
                        let slack = (spent + begun.elapsed()) / 5;
                        deadline = Instant::now() + slack.max(LEAST_SLACK);
                    }
                }
                () = sleep_until(deadline), if !is_only => return done,
            }
        }
    }

    /// Fragments that are stored, by rising index.
    pub fn stored(&self) -> Vec<Fragment> {
        let stored = self.lanes.iter().filter_map(|lane| match &lane.progress {
            Progress::Stored(stored) => Some(lane.fragment(stored)),
            Progress::Writing(_) => None,
        });
        let mut fragments: Vec<Fragment> = stored.collect();
        fragments.sort_by_key(|fragment| fragment.index);
        fragments
    }

    /// What becomes of the stored fragments once their manifest was put, or not. When it is not known whether the NSM took
    /// it, they stay: the collector will know.
    pub fn settle(&mut self, put: bool, fault: Option<&Fault>) {
        let unknown = fault.is_some_and(|fault| fault.kind == Kind::Unavailable);
        for lane in &mut self.lanes {
            let Progress::Stored(stored) = &mut lane.progress else { continue };
            if put || unknown {
                stored.writer.keep();
            }
        }
    }

    /// Lanes whose fragments are not stored yet, one by one as they end.
    pub fn late(&mut self) -> Vec<Lanes> {
        let is_late = |lane: &mut Lane| matches!(lane.progress, Progress::Writing(_));
        let late = self.lanes.extract_if(.., is_late);
        late.map(|lane| Lanes { lanes: vec![lane], failed: Vec::new() }).collect()
    }

    /// Waits for a late lane.
    pub async fn end(&mut self, patience: Duration) -> Option<Fragment> {
        for mut lane in std::mem::take(&mut self.lanes) {
            if let Progress::Writing(task) = &mut lane.progress
                && let Ok(outcome) = timeout(patience, task).await
            {
                match ended(outcome) {
                    Ok(stored) => lane.progress = Progress::Stored(stored),
                    // Its task has left nothing.
                    Err(_) => continue,
                }
            }
            self.lanes.push(lane);
        }
        self.stored().pop()
    }

    /// Leaves nothing that was not settled to stay.
    pub async fn discard(&mut self) {
        let discards = std::mem::take(&mut self.lanes).into_iter().map(|lane| async move {
            drop(lane.steps);
            let discard = async move {
                match lane.progress {
                    Progress::Stored(stored) => stored.writer.discard().await,
                    // The task removes the file when it sees that the queue has ended.
                    Progress::Writing(task) => {
                        if let Ok(Ok(stored)) = task.await {
                            stored.writer.discard().await;
                        }
                    }
                }
            };
            // Goes on by itself when a disk takes long.
            let _ = timeout(DISCARD_PATIENCE, tokio::spawn(discard)).await;
        });
        join_all(discards).await;
    }
}

impl Lane {
    async fn begin(inner: &Arc<Inner>, order: &Order, part: Part, osd: OsdId) -> Result<Self> {
        let file = inner.fragment_id();
        let title = Title {
            file,
            namespace: order.namespace.clone(),
            name: order.name.clone(),
            part,
            created_ms: order.created_ms,
            purpose: order.purpose,
            priority: order.priority,
        };
        let member = inner.osds.get(osd)?;
        let writer = member.create(title).await?;
        let (steps, queue) = mpsc::channel(QUEUE);
        let progress = Progress::Writing(tokio::spawn(write(member.clone(), writer, queue)));
        Ok(Self { index: part.index, member, steps: Some(steps), progress, file })
    }

    fn fragment(&self, stored: &Stored) -> Fragment {
        let (osd, file) = (self.member.id(), self.file);
        Fragment { index: self.index, osd, file, crc: stored.crc }
    }
}

/// The task of a lane.
async fn write(
    member: Arc<Member>,
    mut writer: Box<dyn FragmentWriter>,
    mut queue: mpsc::Receiver<Step>,
) -> Result<Stored> {
    let outcome = loop {
        match queue.recv().await {
            None => break Err(Fault::unavailable("the put was given up")),
            Some(Step::Append(pieces)) => {
                if let Err(fault) = writer.append(pieces).await {
                    break member.note(Err(fault));
                }
            }
            Some(Step::Finish(object_crc)) => {
                break member.note(writer.finish(object_crc).await);
            }
        }
    };
    match outcome {
        Ok(crc) => Ok(Stored { writer, crc }),
        Err(fault) => {
            writer.discard().await;
            Err(fault)
        }
    }
}

fn ended(outcome: Result<Result<Stored>, JoinError>) -> Result<Stored> {
    outcome.map_err(|e| Fault {
        source: Some(Box::new(e)),
        ..Fault::bug("a fragment's task did not end")
    })?
}

fn stalled(member: &Member) -> Fault {
    let place = member.place();
    let fault = Fault::unavailable(format!("OSD {place} does not get on with its fragment"));
    member.note_failure(&fault);
    fault
}
