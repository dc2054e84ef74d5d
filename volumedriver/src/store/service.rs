//! The way from a shard's thread to the service runtime: spawn there, wait here.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use volumedriver_core::fault::{Fault, Result};

/// Calls of one store under way at once; more wait.
const IN_FLIGHT: usize = 64;

/// A runtime and a bound.
#[derive(Clone, Debug)]
pub(super) struct Service {
    runtime: Handle,
    in_flight: Arc<Semaphore>,
}

impl Service {
    /// Of the runtime this is called on.
    pub(super) fn here() -> Self {
        Self::with(IN_FLIGHT)
    }

    /// Of the runtime this is called on, with another bound.
    pub(super) fn with(in_flight: usize) -> Self {
        Self { runtime: Handle::current(), in_flight: Arc::new(Semaphore::new(in_flight)) }
    }

    /// Does work that nobody waits for.
    pub(super) fn behind(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(work));
    }

    /// Does work on the service runtime. A caller that stops waiting does not stop the work.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let closed = |_| Fault::bug("the bound of a store was closed");
        let permit = self.in_flight.clone().acquire_owned().await.map_err(closed)?;
        let task = self.runtime.spawn(async move {
            let _permit = permit;
            work.await
        });
        task.await.map_err(|error| {
            if error.is_panic() {
                Fault::bug("a call of the store panicked").because(error)
            } else {
                Fault::closed("the daemon is shutting down")
            }
        })?
    }
}
