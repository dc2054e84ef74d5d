//! A local directory that holds fragments: each a file named by its fragment id. All calls block.
//!
//! | path | what |
//! |---|---|
//! | `OSD` | which OSD it is and whose; locked while in use (see [`Marker`]) |
//! | `objects/<first two digits>/<fragment id>` | the fragment, then its trailer (see [`crate::trailer`]) |
//!
//! Small fragments are files like large ones. Measured with files of 8 KiB beside appends to one log with a shared sync, as a
//! table of small values would make them: 114 against 181 a second one at a time, 9,800 against 9,200 with 16 in flight, where
//! the file system's journal shares its syncs too. Not worth a second kind of place to look in, check and recover.
//!
//! A file's name is never used twice, so a file is either complete and named by a manifest, or being written, or an orphan.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::fault::{Fault, Kind, Result};
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::trailer::{self, Trailer};

use super::marker::Marker;
use super::read::{self, ObjectFile};
use super::room::{Limits, Room, Space};
use super::sequence::Turns;
use super::write::{self, ObjectWriter};
use super::{Assert, Sequence, Title, Wanted};

pub(super) const OBJECTS: &str = "objects";

/// A directory in use.
#[derive(Debug)]
pub struct Directory {
    pub id: OsdId,
    root: PathBuf,
    /// The file system takes O_DIRECT.
    direct: bool,
    space: Arc<Space>,
    marker: Marker,
    turns: Turns,
}

impl Directory {
    /// Claims an empty or free directory for this backend, or opens one that belongs to it.
    pub fn open(root: &Path, alba: AlbaId, limits: Limits) -> Result<Self> {
        let directory = Self::open_any(root, limits)?;
        directory.claim(alba)?;
        Ok(directory)
    }

    /// Opens a directory whoever it belongs to, or makes an empty one an OSD that is nobody's.
    pub fn open_any(root: &Path, limits: Limits) -> Result<Self> {
        let about = |fault: Fault| fault.about(format!("OSD {}", root.display()));
        Self::open_unnamed(root, limits).map_err(about)
    }

    fn open_unnamed(root: &Path, limits: Limits) -> Result<Self> {
        fs::create_dir_all(root).map_err(|e| Fault::io("cannot create the directory", e))?;
        let marker = Marker::open(root)?;
        make_shards(root)?;
        let direct = takes_direct(root).map_err(|e| Fault::io("it is not writable", e))?;
        let space =
            Space::open(root, limits).map_err(|e| Fault::io("its objects cannot be counted", e))?;
        let (id, root, turns) = (marker.id, root.to_path_buf(), Turns::default());
        Ok(Self { id, root, direct, space, marker, turns })
    }

    /// The backend it belongs to.
    #[must_use]
    pub fn owner(&self) -> Option<AlbaId> {
        self.marker.owner()
    }
    /// Makes it this backend's, durably. Refused by name when it is another's.
    pub fn claim(&self, alba: AlbaId) -> Result<()> {
        self.named(self.marker.claim(alba))
    }
    /// Makes it nobody's; its fragments stay.
    pub fn release(&self, alba: AlbaId) -> Result<()> {
        self.named(self.marker.release(alba))
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

    /// Opens a fragment's file for reading it as it is. `None` when it is missing.
    pub fn open_plain(&self, id: FragmentId) -> Result<Option<File>> {
        self.open_file(id, OpenOptions::new().read(true))
    }

    /// Opens a fragment's file for unverified reads by others, for direct I/O where the file system takes it.
    pub fn open_raw(&self, id: FragmentId) -> Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true);
        if self.direct {
            options.custom_flags(direct_flag());
        }
        self.open_file(id, &options)
    }

    fn open_file(&self, id: FragmentId, options: &OpenOptions) -> Result<Option<File>> {
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

    /// Asserts, then updates: see [`super::sequence`].
    pub fn apply(&self, sequence: &Sequence) -> Result<Vec<u32>> {
        self.named(sequence.check())?;
        let _turn = self.turns.wait_for(sequence);
        for assert in &sequence.asserts {
            if !self.holds(assert)? {
                return self.named(Err(assert.failed()));
            }
        }
        let mut stored = Vec::new();
        for small in sequence.stores() {
            let mut writer = self.create(&small.title)?;
            let written =
                writer.append(&small.bytes).and_then(|()| writer.finish(small.object_crc));
            stored.push((self.named(written)?, writer));
        }
        // Before anything is kept: one that fails stores nothing.
        for file in sequence.removes() {
            self.remove(file)?;
        }
        let keep = |(crc, mut writer): (u32, ObjectWriter)| {
            writer.keep();
            crc
        };
        Ok(stored.into_iter().map(keep).collect())
    }

    fn holds(&self, assert: &Assert) -> Result<bool> {
        let opened = match assert {
            Assert::Absent(file) => return Ok(self.open_plain(*file)?.is_none()),
            Assert::Present(wanted) => self.open_fragment(*wanted),
        };
        match opened {
            // What is there is something else.
            Err(fault) if fault.kind == Kind::Corrupt => Ok(false),
            opened => Ok(opened?.is_some()),
        }
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
