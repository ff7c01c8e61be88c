//! Leases: requests in flight whose end somebody else reports.
//!
//! A caller of the library holds an [`Acquired`] and drops it. A caller over HTTP holds a number instead: the [`LeaseId`] of
//! a place in this table, where the `Acquired` waits for the report, and is dropped with the lease. So a lease is in flight
//! exactly as long as it is open, whatever becomes of its caller.
//!
//! ```text
//!            take               complete
//!   (free) ────────► (open) ─────────────────────────► (free)    one completion: what is taken out is gone
//!      ▲               │ ▲ renew: the time starts again
//!      │               │─┘
//!      │   forgotten   ▼ its time is over: frees its place, counts as unknown, is no failure
//!      └─────────── (late) ──► (free)                            a report that comes now counts as one without a lease
//! ```
//!
//! An id is (place, generation, tag). The generation counts the uses of a place: an id of an earlier use fits none of today's.
//! The tag is a SipHash of the two with a key that callers do not know: a number that was never handed out is no lease, and
//! guessing one takes 2^63 tries on average.
//!
//! The table is bounded: open leases by what is configured, late ones by [`REMEMBERED`]. Places of completed leases are used
//! again first, those of late ones when they are forgotten, each in the order in which they came free.
//!
//! Every step is one critical section of one lock, held for about a hundred nanoseconds and never while waiting for anything.
//! Picks without a lease do not come here. `lease_model` below walks through the interleavings with loom.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::clock::Timestamp;
use super::load_balancer::{Acquired, LoadBalancer};
use super::pool::Live;
use super::statistics::{LeaseStatistics, ReportStatistics};
use super::sync::{Mutex, MutexGuard};

/// Late leases that are still known, at most.
pub const REMEMBERED: usize = 10_000;
/// How long a late lease is known, at most.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(300);

/// Leases that end within one critical section, at most: whoever takes or reports waits for no more than these.
const BATCH: usize = 256;

/// The secret that makes leases unguessable: 128 random bits, made anew by every agent.
#[derive(Clone)]
pub struct LeaseKey(SipHasher13);

impl LeaseKey {
    /// Takes the bits.
    #[must_use]
    pub fn new(bits: [u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(&bits))
    }

    fn tag(&self, place: u32, generation: u32) -> u64 {
        self.0
            .hash(&(u64::from(place) << 32 | u64::from(generation)).to_le_bytes())
    }

    fn sign(&self, place: u32, generation: u32) -> LeaseId {
        LeaseId {
            place,
            generation,
            tag: self.tag(place, generation),
        }
    }

    /// Whether this key signed it. Takes the same time for every wrong tag: nothing is compared piece by piece.
    fn signed(&self, id: LeaseId) -> bool {
        std::hint::black_box(self.tag(id.place, id.generation) ^ id.tag) == 0
    }
}

impl fmt::Debug for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseKey(..)")
    }
}

/// Names one lease. As text 32 characters of `0-9a-f`; what is in them is the table's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId {
    place: u32,
    generation: u32,
    tag: u64,
}

/// Not the text of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a lease: expected 32 characters of 0-9 a-f")]
pub struct InvalidLease;

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:08x}{:016x}", self.place, self.generation, self.tag)
    }
}

impl FromStr for LeaseId {
    type Err = InvalidLease;

    fn from_str(text: &str) -> Result<Self, InvalidLease> {
        if text.len() != 32 {
            return Err(InvalidLease);
        }
        let bits = text.bytes().try_fold(0_u128, |bits, byte| match byte {
            b'0'..=b'9' => Ok(bits << 4 | u128::from(byte - b'0')),
            b'a'..=b'f' => Ok(bits << 4 | u128::from(byte - b'a' + 10)),
            _ => Err(InvalidLease),
        })?;
        Ok(Self {
            place: (bits >> 96) as u32,
            generation: (bits >> 64) as u32,
            tag: bits as u64,
        })
    }
}

/// A lease, as its taker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What to report with.
    pub id: LeaseId,
    /// How long it is open unless renewed.
    pub ttl: Duration,
    /// Whether it is the only one open: whoever drives the time has something to wait for from now on.
    pub first: bool,
}

/// Too many leases are open. The pick stands, and is not in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many leases are open")]
pub struct LeaseDenied;

/// Why a report does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// No such lease: never handed out, reported already, or expired so long ago that it is forgotten.
    #[error("unknown lease")]
    UnknownLease,
    /// No such service.
    #[error("unknown service")]
    UnknownService,
    /// The service has no such instance, and had none lately.
    #[error("unknown instance")]
    UnknownInstance,
    /// More reports without a lease than picks in the last minute.
    #[error("no credit: more reports without a lease than picks in the last minute")]
    NoCredit,
}

/// Whom a report is about.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) balancer: Arc<LoadBalancer>,
    pub(crate) live: Arc<Live>,
}

/// A lease that ended by a report.
#[derive(Debug)]
pub(crate) enum Completed {
    /// While it was open.
    InTime(Subject),
    /// After it had expired: no more than an opinion of somebody who was once handed this instance.
    Late(Subject),
}

/// What one service counts of its leases and reports. Written under the table's lock, or by the service's reports.
#[derive(Debug, Default)]
pub(crate) struct LeaseCounts {
    open: AtomicUsize,
    expired: AtomicU64,
    denied: AtomicU64,
    accepted: AtomicU64,
    unknown_instance: AtomicU64,
    no_credit: AtomicU64,
}

impl LeaseCounts {
    /// Counts a report by what became of it.
    pub(crate) fn reported<T>(&self, result: &Result<T, ReportError>) {
        let counter = match result {
            Ok(_) => &self.accepted,
            Err(ReportError::NoCredit) => &self.no_credit,
            Err(ReportError::UnknownInstance) => &self.unknown_instance,
            // Not known to be about this service.
            Err(ReportError::UnknownLease | ReportError::UnknownService) => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leases(&self) -> LeaseStatistics {
        LeaseStatistics {
            open: self.open.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn reports(&self) -> ReportStatistics {
        ReportStatistics {
            accepted: self.accepted.load(Ordering::Relaxed),
            unknown_instance: self.unknown_instance.load(Ordering::Relaxed),
            no_credit: self.no_credit.load(Ordering::Relaxed),
        }
    }
}

/// All leases of an agent.
pub(crate) struct Leases {
    key: LeaseKey,
    table: Mutex<Table>,
}

/// Each place is in exactly one of `free`, `late` and `due`.
struct Table {
    places: Vec<Place>,
    /// Oldest first.
    free: VecDeque<u32>,
    /// Oldest first, with the time at which they expired.
    late: VecDeque<(Timestamp, u32)>,
    /// The open ones, by the time at which they expire.
    due: BTreeSet<(Timestamp, u32)>,
    /// Open ones at most.
    most: usize,
}

struct Place {
    generation: u32,
    state: State,
}

enum State {
    Free,
    Open(Open),
    Late(Subject),
}

struct Open {
    balancer: Arc<LoadBalancer>,
    acquired: Acquired,
    ttl: Duration,
    expires_at: Timestamp,
}

impl Open {
    /// Frees the place in flight.
    fn end(self) -> Subject {
        let live = Arc::clone(self.acquired.live());
        self.balancer.lease_counts().open.fetch_sub(1, Ordering::Relaxed);
        Subject {
            balancer: self.balancer,
            live,
        }
    }
}

impl Leases {
    pub(crate) fn new(key: LeaseKey, most: usize) -> Self {
        let table = Table {
            places: Vec::new(),
            free: VecDeque::new(),
            late: VecDeque::new(),
            due: BTreeSet::new(),
            most,
        };
        Self {
            key,
            table: Mutex::new(table),
        }
    }

    /// From now on at most `most` are open. Those that are open stay.
    pub(crate) fn limit(&self, most: usize) {
        self.lock().most = most;
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.lock().due.len()
    }

    /// How many leases the table has room for without growing.
    pub(crate) fn capacity(&self) -> usize {
        self.lock().places.len()
    }

    /// Opens a lease, unless too many are open, over all or of the service. `acquire` is called only if not.
    pub(crate) fn take(
        &self,
        balancer: &Arc<LoadBalancer>,
        most_of_service: usize,
        ttl: Duration,
        now: Timestamp,
        acquire: impl FnOnce() -> Acquired,
    ) -> Result<Lease, LeaseDenied> {
        let mut table = self.lock();
        table.expire(now, BATCH);
        let counts = balancer.lease_counts();
        if table.due.len() >= table.most || counts.open.load(Ordering::Relaxed) >= most_of_service {
            counts.denied.fetch_add(1, Ordering::Relaxed);
            return Err(LeaseDenied);
        }
        let open = Open {
            balancer: Arc::clone(balancer),
            acquired: acquire(),
            ttl,
            expires_at: now + ttl,
        };
        counts.open.fetch_add(1, Ordering::Relaxed);
        let (place, generation) = table.open(open);
        Ok(Lease {
            id: self.key.sign(place, generation),
            ttl,
            first: table.due.len() == 1,
        })
    }

    /// Ends a lease. Of any number of calls one is answered.
    pub(crate) fn complete(&self, id: LeaseId, now: Timestamp) -> Option<Completed> {
        if !self.key.signed(id) {
            return None;
        }
        let mut table = self.lock();
        table.expire(now, BATCH);
        table.complete(id, now)
    }

    /// Starts a lease's time again, if it is open. Returns whose it is.
    pub(crate) fn renew(&self, id: LeaseId, now: Timestamp) -> Option<Arc<LoadBalancer>> {
        if !self.key.signed(id) {
            return None;
        }
        self.lock().renew(id, now)
    }

    /// Ends the leases whose time is over, and forgets late ones. Returns when the next one is due.
    pub(crate) fn advance(&self, now: Timestamp) -> Option<Timestamp> {
        loop {
            // The lock is given up in between: nobody waits for more than a batch.
            let mut table = self.lock();
            if table.expire(now, BATCH) < BATCH {
                table.forget(now);
                return table.due.first().map(|(expires_at, _)| *expires_at);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing in a critical section panics halfway through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases")
            .field("open", &self.open())
            .finish_non_exhaustive()
    }
}

impl Table {
    /// Puts a lease in a free place, or in a new one.
    fn open(&mut self, open: Open) -> (u32, u32) {
        let index = self.free.pop_front().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                state: State::Free,
            });
            self.places.len() as u32 - 1
        });
        self.due.insert((open.expires_at, index));
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        place.state = State::Open(open);
        (index, place.generation)
    }

    /// The place that this id names, if it is still the use of it that the id was made for.
    fn place(&mut self, id: LeaseId) -> Option<&mut Place> {
        let place = self.places.get_mut(id.place as usize)?;
        (place.generation == id.generation).then_some(place)
    }

    fn complete(&mut self, id: LeaseId, now: Timestamp) -> Option<Completed> {
        let place = self.place(id)?;
        match std::mem::replace(&mut place.state, State::Free) {
            State::Free => None,
            // Its place stays in the queue of the late ones until it is its turn.
            State::Late(subject) => Some(Completed::Late(subject)),
            State::Open(open) => {
                self.due.remove(&(open.expires_at, id.place));
                self.free.push_back(id.place);
                // A batch may have ended before it.
                if open.expires_at <= now {
                    open.balancer.lease_counts().expired.fetch_add(1, Ordering::Relaxed);
                    return Some(Completed::Late(open.end()));
                }
                Some(Completed::InTime(open.end()))
            }
        }
    }

    fn renew(&mut self, id: LeaseId, now: Timestamp) -> Option<Arc<LoadBalancer>> {
        let State::Open(open) = &mut self.place(id)?.state else {
            return None;
        };
        if open.expires_at <= now {
            return None;
        }
        let balancer = Arc::clone(&open.balancer);
        let before = std::mem::replace(&mut open.expires_at, now + open.ttl);
        let after = open.expires_at;
        self.due.remove(&(before, id.place));
        self.due.insert((after, id.place));
        Some(balancer)
    }

    /// Ends up to `most` leases whose time is over. Returns how many.
    fn expire(&mut self, now: Timestamp, most: usize) -> usize {
        let mut ended = 0;
        while ended < most
            && let Some((expires_at, index)) = self.due.first().copied()
            && expires_at <= now
        {
            self.due.pop_first();
            let place = &mut self.places[index as usize];
            if let State::Open(open) = std::mem::replace(&mut place.state, State::Free) {
                open.balancer.lease_counts().expired.fetch_add(1, Ordering::Relaxed);
                place.state = State::Late(open.end());
            }
            self.late.push_back((now, index));
            if self.late.len() > REMEMBERED {
                self.forget_oldest();
            }
            ended += 1;
        }
        ended
    }

    /// Frees the places of late leases that nobody is expected to report any more.
    fn forget(&mut self, now: Timestamp) {
        while let Some((expired_at, _)) = self.late.front()
            && now.since(*expired_at) >= REMEMBERED_FOR
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, index)) = self.late.pop_front() {
            self.places[index as usize].state = State::Free;
            self.free.push_back(index);
        }
    }
}
