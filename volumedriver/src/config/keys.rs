//! Where master keys come from. What they are is read by [`codec::ring`](crate::codec::ring) when the daemon starts and whenever
//! the configuration is reloaded.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use volumedriver_core::fault::{Fault, Result};

/// A source of master keys: one key a line, 64 hexadecimal digits each; empty lines and those that begin with `#` do not count.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    File(PathBuf),
    /// An environment variable of the daemon.
    Env(String),
    /// What a command, run by `sh -c`, writes to its standard output.
    Command(String),
}

/// Most sources of one list.
pub const MAX_SOURCES: usize = 64;

impl KeySource {
    /// A relative path counts from `directory`.
    #[must_use]
    pub fn within(self, directory: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(directory.join(path)),
            other @ (Self::Env(_) | Self::Command(_)) => other,
        }
    }
}

impl FromStr for KeySource {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let source = match kind {
            "file" => Self::File(rest.into()),
            "env" => Self::Env(rest.to_owned()),
            "command" => Self::Command(rest.to_owned()),
            _ => {
                return Err(Fault::invalid(
                    "it begins with none of \"file:\", \"env:\" and \"command:\"",
                ));
            }
        };
        if rest.trim().is_empty() || rest.contains('\0') || (kind == "env" && rest.contains('=')) {
            return Err(Fault::invalid(format!("nothing can be found by {rest:?}")));
        }
        Ok(source)
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::Command(command) => write!(f, "command:{command}"),
        }
    }
}
