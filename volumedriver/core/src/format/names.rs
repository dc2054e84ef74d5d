//! Names of namespaces and objects on the backend. They sort in the order of their numbers.
//!
//! | object | name |
//! |---|---|
//! | namespace of a volume | `vd-<volume id>` |
//! | SCO | `sco/<epoch, 8 hex>-<position, 12 hex>` |
//! | TLog | `tlog/<epoch, 8 hex>-<number, 12 hex>` |
//! | manifest | `manifest/<number, 12 hex>` |
//! | map run | `run/<epoch, 8 hex>-<number, 12 hex>` |
//! | key marker | `key/<key id, 16 hex>` |

use super::framed::KeyId;
use crate::units::{Epoch, ManifestNo, RunNo, ScoId, ScoSeq, TlogNo, VolumeId};

pub const NAMESPACE_PREFIX: &str = "vd-";
pub const SCO_PREFIX: &str = "sco/";
pub const TLOG_PREFIX: &str = "tlog/";
pub const MANIFEST_PREFIX: &str = "manifest/";
pub const RUN_PREFIX: &str = "run/";
pub const KEY_PREFIX: &str = "key/";

#[must_use]
pub fn namespace(volume: VolumeId) -> String {
    format!("{NAMESPACE_PREFIX}{volume}")
}
/// The volume whose namespace this is; `None` for foreign names.
#[must_use]
pub fn volume_of(name: &str) -> Option<VolumeId> {
    let volume = name.strip_prefix(NAMESPACE_PREFIX)?.parse().ok()?;
    (namespace(volume) == name).then_some(volume)
}
#[must_use]
pub fn sco(id: ScoId) -> String {
    format!("{SCO_PREFIX}{id}")
}
/// `None` for names that are not an SCO's.
#[must_use]
pub fn sco_id(name: &str) -> Option<ScoId> {
    let (epoch, seq) = numbers(name.strip_prefix(SCO_PREFIX)?)?;
    let id = ScoId { epoch: Epoch(epoch), seq: ScoSeq(seq) };
    (sco(id) == name).then_some(id)
}
#[must_use]
pub fn tlog(epoch: Epoch, no: TlogNo) -> String {
    format!("{TLOG_PREFIX}{:08x}-{:012x}", epoch.0, no.0)
}
/// `None` for names that are not a TLog's.
#[must_use]
pub fn tlog_id(name: &str) -> Option<(Epoch, TlogNo)> {
    let (epoch, no) = numbers(name.strip_prefix(TLOG_PREFIX)?)?;
    let (epoch, no) = (Epoch(epoch), TlogNo(no));
    (tlog(epoch, no) == name).then_some((epoch, no))
}
#[must_use]
pub fn manifest(no: ManifestNo) -> String {
    format!("{MANIFEST_PREFIX}{:012x}", no.0)
}
/// `None` for names that are not a manifest's.
#[must_use]
pub fn manifest_no(name: &str) -> Option<ManifestNo> {
    let no = ManifestNo(number(name.strip_prefix(MANIFEST_PREFIX)?)?);
    (manifest(no) == name).then_some(no)
}
#[must_use]
pub fn run(epoch: Epoch, no: RunNo) -> String {
    format!("{RUN_PREFIX}{:08x}-{:012x}", epoch.0, no.0)
}
/// `None` for names that are not a map run's.
#[must_use]
pub fn run_id(name: &str) -> Option<(Epoch, RunNo)> {
    let (epoch, no) = numbers(name.strip_prefix(RUN_PREFIX)?)?;
    let (epoch, no) = (Epoch(epoch), RunNo(no));
    (run(epoch, no) == name).then_some((epoch, no))
}

#[must_use]
pub fn key(id: KeyId) -> String {
    format!("{KEY_PREFIX}{id}")
}
/// `None` for names that are not a key marker's.
#[must_use]
pub fn key_id(name: &str) -> Option<KeyId> {
    name.strip_prefix(KEY_PREFIX)?.parse().ok()
}

// These take more spellings than one; the callers compare with the name they would have given.

fn number(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

fn numbers(pair: &str) -> Option<(u64, u64)> {
    let (first, second) = pair.split_once('-')?;
    Some((number(first)?, number(second)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_spelled_as_the_table_says() {
        let id = ScoId { epoch: Epoch(0x1f), seq: ScoSeq(0xabc) };
        assert_eq!(sco(id), "sco/0000001f-000000000abc");
        assert_eq!(tlog(Epoch(1), TlogNo(16)), "tlog/00000001-000000000010");
        assert_eq!(manifest(ManifestNo(255)), "manifest/0000000000ff");
        assert_eq!(run(Epoch(2), RunNo(3)), "run/00000002-000000000003");
        assert_eq!(namespace(VolumeId([0x5a; 16])), format!("vd-{}", "5a".repeat(16)));
    }

    #[test]
    fn other_spellings_are_foreign() {
        for name in
            ["", "sco/", "sco/1f-abc", "sco/0000001F-000000000abc", "sco/+000001f-000000000abc"]
        {
            assert_eq!(sco_id(name), None, "{name:?}");
        }
        for name in
            ["sco/0000001f-000000000abc ", "sco/0000001f000000000abc", "tlog/0000001f-000000000abc"]
        {
            assert_eq!(sco_id(name), None, "{name:?}");
        }
        for name in [
            "manifest/ff",
            "manifest/0000000000fF",
            "manifest/+000000000ff",
            "manifest/00000000000ff",
        ] {
            assert_eq!(manifest_no(name), None, "{name:?}");
        }
        let upper = format!("vd-{}", "5A".repeat(16));
        let signed = format!("vd-{}", "+a".repeat(16));
        for name in ["vd-", "vd-5a", upper.as_str(), signed.as_str()] {
            assert_eq!(volume_of(name), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_leads_back(epoch: u64, no: u64, volume: [u8; 16]) {
            let id = ScoId { epoch: Epoch(epoch), seq: ScoSeq(no) };
            prop_assert_eq!(sco_id(&sco(id)), Some(id));
            prop_assert_eq!(tlog_id(&tlog(Epoch(epoch), TlogNo(no))), Some((Epoch(epoch), TlogNo(no))));
            prop_assert_eq!(run_id(&run(Epoch(epoch), RunNo(no))), Some((Epoch(epoch), RunNo(no))));
            prop_assert_eq!(manifest_no(&manifest(ManifestNo(no))), Some(ManifestNo(no)));
            prop_assert_eq!(volume_of(&namespace(VolumeId(volume))), Some(VolumeId(volume)));
        }

        #[test]
        fn names_sort_as_their_numbers(a in 0..1_u64 << 48, b in 0..1_u64 << 48) {
            prop_assert_eq!(manifest(ManifestNo(a)).cmp(&manifest(ManifestNo(b))), a.cmp(&b));
        }

        #[test]
        fn what_is_taken_is_spelled_that_way(name in "sco/[0-9a-fA-F+]{7,9}-[0-9a-f]{11,13}") {
            if let Some(id) = sco_id(&name) {
                prop_assert_eq!(sco(id), name);
            }
        }
    }
}
