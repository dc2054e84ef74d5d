//! P5 at a real daemon's edges: file descriptors run out, clients vanish in the middle, many clients do nothing.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use suite::daemon::{Daemon, SMALL};
use suite::nbd::{self, CMD_FLUSH, CMD_WRITE, Connection};

const PATIENCE: Duration = Duration::from_secs(60);

fn daemon() -> Daemon {
    let daemon = Daemon::start(SMALL);
    daemon.create("disk", "64MiB");
    daemon
}

/// From now on the daemon can open nothing but what it has open. Returns what it could before.
fn take_descriptors(daemon: &Daemon) -> Rlimit {
    limit_descriptors(daemon, Rlimit { current: Some(3), ..descriptor_limit(daemon) })
}

fn descriptor_limit(daemon: &Daemon) -> Rlimit {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    Rlimit { current: numbers.next(), maximum: numbers.next() }
}

fn limit_descriptors(daemon: &Daemon, limit: Rlimit) -> Rlimit {
    let pid = Pid::from_raw(daemon.pid().cast_signed());
    prlimit(pid, Resource::Nofile, limit).unwrap()
}

/// Processor time the daemon has used, in hundredths of a second.
fn ticks(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn without_descriptors_new_clients_wait_and_the_others_go_on() {
    let mut daemon = daemon();
    let mut old = Connection::open(&daemon.socket(), "disk").unwrap();
    old.write(0, &[1; 4096]).unwrap();
    let before = take_descriptors(&daemon);
    // The kernel connects them; nobody greets them.
    let waiting: Vec<UnixStream> =
        (0..3).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    waiting[0].set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let (began, used) = (Instant::now(), ticks(&daemon));
    let unheard = (&waiting[0]).read(&mut [0; 18]).unwrap_err();
    assert!(matches!(unheard.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{unheard}");
    let hundredths = u64::try_from(began.elapsed().as_millis()).unwrap() / 10;
    let spent = ticks(&daemon) - used;
    assert!(spent * 2 < hundredths, "busy for {spent} of {hundredths} hundredths of a second");
    // More than an SCO, so that uploads fail meanwhile as well.
    for n in 1..=64 {
        old.write(n * 65_536, &[n as u8; 65_536]).unwrap();
        old.flush().unwrap();
    }
    for n in 1..=64 {
        assert_eq!(old.read(n * 65_536, 65_536).unwrap(), [n as u8; 65_536], "at {n}");
    }
    limit_descriptors(&daemon, before);
    let mut late = Connection::open(&daemon.socket(), "disk").unwrap();
    assert_eq!(late.read(0, 4096).unwrap(), [1; 4096]);
    waiting[0].set_read_timeout(Some(PATIENCE)).unwrap();
    (&waiting[0]).read_exact(&mut [0; 18]).unwrap();
    daemon.flush_to_backend("disk");
    let log = std::fs::read_to_string(daemon.path("log")).unwrap();
    let said = log.matches("new NBD connections cannot be accepted").count();
    assert_eq!(said, 1, "said {said} times");
    assert!(log.contains("NBD connections are accepted again"));
    daemon.stop();
}

/// From now on the daemon can open so many more files at a time.
fn leave_descriptors(daemon: &Daemon, count: u64) -> Rlimit {
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap()
    };
    let open: std::collections::BTreeSet<u64> = open.map(number).collect();
    let nth_free = (0..).filter(|n| !open.contains(n)).nth(count as usize);
    limit_descriptors(daemon, Rlimit { current: nth_free, ..descriptor_limit(daemon) })
}

#[test]
fn without_descriptors_no_vdisk_is_created_and_the_others_go_on() {
    let mut daemon = daemon();
    let mut old = Connection::open(&daemon.socket(), "disk").unwrap();
    old.write(0, &[1; 4096]).unwrap();
    old.flush().unwrap();
    // Enough for the connection of the command, and nothing else.
    let before = leave_descriptors(&daemon, 1);
    let create = || daemon.command(&["vdisk", "create", "second", "--size", "64MiB"]);
    let refused = create().outcome();
    assert!(!refused.status.success(), "{refused}");
    assert!(refused.err.contains("Too many open files"), "{refused}");
    assert!(!daemon.command(&["vdisk", "list"]).run().contains("second"));
    old.write(4096, &[2; 4096]).unwrap();
    old.flush().unwrap();
    assert_eq!(old.read(0, 8192).unwrap(), [[1; 4096], [2; 4096]].concat());
    limit_descriptors(&daemon, before);
    create().run();
    let mut second = Connection::open(&daemon.socket(), "second").unwrap();
    second.write(0, &[3; 4096]).unwrap();
    second.flush().unwrap();
    daemon.kill9();
    daemon.restart();
    let mut second = Connection::open(&daemon.socket(), "second").unwrap();
    assert_eq!(second.read(0, 4096).unwrap(), [3; 4096]);
    daemon.stop();
}

#[test]
fn a_daemon_takes_as_many_descriptors_as_it_may() {
    let ours = getrlimit(Resource::Nofile);
    let less = Rlimit { current: Some(1024), ..ours };
    setrlimit(Resource::Nofile, less).unwrap();
    let daemon = daemon();
    setrlimit(Resource::Nofile, ours).unwrap();
    let has = descriptor_limit(&daemon);
    assert_eq!(has.current, has.maximum, "not raised");
}

/// A sample of the daemon's metrics.
fn sample(daemon: &Daemon, name: &str) -> Option<String> {
    let text = daemon.command(&["metrics"]).run();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1).map(str::to_owned)
}

#[test]
fn clients_that_vanish_with_requests_in_flight_leave_nothing_behind() {
    let mut daemon = daemon();
    const PIECE: u32 = 1 << 20;
    for round in 1..=8_u8 {
        let mut client = Connection::open(&daemon.socket(), "disk").unwrap();
        for n in 0..12 {
            let data = vec![round; PIECE as usize];
            client.send((CMD_WRITE, nbd::FLAG_FUA), u64::from(n * PIECE), PIECE, &data).unwrap();
        }
        client.send((CMD_FLUSH, 0), 0, 0, &[]).unwrap();
        // In the middle of one more request.
        let header = nbd::request(0, CMD_WRITE, 99, 0, PIECE);
        std::io::Write::write_all(&mut client.stream, &header).unwrap();
    }
    let begin = Instant::now();
    for (name, quiet) in
        [("volumedriver_nbd_connections", "0"), ("volumedriver_nbd_memory_bytes", "0")]
    {
        while sample(&daemon, name).as_deref() != Some(quiet) {
            assert!(begin.elapsed() < PATIENCE, "{name} is {:?}", sample(&daemon, name));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let mut client = Connection::open(&daemon.socket(), "disk").unwrap();
    for n in 0..12 {
        let data = client.read(u64::from(n * PIECE), PIECE).unwrap();
        // Each cluster is as one of them wrote it.
        assert!(data.chunks(4096).all(|cluster| cluster.iter().all(|byte| *byte == cluster[0])));
    }
    client.disconnect().unwrap();
    daemon.stop();
}

/// Resident memory of the daemon, bytes.
fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn idle_clients_cost_next_to_nothing() {
    const CLIENTS: u64 = 200;
    let daemon = daemon();
    let first = Connection::open(&daemon.socket(), "disk").unwrap();
    let before = resident(&daemon);
    let idle: Vec<Connection> =
        (0..CLIENTS).map(|_| Connection::open(&daemon.socket(), "disk").unwrap()).collect();
    let each = resident(&daemon).saturating_sub(before) / CLIENTS;
    assert!(each < 64 << 10, "{each} bytes for each idle client");
    drop((first, idle));
}
