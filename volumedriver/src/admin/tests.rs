use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use volumedriver_core::fault::{Fault, Kind};

use super::door::{Command, door};
use super::*;
use crate::metrics::Metrics;

fn info(name: &str, state: VdiskState) -> VdiskInfo {
    VdiskInfo {
        name: name.to_owned(),
        id: VolumeId([7; 16]),
        size: ByteCount(1 << 30),
        cluster_size: ClusterSize::DEFAULT,
        settings: VdiskSettings::default(),
        state,
        epoch: Epoch(1),
        manifest: ManifestNo(1),
        last_seq: Seq(2),
        published_seq: Seq(1),
        backlog: ByteCount(4096),
        upload_lag: Duration::from_secs(1),
        connections: 0,
        space: SpaceInfo::default(),
        keys: Vec::new(),
    }
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let path = socket::path(dir.path());

    let first = socket::bind(&path).unwrap();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let fault = socket::bind(&path).unwrap_err();
    assert_eq!(fault.kind, Kind::Invalid);
    assert!(fault.to_string().contains("another process is listening"), "{fault}");
    // What a killed process leaves behind.
    drop(first);
    assert!(path.exists());
    drop(socket::bind(&path).unwrap());

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let fault = socket::bind(&path).unwrap_err();
    assert!(fault.to_string().contains("not a socket"), "{fault}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    let long = dir.path().join("x".repeat(100)).join("management.sock");
    assert!(socket::bind(&long).unwrap_err().to_string().contains("shorter data directory"));
}

#[tokio::test]
async fn questions_end_when_the_engine_is_gone() {
    let (engine, commands) = door();
    let question = tokio::spawn({
        let engine = engine.clone();
        async move { engine.list().await }
    });
    tokio::task::yield_now().await;
    drop(commands);
    assert_eq!(question.await.unwrap().unwrap_err().kind, Kind::Closed);
    assert_eq!(engine.status().await.unwrap_err().kind, Kind::Closed);
}

#[tokio::test]
async fn questions_are_bounded_and_answered_in_order() {
    let (engine, mut commands) = door();
    let questions: Vec<_> = (0..100)
        .map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.show(format!("disk{n}")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(commands.len() < 100, "further ones wait outside");
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            let Command::Show(name, answer) = command else { panic!("{command:?}") };
            answer.send(Ok(info(&name, VdiskState::Running))).unwrap();
        }
    });
    for (n, question) in questions.into_iter().enumerate() {
        assert_eq!(question.await.unwrap().unwrap().name, format!("disk{n}"));
    }
}

/// The status line and body of a GET.
async fn get(address: std::net::SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test]
async fn metrics_and_health_are_served_over_http() {
    let (engine, mut commands) = door();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::new());
    metrics.volume("disk").set_state("running");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(http::serve(listener, engine, metrics, async {
        let _ = stopped.await;
    }));
    let answering = tokio::spawn(async move {
        let healthy = Ok(vec![info("disk", VdiskState::Running)]);
        let damaged = Ok(vec![info("disk", VdiskState::ReadOnly("SCO 3 is damaged".to_owned()))]);
        for reply in [healthy, damaged, Err(Fault::unavailable("busy"))] {
            let Some(Command::List(answer)) = commands.recv().await else { panic!() };
            answer.send(reply).unwrap();
        }
    });
    let (status, body) = get(address, "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(body.contains("volumedriver_volume_state{volume=\"disk\",state=\"running\"} 1"));
    assert_eq!(get(address, "/healthz").await, ("HTTP/1.1 200 OK".into(), "ok\n".into()));
    let (status, body) = get(address, "/healthz").await;
    assert!(status.contains("503"), "{status}");
    assert_eq!(body, "disk: read-only: SCO 3 is damaged\n");
    let (status, body) = get(address, "/healthz").await;
    assert!(status.contains("503") && body == "busy\n", "{status} {body}");
    assert!(get(address, "/other").await.0.contains("404"));
    answering.await.unwrap();
    drop(stop);
    serving.await.unwrap().unwrap();
}
