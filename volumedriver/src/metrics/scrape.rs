//! Turns the shards' counters and the volumes' gauges into metric families at scrape time.

use std::fmt::Error;
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::shard::{
    BOUNDS_NANOS, CacheCounts, CacheTier, RequestKind, Stage, StageTotals, TierCounts, Totals,
};
use super::{Shared, VolumeGauges};

#[derive(Debug)]
pub struct SharedCollector(pub Arc<Shared>);

impl Collector for SharedCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let totals = {
            let shards = self.0.shards.lock().unwrap_or_else(PoisonError::into_inner);
            Totals::of(shards.iter())
        };
        encode_requests(&mut encoder, &totals)?;
        encode_stages(&mut encoder, &totals)?;
        encode_cache(&mut encoder, &totals)?;
        encode_journal(&mut encoder, &totals)?;
        let volumes: Vec<(String, Arc<VolumeGauges>)> = {
            let volumes = self.0.volumes.lock().unwrap_or_else(PoisonError::into_inner);
            volumes.iter().map(|(name, gauges)| (name.clone(), gauges.clone())).collect()
        };
        encode_volumes(&mut encoder, &volumes)
    }
}

fn counter(metric: &mut MetricEncoder<'_>, value: u64) -> Result<(), Error> {
    metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

fn encode_requests(encoder: &mut DescriptorEncoder<'_>, totals: &Totals) -> Result<(), Error> {
    let families: [(&str, &str, Option<&Unit>, &[u64]); 3] = [
        ("requests", "Requests of clients", None, &totals.requests),
        ("request_errors", "Requests answered with an error", None, &totals.errors),
        ("request", "Data moved for clients", Some(&Unit::Bytes), &totals.bytes),
    ];
    for (name, help, unit, values) in families {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (kind, value) in RequestKind::ALL.iter().zip(values) {
            let labels = [("kind", kind.label())];
            counter(&mut family.encode_family(&labels)?, *value)?;
        }
    }
    Ok(())
}

fn encode_stages(encoder: &mut DescriptorEncoder<'_>, totals: &Totals) -> Result<(), Error> {
    let help = "Time per stage of the way of a write and a read, of a sample of the requests";
    let mut family =
        encoder.encode_descriptor("stage", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (stage, latencies) in Stage::ALL.iter().zip(&totals.stages) {
        let (way, name) = stage.labels();
        let labels = [("way", way), ("stage", name)];
        encode_latencies(&mut family.encode_family(&labels)?, latencies)?;
    }
    Ok(())
}

fn encode_latencies(metric: &mut MetricEncoder<'_>, latencies: &StageTotals) -> Result<(), Error> {
    let bounds = BOUNDS_NANOS.iter().map(|nanos| *nanos as f64 / 1e9).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(latencies.buckets).collect();
    let count = latencies.buckets.iter().sum();
    metric.encode_histogram::<NoLabelSet>(latencies.nanos as f64 / 1e9, count, &buckets, None)
}

fn encode_cache(encoder: &mut DescriptorEncoder<'_>, totals: &Totals) -> Result<(), Error> {
    encode_tiers(encoder, &totals.cache)?;
    let CacheCounts { ssd_mismatches, ssd_dropped, ssd_kept, ssd_written_bytes, .. } = totals.cache;
    let counters = [
        (
            "cache_ssd_mismatches",
            "Damaged clusters found on the cache's disk",
            None,
            ssd_mismatches,
        ),
        ("cache_ssd_dropped", "Clusters the cache's disk was too busy to take", None, ssd_dropped),
        ("cache_ssd_kept", "Clusters kept when their region was taken back", None, ssd_kept),
        ("cache_ssd_written", "Written to the cache's disk", Some(&Unit::Bytes), ssd_written_bytes),
    ];
    for (name, help, unit, value) in counters {
        let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        counter(&mut metric, value)?;
    }
    let help = "1 while the cache's disk is out of service";
    let mut metric =
        encoder.encode_descriptor("cache_ssd_offline", help, None, MetricType::Gauge)?;
    metric.encode_gauge(&totals.cache.ssd_offline)
}

fn encode_tiers(encoder: &mut DescriptorEncoder<'_>, counts: &CacheCounts) -> Result<(), Error> {
    type Look = fn(TierCounts) -> u64;
    let counters: [(&str, &str, Look); 3] = [
        ("cache_hits", "Clusters found in the read cache", |tier| tier.hits),
        ("cache_misses", "Clusters not found in the read cache", |tier| tier.misses),
        ("cache_inserts", "Clusters taken into the read cache", |tier| tier.inserts),
    ];
    for (name, help, look) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for tier in CacheTier::ALL {
            let labels = [("tier", tier.label())];
            counter(&mut family.encode_family(&labels)?, look(counts.tier(tier)))?;
        }
    }
    let gauges: [(&str, &str, Look); 2] = [
        ("cache_used", "Held in the read cache", |tier| tier.used_bytes),
        ("cache_capacity", "What the read cache can hold", |tier| tier.capacity_bytes),
    ];
    for (name, help, look) in gauges {
        let mut family =
            encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
        for tier in CacheTier::ALL {
            let labels = [("tier", tier.label())];
            family.encode_family(&labels)?.encode_gauge(&look(counts.tier(tier)))?;
        }
    }
    Ok(())
}

fn encode_journal(encoder: &mut DescriptorEncoder<'_>, totals: &Totals) -> Result<(), Error> {
    let help = "Journal records written";
    let mut metric =
        encoder.encode_descriptor("journal_records", help, None, MetricType::Counter)?;
    counter(&mut metric, totals.journal_records)?;
    let help = "Journal written, headers included";
    let mut metric =
        encoder.encode_descriptor("journal", help, Some(&Unit::Bytes), MetricType::Counter)?;
    counter(&mut metric, totals.journal_bytes)
}

type Volumes = [(String, Arc<VolumeGauges>)];

fn encode_volumes(encoder: &mut DescriptorEncoder<'_>, volumes: &Volumes) -> Result<(), Error> {
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let backlog = |gauges: &VolumeGauges| gauges.backlog.load(relaxed) as f64;
    let buffered = |gauges: &VolumeGauges| gauges.buffered.load(relaxed) as f64;
    let lag = |gauges: &VolumeGauges| gauges.lag().as_secs_f64();
    gauge(encoder, ("volume_backlog", "Not yet on the backend", Unit::Bytes), volumes, backlog)?;
    gauge(
        encoder,
        ("volume_buffered", "Held in the write buffer", Unit::Bytes),
        volumes,
        buffered,
    )?;
    gauge(
        encoder,
        ("volume_upload_lag", "Age of the oldest not on the backend", Unit::Seconds),
        volumes,
        lag,
    )?;
    let data = |gauges: &VolumeGauges| gauges.uploaded_data.load(relaxed) as f64;
    let stored = |gauges: &VolumeGauges| gauges.uploaded_stored.load(relaxed) as f64;
    let help = "Clusters uploaded since it was opened";
    gauge(encoder, ("volume_uploaded_data", help, Unit::Bytes), volumes, data)?;
    let help = "Objects that the clusters uploaded since it was opened are in";
    gauge(encoder, ("volume_uploaded_stored", help, Unit::Bytes), volumes, stored)?;
    let help = "1 for the state the volume is in";
    let mut family = encoder.encode_descriptor("volume_state", help, None, MetricType::Gauge)?;
    for (name, gauges) in volumes {
        let labels = [("volume", name.as_str()), ("state", gauges.state())];
        family.encode_family(&labels)?.encode_gauge(&1u32)?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Unit),
    volumes: &Volumes,
    value: impl Fn(&VolumeGauges) -> f64,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, Some(&unit), MetricType::Gauge)?;
    for (name, gauges) in volumes {
        let labels = [("volume", name.as_str())];
        family.encode_family(&labels)?.encode_gauge(&value(gauges))?;
    }
    Ok(())
}
