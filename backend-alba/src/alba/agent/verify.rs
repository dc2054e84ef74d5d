//! Verification of an object's fragments: whether each is there, or whether each is what its manifest says.

use std::collections::HashSet;
use std::sync::Arc;

use super::Inner;
use crate::alba::repair::Ill;
use crate::fault::{Fault, Kind, Result};
use crate::maintenance::Counts;
use crate::maintenance::pace::step_bytes;
use crate::manifest::{Fragment, Manifest};
use crate::osd::{Priority, Wanted};

/// What was found of a fragment.
enum Found {
    Good,
    Missing,
    Mismatched,
    Unavailable,
}

impl Inner {
    pub(super) async fn verify_object(
        self: &Arc<Self>,
        namespace: &Arc<str>,
        name: &Arc<str>,
        manifest: &Manifest,
        (checksum, unreachable_is_missing): (bool, bool),
    ) -> Result<Counts> {
        self.agent.pace_object().await;
        let mut counts = Counts::default();
        let mut lost = HashSet::new();
        for fragment in &manifest.fragments {
            let is_lost = match self.look_at(manifest, fragment, checksum).await {
                Found::Good => false,
                Found::Missing => {
                    counts.missing += 1;
                    true
                }
                Found::Mismatched => {
                    counts.mismatched += 1;
                    true
                }
                Found::Unavailable => {
                    counts.unavailable += 1;
                    unreachable_is_missing
                }
            };
            if is_lost {
                lost.insert(fragment.file);
            }
        }
        let ill = Ill { fragments: lost, osds: self.agent.dead() };
        if !ill.fragments.is_empty() || self.lacks(manifest, &ill) {
            match self.repair(namespace, name, &ill).await {
                Ok(done) => {
                    counts.made += done.made;
                    counts.bytes += done.bytes;
                    counts.lacking += done.lacking;
                }
                // What was found counts all the same.
                Err(fault) => {
                    tracing::warn!(%namespace, %name, %fault, "what is damaged cannot be repaired now");
                    self.agent.note_lacking(namespace, name);
                    counts.failed += 1;
                }
            }
        }
        Ok(counts)
    }

    async fn look_at(&self, manifest: &Manifest, fragment: &Fragment, checksum: bool) -> Found {
        match self.read_through(manifest, fragment, checksum).await {
            Ok(true) => Found::Good,
            Ok(false) => Found::Missing,
            Err(fault) if fault.kind == Kind::Corrupt => Found::Mismatched,
            Err(fault) => {
                tracing::debug!(%fault, "a fragment cannot be verified now");
                Found::Unavailable
            }
        }
    }

    /// `false` when it is not there. Opened anew: a file that is open stays readable when its name is gone.
    async fn read_through(
        &self,
        manifest: &Manifest,
        fragment: &Fragment,
        checksum: bool,
    ) -> Result<bool> {
        let len = manifest.layout().fragment_len();
        let member = self.osds.get(fragment.osd)?;
        let wanted = Wanted { file: fragment.file, len, crc: fragment.crc };
        let late = |_| Fault::unavailable(format!("OSD {} does not answer", fragment.osd));
        let opened =
            tokio::time::timeout(super::PATIENCE, member.open(wanted, Priority::Background)).await;
        let Some(open) = opened.map_err(late)?? else { return Ok(false) };
        if !checksum {
            return Ok(true);
        }
        let mut from = 0;
        while from < len {
            let to = len.min(from + step_bytes(self.agent.settings().bytes_per_second));
            self.agent.pace_bytes(to - from).await;
            let read = member.read(open.clone(), (from, to), Priority::Background);
            tokio::time::timeout(super::PATIENCE, read).await.map_err(late)??;
            from = to;
        }
        Ok(true)
    }
}
