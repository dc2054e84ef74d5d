//! The NSM over a real RocksDB.

use super::*;

fn manifest(n: u8) -> Manifest {
    Manifest { osd: OsdId([9; 16]), id: ObjectId([n; 16]), len: 100, crc: n.into(), created_ms: 0 }
}

#[test]
fn names_are_paged_in_byte_order() {
    let dir = tempfile::tempdir().unwrap();
    let nsm = Nsm::open(dir.path()).unwrap();
    assert!(nsm.create_namespace("ns").unwrap());
    assert!(!nsm.create_namespace("ns").unwrap());
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
        let nsm = Nsm::open(dir.path()).unwrap();
        nsm.create_namespace("a").unwrap();
        nsm.create_namespace("b").unwrap();
        nsm.put_if_absent("a", "1", &manifest(1)).unwrap();
        nsm.put_if_absent("a", "2", &manifest(2)).unwrap();
        nsm.put_if_absent("b", "3", &manifest(3)).unwrap();
        nsm.delete("a", "1").unwrap();
    }
    let nsm = Nsm::open(dir.path()).unwrap();
    assert_eq!(nsm.totals().unwrap(), Totals { namespaces: 2, objects: 2, object_bytes: 200 });
    assert_eq!(nsm.removals(None, 9).unwrap(), [(ObjectId([1; 16]), OsdId([9; 16]))]);
    nsm.removed(&[ObjectId([1; 16])]).unwrap();
    assert!(nsm.delete_namespace("a").unwrap());
    assert_eq!(nsm.totals().unwrap(), Totals { namespaces: 1, objects: 1, object_bytes: 100 });
    assert!(nsm.is_live(ObjectId([2; 16])).unwrap());
    while nsm.drop_some().unwrap() {}
    assert!(!nsm.is_live(ObjectId([2; 16])).unwrap());
    assert_eq!(nsm.removals(None, 9).unwrap(), [(ObjectId([2; 16]), OsdId([9; 16]))]);
    assert_eq!(nsm.removals(Some(ObjectId([2; 16])), 9).unwrap(), []);
}

#[test]
fn one_of_two_sequences_wins() {
    let dir = tempfile::tempdir().unwrap();
    let nsm = Nsm::open(dir.path()).unwrap();
    nsm.create_namespace("ns").unwrap();
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
    let nsm = Nsm::open(dir.path()).unwrap();
    nsm.create_namespace("ns").unwrap();
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
