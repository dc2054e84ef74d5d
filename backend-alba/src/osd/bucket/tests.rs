//! A bucket as an OSD, on a server that does as it is told: the contract, claims, and each way of failing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fake::{Fake, Mood};
use super::*;
use crate::fault::Kind;
use crate::name::{AlbaId, OsdId};
use crate::osd::conformance::{conforms, noise, open, put, refuses_strangers, title};
use crate::osd::objects::{OnObjects, owner};
use crate::osd::{Osd, Priority, Purpose};

const OURS: AlbaId = AlbaId([1; 16]);
const THEIRS: AlbaId = AlbaId([2; 16]);

fn bucket(fake: &Fake) -> Arc<dyn Objects> {
    Arc::new(Bucket::new(fake.url("")))
}

async fn claim(fake: &Fake, alba: AlbaId) -> Result<OsdId> {
    owner::claim(&*bucket(fake), alba, OsdId::random()).await
}

async fn claimed(fake: &Fake) -> OnObjects {
    let id = claim(fake, OURS).await.unwrap();
    OnObjects::new((id, OURS), bucket(fake))
}

#[tokio::test]
async fn a_bucket_conforms() {
    let fake = Fake::serve().await;
    let osd = claimed(&fake).await;
    conforms(&osd).await;
    let theirs = OnObjects::new((osd.id(), THEIRS), bucket(&fake));
    refuses_strangers(&osd, &theirs).await;
    let stale = OnObjects::new((OsdId([9; 16]), OURS), bucket(&fake));
    refuses_strangers(&osd, &stale).await;
    assert_eq!(fake.keys(), ["p/osd/0000000000000001"], "nothing else is left");
}

#[tokio::test]
async fn it_belongs_to_one_backend_until_it_is_released() {
    let fake = Fake::serve().await;
    let id = claim(&fake, OURS).await.unwrap();
    assert_eq!(claim(&fake, OURS).await.unwrap(), id);
    let foreign = claim(&fake, THEIRS).await.unwrap_err();
    assert_eq!(foreign.kind, Kind::Invalid);
    assert!(foreign.message.contains(&OURS.to_string()), "{foreign}");
    let objects = bucket(&fake);
    assert_eq!(owner::release(&*objects, THEIRS).await.unwrap_err().kind, Kind::Invalid);
    let osd = OnObjects::new((id, OURS), objects.clone());
    let wanted = put(&osd, &noise(10), 10).await;
    osd.release(OURS).await.unwrap();
    osd.release(OURS).await.unwrap();
    let nobodys = osd.room().await.unwrap_err();
    assert!(nobodys.message.contains("belongs to nobody"), "{nobodys}");
    assert_eq!(claim(&fake, THEIRS).await.unwrap(), id, "the same OSD");
    // The next backend does not see what the one before has left: it could only take it for orphans.
    let theirs = OnObjects::new((id, THEIRS), objects);
    assert_eq!(theirs.list(wanted.file.0[0]).await.unwrap(), []);
    let taken = osd.room().await.unwrap_err();
    assert!(taken.message.contains(&THEIRS.to_string()), "{taken}");
}

#[tokio::test]
async fn of_backends_that_claim_it_together_one_wins() {
    for mood in [Mood::Good, Mood::ListsLate, Mood::Conflicts] {
        let fake = Fake::serve().await;
        fake.set(mood);
        let claims = (1..=8).map(|n| {
            let fake = fake.clone();
            tokio::spawn(async move { claim(&fake, AlbaId([n; 16])).await })
        });
        let claims: Vec<_> = claims.collect();
        let mut winners = 0;
        for claimed in claims {
            match claimed.await.unwrap() {
                Ok(_) => winners += 1,
                Err(fault) => assert_eq!(fault.kind, Kind::Invalid, "{fault}"),
            }
        }
        assert_eq!(winners, 1, "{mood:?}");
    }
}

#[tokio::test]
async fn where_markers_can_be_overwritten_the_loser_notices_and_damages_nothing() {
    let fake = Fake::serve().await;
    fake.set(Mood::Overwrites);
    let osd = claimed(&fake).await;
    let wanted = put(&osd, &noise(1000), 100).await;
    // Somebody who saw an empty bucket in the same moment.
    let late = crate::osd::marker::text(OsdId([8; 16]), Some(THEIRS));
    fake.change("osd/0000000000000001", |bytes| *bytes = late.into_bytes());
    let theirs = OnObjects::new((OsdId([8; 16]), THEIRS), bucket(&fake));
    assert_eq!(theirs.list(wanted.file.0[0]).await.unwrap(), []);
    put(&theirs, &noise(5), 5).await;
    // Ours believed it for a minute at most; one that begins now asks.
    let again = OnObjects::new((osd.id(), OURS), bucket(&fake));
    assert!(again.room().await.unwrap_err().message.contains("it is OSD 0808"));
    assert!(fake.keys().iter().any(|key| key.ends_with(&wanted.file.to_string())));
}

#[tokio::test]
async fn damage_is_seen_by_whoever_reads() {
    let fake = Fake::serve().await;
    let osd = claimed(&fake).await;
    let body = noise(200_000);
    let wanted = put(&osd, &body, 200_000).await;
    let name = wanted.file.to_string();
    let fragment = open(&osd, wanted).await;
    fake.change(&name, |bytes| bytes[70_000] ^= 1);
    let hit = fragment.clone().read(65_536, 65_537, Priority::Foreground).await.unwrap_err();
    assert_eq!(hit.kind, Kind::Corrupt);
    assert!(hit.message.contains("65536..131072") && hit.message.contains("s3://bucket"), "{hit}");
    assert!(
        fragment.clone().read(0, 65_536, Priority::Foreground).await.unwrap()
            == body.slice(..65_536)
    );
    // Without its trailer the fragment is still what its manifest says, as long as it is whole.
    fake.change(&name, |bytes| bytes[70_000] ^= 1);
    fake.change(&name, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let read = open(&osd, wanted).await.read(1, 150_000, Priority::Foreground).await.unwrap();
    assert!(read == body.slice(1..150_000));
    assert_eq!(osd.describe(wanted.file).await.unwrap_err().kind, Kind::Corrupt);
    fake.change(&name, |bytes| bytes[0] ^= 1);
    assert_eq!(osd.open(wanted, Priority::Foreground).await.err().unwrap().kind, Kind::Corrupt);
    fake.change(&name, |bytes| bytes.truncate(1000));
    assert_eq!(osd.open(wanted, Priority::Foreground).await.err().unwrap().kind, Kind::Corrupt);
    let cut = fragment.read(0, 65_536, Priority::Foreground).await.unwrap_err();
    assert_eq!(cut.kind, Kind::Corrupt, "{cut}");
}

#[tokio::test]
async fn a_server_that_lies_about_ranges_is_not_believed() {
    let fake = Fake::serve().await;
    let osd = claimed(&fake).await;
    let body = noise(300_000);
    let wanted = put(&osd, &body, 300_000).await;
    let fragment = open(&osd, wanted).await;
    for (mood, kind) in [
        (Mood::Shifts, Kind::Corrupt),
        (Mood::Truncates, Kind::Unavailable),
        (Mood::IgnoresRange, Kind::Unavailable),
    ] {
        fake.set(mood);
        let read = fragment.clone().read(0, 65_536, Priority::Foreground).await;
        assert_eq!(read.unwrap_err().kind, kind, "{mood:?}");
    }
    fake.set(Mood::Good);
    assert!(fragment.read(0, 300_000, Priority::Foreground).await.unwrap() == body);
}

#[tokio::test]
async fn what_a_server_refuses_says_what_to_do() {
    let fake = Fake::serve().await;
    let osd = claimed(&fake).await;
    let wanted = put(&osd, &noise(10), 10).await;
    for (status, code, kind, words) in [
        (403, "SignatureDoesNotMatch", Kind::Unavailable, "credentials=FILE"),
        (404, "NoSuchBucket", Kind::Unavailable, "Create the bucket"),
        (403, "RequestTimeTooSkewed", Kind::Unavailable, "clock"),
        (503, "SlowDown", Kind::Unavailable, "SlowDown"),
        (500, "InternalError", Kind::Unavailable, "InternalError"),
        (507, "InsufficientStorage", Kind::NoSpace, "InsufficientStorage"),
    ] {
        fake.set(Mood::Good);
        // It is ours: asked before.
        osd.room().await.unwrap();
        fake.set(Mood::Refuses(status, code));
        let opened = osd.open(wanted, Priority::Foreground).await.err().unwrap();
        assert!(opened.kind == kind && opened.message.contains(words), "{opened}");
        assert!(opened.message.contains("s3://bucket/p"), "it does not say where: {opened}");
        let claimed = claim(&fake, OURS).await.unwrap_err();
        assert!(claimed.message.contains(words), "{claimed}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_costs_a_bounded_time_and_is_asked_again() {
    let fake = Fake::serve().await;
    let id = claim(&fake, OURS).await.unwrap();
    let osd = OnObjects::within((id, OURS), bucket(&fake), Duration::from_millis(300));
    let wanted = put(&osd, &noise(10), 10).await;
    fake.set(Mood::Hangs);
    let begun = Instant::now();
    for outcome in [
        osd.open(wanted, Priority::Foreground).await.map(drop),
        osd.remove(wanted.file).await,
        osd.create(title(10)).await.map(drop),
        osd.room().await.map(drop),
    ] {
        assert_eq!(outcome.unwrap_err().kind, Kind::Unavailable);
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    fake.set(Mood::Good);
    assert!(open(&osd, wanted).await.read(0, 10, Priority::Foreground).await.unwrap() == noise(10));
}

#[tokio::test]
async fn a_put_that_is_refused_half_way_says_why() {
    let fake = Fake::serve().await;
    let osd = claimed(&fake).await;
    osd.room().await.unwrap();
    let mut writer = osd.create(title(64 << 20)).await.unwrap();
    fake.set(Mood::Refuses(507, "InsufficientStorage"));
    let mut outcome = Ok(());
    for _ in 0..64 {
        outcome = writer.append(vec![noise(1 << 20)]).await;
        if outcome.is_err() {
            break;
        }
    }
    if outcome.is_ok() {
        outcome = writer.finish(None).await.map(drop);
    }
    let fault = outcome.unwrap_err();
    // The words, when they came before the connection was closed.
    assert!(matches!(fault.kind, Kind::NoSpace | Kind::Unavailable), "{fault}");
    assert!(writer.append(vec![noise(1)]).await.is_err(), "it was given up");
    fake.set(Mood::Good);
    writer.discard().await;
    assert_eq!(fake.keys().len(), 1);
}

#[tokio::test]
async fn a_ceiling_holds_and_deletions_make_room() {
    let fake = Fake::serve().await;
    let id = claim(&fake, OURS).await.unwrap();
    let objects = Arc::new(Bucket::new(fake.url("&capacity_gib=1")));
    let osd = OnObjects::new((id, OURS), objects.clone());
    let room = osd.room().await.unwrap();
    assert_eq!(room.capacity_bytes, 1 << 30);
    assert!(room.free_bytes < 1 << 30);
    let too_much = osd.create(title(1 << 30)).await.err().unwrap();
    assert_eq!(too_much.kind, Kind::NoSpace);
    let wanted = put(&osd, &noise(1 << 20), 1 << 20).await;
    let used = osd.room().await.unwrap().used_bytes;
    assert!(used > 1 << 20, "{used}");
    // What lies there is counted by whoever begins with it.
    let again = OnObjects::new((id, OURS), Arc::new(Bucket::new(fake.url("&capacity_gib=1"))));
    for _ in 0..500 {
        if again.room().await.unwrap().used_bytes >= 1 << 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let counted = again.room().await.unwrap().used_bytes;
    assert!((1 << 20..used + 4096).contains(&counted), "{counted} of {used}");
    osd.remove(wanted.file).await.unwrap();
    let free = OnObjects::new((id, OURS), bucket(&fake)).room().await.unwrap();
    assert_eq!(free.free_for(Purpose::Data), 1 << 40, "without a ceiling");
}
