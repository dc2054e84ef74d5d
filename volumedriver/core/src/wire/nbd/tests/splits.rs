//! However the bytes arrive split, the messages are the same; and any bytes are survived.

use proptest::prelude::*;

use super::judge;
use super::*;

fn style() -> impl Strategy<Value = Style> {
    prop_oneof![Just(Style::Simple), Just(Style::Structured), Just(Style::Extended)]
}

/// A request that is often right: magic, flags, command, cookie, offset, length, and sometimes its payload.
fn request(style: Style) -> impl Strategy<Value = Vec<u8>> {
    let fields = (
        prop_oneof![9 => Just(false), 1 => Just(true)],
        0u16..64,
        0u16..10,
        any::<u64>(),
        (0u64..2200).prop_map(|sectors| sectors * 512),
        prop_oneof![(0u64..8).prop_map(|sectors| sectors * 512), 0u64..2000],
    );
    fields.prop_map(move |(broken, flags, command, cookie, offset, len)| {
        let extended = style == Style::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = (magic ^ u32::from(broken)).to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if extended {
            bytes.extend(len.to_be_bytes());
        } else {
            bytes.extend((len as u32).to_be_bytes());
        }
        if if extended { flags & 32 != 0 } else { command == 1 } {
            bytes.extend((0..len).map(|n| n as u8));
        }
        bytes
    })
}

fn requests() -> impl Strategy<Value = (Style, Vec<u8>)> {
    style().prop_flat_map(|style| {
        let stream = prop::collection::vec(request(style), 1..12);
        (Just(style), stream.prop_map(|requests| requests.concat()))
    })
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        Just(Vec::new()),
        Just(b"\0\0\0\x04disk\0\0".to_vec()),
        Just(b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    let option = (0u32..13, data).prop_map(|(code, data)| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    });
    (0u32..4, prop::collection::vec(option, 1..8)).prop_map(|(flags, options)| {
        let mut bytes = flags.to_be_bytes().to_vec();
        bytes.extend(options.concat());
        bytes
    })
}

/// Every event of a stream that arrives in pieces of these lengths, payloads included.
fn events(style: Style, stream: &[u8], pieces: &[usize]) -> Vec<String> {
    let mut decoder = Decoder::new(agreed(style));
    let (mut events, mut start, mut end) = (Vec::new(), 0, 0);
    let mut pieces = pieces.iter().copied().cycle();
    loop {
        let decoded = decoder.decode(&stream[start..end]);
        start += decoded.used;
        match decoded.event {
            Event::Skipped => {}
            Event::Need(_) if end == stream.len() => return events,
            Event::Need(_) => end = (end + pieces.next().unwrap_or(1)).min(stream.len()),
            last @ (Event::Disconnect | Event::Broken(_)) => {
                events.push(format!("{last:?}"));
                return events;
            }
            event => events.push(format!("{event:?}")),
        }
    }
}

/// Everything said in a handshake that arrives in such pieces, and how it ended.
fn said(tls: TlsPolicy, stream: &[u8], pieces: &[usize]) -> (Vec<u8>, String) {
    let mut handshake = Handshake::new(tls);
    let (mut out, mut start, mut end) = (Vec::new(), 0, 0);
    let mut pieces = pieces.iter().copied().cycle();
    loop {
        let step = handshake.advance(&stream[start..end], &TwoDisks, &mut out);
        start += step.used;
        match step.next {
            Next::More if step.used > 0 => {}
            Next::More if end == stream.len() => return (out, "open".to_string()),
            Next::More => end = (end + pieces.next().unwrap_or(1)).min(stream.len()),
            next => return (out, format!("{next:?}")),
        }
    }
}

proptest! {
    #[test]
    fn any_split_gives_the_same_requests(
        (style, stream) in requests(),
        pieces in prop::collection::vec(1usize..600, 1..20),
    ) {
        let whole = events(style, &stream, &[stream.len()]);
        prop_assert_eq!(events(style, &stream, &pieces), whole);
    }

    #[test]
    fn any_split_gives_the_same_handshake(
        stream in options(),
        pieces in prop::collection::vec(1usize..40, 1..20),
    ) {
        for tls in [TlsPolicy::Off, TlsPolicy::Optional, TlsPolicy::Required] {
            let whole = said(tls, &stream, &[stream.len()]);
            prop_assert_eq!(said(tls, &stream, &pieces), whole);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        judge::handshake(&bytes);
        judge::transmission(&bytes);
    }

    #[test]
    fn nearly_right_bytes_are_survived((style, mut stream) in requests(), options in options(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let place = at.index(stream.len());
        stream[place] ^= 1 << bit;
        let head = match style { Style::Simple => 0, Style::Structured => 1, Style::Extended => 2 };
        judge::transmission(&[&[head, 0][..], &stream].concat());
        let mut options = [&[0][..], &options].concat();
        let place = at.index(options.len());
        options[place] ^= 1 << bit;
        judge::handshake(&options);
    }
}
