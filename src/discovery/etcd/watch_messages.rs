//! What the messages of a watch mean, and which of them end it.
//!
//! etcd ends a watch without ending the stream. The message has `canceled`, often together with
//! `created` or right after it, and with a header that is all zeros. So `canceled` is checked
//! first. The next check is whether the history is still the listed history: etcd accepts a watch
//! on a cluster that lost its data, and sends nothing on it for ever.
//!
//! Pure. Several watches share the stream; a fragment belongs to its own watch.

use std::collections::HashMap;

use super::client::{Cause, Failure};
use super::wire::{Event, Message, Position};

/// What a message means.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing, or not yet.
    Nothing,
    /// All of these events happened, in this order, in one step.
    Events(Vec<Event>),
    /// The watch is over. All keys have to be listed again.
    Over(Failure),
}

/// Follows one stream.
#[derive(Debug)]
pub(super) struct WatchMessages {
    /// The latest position that was seen.
    at: Position,
    /// The position of the list, as long as no event has come.
    quiet_since: Option<Position>,
    fragments: HashMap<i64, Vec<Event>>,
}

impl WatchMessages {
    /// Starts at the position of a list.
    pub(super) fn from(listed: Position) -> Self {
        Self {
            at: listed,
            quiet_since: Some(listed),
            fragments: HashMap::new(),
        }
    }

    /// The position of the list, if no event has come since. From there the watch may go on without
    /// another list. (After an event of one watch, an older event of another may be on its way.)
    pub(super) fn quiet_since(&self) -> Option<Position> {
        self.quiet_since
    }

    /// The latest position that was seen.
    pub(super) fn at(&self) -> Position {
        self.at
    }

    pub(super) fn take(&mut self, message: Message) -> Step {
        if message.compact_revision != 0 {
            let detail = format!(
                "the next revision was compacted, up to revision {}",
                message.compact_revision
            );
            return Step::Over(Failure::new(Cause::Compacted, detail));
        }
        if message.canceled {
            let cause = match Cause::of_text(&message.cancel_reason) {
                Some(cause) => cause,
                None => Cause::Canceled,
            };
            return Step::Over(Failure::new(
                cause,
                format!("watch canceled: {}", message.cancel_reason),
            ));
        }
        if message.created {
            // The list came from this member, so the member has come at least as far.
            if let Some(detail) = message.at.breaks_with(self.at) {
                return Step::Over(Failure::new(Cause::Rollback, detail));
            }
        }
        let same_cluster = message.at.cluster == self.at.cluster || message.at.cluster == 0;
        if message.at.revision > self.at.revision && same_cluster {
            self.at = message.at;
        }
        if !message.events.is_empty() {
            self.quiet_since = None;
        }
        let events = match self.fragments.remove(&message.watch_id) {
            None => message.events,
            Some(mut buffered) => {
                buffered.extend(message.events);
                buffered
            }
        };
        if message.fragment {
            self.fragments.insert(message.watch_id, events);
            return Step::Nothing;
        }
        match events.is_empty() {
            true => Step::Nothing,
            false => Step::Events(events),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::EventKind;
    use super::*;

    const LISTED: Position = Position {
        cluster: 7,
        term: 3,
        revision: 100,
    };

    fn at(revision: i64) -> Position {
        Position { revision, ..LISTED }
    }

    fn events(keys: &[&str]) -> Vec<Event> {
        let event = |key: &&str| Event {
            key: key.as_bytes().to_vec(),
            mod_revision: 101,
            kind: EventKind::Delete,
        };
        keys.iter().map(event).collect()
    }

    fn over(step: Step) -> Cause {
        match step {
            Step::Over(failure) => failure.cause,
            step => panic!("not over: {step:?}"),
        }
    }

    fn heard(step: Step) -> Vec<Event> {
        match step {
            Step::Events(events) => events,
            Step::Nothing => Vec::new(),
            Step::Over(failure) => panic!("over: {failure:?}"),
        }
    }

    #[test]
    fn scenario_32_a_canceled_watch_is_noticed_in_every_form_of_message() {
        // As etcd sends them: created and canceled in one message, or with a header of zeros, and
        // the stream left open.
        for (reason, compact_revision, cause) in [
            ("", 120, Cause::Compacted),
            ("", 0, Cause::Canceled),
            ("mvcc: required revision has been compacted", 0, Cause::Compacted),
            (
                "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
                0,
                Cause::Token,
            ),
            (
                "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
                0,
                Cause::Denied,
            ),
            ("etcdserver: revision of auth store is old", 0, Cause::Token),
            ("auth: revision in header is old", 0, Cause::Token),
            ("etcdserver: no leader", 0, Cause::NoLeader),
            ("something new", 0, Cause::Canceled),
        ] {
            for created in [false, true] {
                let mut messages = WatchMessages::from(LISTED);
                let step = messages.take(Message {
                    created,
                    canceled: true,
                    compact_revision,
                    cancel_reason: reason.to_owned(),
                    ..Message::default()
                });
                assert_eq!(over(step), cause, "{reason}");
                assert_eq!(messages.at(), LISTED, "a header of zeros is ignored");
                assert_eq!(messages.quiet_since(), Some(LISTED));
            }
        }
    }

    #[test]
    fn scenario_28_a_watch_on_an_older_history_is_over_when_it_is_created() {
        let created = |at| {
            WatchMessages::from(LISTED).take(Message {
                created: true,
                at,
                ..Message::default()
            })
        };
        assert!(matches!(created(at(100)), Step::Nothing) && matches!(created(at(130)), Step::Nothing));
        for back in [
            at(4),
            Position { term: 2, ..at(500) },
            Position { cluster: 8, ..at(500) },
        ] {
            assert_eq!(over(created(back)), Cause::Rollback, "{back:?}");
        }
    }

    #[test]
    fn fragments_of_each_watch_are_joined_into_one_step() {
        let mut messages = WatchMessages::from(LISTED);
        let mut take = |watch_id, fragment, keys: &[&str]| {
            let message = Message {
                watch_id,
                fragment,
                at: at(101),
                events: events(keys),
                ..Message::default()
            };
            heard(messages.take(message))
        };
        assert_eq!(take(1, true, &["a"]), []);
        assert_eq!(take(2, false, &["z"]), events(&["z"]));
        assert_eq!(take(1, true, &["b"]), []);
        assert_eq!(take(1, false, &["c"]), events(&["a", "b", "c"]));
        assert_eq!(take(1, false, &[]), []);
    }

    #[test]
    fn a_progress_notification_moves_the_position_only_forward() {
        let mut messages = WatchMessages::from(LISTED);
        for (revision, expected) in [(150, 150), (120, 150), (0, 150)] {
            let message = Message {
                watch_id: -1,
                at: at(revision),
                ..Message::default()
            };
            assert_eq!(heard(messages.take(message)), []);
            assert_eq!(messages.at().revision, expected);
        }
        assert_eq!(messages.quiet_since(), Some(LISTED), "no event has come");
        let message = Message {
            events: events(&["a"]),
            ..Message::default()
        };
        assert_eq!(heard(messages.take(message)).len(), 1);
        assert_eq!(messages.quiet_since(), None);
    }
}
