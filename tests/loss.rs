//! The operator's decision about flushed data that decayed in the write buffer (`vdisk accept-loss`): what was shown becomes the
//! content, wherever a crash cuts it short, and the damage never comes up again.

use std::rc::Rc;

use suite::daemon::{Daemon, SMALL};
use suite::nbd::Connection;
use suite::sim::rig::{CLUSTER, End, Live, Rig, quiet_settings};
use suite::world::faults::{Crash, Faults};
use volumedriver::config::settings::{Compression, VdiskSettings};
use volumedriver::volume::State;
use volumedriver_core::fault::{Kind, Result};
use volumedriver_core::format::journal::{BLOCK_BYTES, RecordHeader};
use volumedriver_core::request::{Fua, Request};
use volumedriver_core::units::ByteOffset;

/// Clusters written before, each flushed by itself.
const WRITTEN: usize = 12;
/// The one of them that decays.
const BAD: usize = 5;
/// Written once the loss was accepted.
const LATER: usize = 500;

/// What decays.
#[derive(Clone, Copy, Debug)]
enum Decayed {
    Cluster,
    /// The header of its record: it and what comes after it are no prefix.
    Record,
}

/// Every cluster is flushed, then one decays.
fn decayed(what: Decayed, settings: VdiskSettings) -> Rig {
    let mut rig = Rig::new(5, Faults::default(), settings);
    rig.live(Crash::Kill, async |live| {
        for n in 0..WRITTEN {
            live.write_raw(n, n as u8 + 1).await.unwrap();
            live.volume.submit(Request::Flush).await.unwrap();
        }
    })
    .finished();
    let (name, at) = place_of(&rig, BAD);
    let at = match what {
        Decayed::Cluster => at + BLOCK_BYTES as u64 + 77,
        Decayed::Record => at + 77,
    };
    assert!(rig.universe.flip_in_file(&name, at, 1));
    rig
}

/// The file and place of the record that writes a cluster.
fn place_of(rig: &Rig, cluster: usize) -> (String, u64) {
    let files = rig.universe.files(0).into_iter();
    let mut places = files.flat_map(|(name, _)| {
        let bytes = rig.universe.file_bytes(0, &name);
        let blocks: Vec<&[u8]> = bytes.chunks_exact(BLOCK_BYTES).collect();
        let found = blocks.windows(2).position(|pair| {
            RecordHeader::decode(pair[0]).is_ok_and(|header| header.payload_bytes > 0)
                && pair[1].iter().all(|byte| *byte == cluster as u8 + 1)
        });
        found.map(|n| (name, (n * BLOCK_BYTES) as u64))
    });
    places.next().unwrap()
}

/// Accepts the loss and goes on writing.
async fn accept(live: &Live) -> Result<()> {
    live.universe.accept_damage();
    let volume = live.engine.accept_loss(&live.guest.plan).await?;
    assert_eq!(volume.state(), State::Running);
    let live = live.with_volume(Rc::clone(&volume));
    live.write_raw(LATER, 99).await?;
    volume.submit(Request::Flush).await?;
    Ok(())
}

/// What the volume shows is what was accepted, or what was there before that.
async fn check(live: &Live, what: Decayed, accepted: bool) -> State {
    for n in 0..WRITTEN {
        let read = live.read_raw(n, 1).await;
        match what {
            Decayed::Cluster if n == BAD => {
                assert_eq!(read.err().map(|fault| fault.kind), Some(Kind::Corrupt), "cluster {n}");
            }
            Decayed::Cluster => assert_eq!(read.unwrap()[0], n as u8 + 1, "cluster {n}"),
            Decayed::Record => {
                let expected = if n < BAD { n as u8 + 1 } else { 0 };
                assert_eq!(read.unwrap(), vec![expected; CLUSTER as usize], "cluster {n}");
            }
        }
    }
    let later = live.read_raw(LATER, 1).await.unwrap()[0];
    if accepted {
        assert_eq!((live.volume.state(), later), (State::Running, 99));
    }
    assert!(live.volume.state() == State::Running || later == 0);
    live.volume.state()
}

/// Returns how often each state was met after a crash on the way.
fn crash_at_every_gate(what: Decayed, crash: Crash, settings: &VdiskSettings) -> [u32; 2] {
    let mut met = [0; 2];
    for gate in 1.. {
        let mut rig = decayed(what, settings.clone());
        let end = rig.live_until(Some(gate), crash, accept);
        let accepted = match end {
            End::Finished(outcome) => {
                outcome.unwrap();
                true
            }
            End::Crashed => false,
            End::Refused(fault) => panic!("gate {gate}: {fault}"),
        };
        let mut states = Vec::new();
        for crash in [Crash::Kill, Crash::PowerLoss, Crash::Kill] {
            let state = rig.live(crash, async |live| check(live, what, accepted).await).finished();
            states.push(state);
        }
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "gate {gate}: {states:?}");
        let running = states[0] == State::Running;
        met[usize::from(running)] += u32::from(!accepted);
        if !running {
            // It was cut short: the operator asks again.
            rig.live(Crash::PowerLoss, accept).finished().unwrap();
            rig.live(Crash::Kill, async |live| check(live, what, true).await).finished();
        }
        if accepted {
            return met;
        }
    }
    met
}

#[test]
fn a_loss_is_accepted_or_not_wherever_a_crash_cuts_it_short() {
    let coded = VdiskSettings { compression: Compression::Lz4, ..quiet_settings() };
    for what in [Decayed::Cluster, Decayed::Record] {
        for crash in [Crash::Kill, Crash::PowerLoss] {
            for settings in [quiet_settings(), coded.clone()] {
                let met = crash_at_every_gate(what, crash, &settings);
                assert!(met.iter().all(|times| *times > 0), "{what:?}, {crash:?}: {met:?}");
            }
        }
    }
}

#[test]
fn what_was_accepted_is_on_the_backend() {
    for what in [Decayed::Cluster, Decayed::Record] {
        let mut rig = decayed(what, quiet_settings());
        rig.live(Crash::DiscardLocal, async |live| {
            live.universe.accept_damage();
            let volume = live.engine.accept_loss(&live.guest.plan).await.unwrap();
            let live = live.with_volume(volume);
            live.write_raw(LATER, 99).await.unwrap();
            live.volume.drain().await.unwrap();
        })
        .finished();
        rig.live(Crash::Kill, async |live| check(live, what, true).await).finished();
    }
}

#[test]
fn a_damaged_cluster_is_whole_again_once_it_is_overwritten() {
    let mut rig = decayed(Decayed::Cluster, quiet_settings());
    rig.live(Crash::Kill, async |live| {
        live.universe.accept_damage();
        let volume = live.engine.accept_loss(&live.guest.plan).await.unwrap();
        let live = live.with_volume(volume);
        // A part of a cluster cannot be written over what nobody knows.
        let part = Request::Write {
            offset: ByteOffset(BAD as u64 * CLUSTER),
            data: vec![7; 512].into(),
            fua: Fua::No,
        };
        let refused = live.volume.submit(part).await.err().map(|fault| fault.kind);
        assert_eq!(refused, Some(Kind::Corrupt));
        live.write_raw(BAD, 77).await.unwrap();
        live.volume.drain().await.unwrap();
    })
    .finished();
    rig.live(Crash::Kill, async |live| {
        assert_eq!(live.read_raw(BAD, 1).await.unwrap(), vec![77; CLUSTER as usize]);
    })
    .finished();
}

#[test]
fn there_must_be_a_loss_to_accept() {
    let mut rig = Rig::new(6, Faults::default(), quiet_settings());
    rig.live(Crash::Kill, async |live| {
        let fault = live.engine.accept_loss(&live.guest.plan).await.err().unwrap();
        assert_eq!(fault.kind, Kind::Invalid);
        assert!(fault.message.contains("not read-only"), "{fault}");
        live.write(0, 4).await;
        live.flush().await;
    })
    .finished();
    rig.verify(Crash::PowerLoss);
}

/// Flushed data decays in the write buffer of a stopped daemon: the vDisk is read-only and says why until the operator decides.
#[test]
fn damage_in_the_write_buffer_waits_for_the_operator() {
    let mut daemon =
        Daemon::start(&SMALL.replace("upload_max_delay_ms = 500", "upload_max_delay_ms = 600000"));
    daemon.create("disk", "64MiB");
    let mut client = Connection::open(&daemon.socket(), "disk").unwrap();
    for n in 0..8 {
        client.write(n * 4096, &[n as u8 + 1; 4096]).unwrap();
        client.flush().unwrap();
    }
    daemon.kill9();
    flip_in_buffer(&daemon, &[4; 4096]);
    daemon.restart();
    let shown = || daemon.command(&["vdisk", "show", "disk"]).run();
    assert!(
        shown().contains("read-only (flushed data in the write buffer is damaged"),
        "{}",
        shown()
    );
    let mut client = Connection::open(&daemon.socket(), "disk").unwrap();
    assert_eq!(client.read(4 * 4096, 4096).unwrap(), [5; 4096]);
    assert!(client.read(3 * 4096, 4096).is_err());
    assert!(client.write(0, &[9; 4096]).is_err());
    drop(client);
    let refused = daemon.command(&["vdisk", "accept-loss", "disk"]).outcome();
    assert!(
        !refused.status.success() && refused.err.contains("does not match its checksum"),
        "{refused}"
    );
    assert!(shown().contains("read-only"), "{}", shown());
    let accepted = daemon.command(&["vdisk", "accept-loss", "disk", "--yes", "--force"]).run();
    assert!(accepted.contains("running"), "{accepted}");
    let mut client = Connection::open(&daemon.socket(), "disk").unwrap();
    assert!(client.read(3 * 4096, 4096).is_err());
    client.write(3 * 4096, &[40; 4096]).unwrap();
    client.flush().unwrap();
    daemon.kill9();
    daemon.restart();
    let mut client = Connection::open(&daemon.socket(), "disk").unwrap();
    for (n, byte) in (0..8).zip([1, 2, 3, 40, 5, 6, 7, 8]) {
        assert_eq!(client.read(n * 4096, 4096).unwrap(), [byte; 4096], "cluster {n}");
    }
    client.disconnect().unwrap();
    let again = daemon.command(&["vdisk", "accept-loss", "disk", "--yes", "--force"]).outcome();
    assert!(!again.status.success() && again.err.contains("not read-only"), "{again}");
}

/// Flips a bit in the first place of the write buffer's files that holds these bytes.
fn flip_in_buffer(daemon: &Daemon, wanted: &[u8]) {
    for entry in std::fs::read_dir(daemon.data_dir().join("buffer")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.chunks(4096).position(|block| block == wanted) {
            bytes[at * 4096 + 100] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("the write buffer does not hold what was written");
}
