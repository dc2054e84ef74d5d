//! The whole file, section by section, then the checks between values.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use toml::Value;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::{ByteCount, ClusterSize};

use super::check::{Checker, Origin, quoted};
use super::field;
use super::keys::{KeySource, MAX_SOURCES};
use super::raw::{
    RawBuffer, RawCache, RawConfig, RawNbd, RawNode, RawRegistry, RawTls, RawVdisk, RawVpool,
};
use super::{
    AckLevel, BackendUrl, BufferConfig, CacheConfig, Compression, Config, Encryption, Endpoint,
    FlushLevel, IoEngine, MetricsConfig, NbdConfig, NodeConfig, Overrides, PAGES_DIR, RegistryUrl,
    TlsConfig, TlsFiles, VdiskSettings, VpoolConfig,
};

/// Longest vDisk name, bytes. An NBD export name may have 4096, a TOML key anything.
pub const MAX_VDISK_NAME_BYTES: usize = 128;

/// Whether a vDisk may have this name.
pub fn check_vdisk_name(name: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let length = (1..=MAX_VDISK_NAME_BYTES).contains(&name.len());
    if length && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(legal) {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "{name:?} cannot be a vDisk's name: 1 to {MAX_VDISK_NAME_BYTES} letters, digits, '.', '_' or '-', \
         beginning with a letter or digit"
    )))
}

/// Checks everything; the first thing that is wrong is the answer.
pub fn check(
    file: &str,
    mut raw: RawConfig,
    data_dir: &Path,
    overrides: &Overrides,
) -> Result<Config> {
    let mut checker = Checker { file, entries: Vec::new() };
    let is_embedded = says_embedded(raw.vpool.backend.as_ref(), overrides);
    let config = Config {
        data_dir: data_dir.to_owned(),
        node: node(&mut checker, raw.node)?,
        nbd: nbd(&mut checker, raw.nbd, data_dir, overrides)?,
        metrics: metrics(&mut checker, raw.metrics.listen)?,
        buffer: buffer(&mut checker, raw.buffer, data_dir)?,
        cache: cache(&mut checker, raw.cache, data_dir, is_embedded)?,
        registry: registry(&mut checker, raw.registry, data_dir)?,
        vpool: vpool(&mut checker, &mut raw.vpool, data_dir, overrides)?,
        vdisks: BTreeMap::new(),
        entries: Vec::new(),
    };
    let vdisks = vdisks(&mut checker, raw.vdisk, &config.vpool.settings, data_dir)?;
    let config = Config { vdisks, ..config };
    check_buffer(&checker, &config.buffer)?;
    check_places(&checker, &config)?;
    check_shares(&checker, &config)?;
    Ok(Config { entries: checker.entries, ..config })
}

/// Checks that every volume's share of the buffer is large enough.
pub fn check_shares(checker: &Checker<'_>, config: &Config) -> Result<()> {
    check_share(checker, "vpool", &config.vpool.settings, &config.buffer)?;
    for (name, settings) in &config.vdisks {
        check_share(checker, &format!("vdisk.{name}"), settings, &config.buffer)?;
    }
    Ok(())
}

fn node(checker: &mut Checker<'_>, raw: RawNode) -> Result<NodeConfig> {
    let engines =
        [("auto", IoEngine::Auto), ("uring", IoEngine::Uring), ("psync", IoEngine::Psync)];
    Ok(NodeConfig {
        io: checker.choice(&field::NODE_IO, "node", raw.io, (IoEngine::Auto, &engines))?,
        shards: u32_of(checker.number(&field::NODE_SHARDS, "node", raw.shards_count)?)?,
        service_threads: usize_of(checker.number(
            &field::NODE_SERVICE_THREADS,
            "node",
            raw.service_threads_count,
        )?)?,
    })
}

fn nbd(
    checker: &mut Checker<'_>,
    raw: RawNbd,
    data_dir: &Path,
    overrides: &Overrides,
) -> Result<NbdConfig> {
    Ok(NbdConfig {
        listen: listen(checker, raw.listen, data_dir, overrides)?,
        tls: tls(checker, raw.tls, data_dir)?,
        connections: usize_of(checker.number(
            &field::NBD_CONNECTIONS,
            "nbd",
            raw.connections_count,
        )?)?,
        inflight_requests: usize_of(checker.number(
            &field::NBD_INFLIGHT_COUNT,
            "nbd",
            raw.inflight_requests_count,
        )?)?,
        inflight: ByteCount(checker.number(
            &field::NBD_INFLIGHT_BYTES,
            "nbd",
            raw.inflight_bytes,
        )?),
        memory: ByteCount(checker.number(&field::NBD_MEMORY, "nbd", raw.memory_bytes)?),
        handshake_timeout: Duration::from_millis(checker.number(
            &field::NBD_HANDSHAKE,
            "nbd",
            raw.handshake_timeout_ms,
        )?),
    })
}

fn listen(
    checker: &mut Checker<'_>,
    typed: Option<Value>,
    data_dir: &Path,
    overrides: &Overrides,
) -> Result<Vec<Endpoint>> {
    let from_file = match typed {
        Some(typed) => Some(read_endpoints(checker, &typed)?),
        None => None,
    };
    let (endpoints, origin) = match (overrides.nbd.is_empty(), from_file) {
        (false, _) => (overrides.nbd.clone(), Origin::CommandLine),
        (true, Some(endpoints)) => (endpoints, Origin::File),
        (true, None) => (vec![Endpoint::Unix("nbd.sock".into())], Origin::Default),
    };
    // What is typed on the command line counts from the working directory, as for every other tool.
    let endpoints: Vec<Endpoint> = match origin {
        Origin::CommandLine => endpoints,
        Origin::File | Origin::Default => {
            endpoints.into_iter().map(|e| e.within(data_dir)).collect()
        }
    };
    let shown: Vec<String> = endpoints.iter().map(|e| quoted(&e.to_string())).collect();
    let shown = format!("[{}]", shown.join(", "));
    let fixed_port = |e: &Endpoint| !matches!(e, Endpoint::Tcp { port: 0, .. });
    for (i, endpoint) in endpoints.iter().enumerate() {
        if fixed_port(endpoint) && endpoints.iter().take(i).any(|earlier| earlier == endpoint) {
            return Err(checker.conflict(
                &field::NBD_LISTEN,
                "nbd",
                &shown,
                "an address is listed twice",
            ));
        }
    }
    checker.record(&field::NBD_LISTEN, "nbd", shown, origin);
    Ok(endpoints)
}

fn read_endpoints(checker: &Checker<'_>, typed: &Value) -> Result<Vec<Endpoint>> {
    let list = match typed {
        Value::Array(list) if (1..=64).contains(&list.len()) => list,
        _ => return Err(checker.illegal(&field::NBD_LISTEN, "nbd", typed, None)),
    };
    let mut endpoints = Vec::with_capacity(list.len());
    for item in list {
        let text =
            item.as_str().ok_or_else(|| checker.illegal(&field::NBD_LISTEN, "nbd", typed, None))?;
        let endpoint = Endpoint::from_str(text).map_err(|why| {
            checker.illegal(&field::NBD_LISTEN, "nbd", typed, Some(why.about(text)))
        })?;
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

#[derive(Clone, Copy, PartialEq)]
enum TlsMode {
    Off,
    Optional,
    Required,
}

fn tls(checker: &mut Checker<'_>, raw: RawTls, data_dir: &Path) -> Result<TlsConfig> {
    let section = "nbd.tls";
    let modes =
        [("off", TlsMode::Off), ("optional", TlsMode::Optional), ("required", TlsMode::Required)];
    let mode = checker.choice(&field::NBD_TLS, section, raw.mode, (TlsMode::Off, &modes))?;
    let certificate =
        checker.path(&field::NBD_TLS_CERTIFICATE, section, raw.certificate, data_dir)?;
    let key = checker.path(&field::NBD_TLS_KEY, section, raw.key, data_dir)?;
    let client_ca = checker.path(&field::NBD_TLS_CLIENT_CA, section, raw.client_ca, data_dir)?;
    let missing = |field: &field::Field| {
        checker.conflict(field, section, "(none)", "it is needed when mode is not \"off\"")
    };
    if mode == TlsMode::Off {
        return Ok(TlsConfig::Off);
    }
    let files = TlsFiles {
        certificate: certificate.ok_or_else(|| missing(&field::NBD_TLS_CERTIFICATE))?,
        key: key.ok_or_else(|| missing(&field::NBD_TLS_KEY))?,
        client_ca,
    };
    Ok(if mode == TlsMode::Required {
        TlsConfig::Required(files)
    } else {
        TlsConfig::Optional(files)
    })
}

/// A socket address as an own type, to give it our error.
struct Listen(SocketAddr);

impl FromStr for Listen {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        // Names are not resolved here: a configuration must not mean something else tomorrow.
        let text = text
            .strip_prefix("localhost:")
            .map_or(text.to_owned(), |port| format!("127.0.0.1:{port}"));
        text.parse().map(Self).map_err(|_| Fault::invalid("not an IP address and a port"))
    }
}

fn metrics(checker: &mut Checker<'_>, typed: Option<Value>) -> Result<MetricsConfig> {
    let listen =
        checker.text::<Listen>(&field::METRICS_LISTEN, "metrics", typed)?.map(|listen| listen.0);
    if let Some(listen) = listen {
        checker.record(
            &field::METRICS_LISTEN,
            "metrics",
            quoted(&listen.to_string()),
            Origin::File,
        );
    }
    Ok(MetricsConfig { listen })
}

fn buffer(checker: &mut Checker<'_>, raw: RawBuffer, data_dir: &Path) -> Result<BufferConfig> {
    let section = "buffer";
    Ok(BufferConfig {
        directory: directory(
            checker,
            &field::BUFFER_DIRECTORY,
            raw.directory,
            (data_dir, "buffer"),
        )?,
        capacity: ByteCount(checker.number(
            &field::BUFFER_CAPACITY,
            section,
            raw.capacity_bytes,
        )?),
        segment: ByteCount(checker.number(&field::BUFFER_SEGMENT, section, raw.segment_bytes)?),
        memory: ByteCount(checker.number(&field::BUFFER_MEMORY, section, raw.memory_bytes)?),
        batch: ByteCount(checker.number(&field::BUFFER_BATCH, section, raw.batch_bytes)?),
        linger: Duration::from_millis(checker.number(
            &field::BUFFER_LINGER,
            section,
            raw.linger_ms,
        )?),
    })
}

/// Size of the read cache on disk where the objects are not on a local disk anyway, bytes.
const DEFAULT_SSD_BYTES: u64 = 4 << 30;

fn cache(
    checker: &mut Checker<'_>,
    raw: RawCache,
    data_dir: &Path,
    is_embedded: bool,
) -> Result<CacheConfig> {
    let default = if is_embedded { 0 } else { DEFAULT_SSD_BYTES };
    Ok(CacheConfig {
        ram: ByteCount(checker.number(&field::CACHE_RAM, "cache", raw.ram_bytes)?),
        ssd: ByteCount(checker.number_or(&field::CACHE_SSD, "cache", raw.ssd_bytes, default)?),
        directory: directory(checker, &field::CACHE_DIRECTORY, raw.directory, (data_dir, "cache"))?,
    })
}

/// Whether the backend will turn out to be an embedded one, if it is legal.
fn says_embedded(typed: Option<&Value>, overrides: &Overrides) -> bool {
    match (&overrides.backend, typed.and_then(Value::as_str)) {
        (Some(url), _) => url.is_embedded(),
        (None, Some(text)) => text.starts_with("embedded"),
        (None, None) => true,
    }
}

fn directory(
    checker: &mut Checker<'_>,
    field: &'static field::Field,
    typed: Option<Value>,
    (data_dir, default): (&Path, &str),
) -> Result<PathBuf> {
    if let Some(path) = checker.path(field, field.section, typed, data_dir)? {
        return Ok(path);
    }
    let path = data_dir.join(default);
    checker.record(field, field.section, quoted(&path.display().to_string()), Origin::Default);
    Ok(path)
}

fn vpool(
    checker: &mut Checker<'_>,
    raw: &mut RawVpool,
    data_dir: &Path,
    overrides: &Overrides,
) -> Result<VpoolConfig> {
    let backend = backend(checker, raw.backend.take(), data_dir, overrides)?;
    let typed = raw.backend_capacity_bytes.take();
    let capacity = checker.number(&field::VPOOL_BACKEND_CAPACITY, "vpool", typed)?;
    let backend_capacity = (capacity > 0).then_some(ByteCount(capacity));
    let typed = raw.cluster_size_bytes.take();
    let bytes = checker.number(&field::VPOOL_CLUSTER_SIZE, "vpool", typed.clone())?;
    let cluster_size = ClusterSize::new(bytes).map_err(|why| match typed {
        Some(typed) => checker.illegal(&field::VPOOL_CLUSTER_SIZE, "vpool", &typed, Some(why)),
        None => why,
    })?;
    let defaults = VdiskSettings::default();
    let defaults = match backend {
        BackendUrl::Embedded(_) => defaults,
        BackendUrl::Alba(_) | BackendUrl::S3(_) => {
            VdiskSettings { sco_size: ByteCount(64 << 20), ..defaults }
        }
    };
    let typed = raw.s3_credentials.take();
    let s3_credentials = checker.path(&field::S3_CREDENTIALS, "vpool", typed, data_dir)?;
    let settings = settings(checker, "vpool", raw.take_settings(), defaults, data_dir)?;
    Ok(VpoolConfig { backend, backend_capacity, s3_credentials, cluster_size, settings })
}

fn registry(
    checker: &mut Checker<'_>,
    raw: RawRegistry,
    data_dir: &Path,
) -> Result<Option<RegistryUrl>> {
    let url = checker.text::<RegistryUrl>(&field::REGISTRY_URL, "registry", raw.url)?;
    let url = url.map(|url| url.within(data_dir));
    if let Some(url) = &url {
        checker.record(&field::REGISTRY_URL, "registry", quoted(&url.to_string()), Origin::File);
    }
    Ok(url)
}

fn backend(
    checker: &mut Checker<'_>,
    typed: Option<Value>,
    data_dir: &Path,
    overrides: &Overrides,
) -> Result<BackendUrl> {
    let from_file = checker.text::<BackendUrl>(&field::VPOOL_BACKEND, "vpool", typed)?;
    let (url, origin) = match (&overrides.backend, from_file) {
        (Some(url), _) => (url.clone(), Origin::CommandLine),
        (None, Some(url)) => (url.within(data_dir), Origin::File),
        (None, None) => (BackendUrl::Embedded(data_dir.join("backend")), Origin::Default),
    };
    checker.record(&field::VPOOL_BACKEND, "vpool", quoted(&url.to_string()), origin);
    Ok(url)
}

/// Each vDisk's settings: typed, or the vPool's. What it does not set is not recorded: it is the vPool's value.
fn vdisks(
    checker: &mut Checker<'_>,
    raw: BTreeMap<String, RawVdisk>,
    vpool: &VdiskSettings,
    data_dir: &Path,
) -> Result<BTreeMap<String, VdiskSettings>> {
    let mut vdisks = BTreeMap::new();
    for (name, raw) in raw {
        check_vdisk_name(&name)
            .map_err(|why| why.about(format!("{}: [vdisk.{name}]", checker.file)))?;
        let section = format!("vdisk.{name}");
        let settings = settings(checker, &section, raw, vpool.clone(), data_dir)?;
        vdisks.insert(name, settings);
    }
    checker.entries.retain(|e| !(e.section.starts_with("vdisk.") && e.origin == Origin::Default));
    Ok(vdisks)
}

/// One section's settings: typed, or those of `base`.
fn settings(
    checker: &mut Checker<'_>,
    section: &str,
    mut raw: RawVdisk,
    base: VdiskSettings,
    data_dir: &Path,
) -> Result<VdiskSettings> {
    let (compression, encryption, encryption_key) =
        coding(checker, section, &mut raw, &base, data_dir)?;
    let acks = [("memory", AckLevel::Memory), ("buffer", AckLevel::Buffer)];
    let flushes = [("journal", FlushLevel::Journal), ("backend", FlushLevel::Backend)];
    let mut number = |field, typed, base| checker.number_or(field, section, typed, base);
    let sco_size = number(&field::SCO_SIZE, raw.sco_size_bytes, base.sco_size.0)?;
    let readahead = number(&field::READAHEAD, raw.readahead_bytes, base.readahead.0)?;
    let share =
        number(&field::BUFFER_SHARE, raw.buffer_share_percent, base.buffer_share_percent.into())?;
    let base_delay = base.upload_max_delay.as_millis() as u64;
    let delay = number(&field::UPLOAD_DELAY, raw.upload_max_delay_ms, base_delay)?;
    let base_concurrency = base.upload_concurrency as u64;
    let concurrency =
        number(&field::UPLOAD_CONCURRENCY, raw.upload_concurrency_count, base_concurrency)?;
    let map_memory = number(&field::MAP_MEMORY, raw.map_memory_bytes, base.map_memory.0)?;
    Ok(VdiskSettings {
        ack: checker.choice(&field::ACK, section, raw.ack, (base.ack, &acks))?,
        flush: checker.choice(&field::FLUSH, section, raw.flush, (base.flush, &flushes))?,
        readahead: ByteCount(readahead),
        buffer_share_percent: u32_of(share)?,
        upload_max_delay: Duration::from_millis(delay),
        upload_concurrency: usize_of(concurrency)?,
        map_memory: ByteCount(map_memory),
        sco_size: ByteCount(sco_size),
        compression,
        encryption,
        encryption_key,
    })
}

/// How SCOs are built.
fn coding(
    checker: &mut Checker<'_>,
    section: &str,
    raw: &mut RawVdisk,
    base: &VdiskSettings,
    data_dir: &Path,
) -> Result<(Compression, Encryption, Arc<[KeySource]>)> {
    let ciphers = [("none", Encryption::None), ("aes-256-gcm", Encryption::Aes256Gcm)];
    let typed = raw.encryption.take();
    let encryption =
        checker.choice(&field::ENCRYPTION, section, typed, (base.encryption, &ciphers))?;
    let typed = raw.compression.take();
    let compression = checker.text::<Compression>(&field::COMPRESSION, section, typed)?;
    let origin = if compression.is_some() { Origin::File } else { Origin::Default };
    let compression = compression.unwrap_or(base.compression);
    checker.record(&field::COMPRESSION, section, quoted(&compression.to_string()), origin);
    let keys = match raw.encryption_key.take() {
        Some(typed) => key_sources(checker, section, &typed, data_dir)?,
        None => base.encryption_key.clone(),
    };
    if encryption != Encryption::None && keys.is_empty() {
        let why = "it needs a key: name one in encryption_key";
        return Err(checker.conflict(&field::ENCRYPTION, section, encryption, why));
    }
    Ok((compression, encryption, keys))
}

/// One source or a list of them.
fn key_sources(
    checker: &mut Checker<'_>,
    section: &str,
    typed: &Value,
    data_dir: &Path,
) -> Result<Arc<[KeySource]>> {
    let field = &field::ENCRYPTION_KEY;
    let list = match typed {
        Value::String(_) => std::slice::from_ref(typed),
        Value::Array(list) if (1..=MAX_SOURCES).contains(&list.len()) => list,
        _ => return Err(checker.illegal(field, section, typed, None)),
    };
    let mut sources = Vec::with_capacity(list.len());
    for item in list {
        let text = item.as_str().ok_or_else(|| checker.illegal(field, section, typed, None))?;
        let source = KeySource::from_str(text)
            .map_err(|why| checker.illegal(field, section, typed, Some(why.about(text))))?;
        sources.push(source.within(data_dir));
    }
    let shown: Vec<String> = sources.iter().map(|source| quoted(&source.to_string())).collect();
    checker.record(field, section, format!("[{}]", shown.join(", ")), Origin::File);
    Ok(sources.into())
}

/// Most segment files of a write buffer.
const MAX_SEGMENTS: u64 = 10_000;

/// The buffer must recycle segments while others are uploaded, and what waits to be written must fit into both memory and a
/// segment.
fn check_buffer(checker: &Checker<'_>, buffer: &BufferConfig) -> Result<()> {
    let shown = super::size::exact;
    if buffer.segment.0 > buffer.capacity.0 / 4 {
        let why =
            format!("it must be at most a quarter of capacity_bytes ({})", shown(buffer.capacity));
        let segment = shown(buffer.segment);
        return Err(checker.conflict(&field::BUFFER_SEGMENT, "buffer", segment, &why));
    }
    if buffer.capacity.0 / buffer.segment.0 > MAX_SEGMENTS {
        let why = format!(
            "with capacity_bytes = {} these are more than {MAX_SEGMENTS} segments",
            shown(buffer.capacity)
        );
        let segment = shown(buffer.segment);
        return Err(checker.conflict(&field::BUFFER_SEGMENT, "buffer", segment, &why));
    }
    if buffer.batch.0 > buffer.segment.0 / 2 {
        let why = format!("it must be at most half of segment_bytes ({})", shown(buffer.segment));
        return Err(checker.conflict(&field::BUFFER_BATCH, "buffer", shown(buffer.batch), &why));
    }
    if buffer.batch.0 > buffer.memory.0 / 4 {
        let why =
            format!("it must be at most a quarter of memory_bytes ({})", shown(buffer.memory));
        return Err(checker.conflict(&field::BUFFER_BATCH, "buffer", shown(buffer.batch), &why));
    }
    Ok(())
}

/// Write buffer and read cache must not lie where something else does: `--discard-local` empties their directories.
fn check_places(checker: &Checker<'_>, config: &Config) -> Result<()> {
    let data_dir = plain(&config.data_dir);
    let mut others = vec![data_dir.join(PAGES_DIR)];
    if let BackendUrl::Embedded(objects) = &config.vpool.backend {
        others.push(plain(objects));
    }
    let places = [
        (&field::BUFFER_DIRECTORY, &config.buffer.directory),
        (&field::CACHE_DIRECTORY, &config.cache.directory),
    ];
    for (field, directory) in places {
        let place = plain(directory);
        let around = |other: &PathBuf| place.starts_with(&data_dir) && other.starts_with(&place);
        let taken = match others.iter().find(|other| place.starts_with(other) || around(other)) {
            Some(other) => other,
            None if place == data_dir => &data_dir,
            None => continue,
        };
        let shown = quoted(&directory.display().to_string());
        let why = format!("{} is for something else; name a directory of its own", taken.display());
        return Err(checker.conflict(field, field.section, shown, &why));
    }
    Ok(())
}

/// The path without `.` and, as far as its text tells, without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// Whether the share of the buffer that a vDisk with these settings has can hold two SCOs.
pub fn holds_two_scos(settings: &VdiskSettings, buffer: &BufferConfig) -> bool {
    let share = u128::from(buffer.capacity.0) * u128::from(settings.buffer_share_percent) / 100;
    u128::from(settings.sco_size.0) * 2 <= share
}

/// A volume fills one SCO while the one before is uploaded: its share must hold both.
fn check_share(
    checker: &Checker<'_>,
    section: &str,
    settings: &VdiskSettings,
    buffer: &BufferConfig,
) -> Result<()> {
    if holds_two_scos(settings, buffer) {
        return Ok(());
    }
    let why = format!(
        "the vDisk's share of the write buffer ({} % of {}) must hold two SCOs: a smaller sco_size_bytes, \
         or a larger buffer_share_percent or [buffer] capacity_bytes",
        settings.buffer_share_percent,
        super::size::exact(buffer.capacity)
    );
    Err(checker.conflict(&field::SCO_SIZE, section, super::size::exact(settings.sco_size), &why))
}

fn u32_of(checked: u64) -> Result<u32> {
    u32::try_from(checked).map_err(|e| Fault::bug("a field's maximum exceeds 32 bits").because(e))
}

fn usize_of(checked: u64) -> Result<usize> {
    usize::try_from(checked)
        .map_err(|e| Fault::bug("a field's maximum exceeds this machine's words").because(e))
}
