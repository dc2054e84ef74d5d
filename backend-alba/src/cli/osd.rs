//! `alba osd`: the OSDs of a backend, from discovery to purge.

use clap::Subcommand;
use serde_json::{Value, json};
use tonic::transport::Channel;
use volumedriver_proto::alba_osds as wire;
use wire::alba_osds_client::AlbaOsdsClient;

use super::ServerOptions;
use super::client::{channel, print, print_json, table, told};

#[derive(Subcommand)]
pub(super) enum OsdCommand {
    /// Those of the backend, and those that announced themselves to the server.
    List {
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Make an OSD the backend's and use it. Claiming one it has already notes where it is now.
    Claim {
        /// Where `alba asd` listens: HOST:PORT or unix:PATH. Or a bucket: s3://BUCKET/PREFIX?endpoint=URL&credentials=FILE; or a
        /// namespace of another ALBA: alba://HOST:PORT/NAMESPACE?preset=NAME.
        #[arg(value_name = "ADDRESS|URL")]
        address: String,
        /// The failure domain of a bucket or another ALBA; default: a name made from the bucket's or the address.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// What presets can ask of a bucket or another ALBA; may be repeated.
        #[arg(long = "label", value_name = "LABEL")]
        labels: Vec<String>,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Use it for everything again.
    Enable {
        id: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Put nothing more on it; its fragments stay.
    Disable {
        id: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Put nothing more on it and move its fragments to others.
    Decommission {
        id: String,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Forget a decommissioned OSD that holds no fragments any more, and set it free.
    Purge {
        id: String,
        /// Also one that is in use or holds fragments: what cannot be rebuilt from others is LOST.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        server: ServerOptions,
    },
}

fn client(server: &ServerOptions) -> Result<AlbaOsdsClient<Channel>, String> {
    Ok(AlbaOsdsClient::new(channel(server)?))
}

pub(super) async fn run(command: OsdCommand) -> Result<(), String> {
    match command {
        OsdCommand::List { server } => list(&server).await,
        OsdCommand::Claim { address, node, labels, server } => {
            let node = node.unwrap_or_default();
            let request = wire::ClaimOsdRequest { address, node, labels };
            let claimed = client(&server)?.claim_osd(request).await.map_err(told)?.into_inner();
            if server.json {
                return print_json(&json!({ "osd_id": claimed.osd_id }));
            }
            print(&format!("claimed {}\n", claimed.osd_id))
        }
        OsdCommand::Enable { id, server } => set_role(&server, id, wire::Role::Active).await,
        OsdCommand::Disable { id, server } => set_role(&server, id, wire::Role::Disabled).await,
        OsdCommand::Decommission { id, server } => {
            set_role(&server, id, wire::Role::Decommissioning).await
        }
        OsdCommand::Purge { id, force, server } => purge(&server, id, force).await,
    }
}

async fn set_role(server: &ServerOptions, id: String, role: wire::Role) -> Result<(), String> {
    let request = wire::SetOsdRoleRequest { osd_id: id.clone(), role: role.into() };
    client(server)?.set_osd_role(request).await.map_err(told)?;
    let name = role_name(role);
    if server.json {
        return print_json(&json!({ "osd_id": id, "role": name }));
    }
    print(&format!("{name}\n"))
}

async fn purge(server: &ServerOptions, osd_id: String, force: bool) -> Result<(), String> {
    let request = wire::PurgeOsdRequest { osd_id: osd_id.clone(), force };
    let purged = client(server)?.purge_osd(request).await.map_err(told)?.into_inner();
    if server.json {
        let (released, note) = (purged.released, purged.note);
        return print_json(&json!({ "osd_id": osd_id, "released": released, "note": note }));
    }
    let free = if purged.released { "and free again" } else { "but it does not know it" };
    let note = if purged.note.is_empty() { String::new() } else { format!(": {}", purged.note) };
    print(&format!("purged, {free}{note}\n"))
}

async fn list(server: &ServerOptions) -> Result<(), String> {
    let listed = client(server)?.list_osds(wire::ListOsdsRequest {}).await.map_err(told)?;
    let osds = listed.into_inner().osds;
    if server.json {
        return print_json(&json!({ "osds": osds.iter().map(as_json).collect::<Vec<Value>>() }));
    }
    let mut rows = vec![COLUMNS.map(String::from).to_vec()];
    rows.extend(osds.iter().map(row));
    print(&table(&rows))
}

const COLUMNS: [&str; 10] = [
    "OSD",
    "KIND",
    "STANDING",
    "ROLE",
    "STATE",
    "NODE",
    "LABELS",
    "USED/CAPACITY",
    "PLACE",
    "REASON",
];

fn row(osd: &wire::ListedOsd) -> Vec<String> {
    vec![
        osd.osd_id.clone(),
        osd.kind.clone(),
        standing_name(osd.standing()).into(),
        role_name(osd.role()).into(),
        osd.state.clone(),
        osd.node.clone(),
        osd.labels.join(","),
        format!("{}/{}", osd.used_bytes, osd.capacity_bytes),
        osd.place.clone(),
        osd.reason.clone(),
    ]
}

fn as_json(osd: &wire::ListedOsd) -> Value {
    json!({
        "osd_id": osd.osd_id, "kind": osd.kind, "standing": standing_name(osd.standing()),
        "role": role_name(osd.role()), "state": osd.state, "reason": osd.reason,
        "node": osd.node, "labels": osd.labels, "place": osd.place,
        "capacity_bytes": osd.capacity_bytes, "used_bytes": osd.used_bytes,
    })
}

fn standing_name(standing: wire::Standing) -> &'static str {
    match standing {
        wire::Standing::Claimed => "claimed",
        wire::Standing::Available => "available",
        wire::Standing::Foreign => "foreign",
        wire::Standing::Unspecified => "unknown",
    }
}

fn role_name(role: wire::Role) -> &'static str {
    match role {
        wire::Role::Active => "active",
        wire::Role::Disabled => "disabled",
        wire::Role::Decommissioning => "decommissioning",
        wire::Role::Unspecified => "",
    }
}
