//! Metadata contexts: `base:allocation` and `qemu:allocation-depth`, how queries select them, and what they say of an extent.
//!
//! Source: headings "Metadata querying", "The `base:` metadata namespace", and QEMU's document of its `qemu:` namespace.

use super::numbers::{STATE_HOLE, STATE_ZERO};
use crate::request::{Allocation, Extent};

/// A metadata context we can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: is it a hole, does it read as zeroes.
    Allocation,
    /// `qemu:allocation-depth`: 0 for a hole, 1 for what this volume holds itself.
    Depth,
}

impl Context {
    const ALL: [Self; 2] = [Self::Allocation, Self::Depth];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Depth => "qemu:allocation-depth",
        }
    }
    /// The metadata context ID we give it on every connection.
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Depth => 2,
        }
    }
    /// The status flags of an extent.
    #[must_use]
    pub fn flags(self, state: Allocation) -> u32 {
        match (self, state) {
            (Self::Allocation, Allocation::Data) => 0,
            (Self::Allocation, Allocation::Zero) => STATE_ZERO,
            (Self::Allocation, Allocation::Hole) => STATE_HOLE | STATE_ZERO,
            (Self::Depth, Allocation::Data | Allocation::Zero) => 1,
            (Self::Depth, Allocation::Hole) => 0,
        }
    }
    /// (length, flags) of the extents as this context sees them: adjacent ones differ, none is empty.
    pub(super) fn view(self, extents: &[Extent]) -> Vec<(u64, u32)> {
        let mut view: Vec<(u64, u32)> = Vec::with_capacity(extents.len());
        for extent in extents.iter().filter(|extent| extent.len.0 > 0) {
            let flags = self.flags(extent.state);
            match view.last_mut() {
                Some((len, same)) if *same == flags => *len = len.saturating_add(extent.len.0),
                _ => view.push((extent.len.0, flags)),
            }
        }
        view
    }
    fn bit(self) -> u8 {
        match self {
            Self::Allocation => 1,
            Self::Depth => 2,
        }
    }
}

/// A set of metadata contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts(u8);

impl Contexts {
    #[must_use]
    pub fn none() -> Self {
        Self(0)
    }
    #[must_use]
    pub fn all() -> Self {
        Context::ALL.into_iter().collect()
    }
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    #[must_use]
    pub fn contains(self, context: Context) -> bool {
        self.0 & context.bit() != 0
    }
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.contains(*context))
    }
    /// The context of this set with that ID.
    pub(super) fn by_id(self, id: u32) -> Option<Context> {
        self.iter().find(|context| context.id() == id)
    }
}

impl FromIterator<Context> for Contexts {
    fn from_iter<I: IntoIterator<Item = Context>>(contexts: I) -> Self {
        Self(contexts.into_iter().fold(0, |bits, context| bits | context.bit()))
    }
}

/// Whether an empty leaf-name is a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wildcard {
    Lists,
    SelectsNothing,
}

/// What one query finds. Unknown namespaces and leaf-names find nothing; `None`: not a query (no namespace or colon).
pub(super) fn find(query: &[u8], wildcard: Wildcard) -> Option<Contexts> {
    let query = std::str::from_utf8(query).ok()?;
    let (namespace, leaf) = query.split_once(':')?;
    if namespace.is_empty() {
        return None;
    }
    let of_namespace = |name: &str| name.split_once(':').is_some_and(|(ns, _)| ns == namespace);
    let found = Context::ALL.into_iter().filter(|context| match leaf {
        "" => wildcard == Wildcard::Lists && of_namespace(context.name()),
        _ => context.name() == query,
    });
    Some(found.collect())
}
