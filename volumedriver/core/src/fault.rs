//! Error kinds by what the caller should do about them.
//!
//! One type for all of core and the engine. Frontends map [`Kind`] to their protocol's codes with an exhaustive match;
//! the message is for a person: it says what was wrong, with the value, and what to do.

use std::fmt;

/// What the caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request or input is wrong; sending it again unchanged can never succeed.
    Invalid,
    /// There is no room; it succeeds once space is freed. Load alone never gives this (writes wait instead).
    NoSpace,
    /// The thing asked is out of reach for now; retry later.
    Unavailable,
    /// Bytes did not match their checksum and no good copy was found. Names exactly the range concerned.
    Corrupt,
    /// Another owner with a higher epoch has taken over; stop, never retry.
    Fenced,
    /// This volume, connection or daemon is shutting down.
    Closed,
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
    pub fn no_space(message: impl Into<String>) -> Self {
        Self::new(Kind::NoSpace, message)
    }
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(Kind::Fenced, message)
    }
    pub fn closed(message: impl Into<String>) -> Self {
        Self::new(Kind::Closed, message)
    }
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }
    /// Attaches the cause.
    #[must_use]
    pub fn because(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
    ) -> Self {
        self.source = Some(source.into());
        self
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
