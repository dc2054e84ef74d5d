//! Work: jobs, cut into items that agents take one by one. Bytes to struct and back, ranges and counts; no I/O.
//!
//! An item is one JSON record of the NSM. It says what is to be done, for which range of objects, how far it has come, and
//! which agent has it. It is changed only if it still is what its changer knows, so an agent that lost it learns that from its
//! next step. Doing a part of it twice does no harm.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};
use crate::name::OsdId;

/// Items of one job at most.
pub const MAX_PARTS: usize = 64;

/// What somebody, or the planner, asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for JobId {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Fault::invalid(format!("job {text:?} is not 16 hexadecimal digits"));
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| bad())
    }
}

/// One item of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemKey {
    pub job: JobId,
    pub part: u16,
}

impl ItemKey {
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        [&self.job.0.to_be_bytes()[..], &self.part.to_be_bytes()].concat()
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad =
            || Fault::corrupt(format!("NSM record: a work item's key of {} bytes", bytes.len()));
        let (job, part) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
        let part: [u8; 2] = part.try_into().map_err(|_| bad())?;
        Ok(Self { job: JobId(u64::from_be_bytes(*job)), part: u16::from_be_bytes(part) })
    }
}

/// What is done with each object of the range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Task {
    /// The planner's look at all objects: as [`Task::Repair`] and [`Task::Rewrite`], where these roles are on.
    Tour,
    /// The planner's look at all fragments: as [`Task::Verify`] with checksums.
    Scrub,
    /// What an object lacks is made anew.
    Repair,
    /// Objects that their preset would store otherwise now are stored anew.
    Rewrite,
    /// Each fragment is looked for, or read and checked; what is missing or damaged is made anew.
    Verify {
        checksum: bool,
        /// What lies on an OSD that does not answer counts as missing.
        unreachable_is_missing: bool,
    },
    /// All fragments are moved away from an OSD that is dead or to be emptied; the range says nothing.
    Empty { osd: String },
}

impl Task {
    #[must_use]
    pub fn empty(osd: OsdId) -> Self {
        Self::Empty { osd: osd.to_string() }
    }

    /// Goes by itself when done: nobody asked for it.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        matches!(self, Self::Tour | Self::Scrub | Self::Empty { .. })
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tour => "tour",
            Self::Scrub => "scrub",
            Self::Repair => "repair",
            Self::Rewrite => "rewrite",
            Self::Verify { .. } => "verify",
            Self::Empty { .. } => "empty",
        }
    }
}

/// An object, by the names that order all objects of the backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub namespace: String,
    pub name: String,
}

impl Position {
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Before the first object of a namespace.
    #[must_use]
    pub fn before(namespace: &str) -> Self {
        Self::new(namespace, "")
    }
}

/// Objects after `after`, up to and with `to`; without, up to the last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub after: Option<Position>,
    pub to: Option<Position>,
    /// Of this namespace only.
    pub namespace: Option<String>,
}

impl Range {
    #[must_use]
    pub fn of_namespace(namespace: &str) -> Self {
        let (after, only) = (Position::before(namespace), namespace.to_string());
        Self { after: Some(after), to: None, namespace: Some(only) }
    }

    #[must_use]
    pub fn holds(&self, position: &Position) -> bool {
        let is_after = self.after.as_ref().is_none_or(|after| position > after);
        let is_before = self.to.as_ref().is_none_or(|to| position <= to);
        is_after && is_before && self.namespace.as_ref().is_none_or(|n| *n == position.namespace)
    }

    /// Cuts it at these rising positions, or at some of them if they are too many: each object is in exactly one part.
    #[must_use]
    pub fn split(self, at: &[Position]) -> Vec<Self> {
        let cuts: Vec<&Position> = at.iter().filter(|position| self.holds(position)).collect();
        let step = cuts.len().div_ceil(MAX_PARTS - 1).max(1);
        let mut parts = Vec::new();
        let mut rest = self;
        for cut in cuts.into_iter().skip(step - 1).step_by(step) {
            let part = Self { to: Some(cut.clone()), ..rest.clone() };
            parts.push(part);
            rest.after = Some(cut.clone());
        }
        parts.push(rest);
        parts
    }
}

/// What came of it so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Objects looked at.
    pub objects: u64,
    /// Fragments made anew, or copied elsewhere.
    pub made: u64,
    /// Objects stored anew.
    pub rewritten: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Fragments that are not where they should be.
    pub missing: u64,
    /// Fragments on OSDs that did not answer.
    pub unavailable: u64,
    /// Fragments that are not what they should be.
    pub mismatched: u64,
    /// Fragments that could not be made because no OSD may take them now.
    pub lacking: u64,
    /// Objects that could not be worked on; the log and the item's note say why.
    pub failed: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.objects += other.objects;
        self.made += other.made;
        self.rewritten += other.rewritten;
        self.bytes += other.bytes;
        self.missing += other.missing;
        self.unavailable += other.unavailable;
        self.mismatched += other.mismatched;
        self.lacking += other.lacking;
        self.failed += other.failed;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody has it, or its owner works on it.
    #[default]
    Open,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub task: Task,
    pub range: Range,
    /// The last object done.
    pub at: Option<Position>,
    /// The agent that has it.
    pub owner: Option<String>,
    #[serde(default)]
    pub state: State,
    #[serde(default)]
    pub counts: Counts,
    /// What went wrong last.
    #[serde(default)]
    pub note: String,
    /// Milliseconds since 1970; for people.
    pub created_ms: u64,
}

impl Item {
    #[must_use]
    pub fn new(task: Task, range: Range, created_ms: u64) -> Self {
        let (at, owner, state) = (None, None, State::Open);
        let (counts, note) = (Counts::default(), String::new());
        Self { task, range, at, owner, state, counts, note, created_ms }
    }

    /// What is left of the range.
    #[must_use]
    pub fn rest(&self) -> Range {
        let after = self.at.clone().or_else(|| self.range.after.clone());
        Range { after, ..self.range.clone() }
    }

    pub fn encode(&self) -> Result<Vec<u8>> {
        let failed = |e: serde_json::Error| Fault {
            source: Some(Box::new(e)),
            ..Fault::bug("a work item cannot be written as JSON")
        };
        serde_json::to_vec(self).map_err(failed)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let broken = |e: serde_json::Error| Fault {
            source: Some(Box::new(e)),
            ..Fault::corrupt("NSM record of a work item")
        };
        serde_json::from_slice(bytes).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_item_is_the_record_it_was_in_every_release() {
        let golden = r#"{
            "task": {"kind": "verify", "checksum": true, "unreachable_is_missing": false},
            "range": {"after": {"namespace": "ns", "name": ""}, "to": null, "namespace": "ns"},
            "at": {"namespace": "ns", "name": "sco 7"}, "owner": "00ff", "state": "open",
            "counts": {"objects": 3, "mismatched": 1}, "note": "", "created_ms": 1700000000000
        }"#;
        let item = Item {
            at: Some(Position::new("ns", "sco 7")),
            owner: Some("00ff".into()),
            counts: Counts { objects: 3, mismatched: 1, ..Counts::default() },
            ..Item::new(
                Task::Verify { checksum: true, unreachable_is_missing: false },
                Range::of_namespace("ns"),
                1_700_000_000_000,
            )
        };
        assert_eq!(Item::decode(golden.as_bytes()).unwrap(), item);
        assert_eq!(Item::decode(&item.encode().unwrap()).unwrap(), item);
        assert_eq!(item.rest().after, Some(Position::new("ns", "sco 7")));
        for bad in ["", "{}", "[1]", &golden.replace("verify", "format"), &golden[1..]] {
            assert!(Item::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_and_jobs_are_read_as_they_are_written() {
        let key = ItemKey { job: JobId(0x0102_0304_0506_0708), part: 0x090a };
        assert_eq!(key.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(ItemKey::from_bytes(&key.to_bytes()).unwrap(), key);
        assert!(ItemKey::from_bytes(&[0; 9]).is_err() && ItemKey::from_bytes(&[0; 11]).is_err());
        assert_eq!(key.job.to_string(), "0102030405060708");
        assert_eq!("0102030405060708".parse::<JobId>().unwrap(), key.job);
        for bad in ["", "1", "+102030405060708", "01020304050607081"] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_object_is_in_exactly_one_part(
            objects in proptest::collection::btree_set(("[a-c]", "[a-z]{1,2}"), 0..200),
            every in 1usize..9, only in proptest::option::of("[a-c]"),
        ) {
            let objects: Vec<Position> = objects.iter().map(|(space, name)| Position::new(space, name)).collect();
            let range = only.as_deref().map_or_else(Range::default, Range::of_namespace);
            let cuts: Vec<Position> = objects.iter().step_by(every).cloned().collect();
            let parts = range.clone().split(&cuts);
            prop_assert!(parts.len() <= MAX_PARTS);
            for object in &objects {
                let count = parts.iter().filter(|part| part.holds(object)).count();
                prop_assert_eq!(count, usize::from(range.holds(object)));
            }
        }

        #[test]
        fn any_record_is_read_or_refused(text in "\\PC{0,40}") {
            if let Ok(item) = Item::decode(text.as_bytes()) {
                prop_assert_eq!(Item::decode(&item.encode().unwrap()).unwrap(), item);
            }
        }
    }
}
