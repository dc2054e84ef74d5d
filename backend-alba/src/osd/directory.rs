//! A local directory that holds fragments: each a file named by its fragment id. All calls block.
//!
//! | path | what |
//! |---|---|
//! | `OSD` | text: the OSD's identity and the backend it belongs to; locked while in use |
//! | `objects/<first two digits>/<fragment id>` | the fragment, then its trailer (see [`crate::trailer`]) |
//!
//! A file's name is never used twice, so a file is either complete and named by a manifest, or being written, or an orphan.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags};

use crate::fault::{Fault, Result};
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::trailer::{self, Trailer};

use super::read::{self, ObjectFile};
use super::room::{Limits, Room, Space};
use super::write::{self, ObjectWriter};
use super::{Title, Wanted};

const MARKER: &str = "OSD";
const MARKER_HEAD: &str = "alba-osd 1";
pub(super) const OBJECTS: &str = "objects";

/// A claimed directory.
#[derive(Debug)]
pub struct Directory {
    pub id: OsdId,
    root: PathBuf,
    /// The file system takes O_DIRECT.
    direct: bool,
    space: Arc<Space>,
    /// Holds the lock.
    _marker: File,
}

impl Directory {
    /// Claims an empty directory for this backend, or opens one that belongs to it.
    pub fn open(root: &Path, alba: AlbaId, limits: Limits) -> Result<Self> {
        let about = |fault: Fault| fault.about(format!("OSD {}", root.display()));
        Self::open_unnamed(root, alba, limits).map_err(about)
    }

    fn open_unnamed(root: &Path, alba: AlbaId, limits: Limits) -> Result<Self> {
        fs::create_dir_all(root).map_err(|e| Fault::io("cannot create the directory", e))?;
        let path = root.join(MARKER);
        let (marker, id) = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => adopt(file, alba)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => claim(root, &path, alba)?,
            Err(e) => return Err(Fault::io("cannot open its marker file", e)),
        };
        make_shards(root)?;
        let direct = takes_direct(root).map_err(|e| Fault::io("it is not writable", e))?;
        let space =
            Space::open(root, limits).map_err(|e| Fault::io("its objects cannot be counted", e))?;
        Ok(Self { id, root: root.to_path_buf(), direct, space, _marker: marker })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }
    fn named<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|fault| fault.about(format!("OSD {}", self.root.display())))
    }

    pub fn room(&self) -> Result<Room> {
        self.named(self.space.room())
    }

    /// A new fragment. `NoSpace` when it does not fit.
    pub fn create(&self, title: &Title) -> Result<ObjectWriter> {
        let len = title.part.layout.fragment_len();
        let file_bytes = trailer::file_bytes(len, title.namespace.len() + title.name.len());
        let direct = self.direct && len >= write::DIRECT_FROM_BYTES;
        let created = self
            .space
            .take(file_bytes, title.purpose)
            .and_then(|taken| ObjectWriter::create(self.path_of(title.file), title, taken, direct));
        self.named(created)
    }

    /// Opens a fragment for verified reads. `None` when its file is missing.
    pub fn open_fragment(&self, wanted: Wanted) -> Result<Option<ObjectFile>> {
        self.named(ObjectFile::open(&self.path_of(wanted.file), wanted))
    }

    /// What a fragment's file says of itself. `None` when it is missing.
    pub fn describe(&self, id: FragmentId) -> Result<Option<Trailer>> {
        self.named(read::describe(&self.path_of(id)))
    }

    /// Opens a fragment's file for unverified reads by others, for direct I/O where the file system takes it.
    pub fn open_raw(&self, id: FragmentId) -> Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true);
        if self.direct {
            options.custom_flags(direct_flag());
        }
        match options.open(self.path_of(id)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => self.named(Err(Fault::io("cannot open a fragment's file", e))),
        }
    }

    /// Removes a fragment's file; succeeds also when there is none.
    pub fn remove(&self, id: FragmentId) -> Result<()> {
        let path = self.path_of(id);
        let len = if self.space.counts() { fs::metadata(&path).map_or(0, |m| m.len()) } else { 0 };
        let outcome = match fs::remove_file(path) {
            Ok(()) => {
                self.space.gone(len);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Fault::io(format!("cannot remove the file of fragment {id}"), e)),
        };
        self.named(outcome)
    }

    /// Identities of the files of one shard.
    pub fn files_of_shard(&self, shard: u8) -> Result<Vec<FragmentId>> {
        let folder = self.root.join(OBJECTS).join(format!("{shard:02x}"));
        let io = |e| Fault::io(format!("cannot list {}", folder.display()), e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            found.extend(name.to_str().and_then(FragmentId::parse));
        }
        Ok(found)
    }

    pub(super) fn path_of(&self, id: FragmentId) -> PathBuf {
        self.root.join(OBJECTS).join(format!("{:02x}", id.0[0])).join(id.to_string())
    }
}

pub(super) fn direct_flag() -> i32 {
    OFlags::DIRECT.bits().cast_signed()
}

fn lock(file: &File) -> Result<()> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| Fault::invalid("another process is using it"))
}

fn claim(root: &Path, path: &Path, alba: AlbaId) -> Result<(File, OsdId)> {
    let io = |e| Fault::io("cannot claim the directory", e);
    if fs::read_dir(root).map_err(io)?.flatten().any(|entry| entry.file_name() != "lost+found") {
        return Err(Fault::invalid("the directory is not empty and has no OSD marker file"));
    }
    let id = OsdId::random();
    let mut file =
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(io)?;
    lock(&file)?;
    file.write_all(format!("{MARKER_HEAD}\nosd {id}\nalba {alba}\n").as_bytes()).map_err(io)?;
    file.sync_all().and_then(|()| sync_dir(root)).map_err(io)?;
    Ok((file, id))
}

fn adopt(file: File, alba: AlbaId) -> Result<(File, OsdId)> {
    lock(&file)?;
    let mut text = String::new();
    let read = (&file).take(1024).read_to_string(&mut text);
    read.map_err(|e| Fault::io("cannot read its marker file", e))?;
    let mut lines = text.lines();
    if lines.next() != Some(MARKER_HEAD) {
        return Err(Fault::invalid(format!("its marker file does not begin with {MARKER_HEAD:?}")));
    }
    let mut field =
        |key: &str| lines.next().and_then(|line| line.strip_prefix(key)?.strip_prefix(' '));
    let id = field("osd").and_then(OsdId::parse);
    let owner = field("alba").and_then(AlbaId::parse);
    let (Some(id), Some(owner)) = (id, owner) else {
        return Err(Fault::invalid("its marker file names no OSD or no backend"));
    };
    if owner != alba {
        return Err(Fault::invalid(format!("it belongs to backend {owner}, not to {alba}")));
    }
    Ok((file, id))
}

fn make_shards(root: &Path) -> Result<()> {
    let objects = root.join(OBJECTS);
    let io = |e| Fault::io("cannot create its folders", e);
    if objects.join("ff").is_dir() {
        return Ok(());
    }
    for shard in 0..=u8::MAX {
        fs::create_dir_all(objects.join(format!("{shard:02x}"))).map_err(io)?;
    }
    sync_dir(&objects).and_then(|()| sync_dir(root)).map_err(io)
}

/// Whether the file system takes O_DIRECT; an error when it takes no files at all.
fn takes_direct(root: &Path) -> io::Result<bool> {
    let path = root.join(".direct");
    let _ = fs::remove_file(&path);
    File::create(&path)?;
    let opened = OpenOptions::new().write(true).custom_flags(direct_flag()).open(&path);
    fs::remove_file(&path)?;
    Ok(opened.is_ok())
}

pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
