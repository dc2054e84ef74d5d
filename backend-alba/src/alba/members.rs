//! OSDs come and go: claimed, given another role, purged, and found again. What the NSM's records say is taken over now and
//! then, so that all servers of a backend see the same OSDs; one that cannot be reached is there as failing.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::osds::{Member, Present};
use super::{Alba, Elsewhere, Inner, OsdPlace};
use crate::fault::{Fault, Kind, Result};
use crate::name::OsdId;
use crate::nsm::{OsdRecord, OsdRole};
use crate::osd::{self, Claimed, Described, Directory, Local, Place};

/// Records are looked at so often.
const EVERY: Duration = Duration::from_secs(3);
/// Somebody who meets an unknown OSD looks at them at once, but no more often than this.
const AT_MOST_EVERY: Duration = Duration::from_millis(500);
/// The start waits so long for each OSD that it was given.
const AT_START: Duration = Duration::from_secs(10);
/// OSDs that announced themselves are remembered for so long.
const ANNOUNCED_FOR: Duration = Duration::from_secs(60);
/// So many of them at most.
const MAX_ANNOUNCED: usize = 1024;

/// What this process knows of OSDs besides the records.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Directories that it was given.
    pub places: Vec<OsdPlace>,
    /// Only one look at the records at a time.
    looking: tokio::sync::Mutex<Option<Instant>>,
    announced: Mutex<BTreeMap<OsdId, Announced>>,
    /// Directories that were purged: not taken back before the next start.
    purged: Mutex<HashSet<String>>,
}

#[derive(Clone, Debug)]
struct Announced {
    said: Described,
    place: String,
    at: Instant,
}

/// An OSD that announced itself and does not belong to the backend.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub said: Described,
    pub place: String,
}

/// What a purge came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// The OSD knows that it is free again.
    pub released: bool,
    /// What was lost, or why it was not released.
    pub note: String,
}

impl Watch {
    pub fn of(places: Vec<OsdPlace>) -> Self {
        Self { places, ..Self::default() }
    }
}

// What is locked is changed by steps that do not panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Looks at the records now and then, and tries again what could not be opened; ends with the backend.
pub(super) fn start(inner: &Arc<Inner>) {
    repeat(inner, |inner| async move {
        if let Err(fault) = inner.refresh_osds().await {
            tracing::warn!(%fault, "the records of OSDs cannot be read");
        }
    });
    // By itself: a directory may hang.
    if !inner.watch.places.is_empty() {
        repeat(inner, |inner| async move { inner.open_missing().await });
    }
}

fn repeat<F: Future<Output = ()> + Send + 'static>(
    inner: &Arc<Inner>,
    work: impl Fn(Arc<Inner>) -> F + Send + 'static,
) {
    let backend: Weak<Inner> = Arc::downgrade(inner);
    let mut gone = inner.alive.subscribe();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                _ = gone.changed() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let Some(inner) = backend.upgrade() else { return };
            work(inner).await;
        }
    });
}

impl Alba {
    /// Makes the OSD at this place the backend's; one that it has already is noted where it is now. `Invalid`, with its
    /// name, when another backend has it.
    pub async fn claim_osd(&self, place: &str) -> Result<OsdId> {
        self.claim_osd_as(&Elsewhere::at(place.parse()?)).await
    }

    /// The same, on the given node and with the given labels where it does not say them itself.
    pub async fn claim_osd_as(&self, osd: &Elsewhere) -> Result<OsdId> {
        self.inner.claim(osd).await
    }

    /// Those given at the start. One that is out of reach is tried again and again; what cannot be right is an error.
    pub(super) async fn claim_given(&self, given: Vec<Elsewhere>) -> Result<()> {
        let mut missing = Vec::new();
        for osd in given {
            let late = |_| Fault::unavailable(format!("OSD {} does not answer", osd.place));
            let claim = tokio::time::timeout(AT_START, self.inner.claim(&osd)).await;
            match claim.map_err(late).flatten() {
                Ok(_) => {}
                Err(fault) if fault.kind == Kind::Unavailable => {
                    tracing::warn!(%fault, "going on without an OSD");
                    missing.push(osd);
                }
                Err(fault) => return Err(fault),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let missing = Arc::new(Mutex::new(missing));
        repeat(&self.inner, move |inner| {
            let missing = missing.clone();
            async move {
                let waiting = std::mem::take(&mut *locked(&missing));
                let still = inner.claim_missing(waiting).await;
                *locked(&missing) = still;
            }
        });
        Ok(())
    }

    /// An OSD listens there: it is remembered for a while, for whoever wants to claim it.
    pub async fn announce_osd(&self, address: &str) -> Result<()> {
        let address = osd::asd_address(address)?;
        let said = osd::describe(&address, self.inner.config.tls.as_ref()).await?;
        let mut announced = locked(&self.inner.watch.announced);
        let now = Instant::now();
        announced.retain(|_, known| now.duration_since(known.at) < ANNOUNCED_FOR);
        if announced.len() >= MAX_ANNOUNCED && !announced.contains_key(&said.id) {
            return Err(Fault::unavailable("too many OSDs announce themselves"));
        }
        let place = Place::Asd(address).to_string();
        announced.insert(said.id, Announced { said, place, at: now });
        Ok(())
    }

    /// OSDs that announced themselves lately and are not the backend's.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let now = Instant::now();
        let announced = locked(&self.inner.watch.announced);
        let lately =
            announced.values().filter(|known| now.duration_since(known.at) < ANNOUNCED_FOR);
        let strange = lately.filter(|known| self.inner.osds.get(known.said.id).is_err());
        let candidate =
            |known: &Announced| Candidate { said: known.said.clone(), place: known.place.clone() };
        strange.map(candidate).collect()
    }

    /// Forgets an OSD and sets it free. Refused while it is not decommissioning or holds fragments, unless forced.
    pub async fn purge_osd(&self, id: OsdId, force: bool) -> Result<Purged> {
        let inner = &self.inner;
        let missing = || Fault::not_found(format!("there is no OSD {id}"));
        let known = inner.nsm.osds().await?.into_iter().find(|(known, _)| *known == id);
        let (_, record) = known.ok_or_else(missing)?;
        if record.role != OsdRole::Decommissioning && !force {
            return Err(Fault::invalid(format!("OSD {id} is not decommissioning")));
        }
        let is_used = inner.nsm.uses_osd(id).await?;
        if is_used && !force {
            let message = format!("OSD {id} still holds fragments of objects; wait, or force it");
            return Err(Fault::invalid(message));
        }
        locked(&inner.watch.purged).insert(record.path.clone());
        inner.nsm.forget_osd(id).await?;
        let member = inner.osds.get(id);
        inner.refresh_osds().await?;
        let released = match member {
            Ok(member) => member.release(inner.id).await,
            Err(fault) => Err(fault),
        };
        let lost = if is_used { "fragments of objects were lost with it" } else { "" };
        Ok(match released {
            Ok(()) => Purged { released: true, note: lost.into() },
            Err(fault) if is_used => Purged { released: false, note: format!("{lost}; {fault}") },
            Err(fault) => Purged { released: false, note: fault.to_string() },
        })
    }
}

impl Inner {
    async fn claim(&self, osd: &Elsewhere) -> Result<OsdId> {
        let (fresh, tls) = (OsdId(self.outside.bytes()), self.config.tls.as_ref());
        let said = (osd.node.as_deref(), &osd.labels[..]);
        let claimed = osd.place.claim((fresh, self.id), said, tls).await?;
        let (Claimed { id, node, labels }, path) = (claimed, osd.place.to_string());
        self.nsm.note_osd(id, OsdRecord { path, node, labels, role: OsdRole::Active }).await?;
        locked(&self.watch.announced).remove(&id);
        self.refresh_osds().await?;
        Ok(id)
    }

    /// Those that are out of reach still.
    async fn claim_missing(&self, waiting: Vec<Elsewhere>) -> Vec<Elsewhere> {
        let mut still = Vec::new();
        for osd in waiting {
            match self.claim(&osd).await {
                Ok(id) => tracing::info!(place = %osd.place, %id, "an OSD is there"),
                Err(fault) if fault.kind == Kind::Unavailable => still.push(osd),
                Err(fault) => tracing::warn!(%fault, "an OSD that was given is not used"),
            }
        }
        still
    }

    /// For whoever meets an OSD that is not known here: perhaps it came lately.
    pub(super) async fn meet_osds(&self, ids: impl IntoIterator<Item = OsdId>) {
        if ids.into_iter().all(|id| self.osds.get(id).is_ok()) {
            return;
        }
        let looked = *self.watch.looking.lock().await;
        if looked.is_some_and(|at| at.elapsed() < AT_MOST_EVERY) {
            return;
        }
        if let Err(fault) = self.refresh_osds().await {
            tracing::debug!(%fault, "the records of OSDs cannot be read");
        }
    }

    /// Takes over what the records say.
    pub(super) async fn refresh_osds(&self) -> Result<()> {
        let mut looking = self.watch.looking.lock().await;
        let mut records = self.nsm.osds().await?;
        let before = self.osds.present();
        let mut members = Vec::new();
        let place = |id: &OsdId| before.members.iter().position(|member| member.id() == *id);
        // Those that are known stay in their order, what is new comes after them.
        records.sort_by_key(|(id, _)| place(id).unwrap_or(usize::MAX));
        for (id, record) in &records {
            let known = place(id).and_then(|at| before.members.get(at));
            match known.filter(|known| known.is_as(record)) {
                Some(known) => {
                    known.set_role(record.role);
                    members.push(known.clone());
                }
                None => members.extend(self.member_of(*id, record, known)),
            }
        }
        let stays = |member| members.iter().any(|now| Arc::ptr_eq(now, member));
        let is_gone = !before.members.iter().all(stays);
        let nodes = records.into_iter().map(|(id, record)| (id, record.node)).collect();
        self.osds.replace(Present { members, nodes });
        if is_gone {
            // Fragments that are open belong to OSDs as they were.
            self.open_fragments.clear();
        }
        *looking = Some(Instant::now());
        Ok(())
    }

    /// `None` when it is nothing that this process can reach.
    fn member_of(
        &self,
        id: OsdId,
        record: &OsdRecord,
        known: Option<&Arc<Member>>,
    ) -> Option<Arc<Member>> {
        let tls = self.config.tls.as_ref();
        // Its connection is the clients' too, whoever meets it first.
        let _home = self.blocking.home();
        let osd = match osd::connect(&record.path, (id, self.id), tls) {
            Ok(Some(osd)) => osd,
            Ok(None) => return self.local_member(id, record, known),
            Err(fault) => {
                tracing::warn!(%fault, osd = %id, "the record of an OSD is of no use");
                return None;
            }
        };
        let labels = record.labels.clone();
        let member = Member::new(osd, record.node.clone(), labels, record.role);
        Some(Arc::new(member))
    }

    /// A directory: one of ours, open or not, or another process's.
    fn local_member(
        &self,
        id: OsdId,
        record: &OsdRecord,
        known: Option<&Arc<Member>>,
    ) -> Option<Arc<Member>> {
        if let Some(known) = known {
            return Some(Arc::new(known.changed(record)));
        }
        let path = Path::new(&record.path);
        let is_ours = self.watch.places.iter().any(|place| place.path == path);
        is_ours.then(|| Arc::new(Member::unreachable(id, record)))
    }

    /// Directories that could not be opened before.
    pub(super) async fn open_missing(&self) {
        for place in &self.watch.places {
            let path = place.path.to_string_lossy().into_owned();
            if self.osds.is_open(&path) || locked(&self.watch.purged).contains(&path) {
                continue;
            }
            if let Err(fault) = self.open_place(place, path).await {
                tracing::debug!(%fault, "still without an OSD");
            }
        }
    }

    async fn open_place(&self, place: &OsdPlace, path: String) -> Result<()> {
        let (root, alba, limits) = (place.path.clone(), self.id, self.config.limits());
        let open = move || Directory::open(&root, alba, limits);
        let directory = self.blocking.run(open).await?;
        tracing::info!(place = %path, "an OSD is back");
        let _looking = self.watch.looking.lock().await;
        let (id, node, labels) = (directory.id, place.node.clone(), place.labels.clone());
        let seen = OsdRecord { path, node, labels, role: OsdRole::Active };
        let role = self.nsm.note_osd(id, seen).await?;
        let local = Box::new(Local::new(directory, self.config.osd_thread_count));
        let member = Member::new(local, place.node.clone(), place.labels.clone(), role);
        self.osds.add(Arc::new(member));
        Ok(())
    }
}
