//! Compression of one frame.

use std::cell::RefCell;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::framed::Packing;

use crate::config::Compression;

/// A frame is stored packed if that saves at least this part of it: less is not worth unpacking.
const LEAST_SAVED: usize = 16;
/// What is looked at to tell that a frame is compressed or encrypted already: so many runs of so many bytes.
const SAMPLE_RUNS: usize = 32;
const SAMPLE_BYTES: usize = 64;
/// The sum of the squares of how often each byte is in a sample is `n + n (n - 1) / 256` for random bytes, 18,424 here, and
/// strays from it by 181. Up to a tenth more (7.85 bits of entropy per byte) nothing is gained by trying.
const RANDOM_SQUARES: u32 = 20_266;

/// Packs the frames of one SCO.
pub struct Packer {
    how: How,
    packed: Vec<u8>,
}

enum How {
    Stored,
    Lz4(Box<CompressTable>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    pub fn new(compression: Compression) -> Result<Self> {
        let how = match compression {
            Compression::None => How::Stored,
            Compression::Lz4 => How::Lz4(Box::default()),
            Compression::Zstd(level) => {
                let compressor = zstd::bulk::Compressor::new(level.into());
                How::Zstd(compressor.map_err(|e| Fault::bug("zstd does not start").because(e))?)
            }
        };
        Ok(Self { how, packed: Vec::new() })
    }

    /// What frames are packed with, if they shrink.
    pub fn packing(&self) -> Packing {
        match self.how {
            How::Stored => Packing::Stored,
            How::Lz4(_) => Packing::Lz4,
            How::Zstd(_) => Packing::Zstd,
        }
    }

    /// Appends a frame to `out`, packed if it shrinks.
    pub fn pack(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Packing {
        let most = plain.len() - plain.len() / LEAST_SAVED;
        let packed = if is_random(plain) { None } else { self.shrink(plain, most) };
        match packed {
            Some(bytes) if bytes < most => {
                out.extend_from_slice(&self.packed[..bytes]);
                self.packing()
            }
            _ => {
                out.extend_from_slice(plain);
                Packing::Stored
            }
        }
    }

    /// Packs into `self.packed`; `None` when that would take more than `most`.
    fn shrink(&mut self, plain: &[u8], most: usize) -> Option<usize> {
        let room = get_maximum_output_size(plain.len());
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        match &mut self.how {
            How::Stored => None,
            How::Lz4(table) => compress_into_with_table(plain, &mut self.packed, table).ok(),
            How::Zstd(compressor) => {
                compressor.compress_to_buffer(plain, &mut self.packed[..most]).ok()
            }
        }
    }
}

/// Whether a frame looks like random bytes.
fn is_random(plain: &[u8]) -> bool {
    let step = plain.len() / SAMPLE_RUNS;
    if step < SAMPLE_BYTES {
        return false;
    }
    let mut counts = [0_u32; 256];
    for run in plain.chunks_exact(step).take(SAMPLE_RUNS) {
        for byte in &run[..SAMPLE_BYTES] {
            counts[usize::from(*byte)] += 1;
        }
    }
    counts.iter().map(|count| count * count).sum::<u32>() <= RANDOM_SQUARES
}

/// Fills `plain` from a packed frame, or says why not.
pub fn unpack(packing: Packing, packed: &[u8], plain: &mut [u8]) -> Result<(), String> {
    let len = match packing {
        Packing::Stored if packed.len() == plain.len() => {
            plain.copy_from_slice(packed);
            plain.len()
        }
        Packing::Stored => packed.len(),
        Packing::Lz4 => {
            lz4_flex::block::decompress_into(packed, plain).map_err(|e| e.to_string())?
        }
        Packing::Zstd => unpack_zstd(packed, plain)?,
    };
    match len == plain.len() {
        true => Ok(()),
        false => Err(format!("it unpacks to {len} bytes of {}", plain.len())),
    }
}

fn unpack_zstd(packed: &[u8], plain: &mut [u8]) -> Result<usize, String> {
    thread_local! {
        /// Making one takes longer than unpacking a frame.
        static UNPACKER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    UNPACKER.with_borrow_mut(|kept| {
        let unpacker = match kept {
            Some(unpacker) => unpacker,
            None => {
                let unpacker = zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?;
                kept.insert(unpacker)
            }
        };
        unpacker.decompress_to_buffer(packed, plain).map_err(|e| e.to_string())
    })
}
