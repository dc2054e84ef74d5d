//! Storing an object anew as its preset would store it now: new fragments first, then the manifest is exchanged if it still is
//! what was read, which notes the old fragments for removal in the same step. A reader that has the old manifest reads on
//! until its fragments go, and then finds the new one. A crash in the middle leaves orphans.

use std::collections::HashSet;
use std::sync::Arc;

use super::lane::Order;
use super::put::Sending;
use super::{Inner, fetch, late};
use crate::fault::Result;
use crate::maintenance::pace::step_bytes;
use crate::manifest::Manifest;
use crate::osd::Priority;
use crate::preset::Policy;

impl Inner {
    /// `false` when the object was changed or deleted meanwhile, or would be stored as it is.
    pub(super) async fn rewrite(
        self: &Arc<Self>,
        namespace: &Arc<str>,
        name: &Arc<str>,
        old: &Manifest,
    ) -> Result<bool> {
        let Some((now, preset)) = self.nsm.object(namespace, name).await? else { return Ok(false) };
        if now != *old {
            return Ok(false);
        }
        let order = Order::again(namespace, name, old);
        let policies: Vec<Policy> = preset.policies.iter().map(|p| p.for_len(old.len)).collect();
        let mut sending = Sending::begin(self, preset, &order, &HashSet::new()).await?;
        let sent = self.pour(&Arc::new(now), &mut sending).await;
        let new = sending.finish(sent, Some(old.crc)).await?;
        let mut lanes = sending.lanes;
        let id = new.id;
        let rank = |policy| policies.iter().position(|p| *p == policy).unwrap_or(usize::MAX);
        let is_better = rank(new.policy) < rank(old.policy);
        let is_recut = new.policy == old.policy && !new.policy.is_copies() && new.unit != old.unit;
        if !is_better && !is_recut {
            // OSDs went meanwhile.
            lanes.discard().await;
            return Ok(false);
        }
        let outcome = self.nsm.replace(namespace, name, old, &new).await;
        lanes.settle(matches!(outcome, Ok(true)), outcome.as_ref().err());
        if matches!(outcome, Ok(true)) {
            late::record(self, &order, id, lanes);
            self.wakes.notify_one();
        } else {
            lanes.discard().await;
        }
        outcome
    }

    async fn pour(self: &Arc<Self>, from: &Arc<Manifest>, to: &mut Sending) -> Result<()> {
        let (mut at, data) = (0, from.policy.data() as u64);
        while at < from.len {
            let step = step_bytes(self.agent.settings().bytes_per_second) * data;
            let len = step.min(from.len - at);
            self.agent.pace_bytes(len).await;
            let bytes = fetch::range(self, from, (at, len), Priority::Background).await.outcome?;
            to.append(&[bytes]).await?;
            at += len;
        }
        Ok(())
    }
}
