//! `alba://HOST:PORT/NAMESPACE?NAME=VALUE&...`: a namespace of another ALBA; over a unix socket `alba+unix:PATH?namespace=NAME&...`.
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `preset` | how it stores what is ours, when the namespace is created | its default preset |
//! | `certificate`, `key`, `ca` | PEM files, all three: TLS with these | the TLS options of the server |
//!
//! The files must be there on every server of the backend.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::fault::{Fault, Result};
use crate::name;
use crate::net::{Address, TlsFiles};
use crate::osd::query::{self, Query};
use crate::preset;

pub(super) const UNIX: &str = "alba+unix:";
const TCP: &str = "alba://";
const PARAMETERS: [&str; 4] = ["preset", "certificate", "key", "ca"];
const UNIX_PARAMETERS: [&str; 5] = ["namespace", "preset", "certificate", "key", "ca"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlbaUrl {
    pub address: Address,
    pub namespace: String,
    pub preset: Option<String>,
    pub tls: Option<TlsFiles>,
}

/// Whether it is meant to be one.
pub fn is_one(text: &str) -> bool {
    text.starts_with("alba:") || text.starts_with(UNIX)
}

impl FromStr for AlbaUrl {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).map_err(|fault| fault.about(format!("OSD {text:?}")))
    }
}

impl AlbaUrl {
    fn parse(text: &str) -> Result<Self> {
        let form = || Fault::invalid("another ALBA is named like alba://HOST:PORT/NAMESPACE");
        let (place, query) = text.split_once('?').unwrap_or((text, ""));
        let (address, namespace, query) = match place.strip_prefix(UNIX) {
            Some(path) => {
                let query = Query::parse(query, &UNIX_PARAMETERS)?;
                let namespace = query.text("namespace").ok_or_else(|| {
                    Fault::invalid("it names no namespace: alba+unix:PATH?namespace=NAME")
                })?;
                (format!("unix:{path}"), namespace, query)
            }
            None => {
                let rest = place.strip_prefix(TCP).ok_or_else(form)?;
                let (address, namespace) = rest.split_once('/').ok_or_else(form)?;
                (address.into(), namespace.into(), Query::parse(query, &PARAMETERS)?)
            }
        };
        let address = match address.parse()? {
            Address::Unix(_) if !place.starts_with(UNIX) => return Err(form()),
            address => address,
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        name::check_namespace(&namespace)?;
        if !namespace.chars().all(is_plain) {
            let legal = "legal are letters, digits, '-', '_' and '.'";
            return Err(Fault::invalid(format!("namespace {namespace:?}: {legal}")));
        }
        let preset = query.text("preset");
        preset.iter().try_for_each(|name| preset::check_word("preset", name))?;
        let files = (query.path("certificate"), query.path("key"), query.path("ca"));
        let tls = match files {
            (None, None, None) => None,
            (Some(certificate), Some(key), Some(authority)) => {
                Some(TlsFiles { certificate, key, authority })
            }
            _ => return Err(Fault::invalid("certificate, key and ca go together")),
        };
        Ok(Self { address, namespace, preset, tls })
    }
}

impl fmt::Display for AlbaUrl {
    /// Reads as the same again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = match &self.address {
            Address::Tcp(address) => {
                write!(f, "{TCP}{address}/{}", self.namespace)?;
                None
            }
            Address::Unix(path) => {
                write!(f, "{UNIX}{}", path.display())?;
                Some(self.namespace.clone())
            }
        };
        let file = |file: fn(&TlsFiles) -> &PathBuf| {
            self.tls.as_ref().map(|tls| file(tls).display().to_string())
        };
        let given = [
            ("namespace", namespace),
            ("preset", self.preset.clone()),
            ("certificate", file(|tls| &tls.certificate)),
            ("key", file(|tls| &tls.key)),
            ("ca", file(|tls| &tls.authority)),
        ];
        query::write(f, given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_printed_alike() {
        for text in [
            "alba://host:1/ns",
            "alba://[::1]:1/ns?preset=geo",
            "alba://host:1/ns?certificate=/a%20b&key=/c&ca=/d",
            "alba+unix:/run/socket?namespace=ns&preset=geo",
        ] {
            let url: AlbaUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
        }
    }

    #[test]
    fn bad_urls_are_refused_by_name() {
        for (text, part) in [
            ("alba:host:1/ns", "alba://HOST:PORT/NAMESPACE"),
            ("alba://host:1", "alba://HOST:PORT/NAMESPACE"),
            ("alba://host/ns", "address \"host\""),
            ("alba://unix:/ns", "\"unix:\""),
            ("alba://host:1/", "namespace has 0 bytes"),
            ("alba://host:1/a/b", "namespace \"a/b\""),
            ("alba://host:1/ns?preset=a/b", "preset \"a/b\""),
            ("alba://host:1/ns?ca=/a", "go together"),
            ("alba://host:1/ns?namespace=x", "\"namespace\" is no parameter"),
            ("alba+unix:/socket", "?namespace=NAME"),
        ] {
            let fault = text.parse::<AlbaUrl>().unwrap_err();
            assert!(fault.message.contains(part) && fault.message.contains(text), "{fault}");
        }
    }
}
