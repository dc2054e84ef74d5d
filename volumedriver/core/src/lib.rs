//! The log-structured volume as pure decisions: formats, map, volume state machine, wire protocols.
//!
//! Nothing in this crate waits: no tokio, no file system, no network, no clock, no randomness. The dependency list is the
//! proof. Everything that waits lives in crate `volumedriver`, in a room of the same name.

pub mod cache;
pub mod fault;
pub mod format;
pub mod map;
pub mod request;
pub mod units;
pub mod volume;
pub mod wire;
