//! The rules themselves: tables, and the functions that apply them.

use super::imports::{named_paths, without_comments_and_strings};
use super::{SourceFile, Violation, violation};

/// Rooms of `volumedriver-core` that every room there may use.
const CORE_BASE: &[&str] = &["units", "fault", "request"];

/// Beyond [`CORE_BASE`]: a room of core, and what it may use of the others.
const CORE: &[(&str, &[&str])] = &[
    ("cache", &[]),
    ("fault", &[]),
    ("format", &[]),
    ("map", &["format"]),
    ("request", &[]),
    ("units", &[]),
    ("volume", &["map", "format"]),
    ("wire", &[]),
    ("scrub", &["map", "format"]),
    ("dtl", &["format"]),
    ("mds", &["format"]),
];

/// A room of `volumedriver`: which other rooms it may use, and which rooms of core beyond [`CORE_BASE`].
struct Outer {
    room: &'static str,
    rooms: &'static [&'static str],
    core: &'static [&'static str],
}

const OUTER: &[Outer] = &[
    Outer { room: "io", rooms: &["world"], core: &[] },
    Outer { room: "world", rooms: &["io"], core: &[] },
    Outer { room: "metrics", rooms: &[], core: &[] },
    Outer { room: "config", rooms: &[], core: &["volume"] },
    Outer { room: "codec", rooms: &["config"], core: &["format"] },
    Outer { room: "buffer", rooms: &["io", "world", "metrics"], core: &["format"] },
    Outer { room: "cache", rooms: &["io", "world", "metrics"], core: &["cache", "format"] },
    Outer { room: "local", rooms: &["io", "world", "metrics"], core: &[] },
    Outer { room: "cluster", rooms: &["config"], core: &[] },
    Outer { room: "store", rooms: &["cluster", "config", "io", "world", "metrics"], core: &[] },
    Outer {
        room: "volume",
        rooms: &["buffer", "cache", "codec", "config", "io", "metrics", "world"],
        core: &["cache", "format", "map", "volume"],
    },
    Outer {
        room: "shard",
        rooms: &["buffer", "cache", "codec", "config", "io", "metrics", "volume", "world"],
        core: &["format", "volume"],
    },
    Outer { room: "nbd", rooms: &["config", "metrics", "shard"], core: &["wire"] },
    Outer { room: "admin", rooms: &["config", "inspect", "metrics", "shard"], core: &[] },
    Outer { room: "inspect", rooms: &["codec", "config", "io", "world"], core: &["format", "map"] },
    Outer {
        room: "serve",
        rooms: &[
            "admin", "buffer", "cache", "cluster", "codec", "config", "inspect", "io", "metrics",
            "nbd", "pages", "shard", "store", "volume", "world",
        ],
        core: &["cache", "format", "map", "volume", "wire"],
    },
];

/// What puts everything together may use everything.
const WIRING: &[&str] = &["main", "lib", "serve"];

/// Crates (and modules of std) with the only places that may name them, as path prefixes.
const PLACES: &[(&str, &[&str])] = &[
    ("aws_config", &["volumedriver/src/store/s3", "backend-alba/src/osd/bucket"]),
    ("aws_sdk_s3", &["volumedriver/src/store/s3", "backend-alba/src/osd/bucket"]),
    ("etcd_client", &["volumedriver/src/cluster", "backend-alba/"]),
    ("rocksdb", &["volumedriver/src/local", "backend-alba/"]),
    (
        "volumedriver_proto",
        &["volumedriver/src/store", "volumedriver/src/admin", "backend-alba/", "tests/"],
    ),
    (
        "tonic",
        &["volumedriver/src/store", "volumedriver/src/admin", "backend-alba/", "proto/", "tests/"],
    ),
];

/// What `volume` must not name: it sees the outside only through the world's traits.
const NOT_IN_VOLUME: &[&[&str]] = &[
    &["std", "fs"],
    &["std", "net"],
    &["std", "path"],
    &["std", "thread"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["tokio", "net"],
    &["tokio", "fs"],
    &["rustix"],
    &["libc"],
];

/// Types of core that frontends must not know.
const NOT_IN_FRONTENDS: &[&str] =
    &["ScoId", "ScoSeq", "Location", "Mapping", "ManifestNo", "TlogNo"];

/// Who may import whom.
pub(super) fn imports(file: &SourceFile) -> Vec<Violation> {
    let mut found = Vec::new();
    for path in &named_paths(&file.text, &module_of(&file.path)) {
        let segments: Vec<&str> = path.iter().map(String::as_str).collect();
        found.extend(core_import(file, &segments));
        found.extend(outer_import(file, &segments));
    }
    found.dedup();
    found
}

fn core_import(file: &SourceFile, path: &[&str]) -> Option<Violation> {
    let room = room_in(&file.path, "volumedriver/core/src/")?;
    let &["crate", used, ..] = path else { return None };
    let is_room = CORE.iter().any(|(name, _)| *name == used);
    if !is_room || used == room || CORE_BASE.contains(&used) {
        return None;
    }
    let allowed =
        CORE.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| allowed);
    let fine = allowed.contains(&used);
    (!fine).then(|| violation(file, format!("core room {room} must not use {used}")))
}

fn outer_import(file: &SourceFile, path: &[&str]) -> Option<Violation> {
    let room = room_in(&file.path, "volumedriver/src/")?;
    if WIRING.contains(&room) {
        return None;
    }
    let Some(rule) = OUTER.iter().find(|rule| rule.room == room) else {
        return Some(violation(file, format!("room {room} is not in the import rules")));
    };
    let what = match *path {
        ["crate", used, ..] => {
            let is_room = OUTER.iter().any(|other| other.room == used) || WIRING.contains(&used);
            let fine = !is_room || used == room || rule.rooms.contains(&used);
            (!fine).then(|| format!("room {room} must not use {used}"))
        }
        ["volumedriver_core", used, ref rest @ ..] => core_use(rule, used, rest),
        _ if room == "volume" => NOT_IN_VOLUME
            .iter()
            .find(|banned| path.starts_with(banned))
            .map(|banned| format!("room volume must not name {}", banned.join("::"))),
        _ => None,
    };
    what.map(|what| violation(file, what))
}

fn core_use(rule: &Outer, used: &str, rest: &[&str]) -> Option<String> {
    let room = rule.room;
    if !CORE_BASE.contains(&used) && !rule.core.contains(&used) {
        return Some(format!("room {room} must not use {used} of core"));
    }
    let kind = rest.first()?;
    let hidden = room == "nbd" && NOT_IN_FRONTENDS.contains(kind);
    hidden.then(|| format!("frontend {room} must not know {kind}"))
}

/// Where unsafe code, and crates with one place, may stand.
pub(super) fn places(file: &SourceFile) -> Vec<Violation> {
    let mut found = Vec::new();
    let code = without_comments_and_strings(&file.text);
    let words = || code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    if words().any(|word| word == "unsafe") && !file.path.starts_with("volumedriver/src/io/") {
        found.push(violation(file, "unsafe code belongs in volumedriver/src/io"));
    }
    if code.contains("#[ignore") {
        found.push(violation(file, "an ignored test is no test"));
    }
    for (name, allowed) in PLACES {
        let inside = allowed.iter().any(|place| file.path.starts_with(place));
        if !inside && words().any(|word| word == *name) {
            found.push(violation(
                file,
                format!("{name} may be named only in {}", allowed.join(", ")),
            ));
        }
    }
    found
}

/// Exactly one file may name the io_uring crates, so that they can be replaced in a day.
pub(super) fn one_ring_file(files: &[SourceFile]) -> Vec<Violation> {
    let named = |file: &&SourceFile| {
        let paths = named_paths(&file.text, &[]);
        file.path.ends_with(".rs")
            && paths.iter().any(|path| matches!(path[0].as_str(), "tokio_uring" | "io_uring"))
    };
    let namers: Vec<_> = files.iter().filter(named).collect();
    let extra = if namers.len() > 1 { &namers[..] } else { &[] };
    let what = "names io_uring, and so does another file: only one may";
    extra.iter().map(|file| violation(file, what)).collect()
}

/// The dependencies of core are the proof that it neither waits nor looks outside.
pub(super) fn core_dependencies(file: &SourceFile) -> Vec<Violation> {
    dependencies(file, "[dependencies]")
        .filter(|name| !matches!(*name, "bytes" | "crc32fast" | "thiserror"))
        .map(|name| violation(file, format!("core must not depend on {name}")))
        .collect()
}

/// What only tests depend on turns on features of what everything depends on; a build without tests would then compile
/// all that anew. A plain dependency of one crate, be it the suite, turns them on in every build.
pub(super) fn shared_builds(files: &[SourceFile]) -> Vec<Violation> {
    let crates = || {
        let is_ours = |path: &str| path.ends_with("Cargo.toml") && !path.starts_with("fuzz/");
        files.iter().filter(move |file| is_ours(&file.path))
    };
    let plain: Vec<&str> = crates().flat_map(|file| dependencies(file, "[dependencies]")).collect();
    let dev = crates()
        .flat_map(|file| dependencies(file, "[dev-dependencies]").map(move |name| (file, name)));
    dev.filter(|(_, name)| !plain.contains(name))
        .map(|(file, name)| {
            let what =
                format!("no crate depends on {name} but for its tests: see tests/Cargo.toml");
            violation(file, what)
        })
        .collect()
}

/// The names below a heading of a `Cargo.toml`.
fn dependencies<'a>(file: &'a SourceFile, heading: &str) -> impl Iterator<Item = &'a str> {
    let mut lines = file.text.lines();
    // Leaves the iterator behind the heading, or at its end.
    let _heading = lines.find(|line| line.trim() == heading);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
}

/// The room a file belongs to, for files below `base`.
fn room_in<'a>(path: &'a str, base: &str) -> Option<&'a str> {
    let inner = path.strip_prefix(base)?.trim_end_matches(".rs");
    inner.split('/').next()
}

/// `volumedriver/core/src/format/sco.rs` is module `format::sco`; `mod.rs` is its folder's module.
fn module_of(path: &str) -> Vec<String> {
    let Some((_, inner)) = path.split_once("src/") else { return Vec::new() };
    let inner = inner.trim_end_matches(".rs").trim_end_matches("/mod");
    inner.split('/').filter(|name| !matches!(*name, "lib" | "main")).map(str::to_owned).collect()
}
