//! The probe against a server with every lie we know, and against an honest one.

use super::*;
use crate::cluster::memory::Memory;
use crate::store::fake::{Fake, Lie};
use crate::store::fenced::Fenced;
use crate::store::s3::{Parts, S3Store};

/// The store for tests: keys are taken from a file, not from the machine.
async fn open(fake: &Fake) -> (S3Store, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "[default]\naws_access_key_id = k\naws_secret_access_key = s\n").unwrap();
    (S3Store::open(&fake.url(""), Some(&keys)).await.unwrap(), dir)
}

async fn probe_of(fake: &Fake) -> Result<Report> {
    let (store, _keys) = open(fake).await;
    let (single, in_parts) = (store.with_parts(Parts::Never), store.with_parts(Parts::Above(0)));
    probe(Subject { store: &single, in_parts: Some(&in_parts), prefix: "" }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_server_passes_and_nothing_is_left() {
    let fake = Fake::serve(Lie::None).await;
    let report = probe_of(&fake).await.unwrap();
    assert_eq!(report.checks.len(), 7);
    for check in &report.checks {
        assert_eq!(check.lie, None, "{:?}", check.what);
    }
    assert!(report.parts());
    assert_eq!(fake.keys(), [""; 0]);
    assert_eq!(fake.unfinished_uploads(), 0);
}

/// Which check must find which lie, in which words.
const LIES: [(Lie, What, &str); 18] = [
    (
        Lie::Overwrites,
        What::CreateOnly,
        "answers 200 to If-None-Match: * on an existing key, and overwrites it",
    ),
    (Lie::ClaimsToWrite, What::CreateOnly, "throws the new bytes away"),
    (Lie::RefusesAndWrites, What::CreateOnly, "answers 412"),
    (Lie::ManyWinners, What::OneWinner, "all told that they won"),
    (Lie::StaleList, What::Lists, "0 of 1 names"),
    (Lie::ListsTheDead, What::Lists, "what was deleted"),
    (Lie::IgnoresStartAfter, What::Lists, "lists"),
    (Lie::ShiftsRanges, What::Ranges, "other bytes"),
    (Lie::IgnoresRange, What::Ranges, "ignore Range"),
    (Lie::Truncates, What::ReadAfterWrite, "arrived"),
    (Lie::DropsMetadata, What::ReadAfterWrite, "metadata"),
    (Lie::ReadsLate, What::ReadAfterWrite, "does not find"),
    (Lie::KeepsTheDead, What::Deletes, "was deleted before"),
    (Lie::PartsOverwrite, What::Parts, "overwrites it"),
    (Lie::FailsWith200, What::Parts, "InternalError"),
    (Lie::MixesParts, What::Parts, "other bytes"),
    (Lie::NoParts, What::Parts, "501"),
    (Lie::NoBatchDelete, What::Deletes, ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lie_is_found_and_told() {
    for (lie, what, words) in LIES {
        let fake = Fake::serve(lie).await;
        let found = match probe_of(&fake).await {
            Ok(report) => {
                let check = report.checks.iter().find(|check| check.what == what);
                check.unwrap_or_else(|| panic!("{lie:?}: {report:?}")).lie.clone()
            }
            // It cannot even clean up.
            Err(fault) => Some(fault.message),
        };
        match (lie, found) {
            // Made up for, one by one.
            (Lie::NoBatchDelete, found) => assert_eq!(found, None),
            (_, found) => {
                let told = found.unwrap_or_else(|| panic!("{lie:?} was not found"));
                assert!(told.contains(words), "{lie:?}: {told}");
            }
        }
        let stays = matches!(lie, Lie::KeepsTheDead | Lie::ListsTheDead | Lie::IgnoresStartAfter);
        assert!(stays || fake.keys().is_empty(), "{lie:?} leaves {:?}", fake.keys());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lie_means_for_the_vpool() {
    for (lie, unfit, needs_fence, parts) in [
        (Lie::Overwrites, false, true, false),
        (Lie::ManyWinners, false, true, false),
        (Lie::NoParts, false, false, false),
        (Lie::ShiftsRanges, true, false, true),
        (Lie::StaleList, true, false, true),
    ] {
        let report = probe_of(&Fake::serve(lie).await).await.unwrap();
        let found = (report.unfit().is_some(), report.needs_fence().is_some(), report.parts());
        assert_eq!(found, (unfit, needs_fence, parts), "{lie:?}: {report:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_makes_up_for_servers_that_overwrite() {
    for lie in [Lie::Overwrites, Lie::ManyWinners, Lie::ClaimsToWrite, Lie::None] {
        let fake = Fake::serve(lie).await;
        let (store, _keys) = open(&fake).await;
        let registry = Memory::default();
        let fenced = Fenced::new(store, registry.clone(), &["manifest/"]);
        let subject = Subject { store: &fenced, in_parts: None, prefix: "manifest/" };
        let report = probe(subject).await.unwrap();
        for check in &report.checks {
            assert_eq!(check.lie, None, "{lie:?}: {:?}", check.what);
        }
        assert_eq!(fake.keys(), [""; 0], "{lie:?}");
        assert_eq!(registry.keys(), [""; 0], "{lie:?}");
    }
}

#[test]
fn only_old_probes_are_left_behind() {
    for (namespace, left) in [
        ("probe-00000001-x", true),
        ("probe-00002000-x", false),
        ("probe-00001000-x", true),
        ("probe-", false),
        ("probe-0000000g-x", false),
        ("vd-00000001", false),
    ] {
        assert_eq!(is_left_behind(namespace, 0x2000), left, "{namespace}");
    }
}
