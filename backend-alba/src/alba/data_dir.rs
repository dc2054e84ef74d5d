//! The data directory: its lock, its layout version, the backend's identity, and where its NSM is.
//!
//! | path | what |
//! |---|---|
//! | `LAYOUT` | text: `alba 1`, the backend's identity, and once there is an NSM `nsm local` or `nsm etcd` |
//! | `LOCK` | locked while a process uses the directory |
//! | `nsm/` | RocksDB, with `nsm local` |
//! | `osd/` | the OSD used when none is given |
//!
//! An NSM that was there and is not any more is lost: to begin an empty one in its place would make orphans of all fragments.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::fault::{Fault, Kind, Result};
use crate::name::AlbaId;

const LAYOUT: &str = "LAYOUT";
const LAYOUT_HEAD: &str = "alba 1";
const NSM: &str = "nsm";

/// Where the NSM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NsmKind {
    /// In the directory.
    Local,
    /// Elsewhere, shared with others.
    Etcd,
}

#[derive(Debug)]
pub(super) struct DataDir {
    /// `None` in a new one.
    pub id: Option<AlbaId>,
    /// `None` before there was one.
    pub nsm: Option<NsmKind>,
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Locks it. Creates it when it is missing.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let opened = Self::open_unnamed(path);
        opened.map_err(|fault| about(path, fault))
    }

    fn open_unnamed(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(|e| Fault::io("cannot create it", e))?;
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(false);
        let lock = options
            .open(path.join("LOCK"))
            .map_err(|e| Fault::io("cannot open its lock file", e))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Fault::invalid("another process is using it"))?;
        let (id, nsm) = match File::open(path.join(LAYOUT)) {
            Ok(file) => read_layout(&file)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => (None, None),
            Err(e) => return Err(Fault::io("cannot open its layout file", e)),
        };
        Ok(Self { id, nsm, path: path.to_path_buf(), _lock: lock })
    }

    pub(super) fn nsm_path(&self) -> PathBuf {
        self.path.join(NSM)
    }

    /// A RocksDB is in it.
    pub(super) fn has_nsm(&self) -> bool {
        self.nsm_path().join("CURRENT").exists()
    }

    /// Whether its own NSM may be opened, or begun in a new directory.
    pub(super) fn check_local(&self) -> Result<()> {
        let checked = match (self.id, self.nsm) {
            (_, Some(NsmKind::Etcd)) => {
                Err(Fault::invalid("its NSM is in etcd: say where with --nsm"))
            }
            (None, _) if self.has_nsm() => Err(Fault::invalid("its layout file is missing")),
            (Some(_), Some(NsmKind::Local)) if !self.has_nsm() => Err(lost()),
            // Before the layout file said that there was one, its OSD came after it.
            (Some(_), None) if !self.has_nsm() && self.path.join("osd").exists() => Err(lost()),
            (_, None | Some(NsmKind::Local)) => Ok(()),
        };
        checked.map_err(|fault| about(&self.path, fault))
    }

    /// Whether an NSM elsewhere may be used.
    pub(super) fn check_etcd(&self) -> Result<()> {
        let is_local = self.has_nsm() || self.nsm == Some(NsmKind::Local);
        let why = "it has an NSM of its own: leave out --nsm, or use another directory";
        if is_local { Err(about(&self.path, Fault::invalid(why))) } else { Ok(()) }
    }

    /// Writes down whose it is and where its NSM is.
    pub(super) fn note(&mut self, id: AlbaId, nsm: Option<NsmKind>) -> Result<()> {
        if let Some(known) = self.id.filter(|known| *known != id) {
            let message = format!("it belongs to backend {known}, its NSM to {id}");
            return Err(about(&self.path, Fault::invalid(message)));
        }
        let nsm = nsm.or(self.nsm);
        if (self.id, self.nsm) != (Some(id), nsm) {
            write_layout(&self.path, id, nsm).map_err(|fault| about(&self.path, fault))?;
        }
        (self.id, self.nsm) = (Some(id), nsm);
        Ok(())
    }
}

fn about(path: &Path, fault: Fault) -> Fault {
    fault.about(format!("data directory {}", path.display()))
}

fn lost() -> Fault {
    let message = "its NSM is missing; `alba recover` rebuilds it from the OSDs";
    Fault::new(Kind::Corrupt, message)
}

fn read_layout(mut file: &File) -> Result<(Option<AlbaId>, Option<NsmKind>)> {
    let mut text = String::new();
    let read = (&mut file).take(1024).read_to_string(&mut text);
    read.map_err(|e| Fault::io("cannot read its layout file", e))?;
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    if head != LAYOUT_HEAD {
        let message = format!("its layout is {head:?}; this release knows {LAYOUT_HEAD:?} only");
        return Err(Fault::invalid(message));
    }
    let id = lines.next().and_then(AlbaId::parse);
    let id = id.ok_or_else(|| Fault::invalid("its layout file names no backend"))?;
    let nsm = match lines.next() {
        None => None,
        Some("nsm local") => Some(NsmKind::Local),
        Some("nsm etcd") => Some(NsmKind::Etcd),
        Some(other) => {
            return Err(Fault::invalid(format!(
                "its layout file says {other:?}, which this release does not know"
            )));
        }
    };
    Ok((Some(id), nsm))
}

/// Written aside and renamed, so that a crash leaves the old one or the new one.
fn write_layout(path: &Path, id: AlbaId, nsm: Option<NsmKind>) -> Result<()> {
    let io = |e| Fault::io("cannot write its layout file", e);
    let nsm = match nsm {
        None => "",
        Some(NsmKind::Local) => "nsm local\n",
        Some(NsmKind::Etcd) => "nsm etcd\n",
    };
    let draft = path.join("LAYOUT.new");
    let mut file = File::create(&draft).map_err(io)?;
    file.write_all(format!("{LAYOUT_HEAD}\n{id}\n{nsm}").as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&draft, path.join(LAYOUT)).map_err(io)?;
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_layout_file_says_is_kept_to() {
        let dir = tempfile::tempdir().unwrap();
        let id = AlbaId([7; 16]);
        {
            let mut data_dir = DataDir::open(dir.path()).unwrap();
            assert_eq!((data_dir.id, data_dir.nsm), (None, None));
            data_dir.check_local().unwrap();
            data_dir.check_etcd().unwrap();
            data_dir.note(id, None).unwrap();
            data_dir.check_local().unwrap();
            data_dir.note(id, Some(NsmKind::Local)).unwrap();
        }
        let hex = "07".repeat(16);
        let text = fs::read_to_string(dir.path().join(LAYOUT)).unwrap();
        assert_eq!(text, format!("alba 1\n{hex}\nnsm local\n"));
        let mut data_dir = DataDir::open(dir.path()).unwrap();
        let lost = data_dir.check_local().unwrap_err();
        assert!(lost.message.contains("alba recover"), "{lost}");
        assert!(data_dir.check_etcd().is_err());
        let other = data_dir.note(AlbaId([8; 16]), None).unwrap_err();
        assert!(other.message.contains("belongs to backend 0707"), "{other}");
        drop(data_dir);
        for (text, part) in [
            (format!("alba 1\n{hex}\nnsm etcd\n"), "--nsm"),
            (format!("alba 1\n{hex}\nnsm tape\n"), "nsm tape"),
            (format!("alba 2\n{hex}\n"), "alba 2"),
            ("alba 1\n".into(), "names no backend"),
        ] {
            fs::write(dir.path().join(LAYOUT), text).unwrap();
            let fault = DataDir::open(dir.path()).and_then(|d| d.check_local()).unwrap_err();
            assert!(fault.message.contains(part), "{fault}");
        }
        // Of an older release, before and after its first start.
        fs::write(dir.path().join(LAYOUT), format!("alba 1\n{hex}\n")).unwrap();
        DataDir::open(dir.path()).unwrap().check_local().unwrap();
        fs::create_dir(dir.path().join("osd")).unwrap();
        assert!(DataDir::open(dir.path()).unwrap().check_local().is_err());
        fs::create_dir(dir.path().join(NSM)).unwrap();
        fs::write(dir.path().join("nsm/CURRENT"), "").unwrap();
        DataDir::open(dir.path()).unwrap().check_local().unwrap();
        fs::remove_file(dir.path().join(LAYOUT)).unwrap();
        let missing = DataDir::open(dir.path()).unwrap().check_local().unwrap_err();
        assert!(missing.message.contains("layout file is missing"), "{missing}");
    }
}
