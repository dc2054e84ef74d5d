use std::time::Duration;

use volumedriver_core::units::ByteCount;

use super::*;

/// The value of the sample whose name and labels are these.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{sample} is not in\n{text}")).parse().unwrap()
}

#[test]
fn what_shards_count_is_summed_at_the_scrape() {
    let metrics = Metrics::new();
    for _ in 0..2 {
        let shard = metrics.open_shard();
        shard.request(RequestKind::Write, 4096);
        shard.request(RequestKind::Write, 512);
        shard.request_failed(RequestKind::Read);
        shard.cache(CacheCounts {
            ram: TierCounts { hits: 3, capacity_bytes: 64, ..TierCounts::default() },
            ssd: TierCounts { misses: 2, used_bytes: 9, ..TierCounts::default() },
            ssd_mismatches: 5,
            ssd_written_bytes: 4096,
            ..CacheCounts::default()
        });
        shard.journal(1, 8192);
        shard.stage(Stage::JournalCommit, Duration::from_micros(80));
        shard.stage(Stage::JournalCommit, Duration::from_secs(60));
    }
    let text = metrics.encode().unwrap();
    for (sample, expected) in [
        ("volumedriver_requests_total{kind=\"write\"}", 4.0),
        ("volumedriver_requests_total{kind=\"read\"}", 2.0),
        ("volumedriver_request_errors_total{kind=\"read\"}", 2.0),
        ("volumedriver_request_errors_total{kind=\"write\"}", 0.0),
        ("volumedriver_request_bytes_total{kind=\"write\"}", 9216.0),
        ("volumedriver_cache_hits_total{tier=\"ram\"}", 6.0),
        ("volumedriver_cache_misses_total{tier=\"ssd\"}", 4.0),
        ("volumedriver_cache_inserts_total{tier=\"ssd\"}", 0.0),
        ("volumedriver_cache_used_bytes{tier=\"ssd\"}", 18.0),
        ("volumedriver_cache_capacity_bytes{tier=\"ram\"}", 128.0),
        ("volumedriver_cache_ssd_mismatches_total", 10.0),
        ("volumedriver_cache_ssd_written_bytes_total", 8192.0),
        ("volumedriver_cache_ssd_offline", 0.0),
        ("volumedriver_journal_records_total", 2.0),
        ("volumedriver_journal_bytes_total", 16384.0),
        ("volumedriver_stage_seconds_count{way=\"write\",stage=\"journal_commit\"}", 4.0),
        ("volumedriver_stage_seconds_sum{way=\"write\",stage=\"journal_commit\"}", 120.00016),
        ("volumedriver_stage_seconds_count{way=\"read\",stage=\"verify\"}", 0.0),
    ] {
        assert_eq!(value(&text, sample), expected, "{sample}");
    }
    let bucket = |le: &str| {
        let labels = format!("le=\"{le}\",way=\"write\",stage=\"journal_commit\"");
        value(&text, &format!("volumedriver_stage_seconds_bucket{{{labels}}}"))
    };
    assert_eq!(
        (bucket("0.00005"), bucket("0.0001"), bucket("10.0"), bucket("+Inf")),
        (0.0, 2.0, 2.0, 4.0)
    );
}

#[test]
fn a_latency_on_a_bound_is_below_it() {
    let metrics = Metrics::new();
    let shard = metrics.open_shard();
    shard.stage(Stage::ReadMemory, Duration::ZERO);
    shard.stage(Stage::ReadMemory, Duration::from_micros(10));
    shard.stage(Stage::ReadMemory, Duration::from_nanos(10_001));
    let text = metrics.encode().unwrap();
    let bucket = |le: &str| {
        value(
            &text,
            &format!(
                "volumedriver_stage_seconds_bucket{{le=\"{le}\",way=\"read\",stage=\"memory\"}}"
            ),
        )
    };
    assert_eq!((bucket("0.00001"), bucket("0.000025")), (2.0, 3.0));
}

#[test]
fn volumes_come_and_go() {
    let metrics = Metrics::new();
    let disk = metrics.volume("disk");
    disk.set_backlog(ByteCount(5));
    disk.set_buffered(ByteCount(7));
    disk.set_state("running");
    disk.set_lag(Some(Duration::from_secs(3)));
    let text = metrics.encode().unwrap();
    assert_eq!(value(&text, "volumedriver_volume_backlog_bytes{volume=\"disk\"}"), 5.0);
    assert_eq!(value(&text, "volumedriver_volume_buffered_bytes{volume=\"disk\"}"), 7.0);
    assert_eq!(value(&text, "volumedriver_volume_state{volume=\"disk\",state=\"running\"}"), 1.0);
    let lag = |metrics: &Metrics| {
        value(&metrics.encode().unwrap(), "volumedriver_volume_upload_lag_seconds{volume=\"disk\"}")
    };
    let first = lag(&metrics);
    assert!((3.0..60.0).contains(&first), "{first}");
    std::thread::sleep(Duration::from_millis(5));
    assert!(lag(&metrics) > first, "it goes on ageing");
    metrics.volume("disk").set_lag(None);
    assert_eq!(lag(&metrics), 0.0);
    metrics.forget_volume("disk");
    assert!(!metrics.encode().unwrap().contains("volume=\"disk\""));
}

#[test]
fn one_request_in_many_is_measured() {
    let shard = ShardMetrics::detached();
    let sampled: Vec<bool> = (0..2 * SAMPLE_EVERY + 1).map(|_| shard.clone().sample()).collect();
    let at: Vec<usize> = (0..sampled.len()).filter(|n| sampled[*n]).collect();
    assert_eq!(at, [0, SAMPLE_EVERY as usize, 2 * SAMPLE_EVERY as usize]);
}

#[test]
fn backend_calls_count_by_verb_and_outcome() {
    let metrics = Metrics::new();
    let store = metrics.store.clone();
    store.observe(StoreVerb::Put, Outcome::Done, Duration::from_millis(3), 100);
    store.observe(StoreVerb::Put, Outcome::Failed, Duration::from_millis(3), 100);
    store.observe(StoreVerb::Get, Outcome::Done, Duration::from_millis(3), 7);
    metrics.nbd.connections.inc();
    metrics.nbd.opened.inc();
    metrics.buffer_used.set(12);
    let text = metrics.encode().unwrap();
    for (sample, expected) in [
        ("volumedriver_store_put_bytes_total", 100.0),
        ("volumedriver_store_get_bytes_total", 7.0),
        ("volumedriver_store_request_seconds_count{verb=\"put\",outcome=\"failed\"}", 1.0),
        ("volumedriver_nbd_connections", 1.0),
        ("volumedriver_nbd_connections_opened_total", 1.0),
        ("volumedriver_buffer_used_bytes", 12.0),
    ] {
        assert_eq!(value(&text, sample), expected, "{sample}");
    }
    assert!(text.ends_with("# EOF\n"));
}
