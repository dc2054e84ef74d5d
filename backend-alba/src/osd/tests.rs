//! A directory OSD on a real file system.

use std::fs;

use bytes::Bytes;

use super::read::ObjectFile;
use super::write::ObjectWriter;
use super::*;
use crate::erasure::Layout;
use crate::fault::Kind;
use crate::name::{AlbaId, ObjectId};
use crate::preset::Policy;

const LIMITS: Limits = Limits { reserve_percent: 1, reserve_bytes: 1 << 30, capacity_bytes: None };

fn title(len: u64) -> Title {
    let layout = Layout { len, policy: Policy::SINGLE, unit: 1 << 20 };
    let part = Part { object: ObjectId::random(), layout, object_crc: 0, index: 0 };
    let (file, purpose) = (FragmentId::random(), Purpose::Data);
    let (namespace, name, priority) = ("ns".into(), "name".into(), Priority::Foreground);
    Title { file, namespace, name, part, created_ms: 7, purpose, priority }
}

fn create(osd: &Directory, len: u64) -> Result<ObjectWriter> {
    osd.create(&title(len))
}

fn open(osd: &Directory, (file, len, crc): (FragmentId, u64, u32)) -> Result<Option<ObjectFile>> {
    osd.open_fragment(Wanted { file, len, crc })
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn put(osd: &Directory, pieces: &[Bytes]) -> (FragmentId, u64, u32) {
    let len = pieces.iter().map(|p| p.len() as u64).sum();
    let title = title(len);
    let mut writer = osd.create(&title).unwrap();
    writer.append(pieces).unwrap();
    let crc = writer.finish(None).unwrap();
    writer.keep();
    (title.file, len, crc)
}

#[test]
fn pieces_of_any_alignment_come_back_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let osd = Directory::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
    let body = Bytes::from(noise(5 << 20, 1));
    let cuts: [&[usize]; 5] = [
        &[],
        &[1, 4096, 8192, 8193, 1 << 20, (1 << 20) + 4096, 3 << 20],
        &[4096, 8192, 12288, 2 << 20, (4 << 20) + 7],
        &[(5 << 20) - 1],
        &[100, 200, 300, (1 << 20) + 300, (2 << 20) + 300],
    ];
    for cut in cuts {
        let mut ends = cut.to_vec();
        ends.push(body.len());
        let starts = std::iter::once(0).chain(cut.iter().copied());
        let pieces: Vec<Bytes> = starts.zip(&ends).map(|(a, b)| body.slice(a..*b)).collect();
        let (id, len, crc) = put(&osd, &pieces);
        assert_eq!(crc, crc32fast::hash(&body));
        let object = open(&osd, (id, len, crc)).unwrap().unwrap();
        assert!(object.read(0, len).unwrap() == body, "cut at {cut:?}");
        assert_eq!(object.read(65_535, 2).unwrap(), body.slice(65_535..65_537));
    }
}

#[tokio::test]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
    let osd = Local::new(directory, 4);
    conformance::conforms(&osd).await;
    conformance::keeps_sequences_apart(&osd).await;
}

#[test]
fn lengths_around_blocks_and_pages() {
    let dir = tempfile::tempdir().unwrap();
    let osd = Directory::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
    for len in [0, 1, 4095, 4096, 65_535, 65_536, 65_537, (1 << 20) + 1] {
        let body = Bytes::from(noise(len, 2));
        let (id, len, crc) = put(&osd, std::slice::from_ref(&body));
        let object = open(&osd, (id, len, crc)).unwrap().unwrap();
        assert_eq!(object.read(0, len).unwrap(), body);
        let file_len = fs::metadata(osd.path_of(id)).unwrap().len();
        assert_eq!(file_len % 4096, 0);
    }
}

#[test]
fn a_damaged_trailer_costs_nothing_while_the_object_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let osd = Directory::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
    let body = Bytes::from(noise(200_000, 3));
    let (id, len, crc) = put(&osd, std::slice::from_ref(&body));
    let path = osd.path_of(id);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let object = open(&osd, (id, len, crc)).unwrap().unwrap();
    assert_eq!(object.read(100_000, 4096).unwrap(), body.slice(100_000..104_096));
    bytes[5] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(open(&osd, (id, len, crc)).unwrap_err().kind, Kind::Corrupt);
}

#[test]
fn what_is_not_kept_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let osd = Directory::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
    let title = title(10);
    let mut writer = osd.create(&title).unwrap();
    let path = osd.path_of(title.file);
    assert_eq!(
        writer.append(&[Bytes::from_static(b"12345678901")]).unwrap_err().kind,
        Kind::Invalid
    );
    assert!(path.exists());
    drop(writer);
    assert!(!path.exists());
    let mut short = create(&osd, 10).unwrap();
    short.append(&[Bytes::from_static(b"1234")]).unwrap();
    assert_eq!(short.finish(None).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn a_directory_of_another_backend_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (AlbaId::random(), AlbaId::random());
    let osd = Directory::open(dir.path(), theirs, LIMITS).unwrap();
    let id = osd.id;
    let busy = Directory::open(dir.path(), theirs, LIMITS).unwrap_err();
    assert!(busy.message.contains("another process"), "{busy}");
    drop(osd);
    let foreign = Directory::open(dir.path(), ours, LIMITS).unwrap_err();
    assert_eq!(foreign.kind, Kind::Invalid);
    assert!(foreign.message.contains(&theirs.to_string()), "{foreign}");
    assert_eq!(Directory::open(dir.path(), theirs, LIMITS).unwrap().id, id);

    let full = tempfile::tempdir().unwrap();
    fs::write(full.path().join("holiday.jpg"), b"x").unwrap();
    assert_eq!(Directory::open(full.path(), ours, LIMITS).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn a_ceiling_holds_whatever_comes_and_goes() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let alba = AlbaId::random();
    let limits = Limits { capacity_bytes: Some(16 * MIB), ..LIMITS };
    let osd = Directory::open(dir.path(), alba, limits).unwrap();
    // An eighth of so small an OSD is kept in reserve.
    let free = |osd: &Directory| osd.room().unwrap().free_bytes;
    assert_eq!(free(&osd), 14 * MIB);
    let body = Bytes::from(noise(6 << 20, 4));
    let (id, _, _) = put(&osd, std::slice::from_ref(&body));
    let after_one = free(&osd);
    assert!((8 * MIB - 8192..8 * MIB).contains(&after_one), "{after_one}");
    // Two that would fit one by one.
    let one = create(&osd, 5 * MIB).unwrap();
    assert_eq!(create(&osd, 5 * MIB).unwrap_err().kind, Kind::NoSpace);
    drop(one);
    assert_eq!(free(&osd), after_one);
    let two = create(&osd, 5 * MIB).unwrap();
    drop((two, osd));
    // What lies there is counted again.
    let osd = Directory::open(dir.path(), alba, limits).unwrap();
    assert_eq!(free(&osd), after_one);
    let metadata = |len| Title { purpose: Purpose::Metadata, ..title(len) };
    drop(osd.create(&metadata(after_one + MIB - 4096)).unwrap());
    assert_eq!(osd.create(&metadata(after_one + MIB)).unwrap_err().kind, Kind::NoSpace);
    osd.remove(id).unwrap();
    osd.remove(id).unwrap();
    assert_eq!(free(&osd), 14 * MIB);
}

#[test]
fn the_reserve_is_a_part_of_the_disk_within_bounds() {
    const GIB: u64 = 1 << 30;
    let kept = |capacity: u64| {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { capacity_bytes: Some(capacity), ..LIMITS };
        let osd = Directory::open(dir.path(), AlbaId::random(), limits).unwrap();
        let room = osd.room().unwrap();
        assert_eq!(room.free_for(Purpose::Data), room.free_bytes);
        let halves = room.free_for(Purpose::Metadata) - room.free_bytes;
        assert_eq!(halves, (capacity - room.free_bytes).div_ceil(2));
        capacity - room.free_bytes
    };
    for (capacity, reserve) in
        [(64 << 20, 8 << 20), (GIB, 32 << 20), (8 * GIB, 8 * GIB / 100), (1 << 20, 1 << 17)]
    {
        assert_eq!(kept(capacity), reserve, "of {capacity}");
    }
}
