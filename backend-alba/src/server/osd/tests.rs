//! An ASD and its client over a real socket: fragments, claims, damage, a server that hangs, a client that talks nonsense.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tonic::Code;
use tonic::transport::Channel;
use wire::osd_client::OsdClient;

use super::*;
use crate::fault::Kind;
use crate::net::{Address, Server, endpoint};
use crate::osd::conformance::{conforms, keeps_sequences_apart, refuses_strangers};
use crate::osd::{Fragment, Osd, Remote, describe};

const OURS: AlbaId = AlbaId([1; 16]);
const THEIRS: AlbaId = AlbaId([2; 16]);

struct Disk {
    dir: tempfile::TempDir,
    id: OsdId,
    address: Address,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<crate::fault::Result<()>>,
}

impl Disk {
    async fn serve() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let osd = Asd::open(dir.path().join("disk"), None, 4).await.unwrap();
        let id = osd.0.directory().id;
        let address = Address::Unix(dir.path().join("socket"));
        let server = Server::bind(&address, None).await.unwrap();
        let place = Place::new("n1".into(), vec!["ssd".into()]).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let routes = OsdService::new(osd, place).routes();
        let server = tokio::spawn(server.serve(routes, async { drop(stopped.await) }));
        Self { dir, id, address, stop: Some(stop), server }
    }

    /// Claimed by us.
    async fn claimed() -> (Self, Remote) {
        let disk = Self::serve().await;
        let remote = disk.remote(OURS);
        remote.claim().await.unwrap();
        (disk, remote)
    }

    fn remote(&self, alba: AlbaId) -> Remote {
        Remote::new((self.id, alba), self.address.clone(), None).unwrap()
    }

    fn client(&self) -> OsdClient<Channel> {
        OsdClient::new(endpoint(&self.address, None).unwrap())
    }

    fn files(&self) -> Vec<PathBuf> {
        let shards = std::fs::read_dir(self.dir.path().join("disk/objects")).unwrap().flatten();
        let of = |shard: std::fs::DirEntry| std::fs::read_dir(shard.path()).unwrap().flatten();
        shards.flat_map(of).map(|file| file.path()).collect()
    }
}

fn noise(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn title(len: u64) -> Title {
    let layout = Layout { len, policy: Policy::SINGLE, unit: 1 << 20 };
    let part = Part { object: ObjectId::random(), layout, object_crc: 0, index: 0 };
    let (namespace, name, priority) = ("ns".into(), "name".into(), Priority::Foreground);
    let (file, purpose) = (FragmentId::random(), Purpose::Data);
    Title { file, namespace, name, part, created_ms: 7, purpose, priority }
}

async fn put(remote: &Remote, body: &Bytes) -> Wanted {
    let title = title(body.len() as u64);
    let (file, len) = (title.file, body.len() as u64);
    let mut writer = remote.create(title).await.unwrap();
    let (first, rest) = (body.slice(..body.len() / 3), body.slice(body.len() / 3..));
    writer.append(vec![first]).await.unwrap();
    writer.append(vec![rest]).await.unwrap();
    let crc = writer.finish(None).await.unwrap();
    assert_eq!(crc, crc32fast::hash(body));
    writer.keep();
    Wanted { file, len, crc }
}

async fn open(remote: &Remote, wanted: Wanted) -> Arc<dyn Fragment> {
    remote.open(wanted, Priority::Background).await.unwrap().unwrap()
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen within 10 s");
}

#[tokio::test]
async fn an_asd_conforms() {
    let (disk, remote) = Disk::claimed().await;
    conforms(&remote).await;
    keeps_sequences_apart(&remote).await;
    refuses_strangers(&remote, &disk.remote(THEIRS)).await;
    assert_eq!(disk.files().len(), 0);
}

#[tokio::test]
async fn what_is_put_is_read_listed_and_removed() {
    let (disk, remote) = Disk::claimed().await;
    for len in [0, 1, 65_536, 65_537, (3 << 20) + 5] {
        let body = noise(len);
        let wanted = put(&remote, &body).await;
        let fragment = open(&remote, wanted).await;
        for (from, to) in [(0, len), (len / 2, len), (len / 3, len / 2), (len, len)] {
            let read = fragment.clone().read(from as u64, to as u64, Priority::Foreground).await;
            assert!(read.unwrap() == body.slice(from..to), "{from}..{to} of {len}");
        }
        assert_eq!(remote.list(wanted.file.0[0]).await.unwrap(), [wanted.file]);
        let said = Osd::describe(&remote, wanted.file).await.unwrap().unwrap();
        assert_eq!((said.len, said.crc, said.name.as_str()), (wanted.len, wanted.crc, "name"));
        remote.remove(wanted.file).await.unwrap();
        remote.remove(wanted.file).await.unwrap();
        assert!(remote.open(wanted, Priority::Foreground).await.unwrap().is_none());
        assert!(Osd::describe(&remote, wanted.file).await.unwrap().is_none());
        if len > 0 {
            let gone = fragment.clone().read(0, 1, Priority::Foreground).await.unwrap_err();
            assert_eq!(gone.kind, Kind::Corrupt);
            assert!(fragment.is_removed() && gone.message.contains("missing"), "{gone}");
        }
    }
    assert!(remote.room().await.unwrap().free_bytes > 0);
    assert_eq!(disk.files().len(), 0);
}

#[tokio::test]
async fn what_is_not_kept_leaves_nothing() {
    let (disk, remote) = Disk::claimed().await;
    let mut half = remote.create(title(1 << 20)).await.unwrap();
    half.append(vec![noise(1000)]).await.unwrap();
    eventually(|| disk.files().len() == 1).await;
    half.discard().await;
    assert_eq!(disk.files().len(), 0);
    // Dropped in the middle, too short, too long, whole but unwanted.
    drop(remote.create(title(1 << 20)).await.unwrap());
    let mut short = remote.create(title(10)).await.unwrap();
    assert!(short.finish(None).await.is_err());
    drop(short);
    let mut long = remote.create(title(10)).await.unwrap();
    let _ = long.append(vec![noise(11)]).await;
    assert!(long.finish(None).await.is_err());
    drop(long);
    let mut whole = remote.create(title(10)).await.unwrap();
    whole.append(vec![noise(10)]).await.unwrap();
    whole.finish(Some(7)).await.unwrap();
    assert_eq!(disk.files().len(), 1);
    whole.discard().await;
    eventually(|| disk.files().is_empty()).await;
    // What does not fit is refused before a byte is sent.
    let full = remote.create(title(1 << 39)).await.err().unwrap();
    assert_eq!(full.kind, Kind::NoSpace, "{full}");
}

#[tokio::test]
async fn an_osd_is_one_backends() {
    let disk = Disk::serve().await;
    let (ours, theirs) = (disk.remote(OURS), disk.remote(THEIRS));
    let said = describe(&disk.address, None).await.unwrap();
    assert_eq!((said.id, said.owner), (disk.id, None));
    assert_eq!((said.node.as_str(), &said.labels[..]), ("n1", &["ssd".to_string()][..]));
    let free = ours.room().await.unwrap_err();
    assert!(free.message.contains("belongs to no backend"), "{free}");
    ours.claim().await.unwrap();
    ours.claim().await.unwrap();
    let refused = theirs.claim().await.unwrap_err();
    assert_eq!(refused.kind, Kind::Invalid);
    assert!(refused.message.contains(&OURS.to_string()), "{refused}");
    let wanted = put(&ours, &noise(100)).await;
    // Somebody else's client, and ours of an OSD that is no longer there.
    let another = OsdId([9; 16]);
    let stale = Remote::new((another, OURS), disk.address.clone(), None).unwrap();
    for remote in [&theirs, &stale] {
        for outcome in [
            remote.room().await.map(drop),
            remote.create(title(1)).await.map(drop),
            remote.open(wanted, Priority::Foreground).await.map(drop),
            remote.remove(wanted.file).await,
            remote.list(0).await.map(drop),
        ] {
            assert_eq!(outcome.unwrap_err().kind, Kind::Unavailable);
        }
    }
    assert!(theirs.release(THEIRS).await.is_err() && stale.release(OURS).await.is_err());
    ours.release(OURS).await.unwrap();
    theirs.claim().await.unwrap();
    assert_eq!(describe(&disk.address, None).await.unwrap().owner, Some(THEIRS));
    assert!(ours.room().await.is_err());
}

#[tokio::test]
async fn damage_is_seen_by_whoever_reads() {
    let (disk, remote) = Disk::claimed().await;
    let body = noise(200_000);
    let wanted = put(&remote, &body).await;
    let fragment = open(&remote, wanted).await;
    let file = disk.files().pop().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[70_000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let hit = fragment.clone().read(65_536, 65_537, Priority::Foreground).await.unwrap_err();
    assert_eq!(hit.kind, Kind::Corrupt);
    assert!(hit.message.contains("65536..131072"), "{hit}");
    let read = fragment.clone().read(0, 65_536, Priority::Foreground).await.unwrap();
    assert!(read == body.slice(..65_536));
    // The trailer of another fragment in its place; a file too short; none.
    let other = put(&remote, &noise(200_001).slice(1..)).await;
    let of_other = disk.files().into_iter().find(|path| *path != file).unwrap();
    std::fs::copy(&of_other, &file).unwrap();
    let swapped = remote.open(wanted, Priority::Foreground).await.err().unwrap();
    assert_eq!(swapped.kind, Kind::Corrupt, "{swapped}");
    std::fs::File::options().write(true).open(&file).unwrap().set_len(1000).unwrap();
    let cut = fragment.clone().read(0, 65_536, Priority::Foreground).await.unwrap_err();
    assert_eq!(cut.kind, Kind::Corrupt, "{cut}");
    let wrong = Wanted { crc: other.crc ^ 1, ..other };
    assert_eq!(remote.open(wrong, Priority::Foreground).await.err().unwrap().kind, Kind::Corrupt);
}

#[tokio::test]
async fn a_server_that_goes_comes_back_or_hangs_costs_a_bounded_time() {
    let (mut disk, remote) = Disk::claimed().await;
    let wanted = put(&remote, &noise(100)).await;
    let fragment = open(&remote, wanted).await;
    drop(disk.stop.take());
    disk.server.await.unwrap().unwrap();
    let gone = fragment.clone().read(0, 100, Priority::Foreground).await.unwrap_err();
    assert_eq!(gone.kind, Kind::Unavailable);
    // Somebody who takes connections and never says anything.
    let Address::Unix(path) = &disk.address else { unreachable!() };
    let silent = tokio::net::UnixListener::bind(path).unwrap();
    let accepted = Arc::new(AtomicBool::new(false));
    let seen = accepted.clone();
    let hung = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(silent.accept().await.unwrap());
            seen.store(true, Ordering::SeqCst);
        }
    });
    let impatient = remote.clone().with_deadline(Duration::from_millis(300));
    let late = impatient.room().await.unwrap_err();
    assert_eq!(late.kind, Kind::Unavailable);
    assert!(accepted.load(Ordering::SeqCst), "{late}");
    hung.abort();
    let _ = hung.await;
    std::fs::remove_file(path).unwrap();
    // The same disk again, by the same client.
    let osd = Asd::open(disk.dir.path().join("disk"), None, 4).await.unwrap();
    let server = Server::bind(&disk.address, None).await.unwrap();
    let place = Place::new("n1".into(), Vec::new()).unwrap();
    tokio::spawn(server.serve(OsdService::new(osd, place).routes(), std::future::pending()));
    let mut read = fragment.clone().read(0, 100, Priority::Foreground).await;
    for _ in 0..100 {
        if read.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        read = fragment.clone().read(0, 100, Priority::Foreground).await;
    }
    assert!(read.unwrap() == noise(100));
}

#[tokio::test]
async fn a_disk_serves_one_process() {
    let (disk, _) = Disk::claimed().await;
    let busy = Asd::open(disk.dir.path().join("disk"), None, 4).await.unwrap_err();
    assert!(busy.message.contains("another process"), "{busy}");
}

/// Identities, lengths and numbers that are likely to break something.
fn pairs(id: OsdId) -> Vec<Option<wire::Pair>> {
    let of = |osd: &[u8], alba: &[u8]| {
        let (osd_id, alba_id) = (Bytes::copy_from_slice(osd), Bytes::copy_from_slice(alba));
        Some(wire::Pair { osd_id, alba_id })
    };
    let long = [7; 4096];
    vec![
        None,
        of(&[], &[]),
        of(&id.0, &[]),
        of(&id.0, &long),
        of(&long, &OURS.0),
        of(&[0; 16], &OURS.0),
    ]
}

fn assert_refused<T: std::fmt::Debug>(what: &str, outcome: Result<T, Status>) {
    let status = outcome.expect_err(what);
    let fine = [Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound, Code::DataLoss];
    let fine = fine.contains(&status.code()) || status.code() == Code::ResourceExhausted;
    assert!(fine, "{what}: {status}");
}

async fn first_answer(
    client: &mut OsdClient<Channel>,
    messages: Vec<Option<Message>>,
) -> Result<Vec<wire::WriteResponse>, Status> {
    let messages = messages.into_iter().map(|part| wire::WriteRequest { part });
    let mut answers = client.write(stream::iter(messages.collect::<Vec<_>>())).await?.into_inner();
    let mut seen = Vec::new();
    while let Some(answer) = answers.message().await? {
        seen.push(answer);
    }
    Ok(seen)
}

#[tokio::test]
async fn nonsense_is_refused_and_the_server_goes_on() {
    let (disk, remote) = Disk::claimed().await;
    let wanted = put(&remote, &noise(100)).await;
    let mut client = disk.client();
    for pair in pairs(disk.id) {
        let said = format!("{pair:?}");
        assert_refused(&said, client.room(wire::RoomRequest { pair: pair.clone() }).await);
        assert_refused(&said, client.release(wire::ReleaseRequest { pair: pair.clone() }).await);
        let list = wire::ListRequest { pair: pair.clone(), shard: 0 };
        assert_refused(&said, client.list(list).await);
        let title = wire::Title { pair, ..good_title(&remote, disk.id) };
        assert_refused(&said, first_answer(&mut client, vec![Some(Message::Title(title))]).await);
    }
    let pair = Some(wire::Pair { osd_id: as_bytes(disk.id.0), alba_id: as_bytes(OURS.0) });
    for shard in [256, u32::MAX] {
        assert_refused("shard", client.list(wire::ListRequest { pair: pair.clone(), shard }).await);
    }
    for (offset, len) in [(0, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX), (1 << 62, 1 << 62)] {
        let fragment_id = as_bytes(wanted.file.0);
        let read = wire::ReadRequest { pair: pair.clone(), fragment_id, offset, len, priority: 9 };
        assert_refused("read", client.read(read).await);
    }
    // A range past the end of the file is found out while it is read.
    let fragment_id = as_bytes(wanted.file.0);
    let read =
        wire::ReadRequest { pair: pair.clone(), fragment_id, len: 1 << 40, ..Default::default() };
    let mut chunks = client.read(read).await.unwrap().into_inner();
    assert_refused("past the end", chunks.message().await);
    for len in [0, 99, u64::MAX, 1 << 62] {
        let fragment_id = as_bytes(wanted.file.0);
        let open =
            wire::OpenRequest { pair: pair.clone(), fragment_id, len, crc32: 1, priority: -1 };
        assert_refused("open", client.open(open).await);
    }
    for request in bad_sequences(&remote, wanted) {
        let apply = wire::ApplyRequest { pair: pair.clone(), ..request };
        let said = format!("{apply:.300?}");
        assert_refused(&said, client.apply(apply).await);
    }
    let read = open(&remote, wanted).await.read(0, 100, Priority::Foreground).await;
    assert!(read.unwrap() == noise(100));
}

fn bad_sequences(remote: &Remote, wanted: Wanted) -> Vec<wire::ApplyRequest> {
    let remove = |id: Bytes| wire::Update { what: Some(What::Remove(id)) };
    let assert = |id: Bytes| wire::Assert { fragment_id: id, whole: None };
    let store = |title: Option<wire::Title>, len: usize| {
        let fragment = Bytes::from(vec![0; len]);
        let title = title.map(Box::new);
        let store = wire::Store { title, fragment, object_crc32: None };
        wire::Update { what: Some(What::Store(store)) }
    };
    let title = || good_title(remote, remote.id());
    let id = |n: u32| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        as_bytes(id)
    };
    let long = wire::Title { object_len: 1 << 20, ..title() };
    let half_a_mib = |_| {
        let title = wire::Title { object_len: 1 << 19, ..title() };
        store(Some(title), 1 << 19)
    };
    let updates = [
        vec![remove(Bytes::new())],
        vec![remove(Bytes::from(vec![0; 17]))],
        (0..1025).map(|n| remove(id(n))).collect(),
        vec![remove(id(1)), remove(id(1))],
        vec![wire::Update { what: None }],
        vec![store(None, 10)],
        vec![store(Some(title()), 9)],
        vec![store(Some(title()), 11)],
        vec![store(Some(long), (1 << 20) + 1)],
        vec![store(Some(wire::Title { unit: 0, ..title() }), 10)],
        (0..5).map(half_a_mib).collect(),
        (0..65).map(|_| store(Some(title()), 10)).collect(),
    ];
    let of_updates = |updates| wire::ApplyRequest { updates, ..Default::default() };
    let mut bad: Vec<wire::ApplyRequest> = updates.into_iter().map(of_updates).collect();
    for asserts in [vec![assert(Bytes::new())], vec![assert(as_bytes(wanted.file.0)); 1025]] {
        bad.push(wire::ApplyRequest { asserts, ..Default::default() });
    }
    bad
}

fn good_title(remote: &Remote, id: OsdId) -> wire::Title {
    assert_eq!(remote.id(), id);
    wire::Title {
        pair: Some(wire::Pair { osd_id: as_bytes(id.0), alba_id: as_bytes(OURS.0) }),
        fragment_id: as_bytes(FragmentId::random().0),
        namespace: "ns".into(),
        name: "x".into(),
        object_id: as_bytes([3; 16]),
        object_len: 10,
        policy: Bytes::from_static(&[1, 0, 1, 1]),
        unit: 1 << 20,
        ..Default::default()
    }
}

#[tokio::test]
async fn fragments_that_break_the_contract_leave_nothing() {
    let (disk, remote) = Disk::claimed().await;
    let mut client = disk.client();
    let good = || good_title(&remote, disk.id);
    let bytes = Bytes::from_static;
    let titles = [
        wire::Title { fragment_id: bytes(b"short"), ..good() },
        wire::Title { object_id: Bytes::from(vec![0; 99]), ..good() },
        wire::Title { policy: bytes(&[0, 0, 0, 0]), ..good() },
        wire::Title { policy: bytes(&[255, 255, 255, 255]), ..good() },
        wire::Title { policy: bytes(&[1, 0, 1]), ..good() },
        wire::Title { unit: 0, ..good() },
        wire::Title { unit: u32::MAX, ..good() },
        wire::Title { index: 1, ..good() },
        wire::Title { index: u32::MAX, ..good() },
        wire::Title { object_len: u64::MAX, ..good() },
        wire::Title { object_len: 1 << 40, policy: bytes(&[1, 0, 1, 1]), ..good() },
        wire::Title { namespace: String::new(), ..good() },
        wire::Title { name: "n".repeat(1025), ..good() },
        wire::Title { name: "a\0b".into(), ..good() },
    ];
    for title in titles {
        let said = format!("{title:?}");
        assert_refused(&said, first_answer(&mut client, vec![Some(Message::Title(title))]).await);
    }
    let chunk = |len: usize| Some(Message::Chunk(Bytes::from(vec![0; len])));
    let finish = || Some(Message::Finish(wire::Finish { object_crc32: None }));
    let title = || Some(Message::Title(good()));
    let streams = [
        vec![],
        vec![None],
        vec![chunk(1)],
        vec![finish()],
        vec![title(), None],
        vec![title(), title()],
        vec![title(), finish()],
        vec![title(), chunk(9), finish()],
        vec![title(), chunk(11)],
        vec![title(), chunk((1 << 20) + 1)],
    ];
    for messages in streams {
        let said = format!(
            "{:?}",
            messages.iter().map(|m| m.as_ref().map(std::mem::discriminant)).collect::<Vec<_>>()
        );
        assert_refused(&said, first_answer(&mut client, messages).await);
    }
    let cut = first_answer(&mut client, vec![title(), chunk(10)]).await.unwrap_err();
    assert_eq!(cut.code(), Code::Cancelled);
    // The same fragment twice: the first stays as it is.
    let twice = good();
    let whole = || vec![Some(Message::Title(twice.clone())), chunk(10), finish()];
    assert_eq!(first_answer(&mut client, whole()).await.unwrap().len(), 2);
    assert!(first_answer(&mut client, whole()).await.is_err());
    eventually(|| disk.files().len() == 1).await;
    let file = FragmentId(twice.fragment_id[..].try_into().unwrap());
    let wanted = Wanted { file, len: 10, crc: crc32fast::hash(&[0; 10]) };
    let read = open(&remote, wanted).await.read(0, 10, Priority::Foreground).await.unwrap();
    assert_eq!(&read[..], [0; 10]);
    assert!(Path::new(&disk.files()[0]).ends_with(file.to_string()));
}
