//! What NBD sessions count, as it is scraped. The shard's thread brings it up to date now and then.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Counters only grow: see [`raise`].
#[derive(Clone, Debug, Default)]
pub struct NbdMetrics {
    /// Connections now.
    pub connections: Gauge,
    /// Connections ever.
    pub opened: Counter,
    /// Not served, because there were as many as there may be.
    pub turned_away: Counter,
    /// Ended before the transmission phase.
    pub handshakes_failed: Counter,
    /// Closed because the client broke the protocol.
    pub protocol_errors: Counter,
    /// Closed because the client held memory that others waited for, and did not move.
    pub stalled: Counter,
    /// Memory of requests, beyond what each connection may have anyway.
    pub memory: Gauge,
}

impl NbdMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("nbd_connections", "NBD connections now", self.connections.clone());
        let memory = self.memory.clone();
        let help = "Memory of NBD requests beyond 2 MiB a connection";
        registry.register_with_unit("nbd_memory", help, Unit::Bytes, memory);
        for (name, help, counter) in [
            ("opened", "NBD connections ever", &self.opened),
            ("turned_away", "NBD connections over the limit", &self.turned_away),
            ("handshakes_failed", "NBD handshakes without success", &self.handshakes_failed),
            ("protocol_errors", "NBD clients that broke the protocol", &self.protocol_errors),
            ("stalled", "NBD clients that did not move while in the way", &self.stalled),
        ] {
            registry.register(format!("nbd_connections_{name}"), help, counter.clone());
        }
    }
}

/// Raises a counter to what was counted elsewhere.
pub fn raise(counter: &Counter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}
