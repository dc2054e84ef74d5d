//! The OSD that is a local directory: a [`Directory`] behind its own few blocking threads, so that a disk that hangs takes
//! no thread from the others.

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::read::ObjectFile;
use super::write::ObjectWriter;
use super::{Directory, Fragment, FragmentWriter, Osd, Room, Title, Wanted};
use crate::fault::{Fault, Result};
use crate::name::{FragmentId, OsdId};
use crate::trailer::Trailer;

#[derive(Debug)]
pub struct Local {
    directory: Arc<Directory>,
    threads: Threads,
}

/// How many blocking threads one OSD may have.
#[derive(Clone, Debug)]
struct Threads(Arc<Semaphore>);

impl Threads {
    /// The work runs to its end even when the caller no longer waits.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let closed = |_| Fault::bug("the threads of an OSD were closed");
        let permit = self.0.clone().acquire_owned().await.map_err(closed)?;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        let ended =
            |e| Fault { source: Some(Box::new(e)), ..Fault::bug("a blocking task did not end") };
        task.await.map_err(ended)?
    }
}

impl Local {
    pub fn new(directory: Directory, threads: usize) -> Self {
        let threads = Threads(Arc::new(Semaphore::new(threads.clamp(1, Semaphore::MAX_PERMITS))));
        Self { directory: Arc::new(directory), threads }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let directory = self.directory.clone();
        self.threads.run(move || work(&directory)).await
    }
}

#[async_trait]
impl Osd for Local {
    fn id(&self) -> OsdId {
        self.directory.id
    }
    fn place(&self) -> String {
        self.directory.path().display().to_string()
    }
    async fn room(&self) -> Result<Room> {
        self.run(Directory::room).await
    }
    async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>> {
        let writer = self.run(move |directory| directory.create(&title)).await?;
        Ok(Box::new(LocalWriter { writer: Some(writer), threads: self.threads.clone() }))
    }
    async fn open(&self, wanted: Wanted) -> Result<Option<Arc<dyn Fragment>>> {
        let threads = self.threads.clone();
        let opened = self.run(move |directory| directory.open_fragment(wanted)).await?;
        Ok(opened.map(|file| Arc::new(LocalFragment { file, threads }) as Arc<dyn Fragment>))
    }
    async fn open_raw(&self, file: FragmentId) -> Result<Option<File>> {
        self.run(move |directory| directory.open_raw(file)).await
    }
    async fn remove(&self, file: FragmentId) -> Result<()> {
        self.run(move |directory| directory.remove(file)).await
    }
    async fn describe(&self, file: FragmentId) -> Result<Option<Trailer>> {
        self.run(move |directory| directory.describe(file)).await
    }
    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        self.run(move |directory| directory.files_of_shard(shard)).await
    }
}

struct LocalWriter {
    /// `None` while a thread has it; then that thread drops it when nobody takes it back.
    writer: Option<ObjectWriter>,
    threads: Threads,
}

impl LocalWriter {
    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut ObjectWriter) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let lost = || Fault::unavailable("this fragment was given up before");
        let mut writer = self.writer.take().ok_or_else(lost)?;
        let (writer, outcome) = self
            .threads
            .run(move || {
                let outcome = work(&mut writer);
                Ok((writer, outcome))
            })
            .await?;
        self.writer = Some(writer);
        outcome
    }
}

#[async_trait]
impl FragmentWriter for LocalWriter {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        self.with(move |writer| writer.append(&pieces)).await
    }
    async fn finish(&mut self, object_crc: Option<u32>) -> Result<u32> {
        self.with(move |writer| writer.finish(object_crc)).await
    }
    fn keep(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.keep();
        }
    }
    async fn discard(mut self: Box<Self>) {
        let writer = self.writer.take();
        let dropped = move || {
            drop(writer);
            Ok(())
        };
        // Dropping does not fail; only a runtime that ends does.
        let _ = self.threads.run(dropped).await;
    }
}

struct LocalFragment {
    file: ObjectFile,
    threads: Threads,
}

#[async_trait]
impl Fragment for LocalFragment {
    async fn read(self: Arc<Self>, from: u64, to: u64) -> Result<Bytes> {
        let threads = self.threads.clone();
        threads.run(move || self.file.read(from, to - from)).await
    }
    fn read_here(&self, from: u64, to: u64) -> Option<Result<Bytes>> {
        Some(self.file.read(from, to - from))
    }
    fn is_removed(&self) -> bool {
        self.file.is_removed()
    }
}
