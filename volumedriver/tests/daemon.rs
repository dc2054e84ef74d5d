//! The daemon as a process: what it says, what it refuses, how it ends.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long the daemon may take to start or to end on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const SMALL: &str = "[buffer]\ncapacity_bytes = \"128MiB\"\nsegment_bytes = \"8MiB\"\n\
                     memory_bytes = \"32MiB\"\n[vpool]\nsco_size_bytes = \"1MiB\"\n";

struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(room.config(), SMALL).unwrap();
        room
    }
    fn config(&self) -> PathBuf {
        self.dir.path().join("vd.toml")
    }
    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
    fn serve(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volumedriver"));
        command.arg("serve").arg("--data-dir").arg(self.data()).arg("--config").arg(self.config());
        command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
    /// Starts the daemon and waits until it is ready.
    fn start(&self, more: &[&str]) -> Daemon {
        let mut child = self.serve(more).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if !line.starts_with("ready ") {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("{line:?} {:?}\n{said}", child.wait());
        }
        Daemon { child, ready: line }
    }
    fn ask(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volumedriver"));
        command.arg("--json").arg("--data-dir").arg(self.data()).args(args.split(' '));
        command.output().unwrap()
    }
    fn json(&self, args: &str) -> Value {
        let output = self.ask(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

struct Daemon {
    child: Child,
    ready: String,
}

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.end().code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn it_serves_says_where_and_ends_cleanly() {
    let room = Room::new();
    let mut daemon = room.start(&["--nbd", "127.0.0.1:0", "--drain-timeout", "5"]);
    let port: u16 = daemon.ready.trim().rsplit(':').next().unwrap().parse().unwrap();
    assert_ne!(port, 0, "{}", daemon.ready);
    room.json("vdisk create disk --size 1GiB");
    let status = room.json("status");
    assert_eq!(status["pid"], daemon.child.id());
    assert_eq!(status["vdisks"][0]["state"], "running");
    assert_eq!(status["buffer_capacity_bytes"], 128 << 20);
    assert_eq!(room.json("backend status")["reachable"], true);
    let metrics = room.json("metrics");
    let metrics = metrics["text"].as_str().unwrap();
    assert!(metrics.contains("volumedriver_buffer_capacity_bytes 134217728"), "{metrics}");
    let layout = room.json("inspect layout");
    assert_eq!(layout["data_dir"]["identity"]["node"], status["node_id"]);
    daemon.stop();
    assert!(!room.ask("status").status.success());

    // The backend alone tells the whole story, and it comes back.
    let found = room.json("inspect vdisk disk");
    assert_eq!(found["shape"]["size_bytes"], 1 << 30);
    assert_eq!(room.json("inspect map disk")["mapped_cluster_count"], 0);
    let mut again = room.start(&[]);
    assert_eq!(room.json("vdisk list")[0]["name"], "disk");
    assert_eq!(room.json("status")["node_id"], status["node_id"]);
    again.stop();
}

#[test]
fn the_second_daemon_is_refused_and_the_first_goes_on() {
    let room = Room::new();
    let mut daemon = room.start(&[]);
    let output = room.serve(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&room.data().display().to_string()), "{said}");
    assert!(said.contains(&daemon.child.id().to_string()), "{said}");
    room.json("status");
    // A killed one leaves nothing in the way.
    daemon.child.kill().unwrap();
    daemon.end();
    room.start(&[]).stop();
}

#[test]
fn a_hangup_reads_the_configuration_again() {
    let room = Room::new();
    let mut daemon = room.start(&[]);
    room.json("vdisk create disk --size 64MiB");
    std::fs::write(room.config(), format!("{SMALL}ack = \"buffer\"\n")).unwrap();
    daemon.signal(Signal::HUP);
    let deadline = Instant::now() + PATIENCE;
    while room.json("vdisk show disk")["settings"]["ack"] != "buffer" {
        assert!(Instant::now() < deadline, "not reloaded");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(room.config(), "[vpool]\nack = \"never\"\n").unwrap();
    daemon.signal(Signal::HUP);
    let output = room.ask("config reload");
    assert!(String::from_utf8(output.stderr).unwrap().contains("ack"));
    assert_eq!(room.json("vdisk show disk")["settings"]["ack"], "buffer", "as it was");
    daemon.stop();
}

#[test]
fn discarding_the_local_state_keeps_what_is_on_the_backend() {
    let room = Room::new();
    let mut daemon = room.start(&[]);
    room.json("vdisk create disk --size 64MiB");
    let before = room.json("status")["node_id"].clone();
    daemon.stop();
    std::fs::remove_dir_all(room.data().join("buffer")).unwrap();
    let output = room.serve(&[]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("--discard-local"), "{said}");
    let mut daemon = room.start(&["--discard-local"]);
    assert_ne!(room.json("status")["node_id"], before);
    assert_eq!(room.json("vdisk list")[0]["name"], "disk");
    daemon.stop();
}

#[test]
fn a_metrics_address_that_is_taken_is_named() {
    let room = Room::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    std::fs::write(room.config(), format!("[metrics]\nlisten = \"{address}\"\n{SMALL}")).unwrap();
    // Several times: the threads that were started must be gone before the process is.
    for _ in 0..10 {
        let output = room.serve(&[]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{:?} {said}", output.status);
        assert_eq!(output.stdout, b"", "not ready");
        assert!(said.contains(&format!("[metrics] listen = {address}")), "{said}");
    }
}

#[test]
fn an_nbd_address_that_is_taken_is_named() {
    let room = Room::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for _ in 0..10 {
        let output = room.serve(&["--nbd", &address]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{:?} {said}", output.status);
        assert!(said.contains(&address), "{said}");
    }
}
