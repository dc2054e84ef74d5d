//! A directory OSD on a real file system.

use super::*;
use bytes::Bytes;

const LIMITS: Limits = Limits { reserve_percent: 1, reserve_bytes: 1 << 30, capacity_bytes: None };

fn title(len: u64) -> Title<'static> {
    Title { namespace: "ns", name: "name", len, purpose: Purpose::Data }
}

fn create(osd: &Osd, len: u64) -> Result<ObjectWriter> {
    osd.create(ObjectId::random(), title(len))
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

fn put(osd: &Osd, pieces: &[Bytes]) -> (ObjectId, u64, u32) {
    let len = pieces.iter().map(|p| p.len() as u64).sum();
    let mut writer = create(osd, len).unwrap();
    writer.append(pieces).unwrap();
    let crc = writer.finish().unwrap();
    let id = writer.id();
    writer.keep();
    (id, len, crc)
}

#[test]
fn pieces_of_any_alignment_come_back_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let osd = Osd::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
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
        let object = osd.open_object(id, len, crc).unwrap().unwrap();
        assert!(object.read(0, len).unwrap() == body, "cut at {cut:?}");
        assert_eq!(object.read(65_535, 2).unwrap(), body.slice(65_535..65_537));
    }
}

#[test]
fn lengths_around_blocks_and_pages() {
    let dir = tempfile::tempdir().unwrap();
    let osd = Osd::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
    for len in [0, 1, 4095, 4096, 65_535, 65_536, 65_537, (1 << 20) + 1] {
        let body = Bytes::from(noise(len, 2));
        let (id, len, crc) = put(&osd, std::slice::from_ref(&body));
        let object = osd.open_object(id, len, crc).unwrap().unwrap();
        assert_eq!(object.read(0, len).unwrap(), body);
        let file_len = fs::metadata(osd.path_of(id)).unwrap().len();
        assert_eq!(file_len % 4096, 0);
    }
}

#[test]
fn a_damaged_trailer_costs_nothing_while_the_object_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let osd = Osd::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
    let body = Bytes::from(noise(200_000, 3));
    let (id, len, crc) = put(&osd, std::slice::from_ref(&body));
    let path = osd.path_of(id);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let object = osd.open_object(id, len, crc).unwrap().unwrap();
    assert_eq!(object.read(100_000, 4096).unwrap(), body.slice(100_000..104_096));
    bytes[5] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(osd.open_object(id, len, crc).unwrap_err().kind, Kind::Corrupt);
}

#[test]
fn what_is_not_kept_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let osd = Osd::open(dir.path(), AlbaId::random(), LIMITS).unwrap();
    let mut writer = create(&osd, 10).unwrap();
    let path = osd.path_of(writer.id());
    assert_eq!(
        writer.append(&[Bytes::from_static(b"12345678901")]).unwrap_err().kind,
        Kind::Invalid
    );
    assert!(path.exists());
    drop(writer);
    assert!(!path.exists());
    let mut short = create(&osd, 10).unwrap();
    short.append(&[Bytes::from_static(b"1234")]).unwrap();
    assert_eq!(short.finish().unwrap_err().kind, Kind::Invalid);
}

#[test]
fn a_directory_of_another_backend_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (AlbaId::random(), AlbaId::random());
    let osd = Osd::open(dir.path(), theirs, LIMITS).unwrap();
    let id = osd.id;
    let busy = Osd::open(dir.path(), theirs, LIMITS).unwrap_err();
    assert!(busy.message.contains("another process"), "{busy}");
    drop(osd);
    let foreign = Osd::open(dir.path(), ours, LIMITS).unwrap_err();
    assert_eq!(foreign.kind, Kind::Invalid);
    assert!(foreign.message.contains(&theirs.to_string()), "{foreign}");
    assert_eq!(Osd::open(dir.path(), theirs, LIMITS).unwrap().id, id);

    let full = tempfile::tempdir().unwrap();
    fs::write(full.path().join("holiday.jpg"), b"x").unwrap();
    assert_eq!(Osd::open(full.path(), ours, LIMITS).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn a_ceiling_holds_whatever_comes_and_goes() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let alba = AlbaId::random();
    let limits = Limits { capacity_bytes: Some(16 * MIB), ..LIMITS };
    let osd = Osd::open(dir.path(), alba, limits).unwrap();
    // An eighth of so small an OSD is kept in reserve.
    let free = |osd: &Osd| osd.room().unwrap().free_bytes;
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
    let osd = Osd::open(dir.path(), alba, limits).unwrap();
    assert_eq!(free(&osd), after_one);
    let small = Title { purpose: Purpose::Metadata, ..title(after_one + MIB - 4096) };
    drop(osd.create(ObjectId::random(), small).unwrap());
    let large = Title { len: small.len + 4096, ..small };
    assert_eq!(osd.create(ObjectId::random(), large).unwrap_err().kind, Kind::NoSpace);
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
        let osd = Osd::open(dir.path(), AlbaId::random(), limits).unwrap();
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
