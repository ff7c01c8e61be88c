//! The agent: the only place where rooms meet.
//!
//! ```text
//!               ┌─ one task a source: supervise(watcher) ──► updates ─┐
//!   Agent::run ─┤                                                     ├──► one loop: Reconciler ──► Directory ◄── picks
//!               ├─ one task a listener: the API                       │            ▲
//!               │  signals, timers, reloads, tries of held instances ─┘            │
//!               └─ the prober (active checks), and one task that tends health ─────┘
//! ```
//!
//! It builds everything, joins the channels, and owns every task, timer and the stop token: nothing else spawns. A source
//! whose task ends early is started again; a listener that ends early ends the agent.

mod health;
mod service_manager;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::{Id, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::api::server::{Listen, Listener, SocketAccess, set_access};
use crate::api::{Admin, AllowedHosts, Api, JsonBodies, Readiness};
use crate::balancer::{
    Address, Clock, Directory, EndedBecause, LeaseKey, Monotonic, Override, ServiceName, Source, SourceStatus, Sources,
    Timestamp, Tools, Wake,
};
use crate::config::{Config, ConfigError, Layers, SourceConfig};
use crate::discovery::consul::{self, ConsulWatcher, TokenReloader};
use crate::discovery::etcd::{self, EtcdWatcher};
use crate::discovery::file::{self, FileWatcher};
use crate::discovery::reconcile::Reconciler;
use crate::discovery::supervise::supervise;
use crate::discovery::{Reason, Update};
use crate::http_client::HttpError;
use crate::metrics::Metrics;
use crate::probe::{Checked, Prober};

use health::{Checks, Woken};
pub use service_manager::ServiceManager;

/// Updates that may wait for the loop; a watcher that is faster waits itself.
const QUEUE: usize = 1_024;
/// How often ages are looked at, and held instances tried.
const TICK: Duration = Duration::from_secs(1);
/// How often services do what time has made due. The credit of reports without a lease counts in these steps.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often leases are looked at while any is open.
const EXPIRY: Duration = Duration::from_millis(50);
/// How often the configuration file is compared with what was loaded.
const CONFIG_CHECK: Duration = Duration::from_secs(1);
/// How long requests being answered may take when the agent stops. Five seconds in all are promised.
const DRAIN: Duration = Duration::from_secs(4);
/// How long a held instance has to take a connection.
const TRY_FOR: Duration = Duration::from_secs(1);
/// Held instances tried at a time.
const TRIES: usize = 64;

/// Why an agent cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: Listen,
        /// Why not.
        source: io::Error,
    },
    /// A source's client cannot be made.
    #[error("{name} cannot be asked")]
    Source {
        /// The source.
        name: Source,
        /// Why not.
        source: HttpError,
    },
    /// The system gives no random bits for the key of the leases.
    #[error("the system gives no random bits")]
    NoEntropy,
    /// The metrics' definitions were refused.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A listener ended by itself.
    #[error("the listener on {address} ended: {detail}")]
    ListenerEnded {
        /// The address.
        address: Listen,
        /// What it said.
        detail: String,
    },
}

/// What asks an agent to read its configuration again.
#[derive(Debug)]
pub struct Reload {
    /// What the configuration is made of. Its file, if there is one, is also looked at every second.
    pub layers: Layers,
    /// One message for each request (SIGHUP).
    pub requests: mpsc::Receiver<()>,
}

/// An agent that is bound and has not started yet.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    clock: Arc<Monotonic>,
    api: Api,
    hosts: AllowedHosts,
    listeners: Vec<(Listen, Listener)>,
    woken: Arc<Woken>,
    service_manager: ServiceManager,
}

impl Agent {
    /// Binds the listeners and prepares everything else. Nothing runs yet.
    ///
    /// # Errors
    ///
    /// When an address cannot be listened on.
    pub async fn bind(config: Config) -> Result<Self, AgentError> {
        let clock = Arc::new(Monotonic::start());
        let woken = Arc::new(Woken::default());
        let tools = Tools {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            render: Arc::new(JsonBodies),
            wake: Some(Arc::clone(&woken) as Arc<dyn Wake>),
        };
        let directory = Directory::new(config.services.clone(), Sources::default(), tools).with_lease_key(lease_key()?);
        let directory = Arc::new(directory);
        let api = Api {
            directory,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            readiness: Arc::new(Readiness::new(clock.now(), config.api.ready_timeout)),
            metrics: Arc::new(Metrics::new(Reason::ALL.map(Reason::as_str))?),
            admin: Admin::default(),
            leases_begin: Arc::default(),
        };
        api.metrics.set_instance_series(config.metrics.instance_series);
        api.admin.token.set_file(config.api.admin_token_file.as_deref());
        let hosts = AllowedHosts::new(config.api.allowed_hosts.iter().cloned());
        let mut listeners = Vec::new();
        for address in &config.api.listen {
            listeners.push((address.clone(), listen(address, &config.api.socket).await?));
        }
        Ok(Self {
            config,
            clock,
            api,
            hosts,
            listeners,
            woken,
            service_manager: ServiceManager::default(),
        })
    }

    /// Has this service manager told when the agent is up, reloads and stops. Without it, none is.
    #[must_use]
    pub fn with_service_manager(mut self, service_manager: ServiceManager) -> Self {
        self.service_manager = service_manager;
        self
    }

    /// The addresses it is bound to, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> Vec<Listen> {
        self.listeners.iter().map(|(_, listener)| listener.address()).collect()
    }

    /// What its routes look at.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Runs until stopped. Then it is not ready any more, finishes what is being answered, and ends within five seconds.
    ///
    /// # Errors
    ///
    /// When a source's client cannot be made, or a listener ends by itself.
    pub async fn run(self, reload: Reload, stop: CancellationToken) -> Result<(), AgentError> {
        for address in self.addresses() {
            tracing::info!(%address, "listening");
        }
        let (updates, mut inbox) = mpsc::channel(QUEUE);
        let published = {
            let metrics = Arc::clone(&self.api.metrics);
            Box::new(move |took| metrics.observe_convergence(took))
        };
        let mut running = Running {
            checks: Arc::default(),
            woken: self.woken,
            reconciler: Reconciler::new(Arc::clone(&self.api.directory), &[], published),
            config: self.config.clone(),
            clock: self.clock,
            api: self.api,
            hosts: self.hosts,
            updates,
            sources: Vec::new(),
            listeners: Vec::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
            tries: JoinSet::new(),
            stop_timers: CancellationToken::new(),
            service_manager: self.service_manager,
        };
        running.start_sources(&self.config.sources)?;
        running.checks.configure(&self.config, &running.woken);
        running.expire_leases();
        running.tend();
        running.probe();
        for (configured, listener) in self.listeners {
            running.serve(configured, listener);
        }
        running.service_manager.ready();
        let outcome = running.work(&mut inbox, reload, &stop).await;
        running.shut_down().await;
        outcome
    }
}

/// Nobody but this process knows it, and the next one makes another: leases end with the agent that gave them out.
fn lease_key() -> Result<LeaseKey, AgentError> {
    let mut bits = [0; 16];
    match rustls::crypto::ring::default_provider().secure_random.fill(&mut bits) {
        Ok(()) => Ok(LeaseKey::new(bits)),
        Err(_) => Err(AgentError::NoEntropy),
    }
}

/// Ends leases when their time is over. Sleeps while none is open.
async fn expire_leases(directory: Arc<Directory>, clock: Arc<Monotonic>, begin: Arc<Notify>, stop: CancellationToken) {
    let expire = async {
        loop {
            match directory.expire_leases(clock.now()) {
                // One that is taken meanwhile may be due before.
                Some(due) => time::sleep(due.since(clock.now()).min(EXPIRY)).await,
                None => begin.notified().await,
            }
        }
    };
    stop.run_until_cancelled(expire).await;
}

async fn listen(address: &Listen, access: &SocketAccess) -> Result<Listener, AgentError> {
    let bound = match address {
        Listen::Tcp(address) => Listener::bind(*address).await,
        Listen::Unix(path) => Listener::bind_unix(path, access).await,
    };
    bound.map_err(|source| AgentError::Listen {
        address: address.clone(),
        source,
    })
}

/// A source that is being watched.
struct WatchedSource {
    config: SourceConfig,
    status: Arc<SourceStatus>,
    token: Option<TokenReloader>,
    stop: CancellationToken,
}

/// A listener that serves.
struct Serving {
    configured: Listen,
    stop: CancellationToken,
}

/// What a task is for.
#[derive(Clone, Debug)]
enum Job {
    Watch(Source, CancellationToken),
    Serve(Listen, CancellationToken),
    ExpireLeases(CancellationToken),
    Tend(CancellationToken),
    Probe(CancellationToken),
}

/// A running agent.
struct Running {
    config: Config,
    clock: Arc<Monotonic>,
    api: Api,
    hosts: AllowedHosts,
    reconciler: Reconciler,
    updates: mpsc::Sender<(Arc<SourceStatus>, Update)>,
    /// By priority.
    sources: Vec<WatchedSource>,
    listeners: Vec<Serving>,
    tasks: JoinSet<io::Result<()>>,
    names: HashMap<Id, Job>,
    /// Connections to held instances; true: refused.
    tries: JoinSet<(Source, ServiceName, Address, bool)>,
    stop_timers: CancellationToken,
    woken: Arc<Woken>,
    checks: Arc<Checks>,
    service_manager: ServiceManager,
}

impl Running {
    async fn work(
        &mut self,
        inbox: &mut mpsc::Receiver<(Arc<SourceStatus>, Update)>,
        mut reload: Reload,
        stop: &CancellationToken,
    ) -> Result<(), AgentError> {
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut housekeeping = time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut config_check = time::interval(CONFIG_CHECK);
        config_check.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let alive_every = self.service_manager.alive_every();
        let mut alive = time::interval(alive_every.unwrap_or(TICK));
        alive.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut file = ConfigFile::new(reload.layers.file.clone());
        let mut next: Option<Timestamp> = None;
        let ordered = Arc::clone(&self.api.admin.ordered);
        let mut override_ends = None;
        loop {
            let now = self.clock.now();
            let due = next.map_or(Duration::MAX, |next| next.since(now));
            let until_override_ends = override_ends.map_or(Duration::MAX, |end: Timestamp| end.since(now));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some((status, update)) = inbox.recv() => {
                    self.reconciler.receive(&status, update, self.clock.now());
                    // Whatever else waits is cheap to take along.
                    while let Ok((status, update)) = inbox.try_recv() {
                        self.reconciler.receive(&status, update, self.clock.now());
                    }
                    self.try_held();
                }
                () = time::sleep(due), if next.is_some() => {}
                () = time::sleep(until_override_ends), if override_ends.is_some() => override_ends = self.end_overrides(),
                () = ordered.notified() => override_ends = self.end_overrides(),
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended)?,
                Some(tried) = self.tries.join_next() => {
                    if let Ok((source, service, address, true)) = tried {
                        self.reconciler.release(source, &service, &address, self.clock.now());
                    }
                }
                _ = tick.tick() => {
                    self.reconciler.notice_absence(self.clock.now());
                    self.try_held();
                    self.service_manager.tell_status(&self.api.directory.sources());
                }
                _ = alive.tick(), if alive_every.is_some() => self.service_manager.alive(),
                _ = housekeeping.tick() => {
                    self.api.directory.advance(self.clock.now());
                    override_ends = self.end_overrides();
                }
                _ = config_check.tick(), if file.path.is_some() => {
                    if file.changed().await {
                        self.reload(&reload.layers, "its file changed").await;
                    }
                }
                Some(()) = reload.requests.recv() => {
                    file.changed().await;
                    for source in &self.sources {
                        if let Some(token) = &source.token {
                            token.reload();
                        }
                    }
                    self.reload(&reload.layers, "asked to").await;
                }
            }
            next = self.reconciler.advance(self.clock.now());
        }
    }

    /// Ends the overrides that are due, tells of those that ended, and returns when the next one does.
    fn end_overrides(&self) -> Option<Timestamp> {
        let next = self.api.directory.end_overrides(self.clock.now());
        for (service, ended) in self.api.directory.take_ended() {
            let (instance, by, reason) = (&ended.id, ended.standing.order().who(), ended.standing.order().reason());
            let weight = match ended.what {
                Override::Drain => None,
                Override::Weight(weight) => Some(weight.get()),
            };
            let message = match ended.because {
                EndedBecause::Expired => "override expired",
                EndedBecause::InstanceGone => "override forgotten, its instance left a day ago",
            };
            let what = if weight.is_some() { "weight" } else { "drain" };
            tracing::info!(%service, %instance, r#override = what, weight, by, reason, "{message}");
        }
        next
    }

    /// Starts watching sources that are new or configured anew, keeps the others, stops those that are gone.
    fn start_sources(&mut self, configs: &[SourceConfig]) -> Result<(), AgentError> {
        // All of them are made before any is replaced: a client that cannot be made changes nothing.
        let mut kept: Vec<WatchedSource> = std::mem::take(&mut self.sources);
        let mut prepared = Vec::new();
        let mut failure = None;
        for config in configs {
            match kept.iter().position(|source| source.config == *config) {
                Some(index) => prepared.push((kept.swap_remove(index), None)),
                None => match self.prepare(config) {
                    Ok((source, watcher)) => prepared.push((source, Some(watcher))),
                    Err(error) => failure = failure.or(Some(error)),
                },
            }
        }
        if let Some(error) = failure {
            let unchanged = prepared
                .into_iter()
                .filter(|(_, watcher)| watcher.is_none())
                .map(|(source, _)| source);
            self.sources = kept.into_iter().chain(unchanged).collect();
            self.sources
                .sort_by_key(|source| self.config.sources.iter().position(|config| *config == source.config));
            return Err(error);
        }
        for gone in kept {
            gone.stop.cancel();
        }
        let statuses: Vec<_> = prepared.iter().map(|(source, _)| Arc::clone(&source.status)).collect();
        self.api.directory.set_sources(Sources::new(statuses.clone()));
        self.reconciler.set_sources(&statuses, self.clock.now());
        for (source, watcher) in prepared {
            if let Some(watcher) = watcher {
                self.watch(watcher, &source);
            }
            self.sources.push(source);
        }
        Ok(())
    }

    fn prepare(&self, config: &SourceConfig) -> Result<(WatchedSource, AnyWatcher), AgentError> {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let stop = CancellationToken::new();
        match config {
            SourceConfig::Consul(settings) => {
                let names = settings.services.clone();
                let scope = Box::new(move |service: &str| names.matches(service));
                let status = Arc::new(SourceStatus::new(consul::SOURCE, settings.required, scope));
                let directory = Arc::clone(&self.api.directory);
                let interest =
                    move |service: &ServiceName| directory.get(service.as_str()).map_or(0, |balancer| balancer.picks());
                let watcher = ConsulWatcher::new(
                    settings.as_ref().clone(),
                    Arc::clone(&status),
                    clock,
                    Arc::new(interest),
                )
                .map_err(|source| AgentError::Source {
                    name: consul::SOURCE,
                    source,
                })?;
                let token = Some(watcher.token_reloader());
                Ok((
                    WatchedSource {
                        config: config.clone(),
                        status,
                        token,
                        stop,
                    },
                    AnyWatcher::Consul(Box::new(watcher)),
                ))
            }
            SourceConfig::Etcd(settings) => {
                let settings = settings.as_ref().clone();
                let prefixes = settings.clone();
                let scope = Box::new(move |service: &str| prefixes.could_list(service));
                let status = Arc::new(SourceStatus::new(etcd::SOURCE, settings.required, scope));
                let watcher =
                    EtcdWatcher::new(settings, Arc::clone(&status), clock).map_err(|source| AgentError::Source {
                        name: etcd::SOURCE,
                        source,
                    })?;
                let source = WatchedSource {
                    config: config.clone(),
                    status,
                    token: None,
                    stop,
                };
                Ok((source, AnyWatcher::Etcd(Box::new(watcher))))
            }
            SourceConfig::File(settings) => {
                let status = Arc::new(SourceStatus::new(file::SOURCE, settings.required, Box::new(|_| true)));
                let watcher = FileWatcher::new(settings.path.clone(), Arc::clone(&status), clock);
                let source = WatchedSource {
                    config: config.clone(),
                    status,
                    token: None,
                    stop,
                };
                Ok((source, AnyWatcher::File(Box::new(watcher))))
            }
        }
    }

    fn watch(&mut self, watcher: AnyWatcher, source: &WatchedSource) {
        let (status, stop) = (Arc::clone(&source.status), source.stop.clone());
        let (clock, updates) = (Arc::clone(&self.clock) as Arc<dyn Clock>, self.updates.clone());
        let job = Job::Watch(status.source(), stop.clone());
        let task = async move {
            match watcher {
                AnyWatcher::Consul(watcher) => supervise(*watcher, status, clock, updates, stop).await,
                AnyWatcher::Etcd(watcher) => supervise(*watcher, status, clock, updates, stop).await,
                AnyWatcher::File(watcher) => supervise(*watcher, status, clock, updates, stop).await,
            }
            Ok(())
        };
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, job);
    }

    fn serve(&mut self, configured: Listen, listener: Listener) {
        let stop = CancellationToken::new();
        let job = Job::Serve(listener.address(), stop.clone());
        let id = self
            .tasks
            .spawn(listener.serve(self.api.clone(), self.hosts.clone(), stop.clone()))
            .id();
        self.names.insert(id, job);
        self.listeners.push(Serving { configured, stop });
    }

    fn expire_leases(&mut self) {
        let stop = self.stop_timers.clone();
        let (directory, begin) = (Arc::clone(&self.api.directory), Arc::clone(&self.api.leases_begin));
        let task = expire_leases(directory, Arc::clone(&self.clock), begin, stop.clone());
        let id = self.tasks.spawn(async move {
            task.await;
            Ok(())
        });
        self.names.insert(id.id(), Job::ExpireLeases(stop));
    }

    fn tend(&mut self) {
        let stop = self.stop_timers.clone();
        let (directory, clock) = (Arc::clone(&self.api.directory), Arc::clone(&self.clock));
        let task = health::tend(
            directory,
            clock,
            Arc::clone(&self.woken),
            Arc::clone(&self.checks),
            stop.clone(),
        );
        let id = self.tasks.spawn(async move {
            task.await;
            Ok(())
        });
        self.names.insert(id.id(), Job::Tend(stop));
    }

    fn probe(&mut self) {
        let stop = self.stop_timers.clone();
        let directory = Arc::clone(&self.api.directory);
        let observe = move |checked: Checked| {
            if let Some(balancer) = directory.get(checked.service.as_str()) {
                balancer.observe(&checked.address, checked.check);
            }
        };
        let prober = Prober::new(self.config.probe, Arc::clone(&self.clock), Arc::new(observe));
        self.checks.start(prober.handle(), &self.woken);
        let task = prober.run(stop.clone());
        let id = self.tasks.spawn(async move {
            task.await;
            Ok(())
        });
        self.names.insert(id.id(), Job::Probe(stop));
    }

    /// Acts on a task that ended: on purpose, or by itself.
    fn ended(&mut self, ended: Result<(Id, io::Result<()>), tokio::task::JoinError>) -> Result<(), AgentError> {
        let (id, detail) = match ended {
            Ok((id, Ok(()))) => (id, "it returned".to_owned()),
            Ok((id, Err(error))) => (id, error.to_string()),
            Err(error) => (error.id(), error.to_string()),
        };
        match self.names.remove(&id) {
            Some(Job::Watch(source, stop)) if !stop.is_cancelled() => {
                tracing::error!(%source, detail, "a watcher ended by itself; starting another");
                self.restart(source);
                Ok(())
            }
            Some(Job::ExpireLeases(stop)) if !stop.is_cancelled() => {
                tracing::error!(detail, "nothing ends leases any more; starting another task");
                self.expire_leases();
                Ok(())
            }
            Some(Job::Tend(stop)) if !stop.is_cancelled() => {
                tracing::error!(
                    detail,
                    "nothing tends the health of instances any more; starting another task"
                );
                self.tend();
                Ok(())
            }
            Some(Job::Probe(stop)) if !stop.is_cancelled() => {
                tracing::error!(detail, "nothing checks instances any more; starting another task");
                self.probe();
                Ok(())
            }
            Some(Job::Serve(address, stop)) if !stop.is_cancelled() => {
                Err(AgentError::ListenerEnded { address, detail })
            }
            _ => Ok(()),
        }
    }

    fn restart(&mut self, source: Source) {
        self.sources.retain(|watched| watched.status.source() != source);
        let configs = self.config.sources.clone();
        if let Err(error) = self.start_sources(&configs) {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(%source, error, "it could not be started again, serving what it said last");
            // Configured, but not running: the next reload finds it new, and tries again.
            let running: Vec<_> = self.sources.iter().map(|watched| watched.config.clone()).collect();
            self.config.sources.retain(|config| running.contains(config));
        }
    }

    /// Reads the configuration again and acts on it, all or nothing.
    async fn reload(&mut self, layers: &Layers, why: &'static str) {
        self.service_manager.reloading();
        let outcome = match Config::load(layers) {
            Ok(config) => self.reconfigure(config).await.map_err(anyhow::Error::from),
            Err(error) => Err(ConfigError::into(error)),
        };
        self.api.metrics.set_reload_successful(outcome.is_ok());
        self.service_manager.reloaded(outcome.is_ok());
        match outcome {
            Ok(()) => tracing::info!(why, "configuration reloaded"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(why, error, "configuration refused, going on with the last one");
            }
        }
    }

    async fn reconfigure(&mut self, config: Config) -> Result<(), AgentError> {
        if config == self.config {
            return Ok(());
        }
        // What can fail comes first.
        let mut bound = Vec::new();
        let mut wanted = config.api.listen.clone();
        for serving in &self.listeners {
            if let Some(index) = wanted.iter().position(|address| *address == serving.configured) {
                wanted.swap_remove(index);
            }
        }
        for address in wanted {
            let listener = listen(&address, &config.api.socket).await?;
            bound.push((address, listener));
        }
        if config.api.socket != self.config.api.socket {
            for serving in &self.listeners {
                if let Listen::Unix(path) = &serving.configured {
                    set_access(path, &config.api.socket).map_err(|source| AgentError::Listen {
                        address: serving.configured.clone(),
                        source,
                    })?;
                }
            }
        }
        self.start_sources(&config.sources)?;
        self.api.directory.configure(config.services.clone());
        self.checks.configure(&config, &self.woken);
        self.api.metrics.set_instance_series(config.metrics.instance_series);
        self.hosts.replace(config.api.allowed_hosts.iter().cloned());
        self.api.admin.token.set_file(config.api.admin_token_file.as_deref());
        let mut listed = config.api.listen.clone();
        self.listeners.retain(
            |serving| match listed.iter().position(|address| *address == serving.configured) {
                Some(index) => {
                    listed.swap_remove(index);
                    true
                }
                None => {
                    serving.stop.cancel();
                    false
                }
            },
        );
        for (configured, listener) in bound {
            tracing::info!(address = %listener.address(), "listening");
            self.serve(configured, listener);
        }
        self.config = config;
        Ok(())
    }

    /// Tries whether held instances still take connections; one that refuses is gone, whatever the registry remembers.
    fn try_held(&mut self) {
        if !self.tries.is_empty() {
            return;
        }
        for (source, service, address) in self.reconciler.held().into_iter().take(TRIES) {
            self.tries.spawn(async move {
                let attempt = time::timeout(TRY_FOR, TcpStream::connect(address.as_str())).await;
                let refused = matches!(attempt, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused);
                (source, service, address, refused)
            });
        }
    }

    async fn shut_down(mut self) {
        tracing::info!("shutting down");
        self.service_manager.stopping();
        self.api.readiness.drain();
        self.stop_timers.cancel();
        for source in &self.sources {
            source.stop.cancel();
        }
        for serving in &self.listeners {
            serving.stop.cancel();
        }
        let finish = async { while self.tasks.join_next().await.is_some() {} };
        if time::timeout(DRAIN, finish).await.is_err() {
            tracing::warn!("some clients did not finish in time");
        }
        self.tasks.shutdown().await;
    }
}

/// The watchers there are.
enum AnyWatcher {
    Consul(Box<ConsulWatcher>),
    Etcd(Box<EtcdWatcher>),
    File(Box<FileWatcher>),
}

/// The configuration file as it was last read.
struct ConfigFile {
    path: Option<PathBuf>,
    digest: Option<u128>,
}

impl ConfigFile {
    fn new(path: Option<PathBuf>) -> Self {
        let digest = path
            .as_deref()
            .and_then(|path| std::fs::read(path).ok())
            .map(|bytes| digest(&bytes));
        Self { path, digest }
    }

    /// Whether it differs from what was last seen here. A file that is away or empty is one that is being written.
    async fn changed(&mut self) -> bool {
        let Some(path) = self.path.as_deref() else { return false };
        let Some(found) = read(path).await else { return false };
        self.digest.replace(found) != Some(found)
    }
}

async fn read(path: &Path) -> Option<u128> {
    let bytes = tokio::fs::read(path).await.ok()?;
    (!bytes.trim_ascii().is_empty()).then(|| digest(&bytes))
}

fn digest(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}
