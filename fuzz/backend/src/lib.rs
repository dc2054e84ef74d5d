//! The modules of `backend-alba` that decode stored bytes. They are included from where they lie: the whole crate would bring
//! RocksDB along, which a fuzzer must never build.

#[rustfmt::skip]
#[path = "../../../backend-alba/src/erasure/mod.rs"]
pub mod erasure;
#[rustfmt::skip]
#[path = "../../../backend-alba/src/fault.rs"]
pub mod fault;
#[rustfmt::skip]
#[path = "../../../backend-alba/src/manifest.rs"]
pub mod manifest;
#[rustfmt::skip]
#[path = "../../../backend-alba/src/name.rs"]
pub mod name;
#[rustfmt::skip]
#[path = "../../../backend-alba/src/preset.rs"]
pub mod preset;
#[rustfmt::skip]
#[path = "../../../backend-alba/src/trailer.rs"]
pub mod trailer;
