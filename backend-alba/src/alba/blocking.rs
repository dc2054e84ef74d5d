//! Where work is done, and bounds: how many blocking threads, uploads and reads may be under way at once.

use std::sync::Arc;

use tokio::runtime::{EnterGuard, Handle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Config;
use crate::background;
use crate::fault::{Fault, Result};

/// Where work that takes a processor, or blocks, is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// On the runtime's blocking threads.
    #[default]
    Blocking,
    /// On the thread that asks, so that a run in simulated time can be repeated.
    Here,
}

#[derive(Clone, Debug)]
pub(super) struct Blocking {
    kind: Threads,
    /// The runtime the backend was opened on.
    home: Handle,
    threads: Arc<Semaphore>,
    puts: Arc<Semaphore>,
    gets: Arc<Semaphore>,
}

impl Blocking {
    pub(super) fn new(config: &Config, kind: Threads) -> Self {
        let of = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        Self {
            kind,
            home: Handle::current(),
            threads: of(config.blocking_count),
            puts: of(config.put_count),
            gets: of(config.get_count),
        }
    }

    /// Runs work on a blocking thread, as soon as one is free for us. The work runs to its end even when the caller no
    /// longer waits.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.kind == Threads::Here {
            return work();
        }
        let permit = permit(&self.threads).await?;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        let ended =
            |e| Fault { source: Some(Box::new(e)), ..Fault::bug("a blocking task did not end") };
        task.await.map_err(ended)?
    }

    /// What is spawned while this lives runs where the backend was opened, also if the background asks for it.
    pub(super) fn home(&self) -> EnterGuard<'_> {
        self.home.enter()
    }

    /// Work that nobody waits for.
    pub(super) fn spawn_in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        match self.kind {
            Threads::Blocking => drop(background::handle().spawn(work)),
            Threads::Here => drop(tokio::spawn(work)),
        }
    }

    pub(super) async fn may_put(&self) -> Result<OwnedSemaphorePermit> {
        permit(&self.puts).await
    }
    pub(super) async fn may_get(&self) -> Result<OwnedSemaphorePermit> {
        permit(&self.gets).await
    }
}

async fn permit(of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    of.clone().acquire_owned().await.map_err(|_| Fault::bug("a bound of the backend was closed"))
}
