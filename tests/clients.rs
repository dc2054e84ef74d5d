//! Real NBD clients against a real daemon: libnbd's tools and library, nbd-client, QEMU's tools, fio; plain and over TLS.

use std::path::{Path, PathBuf};

use serde_json::Value;
use suite::daemon::{Daemon, SMALL, scratch};
use suite::soak;
use suite::tool::Tool;
use suite::witness::Random;

/// A daemon with one disk, named `disk`.
fn daemon(size: &str) -> Daemon {
    let daemon = Daemon::start(SMALL);
    daemon.create("disk", size);
    daemon
}

/// Deterministic bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(|| random.below(1 << 32).to_le_bytes())
        .flat_map(|b| [b[0], b[1], b[2], b[3]])
        .take(len)
        .collect()
}

/// A file of `mib` MiB: noise with a hole in its second quarter.
fn image(folder: &Path, mib: usize) -> PathBuf {
    let path = folder.join("image.raw");
    let mut bytes = noise(7, mib << 20);
    bytes[mib << 18..mib << 19].fill(0);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn qemu_io(uri: &str, commands: &[&str]) {
    let mut tool = Tool::new("qemu-io").args(&["-f", "raw"]);
    for command in commands {
        tool = tool.args(&["-c", command]);
    }
    let said = tool.arg(uri).outcome();
    // qemu-io reports a mismatch in its output, and not in every version by its status.
    let bad = ["Pattern verification failed", "failed:", "error"]
        .iter()
        .any(|word| said.out.contains(word));
    assert!(said.status.success() && !bad, "{said}");
}

fn python(check: &str) {
    let daemon = daemon("1GiB");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/libnbd.py");
    Tool::new("/usr/bin/python3").arg(script).args(&[check, &daemon.uri("disk")]).run();
}

#[test]
fn nbdinfo_shows_every_feature() {
    let daemon = daemon("5GiB");
    let uri = daemon.uri("disk");
    let info = Tool::new("nbdinfo").args(&["--json", &uri]).run();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 5u64 << 30);
    assert_eq!(export["is_read_only"], false);
    for can in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        assert_eq!(export[format!("can_{can}")], true, "can_{can} of {export}");
        let can = can.replace('_', "-");
        Tool::new("nbdinfo").args(&["--can", &can, &uri]).run();
    }
    let contexts = export["contexts"].as_array().unwrap();
    for context in ["base:allocation", "qemu:allocation-depth"] {
        assert!(contexts.iter().any(|named| named == context), "{context} of {export}");
    }
    assert_eq!(export["block_size_preferred"], 4096, "{export}");
    assert!(export["block_size_minimum"].as_u64().is_some_and(|least| least <= 512), "{export}");
    assert!(export["block_size_maximum"].as_u64().is_some_and(|most| most >= 32 << 20), "{export}");
}

#[test]
fn every_client_lists_the_disks() {
    let daemon = daemon("64MiB");
    daemon.create("a.second-one", "128MiB");
    let socket = daemon.socket();
    let uri = format!("nbd+unix://?socket={}", socket.display());
    let listed = [
        Tool::new("nbdinfo").args(&["--list", &uri]).run(),
        Tool::new("nbd-client").args(&["-l", "-u"]).arg(&socket).run(),
        Tool::new("qemu-nbd").args(&["-L", "-k"]).arg(&socket).run(),
    ];
    for text in listed {
        assert!(text.contains("disk") && text.contains("a.second-one"), "{text}");
    }
    let unknown = Tool::new("nbdinfo").arg(daemon.uri("nobody")).outcome();
    assert!(!unknown.status.success(), "{unknown}");
}

#[test]
fn the_map_shows_holes_after_trim() {
    let daemon = daemon("64MiB");
    let uri = daemon.uri("disk");
    qemu_io(&uri, &["write -P 1 0 16M", "discard 4M 8M", "flush"]);
    let map = Tool::new("nbdinfo").args(&["--map", "--json", &uri]).run();
    let map: Value = serde_json::from_str(&map).unwrap();
    let told: Vec<(u64, u64)> = joined(
        map.as_array()
            .unwrap()
            .iter()
            .map(|extent| (extent["length"].as_u64().unwrap(), extent["type"].as_u64().unwrap())),
    );
    assert_eq!(told, [(4 << 20, 0), (8 << 20, 3), (4 << 20, 0), (48 << 20, 3)]);
    let map = Tool::new("qemu-img").args(&["map", "--output=json", "-f", "raw", &uri]).run();
    let map: Value = serde_json::from_str(&map).unwrap();
    let told: Vec<(u64, bool)> = joined(
        map.as_array()
            .unwrap()
            .iter()
            .map(|extent| (extent["length"].as_u64().unwrap(), extent["data"].as_bool().unwrap())),
    );
    assert_eq!(told, [(4 << 20, true), (8 << 20, false), (4 << 20, true), (48 << 20, false)]);
}

/// Joins equal neighbours.
fn joined<T: PartialEq>(extents: impl Iterator<Item = (u64, T)>) -> Vec<(u64, T)> {
    let mut told: Vec<(u64, T)> = Vec::new();
    for (len, state) in extents {
        match told.last_mut() {
            Some((whole, last)) if *last == state => *whole += len,
            _ => told.push((len, state)),
        }
    }
    told
}

#[test]
fn qemu_io_patterns_unaligned_discard_zero_fua() {
    let daemon = daemon("256MiB");
    let uri = daemon.uri("disk");
    qemu_io(
        &uri,
        &[
            "write -P 0x11 0 1M",
            "write -f -P 0x22 512 512",
            "write -P 0x33 1001 511",
            "write -P 0x44 65535 3",
            "flush",
            "read -P 0x11 0 512",
            "read -P 0x22 512 489",
            "read -P 0x33 1001 511",
            "read -P 0x11 1512 64023",
            "read -P 0x44 65535 3",
            "read -P 0x11 65538 983038",
        ],
    );
    qemu_io(
        &uri,
        &[
            "discard 128k 64k",
            "read -P 0 128k 64k",
            "write -z 256k 64k",
            "read -P 0 256k 64k",
            "write -z -u 384k 64k",
            "read -P 0 384k 64k",
            "write -z -n -u 512k 64k",
            "read -P 0 512k 64k",
            "write -z 600001 4099",
            "read -P 0 600001 4099",
            "read -P 0x11 599000 1001",
            "read -P 0x11 604100 1000",
            "discard 700416 7680",
            "read -P 0x11 699000 1416",
            "read -P 0 700416 7680",
            "read -P 0x11 708096 1000",
        ],
    );
    // The same bytes after they left memory.
    daemon.flush_to_backend("disk");
    qemu_io(&uri, &["read -P 0x33 1001 511", "read -P 0x44 65535 3", "read -P 0 600001 4099"]);
    qemu_io(
        &uri,
        &["write -P 0x55 224M 32M", "read -P 0x55 224M 32M", "discard 0 256M", "read -P 0 0 256M"],
    );
}

#[test]
fn qemu_img_in_out_compare_and_overlay() {
    let daemon = daemon("256MiB");
    let uri = daemon.uri("disk");
    let folder = scratch();
    let raw = image(folder.path(), 64);
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let img = |arguments: &[&str]| Tool::new("qemu-img").args(arguments).run();
    let qcow2 = at("image.qcow2");
    img(&["convert", "-O", "qcow2", &raw.to_string_lossy(), &qcow2]);
    img(&["resize", &qcow2, "256M"]);
    img(&["convert", "-n", "--target-is-zero", "-W", "-m", "16", "-O", "raw", &qcow2, &uri]);
    img(&["compare", "-f", "qcow2", "-F", "raw", &qcow2, &uri]);
    img(&["convert", "-f", "raw", "-O", "qcow2", &uri, &at("out.qcow2")]);
    img(&["compare", "-f", "qcow2", "-F", "qcow2", &qcow2, &at("out.qcow2")]);
    img(&["bench", "-f", "raw", "-w", "-c", "2000", "-d", "32", "-s", "4096", "-o", "128M", &uri]);
    overlay(&uri, &at("overlay.qcow2"), &img);
}

/// A qcow2 overlay over the export, and its commit into it.
fn overlay(uri: &str, overlay: &str, img: &impl Fn(&[&str]) -> String) {
    img(&["create", "-f", "qcow2", "-b", uri, "-F", "raw", overlay]);
    let write = ["-f", "qcow2", "-c", "write -P 0x77 1M 2M", overlay];
    Tool::new("qemu-io").args(&write).run();
    img(&["commit", "-f", "qcow2", overlay]);
    qemu_io(uri, &["read -P 0x77 1M 2M"]);
}

#[test]
fn nbdcopy_in_and_out_with_four_connections() {
    let mib = if soak() { 4096 } else { 512 };
    let daemon = daemon(&format!("{mib}MiB"));
    let uri = daemon.uri("disk");
    let folder = scratch();
    let raw = image(folder.path(), mib);
    let back = folder.path().join("back.raw");
    let copy = || Tool::within(900, "nbdcopy").args(&["--connections=4", "--requests=64"]);
    copy().args(&["--destination-is-zero", "--flush"]).arg(&raw).arg(&uri).run();
    copy().arg(&uri).arg(&back).run();
    Tool::new("cmp").arg(&raw).arg(&back).run();
    Tool::new("qemu-img").args(&["compare", "-f", "raw", "-F", "raw"]).arg(&raw).arg(&uri).run();
    // Over what is there already, with no promise about it.
    copy().arg("--flush").arg(&raw).arg(&uri).run();
    Tool::new("qemu-img").args(&["compare", "-f", "raw", "-F", "raw"]).arg(&raw).arg(&uri).run();
}

#[test]
fn libnbd_flags() {
    python("flags");
}

#[test]
fn libnbd_two_connections() {
    python("two_connections");
}

#[test]
fn libnbd_parallel() {
    python("parallel");
}

#[test]
fn libnbd_large() {
    python("large");
}

#[test]
fn libnbd_structured() {
    python("structured");
}

#[test]
fn libnbd_status() {
    python("status");
}

#[test]
fn libnbd_outside() {
    python("outside");
}

#[test]
fn fio_verifies_mixed_sizes_with_four_jobs() {
    let daemon = daemon("1GiB");
    let (size, loops) = if soak() { ("256m", 8) } else { ("128m", 1) };
    let said = Tool::within(900, "fio")
        .args(&["--name=mixed", "--ioengine=nbd", "--thread", "--numjobs=4"])
        .args(&["--offset_increment=256m", "--rw=randwrite", "--bsrange=512-64k", "--fsync=64"])
        .args(&["--iodepth=16", "--serialize_overlap=1", "--verify=crc32c", "--verify_fatal=1"])
        .args(&["--verify_backlog=256", "--verify_state_save=0", "--group_reporting"])
        .args(&[format!("--size={size}"), format!("--loops={loops}")])
        .arg(format!("--uri={}", daemon.uri("disk")))
        .outcome();
    let all = format!("{}{}", said.out, said.err);
    let bad = ["verify: bad", "verify failed", "error="].iter().any(|word| all.contains(word));
    assert!(said.status.success() && !bad, "{said}");
}

/// Certificates in the layout libnbd and QEMU want: ca-cert.pem, server-*.pem, client-*.pem.
fn certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let write = |name: &str, pem: String| std::fs::write(folder.join(name), pem).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "authority of a test");
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    write("ca-cert.pem", ca_certificate.pem());
    let issuer = Issuer::new(ca, ca_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&format!("{name}-cert.pem"), certificate.pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }
}

fn tls_daemon(folder: &Path) -> Daemon {
    let at = |name: &str| folder.join(name).display().to_string();
    let tls = format!(
        "{SMALL}\n[nbd.tls]\nmode = \"required\"\ncertificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n",
        at("server-cert.pem"),
        at("server-key.pem"),
        at("ca-cert.pem"),
    );
    let daemon = Daemon::start(&tls);
    daemon.create("disk", "64MiB");
    daemon
}

#[test]
fn tls_is_required_and_checked_both_ways() {
    let folder = scratch();
    certificates(folder.path());
    let daemon = tls_daemon(folder.path());
    let pem = folder.path().display();
    let socket = daemon.socket();
    let socket = socket.display();
    let tls =
        format!("nbds+unix:///disk?socket={socket}&tls-certificates={pem}&tls-hostname=localhost");
    let info = Tool::new("nbdinfo").args(&["--json", &tls]).run();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["TLS"], true);
    assert_eq!(info["exports"][0]["can_fua"], true);
    qemu_over_tls(&format!("{pem}"), &format!("{socket}"));
    let plain = Tool::new("nbdinfo").arg(daemon.uri("disk")).outcome();
    assert!(!plain.status.success(), "a client without TLS got in: {plain}");
    // A certificate of another authority.
    let stranger = scratch();
    certificates(stranger.path());
    std::fs::copy(folder.path().join("ca-cert.pem"), stranger.path().join("ca-cert.pem")).unwrap();
    let stranger = tls.replace(&format!("{pem}"), &stranger.path().display().to_string());
    let refused = Tool::new("nbdinfo").arg(&stranger).outcome();
    assert!(!refused.status.success(), "a stranger got in: {refused}");
    // The daemon goes on.
    Tool::new("nbdinfo").arg(&tls).run();
}

fn qemu_over_tls(pem: &str, socket: &str) {
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={pem}");
    let disk = format!(
        "driver=nbd,server.type=unix,server.path={socket},export=disk,tls-creds=tls0,tls-hostname=localhost"
    );
    for command in ["write -P 0x5a 1M 8M", "read -P 0x5a 1M 8M"] {
        let said = Tool::new("qemu-io")
            .args(&["--object", &credentials, "--image-opts", "-c", command, &disk])
            .outcome();
        assert!(said.status.success() && !said.out.contains("failed"), "{said}");
    }
}
