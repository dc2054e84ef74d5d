//! The configuration a daemon runs with, and how it is read again (management `ReloadConfig`, SIGHUP).

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;
use volumedriver_core::fault::{Fault, Result};

use super::Engine;
use crate::config::{Config, Overrides, Reloaded};

/// Where a configuration came from, so that it can be read again the same way.
#[derive(Clone, Debug)]
pub struct Source {
    /// `None`: the daemon was started without a file.
    pub file: Option<PathBuf>,
    pub data_dir: PathBuf,
    pub overrides: Overrides,
}

impl Source {
    pub fn load(&self) -> Result<Config> {
        Config::load(self.file.as_deref(), &self.data_dir, &self.overrides)
    }
}

/// The running configuration. One reload at a time.
#[derive(Debug)]
pub struct LiveConfig {
    source: Source,
    running: Mutex<Arc<Config>>,
}

impl LiveConfig {
    #[must_use]
    pub fn new(source: Source, running: Arc<Config>) -> Self {
        Self { source, running: Mutex::new(running) }
    }

    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    pub async fn running(&self) -> Arc<Config> {
        self.running.lock().await.clone()
    }

    /// Reads the file again. On an error nothing has changed.
    pub async fn reload(&self, engine: &impl Engine) -> Result<Reloaded> {
        if self.source.file.is_none() {
            return Err(Fault::invalid(
                "the daemon was started without --config: there is no file to read again",
            ));
        }
        let mut running = self.running.lock().await;
        let reloaded = running.reload(self.source.load()?)?;
        let config = Arc::new(reloaded.config.clone());
        engine.reload(config.clone()).await?;
        *running = config;
        Ok(reloaded)
    }
}
