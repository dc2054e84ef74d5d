//! Putting an object: its fragments durable on OSDs first, then its manifest if the name is free.
//!
//! The fragments are written side by side, each by a lane with a short queue. A put is done once c of them are stored; the
//! others may take a little longer, a part of the time the put took so far. What comes later still is recorded in the
//! manifest when it comes. A lane that lags behind while enough others do not is given up: maintenance makes that fragment.
//!
//! A put that failed has given its room back when it answers. Only when nobody knows whether its manifest was put do its
//! bytes stay until they are collected; and no bytes are stored while the NSM takes no changes, so that does not add up.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::lane::{Lanes, Order};
use super::{Alba, Inner, MAX_VALUE_BYTES, check_names, late};
use crate::erasure::{Codec, Encoder, Layout, Shares};
use crate::fault::{Fault, Kind, Result};
use crate::manifest::Manifest;
use crate::name::{ObjectId, OsdId};
use crate::nsm::Put;
use crate::osd::{Priority, Purpose};
use crate::preset::{Preset, VerifyUpload};
use crate::trailer::Part;

/// Bytes gathered before they are written. An upload holds at most twice this and one more piece, and the fragments of it.
const BATCH_BYTES: usize = 4 << 20;
/// Times a put whose bytes are all here begins, leaving out the OSDs that failed before.
const ATTEMPTS: usize = 3;

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
        let Some(preset) = self.inner.nsm.target(&namespace, &name).await? else {
            return Ok(Put::Exists);
        };
        let (inner, order) =
            (self.inner.clone(), self.inner.order(&namespace, &name, len, purpose));
        to_its_end(Box::pin(async move {
            let _permit = permit;
            inner.put_whole(&preset, &order, &body).await
        }))
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
        let order = self.inner.order(&namespace, &name, len, purpose);
        let state = match self.inner.nsm.target(&namespace, &name).await? {
            None => State::Exists,
            Some(preset) if len <= self.inner.config.hold_bytes => State::Held(Box::new(preset)),
            Some(preset) => {
                self.inner.check_nsm(purpose).await?;
                let none = HashSet::new();
                let begin = Sending::begin(&self.inner, preset, &order, &none);
                let sending = Box::pin(begin).await?;
                State::Idle(Box::new(sending))
            }
        };
        let alba = self.clone();
        Ok(Upload { alba, order, crc, state, batch: Vec::new(), batch_len: 0, _permit: permit })
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
    order: Order,
    crc: Option<u32>,
    state: State,
    batch: Vec<Bytes>,
    batch_len: usize,
    _permit: OwnedSemaphorePermit,
}

enum State {
    /// The name was taken from the start: what arrives is passed over.
    Exists,
    /// So small that it is held until it is whole: then it can begin again where an OSD fails.
    Held(Box<Preset>),
    Idle(Box<Sending>),
    Writing(JoinHandle<Result<Sending>>),
    Failed,
}

impl Upload {
    /// Whether the name was taken when the put began; then the bytes need not be sent.
    #[must_use]
    pub fn exists(&self) -> bool {
        matches!(self.state, State::Exists)
    }

    /// What arrives must match this checksum, whatever was said at the beginning.
    pub fn expect(&mut self, crc: u32) {
        self.crc = Some(crc);
    }

    /// The next bytes; returns once there is room for more.
    pub async fn push(&mut self, piece: Bytes) -> Result<()> {
        // Without end, pieces of nothing would fill the memory.
        if self.exists() || piece.is_empty() {
            return Ok(());
        }
        self.batch_len += piece.len();
        self.batch.push(piece);
        let is_held = matches!(self.state, State::Held(_));
        if is_held && self.batch_len as u64 > self.order.len {
            self.state = State::Failed;
            let (given, len) = (self.batch_len, self.order.len);
            return Err(Fault::invalid(format!("{given} bytes given, {len} announced")));
        }
        if !is_held && self.batch_len >= BATCH_BYTES {
            self.write_batch().await?;
        }
        Ok(())
    }

    /// Makes the object durable and puts its manifest, if the name is still free.
    pub async fn finish(mut self) -> Result<Put> {
        if self.exists() {
            return Ok(Put::Exists);
        }
        let batch = std::mem::take(&mut self.batch);
        let (inner, order, crc) = (self.alba.inner.clone(), self.order.clone(), self.crc);
        if let State::Held(preset) = &self.state {
            check_crc(&batch, crc)?;
            let preset = preset.clone();
            return to_its_end(Box::pin(
                async move { inner.put_whole(&preset, &order, &batch).await },
            ))
            .await;
        }
        let mut sending = self.settled().await?;
        to_its_end(Box::pin(async move {
            let sent = sending.append(&batch).await;
            let manifest = sending.finish(sent, crc).await?;
            inner.publish(&order, manifest, sending.lanes).await
        }))
        .await
    }

    async fn write_batch(&mut self) -> Result<()> {
        let mut sending = self.settled().await?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_len = 0;
        self.state = State::Writing(tokio::spawn(async move {
            match sending.append(&batch).await {
                Ok(()) => Ok(sending),
                Err(fault) => {
                    sending.lanes.discard().await;
                    Err(fault)
                }
            }
        }));
        Ok(())
    }

    /// What is sending, once its last write has ended.
    async fn settled(&mut self) -> Result<Sending> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle(sending) => Ok(*sending),
            State::Writing(task) => task.await.map_err(|e| Fault {
                source: Some(Box::new(e)),
                ..Fault::bug("a write did not end")
            })?,
            State::Exists | State::Held(_) | State::Failed => {
                Err(Fault::invalid("this upload has failed before"))
            }
        }
    }
}

/// An object being cut into fragments that are being written.
pub(super) struct Sending {
    inner: Arc<Inner>,
    preset: Preset,
    layout: Layout,
    object: ObjectId,
    encoder: Encoder,
    /// Of the object so far; fragments that are copies know it themselves.
    sum: Option<crc32fast::Hasher>,
    pub lanes: Lanes,
    begun: Instant,
    created_ms: u64,
}

impl Sending {
    pub async fn begin(
        inner: &Arc<Inner>,
        preset: Preset,
        order: &Order,
        without: &HashSet<OsdId>,
    ) -> Result<Self> {
        let object = inner.outside.object_id();
        let mut without = without.clone();
        let mut full = None;
        loop {
            let choice = inner.osds.choose(&preset, order.len, order.purpose, &without).await;
            // That there is no room says more than that others are missing.
            let choice = choice.map_err(|fault| full.take().unwrap_or(fault));
            let choice = choice.inspect_err(|fault| inner.note_shortage(fault))?;
            let layout = Layout { len: order.len, policy: choice.policy, unit: preset.unit };
            let part = Part { object, layout, object_crc: 0, index: 0 };
            let places: Vec<(usize, OsdId)> = choice.osds.iter().copied().enumerate().collect();
            let least = choice.policy.least();
            let mut lanes = Lanes::open(inner, order, part, (&places, least)).await;
            if lanes.count() >= least {
                let sum = (!choice.policy.is_copies()).then(crc32fast::Hasher::new);
                let (inner, encoder) = (inner.clone(), Encoder::new(layout));
                let (begun, created_ms) = (Instant::now(), order.created_ms);
                return Ok(Self {
                    inner,
                    preset,
                    layout,
                    object,
                    encoder,
                    sum,
                    lanes,
                    begun,
                    created_ms,
                });
            }
            lanes.discard().await;
            without.extend(lanes.failed());
            let fault = lanes.first_fault();
            if without.len() >= inner.osds.count() || fault.kind == Kind::NoSpace {
                full = Some(fault);
            }
        }
    }

    /// The next bytes, cut and handed to the lanes.
    pub async fn append(&mut self, pieces: &[Bytes]) -> Result<()> {
        if let Some(sum) = &mut self.sum {
            pieces.iter().for_each(|piece| sum.update(piece));
        }
        let shares = if self.layout.policy.is_copies() {
            self.encoder.push(pieces)?
        } else {
            self.encode(pieces.to_vec()).await?
        };
        self.lanes.append(shares, self.layout.policy.least()).await
    }

    /// Away from the threads that answer.
    async fn encode(&mut self, pieces: Vec<Bytes>) -> Result<Shares> {
        let mut encoder = std::mem::replace(&mut self.encoder, Encoder::new(self.layout));
        let work = move || encoder.push(&pieces).map(|shares| (encoder, shares));
        let (encoder, shares) = self.inner.blocking.run(work).await?;
        self.encoder = encoder;
        Ok(shares)
    }

    /// Waits until enough is stored. On failure nothing of it is left.
    pub async fn finish(&mut self, sent: Result<()>, crc: Option<u32>) -> Result<Manifest> {
        let outcome = match sent {
            Ok(()) => self.store(crc).await,
            Err(fault) => Err(fault),
        };
        match outcome {
            Ok(crc) => {
                let Layout { len, policy, unit } = self.layout;
                let created_ms = self.created_ms;
                let (id, codec, fragments) = (self.object, Codec::of(policy), self.lanes.stored());
                Ok(Manifest { id, len, crc, created_ms, policy, codec, unit, fragments })
            }
            Err(fault) => {
                self.inner.note_shortage(&fault);
                self.lanes.discard().await;
                Err(fault)
            }
        }
    }

    async fn store(&mut self, announced: Option<u32>) -> Result<u32> {
        self.encoder.check_complete()?;
        let known = self.sum.take().map(crc32fast::Hasher::finalize);
        let spent = self.begun.elapsed();
        self.lanes.finish(known, self.layout.policy.least(), spent).await?;
        let stored = self.lanes.stored();
        let of_copies = stored.first().map(|fragment| fragment.crc);
        let crc = known.or(of_copies).ok_or_else(|| Fault::bug("a put stored nothing"))?;
        if let Some(announced) = announced
            && crc != announced
        {
            return Err(other_bytes(crc, announced));
        }
        if self.preset.verify == VerifyUpload::ReadBack {
            for fragment in &stored {
                self.inner.verify(self.layout, fragment, Priority::Foreground).await?;
            }
        }
        Ok(crc)
    }
}

impl Inner {
    /// Rings for the collector when room is short.
    pub(super) fn note_shortage(&self, fault: &Fault) {
        if fault.kind == Kind::NoSpace {
            self.shortage.notify_one();
        }
    }

    /// Begins again when it took so long that what it stored is being collected.
    async fn put_whole(
        self: &Arc<Self>,
        preset: &Preset,
        order: &Order,
        body: &[Bytes],
    ) -> Result<Put> {
        for _ in 1..ATTEMPTS {
            let (manifest, lanes) = self.store(preset, order, body).await?;
            match self.publish(order, manifest, lanes).await {
                Err(fault) if fault.kind == Kind::Outdated => self.refresh_epoch().await?,
                outcome => return outcome,
            }
        }
        let (manifest, lanes) = self.store(preset, order, body).await?;
        self.publish(order, manifest, lanes).await
    }

    /// Stores an object whose bytes are all here, ready for its manifest. A failed OSD is left out of the next attempt.
    pub(super) async fn store(
        self: &Arc<Self>,
        preset: &Preset,
        order: &Order,
        body: &[Bytes],
    ) -> Result<(Manifest, Lanes)> {
        self.check_nsm(order.purpose).await?;
        let mut without = HashSet::new();
        for attempt in 1.. {
            let mut sending = Sending::begin(self, preset.clone(), order, &without).await?;
            let sent = send_all(&mut sending, body).await;
            let fault = match sending.finish(sent, None).await {
                Ok(manifest) => return Ok((manifest, sending.lanes)),
                Err(fault) => fault,
            };
            let failed = sending.lanes.failed();
            let may_pass = matches!(fault.kind, Kind::Unavailable | Kind::NoSpace);
            if attempt >= ATTEMPTS || failed.is_empty() || !may_pass {
                return Err(fault);
            }
            without.extend(failed);
        }
        Err(Fault::bug("attempts without end"))
    }

    /// Whether the NSM will take the manifest: it works, and its file system has room beside the objects.
    async fn check_nsm(self: &Arc<Self>, purpose: Purpose) -> Result<()> {
        let checked = match self.nsm.check_takes_changes().await {
            Ok(()) => self.check_nsm_room(purpose).await,
            Err(fault) => Err(fault),
        };
        checked.inspect_err(|fault| self.note_shortage(fault))
    }

    async fn check_nsm_room(&self, purpose: Purpose) -> Result<()> {
        let Some(space) = self.nsm_space.clone() else { return Ok(()) };
        let room = self.blocking.run(move || space.room()).await?;
        if room.free_for(purpose) == 0 {
            let dir = self.config.data_dir.display();
            let message = format!("metadata {dir}: no room but the reserve");
            return Err(Fault::new(Kind::NoSpace, message));
        }
        Ok(())
    }

    /// The linearization point. What was stored stays or goes with its outcome; what is still being stored is recorded when
    /// it is done.
    async fn publish(
        self: &Arc<Self>,
        order: &Order,
        manifest: Manifest,
        mut lanes: Lanes,
    ) -> Result<Put> {
        let id = manifest.id;
        let outcome = self.nsm.put_if_absent(&order.namespace, &order.name, &manifest).await;
        lanes.settle(matches!(outcome, Ok(Put::Created)), outcome.as_ref().err());
        if matches!(outcome, Ok(Put::Created)) {
            late::record(self, order, id, lanes);
        } else {
            lanes.discard().await;
        }
        outcome
    }
}

/// In a task of its own: once a manifest may be there, nobody must stop half-way because a caller no longer waits.
/// Boxed, so that those who wait for it have small futures.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: BoxFuture<'static, Result<T>>,
) -> Result<T> {
    let ended = |e| Fault { source: Some(Box::new(e)), ..Fault::bug("a put did not end") };
    tokio::spawn(work).await.map_err(ended)?
}

fn check_crc(pieces: &[Bytes], announced: Option<u32>) -> Result<()> {
    let Some(announced) = announced else { return Ok(()) };
    let mut sum = crc32fast::Hasher::new();
    pieces.iter().for_each(|piece| sum.update(piece));
    let crc = sum.finalize();
    if crc == announced { Ok(()) } else { Err(other_bytes(crc, announced)) }
}

fn other_bytes(crc: u32, announced: u32) -> Fault {
    Fault::invalid(format!(
        "the bytes received have checksum {crc:08x}, {announced:08x} was announced"
    ))
}

/// By batches, so that no more than a few of them are in memory as fragments.
async fn send_all(sending: &mut Sending, body: &[Bytes]) -> Result<()> {
    if sending.layout.policy.is_copies() {
        return sending.append(body).await;
    }
    for piece in body {
        for at in (0..piece.len()).step_by(BATCH_BYTES) {
            let part = piece.slice(at..(at + BATCH_BYTES).min(piece.len()));
            sending.append(&[part]).await?;
        }
    }
    Ok(())
}
