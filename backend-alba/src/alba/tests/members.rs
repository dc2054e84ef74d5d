//! OSDs that come and go while the backend runs: disks behind sockets, claimed, lost, found again, purged.

use super::*;
use crate::nsm::OsdRole;
use crate::preset::Raw;
use crate::server::{Address, OsdService, Place, Server};

/// An ASD of this process.
struct Disk {
    root: PathBuf,
    address: Address,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: Option<tokio::task::JoinHandle<Result<()>>>,
}

impl Disk {
    async fn start(dir: &Path, n: usize) -> Self {
        let (root, socket) = (dir.join(format!("disk{n}")), dir.join(format!("socket{n}")));
        let mut disk = Self { root, address: Address::Unix(socket), stop: None, server: None };
        disk.restart().await;
        disk
    }

    async fn restart(&mut self) {
        let osd = crate::Asd::open(self.root.clone(), None, 4).await.unwrap();
        let node = self.root.file_name().unwrap().to_string_lossy().into_owned();
        let service = OsdService::new(osd, Place::new(node, Vec::new()).unwrap());
        let server = Server::bind(&self.address, None).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serve = server.serve(service.routes(), async { drop(stopped.await) });
        (self.stop, self.server) = (Some(stop), Some(tokio::spawn(serve)));
    }

    async fn stop(&mut self) {
        drop(self.stop.take());
        self.server.take().unwrap().await.unwrap().unwrap();
    }

    fn files(&self) -> usize {
        let shards = fs::read_dir(self.root.join("objects")).unwrap().flatten();
        shards.map(|shard| fs::read_dir(shard.path()).unwrap().count()).sum()
    }
}

async fn open_claimed(dir: &Path, name: &str) -> Alba {
    let config = Config { only_claimed: true, ..Config::new(dir.join(name)) };
    Alba::open(config).await.unwrap()
}

/// A backend of so many ASDs that stores two fragments and one parity of everything.
async fn of_disks(dir: &Path, count: usize) -> (Alba, Vec<Disk>, Vec<OsdId>) {
    let alba = open_claimed(dir, "data").await;
    let (mut disks, mut ids) = (Vec::new(), Vec::new());
    for n in 0..count {
        disks.push(Disk::start(dir, n).await);
        ids.push(alba.claim_osd(&disks[n].address.to_string()).await.unwrap());
    }
    let raw = Raw { fragment_bytes: 65_536, ..Raw::of(&["2,1,2,1"]) };
    alba.put_preset("test", raw).await.unwrap();
    alba.create_namespace_with("ns", Some("test")).await.unwrap();
    (alba, disks, ids)
}

async fn put(alba: &Alba, name: &str, body: &Bytes) -> Result<Put> {
    alba.put_if_absent("ns", name, vec![body.clone()], Purpose::Data).await
}

async fn check(alba: &Alba, name: &str, body: &Bytes) {
    let read = alba.get_range("ns", name, 0, body.len() as u64).await.unwrap().unwrap();
    assert!(read == *body, "{name}");
}

async fn state_of(alba: &Alba, id: OsdId) -> OsdState {
    let status = alba.status().await.unwrap();
    status.osds.iter().find(|osd| osd.id == id).unwrap().state
}

async fn until_it_is(alba: &Alba, id: OsdId, state: OsdState) {
    for _ in 0..300 {
        if state_of(alba, id).await == state {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(state_of(alba, id).await, state);
}

#[tokio::test]
async fn a_claimed_osd_is_used_at_once_and_by_one_backend_only() {
    let dir = tempfile::tempdir().unwrap();
    let (alba, disks, ids) = of_disks(dir.path(), 2).await;
    let body = noise(1 << 20, 1);
    // Three nodes are needed for three fragments, two of which must be stored.
    put(&alba, "two", &body).await.unwrap();
    let third = Disk::start(dir.path(), 2).await;
    let address = format!("asd://{}", third.address);
    alba.announce_osd(&address).await.unwrap();
    let found = alba.candidates();
    assert_eq!((found.len(), found[0].said.owner), (1, None));
    let other = open_claimed(dir.path(), "other").await;
    let taken = other.claim_osd(&disks[0].address.to_string()).await.unwrap_err();
    assert_eq!(taken.kind, Kind::Invalid);
    assert!(taken.message.contains(&alba.id().to_string()), "{taken}");
    let id = alba.claim_osd(&address).await.unwrap();
    assert_eq!(alba.candidates().len(), 0);
    put(&alba, "three", &body).await.unwrap();
    let manifest = alba.head("ns", "three").await.unwrap().unwrap();
    assert!(manifest.fragments.iter().any(|fragment| fragment.osd == id));
    check(&alba, "two", &body).await;
    check(&alba, "three", &body).await;
    // Claimed again, nothing changes; nobody listens there, it says so.
    assert_eq!(alba.claim_osd(&address).await.unwrap(), id);
    assert!(!ids.contains(&id));
    let nobody = Address::Unix(dir.path().join("nobody")).to_string();
    assert_eq!(alba.claim_osd(&nobody).await.unwrap_err().kind, Kind::Unavailable);
    assert_eq!(alba.claim_osd("nonsense").await.unwrap_err().kind, Kind::Invalid);
}

#[tokio::test]
async fn disks_that_are_gone_are_failing_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (alba, mut disks, ids) = of_disks(dir.path(), 4).await;
    let body = noise(1 << 20, 2);
    put(&alba, "x", &body).await.unwrap();
    for disk in &mut disks[..2] {
        disk.stop().await;
    }
    put(&alba, "y", &body).await.unwrap();
    check(&alba, "y", &body).await;
    alba.close().await;
    // One that cannot be reached at the start is there, as failing.
    let alba = open_claimed(dir.path(), "data").await;
    assert_eq!(state_of(&alba, ids[0]).await, OsdState::Failing);
    assert_eq!(state_of(&alba, ids[3]).await, OsdState::Ready);
    check(&alba, "y", &body).await;
    for disk in &mut disks[..2] {
        disk.restart().await;
    }
    until_it_is(&alba, ids[0], OsdState::Ready).await;
    check(&alba, "x", &body).await;
    // Wiped, it is another OSD; the one that was stays failing.
    disks[3].stop().await;
    fs::remove_dir_all(&disks[3].root).unwrap();
    disks[3].restart().await;
    let new = alba.claim_osd(&disks[3].address.to_string()).await.unwrap();
    assert_ne!(new, ids[3]);
    until_it_is(&alba, ids[3], OsdState::Failing).await;
    until_it_is(&alba, new, OsdState::Ready).await;
    check(&alba, "x", &body).await;
}

#[tokio::test]
async fn an_osd_is_purged_once_nothing_lies_there() {
    let dir = tempfile::tempdir().unwrap();
    let (alba, mut disks, ids) = of_disks(dir.path(), 3).await;
    put(&alba, "x", &noise(1 << 20, 3)).await.unwrap();
    let still = alba.purge_osd(ids[0], false).await.unwrap_err();
    assert!(still.message.contains("not decommissioning"), "{still}");
    alba.set_osd_role(ids[0], OsdRole::Decommissioning).await.unwrap();
    let used = alba.purge_osd(ids[0], false).await.unwrap_err();
    assert!(used.message.contains("still holds fragments"), "{used}");
    alba.delete("ns", "x").await.unwrap();
    assert_eq!(disks.iter().map(Disk::files).sum::<usize>(), 0);
    let purged = alba.purge_osd(ids[0], false).await.unwrap();
    assert_eq!(purged, Purged { released: true, note: String::new() });
    assert_eq!(alba.status().await.unwrap().osds.len(), 2);
    assert_eq!(alba.purge_osd(ids[0], false).await.unwrap_err().kind, Kind::NotFound);
    // Free for others.
    let other = open_claimed(dir.path(), "other").await;
    assert_eq!(other.claim_osd(&disks[0].address.to_string()).await.unwrap(), ids[0]);
    // By force, with what lies there; its files are then nobody's business.
    let body = noise(1 << 20, 4);
    alba.put_preset("test", Raw::of(&["1,1,2,1"])).await.unwrap();
    put(&alba, "y", &body).await.unwrap();
    disks[1].stop().await;
    let forced = alba.purge_osd(ids[1], true).await.unwrap();
    assert!(!forced.released && forced.note.contains("lost"), "{forced:?}");
    check(&alba, "y", &body).await;
    assert!(alba.delete("ns", "y").await.unwrap());
    assert_eq!(alba.inner.nsm.removals(None, 9).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_lost_nsm_is_rebuilt_from_asds() {
    let dir = tempfile::tempdir().unwrap();
    let (alba, mut disks, _) = of_disks(dir.path(), 3).await;
    let id = alba.id();
    let bodies = [noise(1 << 20, 6), noise(9, 7), noise(0, 8)];
    for (n, body) in bodies.iter().enumerate() {
        put(&alba, &n.to_string(), body).await.unwrap();
    }
    alba.close().await;
    fs::remove_dir_all(dir.path().join("data/nsm")).unwrap();
    // One of three is lost too.
    disks[2].stop().await;
    let at = |disk: &Disk| Elsewhere::at(crate::osd::Place::Asd(disk.address.clone()));
    let elsewhere = disks[..2].iter().map(at).collect();
    let config = Config { only_claimed: true, elsewhere, ..Config::new(dir.path().join("data")) };
    let recovered = crate::recover(config.clone()).await.unwrap();
    assert_eq!((recovered.id, recovered.osds), (id, 2));
    assert_eq!((recovered.outcome.objects.len(), recovered.damaged.len()), (3, 0));
    let alba = open_claimed(dir.path(), "data").await;
    for (n, body) in bodies.iter().enumerate() {
        check(&alba, &n.to_string(), body).await;
    }
    // Another backend's disk is none of its.
    let strange = Disk::start(dir.path(), 9).await;
    open_claimed(dir.path(), "other").await.claim_osd(&strange.address.to_string()).await.unwrap();
    let elsewhere = vec![at(&disks[0]), at(&strange)];
    let config = Config { only_claimed: true, elsewhere, ..Config::new(dir.path().join("again")) };
    let refused = crate::recover(config).await.unwrap_err();
    assert!(refused.message.contains("belongs to backend"), "{refused}");
}

#[tokio::test]
async fn a_directory_that_is_missing_at_the_start_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let place = |n: usize| OsdPlace {
        node: format!("n{n}"),
        ..OsdPlace::new(dir.path().join(format!("mount{n}/osd")))
    };
    let config = Config { osds: vec![place(0), place(1)], ..Config::new(dir.path().join("data")) };
    let alba = Alba::open(config.clone()).await.unwrap();
    alba.put_preset("test", Raw::of(&["1,1,1,1"])).await.unwrap();
    alba.create_namespace_with("ns", Some("test")).await.unwrap();
    let body = noise(100_000, 5);
    put(&alba, "x", &body).await.unwrap();
    let lost = alba.inner.osds.all().iter().find(|osd| osd.node == "n0").unwrap().id();
    alba.close().await;
    // What is in the mount's place is no directory.
    fs::rename(dir.path().join("mount0"), dir.path().join("away")).unwrap();
    fs::write(dir.path().join("mount0"), "").unwrap();
    let alba = Alba::open(config).await.unwrap();
    assert_eq!(state_of(&alba, lost).await, OsdState::Failing);
    check(&alba, "x", &body).await;
    fs::remove_file(dir.path().join("mount0")).unwrap();
    fs::rename(dir.path().join("away"), dir.path().join("mount0")).unwrap();
    for _ in 0..100 {
        alba.inner.open_missing().await;
        if state_of(&alba, lost).await == OsdState::Ready {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(state_of(&alba, lost).await, OsdState::Ready);
    check(&alba, "x", &body).await;
}
