//! `status`, `backend status`, `backend probe` and `metrics`.

use serde_json::json;
use tonic::Status;
use volumedriver_core::units::ByteCount;
use volumedriver_proto::management as proto;

use super::vdisk::{documents, seconds, table};
use crate::admin::client::Client;
use crate::config::size::human;
use crate::inspect::Report;
use crate::inspect::table::properties;

pub async fn status(mut client: Client) -> Result<Report, Status> {
    let node = client.get_node_status(proto::GetNodeStatusRequest {}).await?.into_inner();
    let human = format!("{}\n{}", describe(&node), table(&node.vdisks));
    let json = json!({
        "node_id": node.node_id,
        "version": node.version,
        "pid": node.pid,
        "uptime_ms": node.uptime_ms,
        "data_dir": node.data_dir,
        "nbd_endpoints": node.nbd_endpoints,
        "io_engine": node.io_engine,
        "shard_count": node.shard_count,
        "buffer_capacity_bytes": node.buffer_capacity_bytes,
        "buffer_used_bytes": node.buffer_used_bytes,
        "backlog_bytes": node.backlog_bytes,
        "upload_lag_ms": node.upload_lag_ms,
        "connections": node.connections,
        "cache": cache_document(&node.cache.clone().unwrap_or_default()),
        "vdisks": documents(&node.vdisks),
    });
    Ok(Report { human, json })
}

fn describe(node: &proto::NodeStatus) -> String {
    let used = human(ByteCount(node.buffer_used_bytes));
    let capacity = human(ByteCount(node.buffer_capacity_bytes));
    properties(&[
        ("node", node.node_id.clone()),
        ("version", node.version.clone()),
        ("process", node.pid.to_string()),
        ("up", seconds(node.uptime_ms)),
        ("data directory", node.data_dir.clone()),
        ("NBD", node.nbd_endpoints.join(" ")),
        ("I/O engine", node.io_engine.clone()),
        ("shards", node.shard_count.to_string()),
        ("write buffer", format!("{used} of {capacity}")),
        ("backlog", human(ByteCount(node.backlog_bytes))),
        ("upload lag", seconds(node.upload_lag_ms)),
        ("clients", node.connections.to_string()),
        ("read cache", describe_cache(&node.cache.clone().unwrap_or_default())),
    ])
}

fn describe_cache(cache: &proto::CacheStatus) -> String {
    let filled = |tier: &Option<proto::CacheTierStatus>| {
        let tier = (*tier).unwrap_or_default();
        let bytes = |bytes| human(ByteCount(bytes));
        format!("{} of {}", bytes(tier.used_bytes), bytes(tier.capacity_bytes))
    };
    let disk = match cache.disk_state() {
        proto::CacheDiskState::Off | proto::CacheDiskState::Unspecified => {
            return filled(&cache.ram);
        }
        proto::CacheDiskState::Serving => filled(&cache.disk),
        proto::CacheDiskState::Warming => format!("{}, warming", filled(&cache.disk)),
        proto::CacheDiskState::Offline => format!("offline ({})", cache.disk_reason),
        proto::CacheDiskState::Closed => "closed".to_owned(),
    };
    format!("{}, on disk {disk}", filled(&cache.ram))
}

fn cache_document(cache: &proto::CacheStatus) -> serde_json::Value {
    let tier = |tier: &Option<proto::CacheTierStatus>| {
        let tier = (*tier).unwrap_or_default();
        json!({
            "used_bytes": tier.used_bytes,
            "capacity_bytes": tier.capacity_bytes,
            "hits": tier.hits,
            "misses": tier.misses,
        })
    };
    let state = match cache.disk_state() {
        proto::CacheDiskState::Off | proto::CacheDiskState::Unspecified => "off",
        proto::CacheDiskState::Serving => "serving",
        proto::CacheDiskState::Warming => "warming",
        proto::CacheDiskState::Offline => "offline",
        proto::CacheDiskState::Closed => "closed",
    };
    json!({
        "ram": tier(&cache.ram),
        "disk": tier(&cache.disk),
        "disk_state": state,
        "disk_reason": cache.disk_reason,
        "disk_mismatches": cache.disk_mismatches,
    })
}

pub async fn backend(mut client: Client) -> Result<Report, Status> {
    let backend = client.get_backend_status(proto::GetBackendStatusRequest {}).await?.into_inner();
    let state = if backend.reachable {
        "reachable".to_owned()
    } else {
        format!("unreachable: {}", backend.message)
    };
    let human = properties(&[
        ("backend", backend.url.clone()),
        ("state", state),
        (
            "answered in",
            format!("{}.{:03} ms", backend.latency_us / 1000, backend.latency_us % 1000),
        ),
        ("vDisk namespaces", backend.namespace_count.to_string()),
    ]);
    let json = json!({
        "url": backend.url,
        "reachable": backend.reachable,
        "message": backend.message,
        "latency_us": backend.latency_us,
        "namespace_count": backend.namespace_count,
    });
    Ok(Report { human, json })
}

/// An error when a vPool would not be opened on it.
pub async fn probe(mut client: Client) -> Result<Report, Status> {
    let report = client.probe_backend(proto::ProbeBackendRequest {}).await?.into_inner();
    if !report.refusal.is_empty() {
        return Err(Status::invalid_argument(report.refusal));
    }
    let verdict = |check: &proto::ProbeCheck| match check.right {
        true => "right".to_owned(),
        false => format!("made up for: {}", check.lie),
    };
    let rows: Vec<(&str, String)> =
        report.checks.iter().map(|check| (check.what.as_str(), verdict(check))).collect();
    let checks: Vec<serde_json::Value> = report
        .checks
        .iter()
        .map(|check| json!({ "what": check.what, "right": check.right, "lie": check.lie }))
        .collect();
    Ok(Report { human: properties(&rows), json: json!({ "checks": checks }) })
}

pub async fn metrics(mut client: Client) -> Result<Report, Status> {
    let text = client.get_metrics(proto::GetMetricsRequest {}).await?.into_inner().text;
    let json = json!({ "text": text });
    Ok(Report { human: text, json })
}
