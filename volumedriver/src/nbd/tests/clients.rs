//! The clients people use, as processes against volumes in memory. Skipped, and said so, where one is not installed.

use std::process::{Command, Output};

use super::ram::{Ram, Rams, Running, Speed};
use crate::nbd::Limits;

const SIZE: usize = 16 << 20;

fn server(speed: Speed) -> Running {
    Running::start(
        move || Rams::of([Ram::new("disk", SIZE, speed), Ram::read_only("frozen", SIZE)]),
        Limits::default(),
    )
}

/// Runs a client to its end; `None` where it is not installed.
fn client(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Standard output of a client that must succeed.
fn text(program: &str, args: &[&str]) -> Option<String> {
    let output = client(program, args)?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?} failed: {out}{err}");
    assert!(err.is_empty(), "{program} {args:?} complained: {err}");
    Some(out.into_owned())
}

#[test]
fn nbdinfo_shows_every_feature() {
    let server = server(Speed::AtOnce);
    let Some(json) = text("nbdinfo", &["--json", &server.uri("disk")]) else { return };
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(json["structured"], true);
    let export = &json["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["contexts"][0], "base:allocation");
    for can in ["df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero", "cache"] {
        assert_eq!(export[format!("can_{can}")], true, "can_{can}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_minimum"], 512);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 1 << 25);
}

#[test]
fn nbdinfo_lists_and_maps() {
    let server = server(Speed::AtOnce);
    let Some(list) = text("nbdinfo", &["--list", &server.uri("")]) else { return };
    assert!(list.contains("export=\"disk\":") && list.contains("export=\"frozen\":"), "{list}");
    let io = ["-f", "raw", "-c", "write -P 9 1M 64k", &server.uri("disk")];
    let Some(_) = text("qemu-io", &io) else { return };
    let map = text("nbdinfo", &["--map", &server.uri("disk")]).expect("installed");
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", "1048576", "3", "hole,zero"]);
    assert_eq!(lines[1], ["1048576", "65536", "0", "data"]);
    assert_eq!(lines[2], ["1114112", "15663104", "3", "hole,zero"]);
}

/// `qemu-io` of version 8.2 and later speaks extended headers.
#[test]
fn qemu_io_patterns() {
    for speed in [Speed::AtOnce, Speed::AlwaysSubmit] {
        let server = server(speed);
        let uri = server.uri("disk");
        let run = |commands: &[&str]| {
            let mut args = vec!["-f", "raw"];
            commands.iter().for_each(|command| args.extend(["-c", command]));
            args.push(&uri);
            let out = text("qemu-io", &args)?;
            assert!(!out.contains("failed") && !out.contains("error"), "{commands:?}: {out}");
            Some(out)
        };
        let Some(_) = run(&["write -P 1 0 1M", "write -P 2 511 511", "read -P 1 0 511"]) else {
            return;
        };
        run(&["read -P 2 511 511", "read -P 1 1022 8k", "write -f -P 3 8k 4k", "flush"]);
        run(&["discard 64k 64k", "read -P 0 64k 64k", "write -z 128k 64k", "write -z -u 192k 64k"]);
        run(&[
            "read -P 0 128k 128k",
            "write -z -n 256k 64k",
            "read -P 0 256k 64k",
            "read -P 1 320k 4k",
        ]);
        let refused =
            client("qemu-io", &["-r", "-f", "raw", "-c", "write 0 4k", &server.uri("frozen")]);
        let out = refused.expect("installed");
        assert!(!out.status.success() || !String::from_utf8_lossy(&out.stdout).contains("wrote"));
    }
}

#[test]
fn qemu_img_and_nbdcopy_carry_an_image_there_and_back() {
    let server = server(Speed::AtOnce);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (source, back) = (dir.path().join("source"), dir.path().join("back"));
    let mut image = vec![0u8; SIZE];
    for (n, byte) in image[1 << 20..5 << 20].iter_mut().enumerate() {
        *byte = (n * 31 % 253) as u8;
    }
    std::fs::write(&source, &image).expect("written");
    let (source, back) = (source.to_str().expect("UTF-8"), back.to_str().expect("UTF-8"));
    let uri = server.uri("disk");

    let args = ["--connections=4", "--requests=64", "--flush", source, &uri];
    if text("nbdcopy", &args).is_some() {
        text("nbdcopy", &[&uri, back]);
        assert!(std::fs::read(back).expect("read") == image, "nbdcopy brought back something else");
    }
    let args = ["convert", "-n", "-f", "raw", "-O", "raw", source, &uri];
    if text("qemu-img", &args).is_some() {
        text("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri]);
        let map =
            text("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).expect("installed");
        let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
        assert!(map.as_array().is_some_and(|extents| extents.len() >= 3), "{map}");
        assert_eq!(map[0]["zero"], true);
    }
}

/// What only a program against libnbd can ask for.
const LIBNBD: &str = r#"
import errno, nbd, sys
uri = sys.argv[1]
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:allocation-depth")
h.connect_uri(uri)
h.set_strict_mode(0)
g = nbd.NBD()
g.connect_uri(uri)
size = h.get_size()

# A flush on one connection covers what was acknowledged on the other.
h.pwrite(b"a" * 4096, 0)
g.flush()
assert g.pread(4096, 0) == b"a" * 4096
h.pwrite(b"b" * 4096, 4096, nbd.CMD_FLAG_FUA)
assert h.pread_structured(8192, 0, lambda *a: 0, nbd.CMD_FLAG_DF) == b"a" * 4096 + b"b" * 4096

# 256 parallel writes of 64 KiB, the first 8 MiB over and over.
buffers = [nbd.Buffer.from_bytearray(bytearray([n % 251]) * 65536) for n in range(256)]
cookies = [h.aio_pwrite(b, (n % 128) * 65536) for n, b in enumerate(buffers)]
while h.aio_in_flight() > 0:
    h.poll(-1)
for c in cookies:
    assert h.aio_command_completed(c)

h.zero(65536, 0, nbd.CMD_FLAG_NO_HOLE)
h.zero(65536, 65536, nbd.CMD_FLAG_FAST_ZERO)
try:
    h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)
    raise SystemExit("a fast zero of a sector")
except nbd.Error as e:
    assert e.errnum == errno.ENOTSUP, e
h.cache(65536, 0)
extents = {}
h.block_status(131072 + 4096, 0, lambda ctx, off, e, err: extents.update({ctx: e}) or 0)
assert extents["base:allocation"] == [65536, 2, 65536, 3, 4096, 0], extents
assert extents["qemu:allocation-depth"] == [65536, 1, 65536, 0, 4096, 1], extents
h.block_status(131072, 0, lambda ctx, off, e, err: extents.update({ctx: e}) or 0, nbd.CMD_FLAG_REQ_ONE)
assert extents["base:allocation"] == [65536, 2], extents

# Outside the export, in the protocol's own words; the connection stays usable.
def refused(want, call):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == want, (want, e)
        return
    raise SystemExit("accepted")
refused(errno.EINVAL, lambda: h.pread(4096, size))
refused(errno.EINVAL, lambda: h.trim(4096, size))
refused(errno.EINVAL, lambda: h.cache(4096, size))
refused(errno.ENOSPC, lambda: h.pwrite(b"x" * 4096, size))
refused(errno.ENOSPC, lambda: h.zero(4096, size))
refused(errno.EINVAL, lambda: h.pread(3, 1))
h.flush()
h.shutdown()
print("done")
"#;

#[test]
fn libnbd_from_python() {
    for speed in [Speed::AtOnce, Speed::AlwaysSubmit] {
        let server = server(speed);
        let python = "/usr/bin/python3";
        let Some(probe) = client(python, &["-c", "import nbd"]) else { return };
        if !probe.status.success() {
            eprintln!("skipped: no libnbd module for {python}");
            return;
        }
        let out = text(python, &["-c", LIBNBD, &server.uri("disk")]).expect("installed");
        assert_eq!(out.trim(), "done");
    }
}

#[test]
fn fio_verifies_what_it_wrote() {
    for speed in [Speed::AtOnce, Speed::AlwaysSubmit] {
        let server = server(speed);
        let uri = format!("--uri={}", server.uri("disk"));
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--iodepth=32",
            "--size=8M",
            "--fsync=64",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randrepeat=1",
            "--minimal",
        ];
        let dir = tempfile::tempdir().expect("a temporary directory");
        match Command::new("fio").args(args).current_dir(dir.path()).output() {
            Err(_) => eprintln!("skipped: fio is not installed"),
            Ok(output) => {
                let err = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "fio: {err}");
            }
        }
    }
}
