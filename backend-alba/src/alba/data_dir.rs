//! The data directory: its lock, its layout version, the backend's identity.
//!
//! | path | what |
//! |---|---|
//! | `LAYOUT` | text: `alba 1`, then the backend's identity |
//! | `LOCK` | locked while a process uses the directory |
//! | `nsm/` | RocksDB |
//! | `osd/` | the OSD used when none is given |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::fault::{Fault, Result};
use crate::name::AlbaId;

const LAYOUT: &str = "LAYOUT";
const LAYOUT_HEAD: &str = "alba 1";

#[derive(Debug)]
pub(super) struct DataDir {
    pub(super) id: AlbaId,
    _lock: File,
}

impl DataDir {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::open_unnamed(path)
            .map_err(|fault| fault.about(format!("data directory {}", path.display())))
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
        let id = match File::open(path.join(LAYOUT)) {
            Ok(file) => read_layout(&file)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => create_layout(path)?,
            Err(e) => return Err(Fault::io("cannot open its layout file", e)),
        };
        Ok(Self { id, _lock: lock })
    }
}

fn read_layout(mut file: &File) -> Result<AlbaId> {
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
    id.ok_or_else(|| Fault::invalid("its layout file names no backend"))
}

/// Written aside and renamed, so that a crash leaves none or a whole one.
fn create_layout(path: &Path) -> Result<AlbaId> {
    let io = |e| Fault::io("cannot write its layout file", e);
    if path.join("nsm").exists() {
        return Err(Fault::invalid("its layout file is missing"));
    }
    let id = AlbaId::random();
    let draft = path.join("LAYOUT.new");
    let mut file = File::create(&draft).map_err(io)?;
    file.write_all(format!("{LAYOUT_HEAD}\n{id}\n").as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&draft, path.join(LAYOUT)).map_err(io)?;
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io)?;
    Ok(id)
}
