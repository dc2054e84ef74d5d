//! Decoding and checking of requests in the transmission phase.
//!
//! A request is judged by its header alone, before its payload is waited for, so that a payload nobody will use is dropped
//! as it arrives instead of being held. What comes out as [`Ask`] is aligned, in range and allowed; everything else comes
//! out as [`Refusal`] with the protocol's own error.
//!
//! Source: "Request message" (compact and extended), "Command flags", "Request types", "Error values", "Size constraints".

use super::numbers::*;
use super::{Agreed, Contexts, Errno, MAX_PAYLOAD_BYTES, Style, Take};
use crate::request::{Fua, ZeroMode};
use crate::units::SECTOR_BYTES;

const COMPACT_HEADER_BYTES: usize = 28;
const EXTENDED_HEADER_BYTES: usize = 32;
/// A block status payload: the effect length, and no more IDs than there are contexts.
const MAX_STATUS_PAYLOAD_BYTES: u64 = 16;

/// The command of a request, as far as replies and statistics care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    Unknown(u16),
}

impl Command {
    fn from_code(code: u16) -> Self {
        match code {
            CMD_READ => Self::Read,
            CMD_WRITE => Self::Write,
            CMD_DISC => Self::Disconnect,
            CMD_FLUSH => Self::Flush,
            CMD_TRIM => Self::Trim,
            CMD_CACHE => Self::Cache,
            CMD_WRITE_ZEROES => Self::WriteZeroes,
            CMD_BLOCK_STATUS => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }
    /// The flags documented for it. FUA must be taken with any command.
    fn flags(self) -> u16 {
        let own = match self {
            Self::Read => CMD_FLAG_DF,
            Self::WriteZeroes => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
            Self::BlockStatus => CMD_FLAG_REQ_ONE,
            Self::Write | Self::Disconnect | Self::Flush | Self::Trim | Self::Cache => 0,
            Self::Unknown(_) => 0,
        };
        own | CMD_FLAG_FUA
    }
    fn changes_data(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

/// What a reply must repeat of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Opaque; the client matches replies by it.
    pub cookie: u64,
    /// The request's offset as sent; extended replies repeat it.
    pub offset: u64,
    pub command: Command,
}

impl Tag {
    pub(super) fn is_read(self) -> bool {
        self.command == Command::Read
    }
}

/// Whether a read may be answered in several content chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragments {
    Allowed,
    Forbidden,
}

/// How many extents a block status may answer per context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extents {
    One,
    Many,
}

/// A request that may be carried out: aligned to sectors, inside the export, allowed on it. The offset is the tag's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask<'a> {
    /// `len` is 1 to [`MAX_PAYLOAD_BYTES`].
    Read {
        len: u32,
        fragments: Fragments,
    },
    /// Not empty.
    Write {
        data: &'a [u8],
        fua: Fua,
    },
    Flush,
    Trim {
        len: u64,
        fua: Fua,
    },
    WriteZeroes {
        len: u64,
        mode: ZeroMode,
        fua: Fua,
    },
    Cache {
        len: u64,
    },
    Status {
        len: u64,
        extents: Extents,
        contexts: Contexts,
    },
    /// A request of length 0 (the protocol leaves its effect open): succeeds, does nothing.
    Nothing,
}

/// A request that is answered with an error; the connection goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub errno: Errno,
    pub message: String,
}

fn refuse<T>(errno: Errno, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { errno, message: message.into() })
}

/// What the bytes at the front of the buffer say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Too few bytes, none used: this many are needed in all, from the same front.
    Need(usize),
    /// Bytes of a refused payload were dropped; go on.
    Skipped,
    Ask(Tag, Ask<'a>),
    Refuse(Tag, Refusal),
    /// `NBD_CMD_DISC`: answer what is in flight, then close. Nothing may follow.
    Disconnect,
    /// The client broke the framing; close this connection.
    Broken(&'static str),
}

/// One step of decoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// Bytes to drop from the front of the buffer.
    pub used: usize,
    pub event: Event<'a>,
}

/// Decodes the client's side of the transmission phase.
#[derive(Clone, Debug)]
pub struct Decoder {
    agreed: Agreed,
    skip: Option<Skip>,
}

/// The rest of a payload that is dropped before its request is refused.
#[derive(Clone, Debug)]
struct Skip {
    left: u64,
    tag: Tag,
    refusal: Refusal,
}

struct Header {
    flags: u16,
    tag: Tag,
    len: u64,
}

impl Header {
    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
    fn fua(&self) -> Fua {
        if self.has(CMD_FLAG_FUA) { Fua::Yes } else { Fua::No }
    }
}

impl Decoder {
    #[must_use]
    pub fn new(agreed: Agreed) -> Self {
        Self { agreed, skip: None }
    }

    /// Decodes one request from the front of `input`.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<'a> {
        if let Some(skip) = self.skip.take() {
            return self.resume(skip, input);
        }
        let header = match self.header(input) {
            Ok(header) => header,
            Err(event) => return Decoded { used: 0, event },
        };
        let head = self.header_bytes();
        let payload = self.payload_bytes(&header);
        if payload > 0 {
            return self.with_payload(&header, head, payload, input);
        }
        let event = match self.check(&header, &[]) {
            Ok(_) if header.tag.command == Command::Disconnect => Event::Disconnect,
            Ok(ask) => Event::Ask(header.tag, ask),
            Err(refusal) => Event::Refuse(header.tag, refusal),
        };
        Decoded { used: head, event }
    }

    fn header_bytes(&self) -> usize {
        match self.agreed.style {
            Style::Simple | Style::Structured => COMPACT_HEADER_BYTES,
            Style::Extended => EXTENDED_HEADER_BYTES,
        }
    }

    fn header(&self, input: &[u8]) -> Result<Header, Event<'static>> {
        let need = Event::Need(self.header_bytes());
        let mut take = Take(input);
        let magic = take.u32().ok_or(need.clone())?;
        let expected = match self.agreed.style {
            Style::Simple | Style::Structured => REQUEST_MAGIC,
            Style::Extended => EXTENDED_REQUEST_MAGIC,
        };
        if magic != expected {
            return Err(Event::Broken("request without the request magic"));
        }
        self.header_fields(take).ok_or(need)
    }

    fn header_fields(&self, mut take: Take<'_>) -> Option<Header> {
        let flags = take.u16()?;
        let command = Command::from_code(take.u16()?);
        let tag = Tag { cookie: take.u64()?, offset: take.u64()?, command };
        let len = match self.agreed.style {
            Style::Simple | Style::Structured => u64::from(take.u32()?),
            Style::Extended => take.u64()?,
        };
        Some(Header { flags, tag, len })
    }

    /// Bytes that follow the header. A write always has its data, even when an extended one lacks the flag that must say so:
    /// QEMU 10 forgets it.
    fn payload_bytes(&self, header: &Header) -> u64 {
        let is_write = header.tag.command == Command::Write;
        let present = match self.agreed.style {
            Style::Simple | Style::Structured => is_write,
            Style::Extended => is_write || header.has(CMD_FLAG_PAYLOAD_LEN),
        };
        if present { header.len } else { 0 }
    }

    fn with_payload<'a>(
        &mut self,
        header: &Header,
        head: usize,
        payload: u64,
        input: &'a [u8],
    ) -> Decoded<'a> {
        if self.agreed.style == Style::Extended && payload > u64::from(MAX_PAYLOAD_BYTES) {
            let event = Event::Broken("payload longer than the advertised maximum");
            return Decoded { used: 0, event };
        }
        if let Err(refusal) = self.check_head(header) {
            let skip = Skip { left: payload, tag: header.tag, refusal };
            let rest = input.get(head..).unwrap_or(&[]);
            let decoded = self.resume(skip, rest);
            // The header is used up even when nothing of the payload has arrived.
            let event = match decoded.event {
                Event::Need(_) => Event::Skipped,
                event => event,
            };
            return Decoded { used: head + decoded.used, event };
        }
        // `check_head` let it pass, so it is at most MAX_PAYLOAD_BYTES.
        let total = head + usize::try_from(payload).unwrap_or(usize::MAX - head);
        let Some(data) = input.get(head..total) else {
            return Decoded { used: 0, event: Event::Need(total) };
        };
        let event = match self.check(header, data) {
            Ok(ask) => Event::Ask(header.tag, ask),
            Err(refusal) => Event::Refuse(header.tag, refusal),
        };
        Decoded { used: total, event }
    }

    /// Drops what has arrived of a refused payload; refuses once all of it is gone.
    fn resume<'a>(&mut self, mut skip: Skip, input: &[u8]) -> Decoded<'a> {
        let here = usize::try_from(skip.left).unwrap_or(usize::MAX).min(input.len());
        skip.left = skip.left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX));
        if skip.left == 0 {
            return Decoded { used: here, event: Event::Refuse(skip.tag, skip.refusal) };
        }
        self.skip = Some(skip);
        let event = if here == 0 { Event::Need(1) } else { Event::Skipped };
        Decoded { used: here, event }
    }

    /// Is a request worth its payload? Everything but the payload's content is judged here.
    fn check_head(&self, header: &Header) -> Result<(), Refusal> {
        match header.tag.command {
            Command::Write => {
                self.check_flags(header)?;
                self.check_range(header, header.len, Errno::NoSpc)?;
                if header.len > u64::from(MAX_PAYLOAD_BYTES) {
                    return refuse(
                        Errno::Inval,
                        format!(
                            "write of {} bytes is longer than the maximum payload of {MAX_PAYLOAD_BYTES}",
                            header.len
                        ),
                    );
                }
                Ok(())
            }
            Command::BlockStatus => {
                self.check_flags(header)?;
                if header.len < 12
                    || header.len > MAX_STATUS_PAYLOAD_BYTES
                    || !header.len.is_multiple_of(4)
                {
                    return refuse(
                        Errno::Inval,
                        format!(
                            "block status payload of {} bytes is not 8 + 4 per context",
                            header.len
                        ),
                    );
                }
                Ok(())
            }
            Command::Read
            | Command::Disconnect
            | Command::Flush
            | Command::Trim
            | Command::Cache
            | Command::WriteZeroes
            | Command::Unknown(_) => refuse(Errno::Inval, "this command takes no payload"),
        }
    }

    fn check<'a>(&self, header: &Header, data: &'a [u8]) -> Result<Ask<'a>, Refusal> {
        if header.tag.command == Command::Disconnect {
            return Ok(Ask::Nothing);
        }
        self.check_flags(header)?;
        let (len, fua) = (header.len, header.fua());
        match header.tag.command {
            Command::Read => self.check_read(header),
            Command::Write => self.check_write(header, data),
            Command::Flush if header.tag.offset != 0 || len != 0 => {
                refuse(Errno::Inval, "flush with an offset or a length")
            }
            Command::Flush => Ok(Ask::Flush),
            Command::Trim => self.ranged(header, Errno::Inval, Ask::Trim { len, fua }),
            Command::Cache => self.ranged(header, Errno::Inval, Ask::Cache { len }),
            Command::WriteZeroes => self.check_zeroes(header),
            Command::BlockStatus => self.check_status(header, data),
            Command::Unknown(code) => refuse(Errno::Inval, format!("unknown command {code}")),
            Command::Disconnect => Ok(Ask::Nothing),
        }
    }

    /// Flags not documented for the command, and changes to a read-only export.
    fn check_flags(&self, header: &Header) -> Result<(), Refusal> {
        let command = header.tag.command;
        if let Command::Unknown(code) = command {
            return refuse(Errno::Inval, format!("unknown command {code}"));
        }
        let mut allowed = command.flags();
        let extended = self.agreed.style == Style::Extended;
        if extended && (command == Command::Write || self.takes_status_payload(command)) {
            allowed |= CMD_FLAG_PAYLOAD_LEN;
        }
        if self.agreed.style == Style::Simple {
            allowed &= !CMD_FLAG_DF;
        }
        let unknown = header.flags & !allowed;
        if unknown != 0 {
            return refuse(Errno::Inval, format!("flags {unknown:#x} are not for this command"));
        }
        if self.agreed.read_only && command.changes_data() {
            return refuse(Errno::Perm, "the export is read-only");
        }
        Ok(())
    }

    fn takes_status_payload(&self, command: Command) -> bool {
        command == Command::BlockStatus && !self.agreed.contexts.is_empty()
    }

    /// Alignment to sectors and the end of the export; `beyond` is the error past it.
    fn check_range(&self, header: &Header, len: u64, beyond: Errno) -> Result<(), Refusal> {
        let (offset, size) = (header.tag.offset, self.agreed.size);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return refuse(
                beyond,
                format!("{len} bytes at offset {offset} reach past the export's {size} bytes"),
            );
        }
        if !(offset | len).is_multiple_of(SECTOR_BYTES) {
            return refuse(
                Errno::Inval,
                format!("offset {offset} or length {len} is not a multiple of {SECTOR_BYTES}"),
            );
        }
        Ok(())
    }

    fn ranged<'a>(&self, header: &Header, beyond: Errno, ask: Ask<'a>) -> Result<Ask<'a>, Refusal> {
        self.check_range(header, header.len, beyond)?;
        Ok(if header.len == 0 { Ask::Nothing } else { ask })
    }

    fn check_read(&self, header: &Header) -> Result<Ask<'static>, Refusal> {
        self.check_range(header, header.len, Errno::Inval)?;
        let fits = u32::try_from(header.len).ok().filter(|len| *len <= MAX_PAYLOAD_BYTES);
        let Some(len) = fits else {
            // EOVERFLOW is only for clients that may know it ("Error values").
            let errno = match self.agreed.style {
                Style::Simple => Errno::Inval,
                Style::Structured | Style::Extended => Errno::Overflow,
            };
            let message = format!(
                "read of {} bytes is longer than the maximum payload of {MAX_PAYLOAD_BYTES}",
                header.len
            );
            return refuse(errno, message);
        };
        let fragments =
            if header.has(CMD_FLAG_DF) { Fragments::Forbidden } else { Fragments::Allowed };
        Ok(if len == 0 { Ask::Nothing } else { Ask::Read { len, fragments } })
    }

    fn check_write<'a>(&self, header: &Header, data: &'a [u8]) -> Result<Ask<'a>, Refusal> {
        self.ranged(header, Errno::NoSpc, Ask::Write { data, fua: header.fua() })
    }

    /// A fast zero is refused unless some whole block becomes a mere map entry: anything smaller costs what a write costs.
    fn check_zeroes(&self, header: &Header) -> Result<Ask<'static>, Refusal> {
        let mode =
            if header.has(CMD_FLAG_NO_HOLE) { ZeroMode::Allocate } else { ZeroMode::MayPunch };
        let ask = Ask::WriteZeroes { len: header.len, mode, fua: header.fua() };
        let ask = self.ranged(header, Errno::NoSpc, ask)?;
        if header.has(CMD_FLAG_FAST_ZERO) && !self.covers_a_block(header) {
            return refuse(Errno::NotSup, "zeroing less than a block is no faster than a write");
        }
        Ok(ask)
    }

    fn covers_a_block(&self, header: &Header) -> bool {
        let block = u64::from(self.agreed.preferred_block.max(1));
        let end = header.tag.offset.saturating_add(header.len);
        let first = header.tag.offset.div_ceil(block).saturating_mul(block);
        header.len == 0 || first.saturating_add(block) <= end
    }

    fn check_status(&self, header: &Header, data: &[u8]) -> Result<Ask<'static>, Refusal> {
        let negotiated = self.agreed.contexts;
        if negotiated.is_empty() {
            return refuse(Errno::Inval, "block status without a negotiated metadata context");
        }
        let (len, contexts) = if header.has(CMD_FLAG_PAYLOAD_LEN) {
            let chosen = status_payload(data, negotiated);
            match chosen {
                Some(chosen) => chosen,
                None => return refuse(Errno::Inval, "unknown or repeated metadata context"),
            }
        } else {
            (header.len, negotiated)
        };
        self.check_range(header, len, Errno::Inval)?;
        if len == 0 {
            return refuse(Errno::Inval, "block status of nothing");
        }
        let extents = if header.has(CMD_FLAG_REQ_ONE) { Extents::One } else { Extents::Many };
        Ok(Ask::Status { len, extents, contexts })
    }
}

/// The effect length and the contexts a block status payload names; `None` when one is unknown, repeated or missing.
fn status_payload(data: &[u8], negotiated: Contexts) -> Option<(u64, Contexts)> {
    let mut take = Take(data);
    let len = take.u64()?;
    let mut chosen = Vec::new();
    while !take.is_empty() {
        let context = negotiated.by_id(take.u32()?)?;
        if chosen.contains(&context) {
            return None;
        }
        chosen.push(context);
    }
    (!chosen.is_empty()).then(|| (len, chosen.into_iter().collect()))
}
