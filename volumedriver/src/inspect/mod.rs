//! Read-only decoding of files and objects for humans, without a daemon.
//!
//! Everything decoded is shown as far as it goes; damage is collected beside it and makes the command fail.

mod doc;
mod file;
mod journal;
mod layout;
mod manifest;
mod object;
mod sco;
mod stored;
pub mod table;
#[cfg(test)]
mod tests;
mod tlog;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use volumedriver_core::fault::{Fault, Result};

use crate::codec::KeyRing;
use crate::config::keys::KeySource;
use crate::world::ObjectStore;

pub use doc::{Doc, Form, Report, Rows};

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// List every record, change and extent, not only their number
    #[arg(long, global = true)]
    pub all: bool,
    /// The object backend, for `object`, `vdisk` and `map`; default: the embedded one of --data-dir
    #[arg(long, global = true, value_name = "URL")]
    pub backend: Option<String>,
    /// Where the keys of encrypted SCOs are: file:PATH, env:NAME or command:COMMAND; may be given several times
    #[arg(long, global = true, value_name = "SOURCE")]
    pub key: Vec<KeySource>,
    #[command(subcommand)]
    pub what: What,
}

impl InspectArgs {
    /// How much to show, and with which keys. Reads the keys.
    pub fn view(&self) -> Result<View> {
        Ok(View { all: self.all, keys: KeyRing::load(&self.key)? })
    }
}

/// How something is looked at.
#[derive(Debug, Default)]
pub struct View {
    /// Every record, change and extent.
    pub all: bool,
    pub keys: KeyRing,
}

#[derive(Debug, Subcommand)]
pub enum What {
    /// The constants of every format; with --data-dir, what that directory holds
    Layout,
    /// Write buffer: a segment file, or a directory of them
    Journal { path: PathBuf },
    /// An SCO in a file
    Sco { file: PathBuf },
    /// A TLog in a file
    Tlog { file: PathBuf },
    /// A manifest in a file
    Manifest { file: PathBuf },
    /// A map run in a file
    Run { file: PathBuf },
    /// An object of the backend, decoded by its name
    Object {
        /// NAMESPACE/NAME, like vd-…/sco/00000001-000000000001
        #[arg(value_name = "NAMESPACE/NAME")]
        object: String,
    },
    /// The manifest chain of a vDisk on the backend, and its shape
    Vdisk {
        /// Name, id or namespace
        name: String,
    },
    /// Where the clusters of a vDisk are, as the backend knows it
    Map {
        /// Name, id or namespace
        name: String,
        /// First cluster
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Number of clusters
        #[arg(long, default_value_t = 1024)]
        count: u64,
    },
}

/// What was found, and what is wrong with it.
#[derive(Debug)]
pub struct Findings {
    pub doc: Doc,
    /// One sentence each: what and where.
    pub damage: Vec<String>,
}

impl Findings {
    fn sound(doc: Doc) -> Self {
        Self { doc, damage: Vec::new() }
    }

    /// The document, with the damage as its last field when there is any.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = self.doc.report();
        if !self.damage.is_empty() {
            let lines = self.damage.iter().map(|what| format!("DAMAGED {what}\n"));
            report.human.extend(lines);
            if let serde_json::Value::Object(fields) = &mut report.json {
                fields.insert("damage".to_owned(), self.damage.clone().into());
            }
        }
        report
    }

    /// The error a damaged thing ends the command with.
    pub fn verdict(&self) -> Result<()> {
        match self.damage.as_slice() {
            [] => Ok(()),
            [one] => Err(Fault::corrupt(one.clone())),
            [first, rest @ ..] => Err(Fault::corrupt(format!("{first} (and {} more)", rest.len()))),
        }
    }
}

impl What {
    /// Whether the answer is on the backend.
    #[must_use]
    pub fn needs_store(&self) -> bool {
        matches!(self, Self::Object { .. } | Self::Vdisk { .. } | Self::Map { .. })
    }
}

/// Inspects local files.
pub fn local(what: &What, view: &View, data_dir: Option<&Path>) -> Result<Findings> {
    let all = view.all;
    match what {
        What::Layout => layout::inspect(data_dir),
        What::Journal { path } => journal::inspect(path, all),
        What::Sco { file } => sco::inspect(&file::FileBytes::open(file)?, view),
        What::Tlog { file } => tlog::inspect(&file::read_frame(file)?, all),
        What::Manifest { file } => manifest::inspect(&file::read_frame(file)?),
        What::Run { file } => object::inspect_run(&file::FileBytes::open(file)?, all),
        What::Object { .. } | What::Vdisk { .. } | What::Map { .. } => {
            Err(Fault::bug("this is on the backend"))
        }
    }
}

/// Inspects what is on the backend.
pub async fn remote(what: &What, view: &View, store: &impl ObjectStore) -> Result<Findings> {
    match what {
        What::Object { object } => object::inspect(store, object, view).await,
        What::Vdisk { name } => stored::inspect_vdisk(store, name).await,
        What::Map { name, first, count } => stored::inspect_map(store, name, *first, *count).await,
        What::Layout
        | What::Journal { .. }
        | What::Sco { .. }
        | What::Tlog { .. }
        | What::Manifest { .. }
        | What::Run { .. } => Err(Fault::bug("this is in a file")),
    }
}
