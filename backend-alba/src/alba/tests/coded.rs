//! Objects in fragments on several OSDs: what is stored, and what is read when OSDs fail, lie, hang or are full.

use futures_util::future::join_all;

use super::faulty::{Mood, Switch, osd_path, wrapped};
use super::*;
use crate::name::OsdId;
use crate::nsm::OsdRole;
use crate::preset::Raw;

const LEN: usize = 3 << 20;

/// A backend of several OSDs with one namespace.
struct Backend {
    dir: tempfile::TempDir,
    alba: Alba,
    switches: Vec<Switch>,
}

impl Backend {
    async fn open(nodes: &[&str], policies: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let switches: Vec<Switch> = nodes.iter().map(|_| Switch::default()).collect();
        let config = Config {
            orphan_grace: Duration::from_millis(50),
            ..Config::new(dir.path().join("data"))
        };
        let alba = open::in_directory(config, Vec::new(), wrapped(nodes, &switches)).await.unwrap();
        let raw = Raw { fragment_bytes: 65_536, ..Raw::of(policies) };
        alba.put_preset("test", raw).await.unwrap();
        alba.create_namespace_with("ns", Some("test")).await.unwrap();
        Self { dir, alba, switches }
    }

    async fn put(&self, name: &str, body: &Bytes) -> Result<Put> {
        self.alba.put_if_absent("ns", name, vec![body.clone()], Purpose::Data).await
    }

    async fn get(&self, name: &str, from: usize, to: usize) -> Result<Bytes> {
        let (from, len) = (from as u64, (to - from) as u64);
        self.alba.get_range("ns", name, from, len).await.map(Option::unwrap)
    }

    async fn manifest(&self, name: &str) -> Manifest {
        self.alba.head("ns", name).await.unwrap().unwrap()
    }

    /// Position of an OSD among the directories.
    fn position(&self, osd: OsdId) -> usize {
        self.alba.inner.osds.all().iter().position(|member| member.id() == osd).unwrap()
    }

    /// The file of an object's fragment, and its OSD's position.
    async fn file(&self, name: &str, index: usize) -> (PathBuf, usize) {
        let fragment = *self.manifest(name).await.fragment(index).unwrap();
        let n = self.position(fragment.osd);
        let root = osd_path(&self.dir.path().join("data"), n).join("objects");
        let id = fragment.file.to_string();
        (root.join(&id[..2]).join(id), n)
    }

    fn files(&self) -> usize {
        let of = |n| {
            let root = osd_path(&self.dir.path().join("data"), n).join("objects");
            let shards = fs::read_dir(root).unwrap().flatten();
            shards.map(|shard| fs::read_dir(shard.path()).unwrap().count()).sum::<usize>()
        };
        (0..self.switches.len()).map(of).sum()
    }

    fn set(&self, n: usize, mood: Mood) {
        self.switches[n].set(mood);
    }

    /// All ranges that are likely to be wrong.
    async fn check(&self, name: &str, body: &Bytes) {
        let len = body.len();
        for (from, to) in
            [(0, len), (0, 1), (len - 1, len), (65_530, 65_550), (len / 3, len / 2), (7, 7)]
        {
            let to = to.min(len);
            let from = from.min(to);
            let got = self.get(name, from, to).await.unwrap();
            assert!(got == body.slice(from..to), "{name}: {from}..{to}");
        }
    }

    /// The fragment of object `x` is another one than before.
    async fn eventually_moved(&self, before: &Manifest, index: usize, by_hand: bool) {
        let old = *before.fragment(index).unwrap();
        for _ in 0..500 {
            if self.manifest("x").await.fragment(index).is_some_and(|now| *now != old) {
                return;
            }
            if by_hand {
                let ill = repair::Ill { fragments: [old.file].into(), ..repair::Ill::default() };
                self.alba.inner.repair(&"ns".into(), &"x".into(), &ill).await.unwrap();
            }
            // A read that was faster without the fragment has not noticed it.
            self.alba.inner.open_fragments.clear();
            self.get("x", 0, LEN).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("fragment {index} stays damaged");
    }

    async fn eventually_whole(&self, name: &str) {
        for _ in 0..500 {
            let manifest = self.manifest(name).await;
            if manifest.fragments.len() == manifest.policy.total() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} stays incomplete");
    }
}

const SIX: [&str; 6] = ["a", "a", "b", "b", "c", "c"];

#[tokio::test]
async fn objects_of_every_length_come_back_from_any_k_fragments() {
    let backend = Backend::open(&SIX, &["4,2,6,2"]).await;
    for len in [0, 1, 4096, 16_384, 16_385, 65_537, 262_144, 262_145, LEN + 12_345] {
        let (name, body) = (format!("{len}"), noise(len, len as u64));
        assert_eq!(backend.put(&name, &body).await.unwrap(), Put::Created);
        let manifest = backend.manifest(&name).await;
        assert_eq!((manifest.len, manifest.crc), (len as u64, crc32fast::hash(&body)));
        let expected = if len <= 16_384 { "(1,2,3,2)" } else { "(4,2,6,2)" };
        assert_eq!(manifest.policy.to_string(), expected);
        for down in [[0, 1], [2, 4], [5, 3]] {
            down.iter().for_each(|n| backend.set(*n, Mood::Down));
            if len > 0 {
                backend.check(&name, &body).await;
            } else {
                assert_eq!(backend.get(&name, 0, 0).await.unwrap(), body);
            }
            down.iter().for_each(|n| backend.set(*n, Mood::Good));
        }
    }
    for (n, name) in ["0", "1", "262145"].iter().enumerate() {
        assert!(backend.alba.delete("ns", name).await.unwrap(), "{n}");
    }
    assert_eq!(backend.files(), 2 * 3 + 4 * 6);
}

#[tokio::test]
async fn no_node_holds_more_than_x() {
    let backend = Backend::open(&SIX, &["4,2,6,2", "2,1,3,1"]).await;
    let body = noise(100_000, 1);
    for n in 0..10 {
        backend.put(&format!("{n}"), &body).await.unwrap();
        let manifest = backend.manifest(&format!("{n}")).await;
        for node in 0..3 {
            let here = |f: &&crate::manifest::Fragment| backend.position(f.osd) / 2 == node;
            assert_eq!(manifest.fragments.iter().filter(here).count(), 2);
        }
    }
    // One OSD less: only the second policy can be satisfied.
    backend.set(0, Mood::Down);
    backend.put("less", &body).await.unwrap();
    let less = backend.manifest("less").await;
    assert_eq!((less.policy.to_string().as_str(), less.fragments.len()), ("(2,1,3,1)", 3));
    let first = |f: &crate::manifest::Fragment| backend.position(f.osd) == 0;
    assert!(!less.fragments.iter().any(first));
    [2, 3].iter().for_each(|n| backend.set(*n, Mood::Full));
    let fault = backend.put("none", &body).await.unwrap_err();
    assert_eq!(fault.kind, Kind::NoSpace, "{fault}");
    backend.check("less", &body).await;
}

#[tokio::test]
async fn more_than_m_failures_are_named_and_pass() {
    let backend = Backend::open(&["a"; 4], &["2,1,3,3"]).await;
    let body = noise(300_000, 2);
    backend.put("x", &body).await.unwrap();
    let held: Vec<usize> =
        backend.manifest("x").await.fragments.iter().map(|f| backend.position(f.osd)).collect();
    held[..2].iter().for_each(|n| backend.set(*n, Mood::Down));
    let fault = backend.get("x", 0, 300_000).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Unavailable);
    assert!(fault.message.contains("\"x\"") && fault.message.contains("switched off"), "{fault}");
    held[..2].iter().for_each(|n| backend.set(*n, Mood::Good));
    backend.check("x", &body).await;
    for index in 0..2 {
        fs::remove_file(backend.file("x", index).await.0).unwrap();
    }
    backend.alba.inner.open_fragments.clear();
    let fault = backend.get("x", 0, 300_000).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
}

#[tokio::test]
async fn damage_is_read_around_and_repaired_in_passing() {
    // No OSD to spare: what is damaged is made anew where it was.
    let backend = Backend::open(&["a"; 6], &["4,2,6,6"]).await;
    let body = noise(LEN, 3);
    backend.put("x", &body).await.unwrap();
    let before = backend.manifest("x").await;
    let damage = |path: &Path, how: usize| {
        let mut bytes = fs::read(path).unwrap();
        match how {
            0 => bytes[70_000] ^= 1,
            1 => bytes.truncate(4096 * 9),
            _ => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    };
    for round in 0..3 {
        for index in [round, 5 - round] {
            damage(&backend.file("x", index).await.0, (round + index) % 3);
        }
        backend.alba.inner.open_fragments.clear();
        backend.check("x", &body).await;
        // The data fragments were read, and so found damaged; the parity was not looked at.
        for index in [round, 5 - round] {
            backend.eventually_moved(&before, index, index >= 4).await;
        }
        let mut down = Vec::new();
        for index in (0..6).filter(|n| ![round, 5 - round].contains(n)).take(2) {
            down.push(backend.file("x", index).await.1);
        }
        down.iter().for_each(|n| backend.set(*n, Mood::Down));
        backend.check("x", &body).await;
        down.iter().for_each(|n| backend.set(*n, Mood::Good));
    }
    eventually(|| backend.files() == 6).await;
}

#[tokio::test]
async fn an_old_version_of_a_fragment_is_damage() {
    let backend = Backend::open(&["a"; 3], &["2,1,3,3"]).await;
    let (one, two) = (noise(300_000, 4), noise(300_000, 5));
    backend.put("one", &one).await.unwrap();
    backend.put("two", &two).await.unwrap();
    // The OSD answers with the bytes of another object, consistent in themselves.
    let (from, to) = (backend.file("one", 0).await.0, backend.file("two", 0).await.0);
    fs::copy(from, to).unwrap();
    backend.alba.inner.open_fragments.clear();
    backend.check("two", &two).await;
}

#[tokio::test]
async fn a_hung_osd_delays_reads_a_little_and_puts_hardly() {
    let backend = Backend::open(&["a"; 6], &["4,2,5,6"]).await;
    let body = noise(LEN, 6);
    backend.put("x", &body).await.unwrap();
    let (_, hung) = backend.file("x", 0).await;
    backend.set(hung, Mood::Hung);
    let begun = std::time::Instant::now();
    backend.check("x", &body).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let begun = std::time::Instant::now();
    backend.put("y", &body).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    backend.check("y", &body).await;
    assert_eq!(backend.manifest("y").await.fragments.len(), 5);
    backend.set(hung, Mood::Good);
    backend.check("x", &body).await;
}

#[tokio::test]
async fn a_late_fragment_is_recorded_when_it_comes() {
    let backend = Backend::open(&["a"; 3], &["1,2,2,3"]).await;
    backend.set(1, Mood::Slow);
    let body = noise(10_000, 7);
    let begun = std::time::Instant::now();
    // Begun before the switch shows in anything but its last steps.
    let mut upload =
        backend.alba.begin_put("ns", "x", (10_000, Purpose::Data), None).await.unwrap();
    upload.push(body.clone()).await.unwrap();
    upload.finish().await.unwrap();
    assert_eq!(backend.manifest("x").await.fragments.len(), 2, "{:?}", begun.elapsed());
    backend.eventually_whole("x").await;
    backend.check("x", &body).await;
    let manifest = backend.manifest("x").await;
    assert!(manifest.fragments.iter().all(|fragment| fragment.crc == manifest.crc));
    // Deleted while a fragment is late: it goes too.
    backend.put("gone", &body).await.unwrap();
    backend.alba.delete("ns", "gone").await.unwrap();
    eventually(|| backend.files() == 3).await;
}

#[tokio::test]
async fn what_fails_at_the_end_is_put_again_elsewhere() {
    let backend = Backend::open(&["a"; 4], &["2,1,3,3"]).await;
    let body = noise(300_000, 8);
    backend.set(2, Mood::Unsynced);
    for n in 0..6 {
        assert_eq!(backend.put(&format!("{n}"), &body).await.unwrap(), Put::Created);
        backend.check(&format!("{n}"), &body).await;
    }
    // One whose bytes came piece by piece, too, when it is small enough to have been held.
    for (name, crc) in [("7", None), ("8", Some(crc32fast::hash(&body)))] {
        let size = (body.len() as u64, Purpose::Data);
        let mut upload = backend.alba.begin_put("ns", name, size, crc).await.unwrap();
        for piece in [body.slice(..1), body.slice(1..)] {
            upload.push(piece).await.unwrap();
        }
        assert_eq!(upload.finish().await.unwrap(), Put::Created);
        backend.check(name, &body).await;
        assert!(backend.alba.delete("ns", name).await.unwrap());
    }
    eventually(|| backend.files() == 18).await;
    backend.set(3, Mood::Unsynced);
    let fault = backend.put("x", &body).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Unavailable, "{fault}");
    eventually(|| backend.files() == 18).await;
    assert_eq!(backend.alba.head("ns", "x").await.unwrap(), None);
}

#[tokio::test]
async fn a_decommissioned_osd_takes_nothing_new_and_is_emptied_by_repair() {
    let backend = Backend::open(&["a"; 4], &["2,1,3,3"]).await;
    let body = noise(300_000, 9);
    backend.put("x", &body).await.unwrap();
    let leaving = backend.manifest("x").await.fragments[1].osd;
    backend.alba.set_osd_role(leaving, OsdRole::Decommissioning).await.unwrap();
    let done = backend
        .alba
        .inner
        .repair(&"ns".into(), &"x".into(), &repair::Ill::default())
        .await
        .unwrap();
    assert_eq!((done.made, done.lacking), (1, 0));
    for n in 0..8 {
        backend.put(&format!("{n}"), &body).await.unwrap();
    }
    for name in backend.alba.list("ns", "", "", 0).await.unwrap().names {
        let manifest = backend.manifest(&name).await;
        assert!(manifest.fragments.iter().all(|fragment| fragment.osd != leaving));
        backend.check(&name, &body).await;
    }
    eventually(|| backend.files() == 27).await;
    let status = backend.alba.status().await.unwrap();
    let role = status.osds.iter().find(|osd| osd.id == leaving).unwrap().role;
    assert_eq!(role, OsdRole::Decommissioning);
}

#[tokio::test]
async fn two_repairs_of_one_object_do_each_other_no_harm() {
    let backend = Backend::open(&["a"; 6], &["2,2,3,4"]).await;
    let body = noise(LEN, 10);
    backend.put("x", &body).await.unwrap();
    let lost = backend.manifest("x").await.fragments[0];
    let ill = repair::Ill { fragments: [lost.file].into(), ..repair::Ill::default() };
    let (namespace, name) = ("ns".into(), "x".into());
    let inner = &backend.alba.inner;
    let repairs = (0..4).map(|_| inner.repair(&namespace, &name, &ill));
    let made: u64 = join_all(repairs).await.into_iter().map(|done| done.unwrap().made).sum();
    assert_eq!(made, 1);
    eventually(|| backend.files() == 4).await;
    backend.check("x", &body).await;
}
