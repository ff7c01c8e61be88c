//! The tasks of the agent: spawned with a name, joined when they end, and restarted if they end
//! unexpectedly.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::api::server::Listen;
use crate::balancer::Source;
use crate::probe::{Checked, Prober};

use super::{AgentError, Running, timer};

/// The job of a task.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// Watches this source.
    Watch(Source),
    /// Serves on this address.
    Serve(Listen),
    /// Runs until the agent stops.
    Background(Background),
}

/// A task that runs from the start of the agent to its stop.
#[derive(Clone, Copy, Debug)]
pub(super) enum Background {
    /// Advances leases, overrides and the health of services when they are due.
    AdvanceCore,
    /// Runs active health checks.
    CheckInstances,
}

impl Background {
    pub(super) const ALL: [Self; 2] = [Self::AdvanceCore, Self::CheckInstances];
}

/// A task that has ended.
pub(super) struct EndedTask {
    job: Job,
    /// Whether the task was told to stop.
    stopped: bool,
    /// How the task ended, for the log.
    detail: String,
}

/// The running tasks, each with its job and the token that stops it.
#[derive(Default)]
pub(super) struct Tasks {
    set: JoinSet<()>,
    running: HashMap<Id, (Job, CancellationToken)>,
}

impl Tasks {
    /// Spawns a task that ends when `stop` is cancelled.
    pub(super) fn spawn(&mut self, job: Job, stop: CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
        let id = self.set.spawn(work).id();
        self.running.insert(id, (job, stop));
    }

    /// Waits for the next task to end. `None` if there are no tasks. Cancel safe.
    pub(super) async fn join_next(&mut self) -> Option<EndedTask> {
        loop {
            let (id, detail) = match self.set.join_next_with_id().await? {
                Ok((id, ())) => (id, "the task returned".to_owned()),
                Err(error) => (error.id(), error.to_string()),
            };
            if let Some((job, stop)) = self.running.remove(&id) {
                let stopped = stop.is_cancelled();
                return Some(EndedTask { job, stopped, detail });
            }
        }
    }

    /// Waits until all tasks have ended.
    pub(super) async fn join_all(&mut self) {
        while self.join_next().await.is_some() {}
    }

    /// Aborts the tasks that are left.
    pub(super) async fn abort_all(&mut self) {
        self.set.shutdown().await;
    }
}

impl Running {
    /// Starts a background task.
    pub(super) fn start_background(&mut self, task: Background) {
        let stop = self.stop_background.clone();
        let (directory, clock) = (Arc::clone(&self.api.directory), Arc::clone(&self.clock));
        let work: Pin<Box<dyn Future<Output = ()> + Send>> = match task {
            Background::AdvanceCore => {
                let (timer, plans) = (Arc::clone(&self.timer), Arc::clone(&self.check_plans));
                Box::pin(timer::advance(directory, clock, timer, plans, stop.clone()))
            }
            Background::CheckInstances => {
                let observe = move |checked: Checked| {
                    if let Some(balancer) = directory.get(checked.service.as_str()) {
                        balancer.observe_timed(&checked.address, checked.check, checked.took);
                    }
                };
                let prober = Prober::new(self.config.probe, clock, Arc::new(observe));
                self.check_plans.start(prober.handle(), &self.api.directory);
                Box::pin(prober.run(stop.clone()))
            }
        };
        self.tasks.spawn(Job::Background(task), stop, work);
    }

    /// Restarts a task that ended unexpectedly. Nothing to do for a task that was stopped.
    ///
    /// # Errors
    ///
    /// When the task served a listener: its address may be lost, so the agent ends.
    pub(super) fn handle_ended(&mut self, ended: EndedTask) -> Result<(), AgentError> {
        let EndedTask { job, stopped, detail } = ended;
        if stopped {
            return Ok(());
        }
        match job {
            Job::Serve(address) => return Err(AgentError::ListenerEnded { address, detail }),
            Job::Watch(source) => {
                tracing::error!(%source, detail, "watcher task ended unexpectedly, restarting it");
                self.restart_source(source);
            }
            Job::Background(task) => {
                match task {
                    Background::AdvanceCore => {
                        tracing::error!(detail, "timer task ended unexpectedly, restarting it");
                    }
                    Background::CheckInstances => {
                        tracing::error!(detail, "health check task ended unexpectedly, restarting it");
                    }
                }
                self.start_background(task);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_without_its_stop_token_ends_unexpectedly() {
        let mut tasks = Tasks::default();
        let mut ended = async |stopped: bool, work: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = CancellationToken::new();
            tasks.spawn(Job::Background(Background::AdvanceCore), stop.clone(), work);
            if stopped {
                stop.cancel();
            }
            let ended = tasks.join_next().await.unwrap();
            assert!(tasks.running.is_empty());
            (ended.stopped, ended.detail)
        };
        assert_eq!(
            ended(true, Box::pin(async {})).await,
            (true, "the task returned".to_owned())
        );
        assert_eq!(
            ended(false, Box::pin(async {})).await,
            (false, "the task returned".to_owned())
        );
        let (stopped, detail) = ended(false, Box::pin(async { panic!("planted") })).await;
        assert!(!stopped && detail.contains("planted"), "{detail}");
        assert!(tasks.join_next().await.is_none());
    }
}
