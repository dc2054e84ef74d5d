//! The stores of our own, in this process and over the wire.

use backend_alba::server::{Address, AlbaService, Server};
use backend_alba::{Alba, Config};
use tokio::task::LocalSet;

use super::*;
use crate::config::AlbaUrl;
use crate::store::alba::AlbaStore;
use crate::store::embedded::Embedded;

fn on_local_thread(test: impl Future<Output = ()>) {
    // As in the daemon: the caller's runtime is not the one that does the work.
    let local = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&local, test);
}

fn service() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn embedded_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let service = service();
    let store = service.block_on(Embedded::open(Config::new(dir.path()))).unwrap();
    on_local_thread(conforms(&store));
}

fn url(address: &Address, prefix: &str) -> AlbaUrl {
    let endpoint = address.to_string().parse().unwrap();
    AlbaUrl { endpoint, prefix: prefix.into(), preset: None, tls: None }
}

fn serve_and_conform(address: &Address, prefix: &str) {
    let dir = tempfile::tempdir().unwrap();
    let service = service();
    let store = service.block_on(async {
        let alba = Alba::open(Config::new(dir.path())).await.unwrap();
        let server = Server::bind(address, None).await.unwrap();
        let store = AlbaStore::connect(&url(server.address(), prefix)).unwrap();
        tokio::spawn(server.serve(AlbaService::new(alba).routes(), std::future::pending()));
        store
    });
    on_local_thread(conforms(&store));
}

#[test]
fn alba_over_tcp_conforms() {
    serve_and_conform(&"127.0.0.1:0".parse().unwrap(), "pool-1.");
}

#[test]
fn alba_over_a_unix_socket_conforms() {
    let dir = tempfile::tempdir().unwrap();
    serve_and_conform(&Address::Unix(dir.path().join("alba.sock")), "");
}

#[test]
fn the_client_comes_back_when_the_server_does() {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("alba.sock"));
    let config = Config::new(dir.path().join("data"));
    let service = service();
    let store = service.block_on(async { AlbaStore::connect(&url(&address, "")).unwrap() });
    let life = |config: Config| {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let address = address.clone();
        let task = service.spawn(async move {
            let alba = Alba::open(config).await.unwrap();
            let server = Server::bind(&address, None).await.unwrap();
            let service = AlbaService::new(alba).routes();
            server.serve(service, async { drop(stopped.await) }).await.unwrap();
        });
        (stop, task)
    };
    let until_there = async || {
        for _ in 0..200 {
            match store.list_namespaces("").await {
                Ok(names) => return names,
                Err(fault) => assert_eq!(fault.kind, Kind::Unavailable, "{fault}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the server did not come back within 4 s");
    };
    on_local_thread(async {
        assert_eq!(store.head("ns", "x").await.unwrap_err().kind, Kind::Unavailable);
        let (stop, task) = life(config.clone());
        assert_eq!(until_there().await, [""; 0]);
        store.create_namespace("ns").await.unwrap();
        drop(stop);
        task.await.unwrap();
        let put = store.put_if_absent("ns", "x", vec![noise(5 << 20)], Purpose::Data).await;
        assert_eq!(put.unwrap_err().kind, Kind::Unavailable);
        let (_stop, _task) = life(config.clone());
        assert_eq!(until_there().await, ["ns"]);
        assert_eq!(
            store.put_if_absent("ns", "x", vec![noise(5 << 20)], Purpose::Data).await.unwrap(),
            Put::Created
        );
    });
}

#[test]
fn damage_is_named_over_the_wire_and_costs_its_block_only() {
    let dir = tempfile::tempdir().unwrap();
    let service = service();
    let address = Address::Unix(dir.path().join("alba.sock"));
    let store = service.block_on(async {
        let alba = Alba::open(Config::new(dir.path().join("data"))).await.unwrap();
        let server = Server::bind(&address, None).await.unwrap();
        tokio::spawn(server.serve(AlbaService::new(alba).routes(), std::future::pending()));
        AlbaStore::connect(&url(&address, "")).unwrap()
    });
    on_local_thread(async {
        let body = noise(3 << 20);
        store.create_namespace("ns").await.unwrap();
        store.put_if_absent("ns", "sco", vec![body.clone()], Purpose::Data).await.unwrap();
        let shards = std::fs::read_dir(dir.path().join("data/osd/objects")).unwrap().flatten();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.path()).unwrap().flatten());
        let file = files.map(|entry| entry.path()).next().unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[2 << 20] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let fault = store.get_range("ns", "sco", 0, 3 << 20).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt);
        assert!(fault.message.contains("2097152..2162688"), "{fault}");
        let got = store.get_range("ns", "sco", 0, 2 << 20).await.unwrap().unwrap();
        assert!(got == body.slice(..2 << 20));
    });
}
