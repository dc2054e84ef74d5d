//! How a backend is opened.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::fault::{Fault, Result};
use crate::net::Tls;
use crate::nsm::LOCAL_NODE;
use crate::nsm::etcd::EtcdPlace;
use crate::osd::{self, Limits, Place};
use crate::preset;

/// How a backend is opened. [`Config::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Metadata and lock of the backend; created when missing.
    pub data_dir: PathBuf,
    /// Directories for fragments, on any file systems; `data_dir`/osd when none is given.
    pub osds: Vec<OsdPlace>,
    /// Clusters of etcd that hold the NSM; without any it is in `data_dir`.
    pub nsm: Vec<EtcdPlace>,
    /// Manifests remembered, so that objects can be read while etcd does not answer. Default 10,000.
    pub manifest_count: usize,
    /// Longest object, bytes. Default 1 GiB.
    pub max_object_bytes: u64,
    /// Uploads up to this length are held until they are whole, so that they can begin again where an OSD fails. Default
    /// 1 MiB.
    pub hold_bytes: u64,
    /// Uploads at once; more wait. Default 32.
    pub put_count: usize,
    /// Reads at once; more wait. Default 64.
    pub get_count: usize,
    /// Blocking threads in use at once, besides those of the OSDs; also those of an only OSD. Default 16.
    pub blocking_count: usize,
    /// Blocking threads of each OSD, when there are several. Default 8.
    pub osd_thread_count: usize,
    /// Fragments kept open for reading. Default 256.
    pub open_count: usize,
    /// No directory of its own when none is given: OSDs are claimed.
    pub only_claimed: bool,
    /// OSDs that any process can reach, besides the directories: claimed at the start if nobody has them. For a recovery,
    /// those that are left.
    pub elsewhere: Vec<Elsewhere>,
    /// For connections to OSDs over TCP: what we show them and whom we trust. Plain without.
    pub tls: Option<Tls>,
    /// Most bytes of objects' files on each OSD; default: what its file system has.
    pub osd_capacity_bytes: Option<u64>,
    /// Part of each OSD that puts of data leave free for metadata, percent; default 1. At least 32 MiB (on a small one an
    /// eighth of it) and at most `reserve_bytes`, default 1 GiB.
    pub reserve_percent: u64,
    pub reserve_bytes: u64,
    /// So long after the start, files that a crash left without a manifest are removed; at once when room is short. Default
    /// 10 minutes.
    pub orphan_grace: Duration,
}

impl Config {
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            osds: Vec::new(),
            nsm: Vec::new(),
            manifest_count: 10_000,
            max_object_bytes: 1 << 30,
            hold_bytes: 1 << 20,
            put_count: 32,
            get_count: 64,
            blocking_count: 16,
            osd_thread_count: 8,
            open_count: 256,
            only_claimed: false,
            elsewhere: Vec::new(),
            tls: None,
            osd_capacity_bytes: None,
            reserve_percent: Limits::default().reserve_percent,
            reserve_bytes: Limits::default().reserve_bytes,
            orphan_grace: Duration::from_secs(600),
        }
    }

    pub(super) fn places(&self) -> Vec<OsdPlace> {
        match &self.osds[..] {
            [] if self.only_claimed || !self.elsewhere.is_empty() => Vec::new(),
            [] => vec![OsdPlace::new(self.data_dir.join("osd"))],
            given => given.to_vec(),
        }
    }

    /// Of every OSD.
    pub(super) fn limits(&self) -> Limits {
        let (reserve_percent, reserve_bytes) = (self.reserve_percent, self.reserve_bytes);
        Limits { reserve_percent, reserve_bytes, capacity_bytes: self.osd_capacity_bytes }
    }

    /// Of the file system the NSM is on.
    pub(super) fn nsm_limits(&self) -> Limits {
        Limits { capacity_bytes: None, ..self.limits() }
    }
}

/// A directory to be used as an OSD. As text: `DIR[,node=NAME][,label=NAME]...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsdPlace {
    pub path: PathBuf,
    /// The failure domain it belongs to. Default: all directories of a server are on one node.
    pub node: String,
    pub labels: Vec<String>,
}

impl OsdPlace {
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), node: LOCAL_NODE.into(), labels: Vec::new() }
    }
}

impl FromStr for OsdPlace {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let (path, node, labels) = parts_of(text)?;
        let place = Self::new(path);
        Ok(Self { node: node.unwrap_or(place.node), labels, ..place })
    }
}

/// An OSD that any process can reach. As text: `URL[,node=NAME][,label=NAME]...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    pub place: Place,
    /// The failure domain of one that does not say it itself.
    pub node: Option<String>,
    pub labels: Vec<String>,
}

impl Elsewhere {
    #[must_use]
    pub fn at(place: Place) -> Self {
        Self { place, node: None, labels: Vec::new() }
    }

    pub fn new(place: Place, node: Option<String>, labels: Vec<String>) -> Result<Self> {
        node.iter().try_for_each(|node| preset::check_word("node", node))?;
        preset::check_labels(&labels)?;
        Ok(Self { place, node, labels })
    }
}

/// An OSD as it is given: a directory, or the URL of one that any process can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OsdGiven {
    Directory(OsdPlace),
    Elsewhere(Elsewhere),
}

impl FromStr for OsdGiven {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        if !osd::is_anywhere(text) {
            return text.parse().map(Self::Directory);
        }
        let (url, node, labels) = parts_of(text)?;
        Elsewhere::new(url.parse()?, node, labels).map(Self::Elsewhere)
    }
}

impl Config {
    /// With these OSDs too.
    #[must_use]
    pub fn with_osds(mut self, given: Vec<OsdGiven>) -> Self {
        for osd in given {
            match osd {
                OsdGiven::Directory(place) => self.osds.push(place),
                OsdGiven::Elsewhere(elsewhere) => self.elsewhere.push(elsewhere),
            }
        }
        self
    }
}

/// `PLACE[,node=NAME][,label=NAME]...`
fn parts_of(text: &str) -> Result<(&str, Option<String>, Vec<String>)> {
    let mut parts = text.split(',');
    let place = parts.next().filter(|place| !place.is_empty());
    let place = place.ok_or_else(|| Fault::invalid(format!("OSD {text:?} names no directory")))?;
    let (mut node, mut labels) = (None, Vec::new());
    for part in parts {
        match part.split_once('=') {
            Some(("node", name)) => {
                preset::check_word("node", name)?;
                node = Some(name.to_owned());
            }
            Some(("label", name)) => labels.push(name.to_owned()),
            _ => {
                return Err(Fault::invalid(format!(
                    "OSD {text:?}: {part:?} is neither node=NAME nor label=NAME"
                )));
            }
        }
    }
    preset::check_labels(&labels)?;
    Ok((place, node, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_typed() {
        let place: OsdPlace = "/srv/a,node=n1,label=ssd,label=fast".parse().unwrap();
        let labels = vec!["ssd".to_string(), "fast".to_string()];
        assert_eq!(place, OsdPlace { path: "/srv/a".into(), node: "n1".into(), labels });
        assert_eq!("d".parse::<OsdPlace>().unwrap(), OsdPlace::new("d"));
        for (text, part) in [
            ("", "no directory"),
            (",node=a", "no directory"),
            ("/a,rack=1", "\"rack=1\""),
            ("/a,node=", "node \"\""),
            ("/a,label=a b", "label \"a b\""),
        ] {
            let fault = text.parse::<OsdPlace>().unwrap_err();
            assert!(fault.message.contains(part), "{text}: {fault}");
        }
    }

    #[test]
    fn directories_and_urls_are_told_apart() {
        let given: OsdGiven = "s3://bucket/a,node=paris,label=cold".parse().unwrap();
        let OsdGiven::Elsewhere(elsewhere) = given else { panic!("{given:?}") };
        assert_eq!(elsewhere.place.to_string(), "s3://bucket/a");
        assert_eq!((elsewhere.node.as_deref(), elsewhere.labels.len()), (Some("paris"), 1));
        assert!(matches!("s3/a,node=x".parse().unwrap(), OsdGiven::Directory(_)));
        for (text, part) in [("s3://bucket,rack=1", "\"rack=1\""), ("s3://b", "bucket \"b\"")] {
            let fault = text.parse::<OsdGiven>().unwrap_err();
            assert!(fault.message.contains(part), "{text}: {fault}");
        }
        let config = Config::new("/d").with_osds(vec![OsdGiven::Elsewhere(elsewhere)]);
        assert!(config.places().is_empty(), "no directory of its own beside it");
    }
}
