//! `inspect layout`: the constants of every format, read off bytes that the encoders wrote, and what a data directory holds.

use std::path::Path;

use bytes::Bytes;
use serde_json::Value;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::cache::{self, CacheHeader, CachePage, FileState};
use volumedriver_core::format::framed::{self, FRAME_BYTES, FramedHead, KeyId, Packing};
use volumedriver_core::format::journal::{self, Entry, RecordHeader, Section};
use volumedriver_core::format::manifest::{Body, Manifest, Opening, Shape};
use volumedriver_core::format::page::{self, PageRun};
use volumedriver_core::format::run::{self, MapExtent, RunWriter};
use volumedriver_core::format::sco::{self, ScoFooter};
use volumedriver_core::format::segment::SegmentHeader;
use volumedriver_core::format::tlog::{Tlog, TlogSco};
use volumedriver_core::format::{Change, ChangeKind, names};
use volumedriver_core::units::{
    ByteCount, ClusterAddr, ClusterCount, ClusterSize, Epoch, Location, MAX_OP_BYTES,
    MAX_VOLUME_BYTES, ManifestNo, Mapping, NodeId, PAGE_CLUSTERS, PageNo, RunNo, SECTOR_BYTES,
    ScoId, ScoSeq, Seq, TlogNo, VolumeId,
};

use super::{Doc, Findings, Rows};

pub fn inspect(data_dir: Option<&Path>) -> Result<Findings> {
    let mut fields: Vec<(&str, Doc)> =
        vec![("formats", formats()?), ("units", units()), ("names", object_names())];
    if let Some(data_dir) = data_dir {
        fields.push(("data_dir", contents(data_dir)?));
    }
    Ok(Findings::sound(Doc::Fields(fields)))
}

const VOLUME: VolumeId = VolumeId([0; 16]);
const NODE: NodeId = NodeId([0; 16]);
const EPOCH: Epoch = Epoch(1);
const KEY: KeyId = KeyId([0; 8]);

/// Every format: its magic and version as they stand in its first bytes.
fn formats() -> Result<Doc> {
    let sco = sample_sco().encode();
    let trailer = sco.len().saturating_sub(sco::TRAILER_BYTES);
    let framed = sample_framed_end();
    let framed_trailer = framed.len().saturating_sub(sco::TRAILER_BYTES);
    let framed_trailer = framed.get(framed_trailer..).unwrap_or_default();
    let mut record = [0; journal::BLOCK_BYTES];
    sample_record().encode(&mut record)?;
    let mut segment = [0; journal::BLOCK_BYTES];
    sample_segment().encode(&mut segment);
    let mut cache_header = [0; journal::BLOCK_BYTES];
    sample_cache_header().encode(&mut cache_header);
    let mut cache_page = Box::new([0; cache::PAGE_BYTES]);
    CachePage::new(0, 0).encode(&mut cache_page);
    let page = page::encode(PageNo(0), &[PageRun { start: 0, mapping: Mapping::Hole }]);
    let run = sample_run();
    let run_trailer = run.len().saturating_sub(run::TRAILER_BYTES);
    let rows = [
        ("journal record", &record[..], Some(journal::BLOCK_BYTES)),
        ("segment header", &segment[..], Some(journal::BLOCK_BYTES)),
        ("SCO footer", &sco[..], None),
        ("SCO trailer", sco.get(trailer..).unwrap_or_default(), Some(sco::TRAILER_BYTES)),
        ("footer of SCO in frames", &framed[..], None),
        ("trailer of SCO in frames", framed_trailer, Some(sco::TRAILER_BYTES)),
        ("key marker", &framed::encode_key_marker(VOLUME, KEY), None),
        ("TLog", &sample_tlog().encode(), None),
        ("manifest", &sample_manifest().encode(), None),
        ("map page", &page, None),
        ("map run head", &run, None),
        ("map run trailer", run.get(run_trailer..).unwrap_or_default(), Some(run::TRAILER_BYTES)),
        ("cache file header", &cache_header[..], Some(journal::BLOCK_BYTES)),
        ("cache catalogue page", &cache_page[..], Some(cache::PAGE_BYTES)),
    ];
    let row = |(name, bytes, fixed): &(&str, &[u8], Option<usize>)| -> Result<Vec<Value>> {
        let cut = || Fault::bug(format!("a {name} has no head"));
        let magic = bytes.get(..4).ok_or_else(cut)?;
        let version = bytes.get(4..8).and_then(|b| b.try_into().ok()).ok_or_else(cut)?;
        Ok(vec![
            (*name).into(),
            String::from_utf8_lossy(magic).into(),
            u32::from_le_bytes(version).into(),
            (*fixed).into(),
        ])
    };
    let rows = rows.iter().map(row).collect::<Result<_>>()?;
    Ok(Doc::Rows(Rows { columns: &["format", "magic", "version", "fixed_bytes"], rows }))
}

fn units() -> Doc {
    Doc::Fields(vec![
        ("sector_bytes", SECTOR_BYTES.into()),
        ("min_cluster_size_bytes", ClusterSize::MIN.into()),
        ("max_cluster_size_bytes", ClusterSize::MAX.into()),
        ("page_clusters", PAGE_CLUSTERS.into()),
        ("frame_bytes", FRAME_BYTES.into()),
        ("max_op_bytes", MAX_OP_BYTES.into()),
        ("max_volume_bytes", MAX_VOLUME_BYTES.into()),
        ("max_sco_position", Location::MAX_SCO.into()),
        ("max_sco_clusters", Location::MAX_CLUSTERS.into()),
    ])
}

/// The first name of each kind.
fn object_names() -> Doc {
    Doc::Fields(vec![
        ("namespace", names::namespace(VOLUME).into()),
        ("sco", names::sco(ScoId { epoch: EPOCH, seq: ScoSeq(1) }).into()),
        ("tlog", names::tlog(EPOCH, TlogNo(1)).into()),
        ("manifest", names::manifest(ManifestNo(1)).into()),
        ("run", names::run(EPOCH, RunNo(1)).into()),
        ("key", names::key(KEY).into()),
    ])
}

fn hole() -> Change {
    Change { seq: Seq(1), addr: ClusterAddr(0), count: ClusterCount(1), kind: ChangeKind::Hole }
}

fn sample_sco() -> ScoFooter {
    let id = ScoId { epoch: EPOCH, seq: ScoSeq(1) };
    let cluster_size = ClusterSize::DEFAULT;
    ScoFooter { volume: VOLUME, id, cluster_size, cluster_count: 0, changes: vec![hole()] }
}

fn sample_framed_end() -> Bytes {
    let footer = sample_sco();
    let head = FramedHead::new(&footer, Packing::Stored, FRAME_BYTES, None);
    head.encode_end(&framed::encode_table(&[], &footer.changes))
}

fn sample_tlog() -> Tlog {
    let id = ScoId { epoch: EPOCH, seq: ScoSeq(1) };
    let sco = TlogSco { id, cluster_count: 0, object_bytes: 0, changes: vec![hole()] };
    Tlog { volume: VOLUME, epoch: EPOCH, no: TlogNo(1), scos: vec![sco] }
}

fn sample_manifest() -> Manifest {
    let shape = Shape {
        name: "sample".to_owned(),
        size: ByteCount(u64::from(ClusterSize::MIN)),
        cluster_size: ClusterSize::DEFAULT,
        sco_size: ByteCount(1 << 20),
        last_seq: Seq(0),
        last_sco: ScoSeq(0),
        last_tlog: TlogNo(0),
        origins: Vec::new(),
        runs: Vec::new(),
        tlogs: Vec::new(),
        openings: vec![Opening { epoch: EPOCH, no: ManifestNo(1), node: NODE }],
    };
    let no = ManifestNo(1);
    Manifest { volume: VOLUME, no, epoch: EPOCH, node: NODE, body: Body::Checkpoint(shape) }
}

fn sample_record() -> RecordHeader {
    let section = Section {
        volume: VOLUME,
        epoch: EPOCH,
        cluster_size: ClusterSize::DEFAULT,
        previous_seq: Seq(0),
        entries: vec![Entry::Change { sco: ScoSeq(1), change: hole() }],
    };
    let sections = vec![section];
    RecordHeader { segment_use: 1, record: 1, durable_record: 0, payload_bytes: 0, sections }
}

fn sample_segment() -> SegmentHeader {
    SegmentHeader { node: NODE, shard: 0, use_no: 1, first_record: 1, segment_bytes: 0 }
}

fn sample_cache_header() -> CacheHeader {
    let (cluster_size, state) = (ClusterSize::DEFAULT, FileState::InUse);
    CacheHeader { node: NODE, cluster_size, region_slots: 256, regions: 64, state }
}

fn sample_run() -> Vec<u8> {
    let mut writer = RunWriter::new(VOLUME, EPOCH, RunNo(1));
    let (addr, count) = (ClusterAddr(0), ClusterCount(1));
    writer.push(MapExtent { addr, count, mapping: Mapping::Zero });
    writer.finish().0.concat()
}

/// What lies in a data directory: its identity, and each entry with the files below it.
fn contents(data_dir: &Path) -> Result<Doc> {
    let shown = data_dir.display();
    let about = |e: std::io::Error| Fault::invalid(format!("{shown}: cannot be read")).because(e);
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(data_dir).map_err(about)? {
        let entry = entry.map_err(about)?;
        let kind = entry.file_type().map_err(about)?;
        let kind = match (kind.is_dir(), kind.is_file()) {
            (true, _) => "directory",
            (_, true) => "file",
            _ => "other",
        };
        let (files, bytes) = usage(&entry.path()).map_err(about)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        rows.push(vec![name.into(), kind.into(), files.into(), bytes.into()]);
    }
    rows.sort_by_key(|row: &Vec<Value>| row.first().map(Value::to_string));
    let entries = Rows { columns: &["name", "kind", "file_count", "bytes"], rows };
    Ok(Doc::Fields(vec![
        ("path", shown.to_string().into()),
        ("identity", identity(&data_dir.join("layout"))?),
        ("entries", Doc::Rows(entries)),
    ]))
}

/// The layout file as it is; `null` when there is none.
fn identity(path: &Path) -> Result<Doc> {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null.into()),
        Err(e) => return Err(Fault::invalid(format!("{shown}: cannot be read")).because(e)),
    };
    let table: toml::Table = toml::from_str(&text)
        .map_err(|e| Fault::corrupt(format!("{shown}: damaged: {}", e.message())))?;
    let shown = |key: &str| Value::from(table.get(key).map(plain_toml));
    Ok(Doc::Fields(vec![
        ("version", shown("version").into()),
        ("node", shown("node").into()),
        ("shards", shown("shards").into()),
    ]))
}

fn plain_toml(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Number of files at and below a path, and their length together. Links are not followed.
fn usage(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = path.symlink_metadata()?;
    if !metadata.is_dir() {
        return Ok((1, metadata.len()));
    }
    let (mut files, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(path)? {
        let (more_files, more_bytes) = usage(&entry?.path())?;
        files += more_files;
        bytes += more_bytes;
    }
    Ok((files, bytes))
}
