//! Trial connections to held instances: an instance that accepts them stays, and an instance that
//! refuses one is removed, whatever its registry remembers.
//!
//! ```text
//! Reconciler::held ──► waiting ──► up to 64 connections at a time ──► Reconciler::tried
//! ```
//!
//! Each held instance is tried once a second. The rate has a bound, so with many held instances
//! each of them is tried in turn.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::balancer::{Address, Clock, DeniedNetworks, ServiceName, Source};
use crate::discovery::guard::Trial;
use crate::probe::{TrialConnection, attempt};

use super::Running;

/// The time in which a held instance has to accept a connection.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The most trials at the same time.
const MAX_CONCURRENT: usize = 64;
/// The most trials that start between two ticks, which are a second apart.
const MAX_PER_TICK: usize = 256;

/// A held instance.
type Target = (Source, ServiceName, Address);

/// A trial that has ended.
pub(super) struct Tried {
    target: Target,
    /// `None` if nothing is known.
    trial: Option<Trial>,
}

/// The trials that wait and that run.
#[derive(Default)]
pub(super) struct Trials {
    waiting: VecDeque<Target>,
    running: JoinSet<Tried>,
    /// The targets that wait or run.
    unfinished: HashSet<Target>,
    /// The targets that were tried since the last tick, and those that wait or run.
    planned: HashSet<Target>,
    /// How many trials were started since the last tick.
    started: usize,
    /// How many removals were held so far when trials were planned last.
    removals_held: u64,
}

impl Trials {
    /// Plans a trial of each held instance that was not tried since the last tick.
    fn plan(&mut self, held: Vec<Target>) {
        for target in held {
            if self.planned.insert(target.clone()) {
                self.unfinished.insert(target.clone());
                self.waiting.push_back(target);
            }
        }
    }

    /// A second has passed: each of these held instances may be tried again, and nothing else.
    fn tick(&mut self, held: &[Target]) {
        let held: HashSet<&Target> = held.iter().collect();
        let unfinished = &mut self.unfinished;
        self.waiting.retain(|target| {
            let stays = held.contains(target);
            if !stays {
                unfinished.remove(target);
            }
            stays
        });
        if self.running.is_empty() {
            self.unfinished = self.waiting.iter().cloned().collect();
        }
        self.planned.clone_from(&self.unfinished);
        self.started = 0;
    }

    /// Starts what may start now. `denied` gives the networks that must not be contacted.
    fn start(&mut self, denied: impl Fn(&ServiceName) -> DeniedNetworks) {
        while self.running.len() < MAX_CONCURRENT && self.started < MAX_PER_TICK {
            let Some(target) = self.waiting.pop_front() else { return };
            self.started += 1;
            let denied = denied(&target.1);
            self.running.spawn(async move {
                let trial = match attempt(&target.2, &denied, TIMEOUT).await {
                    TrialConnection::Accepted => Some(Trial::Accepted),
                    TrialConnection::Refused => Some(Trial::Refused),
                    TrialConnection::Unanswered => Some(Trial::Unanswered),
                    TrialConnection::Unknown => None,
                };
                Tried { target, trial }
            });
        }
    }

    /// Waits for the next trial to end. `None` if none runs. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Tried> {
        loop {
            // A trial that panicked is planned again once no other runs.
            if let Ok(tried) = self.running.join_next().await? {
                self.unfinished.remove(&tried.target);
                return Some(tried);
            }
        }
    }
}

impl Running {
    /// Tries instances that are held since the last call.
    pub(super) fn try_held_instances(&mut self) {
        let removals_held = self.reconciler.removals_held();
        if self.trials.removals_held != removals_held {
            self.trials.removals_held = removals_held;
            self.trials.plan(self.reconciler.held());
            self.start_trials();
        }
    }

    /// Tries all held instances again, a second after the last time.
    pub(super) fn try_held_instances_again(&mut self) {
        let held = self.reconciler.held();
        self.trials.tick(&held);
        self.trials.plan(held);
        self.start_trials();
    }

    /// Tells the reconciler what came of a trial, and starts the next.
    pub(super) fn apply_trial(&mut self, tried: &Tried) {
        let (source, service, address) = &tried.target;
        if let Some(trial) = tried.trial {
            self.reconciler
                .tried(*source, service, address, trial, self.clock.now());
        }
        self.start_trials();
    }

    fn start_trials(&mut self) {
        let services = &self.config.services;
        self.trials.start(|service| services.of(service).denied().clone());
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn target(address: &str) -> Target {
        let service = "web".parse().unwrap();
        (Source::new("consul"), service, address.parse().unwrap())
    }

    #[tokio::test]
    async fn each_held_instance_is_tried_once_a_tick_and_in_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = vec![target(&address.to_string())];
        // Nothing listens at port 1.
        held.extend((1..=300).map(|number| target(&format!("127.1.{}.{}:1", number / 250, number % 250))));
        let mut trials = Trials::default();
        let mut seen = Vec::new();
        for _ in 0..2 {
            trials.tick(&held);
            for _ in 0..3 {
                trials.plan(held.clone());
            }
            trials.start(|_| DeniedNetworks::default());
            assert_eq!(trials.running.len(), MAX_CONCURRENT);
            while let Some(tried) = trials.next().await {
                seen.push(tried);
                trials.start(|_| DeniedNetworks::default());
            }
        }
        assert_eq!(seen.len(), 2 * MAX_PER_TICK);
        let tried: HashSet<_> = seen.iter().map(|tried| tried.target.clone()).collect();
        assert_eq!(tried.len(), 301, "the second tick goes on where the first ended");
        for Tried { target, trial } in &seen {
            let accepts = target.2.as_str() == address.to_string();
            let expected = if accepts { Trial::Accepted } else { Trial::Refused };
            assert_eq!(*trial, Some(expected), "{target:?}");
        }
        trials.tick(&[]);
        assert!(trials.waiting.is_empty() && trials.planned.is_empty());
    }

    #[tokio::test]
    async fn an_instance_at_a_denied_address_is_never_contacted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let denied = DeniedNetworks::default().and(["127.0.0.1".parse().unwrap()]);
        let mut trials = Trials::default();
        trials.plan(vec![target(&listener.local_addr().unwrap().to_string())]);
        trials.start(|_| denied.clone());
        assert_eq!(trials.next().await.unwrap().trial, Some(Trial::Unanswered));
        let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(accepted.is_err(), "it was contacted");
    }
}
