//! The store against a small server in this process: what it promises, and what it makes of a server's bad days.

use std::time::Duration;

use axum::http::Method;
use tokio::task::LocalSet;
use volumedriver_core::fault::Kind;

use super::*;
use crate::store::conformance::{conforms, noise};
use crate::store::fake::{Fake, Instead, Lie};

struct Room {
    fake: Fake,
    store: S3Store,
    _keys: tempfile::TempDir,
    service: tokio::runtime::Runtime,
}

impl Room {
    fn new(lie: Lie, parameters: &str) -> Self {
        let service = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let keys = tempfile::tempdir().unwrap();
        let file = keys.path().join("keys");
        std::fs::write(&file, "[default]\naws_access_key_id=k\naws_secret_access_key=s\n").unwrap();
        let (fake, store) = service.block_on(async {
            let fake = Fake::serve(lie).await;
            let store = S3Store::open(&fake.url(parameters), Some(&file)).await.unwrap();
            (fake, store)
        });
        Self { fake, store, _keys: keys, service }
    }

    /// As in the daemon: the caller's runtime is not the one that does the work.
    fn run(&self, test: impl AsyncFnOnce()) {
        let _alive = &self.service;
        let local = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&local, test());
    }

    fn instead(&self, method: Method, status: u16, code: &'static str, times: usize) {
        let carried_out = false;
        self.fake.answer_instead(Instead { method, status, code, carried_out, times });
    }

    async fn put(&self, name: &str, body: Bytes) -> Result<Put> {
        self.store.put_if_absent("ns", name, vec![body], Purpose::Data).await
    }
}

#[test]
fn conforms_in_one_request() {
    let room = Room::new(Lie::None, "");
    room.run(async || conforms(&room.store).await);
}

#[test]
fn conforms_in_parts_and_with_checksums() {
    let room = Room::new(Lie::None, "&checksum=when_supported");
    let store = room.store.with_parts(Parts::Above(1000));
    room.run(async || conforms(&store).await);
    assert_eq!(room.fake.unfinished_uploads(), 0);
}

#[test]
fn conforms_without_deletion_of_many_at_once() {
    let room = Room::new(Lie::NoBatchDelete, "");
    room.run(async || conforms(&room.store).await);
}

#[test]
fn a_default_sco_is_one_request_and_a_large_one_comes_in_parts() {
    let room = Room::new(Lie::None, "&multipart_mib=20");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        room.fake.take_requests();
        room.put("small", noise(20 << 20)).await.unwrap();
        assert_eq!(room.fake.take_requests(), ["PUT pool/o/ns/small?x-id=PutObject"]);
        let body = noise((35 << 20) + 7);
        assert_eq!(room.put("large", body.clone()).await.unwrap(), Put::Created);
        let requests = room.fake.take_requests();
        assert_eq!(requests.len(), 1 + 3 + 1, "{requests:?}");
        let got = room.store.get_range("ns", "large", 0, body.len() as u64).await.unwrap();
        assert!(got.unwrap() == body);
        assert_eq!(room.put("large", body.clone()).await.unwrap(), Put::Exists);
        assert_eq!(room.fake.unfinished_uploads(), 0, "what was refused is aborted");
    });
}

#[test]
fn a_part_that_fails_is_sent_again_alone() {
    let room = Room::new(Lie::None, "&multipart_mib=1");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        room.fake.take_requests();
        room.instead(Method::PUT, 500, "InternalError", 2);
        room.instead(Method::PUT, 503, "SlowDown", 1);
        let body = noise(33 << 20);
        assert_eq!(room.put("x", body.clone()).await.unwrap(), Put::Created);
        assert_eq!(room.fake.take_requests().len(), 1 + 3 + 3 + 1);
        let got = room.store.get_range("ns", "x", 0, body.len() as u64).await.unwrap();
        assert!(got.unwrap() == body);
    });
}

#[test]
fn a_conflict_is_asked_again_and_the_outcome_is_what_is_there() {
    let room = Room::new(Lie::None, "");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        room.instead(Method::PUT, 409, "ConditionalRequestConflict", 2);
        assert_eq!(room.put("x", noise(10)).await.unwrap(), Put::Created);
        room.instead(Method::PUT, 409, "ConditionalRequestConflict", 1);
        assert_eq!(room.put("x", noise(10)).await.unwrap(), Put::Exists);
        room.instead(Method::PUT, 409, "ConditionalRequestConflict", 99);
        let fault = room.put("y", noise(10)).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Unavailable, "{fault}");
    });
}

#[test]
fn a_put_whose_answer_was_lost_is_found_by_the_next() {
    let room = Room::new(Lie::None, "&multipart_mib=1");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        for (method, name, len) in [(Method::PUT, "once", 10), (Method::POST, "parts", 2 << 20)] {
            let (status, code, carried_out) = (500, "InternalError", true);
            // The first POST begins the upload.
            let skipped = usize::from(method == Method::POST);
            let instead = Instead { method: method.clone(), status, code, carried_out, times: 1 };
            if skipped == 0 {
                room.fake.answer_instead(instead);
            } else {
                room.fake.answer_instead_after(1, instead);
            }
            let fault = room.put(name, noise(len)).await.unwrap_err();
            assert_eq!(fault.kind, Kind::Unavailable, "{fault}");
            assert_eq!(room.put(name, noise(len)).await.unwrap(), Put::Exists);
        }
        assert_eq!(room.fake.unfinished_uploads(), 0);
    });
}

#[test]
fn what_an_operator_must_mend_is_told_in_his_words() {
    let room = Room::new(Lie::None, "");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        for (status, code, words) in [
            (403, "InvalidAccessKeyId", "s3_credentials"),
            (403, "SignatureDoesNotMatch", "credentials are wrong"),
            (403, "RequestTimeTooSkewed", "clock"),
            (404, "NoSuchBucket", "Create the bucket"),
            (301, "PermanentRedirect", "region="),
            (501, "NotImplemented", "checksum=when_required"),
        ] {
            room.instead(Method::PUT, status, code, 1);
            let fault = room.put("x", noise(10)).await.unwrap_err();
            assert_eq!(fault.kind, Kind::Unavailable, "uploads go on trying: {fault}");
            assert!(fault.message.contains(words), "{fault}");
            assert!(fault.message.contains("s3://bucket/pool/o/ns/x"), "{fault}");
        }
        room.instead(Method::PUT, 507, "InsufficientStorage", 1);
        assert_eq!(room.put("x", noise(10)).await.unwrap_err().kind, Kind::NoSpace);
    });
}

#[test]
fn a_missing_bucket_is_not_a_missing_object() {
    let room = Room::new(Lie::None, "");
    room.run(async || {
        room.instead(Method::HEAD, 404, "", 2);
        let fault = room.store.head("ns", "x").await.unwrap_err();
        assert!(fault.message.contains("no such bucket"), "{fault}");
        assert_eq!(room.store.head("ns", "x").await.unwrap(), None);
        room.instead(Method::GET, 404, "NoSuchBucket", 1);
        assert_eq!(
            room.store.get_range("ns", "x", 0, 1).await.unwrap_err().kind,
            Kind::Unavailable
        );
        // A proxy's page says nothing about the object.
        room.instead(Method::GET, 404, "", 1);
        assert_eq!(
            room.store.get_range("ns", "x", 0, 1).await.unwrap_err().kind,
            Kind::Unavailable
        );
        assert_eq!(room.store.get_range("ns", "x", 0, 1).await.unwrap(), None);
    });
}

#[test]
fn slow_down_closes_the_window_and_answers_open_it() {
    let room = Room::new(Lie::None, "");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        let before = room.store.inner.window.size();
        for _ in 0..3 {
            room.instead(Method::PUT, 503, "SlowDown", 1);
            assert_eq!(room.put("x", noise(10)).await.unwrap_err().kind, Kind::Unavailable);
        }
        assert_eq!(room.store.inner.window.size(), before / 8);
        let puts = (0..300).map(|n| {
            room.store.put_if_absent("ns", ["a", "b", "c"][n % 3], vec![], Purpose::Metadata)
        });
        for outcome in futures_util::future::join_all(puts).await {
            outcome.unwrap();
        }
        assert!(room.store.inner.window.size() > before / 4);
    });
}

#[test]
fn a_get_that_is_slower_than_the_others_is_asked_again() {
    let room = Room::new(Lie::None, "");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        let body = noise(4096);
        room.put("x", body.clone()).await.unwrap();
        let get = async || {
            assert!(room.store.get_range("ns", "x", 0, 4096).await.unwrap().unwrap() == body);
        };
        for _ in 0..200 {
            get().await;
        }
        let patience = room.store.inner.latencies.patience(4096).expect("enough is known");
        assert!(patience >= Duration::from_millis(10));
        // Every second request is stuck for longer than the store waits for anything.
        room.fake.be_slow(2, Duration::from_secs(600));
        room.fake.take_requests();
        for _ in 0..4 {
            get().await;
        }
        assert!(room.fake.take_requests().len() > 4, "the second requests");
    });
}

#[test]
fn a_deletion_that_was_cut_short_is_finished_and_a_namespace_begins_empty() {
    let room = Room::new(Lie::None, "");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        for n in 0..20 {
            room.put(&format!("x/{n}"), noise(10)).await.unwrap();
        }
        // Neither together nor one by one.
        room.instead(Method::POST, 500, "InternalError", 1);
        room.fake.answer_instead_after(
            1,
            Instead {
                method: Method::DELETE,
                status: 500,
                code: "InternalError",
                carried_out: false,
                times: 1,
            },
        );
        assert_eq!(room.store.delete_namespace("ns").await.unwrap_err().kind, Kind::Unavailable);
        assert_eq!(room.store.list_namespaces("").await.unwrap(), [""; 0], "gone for everybody");
        assert!(room.fake.keys().contains(&"pool/d/ns".to_owned()));
        let put = room.put("late", noise(10)).await;
        assert_eq!(put.unwrap_err().kind, Kind::Invalid);
        room.store.create_namespace("ns").await.unwrap();
        assert_eq!(room.store.list("ns", "", None, 99).await.unwrap(), [""; 0]);
        assert_eq!(room.fake.keys(), ["pool/n/ns"]);
    });
}

#[test]
fn more_objects_than_a_page_are_listed_and_deleted() {
    let room = Room::new(Lie::None, "");
    room.run(async || {
        room.store.create_namespace("ns").await.unwrap();
        let names: Vec<String> = (0..2500).map(|n| format!("x/{n:04}")).collect();
        room.fake.plant(names.iter().map(|name| format!("pool/o/ns/{name}")));
        assert_eq!(room.store.list("ns", "x/", None, u32::MAX).await.unwrap(), names);
        assert_eq!(
            room.store.list("ns", "x/", Some("x/0999"), 1001).await.unwrap(),
            names[1000..2001]
        );
        room.store.delete_namespace("ns").await.unwrap();
        assert_eq!(room.fake.keys(), [""; 0]);
    });
}

#[test]
fn uploads_nobody_finished_are_swept_up() {
    let room = Room::new(Lie::None, "");
    room.fake.plant_upload("pool/o/ns/x");
    room.fake.plant_upload("pool2/o/ns/x");
    room.run(async || {
        room.store.sweep();
        for _ in 0..500 {
            if room.fake.unfinished_uploads() == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} uploads are left", room.fake.unfinished_uploads());
    });
}

#[test]
fn what_cannot_be_opened_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let open = |url: String, keys: Option<&Path>| {
        let crate::config::BackendUrl::S3(url) = url.parse().unwrap() else { unreachable!() };
        runtime.block_on(S3Store::open(&url, keys)).err().expect("refused")
    };
    let base = "s3://bucket/p?endpoint=https://127.0.0.1:1";
    for (name, text) in [
        ("no.pem", "hello"),
        ("torn.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        let ca = file(name, text);
        let fault = open(format!("{base}&ca={}", ca.display()), None);
        assert_eq!(fault.kind, Kind::Invalid);
        assert!(fault.message.contains(name), "{fault}");
    }
    let fault = open(format!("{base}&ca=/no/such"), None);
    assert!(fault.to_string().contains("cannot be read"), "{fault}");
    let fault = open(base.to_owned(), Some(Path::new("/no/such")));
    assert!(fault.to_string().contains("s3_credentials"), "{fault}");
}

#[test]
fn a_server_that_is_not_there_and_keys_that_are_not_there_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let service =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ask = |text: &str| {
        std::fs::write(&keys, text).unwrap();
        let url = "s3://bucket/p?endpoint=http://127.0.0.1:1".parse().unwrap();
        let crate::config::BackendUrl::S3(url) = url else { unreachable!() };
        service.block_on(async {
            let store = S3Store::open(&url, Some(&keys)).await.unwrap();
            store.list_namespaces("").await.unwrap_err()
        })
    };
    let fault = ask("[default]\naws_access_key_id=k\naws_secret_access_key=s\n");
    assert_eq!(fault.kind, Kind::Unavailable);
    assert!(fault.message.contains("endpoint="), "{fault}");
    let fault = ask("[other]\naws_access_key_id=k\naws_secret_access_key=s\n");
    assert!(fault.message.contains("AWS_ACCESS_KEY_ID"), "{fault}");
}
