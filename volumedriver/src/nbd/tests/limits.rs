//! Ceilings, time-outs, shutting down, and sockets left behind.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::peer::{Peer, compact, named};
use super::ram::{Gate, Ram, Rams, Running, Speed, on_local};
use crate::nbd::{Limits, Listener};

const SIZE: usize = 8 << 20;

fn server(speed: Speed, limits: Limits) -> Running {
    Running::start(move || Rams::of([Ram::new("disk", SIZE, speed)]), limits)
}

/// `NBD_REP_ERR_POLICY`.
const ERR_POLICY: u32 = 0x8000_0002;

#[test]
fn connections_over_the_ceiling_are_told_so() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let server = server(Speed::AtOnce, limits);
    let mut first = Peer::connect(&server.socket());
    let second = Peer::connect(&server.socket());
    let mut third = Peer::connect(&server.socket());
    let replies = third.option(7, &named("disk", &[0, 0]));
    let [(ERR_POLICY, why)] = &replies[..] else { panic!("{replies:?}") };
    let why = String::from_utf8_lossy(why);
    assert!(why.contains("has 2 connections") && why.contains("connections_count"), "{why}");
    first.go("disk");
    drop(second);
    // The place becomes free once the server has noticed.
    let deadline = Instant::now() + Duration::from_secs(20);
    while Peer::connect(&server.socket()).option(7, &named("disk", &[0, 0])).len() == 1 {
        assert!(Instant::now() < deadline, "the place never became free");
    }
}

#[test]
fn a_crowd_over_the_ceiling_is_closed_without_a_word() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = server(Speed::AtOnce, limits);
    let mut first = Peer::connect(&server.socket());
    // They say nothing, so that those who are told would be for some time.
    let crowd: Vec<UnixStream> =
        (0..200).map(|_| UnixStream::connect(server.socket()).expect("connected")).collect();
    let mut greeted = 0;
    for stream in &crowd {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let mut greeting = [0; 18];
        greeted += usize::from(std::io::Read::read_exact(&mut &*stream, &mut greeting).is_ok());
    }
    assert!((1..=200).contains(&greeted), "{greeted} of 200");
    assert!(greeted < 200, "all 200 were held");
    first.go("disk");
}

/// The header of a write of this many bytes.
fn write_header(len: u32) -> Vec<u8> {
    compact(0, 1, 9, 0, len)
}

/// Largest write there is.
const LARGEST: u32 = 32 << 20;

#[test]
fn clients_that_announce_and_do_not_send_are_closed_once_they_are_in_the_way() {
    let quiet = Duration::from_millis(300);
    let limits = Limits { quiet, ..Limits::default() };
    let size = LARGEST as usize;
    let server = Running::start(move || Rams::of([Ram::new("disk", size, Speed::AtOnce)]), limits);
    let connected = || {
        let mut peer = Peer::connect(&server.socket());
        peer.go("disk");
        peer
    };
    // Three of them take so much of the pool's 128 MiB that a fourth one must wait.
    let mut idlers: Vec<Peer> = (0..3).map(|_| connected()).collect();
    for idler in &mut idlers {
        idler.give(&write_header(LARGEST));
    }
    let mut small = connected();
    std::thread::sleep(3 * quiet);
    small.ask(0, 0, 1, 0, 4096);
    assert_eq!((small.simple(), small.take(4096).len()), ((0, 1), 4096));
    // As long as nobody else needs it they may keep it.
    idlers[0].give(&vec![7; 4096]);
    let mut writer = connected();
    writer.give(&write_header(LARGEST));
    writer.give(&vec![8; LARGEST as usize]);
    assert_eq!(writer.simple(), (0, 9));
    let closed = |peer: &mut Peer| {
        peer.stream.set_nonblocking(true).expect("set");
        matches!(std::io::Read::read(&mut peer.stream, &mut [0]), Ok(0))
    };
    assert!(idlers.iter_mut().any(closed), "nobody made way");
    small.ask(0, 0, 2, 0, 4096);
    assert_eq!((small.simple(), small.take(4096)), ((0, 2), vec![8; 4096]));
}

#[test]
fn what_a_client_left_in_flight_counts_until_it_is_done() {
    let size = LARGEST as usize;
    let gate = Gate::default();
    let volumes = {
        let gate = gate.clone();
        move || Rams::of([Ram::behind("stuck", size, gate), Ram::new("disk", size, Speed::AtOnce)])
    };
    let server = Running::start(volumes, Limits::default());
    for _ in 0..3 {
        let mut leaver = Peer::connect(&server.socket());
        leaver.go("stuck");
        leaver.give(&write_header(LARGEST));
        leaver.give(&vec![7; LARGEST as usize]);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while gate.waiting() < 3 {
        assert!(Instant::now() < deadline, "the writes did not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut writer = Peer::connect(&server.socket());
    writer.go("disk");
    // A small one finds room in what every connection has.
    writer.ask(0, 0, 1, 0, 4096);
    assert_eq!((writer.simple(), writer.take(4096).len()), ((0, 1), 4096));
    writer.give(&write_header(LARGEST));
    writer.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let sent = std::io::Write::write_all(&mut writer.stream, &vec![8; LARGEST as usize]);
    assert!(sent.is_err(), "a large write was taken though the memory was not there");
    drop(writer);
    gate.open();
    let mut writer = Peer::connect(&server.socket());
    writer.go("disk");
    writer.give(&write_header(LARGEST));
    writer.give(&vec![8; LARGEST as usize]);
    assert_eq!(writer.simple(), (0, 9));
}

#[test]
fn a_handshake_that_never_ends_is_cut() {
    let limits = Limits { handshake: Duration::from_millis(100), ..Limits::default() };
    let server = server(Speed::AtOnce, limits);
    let mut peer = Peer::connect(&server.socket());
    let started = Instant::now();
    peer.closed();
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn more_requests_than_may_be_in_flight_are_all_answered() {
    for (requests, held_bytes) in [(1, 64 << 20), (4, 64 << 20), (1024, 1)] {
        let limits = Limits { requests, held_bytes, ..Limits::default() };
        let server = server(Speed::AlwaysSubmit, limits);
        let mut peer = Peer::connect(&server.socket());
        peer.go("disk");
        let stream: Vec<u8> = (0..500).flat_map(|cookie| compact(0, 0, cookie, 0, 4096)).collect();
        peer.give(&stream);
        let mut cookies: Vec<u64> = (0..500)
            .map(|_| {
                let (error, cookie) = peer.simple();
                assert_eq!((error, peer.take(4096).len()), (0, 4096));
                cookie
            })
            .collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..500).collect::<Vec<_>>());
    }
}

#[test]
fn a_client_that_reads_no_replies_is_held_back() {
    let limits = Limits { held_bytes: 1 << 20, ..Limits::default() };
    let server = server(Speed::AtOnce, limits);
    let mut peer = Peer::connect(&server.socket());
    peer.go("disk");
    peer.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    // Asks for 4 GiB in all; the requests themselves are some 900 KiB, more than socket and receive buffer take.
    let stream: Vec<u8> =
        (0..32_768u64).flat_map(|cookie| compact(0, 0, cookie, 0, 131_072)).collect();
    let sent = std::io::Write::write_all(&mut peer.stream, &stream);
    assert!(sent.is_err(), "everything was taken from a client that reads nothing");
    // Another client is served meanwhile, and this one too once it reads.
    let mut other = Peer::connect(&server.socket());
    other.go("disk");
    other.ask(0, 3, 1, 0, 0);
    assert_eq!(other.simple(), (0, 1));
    assert_eq!(peer.simple(), (0, 0));
}

#[test]
fn shutting_down_answers_what_is_in_flight() {
    let server = server(Speed::AlwaysSubmit, Limits::default());
    let mut busy = Peer::connect(&server.socket());
    busy.go("disk");
    let mut idle = Peer::connect(&server.socket());
    idle.go("disk");
    let mut undecided = Peer::connect(&server.socket());
    busy.ask(0, 0, 5, 0, 4096);
    assert_eq!(busy.simple(), (0, 5));
    busy.take(4096);
    server.stop();
    busy.closed();
    idle.closed();
    undecided.closed();
    let socket = server.socket();
    drop(server);
    assert!(!socket.exists(), "the socket file is left behind");
}

#[test]
fn a_dead_servers_socket_is_replaced_and_a_live_ones_is_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("nbd");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists());
    on_local(async {
        let alive = Listener::unix(&path).expect("replaces the dead one");
        let refused = Listener::unix(&path).err().expect("refused").to_string();
        assert!(refused.contains("another server") && refused.contains("nbd"), "{refused}");
        drop(alive);
        std::fs::write(&path, "precious").expect("written");
        let refused = Listener::unix(&path).err().expect("refused").to_string();
        assert!(refused.contains("not a socket"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).expect("kept"), "precious");
    });
}

#[test]
fn a_taken_port_is_named() {
    on_local(async {
        let address = "127.0.0.1:0".parse().expect("an address");
        let first = Listener::tcp(address).await.expect("bound");
        let taken = first.name().parse().expect("the address it took");
        let refused = Listener::tcp(taken).await.err().expect("refused").to_string();
        assert!(refused.contains(first.name()), "{refused}");
    });
}
