//! An object backend: namespaces of immutable objects with put-if-absent, verified range reads and conditional sequences.
//!
//! Pure: [`manifest`], [`trailer`], [`name`], [`preset`], [`erasure`], [`recovery`], `placement`, `health`, [`maintenance`].
//! Waiting: [`osd`] (directories, disks behind gRPC, buckets, other ALBAs), [`nsm`] (tables), [`alba`] (the API, used by the gRPC server and in-process alike),
//! `net` (sockets, TLS), `background` (threads of low priority), [`server`]. [`mod@bench`] measures whatever stores objects.

pub mod alba;
mod background;
pub mod bench;
pub mod erasure;
pub mod fault;
mod health;
pub mod maintenance;
pub mod manifest;
pub mod name;
mod net;
pub mod nsm;
pub mod osd;
pub mod outside;
mod placement;
pub mod preset;
pub mod recovery;
pub mod server;
pub mod trailer;

pub use alba::{
    Alba, Config, Elsewhere, GivenOsd, OsdGiven, OsdPlace, Parts, Presets, Recovered, Status,
    Upload, give_up_the_rest, recover,
};
pub use fault::{Fault, Kind, Result};
pub use nsm::etcd::EtcdPlace;
pub use nsm::{Condition, OsdRole, Page, Put};
pub use osd::{Asd, Purpose};
