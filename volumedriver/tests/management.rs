//! The command line against the management service over a real unix socket, with an engine that only remembers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc;
use volumedriver::admin::door::{Command, door};
use volumedriver::admin::live::{LiveConfig, Source};
use volumedriver::admin::server::{self, Service};
use volumedriver::admin::{
    Attached, BackendInfo, CacheDisk, CacheInfo, CreateSpec, EngineStatus, ProbeCheck, ProbeInfo,
    SpaceInfo, VdiskInfo, VdiskState, socket,
};
use volumedriver::config::Overrides;
use volumedriver::metrics::{CacheCounts, Metrics, TierCounts};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::{ByteCount, Epoch, ManifestNo, NodeId, Seq, VolumeId};

/// Answers from memory. A vDisk whose name begins with "busy" has a client on it.
#[derive(Default)]
struct Memory {
    vdisks: BTreeMap<String, VdiskInfo>,
    reloads: usize,
}

impl Memory {
    async fn answer(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            self.answer_one(command);
        }
    }

    fn answer_one(&mut self, command: Command) {
        // Whoever asked may be gone.
        match command {
            Command::Create(spec, answer) => drop(answer.send(self.create(spec))),
            Command::List(answer) => drop(answer.send(Ok(self.vdisks.values().cloned().collect()))),
            Command::Show(name, answer)
            | Command::Flush(name, answer)
            | Command::AcceptLoss(name, _, answer) => {
                drop(answer.send(self.find(&name).cloned()));
            }
            Command::Resize(name, size, answer) => {
                let resized = self.find(&name).map(|vdisk| {
                    vdisk.size = size;
                    vdisk.clone()
                });
                drop(answer.send(resized));
            }
            Command::Delete(name, attached, answer) => {
                drop(answer.send(self.delete(&name, attached)))
            }
            Command::Status(answer) => drop(answer.send(Ok(EngineStatus {
                io_engine: "psync",
                shards: 1,
                buffer_capacity: ByteCount(1 << 30),
                buffer_used: ByteCount(3 << 20),
                cache: CacheInfo {
                    counts: CacheCounts {
                        ram: TierCounts {
                            used_bytes: 1 << 20,
                            capacity_bytes: 2 << 20,
                            hits: 7,
                            ..TierCounts::default()
                        },
                        ssd_mismatches: 5,
                        ..CacheCounts::default()
                    },
                    disk: CacheDisk::Offline("it is broken".to_owned()),
                },
                vdisks: self.vdisks.values().cloned().collect(),
            }))),
            Command::Backend(answer) => drop(answer.send(Ok(BackendInfo {
                url: "embedded:/x".to_owned(),
                namespaces: match self.vdisks.contains_key("broken") {
                    true => Err("no answer".to_owned()),
                    false => Ok(self.vdisks.len() as u64),
                },
                latency: Duration::from_micros(1234),
            }))),
            Command::Probe(answer) => drop(answer.send(Ok(self.probe()))),
            Command::Reload(_, answer) => {
                self.reloads += 1;
                drop(answer.send(Ok(())));
            }
        }
    }

    fn probe(&self) -> ProbeInfo {
        let check = |what: &str, lie: Option<&str>| ProbeCheck {
            what: what.to_owned(),
            lie: lie.map(str::to_owned),
        };
        let broken = self.vdisks.contains_key("broken");
        ProbeInfo {
            checks: vec![check("lists", None), check("parts", Some("both win"))],
            refusal: broken.then(|| "backend x is refused: it overwrites".to_owned()),
        }
    }

    fn find(&mut self, name: &str) -> Result<&mut VdiskInfo> {
        let missing = || Fault::invalid(format!("{name}: there is no such vDisk"));
        self.vdisks.get_mut(name).ok_or_else(missing)
    }

    fn create(&mut self, spec: CreateSpec) -> Result<VdiskInfo> {
        if self.vdisks.contains_key(&spec.name) {
            return Err(Fault::invalid(format!("{}: exists", spec.name)));
        }
        let info = VdiskInfo {
            name: spec.name.clone(),
            id: VolumeId([0xab; 16]),
            size: spec.size,
            cluster_size: spec.cluster_size,
            settings: spec.settings,
            state: VdiskState::Running,
            epoch: Epoch(1),
            manifest: ManifestNo(1),
            last_seq: Seq(0),
            published_seq: Seq(0),
            backlog: ByteCount(1 << 20),
            upload_lag: Duration::from_millis(1500),
            connections: u64::from(spec.name.starts_with("busy")),
            space: SpaceInfo { data: ByteCount(3 << 20), stored: ByteCount(1 << 20) },
            keys: vec!["00112233445566ff".to_owned()],
        };
        self.vdisks.insert(spec.name, info.clone());
        Ok(info)
    }

    fn delete(&mut self, name: &str, attached: Attached) -> Result<()> {
        if self.find(name)?.connections > 0 && attached == Attached::Refuse {
            return Err(Fault::invalid(format!("{name}: a client is attached")));
        }
        self.vdisks.remove(name);
        Ok(())
    }
}

/// A daemon's management, in this process.
struct Daemon {
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vd.toml"), "[vpool]\nreadahead_bytes = 0\n").unwrap();
        let source = Source {
            file: Some(dir.path().join("vd.toml")),
            data_dir: dir.path().to_owned(),
            overrides: Overrides::default(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (engine, commands) = door();
        runtime.spawn(Memory::default().answer(commands));
        let config = Arc::new(source.load().unwrap());
        let metrics = Arc::new(Metrics::new());
        metrics.volume("measured").set_state("running");
        let service = Service {
            engine,
            config: Arc::new(LiveConfig::new(source, config)),
            metrics,
            node: NodeId([0x11; 16]),
            nbd_endpoints: vec!["unix:/nbd".to_owned()],
            started: Instant::now(),
        };
        let listener = {
            let _inside = runtime.enter();
            socket::bind(&socket::path(dir.path())).unwrap()
        };
        runtime.spawn(server::serve(listener, service, std::future::pending()));
        Self { dir, _runtime: runtime }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("vd.toml")
    }

    fn run(&self, args: &str) -> Output {
        let dir = self.dir.path().to_str().unwrap();
        volumedriver(
            &[&["--data-dir", dir], args.split(' ').collect::<Vec<_>>().as_slice()].concat(),
        )
    }

    /// The one document of a command that must succeed.
    fn json(&self, args: &str) -> Value {
        let output = self.run(&format!("--json {args}"));
        assert!(output.status.success(), "{args}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{args}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The message of a command that must fail.
    fn refusal(&self, args: &str) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args}");
        assert_eq!(output.stdout, b"", "{args}");
        stderr(&output)
    }
}

fn volumedriver(args: &[&str]) -> Output {
    Process::new(env!("CARGO_BIN_EXE_volumedriver")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_vdisk_lives_and_dies() {
    let daemon = Daemon::start();
    let made = daemon.json("vdisk create disk1 --size 4GiB");
    assert_eq!((&made["name"], &made["size_bytes"]), (&"disk1".into(), &(4_u64 << 30).into()));
    assert_eq!(made["cluster_size_bytes"], 4096);
    assert_eq!(made["settings"]["sco_size_bytes"], 16 << 20);
    assert_eq!(made["settings"]["readahead_bytes"], 0, "from the file");
    let other = "vdisk create disk0 --size 4096M --cluster-size 64K --sco-size 8MiB";
    let other = daemon.json(other);
    assert_eq!(
        (&other["cluster_size_bytes"], &other["size_bytes"]),
        (&65536.into(), &made["size_bytes"])
    );
    assert_eq!(other["settings"]["sco_size_bytes"], 8 << 20);
    let list = daemon.json("vdisk list");
    let names: Vec<_> =
        list.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["disk0", "disk1"]);
    assert_eq!(daemon.json("vdisk show disk1"), made);
    assert_eq!(daemon.json("vdisk resize disk1 --size 5G")["size_bytes"], 5_u64 << 30);
    assert_eq!(daemon.json("vdisk flush disk1")["state"], "running");
    assert_eq!(daemon.json("vdisk delete disk1")["deleted"], "disk1");
    assert_eq!(daemon.json("vdisk list").as_array().unwrap().len(), 1);
}

#[test]
fn wrong_requests_are_refused_by_name() {
    let daemon = Daemon::start();
    daemon.json("vdisk create disk --size 1G");
    daemon.json("vdisk create busy --size 1G");
    for (args, part) in [
        ("vdisk create disk --size 1G", "disk: exists"),
        ("vdisk create a/b --size 1G", "cannot be a vDisk's name"),
        ("vdisk create odd --size 4097", "4097"),
        ("vdisk create none --size 0", "4KiB to 1PiB"),
        ("vdisk create vast --size 2P", "4KiB to 1PiB"),
        ("vdisk create odd --size 1G --cluster-size 12K", "cluster size 12288"),
        ("vdisk create odd --size 1G --sco-size 4K", "SCO size of 4KiB"),
        ("vdisk show nothing", "there is no such vDisk"),
        ("vdisk resize disk --size 512M", "cannot shrink from 1GiB to 512MiB"),
        ("vdisk resize nothing --size 2G", "no such vDisk"),
        ("vdisk delete busy", "a client is attached"),
        ("vdisk flush nothing", "no such vDisk"),
    ] {
        let message = daemon.refusal(args);
        assert!(message.contains(part), "{args}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    assert!(daemon.run("vdisk delete busy --force").status.success());
    for usage in ["vdisk create x --size 4GB", "vdisk create x", "vdisk", "nothing"] {
        assert_eq!(daemon.run(usage).status.code(), Some(2), "{usage}");
    }
}

#[test]
fn tables_are_for_people() {
    let daemon = Daemon::start();
    daemon.json("vdisk create a --size 1536M");
    daemon.json("vdisk create longer --size 1T");
    assert_eq!(
        stdout(&daemon.run("vdisk list")),
        "NAME       SIZE  STATE    BACKLOG    LAG  CLIENTS\n\
         a       1.5 GiB  running    1 MiB  1.5 s        0\n\
         longer    1 TiB  running    1 MiB  1.5 s        0\n"
    );
    let shown = stdout(&daemon.run("vdisk show a"));
    assert!(shown.contains("size:               1.5 GiB\n"), "{shown}");
    let status = stdout(&daemon.run("status"));
    assert!(status.contains("write buffer:   3 MiB of 1 GiB"), "{status}");
    let cache = "read cache:     1 MiB of 2 MiB, on disk offline (it is broken)\n";
    assert!(status.contains(cache), "{status}");
}

#[test]
fn node_backend_and_metrics_answer() {
    let daemon = Daemon::start();
    daemon.json("vdisk create a --size 1G");
    let status = daemon.json("status");
    assert_eq!(status["node_id"], "11".repeat(16));
    assert_eq!(status["nbd_endpoints"][0], "unix:/nbd");
    assert_eq!(status["backlog_bytes"], 1 << 20);
    assert_eq!(status["upload_lag_ms"], 1500);
    assert_eq!(status["vdisks"][0]["name"], "a");
    assert_eq!(status["cache"]["ram"]["hits"], 7);
    assert_eq!(status["cache"]["disk_state"], "offline");
    assert_eq!(status["cache"]["disk_mismatches"], 5);
    let backend = daemon.json("backend status");
    assert_eq!((&backend["reachable"], &backend["namespace_count"]), (&true.into(), &1.into()));
    assert_eq!(backend["latency_us"], 1234);
    let probed = daemon.json("backend probe");
    assert_eq!(
        (&probed["checks"][0]["right"], &probed["checks"][0]["lie"]),
        (&true.into(), &"".into())
    );
    assert_eq!(probed["checks"][1]["lie"], "both win");
    daemon.json("vdisk create broken --size 1G");
    let backend = daemon.json("backend status");
    assert_eq!((&backend["reachable"], &backend["message"]), (&false.into(), &"no answer".into()));
    let refusal = daemon.refusal("backend probe");
    assert!(refusal.contains("it overwrites"), "{refusal}");
    let metrics = stdout(&daemon.run("metrics"));
    assert!(metrics.contains("volumedriver_volume_state{volume=\"measured\",state=\"running\"} 1"));
    assert!(daemon.json("metrics")["text"].as_str().unwrap().ends_with("# EOF\n"));
}

#[test]
fn configuration_is_shown_and_reloaded() {
    let daemon = Daemon::start();
    let shown = daemon.json("config show");
    let readahead = &shown["sections"]["vpool"]["readahead_bytes"];
    assert_eq!((&readahead["value"], &readahead["default"]), (&"0".into(), &false.into()));
    assert_eq!(shown["sections"]["node"]["shards_count"]["value"], 1);
    assert!(stdout(&daemon.run("config reload")).contains("nothing changed"));

    let new = "[vpool]\nreadahead_bytes = \"1MiB\"\n[node]\nio = \"psync\"\n";
    std::fs::write(daemon.file(), new).unwrap();
    let reloaded = daemon.json("config reload");
    assert_eq!(reloaded["applied"][0]["key"], "readahead_bytes");
    assert_eq!(reloaded["applied"][0]["new"], "1MiB");
    assert_eq!(reloaded["needs_restart"][0]["key"], "io");
    let made = daemon.json("vdisk create a --size 1G");
    assert_eq!(made["settings"]["readahead_bytes"], 1 << 20);

    std::fs::write(daemon.file(), "[vpool]\nack = \"buffer\"\nreadahead_bytes = 1\n").unwrap();
    let message = daemon.refusal("config reload");
    assert!(message.contains("readahead_bytes = 1"), "{message}");
    let made = daemon.json("vdisk create b --size 1G");
    assert_eq!(made["settings"]["ack"], "memory", "rejected as a whole");
}

#[test]
fn files_are_checked_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vd.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "[buffer]\nlinger_ms = 7\n").unwrap();
    let output = volumedriver(&["config", "check", path]);
    assert!(output.status.success() && stdout(&output).ends_with(": ok\n"));
    let output = volumedriver(&["--json", "config", "show", "--file", path]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["sections"]["buffer"]["linger_ms"]["value"], 7);
    assert_eq!(shown["sections"]["buffer"]["directory"]["value"], "DATA_DIR/buffer");
    let keys: Value =
        serde_json::from_slice(&volumedriver(&["--json", "config", "keys"]).stdout).unwrap();
    assert!(keys.as_array().unwrap().len() > 30);

    std::fs::write(&file, "[buffer]\nlinger_ms = 60001\n").unwrap();
    let output = volumedriver(&["config", "check", path]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    for part in [path, "linger_ms", "60001", "0 ms to 60000 ms"] {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn without_a_daemon_the_command_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let output = volumedriver(&["--data-dir", dir.path().to_str().unwrap(), "vdisk", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(
        message.contains("no daemon serves") && message.contains("serve --data-dir"),
        "{message}"
    );
    let output = volumedriver(&["vdisk", "list"]);
    assert!(stderr(&output).contains("--data-dir"), "{}", stderr(&output));
    // A daemon that was killed leaves its socket.
    let listener = std::os::unix::net::UnixListener::bind(socket::path(dir.path())).unwrap();
    drop(listener);
    let output = volumedriver(&["--data-dir", dir.path().to_str().unwrap(), "status"]);
    assert!(stderr(&output).contains("no daemon serves"), "{}", stderr(&output));
}

#[test]
fn inspect_prints_one_document_and_fails_on_damage() {
    let dir = tempfile::tempdir().unwrap();
    let file: &Path = &dir.path().join("sco");
    std::fs::write(file, [0; 200]).unwrap();
    let output = volumedriver(&["inspect", "sco", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("at 136"), "{}", stderr(&output));
    let output = volumedriver(&["--json", "inspect", "layout"]);
    assert!(output.status.success());
    let layout: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(layout["formats"][0]["magic"], "VDJR");
    let output = volumedriver(&["inspect", "layout"]);
    assert!(stdout(&output).contains("SCO trailer"), "{}", stdout(&output));
}
