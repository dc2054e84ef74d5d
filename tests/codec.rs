//! Compression and encryption of a real daemon's SCOs, as somebody sees them who has the backend's files.

use std::path::{Path, PathBuf};

use serde_json::Value;
use suite::daemon::{Daemon, SMALL};
use suite::nbd::Connection;

const DISK_BYTES: u64 = 16 << 20;
const CLUSTER: usize = 4096;
/// Clusters of a frame.
const FRAME: u64 = 8;
/// What a guest writes and nobody else may read.
const MARKER: &[u8] = b"THE GUEST'S SECRET, 40 bytes in length!!";
const KEY_A: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const KEY_B: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
/// Their ids, worked out from the format's description.
const ID_A: &str = "68db9567edbd5f1a";

fn configure(daemon: &Daemon, vpool: &str) {
    std::fs::write(daemon.path("config.toml"), format!("{SMALL}{vpool}\n")).unwrap();
}

fn reload(daemon: &Daemon) {
    daemon.command(&["config", "reload"]).run();
}

/// A cluster that says which one it is, with the marker all over it.
fn cluster(n: u64, round: u64) -> Vec<u8> {
    let line = [format!("{n:08} {round:08} ").as_bytes(), MARKER].concat();
    line.into_iter().cycle().take(CLUSTER).collect()
}

/// Clusters `range` of a round, in order.
fn write(daemon: &Daemon, range: std::ops::Range<u64>, round: u64) {
    let mut guest = Connection::open(&daemon.socket(), "disk").unwrap();
    for n in range.step_by(16) {
        let data: Vec<u8> = (n..n + 16).flat_map(|n| cluster(n, round)).collect();
        guest.write(n * CLUSTER as u64, &data).unwrap();
    }
    guest.flush().unwrap();
    guest.disconnect().unwrap();
    daemon.flush_to_backend("disk");
}

#[track_caller]
fn check(daemon: &Daemon, range: std::ops::Range<u64>, round: u64) {
    let mut guest = Connection::open(&daemon.socket(), "disk").unwrap();
    for n in range {
        let read = guest.read(n * CLUSTER as u64, CLUSTER as u32).unwrap();
        assert!(read == cluster(n, round), "cluster {n} of round {round}");
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// Files of the backend in which the marker, or the head of a cluster's line, can be read.
fn telling(daemon: &Daemon) -> usize {
    let tells = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        let has = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        has(&MARKER[..12]) || has(b"00000001 0000")
    };
    files(&daemon.data_dir().join("backend")).iter().filter(|path| tells(path)).count()
}

fn show(daemon: &Daemon) -> Value {
    let shown = daemon.command(&["--json", "vdisk", "show", "disk"]).run();
    serde_json::from_str(&shown).unwrap()
}

#[test]
fn a_history_of_codings_is_read_after_a_restart_and_from_the_backend_alone() {
    let mut daemon = Daemon::start(SMALL);
    daemon.create("disk", "16MiB");
    std::fs::write(daemon.path("a.key"), KEY_A).unwrap();
    write(&daemon, 0..256, 1);
    let key = format!("encryption_key = \"file:{}\"", daemon.path("a.key").display());
    let rounds = [
        "compression = \"lz4\"",
        "compression = \"zstd:3\"",
        "encryption = \"aes-256-gcm\"",
        "compression = \"zstd\"\nencryption = \"aes-256-gcm\"",
        "compression = \"none\"",
    ];
    // Each round writes a part over and a part anew.
    for (round, coding) in (2..).zip(rounds) {
        configure(&daemon, &format!("{coding}\n{key}"));
        reload(&daemon);
        write(&daemon, (round - 1) * 192..(round - 1) * 192 + 256, round);
    }
    let part =
        |round: u64| (round - 1) * 192..(round - 1) * 192 + if round == 6 { 256 } else { 192 };
    for again in 0..3 {
        for round in 1..=6 {
            check(&daemon, part(round), round);
        }
        if again == 0 {
            let shown = show(&daemon);
            assert_eq!(shown["settings"]["compression"], "none");
            assert_eq!(shown["key_ids"], serde_json::json!([ID_A]));
            let number = |field: &str| shown[field].as_u64().unwrap();
            assert_eq!(number("uploaded_data_bytes"), 6 << 20);
            let stored = number("uploaded_stored_bytes");
            assert!((3 << 20..4 << 20).contains(&stored), "{stored}");
        }
        daemon.stop();
        if again == 1 {
            daemon.argument("--discard-local");
        }
        daemon.restart();
    }
}

#[test]
fn the_backend_shows_nothing_and_only_the_keys_open_it() {
    let mut daemon = Daemon::prepare(SMALL);
    let (a, b) = (daemon.path("a.key"), daemon.path("b.key"));
    std::fs::write(&a, KEY_A).unwrap();
    std::fs::write(&b, KEY_B).unwrap();
    let with = |keys: &[&Path]| {
        let list: Vec<_> = keys.iter().map(|key| format!("\"file:{}\"", key.display())).collect();
        format!("encryption = \"aes-256-gcm\"\nencryption_key = [{}]", list.join(", "))
    };
    configure(&daemon, &with(&[&a]));
    daemon.restart();
    daemon.create("disk", "16MiB");
    write(&daemon, 0..512, 1);
    assert_eq!(telling(&daemon), 0, "the marker is in the backend's files");
    assert_eq!(show(&daemon)["settings"]["encryption"], "aes-256-gcm");

    // Rotation: the new key writes, the old one reads.
    configure(&daemon, &with(&[&b, &a]));
    reload(&daemon);
    write(&daemon, 256..512, 2);
    let keys = show(&daemon)["key_ids"].as_array().unwrap().len();
    assert_eq!(keys, 2);
    assert_eq!(telling(&daemon), 0);
    // An open vDisk's key cannot be taken away.
    configure(&daemon, &with(&[&b]));
    let said = daemon.command(&["config", "reload"]).outcome();
    assert!(!said.status.success() && said.err.contains(ID_A), "{said}");
    check(&daemon, 0..256, 1);

    // Without the old key it does not open, and says which it needs.
    daemon.stop();
    daemon.restart();
    let shown = show(&daemon);
    assert_eq!(shown["state"], "failed", "{shown}");
    let reason = shown["state_reason"].as_str().unwrap();
    assert!(reason.contains(ID_A) && reason.contains("encryption_key"), "{reason}");
    assert!(Connection::open(&daemon.socket(), "disk").is_err());
    let log = std::fs::read_to_string(daemon.path("log")).unwrap();
    assert!(!log.contains(&KEY_A[..16]) && !log.contains(&KEY_B[..16]), "a key is in the log");

    // With it again, without a restart, it does.
    configure(&daemon, &with(&[&b, &a]));
    reload(&daemon);
    let opened = |_: &usize| {
        show(&daemon)["state"] == "running" || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            false
        }
    };
    assert!((0..600).find(opened).is_some(), "{}", show(&daemon));
    check(&daemon, 0..256, 1);
    check(&daemon, 256..512, 2);

    // What is written without encryption tells: the search would have found it.
    configure(
        &daemon,
        &format!("encryption_key = [\"file:{}\", \"file:{}\"]", b.display(), a.display()),
    );
    reload(&daemon);
    write(&daemon, 0..256, 3);
    assert!(telling(&daemon) > 0);
}

#[test]
fn a_key_that_cannot_be_read_stops_the_start_by_name() {
    let mut daemon = Daemon::prepare(SMALL);
    configure(&daemon, "encryption = \"aes-256-gcm\"\nencryption_key = \"file:nowhere.key\"");
    daemon.try_start().unwrap_err();
    let log = daemon.log_tail();
    assert!(log.contains("nowhere.key: cannot be read"), "{log}");
}

/// The object with most data, and a byte in the middle of it flipped.
fn flip_a_byte(daemon: &Daemon) {
    let files = files(&daemon.data_dir().join("backend"));
    let largest = files.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    assert!(bytes.len() > 1 << 20, "{}: {} bytes", largest.display(), bytes.len());
    bytes[500_000] ^= 0x20;
    std::fs::write(largest, bytes).unwrap();
}

#[test]
fn a_flipped_byte_is_an_error_for_its_frame_alone() {
    let mut daemon = Daemon::prepare(SMALL);
    std::fs::write(daemon.path("a.key"), KEY_A).unwrap();
    let key = daemon.path("a.key");
    let coding =
        format!("encryption = \"aes-256-gcm\"\nencryption_key = \"file:{}\"", key.display());
    configure(&daemon, &coding);
    daemon.restart();
    daemon.create("disk", "16MiB");
    write(&daemon, 0..1024, 1);
    daemon.stop();
    flip_a_byte(&daemon);
    daemon.argument("--discard-local");
    daemon.restart();
    let mut guest = Connection::open(&daemon.socket(), "disk").unwrap();
    let mut lost = Vec::new();
    for n in 0..1024 {
        match guest.read(n * CLUSTER as u64, CLUSTER as u32) {
            Ok(read) => assert!(read == cluster(n, 1), "cluster {n}"),
            Err(_) => lost.push(n),
        }
    }
    // Written in order, so that a frame holds neighbours.
    let first = *lost.first().expect("the flipped byte is noticed");
    assert_eq!(lost, (first..first + FRAME).collect::<Vec<_>>());
    assert!(first % FRAME == 0 && first + FRAME <= DISK_BYTES / CLUSTER as u64);
    // Overwriting heals.
    let data: Vec<u8> = (first..first + FRAME).flat_map(|n| cluster(n, 2)).collect();
    guest.write(first * CLUSTER as u64, &data).unwrap();
    daemon.flush_to_backend("disk");
    check(&daemon, first..first + FRAME, 2);
}
