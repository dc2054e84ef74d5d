//! The configuration file as typed: sections and keys are known, values are still anything.
//!
//! Keys are described in [`field`](super::field); values are judged in [`check`](super::check), where the message can name
//! the key, the value and what is legal.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Value;

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($key:ident),* $(,)? } $($sub:ident: $type:ty),*) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $(pub $key: Option<Value>,)*
            $(pub $sub: $type,)*
        }
    };
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    pub node: RawNode,
    pub nbd: RawNbd,
    pub metrics: RawMetrics,
    pub buffer: RawBuffer,
    pub cache: RawCache,
    pub registry: RawRegistry,
    pub vpool: RawVpool,
    pub vdisk: BTreeMap<String, RawVdisk>,
}

section!(RawNode { io, shards_count, service_threads_count });
section!(RawNbd { listen, connections_count, inflight_requests_count, inflight_bytes, memory_bytes, handshake_timeout_ms } tls: RawTls);
section!(RawTls { mode, certificate, key, client_ca });
section!(RawMetrics { listen });
section!(RawBuffer {
    directory,
    capacity_bytes,
    segment_bytes,
    memory_bytes,
    batch_bytes,
    linger_ms
});
section!(RawCache { ram_bytes, ssd_bytes, directory });
section!(RawRegistry { url });
section!(RawVpool {
    backend,
    backend_capacity_bytes,
    s3_credentials,
    cluster_size_bytes,
    sco_size_bytes,
    ack,
    flush,
    readahead_bytes,
    buffer_share_percent,
    upload_max_delay_ms,
    upload_concurrency_count,
    map_memory_bytes,
    compression,
    encryption,
    encryption_key,
});
section!(
    /// What a vDisk may have of its own; the rest is its vPool's.
    RawVdisk {
        sco_size_bytes,
        ack,
        flush,
        readahead_bytes,
        buffer_share_percent,
        upload_max_delay_ms,
        upload_concurrency_count,
        map_memory_bytes,
        compression,
        encryption,
        encryption_key,
    }
);

impl RawVpool {
    /// The part a vDisk may override, moved out.
    pub fn take_settings(&mut self) -> RawVdisk {
        RawVdisk {
            sco_size_bytes: self.sco_size_bytes.take(),
            ack: self.ack.take(),
            flush: self.flush.take(),
            readahead_bytes: self.readahead_bytes.take(),
            buffer_share_percent: self.buffer_share_percent.take(),
            upload_max_delay_ms: self.upload_max_delay_ms.take(),
            upload_concurrency_count: self.upload_concurrency_count.take(),
            map_memory_bytes: self.map_memory_bytes.take(),
            compression: self.compression.take(),
            encryption: self.encryption.take(),
            encryption_key: self.encryption_key.take(),
        }
    }
}
