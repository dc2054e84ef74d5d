//! Addresses: where NBD clients connect, and where the object backend is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use volumedriver_core::fault::{Fault, Result};

/// Longest path a unix socket can have on Linux, bytes (`sun_path` without its closing NUL).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// `unix:PATH` or `HOST:PORT`. A port of 0 lets the system choose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Unix(PathBuf),
    /// Host name, IPv4 address or bracketed IPv6 address, and port.
    Tcp {
        host: String,
        port: u16,
    },
}

impl FromStr for Endpoint {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(Fault::invalid("the socket path is empty")),
                1..=MAX_SOCKET_PATH_BYTES => Ok(Self::Unix(path.into())),
                _ => Err(Fault::invalid(format!(
                    "the socket path is longer than {MAX_SOCKET_PATH_BYTES} bytes"
                ))),
            };
        }
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| Fault::invalid("there is no port"))?;
        let port = port
            .parse()
            .map_err(|_| Fault::invalid(format!("{port:?} is not a port from 0 to 65535")))?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains(['/', ' ', '@']) || (host.contains(':') && !bracketed) {
            return Err(Fault::invalid(format!("{host:?} is not a host name or address")));
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Endpoint {
    /// A relative socket path counts from `directory`.
    #[must_use]
    pub fn within(self, directory: &Path) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(directory.join(path)),
            tcp @ Self::Tcp { .. } => tcp,
        }
    }
}

/// Longest prefix of namespaces, bytes.
const MAX_PREFIX_BYTES: usize = 128;

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackendUrl {
    /// The object backend inside this daemon, on a local directory.
    Embedded(PathBuf),
    /// An `alba serve` over gRPC; our namespaces begin with the prefix there (only over TCP, else empty).
    Alba { endpoint: Endpoint, prefix: String },
}

impl FromStr for BackendUrl {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        if let Some(directory) = text.strip_prefix("embedded:") {
            return match directory.is_empty() {
                true => Err(Fault::invalid("the directory is empty")),
                false => Ok(Self::Embedded(directory.into())),
            };
        }
        if let Some(rest) = text.strip_prefix("alba://") {
            let (address, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            return Self::alba(address, prefix);
        }
        if let Some(path) = text.strip_prefix("alba+unix:") {
            return Self::alba(&format!("unix:{path}"), "");
        }
        match text.strip_prefix("alba:") {
            Some(address) => Self::alba(address, ""),
            None => Err(Fault::invalid("it begins with neither \"embedded:\" nor \"alba:\"")),
        }
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(directory) => write!(f, "embedded:{}", directory.display()),
            Self::Alba { endpoint, prefix } if prefix.is_empty() => write!(f, "alba:{endpoint}"),
            Self::Alba { endpoint, prefix } => write!(f, "alba://{endpoint}/{prefix}"),
        }
    }
}

impl BackendUrl {
    fn alba(address: &str, prefix: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if prefix.len() > MAX_PREFIX_BYTES || !prefix.chars().all(plain) {
            return Err(Fault::invalid(format!("{prefix:?} cannot be a prefix of namespaces")));
        }
        Ok(Self::Alba { endpoint: address.parse()?, prefix: prefix.to_owned() })
    }

    /// A relative path counts from `directory`.
    #[must_use]
    pub fn within(self, directory: &Path) -> Self {
        match self {
            Self::Embedded(path) => Self::Embedded(directory.join(path)),
            Self::Alba { endpoint, prefix } => {
                Self::Alba { endpoint: endpoint.within(directory), prefix }
            }
        }
    }
}
