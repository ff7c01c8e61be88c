//! Decides when a changed service is published: at once if it was quiet, else when it has been
//! quiet for a moment.
//!
//! ```text
//! a change while quiet        is published at once, and opens a window of 50 ms
//! a change within the window  is published 50 ms after the last change, or 1 s after the first
//! ```
//!
//! A deploy that changes a service a hundred times a second leads to one view a second, and a
//! single change does not wait. (consul-template's quiescence timers have the same two bounds.)
//! Pure: `now` comes in, decisions go out.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::balancer::{ServiceName, Timestamp};

/// How long a service must be quiet.
pub const QUIET: Duration = Duration::from_millis(50);
/// How long a change waits at most.
pub const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// The services that changed a moment ago.
#[derive(Debug, Default)]
pub struct Coalesce {
    windows: HashMap<ServiceName, Window>,
    /// The deadline of each window, earliest first.
    deadlines: BTreeSet<(Timestamp, ServiceName)>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    deadline: Timestamp,
    waiting: Option<Waiting>,
}

/// Changes that are not published yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Timestamp,
    /// When the oldest of them was read.
    read_at: Timestamp,
}

impl Coalesce {
    /// Notes a change that was read at `read_at`. Returns whether to publish it now.
    pub fn changed(&mut self, service: &ServiceName, read_at: Timestamp, now: Timestamp) -> bool {
        match self.windows.get(service).copied() {
            Some(window) if window.deadline > now || window.waiting.is_some() => {
                let waiting = window.waiting.unwrap_or(Waiting { since: now, read_at });
                let deadline = (now + QUIET).min(waiting.since + LONGEST_DELAY);
                self.open(
                    service,
                    Window {
                        deadline,
                        waiting: Some(waiting),
                    },
                );
                false
            }
            _ => {
                self.open(
                    service,
                    Window {
                        deadline: now + QUIET,
                        waiting: None,
                    },
                );
                true
            }
        }
    }

    /// The services to publish now, each with the time at which its oldest change was read.
    pub fn due(&mut self, now: Timestamp) -> Vec<(ServiceName, Timestamp)> {
        let mut due = Vec::new();
        while let Some((deadline, service)) = self.deadlines.first().cloned() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(Window {
                waiting: Some(waiting), ..
            }) = self.windows.remove(&service)
            {
                // Publishing opens another window.
                self.open(
                    &service,
                    Window {
                        deadline: now + QUIET,
                        waiting: None,
                    },
                );
                due.push((service, waiting.read_at));
            }
        }
        due
    }

    /// All waiting services, whatever their deadline.
    pub fn flush(&mut self) -> Vec<(ServiceName, Timestamp)> {
        self.deadlines.clear();
        let waiting = |(service, window): (ServiceName, Window)| Some((service, window.waiting?.read_at));
        self.windows.drain().filter_map(waiting).collect()
    }

    /// When to call [`due`](Self::due) next.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn open(&mut self, service: &ServiceName, window: Window) {
        if let Some(before) = self.windows.insert(service.clone(), window) {
            self.deadlines.remove(&(before.deadline, service.clone()));
        }
        self.deadlines.insert((window.deadline, service.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_millis(milliseconds)
    }

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    #[test]
    fn a_single_change_is_published_at_once() {
        let mut coalesce = Coalesce::default();
        assert!(coalesce.changed(&web(), at(0), at(1)));
        assert_eq!(coalesce.next(), Some(at(51)));
        assert_eq!(coalesce.due(at(51)), []);
        assert_eq!(coalesce.next(), None);
        assert!(coalesce.changed(&web(), at(60), at(60)));
    }

    #[test]
    fn changes_that_follow_closely_wait_until_it_is_quiet() {
        let mut coalesce = Coalesce::default();
        assert!(coalesce.changed(&web(), at(0), at(0)));
        assert!(!coalesce.changed(&web(), at(9), at(10)));
        assert!(!coalesce.changed(&web(), at(39), at(40)));
        assert_eq!(coalesce.due(at(89)), []);
        assert_eq!(coalesce.due(at(90)), [(web(), at(9))], "with the time of the oldest");
        assert!(
            !coalesce.changed(&web(), at(100), at(100)),
            "publishing opened a window"
        );
        assert!(
            coalesce.changed(&"other".parse().unwrap(), at(100), at(100)),
            "of that service alone"
        );
    }

    #[test]
    fn a_hundred_changes_a_second_make_one_view_a_second() {
        let mut coalesce = Coalesce::default();
        let mut published = Vec::new();
        for now in (0..10_000).step_by(10).map(at) {
            if coalesce.changed(&web(), now, now) {
                published.push(now);
            }
            published.extend(coalesce.due(now).iter().map(|_| now));
        }
        assert_eq!(published.len(), 10, "{published:?}");
        assert_eq!(coalesce.flush().len(), 1);
        assert_eq!(coalesce.next(), None);
    }
}
