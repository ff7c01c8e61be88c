//! What etcd sends, without the types of its crate: lists, messages of a watch, and positions in
//! etcd's history.

use super::formats::{InvalidRegistration, Registration};

/// A position in etcd's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) cluster: u64,
    /// Rises with every election.
    pub(super) term: u64,
    /// Rises with every change.
    pub(super) revision: i64,
}

impl Position {
    /// Why `self` is not a later position of the same history, if it is not. Zeros do not count:
    /// proxies send them.
    pub(super) fn breaks_with(self, earlier: Self) -> Option<String> {
        let known = |before: u64, now: u64| before != 0 && now != 0;
        if known(earlier.cluster, self.cluster) && self.cluster != earlier.cluster {
            return Some(format!("cluster {:x} after {:x}", self.cluster, earlier.cluster));
        }
        if known(earlier.term, self.term) && self.term < earlier.term {
            return Some(format!("raft term {} after {}", self.term, earlier.term));
        }
        (self.revision < earlier.revision).then(|| format!("revision {} after {}", self.revision, earlier.revision))
    }
}

/// All keys below all prefixes that may be read, as they were at one revision.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) at: Position,
    pub(super) keys: Vec<Listed>,
    /// How many keys register nothing on purpose, and are left out.
    pub(super) elsewhere: usize,
    pub(super) unreadable: Vec<Unreadable>,
}

#[derive(Debug)]
pub(super) struct Listed {
    pub(super) key: Vec<u8>,
    pub(super) mod_revision: i64,
    pub(super) read: Result<Registration, InvalidRegistration>,
    /// How long the value is. Of a value that is not valid, only its length is logged.
    pub(super) value_bytes: usize,
}

/// A prefix that the user may not read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unreadable {
    /// Which of the prefixes.
    pub(super) prefix: usize,
    /// Why, with the prefix.
    pub(super) detail: String,
}

/// One response of a watch stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub(super) watch_id: i64,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) compact_revision: i64,
    pub(super) cancel_reason: String,
    /// More events of the same step follow.
    pub(super) fragment: bool,
    pub(super) at: Position,
    pub(super) events: Vec<Event>,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) key: Vec<u8>,
    pub(super) mod_revision: i64,
    pub(super) kind: EventKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum EventKind {
    Put {
        value: Vec<u8>,
        /// Whether the key has a lease.
        leased: bool,
    },
    /// Deregistered or expired: etcd does not say which.
    Delete,
    /// Of a type that this version of pickd does not know.
    Unknown(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_goes_on_with_the_same_cluster_and_rising_numbers() {
        let at = |cluster, term, revision| Position {
            cluster,
            term,
            revision,
        };
        let before = at(7, 3, 100);
        for fine in [at(7, 3, 100), at(7, 9, 101), at(0, 0, 100)] {
            assert_eq!(fine.breaks_with(before), None, "{fine:?}");
        }
        for broken in [at(8, 3, 500), at(7, 2, 500), at(7, 3, 99), at(0, 0, 4)] {
            assert!(broken.breaks_with(before).is_some(), "{broken:?}");
        }
        assert_eq!(before.breaks_with(Position::default()), None);
    }
}
