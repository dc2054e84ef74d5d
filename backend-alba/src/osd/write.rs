//! Writing one fragment's file: large writes, preallocated, every byte hashed once, durable with its name at the end.
//!
//! With direct I/O, aligned pieces go to the device from where they are; the others pass through one bounce buffer.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use crc32fast::Hasher;
use rustix::fs::FallocateFlags;

use super::Title;
use super::directory::{direct_flag, sync_dir};
use super::room::Taken;
use crate::fault::{Fault, Result};
use crate::trailer::{ALIGN, BLOCK_BYTES, Trailer, blocks_of};

/// Fragments from this length are written with O_DIRECT.
pub(super) const DIRECT_FROM_BYTES: u64 = 1 << 20;
/// Length of the bounce buffer: the size of the writes that pass through it.
const BOUNCE_BYTES: usize = 1 << 20;
/// While the bounce buffer holds bytes, aligned pieces shorter than this join them.
const WORTH_A_WRITE_BYTES: usize = 256 << 10;
/// Most slices in one write (IOV_MAX).
const MAX_SLICES: usize = 1024;
/// A write ends once it has this many bytes: whoever else writes to the device waits for no more than that.
const WRITE_BYTES: usize = 1 << 20;
/// Space is taken ahead of the bytes in steps of this, so that a claimed length alone takes little.
const PREALLOCATE_BYTES: u64 = 64 << 20;

/// A file being written; removed when dropped before [`ObjectWriter::keep`].
#[derive(Debug)]
pub struct ObjectWriter {
    draft: Draft,
    path: PathBuf,
    file: File,
    sink: Sink,
    allocated: u64,
    is_kept: bool,
    // After the file itself is gone its room is given back.
    taken: Taken,
}

impl ObjectWriter {
    pub(super) fn create(path: PathBuf, title: &Title, taken: Taken, direct: bool) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        if direct {
            options.custom_flags(direct_flag());
        }
        let file =
            options.open(&path).map_err(|e| Fault::io("cannot create a fragment's file", e))?;
        let (draft, sink) = (Draft::of(title), Sink::new(if direct { ALIGN as usize } else { 1 }));
        let (allocated, is_kept) = (0, false);
        let mut writer = Self { draft, path, file, sink, allocated, is_kept, taken };
        writer.preallocate()?;
        Ok(writer)
    }

    /// The next bytes of the fragment.
    pub fn append(&mut self, pieces: &[Bytes]) -> Result<()> {
        self.draft.add(pieces)?;
        self.preallocate()?;
        let written = self.sink.write(&self.file, pieces.iter().map(|piece| &piece[..]));
        written.map_err(|e| Fault::io("cannot write a fragment's file", e))
    }

    /// Writes the trailer and makes the file durable with its name; returns the CRC-32 of the fragment. `None` for an object
    /// whose checksum is that of the fragment.
    pub fn finish(&mut self, object_crc: Option<u32>) -> Result<u32> {
        let (crc, end) = self.draft.finish(object_crc)?;
        let io = |e| Fault::io("cannot write a fragment's file", e);
        self.sink.write(&self.file, [&end[..]].into_iter()).map_err(io)?;
        self.sink.drain(&self.file).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        let folder =
            self.path.parent().ok_or_else(|| Fault::bug("a fragment's file has no folder"))?;
        sync_dir(folder).map_err(io)?;
        Ok(crc)
    }

    /// The file stays: a manifest names it (or may name it).
    pub fn keep(&mut self) {
        self.is_kept = true;
        self.taken.keep();
    }

    fn preallocate(&mut self) -> Result<()> {
        // The trailer is left to the last write: it is small.
        let (len, whole) = (self.draft.sums.len, self.draft.trailer.len);
        let ahead = (len + PREALLOCATE_BYTES).min(whole);
        if ahead <= self.allocated || (self.allocated > 0 && len < self.allocated) {
            return Ok(());
        }
        let grown = ahead - self.allocated;
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.allocated, grown) {
            Ok(()) => {
                self.allocated = ahead;
                self.taken.allocated(ahead);
                Ok(())
            }
            // It is only faster: a file system that cannot do it is no reason to fail. The room stays promised.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                self.allocated = ahead;
                Ok(())
            }
            Err(e) => Err(Fault::io("cannot allocate a fragment's file", e.into())),
        }
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished object's file stays until the next start");
        }
    }
}

/// What a fragment being written says of itself at the end, on every kind of OSD.
#[derive(Debug)]
pub(super) struct Draft {
    trailer: Trailer,
    sums: Sums,
}

impl Draft {
    pub(super) fn of(title: &Title) -> Self {
        let trailer = Trailer {
            id: title.file,
            len: title.part.layout.fragment_len(),
            crc: 0,
            created_ms: title.created_ms,
            namespace: title.namespace.to_string(),
            name: title.name.to_string(),
            part: title.part,
            block_crcs: Vec::new(),
        };
        Self { trailer, sums: Sums::default() }
    }

    /// The next bytes of the fragment. `Invalid` when they are more than it has.
    pub(super) fn add(&mut self, pieces: &[Bytes]) -> Result<()> {
        pieces.iter().for_each(|piece| self.sums.add(piece));
        if self.sums.len > self.trailer.len { Err(self.miscounted()) } else { Ok(()) }
    }

    /// The fragment's checksum, and all that follows its bytes. `Invalid` when there were not as many as it has.
    pub(super) fn finish(&mut self, object_crc: Option<u32>) -> Result<(u32, Vec<u8>)> {
        if self.sums.len != self.trailer.len {
            return Err(self.miscounted());
        }
        let sums = std::mem::take(&mut self.sums);
        (self.trailer.crc, self.trailer.block_crcs) = sums.finish();
        self.trailer.part.object_crc = object_crc.unwrap_or(self.trailer.crc);
        Ok((self.trailer.crc, self.trailer.encode()))
    }

    fn miscounted(&self) -> Fault {
        let (given, announced) = (self.sums.len, self.trailer.len);
        Fault::invalid(format!("{given} bytes given, {announced} announced"))
    }
}

/// Checksums of the blocks; the fragment's own is combined from them.
#[derive(Debug, Default)]
struct Sums {
    len: u64,
    whole: Hasher,
    block: Hasher,
    block_crcs: Vec<u32>,
}

impl Sums {
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = BLOCK_BYTES - self.len % BLOCK_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min(left as usize));
            self.block.update(now);
            self.len += now.len() as u64;
            if self.len.is_multiple_of(BLOCK_BYTES) {
                self.end_block();
            }
            bytes = later;
        }
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.whole.combine(&block);
        self.block_crcs.push(block.finalize());
    }

    fn finish(mut self) -> (u32, Vec<u32>) {
        if (self.block_crcs.len() as u64) < blocks_of(self.len) {
            self.end_block();
        }
        (self.whole.finalize(), self.block_crcs)
    }
}

/// Sequential writes at multiples of `align`, from memory at multiples of `align`.
#[derive(Debug)]
struct Sink {
    align: usize,
    offset: u64,
    bounce: Bounce,
}

impl Sink {
    fn new(align: usize) -> Self {
        Self { align, offset: 0, bounce: Bounce::default() }
    }

    fn write<'a>(&mut self, file: &File, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'a>> = Vec::new();
        for mut piece in pieces {
            if self.goes_directly(piece) {
                self.drain(file)?;
                let (whole, rest) = piece.split_at(piece.len() - piece.len() % self.align);
                self.write_directly(file, &mut slices, whole)?;
                piece = rest;
            }
            if !piece.is_empty() {
                self.write_slices(file, &mut slices)?;
            }
            while !piece.is_empty() {
                piece = self.bounce.fill(piece);
                if self.bounce.is_full() {
                    self.drain(file)?;
                }
            }
        }
        self.write_slices(file, &mut slices)
    }

    /// Writes what the bounce buffer holds: with direct I/O, only once it is a multiple of the alignment.
    fn drain(&mut self, file: &File) -> io::Result<()> {
        let bytes = self.bounce.filled();
        write_all(file, &mut [IoSlice::new(bytes)], &mut self.offset)?;
        self.bounce.clear();
        Ok(())
    }

    fn goes_directly(&self, piece: &[u8]) -> bool {
        let held = self.bounce.filled().len();
        let is_aligned =
            piece.as_ptr().addr().is_multiple_of(self.align) && held.is_multiple_of(self.align);
        let is_worth_it = held == 0 || piece.len() >= WORTH_A_WRITE_BYTES;
        piece.len() >= self.align && is_aligned && is_worth_it
    }

    /// Adds to the slices to write, which leave whenever they are many or large.
    fn write_directly<'a>(
        &mut self,
        file: &File,
        slices: &mut Vec<IoSlice<'a>>,
        whole: &'a [u8],
    ) -> io::Result<()> {
        for part in whole.chunks(WRITE_BYTES) {
            slices.push(IoSlice::new(part));
            let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
            if slices.len() >= MAX_SLICES || bytes >= WRITE_BYTES {
                self.write_slices(file, slices)?;
            }
        }
        Ok(())
    }

    fn write_slices(&mut self, file: &File, slices: &mut Vec<IoSlice<'_>>) -> io::Result<()> {
        write_all(file, slices, &mut self.offset)?;
        slices.clear();
        Ok(())
    }
}

fn write_all(file: &File, mut slices: &mut [IoSlice<'_>], offset: &mut u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let written = match rustix::io::pwritev(file, slices, *offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        *offset += written as u64;
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

/// A buffer whose bytes begin at a multiple of [`ALIGN`] in memory; allocated when first needed.
#[derive(Debug, Default)]
struct Bounce {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
    fn is_full(&self) -> bool {
        self.len == BOUNCE_BYTES
    }
    fn clear(&mut self) {
        self.len = 0;
    }
    /// Takes what fits and returns the rest.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.memory.is_empty() {
            let align = ALIGN as usize;
            self.memory = vec![0; BOUNCE_BYTES + align];
            self.start =
                self.memory.as_ptr().addr().next_multiple_of(align) - self.memory.as_ptr().addr();
        }
        let (now, later) = bytes.split_at(bytes.len().min(BOUNCE_BYTES - self.len));
        let at = self.start + self.len;
        self.memory[at..at + now.len()].copy_from_slice(now);
        self.len += now.len();
        later
    }
}
