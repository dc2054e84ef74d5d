//! What a hostile client may send, over a real socket.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use volumedriver_proto::{alba_admin, alba_osds};
use wire::alba_client::AlbaClient;
use wire::put_request::Part;

use super::*;
use crate::alba::Config;

type Admin = alba_admin::alba_admin_client::AlbaAdminClient<tonic::transport::Channel>;
type Osds = alba_osds::alba_osds_client::AlbaOsdsClient<tonic::transport::Channel>;

async fn serve(dir: &std::path::Path) -> Address {
    let alba = Alba::open(Config::new(dir.join("data"))).await.unwrap();
    let address = Address::Unix(dir.join("alba.sock"));
    let server = Server::bind(&address, None).await.unwrap();
    tokio::spawn(server.serve(AlbaService::new(alba).routes(), std::future::pending()));
    address
}

fn header(len: u64, crc32: u32) -> Part {
    let (namespace, name) = ("ns".into(), "x".into());
    Part::Header(wire::PutHeader { namespace, name, len, crc32, metadata: false })
}

fn chunk(len: usize) -> Part {
    Part::Chunk(Bytes::from(vec![0; len]))
}

#[tokio::test]
async fn a_put_that_breaks_the_contract_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = AlbaClient::new(endpoint(&serve(dir.path()).await, None).unwrap());
    client
        .create_namespace(wire::CreateNamespaceRequest { namespace: "ns".into(), preset: None })
        .await
        .unwrap();
    let cases: [&[Option<Part>]; 9] = [
        &[],
        &[None],
        &[Some(chunk(1))],
        &[Some(header(2, 0)), Some(header(2, 0))],
        &[Some(header(2, 0)), Some(chunk(1))],
        &[Some(header(2, 0)), Some(chunk(3))],
        &[Some(header(2, 0)), None],
        &[Some(header(2, 7)), Some(chunk(2))],
        &[Some(header(2 << 20, 0)), Some(chunk((1 << 20) + 1))],
    ];
    for parts in cases {
        let parts: Vec<_> = parts.iter().cloned().map(|part| wire::PutRequest { part }).collect();
        let refused = client.put(stream::iter(parts.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{parts:?}: {refused}");
    }
    for len in [u64::MAX, 1 << 31] {
        let parts = [wire::PutRequest { part: Some(header(len, 0)) }];
        let refused = client.put(stream::iter(parts)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{len}");
    }
    let status = client.status(wire::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.objects, 0);
    let shards = std::fs::read_dir(dir.path().join("data/osd/objects")).unwrap().flatten();
    assert_eq!(
        shards.map(|shard| std::fs::read_dir(shard.path()).unwrap().count()).sum::<usize>(),
        0
    );
}

#[tokio::test]
async fn a_sequence_without_its_parts_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = AlbaClient::new(endpoint(&serve(dir.path()).await, None).unwrap());
    client
        .create_namespace(wire::CreateNamespaceRequest { namespace: "ns".into(), preset: None })
        .await
        .unwrap();
    let (name, namespace) = ("x".to_string(), "ns".to_string());
    let asserts = vec![wire::Assert { name: name.clone(), condition: None }];
    let updates = vec![wire::Update { name, change: None }];
    for (asserts, updates) in [(asserts, vec![]), (vec![], updates)] {
        let request = wire::ApplySequenceRequest { namespace: namespace.clone(), asserts, updates };
        let refused = client.apply_sequence(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn bytes_that_are_no_http_end_their_connection_only() {
    let dir = tempfile::tempdir().unwrap();
    let address = serve(dir.path()).await;
    let mut client = AlbaClient::new(endpoint(&address, None).unwrap());
    client.status(wire::StatusRequest {}).await.unwrap();
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\xff\xff\xff\xff\xff";
    for garbage in [&[0xa5; 4096][..], b"GET / HTTP/1.1\r\n\r\n", preface] {
        let Address::Unix(path) = &address else { unreachable!() };
        let mut socket = tokio::net::UnixStream::connect(path).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer));
        let _ = closed.await.expect("the connection stays open");
    }
    client.status(wire::StatusRequest {}).await.unwrap();
}

/// A server with one namespace, and its clients.
async fn served(dir: &std::path::Path) -> (AlbaClient<tonic::transport::Channel>, Admin, Osds) {
    let channel = endpoint(&serve(dir).await, None).unwrap();
    let mut client = AlbaClient::new(channel.clone());
    let request = wire::CreateNamespaceRequest { namespace: "ns".into(), preset: None };
    client.create_namespace(request).await.unwrap();
    (client, Admin::new(channel.clone()), Osds::new(channel))
}

/// The code and the words of a refusal.
fn refused<T: std::fmt::Debug>(answer: Result<Response<T>, Status>, code: Code, words: &str) {
    let status = answer.unwrap_err();
    assert!(status.code() == code && status.message().contains(words), "{words:?}: {status:?}");
}

#[tokio::test]
async fn administration_refuses_what_is_wrong_by_name() {
    use alba_admin::*;
    let dir = tempfile::tempdir().unwrap();
    let (mut client, mut admin, _) = served(dir.path()).await;
    let put = |name: &str, policies: &[&str], fragment_bytes| PutPresetRequest {
        preset: Some(Preset {
            name: name.into(),
            policies: policies.iter().map(ToString::to_string).collect(),
            fragment_bytes,
            ..Preset::default()
        }),
    };
    let invalid = Code::InvalidArgument;
    refused(admin.put_preset(PutPresetRequest { preset: None }).await, invalid, "no preset");
    refused(admin.put_preset(put("p", &[], 0)).await, invalid, "polic");
    refused(admin.put_preset(put("p", &["1,0"], 0)).await, invalid, "1,0");
    refused(admin.put_preset(put("p", &["0,1,1,1"], 0)).await, invalid, "0");
    refused(admin.put_preset(put("p", &["1,0,1,1"], 3)).await, invalid, "3");
    refused(admin.put_preset(put("a b", &["1,0,1,1"], 0)).await, invalid, "a b");
    let name = || "never".to_string();
    let missing = Code::NotFound;
    refused(admin.get_preset(GetPresetRequest { name: name() }).await, missing, "never");
    let default = SetDefaultPresetRequest { name: name() };
    refused(admin.set_default_preset(default).await, missing, "never");
    let of = GetNamespacePresetRequest { namespace: name() };
    refused(admin.get_namespace_preset(of).await, missing, "never");
    for (namespace, preset) in [(name(), "single".into()), ("ns".into(), name())] {
        let request = SetNamespacePresetRequest { namespace, preset };
        refused(admin.set_namespace_preset(request).await, missing, "never");
    }
    let used = DeletePresetRequest { name: "single".into() };
    refused(admin.delete_preset(used).await, invalid, "single");
    let gone = DeletePresetRequest { name: name() };
    assert!(!admin.delete_preset(gone).await.unwrap().into_inner().deleted);
    let object = ShowObjectRequest { namespace: "ns".into(), name: name() };
    refused(admin.show_object(object).await, missing, "never");
    let dead =
        |id: &str| GetSafetyRequest { dead_osd_ids: vec![id.into()], namespace: String::new() };
    refused(admin.get_safety(dead("xyz")).await, invalid, "xyz");
    let unknown = "00000000000000000000000000000000";
    refused(admin.get_safety(dead(unknown)).await, missing, unknown);
    for job in ["", "x", "00000000000000000"] {
        let request = CancelWorkRequest { job_id: job.into() };
        refused(admin.cancel_work(request).await, invalid, "16 hexadecimal digits");
    }
    let never = CancelWorkRequest { job_id: "00000000000000aa".into() };
    assert!(!admin.cancel_work(never).await.unwrap().into_inner().cancelled);
    let work = |kind: i32, namespace: &str| StartWorkRequest {
        kind,
        namespace: namespace.into(),
        unreachable_is_missing: false,
    };
    let planned = [TaskKind::Unspecified, TaskKind::Tour, TaskKind::Scrub, TaskKind::Empty];
    for kind in planned.map(i32::from).into_iter().chain([99, -1]) {
        refused(admin.start_work(work(kind, "ns")).await, invalid, "cannot be asked for");
    }
    let repair = TaskKind::Repair.into();
    refused(admin.start_work(work(repair, "never")).await, missing, "never");
    refused(admin.start_work(work(repair, "a/b\0")).await, invalid, "namespace");
    let changes = |changes: &[&str]| SetMaintenanceRequest {
        changes: changes.iter().map(ToString::to_string).collect(),
    };
    for wrong in ["lease_ms", "lease_ms=1", "never=1", "repair=7"] {
        let both = changes(&["concurrency=9", wrong]);
        refused(admin.set_maintenance(both).await, invalid, wrong.split('=').next().unwrap());
    }
    let settings = admin.get_maintenance(GetMaintenanceRequest {}).await.unwrap().into_inner();
    assert!(settings.settings_json.contains("\"concurrency\":4"), "{settings:?}");
    client.status(wire::StatusRequest {}).await.unwrap();
}

#[tokio::test]
async fn administration_answers_what_is_so() {
    use alba_admin::*;
    let dir = tempfile::tempdir().unwrap();
    let (mut client, mut admin, _) = served(dir.path()).await;
    let crc = crc32fast::hash(&[0; 5]);
    let parts = [header(5, crc), chunk(5)].map(|part| wire::PutRequest { part: Some(part) });
    client.put(stream::iter(parts)).await.unwrap();
    let object = ShowObjectRequest { namespace: "ns".into(), name: "x".into() };
    let object = admin.show_object(object).await.unwrap().into_inner();
    assert_eq!((object.len, object.crc32, object.policy.as_str()), (5, crc, "(1,0,1,1)"));
    let status = client.status(wire::StatusRequest {}).await.unwrap().into_inner();
    let osd = status.osds[0].osd_id.clone();
    assert_eq!(object.fragments.len(), 1);
    assert_eq!((&object.fragments[0].osd_id, object.fragments[0].crc32), (&osd, crc));
    let ask = |dead: &[&String]| GetSafetyRequest {
        dead_osd_ids: dead.iter().map(ToString::to_string).collect(),
        namespace: "ns".into(),
    };
    let safety = admin.get_safety(ask(&[])).await.unwrap().into_inner();
    let line = &safety.buckets[0];
    assert_eq!((line.objects, line.survives_osds, line.lost), (1, 0, 0), "{safety:?}");
    let safety = admin.get_safety(ask(&[&osd])).await.unwrap().into_inner();
    let line = &safety.buckets[0];
    assert_eq!((line.objects, line.survives_osds, line.lost), (1, -1, 1), "{safety:?}");
    assert_eq!(safety.dead_osd_ids, [osd]);
    let preset = Preset {
        name: "pair".into(),
        policies: vec!["1,1,1,2".into()],
        labels: vec!["fast".into()],
        ..Preset::default()
    };
    for version in [1, 2] {
        let request = PutPresetRequest { preset: Some(preset.clone()) };
        assert_eq!(admin.put_preset(request).await.unwrap().into_inner().version, version);
    }
    let request = GetPresetRequest { name: "pair".into() };
    let found = admin.get_preset(request).await.unwrap().into_inner().preset.unwrap();
    assert_eq!((found.version, &found.policies, found.is_default), (2, &preset.policies, false));
    let request = SetDefaultPresetRequest { name: "pair".into() };
    admin.set_default_preset(request).await.unwrap();
    let listed = admin.list_presets(ListPresetsRequest {}).await.unwrap().into_inner().presets;
    let defaults: Vec<&str> =
        listed.iter().filter(|p| p.is_default).map(|p| p.name.as_str()).collect();
    assert_eq!(defaults, ["pair"]);
    let kind = TaskKind::VerifyChecksums.into();
    let request = StartWorkRequest { kind, namespace: "ns".into(), unreachable_is_missing: true };
    let job = admin.start_work(request).await.unwrap().into_inner().job_id;
    for _ in 0..300 {
        let items = admin.list_work(ListWorkRequest {}).await.unwrap().into_inner().items;
        assert!(items.iter().any(|item| item.job_id == job), "{items:?}");
        if items.iter().all(|item| item.done) {
            assert_eq!(items[0].kind(), TaskKind::VerifyChecksums);
            assert_eq!(items[0].counts.unwrap().objects, 1);
            let cancel = CancelWorkRequest { job_id: job };
            assert!(admin.cancel_work(cancel).await.unwrap().into_inner().cancelled);
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the job does not end");
}

#[tokio::test]
async fn managing_osds_refuses_what_is_wrong_by_name() {
    use alba_osds::*;
    let dir = tempfile::tempdir().unwrap();
    let (_, _, mut osds) = served(dir.path()).await;
    let listed = osds.list_osds(ListOsdsRequest {}).await.unwrap().into_inner().osds;
    let id = listed[0].osd_id.clone();
    let claim = |address: &str| ClaimOsdRequest { address: address.into(), ..Default::default() };
    for address in ["", "nowhere", "unix:", "127.0.0.1:notaport"] {
        let refusal = osds.claim_osd(claim(address)).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{address}: {refusal:?}");
        let announce = AnnounceOsdRequest { address: address.into() };
        let refusal = osds.announce_osd(announce).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{address}: {refusal:?}");
    }
    refused(osds.claim_osd(claim("127.0.0.1:1")).await, Code::Unavailable, "127.0.0.1:1");
    let role = |osd_id: &str, role: i32| SetOsdRoleRequest { osd_id: osd_id.into(), role };
    let (active, unknown) = (Role::Active.into(), "0".repeat(32));
    refused(osds.set_osd_role(role("x", active)).await, Code::InvalidArgument, "\"x\"");
    refused(osds.set_osd_role(role(&unknown, active)).await, Code::NotFound, &unknown);
    for no_role in [0, 99, -1] {
        refused(osds.set_osd_role(role(&id, no_role)).await, Code::InvalidArgument, "role");
    }
    let purge = |osd_id: &str| PurgeOsdRequest { osd_id: osd_id.into(), force: false };
    refused(osds.purge_osd(purge("x")).await, Code::InvalidArgument, "\"x\"");
    refused(osds.purge_osd(purge(&unknown)).await, Code::NotFound, &unknown);
    refused(osds.purge_osd(purge(&id)).await, Code::FailedPrecondition, "not decommissioning");
}
