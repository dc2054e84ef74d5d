//! The transmission phase byte by byte: every style of headers, and what breaks a connection or does not.

use super::peer::{Peer, compact, named};
use super::ram::{Ram, Rams, Running, Speed};
use crate::nbd::Limits;

const SIZE: usize = 8 << 20;
const SPEEDS: [Speed; 2] = [Speed::AtOnce, Speed::AlwaysSubmit];

fn server(speed: Speed) -> Running {
    Running::start(
        move || Rams::of([Ram::new("disk", SIZE, speed), Ram::read_only("frozen", SIZE)]),
        Limits::default(),
    )
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251 + 1) as u8).collect()
}

/// Both metadata contexts, selected by name.
fn select_contexts<S: std::io::Read + std::io::Write>(peer: &mut Peer<S>) {
    let mut queries = 2u32.to_be_bytes().to_vec();
    for query in ["base:allocation", "qemu:allocation-depth"] {
        queries.extend(named(query, &[]));
    }
    peer.acked(10, &named("disk", &queries));
}

#[test]
fn simple_replies() {
    for speed in SPEEDS {
        let server = server(speed);
        let mut peer = Peer::connect(&server.socket());
        peer.go("disk");
        let data = pattern(8192);
        peer.ask(0, 1, 7, 4096, 8192);
        peer.give(&data);
        assert_eq!(peer.simple(), (0, 7));
        peer.ask(0, 0, 8, 4096, 8192);
        assert_eq!(peer.simple(), (0, 8));
        assert_eq!(peer.take(8192), data);
        peer.ask(0, 3, 9, 0, 0);
        assert_eq!(peer.simple(), (0, 9));
        peer.ask(0, 0, 10, SIZE as u64, 512);
        assert_eq!(peer.simple(), (22, 10));
        peer.ask(0, 2, 11, 0, 0);
        peer.closed();
    }
}

#[test]
fn structured_replies_with_holes_and_without() {
    for speed in SPEEDS {
        let server = server(speed);
        let mut peer = Peer::connect(&server.socket());
        peer.acked(8, &[]);
        peer.go("disk");
        // The first half of a MiB has data; pieces come from the export in 64 KiB.
        peer.ask(0, 1, 1, 0, 512 << 10);
        peer.give(&pattern(512 << 10));
        assert_eq!(peer.simple(), (0, 1));
        peer.ask(0, 0, 2, 0, 1 << 20);
        let data = peer.structured();
        assert_eq!((data.last, data.kind, data.payload.len()), (false, 1, (512 << 10) + 8));
        assert_eq!(data.payload[8..], pattern(512 << 10));
        let hole = peer.structured();
        assert_eq!((hole.last, hole.kind, hole.cookie), (true, 2, 2));
        assert_eq!(hole.payload, [0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
        // Don't fragment: one chunk with the zeroes in it.
        peer.ask(4, 0, 3, 0, 1 << 20);
        let whole = peer.structured();
        assert_eq!((whole.last, whole.kind, whole.payload.len()), (true, 1, (1 << 20) + 8));
        assert!(whole.payload[(512 << 10) + 8..].iter().all(|byte| *byte == 0));
        // A small read of zeroes.
        peer.ask(0, 0, 4, 1 << 20, 4096);
        let hole = peer.structured();
        assert_eq!((hole.last, hole.kind, hole.payload.len()), (true, 2, 12));
        // An error says why.
        peer.ask(0, 0, 5, 1, 4096);
        let error = peer.structured();
        assert_eq!((error.last, error.kind), (true, 0x8001));
        assert_eq!(error.payload[..4], 22u32.to_be_bytes());
        assert!(String::from_utf8_lossy(&error.payload[6..]).contains("512"));
    }
}

#[test]
fn extended_headers() {
    for speed in SPEEDS {
        let server = server(speed);
        let mut peer = Peer::connect(&server.socket());
        peer.acked(11, &[]);
        select_contexts(&mut peer);
        peer.go("disk");
        peer.ask_extended(32, 1, 1, 4096, 4096);
        peer.give(&pattern(4096));
        let done = peer.extended(4096);
        assert_eq!((done.last, done.kind, done.cookie, done.payload.len()), (true, 0, 1, 0));
        peer.ask_extended(0, 0, 2, 4096, 4096);
        let data = peer.extended(4096);
        assert_eq!((data.last, data.kind), (true, 1));
        assert_eq!(data.payload, [&4096u64.to_be_bytes()[..], &pattern(4096)].concat());
        // Zeroes that stay allocated over a hole.
        peer.ask_extended(2, 6, 3, 8192, 4096);
        assert_eq!(peer.extended(8192).kind, 0);

        peer.ask_extended(0, 7, 4, 0, 64 << 10);
        let words = |bytes: &[u8]| -> Vec<u64> {
            bytes.chunks(8).map(|word| u64::from_be_bytes(word.try_into().unwrap())).collect()
        };
        let base = peer.extended(0);
        assert_eq!(
            (base.last, base.kind, &base.payload[..8]),
            (false, 6, &[0, 0, 0, 1, 0, 0, 0, 4][..])
        );
        assert_eq!(words(&base.payload[8..]), [4096, 3, 4096, 0, 4096, 2, 52 << 10, 3]);
        let depth = peer.extended(0);
        assert_eq!(
            (depth.last, depth.kind, &depth.payload[..8]),
            (true, 6, &[0, 0, 0, 2, 0, 0, 0, 3][..])
        );
        assert_eq!(words(&depth.payload[8..]), [4096, 0, 8192, 1, 52 << 10, 0]);

        // Only the second context, only one extent.
        peer.ask_extended(32 | 8, 7, 5, 4096, 12);
        peer.give(&[&8192u64.to_be_bytes()[..], &2u32.to_be_bytes()].concat());
        let depth = peer.extended(4096);
        assert_eq!((depth.last, depth.kind), (true, 6));
        assert_eq!(words(&depth.payload[8..]).len(), 2);

        peer.ask_extended(0, 4, 6, 0, 1 << 40);
        let error = peer.extended(0);
        assert_eq!((error.last, error.kind), (true, 0x8001));
        assert_eq!(error.payload[..4], 22u32.to_be_bytes());
        peer.ask_extended(0, 4, 7, 0, SIZE as u64);
        assert_eq!(peer.extended(0).kind, 0);
    }
}

#[test]
fn block_status_in_32_bits() {
    let server = server(Speed::AtOnce);
    let mut peer = Peer::connect(&server.socket());
    peer.acked(8, &[]);
    select_contexts(&mut peer);
    peer.go("disk");
    peer.ask(0, 7, 1, 0, 8192);
    assert_eq!(peer.structured().payload, [0, 0, 0, 1, 0, 0, 32, 0, 0, 0, 0, 3]);
    let depth = peer.structured();
    assert_eq!((depth.last, depth.payload), (true, vec![0, 0, 0, 2, 0, 0, 32, 0, 0, 0, 0, 0]));
}

#[test]
fn bad_magic_closes_this_connection_only() {
    let server = server(Speed::AtOnce);
    let mut good = Peer::connect(&server.socket());
    good.go("disk");
    let mut bad = Peer::connect(&server.socket());
    bad.go("disk");
    bad.give(&[0; 28]);
    bad.closed();
    let mut rude = Peer::connect(&server.socket());
    rude.give(b"GET / HTTP/1.1\r\n\r\n");
    rude.closed();
    good.ask(0, 3, 1, 0, 0);
    assert_eq!(good.simple(), (0, 1));
}

#[test]
fn refused_writes_leave_the_connection_usable() {
    let server = server(Speed::AtOnce);
    let mut peer = Peer::connect(&server.socket());
    peer.go("frozen");
    peer.ask(0, 1, 1, 0, 4096);
    peer.give(&[7; 4096]);
    assert_eq!(peer.simple(), (1, 1));
    let mut peer = Peer::connect(&server.socket());
    peer.go("disk");
    peer.ask(0, 1, 2, SIZE as u64, 4096);
    peer.give(&[7; 4096]);
    assert_eq!(peer.simple(), (28, 2));
    peer.ask(0, 1, 3, 0, 3);
    peer.give(&[7; 3]);
    assert_eq!(peer.simple(), (22, 3));
    peer.ask(0, 99, 4, 0, 0);
    assert_eq!(peer.simple(), (22, 4));
    peer.ask(0, 3, 5, 0, 0);
    assert_eq!(peer.simple(), (0, 5));
}

#[test]
fn the_longest_payload_both_ways() {
    for speed in SPEEDS {
        let size = 64 << 20;
        let server =
            Running::start(move || Rams::of([Ram::new("disk", size, speed)]), Limits::default());
        let mut peer = Peer::connect(&server.socket());
        peer.go("disk");
        let data = pattern(32 << 20);
        peer.ask(0, 1, 1, 4096, 32 << 20);
        peer.give(&data);
        assert_eq!(peer.simple(), (0, 1));
        peer.ask(0, 0, 2, 4096, 32 << 20);
        assert_eq!(peer.simple(), (0, 2));
        assert!(peer.take(32 << 20) == data);
        // One sector more is refused and drained, and the connection goes on.
        peer.ask(0, 1, 3, 0, (32 << 20) + 512);
        peer.give(&vec![0x25; (32 << 20) + 512]);
        assert_eq!(peer.simple(), (22, 3));
    }
}

#[test]
fn requests_in_flight_are_answered_before_a_disconnect() {
    let server = server(Speed::AlwaysSubmit);
    let mut peer = Peer::connect(&server.socket());
    peer.go("disk");
    let mut stream = Vec::new();
    for cookie in 0..100 {
        stream.extend(compact(0, 1, cookie, cookie * 4096, 4096));
        stream.extend([cookie as u8; 4096]);
    }
    stream.extend(compact(0, 2, 0, 0, 0));
    peer.give(&stream);
    let mut answered: Vec<u64> =
        (0..100).map(|_| peer.simple()).map(|(_, cookie)| cookie).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..100).collect::<Vec<_>>());
    peer.closed();
}

#[test]
fn bytes_that_trickle_in() {
    let server = server(Speed::AtOnce);
    let mut peer = Peer::connect(&server.socket());
    peer.go("disk");
    let mut stream = compact(0, 1, 1, 0, 4096);
    stream.extend(pattern(4096));
    stream.extend(compact(0, 0, 2, 0, 4096));
    for piece in stream.chunks(5) {
        peer.give(piece);
    }
    assert_eq!(peer.simple(), (0, 1));
    assert_eq!(peer.simple(), (0, 2));
    assert_eq!(peer.take(4096), pattern(4096));
}
