//! Where a store is: the URL, parsed and checked.

use std::path::PathBuf;
use std::str::FromStr;

use backend_alba::server::Address;
use volumedriver_core::fault::{Fault, Result};

const LEGAL: &str = "legal are embedded:PATH, alba:HOST:PORT, alba://HOST:PORT/PREFIX, alba:unix:PATH and \
                     alba+unix:PATH";
/// Longest prefix of namespaces, bytes: leaves room for the names themselves.
const MAX_PREFIX_BYTES: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// The backend in this process.
    Embedded(PathBuf),
    /// A server; every namespace of ours begins with the prefix there.
    Alba { address: Address, prefix: String },
}

impl FromStr for Location {
    type Err = Fault;
    fn from_str(url: &str) -> Result<Self> {
        parse(url)
            .ok_or_else(|| Fault::invalid(format!("backend {url:?} is no URL of a store; {LEGAL}")))
    }
}

fn parse(url: &str) -> Option<Location> {
    if let Some(path) = url.strip_prefix("embedded:") {
        return (!path.is_empty()).then(|| Location::Embedded(path.into()));
    }
    if let Some(rest) = url.strip_prefix("alba://") {
        let (address, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        return tcp(address, prefix);
    }
    if let Some(path) = url.strip_prefix("alba+unix:").or(url.strip_prefix("alba:unix:")) {
        let address = Address::Unix(path.into());
        return (!path.is_empty()).then(|| Location::Alba { address, prefix: String::new() });
    }
    tcp(url.strip_prefix("alba:")?, "")
}

fn tcp(address: &str, prefix: &str) -> Option<Location> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if prefix.len() > MAX_PREFIX_BYTES || !prefix.chars().all(is_plain) {
        return None;
    }
    match address.parse().ok()? {
        address @ Address::Tcp(_) => Some(Location::Alba { address, prefix: prefix.to_string() }),
        Address::Unix(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_mean_a_store() {
        let tcp = |prefix: &str| Location::Alba {
            address: Address::Tcp("h:7000".into()),
            prefix: prefix.into(),
        };
        let unix =
            Location::Alba { address: Address::Unix("/run/a".into()), prefix: String::new() };
        let cases = [
            ("embedded:/var/b", Location::Embedded("/var/b".into())),
            ("alba:h:7000", tcp("")),
            ("alba://h:7000", tcp("")),
            ("alba://h:7000/", tcp("")),
            ("alba://h:7000/pool-1", tcp("pool-1")),
            ("alba:unix:/run/a", unix.clone()),
            ("alba+unix:/run/a", unix),
        ];
        for (url, location) in cases {
            assert_eq!(url.parse::<Location>().unwrap(), location, "{url}");
        }
    }

    #[test]
    fn others_are_refused_with_what_is_legal() {
        let bad = [
            "",
            "embedded:",
            "alba:",
            "alba:host",
            "alba://",
            "alba://h:0x1",
            "alba://h:1/a/b",
            "alba+unix:",
            "alba://h:1/p?x",
            "s3://bucket",
            "alba:/:1",
            "alba:h:70000",
        ];
        for url in bad {
            let fault = url.parse::<Location>().unwrap_err();
            assert!(fault.message.contains("embedded:PATH"), "{url}: {fault}");
        }
    }
}
