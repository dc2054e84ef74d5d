//! Error kinds by what the caller should do about them.
//!
//! The message is for a person: it says what was wrong, with the value, and what to do.

use std::fmt;
use std::io;

/// What the caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong and can never succeed.
    Invalid,
    /// No such namespace or object.
    NotFound,
    /// An assert of a sequence does not hold; nothing was changed.
    AssertFailed,
    /// No room; nothing was changed. Reads and deletes go on.
    NoSpace,
    /// What was stored for it was begun too long ago and is being collected; nothing was changed. Begin again.
    Outdated,
    /// Out of reach for now; retry later. The outcome of a change is unknown.
    Unavailable,
    /// Stored bytes are damaged; the message names object and range.
    Corrupt,
    /// An invariant of ours does not hold; report it.
    Bug,
}

/// An error with its [`Kind`], a sentence for a person, and what caused it.
#[derive(Debug, thiserror::Error)]
pub struct Fault {
    pub kind: Kind,
    pub message: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync + 'static>>,
}

pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }
    /// An operating system's error: no room is [`Kind::NoSpace`], all else may pass.
    pub fn io(what: impl Into<String>, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Unavailable,
        };
        Self { source: Some(Box::new(error)), ..Self::new(kind, what) }
    }
    /// Puts the name of the thing concerned in front of the message; done once, where the name is known.
    #[must_use]
    pub fn about(mut self, name: impl fmt::Display) -> Self {
        self.message = format!("{name}: {}", self.message);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
