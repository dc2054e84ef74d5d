//! The NSM over a real RocksDB.

use super::*;
use crate::erasure::Codec;
use crate::preset::Policy;

const OSD: OsdId = OsdId([9; 16]);

fn fragment(index: u8, n: u8) -> Fragment {
    Fragment { index, osd: OSD, file: FragmentId([n; 16]), crc: n.into() }
}

fn manifest(n: u8) -> Manifest {
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

fn open(path: &Path) -> Nsm {
    let nsm = Nsm::open(path).unwrap();
    nsm.ensure_presets(preset::DEFAULT).unwrap();
    nsm
}

#[test]
fn names_are_paged_in_byte_order() {
    let dir = tempfile::tempdir().unwrap();
    let nsm = open(dir.path());
    assert!(nsm.create_namespace("ns", None).unwrap());
    assert!(!nsm.create_namespace("ns", None).unwrap());
    for (n, name) in ["b/2", "a", "b/1", "b/3", "c", "b"].iter().enumerate() {
        nsm.put_if_absent("ns", name, &manifest(n as u8)).unwrap();
    }
    let page = |prefix, after, limit| nsm.list("ns", prefix, after, limit).unwrap();
    assert_eq!(page("", "", 9).names, ["a", "b", "b/1", "b/2", "b/3", "c"]);
    assert_eq!(page("b/", "", 2), Page { names: vec!["b/1".into(), "b/2".into()], more: true });
    assert_eq!(page("b/", "b/2", 2), Page { names: vec!["b/3".into()], more: false });
    assert_eq!(page("b/", "a", 9).names.len(), 3);
    assert_eq!(page("b/", "c", 9).names.len(), 0);
    assert_eq!(nsm.list("other", "", "", 9).unwrap(), Page::default());
}

#[test]
fn totals_follow_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    {
        let nsm = open(dir.path());
        nsm.create_namespace("a", None).unwrap();
        nsm.create_namespace("b", None).unwrap();
        nsm.put_if_absent("a", "1", &manifest(1)).unwrap();
        nsm.put_if_absent("a", "2", &manifest(2)).unwrap();
        nsm.put_if_absent("b", "3", &manifest(3)).unwrap();
        nsm.delete("a", "1").unwrap();
    }
    let nsm = open(dir.path());
    assert_eq!(nsm.totals().unwrap(), Totals { namespaces: 2, objects: 2, object_bytes: 200 });
    assert_eq!(nsm.removals(None, 9).unwrap(), [(FragmentId([1; 16]), OsdId([9; 16]))]);
    nsm.removed(&[FragmentId([1; 16])]).unwrap();
    assert!(nsm.delete_namespace("a").unwrap());
    assert_eq!(nsm.totals().unwrap(), Totals { namespaces: 1, objects: 1, object_bytes: 100 });
    assert!(nsm.is_live(OSD, FragmentId([2; 16])).unwrap());
    while nsm.drop_some().unwrap() {}
    assert!(!nsm.is_live(OSD, FragmentId([2; 16])).unwrap());
    assert_eq!(nsm.removals(None, 9).unwrap(), [(FragmentId([2; 16]), OsdId([9; 16]))]);
    assert_eq!(nsm.removals(Some(FragmentId([2; 16])), 9).unwrap(), []);
}

#[test]
fn one_of_two_sequences_wins() {
    let dir = tempfile::tempdir().unwrap();
    let nsm = open(dir.path());
    nsm.create_namespace("ns", None).unwrap();
    let change = |n: u8| [("x".to_string(), Change::Put(manifest(n)))];
    let absent = [("x".to_string(), Condition::Absent)];
    let outcomes = std::thread::scope(|scope| {
        let race = |n| {
            scope.spawn({
                let nsm = &nsm;
                let absent = &absent;
                move || nsm.apply("ns", absent, &change(n))
            })
        };
        [race(1), race(2), race(3)].map(|t| t.join().unwrap().is_ok())
    });
    assert_eq!(outcomes.iter().filter(|won| **won).count(), 1);
}

#[test]
fn a_failed_assert_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let nsm = open(dir.path());
    nsm.create_namespace("ns", None).unwrap();
    nsm.put_if_absent("ns", "x", &manifest(1)).unwrap();
    let changes = [("x".to_string(), Change::Delete), ("y".to_string(), Change::Put(manifest(2)))];
    for (name, condition) in [
        ("x", Condition::Absent),
        ("y", Condition::Exists),
        ("x", Condition::HasCrc(7)),
        ("y", Condition::HasCrc(1)),
    ] {
        let fault = nsm.apply("ns", &[(name.to_string(), condition)], &changes).unwrap_err();
        assert_eq!(fault.kind, Kind::AssertFailed);
    }
    assert_eq!(nsm.list("ns", "", "", 9).unwrap().names, ["x"]);
    let gone = nsm.apply("ns", &[("x".to_string(), Condition::HasCrc(1))], &changes).unwrap();
    assert_eq!(gone, [manifest(1)]);
    assert_eq!(nsm.list("ns", "", "", 9).unwrap().names, ["y"]);
}

#[test]
fn fragments_move_only_from_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let nsm = open(dir.path());
    nsm.create_namespace("ns", None).unwrap();
    nsm.put_if_absent("ns", "x", &manifest(1)).unwrap();
    let moved = |object, old, new| nsm.move_fragments("ns", "x", object, &[(old, new)]).unwrap();
    let id = ObjectId([1; 16]);
    let first = fragment(0, 1);
    assert!(!moved(ObjectId([2; 16]), None, Some(fragment(1, 5))), "another object");
    assert!(!moved(id, Some(fragment(0, 9)), Some(fragment(0, 5))), "it lies elsewhere");
    assert!(!moved(id, None, Some(fragment(0, 5))), "there is one");
    assert_eq!(nsm.get("ns", "x").unwrap().unwrap(), manifest(1));
    assert_eq!(nsm.removals(None, 9).unwrap(), []);
    assert!(moved(id, None, Some(fragment(1, 5))));
    assert!(moved(id, Some(first), Some(fragment(0, 6))));
    assert!(!moved(id, Some(first), Some(fragment(0, 7))), "it has moved");
    let now = nsm.get("ns", "x").unwrap().unwrap();
    assert_eq!(now.fragments, [fragment(0, 6), fragment(1, 5)]);
    assert_eq!(nsm.removals(None, 9).unwrap(), [(first.file, OSD)]);
    assert!(!nsm.is_live(OSD, first.file).unwrap());
    assert!(nsm.is_live(OSD, FragmentId([6; 16])).unwrap());
    nsm.delete("ns", "x").unwrap().unwrap();
    assert_eq!(nsm.removals(None, 9).unwrap().len(), 3);
    assert!(!nsm.move_fragments("ns", "x", id, &[(None, Some(first))]).unwrap(), "deleted");
}

#[test]
fn presets_are_versioned_and_kept_while_used() {
    let dir = tempfile::tempdir().unwrap();
    let nsm = open(dir.path());
    let names: Vec<String> = nsm.presets().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["default", "single"]);
    let raw = preset::Raw::of(&["2,1,3,1"]);
    assert_eq!(nsm.put_preset("mine", raw.clone()).unwrap(), 1);
    assert_eq!(nsm.put_preset("mine", raw.clone()).unwrap(), 2);
    nsm.create_namespace("ns", Some("mine")).unwrap();
    assert_eq!(nsm.create_namespace("other", Some("no")).unwrap_err().kind, Kind::NotFound);
    let used = nsm.delete_preset("mine").unwrap_err();
    assert!(used.message.contains("\"ns\""), "{used}");
    nsm.set_preset_of("ns", "single").unwrap();
    assert!(nsm.delete_preset("mine").unwrap());
    assert!(!nsm.delete_preset("mine").unwrap());
    assert!(nsm.delete_preset("default").unwrap_err().message.contains("the default"));
    nsm.set_default_preset("single").unwrap();
    nsm.create_namespace("new", None).unwrap();
    assert_eq!(nsm.preset_of("new").unwrap(), "single");
    assert!(nsm.target("new", "x").unwrap().unwrap().policies[0].is_copies());
}
