//! What goes wrong around a real daemon: a second daemon, wrong configuration, damaged or foreign directories, a full disk,
//! hostile clients, a lost backend, SIGTERM under load. Each has its required outcome in SCENARIOS and in DESIGN's P2, P4, P5.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use suite::daemon::{Daemon, SMALL, program, scratch};
use suite::nbd::{self, Connection};
use suite::tool::{Said, Tool};
use suite::witness::{Random, Witness};

const DISK_BYTES: u64 = 64 << 20;

fn daemon() -> Daemon {
    let daemon = Daemon::start(SMALL);
    daemon.create("disk", "64MiB");
    daemon
}

/// `serve` on a directory, expected to give up at once; what it said.
fn refused(data_dir: &Path, config: &Path) -> Said {
    let socket = config.with_file_name("refused.sock");
    let said = Tool::within(30, program("volumedriver"))
        .args(&["serve", "--data-dir"])
        .arg(data_dir)
        .arg("--config")
        .arg(config)
        .args(&["--nbd", &format!("unix:{}", socket.display())])
        .outcome();
    assert!(!said.status.success(), "not refused: {said}");
    assert_ne!(said.status.code(), Some(124), "neither refused nor ready: {said}");
    assert!(!said.err.contains("panicked"), "{said}");
    assert!(!said.out.starts_with("ready"), "{said}");
    said
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let daemon = daemon();
    let said = refused(&daemon.data_dir(), &daemon.path("config.toml"));
    let named = daemon.data_dir().display().to_string();
    assert!(said.err.contains(&named), "does not name {named}: {said}");
    // The first one goes on.
    Connection::open(&daemon.socket(), "disk").unwrap().write(0, &[1; 4096]).unwrap();
}

#[test]
fn wrong_configuration_is_refused_with_file_key_value_and_range() {
    let cases = [
        ("[vpool]\nsco_size_bytes = 5\n", &["sco_size_bytes", "5", "MiB"][..]),
        ("[vpool]\nack = \"perhaps\"\n", &["ack", "perhaps", "memory", "buffer"]),
        ("[buffer]\ncapacity_bytes = \"1MiB\"\n", &["capacity_bytes", "1MiB"]),
        ("[vpool]\nno_such_key = 1\n", &["no_such_key"]),
        ("[no_such_section]\nx = 1\n", &["no_such_section"]),
        ("[vpool\n", &["config.toml"]),
        ("[nbd.tls]\nmode = \"required\"\n", &["certificate"]),
    ];
    let scratch = scratch();
    let config = scratch.path().join("config.toml");
    let data = scratch.path().join("data");
    for (text, wanted) in cases {
        std::fs::write(&config, text).unwrap();
        let said = refused(&data, &config);
        assert!(said.err.contains("config.toml"), "does not name the file: {said}");
        for word in wanted {
            assert!(said.err.contains(word), "{text:?}: no {word:?} in the message: {said}");
        }
        assert!(!data.exists(), "{text:?}: something was started");
    }
}

#[test]
fn a_missing_configuration_file_is_named() {
    let scratch = scratch();
    let said = refused(&scratch.path().join("data"), &scratch.path().join("nowhere.toml"));
    assert!(said.err.contains("nowhere.toml"), "{said}");
}

#[test]
fn a_buffer_of_another_node_is_refused_and_left_alone() {
    let (mut one, mut other) = (daemon(), daemon());
    one.stop();
    other.stop();
    let (mine, theirs) = (one.data_dir().join("buffer"), other.data_dir().join("buffer"));
    std::fs::rename(&mine, one.data_dir().join("buffer.mine")).unwrap();
    copy_tree(&theirs, &mine);
    let before = fingerprint(&mine);
    let said = refused(&one.data_dir(), &one.path("config.toml"));
    assert!(said.err.contains("buffer"), "does not name the buffer: {said}");
    assert_eq!(fingerprint(&mine), before, "the foreign buffer was touched");
    // With its own buffer back it opens.
    std::fs::remove_dir_all(&mine).unwrap();
    std::fs::rename(one.data_dir().join("buffer.mine"), &mine).unwrap();
    one.restart();
}

fn copy_tree(from: &Path, to: &Path) {
    Tool::new("cp").arg("-a").arg(from).arg(to).run();
}

/// Names and contents of all files below.
fn fingerprint(folder: &Path) -> String {
    let script = "cd \"$1\" && find . -type f | sort | xargs -r sha256sum";
    Tool::new("bash").args(&["-c", script, "bash"]).arg(folder).run()
}

#[test]
fn a_buffer_directory_that_cannot_be_used_is_refused() {
    let scratch = scratch();
    let config = scratch.path().join("config.toml");
    let file = scratch.path().join("a_file");
    std::fs::write(&file, "not a directory").unwrap();
    let buffer = |path: &str| {
        let directory = format!("[buffer]\ndirectory = \"{path}\"");
        std::fs::write(&config, SMALL.replace("[buffer]", &directory)).unwrap();
    };
    buffer(&file.display().to_string());
    let said = refused(&scratch.path().join("data"), &config);
    assert!(said.err.contains("a_file"), "does not name the directory: {said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not a directory");
    // procfs cannot hold files, whoever asks.
    buffer("/proc/buffer");
    let said = refused(&scratch.path().join("data2"), &config);
    assert!(said.err.contains("/proc/buffer"), "does not name the directory: {said}");
}

#[test]
fn a_lost_buffer_is_not_silently_replaced() {
    let mut daemon = daemon();
    let mut connection = Connection::open(&daemon.socket(), "disk").unwrap();
    connection.write(0, &[7; 4096]).unwrap();
    connection.flush().unwrap();
    daemon.kill9();
    std::fs::remove_dir_all(daemon.data_dir().join("buffer")).unwrap();
    match daemon.try_start() {
        Err(_) => {}
        // It may serve what the backend has, but then not as if nothing had happened.
        Ok(_) => {
            let shown = daemon.command(&["--json", "vdisk", "show", "disk"]).run();
            assert!(!shown.to_lowercase().contains("\"running\""), "silently less: {shown}");
        }
    }
}

#[test]
fn sigterm_under_load_drains_and_loses_nothing() {
    let mut daemon = daemon();
    let mut witness = Witness::new(DISK_BYTES, 11);
    let socket = daemon.socket();
    let writer = thread::spawn(move || {
        let _ = witness.work(&socket, "disk", Instant::now() + Duration::from_secs(60));
        witness
    });
    thread::sleep(Duration::from_secs(1));
    let (took, status) = daemon.terminate();
    assert!(status.success(), "ended with {status}\n{}", daemon.log_tail());
    assert!(took < Duration::from_secs(30), "took {took:?}");
    let mut witness = writer.join().unwrap();
    // A clean end writes everything acknowledged down, flushed or not.
    witness.mark_published();
    daemon.restart();
    witness.judge_and_accept(&daemon.socket(), "disk").unwrap();
}

#[test]
fn sigterm_twice_and_idle_connections_do_not_hold_it() {
    let mut daemon = daemon();
    let _idle = Connection::open(&daemon.socket(), "disk").unwrap();
    let _greeted = nbd::greet(&daemon.socket()).unwrap();
    let _silent = UnixStream::connect(daemon.socket()).unwrap();
    let (took, status) = daemon.terminate();
    assert!(status.success() && took < Duration::from_secs(20), "{status} after {took:?}");
}

/// Sends bytes and reads until the server closes or falls silent; what came back.
fn throw(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = vec![0; 1 << 16];
    let mut got = 0;
    while got < answer.len() {
        match stream.read(&mut answer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    answer.truncate(got);
    answer
}

/// Client flags, then OPT_GO: the way into the transmission phase.
fn way_in() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(nbd::option(nbd::OPT_GO, &nbd::go("disk")));
    bytes
}

/// Streams that no honest client sends.
fn hostile(random: &mut Random) -> Vec<Vec<u8>> {
    let with = |tail: Vec<u8>| [way_in(), tail].concat();
    let mut streams = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        0xffff_ffffu32.to_be_bytes().to_vec(),
        // An option that promises 4 GiB.
        [
            &3u32.to_be_bytes()[..],
            &nbd::IHAVEOPT.to_be_bytes(),
            &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff],
        ]
        .concat(),
        // OPT_GO whose name is longer than the option.
        [3u32.to_be_bytes().to_vec(), nbd::option(nbd::OPT_GO, &[0xff, 0xff, 0xff, 0xff, 0, 0])]
            .concat(),
        // An export name that is no text.
        [3u32.to_be_bytes().to_vec(), nbd::option(1, &[0xfe; 5000])].concat(),
        with(nbd::request(0, nbd::CMD_READ, 1, 0, u32::MAX)),
        with(nbd::request(0, nbd::CMD_WRITE, 2, 0, u32::MAX)),
        with(nbd::request(0xffff, 0xffff, 3, u64::MAX, u32::MAX)),
        with(nbd::request(0, nbd::CMD_WRITE, 4, u64::MAX - 100, 4096)),
        with(nbd::request(0, nbd::CMD_TRIM, 5, 1, 0)),
        // A write that ends before its data does.
        with([nbd::request(0, nbd::CMD_WRITE, 6, 0, 1 << 20), vec![1; 1000]].concat()),
        // Half a request.
        with(nbd::request(0, nbd::CMD_READ, 7, 0, 4096)[..13].to_vec()),
        with(vec![0; 28]),
    ];
    for _ in 0..40 {
        let len = random.below(400);
        let noise: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
        streams.push(if random.below(2) == 0 { noise } else { with(noise) });
    }
    // A legal stream with one bit wrong.
    for _ in 0..60 {
        let mut stream = with(
            [
                nbd::request(0, nbd::CMD_READ, 8, 0, 4096),
                nbd::request(0, nbd::CMD_FLUSH, 9, 0, 0),
                nbd::request(0, nbd::CMD_READ, 10, 8192, 512),
            ]
            .concat(),
        );
        let bit = random.below(stream.len() as u64 * 8);
        stream[(bit / 8) as usize] ^= 1 << (bit % 8);
        // The flip may have made a write or trim of it: those would change what the witness knows.
        let command = |at: usize| stream.get(at + 7).copied();
        let start = way_in().len();
        let harmless = (0..3).all(|n| matches!(command(start + 28 * n), Some(0 | 3)));
        if harmless {
            streams.push(stream);
        }
    }
    streams
}

#[test]
fn hostile_streams_disturb_nobody() {
    let mut daemon = daemon();
    let socket = daemon.socket();
    let worker_socket = socket.clone();
    let worker = thread::spawn(move || {
        let mut witness = Witness::new(DISK_BYTES, 5);
        let end = Instant::now() + Duration::from_secs(12);
        witness.work(&worker_socket, "disk", end).map(|()| witness)
    });
    let memory_before = resident_bytes(daemon.pid());
    let mut random = Random::new(77);
    // The disk of the hostile clients is another one: their legal halves may write.
    daemon.create("target", "64MiB");
    for stream in hostile(&mut random) {
        let aimed = replaced(&stream, b"disk", b"targ");
        throw(&socket, &aimed);
        throw(&socket, &stream[..stream.len().min(40)]);
    }
    for _ in 0..200 {
        drop(UnixStream::connect(&socket));
    }
    let mut witness = worker.join().unwrap().expect("the verified connection was disturbed");
    assert!(daemon.ended().is_none(), "the daemon ended\n{}", daemon.log_tail());
    let log = std::fs::read_to_string(daemon.path("log")).unwrap();
    assert!(!log.contains("panicked"), "{}", daemon.log_tail());
    let grown = resident_bytes(daemon.pid()).saturating_sub(memory_before);
    assert!(grown < 512 << 20, "{grown} bytes more memory");
    witness.judge_and_accept(&socket, "disk").unwrap();
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut out = bytes.to_vec();
    if let Some(at) = out.windows(from.len()).position(|window| window == from) {
        out[at..at + to.len()].copy_from_slice(to);
    }
    out
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn errors_have_the_protocols_words_and_the_connection_goes_on() {
    let daemon = daemon();
    let mut c = Connection::open(&daemon.socket(), "disk").unwrap();
    let outside = c.size;
    let wrong = [
        (nbd::CMD_READ, outside, 4096, nbd::EINVAL),
        (nbd::CMD_READ, outside - 512, 1024, nbd::EINVAL),
        (nbd::CMD_TRIM, outside, 4096, nbd::EINVAL),
        (nbd::CMD_WRITE_ZEROES, outside, 4096, nbd::ENOSPC),
        (nbd::CMD_READ, u64::MAX - 511, 512, nbd::EINVAL),
        (0x55, 0, 0, nbd::EINVAL),
    ];
    for (command, offset, len, error) in wrong {
        let cookie = c.send((command, 0), offset, len, &[]).unwrap();
        let reply = c.receive().unwrap();
        assert_eq!(
            (reply.cookie, reply.error),
            (cookie, error),
            "command {command:#x} at {offset}"
        );
    }
    let cookie = c.send((nbd::CMD_WRITE, 0), outside, 4096, &[1; 4096]).unwrap();
    let reply = c.receive().unwrap();
    assert_eq!((reply.cookie, reply.error), (cookie, nbd::ENOSPC));
    c.write(outside - 512, &[9; 512]).unwrap();
    assert_eq!(c.read(outside - 512, 512).unwrap(), [9; 512]);
    c.disconnect().unwrap();
}

/// An object backend in a process of its own, behind a unix socket.
struct Backend {
    folder: PathBuf,
    child: Option<Child>,
}

impl Backend {
    fn start(folder: &Path) -> Self {
        let mut backend = Self { folder: folder.to_owned(), child: None };
        backend.restart();
        backend
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("alba.sock")
    }

    fn restart(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let log =
            std::fs::File::options().create(true).append(true).open(self.folder.join("alba.log"));
        let mut command = std::process::Command::new(program("alba"));
        command.args(["serve", "--data-dir"]).arg(self.folder.join("objects"));
        command.arg("--listen").arg(format!("unix:{}", self.socket().display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap());
        self.child = Some(command.spawn().unwrap());
        let begin = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            let log = || std::fs::read_to_string(self.folder.join("alba.log")).unwrap_or_default();
            assert!(begin.elapsed() < Duration::from_secs(30), "alba does not answer: {}", log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill9(&mut self) {
        let mut child = self.child.take().expect("alba runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_backend_of_its_own_may_be_killed_under_load() {
    let folder = scratch();
    let mut backend = Backend::start(folder.path());
    let url = format!("backend = \"alba:unix:{}\"", backend.socket().display());
    let mut daemon = Daemon::start(&SMALL.replace("[vpool]", &format!("[vpool]\n{url}")));
    daemon.create("disk", "64MiB");
    let socket = daemon.socket();
    let mut witness = Witness::new(DISK_BYTES, 21);
    let worker = thread::spawn(move || {
        // Longer than the buffer lasts: the writer may be held back, and must not get an error.
        let end = Instant::now() + Duration::from_secs(9);
        witness.work(&socket, "disk", end).map(|()| witness)
    });
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(1200));
        backend.kill9();
        thread::sleep(Duration::from_millis(1200));
        backend.restart();
    }
    let mut witness = worker.join().unwrap().expect("an error reached the client");
    daemon.flush_to_backend("disk");
    witness.mark_published();
    daemon.kill9();
    daemon.argument("--discard-local");
    daemon.restart();
    witness.judge_and_accept(&daemon.socket(), "disk").unwrap();
}

#[test]
fn without_its_backend_it_takes_writes_and_starts_again() {
    let folder = scratch();
    let mut backend = Backend::start(folder.path());
    let url = format!("backend = \"alba:unix:{}\"", backend.socket().display());
    let mut daemon = Daemon::start(&SMALL.replace("[vpool]", &format!("[vpool]\n{url}")));
    daemon.create("disk", "64MiB");
    backend.kill9();
    let mut c = Connection::open(&daemon.socket(), "disk").unwrap();
    c.write(0, &[3; 65536]).unwrap();
    c.flush().unwrap();
    assert_eq!(c.read(0, 65536).unwrap(), [3; 65536]);
    backend.restart();
    daemon.flush_to_backend("disk");
    daemon.stop();
}

/// A small file system in a file, mounted over a loop device.
struct SmallDisk {
    mount: PathBuf,
}

impl SmallDisk {
    fn new(folder: &Path, mib: u32) -> Self {
        let image = folder.join("small.img");
        let mount = folder.join("small");
        std::fs::create_dir(&mount).unwrap();
        Tool::new("truncate").args(&["-s", &format!("{mib}M")]).arg(&image).run();
        Tool::new("mkfs.ext4").args(&["-q", "-F", "-m", "0"]).arg(&image).run();
        Tool::new("mount").args(&["-o", "loop"]).arg(&image).arg(&mount).run();
        Self { mount }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Tool::new("umount").arg("-l").arg(&self.mount).outcome();
    }
}

/// What MiB `n` of a written disk holds.
fn mib(n: u64) -> Vec<u8> {
    vec![n as u8 + 1; 1 << 20]
}

/// Writes these MiB one after the other, each on stable storage before the next; counts those that are.
fn write_mibs(socket: &Path, disk: &'static str, range: Range<u64>) -> (Arc<AtomicU64>, Writer) {
    let done = Arc::new(AtomicU64::new(range.start));
    let (count, socket) = (done.clone(), socket.to_owned());
    let writer = thread::spawn(move || {
        let mut c = Connection::open(&socket, disk)?;
        for n in range {
            let cookie = c.send((nbd::CMD_WRITE, nbd::FLAG_FUA), n << 20, 1 << 20, &mib(n))?;
            let reply = c.receive()?;
            if (reply.cookie, reply.error) != (cookie, 0) {
                return Err(std::io::Error::other(format!("error {} at MiB {n}", reply.error)));
            }
            count.store(n + 1, Ordering::Relaxed);
        }
        Ok(())
    });
    (done, writer)
}

type Writer = thread::JoinHandle<std::io::Result<()>>;

/// Waits until nothing has moved for a while; how far it came.
fn held_back(done: &AtomicU64) -> u64 {
    let began = Instant::now();
    let (mut before, mut since) = (done.load(Ordering::Relaxed), Instant::now());
    while since.elapsed() < Duration::from_secs(4) {
        assert!(began.elapsed() < Duration::from_secs(120), "never held back");
        thread::sleep(Duration::from_millis(50));
        let now = done.load(Ordering::Relaxed);
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
    before
}

fn check_mibs(socket: &Path, disk: &str, range: Range<u64>) {
    let mut c = Connection::open(socket, disk).unwrap();
    for n in range {
        assert!(c.read(n << 20, 1 << 20).unwrap() == mib(n), "MiB {n} of {disk}");
    }
}

#[test]
fn a_full_backend_holds_writes_back_until_there_is_room() {
    const MIBS: u64 = 200;
    let folder = scratch();
    let small = SmallDisk::new(folder.path(), 384);
    let url = format!("backend = \"embedded:{}/objects\"", small.mount.display());
    let mut daemon = Daemon::start(&SMALL.replace("[vpool]", &format!("[vpool]\n{url}")));
    daemon.create("disk", "1GiB");
    let ballast = small.mount.join("ballast");
    Tool::new("fallocate").args(&["-l", "260M"]).arg(&ballast).run();
    // Half of it fits nowhere while the ballast is there: not the rest of the disk, not the disk's share of the buffer.
    let (done, writer) = write_mibs(&daemon.socket(), "disk", 0..MIBS);
    let came = held_back(&done);
    assert!((64..MIBS - 20).contains(&came), "{came} MiB were taken");
    check_mibs(&daemon.socket(), "disk", 0..came);
    // Somebody else takes the last block, reserve and all.
    let last = small.mount.join("last");
    Tool::new("bash").args(&["-c", "cat /dev/zero > \"$0\" || true"]).arg(&last).run();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(done.load(Ordering::Relaxed), came);
    assert!(daemon.ended().is_none(), "the daemon ended\n{}", daemon.log_tail());
    check_mibs(&daemon.socket(), "disk", 0..came);
    std::fs::remove_file(&last).unwrap();
    std::fs::remove_file(&ballast).unwrap();
    writer.join().unwrap().expect("a write failed because of load");
    daemon.flush_to_backend("disk");
    daemon.kill9();
    daemon.argument("--discard-local");
    daemon.restart();
    check_mibs(&daemon.socket(), "disk", 0..MIBS);
}

#[test]
fn a_full_backend_opens_its_disks_again_and_gets_room_by_deleting_one() {
    const OLD_MIBS: u64 = 60;
    const MIBS: u64 = 80;
    let limits = "[vpool]\nbackend_capacity_bytes = \"96MiB\"\nbuffer_share_percent = 25\n";
    let mut daemon = Daemon::start(&SMALL.replace("[vpool]", limits));
    daemon.create("old", "64MiB");
    daemon.create("disk", "128MiB");
    write_mibs(&daemon.socket(), "old", 0..OLD_MIBS).1.join().unwrap().unwrap();
    daemon.flush_to_backend("old");
    let (done, writer) = write_mibs(&daemon.socket(), "disk", 0..MIBS);
    let came = held_back(&done);
    assert!(came < MIBS, "everything fitted");
    daemon.kill9();
    writer.join().unwrap().expect_err("it was killed under the writer");
    // Full of data, it still takes the manifests with which its disks are opened.
    for _ in 0..3 {
        daemon.restart();
        check_mibs(&daemon.socket(), "disk", 0..came);
        check_mibs(&daemon.socket(), "old", 0..OLD_MIBS);
        daemon.kill9();
    }
    daemon.restart();
    // Read from the backend, its objects are held open: their room comes back all the same.
    check_mibs(&daemon.socket(), "old", 0..OLD_MIBS);
    let (done, writer) = write_mibs(&daemon.socket(), "disk", came..MIBS);
    assert!(held_back(&done) < MIBS, "everything fitted");
    daemon.command(&["vdisk", "delete", "old"]).run();
    writer.join().unwrap().expect("a write failed because of load");
    daemon.flush_to_backend("disk");
    daemon.kill9();
    daemon.argument("--discard-local");
    daemon.restart();
    check_mibs(&daemon.socket(), "disk", 0..MIBS);
}

#[test]
fn a_buffer_that_does_not_fit_is_refused() {
    let folder = scratch();
    let small = SmallDisk::new(folder.path(), 64);
    let config = folder.path().join("config.toml");
    let directory = format!("[buffer]\ndirectory = \"{}/buffer\"", small.mount.display());
    std::fs::write(&config, SMALL.replace("[buffer]", &directory)).unwrap();
    let said = refused(&folder.path().join("data"), &config);
    assert!(said.err.contains("buffer"), "{said}");
}

/// The content of 4 KiB of a disk, told by where it lies.
fn telling(cluster: u64) -> Vec<u8> {
    let mut random = Random::new(cluster + 1);
    (0..512).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect()
}

/// A disk of 40 MiB on a backend of its own, behind a memory cache of 1 MiB and a disk cache.
struct Cached {
    daemon: Daemon,
    _backend: Backend,
    _folder: tempfile::TempDir,
}

impl Cached {
    const CLUSTERS: u64 = 40 << 8;
    /// Clusters read at a time.
    const STEP: u64 = 16;

    fn start(cache: &str) -> Self {
        let folder = scratch();
        let backend = Backend::start(folder.path());
        let url = format!("backend = \"alba:unix:{}\"", backend.socket().display());
        let config = SMALL
            .replace("[vpool]", &format!("[vpool]\nreadahead_bytes = 0\n{url}"))
            .replace("ram_bytes = \"16MiB\"\nssd_bytes = \"64MiB\"", cache);
        assert!(config.contains(cache), "{config}");
        let mut daemon = Daemon::start(&config);
        daemon.create("disk", "64MiB");
        let mut c = Connection::open(&daemon.socket(), "disk").unwrap();
        for first in (0..Self::CLUSTERS).step_by(64) {
            let data: Vec<u8> = (first..first + 64).flat_map(telling).collect();
            c.write(first * 4096, &data).unwrap();
        }
        c.flush().unwrap();
        daemon.flush_to_backend("disk");
        drop(c);
        // Nothing is left in the write buffer.
        daemon.stop();
        daemon.restart();
        Self { daemon, _backend: backend, _folder: folder }
    }

    /// Reads everything and checks it.
    fn read_all(&self) {
        let mut c = Connection::open(&self.daemon.socket(), "disk").unwrap();
        for first in (0..Self::CLUSTERS).step_by(Self::STEP as usize) {
            let data = c.read(first * 4096, 4096 * Self::STEP as u32).unwrap();
            for (n, bytes) in (first..).zip(data.chunks(4096)) {
                assert!(bytes == telling(n), "cluster {n} is wrong");
            }
        }
    }

    fn cache(&self) -> serde_json::Value {
        let status = self.daemon.command(&["--json", "status"]).run();
        serde_json::from_str::<serde_json::Value>(&status).unwrap()["cache"].clone()
    }

    fn figure(&self, tier: &str, name: &str) -> u64 {
        let cache = self.cache();
        cache[tier][name].as_u64().unwrap_or_else(|| panic!("no {tier} {name} in {cache}"))
    }

    fn disk_hits(&self) -> u64 {
        self.figure("disk", "hits")
    }

    /// The value of a metric, which may be a second old.
    fn metric_reaches(&self, sample: &str, least: f64) {
        let begin = Instant::now();
        loop {
            let text = self.daemon.command(&["metrics"]).run();
            let line = text.lines().find_map(|line| line.strip_prefix(sample));
            let value: f64 = line.unwrap_or_else(|| panic!("no {sample}")).trim().parse().unwrap();
            if value >= least {
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "{sample} is {value}, not {least}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn state(&self) -> String {
        self.cache()["disk_state"].as_str().unwrap().to_owned()
    }
}

const CACHED: &str = "ram_bytes = \"1MiB\"\nssd_bytes = \"64MiB\"";

#[test]
fn what_does_not_fit_into_memory_is_read_from_the_cache_disk_the_second_time() {
    let mut cached = Cached::start(CACHED);
    cached.read_all();
    assert_eq!(cached.disk_hits(), 0);
    cached.read_all();
    let hits = cached.disk_hits();
    // Some were dropped where the disk was slower than the backend; they come in later.
    assert!(hits > Cached::CLUSTERS / 4, "{hits} of {}: {}", Cached::CLUSTERS, cached.cache());
    for _ in 0..10 {
        if cached.figure("disk", "used_bytes") > 36 << 20 {
            break;
        }
        cached.read_all();
    }
    let before = cached.disk_hits();
    cached.read_all();
    let hits = cached.disk_hits() - before;
    assert!(hits > Cached::CLUSTERS * 8 / 10, "{hits} of {}", Cached::CLUSTERS);
    cached.metric_reaches("volumedriver_cache_hits_total{tier=\"ssd\"}", hits as f64);
    cached.metric_reaches("volumedriver_cache_used_bytes{tier=\"ssd\"}", 30e6);
    cached.metric_reaches("volumedriver_cache_ssd_written_bytes_total", 30e6);
    cached.metric_reaches("volumedriver_cache_inserts_total{tier=\"ssd\"}", 8000.0);
    let status = cached.daemon.command(&["status"]).run();
    assert!(status.contains("on disk 3") && status.contains(" of 6"), "{status}");
    // A clean end makes a warm start.
    cached.daemon.stop();
    cached.daemon.restart();
    let begin = Instant::now();
    while cached.state() != "serving" {
        assert!(begin.elapsed() < Duration::from_secs(20), "{}", cached.cache());
    }
    cached.read_all();
    let hits = cached.disk_hits();
    assert!(hits > Cached::CLUSTERS * 8 / 10, "{hits} after a clean end");
    // A killed one starts empty, or with what it had when nothing came in since: what it gives is right either way.
    cached.daemon.kill9();
    cached.daemon.restart();
    cached.read_all();
}

#[test]
fn damage_on_the_cache_disk_is_found_and_read_around() {
    let cached = Cached::start(CACHED);
    cached.read_all();
    cached.read_all();
    let file = cached.daemon.data_dir().join("cache/cache-0000");
    let before = cached.figure("disk", "used_bytes");
    // Every 64 KiB a few bytes, in place and under the daemon.
    let damage = std::fs::File::options().write(true).open(&file).unwrap();
    for at in (0..48 << 20).step_by(64 << 10) {
        std::os::unix::fs::FileExt::write_all_at(&damage, b"damaged by hand", at + 100).unwrap();
    }
    damage.sync_all().unwrap();
    cached.read_all();
    let found = cached.cache()["disk_mismatches"].as_u64().unwrap();
    assert!(found > 400, "only {found} were found");
    assert!(cached.figure("disk", "used_bytes") <= before);
    cached.metric_reaches("volumedriver_cache_ssd_mismatches_total", found as f64);
    assert_eq!(cached.state(), "serving");
    cached.read_all();
}

#[test]
fn a_cache_directory_that_is_removed_disturbs_nobody() {
    let mut cached = Cached::start(CACHED);
    cached.read_all();
    std::fs::remove_dir_all(cached.daemon.data_dir().join("cache")).unwrap();
    cached.read_all();
    assert!(cached.disk_hits() > 0, "the file is still open");
    cached.daemon.stop();
    cached.daemon.restart();
    assert_eq!(cached.state(), "serving");
    cached.read_all();
    cached.daemon.stop();
    // Something in its place that is no directory.
    let place = cached.daemon.data_dir().join("cache");
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::write(&place, "not a directory").unwrap();
    cached.daemon.restart();
    assert_eq!(cached.state(), "offline");
    cached.metric_reaches("volumedriver_cache_ssd_offline", 1.0);
    cached.read_all();
}

#[test]
fn a_cache_disk_that_is_too_small_or_breaks_is_left_alone() {
    let folder = scratch();
    let small = SmallDisk::new(folder.path(), 110);
    let place = format!("directory = \"{}/cache\"", small.mount.display());
    let mut cached = Cached::start(&format!("{CACHED}\n{place}"));
    assert_eq!(cached.state(), "serving");
    cached.read_all();
    cached.read_all();
    assert!(cached.disk_hits() > 1000);
    // The device's end breaks off.
    Tool::new("truncate").args(&["-s", "24M"]).arg(folder.path().join("small.img")).run();
    cached.read_all();
    cached.read_all();
    let cache = cached.cache();
    assert_eq!(cache["disk_state"], "offline", "{cache}");
    assert!(!cache["disk_reason"].as_str().unwrap().is_empty(), "{cache}");
    cached.daemon.stop();
    drop(small);
    // A disk without room for it.
    let folder = scratch();
    let small = SmallDisk::new(folder.path(), 40);
    let moved = format!("directory = \"{}/cache\"", small.mount.display());
    let config = std::fs::read_to_string(cached.daemon.path("config.toml")).unwrap();
    std::fs::write(cached.daemon.path("config.toml"), config.replace(&place, &moved)).unwrap();
    cached.daemon.restart();
    let cache = cached.cache();
    assert_eq!(cache["disk_state"], "offline", "{cache}");
    assert!(cache["disk_reason"].as_str().unwrap().contains("do not fit"), "{cache}");
    cached.read_all();
    cached.daemon.stop();
}

#[test]
fn the_cache_of_another_daemon_is_refused_and_left_alone() {
    let folder = scratch();
    let shared = folder.path().join("nvme");
    let place = format!("[cache]\ndirectory = \"{}\"", shared.display());
    let config = SMALL.replace("[cache]", &place);
    let mut one = Daemon::start(&config);
    one.create("disk", "64MiB");
    let mut other = daemon();
    other.stop();
    std::fs::write(other.path("config.toml"), &config).unwrap();
    let said = refused(&other.data_dir(), &other.path("config.toml"));
    assert!(said.err.contains(&shared.display().to_string()), "{said}");
    // Throwing local state away takes its own cache along and nothing else.
    std::fs::write(shared.join("photo.jpg"), "precious").unwrap();
    one.stop();
    one.argument("--discard-local");
    one.restart();
    assert_eq!(std::fs::read_to_string(shared.join("photo.jpg")).unwrap(), "precious");
    one.stop();
}
