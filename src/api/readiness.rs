//! Whether the agent is ready.
//!
//! The agent is ready once every required source has synced, or once the ready timeout has passed
//! with at least one source synced. A ready agent stays ready when a source is lost: picks use the
//! last known instances. Only the shutdown ends readiness.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::balancer::{Sources, Timestamp};

/// Whether the agent is ready. Once ready, stays ready until the shutdown.
#[derive(Debug)]
pub struct Readiness {
    started: Timestamp,
    timeout: Duration,
    reached: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// Not ready yet. The timeout counts from `started`.
    #[must_use]
    pub fn new(started: Timestamp, timeout: Duration) -> Self {
        Self {
            started,
            timeout,
            reached: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Ends readiness for good: the agent is about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the agent is ready.
    pub(super) fn is_reached(&self, sources: &Sources, now: Timestamp) -> bool {
        self.check(sources, now).is_ok()
    }

    /// `Ok` when ready, else the reason for which the agent is not ready.
    pub(super) fn check(&self, sources: &Sources, now: Timestamp) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("shutting down".to_owned());
        }
        let timed_out = now.since(self.started) >= self.timeout;
        if sources.required_synced() || timed_out && sources.any_synced() {
            self.reached.store(true, Ordering::Relaxed);
        }
        if self.reached.load(Ordering::Relaxed) {
            return Ok(());
        }
        let waiting = sources
            .iter()
            .filter(|status| status.is_required() && !status.is_synced());
        let names: Vec<&str> = waiting.map(|status| status.source().as_str()).collect();
        Err(format!("waiting for {}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::balancer::{Source, SourceStatus};

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn readiness_is_reached_once_and_lost_only_by_draining() {
        let status = |name| Arc::new(SourceStatus::new(Source::new(name), true, Box::new(|_| true)));
        let (consul, file) = (status("consul"), status("file"));
        let sources = Sources::new(vec![consul.clone(), file.clone()]);
        let readiness = Readiness::new(at(0), Duration::from_secs(30));
        assert_eq!(
            readiness.check(&sources, at(1)),
            Err("waiting for consul, file".to_owned())
        );
        file.mark_synced();
        assert_eq!(readiness.check(&sources, at(29)), Err("waiting for consul".to_owned()));
        assert_eq!(
            readiness.check(&sources, at(30)),
            Ok(()),
            "the timeout has passed, and one source has synced"
        );
        consul.lost(at(31), &"refused");
        assert_eq!(
            readiness.check(&Sources::new(vec![consul]), at(32)),
            Ok(()),
            "stays ready"
        );
        readiness.drain();
        assert_eq!(readiness.check(&sources, at(33)), Err("shutting down".to_owned()));
    }

    #[test]
    fn an_agent_without_a_synced_source_is_never_ready() {
        let status = Arc::new(SourceStatus::new(Source::new("consul"), true, Box::new(|_| true)));
        let readiness = Readiness::new(at(0), Duration::from_secs(30));
        assert!(readiness.check(&Sources::new(vec![status]), at(3_600)).is_err());
    }
}
