//! Tidiness as a test: who may import whom (DESIGN: "the house"), where unsafe code and io_uring may be named, file lengths,
//! the code map. Pure: it judges a list of files, so that planted violations can be tested too.

mod imports;
mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// A text file of the project, its path relative to the project's root with forward slashes.
#[derive(Clone, Debug)]
pub struct SourceFile {
    pub path: String,
    pub text: String,
}

impl SourceFile {
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub path: String,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

/// Where the rooms of core and of the engine lie.
const CORE_SOURCES: &str = "volumedriver/core/src";
const ENGINE_SOURCES: &str = "volumedriver/src";

/// Longest source file, lines.
const MAX_LINES: usize = 900;

/// Every broken rule, sorted.
#[must_use]
pub fn check(files: &[SourceFile]) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in files {
        found.extend(machine_paths(file));
        if file.path.ends_with(".rs") {
            found.extend(length(file));
            found.extend(rules::imports(file));
            found.extend(rules::places(file));
        }
        if file.path == "volumedriver/core/Cargo.toml" {
            found.extend(rules::core_dependencies(file));
        }
    }
    found.extend(rules::one_ring_file(files));
    found.extend(rules::shared_builds(files));
    found.extend(code_map(files));
    found.sort();
    found
}

/// Reads every text file below the root, without what is built, served or measured there.
pub fn read_tree(root: &Path) -> std::io::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    read_folder(root, root, &mut files)?;
    Ok(files)
}

fn read_folder(root: &Path, folder: &Path, files: &mut Vec<SourceFile>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let is_dir = entry.file_type()?.is_dir();
        let top = folder == root;
        let built = name == "target" || top && (name == "run" || name == "bench-results");
        let hidden = name.starts_with('.') && name != ".ci";
        if built || hidden || name == "Cargo.lock" {
            continue;
        }
        if is_dir {
            read_folder(root, &path, files)?;
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            files.push(SourceFile::new(relative.to_string_lossy(), text));
        }
    }
    Ok(())
}

fn violation(file: &SourceFile, what: impl Into<String>) -> Violation {
    Violation { path: file.path.clone(), what: what.into() }
}

fn length(file: &SourceFile) -> Option<Violation> {
    let lines = file.text.lines().count();
    (lines > MAX_LINES).then(|| violation(file, format!("{lines} lines, at most {MAX_LINES}")))
}

/// Paths that exist only on somebody's machine.
fn machine_paths(file: &SourceFile) -> Vec<Violation> {
    // In two halves, so that this file does not name them.
    let places = [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/Us", "ers/")];
    let named = places.iter().map(|(a, b)| format!("{a}{b}"));
    let named = named.filter(|place| file.text.contains(place.as_str()));
    named.map(|place| violation(file, format!("names a machine's path: {place}"))).collect()
}

/// The README's code map must name every room and nothing else. A room stands first in a row of its table; `core/` there
/// is short for the sources of the core crate.
fn code_map(files: &[SourceFile]) -> Vec<Violation> {
    let Some(readme) = files.iter().find(|file| file.path == "README.md") else {
        let what = "is missing, and with it the code map".to_owned();
        return vec![Violation { path: "README.md".to_owned(), what }];
    };
    let named = mapped_rooms(&readme.text);
    let real = rooms(files);
    let missing = real.difference(&named).map(|room| format!("code map: does not name `{room}`"));
    let extra = named.difference(&real).map(|room| format!("code map: there is no room `{room}`"));
    missing.chain(extra).map(|what| violation(readme, what)).collect()
}

fn mapped_rooms(readme: &str) -> BTreeSet<String> {
    let lines = readme.lines().skip_while(|line| !is_heading(line, "code map")).skip(1);
    lines
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(room, _)| match room.trim_end_matches('/').split_once("core/") {
            Some(("", inner)) => format!("{CORE_SOURCES}/{inner}"),
            _ => room.trim_end_matches('/').to_owned(),
        })
        .collect()
}

fn is_heading(line: &str, title: &str) -> bool {
    line.strip_prefix("## ").is_some_and(|heading| heading.trim().eq_ignore_ascii_case(title))
}

/// The rooms there are: folders at the top, the core crate, and the modules directly below the two crates of the
/// volumedriver.
fn rooms(files: &[SourceFile]) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for file in files.iter().filter(|file| !file.path.starts_with('.')) {
        match file.path.split_once('/') {
            Some(("volumedriver", inner)) if inner.starts_with("core/") => {
                rooms.insert("volumedriver/core".to_owned());
            }
            Some((folder, _)) if folder != "volumedriver" => {
                rooms.insert(folder.to_owned());
            }
            _ => {}
        }
        for base in [CORE_SOURCES, ENGINE_SOURCES] {
            let Some(inner) = file.path.strip_prefix(base) else { continue };
            let module = inner.trim_start_matches('/').split('/').next().unwrap_or_default();
            let module = module.trim_end_matches(".rs");
            if !matches!(module, "lib" | "main") {
                rooms.insert(format!("{base}/{module}"));
            }
        }
    }
    rooms
}
