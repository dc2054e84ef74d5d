//! The NSM over each kind of table.

use std::path::Path;

use super::memory::Memory;
use super::rocks::Rocks;
use super::*;
use crate::erasure::Codec;
use crate::fault::Kind;
use crate::manifest::Fragment;
use crate::name::{FragmentId, ObjectId, OsdId};
use crate::preset::{self, Policy};

mod model;

const OSD: OsdId = OsdId([9; 16]);

fn fragment(index: u8, n: u8) -> Fragment {
    Fragment { index, osd: OSD, file: FragmentId([n; 16]), crc: n.into() }
}

pub(super) fn manifest(n: u8) -> Manifest {
    let policy: Policy = "1,1,1,2".parse().unwrap();
    Manifest {
        id: ObjectId([n; 16]),
        len: 100,
        crc: n.into(),
        created_ms: 0,
        policy,
        codec: Codec::of(policy),
        unit: 65_536,
        fragments: vec![fragment(0, n)],
    }
}

pub(super) async fn over(tables: Vec<Arc<dyn Kv>>) -> Nsm {
    let nsm = Nsm::open(tables, Outside::default()).await.unwrap();
    nsm.ensure_presets(preset::DEFAULT).await.unwrap();
    nsm
}

async fn open(path: &Path) -> Nsm {
    over(vec![Arc::new(Rocks::open(path).unwrap())]).await
}

/// One on disk, one in memory, one of three clusters.
async fn each_kind(dir: &tempfile::TempDir) -> Vec<Nsm> {
    let memory = || Arc::new(Memory::default()) as Arc<dyn Kv>;
    let clusters = (0..3).map(|_| memory()).collect();
    vec![open(dir.path()).await, over(vec![memory()]).await, over(clusters).await]
}

async fn noted(nsm: &Nsm) -> Vec<FragmentId> {
    nsm.removals(None, 99).await.unwrap().iter().map(|removal| removal.file).collect()
}

#[tokio::test]
async fn names_are_paged_in_byte_order() {
    let dir = tempfile::tempdir().unwrap();
    for nsm in each_kind(&dir).await {
        assert!(nsm.create_namespace("ns", None).await.unwrap());
        assert!(!nsm.create_namespace("ns", None).await.unwrap());
        for (n, name) in ["b/2", "a", "b/1", "b/3", "c", "b"].iter().enumerate() {
            nsm.put_if_absent("ns", name, &manifest(n as u8)).await.unwrap();
        }
        let page = async |prefix, after, limit| nsm.list("ns", prefix, after, limit).await.unwrap();
        assert_eq!(page("", "", 9).await.names, ["a", "b", "b/1", "b/2", "b/3", "c"]);
        let two = Page { names: vec!["b/1".into(), "b/2".into()], more: true };
        assert_eq!(page("b/", "", 2).await, two);
        let last = Page { names: vec!["b/3".into()], more: false };
        assert_eq!(page("b/", "b/2", 2).await, last);
        assert_eq!(page("b/", "a", 9).await.names.len(), 3);
        assert_eq!(page("b/", "c", 9).await.names.len(), 0);
        assert_eq!(nsm.list("other", "", "", 9).await.unwrap(), Page::default());
        for namespace in ["z", "a"] {
            assert!(nsm.create_namespace(namespace, None).await.unwrap());
        }
        assert_eq!(nsm.list_namespaces("", "", 9).await.unwrap().names, ["a", "ns", "z"]);
    }
}

#[tokio::test]
async fn totals_follow_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    {
        let nsm = open(dir.path()).await;
        nsm.create_namespace("a", None).await.unwrap();
        nsm.create_namespace("b", None).await.unwrap();
        nsm.put_if_absent("a", "1", &manifest(1)).await.unwrap();
        assert_eq!(nsm.totals().await.unwrap().objects, 1);
        nsm.put_if_absent("a", "2", &manifest(2)).await.unwrap();
        nsm.put_if_absent("b", "3", &manifest(3)).await.unwrap();
        nsm.delete("a", "1").await.unwrap();
        let totals = Totals { namespaces: 2, objects: 2, object_bytes: 200 };
        assert_eq!(nsm.totals().await.unwrap(), totals);
    }
    let nsm = open(dir.path()).await;
    let totals = nsm.totals().await.unwrap();
    assert_eq!(totals, Totals { namespaces: 2, objects: 2, object_bytes: 200 });
    let removals = nsm.removals(None, 9).await.unwrap();
    assert_eq!(removals, [Removal { file: FragmentId([1; 16]), osd: OSD, home: 0 }]);
    nsm.removed(&removals).await.unwrap();
    assert!(nsm.delete_namespace("a").await.unwrap());
    let totals = nsm.totals().await.unwrap();
    assert_eq!(totals, Totals { namespaces: 1, objects: 1, object_bytes: 100 });
}

#[tokio::test]
async fn a_deleted_namespace_is_gone_at_once_and_dropped_in_steps() {
    let dir = tempfile::tempdir().unwrap();
    for nsm in each_kind(&dir).await {
        for namespace in ["a", "b", "c"] {
            nsm.create_namespace(namespace, None).await.unwrap();
            nsm.put_if_absent(namespace, "x", &manifest(namespace.as_bytes()[0])).await.unwrap();
        }
        assert!(nsm.delete_namespace("b").await.unwrap());
        assert!(!nsm.delete_namespace("b").await.unwrap());
        assert_eq!(nsm.get("b", "x").await.unwrap(), None);
        let put = nsm.put_if_absent("b", "y", &manifest(7)).await.unwrap_err();
        assert_eq!(put.kind, Kind::NotFound);
        assert!(nsm.create_namespace("b", None).await.unwrap());
        assert_eq!(nsm.get("b", "x").await.unwrap(), None);
        nsm.put_if_absent("b", "x", &manifest(8)).await.unwrap();
        assert!(nsm.is_live(OSD, FragmentId([b'b'; 16])).await.unwrap());
        while nsm.drop_some().await.unwrap() {}
        assert!(!nsm.is_live(OSD, FragmentId([b'b'; 16])).await.unwrap());
        assert!(nsm.is_live(OSD, FragmentId([8; 16])).await.unwrap());
        assert_eq!(noted(&nsm).await, [FragmentId([b'b'; 16])]);
        for namespace in ["a", "b", "c"] {
            assert!(nsm.delete("ns", "x").await.unwrap().is_none());
            assert_eq!(nsm.delete(namespace, "x").await.unwrap().unwrap().len(), 1);
        }
        let mut all = noted(&nsm).await;
        let mut after = None;
        while let Some(removal) = nsm.removals(after, 1).await.unwrap().pop() {
            let at = all.iter().position(|file| *file == removal.file);
            if let Some(at) = at {
                all.remove(at);
            }
            after = Some(removal);
            nsm.removed(&[removal]).await.unwrap();
        }
        assert_eq!((all, noted(&nsm).await), (vec![], vec![]));
    }
}

/// As a process finds it that had looked before another one deleted the namespace and made it anew.
#[tokio::test]
async fn a_namespace_that_others_made_anew_is_found_anew() {
    let tables: Vec<Arc<dyn Kv>> = (0..2).map(|_| Arc::new(Memory::default()) as _).collect();
    let (one, two) = (over(tables.clone()).await, over(tables).await);
    one.create_namespace("other", None).await.unwrap();
    one.create_namespace("ns", None).await.unwrap();
    one.put_if_absent("ns", "x", &manifest(1)).await.unwrap();
    assert!(two.get("ns", "x").await.unwrap().is_some());
    assert!(one.delete_namespace("ns").await.unwrap());
    assert_eq!(two.get("ns", "x").await.unwrap(), None);
    let gone = two.put_if_absent("ns", "y", &manifest(2)).await.unwrap_err();
    assert_eq!(gone.kind, Kind::NotFound);
    one.create_namespace("ns", None).await.unwrap();
    assert_eq!(two.put_if_absent("ns", "x", &manifest(3)).await.unwrap(), Put::Created);
    assert_eq!(one.get("ns", "x").await.unwrap().unwrap(), manifest(3));
}

#[tokio::test]
async fn one_of_many_sequences_wins_and_one_of_many_puts() {
    let dir = tempfile::tempdir().unwrap();
    for nsm in each_kind(&dir).await {
        nsm.create_namespace("ns", None).await.unwrap();
        let nsm = Arc::new(nsm);
        let race = |n: u8| {
            let nsm = nsm.clone();
            tokio::spawn(async move {
                let changes = [("x".to_string(), Change::Put(manifest(n)))];
                let absent = [("x".to_string(), Condition::Absent)];
                nsm.apply("ns", &absent, &changes).await.is_ok()
            })
        };
        let tasks: Vec<_> = (1..20).map(race).collect();
        let mut won = 0;
        for task in tasks {
            won += usize::from(task.await.unwrap());
        }
        assert_eq!(won, 1);
        let put = |n: u8| {
            let nsm = nsm.clone();
            tokio::spawn(async move { nsm.put_if_absent("ns", "y", &manifest(n)).await.unwrap() })
        };
        let tasks: Vec<_> = (20..40).map(put).collect();
        let mut created = 0;
        for task in tasks {
            created += usize::from(task.await.unwrap() == Put::Created);
        }
        assert_eq!((created, nsm.totals().await.unwrap().objects), (1, 2));
    }
}

#[tokio::test]
async fn a_failed_assert_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for nsm in each_kind(&dir).await {
        nsm.create_namespace("ns", None).await.unwrap();
        nsm.put_if_absent("ns", "x", &manifest(1)).await.unwrap();
        let changes =
            [("x".to_string(), Change::Delete), ("y".to_string(), Change::Put(manifest(2)))];
        for (name, condition) in [
            ("x", Condition::Absent),
            ("y", Condition::Exists),
            ("x", Condition::HasCrc(7)),
            ("y", Condition::HasCrc(1)),
        ] {
            let asserts = [(name.to_string(), condition)];
            let fault = nsm.apply("ns", &asserts, &changes).await.unwrap_err();
            assert_eq!(fault.kind, Kind::AssertFailed);
        }
        assert_eq!(nsm.list("ns", "", "", 9).await.unwrap().names, ["x"]);
        let asserts = [("x".to_string(), Condition::HasCrc(1))];
        let gone = nsm.apply("ns", &asserts, &changes).await.unwrap();
        assert_eq!(gone.iter().map(|r| r.file).collect::<Vec<_>>(), [FragmentId([1; 16])]);
        assert_eq!(nsm.list("ns", "", "", 9).await.unwrap().names, ["y"]);
        assert_eq!(nsm.totals().await.unwrap().object_bytes, 100);
    }
}

#[tokio::test]
async fn fragments_move_only_from_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for nsm in each_kind(&dir).await {
        nsm.create_namespace("ns", None).await.unwrap();
        nsm.put_if_absent("ns", "x", &manifest(1)).await.unwrap();
        let moved = async |object, old, new| {
            let fits = |now: &Manifest, new: &Fragment| {
                now.fragment(new.index.into()) == Some(new) && new.file != FragmentId([8; 16])
            };
            nsm.move_fragments(("ns", "x"), object, &[(old, new)], &fits).await.unwrap()
        };
        let id = ObjectId([1; 16]);
        let first = fragment(0, 1);
        assert!(!moved(ObjectId([2; 16]), None, Some(fragment(1, 5))).await, "another object");
        assert!(!moved(id, Some(fragment(0, 9)), Some(fragment(0, 5))).await, "it lies elsewhere");
        assert!(!moved(id, None, Some(fragment(0, 5))).await, "there is one");
        assert!(!moved(id, None, Some(fragment(1, 8))).await, "it does not fit");
        assert_eq!(nsm.get("ns", "x").await.unwrap().unwrap(), manifest(1));
        assert_eq!(noted(&nsm).await, []);
        assert!(moved(id, None, Some(fragment(1, 5))).await);
        assert!(moved(id, Some(first), Some(fragment(0, 6))).await);
        assert!(!moved(id, Some(first), Some(fragment(0, 7))).await, "it has moved");
        let now = nsm.get("ns", "x").await.unwrap().unwrap();
        assert_eq!(now.fragments, [fragment(0, 6), fragment(1, 5)]);
        assert_eq!(noted(&nsm).await, [first.file]);
        assert!(!nsm.is_live(OSD, first.file).await.unwrap());
        assert!(nsm.is_live(OSD, FragmentId([6; 16])).await.unwrap());
        nsm.delete("ns", "x").await.unwrap().unwrap();
        assert_eq!(noted(&nsm).await.len(), 3);
        assert!(!moved(id, None, Some(first)).await, "deleted");
    }
}

#[tokio::test]
async fn presets_are_versioned_and_kept_while_used() {
    let dir = tempfile::tempdir().unwrap();
    for nsm in each_kind(&dir).await {
        let names = nsm.presets().await.unwrap().into_iter().map(|(name, _)| name);
        assert_eq!(names.collect::<Vec<_>>(), ["default", "single"]);
        let raw = preset::Raw::of(&["2,1,3,1"]);
        assert_eq!(nsm.put_preset("mine", raw.clone()).await.unwrap(), 1);
        assert_eq!(nsm.put_preset("mine", raw.clone()).await.unwrap(), 2);
        nsm.create_namespace("ns", Some("mine")).await.unwrap();
        let no = nsm.create_namespace("other", Some("no")).await.unwrap_err();
        assert_eq!(no.kind, Kind::NotFound);
        let used = nsm.delete_preset("mine").await.unwrap_err();
        assert!(used.message.contains("\"ns\""), "{used}");
        assert!(!nsm.target("ns", "x").await.unwrap().unwrap().policies[0].is_copies());
        nsm.set_preset_of("ns", "single").await.unwrap();
        assert!(nsm.target("ns", "x").await.unwrap().unwrap().policies[0].is_copies());
        assert!(nsm.delete_preset("mine").await.unwrap());
        assert!(!nsm.delete_preset("mine").await.unwrap());
        let default = nsm.delete_preset("default").await.unwrap_err();
        assert!(default.message.contains("the default"));
        nsm.set_default_preset("single").await.unwrap();
        nsm.create_namespace("new", None).await.unwrap();
        assert_eq!(nsm.preset_of("new").await.unwrap(), "single");
        assert!(nsm.target("new", "x").await.unwrap().unwrap().policies[0].is_copies());
    }
}
