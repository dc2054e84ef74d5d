//! What every object store must do, whichever it is: one function, run over each of them.

use std::collections::BTreeSet;

use backend_alba::server::{Address, AlbaService, Server};
use backend_alba::{Alba, Config};
use bytes::Bytes;
use tokio::task::LocalSet;
use volumedriver_core::fault::Kind;

use super::alba::AlbaStore;
use super::embedded::Embedded;
use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};

/// Races of puts, and contenders in each.
const ROUNDS: u32 = 20;
const CONTENDERS: u8 = 8;

/// Everything the trait promises, on an empty store.
pub(super) async fn conforms<S: ObjectStore>(store: &S) {
    namespaces(store).await;
    objects(store).await;
    ranges(store).await;
    lists(store).await;
    races(store).await;
}

fn noise(len: usize) -> Bytes {
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
    assert_eq!(store.head("vd-b", "a").await.unwrap(), None);

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

fn on_local_thread(test: impl Future<Output = ()>) {
    // As in the daemon: the caller's runtime is not the one that does the work.
    let local = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&local, test);
}

fn service() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn embedded_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let service = service();
    let store = service.block_on(Embedded::open(Config::new(dir.path()))).unwrap();
    on_local_thread(conforms(&store));
}

fn serve_and_conform(address: &Address, prefix: &str) {
    let dir = tempfile::tempdir().unwrap();
    let service = service();
    let store = service.block_on(async {
        let alba = Alba::open(Config::new(dir.path())).await.unwrap();
        let server = Server::bind(address, None).await.unwrap();
        let store = AlbaStore::connect(server.address(), prefix.into()).unwrap();
        tokio::spawn(server.serve(AlbaService::new(alba).routes(), std::future::pending()));
        store
    });
    on_local_thread(conforms(&store));
}

#[test]
fn alba_over_tcp_conforms() {
    serve_and_conform(&"127.0.0.1:0".parse().unwrap(), "pool-1.");
}

#[test]
fn alba_over_a_unix_socket_conforms() {
    let dir = tempfile::tempdir().unwrap();
    serve_and_conform(&Address::Unix(dir.path().join("alba.sock")), "");
}

#[test]
fn the_client_comes_back_when_the_server_does() {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("alba.sock"));
    let config = Config::new(dir.path().join("data"));
    let service = service();
    let store = service.block_on(async { AlbaStore::connect(&address, String::new()).unwrap() });
    let life = |config: Config| {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let address = address.clone();
        let task = service.spawn(async move {
            let alba = Alba::open(config).await.unwrap();
            let server = Server::bind(&address, None).await.unwrap();
            server
                .serve(AlbaService::new(alba).routes(), async { drop(stopped.await) })
                .await
                .unwrap();
        });
        (stop, task)
    };
    let until_there = async || {
        for _ in 0..200 {
            match store.list_namespaces("").await {
                Ok(names) => return names,
                Err(fault) => assert_eq!(fault.kind, Kind::Unavailable, "{fault}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the server did not come back within 4 s");
    };
    on_local_thread(async {
        assert_eq!(store.head("ns", "x").await.unwrap_err().kind, Kind::Unavailable);
        let (stop, task) = life(config.clone());
        assert_eq!(until_there().await, [""; 0]);
        store.create_namespace("ns").await.unwrap();
        drop(stop);
        task.await.unwrap();
        let put = store.put_if_absent("ns", "x", vec![noise(5 << 20)], Purpose::Data).await;
        assert_eq!(put.unwrap_err().kind, Kind::Unavailable);
        let (_stop, _task) = life(config.clone());
        assert_eq!(until_there().await, ["ns"]);
        assert_eq!(
            store.put_if_absent("ns", "x", vec![noise(5 << 20)], Purpose::Data).await.unwrap(),
            Put::Created
        );
    });
}

#[test]
fn damage_is_named_over_the_wire_and_costs_its_block_only() {
    let dir = tempfile::tempdir().unwrap();
    let service = service();
    let address = Address::Unix(dir.path().join("alba.sock"));
    let store = service.block_on(async {
        let alba = Alba::open(Config::new(dir.path().join("data"))).await.unwrap();
        let server = Server::bind(&address, None).await.unwrap();
        tokio::spawn(server.serve(AlbaService::new(alba).routes(), std::future::pending()));
        AlbaStore::connect(&address, String::new()).unwrap()
    });
    on_local_thread(async {
        let body = noise(3 << 20);
        store.create_namespace("ns").await.unwrap();
        store.put_if_absent("ns", "sco", vec![body.clone()], Purpose::Data).await.unwrap();
        let shards = std::fs::read_dir(dir.path().join("data/osd/objects")).unwrap().flatten();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.path()).unwrap().flatten());
        let file = files.map(|entry| entry.path()).next().unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[2 << 20] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let fault = store.get_range("ns", "sco", 0, 3 << 20).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt);
        assert!(fault.message.contains("2097152..2162688"), "{fault}");
        let got = store.get_range("ns", "sco", 0, 2 << 20).await.unwrap().unwrap();
        assert!(got == body.slice(..2 << 20));
    });
}
