//! What the backend takes from outside besides calls: randomness and the time of day. Given, so that a run can be repeated.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::name::{FragmentId, NamespaceId, ObjectId};

#[derive(Clone)]
pub struct Outside {
    /// 128 bits nobody has seen before, every time.
    pub random: Arc<dyn Fn() -> u128 + Send + Sync>,
    /// Milliseconds since 1970; for the age of objects, which nothing depends on.
    pub now_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Default for Outside {
    /// The machine's.
    fn default() -> Self {
        let now_ms = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
        };
        let random = || uuid::Uuid::new_v4().as_u128();
        Self { random: Arc::new(random), now_ms: Arc::new(now_ms) }
    }
}

impl Outside {
    #[must_use]
    pub fn object_id(&self) -> ObjectId {
        ObjectId(self.bytes())
    }
    #[must_use]
    pub fn fragment_id(&self) -> FragmentId {
        FragmentId(self.bytes())
    }
    #[must_use]
    pub fn namespace_id(&self) -> NamespaceId {
        NamespaceId(self.bytes())
    }
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        (self.random)().to_be_bytes()
    }
    /// From 0 to 1.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        // The lowest bits: higher ones of a UUID say what kind it is.
        ((self.random)() as u64 & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        (self.now_ms)()
    }
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outside")
    }
}
