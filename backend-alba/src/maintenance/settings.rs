//! Settings of maintenance: what was typed or stored ([`Raw`]) to what is legal ([`Settings`]). Changed live: every agent reads
//! them again every few seconds.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};

/// As typed, stored and shown. A field that is left out has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Make anew what is on dead or decommissioned OSDs, and what an object lacks. Default true.
    pub repair: bool,
    /// Store objects anew that a better policy of their preset, or a changed preset, would store otherwise. Default true.
    pub rewrite: bool,
    /// Move fragments from full OSDs to empty ones. Default true.
    pub rebalance: bool,
    /// Collect fragments that no manifest names. Default true.
    pub collect: bool,
    /// An OSD that has been silent or failing for so long is dead. Default 900,000; 100 to 7 days.
    pub auto_repair_timeout_ms: u64,
    /// All maintenance of one agent, bytes a second; 0: no limit. Default 100 MiB.
    pub bytes_per_second: u64,
    /// Objects an agent repairs, rewrites, moves or verifies a second; 0: no limit. Default 0.
    pub objects_per_second: u64,
    /// Files of deleted objects an agent removes a second; 0: no limit. Default 1,000.
    pub removals_per_second: u64,
    /// Objects an agent works on at once. Default 4; 1 to 64.
    pub concurrency: u64,
    /// A put may take so long before what it stored may be collected. Default 120,000; 0 to 1 day.
    pub collect_grace_ms: u64,
    /// Between two collections. Default 3,600,000; 100 to 30 days.
    pub collect_interval_ms: u64,
    /// Between two looks at all objects, if nothing changes before. Default 3,600,000; 100 to 30 days.
    pub tour_interval_ms: u64,
    /// Between two beginnings of a scrub: all fragments are read and checked, what is damaged or missing is made anew; 0:
    /// never. Default 30 days; 100 to 400 days.
    pub scrub_interval_ms: u64,
    /// OSDs that are so much fuller or emptier than all together are rebalanced, percent points. Default 5; 1 to 50.
    pub rebalance_band_percent: u64,
    /// An agent that has been silent for so long has lost its work to the others. Default 30,000; 100 to 1 day.
    pub lease_ms: u64,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            repair: true,
            rewrite: true,
            rebalance: true,
            collect: true,
            auto_repair_timeout_ms: 900_000,
            bytes_per_second: 100 << 20,
            objects_per_second: 0,
            removals_per_second: 1000,
            concurrency: 4,
            collect_grace_ms: 120_000,
            collect_interval_ms: HOUR_MS,
            tour_interval_ms: HOUR_MS,
            scrub_interval_ms: 30 * DAY_MS,
            rebalance_band_percent: 5,
            lease_ms: 30_000,
        }
    }
}

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Legal settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub repair: bool,
    pub rewrite: bool,
    pub rebalance: bool,
    pub collect: bool,
    pub auto_repair_timeout: Duration,
    pub bytes_per_second: u64,
    pub objects_per_second: u64,
    pub removals_per_second: u64,
    pub concurrency: usize,
    pub collect_grace: Duration,
    pub collect_interval: Duration,
    pub tour_interval: Duration,
    /// Zero: never.
    pub scrub_interval: Duration,
    pub band_percent: u32,
    pub lease: Duration,
}

impl Raw {
    pub fn check(&self) -> Result<Settings> {
        let ms = |name, value, legal| within(name, value, legal).map(Duration::from_millis);
        let concurrency = within("concurrency", self.concurrency, 1..=64)?;
        let band = within("rebalance_band_percent", self.rebalance_band_percent, 1..=50)?;
        Ok(Settings {
            repair: self.repair,
            rewrite: self.rewrite,
            rebalance: self.rebalance,
            collect: self.collect,
            auto_repair_timeout: ms(
                "auto_repair_timeout_ms",
                self.auto_repair_timeout_ms,
                100..=7 * DAY_MS,
            )?,
            bytes_per_second: self.bytes_per_second,
            objects_per_second: self.objects_per_second,
            removals_per_second: self.removals_per_second,
            concurrency: usize::try_from(concurrency).unwrap_or(1),
            collect_grace: ms("collect_grace_ms", self.collect_grace_ms, 0..=DAY_MS)?,
            collect_interval: ms(
                "collect_interval_ms",
                self.collect_interval_ms,
                100..=30 * DAY_MS,
            )?,
            scrub_interval: match self.scrub_interval_ms {
                0 => Duration::ZERO,
                some => ms("scrub_interval_ms", some, 100..=400 * DAY_MS)?,
            },
            tour_interval: ms("tour_interval_ms", self.tour_interval_ms, 100..=30 * DAY_MS)?,
            band_percent: u32::try_from(band).unwrap_or(1),
            lease: ms("lease_ms", self.lease_ms, 100..=DAY_MS)?,
        })
    }

    /// With one field changed: `NAME=VALUE`.
    pub fn with(&self, change: &str) -> Result<Self> {
        let bad = |why: String| Fault::invalid(format!("setting {change:?}: {why}"));
        let (name, value) = change.split_once('=').ok_or_else(|| bad("not NAME=VALUE".into()))?;
        let mut fields = match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(fields)) => fields,
            Ok(_) | Err(_) => return Err(Fault::bug("settings are no JSON object")),
        };
        let Some(field) = fields.get_mut(name) else {
            let known: Vec<&str> = fields.keys().map(String::as_str).collect();
            return Err(bad(format!("there are {}", known.join(", "))));
        };
        *field =
            serde_json::from_str(value).map_err(|_| bad("not a number, true or false".into()))?;
        let changed: Self =
            serde_json::from_value(fields.into()).map_err(|e| bad(e.to_string()))?;
        changed.check()?;
        Ok(changed)
    }
}

fn within(name: &str, value: u64, legal: RangeInclusive<u64>) -> Result<u64> {
    if legal.contains(&value) {
        return Ok(value);
    }
    let (low, high) = (legal.start(), legal.end());
    Err(Fault::invalid(format!("{name} is {value}, legal is {low} to {high}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_legal_and_what_is_left_out_is_the_default() {
        let settings = Raw::default().check().unwrap();
        assert_eq!(settings.auto_repair_timeout, Duration::from_secs(900));
        assert_eq!(settings.collect_grace, Duration::from_secs(120));
        assert_eq!(serde_json::from_str::<Raw>("{}").unwrap(), Raw::default());
        assert!(serde_json::from_str::<Raw>(r#"{"no_such": 1}"#).is_err());
    }

    #[test]
    fn one_field_is_changed_or_the_reason_is_told() {
        let changed = Raw::default().with("bytes_per_second=0").unwrap().with("repair=false");
        let expected = Raw { bytes_per_second: 0, repair: false, ..Raw::default() };
        assert_eq!(changed.unwrap(), expected);
        for (change, why) in [
            ("repair", "NAME=VALUE"),
            ("repairs=true", "auto_repair_timeout_ms"),
            ("repair=1", "boolean"),
            ("repair=maybe", "true or false"),
            ("concurrency=0", "1 to 64"),
            ("concurrency=-1", "u64"),
            ("lease_ms=99", "100 to 86400000"),
            ("scrub_interval_ms=99", "100 to 34560000000"),
        ] {
            let fault = Raw::default().with(change).unwrap_err();
            assert!(fault.message.contains(why), "{change}: {fault}");
        }
    }
}
