use super::super::reply::{self, Chunk};
use super::bytes::hex;
use super::*;
use crate::request::{Allocation, Extent};
use crate::units::ByteCount;

fn tag(command: Command) -> Tag {
    Tag { cookie: 0x0102_0304_0506_0708, offset: 0x2000, command }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

const SIMPLE_OK: &str = "67446698 00000000 0102030405060708";

#[test]
fn success() {
    let done = |style, command| encoded(|out| reply::done(style, tag(command), out));
    assert_eq!(done(Style::Simple, Command::Write), hex(SIMPLE_OK));
    assert_eq!(done(Style::Structured, Command::Write), hex(SIMPLE_OK));
    let chunk = hex("668e33ef 0001 0000 0102030405060708 00000000");
    assert_eq!(done(Style::Structured, Command::Read), chunk);
    let chunk = hex("6e8a278c 0001 0000 0102030405060708 0000000000002000 0000000000000000");
    assert_eq!(done(Style::Extended, Command::Write), chunk);
}

#[test]
fn read_data() {
    let data =
        |style, last| encoded(|out| reply::data(style, tag(Command::Read), last, 0x3000, 512, out));
    assert_eq!(data(Style::Simple, Chunk::Last), hex(SIMPLE_OK));
    let chunk = hex("668e33ef 0001 0001 0102030405060708 00000208 0000000000003000");
    assert_eq!(data(Style::Structured, Chunk::Last), chunk);
    let chunk = hex(
        "6e8a278c 0000 0001 0102030405060708 0000000000002000 0000000000000208 0000000000003000",
    );
    assert_eq!(data(Style::Extended, Chunk::More), chunk);
}

#[test]
fn read_hole() {
    let hole = |style| {
        encoded(|out| reply::hole(style, tag(Command::Read), Chunk::Last, 0x3000, 4096, out))
    };
    let chunk = hex("668e33ef 0001 0002 0102030405060708 0000000c 0000000000003000 00001000");
    assert_eq!(hole(Style::Structured), chunk);
    let chunk = hex(
        "6e8a278c 0001 0002 0102030405060708 0000000000002000 000000000000000c 0000000000003000 00001000",
    );
    assert_eq!(hole(Style::Extended), chunk);
}

#[test]
fn errors_carry_their_message() {
    let error = |style, message: &str| {
        encoded(|out| reply::error(style, tag(Command::Write), Errno::NoSpc, message, out))
    };
    assert_eq!(error(Style::Simple, "full"), hex("67446698 0000001c 0102030405060708"));
    let chunk = hex("668e33ef 0001 8001 0102030405060708 0000000a 0000001c 0004 'full'");
    assert_eq!(error(Style::Structured, "full"), chunk);
    let chunk = hex(
        "6e8a278c 0001 8001 0102030405060708 0000000000002000 000000000000000a 0000001c 0004 'full'",
    );
    assert_eq!(error(Style::Extended, "full"), chunk);
    let long = error(Style::Structured, &"\u{e9}".repeat(4096));
    assert_eq!(long.len(), 20 + 6 + 4096);
    assert_eq!(error(Style::Structured, "fu\0ll")[20..], hex("0000001c 0002 'fu'"));
}

#[test]
fn block_status_of_each_context() {
    let extent = |len, state| Extent { len: ByteCount(len), state };
    let extents = [
        extent(4096, Allocation::Data),
        extent(8192, Allocation::Zero),
        extent(512, Allocation::Hole),
    ];
    let status = |style, context| {
        encoded(|out| {
            let tag = tag(Command::BlockStatus);
            assert!(reply::status(style, tag, Chunk::More, context, &extents, out));
        })
    };
    let chunk = hex("668e33ef 0000 0005 0102030405060708 0000001c 00000001 \
         00001000 00000000 00002000 00000002 00000200 00000003");
    assert_eq!(status(Style::Structured, Context::Allocation), chunk);
    // Data and zeroes are both local: one extent.
    let chunk = hex(
        "6e8a278c 0000 0006 0102030405060708 0000000000002000 0000000000000028 00000002 00000002 \
         0000000000003000 0000000000000001 0000000000000200 0000000000000000",
    );
    assert_eq!(status(Style::Extended, Context::Depth), chunk);
}

#[test]
fn no_status_without_extents_or_structure() {
    let mut out = Vec::new();
    let tag = tag(Command::BlockStatus);
    let empty = [Extent { len: ByteCount(0), state: Allocation::Data }];
    for extents in [&[][..], &empty] {
        let context = Context::Allocation;
        assert!(!reply::status(Style::Structured, tag, Chunk::Last, context, extents, &mut out));
    }
    let one = [Extent { len: ByteCount(512), state: Allocation::Data }];
    assert!(!reply::status(Style::Simple, tag, Chunk::Last, Context::Depth, &one, &mut out));
    assert!(out.is_empty());
}

#[test]
fn every_fault_has_its_error_value() {
    let code = |kind| Errno::from(kind).code();
    assert_eq!(code(Kind::Invalid), 22);
    assert_eq!(code(Kind::NoSpace), 28);
    for kind in [Kind::Unavailable, Kind::Corrupt, Kind::Bug] {
        assert_eq!(code(kind), 5);
    }
    for kind in [Kind::Fenced, Kind::Closed] {
        assert_eq!(code(kind), 108);
    }
    assert_eq!([Errno::Perm, Errno::Overflow, Errno::NotSup].map(Errno::code), [1, 75, 95]);
}
