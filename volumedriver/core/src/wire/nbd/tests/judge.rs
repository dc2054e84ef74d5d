//! Any bytes must be survived, used up or waited for, and answered within bounds.

use crate::fault::{Fault, Result};
use crate::wire::nbd::{
    Agreed, Ask, Catalog, Contexts, Decoder, Description, Event, Handshake, MAX_OPTION_BYTES,
    MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, Next, Style, TlsPolicy,
};

/// Most bytes one option may be answered with, given two exports: a few replies, none longer than a string and a header.
const MAX_ANSWER_BYTES: usize = 8 * (MAX_STRING_BYTES + 64);
const SIZE: u64 = 1 << 40;

struct TwoExports;

impl Catalog for TwoExports {
    type Export = ();

    fn names(&self) -> Vec<String> {
        vec!["a".to_string(), "disk".to_string()]
    }

    fn find(&self, name: &str) -> Result<(Description, ())> {
        if name != "a" && name != "disk" {
            return Err(Fault::invalid(format!("no export {name:?}")));
        }
        let description = Description {
            name: name.to_string(),
            size: SIZE,
            preferred_block: 4096,
            read_only: name == "a",
        };
        Ok((description, ()))
    }
}

/// Drives a whole handshake; the first byte chooses the TLS policy, the rest is what the client sends.
pub fn handshake(bytes: &[u8]) {
    let Some((choice, mut input)) = bytes.split_first() else { return };
    let policy = match choice % 3 {
        0 => TlsPolicy::Off,
        1 => TlsPolicy::Optional,
        _ => TlsPolicy::Required,
    };
    let (mut handshake, mut secured) = (Handshake::new(policy), false);
    loop {
        let mut out = Vec::new();
        let step = handshake.advance(input, &TwoExports, &mut out);
        assert!(out.len() <= MAX_ANSWER_BYTES, "an answer of {} bytes", out.len());
        let Some(rest) = input.get(step.used..) else { panic!("used more than there was") };
        input = rest;
        match step.next {
            Next::More if step.used == 0 => {
                assert!(input.len() < MAX_OPTION_BYTES + 16, "waits with a whole option there");
                return;
            }
            Next::More => {}
            Next::StartTls => {
                handshake = handshake.secured();
                secured = true;
            }
            Next::Transmit(agreed, ()) => {
                assert!(agreed.size == SIZE && (policy != TlsPolicy::Required || secured));
                return;
            }
            Next::Close(_) => return,
        }
    }
}

/// Drives the transmission phase; the first byte chooses the headers, the second whether the export is read-only, the rest
/// is what the client sends.
pub fn transmission(bytes: &[u8]) {
    let [choice, access, input @ ..] = bytes else { return };
    let (style, contexts) = match choice % 3 {
        0 => (Style::Simple, Contexts::none()),
        1 => (Style::Structured, Contexts::all()),
        _ => (Style::Extended, Contexts::all()),
    };
    let read_only = access % 2 == 1;
    let agreed = Agreed { style, size: SIZE, preferred_block: 4096, read_only, contexts };
    let mut decoder = Decoder::new(agreed);
    let mut input = input;
    loop {
        let decoded = decoder.decode(input);
        match decoded.event {
            Event::Need(total) => {
                assert!(decoded.used == 0 && total > input.len(), "waits for what is there");
                let most = usize::try_from(MAX_PAYLOAD_BYTES).unwrap_or(usize::MAX);
                assert!(total <= most + 32, "wants {total} bytes at once");
                return;
            }
            Event::Disconnect | Event::Broken(_) => return,
            Event::Skipped | Event::Refuse(..) => assert!(decoded.used > 0, "no progress"),
            Event::Ask(tag, ask) => {
                assert!(decoded.used > 0, "no progress");
                check(tag.offset, &ask, read_only);
            }
        }
        let Some(rest) = input.get(decoded.used..) else { panic!("used more than there was") };
        input = rest;
    }
}

/// What comes through is in range, aligned and allowed.
fn check(offset: u64, ask: &Ask<'_>, read_only: bool) {
    let (len, changes) = match ask {
        Ask::Read { len, .. } => (u64::from(*len), false),
        Ask::Write { data, .. } => (u64::try_from(data.len()).unwrap_or(u64::MAX), true),
        Ask::Trim { len, .. } | Ask::WriteZeroes { len, .. } => (*len, true),
        Ask::Cache { len } | Ask::Status { len, .. } => (*len, false),
        Ask::Flush | Ask::Nothing => return,
    };
    assert!(len > 0 && offset.checked_add(len).is_some_and(|end| end <= SIZE), "out of range");
    assert!((offset | len).is_multiple_of(512), "unaligned");
    assert!(!(changes && read_only), "a change to a read-only export");
}
