//! Turns the shards' counters and the volumes' gauges into metric families at scrape time.

use std::fmt::Error;
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::shard::{BOUNDS_NANOS, CacheTier, RequestKind, Stage, StageTotals, Totals};
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
    let families = [
        ("cache_hits", "Clusters found in the read cache", &totals.cache_hits),
        ("cache_misses", "Clusters not found in the read cache", &totals.cache_misses),
    ];
    for (name, help, values) in families {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (tier, value) in CacheTier::ALL.iter().zip(values) {
            let labels = [("tier", tier.label())];
            counter(&mut family.encode_family(&labels)?, *value)?;
        }
    }
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
