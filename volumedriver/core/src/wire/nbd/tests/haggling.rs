use super::bytes::hex;
use super::{TwoDisks, *};

/// Feeds everything at once; all replies, and how it ended (`None`: more input wanted).
fn talk(handshake: &mut Handshake, input: &[u8]) -> (Vec<u8>, Option<Next<&'static str>>) {
    let (mut out, mut at) = (Vec::new(), 0);
    loop {
        let step = handshake.advance(&input[at..], &TwoDisks, &mut out);
        at += step.used;
        match step.next {
            Next::More if step.used == 0 => return (out, None),
            Next::More => {}
            next => return (out, Some(next)),
        }
    }
}

/// A handshake past the client flags 3 (fixed newstyle, no zeroes).
fn opened(tls: TlsPolicy) -> Handshake {
    let mut handshake = Handshake::new(tls);
    let (out, next) = talk(&mut handshake, &hex("00000003"));
    assert!(out.is_empty() && next.is_none());
    handshake
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = hex("'IHAVEOPT'");
    bytes.extend(code.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The reply to an option, from the document: magic, option, type, length, data.
fn answer(code: u32, kind: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = hex("0003e889045565a9");
    bytes.extend(code.to_be_bytes());
    bytes.extend(hex(kind));
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Sends one option; expects one error reply of that type with some message.
fn refused(handshake: &mut Handshake, code: u32, data: &[u8], kind: &str) {
    let (out, next) = talk(handshake, &option(code, data));
    assert!(next.is_none(), "option {code}: {next:?}");
    let mut head = hex("0003e889045565a9");
    head.extend(code.to_be_bytes());
    head.extend(hex(kind));
    assert_eq!(out[..16], head, "option {code}");
    assert_eq!(out.len() - 20, u32::from_be_bytes(out[16..20].try_into().unwrap()) as usize);
}

fn acked(handshake: &mut Handshake, code: u32) {
    let (out, next) = talk(handshake, &option(code, &[]));
    assert_eq!(out, answer(code, "00000001", &[]));
    assert!(next.is_none());
}

#[test]
fn greets_with_fixed_newstyle_and_no_zeroes() {
    assert_eq!(Handshake::greeting(), hex("'NBDMAGIC' 'IHAVEOPT' 0003"));
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let (out, next) = talk(&mut Handshake::new(TlsPolicy::Off), &hex("00000004"));
    assert!(out.is_empty());
    assert!(matches!(next, Some(Next::Close(Some(_)))));
}

#[test]
fn export_name_without_zeroes() {
    let (out, next) = talk(&mut opened(TlsPolicy::Off), &option(1, b"disk"));
    // 1 MiB; flags: has flags 1, flush 4, fua 8, trim 20, zeroes 40, multi 100, cache 400, fast zero 800.
    assert_eq!(out, hex("0000000000100000 0d6d"));
    assert!(matches!(next, Some(Next::Transmit(_, "disk"))));
}

#[test]
fn export_name_with_zeroes_for_an_old_client() {
    let mut input = hex("00000000");
    input.extend(option(1, b"disk"));
    let (out, _) = talk(&mut Handshake::new(TlsPolicy::Off), &input);
    let mut expected = hex("0000000000100000 0d6d");
    expected.extend([0; 124]);
    assert_eq!(out, expected);
}

#[test]
fn unknown_export_name_ends_the_connection() {
    for name in [&b"other"[..], b"", b"\xff", &[b'x'; 4097]] {
        let (out, next) = talk(&mut opened(TlsPolicy::Off), &option(1, name));
        assert!(out.is_empty());
        assert!(matches!(next, Some(Next::Close(Some(_)))), "{name:?}");
    }
}

#[test]
fn a_client_without_fixed_newstyle_may_only_name_an_export() {
    let mut input = hex("00000002");
    input.extend(option(3, &[]));
    let (out, next) = talk(&mut Handshake::new(TlsPolicy::Off), &input);
    assert!(out.is_empty());
    assert!(matches!(next, Some(Next::Close(Some(_)))));
}

#[test]
fn abort_is_acknowledged_with_or_without_data() {
    for data in [&[][..], b"bye"] {
        let (out, next) = talk(&mut opened(TlsPolicy::Required), &option(2, data));
        assert_eq!(out, answer(2, "00000001", &[]));
        assert_eq!(next, Some(Next::Close(None)));
    }
}

#[test]
fn list_names_every_export() {
    let (out, next) = talk(&mut opened(TlsPolicy::Off), &option(3, &[]));
    let mut expected = answer(3, "00000002", &hex("00000004 'disk'"));
    expected.extend(answer(3, "00000002", &hex("00000006 'frozen'")));
    expected.extend(answer(3, "00000001", &[]));
    assert_eq!(out, expected);
    assert!(next.is_none());
}

#[test]
fn info_and_go_tell_size_flags_and_block_sizes() {
    let request = hex("00000004 'disk' 0000");
    let expected = |code| {
        let mut replies = answer(code, "00000003", &hex("0000 0000000000100000 0d6d"));
        replies.extend(answer(code, "00000003", &hex("0003 00000200 00001000 02000000")));
        replies.extend(answer(code, "00000001", &[]));
        replies
    };
    let mut handshake = opened(TlsPolicy::Off);
    assert_eq!(talk(&mut handshake, &option(6, &request)), (expected(6), None));
    let (out, next) = talk(&mut handshake, &option(7, &request));
    assert_eq!(out, expected(7));
    let agreed = Agreed { contexts: Contexts::none(), ..agreed(Style::Simple) };
    assert_eq!(next, Some(Next::Transmit(agreed, "disk")));
}

#[test]
fn info_tells_name_and_description_when_asked() {
    let request = hex("00000004 'disk' 0003 0001 0002 7777");
    let (out, _) = talk(&mut opened(TlsPolicy::Off), &option(6, &request));
    let mut tail = answer(6, "00000003", &hex("0001 'disk'"));
    tail.extend(answer(6, "00000003", &hex("0002 'log-structured volume'")));
    tail.extend(answer(6, "00000001", &[]));
    assert!(out.ends_with(&tail));
}

#[test]
fn a_read_only_export_says_so() {
    let (out, next) = talk(&mut opened(TlsPolicy::Off), &option(1, b"frozen"));
    assert_eq!(out, hex("0000000000100000 0d6f"));
    assert!(matches!(next, Some(Next::Transmit(Agreed { read_only: true, .. }, "frozen"))));
}

#[test]
fn structured_replies_add_df_and_extended_headers_the_status_payload() {
    let go = option(7, &hex("00000004 'disk' 0000"));
    let flags = |out: &[u8]| out[20 + 10..20 + 12].to_vec();

    let mut handshake = opened(TlsPolicy::Off);
    acked(&mut handshake, 8);
    assert_eq!(flags(&talk(&mut handshake, &go).0), hex("0ded"));

    let mut handshake = opened(TlsPolicy::Off);
    acked(&mut handshake, 11);
    refused(&mut handshake, 8, &[], "8000000a");
    let set = option(10, &hex("00000004 'disk' 00000001 0000000f 'base:allocation'"));
    talk(&mut handshake, &set);
    let (out, next) = talk(&mut handshake, &go);
    assert_eq!(flags(&out), hex("1ded"));
    let Some(Next::Transmit(agreed, _)) = next else { panic!("{next:?}") };
    assert_eq!(agreed.style, Style::Extended);
    assert_eq!(agreed.contexts.iter().collect::<Vec<_>>(), [Context::Allocation]);

    let mut handshake = opened(TlsPolicy::Off);
    acked(&mut handshake, 11);
    assert_eq!(flags(&talk(&mut handshake, &go).0), hex("0ded"));
    let mut handshake = opened(TlsPolicy::Off);
    acked(&mut handshake, 11);
    let (_, next) = talk(&mut handshake, &option(1, b"disk"));
    assert!(matches!(next, Some(Next::Close(Some(_)))));
}

#[test]
fn lists_metadata_contexts() {
    let mut handshake = opened(TlsPolicy::Off);
    refused(&mut handshake, 9, &hex("00000004 'disk' 00000000"), "80000003");
    acked(&mut handshake, 8);
    let base = answer(9, "00000004", &hex("00000000 'base:allocation'"));
    let depth = answer(9, "00000004", &hex("00000000 'qemu:allocation-depth'"));
    let ack = answer(9, "00000001", &[]);
    let cases = [
        ("00000000", [&base[..], &depth, &ack].concat()),
        ("00000001 00000005 'base:'", [&base[..], &ack].concat()),
        ("00000001 00000005 'qemu:'", [&depth[..], &ack].concat()),
        ("00000001 00000015 'qemu:allocation-depth'", [&depth[..], &ack].concat()),
        ("00000001 00000009 'base:what'", ack.clone()),
        ("00000001 00000006 'other:'", ack.clone()),
    ];
    for (queries, expected) in cases {
        let data = hex(&format!("00000004 'disk' {queries}"));
        assert_eq!(talk(&mut handshake, &option(9, &data)).0, expected, "{queries}");
    }
}

#[test]
fn sets_metadata_contexts_for_the_export_named_last() {
    let mut handshake = opened(TlsPolicy::Off);
    acked(&mut handshake, 8);
    let both =
        "00000003 0000000f 'base:allocation' 00000015 'qemu:allocation-depth' 00000005 'base:'";
    let (out, _) = talk(&mut handshake, &option(10, &hex(&format!("00000004 'disk' {both}"))));
    let mut expected = answer(10, "00000004", &hex("00000001 'base:allocation'"));
    expected.extend(answer(10, "00000004", &hex("00000002 'qemu:allocation-depth'")));
    expected.extend(answer(10, "00000001", &[]));
    assert_eq!(out, expected);

    let contexts = |handshake: &mut Handshake, name: &str| {
        let len = name.len();
        let go = option(7, &hex(&format!("{len:08x} '{name}' 0000")));
        match talk(handshake, &go).1 {
            Some(Next::Transmit(agreed, _)) => agreed.contexts,
            other => panic!("{other:?}"),
        }
    };
    let mut other = opened(TlsPolicy::Off);
    acked(&mut other, 8);
    talk(&mut other, &option(10, &hex(&format!("00000004 'disk' {both}"))));
    assert!(contexts(&mut other, "frozen").is_empty());
    assert_eq!(contexts(&mut handshake, "disk"), Contexts::all());
}

#[test]
fn a_failed_set_forgets_the_one_before() {
    for (data, kind) in [
        ("00000004 'gone' 00000001 0000000f 'base:allocation'", "80000006"),
        ("00000004 'disk' 00000001 000000ff 'base:allocation'", "80000003"),
        ("00000004 'disk' 00000001 00000004 'base'", "80000003"),
    ] {
        let mut handshake = opened(TlsPolicy::Off);
        acked(&mut handshake, 8);
        let set = hex("00000004 'disk' 00000001 0000000f 'base:allocation'");
        assert!(talk(&mut handshake, &option(10, &set)).1.is_none());
        refused(&mut handshake, 10, &hex(data), kind);
        let go = option(7, &hex("00000004 'disk' 0000"));
        let Some(Next::Transmit(agreed, _)) = talk(&mut handshake, &go).1 else { panic!() };
        assert!(agreed.contexts.is_empty());
    }
}

#[test]
fn refuses_what_it_does_not_know_or_understand() {
    let mut handshake = opened(TlsPolicy::Off);
    refused(&mut handshake, 4, &[], "80000001");
    refused(&mut handshake, 99, b"data", "80000001");
    refused(&mut handshake, 3, b"data", "80000003");
    refused(&mut handshake, 8, b"data", "80000003");
    refused(&mut handshake, 11, b"data", "80000003");
    refused(&mut handshake, 5, &[], "80000002");
    refused(&mut handshake, 7, &hex("00000005 'other' 0000"), "80000006");
    refused(&mut handshake, 7, &hex("00000007 'closing' 0000"), "80000007");
    refused(&mut handshake, 7, &hex("00000000 0000"), "80000006");
    // A name longer than the data, a missing count, a missing and a surplus request, no UTF-8, a NUL.
    for data in [
        "00000009 'disk' 0000",
        "00000004 'disk'",
        "00000004 'disk' 0001",
        "00000004 'disk' 0000 00",
        "00000002 c328 0000",
        "00000003 'a' 00 'b' 0000",
    ] {
        refused(&mut handshake, 7, &hex(data), "80000003");
    }
}

#[test]
fn long_names_and_long_data_are_too_big() {
    let mut handshake = opened(TlsPolicy::Off);
    let name = [hex("00001001"), vec![b'x'; 4097], hex("0000")].concat();
    refused(&mut handshake, 7, &name, "80000009");
    let longest = [hex("00001000"), vec![b'x'; 4096], hex("0000")].concat();
    refused(&mut handshake, 7, &longest, "80000006");
    refused(&mut handshake, 7, &vec![0; MAX_OPTION_BYTES + 1], "80000009");
    refused(&mut handshake, 99, &vec![0; MAX_OPTION_BYTES + 1], "80000001");
    refused(&mut handshake, 3, &vec![0; MAX_OPTION_BYTES + 1], "80000003");
    acked(&mut handshake, 8);
    let mut absurd = hex("'IHAVEOPT' 00000007 ffffffff");
    let (out, next) = talk(&mut handshake, &absurd);
    assert!(out.is_empty() && matches!(next, Some(Next::Close(Some(_)))));
    absurd[0] = 0;
    let (_, next) = talk(&mut opened(TlsPolicy::Off), &absurd);
    assert!(matches!(next, Some(Next::Close(Some(_)))));
}

#[test]
fn forced_tls_refuses_everything_else_first() {
    let mut handshake = opened(TlsPolicy::Required);
    for (code, data) in
        [(3, ""), (6, "00000004 'disk' 0000"), (7, "00000004 'disk' 0000"), (8, ""), (99, "")]
    {
        refused(&mut handshake, code, &hex(data), "80000005");
    }
    refused(&mut handshake, 7, &vec![0; MAX_OPTION_BYTES + 1], "80000005");
    refused(&mut handshake, 5, b"data", "80000003");
    let (out, next) = talk(&mut opened(TlsPolicy::Required), &option(1, b"disk"));
    assert!(out.is_empty() && matches!(next, Some(Next::Close(Some(_)))));
}

#[test]
fn starting_tls_forgets_what_was_negotiated() {
    let mut handshake = opened(TlsPolicy::Optional);
    acked(&mut handshake, 8);
    let set = hex("00000004 'disk' 00000001 0000000f 'base:allocation'");
    talk(&mut handshake, &option(10, &set));
    let (out, next) = talk(&mut handshake, &option(5, &[]));
    assert_eq!(out, answer(5, "00000001", &[]));
    assert_eq!(next, Some(Next::StartTls));

    let mut handshake = handshake.secured();
    refused(&mut handshake, 5, &[], "80000003");
    refused(&mut handshake, 10, &set, "80000003");
    let (out, next) = talk(&mut handshake, &option(1, b"disk"));
    assert_eq!(out, hex("0000000000100000 0d6d"));
    let Some(Next::Transmit(agreed, _)) = next else { panic!("{next:?}") };
    assert_eq!((agreed.style, agreed.contexts), (Style::Simple, Contexts::none()));
}
