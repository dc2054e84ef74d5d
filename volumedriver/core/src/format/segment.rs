//! Header block of a write buffer segment file.

use bytes::BufMut;

use super::frame::Frame;
use super::journal::BLOCK_BYTES;
use crate::fault::{Fault, Result};
use crate::units::NodeId;

const FRAME: Frame = Frame { name: "segment header", magic: *b"VDWB", version: 1 };
const BODY_BYTES: usize = 44;

/// The first [`BLOCK_BYTES`] of a segment file.
///
/// Body of its frame, which is one block long, magic `VDWB`, version 1:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 16 | node |
/// | 16 | 4 | shard |
/// | 20 | 8 | use_no |
/// | 28 | 8 | first_record |
/// | 36 | 8 | segment_bytes |
/// | 44 | 4036 | zeroes |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub node: NodeId,
    pub shard: u32,
    /// Grows by one each time any segment of this buffer is taken into use; orders the segments.
    pub use_no: u64,
    /// Number of the first record in it.
    pub first_record: u64,
    /// File length, bytes.
    pub segment_bytes: u64,
}

impl SegmentHeader {
    pub fn encode(&self, out: &mut [u8; BLOCK_BYTES]) {
        let mut body = Vec::with_capacity(BODY_BYTES);
        body.put_slice(&self.node.0);
        body.put_u32_le(self.shard);
        body.put_u64_le(self.use_no);
        body.put_u64_le(self.first_record);
        body.put_u64_le(self.segment_bytes);
        FRAME.fill(out, &[&body]);
    }

    /// Decodes the first block of a segment file.
    pub fn decode(block: &[u8]) -> Result<Self> {
        if block.len() != BLOCK_BYTES {
            return Err(Fault::corrupt(format!(
                "segment header is {} bytes, not {BLOCK_BYTES}",
                block.len()
            )));
        }
        let mut reader = FRAME.body(block)?;
        let header = Self {
            node: NodeId(reader.array()?),
            shard: reader.u32()?,
            use_no: reader.u64()?,
            first_record: reader.u64()?,
            segment_bytes: reader.u64()?,
        };
        reader.end_padded()?;
        Ok(header)
    }
}
