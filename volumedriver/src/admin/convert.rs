//! Our types ↔ the contract's. Proto types go no further than this file and the service.

use std::time::Duration;

use tonic::Status;
use volumedriver_core::fault::{Fault, Kind};
use volumedriver_proto::management as proto;

use super::{BackendInfo, CacheDisk, CacheInfo, ProbeCheck, ProbeInfo, VdiskInfo, VdiskState};
use crate::config::field::Change;
use crate::config::{
    AckLevel, ChangedEntry, Compression, Encryption, Entry, FlushLevel, Origin, Reloaded,
    VdiskSettings,
};
use crate::metrics::TierCounts;

pub fn status_of(fault: Fault) -> Status {
    let message = fault.to_string();
    match fault.kind {
        Kind::Invalid => Status::invalid_argument(message),
        Kind::NoSpace => Status::resource_exhausted(message),
        Kind::Unavailable => Status::unavailable(message),
        Kind::Corrupt => Status::data_loss(message),
        Kind::Fenced => Status::failed_precondition(message),
        Kind::Closed => Status::aborted(message),
        Kind::Bug => Status::internal(message),
    }
}

pub fn vdisk(info: VdiskInfo) -> proto::Vdisk {
    let state = match info.state {
        VdiskState::Opening => proto::VdiskState::Opening,
        VdiskState::Running => proto::VdiskState::Running,
        VdiskState::ReadOnly(_) => proto::VdiskState::ReadOnly,
        VdiskState::Failed(_) => proto::VdiskState::Failed,
        VdiskState::Closing => proto::VdiskState::Closing,
    };
    proto::Vdisk {
        id: info.id.to_string(),
        size_bytes: info.size.0,
        cluster_size_bytes: info.cluster_size.bytes(),
        state: state.into(),
        state_reason: info.state.reason().to_owned(),
        epoch: info.epoch.0,
        manifest_no: info.manifest.0,
        last_seq: info.last_seq.0,
        published_seq: info.published_seq.0,
        backlog_bytes: info.backlog.0,
        upload_lag_ms: millis(info.upload_lag),
        connections: info.connections,
        settings: Some(settings(&info.settings)),
        uploaded_data_bytes: info.space.data.0,
        uploaded_stored_bytes: info.space.stored.0,
        key_ids: info.keys,
        name: info.name,
    }
}

fn settings(settings: &VdiskSettings) -> proto::VdiskSettings {
    let ack = match settings.ack {
        AckLevel::Memory => proto::AckLevel::Memory,
        AckLevel::Buffer => proto::AckLevel::Buffer,
    };
    let flush = match settings.flush {
        FlushLevel::Journal => proto::FlushLevel::Journal,
        FlushLevel::Backend => proto::FlushLevel::Backend,
    };
    let (compression, level) = match settings.compression {
        Compression::None => (proto::Compression::None, 0),
        Compression::Lz4 => (proto::Compression::Lz4, 0),
        Compression::Zstd(level) => (proto::Compression::Zstd, level),
    };
    let encryption = match settings.encryption {
        Encryption::None => proto::Encryption::None,
        Encryption::Aes256Gcm => proto::Encryption::Aes256Gcm,
    };
    proto::VdiskSettings {
        ack: ack.into(),
        flush: flush.into(),
        readahead_bytes: settings.readahead.0,
        buffer_share_percent: settings.buffer_share_percent,
        upload_max_delay_ms: millis(settings.upload_max_delay),
        upload_concurrency: settings.upload_concurrency as u64,
        map_memory_bytes: settings.map_memory.0,
        sco_size_bytes: settings.sco_size.0,
        compression: compression.into(),
        compression_level: level.into(),
        encryption: encryption.into(),
    }
}

pub fn cache(info: CacheInfo) -> proto::CacheStatus {
    let tier = |counts: TierCounts| proto::CacheTierStatus {
        used_bytes: counts.used_bytes,
        capacity_bytes: counts.capacity_bytes,
        hits: counts.hits,
        misses: counts.misses,
    };
    let (state, reason) = match info.disk {
        CacheDisk::Off => (proto::CacheDiskState::Off, String::new()),
        CacheDisk::Warming => (proto::CacheDiskState::Warming, String::new()),
        CacheDisk::Serving => (proto::CacheDiskState::Serving, String::new()),
        CacheDisk::Offline(why) => (proto::CacheDiskState::Offline, why),
        CacheDisk::Closed => (proto::CacheDiskState::Closed, String::new()),
    };
    proto::CacheStatus {
        ram: Some(tier(info.counts.ram)),
        disk: Some(tier(info.counts.ssd)),
        disk_state: state.into(),
        disk_reason: reason,
        disk_mismatches: info.counts.ssd_mismatches,
    }
}

pub fn backend(info: BackendInfo) -> proto::BackendStatus {
    let (namespace_count, message) = match &info.namespaces {
        Ok(count) => (*count, String::new()),
        Err(why) => (0, why.clone()),
    };
    proto::BackendStatus {
        url: info.url,
        reachable: info.namespaces.is_ok(),
        message,
        latency_us: u64::try_from(info.latency.as_micros()).unwrap_or(u64::MAX),
        namespace_count,
    }
}

pub fn probe(info: ProbeInfo) -> proto::ProbeReport {
    let check = |check: ProbeCheck| proto::ProbeCheck {
        what: check.what,
        right: check.lie.is_none(),
        lie: check.lie.unwrap_or_default(),
    };
    proto::ProbeReport {
        checks: info.checks.into_iter().map(check).collect(),
        refusal: info.refusal.unwrap_or_default(),
    }
}

pub fn config_entry(entry: &Entry) -> proto::ConfigEntry {
    proto::ConfigEntry {
        section: entry.section.clone(),
        key: entry.field.key.to_owned(),
        value: entry.value.clone(),
        is_default: entry.origin == Origin::Default,
        live: entry.field.change == Change::Live,
    }
}

pub fn reloaded(reloaded: Reloaded) -> proto::ReloadConfigReply {
    let changes = |list: Vec<ChangedEntry>| list.into_iter().map(config_change).collect();
    proto::ReloadConfigReply {
        applied: changes(reloaded.applied),
        needs_restart: changes(reloaded.needs_restart),
    }
}

fn config_change(entry: ChangedEntry) -> proto::ConfigChange {
    proto::ConfigChange {
        section: entry.section,
        key: entry.key.to_owned(),
        old_value: entry.old,
        new_value: entry.new,
    }
}

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
