use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use volumedriver_core::fault::Kind;
use volumedriver_core::format::framed::{FRAME_BYTES, FramedEnd, FramedHead, KeyId, Packing, Seal};
use volumedriver_core::format::sco::{ScoFooter, ScoTrailer, TRAILER_BYTES};
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::units::*;

use super::seal::{MasterKey, ObjectKey};
use super::*;
use crate::config::Compression;
use crate::config::keys::KeySource;

const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn source(name: &str) -> KeySource {
    KeySource::Env(name.to_owned())
}

fn ring(keys: &[&str]) -> KeyRing {
    let mut ring = KeyRing::default();
    ring.add(&source("RING"), keys.join("\n").as_bytes()).unwrap();
    ring
}

fn current(ring: &KeyRing) -> Option<KeyId> {
    ring.current(&[source("RING")])
}

/// Clusters like a guest's: text, random bytes, zeroes, and some of each.
fn clusters(count: u32, size: ClusterSize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    };
    let mut bytes = Vec::new();
    for n in 0..count {
        let len = size.bytes() as usize;
        let start = bytes.len();
        match n / 3 % 4 {
            0 => (0..)
                .map(|line| format!("cluster {n} line {line} of the guest's log\n").into_bytes())
                .take(len / 20)
                .for_each(|line| bytes.extend(line)),
            1 => (0..len / 8).for_each(|_| bytes.extend(random().to_le_bytes())),
            2 => {}
            _ => (0..len / 16).for_each(|_| bytes.extend((random() >> 40).to_le_bytes())),
        }
        bytes.resize(start + len, 0);
    }
    bytes
}

fn footer_of(plain: &[u8], size: ClusterSize) -> ScoFooter {
    let crcs: Vec<_> = plain.chunks(size.bytes() as usize).map(ClusterCrc::of).collect();
    let count = crcs.len() as u32;
    let kind = ChangeKind::Data { first_index: 0, crcs };
    let (addr, clusters) = (ClusterAddr(5), ClusterCount(count.into()));
    let changes = vec![Change { seq: Seq(1), addr, count: clusters, kind }];
    ScoFooter {
        volume: VolumeId(std::array::from_fn(|n| n as u8)),
        id: ScoId { epoch: Epoch(7), seq: ScoSeq(0x1234) },
        cluster_size: size,
        cluster_count: count,
        changes: if count == 0 { Vec::new() } else { changes },
    }
}

fn build(plain: &[u8], size: ClusterSize, coding: Coding, ring: &KeyRing, piece: usize) -> Built {
    let salt = std::array::from_fn(|n| 0x80 + n as u8);
    let mut builder = ScoBuilder::new(footer_of(plain, size), coding, ring, salt).unwrap();
    for piece in plain.chunks(piece.max(1)) {
        builder.push(&[Bytes::copy_from_slice(piece)]);
    }
    builder.finish().unwrap()
}

fn end_of(object: &[u8]) -> &[u8] {
    let end = ScoTrailer::decode(object).unwrap().footer_bytes as usize + TRAILER_BYTES;
    &object[object.len() - end..]
}

fn read(opened: &Opened, object: &[u8], first: u32, count: u32) -> Result<Bytes, String> {
    let range = opened.frames.range(first, count).unwrap();
    let stored = &object[range.start as usize..range.end as usize];
    opened.frames.unpack(first, count, stored).map_err(|fault| fault.to_string())
}

fn coding(compression: Compression, key: Option<KeyId>) -> Coding {
    Coding { compression, key, frame_bytes: FRAME_BYTES }
}

fn codings(ring: &KeyRing) -> Vec<Coding> {
    let compressions =
        [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(19)];
    let both = |compression| [None, current(ring)].map(|key| coding(compression, key));
    compressions.into_iter().flat_map(both).collect()
}

#[test]
fn every_coding_gives_back_what_was_pushed_at_every_cluster_size() {
    let ring = ring(&[ONE]);
    for shift in 12..=16 {
        let size = ClusterSize::new(1 << shift).unwrap();
        let plain = clusters(29, size);
        for coding in codings(&ring) {
            for piece in [1 << shift, 3 << shift, plain.len()] {
                let built = build(&plain, size, coding, &ring, piece);
                let object = built.body.concat();
                let opened = Opened::open(end_of(&object), &ring).unwrap();
                assert_eq!(opened.footer, footer_of(&plain, size));
                for (first, count) in [(0, 29), (0, 1), (7, 1), (7, 2), (28, 1), (3, 20)] {
                    let bytes = size.bytes() as usize;
                    let wanted = &plain[first as usize * bytes..(first + count) as usize * bytes];
                    assert!(read(&opened, &object, first, count).unwrap() == wanted, "{coding:?}");
                }
                assert_eq!(built.frames.table, opened.frames.table);
                let smaller = object.len() < plain.len();
                assert_eq!(smaller, coding.compression != Compression::None, "{coding:?}");
            }
        }
    }
}

#[test]
fn an_sco_of_marks_alone_has_no_frames() {
    let ring = ring(&[ONE]);
    for coding in codings(&ring) {
        let built = build(&[], ClusterSize::DEFAULT, coding, &ring, 1);
        let object = built.body.concat();
        let opened = Opened::open(end_of(&object), &ring).unwrap();
        assert_eq!((opened.footer.cluster_count, opened.frames.table.len()), (0, 0));
        assert_eq!(opened.frames.range(0, 1), None);
    }
}

#[test]
fn what_does_not_shrink_is_stored_as_it_is() {
    let size = ClusterSize::DEFAULT;
    let ring = KeyRing::default();
    let plain = clusters(48, size);
    for compression in [Compression::Lz4, Compression::Zstd(3)] {
        let coding = coding(compression, None);
        let built = build(&plain, size, coding, &ring, plain.len());
        let table = &built.frames.table;
        assert!(table.count(Packing::Stored) < table.len());
        // Clusters 3 to 6, 15 to 18 ... are random: a frame of nothing else is not even tried.
        let random: Vec<u8> =
            plain.chunks(4096).skip(3).step_by(12).take(3).flatten().copied().collect();
        let built = build(&random, size, coding, &ring, random.len());
        assert_eq!(built.frames.table.count(Packing::Stored), built.frames.table.len());
        assert_eq!(built.frames.table.data_bytes(), random.len() as u64);
    }
}

#[test]
fn clusters_that_are_missing_are_a_bug_of_ours() {
    let ring = KeyRing::default();
    let size = ClusterSize::DEFAULT;
    let footer = footer_of(&clusters(9, size), size);
    let coding = coding(Compression::Lz4, None);
    for pushed in [0, 4096, 8 * 4096, 10 * 4096] {
        let mut builder = ScoBuilder::new(footer.clone(), coding, &ring, [0; 16]).unwrap();
        builder.push(&[vec![0; pushed].into()]);
        assert_eq!(builder.finish().map(|_| ()).unwrap_err().kind, Kind::Bug, "{pushed}");
    }
}

/// Worked out with Python's hmac (RFC 5869) from the tables at `FramedHead`.
#[test]
fn keys_are_derived_as_the_format_says() {
    let ring = ring(&[ONE]);
    assert_eq!(current(&ring).unwrap().to_string(), "68db9567edbd5f1a");
    let footer = footer_of(&[0x42; 4096], ClusterSize::DEFAULT);
    let salt = std::array::from_fn(|n| 0x80 + n as u8);
    let seal = Seal { key: current(&ring).unwrap(), salt };
    let head = FramedHead::new(&footer, Packing::Stored, FRAME_BYTES, Some(seal));
    let master = MasterKey::new(&std::array::from_fn(|n| n as u8));
    let mut frame = vec![0x42; 4096];
    ObjectKey::new(&master, &head, &seal).seal((&head, 0, Packing::Stored), 0, &mut frame);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&frame[..16]), "58a4cf999aa7b1473ac4c3e863117050");
    assert_eq!(hex(&frame[4096..]), "5c59d93b7fb2112c3c104b9d963052eb");
}

#[test]
fn only_the_right_key_opens_and_a_lacking_one_is_named() {
    let size = ClusterSize::DEFAULT;
    let both = ring(&[OTHER, ONE]);
    let old = ring(&[ONE]);
    let plain = clusters(20, size);
    let key = current(&old);
    let object = build(&plain, size, coding(Compression::Lz4, key), &old, 4096).body.concat();
    // Rotation: the new key encrypts, the old one still reads.
    assert_ne!(current(&both), key);
    let opened = Opened::open(end_of(&object), &both).unwrap();
    assert!(read(&opened, &object, 0, 20).unwrap() == plain);
    let lacking = ring(&[OTHER]);
    for (ring, ours) in [
        (&lacking, current(&lacking).unwrap().to_string()),
        (&KeyRing::default(), "none".to_owned()),
    ] {
        let fault = Opened::open(end_of(&object), ring).map(|_| ()).unwrap_err();
        let wanted = key.unwrap().to_string();
        assert_eq!(fault.kind, Kind::Invalid);
        assert!(fault.message.contains(&wanted) && fault.message.contains(&ours), "{fault}");
    }
}

#[test]
fn nothing_of_an_encrypted_sco_can_be_changed_or_moved() {
    let size = ClusterSize::DEFAULT;
    let ring = ring(&[ONE]);
    let plain = clusters(24, size);
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
        let coding = coding(compression, current(&ring));
        let object = build(&plain, size, coding, &ring, plain.len()).body.concat();
        let opened = Opened::open(end_of(&object), &ring).unwrap();
        for frame in 0..3_u32 {
            let (place, _) = opened.frames.table.get(frame).unwrap();
            for at in place.clone().step_by(97).chain([place.end - 1]) {
                let mut damaged = object.clone();
                damaged[at as usize] ^= 0x10;
                // Exactly this frame is lost.
                for other in 0..3_u32 {
                    let read = read(&opened, &damaged, other * 8 + 1, 1);
                    assert_eq!(read.is_err(), other == frame, "byte {at} of frame {frame}");
                }
                let message = read(&opened, &damaged, 0, 24).unwrap_err();
                let named = format!("clusters {} to {}", frame * 8, frame * 8 + 7);
                assert!(message.contains(&named), "{message}");
            }
        }
    }
    // Frames of the same length in each other's place.
    let coding = coding(Compression::None, current(&ring));
    let object = build(&plain, size, coding, &ring, plain.len()).body.concat();
    let opened = Opened::open(end_of(&object), &ring).unwrap();
    let (place, _) = opened.frames.table.get(0).unwrap();
    let frame = place.end as usize;
    let swapped = [&object[frame..2 * frame], &object[..frame], &object[2 * frame..]].concat();
    assert!(read(&opened, &swapped, 0, 1).is_err() && read(&opened, &swapped, 8, 1).is_err());
    assert!(read(&opened, &swapped, 16, 1).is_ok());
    // Another building of the same SCO has another key: nothing of it fits.
    let mut builder = ScoBuilder::new(footer_of(&plain, size), coding, &ring, [1; 16]).unwrap();
    builder.push(&[plain.clone().into()]);
    let again = builder.finish().unwrap().body.concat();
    assert_ne!(object[..frame], again[..frame]);
    assert!(read(&opened, &again, 0, 1).is_err());
}

#[test]
fn what_is_bound_cannot_be_changed_in_the_clear_part() {
    let size = ClusterSize::DEFAULT;
    let ring = ring(&[ONE]);
    let coding = coding(Compression::Lz4, current(&ring));
    let object = build(&clusters(9, size), size, coding, &ring, 4096).body.concat();
    let FramedEnd { head, table } = FramedEnd::decode(end_of(&object)).unwrap();
    let changed = [
        FramedHead { volume: VolumeId([9; 16]), ..head },
        FramedHead { id: ScoId { epoch: Epoch(8), ..head.id }, ..head },
        FramedHead { id: ScoId { seq: ScoSeq(1), ..head.id }, ..head },
        FramedHead { cluster_count: 10, ..head },
        FramedHead { cluster_size: ClusterSize::new(8192).unwrap(), ..head },
        FramedHead { packing: Packing::Zstd, ..head },
        FramedHead { frame_clusters: 9, ..head },
        FramedHead { seal: head.seal.map(|seal| Seal { salt: [0; 16], ..seal }), ..head },
    ];
    Opened::open(&head.encode_end(table), &ring).unwrap();
    for head in changed {
        let fault = Opened::open(&head.encode_end(table), &ring).map(|_| ()).unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "{head:?}: {fault}");
    }
}

#[test]
fn keys_are_read_line_by_line_and_never_shown() {
    let text = format!("# made in 2026\n\n  {OTHER}\r\n{}\n", ONE.to_uppercase());
    let mut keys = KeyRing::default();
    keys.add(&source("RING"), text.as_bytes()).unwrap();
    assert_eq!(current(&keys), current(&ring(&[OTHER])));
    assert!(keys.has(current(&ring(&[ONE])).unwrap()));
    assert!(!format!("{keys:?}").contains("0102030405"), "{keys:?}");
    for (text, says) in [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        (&ONE[1..], "line 1 (63 bytes)"),
        (&format!("{ONE}\n{ONE}0"), "line 2 (65 bytes)"),
        (&format!("{}g", &ONE[1..]), "line 1 (64 bytes)"),
    ] {
        let fault = KeyRing::default().add(&source("X"), text.as_bytes()).unwrap_err();
        assert_eq!(fault.kind, Kind::Invalid);
        let message = fault.to_string();
        assert!(message.contains(says) && message.contains("env:X"), "{message}");
        assert!(!message.contains("0405060708"), "{message} shows the key");
    }
    assert_eq!(current(&KeyRing::default()), None);
}

fn load(text: &str) -> Result<KeyRing, String> {
    let sources: BTreeSet<KeySource> = [text.parse().unwrap()].into();
    KeyRing::load(&sources).map_err(|fault| fault.to_string())
}

#[test]
fn keys_come_from_files_commands_and_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.key");
    std::fs::write(&file, format!("{ONE}\n")).unwrap();
    let wanted = current(&ring(&[ONE])).unwrap();
    let path = file.display();
    for source in [format!("file:{path}"), format!("command:cat {path} | head -1")] {
        assert!(load(&source).unwrap().has(wanted), "{source}");
    }
    // cargo sets it.
    assert!(load("env:CARGO_PKG_NAME").unwrap_err().contains("line 1 (12 bytes)"));
    for (source, says) in [
        ("file:/nowhere/key", "cannot be read"),
        ("env:NO_SUCH_VARIABLE", "no such variable"),
        ("command:exit 3", "failed: exit status: 3"),
        ("command:kill -9 $$", "failed: signal: 9"),
        ("command:true", "holds no key"),
        ("command:yes", "longer than 65536 bytes"),
        ("file:/dev/zero", "longer than 65536 bytes"),
    ] {
        let message = load(source).unwrap_err();
        assert!(message.contains(says) && message.contains(source), "{source}: {message}");
    }
}

#[test]
fn a_command_that_hangs_is_ended_with_what_it_started() {
    let began = Instant::now();
    let outcome = ring::run("sleep 1000 & sleep 1000", Duration::from_millis(300));
    assert!(outcome.unwrap_err().to_string().contains("did not end within"));
    let outcome = ring::run("exec >&-; sleep 1000", Duration::from_millis(300));
    assert!(outcome.is_err());
    assert!(began.elapsed() < Duration::from_secs(100));
}

proptest! {
    #[test]
    fn hostile_frames_are_refused_without_a_panic(
        packed in proptest::collection::vec(any::<u8>(), 0..600),
        plain in 0_usize..5000,
    ) {
        for packing in [Packing::Stored, Packing::Lz4, Packing::Zstd] {
            let mut out = vec![0; plain];
            let _ = pack::unpack(packing, &packed, &mut out);
        }
    }

    /// Frames of a sound object with bytes overwritten: an answer of the right length or an error, for unencrypted ones too.
    #[test]
    fn damaged_frames_unpack_to_the_right_length_or_not_at_all(at: usize, byte: u8, lz4: bool) {
        let size = ClusterSize::DEFAULT;
        let ring = KeyRing::default();
        let compression = if lz4 { Compression::Lz4 } else { Compression::Zstd(1) };
        let coding = coding(compression, None);
        let built = build(&clusters(8, size), size, coding, &ring, 4096);
        let mut object = built.body.concat();
        let range = built.frames.range(0, 8).unwrap();
        object[at % range.end as usize] = byte;
        let stored = &object[..range.end as usize];
        if let Ok(bytes) = built.frames.unpack(2, 3, stored) {
            prop_assert_eq!(bytes.len(), 3 * 4096);
        }
    }
}
