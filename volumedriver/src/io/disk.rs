//! The directory of one shard's files on a real disk: O_DIRECT through the chosen engine.
//!
//! A file appears under its name only when it is complete: it is prewritten under a hidden name and renamed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use volumedriver_core::fault::{Fault, Kind, Result};

use super::Engine;
use super::buf::{ALIGN, AlignedBuf, AreaSlice};
use super::psync;
use super::uring::Ring;
use crate::world::{Disk, DiskFile, Durability};

/// Most slices given to the kernel in one write; below its limit of 1,024.
pub(super) const MAX_PARTS: usize = 512;
/// Bytes written at a time when a file is filled with zeroes.
const PREWRITE_BYTES: usize = 1024 * 1024;
const PROBE_NAME: &str = ".probe-o-direct";
const CREATING_SUFFIX: &str = ".creating";

/// Files of one shard in one directory. Belongs to the thread that opened it.
#[derive(Clone)]
pub struct RealDisk {
    inner: Rc<Inner>,
}

struct Inner {
    dir: PathBuf,
    ring: Option<Rc<Ring>>,
}

impl RealDisk {
    /// Takes an existing directory into use; must be called inside [`super::run`] with the same engine. Refuses, by name,
    /// a directory that is missing, is none, cannot be written, or lies on a filesystem without O_DIRECT.
    pub fn open(dir: &Path, engine: Engine) -> Result<Self> {
        check_directory(dir)?;
        let ring = match engine {
            Engine::Psync => None,
            Engine::Uring => Some(Ring::of_thread().map_err(|error| {
                Fault::unavailable("cannot make an io_uring for this shard").because(error)
            })?),
        };
        Ok(Self { inner: Rc::new(Inner { dir: dir.to_owned(), ring }) })
    }

    /// Bytes an unprivileged writer can still add to the filesystem.
    pub fn free_bytes(&self) -> Result<u64> {
        let dir = &self.inner.dir;
        let stat = rustix::fs::statvfs(dir.as_path()).map_err(|error| fault(dir, error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Whether both lie on the same filesystem, so that what one takes the other lacks.
    pub fn is_beside(&self, other: &Self) -> Result<bool> {
        let device = |disk: &Self| -> Result<u64> {
            let found = std::fs::metadata(&disk.inner.dir);
            found.map(|found| found.dev()).map_err(|error| fault(&disk.inner.dir, error))
        };
        Ok(device(self)? == device(other)?)
    }

    /// A file opened elsewhere, for direct reads through this disk's engine.
    pub fn adopt(&self, file: Arc<File>) -> Result<RealFile> {
        let path: Rc<Path> = Path::new("(object)").into();
        let reopen = || {
            use std::os::fd::AsRawFd;
            let direct = File::options()
                .read(true)
                .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
            let len = direct.metadata()?.len();
            Ok((direct, len))
        };
        let (direct, len) = reopen().map_err(|error| fault(&path, error))?;
        Ok(RealFile { file: Arc::new(direct), len, path, ring: self.inner.ring.clone() })
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if plain {
            Ok(self.inner.dir.join(name))
        } else {
            Err(Fault::bug(format!("{name:?} is no plain file name")))
        }
    }

    fn file(&self, path: PathBuf, file: File) -> Result<RealFile> {
        let len = file.metadata().map_err(|error| fault(&path, error))?.len();
        Ok(RealFile { file: Arc::new(file), len, path: path.into(), ring: self.inner.ring.clone() })
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    async fn list(&self) -> Result<Vec<(String, u64)>> {
        let dir = self.inner.dir.clone();
        psync::blocking(move || list(&dir)).await.map_err(|error| fault(&self.inner.dir, error))
    }

    async fn create(&self, name: &str, len: u64) -> Result<RealFile> {
        let path = self.path(name)?;
        let target = path.clone();
        let created = psync::blocking(move || create(&target, len, prewrite)).await;
        self.file(path.clone(), created.map_err(|error| fault(&path, error))?)
    }

    async fn reserve(&self, name: &str, len: u64) -> Result<RealFile> {
        let path = self.path(name)?;
        let target = path.clone();
        let reserved = psync::blocking(move || create(&target, len, reserve)).await;
        self.file(path.clone(), reserved.map_err(|error| fault(&path, error))?)
    }

    async fn open(&self, name: &str) -> Result<RealFile> {
        let path = self.path(name)?;
        let target = path.clone();
        let opened = psync::blocking(move || direct().open(target)).await;
        self.file(path.clone(), opened.map_err(|error| fault(&path, error))?)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        let target = path.clone();
        let removed = psync::blocking(move || {
            std::fs::remove_file(&target)?;
            sync_parent(&target)
        });
        removed.await.map_err(|error| fault(&path, error))
    }
}

/// One open file of a [`RealDisk`].
#[derive(Clone)]
pub struct RealFile {
    file: Arc<File>,
    len: u64,
    path: Rc<Path>,
    ring: Option<Rc<Ring>>,
}

impl RealFile {
    fn check(&self, offset: u64, len: usize) -> Result<()> {
        let aligned = offset.is_multiple_of(ALIGN as u64) && len.is_multiple_of(ALIGN);
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.len);
        if aligned && inside {
            return Ok(());
        }
        Err(Fault::bug(format!(
            "{}: access of {len} bytes at {offset} is unaligned or beyond {} bytes",
            self.path.display(),
            self.len
        )))
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> u64 {
        self.len
    }

    async fn read_at(&self, buf: AlignedBuf, offset: u64) -> Result<AlignedBuf> {
        self.check(offset, buf.len())?;
        let len = buf.len();
        let read = match &self.ring {
            Some(ring) => ring.read(self.file.clone(), buf, offset).await,
            None => psync::read(self.file.clone(), buf, offset).await,
        };
        read.map_err(|error| read_fault(&self.path, error, offset, len))
    }

    async fn write_at(
        &self,
        slices: Vec<AreaSlice>,
        offset: u64,
        durability: Durability,
    ) -> Result<()> {
        self.check(offset, slices.iter().map(|slice| slice.len()).sum())?;
        let written = match &self.ring {
            Some(ring) => ring.write(self.file.clone(), slices, offset, durability).await,
            None => psync::write(self.file.clone(), slices, offset, durability).await,
        };
        written.map_err(|error| fault(&self.path, error))
    }

    async fn sync(&self) -> Result<()> {
        let synced = match &self.ring {
            Some(ring) => ring.sync(self.file.clone()).await,
            None => psync::sync(self.file.clone()).await,
        };
        synced.map_err(|error| fault(&self.path, error))
    }
}

/// An error of the file system by what the caller should do, with the file named.
fn fault(path: &Path, error: io::Error) -> Fault {
    let path = path.display();
    let (kind, message) = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            (Kind::NoSpace, format!("{path}: the filesystem is full; free space on it"))
        }
        Some(libc::ENOENT) => (Kind::Invalid, format!("{path}: there is no such file")),
        Some(libc::EEXIST) => (Kind::Invalid, format!("{path}: exists already")),
        Some(libc::EIO) => (Kind::Unavailable, format!("{path}: the disk reports an I/O error")),
        _ => (Kind::Unavailable, format!("{path}: access failed")),
    };
    Fault::new(kind, message).because(error)
}

/// As [`fault`]; an I/O error while reading means that just these bytes are lost.
fn read_fault(path: &Path, error: io::Error, offset: u64, len: usize) -> Fault {
    let range = format!("{}: bytes {offset}..{}", path.display(), offset + len as u64);
    match error.raw_os_error() {
        Some(libc::EIO) => Fault::corrupt(format!("{range} cannot be read")).because(error),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            Fault::corrupt(format!("{range} are beyond the end of the file")).because(error)
        }
        _ => fault(path, error),
    }
}

fn direct() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC);
    options
}

fn check_directory(dir: &Path) -> Result<()> {
    let shown = dir.display();
    let refuse = |what: &str| Fault::invalid(format!("directory {shown} {what}"));
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(refuse("is not a directory; name a directory on a local disk")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refuse("does not exist; create it or name another"));
        }
        Err(error) => return Err(refuse("cannot be looked at").because(error)),
    }
    remove_leftovers(dir).map_err(|error| refuse("cannot be listed").because(error))?;
    let probe = dir.join(PROBE_NAME);
    let outcome = probe_direct(&probe);
    let removed = std::fs::remove_file(&probe);
    match outcome.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => removed.map_err(|error| refuse("keeps files from being removed").because(error)),
        Err((Some(libc::EACCES | libc::EPERM | libc::EROFS), error)) => {
            Err(refuse("cannot be written; check its owner, mode and mount options").because(error))
        }
        Err((Some(libc::EINVAL | libc::EOPNOTSUPP), error)) => {
            Err(refuse("is on a filesystem without O_DIRECT; use a local disk with ext4 or XFS")
                .because(error))
        }
        Err((Some(libc::ENOSPC | libc::EDQUOT), error)) => {
            Err(Fault::no_space(format!("directory {shown} is on a full filesystem"))
                .because(error))
        }
        Err((_, error)) => Err(refuse("cannot be used").because(error)),
    }
}

/// Writes one block with O_DIRECT and reads it back.
fn probe_direct(path: &Path) -> io::Result<()> {
    let file = direct().create(true).truncate(true).open(path)?;
    let mut block = AlignedBuf::zeroed(ALIGN);
    file.write_all_at(&block, 0)?;
    file.read_exact_at(&mut block, 0)
}

/// Files whose creation was cut short.
fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(CREATING_SUFFIX) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn list(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if let Ok(name) = entry.file_name().into_string()
            && found.is_file()
            && !name.starts_with('.')
        {
            files.push((name, found.len()));
        }
    }
    Ok(files)
}

/// A file under its name once `make` has made it whole under a hidden one.
fn create(
    path: &Path,
    len: u64,
    make: impl FnOnce(&Path, u64) -> io::Result<File>,
) -> io::Result<File> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}{CREATING_SUFFIX}"));
    let result = make(&hidden, len).and_then(|file| {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(rustix::fs::CWD, &hidden, rustix::fs::CWD, path, flags)?;
        sync_parent(path)?;
        Ok(file)
    });
    if result.is_err() {
        // The first error is the one to report; a leftover is removed at the next opening.
        let _ = std::fs::remove_file(&hidden);
    }
    result
}

/// A new file whose room is taken, where the filesystem can do that.
fn allocate(path: &Path, len: u64) -> io::Result<File> {
    let file = direct().create(true).truncate(true).open(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len.max(1))
        .or_else(|error| if error == rustix::io::Errno::OPNOTSUPP { Ok(()) } else { Err(error) })?;
    Ok(file)
}

fn reserve(path: &Path, len: u64) -> io::Result<File> {
    let file = allocate(path, len)?;
    file.set_len(len)?;
    file.sync_all()?;
    Ok(file)
}

/// Writes zeroes rather than allocating: a write into an allocated, unwritten extent costs a metadata commit each time.
fn prewrite(path: &Path, len: u64) -> io::Result<File> {
    let file = allocate(path, len)?;
    let zeroes = AlignedBuf::zeroed(PREWRITE_BYTES);
    let mut offset = 0;
    while offset < len {
        let part = usize::try_from(len - offset).unwrap_or(PREWRITE_BYTES).min(PREWRITE_BYTES);
        file.write_all_at(&zeroes[..part], offset)?;
        offset += part as u64;
    }
    file.sync_all()?;
    Ok(file)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
