//! What a hostile client may send, over a real socket.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use wire::alba_client::AlbaClient;
use wire::put_request::Part;

use super::*;
use crate::alba::Config;

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
