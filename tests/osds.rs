//! OSDs that are no disks of ours: a bucket (moto) and a namespace of another ALBA. The contract on a server that others wrote;
//! and a backend of real processes over a directory, a bucket and another ALBA, which loses one and gets it back.

use std::path::Path;
use std::time::{Duration, Instant};

use backend_alba::name::{AlbaId, FragmentId, OsdId};
use backend_alba::osd::conformance::{conforms, noise, refuses_strangers};
use backend_alba::osd::{Osd, Place};
use serde_json::Value;
use suite::alba::{Alba, Authority};
use suite::daemon::{program, scratch};
use suite::servers::Server;
use suite::tool::{Said, Tool};

const HEALED_WITHIN: Duration = Duration::from_secs(60);

fn bucket_url(moto: &Server, prefix: &str) -> String {
    format!("{}&credentials={}", moto.s3_url(prefix), moto.keys().display())
}

#[test]
fn a_bucket_of_moto_conforms() {
    let moto = Server::moto();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = (AlbaId([1; 16]), AlbaId([2; 16]));
        let place: Place = bucket_url(&moto, "conform").parse().unwrap();
        let claim = |alba| place.claim((OsdId::random(), alba), (None, &[]), None);
        let id = claim(ours).await.unwrap().id;
        assert_eq!(claim(ours).await.unwrap().id, id);
        let taken = claim(theirs).await.unwrap_err();
        assert!(taken.message.contains(&ours.to_string()), "{taken}");
        let osd: Box<dyn Osd> = place.connect((id, ours), None).unwrap();
        conforms(&*osd).await;
        refuses_strangers(&*osd, &*place.connect((id, theirs), None).unwrap()).await;
        osd.release(ours).await.unwrap();
        assert_eq!(claim(theirs).await.unwrap().id, id);
    });
}

fn json(server: &Alba, arguments: &[&str]) -> Value {
    let said = server.command(arguments).arg("--json").run();
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

fn osds(server: &Alba) -> Vec<Value> {
    json(server, &["osd", "list"])["osds"].as_array().unwrap().clone()
}

/// Fragments there are and should be, and how many more OSDs may fail, of the objects that are worst off.
fn safety(server: &Alba) -> (u64, u64, i64) {
    let said = json(server, &["safety", "--namespace", "ns"]);
    let buckets = said["buckets"].as_array().unwrap().clone();
    let of = |bucket: &Value| {
        let number = |name: &str| bucket[name].as_i64().unwrap();
        (number("fragments") as u64, number("full_fragments") as u64, number("survives_osds"))
    };
    buckets.iter().map(of).min_by_key(|(_, _, survives)| *survives).expect("there are objects")
}

fn put(server: &Alba, folder: &Path, name: &str) -> Said {
    let file = folder.join(format!("{name}.put"));
    std::fs::write(&file, noise(3_000_000 + name.len())).unwrap();
    server.command(&["object", "put", "ns", name]).arg(&file).outcome()
}

fn check(server: &Alba, folder: &Path, name: &str) {
    let file = folder.join(format!("{name}.got"));
    let _ = std::fs::remove_file(&file);
    server.command(&["object", "get", "ns", name]).arg(&file).run();
    let got = std::fs::read(&file).unwrap();
    assert!(got == noise(3_000_000 + name.len()), "{name} comes back as something else");
}

fn check_all(server: &Alba, folder: &Path, names: &[&str]) {
    names.iter().for_each(|name| check(server, folder, name));
}

/// What a backend has in a bucket.
struct InBucket {
    runtime: tokio::runtime::Runtime,
    osd: Box<dyn Osd>,
}

impl InBucket {
    fn of(server: &Alba, url: &str) -> Self {
        let alba = AlbaId::parse(json(server, &["status"])["alba_id"].as_str().unwrap());
        let listed = osds(server).into_iter().find(|osd| osd["kind"] == "s3").unwrap();
        let id = OsdId::parse(listed["osd_id"].as_str().unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let place: Place = url.parse().unwrap();
        let osd = runtime.block_on(async { place.connect((id.unwrap(), alba.unwrap()), None) });
        Self { runtime, osd: osd.unwrap() }
    }

    fn fragments(&self) -> Vec<FragmentId> {
        self.runtime.block_on(async {
            let mut found = Vec::new();
            for shard in 0..=u8::MAX {
                found.extend(self.osd.list(shard).await.unwrap());
            }
            found
        })
    }

    fn remove_all(&self) -> usize {
        let found = self.fragments();
        for file in &found {
            self.runtime.block_on(self.osd.remove(*file)).unwrap();
        }
        found.len()
    }
}

fn ok(said: &Said) {
    assert!(said.status.success(), "{said}");
}

#[test]
fn a_backend_over_a_directory_a_bucket_and_another_alba_loses_one_and_heals() {
    let folder = scratch();
    let path = folder.path();
    let moto = Server::moto_of_many_threads();
    let mut other = Alba::start(path, "serve", "other", &[]);
    // The other one codes what it gets once more, by a preset of its own.
    let set = ["preset", "set", "geo", "--policy", "1,0,1,1"];
    ok(&other.command(&set).outcome());
    let directory = path.join("disk").display().to_string();
    let bucket = bucket_url(&moto, "cold");
    let far = format!("alba://{}/far?preset=geo", other.address);
    let given = ["--osd", &directory, "--osd", &bucket, "--osd", &far];
    let mut server = Alba::start(path, "serve", "server", &given);
    let kinds: Vec<Value> = osds(&server).iter().map(|osd| osd["kind"].clone()).collect();
    assert_eq!(kinds, ["directory", "s3", "alba"]);
    assert_eq!(json(&other, &["namespace", "preset", "far"])["preset"], "geo");
    ok(&server.command(&["preset", "set", "spread", "--policy", "2,1,2,1"]).outcome());
    ok(&server.command(&["namespace", "create", "ns", "--preset", "spread"]).outcome());
    ok(&put(&server, path, "first"));
    assert_eq!(safety(&server), (3, 3, 1));
    check(&server, path, "first");

    // One is killed: what is there is read, and what is new has two fragments.
    other.kill9();
    check(&server, path, "first");
    ok(&put(&server, path, "second"));
    check_all(&server, path, &["first", "second"]);
    assert_eq!(safety(&server), (2, 3, 0));
    // It comes back, is given something again after a rest, and what it missed is made anew.
    other.restart();
    let begun = Instant::now();
    while safety(&server) != (3, 3, 1) {
        assert!(begun.elapsed() < HEALED_WITHIN, "{:?}: {:?}", safety(&server), osds(&server));
        ok(&server.command(&["repair", "ns", "--wait"]).outcome());
    }

    // The bucket is emptied by somebody, all but what says whose it is.
    let in_bucket = InBucket::of(&server, &bucket);
    assert_eq!(in_bucket.remove_all(), 2);
    check_all(&server, path, &["first", "second"]);
    ok(&server.command(&["verify", "ns", "--wait"]).outcome());
    assert_eq!(in_bucket.fragments().len(), 2, "nothing came back into the bucket");

    // Then the directory is lost, and the server begins again: without the options, as it is noted.
    ok_end(&mut server);
    std::fs::remove_dir_all(path.join("disk")).unwrap();
    let server = Alba::start(path, "serve", "server", &["--no-osd"]);
    check_all(&server, path, &["first", "second"]);
    let listed = osds(&server);
    let state = |kind: &str| {
        listed.iter().find(|osd| osd["kind"] == kind).map(|osd| osd["state"].clone()).unwrap()
    };
    assert_eq!(
        (state("s3"), state("alba"), state("directory")),
        ("ready".into(), "ready".into(), "absent".into())
    );
}

fn ok_end(server: &mut Alba) {
    let status = server.terminate();
    assert!(status.success(), "{}", server.log_tail());
}

#[test]
fn a_backend_on_a_bucket_alone_gets_its_nsm_back_and_begins_also_without_the_bucket() {
    let folder = scratch();
    let path = folder.path();
    let moto = Server::moto_of_many_threads();
    let url = bucket_url(&moto, "alone");
    let mut server = Alba::start(path, "serve", "server", &["--osd", &url]);
    ok(&server.command(&["namespace", "create", "ns"]).outcome());
    ok(&put(&server, path, "only"));
    ok_end(&mut server);
    std::fs::remove_dir_all(server.data_dir.join("nsm")).unwrap();
    let recover = |url: &str| {
        let recover = Tool::new(program("alba")).args(&["recover", "--json", "--data-dir"]);
        recover.arg(&server.data_dir).args(&["--osd", url]).outcome()
    };
    let nothing = recover(&bucket_url(&moto, "elsewhere"));
    assert!(!nothing.status.success() && nothing.err.contains("there is none"), "{nothing}");
    let said = recover(&url);
    ok(&said);
    let recovered: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&recovered["osds"], &recovered["objects"]), (&1.into(), &1.into()));
    server.restart();
    check(&server, path, "only");
    ok_end(&mut server);
    // The keys go with it: they may be put right too, as long as it runs.
    drop(moto);
    server.restart();
    let listed = osds(&server);
    assert_eq!((listed.len(), &listed[0]["state"]), (1, &"failing".into()));
    assert!(listed[0]["reason"].as_str().unwrap().contains("it cannot be read"), "{listed:?}");
}

#[test]
fn bad_urls_and_foreign_or_wrong_places_are_refused_with_what_to_do() {
    let folder = scratch();
    let moto = Server::moto();
    let server = Alba::start(folder.path(), "serve", "one", &["--no-osd"]);
    let stranger = Alba::start(folder.path(), "serve", "two", &["--no-osd"]);
    let claim = |server: &Alba, url: &str| server.command(&["osd", "claim", url]).outcome();
    let url = bucket_url(&moto, "claimed");
    ok(&claim(&server, &url));
    let nobody = suite::servers::free_port();
    let keys = moto.keys().display().to_string();
    for (url, words) in [
        (url.clone(), "belongs to backend"),
        ("s3://b".into(), "3 to 63 letters"),
        ("s3://bucket/p?secret=x".into(), "legal are endpoint, region"),
        (url.replace("://bucket", "://missing"), "Create the bucket"),
        (
            format!("s3://bucket/p?endpoint=http://127.0.0.1:{nobody}&credentials={keys}"),
            "server up?",
        ),
        (
            format!("{}&credentials=/nowhere", moto.s3_url("p")),
            "credentials=/nowhere: it cannot be read",
        ),
        (
            format!("{}&credentials={keys}&ca=/nowhere", moto.s3_url("p")),
            "ca=/nowhere: it cannot be read",
        ),
        ("alba://host/ns".into(), "HOST:PORT"),
        (format!("alba://127.0.0.1:{nobody}/ns"), "nothing listens there"),
        (format!("alba://{}/ns?preset=none", server.address), "none"),
        (format!("alba://{}/ns", stranger.address), "the backend itself"),
        ("elsewhere".into(), "nor is it s3://"),
    ] {
        let refused = claim(&stranger, &url);
        assert!(!refused.status.success() && refused.err.contains(words), "{words}: {refused}");
    }
    assert_eq!(osds(&stranger).len(), 0);
    // Claimed again it is where it was, with another name for its node.
    ok(&server.command(&["osd", "claim", &url, "--node", "paris", "--label", "cold"]).outcome());
    let listed = osds(&server);
    assert_eq!(
        (listed.len(), &listed[0]["node"], &listed[0]["labels"][0]),
        (1, &"paris".into(), &"cold".into())
    );
    // Purged, it is free for the other.
    let id = listed[0]["osd_id"].as_str().unwrap();
    ok(&server.command(&["osd", "decommission", id]).outcome());
    ok(&server.command(&["osd", "purge", id]).outcome());
    ok(&claim(&stranger, &url));
    assert_eq!(osds(&stranger)[0]["osd_id"], id);
}

#[test]
fn another_alba_over_tls_is_reached_with_the_servers_certificate_or_that_of_its_url() {
    let folder = scratch();
    let authority = |name: &str| {
        let authority = Authority::new(&folder.path().join(name));
        authority.sign("all", "127.0.0.1", 2200);
        authority.options("all")
    };
    let (here, there) = (authority("here"), authority("there"));
    let options =
        |options: &[String]| -> Vec<String> { [&["--no-osd".to_owned()], options].concat() };
    let start = |name: &str, given: Vec<String>| {
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        Alba::start(folder.path(), "serve", name, &given)
    };
    let other = start("other", there.clone());
    let claim = |server: &Alba, tls: &[String], url: &str| {
        server.command(&["osd", "claim", url]).args(tls).outcome()
    };
    let plain = format!("alba://{}/far", other.address);
    let pem = |name: &str| folder.path().join("there").join(name).display().to_string();
    let (certificate, key, ca) = (pem("all.pem"), pem("all-key.pem"), pem("ca.pem"));
    let own = format!("{plain}?certificate={certificate}&key={key}&ca={ca}");
    let alike = start("alike", options(&there));
    ok(&claim(&alike, &there, &plain));
    let unlike = start("unlike", options(&here));
    let refused = claim(&unlike, &here, &plain);
    assert!(!refused.status.success() && refused.err.contains("authority"), "{refused}");
    // Reached, it says that it has an owner already.
    let owned = claim(&unlike, &here, &own);
    assert!(!owned.status.success() && owned.err.contains("belongs to backend"), "{owned}");
    ok(&claim(&unlike, &here, &own.replace("/far?", "/free?")));
}
