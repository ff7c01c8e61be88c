//! The sources of the agent: watchers are started, kept and stopped as the configuration says, and
//! restarted when they end.

use std::mem;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::balancer::{Clock, ServiceName, Source, SourceStatus, Sources};
use crate::config::SourceConfig;
use crate::discovery::consul::{ConsulWatcher, Reloader};
use crate::discovery::etcd::{self, EtcdWatcher};
use crate::discovery::file::{self, FileWatcher};
use crate::discovery::supervise::supervise;

use super::tasks::Job;
use super::{AgentError, Running};

/// A source that is being watched.
pub(super) struct WatchedSource {
    config: SourceConfig,
    status: Arc<SourceStatus>,
    reloader: Option<Reloader>,
    stop: CancellationToken,
}

impl WatchedSource {
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }
}

/// A watcher of any registry.
enum AnyWatcher {
    Consul(Box<ConsulWatcher>),
    Etcd(Box<EtcdWatcher>),
    File(Box<FileWatcher>),
}

impl Running {
    /// Starts the sources that are new or have changed, keeps the unchanged ones, and stops the
    /// sources that are no longer configured.
    ///
    /// # Errors
    ///
    /// When the client of a source cannot be created. Nothing has changed then.
    pub(super) fn start_sources(&mut self, configs: &[SourceConfig]) -> Result<(), AgentError> {
        // All watchers are created before any source is replaced, so that a failure changes
        // nothing.
        let mut kept: Vec<WatchedSource> = mem::take(&mut self.sources);
        let mut prepared = Vec::new();
        let mut failure = None;
        for config in configs {
            match kept.iter().position(|source| source.config.has_the_watcher_of(config)) {
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
        for removed in kept {
            removed.stop();
        }
        let statuses: Vec<_> = prepared.iter().map(|(source, _)| Arc::clone(&source.status)).collect();
        self.api.directory.set_sources(Sources::new(statuses.clone()));
        self.reconciler.set_sources(&statuses, self.clock.now());
        for ((mut source, watcher), config) in prepared.into_iter().zip(configs) {
            source.config = config.clone();
            self.reconciler
                .set_hold_rules(source.status.source(), config.hold_rules());
            if let Some(watcher) = watcher {
                self.watch(watcher, &source);
            }
            self.sources.push(source);
        }
        Ok(())
    }

    /// Creates the watcher of a source, without starting it.
    fn prepare(&self, config: &SourceConfig) -> Result<(WatchedSource, AnyWatcher), AgentError> {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let failed = |name| move |source| AgentError::Source { name, source };
        let mut reloader = None;
        let (status, watcher) = match config {
            SourceConfig::Consul(settings) => {
                let names = settings.services.clone();
                let scope = Box::new(move |service: &str| names.matches(service));
                let source = settings.source();
                let status = Arc::new(SourceStatus::new(source, settings.required, scope));
                let directory = Arc::clone(&self.api.directory);
                let interest =
                    move |service: &ServiceName| directory.get(service.as_str()).map_or(0, |balancer| balancer.picks());
                let settings = settings.as_ref().clone();
                let watcher = ConsulWatcher::new(settings, Arc::clone(&status), clock, Arc::new(interest))
                    .map_err(failed(source))?;
                reloader = Some(watcher.reloader());
                (status, AnyWatcher::Consul(Box::new(watcher)))
            }
            SourceConfig::Etcd(settings) => {
                let settings = settings.as_ref().clone();
                let prefixes = settings.clone();
                let scope = Box::new(move |service: &str| prefixes.could_list(service));
                let status = Arc::new(SourceStatus::new(etcd::SOURCE, settings.required, scope));
                let watcher = EtcdWatcher::new(settings, Arc::clone(&status), clock).map_err(failed(etcd::SOURCE))?;
                (status, AnyWatcher::Etcd(Box::new(watcher)))
            }
            SourceConfig::File(settings) => {
                let status = Arc::new(SourceStatus::new(file::SOURCE, settings.required, Box::new(|_| true)));
                let watcher = FileWatcher::new(settings.path.clone(), Arc::clone(&status), clock)
                    .with_default_service(settings.service.clone());
                (status, AnyWatcher::File(Box::new(watcher)))
            }
        };
        let source = WatchedSource {
            config: config.clone(),
            status,
            reloader,
            stop: CancellationToken::new(),
        };
        Ok((source, watcher))
    }

    /// Spawns the task of a watcher.
    fn watch(&mut self, watcher: AnyWatcher, source: &WatchedSource) {
        let (status, stop) = (Arc::clone(&source.status), source.stop.clone());
        let (clock, updates) = (Arc::clone(&self.clock) as Arc<dyn Clock>, self.updates.clone());
        let job = Job::Watch(status.source());
        let work = async move {
            match watcher {
                AnyWatcher::Consul(watcher) => supervise(*watcher, status, clock, updates, stop).await,
                AnyWatcher::Etcd(watcher) => supervise(*watcher, status, clock, updates, stop).await,
                AnyWatcher::File(watcher) => supervise(*watcher, status, clock, updates, stop).await,
            }
        };
        self.tasks.spawn(job, source.stop.clone(), work);
    }

    /// Starts a watcher again whose task ended unexpectedly.
    pub(super) fn restart_source(&mut self, source: Source) {
        self.sources.retain(|watched| watched.status.source() != source);
        let configs = self.config.sources.clone();
        if let Err(error) = self.start_sources(&configs) {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(%source, error, "watcher cannot be restarted, serving the last known instances");
            // The source is configured and does not run. Without its configuration here, the next
            // reload finds the source new and starts it.
            let running: Vec<_> = self.sources.iter().map(|watched| watched.config.clone()).collect();
            self.config.sources.retain(|config| running.contains(config));
        }
    }

    /// Has the sources read their token files and TLS files again.
    pub(super) fn reload_credentials(&self) {
        for reloader in self.sources.iter().filter_map(|source| source.reloader.as_ref()) {
            reloader.reload();
        }
    }
}
