//! Targets for what an NBD client sends. The same bytes must mean the same however they arrive split.

use volumedriver_core::fault::Fault;
use volumedriver_core::wire::nbd::{
    Agreed, Ask, Catalog, Contexts, Decoder, Description, Event, Handshake, MAX_PAYLOAD_BYTES,
    Next, Style, TlsPolicy,
};

const SIZE: u64 = 1 << 30;
/// More than any single message is answered with.
const MOST_REPLY_BYTES: usize = 1 << 20;

struct OneDisk;

impl Catalog for OneDisk {
    type Export = ();
    fn names(&self) -> Vec<String> {
        vec!["disk".to_owned()]
    }
    fn find(&self, name: &str) -> Result<(Description, ()), Fault> {
        if !matches!(name, "" | "disk") {
            return Err(Fault::invalid("no such disk"));
        }
        let name = "disk".to_owned();
        Ok((Description { name, size: SIZE, preferred_block: 4096, read_only: false }, ()))
    }
}

/// The first byte chooses the TLS policy, the second how many bytes arrive at a time; the rest is what the client sends.
pub fn handshake(bytes: &[u8]) {
    let [policy, piece, sent @ ..] = bytes else { return };
    let tls = match policy % 3 {
        0 => TlsPolicy::Off,
        1 => TlsPolicy::Optional,
        _ => TlsPolicy::Required,
    };
    let whole = negotiate(tls, sent, sent.len());
    let pieces = negotiate(tls, sent, usize::from(*piece) + 1);
    assert_eq!(whole, pieces);
}

/// Everything the server says, and how it ends.
fn negotiate(tls: TlsPolicy, sent: &[u8], piece: usize) -> (Vec<u8>, Vec<String>) {
    let mut handshake = Handshake::new(tls);
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    let (mut from, mut to) = (0, piece.min(sent.len()));
    loop {
        let before = out.len();
        let step = handshake.advance(&sent[from..to], &OneDisk, &mut out);
        assert!(out.len() - before <= MOST_REPLY_BYTES);
        assert!(step.used <= to - from, "more was used than there is");
        from += step.used;
        match step.next {
            Next::More if step.used > 0 => {}
            Next::More if to == sent.len() => return (out, ends),
            Next::More => to = to.saturating_add(piece).min(sent.len()),
            Next::StartTls => {
                ends.push("TLS".to_owned());
                handshake = handshake.secured();
            }
            Next::Close(why) => {
                ends.push(format!("closed: {why:?}"));
                return (out, ends);
            }
            Next::Transmit(agreed, ()) => {
                ends.push(format!("{agreed:?}"));
                ends.extend(transmit(&agreed, &sent[from..], piece));
                return (out, ends);
            }
        }
    }
}

/// The first byte chooses the style and whether writing is allowed, the second how many bytes arrive at a time.
pub fn transmission(bytes: &[u8]) {
    let [choice, piece, sent @ ..] = bytes else { return };
    let style = match choice % 3 {
        0 => Style::Simple,
        1 => Style::Structured,
        _ => Style::Extended,
    };
    let contexts = if choice & 0x40 == 0 { Contexts::none() } else { Contexts::all() };
    let read_only = choice & 0x80 != 0;
    let agreed = Agreed { style, size: SIZE, preferred_block: 4096, read_only, contexts };
    let whole = transmit(&agreed, sent, sent.len());
    assert_eq!(whole, transmit(&agreed, sent, usize::from(*piece) + 1));
}

/// Every request, as the server understood it.
fn transmit(agreed: &Agreed, sent: &[u8], piece: usize) -> Vec<String> {
    let mut decoder = Decoder::new(agreed.clone());
    let mut heard = Vec::new();
    let (mut from, mut to) = (0, piece.min(sent.len()));
    loop {
        let input = &sent[from..to];
        let decoded = decoder.decode(input);
        assert!(decoded.used <= input.len(), "more was used than there is");
        from += decoded.used;
        match decoded.event {
            Event::Need(bytes) => {
                assert!(bytes > input.len() - decoded.used, "{bytes} bytes are there");
                if to == sent.len() {
                    return heard;
                }
                to = to.saturating_add(piece).min(sent.len());
            }
            // How often depends on how the bytes arrive.
            Event::Skipped => assert!(decoded.used > 0, "nothing was skipped"),
            Event::Ask(tag, ask) => {
                assert!(decoded.used > 0);
                check(agreed, tag.offset, &ask);
                heard.push(format!("{tag:?} {ask:?}"));
            }
            Event::Refuse(tag, refusal) => heard.push(format!("{tag:?} {refusal:?}")),
            event @ (Event::Disconnect | Event::Broken(_)) => {
                heard.push(format!("{event:?}"));
                return heard;
            }
        }
    }
}

/// What is asked lies in the export, is aligned to sectors, and is allowed.
fn check(agreed: &Agreed, offset: u64, ask: &Ask<'_>) {
    let (len, writes) = match ask {
        Ask::Read { len, .. } => {
            assert!(*len <= MAX_PAYLOAD_BYTES);
            (u64::from(*len), false)
        }
        Ask::Write { data, .. } => (u64::try_from(data.len()).unwrap_or(u64::MAX), true),
        Ask::Trim { len, .. } | Ask::WriteZeroes { len, .. } => (*len, true),
        Ask::Cache { len } | Ask::Status { len, .. } => (*len, false),
        Ask::Flush | Ask::Nothing => return,
    };
    let end = offset.checked_add(len).expect("no overflow");
    assert!(end <= agreed.size && offset.is_multiple_of(512) && len.is_multiple_of(512), "{ask:?}");
    assert!(!(writes && agreed.read_only), "{ask:?}");
}
