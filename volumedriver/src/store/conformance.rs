//! What every object store must do, whichever it is: one function, run over each of them by tests. It panics where a store
//! does not.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use bytes::Bytes;
use volumedriver_core::fault::Kind;

use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};

/// Races of puts, and contenders in each.
const ROUNDS: u32 = 20;
const CONTENDERS: u8 = 8;

/// Everything the trait promises, on an empty store; on a thread that runs local tasks.
pub async fn conforms<S: ObjectStore>(store: &S) {
    conforms_on_files(store).await;
    names_below_names(store).await;
}

/// All of it but names below names, which a store cannot have whose names are paths in a file system.
pub async fn conforms_on_files<S: ObjectStore>(store: &S) {
    namespaces(store).await;
    objects(store).await;
    ranges(store).await;
    lists(store).await;
    races(store).await;
}

async fn names_below_names<S: ObjectStore>(store: &S) {
    for name in ["below/a/b", "below/a"] {
        assert_eq!(store.head("vd-b", name).await.unwrap(), None);
        let put = store.put_if_absent("vd-b", name, vec![Bytes::from(name)], Purpose::Data).await;
        assert_eq!(put.unwrap(), Put::Created);
    }
    assert_eq!(store.list("vd-b", "below/", None, 9).await.unwrap(), ["below/a", "below/a/b"]);
    store.delete("vd-b", "below/a").await.unwrap();
    assert_eq!(store.get_range("vd-b", "below/a/b", 0, 9).await.unwrap().unwrap(), "below/a/b");
}

pub(super) fn noise(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

async fn namespaces<S: ObjectStore>(store: &S) {
    for name in ["vd-b", "vd-a", "vd-b", "other"] {
        store.create_namespace(name).await.unwrap();
    }
    assert_eq!(store.list_namespaces("vd-").await.unwrap(), ["vd-a", "vd-b"]);
    assert_eq!(store.list_namespaces("").await.unwrap(), ["other", "vd-a", "vd-b"]);
    assert_eq!(store.list_namespaces("x").await.unwrap(), [""; 0]);

    store
        .put_if_absent("vd-a", "x", vec![Bytes::from_static(b"first life")], Purpose::Data)
        .await
        .unwrap();
    store.delete_namespace("vd-a").await.unwrap();
    store.delete_namespace("vd-a").await.unwrap();
    assert_eq!(store.list_namespaces("vd-").await.unwrap(), ["vd-b"]);
    store.create_namespace("vd-a").await.unwrap();
    assert_eq!(store.head("vd-a", "x").await.unwrap(), None);
    assert_eq!(store.list("vd-a", "", None, 9).await.unwrap(), [""; 0]);

    let put =
        store.put_if_absent("nowhere", "x", vec![Bytes::from_static(b"1")], Purpose::Data).await;
    assert_eq!(put.unwrap_err().kind, Kind::Invalid);
    assert_eq!(store.get_range("nowhere", "x", 0, 1).await.unwrap(), None);
    assert_eq!(store.head("nowhere", "x").await.unwrap(), None);
    store.delete("nowhere", "x").await.unwrap();
    for bad in ["", "a\nb", &"n".repeat(300)] {
        assert_eq!(store.create_namespace(bad).await.unwrap_err().kind, Kind::Invalid, "{bad:?}");
    }
}

async fn objects<S: ObjectStore>(store: &S) {
    let body = vec![Bytes::from_static(b"hel"), Bytes::new(), Bytes::from_static(b"lo")];
    assert_eq!(
        store.put_if_absent("vd-b", "a/b", body.clone(), Purpose::Data).await.unwrap(),
        Put::Created
    );
    assert_eq!(store.put_if_absent("vd-b", "a/b", body, Purpose::Data).await.unwrap(), Put::Exists);
    let other = vec![Bytes::from_static(b"other")];
    assert_eq!(
        store.put_if_absent("vd-b", "a/b", other, Purpose::Data).await.unwrap(),
        Put::Exists
    );
    // CRC-32 of "hello".
    let info = ObjectInfo { len: 5, crc: 0x3610_a686 };
    assert_eq!(store.head("vd-b", "a/b").await.unwrap(), Some(info));
    assert_eq!(store.get_range("vd-b", "a/b", 1, 3).await.unwrap().unwrap(), "ell");

    assert_eq!(
        store.put_if_absent("vd-b", "empty", vec![], Purpose::Data).await.unwrap(),
        Put::Created
    );
    assert_eq!(store.head("vd-b", "empty").await.unwrap(), Some(ObjectInfo { len: 0, crc: 0 }));
    assert_eq!(store.get_range("vd-b", "empty", 0, 0).await.unwrap().unwrap(), "");

    store.delete("vd-b", "a/b").await.unwrap();
    store.delete("vd-b", "a/b").await.unwrap();
    store.delete("vd-b", "empty").await.unwrap();
    assert_eq!(store.get_range("vd-b", "a/b", 0, 1).await.unwrap(), None);
    assert!(store.local_file("vd-b", "a/b").await.unwrap().is_none());
    for bad in ["", "a\0b", &"n".repeat(2000)] {
        let put = store.put_if_absent("vd-b", bad, vec![], Purpose::Data).await;
        assert_eq!(put.unwrap_err().kind, Kind::Invalid, "{bad:?}");
    }
}

async fn ranges<S: ObjectStore>(store: &S) {
    let len = (5 << 20) + 12_345;
    let body = noise(len);
    // Pieces long and short, so that every way a body is cut and gathered is gone.
    let cuts = [1, 4097, 70_000, 1 << 20, (2 << 20) + 5, (2 << 20) + 6, 5 << 20, len];
    let starts = std::iter::once(0).chain(cuts);
    let pieces = starts.zip(cuts).map(|(from, to)| body.slice(from..to)).collect();
    assert_eq!(
        store.put_if_absent("vd-b", "big", pieces, Purpose::Data).await.unwrap(),
        Put::Created
    );
    let info = ObjectInfo { len: len as u64, crc: crc32fast::hash(&body) };
    assert_eq!(store.head("vd-b", "big").await.unwrap(), Some(info));
    let mib = 1 << 20;
    for (from, to) in [
        (0, len),
        (0, 1),
        (len - 1, len),
        (len, len),
        (65_535, 65_537),
        (mib - 1, 3 * mib + 1),
        (mib, 2 * mib),
    ] {
        let got =
            store.get_range("vd-b", "big", from as u64, (to - from) as u64).await.unwrap().unwrap();
        assert!(got == body.slice(from..to), "bytes {from}..{to}");
    }
    let len = len as u64;
    for (offset, wanted) in
        [(len, 1), (len - 1, 2), (len + 1, 0), (0, len + 1), (1, u64::MAX), (u64::MAX, u64::MAX)]
    {
        let fault = store.get_range("vd-b", "big", offset, wanted).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Invalid, "{wanted} bytes from {offset}");
    }
    if let Some(file) = store.local_file("vd-b", "big").await.unwrap() {
        assert!(file.metadata().unwrap().len() >= len);
    }
    store.delete("vd-b", "big").await.unwrap();
}

async fn lists<S: ObjectStore>(store: &S) {
    let names: BTreeSet<String> = (0..25).map(|n| format!("sco/{n:03}")).collect();
    for name in names.iter().chain(&["sc".to_string(), "sco0".into(), "tlog/1".into()]) {
        store
            .put_if_absent("vd-b", name, vec![Bytes::from_static(b"x")], Purpose::Data)
            .await
            .unwrap();
    }
    let list = async |prefix, after, limit| store.list("vd-b", prefix, after, limit).await.unwrap();
    assert_eq!(list("sco/", None, 100).await, Vec::from_iter(names.clone()));
    assert_eq!(list("", None, 2).await, ["sc", "sco/000"]);
    assert_eq!(list("sco/", Some("sco/010"), 2).await, ["sco/011", "sco/012"]);
    assert_eq!(list("sco/", Some("sco/024"), 2).await, [""; 0]);
    assert_eq!(list("sco/", Some("a"), 1).await, ["sco/000"]);
    assert_eq!(list("", Some("sco/024"), 9).await, ["sco0", "tlog/1"]);
    assert_eq!(list("nothing", None, 9).await, [""; 0]);
}

async fn races<S: ObjectStore>(store: &S) {
    for round in 0..ROUNDS {
        let name = format!("race/{round}");
        let contenders = (0..CONTENDERS).map(|contender| {
            let (store, name) = (store.clone(), name.clone());
            let body = vec![Bytes::from(vec![contender; 5000])];
            tokio::task::spawn_local(async move {
                store.put_if_absent("vd-b", &name, body, Purpose::Data).await.unwrap()
            })
        });
        let mut winner = None;
        for (contender, outcome) in
            futures_util::future::join_all(contenders).await.into_iter().enumerate()
        {
            if outcome.unwrap() == Put::Created {
                assert_eq!(winner.replace(contender), None, "two winners in round {round}");
            }
        }
        let winner = u8::try_from(winner.expect("no winner")).unwrap();
        let got = store.get_range("vd-b", &name, 0, 5000).await.unwrap().unwrap();
        assert!(got.iter().all(|byte| *byte == winner));
    }
}
