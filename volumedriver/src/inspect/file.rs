//! Bytes to be decoded: of a file, or of an object already fetched.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Result};

/// Largest TLog or manifest that is read into memory, bytes.
pub const MAX_FRAME_BYTES: u64 = 256 << 20;

/// Bytes that can be read in pieces.
pub trait Source {
    /// What a person calls it.
    fn name(&self) -> String;
    fn len(&self) -> u64;
    /// Exactly `len` bytes from `offset`.
    fn read(&self, offset: u64, len: usize) -> Result<Bytes>;
}

/// A file.
pub struct FileBytes {
    path: PathBuf,
    file: File,
    len: u64,
}

impl FileBytes {
    pub fn open(path: &Path) -> Result<Self> {
        let about = |e: std::io::Error| {
            Fault::invalid(format!("{}: cannot be read", path.display())).because(e)
        };
        let file = File::open(path).map_err(about)?;
        let metadata = file.metadata().map_err(about)?;
        if !metadata.is_file() {
            return Err(Fault::invalid(format!("{}: not a file", path.display())));
        }
        Ok(Self { path: path.to_owned(), file, len: metadata.len() })
    }
}

impl Source for FileBytes {
    fn name(&self) -> String {
        self.path.display().to_string()
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(Fault::corrupt(format!("{}: ends before {offset} + {len}", self.name())));
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).map_err(|e| {
            Fault::unavailable(format!("{}: cannot be read at {offset}", self.name())).because(e)
        })?;
        Ok(bytes.into())
    }
}

/// An object that was fetched whole.
pub struct Fetched {
    pub name: String,
    pub bytes: Bytes,
}

impl Source for Fetched {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        let range = range.filter(|range| range.end <= self.bytes.len());
        range
            .map(|range| self.bytes.slice(range))
            .ok_or_else(|| Fault::corrupt(format!("{}: ends before {offset} + {len}", self.name)))
    }
}

/// A file that holds one TLog or manifest, whole.
pub fn read_frame(path: &Path) -> Result<Fetched> {
    let file = FileBytes::open(path)?;
    if file.len() > MAX_FRAME_BYTES {
        return Err(Fault::invalid(format!(
            "{}: {} bytes are more than any TLog or manifest has",
            path.display(),
            file.len()
        )));
    }
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX);
    Ok(Fetched { name: file.name(), bytes: file.read(0, len)? })
}
