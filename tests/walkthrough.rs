//! README's walk through a backend of three nodes, run as it stands there: what diverges from it fails.

use std::fmt::Write as _;
use std::path::Path;

use suite::daemon::{program, scratch};
use suite::tool::Tool;

const HEADING: &str = "## Three nodes, one of which dies";
/// Before what a line prints.
const PRINTS: &str = "#=> ";
/// Seconds for all of it.
const SECONDS: u32 = 400;

/// The indented lines of the section.
fn lines(readme: &str) -> Vec<&str> {
    let (_, section) = readme.split_once(HEADING).expect("the section is there");
    let section = section.split("\n## ").next().unwrap();
    let lines: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert!(lines.len() > 30, "only {} lines in the section", lines.len());
    lines
}

/// A script that runs them in order, ends at the first that fails, and checks what those print of which that is said.
fn script(lines: &[&str]) -> String {
    let mut script =
        String::from("set -euo pipefail\ntrap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT\n");
    for (n, line) in lines.iter().enumerate() {
        if line.starts_with(PRINTS) {
            continue;
        }
        match lines.get(n + 1).and_then(|next| next.strip_prefix(PRINTS)) {
            None => writeln!(script, "{line}").unwrap(),
            Some(words) => {
                writeln!(script, "{line} >said; cat said").unwrap();
                writeln!(
                    script,
                    "grep -qF '{words}' said || {{ echo 'NOT AS IT SAYS: {words}'; exit 1; }}"
                )
                .unwrap();
            }
        }
        // A line by itself that ends in `!` of a pipe does not end a script that is told to end at failures.
        if line.starts_with("! ") {
            writeln!(
                script,
                "[ $? = 0 ] || {{ echo 'NOT AS IT SAYS: {}'; exit 1; }}",
                line.replace('\'', "")
            )
            .unwrap();
        }
    }
    script
}

#[test]
fn the_walk_through_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let folder = scratch();
    // A loopback net of its own, so that nothing that runs already is in its way.
    let process = std::process::id();
    let net = format!("127.{}.{}.", 1 + process / 200 % 200, 1 + process % 200);
    let text = script(&lines(&readme)).replace("127.0.0.", &net);
    let file = folder.path().join("script");
    std::fs::write(&file, &text).unwrap();
    let programs = program("alba").parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let said = Tool::within(SECONDS, "env")
        .args(&["-C".into(), folder.path().display().to_string()])
        .arg(format!("PATH={path}:/usr/sbin:/sbin"))
        .args(&["bash", "-x"])
        .arg(&file)
        .outcome();
    let logs = |name: &str| {
        let log =
            std::fs::read_to_string(folder.path().join("walk").join(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    };
    assert!(
        said.status.success(),
        "{said}\n--- a server:\n{}\n--- the volumedriver:\n{}",
        logs("node12.server"),
        logs("vd.log")
    );
}

#[test]
fn a_line_that_is_not_true_is_found() {
    let run = |lines: &[&str]| {
        let folder = scratch();
        let file = folder.path().join("script");
        std::fs::write(&file, script(lines)).unwrap();
        let bash = Tool::new("env").args(&["-C".into(), folder.path().display().to_string()]);
        bash.arg("bash").arg(&file).outcome().status.success()
    };
    assert!(run(&["echo five apples", "#=> five", "! echo a | grep -v a", "true"]));
    assert!(!run(&["echo six apples", "#=> five"]));
    assert!(!run(&["! echo b | grep -v a", "true"]));
    assert!(!run(&["false", "true"]));
}
