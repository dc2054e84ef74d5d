//! Rebuilding a lost NSM from the files on the OSDs: what all of them say is gathered, [`crate::recovery`] decides, and the
//! manifests are put into an NSM that nobody may use before it is whole. No fragment is touched.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::osds::GivenOsd;
use super::{Config, open};
use crate::fault::{Fault, Kind, Result};
use crate::manifest::Manifest;
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::nsm::{Nsm, Put};
use crate::osd::Osd;
use crate::recovery::{Outcome, Recovery};
use crate::trailer::Trailer;

/// Files described at once, on each OSD.
const DESCRIBED: usize = 8;
/// Manifests put at once.
const PUT: usize = 64;

/// What became of a recovery.
#[derive(Clone, Debug)]
pub struct Recovered {
    pub id: AlbaId,
    pub osds: usize,
    /// What was decided; its objects are in the NSM.
    pub outcome: Outcome,
    pub namespaces: usize,
    /// Preset that all namespaces have now: which ones they had was lost with the NSM.
    pub preset: String,
    /// Files that do not say what they are.
    pub damaged: Vec<(OsdId, FragmentId)>,
}

/// The NSM must be gone and all OSDs that are left given.
pub async fn recover(config: Config) -> Result<Recovered> {
    let lost = open::for_recovery(config).await?;
    let mut recovery = Recovery::default();
    let mut damaged = Vec::new();
    for given in &lost.osds {
        let about = |fault: Fault| {
            fault.about(format!(
                "OSD {} cannot be looked through; recover without it if it is lost",
                given.osd.place()
            ))
        };
        scan(&*given.osd, &mut recovery, &mut damaged).await.map_err(about)?;
    }
    let outcome = recovery.decide();
    let nsm = lost.nsm().await?;
    let preset = nsm.default_preset().await?;
    let namespaces = restore(&nsm, &lost.osds, &outcome).await?;
    // Above all that was found: the new NSM makes fragments of epochs that are not in use.
    nsm.reach_epoch(outcome.newest_epoch.saturating_add(1)).await?;
    nsm.finish_rebuild().await?;
    drop(nsm);
    let osds = lost.osds.len();
    let id = lost.id;
    lost.finish().await?;
    Ok(Recovered { id, osds, outcome, namespaces, preset, damaged })
}

/// What a recovery could not rebuild is given up: files that no manifest names may be removed again.
pub async fn give_up_the_rest(config: Config) -> Result<()> {
    let (_data_dir, nsm) = open::nsm_of(&config).await?;
    nsm.release_files().await
}

async fn scan(
    osd: &dyn Osd,
    recovery: &mut Recovery,
    damaged: &mut Vec<(OsdId, FragmentId)>,
) -> Result<()> {
    for shard in 0..=u8::MAX {
        let files = osd.list(shard).await?;
        let describe = |file: FragmentId| async move { (file, osd.describe(file).await) };
        let mut described = stream::iter(files).map(describe).buffer_unordered(DESCRIBED);
        while let Some((file, said)) = described.next().await {
            match said {
                Ok(Some(trailer)) if is_sound(&trailer, file) => {
                    recovery.add(osd.id(), file, trailer);
                }
                Ok(Some(_)) => damaged.push((osd.id(), file)),
                // Removed meanwhile.
                Ok(None) => {}
                Err(fault) if fault.kind == Kind::Corrupt => {
                    tracing::warn!(%fault, osd = %osd.place(), fragment = %file, "an unreadable file");
                    damaged.push((osd.id(), file));
                }
                Err(fault) => return Err(fault),
            }
        }
    }
    Ok(())
}

/// It is the trailer of this file, and its names and lengths are legal.
fn is_sound(trailer: &Trailer, file: FragmentId) -> bool {
    trailer.id == file
        && trailer.len == trailer.part.layout.fragment_len()
        && crate::name::check_namespace(&trailer.namespace).is_ok()
        && crate::name::check_object(&trailer.name).is_ok()
}

/// Returns the number of namespaces.
async fn restore(nsm: &Nsm, osds: &[GivenOsd], outcome: &Outcome) -> Result<usize> {
    for given in osds {
        nsm.note_osd(given.osd.id(), given.record()).await?;
    }
    let names: BTreeSet<&str> = outcome.objects.iter().map(|(ns, ..)| ns.as_str()).collect();
    for namespace in &names {
        nsm.create_namespace(namespace, None).await?;
    }
    let put = |(namespace, name, manifest): &(String, String, Manifest)| {
        let (namespace, name, manifest) = (namespace.clone(), name.clone(), manifest.clone());
        async move {
            match nsm.put_if_absent(&namespace, &name, &manifest).await? {
                Put::Created => Ok(()),
                Put::Exists => Err(Fault::bug(format!("{name:?} is there in an empty NSM"))),
            }
        }
    };
    stream::iter(&outcome.objects).map(put).buffer_unordered(PUT).try_collect::<()>().await?;
    Ok(names.len())
}
