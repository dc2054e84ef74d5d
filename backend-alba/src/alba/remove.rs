//! Removing the files of fragments whose manifests are gone, and of orphans: those of an OSD together.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::Inner;
use super::osds::Member;
use crate::fault::{Fault, Result};
use crate::name::{FragmentId, OsdId};
use crate::nsm::Removal;

/// Files removed by one call.
pub(super) const REMOVED_AT_ONCE: usize = 64;
/// A failure within this time is an answer, and may be about one of the files.
const AT_ONCE: Duration = Duration::from_secs(1);
/// An OSD whose failures take longer together is left alone for now.
const PATIENCE: Duration = Duration::from_secs(20);

impl Inner {
    /// Removes the files of objects whose manifests are gone. What cannot be removed now is tried again later.
    pub(super) async fn remove_files(&self, gone: &[Removal]) {
        if let Err(fault) = self.remove_fragments(gone).await {
            tracing::warn!(%fault, "removed files stay noted for removal");
        }
    }

    /// Removes files noted for removal.
    async fn remove_fragments(&self, noted: &[Removal]) -> Result<()> {
        let removed = self.remove_each(noted).await;
        self.nsm.removed(&removed).await
    }

    /// Removes files, and returns those that are gone.
    pub(super) async fn remove_each(&self, noted: &[Removal]) -> Vec<Removal> {
        let mut by_osd: BTreeMap<OsdId, Vec<Removal>> = BTreeMap::new();
        noted.iter().for_each(|removal| by_osd.entry(removal.osd).or_default().push(*removal));
        self.meet_osds(by_osd.keys().copied()).await;
        let remove = |(osd, noted): (OsdId, Vec<Removal>)| async move {
            let files: Vec<FragmentId> = noted.iter().map(|removal| removal.file).collect();
            let left = match self.osds.get(osd) {
                Ok(member) => self.remove_from(&member, &files).await,
                // It was purged, and whatever lies there is no longer ours.
                Err(_) if !self.osds.is_known(osd) => None,
                Err(fault) => Some(Left { files: files.clone(), fault }),
            };
            // After they were removed: until then a reader may have opened one anew.
            files.iter().for_each(|file| self.open_fragments.forget(*file));
            let Some(Left { files: left, fault }) = left else { return noted };
            tracing::warn!(%fault, count = left.len(), "deleted objects' files stay for now");
            noted.into_iter().filter(|removal| !left.contains(&removal.file)).collect()
        };
        join_all(by_osd.into_iter().map(remove)).await.concat()
    }

    /// Removes files of an OSD. One that cannot be removed keeps no other: where a call fails at once, its halves are tried.
    pub(super) async fn remove_from(&self, member: &Member, files: &[FragmentId]) -> Option<Left> {
        let mut left: Option<Left> = None;
        let mut spent = Duration::ZERO;
        let mut next: Vec<&[FragmentId]> = files.chunks(REMOVED_AT_ONCE).rev().collect();
        while let Some(some) = next.pop() {
            let begun = Instant::now();
            let fault = match member.remove(some).await {
                Ok(()) => continue,
                Err(fault) => fault,
            };
            let took = begun.elapsed();
            spent += took;
            if some.len() > 1 && took < AT_ONCE {
                let (first, second) = some.split_at(some.len() / 2);
                next.extend([second, first]);
                continue;
            }
            let gave_up = took >= AT_ONCE || spent >= PATIENCE;
            let untried: &mut dyn Iterator<Item = &[FragmentId]> =
                if gave_up { &mut next.drain(..) } else { &mut std::iter::empty() };
            let stay = std::iter::once(some).chain(untried).flatten().copied();
            left.get_or_insert(Left { files: Vec::new(), fault }).files.extend(stay);
        }
        match &left {
            None => drop(member.note(Ok(()))),
            Some(left) => member.note_failure(&left.fault),
        }
        left
    }
}

/// Files that could not be removed.
pub(super) struct Left {
    pub files: Vec<FragmentId>,
    /// Why not the first of them.
    pub fault: Fault,
}
