//! Which agents there are, and which posts this one holds.

use std::collections::HashSet;

use super::{Inner, locked};
use crate::fault::Result;
use crate::maintenance::lease::Watched;
use crate::nsm::Record;

/// This agent, and the others as far as it knows.
#[derive(Debug)]
pub(super) struct Roll {
    id: [u8; 16],
    /// The value of this agent's record; `None` when there is none.
    beat: Option<Vec<u8>>,
    /// Agents that have a record, this one too.
    present: HashSet<String>,
    /// It shows up no more.
    has_left: bool,
}

impl Roll {
    pub fn new(id: [u8; 16]) -> Self {
        Self { id, beat: None, present: HashSet::new(), has_left: false }
    }

    fn name(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Inner {
    /// As it stands in what this agent has.
    pub(super) fn agent_name(&self) -> String {
        locked(&self.agent.roll).name()
    }

    /// Whether an agent of this name may still be at work.
    pub(super) fn is_present(&self, agent: &str) -> bool {
        let roll = locked(&self.agent.roll);
        agent == roll.name() || roll.present.contains(agent)
    }

    /// The others see that this agent lives, so that what it takes is not taken from it.
    pub(super) fn is_on_roll(&self) -> bool {
        !self.nsm.is_shared() || locked(&self.agent.roll).beat.is_some()
    }

    /// Shows that this agent lives, and strikes off those that have been silent for too long.
    pub(super) async fn call_roll(&self, watched: &mut Watched<String>) -> Result<()> {
        if !self.nsm.is_shared() {
            return Ok(());
        }
        self.show_up().await?;
        let (lease, now, me) = (self.agent.settings().lease, self.agent.now(), self.agent_name());
        let mut present = HashSet::new();
        for (agent, value) in self.nsm.agents().await? {
            let silent_for = watched.observe(&agent, &value, now);
            if agent != me && silent_for >= lease {
                let record = Record::Agent(agent.clone());
                if self.nsm.change_record(&record, Some(&value), None).await? {
                    tracing::info!(agent, "an agent is silent: its work goes to others");
                    continue;
                }
            }
            present.insert(agent);
        }
        watched.retain(|agent| present.contains(agent));
        locked(&self.agent.roll).present = present;
        Ok(())
    }

    async fn show_up(&self) -> Result<()> {
        let _turn = self.agent.signing.lock().await;
        let (record, before) = {
            let roll = locked(&self.agent.roll);
            if roll.has_left {
                return Ok(());
            }
            (Record::Agent(roll.name()), roll.beat.clone())
        };
        let next = self.outside.bytes().to_vec();
        if self.nsm.change_record(&record, before.as_ref(), Some(next.clone())).await? {
            locked(&self.agent.roll).beat = Some(next);
            return Ok(());
        }
        let found = self.nsm.record(&record).await?;
        let mut roll = locked(&self.agent.roll);
        if found.is_none() {
            // Struck off: what this agent had is another's by now. A new one begins.
            roll.id = self.outside.bytes();
        }
        roll.beat = found;
        Ok(())
    }

    /// Leaves at once instead of being missed after a while, and for good: what it does in its last moments it does as
    /// nobody, and takes nothing any more.
    pub(in crate::alba) async fn leave(&self) {
        let _turn = self.agent.signing.lock().await;
        let (record, beat) = {
            let mut roll = locked(&self.agent.roll);
            roll.has_left = true;
            (Record::Agent(roll.name()), roll.beat.take())
        };
        if beat.is_some()
            && let Err(fault) = self.nsm.change_record(&record, beat.as_ref(), None).await
        {
            tracing::debug!(%fault, "the other agents will notice that this one is gone");
        }
    }

    /// Whether what there is one of is this agent's to do now: it has the post, or takes it because nobody else does.
    pub(in crate::alba) async fn holds(&self, post: &'static str) -> Result<bool> {
        if !self.nsm.is_shared() {
            return Ok(true);
        }
        let (me, record) = (self.agent_name(), Record::Post(post));
        if !self.is_on_roll() {
            return Ok(false);
        }
        let holder = self.nsm.record(&record).await?;
        if let Some(holder) = &holder {
            let name = String::from_utf8_lossy(holder);
            if name == me {
                return Ok(true);
            }
            if self.is_present(&name) {
                return Ok(false);
            }
        }
        self.nsm.change_record(&record, holder.as_ref(), Some(me.into_bytes())).await
    }
}
