//! Repeats calls that failed with `Unavailable`: objects are immutable and puts are put-if-absent, so every call may be
//! repeated. After an attempt whose outcome is unknown, a put may find its own object: `Exists` is then right.
//!
//! Pauses double from the first to the longest, without jitter, so that a simulation is reproducible. Once all pauses of a
//! call add up to the patience, the fault is the caller's.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use volumedriver_core::fault::{Kind, Result};

use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};

/// What a pause is made of.
pub trait Clock: Clone + 'static {
    fn sleep(&self, how_long: Duration) -> impl Future<Output = ()>;
}

/// Timers of the runtime a call is awaited on.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeClock;

impl Clock for RuntimeClock {
    fn sleep(&self, how_long: Duration) -> impl Future<Output = ()> {
        tokio::time::sleep(how_long)
    }
}

/// How long calls are repeated.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// All pauses of one call together.
    pub total: Duration,
}

impl Default for Patience {
    /// From 50 ms to 5 s, 15 s together.
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
            total: Duration::from_secs(15),
        }
    }
}

/// A store whose calls are repeated.
#[derive(Clone)]
pub struct Retried<S, C> {
    store: S,
    clock: C,
    patience: Patience,
}

impl<S: ObjectStore, C: Clock> Retried<S, C> {
    pub fn new(store: S, clock: C, patience: Patience) -> Self {
        Self { store, clock, patience }
    }

    async fn retry<T>(&self, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let mut pause = self.patience.first_pause;
        let mut left = self.patience.total;
        loop {
            match attempt().await {
                Err(fault) if fault.kind == Kind::Unavailable && !left.is_zero() => {
                    tracing::debug!(%fault, pause_ms = pause.as_millis(), "the store is out of reach");
                }
                done => return done,
            }
            self.clock.sleep(pause.min(left)).await;
            left = left.saturating_sub(pause);
            pause = (pause * 2).min(self.patience.longest_pause);
        }
    }
}

impl<S: ObjectStore, C: Clock> ObjectStore for Retried<S, C> {
    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        self.retry(async || self.store.create_namespace(namespace).await).await
    }
    async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        self.retry(async || self.store.delete_namespace(namespace).await).await
    }
    async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        self.retry(async || self.store.list_namespaces(prefix).await).await
    }
    async fn put_if_absent(
        &self,
        namespace: &str,
        name: &str,
        body: Vec<Bytes>,
        purpose: Purpose,
    ) -> Result<Put> {
        let put = async || self.store.put_if_absent(namespace, name, body.clone(), purpose).await;
        self.retry(put).await
    }
    async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        self.retry(async || self.store.get_range(namespace, name, offset, len).await).await
    }
    async fn head(&self, namespace: &str, name: &str) -> Result<Option<ObjectInfo>> {
        self.retry(async || self.store.head(namespace, name).await).await
    }
    async fn list(
        &self,
        namespace: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        self.retry(async || self.store.list(namespace, prefix, after, limit).await).await
    }
    async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        self.retry(async || self.store.delete(namespace, name).await).await
    }
    fn pace(&self, bytes_per_s: Option<u64>) {
        self.store.pace(bytes_per_s);
    }
    fn is_on_this_disk(&self) -> bool {
        self.store.is_on_this_disk()
    }
    async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<Arc<std::fs::File>>> {
        self.retry(async || self.store.local_file(namespace, name).await).await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use volumedriver_core::fault::Fault;

    use super::*;

    /// Fails as long as there are faults left; a put is done before it fails, its reply is what is lost.
    #[derive(Clone, Default)]
    struct Flaky {
        faults: Rc<RefCell<Vec<Kind>>>,
        is_there: Rc<Cell<bool>>,
    }

    impl Flaky {
        fn failing(faults: impl IntoIterator<Item = Kind>) -> Self {
            Self {
                faults: Rc::new(RefCell::new(faults.into_iter().collect())),
                is_there: Rc::default(),
            }
        }
        fn answer<T>(&self, value: T) -> Result<T> {
            match self.faults.borrow_mut().pop() {
                Some(kind) => Err(Fault::new(kind, "as planned")),
                None => Ok(value),
            }
        }
    }

    impl ObjectStore for Flaky {
        async fn create_namespace(&self, _: &str) -> Result<()> {
            self.answer(())
        }
        async fn delete_namespace(&self, _: &str) -> Result<()> {
            self.answer(())
        }
        async fn list_namespaces(&self, _: &str) -> Result<Vec<String>> {
            self.answer(vec![])
        }
        async fn put_if_absent(&self, _: &str, _: &str, _: Vec<Bytes>, _: Purpose) -> Result<Put> {
            let was_there = self.is_there.replace(true);
            self.answer(if was_there { Put::Exists } else { Put::Created })
        }
        async fn get_range(&self, _: &str, _: &str, _: u64, _: u64) -> Result<Option<Bytes>> {
            self.answer(None)
        }
        async fn head(&self, _: &str, _: &str) -> Result<Option<ObjectInfo>> {
            self.answer(None)
        }
        async fn list(&self, _: &str, _: &str, _: Option<&str>, _: u32) -> Result<Vec<String>> {
            self.answer(vec![])
        }
        async fn delete(&self, _: &str, _: &str) -> Result<()> {
            self.answer(())
        }
    }

    /// Notes the pauses and returns at once.
    #[derive(Clone, Default)]
    struct Pauses(Rc<RefCell<Vec<u128>>>);

    impl Clock for Pauses {
        async fn sleep(&self, how_long: Duration) {
            self.0.borrow_mut().push(how_long.as_millis());
        }
    }

    async fn put(faults: impl IntoIterator<Item = Kind>) -> (Result<Put>, Vec<u128>) {
        let pauses = Pauses::default();
        let store = Retried::new(Flaky::failing(faults), pauses.clone(), Patience::default());
        let outcome = store.put_if_absent("ns", "x", vec![], Purpose::Data).await;
        (outcome, pauses.0.take())
    }

    #[tokio::test]
    async fn what_may_pass_is_repeated_and_a_lost_reply_shows_as_exists() {
        assert_eq!(put([]).await.0.unwrap(), Put::Created);
        let (outcome, pauses) = put([Kind::Unavailable; 3]).await;
        assert_eq!(outcome.unwrap(), Put::Exists);
        assert_eq!(pauses, [50, 100, 200]);
    }

    #[tokio::test]
    async fn patience_ends_after_15_seconds() {
        let (outcome, pauses) = put([Kind::Unavailable; 99]).await;
        assert_eq!(outcome.unwrap_err().kind, Kind::Unavailable);
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 3650]);
    }

    #[tokio::test]
    async fn what_will_not_pass_is_not_repeated() {
        for kind in
            [Kind::Invalid, Kind::NoSpace, Kind::Corrupt, Kind::Fenced, Kind::Closed, Kind::Bug]
        {
            let (outcome, pauses) = put([kind]).await;
            assert_eq!(outcome.unwrap_err().kind, kind);
            assert_eq!(pauses, [0; 0]);
        }
    }
}
