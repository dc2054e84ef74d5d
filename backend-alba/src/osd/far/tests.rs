//! A namespace of another ALBA as an OSD: over a socket, and with the other side away, damaged or full.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::*;
use crate::name::OsdId;
use crate::net::{Address, Server};
use crate::osd::conformance::{conforms, noise, open, put, refuses_strangers};
use crate::osd::objects::{OnObjects, owner};
use crate::osd::{Osd, Priority};
use crate::server::AlbaService;
use crate::{Alba, Config};

const OURS: AlbaId = AlbaId([1; 16]);
const THEIRS: AlbaId = AlbaId([2; 16]);

struct Other {
    alba: Alba,
    dir: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: Option<JoinHandle<Result<()>>>,
}

impl Other {
    async fn serve() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let alba = Alba::open(Config::new(dir.path().join("data"))).await.unwrap();
        let mut other = Self { alba, dir, stop: None, server: None };
        other.listen().await;
        other
    }

    async fn listen(&mut self) {
        let address = Address::Unix(self.dir.path().join("socket"));
        let server = Server::bind(&address, None).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let routes = AlbaService::new(self.alba.clone()).routes();
        let serve = server.serve(routes, async { drop(stopped.await) });
        (self.stop, self.server) = (Some(stop), Some(tokio::spawn(serve)));
    }

    async fn be_silent(&mut self) {
        drop(self.stop.take());
        self.server.take().unwrap().await.unwrap().unwrap();
    }

    fn url(&self, more: &str) -> AlbaUrl {
        let path = self.dir.path().join("socket");
        format!("alba+unix:{}?namespace=far{more}", path.display()).parse().unwrap()
    }

    async fn claim(&self, alba: AlbaId) -> Result<OnObjects> {
        let far = FarAlba::new(self.url(""), None).unwrap();
        far.prepare(alba).await?;
        let id = owner::claim(&far, alba, OsdId::random()).await?;
        Ok(OnObjects::new((id, alba), Arc::new(far)))
    }
}

#[tokio::test]
async fn another_alba_conforms() {
    let other = Other::serve().await;
    let osd = other.claim(OURS).await.unwrap();
    conforms(&osd).await;
    let far = Arc::new(FarAlba::new(other.url(""), None).unwrap());
    refuses_strangers(&osd, &OnObjects::new((osd.id(), THEIRS), far)).await;
    let left = other.alba.list("far", "", "", 0).await.unwrap();
    assert_eq!(left.names, ["osd/0000000000000001"]);
    let taken = other.claim(THEIRS).await.unwrap_err();
    assert!(taken.message.contains(&OURS.to_string()), "{taken}");
    osd.release(OURS).await.unwrap();
    assert_eq!(other.claim(THEIRS).await.unwrap().id(), osd.id());
}

#[tokio::test]
async fn its_namespace_has_the_preset_that_is_asked_for() {
    let other = Other::serve().await;
    let raw = crate::preset::Raw::of(&["1,0,1,1"]);
    other.alba.put_preset("geo", raw).await.unwrap();
    let far = FarAlba::new(other.url("&preset=geo"), None).unwrap();
    far.prepare(OURS).await.unwrap();
    assert_eq!(other.alba.preset_of("far").await.unwrap(), "geo");
    let unknown =
        FarAlba::new(AlbaUrl { namespace: "new".into(), ..other.url("&preset=nothing") }, None);
    let fault = unknown.unwrap().prepare(OURS).await.unwrap_err();
    assert!(fault.kind == Kind::Invalid && fault.message.contains("nothing"), "{fault}");
    let itself = far.prepare(other.alba.id()).await.unwrap_err();
    assert!(itself.kind == Kind::Invalid && itself.message.contains("itself"), "{itself}");
}

#[tokio::test]
async fn one_that_is_away_is_out_of_reach_and_comes_back() {
    let mut other = Other::serve().await;
    let osd = other.claim(OURS).await.unwrap();
    let wanted = put(&osd, &noise(100), 100).await;
    let fragment = open(&osd, wanted).await;
    other.be_silent().await;
    for outcome in [
        fragment.clone().read(0, 100, Priority::Foreground).await.map(drop),
        osd.open(wanted, Priority::Foreground).await.map(drop),
        osd.room().await.map(drop),
        osd.list(0).await.map(drop),
    ] {
        assert_eq!(outcome.unwrap_err().kind, Kind::Unavailable);
    }
    other.listen().await;
    for _ in 0..100 {
        if osd.room().await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(fragment.read(0, 100, Priority::Foreground).await.unwrap() == noise(100));
}

#[tokio::test]
async fn damage_there_is_damage_here() {
    let other = Other::serve().await;
    let osd = other.claim(OURS).await.unwrap();
    let wanted = put(&osd, &noise(300_000), 100_000).await;
    let fragment = open(&osd, wanted).await;
    let files = Tree(other.dir.path().join("data/osd/objects")).files();
    for file in files {
        let mut bytes = std::fs::read(&file).unwrap();
        if bytes.len() > 300_000 {
            bytes[70_000] ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
    }
    let hit = fragment.read(65_536, 70_001, Priority::Foreground).await.unwrap_err();
    assert_eq!(hit.kind, Kind::Corrupt, "{hit}");
}

struct Tree(std::path::PathBuf);

impl Tree {
    fn files(&self) -> Vec<std::path::PathBuf> {
        let shards = std::fs::read_dir(&self.0).unwrap().flatten();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.path()).unwrap().flatten());
        files.map(|file| file.path()).collect()
    }
}

#[tokio::test]
async fn a_put_whose_checksum_does_not_come_or_does_not_match_leaves_nothing() {
    let other = Other::serve().await;
    other.alba.create_namespace("far").await.unwrap();
    let far = FarAlba::new(other.url(""), None).unwrap();
    let chunk = || message(Part::Chunk(noise(5)));
    let crc = |crc| message(Part::Crc32(crc));
    for rest in [
        vec![chunk()],
        vec![chunk(), crc(1)],
        vec![crc(crc32fast::hash(&noise(5))), chunk()],
        vec![chunk(), crc(crc32fast::hash(&noise(5))), chunk()],
        vec![crc(0)],
    ] {
        let messages: Vec<_> = [far.header("x", 5, 0)].into_iter().chain(rest).collect();
        let refused = far.send(stream::iter(messages)).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Unavailable, "{refused}");
        assert_eq!(far.head("x").await.unwrap(), None);
    }
    let fine = [far.header("x", 5, 0), chunk(), crc(crc32fast::hash(&noise(5)))];
    assert_eq!(far.send(stream::iter(fine)).await.unwrap(), Created::Now);
}
