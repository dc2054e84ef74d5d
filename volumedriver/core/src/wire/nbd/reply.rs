//! Encoding of replies in the transmission phase, appended to an output buffer.
//!
//! With structured replies negotiated, a success without payload is still a simple reply (the protocol allows it and it is
//! smaller); errors are structured so that they carry their message. With extended headers everything is a chunk.
//!
//! Source: "Simple reply message", "Structured reply chunk message", "Extended reply chunk message", "Structured reply types".

use bytes::BufMut;

use super::numbers::*;
use super::{Context, Errno, MAX_STRING_BYTES, Style, Tag};
use crate::request::Extent;

/// Whether a chunk is the last of its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    More,
    Last,
}

/// Success without payload.
pub fn done(style: Style, tag: Tag, out: &mut Vec<u8>) {
    match style {
        Style::Simple => simple(tag, 0, out),
        // A read never has a simple reply once structured replies are negotiated.
        Style::Structured if !tag.is_read() => simple(tag, 0, out),
        Style::Structured | Style::Extended => {
            chunk(style, tag, Chunk::Last, REPLY_TYPE_NONE, 0, out);
        }
    }
}

/// What precedes `len` bytes of read data that begin at `offset`; the caller appends the bytes. With simple replies there is
/// one such piece, the whole of the read. `len` is at least 1.
pub fn data(style: Style, tag: Tag, last: Chunk, offset: u64, len: u32, out: &mut Vec<u8>) {
    match style {
        Style::Simple => simple(tag, 0, out),
        Style::Structured | Style::Extended => {
            chunk(style, tag, last, REPLY_TYPE_OFFSET_DATA, u64::from(len) + 8, out);
            out.put_u64(offset);
        }
    }
}

/// `len` bytes from `offset` read as zeroes. Not for simple replies, which have no holes. `len` is at least 1.
pub fn hole(style: Style, tag: Tag, last: Chunk, offset: u64, len: u32, out: &mut Vec<u8>) {
    assert!(style != Style::Simple, "simple replies have no holes");
    chunk(style, tag, last, REPLY_TYPE_OFFSET_HOLE, 12, out);
    out.put_u64(offset);
    out.put_u32(len);
}

/// Failure. The message is for a person; simple replies have no place for it.
pub fn error(style: Style, tag: Tag, errno: Errno, message: &str, out: &mut Vec<u8>) {
    match style {
        Style::Simple => simple(tag, errno.code(), out),
        Style::Structured | Style::Extended => {
            let message = clip(message).as_bytes();
            // At most MAX_STRING_BYTES after clipping, so both fit.
            let (len16, len64) = (u16::try_from(message.len()), u64::try_from(message.len()));
            chunk(style, tag, Chunk::Last, REPLY_TYPE_ERROR, len64.unwrap_or(0) + 6, out);
            out.put_u32(errno.code());
            out.put_u16(len16.unwrap_or(0));
            out.put_slice(message);
        }
    }
}

/// Block status of one context. `false`, with nothing written: the extents say nothing, or simple replies are in use.
#[must_use]
pub fn status(
    style: Style,
    tag: Tag,
    last: Chunk,
    context: Context,
    extents: &[Extent],
    out: &mut Vec<u8>,
) -> bool {
    let view = context.view(extents);
    let Ok(count) = u32::try_from(view.len()) else { return false };
    if count == 0 {
        return false;
    }
    match style {
        Style::Simple => return false,
        Style::Structured => {
            let len = u64::from(count) * 8 + 4;
            chunk(style, tag, last, REPLY_TYPE_BLOCK_STATUS, len, out);
            out.put_u32(context.id());
            for (len, flags) in view {
                // A compact request asks for less than 4 GiB, so only a merged tail could be longer.
                out.put_u32(u32::try_from(len).unwrap_or(!511));
                out.put_u32(flags);
            }
        }
        Style::Extended => {
            let len = u64::from(count) * 16 + 8;
            chunk(style, tag, last, REPLY_TYPE_BLOCK_STATUS_EXT, len, out);
            out.put_u32(context.id());
            out.put_u32(count);
            for (len, flags) in view {
                out.put_u64(len);
                out.put_u64(u64::from(flags));
            }
        }
    }
    true
}

fn simple(tag: Tag, error: u32, out: &mut Vec<u8>) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(tag.cookie);
}

/// The header of a structured or extended chunk with `len` bytes of payload.
fn chunk(style: Style, tag: Tag, last: Chunk, kind: u16, len: u64, out: &mut Vec<u8>) {
    let flags = match last {
        Chunk::Last => REPLY_FLAG_DONE,
        Chunk::More => 0,
    };
    let magic = match style {
        Style::Simple | Style::Structured => STRUCTURED_REPLY_MAGIC,
        Style::Extended => EXTENDED_REPLY_MAGIC,
    };
    out.put_u32(magic);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(tag.cookie);
    match style {
        Style::Simple | Style::Structured => {
            // Payloads are bounded by MAX_PAYLOAD_BYTES and MAX_EXTENTS, far below 2^32.
            out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        }
        Style::Extended => {
            out.put_u64(tag.offset);
            out.put_u64(len);
        }
    }
}

/// The longest whole-character prefix the protocol allows as a string, cut at the first NUL.
pub(super) fn clip(message: &str) -> &str {
    let message = message.split('\0').next().unwrap_or("");
    message.get(..message.floor_char_boundary(MAX_STRING_BYTES)).unwrap_or("")
}
