//! Keys and small values of the NSM's tables: see the table in [`super`].

use super::kv::{Key, Value};
use crate::fault::{Fault, Result};
use crate::name::{FragmentId, OsdId};
use crate::preset;

pub(super) const VERSION: &[u8] = b"v";
pub(super) const DEFAULT_PRESET: &[u8] = b"d";
pub(super) const PRESET_USES: &[u8] = b"u";
pub(super) const OWNER: &[u8] = b"i";
pub(super) const CLUSTERS: &[u8] = b"k";
pub(super) const REBUILDING: &[u8] = b"y";
pub(super) const REBUILT: &[u8] = b"w";
/// The current GC epoch, in the first cluster.
pub(super) const EPOCH: &[u8] = b"g";
/// The least GC epoch whose fragments become live, in each cluster.
pub(super) const ENABLED: &[u8] = b"e";
pub(super) const TRIAL: &[u8] = b"t";

/// The id of a namespace as it stands in keys.
pub(super) type SpaceId = [u8; 16];

pub(super) fn key(kind: u8, rest: &[u8]) -> Key {
    [&[kind], rest].concat()
}
pub(super) fn namespace(name: &str) -> Key {
    key(b'n', name.as_bytes())
}
pub(super) fn life(space: SpaceId) -> Key {
    key(b'l', &space)
}
pub(super) fn tomb(space: SpaceId) -> Key {
    key(b'x', &space)
}
pub(super) fn object(space: SpaceId, name: &str) -> Key {
    [b"m", &space[..], name.as_bytes()].concat()
}
pub(super) fn fragment(osd: OsdId, file: FragmentId) -> Key {
    [b"f", &osd.0[..], &file.0[..]].concat()
}
pub(super) fn fragments_of(osd: OsdId) -> Key {
    key(b'f', &osd.0)
}
pub(super) fn removal(file: FragmentId) -> Key {
    key(b'r', &file.0)
}
pub(super) fn preset(name: &str) -> Key {
    key(b'p', name.as_bytes())
}
pub(super) fn osd(id: OsdId) -> Key {
    key(b's', &id.0)
}

pub(super) fn as_id(bytes: &[u8]) -> Result<[u8; 16]> {
    let wrong = |_| Fault::corrupt(format!("NSM record: an identity of {} bytes", bytes.len()));
    bytes.try_into().map_err(wrong)
}

/// What a namespace's record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamespaceRecord {
    pub id: SpaceId,
    pub preset: String,
    /// Number of the cluster that has its objects.
    pub home: usize,
}

impl NamespaceRecord {
    /// Its id, the name of its preset, and when it is not in the first cluster a zero and that cluster's number.
    pub fn encode(&self) -> Value {
        let mut out = [&self.id, self.preset.as_bytes()].concat();
        if self.home > 0 {
            out.push(0);
            out.extend(self.home.to_string().into_bytes());
        }
        out
    }

    /// Namespaces older than presets name none.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let (id, rest) = value.split_at_checked(16).unwrap_or((value, &[]));
        let text = String::from_utf8_lossy(rest);
        let (preset, home) = text.split_once('\0').unwrap_or((&text, "0"));
        let bad = |_| Fault::corrupt(format!("NSM record: a namespace in cluster {home:?}"));
        let home = home.parse().map_err(bad)?;
        let preset = if preset.is_empty() { preset::SINGLE } else { preset }.to_string();
        Ok(Self { id: as_id(id)?, preset, home })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_all_ages_are_read() {
        let old = [7; 16].to_vec();
        let single = NamespaceRecord { id: [7; 16], preset: "single".into(), home: 0 };
        assert_eq!(NamespaceRecord::decode(&old).unwrap(), single);
        let first = [&old[..], b"fast"].concat();
        let record = NamespaceRecord { preset: "fast".into(), ..single };
        assert_eq!(NamespaceRecord::decode(&first).unwrap(), record);
        assert_eq!(record.encode(), first);
        let other = NamespaceRecord { home: 12, ..record };
        assert_eq!(other.encode(), [&first[..], b"\x0012"].concat());
        assert_eq!(NamespaceRecord::decode(&other.encode()).unwrap(), other);
        for bad in [&old[..15], &[&old[..], b"fast\0x"].concat()] {
            assert!(NamespaceRecord::decode(bad).is_err());
        }
    }
}
