//! S3 servers that others wrote: what the probe says of each, the conformance suite, and vDisks on them with a real daemon.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use suite::daemon::{Daemon, SMALL};
use suite::nbd::Connection;
use suite::servers::Server;
use suite::tool::Tool;
use suite::witness::Random;
use tokio::task::LocalSet;
use volumedriver::cluster::etcd::Etcd;
use volumedriver::cluster::{Created, Registry};
use volumedriver::config::BackendUrl;
use volumedriver::store::Place;
use volumedriver::store::candidate::Candidate;
use volumedriver::store::conformance::{conforms, conforms_on_files};
use volumedriver::store::fenced::Fenced;
use volumedriver::store::s3::{Parts, S3Store};

/// The store's runtime beside the caller's thread, as in the daemon.
fn service() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn on_local_thread<T>(work: impl Future<Output = T>) -> T {
    let local = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&local, work)
}

fn place(url: &str, keys: PathBuf) -> Place {
    Place { s3_credentials: Some(keys), ..Place::new(url.parse().unwrap()) }
}

fn open(service: &tokio::runtime::Runtime, server: &Server, prefix: &str) -> S3Store {
    let BackendUrl::S3(url) = server.s3_url(prefix).parse().unwrap() else { unreachable!() };
    service.block_on(S3Store::open(&url, Some(&server.keys()))).unwrap()
}

/// What the probe finds, without a registry or with one.
fn verdict(server: &Server, registry: Option<&Server>) -> Result<bool, String> {
    let service = service();
    let mut place = place(&server.s3_url("probed"), server.keys());
    place.registry = registry.map(|etcd| etcd.etcd_url("probed").parse().unwrap());
    place.fenced = &["manifest/"];
    let BackendUrl::S3(url) = place.url.clone() else { unreachable!() };
    let candidate = service.block_on(Candidate::open(&url, &place)).unwrap();
    let findings = on_local_thread(candidate.probe()).unwrap();
    eprintln!("{}: {}", place.url, findings.lies());
    findings.verdict().map(|fitness| fitness.parts).map_err(|fault| fault.to_string())
}

#[test]
fn moto_passes_the_probe_and_conforms() {
    let server = Server::moto();
    verdict(&server, None).unwrap();
    let service = service();
    let store = open(&service, &server, "conform").with_parts(Parts::Never);
    on_local_thread(conforms(&store));
}

#[test]
fn s3s_fs_is_refused_by_name_and_passes_with_the_registry() {
    let (server, etcd) = (Server::s3s_fs(), Server::etcd());
    let why = verdict(&server, None).unwrap_err();
    assert!(why.contains("racing writers"), "{why}");
    assert!(why.contains("[registry] url"), "does not say what to do: {why}");
    assert!(why.contains("s3://bucket/probed"), "does not name the store: {why}");
    verdict(&server, Some(&etcd)).unwrap();
    let service = service();
    let store = open(&service, &server, "conform").with_parts(Parts::Never);
    let url = etcd.etcd_url("conform").parse().unwrap();
    let registry = service.block_on(Etcd::connect(&url)).unwrap();
    // Every name is fenced here, so that everything the suite asks goes through the fence.
    on_local_thread(conforms_on_files(&Fenced::new(store, registry, &[""])));
}

#[test]
fn etcd_is_a_registry() {
    let etcd = Server::etcd();
    let service = service();
    let url = etcd.etcd_url("pool/a").parse().unwrap();
    let registry = service.block_on(Etcd::connect(&url)).unwrap();
    let value = Bytes::from_static;
    on_local_thread(async {
        assert_eq!(registry.get("k").await.unwrap(), None);
        assert_eq!(registry.create("k", value(b"1")).await.unwrap(), Created::Now);
        assert_eq!(registry.create("k", value(b"2")).await.unwrap(), Created::Before(value(b"1")));
        let hour = Duration::from_hours(1);
        assert!(!registry.retire("k", value(b"2"), value(b"3"), hour).await.unwrap());
        assert!(registry.retire("k", value(b"1"), value(b"3"), hour).await.unwrap());
        assert_eq!(registry.get("k").await.unwrap(), Some(value(b"3")));
        registry.remove("k", value(b"1")).await.unwrap();
        assert_eq!(registry.get("k").await.unwrap(), Some(value(b"3")));
        registry.remove("k", value(b"3")).await.unwrap();
        assert_eq!(registry.get("k").await.unwrap(), None);
        for key in ["a/1", "a/2", "ab"] {
            registry.create(key, value(b"x")).await.unwrap();
        }
        registry.delete_all("a/").await.unwrap();
        assert_eq!(registry.get("a/2").await.unwrap(), None);
        assert_eq!(registry.get("ab").await.unwrap(), Some(value(b"x")));
        registry.delete("ab").await.unwrap();
        registry.create("short", value(b"1")).await.unwrap();
        assert!(
            registry
                .retire("short", value(b"1"), value(b"2"), Duration::from_secs(1))
                .await
                .unwrap()
        );
        for _ in 0..600 {
            if registry.get("short").await.unwrap().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("what was retired stays");
    });
}

const DISK_BYTES: u64 = 64 << 20;
const BLOCK: u64 = 64 << 10;

/// Blocks all over the disk, each with its own bytes.
fn write_blocks(connection: &mut Connection, seed: u64) -> Vec<(u64, u8)> {
    let mut random = Random::new(seed);
    let blocks: Vec<(u64, u8)> = (0..200)
        .map(|_| (random.below(DISK_BYTES / BLOCK) * BLOCK, 1 + random.below(255) as u8))
        .collect();
    for (offset, byte) in &blocks {
        connection.write(*offset, &vec![*byte; BLOCK as usize]).unwrap();
    }
    connection.flush().unwrap();
    // The last write of a block counts.
    let last: std::collections::BTreeMap<u64, u8> = blocks.into_iter().collect();
    last.into_iter().collect()
}

fn check_blocks(daemon: &Daemon, blocks: &[(u64, u8)]) {
    let mut connection = Connection::open(&daemon.socket(), "disk").unwrap();
    for (offset, byte) in blocks {
        let got = connection.read(*offset, BLOCK as u32).unwrap();
        assert!(got.iter().all(|found| found == byte), "other bytes at {offset}");
    }
}

/// Writes, loses all local state, and finds everything again in the bucket; then once more after a kill.
fn a_vdisk_lives_in_the_bucket(config: &str) {
    let mut daemon = Daemon::start(config);
    daemon.create("disk", "64MiB");
    let blocks = write_blocks(&mut Connection::open(&daemon.socket(), "disk").unwrap(), 1);
    daemon.flush_to_backend("disk");
    daemon.kill9();
    daemon.argument("--discard-local");
    daemon.restart();
    check_blocks(&daemon, &blocks);
    let status = daemon.command(&["backend", "status"]).run();
    assert!(status.contains("reachable"), "{status}");
    daemon.drop_arguments();
    let blocks = write_blocks(&mut Connection::open(&daemon.socket(), "disk").unwrap(), 2);
    daemon.kill9();
    daemon.restart();
    check_blocks(&daemon, &blocks);
    daemon.command(&["vdisk", "delete", "disk"]).run();
    daemon.stop();
}

fn config(server: &Server, registry: Option<&Server>) -> String {
    let registry =
        registry.map(|etcd| format!("[registry]\nurl = \"{}\"\n", etcd.etcd_url("pool")));
    format!(
        "{SMALL}backend = \"{}\"\ns3_credentials = \"{}\"\n{}",
        server.s3_url("pool"),
        server.keys().display(),
        registry.unwrap_or_default()
    )
}

#[test]
fn a_vdisk_on_moto() {
    let server = Server::moto();
    a_vdisk_lives_in_the_bucket(&config(&server, None));
}

#[test]
fn a_vdisk_over_https_with_its_registry_over_tls() {
    let (server, etcd) = (Server::moto_over_https(), Server::etcd_over_tls());
    let good = config(&server, Some(&etcd));
    // One side of each is not trusted: a line that says what to do.
    let (trusted, untrusted) = (server.s3_url("pool"), server.s3_url_without_trust("pool"));
    let (known, unknown) = (etcd.etcd_url("pool"), etcd.etcd_url_without_tls("pool"));
    for (wrong, words) in [
        (good.replace(&trusted, &untrusted), "ca=FILE"),
        (good.replace(&known, &unknown), "registry etcd://"),
    ] {
        let mut refused = Daemon::prepare(&wrong);
        let begin = std::time::Instant::now();
        refused.try_start().expect_err("it starts without trust");
        eprintln!("refused after {:.1} s", begin.elapsed().as_secs_f64());
        let log = refused.log_tail();
        assert!(log.contains(words), "{words}: {log}");
    }
    a_vdisk_lives_in_the_bucket(&good);
}

#[test]
fn a_vdisk_on_s3s_fs_needs_the_registry() {
    let (server, etcd) = (Server::s3s_fs(), Server::etcd());
    let mut refused = Daemon::prepare(&config(&server, None));
    refused.try_start().expect_err("s3s-fs is used without a fence");
    let log = refused.log_tail();
    assert!(log.contains("racing writers") && log.contains("[registry] url"), "{log}");
    a_vdisk_lives_in_the_bucket(&config(&server, Some(&etcd)));
    // Empty directories it leaves behind by itself.
    let bucket = server.path().join("bucket");
    let left = Tool::new("find").arg(&bucket).args(&["-type", "f"]).run();
    assert_eq!(left, "", "objects are left in the bucket");
}
