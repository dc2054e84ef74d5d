//! `vdisk …`: commands, tables and documents.

use serde_json::{Value, json};
use tonic::Status;
use volumedriver_core::units::ByteCount;
use volumedriver_proto::management as proto;

use super::args::VdiskCommand;
use crate::admin::client::Client;
use crate::config::size::human;
use crate::inspect::Report;
use crate::inspect::table::{Align, Table, properties};

pub async fn run(mut client: Client, command: VdiskCommand) -> Result<Report, Status> {
    let reply = match command {
        VdiskCommand::Create { name, size, cluster_size, sco_size } => {
            let request = proto::CreateVdiskRequest {
                name,
                size_bytes: size.0,
                cluster_size_bytes: cluster_size.map(|size| size.0),
                sco_size_bytes: sco_size.map(|size| size.0),
            };
            client.create_vdisk(request).await?
        }
        VdiskCommand::Show { name } => client.show_vdisk(proto::ShowVdiskRequest { name }).await?,
        VdiskCommand::Resize { name, size } => {
            client.resize_vdisk(proto::ResizeVdiskRequest { name, size_bytes: size.0 }).await?
        }
        VdiskCommand::Flush { name } => {
            client.flush_vdisk(proto::FlushVdiskRequest { name }).await?
        }
        VdiskCommand::AcceptLoss { name, yes, force } => {
            client.accept_loss(proto::AcceptLossRequest { name, confirmed: yes, force }).await?
        }
        VdiskCommand::List => return list(client).await,
        VdiskCommand::Delete { name, force } => return delete(client, name, force).await,
    };
    let vdisk = reply.into_inner();
    Ok(Report { human: describe(&vdisk), json: document(&vdisk) })
}

async fn list(mut client: Client) -> Result<Report, Status> {
    let vdisks = client.list_vdisks(proto::ListVdisksRequest {}).await?.into_inner().vdisks;
    Ok(Report { human: table(&vdisks), json: documents(&vdisks) })
}

async fn delete(mut client: Client, name: String, force: bool) -> Result<Report, Status> {
    client.delete_vdisk(proto::DeleteVdiskRequest { name: name.clone(), force }).await?;
    Ok(Report { human: format!("{name} deleted\n"), json: json!({ "deleted": name }) })
}

/// One line per vDisk.
pub fn table(vdisks: &[proto::Vdisk]) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("STATE", Align::Left),
        ("BACKLOG", Align::Right),
        ("LAG", Align::Right),
        ("CLIENTS", Align::Right),
    ]);
    for vdisk in vdisks {
        table.row(vec![
            vdisk.name.clone(),
            human(ByteCount(vdisk.size_bytes)),
            state(vdisk),
            human(ByteCount(vdisk.backlog_bytes)),
            seconds(vdisk.upload_lag_ms),
            vdisk.connections.to_string(),
        ]);
    }
    table.render()
}

fn describe(vdisk: &proto::Vdisk) -> String {
    let settings = vdisk.settings.unwrap_or_default();
    let keys = vdisk.key_ids.join(", ");
    properties(&[
        ("name", vdisk.name.clone()),
        ("id", vdisk.id.clone()),
        ("size", human(ByteCount(vdisk.size_bytes))),
        ("cluster size", human(ByteCount(vdisk.cluster_size_bytes))),
        ("state", state(vdisk)),
        ("epoch", vdisk.epoch.to_string()),
        ("manifest", vdisk.manifest_no.to_string()),
        ("last change", vdisk.last_seq.to_string()),
        ("published change", vdisk.published_seq.to_string()),
        ("backlog", human(ByteCount(vdisk.backlog_bytes))),
        ("upload lag", seconds(vdisk.upload_lag_ms)),
        ("clients", vdisk.connections.to_string()),
        ("ack", ack(&settings).to_owned()),
        ("flush", flush(&settings).to_owned()),
        ("SCO size", human(ByteCount(settings.sco_size_bytes))),
        ("read-ahead", human(ByteCount(settings.readahead_bytes))),
        ("buffer share", format!("{} %", settings.buffer_share_percent)),
        ("upload delay", seconds(settings.upload_max_delay_ms)),
        ("upload concurrency", settings.upload_concurrency.to_string()),
        ("map memory", human(ByteCount(settings.map_memory_bytes))),
        ("compression", compression(&settings)),
        ("encryption", encryption(&settings).to_owned()),
        ("keys needed", if keys.is_empty() { "none".to_owned() } else { keys }),
        ("uploaded", uploaded(vdisk)),
    ])
}

pub fn documents(vdisks: &[proto::Vdisk]) -> Value {
    vdisks.iter().map(document).collect()
}

pub fn document(vdisk: &proto::Vdisk) -> Value {
    let settings = vdisk.settings.unwrap_or_default();
    json!({
        "name": vdisk.name,
        "id": vdisk.id,
        "size_bytes": vdisk.size_bytes,
        "cluster_size_bytes": vdisk.cluster_size_bytes,
        "state": state_name(vdisk),
        "state_reason": vdisk.state_reason,
        "epoch": vdisk.epoch,
        "manifest_no": vdisk.manifest_no,
        "last_seq": vdisk.last_seq,
        "published_seq": vdisk.published_seq,
        "backlog_bytes": vdisk.backlog_bytes,
        "upload_lag_ms": vdisk.upload_lag_ms,
        "connections": vdisk.connections,
        "uploaded_data_bytes": vdisk.uploaded_data_bytes,
        "uploaded_stored_bytes": vdisk.uploaded_stored_bytes,
        "key_ids": vdisk.key_ids,
        "settings": {
            "ack": ack(&settings),
            "flush": flush(&settings),
            "sco_size_bytes": settings.sco_size_bytes,
            "readahead_bytes": settings.readahead_bytes,
            "buffer_share_percent": settings.buffer_share_percent,
            "upload_max_delay_ms": settings.upload_max_delay_ms,
            "upload_concurrency_count": settings.upload_concurrency,
            "map_memory_bytes": settings.map_memory_bytes,
            "compression": compression(&settings),
            "encryption": encryption(&settings),
        },
    })
}

fn state(vdisk: &proto::Vdisk) -> String {
    match vdisk.state_reason.as_str() {
        "" => state_name(vdisk).to_owned(),
        why => format!("{} ({why})", state_name(vdisk)),
    }
}

fn state_name(vdisk: &proto::Vdisk) -> &'static str {
    match vdisk.state() {
        proto::VdiskState::Unspecified => "unknown",
        proto::VdiskState::Opening => "opening",
        proto::VdiskState::Running => "running",
        proto::VdiskState::ReadOnly => "read-only",
        proto::VdiskState::Failed => "failed",
        proto::VdiskState::Closing => "closing",
    }
}

fn ack(settings: &proto::VdiskSettings) -> &'static str {
    match settings.ack() {
        proto::AckLevel::Unspecified => "unknown",
        proto::AckLevel::Memory => "memory",
        proto::AckLevel::Buffer => "buffer",
    }
}

fn flush(settings: &proto::VdiskSettings) -> &'static str {
    match settings.flush() {
        proto::FlushLevel::Unspecified => "unknown",
        proto::FlushLevel::Journal => "journal",
        proto::FlushLevel::Backend => "backend",
    }
}

fn compression(settings: &proto::VdiskSettings) -> String {
    match settings.compression() {
        proto::Compression::Unspecified => "unknown".to_owned(),
        proto::Compression::None => "none".to_owned(),
        proto::Compression::Lz4 => "lz4".to_owned(),
        proto::Compression::Zstd => format!("zstd:{}", settings.compression_level),
    }
}

fn encryption(settings: &proto::VdiskSettings) -> &'static str {
    match settings.encryption() {
        proto::Encryption::Unspecified => "unknown",
        proto::Encryption::None => "none",
        proto::Encryption::Aes256Gcm => "aes-256-gcm",
    }
}

/// Data, the room it takes, and the one as a part of the other.
fn uploaded(vdisk: &proto::Vdisk) -> String {
    let (data, stored) = (vdisk.uploaded_data_bytes, vdisk.uploaded_stored_bytes);
    let percent = u128::from(stored) * 100 / u128::from(data.max(1));
    match data {
        0 => "nothing".to_owned(),
        _ => format!(
            "{} since it was opened, stored as {} ({percent} %)",
            human(ByteCount(data)),
            human(ByteCount(stored))
        ),
    }
}

pub fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
