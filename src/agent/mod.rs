//! The agent: builds the registries, the core, the HTTP server and the prober, and connects them.
//!
//! ```text
//!             ┌─ a task for each source: supervise(watcher) ──► updates ─┐
//! Agent::run ─┤  signals, timers, reloads, trials of held instances ─────┤
//!             │                                                     one loop: Reconciler
//!             │                                                          ▼
//!             ├─ a task for each listener: the HTTP API ── picks ──► Directory
//!             └─ background tasks: leases, health, active checks ────────┘
//! ```
//!
//! The agent owns every task, every timer and the stop token; no other module spawns a task that
//! outlives its caller. A task that ends unexpectedly is started again, except a listener: that
//! ends the agent.
//!
//! | file | job |
//! |---|---|
//! | [`tasks`] | spawns, names and joins the tasks; restarts them |
//! | [`sources`] | starts, keeps and stops watchers |
//! | [`trials`] | tries whether held instances accept connections |
//! | [`listeners`] | binds, serves and closes listeners |
//! | [`reload`] | reads the configuration again, and applies it |
//! | [`timer`] | advances the core when it is due, and passes on its news |
//! | [`leases`] | the lease key |
//! | [`sessions`] | the key of session tokens |
//! | [`service_manager`] | tells systemd when the agent is up, reloads and stops |
//! | [`checks`] | tells the prober which instances to check |
//! | [`embedded`] | an agent inside another program, without listeners |
//! | [`transitions`] | log lines for health transitions and ended overrides |

mod checks;
mod embedded;
mod leases;
mod listeners;
mod reload;
mod service_manager;
mod sessions;
mod sources;
mod tasks;
mod timer;
mod transitions;
mod trials;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::api::server::{Listen, Listener};
use crate::api::{AcceptRequest, Admin, AllowedHosts, Api, JsonBodies, Readiness, accept_requests};
use crate::balancer::{
    Clock, Directory, Environment, Monotonic, Render, SessionKey, Source, SourceStatus, Sources, Timestamp, Wake,
};
use crate::config::Config;
use crate::discovery::reconcile::Reconciler;
use crate::discovery::{Reason, Update};
use crate::http_client::HttpError;
use crate::metrics::Metrics;

use checks::CheckPlans;
pub use embedded::{EmbeddedAgent, NotSynced};
use listeners::ServingListener;
use reload::ConfigFile;
pub use reload::Reload;
use reload::ReloadCause;
pub use service_manager::ServiceManager;
use sources::WatchedSource;
use tasks::{Background, Tasks};
use timer::Timer;
use trials::Trials;

/// The most updates that wait for the loop. A watcher waits while the queue is full.
const UPDATE_QUEUE: usize = 1_024;
/// How often the ages of sources are examined, and held instances tried.
const TICK: Duration = Duration::from_secs(1);
/// How often the configuration file is compared with the loaded configuration.
const CONFIG_CHECK: Duration = Duration::from_secs(1);
/// The time that requests in progress have when the agent stops. The whole shutdown takes at most
/// five seconds.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(4);

/// Why an agent cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// An address cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: Listen,
        /// The error of the system.
        source: io::Error,
    },
    /// The HTTP client of a source cannot be created.
    #[error("cannot create the client of {name}")]
    Source {
        /// The source.
        name: Source,
        /// The error of the client.
        source: HttpError,
    },
    /// The system provides no random bytes for the keys of leases and sessions.
    #[error("the system provides no random bytes")]
    NoEntropy,
    /// The metrics library refused the definitions of the series.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A listener ended unexpectedly.
    #[error("the listener on {address} ended: {detail}")]
    ListenerEnded {
        /// The address.
        address: Listen,
        /// The reason, as far as it is known.
        detail: String,
    },
    /// The task of an embedded agent ended unexpectedly.
    #[error("the agent ended: {detail}")]
    Ended {
        /// The reason, as far as it is known.
        detail: String,
    },
}

/// An agent that is bound and has not started yet.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    clock: Arc<Monotonic>,
    api: Api,
    hosts: AllowedHosts,
    listeners: Vec<(Listen, Listener)>,
    timer: Arc<Timer>,
    session_key: SessionKey,
    service_manager: ServiceManager,
    accept_requests: mpsc::Receiver<AcceptRequest>,
}

/// Bits of the generator of the system.
fn random_bits() -> Result<[u8; 16], AgentError> {
    let mut bits = [0; 16];
    match rustls::crypto::ring::default_provider().secure_random.fill(&mut bits) {
        Ok(()) => Ok(bits),
        Err(_) => Err(AgentError::NoEntropy),
    }
}

impl Agent {
    /// Binds the listeners and prepares everything else. Nothing runs yet.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound.
    pub async fn bind(config: Config) -> Result<Self, AgentError> {
        let mut agent = Self::prepare(config, Arc::new(JsonBodies))?;
        agent.read_session_key().await;
        for address in &agent.config.api.listen {
            let listener = listeners::bind(address, &agent.config.api.socket).await?;
            agent.listeners.push((address.clone(), listener));
        }
        Ok(agent)
    }

    async fn read_session_key(&self) {
        sessions::read_key(&self.session_key, self.config.api.session_key_file.as_deref()).await;
    }

    /// Prepares everything but the listeners and the session key of a file.
    fn prepare(config: Config, render: Arc<dyn Render>) -> Result<Self, AgentError> {
        let clock = Arc::new(Monotonic::start());
        let timer = Arc::new(Timer::default());
        let session_key = sessions::new_key()?;
        let environment = Environment {
            session_key: session_key.clone(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            render,
            wake: Some(Arc::clone(&timer) as Arc<dyn Wake>),
        };
        let directory = Directory::new(config.services.clone(), Sources::default(), environment);
        let directory = Arc::new(directory.with_lease_key(leases::new_key()?));
        let (accepts, accept_requests) = accept_requests();
        let api = Api {
            directory,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            readiness: Arc::new(Readiness::new(clock.now(), config.api.ready_timeout)),
            metrics: Arc::new(Metrics::new(Reason::ALL.map(Reason::as_str))?),
            admin: Admin {
                accepts: Some(accepts),
                ..Admin::default()
            },
        };
        api.metrics.set_instance_series(config.metrics.instance_series);
        api.admin.token.set_file(config.api.admin_token_file.as_deref());
        let hosts = AllowedHosts::new(config.api.allowed_hosts.iter().cloned());
        Ok(Self {
            config,
            clock,
            api,
            hosts,
            listeners: Vec::new(),
            timer,
            session_key,
            service_manager: ServiceManager::default(),
            accept_requests,
        })
    }

    /// Tells this service manager when the agent is up, reloads and stops. By default the agent
    /// tells none.
    #[must_use]
    pub fn with_service_manager(mut self, service_manager: ServiceManager) -> Self {
        self.service_manager = service_manager;
        self
    }

    /// The bound addresses, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> Vec<Listen> {
        self.listeners.iter().map(|(_, listener)| listener.address()).collect()
    }

    /// The state that the routes share.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Runs until stopped. A stopped agent is no longer ready, finishes the requests in progress,
    /// and ends within five seconds.
    ///
    /// # Errors
    ///
    /// When the client of a source cannot be created, or a listener ends unexpectedly.
    pub async fn run(self, reload: Reload, stop: CancellationToken) -> Result<(), AgentError> {
        self.start()?.run(reload, stop).await
    }

    /// Starts everything. The agent works once it [runs](Running::run).
    fn start(self) -> Result<Running, AgentError> {
        for address in self.addresses() {
            tracing::info!(%address, "listening");
        }
        let (updates, inbox) = mpsc::channel(UPDATE_QUEUE);
        let published = {
            let metrics = Arc::clone(&self.api.metrics);
            Box::new(move |took| metrics.observe_convergence(took))
        };
        let mut running = Running {
            check_plans: Arc::default(),
            timer: self.timer,
            session_key: self.session_key,
            reconciler: Reconciler::new(Arc::clone(&self.api.directory), &[], published),
            config: self.config.clone(),
            clock: self.clock,
            api: self.api,
            hosts: self.hosts,
            updates,
            inbox,
            sources: Vec::new(),
            listeners: Vec::new(),
            tasks: Tasks::default(),
            trials: Trials::default(),
            accept_requests: self.accept_requests,
            stop_background: CancellationToken::new(),
            service_manager: self.service_manager,
        };
        running.start_sources(&self.config.sources)?;
        running.check_plans.configure(&self.config, &running.api.directory);
        for task in Background::ALL {
            running.start_background(task);
        }
        for (configured, listener) in self.listeners {
            running.serve(configured, listener);
        }
        running.service_manager.ready();
        Ok(running)
    }
}

/// A running agent.
struct Running {
    config: Config,
    session_key: SessionKey,
    clock: Arc<Monotonic>,
    api: Api,
    hosts: AllowedHosts,
    reconciler: Reconciler,
    updates: mpsc::Sender<(Arc<SourceStatus>, Update)>,
    inbox: mpsc::Receiver<(Arc<SourceStatus>, Update)>,
    /// The watched sources, by priority.
    sources: Vec<WatchedSource>,
    listeners: Vec<ServingListener>,
    tasks: Tasks,
    trials: Trials,
    accept_requests: mpsc::Receiver<AcceptRequest>,
    stop_background: CancellationToken,
    timer: Arc<Timer>,
    check_plans: Arc<CheckPlans>,
    service_manager: ServiceManager,
}

/// Without the agent, requests do what is due in the pools.
impl Drop for Running {
    fn drop(&mut self) {
        self.api.directory.timer_stopped();
    }
}

impl Running {
    /// Works until stopped, and shuts down.
    async fn run(mut self, reload: Reload, stop: CancellationToken) -> Result<(), AgentError> {
        let outcome = self.work(reload, &stop).await;
        self.shut_down().await;
        outcome
    }

    async fn work(&mut self, mut reload: Reload, stop: &CancellationToken) -> Result<(), AgentError> {
        let mut tick = interval(TICK);
        let mut config_check = interval(CONFIG_CHECK);
        let alive_every = self.service_manager.alive_every();
        let mut alive = interval(alive_every.unwrap_or(TICK));
        let mut file = ConfigFile::new(reload.config_sources.file.clone());
        let mut reconcile_at: Option<Timestamp> = None;
        loop {
            let now = self.clock.now();
            let until = |time: Option<Timestamp>| time.map_or(Duration::MAX, |time| time.since(now));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some((status, update)) = self.inbox.recv() => {
                    self.reconciler.receive(&status, update, self.clock.now());
                    // Taking all waiting updates now makes one reconciliation of them.
                    while let Ok((status, update)) = self.inbox.try_recv() {
                        self.reconciler.receive(&status, update, self.clock.now());
                    }
                    self.try_held_instances();
                }
                () = time::sleep(until(reconcile_at)), if reconcile_at.is_some() => {}
                Some(ended) = self.tasks.join_next() => self.handle_ended(ended)?,
                Some(tried) = self.trials.next() => self.apply_trial(&tried),
                Some(AcceptRequest { source, answer }) = self.accept_requests.recv() => {
                    if let Some(released) = self.reconciler.accept(source, self.clock.now()) {
                        // The client may be gone.
                        let _ = answer.send(released);
                    }
                }
                _ = tick.tick() => {
                    self.reconciler.notice_absence(self.clock.now());
                    self.try_held_instances_again();
                    self.service_manager.tell_status(&self.api.directory.sources());
                }
                _ = alive.tick(), if alive_every.is_some() => self.service_manager.alive(),
                _ = config_check.tick(), if file.is_named() => {
                    if file.changed().await {
                        self.reload(&reload.config_sources, ReloadCause::FileChanged).await;
                    }
                }
                Some(()) = reload.requests.recv() => {
                    file.changed().await;
                    self.reload_credentials();
                    self.reload(&reload.config_sources, ReloadCause::Requested).await;
                }
            }
            reconcile_at = self.reconciler.advance(self.clock.now());
        }
    }

    async fn shut_down(mut self) {
        tracing::info!("shutting down");
        self.service_manager.stopping();
        self.api.readiness.drain();
        self.stop_background.cancel();
        for source in &self.sources {
            source.stop();
        }
        for listener in &self.listeners {
            listener.stop();
        }
        if time::timeout(SHUTDOWN_TIMEOUT, self.tasks.join_all()).await.is_err() {
            tracing::warn!("some clients did not finish in time");
        }
        self.tasks.abort_all().await;
    }
}

/// An interval that keeps its distance after a delay, instead of catching up on missed ticks.
fn interval(period: Duration) -> time::Interval {
    let mut interval = time::interval(period);
    interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    interval
}
