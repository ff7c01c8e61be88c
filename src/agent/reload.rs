//! Reloads: reads the configuration again when its file changes or a reload is requested, and
//! applies it as a whole or not at all.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::config::{Config, ConfigError, ConfigSources};

use super::{AgentError, Running, sessions};

/// The configuration of an agent, and the requests to reload it.
#[derive(Debug)]
pub struct Reload {
    /// The sources of the configuration. The agent compares the file, if there is one, every second.
    pub config_sources: ConfigSources,
    /// One message for each request to reload (SIGHUP).
    pub requests: mpsc::Receiver<()>,
}

/// Why the configuration is read again.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReloadCause {
    FileChanged,
    Requested,
}

impl ReloadCause {
    fn as_str(self) -> &'static str {
        match self {
            Self::FileChanged => "file changed",
            Self::Requested => "reload requested",
        }
    }
}

impl Running {
    /// Reads the configuration again and applies it. If any part of it cannot be applied, the
    /// previous configuration stays.
    pub(super) async fn reload(&mut self, config_sources: &ConfigSources, cause: ReloadCause) {
        let why = cause.as_str();
        self.service_manager.reloading();
        let outcome = match Config::load(config_sources) {
            Ok(config) => self.apply(config).await.map_err(anyhow::Error::from),
            Err(error) => Err(ConfigError::into(error)),
        };
        self.api.metrics.set_reload_successful(outcome.is_ok());
        self.service_manager.reloaded(outcome.is_ok());
        match outcome {
            Ok(()) => {
                // The file of the key may have changed although its name has not.
                sessions::read_key(&self.session_key, self.config.api.session_key_file.as_deref()).await;
                tracing::info!(why, "configuration reloaded");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(why, error, "configuration rejected, keeping the previous one");
            }
        }
    }

    async fn apply(&mut self, config: Config) -> Result<(), AgentError> {
        if config == self.config {
            return Ok(());
        }
        // The steps that can fail come first.
        let bound = self.prepare_listeners(&config).await?;
        self.start_sources(&config.sources)?;
        self.api.directory.configure(config.services.clone());
        self.check_plans.configure(&config, &self.api.directory);
        self.api.metrics.set_instance_series(config.metrics.instance_series);
        self.hosts.replace(config.api.allowed_hosts.iter().cloned());
        self.api.admin.token.set_file(config.api.admin_token_file.as_deref());
        self.replace_listeners(&config, bound);
        self.config = config;
        Ok(())
    }
}

/// The configuration file, as it was last read.
pub(super) struct ConfigFile {
    path: Option<PathBuf>,
    digest: Option<u128>,
}

impl ConfigFile {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let digest = path
            .as_deref()
            .and_then(|path| std::fs::read(path).ok())
            .map(|bytes| digest(&bytes));
        Self { path, digest }
    }

    /// Whether the configuration has a file.
    pub(super) fn is_named(&self) -> bool {
        self.path.is_some()
    }

    /// Whether the file differs from the last call. A missing or empty file counts as unchanged: it
    /// is being written.
    pub(super) async fn changed(&mut self) -> bool {
        let Some(path) = self.path.as_deref() else { return false };
        let Some(found) = read_digest(path).await else {
            return false;
        };
        self.digest.replace(found) != Some(found)
    }
}

async fn read_digest(path: &Path) -> Option<u128> {
    let bytes = tokio::fs::read(path).await.ok()?;
    (!bytes.trim_ascii().is_empty()).then(|| digest(&bytes))
}

fn digest(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}
