//! Who local state belongs to: the `layout` file of a data directory, and the `owner` file of its write buffer.
//!
//! Small TOML files, written durably and in one step.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::{NodeId, VolumeId};

/// The version this build reads and writes.
pub const LAYOUT_VERSION: u32 = 1;
/// Longest file that is read, bytes.
const MAX_BYTES: u64 = 4096;

/// What local state was made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub node: NodeId,
    pub shards: u32,
    /// The node whose local state is being removed.
    pub discarding: Option<NodeId>,
}

impl Identity {
    /// A node nobody has seen before.
    #[must_use]
    pub fn new(shards: u32, discarding: Option<NodeId>) -> Self {
        Self { node: NodeId(*uuid::Uuid::new_v4().as_bytes()), shards, discarding }
    }
}

/// The file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    /// 32 hexadecimal digits.
    node: String,
    shards: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    discarding: Option<String>,
}

/// `None`: there is no such file.
pub fn read(path: &Path) -> Result<Option<Identity>> {
    let shown = path.display();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    match read {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Fault::unavailable(format!("{shown}: cannot be read")).because(e)),
        Ok(_) => {}
    }
    // The version first, by itself: a later version may have other keys.
    let version = toml::from_str::<toml::Table>(&text).ok();
    let version = version.and_then(|table| table.get("version").and_then(toml::Value::as_integer));
    match version {
        Some(version) if version == i64::from(LAYOUT_VERSION) => {}
        Some(version) => {
            return Err(Fault::invalid(format!(
                "{shown}: layout version {version}, this build knows version {LAYOUT_VERSION}"
            )));
        }
        None => return Err(Fault::corrupt(format!("{shown}: not a layout file"))),
    }
    let damaged = |why: String| Fault::corrupt(format!("{shown}: damaged: {why}"));
    let layout: Text = toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?;
    let node = |text: &str| -> Result<NodeId> {
        let id: Result<VolumeId> = text.parse();
        let id = id.map_err(|_| damaged(format!("{text:?} is not 32 hexadecimal digits")))?;
        Ok(NodeId(id.0))
    };
    Ok(Some(Identity {
        node: node(&layout.node)?,
        shards: layout.shards,
        discarding: layout.discarding.as_deref().map(node).transpose()?,
    }))
}

/// Durable when it returns; a crash leaves the old file or the new one.
pub fn write(path: &Path, identity: Identity) -> Result<()> {
    let text = Text {
        version: LAYOUT_VERSION,
        node: identity.node.to_string(),
        shards: identity.shards,
        discarding: identity.discarding.map(|node| node.to_string()),
    };
    let text = toml::to_string(&text)
        .map_err(|e| Fault::bug("an identity cannot be written").because(e))?;
    let text = format!("# Who this directory belongs to. Do not edit or copy.\n{text}");
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|e| {
        Fault::unavailable(format!("{}: cannot be written", path.display())).because(e)
    })
}
