//! `s3://BUCKET/PREFIX?NAME=VALUE&...`: a bucket, and how to talk to its server.
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `endpoint` | `http://HOST[:PORT]` or `https://HOST[:PORT]` | AWS, by the region |
//! | `region` | the region requests are signed for | with an endpoint `us-east-1`, else as the AWS tools find it |
//! | `path_style` | `true`: the bucket is in the path; `false`: in the host name | `true` with an endpoint |
//! | `ca` | PEM file; an https server must show a certificate signed by one in it | the system's |
//! | `credentials` | file of keys in the form of `~/.aws/credentials` | as the AWS tools find them |
//! | `profile` | profile of that file, or of the AWS tools' | `AWS_PROFILE`, else `default` |
//! | `capacity_gib` | most GiB of fragments | none; then it counts as having 1 TiB free |
//!
//! The files must be there on every server of the backend. A URL holds no secrets.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::fault::{Fault, Result};
use crate::osd::query::{self, Query};

const PARAMETERS: [&str; 7] =
    ["endpoint", "region", "path_style", "ca", "credentials", "profile", "capacity_gib"];
/// Longest prefix, bytes: leaves room for the keys.
const MAX_PREFIX_BYTES: usize = 128;
const MAX_CAPACITY_GIB: u64 = 1 << 33;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Url {
    pub bucket: String,
    /// Empty, or without a slash at either end.
    pub prefix: String,
    /// `None`: AWS.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub addressing: Addressing,
    pub ca: Option<PathBuf>,
    pub credentials: Option<PathBuf>,
    pub profile: Option<String>,
    pub capacity_gib: Option<u64>,
}

/// Where the bucket's name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    Path,
    Host,
}

impl FromStr for S3Url {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).map_err(|fault| fault.about(format!("OSD {text:?}")))
    }
}

impl S3Url {
    fn parse(text: &str) -> Result<Self> {
        let form = || Fault::invalid("a bucket is named like s3://BUCKET/PREFIX?endpoint=URL");
        let rest = text.strip_prefix("s3://").ok_or_else(form)?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let query = Query::parse(query, &PARAMETERS)?;
        let endpoint = query.get("endpoint").map(checked_endpoint).transpose()?;
        let addressing = match (query.get("path_style"), &endpoint) {
            (Some("true"), _) | (None, Some(_)) => Addressing::Path,
            (Some("false"), _) | (None, None) => Addressing::Host,
            (Some(other), _) => {
                let message = format!("path_style={other}: legal is true or false");
                return Err(Fault::invalid(message));
            }
        };
        Ok(Self {
            bucket: checked_bucket(bucket)?,
            prefix: checked_prefix(prefix)?,
            endpoint,
            region: query.text("region"),
            addressing,
            ca: query.path("ca"),
            credentials: query.path("credentials"),
            profile: query.text("profile"),
            capacity_gib: query.get("capacity_gib").map(checked_capacity).transpose()?,
        })
    }
}

fn checked_bucket(bucket: &str) -> Result<String> {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    let is_legal = |c: char| is_end(c) || matches!(c, '-' | '.' | '_');
    let ends_well = bucket.starts_with(is_end) && bucket.ends_with(is_end);
    if (3..=63).contains(&bucket.len()) && ends_well && bucket.chars().all(is_legal) {
        return Ok(bucket.to_owned());
    }
    let legal = "legal are 3 to 63 letters, digits, '.', '-' and '_'";
    Err(Fault::invalid(format!("bucket {bucket:?}: {legal}")))
}

fn checked_prefix(prefix: &str) -> Result<String> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_part = |part: &str| part.chars().all(is_legal) && part.chars().any(|c| c != '.');
    let fine = prefix.len() <= MAX_PREFIX_BYTES && prefix.split('/').all(is_part);
    if prefix.is_empty() || fine {
        return Ok(prefix.to_owned());
    }
    Err(Fault::invalid(format!(
        "prefix {prefix:?}: legal are at most {MAX_PREFIX_BYTES} letters, digits, '.', '-', '_', parted by single '/'"
    )))
}

fn checked_endpoint(endpoint: &str) -> Result<String> {
    let wrong = |why: &str| Fault::invalid(format!("endpoint={endpoint}: {why}"));
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    let host = host.ok_or_else(|| wrong("it begins with neither http:// nor https://"))?;
    let host = host.strip_suffix('/').unwrap_or(host);
    if host.contains('@') {
        return Err(wrong("a URL holds no secrets: name a file, credentials=FILE"));
    }
    let is_legal =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']' | '_');
    let (name, port) = match host.rsplit_once(':').filter(|_| !host.ends_with(']')) {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let port_is_fine = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if name.is_empty() || !name.chars().all(is_legal) || !port_is_fine {
        return Err(wrong("legal is http://HOST[:PORT] or https://HOST[:PORT]"));
    }
    Ok(endpoint.strip_suffix('/').unwrap_or(endpoint).to_owned())
}

fn checked_capacity(text: &str) -> Result<u64> {
    let gib = text.parse().ok().filter(|gib| (1..=MAX_CAPACITY_GIB).contains(gib));
    let wrong = || format!("capacity_gib={text}: legal is 1 to {MAX_CAPACITY_GIB}");
    gib.ok_or_else(|| Fault::invalid(wrong()))
}

impl fmt::Display for S3Url {
    /// Reads as the same again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)?;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let path_style = match (self.addressing, &self.endpoint) {
            (Addressing::Path, Some(_)) | (Addressing::Host, None) => None,
            (Addressing::Path, None) => Some("true".into()),
            (Addressing::Host, Some(_)) => Some("false".into()),
        };
        let given = [
            ("endpoint", self.endpoint.clone()),
            ("region", self.region.clone()),
            ("path_style", path_style),
            ("ca", path(&self.ca)),
            ("credentials", path(&self.credentials)),
            ("profile", self.profile.clone()),
            ("capacity_gib", self.capacity_gib.map(|gib| gib.to_string())),
        ];
        query::write(f, given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_printed_alike() {
        for (text, printed) in [
            ("s3://bucket", "s3://bucket/"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            (
                "s3://bucket/a?endpoint=http://host:9000/&path_style=true&capacity_gib=5",
                "s3://bucket/a?endpoint=http://host:9000&capacity_gib=5",
            ),
            (
                "s3://bucket/a?credentials=/etc/my%20keys&endpoint=https://[::1]:1&path_style=false&region=x",
                "s3://bucket/a?endpoint=https://[::1]:1&region=x&path_style=false&credentials=/etc/my%20keys",
            ),
        ] {
            let url: S3Url = text.parse().unwrap();
            assert_eq!(url.to_string(), printed);
            assert_eq!(printed.parse::<S3Url>().unwrap(), url);
        }
    }

    #[test]
    fn bad_urls_are_refused_by_name() {
        for (text, part) in [
            ("s3:bucket", "s3://BUCKET/PREFIX"),
            ("s3://b", "bucket \"b\""),
            ("s3://bucket/a//b", "prefix \"a//b\""),
            ("s3://bucket/..", "prefix \"..\""),
            ("s3://bucket?endpoint=ftp://x", "neither http:// nor https://"),
            ("s3://bucket?endpoint=http://key:secret@x", "credentials=FILE"),
            ("s3://bucket?endpoint=http://x:99999", "endpoint=http://x:99999"),
            ("s3://bucket?endpoint=http://", "http://HOST"),
            ("s3://bucket?path_style=yes", "path_style=yes"),
            ("s3://bucket?capacity_gib=0", "capacity_gib=0"),
            ("s3://bucket?secret=x", "\"secret\" is no parameter"),
            ("s3://bucket?region=a&region=b", "region is given twice"),
        ] {
            let fault = text.parse::<S3Url>().unwrap_err();
            assert!(fault.message.contains(part) && fault.message.contains(text), "{fault}");
        }
    }
}
