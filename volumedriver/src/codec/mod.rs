//! Compression and encryption of SCOs: what turns clusters into the frames of [`format::framed`] and back.
//!
//! Nothing here waits or knows a store. Building an SCO takes long and belongs into [`World::compute`]; unpacking the frames
//! of a small read takes less than crossing to another thread would.
//!
//! | file | role |
//! |---|---|
//! | `ring` | master keys: read from their sources, found by their id |
//! | `seal` | the key of one object, encryption of its frames |
//! | `pack` | compression of one frame |
//! | `builder` | clusters -> object |
//! | `reader` | object -> clusters |
//!
//! [`format::framed`]: volumedriver_core::format::framed
//! [`World::compute`]: crate::world::World::compute

mod builder;
mod pack;
mod reader;
pub mod ring;
mod seal;
#[cfg(test)]
mod tests;

pub use builder::{Built, Coding, ScoBuilder};
pub use reader::{Frames, Opened};
pub use ring::KeyRing;
