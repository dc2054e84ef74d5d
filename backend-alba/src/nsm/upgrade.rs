//! From older versions of the NSM's table to this one, when it is opened.
//!
//! Version 1 knew one file per object: `o` object id said that it was live, `s` OSD held a path. Every step may be done
//! twice, so a crash in the middle does no harm: the version is written last.

use rocksdb::WriteBatch;

use super::records::{OsdRecord, OsdRole};
use super::{Nsm, add_fragment, as_id, store_fault};
use crate::fault::{Fault, Result};
use crate::manifest::Manifest;

const VERSION: &[u8] = b"2";
/// Entries changed in one step.
const STEP: usize = 1000;

/// The node of an OSD whose node nobody named.
pub const LOCAL_NODE: &str = "local";

impl Nsm {
    pub(super) fn upgrade(&self) -> Result<()> {
        match self.read(b"v")?.as_deref() {
            Some(VERSION) => return Ok(()),
            Some(other) => {
                let version = String::from_utf8_lossy(other).into_owned();
                let message = format!("version {version} of the NSM is unknown to this release");
                return Err(Fault::invalid(message));
            }
            None => {}
        }
        self.each(b"m", |batch, key, value| {
            let manifest = Manifest::decode(value)?;
            let (namespace, name) = key.split_at_checked(16).unwrap_or((key, &[]));
            let (namespace, name) = (as_id(namespace)?, String::from_utf8_lossy(name));
            for fragment in &manifest.fragments {
                add_fragment(batch, namespace, &name, fragment);
            }
            Ok(())
        })?;
        self.each(b"o", |batch, key, _| {
            batch.delete([b"o", key].concat());
            Ok(())
        })?;
        self.each(b"s", |batch, key, value| {
            let path = String::from_utf8_lossy(value).into_owned();
            if serde_json::from_slice::<OsdRecord>(value).is_err() {
                let (node, labels) = (LOCAL_NODE.to_string(), Vec::new());
                let record = OsdRecord { path, node, labels, role: OsdRole::Active };
                batch.put([b"s", key].concat(), super::records::to_json(&record)?);
            }
            Ok(())
        })?;
        let mut batch = WriteBatch::default();
        batch.put(b"v", VERSION);
        self.write(batch)
    }

    fn each(
        &self,
        kind: &[u8; 1],
        mut change: impl FnMut(&mut WriteBatch, &[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut batch = WriteBatch::default();
        for entry in self.from(kind) {
            let (key, value) = entry.map_err(|e| store_fault("cannot read the NSM", e))?;
            let Some(rest) = key.strip_prefix(kind) else { break };
            change(&mut batch, rest, &value)?;
            if batch.len() >= STEP {
                self.write(std::mem::take(&mut batch))?;
            }
        }
        self.write(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{FragmentId, OsdId};

    #[test]
    fn version_1_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        {
            let db = rocksdb::DB::open_default(dir.path()).unwrap();
            // A manifest of version 1 as its table says.
            let manifest =
                [&[1, 1][..], &[0xaa; 16], &[0xbb; 16], &[3, 0, 0, 0, 0, 0, 0, 0], &[0; 12]]
                    .concat();
            db.put(b"nns", [7; 16]).unwrap();
            db.put([b"m", &[7; 16][..], b"name"].concat(), &manifest).unwrap();
            db.put([b"o", &[0xbb; 16][..]].concat(), [&[7; 16][..], b"name"].concat()).unwrap();
            db.put([b"s", &[0xaa; 16][..]].concat(), "/srv/osd").unwrap();
        }
        for _ in 0..2 {
            let nsm = Nsm::open(dir.path()).unwrap();
            nsm.ensure_presets("default").unwrap();
            let manifest = nsm.get("ns", "name").unwrap().unwrap();
            assert_eq!((manifest.len, manifest.fragments.len()), (3, 1));
            assert!(nsm.is_live(OsdId([0xaa; 16]), FragmentId([0xbb; 16])).unwrap());
            assert_eq!(nsm.read(&[b"o", &[0xbb; 16][..]].concat()).unwrap(), None);
            assert_eq!(nsm.preset_of("ns").unwrap(), "single");
            let (id, record) = nsm.osds().unwrap().pop().unwrap();
            assert_eq!((id, record.path.as_str()), (OsdId([0xaa; 16]), "/srv/osd"));
            assert_eq!(nsm.delete("ns", "gone").unwrap(), None);
        }
        let nsm = Nsm::open(dir.path()).unwrap();
        nsm.delete("ns", "name").unwrap().unwrap();
        let noted = (FragmentId([0xbb; 16]), OsdId([0xaa; 16]));
        assert_eq!(nsm.removals(None, 9).unwrap(), [noted]);
    }

    #[test]
    fn a_version_to_come_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        rocksdb::DB::open_default(dir.path()).unwrap().put(b"v", "3").unwrap();
        let fault = Nsm::open(dir.path()).err().unwrap();
        assert!(fault.message.contains("version 3"), "{fault}");
    }
}
