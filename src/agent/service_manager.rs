//! The service manager: systemd, or another that speaks its notification protocol.
//!
//! The agent tells it when it listens, reloads and stops, how its sources are, and that its main
//! loop still turns. A service manager that does not hear of the main loop in time restarts the
//! agent. Without `NOTIFY_SOCKET` in the environment nothing is sent.
//!
//! Ready means here that the agent listens. It does not wait for its sources: a registry that is
//! away must neither fail the start of the agent nor hold up the units that are ordered after it.
//! `/readyz` tells whether the sources have synced.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::balancer::Sources;

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct ServiceManager {
    present: bool,
    watchdog: Option<Duration>,
    reload_refused: bool,
    last_status: String,
    failing: bool,
}

impl ServiceManager {
    /// As the variables `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say.
    #[must_use]
    pub fn from_environment() -> Self {
        Self {
            present: true,
            watchdog: sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero()),
            ..Self::default()
        }
    }

    /// How often [`alive`](Self::alive) is due, if the service manager waits for it: twice within
    /// its timeout.
    pub(super) fn alive_every(&self) -> Option<Duration> {
        self.watchdog.map(|timeout| (timeout / 2).max(Duration::from_millis(1)))
    }

    /// The listeners are bound.
    pub(super) fn ready(&mut self) {
        self.send(&[NotifyState::Ready]);
    }

    /// The main loop turns.
    pub(super) fn alive(&mut self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// A reload begins.
    pub(super) fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the service manager cannot be told"),
        }
    }

    /// The reload is over; `accepted` says whether the new configuration acts.
    pub(super) fn reloaded(&mut self, accepted: bool) {
        self.reload_refused = !accepted;
        self.send(&[NotifyState::Ready]);
    }

    /// The agent is about to end.
    pub(super) fn stopping(&mut self) {
        self.send(&[NotifyState::Stopping, NotifyState::Status("shutting down")]);
    }

    /// How the sources are, said again only when it has changed.
    pub(super) fn tell_status(&mut self, sources: &Sources) {
        if !self.present {
            return;
        }
        let status = status(sources, self.reload_refused);
        if status != self.last_status {
            self.send(&[NotifyState::Status(&status)]);
            self.last_status = status;
        }
    }

    fn send(&mut self, states: &[NotifyState<'_>]) {
        if !self.present {
            return;
        }
        let sent = sd_notify::notify(states);
        if let Err(error) = &sent
            && !self.failing
        {
            tracing::warn!(%error, "the service manager cannot be told");
        }
        self.failing = sent.is_err();
    }
}

/// One line for `systemctl status`. No ages: they would make every line another.
fn status(sources: &Sources, reload_refused: bool) -> String {
    let mut parts: Vec<String> = sources
        .iter()
        .map(|source| {
            let state = match (source.is_synced(), source.is_up()) {
                (true, true) => "synced",
                (true, false) => "away, serving what it said last",
                (false, _) => "not synced yet",
            };
            format!("{}: {state}", source.source())
        })
        .collect();
    if reload_refused {
        parts.push("the changed configuration was refused".to_owned());
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::balancer::{Source, SourceStatus, Timestamp};

    #[test]
    fn a_status_is_a_word_on_each_source() {
        let source = |name| Arc::new(SourceStatus::new(Source::new(name), true, Box::new(|_| true)));
        let (consul, etcd, file) = (source("consul"), source("etcd"), source("file"));
        consul.heard(Timestamp::default());
        consul.mark_synced();
        etcd.heard(Timestamp::default());
        etcd.mark_synced();
        etcd.lost(Timestamp::default(), &"refused");
        let sources = Sources::new(vec![consul, etcd, file]);
        let text = "consul: synced; etcd: away, serving what it said last; file: not synced yet";
        assert_eq!(status(&sources, false), text);
        assert_eq!(
            status(&sources, true),
            format!("{text}; the changed configuration was refused")
        );
    }

    #[test]
    fn the_watchdog_hears_twice_within_its_timeout() {
        let with = |watchdog| ServiceManager {
            watchdog,
            ..ServiceManager::default()
        };
        assert_eq!(with(None).alive_every(), None);
        assert_eq!(
            with(Some(Duration::from_secs(30))).alive_every(),
            Some(Duration::from_secs(15))
        );
        // An interval of nothing would panic.
        assert_eq!(
            with(Some(Duration::from_nanos(1))).alive_every(),
            Some(Duration::from_millis(1))
        );
    }
}
