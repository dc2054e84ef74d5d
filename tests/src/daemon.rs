//! A real daemon of this workspace in a scratch directory, to be used, killed and started again.
//!
//! The program is `target/release/volumedriver` beside the running test, or the one `VOLUMEDRIVER_BIN` names.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::tool::{self, Tool};

/// A small daemon: the least buffer there can be and small SCOs, so that little data goes the whole way.
pub const SMALL: &str = r#"
[buffer]
capacity_bytes = "128MiB"
segment_bytes = "8MiB"
memory_bytes = "32MiB"

[cache]
ram_bytes = "16MiB"
ssd_bytes = "64MiB"

[vpool]
sco_size_bytes = "1MiB"
upload_max_delay_ms = 500
"#;

/// How long a daemon may take to say `ready`.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to end after SIGTERM, and then some for a busy machine.
const END_WITHIN: Duration = Duration::from_secs(90);

pub struct Daemon {
    scratch: TempDir,
    child: Option<Child>,
    /// Further arguments of `serve`, given at every start.
    arguments: Vec<String>,
}

impl Daemon {
    /// Starts with a configuration (TOML) and waits until it is ready.
    #[must_use]
    pub fn start(config: &str) -> Self {
        let mut daemon = Self::prepare(config);
        daemon.restart();
        daemon
    }

    /// The scratch directory and its configuration, nothing started.
    #[must_use]
    pub fn prepare(config: &str) -> Self {
        let scratch = scratch();
        std::fs::write(scratch.path().join("config.toml"), config).unwrap();
        Self { scratch, child: None, arguments: Vec::new() }
    }

    /// Gives `serve` further arguments from the next start on.
    pub fn argument(&mut self, argument: impl Into<String>) {
        self.arguments.push(argument.into());
    }

    /// Starts it without further arguments again.
    pub fn drop_arguments(&mut self) {
        self.arguments.clear();
    }

    /// Where everything of this daemon lies: its data directory, socket, configuration and log.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("nbd")
    }

    #[must_use]
    pub fn uri(&self, disk: &str) -> String {
        format!("nbd+unix:///{disk}?socket={}", self.socket().display())
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Starts it (again) on the same data and waits for `ready`.
    pub fn restart(&mut self) {
        self.try_start().unwrap_or_else(|why| panic!("{why}\n{}", self.log_tail()));
    }

    /// Starts it and waits for `ready`; the message says how it ended when it did not get there.
    pub fn try_start(&mut self) -> Result<Duration, String> {
        assert!(self.child.is_none(), "the daemon runs already");
        let begin = Instant::now();
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut child = Command::new(program("volumedriver"))
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--config")
            .arg(self.path("config.toml"))
            .arg("--nbd")
            .arg(format!("unix:{}", self.socket().display()))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{}: {error}", program("volumedriver").display()))?;
        let ready = first_ready_line(&mut child).recv_timeout(READY_WITHIN);
        if ready == Ok(true) {
            self.child = Some(child);
            return Ok(begin.elapsed());
        }
        if ready == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = child.kill();
        }
        let status = child.wait().map_err(|error| error.to_string())?;
        Err(format!("the daemon did not become ready: {status}"))
    }

    /// kill -9, and gone when it returns.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "ended by itself: {status}\n{}", self.log_tail());
    }

    /// SIGTERM; how long it took to end, and how.
    pub fn terminate(&mut self) -> (Duration, ExitStatus) {
        let mut child = self.child.take().expect("the daemon runs");
        let begin = Instant::now();
        tool::signal(child.id(), rustix::process::Signal::TERM);
        while begin.elapsed() < END_WITHIN {
            if let Some(status) = child.try_wait().unwrap() {
                return (begin.elapsed(), status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("no end {END_WITHIN:?} after SIGTERM\n{}", self.log_tail());
    }

    /// SIGTERM and a clean end.
    pub fn stop(&mut self) {
        let (_, status) = self.terminate();
        assert!(status.success(), "ended with {status}\n{}", self.log_tail());
    }

    /// `None` while it runs; else how it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// `volumedriver --data-dir ... ARGUMENTS`, as an operator types it.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Tool {
        let data_dir = self.data_dir();
        Tool::new(program("volumedriver")).arg("--data-dir").arg(data_dir).args(arguments)
    }

    pub fn create(&self, disk: &str, size: &str) {
        self.command(&["vdisk", "create", disk, "--size", size]).run();
    }

    /// Waits until everything written so far is on the backend.
    pub fn flush_to_backend(&self, disk: &str) {
        self.command(&["vdisk", "flush", disk]).run();
    }

    /// The end of what it logged.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(40);
        format!("--- the daemon's log, its end:\n{}\n---", lines[from..].join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// A directory on a real disk (not on tmpfs: O_DIRECT), with a short path (unix sockets).
#[must_use]
pub fn scratch() -> TempDir {
    let parent = std::env::var_os("VOLUMEDRIVER_SCRATCH").unwrap_or_else(|| "/var/tmp".into());
    tempfile::Builder::new().prefix("vd-").tempdir_in(parent).unwrap()
}

/// A program of this workspace.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let chosen = (name == "volumedriver").then(|| std::env::var_os("VOLUMEDRIVER_BIN")).flatten();
    if let Some(path) = chosen {
        return path.into();
    }
    // The test is target/release/deps/NAME-HASH.
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is missing: cargo build --release --workspace", path.display());
    path
}

/// Tells once whether a line beginning with `ready` came (false: the output ended); reads on afterwards.
fn first_ready_line(child: &mut Child) -> mpsc::Receiver<bool> {
    let output = child.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut told = false;
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if !told && line.starts_with("ready") {
                told = true;
                let _ = sender.send(true);
            }
        }
        if !told {
            let _ = sender.send(false);
        }
    });
    receiver
}
