use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use volumedriver_core::fault::Kind;
use volumedriver_core::units::{ByteCount, ClusterSize};

use super::field::{self, Change, Field, Legal, Preset};
use super::keys::KeySource;
use super::*;

const MIB: u64 = 1 << 20;

fn parse(text: &str) -> Result<Config> {
    Config::parse("vd.toml", text, Path::new("/data"), &Overrides::default())
}

/// The one message for a file that must be refused.
fn refusal(text: &str) -> String {
    let fault = parse(text).expect_err(text);
    assert_eq!(fault.kind, Kind::Invalid, "{text}");
    let message = fault.to_string();
    assert!(!message.contains('\n'), "{message:?} is more than one line");
    assert!(message.starts_with("vd.toml: "), "{message:?} does not begin with the file");
    message
}

#[test]
fn defaults_are_those_that_are_promised() {
    let config = parse("").unwrap();
    assert_eq!(config.node.io, IoEngine::Auto);
    assert_eq!((config.node.shards, config.node.service_threads), (1, 2));
    assert_eq!(config.nbd.listen, [Endpoint::Unix("/data/nbd.sock".into())]);
    assert_eq!(config.nbd.tls, TlsConfig::Off);
    assert_eq!((config.nbd.connections, config.nbd.inflight_requests), (1024, 1024));
    assert_eq!(config.nbd.inflight, ByteCount(64 * MIB));
    assert_eq!(config.nbd.handshake_timeout, Duration::from_secs(30));
    assert_eq!(config.metrics.listen, None);
    assert_eq!(config.buffer.directory, Path::new("/data/buffer"));
    assert_eq!(config.buffer.capacity, ByteCount(4096 * MIB));
    assert_eq!(config.buffer.segment, ByteCount(64 * MIB));
    assert_eq!(config.buffer.memory, ByteCount(256 * MIB));
    assert_eq!(config.buffer.batch, ByteCount(128 * 1024));
    assert_eq!(config.buffer.linger, Duration::from_millis(2));
    assert_eq!((config.cache.ram, config.cache.ssd), (ByteCount(256 * MIB), ByteCount(0)));
    assert_eq!(config.cache.directory, Path::new("/data/cache"));
    assert_eq!(config.vpool.backend, BackendUrl::Embedded("/data/backend".into()));
    assert_eq!(config.vpool.cluster_size, ClusterSize::DEFAULT);
    assert_eq!(
        config.vpool.settings,
        VdiskSettings {
            ack: AckLevel::Memory,
            flush: FlushLevel::Journal,
            readahead: ByteCount(512 * 1024),
            buffer_share_percent: 50,
            upload_max_delay: Duration::from_secs(30),
            upload_concurrency: 4,
            map_memory: ByteCount(64 * MIB),
            sco_size: ByteCount(16 * MIB),
            compression: Compression::None,
            encryption: Encryption::None,
            encryption_key: [].into(),
        }
    );
    assert!(config.entries.iter().all(|entry| entry.origin == Origin::Default));
}

#[test]
fn a_full_file_is_read() {
    let config = parse(
        r#"
        [node]
        io = "psync"
        shards_count = 1
        service_threads_count = 4
        [nbd]
        listen = ["unix:run/nbd.sock", "127.0.0.1:10809", "[::1]:0"]
        connections_count = 7
        inflight_requests_count = 8
        inflight_bytes = "32MiB"
        handshake_timeout_ms = 1500
        tls = { mode = "required", certificate = "c.pem", key = "/k.pem", client_ca = "ca.pem" }
        [metrics]
        listen = "localhost:9400"
        [buffer]
        directory = "/nvme/buffer"
        capacity_bytes = 1073741824
        segment_bytes = "32MiB"
        memory_bytes = "64M"
        batch_bytes = "1MiB"
        linger_ms = 0
        [cache]
        ram_bytes = 0
        ssd_bytes = "1G"
        directory = "ssd"
        [vpool]
        backend = "alba:unix:run/alba.sock"
        cluster_size_bytes = "64KiB"
        ack = "buffer"
        flush = "backend"
        readahead_bytes = 0
        buffer_share_percent = 100
        upload_max_delay_ms = 5000
        upload_concurrency_count = 2
        map_memory_bytes = "1MiB"
        [vdisk.db]
        sco_size_bytes = "4MiB"
        ack = "memory"
        "#,
    )
    .unwrap();
    assert_eq!(config.node.io, IoEngine::Psync);
    assert_eq!((config.node.shards, config.node.service_threads), (1, 4));
    assert_eq!(
        config.nbd.listen,
        [
            Endpoint::Unix("/data/run/nbd.sock".into()),
            Endpoint::Tcp { host: "127.0.0.1".into(), port: 10809 },
            Endpoint::Tcp { host: "[::1]".into(), port: 0 },
        ]
    );
    assert_eq!(
        config.nbd.tls,
        TlsConfig::Required(TlsFiles {
            certificate: "/data/c.pem".into(),
            key: "/k.pem".into(),
            client_ca: Some("/data/ca.pem".into()),
        })
    );
    assert_eq!(config.metrics.listen, Some("127.0.0.1:9400".parse().unwrap()));
    assert_eq!(config.buffer.capacity, ByteCount(1024 * MIB));
    assert_eq!(config.cache.ram, ByteCount(0));
    assert_eq!(config.cache.directory, Path::new("/data/ssd"));
    let endpoint = Endpoint::Unix("/data/run/alba.sock".into());
    assert_eq!(
        config.vpool.backend,
        BackendUrl::Alba(AlbaUrl { endpoint, prefix: String::new(), preset: None, tls: None })
    );
    assert_eq!(
        config.vpool.settings.sco_size,
        ByteCount(64 * MIB),
        "the default without embedding"
    );
    let db = config.settings_of("db");
    assert_eq!((db.sco_size, db.ack), (ByteCount(4 * MIB), AckLevel::Memory));
    assert_eq!(db.flush, FlushLevel::Backend, "what a vDisk does not set is its vPool's");
    assert_eq!(config.settings_of("other"), &config.vpool.settings);
}

/// A file with this one value, and what else it needs for the value to pass the checks of the whole.
fn with(field: &Field, value: &str) -> String {
    let partner = match (field.key, value) {
        ("capacity_bytes", "\"8TiB\"") => "segment_bytes = \"1GiB\"",
        ("capacity_bytes", _) => "segment_bytes = \"32MiB\"",
        ("memory_bytes", _) if field.section == "buffer" => "batch_bytes = \"64KiB\"",
        ("segment_bytes", _) => "capacity_bytes = \"30GiB\"",
        _ => "",
    };
    let elsewhere = match field.key {
        "buffer_share_percent" => "[buffer]\ncapacity_bytes = \"64GiB\"",
        _ => "",
    };
    format!("[{}]\n{partner}\n{} = {value}\n{elsewhere}", field.section, field.key)
}

fn shown(field: &Field, number: u64) -> String {
    match field.legal {
        Legal::Bytes(_) => format!("\"{}\"", size::exact(ByteCount(number))),
        _ => number.to_string(),
    }
}

#[test]
fn every_number_is_legal_from_its_minimum_to_its_maximum_and_not_beyond() {
    for field in field::ALL {
        let span = match &field.legal {
            Legal::Bytes(s) | Legal::Millis(s) | Legal::Count(s) | Legal::Percent(s) => *s,
            Legal::OneOf(_) | Legal::Text(_) | Legal::Texts(_) => continue,
        };
        for number in [span.min, span.max] {
            let text = with(field, &shown(field, number));
            assert!(parse(&text).is_ok(), "{text}: {}", parse(&text).unwrap_err());
        }
        let below = span.min.checked_sub(1).filter(|n| *n > 0 || !span.zero_is_off);
        for number in below.into_iter().chain([span.max + 1]) {
            let message = refusal(&with(field, &number.to_string()));
            for part in [field.section, field.key, &number.to_string(), &field.legal.to_string()] {
                assert!(message.contains(part), "{message:?} does not say {part:?}");
            }
        }
        for wrong in ["-1", "1.5", "\"many\"", "true", "[1]", "{ a = 1 }"] {
            let message = refusal(&with(field, wrong));
            assert!(message.contains(field.key) && message.contains(&field.legal.to_string()));
        }
    }
}

#[test]
fn every_choice_and_text_is_refused_by_name() {
    for field in field::ALL {
        let wrong = match &field.legal {
            Legal::OneOf(names) => {
                for name in *names {
                    let tls = "certificate = \"c\"\nkey = \"k\"";
                    let more = match (field.section, field.key) {
                        ("nbd.tls", _) => tls,
                        (_, "encryption") => "encryption_key = \"env:KEY\"",
                        _ => "",
                    };
                    let text = format!("[{}]\n{} = {name:?}\n{more}", field.section, field.key);
                    assert!(parse(&text).is_ok(), "{text}");
                }
                vec!["\"other\"", "1"]
            }
            Legal::Text(_) => vec!["1", "\"\""],
            Legal::Texts(_) => vec!["1", "[1]", "[]", "\"unix:x\"", "[\"nowhere\"]", "[\"unix:\"]"],
            Legal::Bytes(_) | Legal::Millis(_) | Legal::Count(_) | Legal::Percent(_) => continue,
        };
        for wrong in wrong {
            let message = refusal(&format!("[{}]\n{} = {wrong}", field.section, field.key));
            for part in [field.section, field.key, wrong, &field.legal.to_string()] {
                assert!(message.contains(part), "{message:?} does not say {part:?}");
            }
        }
    }
}

#[test]
fn coding_is_of_the_vpool_or_the_vdisk() {
    let text = "[vpool]\ncompression = \"zstd\"\nencryption = \"aes-256-gcm\"\n\
                encryption_key = [\"file:a.key\", \"env:OLD\"]\n\
                [vdisk.a]\ncompression = \"lz4\"\nencryption_key = \"command:cat /k | head -1\"\n\
                [vdisk.b]\ncompression = \"zstd:19\"\nencryption = \"none\"";
    let config = parse(text).unwrap();
    let vpool = &config.vpool.settings;
    assert_eq!(
        (vpool.compression, vpool.encryption),
        (Compression::Zstd(1), Encryption::Aes256Gcm)
    );
    let sources = [KeySource::File("/data/a.key".into()), KeySource::Env("OLD".into())];
    assert_eq!(*vpool.encryption_key, sources);
    let (a, b) = (config.settings_of("a"), config.settings_of("b"));
    assert_eq!((a.compression, a.encryption), (Compression::Lz4, Encryption::Aes256Gcm));
    assert_eq!(*a.encryption_key, [KeySource::Command("cat /k | head -1".into())]);
    assert_eq!((b.compression, b.encryption), (Compression::Zstd(19), Encryption::None));
    assert_eq!(b.encryption_key, vpool.encryption_key);
    let entry = |section: &str, key| {
        let found = config.entries.iter().find(|e| e.section == section && e.field.key == key);
        found.map(|entry| entry.value.clone())
    };
    let shown = "[\"file:/data/a.key\", \"env:OLD\"]";
    assert_eq!(entry("vpool", "encryption_key").as_deref(), Some(shown));
    assert_eq!(entry("vdisk.b", "compression").as_deref(), Some("\"zstd:19\""));
    assert_eq!(entry("vdisk.b", "encryption_key"), None);
    for (key, wrong) in [
        ("compression", "\"zstd:0\""),
        ("compression", "\"zstd:20\""),
        ("compression", "\"zstd:+1\""),
        ("compression", "\"gzip\""),
        ("encryption", "\"aes\""),
        ("encryption_key", "\"/k\""),
        ("encryption_key", "\"file:\""),
        ("encryption_key", "\"env:A=B\""),
        ("encryption_key", "[]"),
        ("encryption_key", "[\"env:A\", 1]"),
    ] {
        let message = refusal(&format!("[vdisk.a]\n{key} = {wrong}"));
        assert!(message.contains("[vdisk.a]") && message.contains(wrong), "{message}");
    }
    let message = refusal("[vpool]\nencryption = \"aes-256-gcm\"");
    assert!(message.contains("encryption = aes-256-gcm") && message.contains("encryption_key"));
}

#[test]
fn unknown_keys_and_broken_files_are_refused_with_their_line() {
    let message = refusal("[buffer]\n\ncapcity_bytes = 1\n");
    assert!(message.contains("line 3") && message.contains("capcity_bytes"), "{message}");
    assert!(message.contains("capacity_bytes"), "{message}: says what would be known");
    for (text, part) in [
        ("[bufer]\n", "bufer"),
        ("x = 1\n", "x"),
        ("[vdisk.a]\nbackend = \"embedded:x\"\n", "backend"),
        ("[vdisk.a]\ncluster_size_bytes = 4096\n", "cluster_size_bytes"),
        ("[buffer\n", "line 1"),
        ("[buffer]\ncapacity_bytes = \n", "line 2"),
        ("[buffer]\nlinger_ms = 1\nlinger_ms = 2\n", "line 3"),
        ("buffer = 3\n", "line 1"),
    ] {
        let message = refusal(text);
        assert!(message.contains(part), "{text:?}: {message}");
    }
}

#[test]
fn values_must_go_together() {
    for (text, parts) in [
        (
            "[buffer]\ncapacity_bytes = \"128MiB\"",
            ["segment_bytes", "64MiB", "a quarter of capacity_bytes (128MiB)"],
        ),
        (
            "[buffer]\ncapacity_bytes = \"1TiB\"\nsegment_bytes = \"4MiB\"",
            ["segment_bytes", "4MiB", "10000 segments"],
        ),
        (
            "[buffer]\nsegment_bytes = \"4MiB\"\nbatch_bytes = \"4MiB\"",
            ["batch_bytes", "4MiB", "half of segment_bytes (4MiB)"],
        ),
        (
            "[buffer]\nmemory_bytes = \"16MiB\"\nbatch_bytes = \"8MiB\"",
            ["batch_bytes", "8MiB", "a quarter of memory_bytes (16MiB)"],
        ),
        (
            "[vpool]\nsco_size_bytes = \"128MiB\"\nbuffer_share_percent = 5",
            ["[vpool] sco_size_bytes", "128MiB", "5 % of 4GiB"],
        ),
        (
            "[vdisk.a]\nbuffer_share_percent = 1\nsco_size_bytes = \"64MiB\"",
            ["[vdisk.a] sco_size_bytes", "64MiB", "1 % of 4GiB"],
        ),
        ("[nbd.tls]\nmode = \"required\"", ["[nbd.tls] certificate", "(none)", "needed"]),
        (
            "[nbd.tls]\nmode = \"optional\"\ncertificate = \"c\"",
            ["[nbd.tls] key", "(none)", "needed"],
        ),
        ("[nbd]\nlisten = [\"unix:a\", \"unix:a\"]", ["[nbd] listen", "/data/a", "listed twice"]),
        ("[vpool]\ncluster_size_bytes = 12288", ["cluster_size_bytes", "12288", "power of two"]),
        ("[vdisk.\"a/b\"]\nack = \"buffer\"", ["vdisk", "a/b", "cannot be a vDisk's name"]),
    ] {
        let message = refusal(text);
        for part in parts {
            assert!(message.contains(part), "{text:?}: {message:?} does not say {part:?}");
        }
    }
}

#[test]
fn the_command_line_takes_the_place_of_the_file() {
    let overrides = Overrides {
        nbd: vec!["unix:here.sock".parse().unwrap()],
        backend: Some("embedded:there".parse().unwrap()),
    };
    let text = "[nbd]\nlisten = [\"127.0.0.1:1\"]\n[vpool]\nbackend = \"alba:h:1\"";
    let config = Config::parse("f", text, Path::new("/data"), &overrides).unwrap();
    assert_eq!(config.nbd.listen, overrides.nbd);
    assert_eq!(Some(&config.vpool.backend), overrides.backend.as_ref());
    assert_eq!(config.vpool.settings.sco_size, ByteCount(16 * MIB), "of the backend in effect");
    let origin = |key| config.entries.iter().find(|e| e.field.key == key).unwrap().origin;
    assert_eq!(origin("backend"), Origin::CommandLine);
    // What is overridden is checked all the same.
    let wrong = "[vpool]\nbackend = \"nowhere\"";
    assert!(Config::parse("f", wrong, Path::new("/data"), &overrides).is_err());
}

#[test]
fn files_that_cannot_be_read_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: &Path| {
        Config::load(Some(path), dir.path(), &Overrides::default()).unwrap_err().to_string()
    };
    let missing = dir.path().join("missing.toml");
    assert!(load(&missing).starts_with(&format!("{}: ", missing.display())));
    let large = dir.path().join("large.toml");
    std::fs::write(&large, "# ".repeat(1 << 19) + "#").unwrap();
    assert!(load(&large).contains("longer than"));
    let binary = dir.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(load(&binary).contains("binary.toml"));
}

#[test]
fn a_reload_applies_what_is_live_and_names_the_rest() {
    let old = parse("[vpool]\nack = \"memory\"\n[vdisk.a]\nflush = \"backend\"").unwrap();
    let new = "[node]\nservice_threads_count = 3\n[vpool]\nack = \"buffer\"\n\
               backend = \"embedded:other\"\n[vdisk.b]\nreadahead_bytes = 0";
    let reloaded = old.reload(parse(new).unwrap()).unwrap();
    let names = |list: &[ChangedEntry]| {
        list.iter().map(|c| format!("{}.{}: {} -> {}", c.section, c.key, c.old, c.new)).collect()
    };
    let applied: Vec<String> = names(&reloaded.applied);
    assert_eq!(
        applied,
        [
            "vpool.ack: \"memory\" -> \"buffer\"",
            "vdisk.b.readahead_bytes:  -> \"0\"",
            "vdisk.a.flush: \"backend\" -> ",
        ]
    );
    let needs_restart: Vec<String> = names(&reloaded.needs_restart);
    assert_eq!(
        needs_restart,
        [
            "node.service_threads_count: 2 -> 3",
            "vpool.backend: \"embedded:/data/backend\" -> \"embedded:/data/other\"",
        ]
    );
    let config = reloaded.config;
    assert_eq!(config.vpool.settings.ack, AckLevel::Buffer);
    assert_eq!(config.settings_of("b").readahead, ByteCount(0));
    assert_eq!(config.settings_of("a"), &config.vpool.settings);
    assert_eq!(config.node.service_threads, 2, "as it was");
    assert_eq!(config.vpool.backend, old.vpool.backend, "as it was");
    // What needs a restart is still named by the next reload, what was applied is not.
    let again = config.reload(parse(new).unwrap()).unwrap();
    assert!(again.applied.is_empty());
    assert_eq!(again.needs_restart.len(), 2);
}

#[test]
fn a_reload_that_only_a_restart_could_fit_is_refused() {
    let old = parse("[buffer]\ncapacity_bytes = \"128MiB\"\nsegment_bytes = \"32MiB\"").unwrap();
    let new = parse("[vpool]\nsco_size_bytes = \"128MiB\"").unwrap();
    let message = old.reload(new).unwrap_err().to_string();
    assert!(
        message.contains("sco_size_bytes = 128MiB") && message.contains("restart"),
        "{message}"
    );
}

#[test]
fn the_cache_has_a_disk_by_default_where_the_backend_is_far() {
    let ssd = |text: &str| parse(text).unwrap().cache.ssd;
    let alba = "[vpool]\nbackend = \"alba:host:9000\"\n";
    assert_eq!(ssd(""), ByteCount(0));
    assert_eq!(ssd("[vpool]\nbackend = \"embedded:objects\""), ByteCount(0));
    assert_eq!(ssd(alba), ByteCount(4 << 30));
    assert_eq!(ssd(&format!("{alba}[cache]\nssd_bytes = 0")), ByteCount(0));
    let backend = Some("alba:host:9000".parse().unwrap());
    let overrides = Overrides { backend, ..Overrides::default() };
    let config = Config::parse("x", "", Path::new("/data"), &overrides).unwrap();
    assert_eq!(config.cache.ssd, ByteCount(4 << 30));
    for wrong in ["1MiB", "17TiB"] {
        let message = parse(&format!("[cache]\nssd_bytes = \"{wrong}\"")).unwrap_err().to_string();
        assert!(message.contains(wrong) && message.contains("64MiB"), "{message}");
    }
}

#[test]
fn places_that_are_for_something_else_are_refused() {
    let embedded = "[vpool]\nbackend = \"embedded:objects/all\"\n";
    let with = |section: &str, directory: &str| {
        parse(&format!("{embedded}[{section}]\ndirectory = \"{directory}\""))
    };
    for section in ["buffer", "cache"] {
        for wrong in
            [".", "/data", "x/..", "pages", "pages/x", "objects", "objects/all", "objects/all/x"]
        {
            let message = with(section, wrong).unwrap_err().to_string();
            assert!(message.contains(&format!("[{section}] directory")), "{wrong}: {message}");
        }
        for right in ["ssd", "objects2", "/mnt/x", "/", "/dat", "objects/other"] {
            with(section, right).unwrap();
        }
    }
    // Both in one is fine: their files have names of their own.
    parse("[buffer]\ndirectory = \"/nvme\"\n[cache]\ndirectory = \"/nvme\"").unwrap();
}

#[test]
fn every_field_is_described_once_and_recorded() {
    let config = parse("").unwrap();
    for (n, field) in field::ALL.iter().enumerate() {
        let same = |other: &&&Field| other.section == field.section && other.key == field.key;
        assert_eq!(field::ALL.iter().filter(same).count(), 1, "{} is described twice", field.key);
        assert!(field.meaning.ends_with('.') && field.meaning.len() > 10, "{n}: {}", field.key);
        let suffix = match field.legal {
            Legal::Bytes(_) => "_bytes",
            Legal::Millis(_) => "_ms",
            Legal::Count(_) => "_count",
            Legal::Percent(_) => "_percent",
            Legal::OneOf(_) | Legal::Text(_) | Legal::Texts(_) => "",
        };
        assert!(field.key.ends_with(suffix), "{} has no unit", field.key);
        let entry =
            config.entries.iter().find(|e| e.field.key == field.key && e.section == field.section);
        match (&field.default, entry) {
            (Preset::Number(_), Some(entry)) => {
                assert_eq!(entry.value.trim_matches('"'), field.default_text(), "{}", field.key);
            }
            (Preset::Text(text), Some(entry)) => assert_eq!(entry.value.trim_matches('"'), *text),
            (Preset::Derived(_), _) => {}
            (_, None) => panic!("{} has a default that is not recorded", field.key),
        }
    }
    let live = field::ALL.iter().filter(|field| field.change == Change::Live);
    assert!(live.clone().all(|field| field.section == "vpool"), "what a reload takes over");
    assert_eq!(live.count(), 12);
}

#[test]
fn vdisk_names_are_plain() {
    for name in ["a", "disk-1", "vm.example_2", "9", &"x".repeat(128)] {
        assert!(check_vdisk_name(name).is_ok(), "{name}");
    }
    for name in ["", "-a", ".a", "a b", "a/b", "ä", "a\n", "a\0", &"x".repeat(129)] {
        let message = check_vdisk_name(name).unwrap_err().to_string();
        assert!(message.contains(&format!("{name:?}")), "{message}");
    }
}

#[test]
fn endpoints_read_back() {
    let long = format!("unix:/{}", "x".repeat(MAX_SOCKET_PATH_BYTES));
    for text in ["unix:/a b", "unix:rel", "host:1", "127.0.0.1:65535", "[::1]:10809", "h:0"] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
    }
    let wrong =
        ["", "unix:", "host", ":1", "host:", "host:65536", "host:-1", "::1:1", "a b:1", &long];
    for text in wrong {
        assert!(text.parse::<Endpoint>().is_err(), "{text}");
    }
}

mod urls;

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\[(buffer|nbd|vpool|vdisk\\.a)\\]\n)?[a-z_]{0,20} ?= ?.{0,20}\n") {
        let _ = parse(&text);
    }

    #[test]
    fn sizes_never_panic_and_read_back(text in "\\PC{0,24}", bytes: u64) {
        let _ = size::parse(&text);
        prop_assert_eq!(size::parse(&size::exact(ByteCount(bytes))).unwrap(), ByteCount(bytes));
        prop_assert!(size::human(ByteCount(bytes)).len() <= 12);
    }
}
