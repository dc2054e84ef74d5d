//! `alba bench` and what it is compared with, at work for a moment: each measures what it says, and leaves nothing.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;
use suite::alba::{Alba, Authority};
use suite::daemon::{program, scratch};
use suite::servers::Server;
use suite::tool::Tool;

const PLAN: &[&str] = &[
    "--size",
    "1MiB,300KiB",
    "--range",
    "4KiB,64KiB",
    "--in-flight",
    "1,3",
    "--seconds",
    "0",
    "--most",
    "1MiB",
];
/// 2 sizes put and got, 2 ranges; each with 2 numbers of operations in flight.
const LOADS: usize = 12;

fn check(said: &str) {
    let said: Value = serde_json::from_str(said).unwrap();
    let results = said["results"].as_array().unwrap();
    assert_eq!(results.len(), LOADS, "{said:#}");
    for result in results {
        assert_eq!(result["count"], result["in_flight"], "{result}");
        assert!(result["mib_per_second"].as_f64().unwrap() > 0.0, "{result}");
        assert!(result["p50_ms"].as_f64() <= result["p99_ms"].as_f64(), "{result}");
    }
    let ranges = results.iter().filter(|result| result["operation"] == "range");
    assert!(ranges.clone().all(|result| result["object_bytes"] == 1 << 20));
    assert_eq!(ranges.count(), 4);
}

fn bench(arguments: &[&str]) -> Tool {
    Tool::new(program("alba")).arg("bench").args(PLAN).args(arguments)
}

#[test]
fn a_server_is_measured_and_left_as_it_was() {
    let folder = scratch();
    let disks: Vec<String> =
        (0..3).map(|n| folder.path().join(format!("disk{n}")).display().to_string()).collect();
    let mut arguments = Vec::new();
    disks.iter().for_each(|disk| arguments.extend(["--osd", disk]));
    let server = Alba::start(folder.path(), "serve", "server", &arguments);
    check(&bench(&["--connect", &server.address, "--policy", "2,1,3,3", "--json"]).run());
    let left: Value =
        serde_json::from_str(&server.command(&["namespace", "list", "--json"]).run()).unwrap();
    assert_eq!(left["namespaces"].as_array().unwrap().len(), 0, "{left}");
    let presets = server.command(&["preset", "list"]).run();
    assert!(!presets.contains("bench"), "{presets}");
    let table = bench(&["--connect", &server.address, "--preset", "default"]).run();
    assert_eq!(table.lines().count(), LOADS + 1, "{table}");
    let said = bench(&["--connect", &server.address, "--preset", "none"]).outcome();
    assert!(!said.status.success() && said.err.contains("\"none\""), "{said}");
}

#[test]
fn a_server_behind_tls_is_measured() {
    let folder = scratch();
    let authority = Authority::new(&folder.path().join("tls"));
    authority.sign("server", "127.0.0.1", 2100);
    authority.sign("client", "127.0.0.1", 2100);
    let options = authority.options("server");
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = Alba::start(folder.path(), "serve", "server", &options);
    let client = authority.options("client");
    check(&bench(&["--connect", &server.address, "--json"]).args(&client).run());
    let said = bench(&["--connect", &server.address]).outcome();
    assert!(!said.status.success(), "{said}");
}

#[test]
fn an_embedded_backend_is_measured_and_objects_of_one_run_are_read_by_the_next() {
    let folder = scratch();
    let data = folder.path().join("data").display().to_string();
    check(&bench(&["--data-dir", &data, "--json"]).run());
    let kept = ["--data-dir", &data, "--json", "--namespace", "kept"];
    check(&bench(&kept).run());
    check(&bench(&kept).run());
    let read = ["bench", "--only", "get", "--size", "1MiB", "--cache", "warm", "--seconds", "0"];
    let read = Tool::new(program("alba")).args(&read).args(&kept).run();
    assert_eq!(
        serde_json::from_str::<Value>(&read).unwrap()["results"].as_array().unwrap().len(),
        3
    );
    // One process at a time.
    let osd = folder.path().join("data/osd/objects");
    let files = || walk(&osd);
    assert_eq!(files(), 6, "the last puts of both sizes stay");
}

fn walk(folder: &std::path::Path) -> usize {
    let shards = std::fs::read_dir(folder).unwrap().flatten();
    shards.map(|shard| std::fs::read_dir(shard.path()).unwrap().count()).sum()
}

/// A `peers serve`.
struct Serving(Child, String);

impl Serving {
    fn start(kind: &str, address: &str) -> Self {
        let mut command =
            Tool::new(program("peers")).args(&["serve", kind, address]).into_command();
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("ready ").unwrap().to_string();
        Self(child, address)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        suite::tool::signal(self.0.id(), rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

fn peers(arguments: &[&str]) -> String {
    Tool::new(program("peers")).args(arguments).args(PLAN).run()
}

#[test]
fn the_yardsticks_measure_the_same_loads() {
    let folder = scratch();
    let socket = format!("unix:{}", folder.path().join("socket").display());
    for address in ["127.0.0.1:0", &socket] {
        let raw = Serving::start("raw", address);
        check(&peers(&["raw", &raw.1]));
    }
    let grpc = Serving::start("grpc", "127.0.0.1:0");
    check(&bench(&["--connect", &grpc.1, "--json"]).run());
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "[default]\naws_access_key_id = a\naws_secret_access_key = b\n").unwrap();
    let s3 = Serving::start("s3", "127.0.0.1:0");
    let url = format!("s3://bucket/prefix?endpoint=http://{}", s3.1);
    check(&peers(&["s3", &url, &keys.display().to_string()]));
}

#[test]
fn a_bucket_is_measured() {
    let server = Server::s3s_fs();
    let sync = server.path().display().to_string();
    let keys = server.keys().display().to_string();
    check(&peers(&["s3", &server.s3_url("bench"), &keys, "--sync", &sync]));
}
