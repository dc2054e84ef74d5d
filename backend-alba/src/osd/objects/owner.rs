//! Whose an OSD is that lies in a store of objects: a chain of small objects, each put if absent under the next number. The
//! last one counts. Nothing of it is ever removed or used twice, so that no change that comes late can undo a later one.
//!
//! Exactly one backend wins where the store truly puts if absent. Where it does not, of two that claim in the same moment
//! the one whose marker was overwritten notices at its next look (see [`super::Inner`]), within a minute.

use bytes::Bytes;

use super::{Created, Objects};
use crate::fault::{Fault, Kind, Result};
use crate::name::{AlbaId, OsdId};
use crate::osd::marker;

const CHAIN: &str = "osd/";
/// Times a change begins that others are in the way of.
const ATTEMPTS: usize = 8;
/// Changes that an old list may not show yet.
const AHEAD: u64 = 64;
/// Longer is no marker.
const MAX_MARKER_BYTES: u64 = 1024;

/// Which OSD it is, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Of the last change.
    number: u64,
    pub id: OsdId,
    pub owner: Option<AlbaId>,
}

fn key(number: u64) -> String {
    format!("{CHAIN}{number:016}")
}

/// `None` when nobody has ever claimed it.
pub async fn standing(objects: &dyn Objects) -> Result<Option<Standing>> {
    let mut number = last_listed(objects).await?;
    let mut found = load(objects, number).await?;
    // A list may be older than what it lists.
    for _ in 0..AHEAD {
        let Some(next) = load(objects, number + 1).await? else { return Ok(found) };
        (number, found) = (number + 1, Some(next));
    }
    Err(Fault::unavailable("its list does not show what is there"))
}

/// 0 when there is none.
async fn last_listed(objects: &dyn Objects) -> Result<u64> {
    let (mut last, mut after) = (0, String::new());
    loop {
        let page = objects.list(CHAIN, &after).await?;
        let numbers = page.keys.iter().filter_map(|key| key.strip_prefix(CHAIN)?.parse().ok());
        last = numbers.chain([last]).max().unwrap_or(0);
        match page.keys.last() {
            Some(key) if page.more && *key > after => after.clone_from(key),
            _ => return Ok(last),
        }
    }
}

async fn load(objects: &dyn Objects, number: u64) -> Result<Option<Standing>> {
    if number == 0 {
        return Ok(None);
    }
    let key = key(number);
    let Some((len, bytes)) = objects.end(&key, MAX_MARKER_BYTES).await? else { return Ok(None) };
    let broken = || Fault::invalid(format!("{key} is no marker of an OSD"));
    if len > MAX_MARKER_BYTES {
        return Err(broken());
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| broken())?;
    let (id, owner) = marker::parse(text).map_err(|fault| fault.about(&key))?;
    Ok(Some(Standing { number, id, owner }))
}

/// Makes it this backend's, as `fresh` if it is nothing yet. `Invalid`, with its name, when it is another's.
pub async fn claim(objects: &dyn Objects, alba: AlbaId, fresh: OsdId) -> Result<OsdId> {
    let mut won = None;
    for _ in 0..ATTEMPTS {
        let found = standing(objects).await?;
        let (number, id) = found.map_or((0, fresh), |found| (found.number, found.id));
        match found.and_then(|found| found.owner) {
            Some(owner) if owner == alba => {
                if let Some(number) = won {
                    probe(objects, number, (id, alba)).await;
                }
                return Ok(id);
            }
            Some(owner) => return Err(marker::foreign(owner, alba)),
            None => {}
        }
        let value = Bytes::from(marker::text(id, Some(alba)));
        if objects.put_if_absent(&key(number + 1), value).await? == Created::Now {
            won = Some(number + 1);
        }
        // Won or lost: what counts is what is there.
    }
    Err(contended())
}

/// Makes it nobody's. `Invalid` when it is another's.
pub async fn release(objects: &dyn Objects, alba: AlbaId) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let Some(Standing { number, id, owner: Some(owner) }) = standing(objects).await? else {
            return Ok(());
        };
        if owner != alba {
            return Err(marker::foreign(owner, alba));
        }
        let value = Bytes::from(marker::text(id, None));
        objects.put_if_absent(&key(number + 1), value).await?;
    }
    Err(contended())
}

/// Whether the store keeps to what a claim stands on; the same bytes change nothing if it does not.
async fn probe(objects: &dyn Objects, number: u64, (id, alba): (OsdId, AlbaId)) {
    let value = Bytes::from(marker::text(id, Some(alba)));
    if let Ok(Created::Now) = objects.put_if_absent(&key(number), value).await {
        tracing::warn!(
            place = objects.place(),
            "it overwrites what is to be put only if absent: if another backend claimed it in this very moment, one of the \
             two notices within a minute and uses it no more"
        );
    }
}

fn contended() -> Fault {
    Fault::new(Kind::Unavailable, "others claim and release it all the time")
}
