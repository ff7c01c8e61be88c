//! Whether the servers know a leader, and which server the next request asks.
//!
//! ```text
//! known ── a server knows no leader, or heard from it longer than max_stale ago ──► away
//!   ▲                                                                                │
//!   │            one read of the catalog goes to the leader itself, the others to any server
//!   └────────────────────── an answer from a server that knows a leader ────────────┘
//! ```
//!
//! If the leader itself answered that one read, only the servers near this agent lag. Then all
//! requests go to the leader for one refresh interval.

use std::time::Duration;

use super::request::Consistency;
use super::settings::ConsulSettings;
use super::wire::Head;
use crate::balancer::Timestamp;

pub(super) struct Leader {
    max_stale: Duration,
    refresh: Duration,
    state: State,
    /// Until then, all requests go to the leader: the other servers lag.
    ask_until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Known,
    Away {
        /// Whether the one read that goes to the leader itself has been sent.
        asked: bool,
    },
}

impl Leader {
    /// The leader counts as known until an answer says otherwise.
    pub(super) fn new(settings: &ConsulSettings) -> Self {
        Self {
            max_stale: settings.max_stale,
            refresh: settings.refresh,
            state: State::Known,
            ask_until: None,
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.state == State::Known
    }

    /// Whether an answer comes from a server that knows no leader, or has not heard from it for
    /// longer than `max_stale`.
    pub(super) fn lags(&self, head: &Head) -> bool {
        !head.known_leader || head.last_contact > self.max_stale
    }

    /// Which server a request of now asks.
    pub(super) fn consistency(&self, now: Timestamp) -> Consistency {
        match self.ask_until {
            Some(until) if now < until => Consistency::Default,
            _ => Consistency::Stale,
        }
    }

    /// Whether this read of the catalog goes to the leader itself. True once for each loss.
    pub(super) fn take_direct_read(&mut self) -> bool {
        let due = self.state == State::Away { asked: false };
        if due {
            self.state = State::Away { asked: true };
        }
        due
    }

    /// An answer lags. Returns whether the leader was known before.
    pub(super) fn lost(&mut self) -> bool {
        let was_known = self.is_known();
        if was_known {
            self.state = State::Away { asked: false };
        }
        was_known
    }

    /// An answer that was asked for with this consistency no longer lags.
    pub(super) fn found(&mut self, asked: Consistency, now: Timestamp) {
        self.state = State::Known;
        if asked == Consistency::Default {
            self.ask_until = Some(now + self.refresh);
        }
    }

    /// Consul cannot be reached: the next requests go to any server again.
    pub(super) fn unreachable(&mut self) {
        self.ask_until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn leader() -> Leader {
        Leader::new(&ConsulSettings::new("http://unused"))
    }

    #[test]
    fn one_read_per_loss_goes_to_the_leader_itself() {
        let mut leader = leader();
        assert!(!leader.take_direct_read());
        assert!(leader.lost() && !leader.lost(), "one loss");
        assert!(leader.take_direct_read() && !leader.take_direct_read());
        leader.found(Consistency::Stale, at(1));
        assert!(leader.is_known() && !leader.take_direct_read());
        assert!(leader.lost() && leader.take_direct_read());
    }

    #[test]
    fn a_leader_that_answered_itself_is_asked_for_one_refresh() {
        let mut leader = leader();
        leader.lost();
        leader.found(Consistency::Stale, at(1));
        assert_eq!(leader.consistency(at(1)), Consistency::Stale);
        leader.found(Consistency::Default, at(10));
        assert_eq!(leader.consistency(at(99)), Consistency::Default);
        assert_eq!(leader.consistency(at(100)), Consistency::Stale);
        leader.found(Consistency::Default, at(200));
        leader.unreachable();
        assert_eq!(leader.consistency(at(201)), Consistency::Stale);
    }

    #[test]
    fn an_answer_lags_without_a_leader_or_beyond_max_stale() {
        let head = |known_leader, seconds| Head {
            index: None,
            known_leader,
            last_contact: Duration::from_secs(seconds),
            filtered: false,
        };
        let leader = leader();
        assert!(!leader.lags(&head(true, 30)));
        assert!(leader.lags(&head(true, 31)) && leader.lags(&head(false, 0)));
    }
}
