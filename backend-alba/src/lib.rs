//! An object backend: namespaces of immutable objects with put-if-absent, verified range reads and conditional sequences.
//!
//! Pure: [`manifest`], `trailer`, [`name`]. Waiting: `osd` (directories), `nsm` (RocksDB), [`alba`] (the API, used by the
//! gRPC server and in-process alike), [`server`].

pub mod alba;
pub mod fault;
pub mod manifest;
pub mod name;
mod nsm;
mod osd;
pub mod server;
mod trailer;

pub use alba::{Alba, Config, Status, Upload};
pub use fault::{Fault, Kind, Result};
pub use nsm::{Condition, Page, Put};
pub use osd::Purpose;
