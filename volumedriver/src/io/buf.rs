//! Page-aligned memory for O_DIRECT.
//!
//! [`AlignedBuf`] is an owned buffer. [`Area`] is a large piece of memory, the image of a stretch of a segment file, that is
//! filled block by block while slices of its filled blocks are already read and written elsewhere.
//!
//! Invariants of an area: a block is written at most once per life (by [`Area::fill`], through `&mut`), and only before it
//! is frozen; slices exist only of frozen blocks; a new life ([`Area::renew`]) begins only when no slice is left.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use rustix::mm;

/// Alignment of every O_DIRECT buffer, offset and length, bytes.
pub const ALIGN: usize = 4096;

/// From this length on, memory comes from the kernel directly, in huge pages where it has them: to pin a page for each 4 KiB
/// of every O_DIRECT write is a tenth of what a sequential write costs.
const HUGE: usize = 2 << 20;

/// Zeroed memory of a fixed length, aligned to [`ALIGN`] (to [`HUGE`] from that length on), freed on drop.
struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: `Memory` owns its allocation like a `Box<[u8]>`; it has no interior access of its own. Who may read or write which
// byte when is decided by the two types below, and argued there.
unsafe impl Send for Memory {}
// SAFETY: as above; `&Memory` alone gives access to nothing.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(len: usize) -> Self {
        assert!(len.is_multiple_of(ALIGN), "length {len} is not a multiple of {ALIGN}");
        if len == 0 {
            return Self { start: NonNull::<Block>::dangling().cast(), len };
        }
        if len >= HUGE {
            return Self { start: map_huge(len), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len }
    }

    fn layout(len: usize) -> Layout {
        match Layout::from_size_align(len, ALIGN) {
            Ok(layout) => layout,
            Err(_) => panic!("buffer of {len} bytes is beyond the address space"),
        }
    }
}

/// Only for its alignment.
#[repr(align(4096))]
struct Block;
const _: () = assert!(std::mem::align_of::<Block>() == ALIGN);

impl Drop for Memory {
    fn drop(&mut self) {
        if self.len >= HUGE {
            // SAFETY: exactly this range was mapped in `zeroed` and is unmapped only here.
            let unmapped = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
            assert!(unmapped.is_ok(), "a range that was mapped can be unmapped");
        } else if self.len != 0 {
            // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
        }
    }
}

/// Maps zeroed memory that begins at a multiple of [`HUGE`].
fn map_huge(len: usize) -> NonNull<u8> {
    let out_of_memory = || handle_alloc_error(Memory::layout(len));
    let Some(mapped) = len.checked_add(HUGE) else { out_of_memory() };
    let (access, kind) = (mm::ProtFlags::READ | mm::ProtFlags::WRITE, mm::MapFlags::PRIVATE);
    // SAFETY: a new mapping at a place the kernel chooses touches no memory in use.
    let base = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), mapped, access, kind) };
    let Ok(base) = base else { out_of_memory() };
    let base = base.cast::<u8>();
    let before = base.addr().next_multiple_of(HUGE) - base.addr();
    // SAFETY: `before` is less than HUGE, so `before + len` bytes lie inside the mapping; its ends, which nobody has seen yet,
    // are given back. Failing to do so would only waste address space.
    let start = unsafe {
        let start = base.add(before);
        if before > 0 {
            let _ = mm::munmap(base.cast(), before);
        }
        let _ = mm::munmap(start.add(len).cast(), HUGE - before);
        // A kernel without huge pages has small ones.
        let _ = mm::madvise(start.cast(), len, mm::Advice::LinuxHugepage);
        start
    };
    let Some(start) = NonNull::new(start) else { out_of_memory() };
    start
}

/// Buffers up to this length are kept for the next read instead of being freed: fresh memory of this size costs page faults.
const MOST_KEPT_LEN: usize = 1 << 20;
/// Bytes kept per thread.
const MOST_KEPT: usize = 16 << 20;

/// Memory of dropped buffers, by length.
#[derive(Default)]
struct Kept {
    by_len: HashMap<usize, Vec<Memory>>,
    bytes: usize,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// An owned, aligned buffer whose length is a multiple of [`ALIGN`].
pub struct AlignedBuf(Memory);

impl AlignedBuf {
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self(Memory::zeroed(len))
    }

    /// A buffer of any content, for reading into: one that was dropped on this thread before, if there is one of this length.
    #[must_use]
    pub fn recycled(len: usize) -> Self {
        let kept = KEPT.with_borrow_mut(|kept| {
            let memory = kept.by_len.get_mut(&len)?.pop()?;
            kept.bytes -= len;
            Some(memory)
        });
        Self(kept.unwrap_or_else(|| Memory::zeroed(len)))
    }

    /// Freezes it without copying.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let len = self.0.len;
        if len == 0 || len > MOST_KEPT_LEN {
            return;
        }
        let keep = |kept: &RefCell<Kept>| {
            let mut kept = kept.borrow_mut();
            if kept.bytes + len <= MOST_KEPT {
                let memory = std::mem::replace(&mut self.0, Memory::zeroed(0));
                kept.by_len.entry(len).or_default().push(memory);
                kept.bytes += len;
            }
        };
        // A thread that is ending has no store of buffers any more: the memory is freed.
        let _ending = KEPT.try_with(keep);
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes (zeroed at allocation) owned by `self`; writes need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Aligned memory that is filled block by block; see the invariants above.
pub struct Area {
    memory: Arc<Memory>,
    /// One bit per block of [`ALIGN`] bytes.
    frozen: Vec<u64>,
}

impl Area {
    #[must_use]
    pub fn new(len: usize) -> Self {
        let blocks = len / ALIGN;
        Self { memory: Arc::new(Memory::zeroed(len)), frozen: vec![0; blocks.div_ceil(64)] }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.len == 0
    }

    /// Copies whole blocks to `at` and freezes them.
    ///
    /// # Panics
    /// When a block was filled before, or the range is unaligned or outside: the caller lost track of its positions.
    pub fn fill(&mut self, at: usize, bytes: &[u8]) {
        let blocks = self.blocks(&(at..at + bytes.len()));
        for block in blocks {
            let (word, bit) = (block / 64, 1 << (block % 64));
            assert!(self.frozen[word] & bit == 0, "block {block} of the area is filled already");
            self.frozen[word] |= bit;
        }
        // SAFETY: the range lies inside the allocation (checked in `blocks`). No slice covers it, because none of its blocks
        // was frozen until now and slices exist only of frozen blocks; so nobody else reads it, and `&mut self` is the only
        // writer. `bytes` cannot overlap it, for a `&[u8]` to these blocks could only come from such a slice.
        unsafe {
            let target = self.memory.start.as_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }

    /// Whether every block of the range is filled.
    #[must_use]
    pub fn holds(&self, range: Range<usize>) -> bool {
        self.blocks(&range).all(|block| self.frozen[block / 64] & (1 << (block % 64)) != 0)
    }

    /// A piece that is filled entirely.
    ///
    /// # Panics
    /// When a block of it is not filled, or the range is unaligned or outside.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> AreaSlice {
        self.check_frozen(&range);
        AreaSlice { memory: self.memory.clone(), start: range.start, len: range.len() }
    }

    /// The bytes of a piece that is filled entirely, for a short look.
    ///
    /// # Panics
    /// As [`Area::slice`].
    #[must_use]
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.check_frozen(&range);
        // SAFETY: inside the allocation (checked), initialised at allocation, and frozen: nobody writes it while `&self`
        // lives, since filling and renewing take `&mut self`.
        unsafe {
            let start = self.memory.start.as_ptr().add(range.start);
            std::slice::from_raw_parts(start, range.len())
        }
    }

    /// Begins a new life with every block unfilled, if no slice is left. `false`: changed nothing.
    #[must_use]
    pub fn renew(&mut self) -> bool {
        // `get_mut` proves that no slice holds the memory (there are no weak references), with the ordering needed to see
        // the end of its use on other threads.
        let unshared = Arc::get_mut(&mut self.memory).is_some();
        if unshared {
            self.frozen.fill(0);
        }
        unshared
    }

    fn check_frozen(&self, range: &Range<usize>) {
        for block in self.blocks(range) {
            let filled = self.frozen[block / 64] & (1 << (block % 64)) != 0;
            assert!(filled, "block {block} of the area is not filled yet");
        }
    }

    fn blocks(&self, range: &Range<usize>) -> Range<usize> {
        let aligned = range.start.is_multiple_of(ALIGN) && range.end.is_multiple_of(ALIGN);
        let inside = range.start <= range.end && range.end <= self.memory.len;
        assert!(aligned && inside, "{range:?} is not whole blocks of {} bytes", self.memory.len);
        range.start / ALIGN..range.end / ALIGN
    }
}

/// An immutable, aligned piece of an area that other parts are still being filled in; cheap to clone, `Send`.
#[derive(Clone)]
pub struct AreaSlice {
    memory: Arc<Memory>,
    start: usize,
    len: usize,
}

impl AreaSlice {
    #[must_use]
    pub fn from_aligned(mut buf: AlignedBuf) -> Self {
        let len = buf.0.len;
        let memory = std::mem::replace(&mut buf.0, Memory::zeroed(0));
        Self { memory: Arc::new(memory), start: 0, len }
    }

    /// A part of it, whole blocks.
    ///
    /// # Panics
    /// When the range is unaligned or outside.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        let aligned = range.start.is_multiple_of(ALIGN) && range.end.is_multiple_of(ALIGN);
        assert!(aligned && range.start <= range.end && range.end <= self.len);
        Self { memory: self.memory.clone(), start: self.start + range.start, len: range.len() }
    }

    /// The same bytes for the network, without copying.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AreaSlice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: inside the allocation, initialised at allocation, and immutable while this slice lives: it covers frozen
        // blocks of an area (written no more until `renew`, which finds the memory shared and refuses) or a former
        // `AlignedBuf` that nobody can write any more.
        unsafe {
            let start = self.memory.start.as_ptr().add(self.start);
            std::slice::from_raw_parts(start, self.len)
        }
    }
}

impl AsRef<[u8]> for AreaSlice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_keep_their_bytes() {
        for len in [0, ALIGN, 3 * ALIGN] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.as_ptr().addr() % ALIGN, 0);
            assert_eq!(buf.len(), len);
            assert!(buf.iter().all(|byte| *byte == 0));
            buf.fill(7);
            let address = buf.as_ptr();
            let bytes = buf.into_bytes();
            assert_eq!(bytes.as_ptr(), address, "freezing copied");
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn a_slice_stays_while_its_neighbours_are_filled() {
        let mut area = Area::new(4 * ALIGN);
        area.fill(ALIGN, &[1; ALIGN]);
        let first = area.slice(ALIGN..2 * ALIGN);
        area.fill(2 * ALIGN, &[2; ALIGN]);
        assert_eq!(first[..], [1; ALIGN]);
        let both = area.slice(ALIGN..3 * ALIGN);
        assert_eq!((both[0], both[ALIGN]), (1, 2));
        assert_eq!(both.part(ALIGN..2 * ALIGN)[0], 2);
        assert_eq!(both.clone().into_bytes().as_ptr(), both.as_ptr());
    }

    #[test]
    fn an_area_is_renewed_only_when_no_slice_is_left() {
        let mut area = Area::new(2 * ALIGN);
        area.fill(0, &[1; ALIGN]);
        let slice = area.slice(0..ALIGN);
        let elsewhere = std::thread::spawn(move || slice[0]);
        assert_eq!(elsewhere.join().ok(), Some(1));
        let bytes = area.slice(0..ALIGN).into_bytes();
        assert!(!area.renew());
        assert_eq!(bytes[0], 1);
        drop(bytes);
        assert!(area.renew());
        area.fill(0, &[2; ALIGN]);
        assert_eq!(area.bytes(0..ALIGN)[0], 2);
    }

    #[test]
    #[should_panic(expected = "filled already")]
    fn a_frozen_block_is_never_written_again() {
        let mut area = Area::new(2 * ALIGN);
        area.fill(0, &[1; 2 * ALIGN]);
        area.fill(ALIGN, &[2; ALIGN]);
    }

    #[test]
    #[should_panic(expected = "not filled yet")]
    fn an_unfilled_block_is_never_read() {
        let mut area = Area::new(2 * ALIGN);
        area.fill(0, &[1; ALIGN]);
        let _ = area.slice(0..2 * ALIGN);
    }
}
