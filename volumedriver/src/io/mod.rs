//! The only room with `unsafe`, O_DIRECT and io_uring in it.
//!
//! [`choose`] says once at start how files are read and written, [`run`] drives one shard's thread that way, and
//! [`disk::RealDisk`] is the directory its files lie in.

pub mod buf;
pub mod disk;
mod psync;
mod uring;

use std::future::Future;

use volumedriver_core::fault::{Fault, Result};

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Requested {
    /// io_uring where the kernel allows it, else psync.
    #[default]
    Auto,
    Uring,
    Psync,
}

/// How files are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Uring,
    /// pread and pwrite on helper threads.
    Psync,
}

/// Decides on the engine by trying io_uring out, and logs the reason. `Unavailable` when io_uring was asked for expressly
/// and the kernel does not give it.
pub fn choose(requested: Requested) -> Result<Engine> {
    if requested == Requested::Psync {
        tracing::info!("file engine psync, as configured");
        return Ok(Engine::Psync);
    }
    match (uring::probe(), requested) {
        (Ok(()), _) => {
            tracing::info!("file engine io_uring");
            Ok(Engine::Uring)
        }
        (Err(error), Requested::Uring) => Err(Fault::unavailable(
            "io_uring was asked for and the kernel refuses it; allow it (sysctl kernel.io_uring_disabled=0, the \
             container's seccomp profile) or set the file engine to auto",
        )
        .because(error)),
        (Err(error), Requested::Auto | Requested::Psync) => {
            tracing::warn!(%error, "io_uring is not available; file engine psync (slower)");
            Ok(Engine::Psync)
        }
    }
}

/// Ends the process this instant, without the clean-up at its exit: other threads still use what that would tear down.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions and does not return; nothing of this process runs after it.
    unsafe { libc::_exit(status) }
}

/// Runs a shard on this thread until the future ends: timers and sockets of tokio, `spawn_local`, and the engine's files.
pub fn run<F: Future>(engine: Engine, future: F) -> Result<F::Output> {
    match engine {
        Engine::Uring => uring::run_on_uring(future),
        Engine::Psync => psync::run(future),
    }
}
