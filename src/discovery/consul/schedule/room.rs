//! How many long polls Consul has room for.
//!
//! A long poll is a connection, and Consul accepts 200 connections per client address, from all
//! programs at that address together. Beyond the limit, every new connection is closed, those of
//! other programs included. So the number of polls starts low, and grows only while Consul has room
//! to spare:
//!
//! ```text
//! 16 ──► open spare connections, close them ──► all stayed open: twice as many polls
//! ▲                                        └──► some were closed: fewer polls, ask again later
//! └─ halved, down to 4, when a connection of pickd itself is closed at once
//! ```
//!
//! Polls above the number are not cancelled, since Consul would count them until their wait ends.
//! They are not sent again.

use std::time::Duration;

use crate::balancer::Timestamp;

/// Polls that start without a test.
const START: usize = 16;
/// The fewest polls.
const FEWEST: usize = 4;
/// Connections that stay free for other programs.
const SPARE: usize = 16;
/// How often the spare connections are tested while there are more polls than at the start.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// The longest pause until the number of polls may grow again.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

pub(super) struct Room {
    /// The most polls that the configuration allows.
    most: usize,
    /// The most polls at present.
    polls: usize,
    /// Whether connections can be tested. If not, the number grows without a test.
    testable: bool,
    /// The polls that a test in progress would allow.
    testing: Option<usize>,
    check_at: Timestamp,
    /// The pause after the last halving.
    pause: Duration,
    grow_at: Timestamp,
}

impl Room {
    pub(super) fn new(most: usize, testable: bool) -> Self {
        Self {
            most,
            polls: most.min(if testable { START } else { most }),
            testable,
            testing: None,
            check_at: Timestamp::default(),
            pause: Duration::ZERO,
            grow_at: Timestamp::default(),
        }
    }

    /// The most polls at once, the poll of the catalog included.
    pub(super) fn polls(&self) -> usize {
        self.polls
    }

    /// How many spare connections to test now, if any. `wanted` polls would be useful.
    pub(super) fn test(&mut self, wanted: usize, now: Timestamp) -> Option<usize> {
        if self.testing.is_some() {
            return None;
        }
        if self.polls < self.most.min(wanted) && self.grow_at <= now {
            let next = (self.polls * 2).min(self.most);
            let more = next - self.polls;
            self.testing = Some(next);
            if self.testable {
                return Some(more + SPARE);
            }
            self.tested(true, now);
            return None;
        }
        if self.testable && self.polls.min(wanted) > START && self.check_at <= now {
            self.testing = Some(self.polls);
            return Some(SPARE);
        }
        None
    }

    /// When [`Self::test`] may have something to test.
    pub(super) fn test_at(&self, wanted: usize) -> Option<Timestamp> {
        let grow = (self.polls < self.most.min(wanted)).then_some(self.grow_at);
        let check = (self.testable && self.polls.min(wanted) > START).then_some(self.check_at);
        let next = grow.into_iter().chain(check).min();
        next.filter(|_| self.testing.is_none())
    }

    /// The result of a test: whether all connections stayed open.
    pub(super) fn tested(&mut self, free: bool, now: Timestamp) {
        let Some(next) = self.testing.take() else { return };
        self.check_at = now + CHECK_EVERY;
        if free && next > self.polls {
            self.polls = next;
            self.grow_at = now + self.pause;
            if self.polls == self.most {
                self.pause = Duration::ZERO;
            }
        } else if !free && next > self.polls {
            self.wait_longer(now);
        } else if !free {
            self.halve(now);
        }
    }

    /// Consul closed a connection because there are too many from this address.
    pub(super) fn halve(&mut self, now: Timestamp) {
        // A test from before says nothing any more.
        self.testing = None;
        self.polls = (self.polls / 2).max(FEWEST.min(self.most));
        self.wait_longer(now);
    }

    fn wait_longer(&mut self, now: Timestamp) {
        self.pause = (self.pause * 2).clamp(CHECK_EVERY, LONGEST_PAUSE);
        self.grow_at = now + self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn polls_double_while_there_is_room_for_them_and_to_spare() {
        let mut room = Room::new(64, true);
        assert_eq!((room.polls(), room.test(10, at(1))), (16, None), "enough for ten");
        assert_eq!(room.test_at(17), Some(at(0)));
        assert_eq!(room.test(17, at(1)), Some(32));
        assert_eq!((room.test(17, at(1)), room.test_at(17)), (None, None), "in progress");
        room.tested(true, at(1));
        assert_eq!((room.polls(), room.test(500, at(1))), (32, Some(48)));
        room.tested(true, at(1));
        assert_eq!((room.polls(), room.test(500, at(2))), (64, None));
        assert_eq!(room.test(500, at(61)), Some(16), "from time to time");
        room.tested(true, at(61));
        assert_eq!((room.polls(), room.test_at(500)), (64, Some(at(121))));
    }

    #[test]
    fn without_room_polls_stay_or_halve_down_to_four_and_grow_slowly() {
        let mut room = Room::new(64, true);
        assert!(room.test(100, at(1)).is_some());
        room.tested(false, at(1));
        assert_eq!((room.polls(), room.test(100, at(60))), (16, None));
        let mut halved = Vec::new();
        for second in 2..6 {
            room.halve(at(second));
            halved.push(room.polls());
        }
        assert_eq!(halved, [8, 4, 4, 4]);
        assert_eq!(room.test_at(100), Some(at(605)), "no sooner than after ten minutes");
        assert_eq!(room.test(100, at(605)), Some(20));
        room.tested(true, at(605));
        assert_eq!(
            (room.polls(), room.test(100, at(700))),
            (8, None),
            "one step, and a pause"
        );
        assert_eq!(Room::new(2, true).polls(), 2);
    }

    #[test]
    fn a_check_that_fails_makes_room_for_others() {
        let mut room = Room::new(64, true);
        for _ in 0..2 {
            room.test(100, at(1)).unwrap();
            room.tested(true, at(1));
        }
        assert_eq!(room.test(100, at(61)), Some(16));
        room.tested(false, at(61));
        assert_eq!(room.polls(), 32);
        assert_eq!(room.test(100, at(120)), None);
        assert_eq!(room.test(100, at(121)), Some(48));
    }

    #[test]
    fn a_limit_that_cannot_be_tested_is_met_by_halving_alone() {
        let mut room = Room::new(64, false);
        assert_eq!(
            (room.polls(), room.test(100, at(1)), room.test_at(100)),
            (64, None, None)
        );
        room.halve(at(1));
        assert_eq!((room.polls(), room.test_at(100)), (32, Some(at(61))));
        assert_eq!((room.test(100, at(61)), room.polls()), (None, 64));
    }
}
