use super::bytes::hex;
use super::*;
use crate::request::{Fua, ZeroMode};

fn decode(agreed: Agreed, text: &str) -> (usize, Event<'static>) {
    let input: &'static [u8] = hex(text).leak();
    let decoded = Decoder::new(agreed).decode(input);
    (decoded.used, decoded.event)
}

/// A compact request: flags, type, offset, length.
fn compact(flags: &str, command: &str, offset: &str, len: &str) -> String {
    format!("25609513 {flags} {command} 0102030405060708 {offset} {len}")
}

fn extended(flags: &str, command: &str, offset: &str, len: &str) -> String {
    format!("21e41c71 {flags} {command} 0102030405060708 {offset} {len}")
}

fn ask(agreed: Agreed, text: &str) -> Ask<'static> {
    match decode(agreed, text) {
        (_, Event::Ask(_, ask)) => ask,
        other => panic!("{text}: {other:?}"),
    }
}

fn errno(agreed: Agreed, text: &str) -> u32 {
    match decode(agreed, text) {
        (used, Event::Refuse(_, refusal)) => {
            assert_eq!(used, hex(text).len(), "{text}: all of it is consumed");
            refusal.errno.code()
        }
        other => panic!("{text}: {other:?}"),
    }
}

const AT_4096: &str = "0000000000001000";

#[test]
fn a_read() {
    let (used, event) =
        decode(agreed(Style::Simple), &compact("0000", "0000", AT_4096, "00000200"));
    assert_eq!(used, 28);
    let tag = Tag { cookie: 0x0102_0304_0506_0708, offset: 4096, command: Command::Read };
    assert_eq!(event, Event::Ask(tag, Ask::Read { len: 512, fragments: Fragments::Allowed }));
}

#[test]
fn df_is_for_reads_once_replies_are_structured() {
    let text = compact("0004", "0000", AT_4096, "00000200");
    let expected = Ask::Read { len: 512, fragments: Fragments::Forbidden };
    assert_eq!(ask(agreed(Style::Structured), &text), expected);
    assert_eq!(errno(agreed(Style::Simple), &text), 22);
    assert_eq!(errno(agreed(Style::Structured), &compact("0004", "0004", AT_4096, "00000200")), 22);
}

#[test]
fn a_write_waits_for_its_payload() {
    let head = compact("0001", "0001", AT_4096, "00000200");
    let agreed = agreed(Style::Simple);
    assert_eq!(decode(agreed.clone(), "25609513 0001"), (0, Event::Need(28)));
    assert_eq!(decode(agreed.clone(), &head), (0, Event::Need(28 + 512)));
    let (used, event) = decode(agreed, &format!("{head} {}", "ab".repeat(513)));
    assert_eq!(used, 28 + 512);
    let Event::Ask(_, Ask::Write { data, fua }) = event else { panic!("{event:?}") };
    assert_eq!((data, fua), (&[0xab; 512][..], Fua::Yes));
}

#[test]
fn other_commands() {
    let agreed = || agreed(Style::Structured);
    let plain = |command: &str| ask(agreed(), &compact("0000", command, AT_4096, "00001000"));
    assert_eq!(plain("0004"), Ask::Trim { len: 4096, fua: Fua::No });
    assert_eq!(plain("0005"), Ask::Cache { len: 4096 });
    let zeroes = Ask::WriteZeroes { len: 4096, mode: ZeroMode::MayPunch, fua: Fua::No };
    assert_eq!(plain("0006"), zeroes);
    let zeroes = Ask::WriteZeroes { len: 4096, mode: ZeroMode::Allocate, fua: Fua::Yes };
    assert_eq!(ask(agreed(), &compact("0013", "0006", AT_4096, "00001000")), zeroes);
    let status = |extents| Ask::Status { len: 4096, extents, contexts: Contexts::all() };
    assert_eq!(plain("0007"), status(Extents::Many));
    assert_eq!(ask(agreed(), &compact("0008", "0007", AT_4096, "00001000")), status(Extents::One));
    let flush = compact("0000", "0003", "0000000000000000", "00000000");
    assert_eq!(ask(agreed(), &flush), Ask::Flush);
    let disconnect = compact("0000", "0002", "0000000000000000", "00000000");
    assert_eq!(decode(agreed(), &disconnect), (28, Event::Disconnect));
}

#[test]
fn fua_is_taken_with_every_command() {
    for command in ["0000", "0004", "0005", "0006", "0007"] {
        ask(agreed(Style::Structured), &compact("0001", command, AT_4096, "00001000"));
    }
    ask(agreed(Style::Structured), &compact("0001", "0003", "0000000000000000", "00000000"));
}

#[test]
fn past_the_end() {
    // The export has 1 MiB: read, trim, cache, status: EINVAL; write, zeroes: ENOSPC.
    let at_end = "00000000000ffe00";
    for (command, expected) in
        [("0000", 22), ("0004", 22), ("0005", 22), ("0006", 28), ("0007", 22)]
    {
        let agreed = || agreed(Style::Structured);
        ask(agreed(), &compact("0000", command, at_end, "00000200"));
        assert_eq!(errno(agreed(), &compact("0000", command, at_end, "00000400")), expected);
        let wraps = compact("0000", command, "fffffffffffffe00", "00000400");
        assert_eq!(errno(agreed(), &wraps), expected);
    }
    let write = compact("0000", "0001", at_end, "00000400") + &"00".repeat(1024);
    assert_eq!(errno(agreed(Style::Simple), &write), 28);
}

#[test]
fn unaligned() {
    for command in ["0000", "0004", "0005", "0006", "0007"] {
        let agreed = || agreed(Style::Structured);
        let offset = compact("0000", command, "0000000000000001", "00000200");
        assert_eq!(errno(agreed(), &offset), 22);
        assert_eq!(errno(agreed(), &compact("0000", command, AT_4096, "000001ff")), 22);
    }
    let write = compact("0000", "0001", AT_4096, "00000003") + "aabbcc";
    assert_eq!(errno(agreed(Style::Simple), &write), 22);
}

#[test]
fn nothing_is_done_for_length_zero_and_no_status_of_it() {
    for command in ["0000", "0001", "0004", "0005", "0006"] {
        let text = compact("0000", command, AT_4096, "00000000");
        assert_eq!(ask(agreed(Style::Structured), &text), Ask::Nothing);
    }
    assert_eq!(errno(agreed(Style::Structured), &compact("0000", "0007", AT_4096, "00000000")), 22);
}

#[test]
fn read_only_exports_refuse_changes() {
    let agreed = || Agreed { read_only: true, ..agreed(Style::Structured) };
    for command in ["0004", "0006"] {
        assert_eq!(errno(agreed(), &compact("0000", command, AT_4096, "00001000")), 1);
    }
    let write = compact("0000", "0001", AT_4096, "00000200") + &"00".repeat(512);
    assert_eq!(errno(agreed(), &write), 1);
    ask(agreed(), &compact("0000", "0000", AT_4096, "00001000"));
}

#[test]
fn unknown_commands_and_flags() {
    let agreed = || agreed(Style::Structured);
    assert_eq!(errno(agreed(), &compact("0000", "0008", AT_4096, "00001000")), 22);
    assert_eq!(errno(agreed(), &compact("0000", "ffff", AT_4096, "00001000")), 22);
    for flag in ["0002", "0010", "0020", "0040", "8000"] {
        assert_eq!(errno(agreed(), &compact(flag, "0000", AT_4096, "00001000")), 22, "{flag}");
    }
    assert_eq!(errno(agreed(), &compact("0000", "0003", AT_4096, "00000000")), 22);
    let no_contexts = Agreed { contexts: Contexts::none(), ..agreed() };
    assert_eq!(errno(no_contexts, &compact("0000", "0007", AT_4096, "00001000")), 22);
}

#[test]
fn fast_zero_of_less_than_a_block_is_not_fast() {
    let agreed = || agreed(Style::Structured);
    ask(agreed(), &compact("0010", "0006", AT_4096, "00001000"));
    ask(agreed(), &compact("0010", "0006", "0000000000000e00", "00001400"));
    let inside = compact("0010", "0006", AT_4096, "00000e00");
    assert_eq!(errno(agreed(), &inside), 95);
    let across = compact("0010", "0006", "0000000000000e00", "00001000");
    assert_eq!(errno(agreed(), &across), 95);
}

#[test]
fn reads_over_the_maximum_payload() {
    let large = |style| Agreed { size: 1 << 40, ..agreed(style) };
    let text = compact("0000", "0000", "0000000000000000", "02000200");
    assert_eq!(errno(large(Style::Simple), &text), 22);
    assert_eq!(errno(large(Style::Structured), &text), 75);
    let most = compact("0000", "0000", "0000000000000000", "02000000");
    ask(large(Style::Simple), &most);
}

#[test]
fn an_oversize_write_is_drained_and_refused() {
    let large = Agreed { size: 1 << 40, ..agreed(Style::Simple) };
    let mut decoder = Decoder::new(large);
    let head = hex(&compact("0000", "0001", "0000000000000000", "02000200"));
    let first = decoder.decode(&head);
    assert_eq!(first, Decoded { used: 28, event: Event::Skipped });
    let mut left = (1 << 25) + 512;
    let junk = vec![0x25; 1 << 20];
    loop {
        let decoded = decoder.decode(&junk);
        left -= decoded.used;
        match decoded.event {
            Event::Skipped => assert_eq!(decoded.used, junk.len()),
            Event::Refuse(tag, refusal) => {
                assert_eq!((left, refusal.errno.code(), tag.command), (0, 22, Command::Write));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let next = hex(&compact("0000", "0003", "0000000000000000", "00000000"));
    assert!(matches!(decoder.decode(&next).event, Event::Ask(_, Ask::Flush)));
}

#[test]
fn bad_magic_breaks_the_connection() {
    for style in [Style::Simple, Style::Extended] {
        let (used, event) = decode(agreed(style), "25609514");
        assert_eq!(used, 0);
        assert!(matches!(event, Event::Broken(_)), "{event:?}");
    }
    // The other style's magic is a bad one too.
    let text = compact("0000", "0000", AT_4096, "00000200");
    assert!(matches!(decode(agreed(Style::Extended), &text).1, Event::Broken(_)));
}

#[test]
fn extended_headers_have_long_lengths() {
    let large = || Agreed { size: 1 << 50, ..agreed(Style::Extended) };
    let text = extended("0000", "0004", AT_4096, "0000020000000000");
    assert_eq!(ask(large(), &text), Ask::Trim { len: 1 << 41, fua: Fua::No });
    let text = extended("0000", "0007", AT_4096, "0000000180000000");
    let all = Contexts::all();
    let expected = Ask::Status { len: 6 << 30, extents: Extents::Many, contexts: all };
    assert_eq!(ask(large(), &text), expected);
    let text = extended("0000", "0000", AT_4096, "0000000180000000");
    assert_eq!(errno(large(), &text), 75);
}

#[test]
fn extended_writes_have_their_data_with_the_payload_flag_and_without() {
    let agreed = || agreed(Style::Extended);
    let text = extended("0020", "0001", AT_4096, "0000000000000200") + &"cd".repeat(512);
    assert_eq!(ask(agreed(), &text), Ask::Write { data: &[0xcd; 512], fua: Fua::No });
    let text = extended("0000", "0001", AT_4096, "0000000000000200") + &"cd".repeat(512);
    assert_eq!(ask(agreed(), &text), Ask::Write { data: &[0xcd; 512], fua: Fua::No });
    // Commands without payload: it is consumed, then refused.
    let text = extended("0020", "0004", AT_4096, "0000000000000200") + &"cd".repeat(512);
    assert_eq!(errno(agreed(), &text), 22);
    let text = extended("0020", "0001", AT_4096, "0000000002000200");
    assert!(matches!(decode(agreed(), &text).1, Event::Broken(_)));
}

#[test]
fn block_status_payload_chooses_contexts() {
    let agreed = || agreed(Style::Extended);
    let head = |len: &str| extended("0020", "0007", AT_4096, len);
    let text = head("000000000000000c") + "0000000000001000 00000002";
    let depth = [Context::Depth].into_iter().collect();
    let expected = Ask::Status { len: 4096, extents: Extents::Many, contexts: depth };
    assert_eq!(ask(agreed(), &text), expected);
    // Unknown, repeated, missing, too many, no multiple of four.
    for text in [
        head("000000000000000c") + "0000000000001000 00000003",
        head("0000000000000010") + "0000000000001000 00000002 00000002",
        head("0000000000000008") + "0000000000001000",
        head("0000000000000014") + "0000000000001000 00000001 00000002 00000003",
        head("000000000000000e") + "0000000000001000 00000001 0000",
    ] {
        assert_eq!(errno(agreed(), &text), 22, "{text}");
    }
}
