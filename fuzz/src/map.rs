//! Targets for the stored map: pages of the local page store, run objects of the backend.

use volumedriver_core::format::page::{self, PageRun};
use volumedriver_core::format::run::{
    MapExtent, RunIndex, RunWriter, TRAILER_BYTES, Tail, decode_block, decode_tail,
};
use volumedriver_core::units::{Mapping, PAGE_CLUSTERS, PageNo};

use crate::format::{reseal, resealed};

pub fn page(bytes: &[u8]) {
    let _ = page::decode(PageNo(0), bytes);
    let frame = resealed(*b"VDPG", bytes);
    let Some(no) = frame.get(12..).and_then(<[u8]>::first_chunk) else { return };
    let no = PageNo(u64::from_le_bytes(*no));
    let Ok(runs) = page::decode(no, &frame) else { return };
    // Short runs come back as a dense page, so the mappings are compared and not the bytes.
    let again = page::decode(no, &page::encode(no, &runs)).expect("what was decoded is encoded");
    assert_eq!(clusters(&runs), clusters(&again));
}

fn clusters(runs: &[PageRun]) -> Vec<Mapping> {
    let ends = runs.iter().skip(1).map(|run| u64::from(run.start)).chain([PAGE_CLUSTERS]);
    let lengths = runs.iter().zip(ends).map(|(run, end)| (run.mapping, end - u64::from(run.start)));
    lengths.flat_map(|(mapping, count)| (0..count).map(move |n| mapping.nth(n))).collect()
}

pub fn run(bytes: &[u8]) {
    let len = u64::try_from(bytes.len()).expect("inputs are small");
    let _ = decode_tail(len, bytes);
    if let Ok(extents) = decode_block(&resealed(*b"VDRB", bytes)) {
        check_ascending(&extents);
    }
    let object = resealed_object(bytes);
    let tail = object.len().saturating_sub(TRAILER_BYTES);
    if let Ok(Tail::Longer(more)) = decode_tail(len, &object[tail..]) {
        assert!(more <= len, "the index is asked for from beyond the object");
    }
    if let Ok(Tail::Index(index)) = decode_tail(len, &object) {
        check_object(&object, &index);
    }
}

/// The input as a run object whose index and trailer have right checksums.
fn resealed_object(bytes: &[u8]) -> Vec<u8> {
    let mut object = bytes.to_vec();
    let Some((before, trailer)) = object.split_last_chunk_mut::<TRAILER_BYTES>() else {
        return object;
    };
    let [.., a, b, c, d, _, _, _, _, _, _, _, _] = *trailer;
    let index_bytes = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if let Some(start) = before.len().checked_sub(index_bytes) {
        let index = &mut before[start..];
        reseal(*b"VDRI", index);
        let crc = *index.last_chunk().unwrap_or(&[0; 4]);
        trailer[TRAILER_BYTES - 8..TRAILER_BYTES - 4].copy_from_slice(&crc);
    }
    reseal(*b"VDRT", trailer);
    object
}

/// Blocks lie in the object; those that decode give a run that reads back as it was.
fn check_object(object: &[u8], index: &RunIndex) {
    let mut all = Vec::new();
    for block in &index.blocks {
        let range = |at: u64| usize::try_from(at).expect("inputs are small");
        let bytes = object
            .get(range(block.bytes.start)..range(block.bytes.end))
            .expect("a block lies in the object");
        let Ok(extents) = block.decode(&resealed(*b"VDRB", bytes)) else { return };
        all.extend(extents);
    }
    check_ascending(&all);
    let header = &index.header;
    let mut writer = RunWriter::new(header.volume, header.epoch, header.no);
    all.iter().for_each(|extent| writer.push(*extent));
    let (parts, len, again) = writer.finish();
    assert_eq!(&again, header);
    let written = parts.concat();
    let Ok(Tail::Index(index)) = decode_tail(len, &written) else { panic!("a run is readable") };
    let blocks = index.blocks.iter().flat_map(|block| {
        let range = |at: u64| usize::try_from(at).expect("runs of small inputs are small");
        let bytes = &written[range(block.bytes.start)..range(block.bytes.end)];
        block.decode(bytes).expect("a written block is readable")
    });
    assert_eq!(blocks.collect::<Vec<_>>(), all);
}

fn check_ascending(extents: &[MapExtent]) {
    let ascending = extents.is_sorted_by(|a, b| a.addr + a.count <= b.addr);
    assert!(ascending, "{extents:?}");
}
