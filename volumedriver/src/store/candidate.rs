//! A bucket that is to be a vPool's, before it is known whether it may be.

use std::fmt::Write;

use volumedriver_core::fault::{Fault, Kind, Result};

use super::count::Counted;
use super::fenced::Fenced;
use super::probe::{Check, Report, Subject, probe};
use super::retry::{Patience, Retried, RuntimeClock};
use super::s3::{Parts, S3Store};
use super::{AnyStore, Place, decorated};
use crate::cluster::etcd::Etcd;
use crate::config::S3Url;
use crate::metrics::StoreMetrics;

/// What is opened, and may be probed, used, or both.
#[derive(Clone)]
pub struct Candidate {
    store: S3Store,
    registry: Option<Etcd>,
    fenced: &'static [&'static str],
    title: String,
}

/// What the probe found, with the registry in front as well where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    title: String,
    bare: Report,
    fenced: Option<Report>,
}

/// How a store that passed is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitness {
    /// Large objects may be uploaded in parts.
    pub parts: bool,
}

impl Candidate {
    pub async fn open(url: &S3Url, place: &Place) -> Result<Self> {
        let store = S3Store::open(url, place.s3_credentials.as_deref()).await?;
        let registry = match &place.registry {
            Some(registry) => Some(Etcd::connect(registry).await?),
            None => None,
        };
        Ok(Self { store, registry, fenced: place.fenced, title: url.to_string() })
    }

    /// Takes some seconds. A fault is no verdict, see [`probe`].
    pub async fn probe(&self) -> Result<Findings> {
        let in_parts = self.store.with_parts(Parts::Above(0));
        let in_parts = (self.store.parts() != Parts::Never).then_some(&in_parts);
        let single = self.store.with_parts(Parts::Never);
        let bare = probe(Subject { store: &single, in_parts, prefix: "" }).await?;
        let fenced = match (&self.registry, self.fenced.first()) {
            (Some(registry), Some(prefix)) if bare.unfit().is_none() => {
                let fenced = Fenced::new(single.clone(), registry.clone(), self.fenced);
                Some(probe(Subject { store: &fenced, in_parts: None, prefix }).await?)
            }
            _ => None,
        };
        Ok(Findings { title: self.title.clone(), bare, fenced })
    }

    /// The store as the engine uses it.
    #[must_use]
    pub fn engage(self, fitness: Fitness, metrics: &StoreMetrics) -> AnyStore {
        let store = match fitness.parts {
            true => self.store,
            false => self.store.with_parts(Parts::Never),
        };
        store.sweep();
        let Some(registry) = self.registry else { return AnyStore::S3(decorated(store, metrics)) };
        let fenced = Fenced::new(Counted::new(store, metrics.clone()), registry, self.fenced);
        AnyStore::FencedS3(Retried::new(fenced, RuntimeClock, Patience::default()))
    }
}

impl Findings {
    /// `Invalid` names the store and what it does.
    pub fn verdict(&self) -> Result<Fitness> {
        let refused = |why: &str| {
            Fault::new(Kind::Invalid, format!("backend {} is refused: {why}", self.title))
        };
        if let Some(lie) = self.bare.unfit() {
            return Err(refused(lie));
        }
        if let Some(report) = &self.fenced {
            let lie = report.unfit().or(report.needs_fence());
            return match lie {
                Some(lie) => Err(refused(&format!("even with the registry in front, {lie}"))),
                None => Ok(Fitness { parts: self.bare.parts() }),
            };
        }
        match self.bare.needs_fence() {
            None => Ok(Fitness { parts: self.bare.parts() }),
            Some(lie) => Err(refused(&format!(
                "{lie}. Two owners could overwrite each other's manifests there. Use another server, or let etcd guard \
                 the names: [registry] url = \"etcd://HOST:PORT/PREFIX\""
            ))),
        }
    }

    /// Every check with what was found, those with the registry in front last.
    pub fn checks(&self) -> impl Iterator<Item = (String, &Check)> {
        let bare = self.bare.checks.iter().map(|check| (check.what.title().to_owned(), check));
        let fenced = self.fenced.iter().flat_map(|report| &report.checks);
        bare.chain(
            fenced.map(|check| (format!("with the registry: {}", check.what.title()), check)),
        )
    }

    /// The lies, in one line; empty when there is none.
    #[must_use]
    pub fn lies(&self) -> String {
        let mut text = String::new();
        for (title, check) in self.checks() {
            if let Some(lie) = &check.lie {
                let mark = if text.is_empty() { "" } else { "; " };
                // Writing to a text cannot fail.
                let _ = write!(text, "{mark}{title}: {lie}");
            }
        }
        text
    }
}
