//! Targets for what is stored: the cache's file, journal records, manifests, SCO footers, segment headers, TLogs.

use volumedriver_core::format::cache::{CacheHeader, CachePage, PAGE_BYTES};
use volumedriver_core::format::framed::{self, FramedEnd, StoredFrame};
use volumedriver_core::format::journal::{self, BLOCK_BYTES, RecordHeader};
use volumedriver_core::format::manifest::{Body, Manifest, Opening, Shape};
use volumedriver_core::format::sco::{ScoFooter, ScoTrailer, TRAILER_BYTES};
use volumedriver_core::format::segment::SegmentHeader;
use volumedriver_core::format::tlog::Tlog;
use volumedriver_core::units::{
    ByteCount, ClusterCrc, ClusterSize, Epoch, ManifestNo, NodeId, ScoSeq, Seq, TlogNo,
};

/// Puts magic, version (1 unless said otherwise), length and checksum of a frame right. Shorter than an envelope, it stays as it is.
pub(crate) fn reseal(magic: [u8; 4], frame: &mut [u8]) {
    reseal_as(magic, 1, frame);
}

fn reseal_as(magic: [u8; 4], version: u32, frame: &mut [u8]) {
    let Ok(len) = u32::try_from(frame.len()) else { return };
    let Some((covered, crc)) = frame.split_last_chunk_mut::<4>() else { return };
    let Some(head) = covered.first_chunk_mut::<12>() else { return };
    let fields = [magic, version.to_le_bytes(), len.to_le_bytes()];
    head.copy_from_slice(&fields.concat());
    // The checksum of a cluster is the same CRC-32.
    *crc = ClusterCrc::of(covered).0.to_le_bytes();
}

pub(crate) fn resealed(magic: [u8; 4], bytes: &[u8]) -> Vec<u8> {
    let mut frame = bytes.to_vec();
    reseal(magic, &mut frame);
    frame
}

/// The input as a block: cut or padded with zeroes.
fn block(bytes: &[u8]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let len = bytes.len().min(BLOCK_BYTES - 4);
    block[..len].copy_from_slice(&bytes[..len]);
    block
}

pub fn cache_header(bytes: &[u8]) {
    let _ = CacheHeader::decode(bytes);
    let mut block = block(bytes);
    reseal(*b"VDCH", &mut block);
    let Ok(header) = CacheHeader::decode(&block) else { return };
    let mut again = [0xff; BLOCK_BYTES];
    header.encode(&mut again);
    assert_eq!(again, block, "{header:?}");
}

pub fn cache_page(bytes: &[u8]) {
    let _ = CachePage::decode(bytes);
    let mut page = Box::new([0; PAGE_BYTES]);
    let len = bytes.len().min(PAGE_BYTES - 4);
    page[..len].copy_from_slice(&bytes[..len]);
    reseal(*b"VDCP", &mut page[..]);
    let Ok(decoded) = CachePage::decode(&page[..]) else { return };
    let mut again = Box::new([0xff; PAGE_BYTES]);
    decoded.encode(&mut again);
    assert!(again == page, "{decoded:?}");
}

pub fn journal(bytes: &[u8]) {
    let _ = RecordHeader::decode(bytes);
    let mut block = block(bytes);
    reseal(*b"VDJR", &mut block);
    let Ok(header) = RecordHeader::decode(&block) else { return };
    let mut again = [0xff; BLOCK_BYTES];
    header.encode(&mut again).expect("what was decoded fits a block");
    assert_eq!(again, block, "{header:?}");
    let bad = journal::verify_payload(&header, bytes);
    let bytes_of_bad =
        bad.iter().map(|cluster| cluster.position + 1).max().unwrap_or_default() * 4096;
    assert!(bytes_of_bad <= u64::from(header.payload_bytes), "{bad:?}");
}

pub fn manifest(bytes: &[u8]) {
    let _ = Manifest::decode(bytes);
    let frame = resealed(*b"VDMF", bytes);
    let Ok(manifest) = Manifest::decode(&frame) else { return };
    assert_eq!(manifest.encode(), frame, "{manifest:?}");
    match &manifest.body {
        Body::Checkpoint(shape) => shape.check().expect("a decoded shape keeps the rules"),
        Body::Delta(changes) => {
            let mut shape = small_shape();
            for change in changes {
                let before = shape.clone();
                match shape.apply(manifest.no, change) {
                    Ok(()) => shape.check().expect("a change keeps the rules"),
                    Err(_) => assert_eq!(shape, before, "a refused change changed the shape"),
                }
            }
        }
    }
}

fn small_shape() -> Shape {
    Shape {
        name: "fuzz".to_owned(),
        size: ByteCount(1 << 20),
        cluster_size: ClusterSize::DEFAULT,
        sco_size: ByteCount(1 << 20),
        last_seq: Seq(0),
        last_sco: ScoSeq(0),
        last_tlog: TlogNo(0),
        origins: vec![],
        runs: vec![],
        tlogs: vec![],
        openings: vec![Opening { epoch: Epoch(1), no: ManifestNo(1), node: NodeId([0; 16]) }],
    }
}

pub fn sco(bytes: &[u8]) {
    let _ = ScoFooter::decode(bytes);
    let _ = ScoTrailer::decode(bytes);
    let mut object = bytes.to_vec();
    let Some((footer, trailer)) = object.split_last_chunk_mut::<TRAILER_BYTES>() else { return };
    let Ok(footer_bytes) = u32::try_from(footer.len()) else { return };
    reseal(*b"VDSF", footer);
    trailer[12..16].copy_from_slice(&footer_bytes.to_le_bytes());
    trailer[16..20].copy_from_slice(footer.last_chunk::<4>().unwrap_or(&[0; 4]));
    reseal(*b"VDST", trailer);
    let Ok(footer) = ScoFooter::decode(&object) else { return };
    assert_eq!(footer.encode(), object, "{footer:?}");
    assert_eq!(u32::try_from(footer.crcs().len()), Ok(footer.cluster_count));
}

/// The end of an SCO in frames, and its table as if it had been decrypted.
pub fn sco_framed(bytes: &[u8]) {
    let _ = FramedEnd::decode(bytes);
    let mut object = bytes.to_vec();
    let Some((footer, trailer)) = object.split_last_chunk_mut::<TRAILER_BYTES>() else { return };
    let Ok(footer_bytes) = u32::try_from(footer.len()) else { return };
    reseal_as(*b"VDSF", 2, footer);
    trailer[12..16].copy_from_slice(&footer_bytes.to_le_bytes());
    trailer[16..20].copy_from_slice(footer.last_chunk::<4>().unwrap_or(&[0; 4]));
    reseal_as(*b"VDST", 2, trailer);
    let Ok(FramedEnd { head, table }) = FramedEnd::decode(&object) else { return };
    assert_eq!(head.encode_end(table), object, "{head:?}");
    let Ok(sco) = head.decode_table(table) else { return };
    let frame = |n: u32| {
        let (place, packing) = sco.frames.get(n).expect("a frame of the table");
        let stored_bytes = u32::try_from(place.end - place.start).expect("a frame is small");
        StoredFrame { packing, stored_bytes }
    };
    let frames: Vec<_> = (0..head.frame_count()).map(frame).collect();
    assert_eq!(framed::encode_table(&frames, &sco.footer.changes), table, "{sco:?}");
    let all = sco.frames.range(&head.frames_of(0, head.cluster_count));
    assert_eq!(all.map_or(0, |range| range.end), sco.frames.data_bytes());
}

pub fn key_marker(bytes: &[u8]) {
    let _ = framed::decode_key_marker(bytes);
    let frame = resealed(*b"VDKY", bytes);
    let Ok((volume, key)) = framed::decode_key_marker(&frame) else { return };
    assert_eq!(framed::encode_key_marker(volume, key), frame);
}

pub fn segment(bytes: &[u8]) {
    let _ = SegmentHeader::decode(bytes);
    let mut block = block(bytes);
    reseal(*b"VDWB", &mut block);
    let Ok(header) = SegmentHeader::decode(&block) else { return };
    let mut again = [0xff; BLOCK_BYTES];
    header.encode(&mut again);
    assert_eq!(again, block, "{header:?}");
}

pub fn tlog(bytes: &[u8]) {
    let _ = Tlog::decode(bytes);
    let frame = resealed(*b"VDTL", bytes);
    let Ok(tlog) = Tlog::decode(&frame) else { return };
    assert_eq!(tlog.encode(), frame, "{tlog:?}");
    #[cfg(feature = "canary")]
    canary(&tlog);
}

/// The planted bug: one four-byte value in the middle of a sound TLog is taken for an index.
#[cfg(feature = "canary")]
fn canary(tlog: &Tlog) {
    let table = [0_u8; 16];
    if tlog.volume.0.first_chunk() == Some(&0x7ac0_91e5_u32.to_le_bytes()) {
        let index = usize::from(tlog.volume.0[0]);
        assert_eq!(table[index], 0, "out of bounds before it is compared");
    }
}
