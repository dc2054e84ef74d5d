//! What the nodes of a cluster agree on: a small store of keys with conditional changes.
//!
//! So far it guards names in object stores that do not do put-if-absent ([`fenced`](crate::store::fenced)).

pub mod etcd;
#[cfg(test)]
pub mod memory;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use volumedriver_core::fault::Result;

/// Keys with values, changed under conditions that hold at the moment of the change. Errors: `Unavailable` (retry later:
/// the outcome of a change is then unknown, it may happen even after the error), `Invalid`.
pub trait Registry: Clone + 'static {
    /// Creates the key if there is none, else gives what it has.
    fn create(&self, key: &str, value: Bytes) -> impl Future<Output = Result<Created>>;
    /// `None` when there is no such key.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>>>;
    /// Replaces the value if it is `old`, and lets the key vanish after `life`; whether it was.
    fn retire(
        &self,
        key: &str,
        old: Bytes,
        new: Bytes,
        life: Duration,
    ) -> impl Future<Output = Result<bool>>;
    /// Deletes the key if its value is `old`.
    fn remove(&self, key: &str, old: Bytes) -> impl Future<Output = Result<()>>;
    /// Deletes the key.
    fn delete(&self, key: &str) -> impl Future<Output = Result<()>>;
    /// Deletes every key that begins with this.
    fn delete_all(&self, prefix: &str) -> impl Future<Output = Result<()>>;
}

/// Outcome of a creation that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    Now,
    /// The key was there with this value (perhaps from our own earlier attempt whose reply was lost).
    Before(Bytes),
}
