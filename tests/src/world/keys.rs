//! The one master key of all simulated hosts.

use std::sync::Arc;

use volumedriver::codec::KeyRing;
use volumedriver::config::keys::KeySource;
use volumedriver_core::fault::Result;

/// Where the hosts have it from.
#[must_use]
pub fn source() -> KeySource {
    KeySource::Env("SIMULATED_KEY".to_owned())
}

pub fn ring() -> Result<Arc<KeyRing>> {
    let mut ring = KeyRing::default();
    ring.add(&source(), "5a".repeat(32).as_bytes())?;
    Ok(Arc::new(ring))
}
