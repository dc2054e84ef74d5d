//! The commands of administration: presets, safety, work, maintenance.

use std::time::Duration;

use backend_alba::server::MAX_MESSAGE_BYTES;
use serde_json::{Value, json};
use tonic::transport::Channel;
use volumedriver_proto::alba_admin as wire;
use wire::TaskKind;
use wire::alba_admin_client::AlbaAdminClient;

use super::client::{channel, print, print_change, print_json, table, told};
use super::{JobOptions, MaintenanceCommand, PresetCommand, ServerOptions, WorkCommand};

type Client = AlbaAdminClient<Channel>;

/// How often a job is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(200);

fn client(server: &ServerOptions) -> Result<Client, String> {
    Ok(AlbaAdminClient::new(channel(server)?).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

fn row(cells: &[&dyn ToString]) -> Vec<String> {
    cells.iter().map(|cell| cell.to_string()).collect()
}

pub(super) async fn preset(command: PresetCommand) -> Result<(), String> {
    match command {
        PresetCommand::List { server } => {
            let request = wire::ListPresetsRequest {};
            let answer = client(&server)?.list_presets(request).await.map_err(told)?;
            print_presets(&answer.into_inner().presets, server.json)
        }
        PresetCommand::Show { name, server } => {
            let request = wire::GetPresetRequest { name };
            let answer = client(&server)?.get_preset(request).await.map_err(told)?.into_inner();
            let preset = answer.preset.unwrap_or_default();
            if server.json {
                return print_json(&preset_json(&preset));
            }
            print_presets(&[preset], false)
        }
        PresetCommand::Set { name, policies, fragment_bytes, verify_upload, labels, server } => {
            let (version, is_default) = (0, false);
            let preset = wire::Preset {
                name,
                version,
                policies,
                fragment_bytes,
                verify_upload,
                labels,
                is_default,
            };
            let request = wire::PutPresetRequest { preset: Some(preset) };
            let answer = client(&server)?.put_preset(request).await.map_err(told)?.into_inner();
            if server.json {
                return print_json(&json!({ "version": answer.version }));
            }
            print(&format!("version {}\n", answer.version))
        }
        PresetCommand::Delete { name, server } => {
            let request = wire::DeletePresetRequest { name };
            let answer = client(&server)?.delete_preset(request).await.map_err(told)?.into_inner();
            print_change(&server, "deleted", answer.deleted, "did not exist")
        }
        PresetCommand::Default { name, server } => {
            let request = wire::SetDefaultPresetRequest { name };
            client(&server)?.set_default_preset(request).await.map_err(told)?;
            print_change(&server, "changed", true, "")
        }
    }
}

fn print_presets(presets: &[wire::Preset], json: bool) -> Result<(), String> {
    if json {
        let presets: Vec<Value> = presets.iter().map(preset_json).collect();
        return print_json(&json!({ "presets": presets }));
    }
    let columns: [&dyn ToString; 7] =
        [&"PRESET", &"VERSION", &"POLICIES", &"FRAGMENT", &"VERIFY", &"LABELS", &"DEFAULT"];
    let mut rows = vec![row(&columns)];
    rows.extend(presets.iter().map(|preset| {
        let policies: Vec<String> = preset.policies.iter().map(|p| format!("({p})")).collect();
        let yes = |is: bool| if is { "yes" } else { "" };
        let (verify, default) = (yes(preset.verify_upload), yes(preset.is_default));
        let (policies, labels) = (policies.join(" "), preset.labels.join(","));
        row(&[
            &preset.name,
            &preset.version,
            &policies,
            &preset.fragment_bytes,
            &verify,
            &labels,
            &default,
        ])
    }));
    print(&table(&rows))
}

fn preset_json(preset: &wire::Preset) -> Value {
    json!({
        "name": preset.name, "version": preset.version, "policies": preset.policies,
        "fragment_bytes": preset.fragment_bytes, "verify_upload": preset.verify_upload,
        "labels": preset.labels, "is_default": preset.is_default,
    })
}

pub(super) async fn namespace_preset(
    namespace: String,
    set: Option<String>,
    server: &ServerOptions,
) -> Result<(), String> {
    if let Some(preset) = set {
        let request = wire::SetNamespacePresetRequest { namespace, preset };
        client(server)?.set_namespace_preset(request).await.map_err(told)?;
        return print_change(server, "changed", true, "");
    }
    let request = wire::GetNamespacePresetRequest { namespace };
    let preset = client(server)?.get_namespace_preset(request).await.map_err(told)?;
    let preset = preset.into_inner().preset;
    if server.json {
        return print_json(&json!({ "preset": preset }));
    }
    print(&format!("{preset}\n"))
}

pub(super) async fn show_object(
    namespace: String,
    name: String,
    server: &ServerOptions,
) -> Result<(), String> {
    let request = wire::ShowObjectRequest { namespace, name };
    let object = client(server)?.show_object(request).await.map_err(told)?.into_inner();
    if server.json {
        return print_json(&object_json(&object));
    }
    let crc = format!("{:08x}", object.crc32);
    let mut text = table(&[
        row(&[&"object", &object.object_id]),
        row(&[&"length", &format!("{} bytes", object.len)]),
        row(&[&"CRC-32", &crc]),
        row(&[&"created", &format!("{} ms since 1970", object.created_ms)]),
        row(&[&"policy", &object.policy]),
        row(&[&"codec", &object.codec]),
        row(&[
            &"fragments",
            &format!("{} bytes, cut by {}", object.fragment_bytes, object.unit_bytes),
        ]),
    ]);
    let mut rows = vec![row(&[&"INDEX", &"OSD", &"NODE", &"FILE", &"CRC-32", &"EPOCH"])];
    rows.extend(object.fragments.iter().map(|f| {
        let crc = format!("{:08x}", f.crc32);
        row(&[&f.index, &f.osd_id, &f.node, &f.file_id, &crc, &f.gc_epoch])
    }));
    text.push('\n');
    text.push_str(&table(&rows));
    print(&text)
}

fn object_json(object: &wire::ShowObjectResponse) -> Value {
    let fragment = |f: &wire::Fragment| {
        json!({
            "index": f.index, "osd_id": f.osd_id, "node": f.node, "file_id": f.file_id,
            "crc32": format!("{:08x}", f.crc32), "gc_epoch": f.gc_epoch,
        })
    };
    json!({
        "object_id": object.object_id, "len": object.len, "crc32": format!("{:08x}", object.crc32),
        "created_ms": object.created_ms, "policy": object.policy, "codec": object.codec,
        "unit_bytes": object.unit_bytes, "fragment_bytes": object.fragment_bytes,
        "fragments": object.fragments.iter().map(fragment).collect::<Vec<Value>>(),
    })
}

pub(super) async fn safety(
    namespace: Option<String>,
    dead_osd_ids: Vec<String>,
    server: &ServerOptions,
) -> Result<(), String> {
    let namespace = namespace.unwrap_or_default();
    let request = wire::GetSafetyRequest { dead_osd_ids, namespace };
    let safety = client(server)?.get_safety(request).await.map_err(told)?.into_inner();
    if server.json {
        let buckets: Vec<Value> = safety.buckets.iter().map(bucket_json).collect();
        return print_json(&json!({ "dead_osd_ids": safety.dead_osd_ids, "buckets": buckets }));
    }
    let columns: [&dyn ToString; 7] =
        [&"NAMESPACE", &"POLICY", &"FRAGMENTS", &"OBJECTS", &"BYTES", &"OSDS", &"NODES"];
    let mut rows = vec![row(&columns)];
    rows.extend(safety.buckets.iter().map(|b| {
        let fragments = format!("{} of {}", b.fragments, b.full_fragments);
        let survives = |count: i32| match count {
            ..0 => format!("LOST ({} objects lack up to {})", b.lost, -count),
            0 => "0 (none may fail)".to_string(),
            _ => count.to_string(),
        };
        let (osds, nodes) = (survives(b.survives_osds), survives(b.survives_nodes));
        row(&[&b.namespace, &b.policy, &fragments, &b.objects, &b.bytes, &osds, &nodes])
    }));
    let mut text = table(&rows);
    for osd in &safety.dead_osd_ids {
        text.push_str(&format!("counted as dead: OSD {osd}\n"));
    }
    print(&text)
}

fn bucket_json(bucket: &wire::SafetyBucket) -> Value {
    json!({
        "namespace": bucket.namespace, "policy": bucket.policy, "fragments": bucket.fragments,
        "full_fragments": bucket.full_fragments, "objects": bucket.objects, "bytes": bucket.bytes,
        "survives_osds": bucket.survives_osds, "survives_nodes": bucket.survives_nodes, "lost": bucket.lost,
    })
}

pub(super) async fn work(command: WorkCommand) -> Result<(), String> {
    match command {
        WorkCommand::List { server } => {
            let items = list_work(&mut client(&server)?).await?;
            print_items(&items, server.json)
        }
        WorkCommand::Cancel { job, server } => {
            let request = wire::CancelWorkRequest { job_id: job };
            let answer = client(&server)?.cancel_work(request).await.map_err(told)?.into_inner();
            print_change(&server, "cancelled", answer.cancelled, "did not exist")
        }
    }
}

async fn list_work(client: &mut Client) -> Result<Vec<wire::WorkItem>, String> {
    Ok(client.list_work(wire::ListWorkRequest {}).await.map_err(told)?.into_inner().items)
}

pub(super) fn verify_kind(existence: bool) -> TaskKind {
    if existence { TaskKind::VerifyExistence } else { TaskKind::VerifyChecksums }
}

pub(super) async fn start(
    kind: TaskKind,
    namespace: String,
    unreachable_is_missing: bool,
    job: &JobOptions,
) -> Result<(), String> {
    let mut client = client(&job.server)?;
    let kind = kind.into();
    let request = wire::StartWorkRequest { kind, namespace, unreachable_is_missing };
    let id = client.start_work(request).await.map_err(told)?.into_inner().job_id;
    if !job.wait {
        if job.server.json {
            return print_json(&json!({ "job_id": id }));
        }
        return print(&format!("job {id}\n"));
    }
    loop {
        let mut items = list_work(&mut client).await?;
        items.retain(|item| item.job_id == id);
        if items.is_empty() {
            return Err(format!("job {id} was cancelled"));
        }
        if items.iter().all(|item| item.done) {
            let request = wire::CancelWorkRequest { job_id: id };
            client.cancel_work(request).await.map_err(told)?;
            return print_items(&items, job.server.json);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn print_items(items: &[wire::WorkItem], json: bool) -> Result<(), String> {
    if json {
        let items: Vec<Value> = items.iter().map(item_json).collect();
        return print_json(&json!({ "items": items }));
    }
    let columns: [&dyn ToString; 12] = [
        &"JOB",
        &"PART",
        &"WHAT",
        &"OF",
        &"STATE",
        &"AT",
        &"OBJECTS",
        &"MADE",
        &"REWRITTEN",
        &"DAMAGED",
        &"LACKING",
        &"NOTE",
    ];
    let mut rows = vec![row(&columns)];
    rows.extend(items.iter().map(|item| {
        let counts = item.counts.unwrap_or_default();
        let damaged = counts.missing + counts.mismatched;
        let of = if item.osd_id.is_empty() { &item.namespace } else { &item.osd_id };
        let (kind, state) = (kind_name(item.kind()), state_of(item));
        let cells: [&dyn ToString; 12] = [
            &item.job_id,
            &item.part,
            &kind,
            of,
            &state,
            &item.at_name,
            &counts.objects,
            &counts.made,
            &counts.rewritten,
            &damaged,
            &counts.lacking,
            &item.note,
        ];
        row(&cells)
    }));
    print(&table(&rows))
}

fn state_of(item: &wire::WorkItem) -> &'static str {
    match (item.done, item.agent_id.is_empty()) {
        (true, _) => "done",
        (false, true) => "waiting",
        (false, false) => "running",
    }
}

fn kind_name(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Tour => "tour",
        TaskKind::Scrub => "scrub",
        TaskKind::Empty => "empty",
        TaskKind::Repair => "repair",
        TaskKind::Rewrite => "rewrite",
        TaskKind::VerifyExistence => "verify existence",
        TaskKind::VerifyChecksums => "verify checksums",
        TaskKind::Unspecified => "unknown",
    }
}

fn item_json(item: &wire::WorkItem) -> Value {
    let counts = item.counts.unwrap_or_default();
    json!({
        "job_id": item.job_id, "part": item.part, "kind": kind_name(item.kind()), "namespace": item.namespace,
        "osd_id": item.osd_id, "at_namespace": item.at_namespace, "at_name": item.at_name,
        "agent_id": item.agent_id, "state": state_of(item), "note": item.note, "created_ms": item.created_ms,
        "objects": counts.objects, "made": counts.made, "rewritten": counts.rewritten, "bytes": counts.bytes,
        "missing": counts.missing, "unavailable": counts.unavailable, "mismatched": counts.mismatched,
        "lacking": counts.lacking, "failed": counts.failed,
    })
}

pub(super) async fn maintenance(command: MaintenanceCommand) -> Result<(), String> {
    match command {
        MaintenanceCommand::Show { server } => {
            let request = wire::GetMaintenanceRequest {};
            let answer = client(&server)?.get_maintenance(request).await.map_err(told)?;
            print_settings(&answer.into_inner().settings_json, server.json)
        }
        MaintenanceCommand::Set { changes, server } => {
            let request = wire::SetMaintenanceRequest { changes };
            let answer = client(&server)?.set_maintenance(request).await.map_err(told)?;
            print_settings(&answer.into_inner().settings_json, server.json)
        }
    }
}

fn print_settings(text: &str, json: bool) -> Result<(), String> {
    let settings: Value =
        serde_json::from_str(text).map_err(|e| format!("the server's settings: {e}"))?;
    if json {
        return print_json(&settings);
    }
    let fields = settings.as_object().into_iter().flatten();
    let rows: Vec<Vec<String>> =
        fields.map(|(name, value)| vec![name.clone(), value.to_string()]).collect();
    print(&table(&rows))
}
