//! Reading a fragment that is an object: its trailer first, then ranges of whole blocks, each checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use crc32fast::Hasher;

use super::{Inner, Objects};
use crate::fault::{Fault, Kind, Result};
use crate::osd::patience::for_bytes;
use crate::osd::read::{check, combined};
use crate::osd::{Fragment, Priority, Wanted};
use crate::trailer::{ALIGN, BLOCK_BYTES, FIXED_BYTES, Trailer, blocks_of};

/// What is read of an end before the trailer's length is known, bytes.
const END_BYTES: u64 = ALIGN;
/// What is read at once of a fragment whose trailer is damaged: whole blocks.
const STEP_BYTES: u64 = 4 << 20;

pub struct ObjectFragment {
    pub(super) osd: Arc<Inner>,
    pub(super) wanted: Wanted,
    pub(super) block_crcs: Box<[u32]>,
    pub(super) is_removed: AtomicBool,
}

/// `None` when there is no object, `Corrupt` when it does not end with a trailer.
pub(super) async fn load_trailer(objects: &dyn Objects, key: &str) -> Result<Option<Trailer>> {
    let Some((len, end)) = objects.end(key, END_BYTES).await? else { return Ok(None) };
    let fixed = end.get(end.len().saturating_sub(FIXED_BYTES)..).unwrap_or_default();
    let own = Trailer::len_from_end(fixed, len)?;
    if own <= end.len() as u64 {
        return Trailer::from_end(&end).map(Some);
    }
    let Some(whole) = objects.get(key, len - own, own).await? else { return Ok(None) };
    Trailer::decode(&whole).map(Some)
}

/// Checksums of a fragment's blocks, which combine to its own. `None` when there is none.
pub(super) async fn block_crcs(osd: &Inner, wanted: Wanted) -> Result<Option<Vec<u32>>> {
    let Wanted { file, len, crc } = wanted;
    let key = osd.key(file);
    let deadline = for_bytes(osd.deadline, blocks_of(len) * 4);
    match osd.call(deadline, load_trailer(&*osd.objects, &key)).await {
        Ok(None) => return Ok(None),
        Ok(Some(trailer)) => {
            let is_it = (trailer.id, trailer.len, trailer.crc) == (file, len, crc);
            if is_it && combined(&trailer.block_crcs, len) == crc {
                return Ok(Some(trailer.block_crcs));
            }
        }
        Err(fault) if fault.kind == Kind::Corrupt => {}
        Err(fault) => return Err(fault),
    }
    sums_of(osd, &key, wanted).await
}

/// The trailer is damaged: if the fragment as a whole matches its manifest, its blocks are what they are.
async fn sums_of(osd: &Inner, key: &str, wanted: Wanted) -> Result<Option<Vec<u32>>> {
    let Wanted { len, crc, .. } = wanted;
    let (mut whole, mut sums) = (Hasher::new(), Vec::new());
    for at in (0..len).step_by(STEP_BYTES as usize) {
        let step = STEP_BYTES.min(len - at);
        let asked = osd.objects.get(key, at, step);
        let Some(bytes) = osd.call(for_bytes(osd.deadline, step), asked).await? else {
            return Ok(None);
        };
        for block in bytes.chunks(BLOCK_BYTES as usize) {
            let mut sum = Hasher::new();
            sum.update(block);
            whole.combine(&sum);
            sums.push(sum.finalize());
        }
    }
    if whole.finalize() != crc {
        let message = format!("bytes 0..{len}: trailer and bytes are both damaged");
        return osd.named(Err(Fault::corrupt(message)));
    }
    Ok(Some(sums))
}

#[async_trait]
impl Fragment for ObjectFragment {
    /// Whole blocks come over the wire: what is checked is what was read.
    async fn read(self: Arc<Self>, from: u64, to: u64, priority: Priority) -> Result<Bytes> {
        if from >= to {
            return Ok(Bytes::new());
        }
        let (osd, whole) = (&self.osd, self.wanted.len);
        let _place = osd.gate.enter(priority).await?;
        let start = from - from % BLOCK_BYTES;
        let len = to.next_multiple_of(BLOCK_BYTES).min(whole).saturating_sub(start);
        let key = osd.key(self.wanted.file);
        let asked = osd.objects.get(&key, start, len);
        let Some(blocks) = osd.call(for_bytes(osd.deadline, len), asked).await? else {
            self.is_removed.store(true, Ordering::Relaxed);
            let message = format!("bytes 0..{whole}: its object is missing");
            return osd.named(Err(Fault::corrupt(message)));
        };
        osd.named(check(&self.block_crcs, start, &blocks))?;
        Ok(blocks.slice((from - start) as usize..(to - start) as usize))
    }

    fn read_here(&self, _from: u64, _to: u64) -> Option<Result<Bytes>> {
        None
    }
    fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Relaxed)
    }
}
