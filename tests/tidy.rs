//! The project is tidy, and the checker that says so can find each kind of untidiness.

use std::path::Path;

use suite::tidy::{SourceFile, check, read_tree};

#[test]
fn the_project_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = read_tree(&root).unwrap();
    assert!(files.len() > 40, "only {} files found below {}", files.len(), root.display());
    let found: Vec<String> = check(&files).iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{} rules broken:\n{}", found.len(), found.join("\n"));
}

/// A small project that keeps every rule.
fn clean() -> Vec<SourceFile> {
    vec![
        SourceFile::new(
            "README.md",
            "# X\n## Code map\n| room | what |\n|---|---|\n| `volumedriver/core/` | all |\n| `core/units` | numbers |\n\
             | `core/map` | |\n| `volumedriver/src/io/` | |\n| `volumedriver/src/nbd` | |\n\
             | `volumedriver/src/volume` | |\n## More\n| `other` | |\n",
        ),
        SourceFile::new("volumedriver/core/src/units.rs", "pub struct A(u64);"),
        SourceFile::new("volumedriver/core/src/map/mod.rs", "use crate::units::A;"),
        SourceFile::new("volumedriver/src/io/ring.rs", "use tokio_uring::fs; unsafe fn f() {}"),
        SourceFile::new(
            "volumedriver/src/nbd/mod.rs",
            "use crate::shard::Handle; // crate::volume::x",
        ),
        SourceFile::new("volumedriver/src/volume/mod.rs", "use volumedriver_core::map::Page;"),
        SourceFile::new(
            "volumedriver/core/Cargo.toml",
            "[dependencies]\nbytes = \"1\"\n\n[dev-dependencies]\nproptest = \"1\"\n",
        ),
        SourceFile::new("volumedriver/Cargo.toml", "[dependencies]\n# for all\nproptest = \"1\"\n"),
    ]
}

/// Puts `text` at `path` into the clean project and expects exactly this complaint about it.
fn planted(path: &str, text: &str, complaint: &str) {
    let mut files = clean();
    files.retain(|file| file.path != path);
    files.push(SourceFile::new(path, text));
    let found: Vec<String> = check(&files).iter().map(|v| v.what.clone()).collect();
    assert_eq!(found, [complaint], "planted in {path}: {text}");
}

#[test]
fn a_clean_project_has_no_complaints() {
    assert_eq!(check(&clean()), []);
}

#[test]
fn finds_a_core_room_that_looks_where_it_must_not() {
    planted(
        "volumedriver/core/src/map/mod.rs",
        "use crate::{units::A, volume::plan};",
        "core room map must not use volume",
    );
    planted(
        "volumedriver/core/src/map/page.rs",
        "fn f() { super::super::wire::g() }",
        "core room map must not use wire",
    );
}

#[test]
fn finds_an_outer_room_that_looks_where_it_must_not() {
    let nbd = "volumedriver/src/nbd/mod.rs";
    planted(nbd, "use crate::volume::Volume;", "room nbd must not use volume");
    planted(nbd, "use volumedriver_core::format::sco;", "room nbd must not use format of core");
    planted(nbd, "use volumedriver_core::units::{A, ScoId};", "frontend nbd must not know ScoId");
    let volume = "volumedriver/src/volume/mod.rs";
    planted(volume, "fn f() { std::net::connect() }", "room volume must not name std::net");
    planted(volume, "use crate::shard::Handle;", "room volume must not use shard");
}

#[test]
fn finds_names_in_the_wrong_place() {
    planted(
        "volumedriver/src/volume/mod.rs",
        "fn f() { unsafe { g() } }",
        "unsafe code belongs in volumedriver/src/io",
    );
    planted(
        "volumedriver/src/volume/mod.rs",
        "use rocksdb::DB;",
        "rocksdb may be named only in volumedriver/src/local, backend-alba/",
    );
    planted("volumedriver/src/volume/mod.rs", "#[ignore] fn f() {}", "an ignored test is no test");
}

#[test]
fn finds_a_second_file_that_names_io_uring() {
    let mut files = clean();
    files.push(SourceFile::new("volumedriver/src/io/second.rs", "use io_uring::IoUring;"));
    let found = check(&files);
    let paths: Vec<&str> = found.iter().map(|v| v.path.as_str()).collect();
    assert_eq!(paths, ["volumedriver/src/io/ring.rs", "volumedriver/src/io/second.rs"]);
}

#[test]
fn finds_a_dependency_that_only_tests_have() {
    planted(
        "volumedriver/core/Cargo.toml",
        "[dependencies]\nbytes = \"1\"\n\n[dev-dependencies]\nproptest = \"1\"\nextra.workspace = true\n",
        "no crate depends on extra but for its tests: see tests/Cargo.toml",
    );
}

#[test]
fn finds_a_dependency_of_core() {
    planted(
        "volumedriver/core/Cargo.toml",
        "[dependencies]\nbytes.workspace = true\ntokio = \"1\"\n",
        "core must not depend on tokio",
    );
}

#[test]
fn finds_long_files_and_machine_paths() {
    planted("volumedriver/src/nbd/mod.rs", &"\n".repeat(901), "901 lines, at most 900");
    let place = ["/ho", "me/"].concat();
    planted(
        "volumedriver/src/nbd/mod.rs",
        &format!("const P: &str = \"{place}me\";"),
        &format!("names a machine's path: {place}"),
    );
}

#[test]
fn finds_a_code_map_that_is_not_the_house() {
    planted(
        "volumedriver/src/shard/mod.rs",
        "",
        "code map: does not name `volumedriver/src/shard`",
    );
    planted("benches/device", "", "code map: does not name `benches`");
    let map = clean()[0].text.replace("## More", "| `fuzz` | |\n## More");
    planted("README.md", &map, "code map: there is no room `fuzz`");
}
