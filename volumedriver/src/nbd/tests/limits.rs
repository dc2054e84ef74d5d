//! Ceilings, time-outs, shutting down, and sockets left behind.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::peer::{Peer, compact};
use super::ram::{Ram, Rams, Running, Speed, on_local};
use crate::nbd::{Limits, Listener};

const SIZE: usize = 8 << 20;

fn server(speed: Speed, limits: Limits) -> Running {
    Running::start(move || Rams::of([Ram::new("disk", SIZE, speed)]), limits)
}

#[test]
fn connections_over_the_ceiling_are_closed_at_once() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let server = server(Speed::AtOnce, limits);
    let mut first = Peer::connect(&server.socket());
    let second = Peer::connect(&server.socket());
    let mut third = Peer { stream: UnixStream::connect(server.socket()).expect("connected") };
    third.closed();
    first.go("disk");
    drop(second);
    // The place becomes free once the server has noticed.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let stream = UnixStream::connect(server.socket()).expect("connected");
        let mut byte = [0];
        match std::io::Read::read(&mut &stream, &mut byte) {
            Ok(1) => break,
            _ => assert!(Instant::now() < deadline, "the place never became free"),
        }
    }
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
