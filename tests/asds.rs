//! An object backend of processes: ASDs, a server, a volumedriver on top; killed, wiped, damaged by hand, and over TLS.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use backend_alba::preset::Raw;
use backend_alba::{Alba as Backend, Config};
use serde_json::Value;
use suite::alba::{Alba, Authority};
use suite::daemon::{Daemon, SMALL, scratch};
use suite::nbd::Connection;
use suite::tool::{Said, Tool};

/// So that the server has a preset of one's own from the start.
fn prepare(data_dir: &Path, policies: &[&str]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = Config { only_claimed: true, ..Config::new(data_dir) };
        let backend = Backend::open(config).await.unwrap();
        let raw = Raw { fragment_bytes: 65_536, ..Raw::of(policies) };
        backend.put_preset("test", raw).await.unwrap();
        backend.set_default_preset("test").await.unwrap();
        backend.close().await;
    });
}

/// A server without OSDs whose objects follow these policies.
fn server(folder: &Path, policies: &[&str], options: &[&str]) -> Alba {
    prepare(&folder.join("server"), policies);
    let mut arguments = vec!["--no-osd"];
    arguments.extend(options);
    Alba::start(folder, "serve", "server", &arguments)
}

fn asd(folder: &Path, n: usize, options: &[&str]) -> Alba {
    let node = format!("n{n}");
    let mut arguments = vec!["--node", &node];
    arguments.extend(options);
    Alba::start(folder, "asd", &format!("disk{n}"), &arguments)
}

fn claim(server: &Alba, disk: &Alba) -> String {
    let said = server.command(&["osd", "claim", &disk.address, "--json"]).run();
    let said: Value = serde_json::from_str(&said).unwrap();
    said["osd_id"].as_str().unwrap().to_string()
}

fn osds(server: &Alba) -> Vec<Value> {
    let said: Value =
        serde_json::from_str(&server.command(&["osd", "list", "--json"]).run()).unwrap();
    said["osds"].as_array().unwrap().clone()
}

/// Writes 24 MiB and reads them again, or only reads what an earlier run has written.
fn fio(daemon: &Daemon, more: &[&str]) -> Tool {
    Tool::within(120, "fio")
        .args(&["--name=volume", "--ioengine=nbd", "--thread", "--rw=randwrite", "--size=24m"])
        .args(&["--bsrange=4k-64k", "--fsync=32", "--iodepth=8", "--randseed=7"])
        .args(&["--serialize_overlap=1", "--verify=crc32c", "--verify_fatal=1"])
        .args(&["--verify_state_save=0"])
        .args(more)
        .arg(format!("--uri={}", daemon.uri("disk")))
}

fn check(said: &Said) {
    let all = format!("{}{}", said.out, said.err);
    let bad = ["verify: bad", "verify failed", "error="].iter().any(|word| all.contains(word));
    assert!(said.status.success() && !bad, "{said}");
}

/// Every object has all its fragments and survives what its policy promises: two more OSDs.
fn is_full(server: &Alba) -> Result<(), String> {
    let said = server.command(&["safety", "--json"]).run();
    let safety: Value = serde_json::from_str(&said).unwrap();
    let buckets = safety["buckets"].as_array().unwrap();
    let is_full = |bucket: &Value| {
        bucket["fragments"] == bucket["full_fragments"] && bucket["survives_osds"] == 2
    };
    if !buckets.is_empty() && buckets.iter().all(is_full) { Ok(()) } else { Err(said) }
}

fn full_by_itself(server: &Alba) {
    let begin = Instant::now();
    while let Err(said) = is_full(server) {
        assert!(begin.elapsed() < Duration::from_secs(60), "not safe after a minute: {said}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// `false` when it is gone.
fn flip_a_bit(file: &Path) -> bool {
    let Ok(file) = std::fs::File::options().read(true).write(true).open(file) else { return false };
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], 100).unwrap();
    true
}

/// Reads every fragment; how many are missing or damaged.
fn damaged(server: &Alba) -> u64 {
    let listed = server.command(&["namespace", "list"]).run();
    let verify = |namespace: &str| {
        let said = server.command(&["verify", namespace, "--wait", "--json"]).run();
        let said: Value = serde_json::from_str(&said).unwrap();
        let items = said["items"].as_array().unwrap();
        let count =
            |item: &Value| item["missing"].as_u64().unwrap() + item["mismatched"].as_u64().unwrap();
        items.iter().map(count).sum::<u64>()
    };
    listed.lines().map(verify).sum()
}

#[test]
fn six_asds_lose_two_one_is_wiped_and_another_damaged_by_hand() {
    let folder = scratch();
    let server = server(folder.path(), &["4,2,4,1"], &[]);
    let mut disks: Vec<Alba> = (0..6).map(|n| asd(folder.path(), n, &[])).collect();
    let ids: Vec<String> = disks.iter().map(|disk| claim(&server, disk)).collect();
    let quick = ["auto_repair_timeout_ms=2000", "lease_ms=2000", "tour_interval_ms=2000"];
    server.command(&["maintenance", "set", "scrub_interval_ms=4000"]).args(&quick).run();
    let url = format!("[vpool]\nbackend = \"alba://{}/pool\"", server.address);
    let mut daemon = Daemon::start(&SMALL.replace("[vpool]", &url));
    daemon.create("disk", "64MiB");
    check(&fio(&daemon, &[]).outcome());
    daemon.flush_to_backend("disk");
    let early = disks[2].fragments();
    assert!(early.len() > 20, "{} fragments", early.len());
    // Written over again while two are killed; fio reads everything afterwards.
    let again = fio(&daemon, &["--rate=6m"]);
    let work = thread::spawn(move || again.outcome());
    thread::sleep(Duration::from_millis(1000));
    disks[0].kill9();
    thread::sleep(Duration::from_millis(500));
    disks[1].kill9();
    check(&work.join().unwrap());
    daemon.flush_to_backend("disk");
    let failing = osds(&server).iter().filter(|osd| osd["state"] == "failing").count();
    assert_eq!(failing, 2, "{:?}", osds(&server));
    let short = is_full(&server).unwrap_err();
    // One comes back as it was, one empty: another OSD, which is claimed anew.
    disks[0].restart();
    std::fs::remove_dir_all(&disks[1].data_dir).unwrap();
    disks[1].restart();
    let new = claim(&server, &disks[1]);
    assert!(!ids.contains(&new));
    // What two failures can be survived of is damaged on a third.
    let changed: Vec<&PathBuf> = early.iter().filter(|file| flip_a_bit(file)).collect();
    assert!(changed.len() > 10, "{} fragments damaged", changed.len());
    daemon.kill9();
    daemon.argument("--discard-local");
    daemon.restart();
    check(&fio(&daemon, &["--verify_only=1"]).outcome());
    // Goes on with everything.
    check(&fio(&daemon, &[]).outcome());
    daemon.flush_to_backend("disk");
    // Nobody asks for anything: what was lost, wiped and damaged is made anew.
    full_by_itself(&server);
    let begin = Instant::now();
    while let Some(file) = changed.iter().find(|file| file.exists()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{file:?} stays as it is");
        thread::sleep(Duration::from_millis(200));
    }
    full_by_itself(&server);
    assert_eq!(damaged(&server), 0, "before it was {short}");
    for disk in &mut disks {
        assert!(disk.terminate().success(), "{}", disk.log_tail());
    }
}

#[test]
fn an_osd_is_claimed_once_disabled_decommissioned_and_purged() {
    let folder = scratch();
    let one = server(folder.path(), &["1,0,1,1"], &[]);
    let other_folder = scratch();
    let other = server(other_folder.path(), &["1,0,1,1"], &[]);
    let disk = asd(folder.path(), 0, &["--label", "ssd"]);
    let id = claim(&one, &disk);
    let refused = other.command(&["osd", "claim", &disk.address]).outcome();
    assert!(!refused.status.success() && refused.err.contains("belongs to backend"), "{refused}");
    assert_eq!(osds(&one)[0]["labels"][0], "ssd");
    for (verb, role) in
        [("disable", "disabled"), ("enable", "active"), ("decommission", "decommissioning")]
    {
        one.command(&["osd", verb, &id]).run();
        assert_eq!(osds(&one)[0]["role"], role);
    }
    one.command(&["osd", "purge", &id]).run();
    assert_eq!(osds(&one).len(), 0);
    assert_eq!(claim(&other, &disk), id);
    let busy = Tool::within(30, suite::daemon::program("alba"))
        .args(&["asd", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&disk.data_dir)
        .outcome();
    assert!(!busy.status.success() && busy.err.contains("another process"), "{busy}");
}

#[test]
fn over_tls_all_parts_show_certificates_and_say_what_is_wrong() {
    let folder = scratch();
    let ours = Authority::new(&folder.path().join("ours"));
    ours.sign("all", "127.0.0.1", 2200);
    ours.sign("old", "127.0.0.1", 2001);
    ours.sign("elsewhere", "elsewhere.example", 2200);
    let theirs = Authority::new(&folder.path().join("theirs"));
    theirs.sign("all", "127.0.0.1", 2200);
    let all = ours.options("all");
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let server = server(folder.path(), &["1,0,1,1"], &all);
    let disk = asd(folder.path(), 0, &all);
    let claim =
        |options: &[&str]| server.command(&["osd", "claim", &disk.address]).args(options).outcome();
    let claimed = claim(&all);
    assert!(claimed.status.success(), "{claimed}");
    let pem = |name: &str| folder.path().join("ours").join(name).display().to_string();
    let (certificate, key, ca) = (pem("all.pem"), pem("all-key.pem"), pem("ca.pem"));
    let url = format!(
        "[vpool]\nbackend = \"alba://{}/pool?certificate={certificate}&key={key}&ca={ca}\"",
        server.address
    );
    let mut daemon = Daemon::start(&SMALL.replace("[vpool]", &url));
    daemon.create("disk", "16MiB");
    Connection::open(&daemon.socket(), "disk").unwrap().write(4096, &[7; 65536]).unwrap();
    daemon.flush_to_backend("disk");
    daemon.kill9();
    daemon.argument("--discard-local");
    daemon.restart();
    let read = Connection::open(&daemon.socket(), "disk").unwrap().read(4096, 65536).unwrap();
    assert_eq!(read, [7; 65536]);
    let stranger = theirs.options("all");
    let stranger: Vec<&str> = stranger.iter().map(String::as_str).collect();
    for (options, hint) in [(&[][..], "give the TLS options"), (&stranger[..], "authority")] {
        let refused = claim(options);
        assert!(!refused.status.success() && refused.err.contains(hint), "{hint}: {refused}");
    }
    for (name, hint) in [("old", "expired"), ("elsewhere", "another name")] {
        let options = ours.options(name);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let bad = asd(folder.path(), if name == "old" { 1 } else { 2 }, &options);
        let refused = server.command(&["osd", "claim", &bad.address]).args(&all).outcome();
        assert!(!refused.status.success() && refused.err.contains(hint), "{hint}: {refused}");
    }
    let plain = asd(folder.path(), 3, &[]);
    let refused = server.command(&["osd", "claim", &plain.address]).args(&all).outcome();
    assert!(!refused.status.success() && refused.err.contains("does not speak TLS"), "{refused}");
    for (cert, key, what) in [("all", "old", "all.pem"), ("ca", "missing", "missing-key.pem")] {
        let mut options = ours.options(cert);
        options[3] = options[3].replace(&format!("{cert}-key"), &format!("{key}-key"));
        let wrong = server.command(&["osd", "list"]).args(&options).outcome();
        assert!(!wrong.status.success() && wrong.err.contains(what), "{wrong}");
    }
}
