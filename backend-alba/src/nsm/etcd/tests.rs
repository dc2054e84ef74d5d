//! The table and the NSM on real etcd servers, each test its own, on loopback.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::manifest::Manifest;
use crate::nsm::kv::conformance;
use crate::nsm::tests::{manifest, over};
use crate::nsm::{Change, Condition, Nsm, Put, Space, keys};
use crate::outside::Outside;

/// An etcd of one member, killed when dropped.
pub struct Server {
    dir: tempfile::TempDir,
    port: u16,
    peer: u16,
    more: &'static [&'static str],
    child: Child,
}

/// So much that sequences of 1000 parts fit.
pub const LARGE: &[&str] = &["--max-txn-ops=65536", "--max-request-bytes=16777216"];

impl Server {
    pub async fn start(more: &'static [&'static str]) -> Self {
        for _ in 0..5 {
            let free = || TcpListener::bind("127.0.0.1:0").unwrap();
            // Both at once, so that they differ.
            let (one, two) = (free(), free());
            let (port, peer) = (one.local_addr().unwrap().port(), two.local_addr().unwrap().port());
            drop((one, two));
            let dir = tempfile::tempdir().unwrap();
            let child = spawn(dir.path(), port, peer, more);
            let mut server = Self { dir, port, peer, more, child };
            // Somebody may have been faster to take the port.
            if server.answers().await {
                return server;
            }
        }
        panic!("etcd does not start");
    }

    async fn answers(&mut self) -> bool {
        for _ in 0..300 {
            let kv = Etcd::connect(self.place("ready")).await.unwrap();
            if kv.get(vec![b"x".to_vec()]).await.is_ok() {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            sleep(Duration::from_millis(100)).await;
        }
        false
    }

    pub fn place(&self, prefix: &str) -> EtcdPlace {
        format!("etcd://127.0.0.1:{}/{prefix}", self.port).parse().unwrap()
    }

    pub async fn table(&self, prefix: &str) -> Arc<dyn Kv> {
        Arc::new(Etcd::connect(self.place(prefix)).await.unwrap())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.port, self.peer, self.more);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &std::path::Path, port: u16, peer: u16, more: &[&str]) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
    Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--name", "default"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd of the Debian package etcd-server")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms_and_prefixes_are_worlds_of_their_own() {
    let server = Server::start(&[]).await;
    conformance::check(server.table("one").await).await;
    let other = server.table("onee").await;
    assert_eq!(other.range(vec![], vec![0xff], 9).await.unwrap(), []);
    assert_eq!(server.table("on").await.range(vec![], vec![0xff], 9).await.unwrap(), []);
    let long = Etcd::connect(server.place("one")).await.unwrap();
    let mut commit = Commit::default();
    for n in 0..200u8 {
        commit.put(vec![b'L', n], [n]);
    }
    let fault = long.commit(commit).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Invalid);
    assert!(
        fault.message.contains("--max-txn-ops") && fault.message.contains("200 keys"),
        "{fault}"
    );
    let mut commit = Commit::default();
    commit.put(b"big".to_vec(), vec![1; 3 << 20]);
    let fault = long.commit(commit).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Invalid);
    assert!(fault.message.contains("--max-request-bytes"), "{fault}");
    assert_eq!(long.range(b"L".to_vec(), b"M".to_vec(), 9).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nsms_one_wins_and_sequences_are_atomic() {
    let server = Server::start(LARGE).await;
    let one = Arc::new(over(vec![server.table("a").await]).await);
    let two = Arc::new(over(vec![server.table("a").await]).await);
    one.create_namespace("ns", None).await.unwrap();
    assert!(!two.create_namespace("ns", None).await.unwrap());
    for round in 0..10 {
        let put = |nsm: &Arc<Nsm>, n: u8| {
            let nsm = nsm.clone();
            tokio::spawn(async move {
                nsm.put_if_absent("ns", &format!("x{round}"), &manifest(n)).await.unwrap()
            })
        };
        let puts = [put(&one, 1), put(&two, 2), put(&one, 3), put(&two, 4)];
        let mut created = 0;
        for task in puts {
            created += usize::from(task.await.unwrap() == Put::Created);
        }
        assert_eq!(created, 1);
    }
    let tasks =
        [(&one, 1), (&two, 2), (&one, 3)].map(|(nsm, n)| tokio::spawn(swap(nsm.clone(), n)));
    let mut won = 0;
    for task in tasks {
        won += task.await.unwrap();
    }
    assert!(won > 0);
}

/// Writes both sides in one sequence again and again, and looks at both; returns how often it could.
async fn swap(nsm: Arc<Nsm>, n: u8) -> usize {
    let side = |name: &str| {
        let mut m = manifest(n);
        m.id = Outside::default().object_id();
        m.fragments[0].file = Outside::default().fragment_id();
        (name.to_string(), Change::Put(m))
    };
    let mut won = 0;
    for _ in 0..20 {
        let found = nsm.get("ns", "left").await.unwrap();
        let condition = found.map_or(Condition::Absent, |found| Condition::HasCrc(found.crc));
        let asserts = [("left".to_string(), condition)];
        match nsm.apply("ns", &asserts, &[side("left"), side("right")]).await {
            Ok(_) => won += 1,
            Err(fault) => assert_eq!(fault.kind, Kind::AssertFailed),
        }
        // One transaction: both are of one moment.
        let both = |space: &Space| ["left", "right"].map(|name| keys::object(space.id, name));
        let found = nsm.find("ns", both).await.unwrap().unwrap();
        let crcs = found.values.map(|value| Manifest::decode(&value.unwrap()).unwrap().crc);
        assert_eq!(crcs[0], crcs[1]);
    }
    won
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_sequence_is_atomic_or_refused_by_name() {
    let (small, large) = (Server::start(&[]).await, Server::start(LARGE).await);
    let changes: Vec<(String, Change)> = (0..1000u32)
        .map(|n| {
            let mut m = manifest(1);
            m.id.0[..4].copy_from_slice(&n.to_be_bytes());
            m.fragments[0].file.0[..4].copy_from_slice(&n.to_be_bytes());
            (format!("{n:04}"), Change::Put(m))
        })
        .collect();
    for (server, fits) in [(&small, false), (&large, true)] {
        let nsm = over(vec![server.table("a").await]).await;
        nsm.create_namespace("ns", None).await.unwrap();
        let outcome = nsm.apply("ns", &[], &changes).await;
        let count = nsm.list("ns", "", "", 2000).await.unwrap().names.len();
        assert_eq!((outcome.is_ok(), count), (fits, if fits { 1000 } else { 0 }));
        if let Err(fault) = outcome {
            assert_eq!(fault.kind, Kind::Invalid);
            assert!(fault.message.contains("--max-txn-ops"), "{fault}");
        }
        assert_eq!(nsm.totals().await.unwrap().objects, count as u64);
        // A namespace is dropped in steps that fit.
        nsm.delete_namespace("ns").await.unwrap();
        while nsm.drop_some().await.unwrap() {}
        assert_eq!(nsm.removals(None, 2000).await.unwrap().len(), count);
        let all = nsm.removals(None, 2000).await.unwrap();
        nsm.removed(&all).await.unwrap();
        assert_eq!(nsm.removals(None, 2000).await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_etcd_is_killed() {
    let mut server = Server::start(&[]).await;
    let nsm = Arc::new(over(vec![server.table("a").await]).await);
    nsm.create_namespace("ns", None).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let write = |n: u8| {
        let (nsm, stop) = (nsm.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut acknowledged, mut unknown) = (Vec::new(), 0);
            for k in 0u32.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (name, mut m) = (format!("{n}/{k}"), manifest(n));
                m.id = Outside::default().object_id();
                m.fragments[0].file = Outside::default().fragment_id();
                match nsm.put_if_absent("ns", &name, &m).await {
                    Ok(Put::Created) => acknowledged.push((name, m)),
                    Ok(Put::Exists) => panic!("{name} was put by nobody else"),
                    Err(fault) => {
                        assert_eq!(fault.kind, Kind::Unavailable, "{fault}");
                        assert!(fault.message.contains("etcd://127.0.0.1"), "{fault}");
                        unknown += 1;
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            (acknowledged, unknown)
        })
    };
    let writers: Vec<_> = (0..4).map(write).collect();
    for _ in 0..3 {
        sleep(Duration::from_millis(700)).await;
        server.kill();
        sleep(Duration::from_millis(300)).await;
        server.restart();
        assert!(server.answers().await);
    }
    sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::SeqCst);
    let (mut count, mut unknowns) = (0, 0);
    for writer in writers {
        let (acknowledged, unknown) = writer.await.unwrap();
        count += acknowledged.len();
        unknowns += unknown;
        for (name, m) in acknowledged {
            assert_eq!(nsm.get("ns", &name).await.unwrap(), Some(m), "{name}");
        }
    }
    assert!(count > 10, "{count} puts, {unknowns} unknown");
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named_soon() {
    let kv = Etcd::connect("etcd://127.0.0.1:1/x".parse().unwrap()).await.unwrap();
    let fault = kv.get(vec![b"a".to_vec()]).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Unavailable);
    assert!(fault.message.contains("etcd://127.0.0.1:1/x"), "{fault}");
    // Known not to answer: told at once, without the patience of the first time.
    let begun = Instant::now();
    let mut commit = Commit::default();
    commit.put(b"a".to_vec(), []);
    assert_eq!(kv.commit(commit).await.unwrap_err().kind, Kind::Unavailable);
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn places_are_read_as_they_are_typed() {
    let place: EtcdPlace = "etcd://a:1,b:2/x/y?ca=/c&certificate=/d&key=/k&name=n".parse().unwrap();
    assert_eq!(place.endpoints, ["a:1", "b:2"]);
    assert_eq!((place.prefix.as_str(), place.to_string().as_str()), ("x/y", "etcd://a:1,b:2/x/y"));
    let tls = place.tls.unwrap();
    assert_eq!(
        (tls.ca, tls.key, tls.name),
        (Some("/c".into()), Some("/k".into()), Some("n".into()))
    );
    let place: EtcdPlace = "etcd://[::1]:2379".parse().unwrap();
    assert_eq!((place.prefix.as_str(), place.tls), ("alba", None));
    for (text, part) in [
        ("a:1", "etcd://HOST:PORT"),
        ("http://a:1", "etcd://HOST:PORT"),
        ("etcd://", "\"\" is not HOST:PORT"),
        ("etcd://a", "\"a\" is not HOST:PORT"),
        ("etcd://a:1,", "\"\" is not HOST:PORT"),
        ("etcd://a:99999", "\"a:99999\" is not HOST:PORT"),
        ("etcd://a:1/", "the prefix"),
        ("etcd://a:1/b c", "the prefix"),
        ("etcd://a:1/x?cert=/a", "go together"),
        ("etcd://a:1/x?password=1", "\"password=1\" is none of"),
        ("etcd://a:1/x?ca=", "\"ca=\" is none of"),
    ] {
        let fault = text.parse::<EtcdPlace>().unwrap_err();
        assert!(fault.message.contains(part), "{text}: {fault}");
    }
}
