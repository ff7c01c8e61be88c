//! An agent inside another program: pools fed by registries, without listeners.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::balancer::{Directory, NoBodies, SourceStatus};
use crate::config::{Config, ConfigSources};

use super::{Agent, AgentError, Reload, sessions};

/// How often the state of sources is looked at while a program waits for them.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// An agent that runs in this process and listens nowhere: it feeds a [`Directory`] from Consul,
/// etcd or files, and checks instances as its configuration says.
///
/// ```
/// use std::time::Duration;
///
/// use pickd::Context;
/// use pickd::agent::EmbeddedAgent;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("services.toml");
/// # std::fs::write(&path, "[[service]]\nname = \"user-service\"\n\
/// #     [[service.instance]]\nid = \"user-1\"\nhost = \"10.0.1.10\"\nport = 8080\n")?;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// // Or "[consul]\naddress = \"http://127.0.0.1:8500\"", or "[etcd]\nendpoints = [\"127.0.0.1:2379\"]".
/// let agent = EmbeddedAgent::start(format!("[file]\npath = {path:?}").parse()?)?;
/// agent.wait_until_synced(Duration::from_secs(10)).await?;
/// let directory = agent.directory();
/// agent.stop().await?;
///
/// // The pools stay, with the instances that they had.
/// let balancer = directory.get("user-service").ok_or("unknown")?;
/// assert_eq!(balancer.select_instance(&Context::new())?.id().as_str(), "user-1");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`Services::over`](crate::client::Services::over) its directory calls the services.
///
/// The configuration is that of an agent. Of `[api]` it takes `session_key_file` alone. Nothing is
/// reloaded.
/// When the value is dropped, the agent stops as with [`stop`](Self::stop).
#[derive(Debug)]
#[must_use = "the agent stops when this is dropped"]
pub struct EmbeddedAgent {
    directory: Arc<Directory>,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<(), AgentError>>>,
}

impl EmbeddedAgent {
    /// Starts discovery and active checks.
    ///
    /// # Errors
    ///
    /// When the client of a source cannot be made.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(mut config: Config) -> Result<Self, AgentError> {
        config.api.listen.clear();
        config.api.admin_token_file = None;
        let agent = Agent::prepare(config, Arc::new(NoBodies))?;
        let directory = Arc::clone(&agent.api.directory);
        let stop = CancellationToken::new();
        let (_, requests) = mpsc::channel(1);
        let reload = Reload {
            config_sources: ConfigSources::default(),
            requests,
        };
        let running = agent.start()?;
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let key_file = running.config.api.session_key_file.as_deref();
            sessions::read_key(&running.session_key, key_file).await;
            running.run(reload, stopped).await
        });
        Ok(Self {
            directory,
            stop,
            task: Some(task),
        })
    }

    /// The balancers of all services. They stay when the agent has stopped.
    #[must_use]
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }

    /// Waits until every source with `required = true`, the default, has synced, and at least one
    /// source: until then a service that has instances may be missing.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`NotSynced`], when the time is over. The agent goes on trying.
    pub async fn wait_until_synced(&self, timeout: Duration) -> Result<(), NotSynced> {
        let synced = async {
            loop {
                let sources = self.directory.sources();
                if sources.required_synced() && sources.any_synced() {
                    return;
                }
                time::sleep(LOOK_EVERY).await;
            }
        };
        time::timeout(timeout, synced).await.map_err(|_| {
            let sources = self.directory.sources();
            let waits = |status: &&Arc<SourceStatus>| {
                !status.is_synced() && (status.is_required() || sources.required_synced())
            };
            let waiting: Vec<&Arc<SourceStatus>> = sources.iter().filter(waits).collect();
            NotSynced {
                waiting_for: waiting.iter().map(|status| status.source().to_string()).collect(),
                errors: waiting.iter().filter_map(|status| status.last_error()).collect(),
                timeout,
            }
        })
    }

    /// Whether discovery runs. False only if it has failed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.task.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Stops discovery and active checks, and waits until they have ended: at most five seconds.
    ///
    /// The pools stay as they are, with their instances and all that was learned of them. From now
    /// on, requests do what is due in a pool: trials of breakers, the end of slow starts, the end of
    /// overrides.
    ///
    /// # Errors
    ///
    /// When the agent had ended before, and why.
    pub async fn stop(mut self) -> Result<(), AgentError> {
        self.stop.cancel();
        match self.task.take() {
            Some(task) => task.await.unwrap_or_else(|error| {
                Err(AgentError::Ended {
                    detail: error.to_string(),
                })
            }),
            None => Ok(()),
        }
    }
}

impl Drop for EmbeddedAgent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Sources that have not synced in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} has not synced within {timeout:?}: {}", .waiting_for.join(", "), .errors.join("; "))]
#[non_exhaustive]
pub struct NotSynced {
    /// The names of the sources, such as `consul`.
    pub waiting_for: Vec<String>,
    /// Their last errors, as far as there are any.
    pub errors: Vec<String>,
    /// The time that they had.
    pub timeout: Duration,
}
