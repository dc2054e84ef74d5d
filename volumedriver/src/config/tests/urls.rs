//! URLs of stores and registries.

use super::*;

fn backend(text: &str) -> BackendUrl {
    text.parse().unwrap_or_else(|fault| panic!("{text}: {fault}"))
}

fn s3(text: &str) -> S3Url {
    match backend(text) {
        BackendUrl::S3(url) => url,
        BackendUrl::Embedded(_) | BackendUrl::Alba(_) => panic!("{text} is no bucket"),
    }
}

/// Every text must be refused, and the message must hold what stands beside it.
fn refused(cases: &[(&str, &str)]) {
    for (text, why) in cases {
        let fault = text.parse::<BackendUrl>().expect_err(text);
        assert_eq!(fault.kind, Kind::Invalid);
        assert!(fault.message.contains(why), "{text}: {fault}");
    }
}

#[test]
fn what_is_printed_reads_as_the_same() {
    for text in [
        "embedded:/x",
        "embedded:x",
        "alba:host:9000",
        "alba:unix:/run/a",
        "alba:unix:/run/a?b",
        "alba://h:1/pool-1",
        "alba://h:1/?preset=fast",
        "alba://h:1/p?preset=fast-1.2_x",
        "alba://h:1/p?preset=a&certificate=c.pem&key=/etc/k.pem&ca=a.pem",
        "alba://h:1/?certificate=c%20d.pem&key=k&ca=a",
        "s3://bucket/",
        "s3://my.bucket/pool/a",
        "s3://bucket/p?endpoint=https://h:9000&region=eu-1&path_style=false&checksum=when_supported&ca=/a b.pem&profile=x",
        "s3://bucket/p?endpoint=http://[::1]:80&multipart_mib=8",
        "s3://bucket/p?multipart_mib=0",
        "s3://bucket/p?path_style=true&checksum=when_required",
    ] {
        assert_eq!(backend(text).to_string(), text.replace("a b.pem", "a%20b.pem"));
        assert_eq!(backend(&backend(text).to_string()), backend(text));
    }
    for (text, same) in [
        ("alba://h:1", "alba:h:1"),
        ("alba://h:1/", "alba:h:1"),
        ("alba+unix:/a", "alba:unix:/a"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3://bucket/a?path_style=true&endpoint=http://h/", "s3://bucket/a?endpoint=http://h"),
        (
            "s3://bucket/a?endpoint=http%3A%2F%2Fh&multipart_mib=96",
            "s3://bucket/a?endpoint=http://h",
        ),
    ] {
        assert_eq!(backend(text).to_string(), same);
    }
}

#[test]
fn an_endpoint_of_ones_own_changes_the_defaults() {
    let aws = s3("s3://bucket/p");
    assert_eq!((aws.addressing, aws.checksum), (Addressing::Host, ChecksumMode::WhenSupported));
    let own = s3("s3://bucket/p?endpoint=http://h:9000");
    assert_eq!((own.addressing, own.checksum), (Addressing::Path, ChecksumMode::WhenRequired));
    assert_eq!(own.multipart_above, Some(96 << 20));
    let ca = s3("s3://bucket/p?ca=ca.pem").within(Path::new("/data")).ca;
    assert_eq!(ca.as_deref(), Some(Path::new("/data/ca.pem")));
}

#[test]
fn other_urls_are_refused_with_what_is_legal() {
    refused(&[
        ("", "s3:"),
        ("/x", "embedded:"),
        ("embedded", "embedded:"),
        ("embedded:", "empty"),
        ("alba:", "port"),
        ("alba:host", "port"),
        ("alba://", "port"),
        ("alba://h:1/a/b", "prefix"),
        ("alba://h:1/a?b", "preset"),
        ("alba://h:1/a?preset=", "name of a preset"),
        ("alba://h:1/a?key=k&ca=c", "go together"),
        ("alba://h:1/a?certificate=&key=k&ca=c", "PEM files"),
        ("alba://h:1/a?preset=a/b", "name of a preset"),
        ("alba+unix:", "empty"),
        ("s3:bucket", "s3://BUCKET"),
        ("s3://", "bucket"),
        ("s3://ab", "3 to 63"),
        ("s3://-abc", "bucket"),
        ("s3://user:secret@bucket/p", "bucket"),
        ("s3://bucket//p", "prefix"),
        ("s3://bucket/a/../b", "prefix"),
        ("s3://bucket/p?endpoint=h:9000", "http://"),
        ("s3://bucket/p?endpoint=http://", "http://HOST"),
        ("s3://bucket/p?endpoint=http://h:x", "http://HOST"),
        ("s3://bucket/p?endpoint=http://h:1/path", "http://HOST"),
        ("s3://bucket/p?endpoint=http://key:secret@h", "no credentials"),
        ("s3://bucket/p?path_style=yes", "true or false"),
        ("s3://bucket/p?checksum=md5", "when_required"),
        ("s3://bucket/p?multipart_mib=5121", "0 to 5120"),
        ("s3://bucket/p?multipart_mib=-1", "0 to 5120"),
        ("s3://bucket/p?region=", "1 to 128"),
        ("s3://bucket/p?ca=", "PEM"),
        ("s3://bucket/p?ca=%0a", "%XX"),
        ("s3://bucket/p?ca=%g0", "%XX"),
        ("s3://bucket/p?secret_key=x", "endpoint, region, path_style"),
        ("s3://bucket/p?region=a&region=b", "twice"),
    ]);
}

#[test]
fn registries_read_back_or_are_refused() {
    for text in [
        "etcd://h:2379/pool",
        "etcd://a:1,b:2,[::1]:3/x/y",
        "etcd://h:1/p?ca=/ca.pem",
        "etcd://h:1/p?ca=/ca.pem&certificate=/c.pem&key=/k.pem",
    ] {
        assert_eq!(text.parse::<RegistryUrl>().unwrap().to_string(), text);
    }
    let near = "etcd://h:1/p?ca=ca.pem".parse::<RegistryUrl>().unwrap().within(Path::new("/d"));
    assert_eq!(near.to_string(), "etcd://h:1/p?ca=/d/ca.pem");
    for text in [
        "",
        "http://h:1/p",
        "etcd://h/p",
        "etcd://h:0/p",
        "etcd://h:1",
        "etcd://h:1/",
        "etcd://h:1,/p",
        "etcd://unix:/a/p",
        "etcd://h:1/p?x=1",
        "etcd://h:1/p?key=/k",
        "etcd://h:1/p?certificate=/c&key=/k",
    ] {
        assert_eq!(text.parse::<RegistryUrl>().expect_err(text).kind, Kind::Invalid);
    }
}

#[test]
fn the_file_names_store_keys_and_registry() {
    let config = parse(
        "[vpool]\nbackend = \"s3://bucket/p?endpoint=http://h:1\"\ns3_credentials = \"keys\"\n\
         [registry]\nurl = \"etcd://h:1/p\"\n",
    )
    .unwrap();
    assert_eq!(config.vpool.s3_credentials.as_deref(), Some(Path::new("/data/keys")));
    assert_eq!(config.registry.unwrap().to_string(), "etcd://h:1/p");
    assert_eq!(config.vpool.settings.sco_size, ByteCount(64 * MIB));
    assert_eq!(config.cache.ssd, ByteCount(4096 * MIB), "read cache on disk");
    let message = refusal("[vpool]\nbackend = \"s3://bucket/p?key=1\"\n");
    assert!(message.contains("endpoint, region"), "{message}");
    refusal("[registry]\nurl = \"etcd://h\"\n");
}

proptest! {
    #[test]
    fn no_text_makes_a_url_panic(text in "(s3://|alba://|etcd://|)\\PC{0,40}") {
        if let Ok(url) = text.parse::<BackendUrl>() {
            prop_assert_eq!(url.to_string().parse::<BackendUrl>().unwrap(), url);
        }
        let _ = text.parse::<RegistryUrl>();
    }
}
