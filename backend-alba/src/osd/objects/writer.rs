//! Writing a fragment that is to be an object: a task sends it while it is being made.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Inner;
use crate::fault::{Fault, Result};
use crate::name::FragmentId;
use crate::net::Chunks;
use crate::osd::gate::Place;
use crate::osd::patience::{DEADLINE, SLOW_DEADLINE, for_bytes};
use crate::osd::write::Draft;
use crate::osd::{FragmentWriter, Title};

/// Pieces between the writer and the task that sends them.
const QUEUE: usize = 2;

pub(super) struct ObjectsWriter {
    osd: Arc<Inner>,
    file: FragmentId,
    len: u64,
    draft: Draft,
    /// `None` once nothing more may come.
    queue: Option<mpsc::Sender<Bytes>>,
    /// `None` once it has ended.
    upload: Option<JoinHandle<Result<()>>>,
    end: End,
    _place: Option<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Something may be there.
    Open,
    Kept,
    Removed,
}

impl ObjectsWriter {
    /// Of `len` bytes with its trailer.
    pub(super) fn begin(osd: Arc<Inner>, title: &Title, len: u64, place: Option<Place>) -> Self {
        let (queue, body) = mpsc::channel(QUEUE);
        let (objects, key) = (osd.objects.clone(), osd.key(title.file));
        let upload = tokio::spawn(async move { objects.put(&key, len, body).await });
        let (file, draft, end) = (title.file, Draft::of(title), End::Open);
        Self { osd, file, len, draft, queue: Some(queue), upload: Some(upload), end, _place: place }
    }

    async fn send(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        for chunk in Chunks::of(pieces) {
            let lost = || Fault::unavailable("this fragment was given up before");
            let send = self.queue.as_ref().ok_or_else(lost)?.send(chunk);
            match tokio::time::timeout(SLOW_DEADLINE, send).await {
                Ok(Ok(())) => {}
                // The upload has ended: it says why.
                Ok(Err(_)) => {
                    self.queue = None;
                    return Err(self.ended(DEADLINE).await.err().unwrap_or_else(lost));
                }
                Err(_) => {
                    self.give_up();
                    return Err(Fault::unavailable("it takes no bytes"));
                }
            }
        }
        Ok(())
    }

    /// Waits for the upload; what takes longer is given up.
    async fn ended(&mut self, deadline: Duration) -> Result<()> {
        let lost = || Fault::unavailable("this fragment was given up before");
        let mut upload = self.upload.take().ok_or_else(lost)?;
        match tokio::time::timeout(deadline, &mut upload).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => Err(Fault { source: Some(Box::new(e)), ..Fault::bug("an upload broke") }),
            Err(_) => {
                upload.abort();
                Err(Fault::unavailable("it does not say that it has a fragment"))
            }
        }
    }

    fn give_up(&mut self) {
        self.queue = None;
        if let Some(upload) = self.upload.take() {
            upload.abort();
        }
    }

    async fn store(&mut self, object_crc: Option<u32>) -> Result<u32> {
        let (crc, end) = self.draft.finish(object_crc)?;
        self.send(vec![Bytes::from(end)]).await?;
        self.queue = None;
        self.ended(for_bytes(SLOW_DEADLINE, self.len)).await?;
        Ok(crc)
    }
}

#[async_trait]
impl FragmentWriter for ObjectsWriter {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        let sent = match self.draft.add(&pieces) {
            Ok(()) => self.send(pieces).await,
            Err(fault) => Err(fault),
        };
        self.osd.named(sent)
    }

    async fn finish(&mut self, object_crc: Option<u32>) -> Result<u32> {
        let stored = self.store(object_crc).await;
        self.osd.named(stored)
    }

    fn keep(&mut self) {
        self.end = End::Kept;
    }

    async fn discard(mut self: Box<Self>) {
        if self.end == End::Kept {
            return;
        }
        self.end = End::Removed;
        // An upload whose queue ends early ends by itself.
        self.queue = None;
        if self.upload.is_some() {
            let _ = self.ended(DEADLINE).await;
        }
        if let Err(fault) = self.osd.remove(self.file).await {
            tracing::warn!(%fault, fragment = %self.file, "an unwanted fragment stays until it is collected");
        }
    }
}

impl Drop for ObjectsWriter {
    fn drop(&mut self) {
        self.give_up();
        if self.end != End::Open {
            return;
        }
        let (osd, file) = (self.osd.clone(), self.file);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // What cannot be removed now is collected later.
            runtime.spawn(async move { osd.remove(file).await });
        }
    }
}
