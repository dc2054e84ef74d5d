//! A backend whose NSM others may change too, or that does not answer.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::*;
use crate::nsm::Nsm;
use crate::nsm::kv::{Commit, Key, Kv, Value};
use crate::nsm::memory::Memory;
use crate::osd::Local;

/// A table that can be made silent.
#[derive(Debug, Default)]
struct Mute {
    table: Memory,
    is_mute: AtomicBool,
}

impl Mute {
    fn pass(&self) -> Result<()> {
        let is_mute = self.is_mute.load(Ordering::SeqCst);
        if is_mute { Err(Fault::unavailable("mute")) } else { Ok(()) }
    }
}

#[async_trait]
impl Kv for Mute {
    fn place(&self) -> String {
        "mute".into()
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn writes_at_once(&self) -> usize {
        100
    }
    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Value>>> {
        self.pass()?;
        self.table.get(keys).await
    }
    async fn range(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        self.pass()?;
        self.table.range(from, to, limit).await
    }
    async fn commit(&self, commit: Commit) -> Result<bool> {
        self.pass()?;
        self.table.commit(commit).await
    }
}

/// On this table and one directory.
async fn assemble(dir: &Path, table: Arc<dyn Kv>) -> Alba {
    assemble_on(dir, vec![table]).await
}

async fn assemble_on(dir: &Path, tables: Vec<Arc<dyn Kv>>) -> Alba {
    let (id, config) = (AlbaId([1; 16]), Config::new("/nowhere"));
    let limits = Limits { reserve_percent: 0, reserve_bytes: 0, capacity_bytes: None };
    let directory = Directory::open(&dir.join("osd"), id, limits).unwrap();
    let osd = Box::new(Local::new(directory, 4));
    let osds = vec![GivenOsd { osd, node: "a".into(), labels: Vec::new() }];
    let (outside, threads) = (Outside::default(), Threads::Here);
    Alba::assemble(Parts { config, id, tables, osds, outside, threads }).await.unwrap()
}

#[tokio::test]
async fn what_others_delete_or_put_anew_is_seen_although_it_was_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let table: Arc<dyn Kv> = Arc::new(Mute::default());
    let alba = assemble(dir.path(), table.clone()).await;
    let other = Nsm::open(vec![table], Outside::default()).await.unwrap();
    alba.create_namespace("ns").await.unwrap();
    let bodies = [noise(1000, 1), noise(1000, 2)];
    for (name, body) in ["a", "b"].iter().zip(&bodies) {
        alba.put_if_absent("ns", name, vec![body.clone()], Purpose::Data).await.unwrap();
    }
    let get = async |name| alba.get_range("ns", name, 0, 1000).await.unwrap();
    assert_eq!(get("a").await.as_ref(), Some(&bodies[0]));
    let b = other.get("ns", "b").await.unwrap().unwrap();
    other.delete("ns", "a").await.unwrap().unwrap();
    assert_eq!(get("a").await, None);
    assert_eq!(other.put_if_absent("ns", "a", &b).await.unwrap(), Put::Created);
    assert_eq!(get("a").await.as_ref(), Some(&bodies[1]));
    assert_eq!(alba.head("ns", "a").await.unwrap().unwrap().id, b.id);
}

#[tokio::test]
async fn what_was_read_before_is_read_while_the_nsm_is_silent_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let table = Arc::new(Mute::default());
    let alba = assemble(dir.path(), table.clone()).await;
    alba.create_namespace("ns").await.unwrap();
    let body = noise(100_000, 1);
    let put = async |name: &str| {
        alba.put_if_absent("ns", name, vec![body.clone()], Purpose::Data).await.map(drop)
    };
    for name in ["read", "deleted", "unread"] {
        put(name).await.unwrap();
    }
    let get = async |name| alba.get_range("ns", name, 0, 100_000).await;
    for name in ["read", "deleted"] {
        assert_eq!(get(name).await.unwrap().as_ref(), Some(&body));
    }
    assert!(alba.delete("ns", "deleted").await.unwrap());
    table.is_mute.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(get("read").await.unwrap().as_ref(), Some(&body));
        let opened = alba.open_object("ns", "read").await.unwrap().unwrap();
        assert_eq!(opened.read(5, 10).await.unwrap(), body.slice(5..15));
        for name in ["unread", "deleted", "never"] {
            assert_eq!(get(name).await.unwrap_err().kind, Kind::Unavailable, "{name}");
        }
        assert_eq!(put("new").await.unwrap_err().kind, Kind::Unavailable);
        assert_eq!(alba.delete("ns", "read").await.unwrap_err().kind, Kind::Unavailable);
        // An attempt to delete forgets it: read it again by what the next look says.
        table.is_mute.store(false, Ordering::SeqCst);
        assert_eq!(get("read").await.unwrap().as_ref(), Some(&body));
        table.is_mute.store(true, Ordering::SeqCst);
    }
    table.is_mute.store(false, Ordering::SeqCst);
    put("new").await.unwrap();
    for name in ["unread", "new"] {
        assert_eq!(get(name).await.unwrap().as_ref(), Some(&body));
    }
    assert_eq!(get("deleted").await.unwrap(), None);
    // Nothing is left of the puts that failed.
    let status = alba.status().await.unwrap();
    assert_eq!((status.objects, files(dir.path()).len()), (3, 3));
}

#[tokio::test]
async fn after_a_silence_the_first_read_of_a_remembered_name_is_as_it_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let table = Arc::new(Mute::default());
    let alba = assemble(dir.path(), table.clone()).await;
    let other = Nsm::open(vec![table.clone()], Outside::default()).await.unwrap();
    alba.create_namespace("ns").await.unwrap();
    let body = noise(1000, 1);
    alba.put_if_absent("ns", "a", vec![body.clone()], Purpose::Data).await.unwrap();
    let get = async || alba.get_range("ns", "a", 0, 1000).await.unwrap();
    assert_eq!(get().await.as_ref(), Some(&body));
    for _ in 0..2 {
        table.is_mute.store(true, Ordering::SeqCst);
        assert_eq!(get().await.as_ref(), Some(&body));
        assert!(alba.inner.remembered.silence(0).is_some());
        table.is_mute.store(false, Ordering::SeqCst);
        // Another process changes it, and nobody asks this one.
        let manifest = other.get("ns", "a").await.unwrap().unwrap();
        other.delete("ns", "a").await.unwrap().unwrap();
        let patience = tokio::time::Instant::now() + Duration::from_secs(30);
        while alba.inner.remembered.silence(0).is_some() {
            assert!(tokio::time::Instant::now() < patience, "the NSM is not asked");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(get().await, None);
        assert_eq!(other.put_if_absent("ns", "a", &manifest).await.unwrap(), Put::Created);
        assert_eq!(get().await.as_ref(), Some(&body));
    }
}

#[tokio::test]
async fn a_cluster_that_is_silent_makes_no_other_wait() {
    let dir = tempfile::tempdir().unwrap();
    let tables = [Arc::new(Mute::default()), Arc::new(Mute::default())];
    let both = tables.iter().map(|table| table.clone() as Arc<dyn Kv>).collect();
    let alba = assemble_on(dir.path(), both).await;
    let body = noise(1000, 1);
    for namespace in ["first", "second"] {
        alba.create_namespace(namespace).await.unwrap();
        alba.put_if_absent(namespace, "a", vec![body.clone()], Purpose::Data).await.unwrap();
    }
    let get = async |namespace| alba.get_range(namespace, "a", 0, 1000).await.unwrap();
    for namespace in ["first", "second"] {
        assert_eq!(get(namespace).await.as_ref(), Some(&body));
    }
    tables[1].is_mute.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        for namespace in ["second", "first"] {
            assert_eq!(get(namespace).await.as_ref(), Some(&body));
        }
        let silent = [0, 1].map(|home| alba.inner.remembered.silence(home).is_some());
        assert_eq!(silent, [false, true]);
    }
}

#[tokio::test]
async fn servers_on_one_etcd_are_one_backend() {
    let server = crate::nsm::etcd::tests::Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let config = |n: usize| Config {
        nsm: vec![server.place("b/one"), server.place("b/two")],
        ..Config::new(dir.path().join(format!("server{n}")))
    };
    let (one, two) = (Alba::open(config(1)).await.unwrap(), Alba::open(config(2)).await.unwrap());
    assert_eq!(one.id(), two.id());
    for namespace in ["a", "b", "c"] {
        assert!(one.create_namespace(namespace).await.unwrap());
        assert!(!two.create_namespace(namespace).await.unwrap());
        let body = noise(5000, 3);
        let put = one.put_if_absent(namespace, "x", vec![body.clone()], Purpose::Data).await;
        assert_eq!(put.unwrap(), Put::Created);
        let again = two.put_if_absent(namespace, "x", vec![body.clone()], Purpose::Data).await;
        assert_eq!(again.unwrap(), Put::Exists);
        let seen = two.head(namespace, "x").await.unwrap().unwrap();
        assert_eq!((seen.len, seen.crc), (5000, crc32fast::hash(&body)));
    }
    assert_eq!(two.list_namespaces("", "", 9).await.unwrap().names, ["a", "b", "c"]);
    let id = one.id();
    one.close().await;
    // The order does not matter, but all of them must be given.
    let swapped = Config { nsm: config(1).nsm.into_iter().rev().collect(), ..config(1) };
    let one = Alba::open(swapped).await.unwrap();
    let body = one.get_range("b", "x", 0, 5000).await.unwrap();
    assert_eq!((one.id(), body), (id, Some(noise(5000, 3))));
    one.close().await;
    let half = Config { nsm: vec![server.place("b/two")], ..config(1) };
    let refused = Alba::open(half).await.err().unwrap();
    assert!(refused.message.contains("cluster 0"), "{refused}");
    let elsewhere = Config { nsm: vec![server.place("empty")], ..config(1) };
    let refused = Alba::open(elsewhere).await.err().unwrap();
    assert!(refused.message.contains("alba recover"), "{refused}");
    let without = Config { nsm: vec![], ..config(1) };
    let refused = Alba::open(without).await.err().unwrap();
    assert!(refused.message.contains("--nsm"), "{refused}");
}

#[tokio::test]
async fn an_nsm_lost_from_etcd_is_rebuilt_there() {
    let server = crate::nsm::etcd::tests::Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let config = |prefix: &str| Config {
        nsm: vec![server.place(prefix)],
        ..Config::new(dir.path().join("data"))
    };
    let alba = Alba::open(config("old")).await.unwrap();
    alba.create_namespace("ns").await.unwrap();
    let body = noise(5000, 3);
    for n in 0..150 {
        let name = format!("{n}");
        alba.put_if_absent("ns", &name, vec![body.clone()], Purpose::Data).await.unwrap();
    }
    let id = alba.id();
    alba.close().await;
    let intact = recover(config("old")).await.unwrap_err();
    assert!(intact.message.contains("it is not lost"), "{intact}");
    let recovered = recover(config("new")).await.unwrap();
    assert_eq!((recovered.id, recovered.outcome.objects.len()), (id, 150));
    let alba = Alba::open(config("new")).await.unwrap();
    assert_eq!(alba.get_range("ns", "149", 0, 5000).await.unwrap(), Some(body));
    assert_eq!(alba.status().await.unwrap().objects, 150);
}
