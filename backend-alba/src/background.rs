//! Threads for what nobody waits for: repair, rebalancing, verification, removal.
//!
//! They have a low priority with the processor, so that where there are too few processors whoever is waited for goes first:
//! a bound on bytes per second alone cannot do that. One runtime for the whole process; what is spawned on it, and what that
//! spawns or runs on blocking threads, stays on it.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// How much lower than others: a tenth of what they get, when all are busy. Not lower, for such a thread may hold what a
/// client waits for.
const NICE: i32 = 10;
/// Blocking threads at most: as many as other runtimes have, for a disk that hangs keeps some, and repair is needed then. What
/// keeps disks from being flooded are the gates of the OSDs.
const BLOCKING_THREADS: usize = 512;

/// The runtime of the background, or the one this is called on when there are no threads for it.
pub(crate) fn handle() -> Handle {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    match RUNTIME.get_or_init(start) {
        Some(runtime) => runtime.handle().clone(),
        None => Handle::current(),
    }
}

fn start() -> Option<Runtime> {
    let count = std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(2));
    // Not from the thread's own, which it has from the one that began it.
    let lower = rustix::process::getpriority_process(None).map_or(NICE, |own| own + NICE);
    let begun = Builder::new_multi_thread()
        .worker_threads(count)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("background")
        .on_thread_start(move || step_back(lower))
        .enable_all()
        .build();
    begun.inspect_err(|error| tracing::warn!(%error, "maintenance has no threads of its own")).ok()
}

/// On Linux a priority is a thread's own. That it stays as it was is no reason to fail.
fn step_back(priority: i32) {
    let _ = rustix::process::setpriority_process(None, priority);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn what_is_in_the_background_stays_there() {
        let before = priority();
        let (own, nested, blocking) = handle()
            .spawn(async {
                let nested = tokio::spawn(async { priority() }).await.unwrap();
                let blocking = tokio::task::spawn_blocking(priority).await.unwrap();
                (priority(), nested, blocking)
            })
            .await
            .unwrap();
        let lower = (before + NICE).min(19);
        assert_eq!((own, nested, blocking), (lower, lower, lower));
        assert_eq!(priority(), before);
    }
}
