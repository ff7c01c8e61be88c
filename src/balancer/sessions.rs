//! The sessions of one service: a bounded table of places, the least recently used leaving first.
//!
//! ```text
//! by session ──► entries: session, place, time of the last pick; linked from newest to oldest
//!                 newest ◄──► ... ◄──► oldest     a pick moves its session to the front, so the
//!                                                 oldest is both the next to expire and to leave
//! ```
//!
//! The table knows places as numbers: neither instances nor views. It forgets a session
//! `session_ttl` after the last pick, or when `max_sessions` others were used since. A session takes 40
//! bytes and its place in a hash map, whatever the caller sends as its key.
//!
//! Every step is one critical section of one lock, which is never held across a wait. Picks of services without sticky sessions do not use the table.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::Timestamp;
use super::config::LoadBalancerConfig;
use super::instance::ServiceName;
use super::session_token::{Place, SessionKey, SessionToken};
use super::statistics::SessionStatistics;

/// The most sessions that leave within one critical section: a caller waits for no more than these.
const BATCH: usize = 256;
/// No entry.
const NONE: u32 = u32::MAX;

/// How long sessions last, and how many there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    ttl: Duration,
    most: usize,
}

impl Limits {
    pub(crate) fn of(config: &LoadBalancerConfig) -> Self {
        Self {
            ttl: config.session_ttl(),
            most: config.max_sessions() as usize,
        }
    }
}

/// The sessions of one service, and the key that signs their tokens.
pub(crate) struct Sessions {
    service: ServiceName,
    key: SessionKey,
    is_on: AtomicBool,
    moved: AtomicU64,
    evicted: AtomicU64,
    rejected: AtomicU64,
    table: Mutex<Table>,
}

impl Sessions {
    pub(crate) fn new(service: ServiceName, key: SessionKey) -> Arc<Self> {
        Arc::new(Self {
            service,
            key,
            is_on: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            table: Mutex::default(),
        })
    }

    /// Whether the service has sticky sessions.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Switches sticky sessions on, or off: then every session is forgotten.
    pub(crate) fn switch(&self, on: bool) {
        if self.is_on.swap(on, Ordering::Relaxed) && !on {
            *self.lock() = Table::default();
        }
    }

    /// The session of a key of a caller.
    pub(crate) fn of_key(&self, key: &[u8]) -> u64 {
        self.key.session_of(self.service.as_lower_case(), key)
    }

    /// Reads a token.
    pub(crate) fn read(&self, text: &str) -> Option<SessionToken> {
        self.key.read(self.service.as_lower_case(), text)
    }

    /// Counts a token that was not honoured.
    pub(crate) fn count_rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Signs the place of a session.
    pub(crate) fn sign(&self, session: u64, place: Place) -> SessionToken {
        self.key.sign(self.service.as_lower_case(), session, place)
    }

    /// The place of a session, which a pick uses now.
    pub(crate) fn touch(&self, session: u64, limits: Limits, now: Timestamp) -> Option<Place> {
        let mut table = self.lock();
        let index = table.find(session, limits.ttl, now)?;
        table.use_now(index, now);
        table.entry(index).map(|entry| entry.place)
    }

    /// The place of a session. Leaves the time of its last pick alone.
    pub(crate) fn peek(&self, session: u64, limits: Limits, now: Timestamp) -> Option<Place> {
        let table = self.lock();
        let index = table.find(session, limits.ttl, now)?;
        table.entry(index).map(|entry| entry.place)
    }

    /// Sets the place of a session whose place was `before`. If another pick has changed the place in
    /// the meantime, the place of that pick stays, and is returned.
    pub(crate) fn settle(
        &self,
        session: u64,
        before: Option<Place>,
        place: Place,
        limits: Limits,
        now: Timestamp,
    ) -> Place {
        let mut table = self.lock();
        let evicted = table.make_room(session, limits, now);
        let found = table.find(session, limits.ttl, now);
        let present = found.and_then(|index| table.entry(index)).map(|entry| entry.place);
        let settled = match present {
            Some(present) if Some(present) != before => present,
            _ => place,
        };
        table.set(session, settled, now);
        drop(table);
        self.evicted.fetch_add(evicted, Ordering::Relaxed);
        settled
    }

    /// Counts a session that moved because its instance could not be picked.
    pub(crate) fn count_moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// The statistics now. Forgets expired sessions first.
    pub(crate) fn statistics(&self, limits: Limits, now: Timestamp) -> SessionStatistics {
        let open = loop {
            let mut table = self.lock();
            if table.expire(limits.ttl, BATCH, now) < BATCH {
                break table.len();
            }
        };
        SessionStatistics {
            open,
            moved: self.moved.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
            rejected_tokens: self.rejected.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No step of the table panics between two writes.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

/// Sessions by number, and in the order of their last picks.
struct Table {
    by_session: HashMap<u64, u32>,
    entries: Vec<Entry>,
    newest: u32,
    oldest: u32,
}

struct Entry {
    session: u64,
    place: Place,
    used_at: Timestamp,
    newer: u32,
    older: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            by_session: HashMap::new(),
            entries: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }
}

impl Table {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn entry(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index as usize)
    }

    fn entry_mut(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize)
    }

    /// The entry of a session, unless it has expired.
    fn find(&self, session: u64, ttl: Duration, now: Timestamp) -> Option<u32> {
        let index = *self.by_session.get(&session)?;
        let entry = self.entry(index)?;
        (now.since(entry.used_at) < ttl).then_some(index)
    }

    /// Forgets expired sessions, and the least recently used, until `session` has room. Returns the
    /// number of sessions that left without having expired.
    fn make_room(&mut self, session: u64, limits: Limits, now: Timestamp) -> u64 {
        let mut left = self.expire(limits.ttl, BATCH, now);
        let needed = usize::from(!self.by_session.contains_key(&session));
        let mut evicted = 0;
        // Once `max_sessions` is lowered, the table shrinks by a batch with each new session.
        while self.len() + needed > limits.most.max(1) && left < BATCH {
            // The session itself may be the oldest of a table that is too large.
            if self.entry(self.oldest).is_some_and(|entry| entry.session == session) {
                break;
            }
            self.remove_oldest();
            evicted += 1;
            left += 1;
        }
        evicted
    }

    /// Forgets up to `most` expired sessions, and returns how many.
    fn expire(&mut self, ttl: Duration, most: usize, now: Timestamp) -> usize {
        let mut expired = 0;
        while expired < most
            && self
                .entry(self.oldest)
                .is_some_and(|entry| now.since(entry.used_at) >= ttl)
        {
            self.remove_oldest();
            expired += 1;
        }
        if expired > 0 && self.entries.is_empty() {
            // Gives the memory back.
            *self = Self::default();
        }
        expired
    }

    /// Sets the place of a session, used now.
    fn set(&mut self, session: u64, place: Place, now: Timestamp) {
        let next = self.entries.len() as u32;
        match self.by_session.entry(session) {
            MapEntry::Occupied(known) => {
                let index = *known.get();
                if let Some(entry) = self.entry_mut(index) {
                    entry.place = place;
                }
                self.use_now(index, now);
            }
            MapEntry::Vacant(free) => {
                free.insert(next);
                self.entries.push(Entry {
                    session,
                    place,
                    used_at: now,
                    newer: NONE,
                    older: NONE,
                });
                self.link_newest(next);
            }
        }
    }

    fn use_now(&mut self, index: u32, now: Timestamp) {
        if let Some(entry) = self.entry_mut(index) {
            // Readers of the clock reach the lock in any order.
            entry.used_at = entry.used_at.max(now);
        }
        if self.newest != index {
            self.unlink(index);
            self.link_newest(index);
        }
    }

    fn link_newest(&mut self, index: u32) {
        let before = self.newest;
        if let Some(entry) = self.entry_mut(index) {
            (entry.newer, entry.older) = (NONE, before);
        }
        match self.entry_mut(before) {
            Some(older) => older.newer = index,
            None => self.oldest = index,
        }
        self.newest = index;
    }

    fn unlink(&mut self, index: u32) {
        let Some((newer, older)) = self.entry(index).map(|entry| (entry.newer, entry.older)) else {
            return;
        };
        match self.entry_mut(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.entry_mut(older) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Removes the oldest entry. The last entry takes its index.
    fn remove_oldest(&mut self) {
        let index = self.oldest;
        let Some(session) = self.entry(index).map(|entry| entry.session) else {
            return;
        };
        self.unlink(index);
        self.by_session.remove(&session);
        self.entries.swap_remove(index as usize);
        let Some((session, newer, older)) = self.entry(index).map(|entry| (entry.session, entry.newer, entry.older))
        else {
            return;
        };
        self.by_session.insert(session, index);
        match self.entry_mut(newer) {
            Some(entry) => entry.older = index,
            None => self.newest = index,
        }
        match self.entry_mut(older) {
            Some(entry) => entry.newer = index,
            None => self.oldest = index,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn place(instance: u64) -> Place {
        Place { instance, moves: 0 }
    }

    fn sessions() -> Arc<Sessions> {
        Sessions::new("web".parse().unwrap(), SessionKey::new([0; 16]))
    }

    #[test]
    fn a_session_lasts_for_the_ttl_after_its_last_pick() {
        let (sessions, limits) = (sessions(), Limits { ttl: TTL, most: 10 });
        sessions.settle(1, None, place(7), limits, at(0));
        assert_eq!(sessions.touch(1, limits, at(9)), Some(place(7)));
        assert_eq!(sessions.peek(1, limits, at(18)), Some(place(7)));
        assert_eq!(sessions.touch(1, limits, at(19)), None, "peek is no pick");
        assert_eq!(sessions.statistics(limits, at(19)).open, 0);
        assert_eq!(sessions.lock().entries.capacity(), 0, "the memory is given back");
    }

    #[test]
    fn of_two_first_picks_at_once_the_first_decides() {
        let (sessions, limits) = (sessions(), Limits { ttl: TTL, most: 10 });
        assert_eq!(sessions.settle(1, None, place(7), limits, at(0)), place(7));
        assert_eq!(sessions.settle(1, None, place(8), limits, at(0)), place(7));
        assert_eq!(sessions.settle(1, Some(place(7)), place(9), limits, at(0)), place(9));
    }

    #[test]
    fn a_lower_limit_shrinks_the_table_step_by_step() {
        let (sessions, many) = (sessions(), Limits { ttl: TTL, most: 2_000 });
        (0..2_000).for_each(|session| {
            sessions.settle(session, None, place(7), many, at(0));
        });
        let few = Limits { ttl: TTL, most: 10 };
        sessions.settle(5_000, None, place(7), few, at(0));
        assert_eq!(sessions.statistics(few, at(0)).open, 2_001 - BATCH);
        (5_001..5_020).for_each(|session| {
            sessions.settle(session, None, place(7), few, at(0));
        });
        assert_eq!(sessions.statistics(few, at(0)).open, 10);
    }

    #[test]
    fn a_hundred_thousand_sessions_take_less_than_ten_megabytes() {
        let limits = Limits::of(&LoadBalancerConfig::default());
        let sessions = sessions();
        (0..150_000).for_each(|session| {
            sessions.settle(session, None, place(7), limits, at(0));
        });
        let table = sessions.lock();
        // A hash map has one byte beside each of its places, of which one in eight stays free.
        let places = table.by_session.capacity() * 8 / 7;
        let bytes = places * (size_of::<(u64, u32)>() + 1) + table.entries.capacity() * size_of::<Entry>();
        assert_eq!(table.len(), 100_000);
        assert!(bytes < 10_000_000, "{bytes}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Touch(u64),
        Settle(u64, u64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12_u64).prop_map(Step::Touch),
            (0..12_u64, 0..4_u64).prop_map(|(session, instance)| Step::Settle(session, instance)),
            (0..6_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// The table is compared with a list of (session, place, time), newest last.
        #[test]
        fn the_table_is_a_list_in_the_order_of_use(steps in proptest::collection::vec(step(), 0..200), most in 1..8_usize) {
            let (sessions, limits) = (sessions(), Limits { ttl: TTL, most });
            let mut model: Vec<(u64, Place, u64)> = Vec::new();
            let (mut now, mut evicted) = (0, 0);
            for step in steps {
                model.retain(|(_, _, used)| now - used < 10);
                match step {
                    Step::Wait(seconds) => now += seconds,
                    Step::Touch(session) => {
                        let found = model.iter().position(|known| known.0 == session);
                        let expected = found.map(|index| {
                            let (_, place, _) = model.remove(index);
                            model.push((session, place, now));
                            place
                        });
                        prop_assert_eq!(sessions.touch(session, limits, at(now)), expected);
                    }
                    Step::Settle(session, instance) => {
                        let before = sessions.peek(session, limits, at(now));
                        model.retain(|known| known.0 != session);
                        if model.len() == most {
                            model.remove(0);
                            evicted += 1;
                        }
                        model.push((session, place(instance), now));
                        prop_assert_eq!(sessions.settle(session, before, place(instance), limits, at(now)), place(instance));
                    }
                }
                model.retain(|(_, _, used)| now - used < 10);
                let statistics = sessions.statistics(limits, at(now));
                prop_assert_eq!((statistics.open, statistics.evicted), (model.len(), evicted));
                for session in 0..12 {
                    let expected = model.iter().find(|known| known.0 == session).map(|known| known.1);
                    prop_assert_eq!(sessions.peek(session, limits, at(now)), expected);
                }
            }
        }
    }
}
