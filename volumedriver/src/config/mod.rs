//! Configuration: raw (what was typed) → checked (what the daemon runs with).
//!
//! | file | role |
//! |---|---|
//! | `field` | every key: meaning, default, legal values, live or restart |
//! | `raw` | the file's shape |
//! | `check` | one value against its field |
//! | `sections` | the whole, section by section, and cross-checks |
//! | `backend`, `s3url`, `registry` | URLs of the store and of the registry |
//! | `settings` | what the engine reads per volume |
//! | `keys` | where master keys come from |
//! | `reload` | a running configuration against a changed file |

mod backend;
mod check;
mod endpoint;
pub mod field;
pub mod keys;
mod raw;
mod registry;
mod reload;
mod s3url;
mod sections;
pub mod settings;
pub mod size;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::{ByteCount, ClusterSize};

pub use backend::{AlbaTls, AlbaUrl, BackendUrl};
pub use check::{Entry, Origin};
pub use endpoint::{Endpoint, MAX_SOCKET_PATH_BYTES};
use keys::KeySource;
pub use registry::{RegistryTls, RegistryUrl};
pub use reload::{ChangedEntry, Reloaded};
pub use s3url::{Addressing, ChecksumMode, S3Url};
pub use sections::{MAX_VDISK_NAME_BYTES, check_vdisk_name, holds_two_scos};
pub use settings::{AckLevel, Compression, Encryption, FlushLevel, VdiskSettings};

/// Directory of the map pages in the data directory.
pub const PAGES_DIR: &str = "pages";
/// Longest configuration file that is read, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A configuration that was checked as a whole.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub node: NodeConfig,
    pub nbd: NbdConfig,
    pub metrics: MetricsConfig,
    pub buffer: BufferConfig,
    pub cache: CacheConfig,
    /// `None`: this node is alone.
    pub registry: Option<RegistryUrl>,
    pub vpool: VpoolConfig,
    /// Settings of vDisks that have a section of their own.
    pub vdisks: BTreeMap<String, VdiskSettings>,
    /// The effective value of every key.
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub io: IoEngine,
    pub shards: u32,
    pub service_threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring if the kernel allows it, else psync.
    Auto,
    Uring,
    Psync,
}

#[derive(Clone, Debug)]
pub struct NbdConfig {
    pub listen: Vec<Endpoint>,
    pub tls: TlsConfig,
    pub connections: usize,
    pub inflight_requests: usize,
    pub inflight: ByteCount,
    /// Of all connections together.
    pub memory: ByteCount,
    pub handshake_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsConfig {
    Off,
    Optional(TlsFiles),
    Required(TlsFiles),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate signed by one of these.
    pub client_ca: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct MetricsConfig {
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug)]
pub struct BufferConfig {
    pub directory: PathBuf,
    pub capacity: ByteCount,
    pub segment: ByteCount,
    pub memory: ByteCount,
    pub batch: ByteCount,
    pub linger: Duration,
}

#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// 0: off.
    pub ram: ByteCount,
    /// 0: off.
    pub ssd: ByteCount,
    pub directory: PathBuf,
}

#[derive(Clone, Debug)]
pub struct VpoolConfig {
    pub backend: BackendUrl,
    /// Of an embedded backend; `None`: what its file system has.
    pub backend_capacity: Option<ByteCount>,
    /// A file in the AWS form with the keys of an S3 backend.
    pub s3_credentials: Option<PathBuf>,
    pub cluster_size: ClusterSize,
    pub settings: VdiskSettings,
}

/// What the command line says in the file's place.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub nbd: Vec<Endpoint>,
    pub backend: Option<BackendUrl>,
}

impl Config {
    /// Reads and checks a file; without one, everything is at its default. Relative paths count from `data_dir`.
    pub fn load(file: Option<&Path>, data_dir: &Path, overrides: &Overrides) -> Result<Self> {
        match file {
            None => Self::parse("(no file)", "", data_dir, overrides),
            Some(path) => {
                Self::parse(&path.display().to_string(), &read_file(path)?, data_dir, overrides)
            }
        }
    }

    /// Checks the text of a file that goes by the name `file` in messages.
    pub fn parse(file: &str, text: &str, data_dir: &Path, overrides: &Overrides) -> Result<Self> {
        let raw = toml::from_str(text).map_err(|e| Fault::invalid(describe(file, text, &e)))?;
        sections::check(file, raw, data_dir, overrides)
    }

    /// Every place where master keys are, each once.
    #[must_use]
    pub fn key_sources(&self) -> BTreeSet<KeySource> {
        let settings = std::iter::once(&self.vpool.settings).chain(self.vdisks.values());
        settings.flat_map(|settings| settings.encryption_key.iter().cloned()).collect()
    }

    /// The settings of a vDisk: its own section, else its vPool's.
    #[must_use]
    pub fn settings_of(&self, vdisk: &str) -> &VdiskSettings {
        self.vdisks.get(vdisk).unwrap_or(&self.vpool.settings)
    }
}

fn read_file(path: &Path) -> Result<String> {
    use std::io::Read;
    let about = |e: std::io::Error| {
        Fault::invalid(format!("{}: cannot be read", path.display())).because(e)
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(about)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(about)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Fault::invalid(format!(
            "{}: longer than {MAX_FILE_BYTES} bytes",
            path.display()
        )));
    }
    Ok(text)
}

/// The one-line form of what the TOML reader found.
fn describe(file: &str, text: &str, error: &toml::de::Error) -> String {
    let place = error.span().and_then(|span| {
        let before = text.get(..span.start)?;
        let line = before.matches('\n').count() + 1;
        let found = text.get(span)?.lines().next().unwrap_or_default().trim();
        Some(match found {
            "" => format!("line {line}: "),
            found => format!("line {line}, at {found:?}: "),
        })
    });
    format!("{file}: {}{}", place.unwrap_or_default(), error.message().replace('\n', " "))
}
