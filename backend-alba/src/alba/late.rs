//! Fragments that were stored after their object's manifest was put: they are added to it.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::lane::{Lanes, Order};
use super::repair::Notice;
use crate::fault::Result;
use crate::manifest::{Fragment, Manifest};
use crate::name::ObjectId;

/// What is not stored by then is made anew by maintenance.
const PATIENCE: Duration = Duration::from_secs(60);

/// Goes on in the background.
pub(super) fn record(inner: &Arc<Inner>, order: &Order, object: ObjectId, mut lanes: Lanes) {
    let lacks = !lanes.failed().is_empty();
    let late = lanes.late();
    if !lacks && late.is_empty() {
        return;
    }
    let (inner, order) = (inner.clone(), order.clone());
    tokio::spawn(async move {
        let mut lacks = lacks;
        for lane in late {
            match record_one(&inner, &order, object, lane).await {
                Ok(is_recorded) => lacks |= !is_recorded,
                Err(fault) => {
                    tracing::warn!(%fault, "a late fragment is not recorded");
                    lacks = true;
                }
            }
        }
        if lacks {
            inner.notice(Notice::lacking(&order.namespace, &order.name));
        }
    });
}

async fn record_one(
    inner: &Arc<Inner>,
    order: &Order,
    object: ObjectId,
    mut lane: Lanes,
) -> Result<bool> {
    let Some(fragment) = lane.end(PATIENCE).await else {
        lane.discard().await;
        return Ok(false);
    };
    let added = [(None, Some(fragment))];
    let fits = |now: &Manifest, new: &Fragment| inner.osds.fits(now, new, &[]);
    let name = (&*order.namespace, &*order.name);
    let outcome = inner.nsm.move_fragments(name, object, &added, &fits).await;
    lane.settle(matches!(outcome, Ok(true)), outcome.as_ref().err());
    lane.discard().await;
    outcome
}
