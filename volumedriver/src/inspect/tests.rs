use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use serde_json::{Value, json};
use volumedriver_core::fault::{Kind, Result};
use volumedriver_core::format::journal::{BLOCK_BYTES, Entry, RecordHeader, Section};
use volumedriver_core::format::manifest::{
    Body, Manifest, Opening, Origin, RunRef, Shape, ShapeChange, TlogRef,
};
use volumedriver_core::format::run::{MapExtent, RunWriter};
use volumedriver_core::format::sco::ScoFooter;
use volumedriver_core::format::segment::SegmentHeader;
use volumedriver_core::format::tlog::{Tlog, TlogSco};
use volumedriver_core::format::{Change, ChangeKind, names};
use volumedriver_core::units::*;

use super::*;
use crate::codec::{Coding, KeyRing, ScoBuilder};
use crate::config::Compression;
use crate::config::keys::KeySource;
use crate::world::{ObjectInfo, Purpose, Put};

const VOLUME: VolumeId = VolumeId([0xab; 16]);
const NODE: NodeId = NodeId([0xcd; 16]);
const EPOCH: Epoch = Epoch(1);
const CLUSTER: usize = 4096;

/// The bytes of a golden file of the formats: groups of hexadecimal bytes, `00*36` for 36 times 00, comments after `#`.
fn golden(text: &str) -> Vec<u8> {
    let groups = text.lines().filter_map(|line| line.split('#').next());
    let bytes = groups.flat_map(str::split_whitespace).flat_map(|group| {
        let (byte, times) = group.split_once('*').unwrap_or((group, "1"));
        vec![u8::from_str_radix(byte, 16).unwrap(); times.parse().unwrap()]
    });
    bytes.collect()
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn all() -> View {
    View { all: true, ..View::default() }
}

fn document(findings: &Findings) -> Value {
    findings.report().json
}

fn data(seq: u64, addr: u64, first_index: u32, clusters: &[[u8; CLUSTER]]) -> Change {
    let crcs = clusters.iter().map(|cluster| ClusterCrc::of(cluster)).collect();
    let (seq, addr, count) = (Seq(seq), ClusterAddr(addr), ClusterCount(clusters.len() as u64));
    Change { seq, addr, count, kind: ChangeKind::Data { first_index, crcs } }
}

fn hole(seq: u64, addr: u64, count: u64) -> Change {
    let (seq, addr, count) = (Seq(seq), ClusterAddr(addr), ClusterCount(count));
    Change { seq, addr, count, kind: ChangeKind::Hole }
}

fn sco_bytes() -> Vec<u8> {
    let clusters = [[1; CLUSTER], [2; CLUSTER], [3; CLUSTER]];
    let footer = ScoFooter {
        volume: VOLUME,
        id: ScoId { epoch: EPOCH, seq: ScoSeq(1) },
        cluster_size: ClusterSize::DEFAULT,
        cluster_count: 3,
        changes: vec![
            data(1, 10, 0, &clusters[..2]),
            hole(2, 11, 1),
            data(3, 0, 2, &clusters[2..]),
        ],
    };
    [clusters.concat(), footer.encode().to_vec()].concat()
}

fn sco(path: &Path) -> Result<Findings> {
    local(&What::Sco { file: path.to_owned() }, &all(), None)
}

#[test]
fn an_sco_is_shown_and_verified() {
    let files = Files::new();
    let mut bytes = sco_bytes();
    let findings = sco(&files.put("sco", &bytes)).unwrap();
    findings.verdict().unwrap();
    let found = document(&findings);
    assert_eq!(found["id"], "00000001-000000000001");
    assert_eq!(found["cluster_count"], 3);
    assert_eq!(found["first_seq"], 1);
    assert_eq!(found["last_seq"], 3);
    assert_eq!(
        found["changes"][1],
        json!({"seq": 2, "first_cluster": 11, "cluster_count": 1, "kind": "hole", "index": null})
    );
    let human = findings.report().human;
    assert!(human.contains("cluster_count:"), "{human}");

    bytes[CLUSTER + 5] ^= 1;
    let path = files.put("sco", &bytes);
    let findings = sco(&path).unwrap();
    let fault = findings.verdict().unwrap_err();
    assert_eq!(fault.kind, Kind::Corrupt);
    let expected = format!("{}: cluster 1 (at 4096) does not match its checksum", path.display());
    assert_eq!(fault.to_string(), expected);
    assert_eq!(document(&findings)["damage"], json!([expected]));
    assert_eq!(document(&findings)["damaged_cluster_count"], 1);
}

fn ring(key: &str) -> KeyRing {
    let mut ring = KeyRing::default();
    ring.add(&KeySource::Env("KEY".to_owned()), key.repeat(64).as_bytes()).unwrap();
    ring
}

/// Twenty clusters that shrink, in frames.
fn framed_sco(coding: Coding, keys: &KeyRing) -> Vec<u8> {
    let clusters: Vec<[u8; CLUSTER]> = (0..20).map(|n| [n; CLUSTER]).collect();
    let footer = ScoFooter {
        volume: VOLUME,
        id: ScoId { epoch: EPOCH, seq: ScoSeq(1) },
        cluster_size: ClusterSize::DEFAULT,
        cluster_count: 20,
        changes: vec![data(1, 10, 0, &clusters)],
    };
    let mut builder = ScoBuilder::new(footer, coding, keys, [7; 16]).unwrap();
    builder.push(&[clusters.concat().into()]);
    builder.finish().unwrap().body.concat()
}

#[test]
fn an_sco_in_frames_is_shown_and_verified_with_its_key() {
    let files = Files::new();
    let keys = ring("a");
    let key = keys.current(&[KeySource::Env("KEY".to_owned())]);
    let coding = Coding { compression: Compression::Lz4, key, frame_bytes: 32 << 10 };
    let mut bytes = framed_sco(coding, &keys);
    let path = files.put("sco", &bytes);
    let look = |keys: KeyRing| {
        local(&What::Sco { file: path.clone() }, &View { keys, ..all() }, None).unwrap()
    };
    let findings = look(ring("a"));
    findings.verdict().unwrap();
    let found = document(&findings);
    let id = key.unwrap().to_string();
    for (field, value) in [
        ("compression", json!("lz4")),
        ("encryption", json!("aes-256-gcm")),
        ("key", json!(id)),
        ("frame_count", json!(3)),
        ("frames_lz4_count", json!(3)),
        ("data_bytes", json!(20 * CLUSTER)),
        ("change_count", json!(1)),
        ("damaged_cluster_count", json!(0)),
    ] {
        assert_eq!(found[field], value, "{field}");
    }
    assert!(found["stored_percent"].as_u64().unwrap() < 5, "{found}");
    // Without the key, what is in the clear.
    for keys in [ring("b"), KeyRing::default()] {
        let findings = look(keys);
        findings.verdict().unwrap();
        let found = document(&findings);
        assert_eq!((&found["key"], &found["changes"]), (&json!(id), &json!(null)));
        assert!(found["verified"].as_str().unwrap().contains("--key"));
    }
    bytes[300] ^= 1;
    files.put("sco", &bytes);
    let findings = look(ring("a"));
    assert_eq!(document(&findings)["damaged_cluster_count"], 8);
    let said = findings.verdict().unwrap_err().to_string();
    assert!(said.contains("clusters ") && said.contains("was not encrypted so"), "{said}");
    // Compressed only: nothing is asked for.
    let coding = Coding { compression: Compression::Zstd(3), key: None, frame_bytes: 32 << 10 };
    files.put("sco", &framed_sco(coding, &keys));
    let found = document(&look(KeyRing::default()));
    assert_eq!((&found["encryption"], &found["key"]), (&json!("none"), &json!(null)));
    assert_eq!((&found["compression"], &found["frames_zstd_count"]), (&json!("zstd"), &json!(3)));
}

#[test]
fn a_damaged_end_of_an_sco_is_named() {
    let files = Files::new();
    let bytes = sco_bytes();
    for cut in [0, 1, 63, 64, CLUSTER, bytes.len() - 1] {
        let path = files.put("cut", &bytes[..cut]);
        let fault = sco(&path).unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "{cut}: {fault}");
        assert!(fault.to_string().contains("cut"), "{fault}");
    }
    for at in 3 * CLUSTER..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        let fault = sco(&files.put("flipped", &bytes)).unwrap_err();
        assert!(matches!(fault.kind, Kind::Corrupt | Kind::Invalid), "{at}: {fault}");
    }
    let missing = sco(Path::new("/nonexistent/sco")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/sco: "), "{missing}");
}

#[test]
fn golden_objects_are_shown() {
    let files = Files::new();
    let tlog = golden(include_str!("../../core/src/format/golden/tlog.v1.hex"));
    let file = files.put("tlog", &tlog);
    let found = document(&local(&What::Tlog { file }, &all(), None).unwrap());
    assert_eq!((&found["epoch"], &found["number"]), (&json!(3), &json!(9)));
    assert_eq!(found["scos"][0]["sco"], "00000002-000000000040");
    assert_eq!(found["scos"][0]["object_bytes"], 267_712);
    assert_eq!(found["changes"][2]["kind"], "hole");

    for (name, text) in [
        ("delta", include_str!("../../core/src/format/golden/manifest_delta.v1.hex")),
        ("checkpoint", include_str!("../../core/src/format/golden/manifest_checkpoint.v1.hex")),
    ] {
        let bytes = golden(text);
        let file = files.put(name, &bytes);
        let found = document(
            &local(&What::Manifest { file: file.clone() }, &View::default(), None).unwrap(),
        );
        assert_eq!(found["kind"], name);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            files.put(name, &bytes);
            let fault =
                local(&What::Manifest { file: file.clone() }, &View::default(), None).unwrap_err();
            assert!(fault.to_string().contains(name), "{at}: {fault}");
        }
    }

    let run = golden(include_str!("../../core/src/format/golden/run.v1.hex"));
    let file = files.put("run", &run);
    let findings = local(&What::Run { file: file.clone() }, &all(), None).unwrap();
    findings.verdict().unwrap();
    let found = document(&findings);
    assert_eq!(found["extents"].as_array().unwrap().len() as u64, found["extent_count"]);
    let mut damaged = run.clone();
    damaged[48 + 20] ^= 1;
    files.put("run", &damaged);
    let fault =
        local(&What::Run { file: file.clone() }, &all(), None).unwrap().verdict().unwrap_err();
    assert!(fault.to_string().contains("run: block at 48"), "{fault}");
    for cut in 0..run.len() {
        files.put("run", &run[..cut]);
        assert!(local(&What::Run { file: file.clone() }, &all(), None).is_err(), "{cut}");
    }
}

/// A segment of 16 blocks with records of one cluster each, and what follows them.
fn segment(use_no: u64, first_record: u64, records: u64) -> Vec<u8> {
    let mut bytes = vec![0; 16 * BLOCK_BYTES];
    let mut block = [0; BLOCK_BYTES];
    let segment_bytes = bytes.len() as u64;
    SegmentHeader { node: NODE, shard: 0, use_no, first_record, segment_bytes }.encode(&mut block);
    bytes[..BLOCK_BYTES].copy_from_slice(&block);
    for n in 0..records {
        let record = first_record + n;
        let cluster = [record as u8; CLUSTER];
        let change = data(record, 7, 0, &[cluster]);
        let section = Section {
            volume: VOLUME,
            epoch: EPOCH,
            cluster_size: ClusterSize::DEFAULT,
            previous_seq: Seq(record - 1),
            entries: vec![Entry::Change { sco: ScoSeq(record), change }],
        };
        let header = RecordHeader {
            segment_use: use_no,
            record,
            // The one before the one before: the last two may be torn.
            durable_record: record.saturating_sub(2),
            payload_bytes: CLUSTER as u32,
            sections: vec![section],
        };
        header.encode(&mut block).unwrap();
        let at = BLOCK_BYTES * (1 + 2 * n as usize);
        bytes[at..at + BLOCK_BYTES].copy_from_slice(&block);
        bytes[at + BLOCK_BYTES..at + 2 * BLOCK_BYTES].copy_from_slice(&cluster);
    }
    bytes
}

fn journal(path: &Path) -> Findings {
    local(&What::Journal { path: path.to_owned() }, &all(), None).unwrap()
}

#[test]
fn a_journal_is_shown_in_order_of_use() {
    let files = Files::new();
    files.put("segment-a", &segment(2, 4, 7));
    files.put("segment-b", &segment(1, 1, 3));
    files.put("segment-c", &vec![0; 8192]);
    let findings = journal(files.dir.path());
    findings.verdict().unwrap();
    let found = document(&findings);
    let segments = found["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2);
    assert_eq!((&segments[0]["use"], &segments[0]["record_count"]), (&json!(1), &json!(3)));
    assert_eq!(segments[0]["ending"], "never written");
    assert_eq!(segments[1]["ending"], "never written");
    assert_eq!(found["records"].as_array().unwrap().len(), 10);
    assert_eq!(found["other_files"][0]["what"], "blank");
}

#[test]
fn a_torn_tail_is_no_damage_and_a_hole_is() {
    let files = Files::new();
    let at = |record: usize| BLOCK_BYTES * (1 + 2 * record);
    let check = |bytes: &[u8]| journal(&files.put("segment", bytes));
    let whole = segment(1, 1, 4);

    let mut torn = whole.clone();
    torn[at(3) + BLOCK_BYTES + 9] ^= 1;
    let findings = check(&torn);
    findings.verdict().unwrap();
    assert_eq!(document(&findings)["records"][3]["damaged"], 1);

    let mut torn = whole.clone();
    torn[at(3) + 9] ^= 1;
    let findings = check(&torn);
    findings.verdict().unwrap();
    assert_eq!(document(&findings)["segments"][0]["ending"], "no record");

    let mut durable = whole.clone();
    durable[at(1) + BLOCK_BYTES + 9] ^= 1;
    let message = check(&durable).verdict().unwrap_err().to_string();
    assert!(message.contains("record 2 at 12288") && message.contains("cluster 7"), "{message}");

    let mut hole = whole.clone();
    hole[at(1) + 9] ^= 1;
    let message = check(&hole).verdict().unwrap_err().to_string();
    assert!(message.contains("end at 12288") && message.contains("record 3"), "{message}");

    // Records of an earlier use are not ours.
    let mut older = segment(1, 1, 7);
    older[..at(2)].copy_from_slice(&segment(2, 8, 2)[..at(2)]);
    let findings = check(&older);
    findings.verdict().unwrap();
    assert_eq!(document(&findings)["segments"][0]["ending"], "a record of use 1, an earlier one");
}

#[test]
fn gaps_and_strangers_in_a_journal_are_damage() {
    let files = Files::new();
    files.put("segment-a", &segment(1, 1, 3));
    files.put("segment-b", &segment(2, 5, 1));
    let message = journal(files.dir.path()).verdict().unwrap_err().to_string();
    assert!(message.contains("before record 4") && message.contains("segment-b"), "{message}");
    files.put("segment-b", b"short");
    let message = journal(files.dir.path()).verdict().unwrap_err().to_string();
    assert!(message.contains("segment-b"), "{message}");
}

#[test]
fn no_bytes_make_it_panic() {
    let files = Files::new();
    let seeds = [sco_bytes(), segment(1, 1, 4), vec![0; 100], vec![0xff; 10_000]];
    let mut state = 12345_u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    for seed in &seeds {
        for _ in 0..200 {
            let mut bytes = seed.clone();
            for _ in 0..1 + random() % 8 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            bytes.truncate(random() % (bytes.len() + 1));
            let file = files.put("any", &bytes);
            for what in [
                What::Sco { file: file.clone() },
                What::Tlog { file: file.clone() },
                What::Manifest { file: file.clone() },
                What::Run { file: file.clone() },
                What::Journal { path: file.clone() },
            ] {
                if let Ok(findings) = local(&what, &all(), None) {
                    assert!(findings.report().json.is_object());
                }
            }
        }
    }
}

#[test]
fn the_layout_is_what_is_written_down() {
    let files = Files::new();
    files.put("layout", b"version = 1\nnode = \"ab\"\nshards = 1\n");
    let found = document(&local(&What::Layout, &View::default(), Some(files.dir.path())).unwrap());
    let format = |name: &str, magic: &str, fixed: Value| json!({"format": name, "magic": magic, "version": 1, "fixed_bytes": fixed});
    assert_eq!(
        found["formats"],
        json!([
            format("journal record", "VDJR", json!(4096)),
            format("segment header", "VDWB", json!(4096)),
            format("SCO footer", "VDSF", json!(null)),
            format("SCO trailer", "VDST", json!(64)),
            json!({"format": "footer of SCO in frames", "magic": "VDSF", "version": 2, "fixed_bytes": null}),
            json!({"format": "trailer of SCO in frames", "magic": "VDST", "version": 2, "fixed_bytes": 64}),
            format("key marker", "VDKY", json!(null)),
            format("TLog", "VDTL", json!(null)),
            format("manifest", "VDMF", json!(null)),
            format("map page", "VDPG", json!(null)),
            format("map run head", "VDRN", json!(null)),
            format("map run trailer", "VDRT", json!(64)),
            format("cache file header", "VDCH", json!(4096)),
            format("cache catalogue page", "VDCP", json!(65_536)),
        ])
    );
    assert_eq!(
        found["units"],
        json!({
            "sector_bytes": 512,
            "min_cluster_size_bytes": 4096,
            "max_cluster_size_bytes": 65536,
            "page_clusters": 512,
            "frame_bytes": 32_768,
            "max_op_bytes": 262_144,
            "max_volume_bytes": 1_u64 << 50,
            "max_sco_position": (1_u64 << 47) - 1,
            "max_sco_clusters": 65536,
        })
    );
    assert_eq!(found["names"]["sco"], "sco/00000001-000000000001");
    assert_eq!(found["data_dir"]["identity"]["node"], "ab");
    assert_eq!(found["data_dir"]["entries"][0]["name"], "layout");
}

/// Objects in memory.
#[derive(Clone, Default)]
struct Store {
    objects: Rc<RefCell<BTreeMap<(String, String), Bytes>>>,
}

impl Store {
    fn put(&self, name: String, bytes: impl Into<Bytes>) {
        self.objects.borrow_mut().insert((names::namespace(VOLUME), name), bytes.into());
    }
    fn get(&self, namespace: &str, name: &str) -> Option<Bytes> {
        self.objects.borrow().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

impl ObjectStore for Store {
    async fn create_namespace(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn delete_namespace(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names: Vec<_> = self.objects.borrow().keys().map(|key| key.0.clone()).collect();
        names.retain(|name| name.starts_with(prefix));
        names.dedup();
        Ok(names)
    }
    async fn put_if_absent(&self, _: &str, _: &str, _: Vec<Bytes>, _: Purpose) -> Result<Put> {
        Err(Fault::bug("inspecting writes nothing"))
    }
    async fn get_range(
        &self,
        ns: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        let (start, end) = (offset as usize, (offset + len) as usize);
        Ok(self.get(ns, name).map(|bytes| bytes.slice(start..end)))
    }
    async fn head(&self, ns: &str, name: &str) -> Result<Option<ObjectInfo>> {
        Ok(self.get(ns, name).map(|bytes| ObjectInfo { len: bytes.len() as u64, crc: 0 }))
    }
    async fn list(
        &self,
        ns: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        let objects = self.objects.borrow();
        let names = objects.keys().filter(|key| key.0 == ns).map(|key| key.1.clone());
        let names = names.filter(|name| name.starts_with(prefix));
        let names = names.filter(|name| after.is_none_or(|after| name.as_str() > after));
        Ok(names.take(limit as usize).collect())
    }
    async fn delete(&self, _: &str, _: &str) -> Result<()> {
        Err(Fault::bug("inspecting deletes nothing"))
    }
}

fn ask(store: &Store, what: &What) -> Result<Findings> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(remote(what, &all(), store))
}

fn manifest(no: u64, body: Body) -> Manifest {
    Manifest { volume: VOLUME, no: ManifestNo(no), epoch: EPOCH, node: NODE, body }
}

/// A run over clusters 0..10, a TLog that overwrites 4..6 and trims 8, and manifests that name them.
fn stored_volume() -> Store {
    let store = Store::default();
    let mut writer = RunWriter::new(VOLUME, EPOCH, RunNo(2));
    let at = |sco, index| Mapping::At(Location { sco: ScoSeq(sco), index });
    let extent = |addr, count, mapping| MapExtent {
        addr: ClusterAddr(addr),
        count: ClusterCount(count),
        mapping,
    };
    writer.push(extent(0, 10, at(1, 0)));
    let (parts, object_bytes, header) = writer.finish();
    store.put(names::run(EPOCH, RunNo(2)), parts.concat());
    let run = RunRef {
        no: RunNo(2),
        epoch: EPOCH,
        first_tlog: TlogNo(1),
        last_tlog: TlogNo(1),
        object_bytes,
        entry_count: header.entry_count,
    };
    let id = ScoId { epoch: EPOCH, seq: ScoSeq(2) };
    let overwritten =
        Change { kind: ChangeKind::Data { first_index: 0, crcs: Vec::new() }, ..hole(11, 4, 2) };
    let changes = vec![overwritten, hole(12, 8, 1)];
    let sco = TlogSco { id, cluster_count: 2, object_bytes: 0, changes };
    let tlog = Tlog { volume: VOLUME, epoch: EPOCH, no: TlogNo(2), scos: vec![sco] }.encode();
    let published = TlogRef {
        no: TlogNo(2),
        epoch: EPOCH,
        first_sco: ScoSeq(2),
        last_sco: ScoSeq(2),
        object_bytes: tlog.len() as u64,
    };
    store.put(names::tlog(EPOCH, TlogNo(2)), tlog);
    let shape = Shape {
        name: "disk".to_owned(),
        size: ByteCount(64 * CLUSTER as u64),
        cluster_size: ClusterSize::DEFAULT,
        sco_size: ByteCount(1 << 20),
        last_seq: Seq(10),
        last_sco: ScoSeq(1),
        last_tlog: TlogNo(1),
        origins: vec![Origin { first_sco: ScoSeq(1), volume: VOLUME, epoch: EPOCH }],
        runs: vec![run],
        tlogs: Vec::new(),
        openings: vec![Opening { epoch: EPOCH, no: ManifestNo(1), node: NODE }],
    };
    let delta = vec![
        ShapeChange::Published { tlog: published, last_seq: Seq(12), origins: Vec::new() },
        ShapeChange::Resized(ByteCount(128 * CLUSTER as u64)),
    ];
    for manifest in [manifest(3, Body::Checkpoint(shape)), manifest(4, Body::Delta(delta))] {
        store.put(names::manifest(manifest.no), manifest.encode());
    }
    store.put(names::manifest(ManifestNo(2)), &b"older than the checkpoint, never read"[..]);
    store
}

#[test]
fn a_stored_volume_is_found_and_its_shape_shown() {
    let store = stored_volume();
    for name in ["disk", &VOLUME.to_string(), &names::namespace(VOLUME)] {
        let findings = ask(&store, &What::Vdisk { name: name.to_owned() }).unwrap();
        findings.verdict().unwrap();
        let found = document(&findings);
        assert_eq!((&found["manifest"], &found["older_manifest_count"]), (&json!(4), &json!(1)));
        assert_eq!(found["shape"]["size_bytes"], 128 * CLUSTER);
        assert_eq!(found["shape"]["last_seq"], 12);
        assert_eq!(found["chain"][0]["kind"], "checkpoint");
    }
    let missing = ask(&store, &What::Vdisk { name: "other".to_owned() }).unwrap_err();
    assert!(missing.to_string().contains("other: there is no such vDisk"), "{missing}");
}

#[test]
fn the_map_of_a_stored_volume_is_put_together() {
    let store = stored_volume();
    let map = |first, count| ask(&store, &What::Map { name: "disk".to_owned(), first, count });
    let found = document(&map(2, 100).unwrap());
    let extent = |addr: u64, count: u64, sco: u64, index: u64| json!({"first_cluster": addr, "cluster_count": count, "kind": "data", "sco": sco, "index": index});
    assert_eq!(
        found["extents"],
        json!([extent(2, 2, 1, 2), extent(4, 2, 2, 0), extent(6, 2, 1, 6), extent(9, 1, 1, 9)])
    );
    assert_eq!(found["mapped_cluster_count"], 7);
    let message = map(100, 29).unwrap_err().to_string();
    assert!(message.contains("clusters 0 to 127"), "{message}");
    assert!(map(u64::MAX, 2).is_err());
    assert!(map(0, 0).is_err());
}

#[test]
fn objects_are_decoded_by_their_names() {
    let store = stored_volume();
    let namespace = names::namespace(VOLUME);
    let object = |name: &str| ask(&store, &What::Object { object: format!("{namespace}/{name}") });
    assert_eq!(document(&object("tlog/00000001-000000000002").unwrap())["number"], 2);
    assert_eq!(document(&object("manifest/000000000004").unwrap())["kind"], "delta");
    assert_eq!(document(&object("run/00000001-000000000002").unwrap())["extent_count"], 1);
    store.put("sco/00000001-000000000001".to_owned(), sco_bytes());
    assert_eq!(document(&object("sco/00000001-000000000001").unwrap())["cluster_count"], 3);
    store.put("other".to_owned(), &b"x"[..]);
    assert!(object("other").unwrap_err().to_string().contains("the name is not one of"));
    assert!(object("sco/x").unwrap_err().to_string().contains("no such object"));
    let odd = ask(&store, &What::Object { object: "nothing".to_owned() }).unwrap_err();
    assert!(odd.to_string().contains("NAMESPACE/NAME"), "{odd}");
}

#[test]
fn damage_to_a_stored_volume_is_named() {
    let store = stored_volume();
    let namespace = names::namespace(VOLUME);
    let vdisk = || ask(&store, &What::Vdisk { name: namespace.clone() });
    let tlog = names::tlog(EPOCH, TlogNo(2));
    let kept = store.objects.borrow_mut().remove(&(namespace.clone(), tlog.clone())).unwrap();
    let message = vdisk().unwrap().verdict().unwrap_err().to_string();
    assert_eq!(message, format!("{namespace}/{tlog}: missing"));
    store.put(tlog.clone(), kept.slice(1..));
    assert!(vdisk().unwrap().verdict().unwrap_err().to_string().contains("the manifest says"));
    store.put(tlog, kept);
    // A manifest that stands under another's number, a gap, and no checkpoint at all.
    let delta = store.get(&namespace, &names::manifest(ManifestNo(4))).unwrap();
    store.put(names::manifest(ManifestNo(5)), delta);
    assert!(vdisk().unwrap_err().to_string().contains("it says it is manifest 4"));
    store.put(names::manifest(ManifestNo(5)), manifest(6, Body::Delta(Vec::new())).encode());
    store.objects.borrow_mut().remove(&(namespace.clone(), names::manifest(ManifestNo(5))));
    store.put(names::manifest(ManifestNo(6)), manifest(6, Body::Delta(Vec::new())).encode());
    assert!(vdisk().unwrap_err().to_string().contains("comes after 4"));
    for no in 2..=3 {
        let key = (namespace.clone(), names::manifest(ManifestNo(no)));
        store.objects.borrow_mut().remove(&key);
    }
    assert!(vdisk().unwrap_err().to_string().contains("no checkpoint"));
}
