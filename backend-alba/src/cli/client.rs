//! The commands that ask a server: tables for people, one JSON document for scripts.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;

use backend_alba::server::{CHUNK_BYTES, MAX_MESSAGE_BYTES, endpoint, explain};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;
use volumedriver_proto::alba as wire;
use wire::alba_client::AlbaClient;

use super::{NamespaceCommand, ObjectCommand, ServerOptions, admin};

type Client = AlbaClient<Channel>;

pub(super) fn channel(server: &ServerOptions) -> Result<Channel, String> {
    let told = |fault: backend_alba::Fault| fault.to_string();
    let tls = server.tls.load().map_err(told)?;
    endpoint(&server.connect, tls.as_ref()).map_err(told)
}

fn client(server: &ServerOptions) -> Result<Client, String> {
    let channel = channel(server)?;
    Ok(AlbaClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

pub(super) fn told(status: Status) -> String {
    match std::error::Error::source(&status) {
        // A server's own statuses have no source; with one, the connection failed.
        Some(_) => format!("the server cannot be reached: {}", explain(&status)),
        None if status.code() == tonic::Code::Unimplemented => {
            "the server does not know this request: is it an `alba serve` of this release?".into()
        }
        None => status.message().to_string(),
    }
}

fn file_fault(path: &Path) -> impl Fn(io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

pub(super) fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| format!("stdout: {e}"))
}

pub(super) fn print_json(value: &Value) -> Result<(), String> {
    print(&format!("{value:#}\n"))
}

/// Lines of cells, each column as wide as its widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

pub(super) async fn status(server: &ServerOptions) -> Result<(), String> {
    let status = client(server)?.status(wire::StatusRequest {}).await.map_err(told)?.into_inner();
    if server.json {
        return print_json(&status_json(&status));
    }
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let mut text = table(&[
        row("backend", status.alba_id),
        row("version", status.version),
        row("capacity", format!("{} bytes", status.capacity_bytes)),
        row("used", format!("{} bytes", status.used_bytes)),
        row("namespaces", status.namespaces.to_string()),
        row("objects", format!("{} of {} bytes", status.objects, status.object_bytes)),
    ]);
    let mut rows = vec![OSD_COLUMNS.map(String::from).to_vec()];
    rows.extend(status.osds.iter().map(osd_row));
    text.push('\n');
    text.push_str(&table(&rows));
    print(&text)
}

const OSD_COLUMNS: [&str; 9] =
    ["OSD", "NODE", "LABELS", "ROLE", "STATE", "CAPACITY", "USED", "PATH", "REASON"];

fn osd_row(osd: &wire::Osd) -> Vec<String> {
    vec![
        osd.osd_id.clone(),
        osd.node.clone(),
        osd.labels.join(","),
        role_name(osd.role()).to_string(),
        state_name(osd.state()).to_string(),
        osd.capacity_bytes.to_string(),
        osd.used_bytes.to_string(),
        osd.path.clone(),
        osd.reason.clone(),
    ]
}

fn role_name(role: wire::OsdRole) -> &'static str {
    match role {
        wire::OsdRole::Active => "active",
        wire::OsdRole::Disabled => "disabled",
        wire::OsdRole::Decommissioning => "decommissioning",
        wire::OsdRole::Unspecified => "unknown",
    }
}

fn state_name(state: wire::OsdState) -> &'static str {
    match state {
        wire::OsdState::Ready => "ready",
        wire::OsdState::Full => "full",
        wire::OsdState::Absent => "absent",
        wire::OsdState::Failing => "failing",
        wire::OsdState::Unspecified => "unknown",
    }
}

fn status_json(status: &wire::StatusResponse) -> Value {
    let osd = |osd: &wire::Osd| {
        json!({
            "osd_id": osd.osd_id, "path": osd.path, "state": state_name(osd.state()), "reason": osd.reason,
            "capacity_bytes": osd.capacity_bytes, "used_bytes": osd.used_bytes,
            "node": osd.node, "labels": osd.labels, "role": role_name(osd.role()),
        })
    };
    json!({
        "alba_id": status.alba_id, "version": status.version,
        "capacity_bytes": status.capacity_bytes, "used_bytes": status.used_bytes,
        "namespaces": status.namespaces, "objects": status.objects, "object_bytes": status.object_bytes,
        "osds": status.osds.iter().map(osd).collect::<Vec<Value>>(),
    })
}

pub(super) async fn namespace(command: NamespaceCommand) -> Result<(), String> {
    match command {
        NamespaceCommand::List { prefix, server } => {
            let names = list_namespaces(client(&server)?, prefix).await?;
            print_names("namespaces", &names, server.json)
        }
        NamespaceCommand::Create { namespace, preset, server } => {
            let request = wire::CreateNamespaceRequest { namespace, preset };
            let answer =
                client(&server)?.create_namespace(request).await.map_err(told)?.into_inner();
            print_change(&server, "created", answer.created, "existed before")
        }
        NamespaceCommand::Preset { namespace, set, server } => {
            admin::namespace_preset(namespace, set, &server).await
        }
        NamespaceCommand::Delete { namespace, server } => {
            let request = wire::DeleteNamespaceRequest { namespace };
            let answer =
                client(&server)?.delete_namespace(request).await.map_err(told)?.into_inner();
            print_change(&server, "deleted", answer.deleted, "did not exist")
        }
    }
}

pub(super) async fn object(command: ObjectCommand) -> Result<(), String> {
    match command {
        ObjectCommand::List { namespace, prefix, server } => {
            let names = list_objects(client(&server)?, namespace, prefix).await?;
            print_names("objects", &names, server.json)
        }
        ObjectCommand::Head { namespace, name, server } => head(namespace, name, &server).await,
        ObjectCommand::Show { namespace, name, server } => {
            admin::show_object(namespace, name, &server).await
        }
        ObjectCommand::Put { namespace, name, file, server } => {
            let created = put(client(&server)?, namespace, name, &file).await?;
            print_change(&server, "created", created, "existed before and is unchanged")
        }
        ObjectCommand::Get { namespace, name, file, offset, length, server } => {
            let request = wire::GetRangeRequest { namespace, name, offset, len: length };
            get(client(&server)?, request, &file).await
        }
        ObjectCommand::Delete { namespace, name, server } => {
            let request = wire::DeleteRequest { namespace, name };
            let answer = client(&server)?.delete(request).await.map_err(told)?.into_inner();
            print_change(&server, "deleted", answer.deleted, "did not exist")
        }
    }
}

fn print_names(what: &str, names: &[String], json: bool) -> Result<(), String> {
    if json {
        return print_json(&json!({ what: names }));
    }
    print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())
}

pub(super) fn print_change(
    server: &ServerOptions,
    what: &str,
    done: bool,
    else_text: &str,
) -> Result<(), String> {
    if server.json {
        return print_json(&json!({ what: done }));
    }
    print(&format!("{}\n", if done { what } else { else_text }))
}

async fn list_namespaces(mut client: Client, prefix: String) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    loop {
        let after = names.last().cloned().unwrap_or_default();
        let request = wire::ListNamespacesRequest { prefix: prefix.clone(), after, limit: 0 };
        let page = client.list_namespaces(request).await.map_err(told)?.into_inner();
        names.extend(page.namespaces);
        if !page.more {
            return Ok(names);
        }
    }
}

async fn list_objects(
    mut client: Client,
    namespace: String,
    prefix: String,
) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    loop {
        let after = names.last().cloned().unwrap_or_default();
        let (namespace, prefix) = (namespace.clone(), prefix.clone());
        let request = wire::ListRequest { namespace, prefix, after, limit: 0 };
        let page = client.list(request).await.map_err(told)?.into_inner();
        names.extend(page.names);
        if !page.more {
            return Ok(names);
        }
    }
}

async fn head(namespace: String, name: String, server: &ServerOptions) -> Result<(), String> {
    let request = wire::HeadRequest { namespace, name };
    let info =
        client(server)?.head(request).await.map_err(told)?.into_inner().info.unwrap_or_default();
    let crc = format!("{:08x}", info.crc32);
    if server.json {
        return print_json(
            &json!({ "len": info.len, "crc32": crc, "created_ms": info.created_ms }),
        );
    }
    let row = |name: &str, value: String| vec![name.to_string(), value];
    print(&table(&[
        row("length", format!("{} bytes", info.len)),
        row("CRC-32", crc),
        row("created", format!("{} ms since 1970", info.created_ms)),
    ]))
}

async fn put(
    mut client: Client,
    namespace: String,
    name: String,
    path: &Path,
) -> Result<bool, String> {
    let io = file_fault(path);
    let (len, crc32) = sum_of(path).map_err(&io)?;
    let file = File::open(path).map_err(&io)?;
    let header = wire::PutHeader { namespace, name, len, crc32, metadata: false };
    let (parts, receiver) = tokio::sync::mpsc::channel(4);
    let sender = tokio::task::spawn_blocking(move || send(file, header, &parts));
    let answer = client.put(ReceiverStream::new(receiver)).await;
    sender.await.map_err(|e| e.to_string())?.map_err(&io)?;
    Ok(answer.map_err(told)?.into_inner().outcome() == wire::PutOutcome::Created)
}

fn send(file: File, header: wire::PutHeader, parts: &Sender<wire::PutRequest>) -> io::Result<()> {
    let mut next = Some(wire::put_request::Part::Header(header));
    while let Some(part) = next {
        // A receiver that is gone has its answer already.
        if parts.blocking_send(wire::PutRequest { part: Some(part) }).is_err() {
            break;
        }
        next = next_chunk(&file)?.map(wire::put_request::Part::Chunk);
    }
    Ok(())
}

fn sum_of(path: &Path) -> io::Result<(u64, u32)> {
    let file = File::open(path)?;
    let (mut len, mut crc) = (0, crc32fast::Hasher::new());
    while let Some(chunk) = next_chunk(&file)? {
        len += chunk.len() as u64;
        crc.update(&chunk);
    }
    Ok((len, crc.finalize()))
}

fn next_chunk(file: &File) -> io::Result<Option<Bytes>> {
    let mut chunk = Vec::new();
    file.take(CHUNK_BYTES).read_to_end(&mut chunk)?;
    Ok((!chunk.is_empty()).then(|| chunk.into()))
}

async fn get(
    mut client: Client,
    request: wire::GetRangeRequest,
    path: &Path,
) -> Result<(), String> {
    let io = file_fault(path);
    let mut chunks = client.get_range(request).await.map_err(told)?.into_inner();
    let mut out: Box<dyn Write> = if path.as_os_str() == "-" {
        Box::new(io::stdout().lock())
    } else {
        Box::new(File::create_new(path).map_err(&io)?)
    };
    while let Some(message) = chunks.message().await.map_err(told)? {
        out.write_all(&message.chunk).map_err(&io)?;
    }
    out.flush().map_err(&io)
}
