//! Put-if-absent for stores that do not do it, by the registry's word.
//!
//! **Which names.** Only those that two writers could ever put with different bytes. A name that contains an owner's epoch
//! (SCO, TLog, map run) has one writer, who puts the same bytes however often it tries: for it an overwrite is a repetition.
//! What is left is the manifest chain, which is also what decides the ownership. So fenced are names with certain prefixes;
//! everything else passes through.
//!
//! **How a fenced name is put.**
//! 0. Is it claimed in the registry, or there in the store? Then it exists (see below).
//! 1. The body goes to a *draft*, an object whose name nobody else has (`draft/<claim>`).
//! 2. A *claim* on the name is created in the registry, which is what decides: `v1 open <claim> <len> <crc>`.
//! 3. If the name is there now with other bytes, an older claim had published it: ours is taken back, the name exists.
//! 4. The draft's bytes go to the name itself.
//! 5. The claim becomes `v1 done ...` and vanishes by itself after an hour; the draft is deleted.
//!
//! Whoever finds the name claimed and open does 3 to 5 *for* that claim, from its draft, and answers `Exists`.
//!
//! **Why this is put-if-absent.** A claim determines the bytes: it names a draft, which was written before by its writer
//! alone. Creating a claim is atomic and there is at most one for a name at a time, so all that publish together, at whatever
//! time, late or repeated, write the same bytes: overwriting is harmless, and it is all the store can do wrong. A claim goes
//! away only after its bytes were acknowledged at the name. So whoever does step 3 for one that was created later finds
//! them, and publishes nothing. Only the writer whose claim was published answers `Created`.
//!
//! **Why it does not wedge.** After a crash before 2 there is no claim, only a draft nobody knows (deleted with the
//! namespace). After a crash from 2 on, whoever comes next finishes from the draft, which is deleted only once the claim is
//! done. A put whose outcome at 2 is unknown leaves its draft and is tried again under a new claim: it then finds its own
//! earlier one, finishes it, and answers `Exists`, which is right for a repeated put.
//!
//! **What it relies on.** Open claims are not lost: should the registry be lost with some, a writer that is just between 2
//! and 4 can meet one that claims the name anew. The store reads what was written (the probe checks it). Every node of the
//! vPool asks the registry. Names are not used again after they were deleted (INV-8), else a put that is late by that much
//! could bring back the earlier bytes. Reads never ask the registry.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Result};

use crate::cluster::{Created, Registry};
use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};

/// Where drafts lie in a namespace.
const DRAFTS: &str = "draft/";
/// What claims begin with in the registry.
const CLAIMS: &str = "fence/";
/// A claim that is done goes on answering for a while, so that hardly anybody writes a draft in vain.
const DONE_LIFE: Duration = Duration::from_hours(1);

/// A store whose fenced names are put by the registry's word.
#[derive(Clone)]
pub struct Fenced<S, R> {
    store: S,
    registry: R,
    /// What fenced names begin with.
    prefixes: &'static [&'static str],
}

impl<S: ObjectStore, R: Registry> Fenced<S, R> {
    pub fn new(store: S, registry: R, prefixes: &'static [&'static str]) -> Self {
        Self { store, registry, prefixes }
    }

    fn is_fenced(&self, name: &str) -> bool {
        self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    async fn put_fenced(
        &self,
        place: Place<'_>,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        if let Some(claim) = self.registry.get(&place.key()).await? {
            self.finish(&place, Claim::decode(&place, &claim)?, purpose).await?;
            return Ok(Put::Exists);
        }
        if self.written(&place).await?.is_some() {
            return Ok(Put::Exists);
        }
        let ours = Claim::new(&body);
        self.put_draft(&place, &ours, &body, purpose).await?;
        match self.registry.create(&place.key(), ours.encode()).await? {
            Created::Now => match self.publish(&place, &ours, body, purpose).await? {
                Published::Yes => Ok(Put::Created),
                Published::Void => Ok(Put::Exists),
            },
            Created::Before(found) => {
                self.delete_draft(&place, &ours).await;
                self.finish(&place, Claim::decode(&place, &found)?, purpose).await?;
                Ok(Put::Exists)
            }
        }
    }

    async fn written(&self, place: &Place<'_>) -> Result<Option<ObjectInfo>> {
        self.store.head(place.namespace, place.name).await
    }

    async fn put_draft(
        &self,
        place: &Place<'_>,
        claim: &Claim,
        body: &[Bytes],
        purpose: Purpose,
    ) -> Result<()> {
        let draft = claim.draft();
        let put = self.store.put_if_absent(place.namespace, &draft, body.to_vec(), purpose);
        match put.await? {
            // Nobody else has the name: an earlier attempt of ours below.
            Put::Created | Put::Exists => Ok(()),
        }
    }

    /// A draft that stays does no harm.
    async fn delete_draft(&self, place: &Place<'_>, claim: &Claim) {
        if let Err(fault) = self.store.delete(place.namespace, &claim.draft()).await {
            tracing::debug!(name = place.name, %fault, "a draft is left");
        }
    }

    /// Steps 3 to 5 for a claim that may be another's.
    async fn finish(&self, place: &Place<'_>, claim: Claim, purpose: Purpose) -> Result<()> {
        if claim.state == State::Done {
            return Ok(());
        }
        let draft = claim.draft();
        match self.store.get_range(place.namespace, &draft, 0, claim.len).await? {
            Some(bytes) if crc32fast::hash(&bytes) == claim.crc => {
                self.publish(place, &claim, vec![bytes], purpose).await.map(drop)
            }
            Some(_) => Err(Fault::corrupt(format!("{place}: its draft {draft} is damaged"))),
            None => self.without_draft(place, &claim).await,
        }
    }

    /// The draft is gone: its writer was quicker, or the store has lost it.
    async fn without_draft(&self, place: &Place<'_>, claim: &Claim) -> Result<()> {
        let now = self.registry.get(&place.key()).await?;
        let now = now.map(|now| Claim::decode(place, &now)).transpose()?;
        if now.is_none_or(|now| now.state == State::Done || now.id != claim.id) {
            return Ok(());
        }
        if self.written(place).await? == Some(claim.info()) {
            return self.mark_done(place, claim).await;
        }
        Err(Fault::unavailable(format!(
            "{place}: claimed in the registry, but neither it nor its draft {} is in the store. If the store has lost \
             objects, delete the key {} from the registry",
            claim.draft(),
            place.key()
        )))
    }

    /// Steps 3 to 5.
    async fn publish(
        &self,
        place: &Place<'_>,
        claim: &Claim,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Published> {
        match self.written(place).await? {
            Some(written) if written != claim.info() => {
                let open = Claim { state: State::Open, ..claim.clone() };
                self.registry.remove(&place.key(), open.encode()).await?;
                self.delete_draft(place, claim).await;
                return Ok(Published::Void);
            }
            // Another has done it for this claim.
            Some(_) => {}
            None => {
                let put = self.store.put_if_absent(place.namespace, place.name, body, purpose);
                if put.await? == Put::Exists {
                    self.check_written(place, claim).await?;
                }
            }
        }
        self.mark_done(place, claim).await?;
        self.delete_draft(place, claim).await;
        Ok(Published::Yes)
    }

    /// A store that does put-if-absent after all says so when another has published the claim; and when somebody has passed
    /// the fence by.
    async fn check_written(&self, place: &Place<'_>, claim: &Claim) -> Result<()> {
        match self.written(place).await? {
            Some(written) if written == claim.info() => Ok(()),
            Some(_) => Err(Fault::fenced(format!(
                "{place}: written by somebody who does not ask the registry; every node of a vPool needs the same \
                 [registry] url"
            ))),
            None => Err(Fault::unavailable(format!("{place} exists, but cannot be found"))),
        }
    }

    async fn mark_done(&self, place: &Place<'_>, claim: &Claim) -> Result<()> {
        let open = Claim { state: State::Open, ..claim.clone() };
        let done = Claim { state: State::Done, ..claim.clone() };
        // If it is not open any more, somebody else has done this, or the namespace is going.
        let key = place.key();
        self.registry.retire(&key, open.encode(), done.encode(), DONE_LIFE).await.map(drop)
    }
}

/// What became of a claim.
enum Published {
    Yes,
    /// An older claim had published the name with other bytes.
    Void,
}

/// A fenced name.
struct Place<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Place<'_> {
    fn key(&self) -> String {
        format!("{CLAIMS}{}/{}", self.namespace, self.name)
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Done,
}

/// A claim on a name, in the registry as text: `v1`, `open` or `done`, id (32 hexadecimal digits), length (decimal),
/// CRC-32 (8 hexadecimal digits), parted by single spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    state: State,
    id: Arc<str>,
    len: u64,
    crc: u32,
}

impl Claim {
    fn new(body: &[Bytes]) -> Self {
        let mut crc = crc32fast::Hasher::new();
        body.iter().for_each(|piece| crc.update(piece));
        Self {
            state: State::Open,
            id: uuid::Uuid::new_v4().simple().to_string().into(),
            len: body.iter().map(|piece| piece.len() as u64).sum(),
            crc: crc.finalize(),
        }
    }

    fn info(&self) -> ObjectInfo {
        ObjectInfo { len: self.len, crc: self.crc }
    }

    fn draft(&self) -> String {
        format!("{DRAFTS}{}", self.id)
    }

    fn encode(&self) -> Bytes {
        let Self { state, id, len, crc } = self;
        let state = match state {
            State::Open => "open",
            State::Done => "done",
        };
        Bytes::from(format!("v1 {state} {id} {len} {crc:08x}"))
    }

    fn decode(place: &Place<'_>, bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).ok_or_else(|| {
            let shown = String::from_utf8_lossy(bytes.get(..100).unwrap_or(bytes));
            Fault::corrupt(format!(
                "{place}: its claim in the registry is {shown:?}, no \"v1\" claim"
            ))
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let [version, state, id, len, crc] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let state = match state {
            "open" => State::Open,
            "done" => State::Done,
            _ => return None,
        };
        let hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        let claim = Self {
            state,
            id: (id.len() == 32 && id.chars().all(hex)).then(|| id.into())?,
            len: len.parse().ok()?,
            crc: u32::from_str_radix(crc, 16).ok()?,
        };
        (version == "v1" && claim.encode() == bytes).then_some(claim)
    }
}

impl<S: ObjectStore, R: Registry> ObjectStore for Fenced<S, R> {
    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        self.store.create_namespace(namespace).await
    }

    /// Claims go last: as long as an object is there, its name is taken.
    async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        if namespace.is_empty() || namespace.contains('/') {
            return Err(Fault::invalid(format!("{namespace:?} cannot be a namespace")));
        }
        self.store.delete_namespace(namespace).await?;
        self.registry.delete_all(&format!("{CLAIMS}{namespace}/")).await
    }

    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        self.store.list_namespaces(prefix).await
    }

    async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        if !self.is_fenced(name) {
            return self.store.put_if_absent(namespace, name, body, purpose).await;
        }
        Box::pin(self.put_fenced(Place { namespace, name }, body, purpose)).await
    }

    async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        self.store.get_range(namespace, name, offset, len).await
    }

    async fn head(&self, namespace: &str, name: &str) -> Result<Option<ObjectInfo>> {
        self.store.head(namespace, name).await
    }

    /// Without drafts.
    async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut names: Vec<String> = Vec::new();
        let mut after = after.map(str::to_owned);
        while names.len() < wanted {
            let left = u32::try_from(wanted - names.len()).unwrap_or(u32::MAX);
            let page = self.store.list(namespace, prefix, after.as_deref(), left).await?;
            let is_last = page.len() < usize::try_from(left).unwrap_or(usize::MAX);
            after = page.last().cloned();
            names.extend(page.into_iter().filter(|name| !name.starts_with(DRAFTS)));
            if is_last {
                break;
            }
        }
        Ok(names)
    }

    async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        self.store.delete(namespace, name).await?;
        match self.is_fenced(name) {
            true => self.registry.delete(&Place { namespace, name }.key()).await,
            false => Ok(()),
        }
    }

    fn pace(&self, bytes_per_s: Option<u64>) {
        self.store.pace(bytes_per_s);
    }
    fn is_on_this_disk(&self) -> bool {
        self.store.is_on_this_disk()
    }

    async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<Arc<std::fs::File>>> {
        self.store.local_file(namespace, name).await
    }
}
