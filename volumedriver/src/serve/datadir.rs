//! The data directory: one daemon at a time, and local state that is known to be its own.
//!
//! | name | what |
//! |---|---|
//! | `lock` | held (flock) by the daemon, contains its process id |
//! | `layout` | identity: version, node id, shard count |
//! | `management.sock` | the management socket |
//! | `buffer/` | write buffer segments (unless configured elsewhere) |
//! | `buffer/owner` | the same identity: tells our buffer from another's, and an empty one from a lost one |
//! | `pages/` | map pages, registry of vDisks |
//! | `cache/` | read cache on disk (unless configured elsewhere) |
//! | `cache/owner` | the same identity: keeps two daemons from one cache |
//! | `probed` | the bucket that passed the probe |
//! | `backend/` | objects of the embedded backend (unless configured elsewhere) |
//!
//! Only the write buffer holds what is nowhere else; of the cache it matters only that nobody else uses it. The buffer is ours when its `owner` is the node of the `layout`; the owner is
//! written first. Discarding writes a new layout that names the node it discards, so that a crash on the way is seen and
//! finished by the next start.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::NodeId;

use super::identity::{self, Identity};
pub use crate::config::PAGES_DIR;

pub const LAYOUT_FILE: &str = "layout";
pub const OWNER_FILE: &str = "owner";
pub const LOCK_FILE: &str = "lock";

/// A data directory that is ours until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    /// Released when it is closed.
    _lock: File,
}

/// The directories of local state.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    pub buffer: &'a Path,
    pub cache: CachePlace<'a>,
    /// Can be made again from the backend and the buffer.
    pub derived: &'a [&'a Path],
}

/// The directory of the read cache.
#[derive(Clone, Copy, Debug)]
pub struct CachePlace<'a> {
    pub directory: &'a Path,
    /// Otherwise an earlier run may have used it.
    pub is_used: bool,
}

/// Whether the local state of an earlier run is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalState {
    Keep,
    /// It is removed, and this becomes a new node.
    Discard,
}

impl DataDir {
    /// Creates what is missing, takes the lock, reads or writes the identity. Refuses local state that is another's, and a
    /// write buffer that is gone, before anything is changed.
    pub fn open(path: &Path, shards: u32, local: LocalState, places: Places<'_>) -> Result<Self> {
        create_dir(path)?;
        let lock = lock(path)?;
        let layout = path.join(LAYOUT_FILE);
        let known = identity::read(&layout);
        let identity = match local {
            LocalState::Discard => discard_all(path, shards, known.ok().flatten(), places)?,
            LocalState::Keep => match known? {
                None => begin(path, shards, places)?,
                Some(known) if known.discarding.is_some() => finish_discard(path, known, places)?,
                Some(known) => known,
            },
        };
        check_shards(path, identity, shards)?;
        check_owner(identity, places.buffer)?;
        if places.cache.is_used {
            take_cache(path, identity, places.cache.directory)?;
        }
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.identity.node
    }
}

/// A new node, in a place without local state.
fn begin(path: &Path, shards: u32, places: Places<'_>) -> Result<Identity> {
    check_empty(path, places.buffer)?;
    check_empty(path, places.cache.directory)?;
    places.derived.iter().try_for_each(|place| check_empty(path, place))?;
    let identity = Identity::new(shards, None);
    own(identity, places.buffer)?;
    identity::write(&path.join(LAYOUT_FILE), identity)?;
    Ok(identity)
}

fn own(identity: Identity, buffer: &Path) -> Result<()> {
    create_dir(buffer)?;
    identity::write(&buffer.join(OWNER_FILE), identity)
}

fn discard_all(
    path: &Path,
    shards: u32,
    known: Option<Identity>,
    places: Places<'_>,
) -> Result<Identity> {
    let ours = |owner: NodeId| {
        known.is_some_and(|known| known.node == owner || known.discarding == Some(owner))
    };
    let of_buffer = identity::read(&places.buffer.join(OWNER_FILE))?.map(|owner| owner.node);
    if let Some(owner) = of_buffer
        && !ours(owner)
        && !places.buffer.starts_with(path)
    {
        return Err(another(WRITE_BUFFER, places.buffer, owner));
    }
    let cache = places.cache.directory;
    let of_cache = identity::read(&cache.join(OWNER_FILE)).ok().flatten().map(|owner| owner.node);
    if let Some(owner) = of_cache
        && !(ours(owner) || of_buffer == of_cache)
        && places.cache.is_used
        && !cache.starts_with(path)
    {
        return Err(another(READ_CACHE, cache, owner));
    }
    let discarding = of_buffer.or(known.map(|known| known.node));
    let identity = Identity::new(shards, Some(discarding.unwrap_or(NodeId([0; 16]))));
    identity::write(&path.join(LAYOUT_FILE), identity)?;
    finish_discard(path, identity, places)
}

fn finish_discard(path: &Path, identity: Identity, places: Places<'_>) -> Result<Identity> {
    discard(path, places.buffer)?;
    places.derived.iter().try_for_each(|place| discard(path, place))?;
    discard_cache(path, identity, places.cache.directory)?;
    let identity = Identity { discarding: None, ..identity };
    own(identity, places.buffer)?;
    identity::write(&path.join(LAYOUT_FILE), identity)?;
    Ok(identity)
}

fn check_shards(path: &Path, identity: Identity, shards: u32) -> Result<()> {
    if identity.shards == shards {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "{}: made for {} shards, the configuration says [node] shards_count = {shards}; \
         the number is fixed for the life of a data directory",
        path.display(),
        identity.shards
    )))
}

fn check_owner(identity: Identity, buffer: &Path) -> Result<()> {
    match identity::read(&buffer.join(OWNER_FILE))? {
        Some(owner) if owner.node == identity.node => Ok(()),
        Some(owner) => Err(another(WRITE_BUFFER, buffer, owner.node)),
        None => Err(Fault::invalid(format!(
            "write buffer {}: not there, or not the one that was used before (no file {OWNER_FILE}). Is its disk \
             mounted? If it is lost, --discard-local goes on with what is on the backend",
            buffer.display()
        ))),
    }
}

/// What a place is for, and the section that names it.
type Purpose = (&'static str, &'static str);
const WRITE_BUFFER: Purpose = ("write buffer", "buffer");
const READ_CACHE: Purpose = ("read cache", "cache");

fn another((what, section): Purpose, place: &Path, owner: NodeId) -> Fault {
    Fault::invalid(format!(
        "{what} {}: belongs to another data directory, the one of node {owner}; name another \
         directory in [{section}] directory",
        place.display()
    ))
}

/// Refuses a cache of somebody else's, by the file that tells. One that cannot be looked at is left to fail later: a broken
/// disk under the cache is no reason not to start.
fn take_cache(data_dir: &Path, identity: Identity, cache: &Path) -> Result<()> {
    match identity::read(&cache.join(OWNER_FILE)) {
        Ok(Some(owner)) if owner.node == identity.node => Ok(()),
        Ok(Some(owner)) => Err(another(READ_CACHE, cache, owner.node)),
        Ok(None) => {
            let found = local_state(data_dir, cache).unwrap_or_default();
            if let Some(file) = found.iter().find(|file| is_ours(&file.file_name())) {
                return Err(Fault::invalid(format!(
                    "read cache {}: {} is not known to be ours (no file {OWNER_FILE}); move it away, or name another \
                     directory in [cache] directory",
                    cache.display(),
                    file.path().display()
                )));
            }
            if let Err(fault) = own(identity, cache) {
                tracing::warn!(%fault, "the read cache's directory cannot be used");
            }
            Ok(())
        }
        Err(fault) => {
            tracing::warn!(%fault, "the read cache's directory cannot be looked at");
            Ok(())
        }
    }
}

/// Removes a cache that is ours, and that it was. One that cannot be looked at, or is another's, stays.
fn discard_cache(data_dir: &Path, identity: Identity, cache: &Path) -> Result<()> {
    let owner = identity::read(&cache.join(OWNER_FILE)).ok().flatten().map(|owner| owner.node);
    let ours = owner.is_some() && (owner == Some(identity.node) || owner == identity.discarding);
    if !ours && !cache.starts_with(data_dir) {
        return Ok(());
    }
    discard(data_dir, cache)?;
    match fs::remove_file(cache.join(OWNER_FILE)) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Fault::unavailable(format!("{}: cannot be emptied", cache.display())).because(e))
        }
        _ => Ok(()),
    }
}

/// Creates a directory for this user only, with those above it.
pub fn create_dir(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(|e| {
        Fault::unavailable(format!("{}: cannot be created", path.display())).because(e)
    })
}

fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join(LOCK_FILE);
    let about = |e: std::io::Error| {
        Fault::unavailable(format!("{}: cannot be locked", path.display())).because(e)
    };
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(about)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(in_use(data_dir, &mut file)),
        Err(e) => return Err(about(e.into())),
    }
    file.set_len(0).map_err(about)?;
    writeln!(file, "{}", std::process::id()).map_err(about)?;
    Ok(file)
}

fn in_use(data_dir: &Path, lock: &mut File) -> Fault {
    let mut text = String::new();
    let pid: Option<u32> = match lock.take(32).read_to_string(&mut text) {
        Ok(_) => text.trim().parse().ok(),
        Err(_) => None,
    };
    let by = pid.map_or("another process".to_owned(), |pid| {
        format!("the volumedriver with process id {pid}")
    });
    Fault::invalid(format!(
        "{}: in use by {by}; one daemon serves a data directory",
        data_dir.display()
    ))
}

/// Whether a name is one of ours in a directory that need not be ours alone: segments of the write buffer and files of the
/// read cache, both also while they are being created.
fn is_ours(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let plain = match name.strip_prefix('.') {
        Some(hidden) => hidden.strip_suffix(".creating").unwrap_or(hidden),
        None => &name,
    };
    let number = plain.strip_prefix("segment-").or(plain.strip_prefix("cache-"));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Local state in a directory: below the data directory everything but an `owner`, which is no state by itself; elsewhere
/// what has one of our names.
fn local_state(data_dir: &Path, place: &Path) -> Result<Vec<fs::DirEntry>> {
    let about = |e| Fault::unavailable(format!("{}: cannot be read", place.display())).because(e);
    let entries = match fs::read_dir(place) {
        Ok(entries) => entries.collect::<std::io::Result<Vec<_>>>().map_err(about)?,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(about(e)),
    };
    let inside = place.starts_with(data_dir);
    let ours = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name != OWNER_FILE && (inside || is_ours(&name))
    };
    Ok(entries.into_iter().filter(ours).collect())
}

/// Local state without an identity belongs to someone else.
fn check_empty(data_dir: &Path, place: &Path) -> Result<()> {
    if local_state(data_dir, place)?.is_empty() {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "{}: not empty, but {} has no layout file: it belongs to another data directory, or the layout \
         file was lost; --discard-local throws it away",
        place.display(),
        data_dir.display()
    )))
}

/// Removes the local state in a directory.
fn discard(data_dir: &Path, place: &Path) -> Result<()> {
    let entries = local_state(data_dir, place)?;
    let remove = || -> std::io::Result<()> {
        for entry in &entries {
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        match entries.is_empty() {
            true => Ok(()),
            false => File::open(place)?.sync_all(),
        }
    };
    remove().map_err(|e| {
        Fault::unavailable(format!("{}: cannot be emptied", place.display())).because(e)
    })
}
