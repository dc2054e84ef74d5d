//! Addresses of sockets.

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
