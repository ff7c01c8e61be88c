//! `GET /healthz`, `GET /readyz`: is the agent alive, and does it know enough to be asked?
//!
//! Ready once every required source has synced, or once the ready timeout has passed with at least one synced. Ready stays
//! ready when a source is lost later: what was learned is still served. Only the shutdown takes it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::query;
use super::wire::SourceState;
use crate::balancer::{Sources, Timestamp};

/// Whether the agent is ready, and stays so.
#[derive(Debug)]
pub struct Readiness {
    started: Timestamp,
    timeout: Duration,
    reached: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// Not ready; starts waiting at `started`.
    #[must_use]
    pub fn new(started: Timestamp, timeout: Duration) -> Self {
        Self {
            started,
            timeout,
            reached: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Takes it back for good: the agent is about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether it is reached.
    pub(super) fn is_reached(&self, sources: &Sources, now: Timestamp) -> bool {
        self.check(sources, now).is_ok()
    }

    /// `Ok` when ready, else what is waited for.
    fn check(&self, sources: &Sources, now: Timestamp) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("shutting down".to_owned());
        }
        let patience_is_over = now.since(self.started) >= self.timeout;
        if sources.required_synced() || patience_is_over && sources.any_synced() {
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

/// Alive: answers while the process runs, whatever the registries do.
pub(super) async fn healthz(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    query::no_parameters(&uri)?;
    Ok(Json(json!({ "status": "ok", "sources": sources(&api)? })))
}

/// Ready: knows what it was told to know.
pub(super) async fn readyz(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    query::no_parameters(&uri)?;
    let sources = sources(&api)?;
    match api.readiness.check(&api.directory.sources(), api.clock.now()) {
        Ok(()) => Ok(Json(json!({ "ready": true, "sources": sources }))),
        Err(detail) => Err(ApiError::NotReady { detail, sources }),
    }
}

fn sources(api: &Api) -> Result<Value, ApiError> {
    let states = SourceState::all(&api.directory.sources(), api.clock.now());
    serde_json::to_value(states).map_err(|_| ApiError::Internal)
}

#[cfg(test)]
mod tests {
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
            "patience is over, and one has synced"
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
    fn patience_alone_makes_nobody_ready() {
        let status = Arc::new(SourceStatus::new(Source::new("consul"), true, Box::new(|_| true)));
        let readiness = Readiness::new(at(0), Duration::from_secs(30));
        assert!(readiness.check(&Sources::new(vec![status]), at(3_600)).is_err());
    }
}
