//! Maintenance: what fails is repaired, what changes is stored anew, what is full is emptied, what is orphaned goes, and
//! several agents do each other no harm.

use super::disks::{QUICK, Shared, body_of, check, eventually_full, fill};
use super::faulty::Mood;
use super::*;
use crate::maintenance::{Counts, State, Task};
use crate::manifest::Fragment;

use crate::nsm::OsdRole;
use crate::preset::Raw;

const SEVEN: [&str; 7] = ["a", "a", "b", "b", "c", "c", "d"];

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not in 30 s: {what}");
}

/// Waits for the end of a job; what came of it.
async fn result_of(alba: &Alba, task: Task) -> Counts {
    let job = alba.start_work(task, Some("ns")).await.unwrap();
    let items = || async {
        let all = alba.work().await.unwrap();
        all.into_iter().filter(|(key, _)| key.job == job).map(|(_, item)| item).collect::<Vec<_>>()
    };
    until("the job ends", || async { items().await.iter().all(|item| item.state == State::Done) })
        .await;
    let mut sum = Counts::default();
    items().await.iter().for_each(|item| sum += item.counts);
    assert!(alba.cancel_work(job).await.unwrap() && !alba.cancel_work(job).await.unwrap());
    sum
}

async fn fragments(alba: &Alba, name: &str) -> Vec<Fragment> {
    alba.head("ns", name).await.unwrap().unwrap().fragments
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_osd_is_repaired_around_and_empties_when_it_is_back() {
    for mood in [Mood::Hung, Mood::Down] {
        let shared = Shared::new(&SEVEN);
        let alba = shared.begin(&["3,2,4,2"], &QUICK).await;
        fill(&alba, 24).await;
        eventually_full(&alba, &[]).await;
        let lost = &shared.disks[1];
        let held_before = lost.held().len();
        assert!(held_before > 0);
        lost.switch.set(mood);
        // The report knows at once, and as a question beforehand.
        let safety = alba.safety(&[], Some("ns")).await.unwrap();
        assert_eq!(safety.dead, [lost.id]);
        assert!(safety.lines.iter().any(|line| line.tally.standing.osds == 1), "{safety:?}");
        eventually_full(&alba, &[lost.id]).await;
        check(&alba, 24).await;
        for n in 0..24 {
            let nodes = alba.nodes().await.unwrap();
            let found = fragments(&alba, &n.to_string()).await;
            for node in ["a", "b", "c", "d"] {
                assert!(found.iter().filter(|f| nodes[&f.osd] == node).count() <= 2, "x");
            }
        }
        lost.switch.set(Mood::Good);
        until("what it held is removed", || async { lost.held().is_empty() }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decommissioned_osd_is_emptied_and_a_full_backend_still_repairs_and_deletes() {
    let shared = Shared::new(&SEVEN);
    let alba = shared.begin(&["3,2,4,2"], &QUICK).await;
    fill(&alba, 24).await;
    eventually_full(&alba, &[]).await;
    let leaving = &shared.disks[6];
    alba.set_osd_role(leaving.id, OsdRole::Decommissioning).await.unwrap();
    until("it is empty", || async { leaving.held().is_empty() }).await;
    eventually_full(&alba, &[leaving.id]).await;
    check(&alba, 24).await;
    // All are full: what is damaged cannot be repaired, and is as soon as something is deleted.
    shared.disks.iter().for_each(|disk| disk.switch.set(Mood::Full));
    let lost = fragments(&alba, "0").await[1];
    assert!(shared.disk(lost.osd).lose(lost.file));
    let task = || Task::Verify { checksum: false, unreachable_is_missing: false };
    let counts = result_of(&alba, task()).await;
    assert_eq!((counts.objects, counts.missing, counts.made), (24, 1, 0), "{counts:?}");
    assert!(alba.delete("ns", "1").await.unwrap());
    assert!(alba.delete_namespace("ns").await.unwrap());
    until("all is removed", || async { shared.fragments() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verification_finds_what_reads_would_not_and_repairs_it() {
    let shared = Shared::new(&SEVEN);
    // What is found is repaired by what found it.
    let settings = ["auto_repair_timeout_ms=600000", "repair=false", "bytes_per_second=0"];
    let alba = shared.begin(&["3,2,4,2"], &settings).await;
    fill(&alba, 16).await;
    eventually_full(&alba, &[]).await;
    let (gone, wrong) = (fragments(&alba, "3").await[4], fragments(&alba, "9").await[3]);
    assert!(shared.disk(gone.osd).lose(gone.file));
    shared.disk(wrong.osd).damage(wrong.file);
    let existence = Task::Verify { checksum: false, unreachable_is_missing: false };
    let counts = result_of(&alba, existence.clone()).await;
    let found = (counts.objects, counts.missing, counts.mismatched, counts.made);
    assert_eq!(found, (16, 1, 0, 1), "{counts:?}");
    let checksums = Task::Verify { checksum: true, unreachable_is_missing: false };
    let counts = result_of(&alba, checksums.clone()).await;
    let found = (counts.objects, counts.missing, counts.mismatched, counts.made);
    assert_eq!(found, (16, 0, 1, 1), "{counts:?}");
    let counts = result_of(&alba, checksums).await;
    assert_eq!(counts, Counts { objects: 16, ..Counts::default() });
    // What does not answer is left alone, unless it is said to be missing.
    shared.disks[0].switch.set(Mood::Down);
    let counts = result_of(&alba, existence).await;
    assert!(counts.unavailable > 0 && counts.made == 0, "{counts:?}");
    let missing = Task::Verify { checksum: false, unreachable_is_missing: true };
    let counts = result_of(&alba, missing).await;
    assert!(counts.made > 0, "{counts:?}");
    check(&alba, 16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_decays_where_nobody_reads_is_made_anew_by_itself() {
    let shared = Shared::new(&SEVEN);
    let settings = [&QUICK[..], &["scrub_interval_ms=0"]].concat();
    let alba = shared.begin(&["3,2,4,2"], &settings).await;
    fill(&alba, 16).await;
    eventually_full(&alba, &[]).await;
    let (gone, wrong) = (fragments(&alba, "3").await[4], fragments(&alba, "9").await[3]);
    assert!(shared.disk(gone.osd).lose(gone.file));
    shared.disk(wrong.osd).damage(wrong.file);
    // Without a scrub it stays so; the first one comes an interval after it is turned on.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(fragments(&alba, "3").await.contains(&gone));
    alba.change_maintenance(&["scrub_interval_ms=500".into()]).await.unwrap();
    until("both are others", || async {
        let (three, nine) = (fragments(&alba, "3").await, fragments(&alba, "9").await);
        !three.contains(&gone) && !nine.contains(&wrong)
    })
    .await;
    eventually_full(&alba, &[]).await;
    let checksums = Task::Verify { checksum: true, unreachable_is_missing: false };
    let counts = result_of(&alba, checksums).await;
    assert_eq!(counts, Counts { objects: 16, ..Counts::default() });
}

/// Not a race that is lucky: whoever signs, leaving or showing up, takes long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_leaves_stays_away() {
    let shared = Shared::new(&["a", "b"]);
    let first = shared.begin(&["1,1,2,1"], &["lease_ms=20000", "tour_interval_ms=100"]).await;
    let agents = async || first.inner.nsm.agents().await.unwrap().len();
    until("the first has signed", || async { agents().await == 1 }).await;
    for n in 0..8u64 {
        let second = shared.open_slowly(&[]).await;
        until("the second has signed", || async { agents().await == 2 }).await;
        tokio::time::sleep(Duration::from_millis(n * 7)).await;
        second.close().await;
        assert_eq!(agents().await, 1, "after {n} times");
    }
}

/// Of several who place fragments of one object, each by what it read, not all may have their way.
#[tokio::test]
async fn fragments_placed_at_the_same_time_lie_apart() {
    let shared = Shared::new(&["a", "a", "a", "b", "b", "c"]);
    let alba = shared.begin(&["2,2,4,4"], &["repair=false", "rebalance=false"]).await;
    fill(&alba, 1).await;
    let read = alba.head("ns", "0").await.unwrap().unwrap();
    let held: Vec<OsdId> = read.fragments.iter().map(|fragment| fragment.osd).collect();
    let free = shared.disks.iter().map(|disk| disk.id).find(|id| !held.contains(id)).unwrap();
    let relocate = async |fragment: Fragment| {
        let (namespace, name) = ("ns".into(), "0".into());
        alba.inner.relocate(&namespace, &name, read.clone(), fragment, free).await.unwrap()
    };
    // Two chose the same OSD.
    let moved = (relocate(read.fragments[0]).await, relocate(read.fragments[1]).await);
    assert_eq!(moved, (true, false));
    let now = fragments(&alba, "0").await;
    assert_eq!((now[0].osd, &now[1..]), (free, &read.fragments[1..]));
    check(&alba, 1).await;
    // No OSD has two, no node has more than x.
    let mut manifest = Manifest { policy: "2,2,4,2".parse().unwrap(), ..read.clone() };
    let on = |index: usize, disk: usize| Fragment {
        osd: shared.disks[disk].id,
        ..read.fragments[index]
    };
    for (disk, fits) in [(0, false), (1, false), (2, false), (3, false), (4, true), (5, true)] {
        manifest.fragments = vec![on(0, 0), on(1, 1), on(2, 3), on(3, disk)];
        assert_eq!(alba.inner.osds.fits(&manifest, &on(3, disk), &[]), fits, "disk {disk}");
    }
    // One that is bad and stays takes no room on its node, but its OSD has no other.
    manifest.fragments = vec![on(0, 0), on(1, 1), on(2, 3), on(3, 2)];
    assert!(alba.inner.osds.fits(&manifest, &on(3, 2), &[on(0, 0)]));
    manifest.fragments[3] = on(3, 0);
    assert!(!alba.inner.osds.fits(&manifest, &on(3, 0), &[on(0, 0)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_preset_stores_objects_anew_under_readers() {
    let shared = Shared::new(&SEVEN);
    let alba = shared.begin(&["1,1,2,1"], &QUICK).await;
    fill(&alba, 24).await;
    let reader = alba.open_object("ns", "4").await.unwrap().unwrap();
    let before = reader.manifest.clone();
    let raw = Raw { fragment_bytes: 65_536, ..Raw::of(&["3,2,4,2", "1,1,2,1"]) };
    assert_eq!(alba.put_preset("test", raw).await.unwrap(), 2);
    until("all are stored anew", || async {
        let safety = alba.safety(&[], None).await.unwrap();
        safety.lines.iter().all(|line| line.bucket.policy.parity() == 2)
    })
    .await;
    eventually_full(&alba, &[]).await;
    check(&alba, 24).await;
    let now = alba.head("ns", "4").await.unwrap().unwrap();
    assert_eq!(now.policy.to_string(), "(3,2,4,2)");
    assert_eq!((now.len, now.crc, now.created_ms), (before.len, before.crc, before.created_ms));
    // 21 coded, 3 copied.
    until("the old are removed", || async { shared.fragments() == 21 * 5 + 3 * 3 }).await;
    assert_eq!(reader.read(0, before.len).await.unwrap(), body_of(4));
    let status = alba.status().await.unwrap();
    assert_eq!((status.objects, result_of(&alba, Task::Rewrite).await.rewritten), (24, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_better_policy_is_taken_when_it_is_possible_again() {
    let shared = Shared::new(&["a", "b", "c", "d"]);
    let alba = shared.begin(&["1,3,4,1", "1,1,2,1"], &QUICK).await;
    shared.disks[0].switch.set(Mood::Full);
    fill(&alba, 6).await;
    assert_eq!(alba.head("ns", "0").await.unwrap().unwrap().policy.to_string(), "(1,1,2,1)");
    shared.disks[0].switch.set(Mood::Good);
    until("the better one", || async {
        let safety = alba.safety(&[], None).await.unwrap();
        safety.lines.iter().all(|line| line.bucket.policy.parity() == 3)
    })
    .await;
    eventually_full(&alba, &[]).await;
    check(&alba, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_osd_is_filled_up_to_the_others() {
    let mut shared = Shared::new(&["a", "b", "c", "d"]);
    shared.disks.iter_mut().for_each(|disk| disk.capacity = 4 << 20);
    let new = shared.disks.pop().unwrap();
    let alba = shared.begin(&["1,1,2,1"], &QUICK).await;
    fill(&alba, 60).await;
    alba.close().await;
    let before: u64 = shared.disks.iter().map(|disk| disk.used()).sum();
    shared.disks.push(new);
    let alba = shared.open(&QUICK).await;
    let level = |disk: &super::disks::Disk| disk.used() as f64 / disk.capacity as f64;
    until("all are alike", || async {
        let levels: Vec<f64> = shared.disks.iter().map(level).collect();
        let mean = levels.iter().sum::<f64>() / 4.0;
        levels.iter().all(|level| (level - mean).abs() < 0.055)
    })
    .await;
    until("nothing is left behind", || async {
        shared.disks.iter().map(|disk| disk.used()).sum::<u64>() == before
    })
    .await;
    eventually_full(&alba, &[]).await;
    check(&alba, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_share_the_work_and_one_takes_over_what_the_other_leaves() {
    let shared = Shared::new(&SEVEN);
    let first = shared.begin(&["3,2,4,2"], &QUICK).await;
    let second = shared.open(&QUICK).await;
    for n in 0..24u64 {
        let alba = if n % 2 == 0 { &first } else { &second };
        alba.put_if_absent("ns", &n.to_string(), vec![body_of(n)], Purpose::Data).await.unwrap();
    }
    eventually_full(&first, &[]).await;
    let total = shared.fragments();
    let lost = &shared.disks[2];
    let held = lost.held().len();
    lost.switch.set(Mood::Down);
    // Slowly, so that one is killed in the middle.
    first.change_maintenance(&["objects_per_second=10".into()]).await.unwrap();
    until("the work has begun", || async {
        first.inner.nsm.fragments_of(lost.id, None, 100).await.unwrap().len() < held
    })
    .await;
    // Killed: it says nothing to anybody.
    drop(first);
    eventually_full(&second, &[lost.id]).await;
    check(&second, 24).await;
    // Nothing was made twice and left: but for what is noted for removal on the lost one.
    until("no more than there should be", || async {
        shared.fragments() - lost.held().len() == total
    })
    .await;
    // The item itself goes a moment after its last object.
    until("the work is over", || async {
        second.work().await.unwrap().iter().all(|(_, item)| item.task != Task::empty(lost.id))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_goes_on_where_a_killed_agent_left_it() {
    let shared = Shared::new(&["a", "b", "c"]);
    let slow = [&QUICK[..], &["objects_per_second=20"]].concat();
    let alba = shared.begin(&["1,1,2,1"], &slow).await;
    fill(&alba, 200).await;
    let task = Task::Verify { checksum: false, unreachable_is_missing: false };
    let job = alba.start_work(task, Some("ns")).await.unwrap();
    let done = async |alba: &Alba| {
        let all = alba.work().await.unwrap().into_iter();
        let items = all.filter(|(key, _)| key.job == job);
        let items: Vec<_> = items.map(|(_, item)| item).collect();
        assert_eq!(items.len(), 1);
        (items[0].counts.objects, items[0].state)
    };
    until("some is done", || async { done(&alba).await.0 > 0 }).await;
    drop(alba);
    let alba = shared.open(&["objects_per_second=0"]).await;
    let (before, state) = done(&alba).await;
    assert!(before < 200 && state == State::Open, "{before} {state:?}");
    until("the rest is done", || async { done(&alba).await.1 == State::Done }).await;
    // What was done and not yet written down is done again.
    let (all, _) = done(&alba).await;
    assert!((200..=264).contains(&all), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_go_and_what_is_being_put_stays() {
    let shared = Shared::new(&["a", "b", "c"]);
    let settings = [&QUICK[..], &["collect_grace_ms=5"]].concat();
    let first = shared.begin(&["1,1,2,1"], &settings).await;
    let second = shared.open(&settings).await;
    // Left by a put that was killed, and from before epochs.
    let orphans: Vec<FragmentId> = (0..8)
        .map(|n| if n < 4 { FragmentId::random() } else { FragmentId::of_epoch([n; 16], 1) })
        .collect();
    orphans.iter().for_each(|id| shared.disks[0].add(*id, noise(100, 9)));
    let begun = std::time::Instant::now();
    let mut n = 0;
    let is_gone = || orphans.iter().all(|id| !shared.disks[0].held().contains_key(id));
    while begun.elapsed() < Duration::from_secs(3) || !is_gone() {
        assert!(begun.elapsed() < Duration::from_secs(40), "orphans stay");
        let alba = if n % 2 == 0 { &first } else { &second };
        // Bytes that come so slowly that the grace is over meanwhile.
        let body = body_of(n);
        let len = body.len() as u64;
        let name = n.to_string();
        let mut upload = alba.begin_put("ns", &name, (len, Purpose::Data), None).await.unwrap();
        if n % 4 == 0 {
            tokio::time::sleep(Duration::from_millis(20 * (n % 16))).await;
        }
        upload.push(body.clone()).await.unwrap();
        match upload.finish().await {
            Ok(Put::Created) => {}
            Ok(Put::Exists) => panic!("nobody else puts it"),
            Err(fault) => {
                assert_eq!(fault.kind, Kind::Outdated, "{fault}");
                let again = alba.put_if_absent("ns", &name, vec![body], Purpose::Data).await;
                assert_eq!(again.unwrap(), Put::Created);
            }
        }
        n += 1;
    }
    check(&first, n).await;
    check(&second, n).await;
    let counts = result_of(&first, Task::Verify { checksum: true, unreachable_is_missing: false });
    let counts = counts.await;
    assert_eq!((counts.objects, counts.missing, counts.mismatched), (n, 0, 0), "{counts:?}");
    until("no orphan is left", || async { shared.fragments() == 2 * n as usize }).await;
}

#[tokio::test]
async fn a_put_that_is_late_is_refused_whatever_makes_it_live() {
    let shared = Shared::new(&["a", "b", "c"]);
    // What collects is called by hand.
    let alba = shared.begin(&["1,1,2,1"], &["collect=false", "repair=false"]).await;
    let nsm = &alba.inner.nsm;
    let old = alba.inner.fragment_id();
    fill(&alba, 1).await;
    let manifest = alba.head("ns", "0").await.unwrap().unwrap();
    let mut late = manifest.clone();
    late.id = alba.inner.outside.object_id();
    late.fragments[0].file = old;
    let epoch = nsm.begin_epoch().await.unwrap();
    assert_eq!(nsm.put_if_absent("ns", "in time", &late).await.unwrap(), Put::Created);
    nsm.enable_from(epoch).await.unwrap();
    let is_outdated = |fault: Fault| assert_eq!(fault.kind, Kind::Outdated, "{fault}");
    is_outdated(nsm.put_if_absent("ns", "late", &late).await.unwrap_err());
    let put = [("late".to_string(), Change::Put(late.clone()))];
    is_outdated(nsm.apply("ns", &[], &put).await.unwrap_err());
    let moved = [(Some(manifest.fragments[0]), Some(late.fragments[0]))];
    let moved = nsm.move_fragments(("ns", "0"), manifest.id, &moved, &|_, _| true).await;
    is_outdated(moved.unwrap_err());
    is_outdated(nsm.replace("ns", "0", &manifest, &late).await.unwrap_err());
    assert_eq!(alba.head("ns", "0").await.unwrap().unwrap(), manifest);
    // What is live stays live, of whatever epoch; and a put begins again by itself.
    fill_more(&alba).await;
    alba.delete("ns", "in time").await.unwrap();
    check(&alba, 1).await;
    // An NSM that is older than what the OSDs hold collects nothing.
    let stray = FragmentId::random();
    shared.disks[1].add(stray, noise(9, 9));
    let future = FragmentId::of_epoch([0; 16], epoch + 5);
    shared.disks[1].add(future, noise(9, 9));
    alba.change_maintenance(&[
        "collect=true".into(),
        "collect_grace_ms=0".into(),
        "collect_interval_ms=100".into(),
    ])
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    if alba.inner.nsm.epoch().await.unwrap() < epoch + 5 {
        assert!(shared.disks[1].held().contains_key(&future));
    }
}

async fn fill_more(alba: &Alba) {
    let body = noise(10, 10);
    let put = alba.put_if_absent("ns", "more", vec![body], Purpose::Data).await;
    assert_eq!(put.unwrap(), Put::Created);
    let value = Update::Put(Bytes::from_static(b"v"));
    alba.apply_sequence("ns", Vec::new(), vec![("value".into(), value)]).await.unwrap();
}
