//! How many objects there are, and how long they are together: counted, not kept with every change.
//!
//! The first who asks has them counted; from then on what this process puts and deletes is added and taken away. A count
//! during which this process changed the same namespace is made again, so what this process did is counted exactly. What
//! others do to a shared table is seen by the next count: when somebody asks, and so rarely that counting takes no more than
//! a hundredth of the time.

use std::collections::HashMap;
use std::ops::{AddAssign, Neg};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::keys::{self, NamespaceRecord, SpaceId};
use super::{Nsm, PAGE};
use crate::fault::Result;
use crate::manifest::Manifest;

/// A shared table is counted again after this time at the earliest.
const LEAST_AGE: Duration = Duration::from_secs(10);
/// Times a namespace is counted that is being changed. After the last one the count may be off by what is under way.
const ATTEMPTS: usize = 4;

/// What the backend holds: see the top of this file for how fresh that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub namespaces: u64,
    pub objects: u64,
    pub object_bytes: u64,
}

/// Objects and bytes, more or fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    objects: i64,
    bytes: i64,
}

impl Delta {
    pub fn of(manifest: &Manifest) -> Self {
        Self { objects: 1, bytes: manifest.len.cast_signed() }
    }
}

impl AddAssign for Delta {
    fn add_assign(&mut self, other: Self) {
        self.objects = self.objects.saturating_add(other.objects);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl Neg for Delta {
    type Output = Self;
    fn neg(self) -> Self {
        Self { objects: -self.objects, bytes: self.bytes.saturating_neg() }
    }
}

#[derive(Debug)]
pub(super) struct Tally {
    is_shared: bool,
    spaces: Mutex<HashMap<SpaceId, Count>>,
    /// One counts at a time. When the last count ended, and how long it took.
    counting: tokio::sync::Mutex<Option<(Instant, Duration)>>,
}

#[derive(Debug, Default)]
struct Count {
    /// `None` before the first count.
    sum: Option<Delta>,
    under_way: usize,
    /// Changes that have ended.
    ended: u64,
}

/// A change that may be made at any moment until this is dropped.
pub(super) struct Counting<'a> {
    tally: &'a Tally,
    space: SpaceId,
    /// `None` while nobody knows: then the namespace is counted again.
    delta: Option<Delta>,
}

impl Tally {
    pub fn new(is_shared: bool) -> Self {
        Self { is_shared, spaces: Mutex::default(), counting: tokio::sync::Mutex::new(None) }
    }

    pub fn change(&self, space: SpaceId) -> Counting<'_> {
        self.lock().entry(space).or_default().under_way += 1;
        Counting { tally: self, space, delta: None }
    }

    pub fn forget(&self, space: SpaceId) {
        self.lock().remove(&space);
    }

    fn is_due(&self, last: Option<(Instant, Duration)>) -> bool {
        match last {
            None => true,
            Some((ended, took)) => self.is_shared && ended.elapsed() > LEAST_AGE.max(took * 100),
        }
    }

    /// `None` while changes are under way.
    fn mark(&self, space: SpaceId) -> Option<u64> {
        let mut spaces = self.lock();
        let count = spaces.entry(space).or_default();
        (count.under_way == 0).then_some(count.ended)
    }

    // Changed by steps that do not panic.
    fn lock(&self) -> MutexGuard<'_, HashMap<SpaceId, Count>> {
        self.spaces.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Counting<'_> {
    pub fn made(mut self, delta: Delta) {
        self.delta = Some(delta);
    }
    pub fn not_made(self) {
        self.made(Delta::default());
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        let mut spaces = self.tally.lock();
        let Some(count) = spaces.get_mut(&self.space) else { return };
        count.under_way -= 1;
        count.ended += 1;
        match (self.delta, &mut count.sum) {
            (Some(delta), Some(sum)) => *sum += delta,
            (Some(_) | None, sum) => *sum = None,
        }
    }
}

impl Nsm {
    pub async fn totals(&self) -> Result<Totals> {
        let mut last = self.tally.counting.lock().await;
        let is_due = self.tally.is_due(*last);
        let begun = Instant::now();
        let mut totals = Totals::default();
        for (_, value) in self.all(0, b"n").await? {
            let record = NamespaceRecord::decode(&value)?;
            let known = self.tally.lock().get(&record.id).and_then(|count| count.sum);
            let sum = match known {
                Some(sum) if !is_due => sum,
                _ => self.count(&record).await?,
            };
            totals.namespaces += 1;
            totals.objects = totals.objects.saturating_add_signed(sum.objects);
            totals.object_bytes = totals.object_bytes.saturating_add_signed(sum.bytes);
        }
        if is_due {
            *last = Some((Instant::now(), begun.elapsed()));
        }
        Ok(totals)
    }

    async fn count(&self, record: &NamespaceRecord) -> Result<Delta> {
        for attempt in 1.. {
            let before = self.tally.mark(record.id);
            let sum = self.sum_of(record).await?;
            let mut spaces = self.tally.lock();
            let count = spaces.entry(record.id).or_default();
            let is_exact = count.under_way == 0 && before == Some(count.ended);
            if is_exact || attempt == ATTEMPTS {
                count.sum = Some(sum);
                return Ok(sum);
            }
        }
        Ok(Delta::default())
    }

    async fn sum_of(&self, record: &NamespaceRecord) -> Result<Delta> {
        let area = keys::key(b'm', &record.id);
        let mut sum = Delta::default();
        let mut from = Some(area.clone());
        while let Some(key) = from {
            let (found, next) = self.step(record.home, &area, key, PAGE).await?;
            for (_, value) in &found {
                sum += Delta::of(&Manifest::decode(value)?);
            }
            from = next;
        }
        Ok(sum)
    }
}
