//! OSDs that fail on command: real directories behind a switch.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;

use super::*;
use crate::osd::{Fragment, FragmentWriter, Local, Osd, Priority, Room, Wanted};
use crate::trailer::Trailer;

/// What an OSD does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Good,
    /// Every call fails.
    Down,
    /// No call ends while this lasts.
    Hung,
    /// Every call takes 300 ms longer.
    Slow,
    /// New fragments do not fit.
    Full,
    /// Fragments cannot be ended: the last sync fails.
    Unsynced,
}

const MOODS: [Mood; 6] =
    [Mood::Good, Mood::Down, Mood::Hung, Mood::Slow, Mood::Full, Mood::Unsynced];

#[derive(Clone, Debug, Default)]
pub struct Switch(Arc<AtomicU8>);

impl Switch {
    pub fn set(&self, mood: Mood) {
        self.0.store(MOODS.iter().position(|m| *m == mood).unwrap() as u8, Ordering::SeqCst);
    }
    pub fn mood(&self) -> Mood {
        MOODS[usize::from(self.0.load(Ordering::SeqCst))]
    }
    pub async fn pass(&self) -> Result<()> {
        while self.mood() == Mood::Hung {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        match self.mood() {
            Mood::Slow => tokio::time::sleep(Duration::from_millis(300)).await,
            Mood::Down => return Err(Fault::unavailable("switched off")),
            _ => {}
        }
        Ok(())
    }
}

/// The wrapped OSDs of a backend, for [`open::in_directory`].
pub fn wrapped(
    nodes: &[&str],
    switches: &[Switch],
) -> impl FnOnce(&Config, AlbaId) -> Result<Vec<GivenOsd>> + Send + 'static {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let switches = switches.to_vec();
    move |config, alba| {
        let mut given = Vec::new();
        for (n, (node, switch)) in nodes.into_iter().zip(switches).enumerate() {
            let path = osd_path(&config.data_dir, n);
            let directory = Directory::open(&path, alba, config.limits())?;
            let osd = Box::new(Faulty { osd: Local::new(directory, 4), switch });
            given.push(GivenOsd { osd, node, labels: Vec::new() });
        }
        Ok(given)
    }
}

pub fn osd_path(data_dir: &Path, n: usize) -> PathBuf {
    data_dir.with_file_name(format!("osd{n}"))
}

#[derive(Debug)]
struct Faulty {
    osd: Local,
    switch: Switch,
}

#[async_trait]
impl Osd for Faulty {
    fn id(&self) -> OsdId {
        self.osd.id()
    }
    fn place(&self) -> String {
        self.osd.place()
    }
    async fn room(&self) -> Result<Room> {
        self.switch.pass().await?;
        self.osd.room().await
    }
    async fn create(&self, title: Title) -> Result<Box<dyn FragmentWriter>> {
        self.switch.pass().await?;
        if self.switch.mood() == Mood::Full {
            return Err(Fault::new(Kind::NoSpace, "switched to full"));
        }
        let writer = self.osd.create(title).await?;
        Ok(Box::new(FaultyWriter { writer, switch: self.switch.clone() }))
    }
    async fn open(&self, wanted: Wanted, priority: Priority) -> Result<Option<Arc<dyn Fragment>>> {
        self.switch.pass().await?;
        let (opened, switch) = (self.osd.open(wanted, priority).await?, self.switch.clone());
        Ok(opened
            .map(|fragment| Arc::new(FaultyFragment { fragment, switch }) as Arc<dyn Fragment>))
    }
    fn has_files(&self) -> bool {
        true
    }
    async fn open_raw(&self, file: FragmentId) -> Result<Option<File>> {
        self.switch.pass().await?;
        self.osd.open_raw(file).await
    }
    async fn remove(&self, file: FragmentId) -> Result<()> {
        self.switch.pass().await?;
        self.osd.remove(file).await
    }
    async fn describe(&self, file: FragmentId) -> Result<Option<Trailer>> {
        self.switch.pass().await?;
        self.osd.describe(file).await
    }
    async fn list(&self, shard: u8) -> Result<Vec<FragmentId>> {
        self.switch.pass().await?;
        self.osd.list(shard).await
    }
}

struct FaultyWriter {
    writer: Box<dyn FragmentWriter>,
    switch: Switch,
}

#[async_trait]
impl FragmentWriter for FaultyWriter {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        self.switch.pass().await?;
        self.writer.append(pieces).await
    }
    async fn finish(&mut self, object_crc: Option<u32>) -> Result<u32> {
        self.switch.pass().await?;
        if self.switch.mood() == Mood::Unsynced {
            return Err(Fault::unavailable("switched to failing syncs"));
        }
        self.writer.finish(object_crc).await
    }
    fn keep(&mut self) {
        self.writer.keep();
    }
    async fn discard(self: Box<Self>) {
        self.writer.discard().await;
    }
}

struct FaultyFragment {
    fragment: Arc<dyn Fragment>,
    switch: Switch,
}

#[async_trait]
impl Fragment for FaultyFragment {
    async fn read(self: Arc<Self>, from: u64, to: u64, priority: Priority) -> Result<Bytes> {
        self.switch.pass().await?;
        self.fragment.clone().read(from, to, priority).await
    }
    fn read_here(&self, _from: u64, _to: u64) -> Option<Result<Bytes>> {
        None
    }
    fn is_removed(&self) -> bool {
        self.fragment.is_removed()
    }
}
