//! `s3://BUCKET/PREFIX?NAME=VALUE&...`: a bucket and how to talk to its server.
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `endpoint` | `http://HOST[:PORT]` or `https://HOST[:PORT]` | AWS, by the region |
//! | `region` | the region requests are signed for | with an endpoint `us-east-1`, else as the AWS tools find it |
//! | `path_style` | `true`: the bucket is in the path; `false`: in the host name | `true` with an endpoint |
//! | `checksum` | `when_required` or `when_supported`: whether puts carry a CRC-32 for the server to check | `when_required` with an endpoint |
//! | `ca` | PEM file; https servers must show a certificate signed by one in it | the system's |
//! | `profile` | profile of the AWS credentials and config files | `AWS_PROFILE`, else `default` |
//! | `multipart_mib` | objects above so many MiB are uploaded in parts; `0`: none is | 96 |
//!
//! Credentials are never in a URL: they come from the environment, a profile, a file, a web identity token or the
//! instance's role.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use volumedriver_core::fault::{Fault, Result};

use super::backend::{Encoded, MAX_PREFIX_BYTES, parameters};
use super::endpoint::Endpoint;

pub(super) const S3_BEGIN: &str = "s3:";
const PARAMETERS: [&str; 7] =
    ["endpoint", "region", "path_style", "checksum", "ca", "profile", "multipart_mib"];
/// Objects above this are uploaded in parts, MiB: an SCO of the default size is not.
const DEFAULT_MULTIPART_MIB: u64 = 96;
/// The largest object S3 takes at once is 5 GiB.
const MAX_MULTIPART_MIB: u64 = 5 * 1024;

/// A bucket, a prefix in it, and how to talk to its server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct S3Url {
    pub bucket: String,
    /// Every key of ours begins with it; empty, or without a slash at either end.
    pub prefix: String,
    /// `None`: AWS.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub addressing: Addressing,
    pub checksum: ChecksumMode,
    pub ca: Option<PathBuf>,
    pub profile: Option<String>,
    /// Objects of more bytes are uploaded in parts; `None`: none is.
    pub multipart_above: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addressing {
    Path,
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChecksumMode {
    WhenRequired,
    WhenSupported,
}

impl FromStr for S3Url {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let rest = text
            .strip_prefix("s3://")
            .ok_or_else(|| Fault::invalid("a bucket is named like s3://BUCKET/PREFIX"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let mut url = Self::new(checked_bucket(bucket)?, checked_prefix(prefix)?);
        let parameters = parameters(query, &PARAMETERS)?;
        // What the others default to depends on it.
        if let Some((_, endpoint)) = parameters.iter().find(|(name, _)| name == "endpoint") {
            url = url.at(checked_endpoint(endpoint)?);
        }
        for (name, value) in &parameters {
            url.set(name, value)?;
        }
        Ok(url)
    }
}

impl S3Url {
    fn new(bucket: String, prefix: String) -> Self {
        Self {
            bucket,
            prefix,
            endpoint: None,
            region: None,
            addressing: Addressing::Host,
            checksum: ChecksumMode::WhenSupported,
            ca: None,
            profile: None,
            multipart_above: Some(DEFAULT_MULTIPART_MIB << 20),
        }
    }

    fn at(self, endpoint: String) -> Self {
        let (addressing, checksum) = (Addressing::Path, ChecksumMode::WhenRequired);
        Self { endpoint: Some(endpoint), addressing, checksum, ..self }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let legal = |what: &str| Fault::invalid(format!("{name}={value}: legal is {what}"));
        match name {
            "region" => self.region = Some(checked_word(name, value)?),
            "profile" => self.profile = Some(checked_word(name, value)?),
            "path_style" => {
                self.addressing = match value {
                    "true" => Addressing::Path,
                    "false" => Addressing::Host,
                    _ => return Err(legal("true or false")),
                };
            }
            "checksum" => {
                self.checksum = match value {
                    "when_required" => ChecksumMode::WhenRequired,
                    "when_supported" => ChecksumMode::WhenSupported,
                    _ => return Err(legal("when_required or when_supported")),
                };
            }
            "ca" if value.is_empty() => return Err(legal("the path of a PEM file")),
            "ca" => self.ca = Some(value.into()),
            "multipart_mib" => {
                let mib: Option<u64> = value.parse().ok().filter(|mib| *mib <= MAX_MULTIPART_MIB);
                let mib = mib.ok_or_else(|| legal(&format!("0 to {MAX_MULTIPART_MIB}")))?;
                self.multipart_above = (mib > 0).then_some(mib << 20);
            }
            // `endpoint` was set before the others.
            _ => {}
        }
        Ok(())
    }

    /// A relative path counts from `directory`.
    #[must_use]
    pub fn within(self, directory: &Path) -> Self {
        Self { ca: self.ca.map(|file| directory.join(file)), ..self }
    }
}

fn checked_bucket(bucket: &str) -> Result<String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let ends = |c: char| c.is_ascii_alphanumeric();
    let fine = (3..=63).contains(&bucket.len())
        && bucket.chars().all(legal)
        && bucket.starts_with(ends)
        && bucket.ends_with(ends);
    match fine {
        true => Ok(bucket.to_owned()),
        false => Err(Fault::invalid(format!(
            "{bucket:?} cannot be a bucket: 3 to 63 letters, digits, '.', '-' or '_'"
        ))),
    }
}

fn checked_prefix(prefix: &str) -> Result<String> {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let part =
        |part: &str| !part.is_empty() && part.chars().all(legal) && part.chars().any(|c| c != '.');
    let fine = prefix.len() <= MAX_PREFIX_BYTES && prefix.split('/').all(part);
    match prefix.is_empty() || fine {
        true => Ok(prefix.to_owned()),
        false => Err(Fault::invalid(format!(
            "{prefix:?} cannot be a prefix of keys: letters, digits, '.', '-', '_', parted by single '/', \
             at most {MAX_PREFIX_BYTES} bytes"
        ))),
    }
}

fn checked_endpoint(endpoint: &str) -> Result<String> {
    let illegal = |why: &str| Fault::invalid(format!("endpoint={endpoint}: {why}"));
    let rest = endpoint.strip_prefix("http://").or(endpoint.strip_prefix("https://"));
    let host = rest.ok_or_else(|| illegal("it begins with neither http:// nor https://"))?;
    let host = host.strip_suffix('/').unwrap_or(host);
    if host.contains('@') {
        return Err(illegal("a URL holds no credentials; see README, section S3"));
    }
    let address = match host.ends_with(']') || !host.contains(':') {
        true => format!("{host}:0"),
        false => host.to_owned(),
    };
    let legal =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']' | '_');
    match address.parse() {
        Ok(Endpoint::Tcp { .. }) if host.chars().all(legal) => {
            Ok(endpoint.strip_suffix('/').unwrap_or(endpoint).to_owned())
        }
        Ok(Endpoint::Tcp { .. } | Endpoint::Unix(_)) | Err(_) => {
            Err(illegal("legal is http://HOST[:PORT] or https://HOST[:PORT]"))
        }
    }
}

fn checked_word(name: &str, value: &str) -> Result<String> {
    let legal = |c: char| c.is_ascii_graphic() || c == ' ';
    match (1..=128).contains(&value.len()) && value.chars().all(legal) {
        true => Ok(value.to_owned()),
        false => {
            Err(Fault::invalid(format!("{name}={value}: legal are 1 to 128 printed characters")))
        }
    }
}

impl fmt::Display for S3Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)?;
        let base = Self::new(String::new(), String::new());
        let base = self.endpoint.clone().map_or(base.clone(), |endpoint| base.at(endpoint));
        let mut mark = '?';
        let mut add = |name: &str, value: Option<&str>| {
            let Some(value) = value else { return Ok(()) };
            let before = std::mem::replace(&mut mark, '&');
            write!(f, "{before}{name}={}", Encoded(value))
        };
        add("endpoint", self.endpoint.as_deref())?;
        add("region", self.region.as_deref())?;
        let path_style = if self.addressing == Addressing::Path { "true" } else { "false" };
        add("path_style", (self.addressing != base.addressing).then_some(path_style))?;
        let checksum = match self.checksum {
            ChecksumMode::WhenRequired => "when_required",
            ChecksumMode::WhenSupported => "when_supported",
        };
        add("checksum", (self.checksum != base.checksum).then_some(checksum))?;
        let ca = self.ca.as_ref().map(|ca| ca.display().to_string());
        add("ca", ca.as_deref())?;
        add("profile", self.profile.as_deref())?;
        let mib = self.multipart_above.map_or(0, |bytes| bytes >> 20).to_string();
        let differs = self.multipart_above != base.multipart_above;
        add("multipart_mib", differs.then_some(mib.as_str()))
    }
}
