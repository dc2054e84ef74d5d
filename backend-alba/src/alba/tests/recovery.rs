//! A lost NSM is rebuilt from the OSDs.

use super::*;
use crate::preset::Raw;

const LEN: usize = 700_000;

struct Backend {
    dir: tempfile::TempDir,
    count: usize,
}

impl Backend {
    fn config(&self, without: &[usize]) -> Config {
        let left = (0..self.count).filter(|n| !without.contains(n));
        let place = |n: usize| OsdPlace {
            node: format!("n{n}"),
            ..OsdPlace::new(self.dir.path().join(format!("osd{n}")))
        };
        Config {
            osds: left.map(place).collect(),
            orphan_grace: Duration::from_millis(10),
            ..Config::new(self.dir.path().join("data"))
        }
    }

    fn lose_nsm(&self) {
        fs::remove_dir_all(self.dir.path().join("data/nsm")).unwrap();
    }

    fn files(&self) -> usize {
        let of = |n: usize| {
            let shards = self.dir.path().join(format!("osd{n}/objects")).read_dir().unwrap();
            shards.flatten().map(|shard| shard.path().read_dir().unwrap().count()).sum::<usize>()
        };
        (0..self.count).map(of).sum()
    }
}

/// Objects of several presets, lengths and namespaces; what is to be there.
async fn fill(alba: &Alba) -> Vec<(&'static str, String, Bytes)> {
    let mut all = Vec::new();
    for (namespace, policy) in [("coded", "3,2,5,1"), ("copied", "1,2,3,1"), ("both", "2,2,4,1")] {
        let raw = Raw { fragment_bytes: 65_536, ..Raw::of(&[policy]) };
        alba.put_preset(namespace, raw).await.unwrap();
        alba.create_namespace_with(namespace, Some(namespace)).await.unwrap();
        for (n, len) in [0, 1, 5000, 65_537, LEN].into_iter().enumerate() {
            let (name, body) = (format!("a/{n}"), noise(len, n as u64));
            let body_of = vec![body.clone()];
            alba.put_if_absent(namespace, &name, body_of, Purpose::Data).await.unwrap();
            all.push((namespace, name, body));
        }
    }
    all
}

async fn check(alba: &Alba, all: &[(&'static str, String, Bytes)]) {
    for (namespace, name, body) in all {
        let got = alba.get_range(namespace, name, 0, body.len() as u64).await.unwrap();
        assert!(got.as_ref() == Some(body), "{namespace}/{name}");
    }
    let status = alba.status().await.unwrap();
    let bytes: usize = all.iter().map(|(_, _, body)| body.len()).sum();
    assert_eq!((status.objects, status.object_bytes), (all.len() as u64, bytes as u64));
}

#[tokio::test]
async fn a_lost_nsm_is_rebuilt_even_without_some_osds() {
    for lost in [&[][..], &[1, 3]] {
        let backend = Backend { dir: tempfile::tempdir().unwrap(), count: 5 };
        let alba = Alba::open(backend.config(&[])).await.unwrap();
        let id = alba.id();
        let mut all = fill(&alba).await;
        let gone = all.pop().unwrap();
        assert!(alba.delete(gone.0, &gone.1).await.unwrap());
        alba.close().await;
        let intact = recover(backend.config(lost)).await.unwrap_err();
        assert!(intact.message.contains("it is not lost"), "{intact}");
        backend.lose_nsm();
        let refused = Alba::open(backend.config(&[])).await.err().unwrap();
        assert!(refused.message.contains("alba recover"), "{refused}");
        let files = backend.files();
        let recovered = recover(backend.config(lost)).await.unwrap();
        assert_eq!((recovered.id, recovered.namespaces), (id, 3));
        let outcome = &recovered.outcome;
        assert_eq!(outcome.objects.len(), all.len());
        assert_eq!((outcome.incomplete.len(), outcome.contested.len()), (0, 0));
        // Copies are on three of the five; what is coded (3,2) is on all.
        assert_eq!(outcome.lacking.is_empty(), lost.is_empty());
        assert_eq!(recovered.damaged, []);
        assert_eq!(backend.files(), files, "no fragment is touched");
        let alba = Alba::open(backend.config(lost)).await.unwrap();
        check(&alba, &all).await;
        assert_eq!(alba.preset_of("coded").await.unwrap(), recovered.preset);
        // It is a backend like any other.
        alba.put_if_absent("copied", "new", vec![noise(9, 9)], Purpose::Data).await.unwrap();
        assert!(alba.delete("copied", "a/0").await.unwrap());
    }
}

#[tokio::test]
async fn what_cannot_be_rebuilt_is_named_and_its_files_stay_until_it_is_given_up() {
    let backend = Backend { dir: tempfile::tempdir().unwrap(), count: 5 };
    let alba = Alba::open(backend.config(&[])).await.unwrap();
    let mut all = Vec::new();
    // Both have a fragment on every OSD.
    for (namespace, policy) in [("coded", "3,2,5,1"), ("copied", "1,4,5,1")] {
        alba.put_preset(namespace, Raw::of(&[policy])).await.unwrap();
        alba.create_namespace_with(namespace, Some(namespace)).await.unwrap();
        for n in 0..3 {
            let (name, body) = (format!("{n}"), noise(LEN, n));
            let body_of = vec![body.clone()];
            alba.put_if_absent(namespace, &name, body_of, Purpose::Data).await.unwrap();
            all.push((namespace, name, body));
        }
    }
    alba.close().await;
    // A file that lies about its id, and one that says nothing.
    let osd = backend.dir.path().join("osd0/objects");
    let shards = osd.read_dir().unwrap().flatten();
    let some = shards.flat_map(|s| s.path().read_dir().unwrap().flatten()).next().unwrap().path();
    let other = osd.join("00").join("0".repeat(32));
    fs::copy(&some, &other).unwrap();
    fs::write(osd.join("01").join(format!("01{}", "0".repeat(30))), b"noise").unwrap();
    // The OSDs 0 and 2 are left: of five fragments with k = 3 two.
    backend.lose_nsm();
    let lost = &[1, 3, 4][..];
    let files = backend.files();
    let recovered = recover(backend.config(lost)).await.unwrap();
    let incomplete = &recovered.outcome.incomplete;
    assert_eq!(incomplete.len(), 3);
    assert!(incomplete.iter().all(|i| i.namespace == "coded" && (i.found, i.needed) == (2, 3)));
    let back = recovered.outcome.objects.len();
    assert_eq!(back + incomplete.len(), all.len());
    assert_eq!(recovered.damaged.len(), 2);
    let alba = Alba::open(backend.config(lost)).await.unwrap();
    let is_back = |(ns, name, _): &&(&str, String, Bytes)| {
        !incomplete.iter().any(|i| i.namespace == *ns && i.name == *name)
    };
    let kept: Vec<_> = all.iter().filter(is_back).cloned().collect();
    check(&alba, &kept).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(backend.files(), files, "they may be completed by an OSD that is away");
    alba.close().await;
    give_up_the_rest(backend.config(lost)).await.unwrap();
    let alba = Alba::open(backend.config(lost)).await.unwrap();
    eventually(|| backend.files() < files).await;
    check(&alba, &kept).await;
}

#[tokio::test]
async fn a_recovery_that_was_interrupted_is_begun_again() {
    let backend = Backend { dir: tempfile::tempdir().unwrap(), count: 5 };
    let alba = Alba::open(backend.config(&[])).await.unwrap();
    let all = fill(&alba).await;
    alba.close().await;
    backend.lose_nsm();
    {
        let lost = open::for_recovery(backend.config(&[])).await.unwrap();
        let nsm = lost.nsm().await.unwrap();
        nsm.create_namespace("half", None).await.unwrap();
    }
    let refused = Alba::open(backend.config(&[])).await.err().unwrap();
    assert!(refused.message.contains("being rebuilt"), "{refused}");
    recover(backend.config(&[])).await.unwrap();
    let alba = Alba::open(backend.config(&[])).await.unwrap();
    check(&alba, &all).await;
    let namespaces = alba.list_namespaces("", "", 9).await.unwrap().names;
    assert_eq!(namespaces, ["both", "coded", "copied"]);
    alba.close().await;
    // With the whole data directory gone the OSDs still know whose they are.
    fs::remove_dir_all(backend.dir.path().join("data")).unwrap();
    recover(backend.config(&[])).await.unwrap();
    check(&Alba::open(backend.config(&[])).await.unwrap(), &all).await;
}

#[tokio::test]
async fn an_osd_that_is_no_osd_of_this_backend_is_refused() {
    let backend = Backend { dir: tempfile::tempdir().unwrap(), count: 1 };
    Alba::open(backend.config(&[])).await.unwrap().close().await;
    fs::remove_dir_all(backend.dir.path().join("data")).unwrap();
    let mut config = backend.config(&[]);
    config.osds = vec![OsdPlace::new(backend.dir.path().join("elsewhere"))];
    let fault = recover(config).await.unwrap_err();
    assert!(fault.message.contains("none of the OSDs"), "{fault}");
}
