//! A virtual machine whose root disk is a vDisk: it works while the daemon is killed under it, and it comes back after a
//! power cut of machine and daemon together.
//!
//! QEMU without acceleration by default; `VM_ACCEL=kvm` where the host has it. The image is made once, by `vm/build-image`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use suite::daemon::{Daemon, scratch};
use suite::soak;
use suite::tool::Tool;
use tempfile::TempDir;

const CONFIG: &str = r#"
[buffer]
capacity_bytes = "512MiB"
segment_bytes = "16MiB"
memory_bytes = "64MiB"

[cache]
ram_bytes = "64MiB"

[vpool]
sco_size_bytes = "4MiB"
upload_max_delay_ms = 2000
"#;

/// For a guest that outlives its daemon: to it nothing ever lost power, so what was acknowledged must be there, flushed or not.
const ACK_BUFFER: &str = "ack = \"buffer\"\n";

/// How long a guest may take from one line that matters to the next.
const STEP: Duration = Duration::from_secs(240);

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vm")
}

/// Kernel, initrd and root disk; made if need be.
fn image() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
    let folder = cache.unwrap_or_else(home).join("volumedriver-tests/vm");
    Tool::within(1200, sources().join("build-image")).arg(&folder).run();
    folder
}

/// A daemon whose vDisk `root` holds the image.
fn daemon_with_root(image: &Path, config: &str) -> Daemon {
    let daemon = Daemon::start(config);
    daemon.create("root", "3GiB");
    let root = image.join("root.img");
    Tool::new("nbdcopy")
        .args(&["--destination-is-zero", "--flush"])
        .arg(root)
        .arg(daemon.uri("root"))
        .run();
    daemon
}

/// A running virtual machine and the lines of its serial console.
struct Guest {
    child: Child,
    lines: mpsc::Receiver<String>,
    said: Vec<String>,
    _initrd: TempDir,
}

impl Guest {
    /// Boots from the daemon's disk and runs the script `vm/JOB` in the guest.
    fn boot(image: &Path, daemon: &Daemon, job: &str) -> Self {
        let scratch = scratch();
        let initrd = initrd_with_job(image, scratch.path(), job);
        let accel = std::env::var("VM_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
        let (accel, cpu) = match accel.as_str() {
            "tcg" => ("tcg,thread=multi,tb-size=256", "max"),
            other => (other, "host"),
        };
        let disk = format!(
            "driver=nbd,node-name=root,server.type=unix,server.path={},export=root,reconnect-delay=60,\
             discard=unmap,cache.direct=on",
            daemon.socket().display()
        );
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", accel, "-cpu", cpu, "-smp", "2", "-m", "1024"])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .args([
                "-append",
                "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check rdinit=/init",
            ])
            .arg("-kernel")
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(initrd)
            .args([
                "-blockdev",
                &disk,
                "-device",
                "virtio-blk-pci,drive=root,discard=on,write-zeroes=on",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64 starts");
        let lines = lines_of(&mut child);
        Self { child, lines, said: Vec::new(), _initrd: scratch }
    }

    /// The next line, `None` when the machine is off.
    fn line(&mut self, within: Duration) -> Option<&str> {
        match self.lines.recv_timeout(within) {
            Ok(line) => {
                self.said.push(line);
                self.said.last().map(String::as_str)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => self.give_up(&format!("silent for {within:?}")),
        }
    }

    /// Waits for a line with this beginning.
    fn until(&mut self, beginning: &str) {
        let begin = Instant::now();
        loop {
            match self.line(STEP) {
                Some(line) if line.starts_with(beginning) => return,
                Some(line) if line.starts_with("GUEST-RC") => break,
                Some(_) if begin.elapsed() < STEP => {}
                _ => break,
            }
        }
        self.give_up(&format!("did not say {beginning}"))
    }

    /// Waits until it is off; the exit status of its script.
    fn end(&mut self) -> i32 {
        while self.line(STEP).is_some() {}
        let _ = self.child.wait();
        let status = self.said.iter().rev().find_map(|line| line.strip_prefix("GUEST-RC "));
        match status.and_then(|text| text.trim().parse().ok()) {
            Some(status) => status,
            None => self.give_up("the machine went off without a status"),
        }
    }

    /// The number behind the last line with this beginning; `word` counts from there.
    fn last_number(&self, beginning: &str, word: usize) -> Option<u64> {
        let line = self.said.iter().rev().find_map(|line| line.strip_prefix(beginning))?;
        line.split_whitespace().nth(word)?.parse().ok()
    }

    /// Pulls the plug.
    fn cut_power(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // What it said before is still on its way.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
            self.said.push(line);
        }
    }

    fn give_up(&self, why: &str) -> ! {
        let from = self.said.len().saturating_sub(60);
        panic!("the guest: {why}\n{}", self.said[from..].join("\n"));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let output = child.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).replace('\r', "");
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The image's initrd with the script appended to it as /job.
fn initrd_with_job(image: &Path, folder: &Path, job: &str) -> PathBuf {
    std::fs::copy(sources().join(job), folder.join("job")).unwrap();
    let script = "cd \"$1\" && echo job | cpio -o -H newc --quiet | gzip -1 | cat \"$2\" - >initrd";
    Tool::new("bash").args(&["-c", script, "bash"]).arg(folder).arg(image.join("initrd.gz")).run();
    folder.join("initrd")
}

/// The file system on the vDisk, checked outside of any guest.
fn fsck(daemon: &Daemon, journal: Journal) {
    let scratch = scratch();
    let copy = scratch.path().join("root.img");
    Tool::new("nbdcopy").arg(daemon.uri("root")).arg(&copy).run();
    if journal == Journal::Replay {
        // What a mount would do first; only then must there be nothing to mend.
        let said = Tool::new("e2fsck").args(&["-E", "journal_only", "-y"]).arg(&copy).outcome();
        assert!(said.status.code().is_some_and(|code| code <= 1), "{said}");
    }
    let said = Tool::new("e2fsck").args(&["-f", "-n"]).arg(&copy).outcome();
    assert!(said.status.success(), "the file system is damaged: {said}");
}

#[derive(PartialEq)]
enum Journal {
    /// It was unmounted in order.
    Clean,
    Replay,
}

#[test]
fn a_vm_works_on_while_the_daemon_is_killed() {
    let image = image();
    let mut daemon = daemon_with_root(&image, &[CONFIG, ACK_BUFFER].concat());
    let mut guest = Guest::boot(&image, &daemon, "work");
    let kills = if soak() { 8 } else { 2 };
    for step in ["fio", "sqlite", "postgres", "files"] {
        guest.until(&format!("GUEST-STEP {step}"));
        for _ in 0..kills {
            thread::sleep(Duration::from_millis(1500));
            daemon.kill9();
            thread::sleep(Duration::from_millis(300));
            daemon.restart();
        }
    }
    assert_eq!(guest.end(), 0, "{}", guest.said.join("\n"));
    fsck(&daemon, Journal::Clean);
    daemon.flush_to_backend("root");
    daemon.kill9();
    // The same from the backend alone.
    daemon.argument("--discard-local");
    daemon.restart();
    fsck(&daemon, Journal::Clean);
}

#[test]
fn a_power_cut_of_vm_and_daemon_loses_no_commit() {
    let image = image();
    let mut daemon = daemon_with_root(&image, CONFIG);
    for round in 0..if soak() { 10 } else { 2 } {
        let mut guest = Guest::boot(&image, &daemon, "commits");
        guest.until("GUEST-STEP commits");
        guest.until(&format!("SQLITE-COMMITTED {}", 20 + 10 * round));
        guest.until("POSTGRES-COMMITTED");
        // Both at once, the daemon first: what the guest is told after that moment cannot be durable.
        daemon.kill9();
        guest.cut_power();
        let promised = ["SQLITE-", "POSTGRES-"]
            .map(|name| guest.last_number(&format!("{name}COMMITTED "), 0).expect("a commit"));
        daemon.restart();
        let mut check = Guest::boot(&image, &daemon, "check");
        assert_eq!(check.end(), 0, "{}", check.said.join("\n"));
        for (name, promised) in ["SQLITE-", "POSTGRES-"].into_iter().zip(promised) {
            let holds = |word| check.last_number(&format!("{name}HOLDS "), word).expect("a count");
            let (count, last) = (holds(0), holds(1));
            assert!(count == last, "{name}: {count} rows up to {last}: a gap");
            assert!(last >= promised, "{name}: {promised} commits promised, {last} there");
        }
        fsck(&daemon, Journal::Replay);
    }
}
