//! Putting an object: its bytes durable in an OSD first, then its manifest if the name is free.
//!
//! A put that failed has given its room back when it answers. Only when nobody knows whether its manifest was put do its
//! bytes stay until the next start; and no bytes are stored while the NSM takes no changes, so that does not add up.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use super::{Alba, Inner, MAX_VALUE_BYTES, check_names};
use crate::fault::{Fault, Kind, Result};
use crate::manifest::Manifest;
use crate::name::ObjectId;
use crate::nsm::Put;
use crate::osd::{ObjectWriter, Osd, Purpose, Title};

/// Bytes gathered before they are written. An upload holds at most twice this and one more piece.
const BATCH_BYTES: usize = 4 << 20;

impl Alba {
    /// Puts an object whose bytes are the concatenation of the pieces, if there is none of this name. Durable when it
    /// returns `Created`.
    pub async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        let (namespace, name) = check_names(namespace, name)?;
        let len = body.iter().map(|piece| piece.len() as u64).sum();
        let purpose = self.check_put(len, purpose)?;
        let permit = self.inner.blocking.may_put().await?;
        self.run(move |inner| {
            let _permit = permit;
            if inner.is_taken(&namespace, &name)? {
                return Ok(Put::Exists);
            }
            let mut draft =
                inner.draft(Title { namespace: &namespace, name: &name, len, purpose })?;
            draft.writer.append(&body)?;
            inner.publish(&namespace, &name, draft, len, None)
        })
        .await
    }

    /// Begins a put whose bytes arrive piece by piece. With a checksum, what arrives must match it.
    pub async fn begin_put(
        &self,
        namespace: &str,
        name: &str,
        (len, purpose): (u64, Purpose),
        crc: Option<u32>,
    ) -> Result<Upload> {
        let (namespace, name) = check_names(namespace, name)?;
        let purpose = self.check_put(len, purpose)?;
        let permit = self.inner.blocking.may_put().await?;
        let target = (namespace.clone(), name.clone());
        let draft = self
            .run(move |inner| {
                let (namespace, name) = target;
                if inner.is_taken(&namespace, &name)? {
                    return Ok(None);
                }
                inner.draft(Title { namespace: &namespace, name: &name, len, purpose }).map(Some)
            })
            .await?;
        let state = draft.map_or(State::Exists, |draft| State::Idle(Box::new(draft)));
        let alba = self.clone();
        Ok(Upload {
            alba,
            namespace,
            name,
            len,
            crc,
            state,
            batch: Vec::new(),
            batch_len: 0,
            _permit: permit,
        })
    }

    /// The purpose that counts: what is large is data, whatever it is said to be.
    fn check_put(&self, len: u64, purpose: Purpose) -> Result<Purpose> {
        let most = self.inner.config.max_object_bytes;
        if len > most {
            return Err(Fault::invalid(format!(
                "an object of {len} bytes, at most {most} are legal"
            )));
        }
        Ok(if len > MAX_VALUE_BYTES as u64 { Purpose::Data } else { purpose })
    }
}

/// A put under way. Dropped before [`Upload::finish`], it leaves nothing.
pub struct Upload {
    alba: Alba,
    namespace: String,
    name: String,
    len: u64,
    crc: Option<u32>,
    state: State,
    batch: Vec<Bytes>,
    batch_len: usize,
    _permit: OwnedSemaphorePermit,
}

enum State {
    /// The name was taken from the start: what arrives is passed over.
    Exists,
    Idle(Box<Draft>),
    Writing(JoinHandle<Result<Draft>>),
    Failed,
}

impl Upload {
    /// Whether the name was taken when the put began; then the bytes need not be sent.
    #[must_use]
    pub fn exists(&self) -> bool {
        matches!(self.state, State::Exists)
    }

    /// The next bytes; returns once there is room for more.
    pub async fn push(&mut self, piece: Bytes) -> Result<()> {
        if self.exists() {
            return Ok(());
        }
        self.batch_len += piece.len();
        self.batch.push(piece);
        if self.batch_len >= BATCH_BYTES {
            self.write_batch().await?;
        }
        Ok(())
    }

    /// Makes the object durable and puts its manifest, if the name is still free.
    pub async fn finish(mut self) -> Result<Put> {
        if self.exists() {
            return Ok(Put::Exists);
        }
        let mut draft = self.settled().await?;
        let batch = std::mem::take(&mut self.batch);
        let (namespace, name) =
            (std::mem::take(&mut self.namespace), std::mem::take(&mut self.name));
        let (len, crc) = (self.len, self.crc);
        let publish = move |inner: &Arc<Inner>| {
            draft.writer.append(&batch)?;
            inner.publish(&namespace, &name, draft, len, crc)
        };
        self.alba.run(publish).await
    }

    async fn write_batch(&mut self) -> Result<()> {
        let mut draft = self.settled().await?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_len = 0;
        let blocking = self.alba.inner.blocking.clone();
        self.state = State::Writing(tokio::spawn(async move {
            let append = move || draft.writer.append(&batch).map(|()| draft);
            blocking.run(append).await
        }));
        Ok(())
    }

    /// The draft once its last write has ended.
    async fn settled(&mut self) -> Result<Draft> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle(draft) => Ok(*draft),
            State::Writing(task) => task.await.map_err(|e| Fault {
                source: Some(Box::new(e)),
                ..Fault::bug("a write did not end")
            })?,
            State::Exists | State::Failed => Err(Fault::invalid("this upload has failed before")),
        }
    }
}

/// A file being written, known to the collector as no orphan.
pub(super) struct Draft {
    writer: ObjectWriter,
    osd: crate::name::OsdId,
    // Given up after the file is removed, or has a manifest.
    claim: Claim,
}

/// Keeps the collector away from a file.
struct Claim {
    id: ObjectId,
    inner: Arc<Inner>,
    /// Until the next start.
    forever: bool,
}

impl Claim {
    /// To be taken before the file exists.
    fn new(inner: &Arc<Inner>) -> Self {
        let id = ObjectId::random();
        inner.unfinished().insert(id);
        Self { id, inner: inner.clone(), forever: false }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.forever {
            self.inner.unfinished().remove(&self.id);
        }
    }
}

/// What becomes of written files once their manifests were put, or not. When it is not known whether the NSM took them,
/// they stay: the collector knows after the next start.
pub(super) fn settle(drafts: Vec<Draft>, put: bool, fault: Option<&Fault>) {
    let unknown = fault.is_some_and(|fault| fault.kind == Kind::Unavailable);
    drafts.into_iter().for_each(|draft| draft.settle(put, unknown));
}

impl Draft {
    fn settle(mut self, put: bool, unknown: bool) {
        if put || unknown {
            self.writer.keep();
        }
        self.claim.forever = unknown;
    }

    fn finish(mut self, len: u64) -> Result<(Manifest, Self)> {
        let crc = self.writer.finish()?;
        let (id, created_ms) = (self.writer.id(), self.writer.created_ms());
        Ok((Manifest { osd: self.osd, id, len, crc, created_ms }, self))
    }
}

impl Inner {
    fn is_taken(&self, namespace: &str, name: &str) -> Result<bool> {
        if self.nsm.get(namespace, name)?.is_some() {
            return Ok(true);
        }
        if !self.nsm.has_namespace(namespace)? {
            return Err(Fault::not_found(format!("there is no namespace {namespace:?}")));
        }
        Ok(false)
    }

    fn draft(self: &Arc<Self>, title: Title<'_>) -> Result<Draft> {
        self.check_nsm(title.purpose)?;
        let osd = self.emptiest()?;
        let claim = Claim::new(self);
        let created = osd.create(claim.id, title);
        let writer = created.inspect_err(|fault| {
            if fault.kind == Kind::NoSpace {
                self.shortage.notify_one();
            }
        })?;
        Ok(Draft { writer, osd: osd.id, claim })
    }

    /// Whether the NSM will take the manifest: it works, and its file system has room beside the objects.
    fn check_nsm(&self, purpose: Purpose) -> Result<()> {
        self.nsm.check_takes_changes()?;
        if self.nsm_space.room()?.free_for(purpose) == 0 {
            let dir = self.config.data_dir.display();
            self.shortage.notify_one();
            return Err(Fault::new(
                Kind::NoSpace,
                format!("metadata {dir}: no room but the reserve"),
            ));
        }
        Ok(())
    }

    /// The OSD with most free space; one that keeps failing only when all do.
    fn emptiest(&self) -> Result<&Osd> {
        let rank = |osd: &&Osd| (!osd.is_failing(), osd.room().map_or(0, |room| room.free_bytes));
        self.osds.iter().max_by_key(rank).ok_or_else(|| Fault::bug("a backend without an OSD"))
    }

    fn publish(
        &self,
        namespace: &str,
        name: &str,
        draft: Draft,
        len: u64,
        crc: Option<u32>,
    ) -> Result<Put> {
        let (manifest, draft) = draft.finish(len)?;
        if let Some(announced) = crc
            && manifest.crc != announced
        {
            let found = manifest.crc;
            return Err(Fault::invalid(format!(
                "object {name:?}: the bytes received have checksum {found:08x}, {announced:08x} was announced"
            )));
        }
        let outcome = self.nsm.put_if_absent(namespace, name, &manifest);
        settle(vec![draft], matches!(outcome, Ok(Put::Created)), outcome.as_ref().err());
        outcome
    }

    /// Writes a small value, ready for its manifest.
    pub(super) fn store_value(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        value: Bytes,
    ) -> Result<(Manifest, Draft)> {
        let len = value.len() as u64;
        let mut draft = self.draft(Title { namespace, name, len, purpose: Purpose::Metadata })?;
        draft.writer.append(&[value])?;
        draft.finish(len)
    }
}
