//! The way of a management question to the shard's thread: a bounded channel there, a oneshot back.
//!
//! The shard takes [`Command`]s from the receiver of [`door`] and answers each. When it is gone, every question is answered
//! with `Closed`.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::ByteCount;

use super::{Attached, BackendInfo, CreateSpec, Engine, EngineStatus, ProbeInfo, VdiskInfo};
use crate::config::Config;

/// Questions that may wait for the shard.
const CAPACITY: usize = 64;

pub type Answer<T> = oneshot::Sender<Result<T>>;

/// One question with the way back.
#[derive(Debug)]
pub enum Command {
    Create(CreateSpec, Answer<VdiskInfo>),
    List(Answer<Vec<VdiskInfo>>),
    Show(String, Answer<VdiskInfo>),
    Resize(String, ByteCount, Answer<VdiskInfo>),
    Delete(String, Attached, Answer<()>),
    AcceptLoss(String, Attached, Answer<VdiskInfo>),
    Flush(String, Answer<VdiskInfo>),
    Status(Answer<EngineStatus>),
    Backend(Answer<BackendInfo>),
    Probe(Answer<ProbeInfo>),
    Reload(Arc<Config>, Answer<()>),
}

/// The asking side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Door {
    commands: mpsc::Sender<Command>,
}

/// Both sides of a new door.
#[must_use]
pub fn door() -> (Door, mpsc::Receiver<Command>) {
    let (commands, receiver) = mpsc::channel(CAPACITY);
    (Door { commands }, receiver)
}

impl Door {
    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T> {
        let (answer, question) = oneshot::channel();
        let closed = || Fault::closed("the engine is shutting down");
        self.commands.send(command(answer)).await.map_err(|_| closed())?;
        question.await.map_err(|_| closed())?
    }
}

impl Engine for Door {
    async fn create(&self, spec: CreateSpec) -> Result<VdiskInfo> {
        self.ask(|answer| Command::Create(spec, answer)).await
    }
    async fn list(&self) -> Result<Vec<VdiskInfo>> {
        self.ask(Command::List).await
    }
    async fn show(&self, name: String) -> Result<VdiskInfo> {
        self.ask(|answer| Command::Show(name, answer)).await
    }
    async fn resize(&self, name: String, size: ByteCount) -> Result<VdiskInfo> {
        self.ask(|answer| Command::Resize(name, size, answer)).await
    }
    async fn delete(&self, name: String, attached: Attached) -> Result<()> {
        self.ask(|answer| Command::Delete(name, attached, answer)).await
    }
    async fn accept_loss(&self, name: String, attached: Attached) -> Result<VdiskInfo> {
        self.ask(|answer| Command::AcceptLoss(name, attached, answer)).await
    }
    async fn flush(&self, name: String) -> Result<VdiskInfo> {
        self.ask(|answer| Command::Flush(name, answer)).await
    }
    async fn status(&self) -> Result<EngineStatus> {
        self.ask(Command::Status).await
    }
    async fn backend(&self) -> Result<BackendInfo> {
        self.ask(Command::Backend).await
    }
    async fn probe(&self) -> Result<ProbeInfo> {
        self.ask(Command::Probe).await
    }
    async fn reload(&self, config: Arc<Config>) -> Result<()> {
        self.ask(|answer| Command::Reload(config, answer)).await
    }
}
