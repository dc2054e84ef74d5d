//! Two owners of one volume, step by step: the second takes it over while the first is paused, cut off, or merely not told.
//!
//! What the first may still do: it serves reads and plain writes of its own history until it learns of its successor, which
//! is at its next manifest. What it reads until then is its own history, never a mixture. What it must never do: change
//! anything the second sees, or be told that something is on the backend that the second does not have (P3, INV-6, INV-8).
//! Once it knows, it answers every request that it is fenced.

use std::time::Duration;

use suite::model::Place;
use suite::sim::engine::State;
use suite::sim::rig::{Live, Rig, quiet_settings};
use suite::world::faults::{Crash, Faults};
use volumedriver_core::fault::Kind;
use volumedriver_core::units::ByteCount;

/// Longer than anything is on its way.
const LATE: Duration = Duration::from_secs(90);

fn rig(seed: u64) -> Rig {
    Rig::new(seed, Faults::default(), quiet_settings())
}

/// It knows that it was replaced: nothing is answered but with that.
async fn is_fenced(old: &Live) {
    assert_eq!(old.volume.state(), State::Fenced);
    assert_eq!(old.write_raw(0, 1).await.unwrap_err().kind, Kind::Fenced);
    assert_eq!(old.read_raw(0, 1).await.unwrap_err().kind, Kind::Fenced);
    assert_eq!(old.volume.resize(ByteCount(5 << 20)).await.unwrap_err().kind, Kind::Fenced);
    old.guest.check_nothing_is_acknowledged(&old.volume).await;
}

/// A paused owner wakes up with SCOs, a TLog and a manifest on their way, at every step of the upload.
#[test]
fn an_owner_that_wakes_up_with_uploads_in_flight_changes_nothing() {
    let mut fenced = 0;
    for delay in (0..400).step_by(20) {
        let mut faults = Faults::default();
        faults.store.delay_ms = (50, 100);
        let mut rig = Rig::new(delay, faults, quiet_settings());
        fenced += rig
            .live(Crash::PowerLoss, async |old| {
                old.write(0, 64).await;
                old.drain().await;
                old.write(16, 64).await;
                old.flush().await;
                let volume = old.volume.clone();
                let drained = tokio::task::spawn_local(async move { volume.drain().await });
                tokio::time::sleep(Duration::from_millis(delay)).await;
                old.universe.pause(old.host, true);
                let new = old.take_over().await.unwrap();
                new.write(32, 64).await;
                new.drain().await;
                old.universe.pause(old.host, false);
                let drained = drained.await.unwrap();
                tokio::time::sleep(LATE).await;
                new.write(500, 8).await;
                new.drain().await;
                new.read(0, 1024).await;
                match drained {
                    // Its manifest came first: what it said is true, and the new owner saw it.
                    Ok(()) => 0,
                    Err(fault) => {
                        assert_eq!(fault.kind, Kind::Fenced, "{fault}");
                        is_fenced(old).await;
                        1
                    }
                }
            })
            .finished();
        rig.verify(Crash::DiscardLocal);
        rig.verify(Crash::Kill);
    }
    assert!((5..20).contains(&fenced), "the pause never met both sides of the manifest: {fenced}");
}

/// Cut off, its puts are lost or arrive up to a minute later: SCOs, TLogs, and a manifest of a number that is taken by then.
#[test]
fn puts_that_arrive_after_the_takeover_are_harmless() {
    for seed in 0..20 {
        let mut rig = rig(seed);
        rig.live(Crash::Kill, async |old| {
            old.write(0, 64).await;
            old.drain().await;
            old.universe.partition(old.host, true);
            for n in 0..3 {
                old.write(n * 100, 64).await;
                old.volume.seal().unwrap();
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            let new = old.take_over().await.unwrap();
            new.write(50, 100).await;
            new.drain().await;
            old.universe.partition(old.host, false);
            tokio::time::sleep(LATE).await;
            assert_eq!(old.volume.drain().await.unwrap_err().kind, Kind::Fenced);
            is_fenced(old).await;
            new.read(0, 1024).await;
        })
        .finished();
        rig.verify(Crash::DiscardLocal);
    }
}

/// More TLogs than make a map run: the old owner has objects to delete that its run replaced, and does so after the takeover.
#[test]
fn deletes_of_a_stale_owner_reach_nothing_that_the_new_one_needs() {
    let mut rig = rig(3);
    rig.live(Crash::DiscardLocal, async |old| {
        for n in 0..40 {
            old.write(n * 8, 8).await;
            old.drain().await;
        }
        old.universe.pause(old.host, true);
        let new = old.take_over().await.unwrap();
        new.write(0, 16).await;
        new.drain().await;
        // The grace of what is obsolete has long passed when it goes on.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        old.universe.pause(old.host, false);
        old.write(700, 8).await;
        assert_eq!(old.volume.drain().await.unwrap_err().kind, Kind::Fenced);
        tokio::time::sleep(LATE).await;
        new.read(0, 1024).await;
    })
    .finished();
    assert!(!rig.objects("run/").is_empty(), "no run was made");
    rig.verify(Crash::DiscardLocal);
    rig.verify(Crash::Kill);
}

/// Until it learns, a stale owner shows its own history; afterwards nothing.
#[test]
fn what_a_stale_owner_reads_is_its_own_history_until_it_learns() {
    let mut rig = rig(4);
    rig.live(Crash::Kill, async |old| {
        old.write(0, 64).await;
        old.drain().await;
        old.write(64, 64).await;
        let new = old.take_over().await.unwrap();
        new.write(32, 64).await;
        new.drain().await;
        // Both against their own model: what is published is the old owner's too, what the new one wrote is not.
        old.read(0, 200).await;
        old.write(96, 8).await;
        old.read(0, 200).await;
        new.read(0, 200).await;
        assert_eq!(old.volume.drain().await.unwrap_err().kind, Kind::Fenced);
        is_fenced(old).await;
        new.read(0, 200).await;
    })
    .finished();
    rig.verify(Crash::Kill);
}

#[test]
fn management_by_a_stale_owner_is_refused() {
    let mut rig = rig(5);
    rig.live(Crash::Kill, async |old| {
        old.write(0, 64).await;
        old.drain().await;
        let new = old.take_over().await.unwrap();
        assert_eq!(old.volume.resize(ByteCount(6 << 20)).await.unwrap_err().kind, Kind::Fenced);
        assert_eq!(new.volume.size(), ByteCount(4 << 20));
        new.write(0, 8).await;
        new.drain().await;
    })
    .finished();
    rig.verify(Crash::Kill);
    rig.live(Crash::Kill, async |old| {
        let new = old.take_over().await.unwrap();
        // It does not know yet; it finds out before anything is deleted.
        let fault = old.engine.shard.delete(old.volume.id()).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Fenced, "{fault}");
        is_fenced(old).await;
        new.write(8, 8).await;
        new.drain().await;
        new.read(0, 1024).await;
    })
    .finished();
    rig.verify(Crash::DiscardLocal);
}

/// What the old owner journalled and never uploaded is obsolete after the new one has written, whoever crashes first.
#[test]
fn the_volume_comes_back_to_its_first_owner_after_either_crashes() {
    for (seed, crash) in [(6, Crash::Kill), (7, Crash::PowerLoss), (8, Crash::DiscardLocal)] {
        let mut rig = rig(seed);
        // The old owner crashes while the new one goes on; the new one crashes later, and comes back by itself.
        rig.live(crash, async |old| {
            old.write(0, 64).await;
            old.drain().await;
            old.write_forced(10, 20).await;
            let new = old.take_over().await.unwrap();
            new.write(40, 64).await;
            new.drain().await;
            new.write_forced(200, 4).await;
        })
        .finished();
        rig.verify(crash);
        // And then the first owner gets it back, its journal full of what is out of date.
        rig.change_host();
        rig.verify(crash);
        rig.live(crash, async |live| {
            live.write(300, 8).await;
            live.drain().await;
        })
        .finished();
        rig.verify(Crash::Kill);
    }
}

/// The new owner crashes at every step of its takeover; the old one, which knows nothing, gets the volume back or is fenced.
#[test]
fn a_takeover_that_crashes_at_any_step_leaves_one_owner() {
    for gate in 1..80 {
        let mut rig = rig(gate);
        let host = rig
            .live(Crash::Kill, async |old| {
                old.write(0, 64).await;
                old.drain().await;
                old.write_forced(64, 8).await;
                let (universe, other) = (old.universe.clone(), 1 - old.host);
                universe.crash_after(other, gate);
                let gone = universe.crashed(move || other);
                tokio::select! {
                    biased;
                    () = gone => {}
                    new = old.open_elsewhere() => drop(new.unwrap()),
                }
                universe.call_off_crash(other);
                old.host
            })
            .finished();
        assert_eq!(host, 0);
        // The first host opens it again: at least what it flushed is there, since nobody wrote meanwhile.
        rig.expect(Place::Backend);
        rig.verify(Crash::Kill);
        rig.verify(Crash::Kill);
    }
}
