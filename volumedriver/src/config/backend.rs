//! Where objects are kept, and what guards their names: URLs, parsed and checked.
//!
//! | URL | store |
//! |---|---|
//! | `embedded:PATH` | the backend in this process, on a local directory |
//! | `alba:HOST:PORT`, `alba://HOST:PORT/PREFIX?preset=NAME` | `alba serve` over TCP, namespaces under a prefix |
//! | `alba:unix:PATH`, `alba+unix:PATH` | `alba serve` over a unix socket |
//! | `s3://BUCKET/PREFIX?endpoint=URL&...` | a bucket, see [`S3Url`] |
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
    let mut preset = None;
    for (name, value) in parameters(query, &["preset"])? {
        if value.is_empty() || value.len() > MAX_PRESET_BYTES || !value.chars().all(is_plain) {
            return Err(Fault::invalid(format!("{name}={value}: not the name of a preset")));
        }
        preset = Some(value);
    }
    Ok(BackendUrl::Alba(AlbaUrl { endpoint: address.parse()?, prefix: prefix.to_owned(), preset }))
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
            Self::Alba(AlbaUrl { endpoint, prefix, preset }) => match preset {
                None if prefix.is_empty() => write!(f, "alba:{endpoint}"),
                None => write!(f, "alba://{endpoint}/{prefix}"),
                Some(preset) => write!(f, "alba://{endpoint}/{prefix}?preset={preset}"),
            },
            Self::S3(url) => write!(f, "{url}"),
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
                Self::Alba(AlbaUrl { endpoint: url.endpoint.within(directory), ..url })
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
