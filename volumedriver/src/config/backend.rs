//! Where objects are kept, and what guards their names: URLs, parsed and checked.
//!
//! | URL | store |
//! |---|---|
//! | `embedded:PATH` | the backend in this process, on a local directory |
//! | `alba:HOST:PORT`, `alba://HOST:PORT/PREFIX?NAME=VALUE&...` | `alba serve` over TCP, namespaces under a prefix |
//! | `alba:unix:PATH`, `alba+unix:PATH` | `alba serve` over a unix socket |
//! | `s3://BUCKET/PREFIX?endpoint=URL&...` | a bucket, see [`S3Url`] |
//!
//! Parameters of `alba://`: `preset` of new namespaces; `certificate`, `key` and `ca`, PEM files, all three: TLS, on which both
//! sides show a certificate.
//!
//! What is printed reads as the same URL again. Secrets are never part of one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use volumedriver_core::fault::{Fault, Result};

use super::endpoint::Endpoint;
use super::s3url::{S3_BEGIN, S3Url};

/// Longest prefix of namespaces and keys, bytes: leaves room for the names themselves.
pub(super) const MAX_PREFIX_BYTES: usize = 128;
/// Longest name of a preset, bytes.
const MAX_PRESET_BYTES: usize = 64;

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackendUrl {
    /// The object backend inside this daemon, on a local directory.
    Embedded(PathBuf),
    Alba(AlbaUrl),
    S3(S3Url),
}

/// An `alba serve` over gRPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AlbaUrl {
    pub endpoint: Endpoint,
    /// Our namespaces begin with it there (only over TCP, else empty).
    pub prefix: String,
    /// Of the namespaces we create; `None`: the server's default.
    pub preset: Option<String>,
    /// `None`: plain.
    pub tls: Option<AlbaTls>,
}

/// PEM files: what we show, and who may have signed what the server shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AlbaTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
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
        if text.starts_with(S3_BEGIN) {
            return text.parse().map(Self::S3);
        }
        if let Some(rest) = text.strip_prefix("alba://") {
            let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
            let (address, prefix) = place.split_once('/').unwrap_or((place, ""));
            return alba(address, prefix, query);
        }
        if let Some(path) = text.strip_prefix("alba+unix:") {
            return alba(&format!("unix:{path}"), "", "");
        }
        match text.strip_prefix("alba:") {
            Some(address) => alba(address, "", ""),
            None => Err(Fault::invalid("it begins with none of \"embedded:\", \"alba:\", \"s3:\"")),
        }
    }
}

fn alba(address: &str, prefix: &str, query: &str) -> Result<BackendUrl> {
    if prefix.len() > MAX_PREFIX_BYTES || !prefix.chars().all(is_plain) {
        return Err(Fault::invalid(format!("{prefix:?} cannot be a prefix of namespaces")));
    }
    let given = parameters(query, &["preset", "certificate", "key", "ca"])?;
    let value = |name: &str| given.iter().find(|(n, _)| n == name).map(|(_, value)| value);
    let preset = value("preset").map(|name| checked_preset(name)).transpose()?;
    let tls = checked_tls(value("certificate"), value("key"), value("ca"))?;
    let (endpoint, prefix) = (address.parse()?, prefix.to_owned());
    Ok(BackendUrl::Alba(AlbaUrl { endpoint, prefix, preset, tls }))
}

fn checked_preset(name: &str) -> Result<String> {
    if name.is_empty() || name.len() > MAX_PRESET_BYTES || !name.chars().all(is_plain) {
        return Err(Fault::invalid(format!("preset={name}: not the name of a preset")));
    }
    Ok(name.to_owned())
}

fn checked_tls(
    certificate: Option<&String>,
    key: Option<&String>,
    ca: Option<&String>,
) -> Result<Option<AlbaTls>> {
    let file = |value: &String| (!value.is_empty()).then(|| PathBuf::from(value));
    match (certificate, key, ca) {
        (None, None, None) => Ok(None),
        (Some(certificate), Some(key), Some(ca)) => {
            let empty = || Fault::invalid("certificate, key and ca are paths of PEM files");
            let files = file(certificate).zip(file(key)).zip(file(ca));
            let ((certificate, key), ca) = files.ok_or_else(empty)?;
            Ok(Some(AlbaTls { certificate, key, ca }))
        }
        _ => Err(Fault::invalid("certificate, key and ca go together")),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Names and values of a query, each name at most once and one of `legal`. `%XX` in a value is decoded.
pub(super) fn parameters(query: &str, legal: &[&str]) -> Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !legal.contains(&name) {
            let legal = legal.join(", ");
            return Err(Fault::invalid(format!("{name:?} is no parameter; legal are {legal}")));
        }
        if found.iter().any(|(earlier, _)| earlier == name) {
            return Err(Fault::invalid(format!("{name} is given twice")));
        }
        let value = decoded(value).ok_or_else(|| {
            Fault::invalid(format!(
                "{name}={value}: not UTF-8 text with %XX for special characters"
            ))
        })?;
        found.push((name.to_owned(), value));
    }
    Ok(found)
}

fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let byte = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                let digit = |d: &u8| char::from(*d).to_digit(16);
                u8::try_from(digit(high)? * 16 + digit(low)?).ok()?
            }
            (b'%', _) => return None,
            (byte, _) => *byte,
        };
        bytes.push(byte);
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

/// A value as it may stand in a query.
pub(super) struct Encoded<'a>(pub &'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '%' | '&' | '?' | '#' | '+' | ' ' => write!(f, "%{:02X}", u32::from(c))?,
                _ => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(directory) => write!(f, "embedded:{}", directory.display()),
            Self::Alba(url) => write!(f, "{url}"),
            Self::S3(url) => write!(f, "{url}"),
        }
    }
}

impl fmt::Display for AlbaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, prefix, preset, tls } = self;
        let mut query: Vec<String> = preset.iter().map(|name| format!("preset={name}")).collect();
        if let Some(AlbaTls { certificate, key, ca }) = tls {
            for (name, file) in [("certificate", certificate), ("key", key), ("ca", ca)] {
                query.push(format!("{name}={}", Encoded(&file.display().to_string())));
            }
        }
        match query.is_empty() {
            true if prefix.is_empty() => write!(f, "alba:{endpoint}"),
            true => write!(f, "alba://{endpoint}/{prefix}"),
            false => write!(f, "alba://{endpoint}/{prefix}?{}", query.join("&")),
        }
    }
}

impl BackendUrl {
    /// A relative path counts from `directory`.
    #[must_use]
    pub fn within(self, directory: &Path) -> Self {
        match self {
            Self::Embedded(path) => Self::Embedded(directory.join(path)),
            Self::Alba(url) => {
                let at = |file: PathBuf| directory.join(file);
                let tls = url.tls.map(|AlbaTls { certificate, key, ca }| AlbaTls {
                    certificate: at(certificate),
                    key: at(key),
                    ca: at(ca),
                });
                Self::Alba(AlbaUrl { endpoint: url.endpoint.within(directory), tls, ..url })
            }
            Self::S3(url) => Self::S3(url.within(directory)),
        }
    }

    /// Whether the objects are on this machine anyway.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }
}
