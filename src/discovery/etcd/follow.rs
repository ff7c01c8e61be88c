//! What the messages of a watch mean, and which of them end it.
//!
//! etcd ends a watch without ending the stream: it says `canceled`, often in the same message or right behind one that says
//! `created`, with a header that is worth nothing. So that is looked at first. Then whether the history is still the one that
//! was listed: a watch on a cluster that lost its data is accepted, and silent for ever.
//!
//! Pure. Several watches share the stream; a fragment belongs to its own.

use std::collections::HashMap;

use super::client::{Cause, Trouble};
use super::wire::{Event, Message, Position};

/// What a message means.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing, or not yet.
    Nothing,
    /// All of this happened, in this order, in one step.
    Events(Vec<Event>),
    /// The watch is over. Everything has to be listed again.
    Over(Trouble),
}

/// Goes along with one stream.
#[derive(Debug)]
pub(super) struct Follow {
    /// The latest moment seen.
    at: Position,
    fragments: HashMap<i64, Vec<Event>>,
}

impl Follow {
    /// Goes on where a list was taken.
    pub(super) fn from(listed: Position) -> Self {
        Self {
            at: listed,
            fragments: HashMap::new(),
        }
    }

    /// The latest moment seen.
    pub(super) fn at(&self) -> Position {
        self.at
    }

    pub(super) fn take(&mut self, message: Message) -> Step {
        if message.compact_revision != 0 {
            let detail = format!(
                "what comes next is compacted up to revision {}",
                message.compact_revision
            );
            return Step::Over(Trouble::new(Cause::Compacted, detail));
        }
        if message.canceled {
            let cause = match Cause::of_text(&message.cancel_reason) {
                Some(cause) => cause,
                None => Cause::Canceled,
            };
            return Step::Over(Trouble::new(
                cause,
                format!("watch canceled: {}", message.cancel_reason),
            ));
        }
        if message.created {
            // The list is from this very member, so it has come at least as far.
            if let Some(detail) = message.at.breaks_with(self.at) {
                return Step::Over(Trouble::new(Cause::Rollback, detail));
            }
        }
        let same_cluster = message.at.cluster == self.at.cluster || message.at.cluster == 0;
        if message.at.revision > self.at.revision && same_cluster {
            self.at = message.at;
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
