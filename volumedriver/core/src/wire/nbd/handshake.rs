//! Option haggling: from the greeting to the transmission phase, as a state machine over bytes.
//!
//! One call of [`Handshake::advance`] takes at most one option, so that the caller can send its replies before the next:
//! output stays bounded whatever a client pipelines. Option data up to [`MAX_OPTION_BYTES`] is looked at as a whole;
//! longer data is dropped as it arrives and the option refused.
//!
//! Source: "Newstyle negotiation", "Fixed newstyle negotiation", "TLS support", "Option types", "Option reply types".

use bytes::BufMut;

use super::meta::{self, Wildcard};
use super::numbers::*;
use super::reply::clip;
use super::{Contexts, MAX_OPTION_BYTES, MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, Style, Take};
use crate::fault::{Fault, Kind};
use crate::units::SECTOR_BYTES;

const OPTION_HEADER_BYTES: usize = 16;
/// Option data longer than this is taken for an attack and ends the connection, bytes.
const MAX_SKIPPED_BYTES: u32 = MAX_PAYLOAD_BYTES;

/// What a client is told about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    pub size: u64,
    /// A power of two of at least 512.
    pub preferred_block: u32,
    pub read_only: bool,
}

/// The exports a server offers. `find` takes the client's spelling; the empty name asks for a default export.
pub trait Catalog {
    type Export;
    fn names(&self) -> Vec<String>;
    fn find(&self, name: &str) -> Result<(Description, Self::Export), Fault>;
}

/// "Server-side requirements" of TLS support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPolicy {
    /// NOTLS.
    Off,
    /// SELECTIVETLS with no TLS-only export.
    Optional,
    /// FORCEDTLS.
    Required,
}

/// What the handshake agreed on for the transmission phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub style: Style,
    pub size: u64,
    pub preferred_block: u32,
    pub read_only: bool,
    pub contexts: Contexts,
}

/// What to do once the output is sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<E> {
    /// Call again with the remaining bytes and more.
    More,
    /// Set up TLS, then go on with [`Handshake::secured`]. Bytes left over now were sent too early: close.
    StartTls,
    Transmit(Agreed, E),
    /// Close; `None` when the client wished it.
    Close(Option<&'static str>),
}

/// One step of the handshake.
#[derive(Debug, PartialEq, Eq)]
pub struct Advance<E> {
    /// Bytes to drop from the front of the input; 0 with [`Next::More`] means that more input is needed.
    pub used: usize,
    pub next: Next<E>,
}

/// The server's side of the handshake.
#[derive(Debug)]
pub struct Handshake {
    tls: Tls,
    phase: Phase,
    zeroes: Zeroes,
    style: Style,
    /// What the last `NBD_OPT_SET_META_CONTEXT` chose, and for which export name.
    selected: Option<(String, Contexts)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    Plain(TlsPolicy),
    Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    /// `fixed`: the client understands replies to options.
    Options {
        fixed: bool,
    },
    /// Dropping the rest of an option's data, then refusing it.
    Skip {
        option: u32,
        left: usize,
    },
    Over,
}

/// The padding after `NBD_OPT_EXPORT_NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeroes {
    Send,
    Omit,
}

/// A refusal of an option.
type Refused = (u32, String);

impl Handshake {
    #[must_use]
    pub fn new(tls: TlsPolicy) -> Self {
        Self {
            tls: Tls::Plain(tls),
            phase: Phase::ClientFlags,
            zeroes: Zeroes::Send,
            style: Style::Simple,
            selected: None,
        }
    }

    /// The handshake after TLS was set up: nothing negotiated before it counts any more (`NBD_OPT_STARTTLS`).
    #[must_use]
    pub fn secured(self) -> Self {
        Self { tls: Tls::Running, style: Style::Simple, selected: None, ..self }
    }

    /// What the server sends first.
    #[must_use]
    pub fn greeting() -> Vec<u8> {
        let mut out = Vec::with_capacity(18);
        out.put_u64(NBDMAGIC);
        out.put_u64(IHAVEOPT);
        out.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        out
    }

    /// Takes one message from the front of `input`, appending replies to `out`.
    pub fn advance<C: Catalog>(
        &mut self,
        input: &[u8],
        catalog: &C,
        out: &mut Vec<u8>,
    ) -> Advance<C::Export> {
        match self.phase {
            Phase::ClientFlags => self.client_flags(input),
            Phase::Options { fixed } => self.option(input, fixed, catalog, out),
            Phase::Skip { option, left } => self.skip(option, left, input, out),
            Phase::Over => self.close(0, Some("bytes after the end of the handshake")),
        }
    }

    fn close<E>(&mut self, used: usize, why: Option<&'static str>) -> Advance<E> {
        self.phase = Phase::Over;
        Advance { used, next: Next::Close(why) }
    }

    fn client_flags<E>(&mut self, input: &[u8]) -> Advance<E> {
        let Some(flags) = Take(input).u32() else { return Advance { used: 0, next: Next::More } };
        if flags & !(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES) != 0 {
            return self.close(4, Some("unknown client flags"));
        }
        if flags & FLAG_C_NO_ZEROES != 0 {
            self.zeroes = Zeroes::Omit;
        }
        self.phase = Phase::Options { fixed: flags & FLAG_C_FIXED_NEWSTYLE != 0 };
        Advance { used: 4, next: Next::More }
    }

    fn option<C: Catalog>(
        &mut self,
        input: &[u8],
        fixed: bool,
        catalog: &C,
        out: &mut Vec<u8>,
    ) -> Advance<C::Export> {
        let mut take = Take(input);
        let wait = Advance { used: 0, next: Next::More };
        let Some(magic) = take.u64() else { return wait };
        if magic != IHAVEOPT {
            return self.close(0, Some("option without the option magic"));
        }
        let (Some(option), Some(len)) = (take.u32(), take.u32()) else { return wait };
        if !fixed && option != OPT_EXPORT_NAME {
            return self.close(0, Some("a client without fixed newstyle can only name an export"));
        }
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let longest = if option == OPT_EXPORT_NAME { MAX_STRING_BYTES } else { MAX_OPTION_BYTES };
        if option == OPT_ABORT {
            // Data sent with it is to be ignored, and nothing after it counts.
            reply(out, option, REP_ACK, &[]);
            return self.close(OPTION_HEADER_BYTES, None);
        }
        if size > longest {
            return self.too_long(option, len, size);
        }
        let Some(data) = take.0.get(..size) else { return wait };
        let next = self.handle(option, data, catalog, out);
        Advance { used: OPTION_HEADER_BYTES + size, next }
    }

    fn too_long<E>(&mut self, option: u32, len: u32, size: usize) -> Advance<E> {
        if option == OPT_EXPORT_NAME {
            return self.close(OPTION_HEADER_BYTES, Some("export name longer than 4096 bytes"));
        }
        if len > MAX_SKIPPED_BYTES {
            return self.close(OPTION_HEADER_BYTES, Some("option data of absurd length"));
        }
        self.phase = Phase::Skip { option, left: size };
        Advance { used: OPTION_HEADER_BYTES, next: Next::More }
    }

    fn skip<E>(&mut self, option: u32, left: usize, input: &[u8], out: &mut Vec<u8>) -> Advance<E> {
        let used = left.min(input.len());
        let left = left.saturating_sub(used);
        self.phase = Phase::Skip { option, left };
        if left == 0 {
            self.phase = Phase::Options { fixed: true };
            let (code, message) = match option {
                _ if self.tls == Tls::Plain(TlsPolicy::Required) && option != OPT_STARTTLS => {
                    (REP_ERR_TLS_REQD, TLS_FIRST.to_string())
                }
                OPT_LIST | OPT_STARTTLS | OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS => {
                    (REP_ERR_INVALID, NO_DATA.to_string())
                }
                OPT_INFO | OPT_GO | OPT_LIST_META_CONTEXT => {
                    (REP_ERR_TOO_BIG, format!("option data over {MAX_OPTION_BYTES} bytes"))
                }
                OPT_SET_META_CONTEXT => {
                    self.selected = None;
                    (REP_ERR_TOO_BIG, format!("option data over {MAX_OPTION_BYTES} bytes"))
                }
                _ => (REP_ERR_UNSUP, format!("unknown option {option}")),
            };
            reply(out, option, code, clip(&message).as_bytes());
        }
        Advance { used, next: Next::More }
    }

    fn handle<C: Catalog>(
        &mut self,
        option: u32,
        data: &[u8],
        catalog: &C,
        out: &mut Vec<u8>,
    ) -> Next<C::Export> {
        let tls_first = self.tls == Tls::Plain(TlsPolicy::Required) && option != OPT_STARTTLS;
        if option == OPT_EXPORT_NAME {
            return match tls_first {
                true => self.over("the export needs TLS, which this option cannot say"),
                false => self.export_name(data, catalog, out),
            };
        }
        let outcome = match option {
            _ if tls_first => Err((REP_ERR_TLS_REQD, TLS_FIRST.to_string())),
            OPT_LIST => no_data(data).map(|()| list(catalog, out)),
            OPT_STARTTLS => match self.start_tls(data) {
                Ok(()) => {
                    reply(out, option, REP_ACK, &[]);
                    return Next::StartTls;
                }
                Err(refused) => Err(refused),
            },
            OPT_INFO => self.info(option, data, catalog, out).map(|_| ()),
            OPT_GO => match self.info(option, data, catalog, out) {
                Ok((agreed, export)) => {
                    reply(out, option, REP_ACK, &[]);
                    self.phase = Phase::Over;
                    return Next::Transmit(agreed, export);
                }
                Err(refused) => Err(refused),
            },
            OPT_STRUCTURED_REPLY => no_data(data).and_then(|()| self.structured()),
            OPT_EXTENDED_HEADERS => no_data(data).map(|()| self.style = Style::Extended),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.meta_context(option, data, catalog, out)
            }
            _ => Err((REP_ERR_UNSUP, format!("unknown option {option}"))),
        };
        match outcome {
            Ok(()) => reply(out, option, REP_ACK, &[]),
            Err((code, message)) => reply(out, option, code, clip(&message).as_bytes()),
        }
        Next::More
    }

    fn over<E>(&mut self, why: &'static str) -> Next<E> {
        self.phase = Phase::Over;
        Next::Close(Some(why))
    }

    /// `NBD_OPT_EXPORT_NAME`: cannot be answered with an error, only by closing.
    fn export_name<C: Catalog>(
        &mut self,
        data: &[u8],
        catalog: &C,
        out: &mut Vec<u8>,
    ) -> Next<C::Export> {
        if self.style == Style::Extended {
            return self.over("export named the old way after extended headers");
        }
        let found = string(data).and_then(|name| Ok((name, find(catalog, name)?)));
        let Ok((name, (description, export))) = found else {
            return self.over("no such export");
        };
        let agreed = self.agree(name, &description);
        out.put_u64(agreed.size);
        out.put_u16(transmission_flags(&agreed));
        if self.zeroes == Zeroes::Send {
            out.put_bytes(0, 124);
        }
        self.phase = Phase::Over;
        Next::Transmit(agreed, export)
    }

    fn start_tls(&self, data: &[u8]) -> Result<(), Refused> {
        no_data(data)?;
        match self.tls {
            Tls::Plain(TlsPolicy::Off) => {
                Err((REP_ERR_POLICY, "TLS is not configured on this server".to_string()))
            }
            Tls::Plain(TlsPolicy::Optional | TlsPolicy::Required) => Ok(()),
            Tls::Running => Err((REP_ERR_INVALID, "TLS is already in use".to_string())),
        }
    }

    fn structured(&mut self) -> Result<(), Refused> {
        if self.style == Style::Extended {
            return Err((
                REP_ERR_EXT_HEADER_REQD,
                "extended headers are already in use".to_string(),
            ));
        }
        self.style = Style::Structured;
        Ok(())
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`: the information replies; the final reply is the caller's.
    fn info<C: Catalog>(
        &self,
        option: u32,
        data: &[u8],
        catalog: &C,
        out: &mut Vec<u8>,
    ) -> Result<(Agreed, C::Export), Refused> {
        let (name, wanted) = info_request(data).ok_or_else(malformed)?;
        let name = string(name)?;
        let (description, export) = find(catalog, name)?;
        let agreed = self.agree(name, &description);

        let mut info = Vec::with_capacity(14);
        info.put_u16(INFO_EXPORT);
        info.put_u64(agreed.size);
        info.put_u16(transmission_flags(&agreed));
        reply(out, option, REP_INFO, &info);

        // Our constraints are not the defaults, so they are told also to clients that did not ask.
        info.clear();
        info.put_u16(INFO_BLOCK_SIZE);
        info.put_u32(u32::try_from(SECTOR_BYTES).unwrap_or(512));
        info.put_u32(agreed.preferred_block);
        info.put_u32(MAX_PAYLOAD_BYTES);
        reply(out, option, REP_INFO, &info);

        if wanted.contains(&INFO_NAME) {
            info.clear();
            info.put_u16(INFO_NAME);
            info.put_slice(clip(&description.name).as_bytes());
            reply(out, option, REP_INFO, &info);
        }
        if wanted.contains(&INFO_DESCRIPTION) {
            info.clear();
            info.put_u16(INFO_DESCRIPTION);
            info.put_slice(b"log-structured volume");
            reply(out, option, REP_INFO, &info);
        }
        Ok((agreed, export))
    }

    /// Metadata contexts count only for the export name they were selected for.
    fn agree(&self, name: &str, description: &Description) -> Agreed {
        let contexts = match &self.selected {
            Some((selected_for, contexts)) if selected_for == name => *contexts,
            _ => Contexts::none(),
        };
        Agreed {
            style: self.style,
            size: description.size,
            preferred_block: description.preferred_block,
            read_only: description.read_only,
            contexts,
        }
    }

    /// `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`. A failed SET leaves nothing selected.
    fn meta_context<C: Catalog>(
        &mut self,
        option: u32,
        data: &[u8],
        catalog: &C,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            self.selected = None;
        }
        if self.style == Style::Simple {
            let message = "metadata contexts need structured replies or extended headers";
            return Err((REP_ERR_INVALID, message.to_string()));
        }
        let wildcard = if set { Wildcard::SelectsNothing } else { Wildcard::Lists };
        let (name, found) = meta_request(data, wildcard).ok_or_else(malformed)?;
        let name = string(name)?;
        find(catalog, name)?;
        // Zero queries list everything and select nothing.
        let contexts = found.unwrap_or(if set { Contexts::none() } else { Contexts::all() });
        for context in contexts.iter() {
            let mut entry = Vec::with_capacity(32);
            entry.put_u32(if set { context.id() } else { 0 });
            entry.put_slice(context.name().as_bytes());
            reply(out, option, REP_META_CONTEXT, &entry);
        }
        if set {
            self.selected = Some((name.to_string(), contexts));
        }
        Ok(())
    }
}

const TLS_FIRST: &str = "this server requires TLS: start it first";
const NO_DATA: &str = "this option takes no data";

fn malformed() -> Refused {
    (REP_ERR_INVALID, "malformed option data".to_string())
}

/// An option reply ("Fixed newstyle negotiation").
fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    // Replies are built here from strings of at most MAX_STRING_BYTES.
    out.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    out.put_slice(data);
}

fn list<C: Catalog>(catalog: &C, out: &mut Vec<u8>) {
    for name in catalog.names() {
        let name = clip(&name).as_bytes();
        let mut entry = Vec::with_capacity(4 + name.len());
        entry.put_u32(u32::try_from(name.len()).unwrap_or(0));
        entry.put_slice(name);
        reply(out, OPT_LIST, REP_SERVER, &entry);
    }
}

fn no_data(data: &[u8]) -> Result<(), Refused> {
    if data.is_empty() { Ok(()) } else { Err((REP_ERR_INVALID, NO_DATA.to_string())) }
}

/// "Conventions": UTF-8, no NUL, at most 4096 bytes.
fn string(bytes: &[u8]) -> Result<&str, Refused> {
    if bytes.len() > MAX_STRING_BYTES {
        let message = format!("export name over {MAX_STRING_BYTES} bytes");
        return Err((REP_ERR_TOO_BIG, message));
    }
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name),
        _ => Err((REP_ERR_INVALID, "export name is not UTF-8 without NUL".to_string())),
    }
}

fn find<C: Catalog>(catalog: &C, name: &str) -> Result<(Description, C::Export), Refused> {
    catalog.find(name).map_err(|fault| {
        let code = match fault.kind {
            Kind::Closed => REP_ERR_SHUTDOWN,
            Kind::NoSpace => REP_ERR_POLICY,
            Kind::Invalid | Kind::Unavailable | Kind::Corrupt | Kind::Fenced | Kind::Bug => {
                REP_ERR_UNKNOWN
            }
        };
        (code, fault.to_string())
    })
}

fn transmission_flags(agreed: &Agreed) -> u16 {
    let mut flags = FLAG_HAS_FLAGS
        | FLAG_SEND_FLUSH
        | FLAG_SEND_FUA
        | FLAG_SEND_TRIM
        | FLAG_SEND_WRITE_ZEROES
        | FLAG_SEND_FAST_ZERO
        | FLAG_SEND_CACHE
        | FLAG_CAN_MULTI_CONN;
    if agreed.read_only {
        flags |= FLAG_READ_ONLY;
    }
    if agreed.style != Style::Simple {
        flags |= FLAG_SEND_DF;
    }
    if agreed.style == Style::Extended && !agreed.contexts.is_empty() {
        flags |= FLAG_BLOCK_STATUS_PAYLOAD;
    }
    flags
}

/// The export name and the information wanted.
fn info_request(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut take = Take(data);
    let name = take.counted()?;
    let count = take.u16()?;
    let wanted = (0..count).map(|_| take.u16()).collect::<Option<Vec<u16>>>()?;
    take.is_empty().then_some((name, wanted))
}

/// The export name and what the queries find together; `None` inside for zero queries.
fn meta_request(data: &[u8], wildcard: Wildcard) -> Option<(&[u8], Option<Contexts>)> {
    let mut take = Take(data);
    let name = take.counted()?;
    let count = take.u32()?;
    let mut found = (count > 0).then(Contexts::none);
    for _ in 0..count {
        let here = meta::find(take.counted()?, wildcard)?;
        found = found.map(|found| found.iter().chain(here.iter()).collect());
    }
    take.is_empty().then_some((name, found))
}
