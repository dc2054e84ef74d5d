//! Opening the vPool's store: a bucket is probed before it is used for the first time.
//!
//! That it passed is noted in the data directory (`probed`), for this URL and this registry; every node finds out for itself.
//! A later start asks nothing, so a bucket that is out of reach then is no reason not to start.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::names;

use crate::admin::{ProbeCheck, ProbeInfo};
use crate::config::{BackendUrl, Config};
use crate::metrics::StoreMetrics;
use crate::store::candidate::{Candidate, Findings, Fitness};
use crate::store::{AnyStore, Place};

pub const PROBED_FILE: &str = "probed";
const VERSION: u32 = 1;
/// Names that two owners could put with different bytes; all others contain an epoch.
const FENCED: &[&str] = &[names::MANIFEST_PREFIX];

/// The vPool's store, and what can be probed of it.
pub(super) struct Opened {
    pub store: AnyStore,
    pub prober: Prober,
}

/// Probes the vPool's store when asked to.
#[derive(Clone)]
pub(super) struct Prober {
    /// `None`: it is not a bucket.
    candidate: Option<Candidate>,
}

/// What is noted of a store that passed.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    backend: String,
    #[serde(default)]
    registry: String,
    parts: bool,
}

pub(super) fn place_of(config: &Config) -> Place {
    Place {
        url: config.vpool.backend.clone(),
        capacity: config.vpool.backend_capacity,
        s3_credentials: config.vpool.s3_credentials.clone(),
        registry: config.registry.clone(),
        fenced: FENCED,
    }
}

/// Opens the store on the runtime this is awaited on.
pub(super) async fn open(
    config: &Config,
    data_dir: &Path,
    metrics: &StoreMetrics,
) -> Result<Opened> {
    let place = place_of(config);
    let BackendUrl::S3(url) = &place.url else {
        let store = AnyStore::open(&place, metrics).await?;
        return Ok(Opened { store, prober: Prober { candidate: None } });
    };
    let candidate = Candidate::open(url, &place).await?;
    let prober = Prober { candidate: Some(candidate.clone()) };
    let file = data_dir.join(PROBED_FILE);
    let mut note = Note {
        version: VERSION,
        backend: url.to_string(),
        registry: place.registry.as_ref().map(ToString::to_string).unwrap_or_default(),
        parts: false,
    };
    let fitness = match known(&file, &note) {
        Some(fitness) => fitness,
        None => {
            tracing::info!(backend = note.backend, "probing the store before its first use");
            let findings = aside(candidate.clone()).await?;
            let fitness = findings.verdict()?;
            let lies = findings.lies();
            if !lies.is_empty() {
                tracing::warn!(lies, "the store is used, and what it lacks is made up for");
            }
            note.parts = fitness.parts;
            write(&file, &note)?;
            fitness
        }
    };
    Ok(Opened { store: candidate.engage(fitness, metrics), prober })
}

/// What an earlier probe of the same store found. A note that cannot be read is none.
fn known(file: &Path, now: &Note) -> Option<Fitness> {
    let text = std::fs::read_to_string(file).ok()?;
    let note: Note = toml::from_str(&text).ok()?;
    let Note { version, backend, registry, parts } = &note;
    let same = (version, backend, registry) == (&now.version, &now.backend, &now.registry);
    same.then_some(Fitness { parts: *parts })
}

/// A note that is lost or torn only means another probe.
fn write(file: &Path, note: &Note) -> Result<()> {
    let text = toml::to_string(note)
        .map_err(|e| Fault::bug("what was probed cannot be noted").because(e))?;
    let new = file.with_extension("new");
    let written =
        std::fs::write(&new, format!("# The object store that passed the probe.\n{text}"));
    written.and_then(|()| std::fs::rename(&new, file)).map_err(|e| {
        Fault::unavailable(format!("{}: cannot be written", file.display())).because(e)
    })
}

impl Prober {
    /// Probes now, and says what was found.
    pub(super) async fn probe(&self) -> Result<ProbeInfo> {
        let candidate = self.candidate.clone().ok_or_else(|| {
            Fault::invalid(
                "only a bucket (s3://...) is probed: embedded and alba backends are our own",
            )
        })?;
        let findings = aside(candidate).await?;
        let checks = findings
            .checks()
            .map(|(what, check)| ProbeCheck { what, lie: check.lie.clone() })
            .collect();
        Ok(ProbeInfo { checks, refusal: findings.verdict().err().map(|fault| fault.to_string()) })
    }
}

/// On a thread of its own: a probe compares many bytes, and its futures stay on their thread.
async fn aside(candidate: Candidate) -> Result<Findings> {
    let (answer, question) = oneshot::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = match runtime {
            Ok(runtime) => runtime.block_on(candidate.probe()),
            Err(e) => Err(Fault::unavailable("a probe cannot be started").because(e)),
        };
        // Whoever asked may be gone.
        let _unheard = answer.send(outcome);
    };
    let thread = std::thread::Builder::new().name("probe".to_owned());
    thread.spawn(run).map_err(|e| Fault::unavailable("a thread cannot be started").because(e))?;
    question.await.map_err(|_| Fault::bug("the probe's thread panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_counts_for_the_same_store_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(PROBED_FILE);
        let note = |backend: &str, registry: &str| Note {
            version: VERSION,
            backend: backend.into(),
            registry: registry.into(),
            parts: true,
        };
        assert_eq!(known(&file, &note("s3://a/", "")), None);
        write(&file, &note("s3://a/", "")).unwrap();
        assert_eq!(known(&file, &note("s3://a/", "")), Some(Fitness { parts: true }));
        assert_eq!(known(&file, &note("s3://b/", "")), None);
        assert_eq!(known(&file, &note("s3://a/", "etcd://h:1/p")), None);
        for torn in ["", "version = 1", "version = 2\nbackend = \"s3://a/\"\nparts = true\n", "\0"]
        {
            std::fs::write(&file, torn).unwrap();
            assert_eq!(known(&file, &note("s3://a/", "")), None, "{torn:?}");
        }
    }
}
