//! The command line of `alba` against real servers: tables, JSON, exit statuses, wrong input; and two servers on one etcd.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use suite::alba::Alba;
use suite::daemon::{program, scratch};
use suite::servers::Server;
use suite::tool::{Said, Tool};

fn json(server: &Alba, arguments: &[&str]) -> Value {
    let said = server.command(arguments).arg("--json").run();
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{said}"))
}

/// The table as cells: columns begin where those of the first line do.
fn table(server: &Alba, arguments: &[&str]) -> Vec<Vec<String>> {
    let said = server.command(arguments).run();
    let heading = said.lines().next().unwrap_or_default();
    let starts: Vec<usize> = heading
        .char_indices()
        .filter(|(at, c)| !c.is_whitespace() && (*at == 0 || heading[..*at].ends_with("  ")))
        .map(|(at, _)| at)
        .collect();
    let row = |line: &str| {
        let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
        let cell = |(from, to): (&usize, usize)| {
            line.get(*from..to.min(line.len())).unwrap_or_default().trim().to_string()
        };
        starts.iter().zip(ends).map(cell).collect()
    };
    said.lines().map(row).collect()
}

/// Four directories on two nodes, and a preset that they satisfy.
fn server(folder: &Path) -> Alba {
    let osds: Vec<String> =
        (0..4).map(|n| format!("{}/osd{n},node=n{},label=l{n}", folder.display(), n / 2)).collect();
    let options: Vec<&str> = osds.iter().flat_map(|osd| ["--osd", osd]).collect();
    Alba::start(folder, "serve", "server", &options)
}

fn refused(said: &Said, words: &str) {
    let is_one_line = said.err.starts_with("alba: ") && said.err.trim_end().lines().count() == 1;
    assert!(said.status.code() == Some(1) && said.out.is_empty(), "{said}");
    assert!(is_one_line && said.err.contains(words), "{words:?}: {said}");
}

#[test]
fn namespaces_and_objects_as_tables_and_as_json() {
    let folder = scratch();
    let server = server(folder.path());
    let run = |arguments: &[&str]| server.command(arguments).run();
    assert_eq!(run(&["namespace", "create", "ns"]), "created\n");
    assert_eq!(run(&["namespace", "create", "ns"]), "existed before\n");
    assert_eq!(json(&server, &["namespace", "create", "other"])["created"], true);
    assert_eq!(json(&server, &["namespace", "create", "other"])["created"], false);
    assert_eq!(run(&["namespace", "list"]), "ns\nother\n");
    assert_eq!(json(&server, &["namespace", "list", "--prefix", "o"])["namespaces"][0], "other");
    assert_eq!(run(&["namespace", "delete", "other"]), "deleted\n");
    assert_eq!(run(&["namespace", "delete", "other"]), "did not exist\n");
    let (file, back) = (folder.path().join("file"), folder.path().join("back"));
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&file, &body).unwrap();
    let (file, back) = (file.to_str().unwrap(), back.to_str().unwrap());
    assert_eq!(run(&["object", "put", "ns", "a", file]), "created\n");
    assert_eq!(run(&["object", "put", "ns", "a", file]), "existed before and is unchanged\n");
    assert_eq!(json(&server, &["object", "put", "ns", "b", file])["created"], true);
    assert_eq!(run(&["object", "list", "ns"]), "a\nb\n");
    assert_eq!(json(&server, &["object", "list", "ns", "--prefix", "b"])["objects"][0], "b");
    let crc = format!("{:08x}", crc32fast::hash(&body));
    let head = json(&server, &["object", "head", "ns", "a"]);
    assert_eq!((head["len"].as_u64(), head["crc32"].as_str()), (Some(3_000_000), Some(&*crc)));
    let told = run(&["object", "head", "ns", "a"]);
    assert!(told.contains("3000000 bytes") && told.contains(&crc), "{told}");
    run(&["object", "get", "ns", "a", back]);
    assert!(std::fs::read(back).unwrap() == body);
    let range = ["object", "get", "ns", "a", "-", "--offset", "65", "--length", "3"];
    assert_eq!(run(&range).into_bytes(), body[65..68]);
    let shown = json(&server, &["object", "show", "ns", "a"]);
    let fragments = shown["fragments"].as_array().unwrap();
    // Of the default preset the first policy that four directories on two nodes satisfy.
    assert_eq!((shown["policy"].as_str(), fragments.len()), (Some("(2,2,3,4)"), 4), "{shown}");
    let told = run(&["object", "show", "ns", "a"]);
    assert!(fragments.iter().all(|f| told.contains(f["file_id"].as_str().unwrap())), "{told}");
    assert_eq!(run(&["object", "delete", "ns", "b"]), "deleted\n");
    assert_eq!(json(&server, &["object", "delete", "ns", "b"])["deleted"], false);
    let status = json(&server, &["status"]);
    assert_eq!((status["namespaces"].as_u64(), status["objects"].as_u64()), (Some(1), Some(1)));
    assert_eq!(status["osds"].as_array().unwrap().len(), 4);
    let told = run(&["status"]);
    assert!(told.contains("1 of 3000000 bytes"), "{told}");
}

#[test]
fn administration_as_tables_and_as_json() {
    let folder = scratch();
    let server = server(folder.path());
    let run = |arguments: &[&str]| server.command(arguments).run();
    run(&["namespace", "create", "ns"]);
    let file = folder.path().join("file");
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    run(&["object", "put", "ns", "a", file.to_str().unwrap()]);
    // Presets.
    let set = ["preset", "set", "pair", "--policy", "1,1,2,1", "--policy", "1,0,1,1"];
    assert_eq!(run(&set), "version 1\n");
    assert_eq!(json(&server, &set)["version"], 2);
    let rows = table(&server, &["preset", "list"]);
    assert_eq!(rows[0][..3], ["PRESET", "VERSION", "POLICIES"]);
    let pair = rows.iter().find(|row| row[0] == "pair").unwrap();
    assert_eq!(pair[1..3], ["2", "(1,1,2,1) (1,0,1,1)"]);
    assert_eq!(table(&server, &["preset", "show", "pair"])[1], *pair);
    assert_eq!(json(&server, &["preset", "show", "pair"])["policies"][0], "1,1,2,1");
    assert_eq!(run(&["preset", "default", "pair"]), "changed\n");
    assert_eq!(json(&server, &["preset", "show", "pair"])["is_default"], true);
    assert_eq!(run(&["namespace", "preset", "ns"]), "default\n");
    assert_eq!(run(&["namespace", "preset", "ns", "--set", "pair"]), "changed\n");
    assert_eq!(json(&server, &["namespace", "preset", "ns"])["preset"], "pair");
    // What is there is stored anew by itself, or at request.
    let items = json(&server, &["rewrite", "ns", "--wait"]);
    assert_eq!(items["items"][0]["state"], "done", "{items}");
    let shown = json(&server, &["object", "show", "ns", "a"]);
    assert_eq!(shown["policy"], "(1,1,2,1)");
    // OSDs, and how safe all is without one.
    let rows = table(&server, &["osd", "list"]);
    assert_eq!((rows.len(), rows[0][0].as_str(), rows[1][3].as_str()), (5, "OSD", "active"));
    let osd = shown["fragments"][0]["osd_id"].as_str().unwrap();
    let rows = table(&server, &["safety"]);
    assert_eq!(rows[1], ["ns", "(1,1,2,1)", "2 of 2", "1", "300000", "1", "1"]);
    let rows = table(&server, &["safety", "--namespace", "ns", "--dead", osd]);
    assert_eq!(rows[1][5..], ["0 (none may fail)", "0 (none may fail)"]);
    let bucket = &json(&server, &["safety", "--dead", osd])["buckets"][0];
    assert_eq!((bucket["survives_osds"].as_i64(), bucket["lost"].as_u64()), (Some(0), Some(0)));
    for (verb, role) in [("disable", "disabled"), ("enable", "active")] {
        assert_eq!(run(&["osd", verb, osd]), format!("{role}\n"));
    }
    // Work.
    let rows = table(&server, &["verify", "ns", "--wait"]);
    assert_eq!((rows[1][2].as_str(), rows[1][4].as_str()), ("verify checksums", "done"));
    assert_eq!((rows[1][6].as_str(), rows[1][9].as_str()), ("1", "0"), "{rows:?}");
    let items = json(&server, &["verify", "ns", "--existence", "--wait"]);
    assert_eq!(items["items"][0]["kind"], "verify existence");
    let job = json(&server, &["repair", "ns"])["job_id"].as_str().unwrap().to_string();
    let listed = json(&server, &["work", "list"]);
    let is_listed = |item: &Value| item["job_id"] == *job && item["kind"] == "repair";
    assert!(listed["items"].as_array().unwrap().iter().any(is_listed), "{listed}");
    assert_eq!(table(&server, &["work", "list"])[0][..4], ["JOB", "PART", "WHAT", "OF"]);
    assert_eq!(run(&["work", "cancel", &job]), "cancelled\n");
    assert_eq!(json(&server, &["work", "cancel", &job])["cancelled"], false);
    // Maintenance.
    let settings = json(&server, &["maintenance", "show"]);
    assert_eq!((&settings["concurrency"], &settings["repair"]), (&4.into(), &true.into()));
    let set = ["maintenance", "set", "concurrency=7", "repair=false"];
    let settings = json(&server, &set);
    assert_eq!((&settings["concurrency"], &settings["repair"]), (&7.into(), &false.into()));
    let rows = server.command(&["maintenance", "show"]).run();
    let has =
        |name: &str, value: &str| rows.lines().any(|row| row.split_whitespace().eq([name, value]));
    assert!(has("concurrency", "7") && has("repair", "false"), "{rows}");
    // Away again, all of it.
    assert_eq!(run(&["namespace", "preset", "ns", "--set", "default"]), "changed\n");
    assert_eq!(run(&["preset", "default", "default"]), "changed\n");
    assert_eq!(run(&["preset", "delete", "pair"]), "deleted\n");
    assert_eq!(run(&["preset", "delete", "pair"]), "did not exist\n");
}

#[test]
fn what_is_wrong_is_refused_in_one_line_by_name() {
    let folder = scratch();
    let server = server(folder.path());
    server.command(&["namespace", "create", "ns"]).run();
    let missing = folder.path().join("missing").display().to_string();
    let there = folder.path().join("there").display().to_string();
    std::fs::write(&there, "x").unwrap();
    server.command(&["object", "put", "ns", "a", &there]).run();
    let unknown = "0".repeat(32);
    let cases: [(&[&str], &str); 26] = [
        (&["namespace", "create", ""], "namespace"),
        (&["namespace", "create", "x", "--preset", "never"], "never"),
        (&["namespace", "preset", "never"], "never"),
        (&["object", "put", "never", "a", &there], "never"),
        (&["object", "put", "ns", "b", &missing], &missing),
        (&["object", "head", "ns", "never"], "never"),
        (&["object", "show", "ns", "never"], "never"),
        (&["object", "get", "ns", "never", "-"], "never"),
        (&["object", "get", "ns", "a", &there], &there),
        (&["object", "get", "ns", "a", "-", "--offset", "2"], "asked of 1"),
        (&["preset", "show", "never"], "never"),
        (&["preset", "set", "p", "--policy", "1,1"], "1,1"),
        (&["preset", "set", "p", "--policy", "x"], "x"),
        (&["preset", "set", "p", "--policy", "1,0,1,1", "--fragment-bytes", "7"], "7"),
        (&["preset", "delete", "default"], "default"),
        (&["preset", "default", "never"], "never"),
        (&["safety", "--dead", "xyz"], "xyz"),
        (&["safety", "--dead", &unknown], &unknown),
        (&["safety", "--namespace", "never"], "never"),
        (&["verify", "never"], "never"),
        (&["work", "cancel", "xyz"], "xyz"),
        (&["maintenance", "set", "lease_ms=1"], "lease_ms"),
        (&["maintenance", "set", "never=1"], "never"),
        (&["osd", "claim", "127.0.0.1:1"], "127.0.0.1:1"),
        (&["osd", "disable", &unknown], &unknown),
        (&["osd", "purge", "xyz"], "xyz"),
    ];
    for (arguments, words) in cases {
        refused(&server.command(arguments).outcome(), words);
    }
    // As JSON too: an error is no document.
    refused(&server.command(&["object", "head", "ns", "never", "--json"]).outcome(), "never");
    let alba = |arguments: &[&str]| Tool::within(60, program("alba")).args(arguments).outcome();
    refused(&alba(&["status", "--connect", "127.0.0.1:1"]), "cannot be reached");
    let nowhere = folder.path().join("no.sock");
    refused(&alba(&["status", "--connect", &format!("unix:{}", nowhere.display())]), "reached");
    // What cannot even be read is explained by the usage, with another status.
    let data_dir = folder.path().join("new").display().to_string();
    let (osd, listen) = ("d,rack=1", "127.0.0.1:0");
    let typed: [&[&str]; 9] = [
        &[],
        &["statsu"],
        &["status"],
        &["status", "--connect", "nonsense"],
        &["object", "get", "ns", "a", "-", "--connect", "a:1", "--offset", "-1"],
        &["maintenance", "set", "--connect", "a:1"],
        &["preset", "set", "p", "--connect", "a:1"],
        &["serve", "--data-dir", &data_dir, "--listen", listen, "--osd", osd],
        &["serve", "--data-dir", &data_dir, "--listen", listen, "--nsm", "http://x"],
    ];
    for arguments in typed {
        let said = alba(arguments);
        let is_explained = said.status.code() == Some(2) && said.err.contains("Usage");
        let is_told = is_explained || said.err.contains("--help");
        assert!(said.status.code() == Some(2) && is_told && said.out.is_empty(), "{said}");
    }
    assert!(!Path::new(&data_dir).exists(), "nothing is begun");
    // A second server on the same directory.
    let busy = Tool::within(60, program("alba"))
        .args(&["serve", "--listen", listen, "--data-dir"])
        .arg(&server.data_dir)
        .outcome();
    refused(&busy, "another process");
}

fn asd(folder: &Path, n: usize) -> Alba {
    Alba::start(folder, "asd", &format!("disk{n}"), &["--node", &format!("n{n}")])
}

/// Waits until this holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "not in a minute: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn two_servers_on_one_etcd_over_tls_are_one_backend_and_either_may_die() {
    let etcd = Server::etcd_over_tls();
    let folder = scratch();
    let (nsm, unknown) = (etcd.etcd_url("backend"), etcd.etcd_url_without_tls("backend"));
    let stranger = Tool::within(60, program("alba"))
        .args(&["serve", "--listen", "127.0.0.1:0", "--no-osd", "--nsm", &unknown, "--data-dir"])
        .arg(folder.path().join("stranger"))
        .outcome();
    refused(&stranger, "etcd://");
    let serve =
        |name: &str| Alba::start(folder.path(), "serve", name, &["--no-osd", "--nsm", &nsm]);
    let (mut one, two) = (serve("one"), serve("two"));
    let mut disks: Vec<Alba> = (0..3).map(|n| asd(folder.path(), n)).collect();
    for disk in &disks {
        one.command(&["osd", "claim", &disk.address]).run();
    }
    eventually("the other server has the OSDs too", || {
        let osds = json(&two, &["osd", "list"]);
        let osds = osds["osds"].as_array().unwrap();
        osds.len() == 3 && osds.iter().all(|osd| osd["state"] == "ready")
    });
    assert_eq!(json(&one, &["status"])["alba_id"], json(&two, &["status"])["alba_id"]);
    two.command(&["preset", "set", "pair", "--policy", "1,1,2,1"]).run();
    one.command(&["namespace", "create", "ns", "--preset", "pair"]).run();
    assert_eq!(two.command(&["namespace", "create", "ns"]).run(), "existed before\n");
    // Racing puts of one name, each with bytes of its own: one wins, and all servers have its bytes.
    for n in 0..5 {
        let object = format!("o{n}");
        let put = |server: &Alba, fill: u8| {
            let file = folder.path().join(format!("{n}-{fill}"));
            std::fs::write(&file, vec![fill; 200_000]).unwrap();
            let put = ["object", "put", "ns", &object, file.to_str().unwrap()];
            json(server, &put)["created"].as_bool().unwrap()
        };
        let (by_one, by_two) = std::thread::scope(|scope| {
            let (one, two) = (&one, &two);
            let other = scope.spawn(move || put(two, 2));
            (put(one, 1), other.join().unwrap())
        });
        assert!(by_one != by_two, "{n}: {by_one} {by_two}");
        for server in [&one, &two] {
            let get = ["object", "get", "ns", &object, "-"];
            let expected = if by_one { 1 } else { 2 };
            assert!(server.command(&get).run().bytes().all(|byte| byte == expected));
        }
    }
    // One is killed: the other goes on by itself, with maintenance too, and sees what was changed by either.
    let quick = ["maintenance", "set", "lease_ms=1500", "auto_repair_timeout_ms=2000"];
    one.command(&quick).arg("tour_interval_ms=1000").run();
    one.kill9();
    assert_eq!(two.command(&["object", "delete", "ns", "o0"]).run(), "deleted\n");
    disks[0].kill9();
    eventually("what was on a killed OSD is made anew by the other server", || {
        let safety = json(&two, &["safety"]);
        let buckets = safety["buckets"].as_array().unwrap();
        !buckets.is_empty() && buckets.iter().all(|bucket| bucket["survives_osds"] == 1)
    });
    one.restart();
    assert_eq!(json(&one, &["object", "list", "ns"]), json(&two, &["object", "list", "ns"]));
    assert_eq!(json(&one, &["object", "list", "ns"])["objects"].as_array().unwrap().len(), 4);
    assert!(one.command(&["object", "get", "ns", "o1", "-"]).run().len() == 200_000);
    assert!(one.terminate().success(), "{}", one.log_tail());
}
