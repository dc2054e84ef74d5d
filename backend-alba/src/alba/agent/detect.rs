//! Failure detection: which OSDs have been silent for so long that their fragments count as lost.
//!
//! An OSD is asked every now and then for its room and for a fragment that does not exist; any answer is a sign of life. In a
//! shared backend an agent that gets one writes it down when nobody else has lately, so an OSD is dead only when no agent
//! reaches it. Silence is counted by the watcher's own time. An OSD that is disabled is somebody's work in progress and
//! never dead.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::{Inner, locked};
use crate::fault::{Fault, Result};
use crate::maintenance::lease::Watched;
use crate::name::{FragmentId, OsdId};
use crate::nsm::{OsdRole, Record};
use crate::osd::{Priority, Wanted};

/// An OSD that takes longer to answer is silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest pause between two questions.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the heart remembers from beat to beat.
#[derive(Default)]
pub(super) struct Watch {
    pub agents: Watched<String>,
    osds: Watched<OsdId>,
    /// When this agent last had an answer, or began to ask.
    heard: HashMap<OsdId, Instant>,
    asked: Option<Instant>,
}

impl Inner {
    /// Asks all OSDs, when it is time, and judges who is dead.
    pub(super) async fn detect(&self, watch: &mut Watch) -> Result<()> {
        self.ask_failing().await;
        let limit = self.agent.settings().auto_repair_timeout;
        let pause = (limit / 8).min(LONGEST_PAUSE);
        if watch.asked.is_some_and(|asked| asked.elapsed() < pause) {
            return Ok(());
        }
        watch.asked = Some(Instant::now());
        let known = self.nsm.osds().await?;
        let answers = join_all(known.iter().map(|(id, _)| self.is_alive(*id, pause))).await;
        let mut dead = HashSet::new();
        for ((id, record), answer) in known.iter().zip(answers) {
            let now = Instant::now();
            let heard = watch.heard.entry(*id).or_insert(now);
            if answer.is_ok() {
                *heard = now;
            }
            let mut silent_for = heard.elapsed();
            if self.nsm.is_shared() {
                let others = self.compare(&mut watch.osds, *id, answer.is_ok(), pause).await?;
                silent_for = silent_for.min(others);
            }
            if silent_for >= limit && record.role != OsdRole::Disabled {
                dead.insert(*id);
            }
        }
        watch.heard.retain(|id, _| known.iter().any(|(known, _)| known == id));
        watch.osds.retain(|id| known.iter().any(|(known, _)| known == id));
        self.bury(dead);
        Ok(())
    }

    /// What failed several times and is not used by anybody since is given the chance to show that it is well.
    async fn ask_failing(&self) {
        let failing = self.osds.all().into_iter().filter(|member| member.health().is_failing());
        let asked = failing.map(|member| async move {
            // The outcome is noted with the OSD.
            drop(self.is_alive(member.id(), Duration::ZERO).await);
        });
        join_all(asked).await;
    }

    fn bury(&self, dead: HashSet<OsdId>) {
        let before = std::mem::replace(&mut *locked(&self.agent.dead), dead.clone());
        for osd in dead.difference(&before) {
            tracing::warn!(%osd, "an OSD has been silent for too long: its fragments are made anew");
        }
        for osd in before.difference(&dead) {
            tracing::info!(%osd, "an OSD that was silent is back");
        }
    }

    async fn is_alive(&self, id: OsdId, patience: Duration) -> Result<()> {
        let member = self.osds.get(id)?;
        let no_fragment = FragmentId(self.outside.bytes());
        let ask = async {
            member.room().await?;
            let wanted = Wanted { file: no_fragment, len: 1, crc: 0 };
            member.open(wanted, Priority::Foreground).await
        };
        let late = |_| Fault::unavailable(format!("OSD {id} does not answer"));
        timeout(PATIENCE.min(patience.max(Duration::from_secs(1))), ask).await.map_err(late)??;
        Ok(())
    }

    /// For how long no agent has heard of it; tells the others that this one has.
    async fn compare(
        &self,
        osds: &mut Watched<OsdId>,
        id: OsdId,
        is_heard: bool,
        pause: Duration,
    ) -> Result<Duration> {
        let record = Record::Osd(id);
        let value = self.nsm.record(&record).await?;
        let known = value.clone().unwrap_or_default();
        let silent_for = osds.observe(&id, &known, self.agent.now());
        if is_heard && (value.is_none() || silent_for >= pause) {
            let sign = self.outside.bytes().to_vec();
            // When it was changed meanwhile, another agent has heard of it.
            self.nsm.change_record(&record, value.as_ref(), Some(sign)).await?;
            return Ok(Duration::ZERO);
        }
        Ok(silent_for)
    }
}
