//! Rebalancing: one agent of all moves fragments from OSDs that are too full to emptier ones.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::Inner;
use crate::fault::Result;
use crate::maintenance::rebalance::{Fill, Levels};
use crate::name::OsdId;
use crate::nsm::Located;
use crate::osd::Purpose;

/// Longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A pause is taken in steps, so that changed settings count at once, also those that were not read yet when it began.
const PAUSE_STEP: Duration = Duration::from_secs(1);
/// After so many moves the OSDs are asked again how full they are.
const MOVES: u64 = 64;
/// Fragments looked at in one step.
const STEP: usize = 64;

/// Ends with the backend.
pub(super) async fn run(backend: Weak<Inner>) {
    loop {
        let begun = Instant::now();
        loop {
            let Some(inner) = backend.upgrade() else { return };
            let pause = (inner.agent.settings().tour_interval / 10).min(LONGEST_PAUSE);
            drop(inner);
            let left = pause.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(PAUSE_STEP)).await;
        }
        let mut is_worth_more = true;
        while is_worth_more {
            let Some(inner) = backend.upgrade() else { return };
            is_worth_more = match inner.rebalance().await {
                Ok(moved) => moved >= MOVES,
                Err(fault) => {
                    tracing::warn!(%fault, "OSDs cannot be rebalanced");
                    false
                }
            };
        }
    }
}

impl Inner {
    /// Returns how many fragments were moved.
    async fn rebalance(self: &Arc<Self>) -> Result<u64> {
        let settings = self.agent.settings();
        if !settings.rebalance || self.osds.count() < 2 || !self.holds("rebalance").await? {
            return Ok(0);
        }
        let mut levels = Levels::new(self.fills().await, settings.band_percent);
        let mut moved = 0;
        for source in levels.sources() {
            let mut after: Option<Located> = None;
            loop {
                let found = self.nsm.fragments_of(source, after.as_ref(), STEP).await?;
                let Some(last) = found.last().cloned() else { break };
                after = Some(last);
                for fragment in found {
                    moved += u64::from(self.rebalance_one(&mut levels, source, fragment).await?);
                    if moved >= MOVES {
                        return Ok(moved);
                    }
                }
                if !levels.sources().contains(&source) {
                    break;
                }
            }
        }
        Ok(moved)
    }

    async fn fills(&self) -> Vec<Fill> {
        let members = self.osds.all();
        let asked = join_all(members.iter().map(|member| async move {
            let room = member.room().await.ok()?;
            Some(Fill {
                osd: member.id(),
                node: member.node.clone(),
                labels: member.labels.clone(),
                used_bytes: room.used_bytes,
                capacity_bytes: room.capacity_bytes,
                free_bytes: room.free_for(Purpose::Data),
                may_take: member.may_take_any(),
            })
        }));
        asked.await.into_iter().flatten().collect()
    }

    async fn rebalance_one(
        self: &Arc<Self>,
        levels: &mut Levels,
        source: OsdId,
        located: Located,
    ) -> Result<bool> {
        let Some(namespace) = located.namespace else { return Ok(false) };
        let found = self.nsm.object(&namespace, &located.name).await?;
        let Some((manifest, preset)) = found else { return Ok(false) };
        let fragment = manifest.fragments.iter().find(|fragment| fragment.file == located.file);
        let Some(fragment) = fragment.copied() else { return Ok(false) };
        let Some(target) = levels.target(&manifest, source, &preset.labels) else {
            return Ok(false);
        };
        self.agent.pace_object().await;
        let len = manifest.layout().fragment_len();
        let (namespace, name) = (namespace.as_str().into(), located.name.as_str().into());
        match Box::pin(self.relocate(&namespace, &name, manifest, fragment, target)).await {
            Ok(is_moved) => {
                if is_moved {
                    levels.moved(source, target, len);
                }
                Ok(is_moved)
            }
            Err(fault) => {
                tracing::warn!(%namespace, %name, %fault, "a fragment cannot be moved");
                Ok(false)
            }
        }
    }
}
