//! Reading one fragment's file: whole blocks, each checked against its checksum before a byte of it is handed on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;
use crc32fast::Hasher;

use super::Wanted;
use crate::fault::{Fault, Result};
use crate::trailer::{ALIGN, BLOCK_BYTES, FIXED_BYTES, Trailer, blocks_of};

/// What is read ahead of knowing the trailer's length, bytes: enough for the trailer of a fragment of 30 MiB or less.
const END_BYTES: u64 = ALIGN;

/// An open fragment.
#[derive(Debug)]
pub struct ObjectFile {
    file: File,
    len: u64,
    block_crcs: Box<[u32]>,
}

impl ObjectFile {
    pub(super) fn open(path: &Path, wanted: Wanted) -> Result<Option<Self>> {
        let Wanted { file: id, len, crc } = wanted;
        let file = match OpenOptions::new().read(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Fault::io("cannot open a fragment's file", e)),
        };
        let block_crcs = match load_trailer(&file) {
            Ok(trailer) if (trailer.id, trailer.len, trailer.crc) == (id, len, crc) => {
                trailer.block_crcs
            }
            Ok(_) => sums_of(&file, len, crc)?,
            Err(fault) if fault.kind == crate::fault::Kind::Corrupt => sums_of(&file, len, crc)?,
            Err(fault) => return Err(fault),
        };
        Ok(Some(Self { file, len, block_crcs: block_crcs.into() }))
    }

    /// Checksums of its blocks, which combine to its own.
    #[must_use]
    pub fn block_crcs(&self) -> &[u32] {
        &self.block_crcs
    }

    /// No name leads to the file any more.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.file.metadata().is_ok_and(|m| m.nlink() == 0)
    }

    /// The bytes of a range that lies in the fragment, verified. `Corrupt` names the blocks that do not match.
    pub fn read(&self, offset: u64, len: u64) -> Result<Bytes> {
        let start = offset - offset % BLOCK_BYTES;
        let end = (offset + len).next_multiple_of(BLOCK_BYTES).min(self.len);
        let blocks = read_exact(&self.file, start, end.saturating_sub(start))?;
        check(&self.block_crcs, start, &blocks)?;
        let skip = (offset - start) as usize;
        Ok(Bytes::from(blocks).slice(skip..skip + len as usize))
    }
}

/// Whole blocks that begin at `start` of a fragment whose blocks have these checksums.
pub(super) fn check(block_crcs: &[u32], start: u64, blocks: &[u8]) -> Result<()> {
    let first = start / BLOCK_BYTES;
    let crcs = block_crcs.iter().skip(first as usize);
    for ((block, crc), n) in blocks.chunks(BLOCK_BYTES as usize).zip(crcs).zip(first..) {
        if crc32fast::hash(block) != *crc {
            let from = n * BLOCK_BYTES;
            let to = from + block.len() as u64;
            return Err(Fault::corrupt(format!("bytes {from}..{to} do not match their checksum")));
        }
    }
    Ok(())
}

/// The checksum of a fragment of this length whose blocks have these.
pub(super) fn combined(block_crcs: &[u32], len: u64) -> u32 {
    let mut whole = Hasher::new();
    let mut left = len;
    for crc in block_crcs {
        let block = left.min(BLOCK_BYTES);
        whole.combine(&Hasher::new_with_initial_len(*crc, block));
        left -= block;
    }
    whole.finalize()
}

/// The trailer of a file. `None` when it is missing.
pub(super) fn describe(path: &Path) -> Result<Option<Trailer>> {
    match OpenOptions::new().read(true).open(path) {
        Ok(file) => load_trailer(&file).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Fault::io("cannot open a fragment's file", e)),
    }
}

fn load_trailer(file: &File) -> Result<Trailer> {
    let file_len =
        file.metadata().map_err(|e| Fault::io("no length of a fragment's file", e))?.len();
    let end = read_exact(file, file_len.saturating_sub(END_BYTES), file_len.min(END_BYTES))?;
    let fixed = end.get(end.len().saturating_sub(FIXED_BYTES)..).unwrap_or_default();
    let own = Trailer::len_from_end(fixed, file_len)?;
    if own <= end.len() as u64 {
        return Trailer::decode(&end[end.len() - own as usize..]);
    }
    Trailer::decode(&read_exact(file, file_len - own, own)?)
}

/// The trailer is damaged: if the fragment as a whole matches its manifest, its blocks are what they are.
fn sums_of(file: &File, len: u64, crc: u32) -> Result<Vec<u32>> {
    let mut whole = Hasher::new();
    let mut sums = Vec::new();
    for block in 0..blocks_of(len) {
        let at = block * BLOCK_BYTES;
        let bytes = read_exact(file, at, BLOCK_BYTES.min(len - at))?;
        let mut sum = Hasher::new();
        sum.update(&bytes);
        whole.combine(&sum);
        sums.push(sum.finalize());
    }
    if whole.finalize() != crc {
        return Err(Fault::corrupt(format!("bytes 0..{len}: trailer and bytes are both damaged")));
    }
    Ok(sums)
}

/// Exactly this range of a file. A file too short, or a device that cannot read it, is damage.
pub(super) fn read_exact(file: &File, offset: u64, len: u64) -> Result<Vec<u8>> {
    let damaged = |why: &str| Fault::corrupt(format!("bytes {offset}..{}: {why}", offset + len));
    let len = usize::try_from(len).map_err(|_| Fault::bug("a range longer than memory"))?;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        // The capacity may be larger than asked; what is read beyond `len` is cut off below.
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(damaged("the file is too short")),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::IO) => return Err(damaged("the device cannot read them")),
            Err(e) => return Err(Fault::io("cannot read a fragment's file", e.into())),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}
