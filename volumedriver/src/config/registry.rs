//! `etcd://HOST:PORT[,HOST:PORT...]/PREFIX?NAME=VALUE&...`: the cluster's registry.
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `ca` | PEM file; servers must show a certificate signed by one in it, and TLS is used | no TLS |
//! | `certificate`, `key` | PEM files that say who we are; with `ca` only | none |

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use volumedriver_core::fault::{Fault, Result};

use super::backend::{Encoded, MAX_PREFIX_BYTES, parameters};
use super::endpoint::Endpoint;

/// Most servers that are named.
const MAX_SERVERS: usize = 16;

/// Where the registry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryUrl {
    /// `HOST:PORT`, at least one.
    pub servers: Vec<String>,
    /// Every key of ours begins with it; without a slash at either end, not empty.
    pub prefix: String,
    pub tls: Option<RegistryTls>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryTls {
    pub ca: PathBuf,
    /// Certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl FromStr for RegistryUrl {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let rest = text
            .strip_prefix("etcd://")
            .ok_or_else(|| Fault::invalid("it does not begin with \"etcd://\""))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (servers, prefix) = place.split_once('/').unwrap_or((place, ""));
        let servers: Vec<String> = servers.split(',').map(checked_server).collect::<Result<_>>()?;
        if servers.len() > MAX_SERVERS {
            return Err(Fault::invalid(format!("more than {MAX_SERVERS} servers")));
        }
        Ok(Self { servers, prefix: checked_prefix(prefix)?, tls: checked_tls(query)? })
    }
}

fn checked_server(server: &str) -> Result<String> {
    match server.parse()? {
        Endpoint::Tcp { port: 0, .. } => Err(Fault::invalid(format!("{server}: port 0"))),
        endpoint @ Endpoint::Tcp { .. } => Ok(endpoint.to_string()),
        Endpoint::Unix(_) => Err(Fault::invalid(format!("{server}: legal is HOST:PORT"))),
    }
}

fn checked_prefix(prefix: &str) -> Result<String> {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let part = |part: &str| !part.is_empty() && part.chars().all(legal);
    if prefix.len() <= MAX_PREFIX_BYTES && prefix.split('/').all(part) {
        return Ok(prefix.to_owned());
    }
    Err(Fault::invalid(format!(
        "{prefix:?} cannot be a prefix of keys: letters, digits, '.', '-', '_', parted by single '/', \
         1 to {MAX_PREFIX_BYTES} bytes; vPools must not share one"
    )))
}

fn checked_tls(query: &str) -> Result<Option<RegistryTls>> {
    let (mut ca, mut certificate, mut key) = (None, None, None);
    for (name, value) in parameters(query, &["ca", "certificate", "key"])? {
        if value.is_empty() {
            return Err(Fault::invalid(format!("{name}: legal is the path of a PEM file")));
        }
        let place = match name.as_str() {
            "ca" => &mut ca,
            "certificate" => &mut certificate,
            _ => &mut key,
        };
        *place = Some(PathBuf::from(value));
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Fault::invalid("certificate and key go together"));
        }
    };
    match (ca, identity) {
        (None, Some(_)) => Err(Fault::invalid("certificate and key go with ca only")),
        (ca, identity) => Ok(ca.map(|ca| RegistryTls { ca, identity })),
    }
}

impl fmt::Display for RegistryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}/{}", self.servers.join(","), self.prefix)?;
        let Some(RegistryTls { ca, identity }) = &self.tls else { return Ok(()) };
        write!(f, "?ca={}", Encoded(&ca.display().to_string()))?;
        let Some((certificate, key)) = identity else { return Ok(()) };
        let certificate = certificate.display().to_string();
        write!(f, "&certificate={}", Encoded(&certificate))?;
        write!(f, "&key={}", Encoded(&key.display().to_string()))
    }
}

impl RegistryUrl {
    /// Relative paths count from `directory`.
    #[must_use]
    pub fn within(self, directory: &Path) -> Self {
        let at = |file: PathBuf| directory.join(file);
        let tls = self.tls.map(|tls| RegistryTls {
            ca: at(tls.ca),
            identity: tls.identity.map(|(certificate, key)| (at(certificate), at(key))),
        });
        Self { tls, ..self }
    }
}
