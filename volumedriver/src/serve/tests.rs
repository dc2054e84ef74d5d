use std::path::{Path, PathBuf};

use volumedriver_core::fault::{Kind, Result};

use volumedriver_core::units::NodeId;

use super::datadir::{CachePlace, DataDir, LAYOUT_FILE, LocalState, OWNER_FILE, Places};
use super::identity;

struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
    fn path(&self) -> PathBuf {
        self.dir.path().join("data")
    }
    fn buffer(&self) -> PathBuf {
        self.path().join("buffer")
    }
    fn open(&self, shards: u32, local: LocalState) -> Result<DataDir> {
        self.open_with(shards, local, &self.buffer())
    }
    fn open_with(&self, shards: u32, local: LocalState, buffer: &Path) -> Result<DataDir> {
        let directory = self.path().join("cache");
        let cache = CachePlace { directory: &directory, is_used: false };
        DataDir::open(&self.path(), shards, local, Places { buffer, cache, derived: &[] })
    }
    fn open_with_cache(&self, local: LocalState, directory: &Path) -> Result<DataDir> {
        let (buffer, cache) = (self.buffer(), CachePlace { directory, is_used: true });
        let places = Places { buffer: &buffer, cache, derived: &[] };
        DataDir::open(&self.path(), 1, local, places)
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn an_identity_is_made_once() {
    let room = Room::new();
    let first = room.open(1, LocalState::Keep).unwrap().node();
    write(&room.buffer().join("segment-0"), "data");
    let second = room.open(1, LocalState::Keep).unwrap().node();
    assert_eq!(first, second);
    let other = Room::new().open(1, LocalState::Keep).unwrap().node();
    assert_ne!(first, other);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&room.path().metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn the_second_daemon_is_refused_by_name_and_pid() {
    let room = Room::new();
    let first = room.open(1, LocalState::Keep).unwrap();
    let fault = room.open(1, LocalState::Keep).unwrap_err();
    assert_eq!(fault.kind, Kind::Invalid);
    let message = fault.to_string();
    assert!(message.contains(&room.path().display().to_string()), "{message}");
    assert!(message.contains(&std::process::id().to_string()), "{message}");
    // Discarding needs the lock too.
    write(&room.buffer().join("segment-0"), "data");
    room.open(1, LocalState::Discard).unwrap_err();
    assert!(room.buffer().join("segment-0").exists());
    drop(first);
    room.open(1, LocalState::Keep).unwrap();
}

#[test]
fn local_state_without_an_identity_is_refused_and_untouched() {
    let room = Room::new();
    write(&room.buffer().join("segment-0"), "data");
    let message = room.open(1, LocalState::Keep).unwrap_err().to_string();
    assert!(message.contains("buffer") && message.contains("--discard-local"), "{message}");
    assert!(room.buffer().join("segment-0").exists());
    assert!(!room.path().join(LAYOUT_FILE).exists());
}

#[test]
fn discarding_makes_a_new_node() {
    let room = Room::new();
    let first = room.open(1, LocalState::Keep).unwrap().node();
    write(&room.buffer().join("segment-0"), "data");
    write(&room.buffer().join("below/file"), "data");
    write(&room.path().join("backend/object"), "data");
    let second = room.open(1, LocalState::Discard).unwrap().node();
    assert_ne!(first, second);
    assert_eq!(std::fs::read_dir(room.buffer()).unwrap().count(), 1, "the owner");
    assert!(room.path().join("backend/object").exists(), "the backend is not local state");
    assert_eq!(room.open(1, LocalState::Keep).unwrap().node(), second);
}

#[test]
fn elsewhere_only_our_files_count_and_go() {
    let room = Room::new();
    let shared = room.dir.path().join("nvme");
    write(&shared.join("lost+found/x"), "theirs");
    write(&shared.join("photo.jpg"), "theirs");
    write(&shared.join("cache-busting.txt"), "theirs");
    write(&shared.join("segment-of-a-film.mkv"), "theirs");
    write(&shared.join(".cache-0000"), "ours");
    let open = |local| room.open_with(1, local, &shared);
    open(LocalState::Keep).unwrap_err();
    std::fs::remove_file(shared.join(".cache-0000")).unwrap();
    drop(open(LocalState::Keep).unwrap());
    let ours = ["segment-000001", ".segment-0002.creating", "cache-0000", ".cache-0000.creating"];
    ours.iter().for_each(|name| write(&shared.join(name), "ours"));
    drop(open(LocalState::Discard).unwrap());
    ours.iter().for_each(|name| assert!(!shared.join(name).exists(), "{name}"));
    assert!(shared.join("cache-busting.txt").exists());
    assert!(shared.join("segment-of-a-film.mkv").exists());
    assert!(shared.join("photo.jpg").exists() && shared.join("lost+found/x").exists());
}

#[test]
fn the_number_of_shards_is_fixed() {
    let room = Room::new();
    drop(room.open(2, LocalState::Keep).unwrap());
    let message = room.open(3, LocalState::Keep).unwrap_err().to_string();
    assert!(message.contains("2 shards") && message.contains("shards_count = 3"), "{message}");
}

#[test]
fn a_damaged_or_later_layout_is_refused() {
    let room = Room::new();
    let node = "node = \"00112233445566778899aabbccddeeff\"\n";
    for (text, kind, part) in [
        ("".to_owned(), Kind::Corrupt, "not a layout file"),
        ("garbage".to_owned(), Kind::Corrupt, "not a layout file"),
        (format!("version = 2\n{node}shards = 1\nnew = 1\n"), Kind::Invalid, "layout version 2"),
        (format!("version = 1\n{node}"), Kind::Corrupt, "shards"),
        (format!("version = 1\n{node}shards = 1\nmore = 1"), Kind::Corrupt, "more"),
        ("version = 1\nnode = \"xyz\"\nshards = 1".to_owned(), Kind::Corrupt, "hexadecimal"),
    ] {
        write(&room.path().join(LAYOUT_FILE), &text);
        let fault = room.open(1, LocalState::Keep).unwrap_err();
        assert_eq!(fault.kind, kind, "{text:?}: {fault}");
        assert!(fault.to_string().contains(part), "{text:?}: {fault}");
        assert_eq!(std::fs::read_to_string(room.path().join(LAYOUT_FILE)).unwrap(), text);
    }
    write(&room.path().join(LAYOUT_FILE), &format!("version = 1\n{node}shards = 1\n"));
    let identity = identity::read(&room.path().join(LAYOUT_FILE)).unwrap().unwrap();
    assert_eq!(identity.node.to_string(), "00112233445566778899aabbccddeeff");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let room = Room::new();
    let file = room.dir.path().join("file");
    write(&file, "");
    let below = file.join("data");
    let cache = CachePlace { directory: &file, is_used: false };
    let places = Places { buffer: &file, cache, derived: &[] };
    let fault = DataDir::open(&below, 1, LocalState::Keep, places).unwrap_err();
    assert!(fault.to_string().contains(&below.display().to_string()), "{fault}");
}

#[test]
fn a_lost_buffer_is_refused_until_it_is_discarded() {
    let room = Room::new();
    let first = room.open(1, LocalState::Keep).unwrap().node();
    std::fs::remove_dir_all(room.buffer()).unwrap();
    for make in [false, true] {
        if make {
            // An empty mount point.
            std::fs::create_dir(room.buffer()).unwrap();
        }
        let message = room.open(1, LocalState::Keep).unwrap_err().to_string();
        assert!(message.contains(&room.buffer().display().to_string()), "{message}");
        assert!(message.contains("--discard-local"), "{message}");
    }
    assert_ne!(room.open(1, LocalState::Discard).unwrap().node(), first);
    room.open(1, LocalState::Keep).unwrap();
}

#[test]
fn the_buffer_of_another_node_is_refused_and_untouched() {
    let (room, other) = (Room::new(), Room::new());
    let shared = room.dir.path().join("nvme");
    let open = |room: &Room, local| room.open_with(1, local, &shared);
    let theirs = open(&other, LocalState::Keep).unwrap().node();
    write(&shared.join("segment-0"), "theirs");
    drop(room.open(1, LocalState::Keep).unwrap());
    for local in [LocalState::Keep, LocalState::Discard] {
        let message = open(&room, local).unwrap_err().to_string();
        assert!(message.contains(&theirs.to_string()), "{message}");
        assert!(message.contains(&shared.display().to_string()), "{message}");
    }
    assert_eq!(std::fs::read_to_string(shared.join("segment-0")).unwrap(), "theirs");
    assert_eq!(open(&other, LocalState::Keep).unwrap().node(), theirs);
}

#[test]
fn a_discard_that_was_cut_short_is_finished() {
    let room = Room::new();
    let first = room.open(1, LocalState::Keep).unwrap().node();
    write(&room.buffer().join("segment-0"), "old");
    let layout = room.path().join(LAYOUT_FILE);
    let cut = identity::Identity::new(1, Some(first));
    for step in 0..3 {
        identity::write(&layout, cut).unwrap();
        if step > 0 {
            std::fs::remove_dir_all(room.buffer()).unwrap();
        }
        if step > 1 {
            std::fs::create_dir(room.buffer()).unwrap();
            let done = identity::Identity { discarding: None, ..cut };
            identity::write(&room.buffer().join(OWNER_FILE), done).unwrap();
        }
        assert_eq!(room.open(1, LocalState::Keep).unwrap().node(), cut.node);
        assert!(!room.buffer().join("segment-0").exists());
        assert_eq!(identity::read(&layout).unwrap().unwrap().discarding, None);
    }
}

#[test]
fn a_start_that_was_cut_short_is_begun_again() {
    let room = Room::new();
    std::fs::create_dir_all(room.buffer()).unwrap();
    let never = identity::Identity::new(1, None);
    identity::write(&room.buffer().join(OWNER_FILE), never).unwrap();
    let node: NodeId = room.open(1, LocalState::Keep).unwrap().node();
    assert_ne!(node, never.node);
}

#[test]
fn the_cache_of_another_node_is_refused_by_name_and_untouched() {
    let (room, other) = (Room::new(), Room::new());
    let shared = room.dir.path().join("nvme");
    let theirs = other.open_with_cache(LocalState::Keep, &shared).unwrap().node();
    write(&shared.join("cache-0000"), "theirs");
    drop(room.open(1, LocalState::Keep).unwrap());
    for local in [LocalState::Keep, LocalState::Discard] {
        let message = room.open_with_cache(local, &shared).unwrap_err().to_string();
        assert!(message.contains(&theirs.to_string()), "{message}");
        assert!(message.contains(&shared.display().to_string()), "{message}");
    }
    // Without a word of whose it is, the file itself is named.
    std::fs::remove_file(shared.join(OWNER_FILE)).unwrap();
    let message = room.open_with_cache(LocalState::Keep, &shared).unwrap_err().to_string();
    assert!(message.contains("cache-0000") && message.contains("[cache] directory"), "{message}");
    assert_eq!(std::fs::read_to_string(shared.join("cache-0000")).unwrap(), "theirs");
}

#[test]
fn a_cache_elsewhere_goes_when_local_state_is_discarded() {
    let room = Room::new();
    let shared = room.dir.path().join("nvme");
    write(&shared.join("photo.jpg"), "theirs");
    let first = room.open_with_cache(LocalState::Keep, &shared).unwrap().node();
    write(&shared.join("cache-0000"), "ours");
    drop(room.open_with_cache(LocalState::Keep, &shared).unwrap());
    assert!(shared.join("cache-0000").exists());
    let second = room.open_with_cache(LocalState::Discard, &shared).unwrap().node();
    assert_ne!(first, second);
    assert!(!shared.join("cache-0000").exists() && shared.join("photo.jpg").exists());
    drop(room.open_with_cache(LocalState::Keep, &shared).unwrap());
    // Also when it was cut short, and when the cache is not in use any more.
    write(&shared.join("cache-0000"), "ours");
    let cut = identity::Identity::new(1, Some(second));
    identity::write(&room.path().join(LAYOUT_FILE), cut).unwrap();
    let (buffer, cache) = (room.buffer(), CachePlace { directory: &shared, is_used: false });
    let places = Places { buffer: &buffer, cache, derived: &[] };
    drop(DataDir::open(&room.path(), 1, LocalState::Keep, places).unwrap());
    assert!(!shared.join("cache-0000").exists() && !shared.join(OWNER_FILE).exists());
}

#[test]
fn a_cache_that_is_lost_or_broken_does_not_keep_it_from_starting() {
    let room = Room::new();
    let cache = room.dir.path().join("nvme");
    drop(room.open_with_cache(LocalState::Keep, &cache).unwrap());
    std::fs::remove_dir_all(&cache).unwrap();
    drop(room.open_with_cache(LocalState::Keep, &cache).unwrap());
    assert!(cache.join(OWNER_FILE).exists());
    write(&cache.join(OWNER_FILE), "garbage");
    drop(room.open_with_cache(LocalState::Keep, &cache).unwrap());
    std::fs::remove_dir_all(&cache).unwrap();
    write(&cache, "a file");
    drop(room.open_with_cache(LocalState::Keep, &cache).unwrap());
}
