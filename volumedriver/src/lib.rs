//! Everything that waits: the engine over [`world`], the frontends, management. Decisions are in `volumedriver-core`.

pub mod admin;
pub mod buffer;
pub mod cache;
pub mod cluster;
pub mod codec;
pub mod config;
pub mod inspect;
#[allow(unsafe_code)]
pub mod io;
pub mod local;
pub mod metrics;
pub mod nbd;
pub mod serve;
pub mod shard;
pub mod store;
pub mod volume;
pub mod world;
