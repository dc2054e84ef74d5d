//! Over a directory on the real disk, with both engines.

use std::path::Path;

use super::*;
use crate::io::disk::RealDisk;
use crate::io::{Engine, Requested, choose, run};

pub fn directory() -> tempfile::TempDir {
    // Beside the build: the system's temporary directory may be in memory, without O_DIRECT.
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/../target").to_owned();
    let target = std::env::var("MEASURE_DIR").unwrap_or(target);
    let made = std::fs::create_dir_all(&target).and_then(|()| tempfile::tempdir_in(target));
    made.unwrap_or_else(|error| panic!("temporary directory: {error}"))
}

pub fn engines() -> Vec<Engine> {
    let uring = choose(Requested::Uring).ok();
    uring.into_iter().chain([Engine::Psync]).collect()
}

pub async fn open(
    dir: &Path,
    engine: Engine,
    config: BufferConfig,
) -> Result<(Buffer<DiskWorld<RealDisk>>, Vec<ReplayedVolume>)> {
    let disk = RealDisk::open(dir, engine)?;
    let (buffer, replayed) = Buffer::open(DiskWorld::new(disk), config).await?;
    Ok((buffer, replayed.volumes))
}

pub fn must<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|fault| panic!("{fault}"))
}

#[test]
fn what_was_flushed_is_there_again() {
    for engine in engines() {
        let dir = directory();
        must(run(engine, async {
            let (buffer, replayed) = must(open(dir.path(), engine, small_config()).await);
            assert!(replayed.is_empty());
            let log = attach(&buffer, 1, 1, 0);
            for n in 0..300 {
                while append_one(&log, n).is_none() {
                    buffer.room().await;
                }
                if n % 100 == 7 {
                    must(buffer.flush().await);
                }
            }
            must(buffer.flush().await);
        }));
        must(run(engine, async {
            let (buffer, replayed) = must(open(dir.path(), engine, small_config()).await);
            assert_eq!(replayed.len(), 1);
            let found = &replayed[0];
            assert_eq!((found.volume, found.damage.len()), (volume(1), 0));
            assert_eq!(found.scos[0].changes.len(), 300);
            let log = attach(&buffer, 1, 2, 300);
            for n in 0..300 {
                check_one(&log, n).await;
            }
            must(buffer.close().await);
            assert!(append_one(&log, 300).is_none(), "a closed buffer takes no more");
        }));
    }
}

#[test]
fn memory_and_files_serve_the_same_bytes() {
    let dir = directory();
    for engine in engines() {
        must(run(engine, async {
            // Each engine's shard has files of its own name space by its directory.
            let dir = dir.path().join(format!("{engine:?}"));
            std::fs::create_dir(&dir).unwrap_or_else(|error| panic!("{error}"));
            let config = BufferConfig {
                segment_bytes: 8 << 20,
                segment_count: 6,
                memory_bytes: 16 << 20,
                ..small_config()
            };
            let (buffer, _) = must(open(&dir, engine, config).await);
            let log = attach(&buffer, 1, 1, 0);
            let count = 6000;
            for n in 0..count {
                while append_one(&log, n).is_none() {
                    buffer.room().await;
                }
            }
            let mut out = vec![0; 4096];
            assert!(log.read_now(ScoSeq(1), count as u32 - 1, &mut out));
            assert_eq!(out, clusters(count - 1, 1).0);
            assert!(!log.read_now(ScoSeq(1), 0, &mut out), "the oldest image was kept");
            let all = must(log.sco_part(ScoSeq(1), 0, count as u32).await).concat();
            for (n, cluster) in (0..).zip(all.chunks(4096)) {
                assert!(cluster == clusters(n, 1).0, "cluster {n}");
            }
            assert_eq!(all.len() as u64, count * 4096);
        }));
    }
}

#[test]
fn directories_that_do_not_serve_are_refused_by_name() {
    let dir = directory();
    let file = dir.path().join("a-file");
    std::fs::write(&file, b"x").unwrap_or_else(|error| panic!("{error}"));
    let refusals = [
        (dir.path().join("missing"), "does not exist"),
        (file, "is not a directory"),
        (Path::new("/proc/self").to_owned(), "/proc/self"),
    ];
    for (path, says) in refusals {
        let fault = RealDisk::open(&path, Engine::Psync).err();
        let fault = fault.unwrap_or_else(|| panic!("{} was accepted", path.display()));
        let message = fault.to_string();
        assert!(message.contains(says), "{message}");
        assert!(message.contains(&path.display().to_string()), "{message}");
    }
}
