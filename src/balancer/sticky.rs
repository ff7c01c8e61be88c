//! Sticky sessions of one view: which member a session stays at, and when it moves.
//!
//! ```text
//! key or token ─► session ─► place: of the table, or of the token if that is not older
//!                              │
//!      the instance keeps it? ─┼─ yes, and it fits the pick ──► this instance
//!                              ├─ yes, and it is excluded ────► the strategy; the session stays
//!                              ├─ yes, but tags or port differ ► a place of its own for these
//!                              └─ no ─────────────────────────► the strategy; the session moves
//! ```
//!
//! **An instance keeps its sessions while it can be picked**, in turn or in reserve, and while a
//! weight of 0 or an operator's drain is the only reason against it. So a drained instance loses no
//! session and gets none. Checks, breakers, the registry and a departure take the sessions away, each
//! once: a session does not go back when its earlier instance returns.
//!
//! A view without sticky sessions has no `Sticky`, and its picks do not come here.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::clock::Timestamp;
use super::config::LoadBalancerConfig;
use super::context::Context;
use super::health::ejection::Admission;
use super::health::layers::UnavailableReason;
use super::member::{Member, unavailable_reasons};
use super::session_token::{Place, SessionToken, instance_hash};
use super::sessions::{Limits, Sessions};

/// The members of a view, as places of sessions.
#[derive(Debug)]
pub(crate) struct Sticky {
    sessions: Arc<Sessions>,
    limits: Limits,
    /// Members by the hash of their id, sorted.
    by_instance: Box<[(u64, u32)]>,
    /// Members that keep sessions although no pick chooses them, sorted.
    drained: Box<[u32]>,
}

/// What a pick needs to know besides its context.
pub(crate) struct Moment<'a> {
    pub(crate) members: &'a [Member],
    pub(crate) now: Timestamp,
}

impl Sticky {
    pub(crate) fn new(config: &LoadBalancerConfig, members: &[Member], sessions: Arc<Sessions>) -> Self {
        let numbered = || (0_u32..).zip(members);
        let mut by_instance: Box<[_]> = numbered()
            .map(|(index, member)| (instance_hash(member.instance.id().as_str()), index))
            .collect();
        by_instance.sort_unstable();
        let drained = numbered()
            .filter(|(_, member)| member.units == 0 && is_drained(member, config))
            .map(|(index, _)| index)
            .collect();
        Self {
            sessions,
            limits: Limits::of(config),
            by_instance,
            drained,
        }
    }

    /// Chooses the member of the session of the context. Without a session, and where the session has
    /// no member yet, `by_strategy` chooses.
    pub(crate) fn choose(
        &self,
        at: &Moment<'_>,
        context: &Context<'_>,
        by_strategy: impl Fn() -> Option<u32>,
    ) -> Option<u32> {
        let token = context.session.and_then(|text| {
            let token = self.sessions.read(text);
            if token.is_none() && !text.is_empty() {
                self.sessions.count_rejected();
            }
            token
        });
        let Some(session) = self.session_of(context, token) else {
            return by_strategy();
        };
        let known = self.sessions.touch(session, self.limits, at.now);
        let home = newer(known, token.map(|token| token.place));
        let Some((place, index, member)) = self.kept(home, at) else {
            return self.settle(session, known, home, at, context, by_strategy);
        };
        // A token alone tells its place each time, and needs no memory.
        if known != home && (known.is_some() || context.key.is_some()) {
            self.sessions.settle(session, known, place, self.limits, at.now);
        }
        if context.admits(member.instance()) {
            return Some(index);
        }
        if context.fits(member.instance()) {
            return by_strategy();
        }
        let apart = session ^ wishes(context);
        let known = self.sessions.touch(apart, self.limits, at.now);
        match self
            .kept(known, at)
            .filter(|(.., member)| context.fits(member.instance()))
        {
            Some((_, index, member)) if context.admits(member.instance()) => Some(index),
            Some(_) => by_strategy(),
            None => self.settle(apart, known, known, at, context, by_strategy),
        }
    }

    /// Places a session that has no instance, or whose instance keeps it no longer.
    fn settle(
        &self,
        session: u64,
        known: Option<Place>,
        home: Option<Place>,
        at: &Moment<'_>,
        context: &Context<'_>,
        by_strategy: impl Fn() -> Option<u32>,
    ) -> Option<u32> {
        let chosen = by_strategy()?;
        let member = at.members.get(chosen as usize)?;
        let place = Place {
            instance: instance_hash(member.instance.id().as_str()),
            moves: home.map_or(0, |home| home.moves.saturating_add(1)),
        };
        let settled = self.sessions.settle(session, known, place, self.limits, at.now);
        if settled == place {
            if home.is_some() {
                self.sessions.count_moved();
            }
            return Some(chosen);
        }
        // Another pick of the session was first.
        match self.kept(Some(settled), at) {
            Some((_, index, member)) if context.admits(member.instance()) => Some(index),
            _ => Some(chosen),
        }
    }

    /// The token of the session of a pick of this view, which chose `member`. The token names the
    /// instance of the session, also where the pick was diverted. A caller that gave neither a key
    /// nor a token gets a new session.
    pub(crate) fn token(&self, at: &Moment<'_>, context: &Context<'_>, member: &Member) -> SessionToken {
        let token = context.session.and_then(|text| self.sessions.read(text));
        let here = Place {
            instance: instance_hash(member.instance.id().as_str()),
            moves: 0,
        };
        match self.session_of(context, token) {
            None => self.sessions.sign(fastrand::u64(..), here),
            Some(session) => {
                let known = self.sessions.peek(session, self.limits, at.now);
                let home = newer(known, token.map(|token| token.place));
                self.sessions.sign(session, home.unwrap_or(here))
            }
        }
    }

    /// The member that keeps the session of a key at present.
    pub(crate) fn member_of_key<'a>(&self, at: &Moment<'a>, key: &[u8]) -> Option<&'a Member> {
        let place = self.sessions.peek(self.sessions.of_key(key), self.limits, at.now);
        self.kept(place, at).map(|(.., member)| member)
    }

    fn session_of(&self, context: &Context<'_>, token: Option<SessionToken>) -> Option<u64> {
        match context.key {
            Some(key) => Some(self.sessions.of_key(key)),
            None => token.map(|token| token.session),
        }
    }

    /// The member of a place, if the member keeps sessions.
    fn kept<'a>(&self, place: Option<Place>, at: &Moment<'a>) -> Option<(Place, u32, &'a Member)> {
        let place = place?;
        let found = self
            .by_instance
            .binary_search_by_key(&place.instance, |(instance, _)| *instance);
        let (_, index) = *self.by_instance.get(found.ok()?)?;
        let member = at.members.get(index as usize)?;
        let keeps = member.live.admission() == Admission::In
            && (member.units > 0 || self.drained.binary_search(&index).is_ok());
        keeps.then_some((place, index, member))
    }
}

/// Whether a drain or a weight of 0 is the only reason against the member, besides checks and the
/// breaker: picks read these two from the admission, which is never older than the last check.
fn is_drained(member: &Member, config: &LoadBalancerConfig) -> bool {
    let (mut is_drained, mut is_out) = (false, false);
    for reason in unavailable_reasons(member, &member.state.layers, config) {
        match reason {
            UnavailableReason::Drained | UnavailableReason::WeightZero | UnavailableReason::OverrideWeightZero => {
                is_drained = true;
            }
            UnavailableReason::CheckFailed | UnavailableReason::BreakerOpen | UnavailableReason::BreakerHalfOpen => {}
            UnavailableReason::RegistryCritical
            | UnavailableReason::RegistryMaintenance
            | UnavailableReason::AddressRefused
            | UnavailableReason::DegradedWeightZero => is_out = true,
        }
    }
    is_drained && !is_out
}

/// The place with more moves. Of two places with as many, that of the token: the caller has been
/// there since.
fn newer(known: Option<Place>, token: Option<Place>) -> Option<Place> {
    match (known, token) {
        (Some(known), Some(token)) if known.moves > token.moves => Some(known),
        (known, token) => token.or(known),
    }
}

/// A number for the tags and the port of a context, whatever the order of the tags.
fn wishes(context: &Context<'_>) -> u64 {
    let tags = context.tags.iter().map(|tag| xxh3_64_with_seed(tag.as_bytes(), 1));
    let port = context.port.map(|port| xxh3_64_with_seed(port.as_bytes(), 2));
    tags.chain(port).fold(0, u64::wrapping_add)
}
