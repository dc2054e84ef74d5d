//! From older versions of the NSM's table to this one, when it is opened.
//!
//! Version 1 knew one file per object: `o` object id said that it was live, `s` OSD held a path. Version 2 had no `l`, and
//! numbers under `c` that RocksDB merged. Every step may be done twice, so a crash in the middle does no harm, nor does
//! somebody who does the same: the version is written last.

use super::Nsm;
use super::keys::{self, NamespaceRecord, as_id};
use super::kv::{Commit, Key, Value};
use super::objects::add_fragment;
use super::records::{OsdRecord, OsdRole};
use crate::fault::{Fault, Result};
use crate::manifest::Manifest;

const VERSION: &[u8] = b"3";
const VERSION_2: &[u8] = b"2";

/// The node of an OSD whose node nobody named.
pub const LOCAL_NODE: &str = "local";

impl Nsm {
    pub(super) async fn upgrade(&self, home: usize) -> Result<()> {
        let [version] = self.read(home, [keys::VERSION.to_vec()]).await?;
        match version.as_deref() {
            Some(VERSION) => return Ok(()),
            Some(VERSION_2) => self.take_over_2(home).await?,
            Some(other) => {
                let version = String::from_utf8_lossy(other).into_owned();
                let message = format!("version {version} of the NSM is unknown to this release");
                return Err(Fault::invalid(message));
            }
            None => {
                self.take_over_1(home).await?;
                self.take_over_2(home).await?;
            }
        }
        let mut commit = Commit::default();
        commit.put(keys::VERSION.to_vec(), VERSION);
        self.commit(home, commit).await.map(drop)
    }

    async fn take_over_1(&self, home: usize) -> Result<()> {
        self.each(home, b"m", |commit, key, value| {
            let manifest = Manifest::decode(value)?;
            let (namespace, name) = key.split_at_checked(16).unwrap_or((key, &[]));
            let (namespace, name) = (as_id(namespace)?, String::from_utf8_lossy(name));
            for fragment in &manifest.fragments {
                add_fragment(commit, namespace, &name, fragment);
            }
            Ok(())
        })
        .await?;
        self.each(home, b"o", |commit, key, _| {
            commit.delete([b"o", key].concat());
            Ok(())
        })
        .await?;
        self.each(home, b"s", |commit, key, value| {
            let path = String::from_utf8_lossy(value).into_owned();
            if serde_json::from_slice::<OsdRecord>(value).is_err() {
                let (node, labels) = (LOCAL_NODE.to_string(), Vec::new());
                let record = OsdRecord { path, node, labels, role: OsdRole::Active };
                commit.put([b"s", key].concat(), super::records::to_json(&record)?);
            }
            Ok(())
        })
        .await
    }

    async fn take_over_2(&self, home: usize) -> Result<()> {
        self.each(home, b"n", |commit, _, value| {
            commit.put(keys::life(NamespaceRecord::decode(value)?.id), 0u64.to_le_bytes());
            Ok(())
        })
        .await?;
        self.each(home, b"c", |commit, key, _| {
            commit.delete([b"c", key].concat());
            Ok(())
        })
        .await
    }

    async fn each(
        &self,
        home: usize,
        kind: &[u8; 1],
        mut change: impl FnMut(&mut Commit, &[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let step = self.cluster(home)?.kv.writes_at_once();
        let mut from: Option<Key> = Some(kind.to_vec());
        while let Some(key) = from {
            let (found, next): (Vec<(Key, Value)>, _) = self.step(home, kind, key, step).await?;
            let mut commit = Commit::default();
            for (key, value) in found {
                change(&mut commit, &key[1..], &value)?;
            }
            self.commit(home, commit).await?;
            from = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::rocks::Rocks;
    use super::*;
    use crate::name::{FragmentId, OsdId};
    use crate::outside::Outside;
    use std::path::Path;

    async fn open(path: &Path) -> Result<Nsm> {
        Nsm::open(vec![Arc::new(Rocks::open(path)?)], Outside::default()).await
    }

    #[tokio::test]
    async fn version_1_is_taken_over() {
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
            let nsm = open(dir.path()).await.unwrap();
            nsm.ensure_presets("default").await.unwrap();
            let manifest = nsm.get("ns", "name").await.unwrap().unwrap();
            assert_eq!((manifest.len, manifest.fragments.len()), (3, 1));
            assert!(nsm.is_live(OsdId([0xaa; 16]), FragmentId([0xbb; 16])).await.unwrap());
            assert_eq!(nsm.read(0, [[b"o", &[0xbb; 16][..]].concat()]).await.unwrap(), [None]);
            assert_eq!(nsm.preset_of("ns").await.unwrap(), "single");
            let (id, record) = nsm.osds().await.unwrap().pop().unwrap();
            assert_eq!((id, record.path.as_str()), (OsdId([0xaa; 16]), "/srv/osd"));
            assert_eq!(nsm.delete("ns", "gone").await.unwrap(), None);
        }
        let nsm = open(dir.path()).await.unwrap();
        nsm.delete("ns", "name").await.unwrap().unwrap();
        let noted: Vec<_> =
            nsm.removals(None, 9).await.unwrap().iter().map(|r| (r.file, r.osd)).collect();
        assert_eq!(noted, [(FragmentId([0xbb; 16]), OsdId([0xaa; 16]))]);
    }

    #[tokio::test]
    async fn version_2_is_taken_over_with_what_was_merged() {
        let dir = tempfile::tempdir().unwrap();
        {
            let mut options = rocksdb::Options::default();
            options.create_if_missing(true);
            options.set_merge_operator_associative("alba.totals", |_, _, _| Some(vec![0; 16]));
            let db = rocksdb::DB::open(&options, dir.path()).unwrap();
            // Version 2 as its table says; the manifest of version 2 as its own says.
            let manifest = [
                &[2, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 0][..],
                &[0xcc; 16],
                &[3, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[0xaa; 16],
                &[0xbb; 16],
                &[9, 0, 0, 0],
            ]
            .concat();
            db.put(b"v", "2").unwrap();
            db.put(b"nns", [&[7; 16][..], b"single"].concat()).unwrap();
            db.put([b"m", &[7; 16][..], b"name"].concat(), &manifest).unwrap();
            let live = [b"f", &[0xaa; 16][..], &[0xbb; 16]].concat();
            db.put(live, [&[7; 16][..], b"name"].concat()).unwrap();
            db.merge([b"c", &[7; 16][..]].concat(), [1; 16]).unwrap();
            db.put(b"d", "single").unwrap();
            db.put(b"psingle", br#"{"policies":["1,0,1,1"]}"#).unwrap();
        }
        for n in 1..3 {
            let nsm = open(dir.path()).await.unwrap();
            assert_eq!(nsm.get("ns", "name").await.unwrap().unwrap().crc, 9);
            assert!(nsm.target("ns", &format!("{n}")).await.unwrap().is_some());
            assert_eq!(nsm.totals().await.unwrap().objects, n);
            let again = nsm.get("ns", "name").await.unwrap().unwrap();
            let put = nsm.put_if_absent("ns", &format!("{n}"), &again).await.unwrap();
            assert_eq!(put, super::super::Put::Created);
            assert_eq!(nsm.totals().await.unwrap().object_bytes, 3 * (n + 1));
            assert!(nsm.all(0, b"c").await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn a_version_to_come_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        rocksdb::DB::open_default(dir.path()).unwrap().put(b"v", "4").unwrap();
        let fault = open(dir.path()).await.err().unwrap();
        assert!(fault.message.contains("version 4"), "{fault}");
    }
}
