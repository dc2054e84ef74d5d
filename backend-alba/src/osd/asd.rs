//! The disk of an ASD daemon, opened whoever it belongs to.

use std::path::PathBuf;

use super::{Directory, Limits, Local};
use crate::fault::{Fault, Result};

/// An OSD to be served to the backend that claims it.
#[derive(Debug)]
pub struct Asd(pub(crate) Local);

impl Asd {
    /// With a ceiling of bytes, and so many operations on the disk at once.
    pub async fn open(path: PathBuf, capacity_bytes: Option<u64>, threads: usize) -> Result<Self> {
        let limits = Limits { capacity_bytes, ..Limits::default() };
        let open = move || Directory::open_any(&path, limits);
        let ended =
            |e| Fault { source: Some(Box::new(e)), ..Fault::bug("a blocking task did not end") };
        let directory = tokio::task::spawn_blocking(open).await.map_err(ended)??;
        Ok(Self(Local::new(directory, threads)))
    }
}
