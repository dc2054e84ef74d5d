//! The OSD that is a local directory: a [`Directory`] behind its own few blocking threads, so that a disk that hangs takes
//! no thread from the others.

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;

use super::gate::{Gate, Priority};
use super::read::{ObjectFile, read_exact};
use super::write::ObjectWriter;
use super::{Directory, Fragment, FragmentWriter, Osd, Room, Sequence, Title, Wanted};
use crate::background;
use crate::fault::{Fault, Result};
use crate::name::{AlbaId, FragmentId, OsdId};
use crate::trailer::Trailer;

#[derive(Debug)]
pub struct Local {
    directory: Arc<Directory>,
    threads: Threads,
}

/// A change of whose it is.
#[derive(Clone, Copy, Debug)]
pub enum Ownership {
    Claim(AlbaId),
    Release(AlbaId),
}

/// A fragment's file, for whoever checks what it says.
#[derive(Clone, Debug)]
pub struct Bare {
    file: Arc<File>,
    threads: Threads,
    priority: Priority,
}

impl Bare {
    /// Exactly this range of the file.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Bytes> {
        let file = self.file.clone();
        let read = move || read_exact(&file, offset, len).map(Bytes::from);
        self.threads.run(self.priority, read).await
    }
}

/// How many blocking threads one OSD may have, and who gets them.
#[derive(Clone, Debug)]
struct Threads(Gate);

impl Threads {
    /// The work runs to its end even when the caller no longer waits.
    async fn run<T: Send + 'static>(
        &self,
        priority: Priority,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = self.0.enter(priority).await?;
        let runtime = match priority {
            Priority::Foreground => Handle::current(),
            Priority::Background => background::handle(),
        };
        let task = runtime.spawn_blocking(move || {
            let _place = place;
            work()
        });
        let ended =
            |e| Fault { source: Some(Box::new(e)), ..Fault::bug("a blocking task did not end") };
        task.await.map_err(ended)?
    }
}

impl Local {
    pub fn new(directory: Directory, threads: usize) -> Self {
        Self { directory: Arc::new(directory), threads: Threads(Gate::new(threads)) }
    }

    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The checksums of a fragment's blocks. `None` when there is none.
    pub async fn blocks(&self, wanted: Wanted, priority: Priority) -> Result<Option<Vec<u32>>> {
        let open = move |directory: &Directory| {
            let opened = directory.open_fragment(wanted)?;
            Ok(opened.map(|file| file.block_crcs().to_vec()))
        };
        self.run(priority, open).await
    }

    /// Opens a fragment for reading it as it lies there. `None` when there is none.
    pub async fn open_unverified(
        &self,
        file: FragmentId,
        priority: Priority,
    ) -> Result<Option<Bare>> {
        let opened = self.run(priority, move |directory| directory.open_plain(file)).await?;
        Ok(opened.map(|file| Bare {
            file: Arc::new(file),
            threads: self.threads.clone(),
            priority,
        }))
    }

    /// Makes it this backend's, or nobody's.
    pub async fn set_owner(&self, change: Ownership) -> Result<()> {
        self.run(Priority::Foreground, move |directory| match change {
            Ownership::Claim(alba) => directory.claim(alba),
            Ownership::Release(alba) => directory.release(alba),
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        priority: Priority,
        work: impl FnOnce(&Directory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let directory = self.directory.clone();
        self.threads.run(priority, move || work(&directory)).await
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
        self.run(Priority::Foreground, Directory::room).await
    }
    async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>> {
        let (priority, threads) = (title.priority, self.threads.clone());
        let writer = self.run(priority, move |directory| directory.create(&title)).await?;
        Ok(Box::new(LocalWriter { writer: Some(writer), threads, priority }))
    }
    async fn open(&self, wanted: Wanted, priority: Priority) -> Result<Option<Arc<dyn Fragment>>> {
        let threads = self.threads.clone();
        let opened = self.run(priority, move |directory| directory.open_fragment(wanted)).await?;
        Ok(opened.map(|file| Arc::new(LocalFragment { file, threads }) as Arc<dyn Fragment>))
    }
    fn has_files(&self) -> bool {
        true
    }
    async fn open_raw(&self, file: FragmentId) -> Result<Option<File>> {
        self.run(Priority::Foreground, move |directory| directory.open_raw(file)).await
    }
    async fn remove(&self, file: FragmentId) -> Result<()> {
        self.run(Priority::Foreground, move |directory| directory.remove(file)).await
    }
    async fn apply(&self, sequence: Sequence) -> Result<Vec<u32>> {
        self.run(sequence.priority, move |directory| directory.apply(&sequence)).await
    }
    async fn describe(&self, file: FragmentId) -> Result<Option<Trailer>> {
        self.run(Priority::Background, move |directory| directory.describe(file)).await
    }
    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        self.run(Priority::Background, move |directory| directory.files_of_shard(shard)).await
    }
    async fn release(&self, alba: AlbaId) -> Result<()> {
        self.set_owner(Ownership::Release(alba)).await
    }
}

struct LocalWriter {
    /// `None` while a thread has it; then that thread drops it when nobody takes it back.
    writer: Option<ObjectWriter>,
    threads: Threads,
    priority: Priority,
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
            .run(self.priority, move || {
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
        let _ = self.threads.run(self.priority, dropped).await;
    }
}

struct LocalFragment {
    file: ObjectFile,
    threads: Threads,
}

#[async_trait]
impl Fragment for LocalFragment {
    async fn read(self: Arc<Self>, from: u64, to: u64, priority: Priority) -> Result<Bytes> {
        let threads = self.threads.clone();
        threads.run(priority, move || self.file.read(from, to - from)).await
    }
    fn read_here(&self, from: u64, to: u64) -> Option<Result<Bytes>> {
        Some(self.file.read(from, to - from))
    }
    fn is_removed(&self) -> bool {
        self.file.is_removed()
    }
}
