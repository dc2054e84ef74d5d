//! SCOs in frames: properties, and values whose checksum is right and whose content cannot be.

use super::*;
use crate::format::framed::{
    self, FRAME_BYTES, FramedEnd, FramedHead, KeyId, MAX_FRAME_BYTES, Packing, Seal, StoredFrame,
};
use crate::format::names;
use crate::format::sco::ScoForm;

fn seal() -> impl Strategy<Value = Option<Seal>> {
    proptest::option::of((any::<[u8; 8]>(), any::<[u8; 16]>()))
        .prop_map(|seal| seal.map(|(key, salt)| Seal { key: KeyId(key), salt }))
}

fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![Just(Packing::Stored), Just(Packing::Lz4), Just(Packing::Zstd)]
}

/// Frames as a packer could have made them: one seed each.
fn frames_of(head: &FramedHead, seeds: &[u32]) -> Vec<StoredFrame> {
    let frame = |frame: u32| {
        let (most, tag) = (head.plain_bytes(frame), head.tag_bytes());
        let seed = seeds[frame as usize % seeds.len()];
        let (packing, bytes) = match seed % 3 {
            0 => (Packing::Stored, most),
            1 => (Packing::Lz4, 1 + seed % (most - 1)),
            _ => (Packing::Zstd, 1 + seed % (most - 1)),
        };
        StoredFrame { packing, stored_bytes: bytes + tag }
    };
    (0..head.frame_count()).map(frame).collect()
}

proptest! {
    #[test]
    fn an_sco_in_frames_comes_back(
        footer in footer(), packing in packing(), seal in seal(),
        seeds in vec(any::<u32>(), 1..5), first in 0_u32..40, count in 1_u32..40,
    ) {
        let head = FramedHead::new(&footer, packing, FRAME_BYTES, seal);
        let stored = frames_of(&head, &seeds);
        let table = framed::encode_table(&stored, &footer.changes);
        let end = head.encode_end(&table);
        let decoded = FramedEnd::decode(&end).unwrap();
        prop_assert_eq!(decoded, FramedEnd { head, table: &table });
        prop_assert_eq!(ScoTrailer::decode(&end).unwrap().form, ScoForm::Framed);
        let sco = head.decode_table(decoded.table).unwrap();
        prop_assert_eq!(&sco.footer, &footer);
        let all: u64 = stored.iter().map(|frame| u64::from(frame.stored_bytes)).sum();
        prop_assert_eq!(sco.frames.data_bytes(), all);
        prop_assert_eq!(sco.frames.len(), stored.len());
        // A program that knows plain SCOs only names the version.
        let fault = ScoFooter::decode(&end).unwrap_err();
        prop_assert_eq!(fault.kind, Kind::Invalid);

        let frames = head.frames_of(first, count);
        let inside = first + count <= footer.cluster_count;
        let range = sco.frames.range(&frames);
        prop_assert!(range.is_some() || !inside);
        if inside {
            let before: u64 = stored[..frames.start as usize].iter().map(|f| u64::from(f.stored_bytes)).sum();
            let within: u64 = stored[frames.start as usize..frames.end as usize]
                .iter().map(|f| u64::from(f.stored_bytes)).sum();
            prop_assert_eq!(range, Some(before..before + within));
            let (start, _) = head.clusters_of(frames.start);
            let (last, clusters) = head.clusters_of(frames.end - 1);
            prop_assert!(start <= first && last + clusters >= first + count);
            prop_assert!(first - start < head.frame_clusters);
            prop_assert!(last < first + count);
        }
    }

    #[test]
    fn every_flipped_bit_is_seen(footer in footer(), seal in seal(), at: usize, bit in 0_u8..8) {
        let head = FramedHead::new(&footer, Packing::Lz4, FRAME_BYTES, seal);
        let table = framed::encode_table(&frames_of(&head, &[4]), &footer.changes);
        let mut end = head.encode_end(&table).to_vec();
        let at = at % end.len();
        end[at] ^= 1 << bit;
        prop_assert!(FramedEnd::decode(&end).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300), count in 0_u32..100) {
        let _ = FramedEnd::decode(&bytes);
        let head = FramedHead { cluster_count: count, ..sound().0 };
        let _ = head.decode_table(&bytes);
    }

    #[test]
    fn ids_of_keys_are_read_as_spelled(id: [u8; 8], text in "[0-9a-fA-F+]{15,17}") {
        prop_assert_eq!(KeyId(id).to_string().parse::<KeyId>().unwrap(), KeyId(id));
        let name = names::key(KeyId(id));
        prop_assert_eq!(names::key_id(&name), Some(KeyId(id)));
        if let Ok(read) = text.parse::<KeyId>() {
            prop_assert_eq!(read.to_string(), text);
        }
    }
}

/// Head and table of an SCO of nine clusters in two frames.
fn sound() -> (FramedHead, Vec<u8>) {
    let change = Change {
        seq: Seq(1),
        addr: ClusterAddr(5),
        count: ClusterCount(9),
        kind: ChangeKind::Data { first_index: 0, crcs: vec![ClusterCrc(1); 9] },
    };
    let footer = ScoFooter {
        volume: VolumeId([1; 16]),
        id: ScoId { epoch: Epoch(1), seq: ScoSeq(1) },
        cluster_size: ClusterSize::DEFAULT,
        cluster_count: 9,
        changes: vec![change],
    };
    let head = FramedHead::new(&footer, Packing::Lz4, FRAME_BYTES, None);
    let frames = [
        StoredFrame { packing: Packing::Lz4, stored_bytes: 100 },
        StoredFrame { packing: Packing::Stored, stored_bytes: 4096 },
    ];
    let table = framed::encode_table(&frames, &footer.changes);
    head.decode_table(&table).unwrap();
    (head, table)
}

#[track_caller]
fn refused<T>(outcome: Result<T>, says: &str) {
    let fault = outcome.err().expect("it is refused");
    assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
    assert!(fault.to_string().contains(says), "{fault}");
}

#[test]
fn frames_that_cannot_be() {
    let spoilt = |at: usize, bytes: &[u8]| {
        let (head, mut table) = sound();
        table[at..at + bytes.len()].copy_from_slice(bytes);
        head.decode_table(&table)
    };
    refused(spoilt(3, &[3]), "unknown way 3");
    refused(spoilt(0, &[0, 0, 0]), "takes 0 bytes");
    refused(spoilt(0, &[0, 0x80, 0]), "takes 32768 bytes packed with lz4");
    refused(spoilt(0, &[0xff, 0xff, 0xff]), "takes 16777215 bytes");
    refused(spoilt(4, &[0xff, 0x0f, 0]), "takes 4095 bytes packed with none");
    refused(spoilt(8, &[0xff; 4]), "counts 4294967295 items");
    let (head, table) = sound();
    let sealed = FramedHead { seal: Some(Seal { key: KeyId([1; 8]), salt: [2; 16] }), ..head };
    refused(sealed.decode_table(&table), "frame 1 of 4096 bytes takes 4096 bytes");
    refused(FramedHead { cluster_count: 10, ..head }.decode_table(&table), "frame 1 of 8192");
    refused(FramedHead { cluster_count: 1 << 16, ..head }.decode_table(&table), "no room");
    refused(head.decode_table(&[&table[..], &[0]].concat()), "1 bytes follow");
    refused(head.decode_table(&table[..table.len() - 1]), "no room for them");
}

#[test]
fn heads_that_cannot_be() {
    let (head, table) = sound();
    let end = head.encode_end(&table);
    let spoilt = |at: usize, bytes: &[u8]| {
        let mut body = end[12..end.len() - 68].to_vec();
        body[at..at + bytes.len()].copy_from_slice(bytes);
        let mut forged = Vec::new();
        forged.extend(b"VDSF");
        forged.extend(2_u32.to_le_bytes());
        forged.extend(u32::try_from(body.len() + 16).unwrap().to_le_bytes());
        forged.extend(body);
        forged.extend(crc32fast::hash(&forged).to_le_bytes());
        let mut trailer = end[end.len() - 64..end.len() - 4].to_vec();
        trailer[16..20].copy_from_slice(forged.last_chunk::<4>().unwrap());
        trailer.extend(crc32fast::hash(&trailer).to_le_bytes());
        forged.extend(trailer);
        FramedEnd::decode(&forged).map(|end| end.head)
    };
    assert_eq!(spoilt(0, &[1]).unwrap(), head);
    refused(spoilt(0, &[3]), "packing 3 is unknown");
    refused(spoilt(1, &[2]), "cipher 2 is unknown");
    refused(spoilt(8, &[1]), "cipher 0 is unknown, or has no key");
    refused(spoilt(2, &[1]), "no frame has 8 clusters");
    refused(spoilt(4, &[0, 0, 0, 0]), "no frame has 0 clusters");
    let many = MAX_FRAME_BYTES / 4096 + 1;
    refused(spoilt(4, &many.to_le_bytes()), "no frame has 257 clusters");
    refused(spoilt(4, &[0xff; 4]), "no frame has 4294967295 clusters");
}

#[test]
fn frames_are_32_kib_or_one_cluster() {
    for (bytes, clusters) in [(4096, 8), (8192, 4), (16_384, 2), (32_768, 1), (65_536, 1)] {
        let footer = ScoFooter {
            volume: VolumeId([1; 16]),
            id: ScoId { epoch: Epoch(1), seq: ScoSeq(1) },
            cluster_size: ClusterSize::new(bytes).unwrap(),
            cluster_count: 9,
            changes: vec![],
        };
        let head = FramedHead::new(&footer, Packing::Lz4, FRAME_BYTES, None);
        assert_eq!(head.frame_clusters, clusters);
        assert_eq!(head.frame_count(), 9_u32.div_ceil(clusters));
    }
}
