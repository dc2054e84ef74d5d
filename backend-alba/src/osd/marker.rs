//! The marker of a directory that is an OSD: which one it is, whose it is, and its lock. All calls block.
//!
//! The file `OSD` is text: `alba-osd 1`, `osd` and the OSD's identity, and, once it is claimed, `alba` and the identity of the
//! one backend it belongs to. A change writes `OSD.new`, locks it and takes the old one's place with it, so that a crash leaves
//! the old one or the new one, and the directory is locked throughout.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::FlockOperation;

use super::directory::sync_dir;
use crate::fault::{Fault, Result};
use crate::name::{AlbaId, OsdId};

const NAME: &str = "OSD";
const DRAFT: &str = "OSD.new";
const HEAD: &str = "alba-osd 1";

#[derive(Debug)]
pub struct Marker {
    pub id: OsdId,
    root: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    owner: Option<AlbaId>,
    /// The marker itself, locked.
    _lock: File,
}

impl Marker {
    /// Of a directory that has one, or of an empty one, which gets one that is nobody's.
    pub fn open(root: &Path) -> Result<Self> {
        match OpenOptions::new().read(true).write(true).open(root.join(NAME)) {
            Ok(file) => Self::adopt(root, file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Self::create(root),
            Err(e) => Err(Fault::io("cannot open its marker file", e)),
        }
    }

    fn create(root: &Path) -> Result<Self> {
        let io = |e| Fault::io("cannot read the directory", e);
        let is_ours = |name: &std::ffi::OsStr| name == "lost+found" || name == DRAFT;
        for entry in fs::read_dir(root).map_err(io)? {
            if !is_ours(&entry.map_err(io)?.file_name()) {
                let message = "the directory is not empty and has no OSD marker file";
                return Err(Fault::invalid(message));
            }
        }
        let id = OsdId::random();
        let held = Held { owner: None, _lock: write(root, id, None, true)? };
        Ok(Self { id, root: root.to_path_buf(), held: Mutex::new(held) })
    }

    fn adopt(root: &Path, file: File) -> Result<Self> {
        lock(&file)?;
        if !is_at(&file, &root.join(NAME))? {
            return Err(in_use());
        }
        let mut text = String::new();
        let read = (&file).take(1024).read_to_string(&mut text);
        read.map_err(|e| Fault::io("cannot read its marker file", e))?;
        let (id, owner) = parse(&text)?;
        let held = Held { owner, _lock: file };
        Ok(Self { id, root: root.to_path_buf(), held: Mutex::new(held) })
    }

    pub fn owner(&self) -> Option<AlbaId> {
        self.held().owner
    }

    /// Makes it this backend's, durably. Refused when it is another's.
    pub fn claim(&self, alba: AlbaId) -> Result<()> {
        let mut held = self.held();
        match held.owner {
            Some(owner) if owner == alba => Ok(()),
            Some(owner) => Err(foreign(owner, alba)),
            None => self.replace(&mut held, Some(alba)),
        }
    }

    /// Makes it nobody's. Refused when it is another backend's.
    pub fn release(&self, alba: AlbaId) -> Result<()> {
        let mut held = self.held();
        match held.owner {
            Some(owner) if owner == alba => self.replace(&mut held, None),
            Some(owner) => Err(foreign(owner, alba)),
            None => Ok(()),
        }
    }

    fn replace(&self, held: &mut Held, owner: Option<AlbaId>) -> Result<()> {
        let lock = write(&self.root, self.id, owner, false)?;
        *held = Held { owner, _lock: lock };
        Ok(())
    }

    // What is held is replaced whole.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(super) fn foreign(owner: AlbaId, alba: AlbaId) -> Fault {
    Fault::invalid(format!("it belongs to backend {owner}, not to {alba}"))
}

/// Durable when it returns; the new marker, locked.
fn write(root: &Path, id: OsdId, owner: Option<AlbaId>, is_first: bool) -> Result<File> {
    let io = |e| Fault::io("cannot write its marker file", e);
    let (draft, name) = (root.join(DRAFT), root.join(NAME));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&draft).map_err(io)?;
    lock(&file)?;
    // Somebody else may have been faster.
    if !is_at(&file, &draft)? || (is_first && name.exists()) {
        return Err(in_use());
    }
    file.set_len(0).map_err(io)?;
    file.write_all(text(id, owner).as_bytes()).map_err(io)?;
    file.sync_all().and_then(|()| fs::rename(&draft, &name)).map_err(io)?;
    sync_dir(root).map_err(io)?;
    Ok(file)
}

pub(super) fn text(id: OsdId, owner: Option<AlbaId>) -> String {
    let owner = owner.map_or(String::new(), |alba| format!("alba {alba}\n"));
    format!("{HEAD}\nosd {id}\n{owner}")
}

pub(super) fn parse(text: &str) -> Result<(OsdId, Option<AlbaId>)> {
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        return Err(Fault::invalid(format!("its marker file does not begin with {HEAD:?}")));
    }
    let field = |line: Option<&str>, key: &str| -> Option<String> {
        Some(line?.strip_prefix(key)?.strip_prefix(' ')?.to_string())
    };
    let id = field(lines.next(), "osd").and_then(|id| OsdId::parse(&id));
    let id = id.ok_or_else(|| Fault::invalid("its marker file names no OSD"))?;
    let Some(line) = lines.next() else { return Ok((id, None)) };
    let owner = field(Some(line), "alba").and_then(|owner| AlbaId::parse(&owner));
    let broken = || Fault::invalid(format!("its marker file names no backend: {line:?}"));
    Ok((id, Some(owner.ok_or_else(broken)?)))
}

fn in_use() -> Fault {
    Fault::invalid("another process is using it")
}

fn lock(file: &File) -> Result<()> {
    let locked = rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    locked.map_err(|_| in_use())
}

/// The file is still the one of this name.
fn is_at(file: &File, path: &Path) -> Result<bool> {
    let io = |e| Fault::io("cannot look at its marker file", e);
    let own = file.metadata().map_err(io)?;
    match fs::metadata(path) {
        Ok(named) => Ok((own.dev(), own.ino()) == (named.dev(), named.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[test]
    fn a_claim_is_durable_and_refused_to_others_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (AlbaId([1; 16]), AlbaId([2; 16]));
        let marker = Marker::open(dir.path()).unwrap();
        let id = marker.id;
        assert_eq!(marker.owner(), None);
        marker.claim(theirs).unwrap();
        marker.claim(theirs).unwrap();
        for again in [marker.claim(ours), marker.release(ours)] {
            let fault = again.unwrap_err();
            assert_eq!(fault.kind, Kind::Invalid);
            assert!(fault.message.contains(&theirs.to_string()), "{fault}");
        }
        // Locked through every change.
        assert!(Marker::open(dir.path()).unwrap_err().message.contains("another process"));
        drop(marker);
        let marker = Marker::open(dir.path()).unwrap();
        assert_eq!((marker.id, marker.owner()), (id, Some(theirs)));
        marker.release(theirs).unwrap();
        marker.claim(ours).unwrap();
        drop(marker);
        let text = fs::read_to_string(dir.path().join(NAME)).unwrap();
        assert_eq!(text, format!("alba-osd 1\nosd {id}\nalba 01010101010101010101010101010101\n"));
    }

    #[test]
    fn what_a_crash_leaves_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DRAFT), "half").unwrap();
        let id = Marker::open(dir.path()).unwrap().id;
        fs::write(dir.path().join(DRAFT), "a longer text than a marker has ".repeat(9)).unwrap();
        let marker = Marker::open(dir.path()).unwrap();
        marker.claim(AlbaId([3; 16])).unwrap();
        drop(marker);
        let marker = Marker::open(dir.path()).unwrap();
        assert_eq!((marker.id, marker.owner()), (id, Some(AlbaId([3; 16]))));
    }

    #[test]
    fn a_damaged_marker_is_refused() {
        for text in ["", "alba-osd 2\n", "alba-osd 1\n", "alba-osd 1\nosd x\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        let id = "07".repeat(16);
        assert!(parse(&format!("alba-osd 1\nosd {id}\nalba 1\n")).is_err());
        assert_eq!(parse(&format!("alba-osd 1\nosd {id}\n")).unwrap(), (OsdId([7; 16]), None));
    }
}
