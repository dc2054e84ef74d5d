//! The backend in-process on real directories: crashes, damage, full disks, sequences.

use std::fs;
use std::path::{Path, PathBuf};

use std::time::Duration;

use super::*;
use crate::erasure::Layout;
use crate::fault::Kind;
use crate::name::{FragmentId, ObjectId, OsdId};
use crate::nsm::Put;
use crate::osd::{Directory, Limits, Priority, Title};
use crate::preset::Policy;
use crate::trailer::Part;

mod agents;
mod coded;
mod disks;
mod faulty;
mod members;
mod recovery;
mod shared;

fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

async fn open(dir: &Path) -> Alba {
    let config = Config { orphan_grace: Duration::from_millis(20), ..Config::new(dir) };
    for _ in 0..100 {
        match Alba::open(config.clone()).await {
            // A mount that another test starts holds copies of our locks until it is executed.
            Err(fault) if fault.message.contains("another process") => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("the directory stays locked");
}

/// All objects' files of the default OSD.
fn files(dir: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(dir.join("osd/objects")).unwrap().flatten();
    shards
        .flat_map(|shard| fs::read_dir(shard.path()).unwrap().flatten())
        .map(|file| file.path())
        .collect()
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen within 5 s");
}

async fn with_one_object(dir: &Path, body: &Bytes) -> (Alba, PathBuf) {
    let alba = open(dir).await;
    alba.create_namespace("ns").await.unwrap();
    alba.put_if_absent("ns", "sco", vec![body.clone()], Purpose::Data).await.unwrap();
    let file = files(dir).pop().unwrap();
    (alba, file)
}

#[tokio::test]
async fn objects_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let body = noise(3 << 20, 1);
    let (alba, _) = with_one_object(dir.path(), &body).await;
    let before = alba.head("ns", "sco").await.unwrap().unwrap();
    let busy = Alba::open(Config::new(dir.path())).await.err().unwrap();
    assert!(busy.message.contains("another process"), "{busy}");
    alba.close().await;
    let alba = open(dir.path()).await;
    assert_eq!(alba.head("ns", "sco").await.unwrap(), Some(before));
    assert_eq!(alba.get_range("ns", "sco", 0, 3 << 20).await.unwrap().unwrap(), body);
    let status = alba.status().await.unwrap();
    assert_eq!((status.namespaces, status.objects, status.object_bytes), (1, 1, 3 << 20));
}

#[tokio::test]
async fn a_flipped_bit_costs_its_block_only() {
    let dir = tempfile::tempdir().unwrap();
    let body = noise(300_000, 2);
    let (alba, file) = with_one_object(dir.path(), &body).await;
    let mut bytes = fs::read(&file).unwrap();
    bytes[2 * 65_536 + 17] ^= 4;
    fs::write(&file, bytes).unwrap();
    let fault = alba.get_range("ns", "sco", 0, 300_000).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Corrupt);
    assert!(
        fault.message.contains("\"sco\"") && fault.message.contains("131072..196608"),
        "{fault}"
    );
    let touched = alba.get_range("ns", "sco", 131_072, 1).await.unwrap_err();
    assert_eq!(touched.kind, Kind::Corrupt);
    for (from, to) in [(0, 131_072), (196_608, 300_000)] {
        let got = alba.get_range("ns", "sco", from, to - from).await.unwrap().unwrap();
        assert_eq!(got, body.slice(from as usize..to as usize));
    }
}

#[tokio::test]
async fn a_truncated_or_missing_file_is_damage() {
    for cut in [Some(200_000), Some(100), Some(0), None] {
        let dir = tempfile::tempdir().unwrap();
        let (alba, file) = with_one_object(dir.path(), &noise(300_000, 3)).await;
        alba.close().await;
        match cut {
            Some(len) => {
                fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len).unwrap()
            }
            None => fs::remove_file(&file).unwrap(),
        }
        let alba = open(dir.path()).await;
        let fault = alba.get_range("ns", "sco", 0, 1).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "{cut:?}");
        assert!(fault.message.contains("\"sco\""), "{fault}");
        assert!(alba.delete("ns", "sco").await.unwrap());
        assert_eq!(alba.get_range("ns", "sco", 0, 1).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_removed_keeps_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (alba, stuck) = with_one_object(dir.path(), &noise(100, 4)).await;
    for n in 0..200 {
        let (name, body) = (n.to_string(), vec![noise(10, n)]);
        let put = alba.put_if_absent("ns", &name, body, Purpose::Data).await;
        assert_eq!(put.unwrap(), Put::Created);
    }
    assert_eq!(files(dir.path()).len(), 201);
    // What has its name is no file.
    fs::remove_file(&stuck).unwrap();
    fs::create_dir(&stuck).unwrap();
    assert!(alba.delete_namespace("ns").await.unwrap());
    eventually(|| files(dir.path()) == std::slice::from_ref(&stuck)).await;
    let noted = || async { alba.inner.nsm.removals(None, 300).await.unwrap().len() };
    for _ in 0..100 {
        if noted().await == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(noted().await, 1);
}

#[tokio::test]
async fn files_go_with_their_objects_and_orphans_are_collected() {
    let dir = tempfile::tempdir().unwrap();
    let (alba, file) = with_one_object(dir.path(), &noise(100, 4)).await;
    let mut upload = alba.begin_put("ns", "half", (2 << 20, Purpose::Data), None).await.unwrap();
    upload.push(noise(60, 5)).await.unwrap();
    assert_eq!(files(dir.path()).len(), 2);
    drop(upload);
    eventually(|| files(dir.path()) == std::slice::from_ref(&file)).await;
    alba.close().await;
    let orphan = file.with_file_name(format!(
        "{:02x}{}",
        u8::from_str_radix(&file.file_name().unwrap().to_str().unwrap()[..2], 16).unwrap(),
        "0".repeat(30)
    ));
    fs::write(&orphan, b"left by a crash").unwrap();
    let foreign = file.with_file_name("notes.txt");
    fs::write(&foreign, b"not ours").unwrap();
    let alba = open(dir.path()).await;
    eventually(|| !orphan.exists()).await;
    assert!(file.exists() && foreign.exists());
    alba.delete("ns", "sco").await.unwrap();
    assert!(!file.exists());
}

#[tokio::test]
async fn a_deleted_namespace_gives_its_space_back_even_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let alba = open(dir.path()).await;
    alba.create_namespace("ns").await.unwrap();
    for n in 0..20 {
        alba.put_if_absent("ns", &format!("{n}"), vec![noise(10, n)], Purpose::Data).await.unwrap();
    }
    // As a crash right after the deletion leaves it: nothing is dropped yet.
    alba.inner.nsm.delete_namespace("ns").await.unwrap();
    assert_eq!(files(dir.path()).len(), 20);
    assert_eq!(alba.head("ns", "1").await.unwrap(), None);
    alba.close().await;
    let alba = open(dir.path()).await;
    eventually(|| files(dir.path()).is_empty()).await;
    assert_eq!(alba.status().await.unwrap().objects, 0);
}

#[tokio::test]
async fn what_arrives_must_be_what_was_announced() {
    let dir = tempfile::tempdir().unwrap();
    let alba = open(dir.path()).await;
    alba.create_namespace("ns").await.unwrap();
    let body = noise(9 << 20, 6);
    let crc = crc32fast::hash(&body);
    for (len, crc) in [(9 << 20, crc ^ 1), (8 << 20, crc), (10 << 20, crc)] {
        let mut upload = alba.begin_put("ns", "x", (len, Purpose::Data), Some(crc)).await.unwrap();
        let mut outcome = Ok(());
        for at in 0..9 {
            outcome = outcome.and(upload.push(body.slice(at << 20..(at + 1) << 20)).await);
        }
        let refused = match outcome {
            Ok(()) => upload.finish().await.map(drop),
            failed => failed,
        };
        assert_eq!(refused.unwrap_err().kind, Kind::Invalid);
    }
    let too_long = alba.begin_put("ns", "x", (u64::MAX, Purpose::Data), None).await.err().unwrap();
    assert_eq!(too_long.kind, Kind::Invalid);
    eventually(|| files(dir.path()).is_empty()).await;
    let mut upload = alba.begin_put("ns", "x", (9 << 20, Purpose::Data), Some(crc)).await.unwrap();
    for at in 0..9 {
        upload.push(body.slice(at << 20..(at + 1) << 20)).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap(), Put::Created);
    assert_eq!(alba.get_range("ns", "x", 0, 9 << 20).await.unwrap().unwrap(), body);
}

#[tokio::test]
async fn sequences_change_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let alba = open(dir.path()).await;
    alba.create_namespace("ns").await.unwrap();
    let put = |name: &str, value: &'static [u8]| {
        (name.to_string(), Update::Put(Bytes::from_static(value)))
    };
    let absent = |name: &str| (name.to_string(), Condition::Absent);
    let all = vec![put("a", b"1"), put("b", b"2")];
    alba.apply_sequence("ns", vec![absent("a"), absent("b")], all.clone()).await.unwrap();
    let again =
        alba.apply_sequence("ns", vec![absent("c"), absent("b")], vec![put("c", b"3")]).await;
    assert_eq!(again.unwrap_err().kind, Kind::AssertFailed);
    assert_eq!(alba.list("ns", "", "", 0).await.unwrap().names, ["a", "b"]);
    assert_eq!(files(dir.path()).len(), 2);

    let was = vec![("a".to_string(), Condition::HasCrc(crc32fast::hash(b"1")))];
    alba.apply_sequence("ns", was.clone(), vec![put("a", b"new"), ("b".into(), Update::Delete)])
        .await
        .unwrap();
    assert_eq!(alba.get_range("ns", "a", 0, 3).await.unwrap().unwrap(), "new");
    assert_eq!(alba.apply_sequence("ns", was, vec![]).await.unwrap_err().kind, Kind::AssertFailed);
    assert_eq!(files(dir.path()).len(), 1);
    let twice = alba.apply_sequence("ns", vec![], vec![put("x", b"1"), put("x", b"2")]).await;
    assert_eq!(twice.unwrap_err().kind, Kind::Invalid);
}

#[tokio::test]
async fn a_full_osd_refuses_data_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { osd_capacity_bytes: Some(16 << 20), ..Config::new(dir.path()) };
    let alba = Alba::open(config).await.unwrap();
    alba.create_namespace("ns").await.unwrap();
    let body = noise(3 << 20, 7);
    let put = async |name: &str, purpose| {
        alba.put_if_absent("ns", name, vec![body.clone()], purpose).await
    };
    for name in ["0", "1", "2", "3"] {
        assert_eq!(put(name, Purpose::Data).await.unwrap(), Put::Created);
    }
    let used = alba.status().await.unwrap().used_bytes();
    for _ in 0..20 {
        assert_eq!(put("4", Purpose::Data).await.unwrap_err().kind, Kind::NoSpace);
        // What is large is data, whatever it is said to be.
        assert_eq!(put("4", Purpose::Metadata).await.unwrap_err().kind, Kind::NoSpace);
    }
    // What was refused holds nothing.
    assert_eq!((files(dir.path()).len(), alba.status().await.unwrap().used_bytes()), (4, used));
    for name in ["0", "1", "2", "3"] {
        assert_eq!(alba.get_range("ns", name, 0, 3 << 20).await.unwrap().unwrap(), body);
    }
    let small = vec![body.slice(..1 << 20)];
    for name in ["a", "b"] {
        let put = alba.put_if_absent("ns", name, small.clone(), Purpose::Metadata).await;
        assert_eq!(put.unwrap(), Put::Created);
    }
    let put_more = alba.put_if_absent("ns", "c", small, Purpose::Metadata).await;
    assert_eq!(put_more.unwrap_err().kind, Kind::NoSpace, "half of the reserve is the NSM's");
    assert!(alba.delete("ns", "0").await.unwrap());
    assert_eq!(put("4", Purpose::Data).await.unwrap_err().kind, Kind::NoSpace);
    assert!(alba.delete("ns", "a").await.unwrap());
    assert_eq!(put("4", Purpose::Data).await.unwrap(), Put::Created);
}

#[tokio::test]
async fn what_a_crash_left_is_collected_as_soon_as_room_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let (alba, file) = with_one_object(dir.path(), &noise(100, 4)).await;
    alba.close().await;
    let name = file.file_name().unwrap().to_str().unwrap();
    let orphan = file.with_file_name(format!("{}{}", &name[..2], "0".repeat(30)));
    fs::write(&orphan, noise(12 << 20, 1)).unwrap();
    let orphan_grace = Duration::from_secs(3600);
    let osd_capacity_bytes = Some(16 << 20);
    let config = Config { orphan_grace, osd_capacity_bytes, ..Config::new(dir.path()) };
    let alba = Alba::open(config).await.unwrap();
    let body = noise(6 << 20, 2);
    let mut outcome = None;
    for _ in 0..500 {
        let put = alba.put_if_absent("ns", "x", vec![body.clone()], Purpose::Data).await;
        if let Ok(put) = put {
            outcome = Some(put);
            break;
        }
        assert_eq!(put.unwrap_err().kind, Kind::NoSpace);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(outcome, Some(Put::Created));
    assert!(!orphan.exists() && file.exists());
}

/// A file system in memory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let args = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        let mounted = std::process::Command::new("mount").args(args).arg(dir.path()).output();
        let mounted = mounted.expect("the command mount");
        let why = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "this test mounts a small tmpfs, as root: {why}");
        Self(dir)
    }

    /// Takes all room there is; gone with the file it returns.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn writes_that_run_out_of_space_leave_nothing() {
    let disk = SmallDisk::mount(16);
    let limits = Limits { reserve_percent: 0, reserve_bytes: 0, capacity_bytes: None };
    let osd = Directory::open(disk.0.path(), AlbaId::random(), limits).unwrap();
    let free = osd.room().unwrap().free_bytes;
    // Whole pages, so that the trailer needs one more. Announced to fit, but someone else takes the room first.
    let half = free / 2 / 4096 * 4096;
    let title = |len| {
        let layout = Layout { len, policy: Policy::SINGLE, unit: 1 << 20 };
        let part = Part { object: ObjectId::random(), layout, object_crc: 0, index: 0 };
        let (file, purpose) = (FragmentId::random(), Purpose::Data);
        let (namespace, name, priority) = ("ns".into(), "x".into(), Priority::Foreground);
        Title { file, namespace, name, part, created_ms: 0, purpose, priority }
    };
    let mut writer = osd.create(&title(half)).unwrap();
    disk.fill();
    let late = osd.create(&title(1 << 20)).map(drop);
    assert_eq!(late.unwrap_err().kind, Kind::NoSpace);
    let body = noise(half as usize, 8);
    let outcome = writer.append(&[body]).and_then(|()| writer.finish(None));
    assert_eq!(outcome.unwrap_err().kind, Kind::NoSpace);
    drop(writer);
    let shards = fs::read_dir(disk.0.path().join("objects")).unwrap().flatten();
    assert_eq!(shards.map(|shard| fs::read_dir(shard.path()).unwrap().count()).sum::<usize>(), 0);
}

#[tokio::test]
async fn a_full_disk_under_the_metadata_stops_changes_until_there_is_room_and_leaks_nothing() {
    let disk = SmallDisk::mount(96);
    let objects = tempfile::tempdir().unwrap();
    let osds = vec![OsdPlace::new(objects.path())];
    let config = Config { osds, ..Config::new(disk.0.path()) };
    let alba = Alba::open(config.clone()).await.unwrap();
    alba.create_namespace("ns").await.unwrap();
    let body = vec![noise(200_000, 3)];
    alba.put_if_absent("ns", "before", body.clone(), Purpose::Data).await.unwrap();
    let ballast = disk.fill();
    // The last room of the log is used up too: its changes fail from here on.
    let mut n = 0;
    let failed = loop {
        n += 1;
        if let Err(fault) = alba.inner.nsm.create_namespace(&format!("{n}"), None).await {
            break fault;
        }
    };
    assert_eq!(failed.kind, Kind::Unavailable);
    let count = || {
        let shards = fs::read_dir(objects.path().join("objects")).unwrap().flatten();
        shards.map(|shard| fs::read_dir(shard.path()).unwrap().count()).sum::<usize>()
    };
    let before = count();
    for purpose in [Purpose::Data, Purpose::Metadata] {
        for _ in 0..5 {
            let put = alba.put_if_absent("ns", "x", body.clone(), purpose).await.unwrap_err();
            assert!(matches!(put.kind, Kind::NoSpace | Kind::Unavailable), "{put}");
        }
    }
    assert_eq!(count(), before, "failed puts left files");
    assert_eq!(alba.get_range("ns", "before", 0, 200_000).await.unwrap().unwrap(), body[0]);
    fs::remove_file(ballast).unwrap();
    let mut put = alba.put_if_absent("ns", "x", body.clone(), Purpose::Data).await;
    for _ in 0..300 {
        if put.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        put = alba.put_if_absent("ns", "x", body.clone(), Purpose::Data).await;
    }
    assert_eq!(put.unwrap(), Put::Created);
    assert!(alba.delete("ns", "before").await.unwrap());
    alba.close().await;
    let alba = Alba::open(config).await.unwrap();
    assert_eq!(alba.get_range("ns", "x", 0, 200_000).await.unwrap().unwrap(), body[0]);
}

#[tokio::test]
async fn an_absent_osd_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let config = |osds: &[&PathBuf]| Config {
        osds: osds.iter().map(OsdPlace::new).collect(),
        ..Config::new(dir.path().join("data"))
    };
    let alba = Alba::open(config(&[&one])).await.unwrap();
    alba.create_namespace("ns").await.unwrap();
    alba.put_if_absent("ns", "x", vec![noise(10, 9)], Purpose::Data).await.unwrap();
    alba.close().await;
    let alba = Alba::open(config(&[&two])).await.unwrap();
    let fault = alba.get_range("ns", "x", 0, 1).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Unavailable);
    assert!(fault.message.contains("absent"), "{fault}");
    let states: Vec<OsdState> =
        alba.status().await.unwrap().osds.iter().map(|osd| osd.state).collect();
    assert_eq!(states, [OsdState::Ready, OsdState::Absent]);
}
