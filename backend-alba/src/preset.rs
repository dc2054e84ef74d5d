//! Presets: how the objects of a namespace are stored. What was typed ([`Raw`]) to what is legal ([`Preset`]); no I/O.
//!
//! A preset is a list of policies (k, m, c, x): k fragments hold the data, m more the parity, a put is done once c of them are
//! stored, and no node holds more than x. A put takes the first policy of the list that the OSDs of the moment can satisfy.
//! k = 1 is replication: every fragment is the whole object.
//!
//! Built in, and ours where ALBA's differ:
//! - `default` is ALBA's (5,4,8,3), (2,2,3,4), and last (1,1,2,2): with two disks left, two copies are written rather than
//!   none. A backend first opened with several OSDs uses it.
//! - `single` is (1,0,1,1): each object lies whole on one OSD, and is read from its file. A backend first opened with one
//!   OSD uses it; nothing else is possible there.
//! - Checksums are CRC-32 (IEEE) per 64 KiB, in every fragment, always: they are nearly free, so there is no `none`.
//! - `verify_upload` is off where ALBA's is on: it reads every byte back. What is read later is checked anyway.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};
use crate::trailer::{ALIGN, BLOCK_BYTES};

/// Name of the preset of a backend first opened with several OSDs.
pub const DEFAULT: &str = "default";
/// Name of the preset of a backend first opened with one OSD, and of namespaces older than presets.
pub const SINGLE: &str = "single";

const MAX_POLICIES: usize = 16;
const MAX_DATA: u8 = 32;
const MAX_PARITY: u8 = 16;
const MAX_LABELS: usize = 16;
const MAX_LABEL_BYTES: usize = 64;
const MIN_FRAGMENT_BYTES: u32 = BLOCK_BYTES as u32;
const MAX_FRAGMENT_BYTES: u32 = 16 << 20;
const DEFAULT_FRAGMENT_BYTES: u32 = 1 << 20;

/// One (k, m, c, x). Legal by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy {
    data: u8,
    parity: u8,
    least: u8,
    per_node: u8,
}

impl Policy {
    /// Each object whole, on one OSD.
    pub const SINGLE: Self = Self { data: 1, parity: 0, least: 1, per_node: 1 };

    pub fn new(data: u8, parity: u8, least: u8, per_node: u8) -> Result<Self> {
        let total = data.saturating_add(parity);
        let field = |name: &str, value: u8, low: u8, high: u8| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            let given = format!("({data},{parity},{least},{per_node})");
            Err(Fault::invalid(format!(
                "policy {given}: {name} is {value}, legal is {low} to {high}"
            )))
        };
        field("k (data fragments)", data, 1, MAX_DATA)?;
        field("m (parity fragments)", parity, 0, MAX_PARITY)?;
        field("c (fragments for success)", least, data, total)?;
        field("x (fragments per node)", per_node, 1, total)?;
        Ok(Self { data, parity, least, per_node })
    }

    /// k: fragments that hold the data; any so many give the object back.
    #[must_use]
    pub fn data(self) -> usize {
        self.data.into()
    }
    /// m: fragments beyond those.
    #[must_use]
    pub fn parity(self) -> usize {
        self.parity.into()
    }
    /// c: fragments stored before a put is done.
    #[must_use]
    pub fn least(self) -> usize {
        self.least.into()
    }
    /// x: fragments on one node at most.
    #[must_use]
    pub fn per_node(self) -> usize {
        self.per_node.into()
    }
    /// k + m.
    #[must_use]
    pub fn total(self) -> usize {
        self.data() + self.parity()
    }
    #[must_use]
    pub fn is_copies(self) -> bool {
        self.data == 1
    }

    /// What this policy means for an object of this length. An object whose share per fragment would be less than a page
    /// is copied m + 1 times instead: as safe, in fewer files that are no larger.
    #[must_use]
    pub fn for_len(self, len: u64) -> Self {
        if self.is_copies() || len > u64::from(self.data) * ALIGN {
            return self;
        }
        let (parity, least) = (self.parity, self.least - self.data + 1);
        Self { data: 1, parity, least, per_node: self.per_node.min(parity + 1) }
    }

    pub(crate) fn to_bytes(self) -> [u8; 4] {
        [self.data, self.parity, self.least, self.per_node]
    }
    pub(crate) fn from_bytes([data, parity, least, per_node]: [u8; 4]) -> Result<Self> {
        Self::new(data, parity, least, per_node).map_err(|f| Fault::corrupt(f.message))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{},{},{})", self.data, self.parity, self.least, self.per_node)
    }
}

impl FromStr for Policy {
    type Err = Fault;
    /// `k,m,c,x`, in parentheses or not.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Fault::invalid(format!("policy {text:?} is not k,m,c,x: four numbers to 255"));
        let inner = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(text);
        let numbers = inner.split(',').map(|n| n.trim().parse().map_err(|_| bad()));
        let numbers: Vec<u8> = numbers.collect::<Result<_>>()?;
        let [data, parity, least, per_node] = numbers[..] else { return Err(bad()) };
        Self::new(data, parity, least, per_node)
    }
}

/// What the bytes of fragments are checked with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// CRC-32 (IEEE) of each 64 KiB.
    #[default]
    Crc32,
}

/// What is done with fragments between their upload and the manifest that names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyUpload {
    Off,
    /// Each is read back and checked.
    ReadBack,
}

/// A preset as it is typed, stored and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Counts the changes of this preset, from 1 on.
    #[serde(default)]
    pub version: u32,
    /// `k,m,c,x` each, best first.
    pub policies: Vec<String>,
    /// Bytes of an object that lie together in one fragment: a multiple of 64 KiB, 64 KiB to 16 MiB.
    #[serde(default = "default_fragment_bytes")]
    pub fragment_bytes: u32,
    #[serde(default)]
    pub checksum: Checksum,
    /// Read every fragment back before the put is done.
    #[serde(default)]
    pub verify_upload: bool,
    /// OSDs that do not have all of these labels are left out.
    #[serde(default)]
    pub labels: Vec<String>,
}

fn default_fragment_bytes() -> u32 {
    DEFAULT_FRAGMENT_BYTES
}

impl Raw {
    /// With these policies and defaults for all else.
    #[must_use]
    pub fn of(policies: &[&str]) -> Self {
        Self {
            version: 0,
            policies: policies.iter().map(ToString::to_string).collect(),
            fragment_bytes: DEFAULT_FRAGMENT_BYTES,
            checksum: Checksum::default(),
            verify_upload: false,
            labels: Vec::new(),
        }
    }

    pub fn check(&self) -> Result<Preset> {
        let count = self.policies.len();
        if count == 0 || count > MAX_POLICIES {
            let message = format!("policies: {count} given, legal is 1 to {MAX_POLICIES}");
            return Err(Fault::invalid(message));
        }
        let policies: Vec<Policy> =
            self.policies.iter().map(|text| text.parse()).collect::<Result<_>>()?;
        let given = self.fragment_bytes;
        check_fragment_bytes(given)?;
        check_labels(&self.labels)?;
        let verify = if self.verify_upload { VerifyUpload::ReadBack } else { VerifyUpload::Off };
        Ok(Preset { policies, unit: given, verify, labels: self.labels.clone() })
    }
}

/// Bytes of an object that lie together in one fragment.
pub fn check_fragment_bytes(given: u32) -> Result<()> {
    const LEAST: u32 = MIN_FRAGMENT_BYTES;
    const MOST: u32 = MAX_FRAGMENT_BYTES;
    if (LEAST..=MOST).contains(&given) && given.is_multiple_of(LEAST) {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "fragment_bytes is {given}, legal is a multiple of {LEAST} from {LEAST} to {MOST}"
    )))
}

/// Labels of an OSD or a preset: few, short, of letters, digits, `-`, `_` and `.`.
pub fn check_labels(labels: &[String]) -> Result<()> {
    if labels.len() > MAX_LABELS {
        let count = labels.len();
        return Err(Fault::invalid(format!("labels: {count} given, legal is 0 to {MAX_LABELS}")));
    }
    labels.iter().try_for_each(|label| check_word("label", label))
}

/// A label or the name of a node or preset.
pub fn check_word(what: &str, word: &str) -> Result<()> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if word.is_empty() || word.len() > MAX_LABEL_BYTES || !word.chars().all(is_legal) {
        return Err(Fault::invalid(format!(
            "{what} {word:?}: legal are 1 to {MAX_LABEL_BYTES} letters, digits, '-', '_' and '.'"
        )));
    }
    Ok(())
}

/// A legal preset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    pub policies: Vec<Policy>,
    /// Bytes of an object that lie together in one fragment.
    pub unit: u32,
    pub verify: VerifyUpload,
    pub labels: Vec<String>,
}

/// The presets a new backend has.
#[must_use]
pub fn built_in() -> [(&'static str, Raw); 2] {
    let first = |policies| Raw { version: 1, ..Raw::of(policies) };
    [(DEFAULT, first(&["5,4,8,3", "2,2,3,4", "1,1,2,2"])), (SINGLE, first(&["1,0,1,1"]))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn built_in_presets_are_legal() {
        for (name, raw) in built_in() {
            let preset = raw.check().unwrap();
            assert_eq!(preset.policies.len(), raw.policies.len(), "{name}");
        }
        let single = built_in()[1].1.check().unwrap();
        assert_eq!(single.policies, [Policy::SINGLE]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value_and_range() {
        for (text, parts) in [
            ("0,1,1,1", &["(0,1,1,1)", "k ", " 0,", "1 to 32"][..]),
            ("33,1,33,1", &["k ", " 33,", "1 to 32"]),
            ("4,17,4,1", &["m ", " 17,", "0 to 16"]),
            ("4,2,3,1", &["c ", " 3,", "4 to 6"]),
            ("4,2,7,1", &["c ", " 7,", "4 to 6"]),
            ("4,2,5,0", &["x ", " 0,", "1 to 6"]),
            ("4,2,5,7", &["x ", " 7,", "1 to 6"]),
            ("4,2,5", &["\"4,2,5\"", "k,m,c,x"]),
            ("4,2,5,x", &["\"4,2,5,x\""]),
            ("4,2,5,256", &["\"4,2,5,256\""]),
        ] {
            let fault = text.parse::<Policy>().unwrap_err();
            parts.iter().for_each(|part| assert!(fault.message.contains(part), "{text}: {fault}"));
        }
        for (raw, part) in [
            (Raw::of(&[]), "policies: 0 given"),
            (Raw { fragment_bytes: 100_000, ..Raw::of(&["1,0,1,1"]) }, "fragment_bytes is 100000"),
            (Raw { fragment_bytes: 32 << 20, ..Raw::of(&["1,0,1,1"]) }, "16777216"),
            (Raw { labels: vec!["a b".into()], ..Raw::of(&["1,0,1,1"]) }, "\"a b\""),
        ] {
            let fault = raw.check().unwrap_err();
            assert!(fault.message.contains(part), "{fault}");
        }
    }

    #[test]
    fn what_is_stored_is_read_again_and_unknown_fields_are_refused() {
        let text = r#"{"version":3,"policies":["4,2,5,1"],"fragment_bytes":65536,"checksum":"crc32","verify_upload":true,"labels":["ssd"]}"#;
        let raw: Raw = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&raw).unwrap(), text);
        let preset = raw.check().unwrap();
        assert_eq!((preset.unit, preset.verify), (65_536, VerifyUpload::ReadBack));
        assert!(serde_json::from_str::<Raw>(r#"{"policies":["1,0,1,1"],"colour":1}"#).is_err());
    }

    #[test]
    fn small_objects_are_copied_as_safely() {
        let policy: Policy = "5,4,8,3".parse().unwrap();
        assert_eq!(policy.for_len(5 * 4096).to_string(), "(1,4,4,3)");
        assert_eq!(policy.for_len(5 * 4096 + 1), policy);
        assert_eq!("2,2,3,4".parse::<Policy>().unwrap().for_len(0).to_string(), "(1,2,2,3)");
    }

    proptest! {
        #[test]
        fn any_four_numbers_are_a_policy_or_refused(data: u8, parity: u8, least: u8, per_node: u8, len: u64) {
            if let Ok(policy) = Policy::new(data, parity, least, per_node) {
                prop_assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
                prop_assert_eq!(Policy::from_bytes(policy.to_bytes()).unwrap(), policy);
                let [data, parity, least, per_node] = policy.for_len(len).to_bytes();
                prop_assert!(Policy::new(data, parity, least, per_node).is_ok());
                prop_assert_eq!(usize::from(parity), policy.parity());
            }
        }
    }
}
