//! Leases: requests in flight whose end another caller reports.
//!
//! A caller of the library holds an [`Acquired`] and drops it. A caller over HTTP holds the
//! [`LeaseId`] of a place in this table. The `Acquired` waits in that place for the report, and is
//! dropped with the lease. So a request is in flight exactly as long as its lease is open, even if
//! the caller is gone.
//!
//! ```text
//!            take               complete
//!   (free) ────────► (open) ─────────────────────────► (free)    the first report gets the lease
//!      ▲               │ ▲ renew: restarts the time
//!      │               │─┘
//!      │   forgotten   ▼ expires: ends the request in flight, is no failure
//!      └─────────── (late) ──► (free)                            a report now counts as one without a lease
//! ```
//!
//! An id is (place, generation, tag). The generation counts the uses of a place, so that an old id
//! never matches a new lease. The tag is a SipHash of place and generation with a key that callers
//! do not know: guessing a lease takes 2^63 tries on average.
//!
//! The table is bounded: open leases by the configuration, late leases by [`REMEMBERED`]. The
//! places of completed leases are used again first. The places of late leases are used again when
//! these are forgotten. Both queues are first in, first out.
//!
//! Every step is one critical section of one lock, held for about a hundred nanoseconds and never
//! across a wait. Picks without a lease do not use the table. `lease_model` checks the
//! interleavings with loom.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::clock::Timestamp;
use super::live::Live;
use super::load_balancer::LoadBalancer;
use super::load_balancer::pick::Acquired;
use super::sync::{Mutex, MutexGuard};

/// The most late leases that are remembered.
pub(crate) const REMEMBERED: usize = 10_000;
/// The longest time for which a late lease is remembered.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(300);

/// The most leases that expire within one critical section: a caller waits for no more than these.
const BATCH: usize = 256;

/// The secret that signs leases: 128 random bits, new in every agent.
#[derive(Clone)]
pub struct LeaseKey(SipHasher13);

impl LeaseKey {
    /// Makes a key of these bits.
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

    /// Whether this key signed the lease. The comparison takes the same time for every wrong tag.
    fn signed(&self, id: LeaseId) -> bool {
        std::hint::black_box(self.tag(id.place, id.generation) ^ id.tag) == 0
    }
}

impl fmt::Debug for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseKey(..)")
    }
}

/// The id of one lease. Its text has 32 characters of `0-9a-f`, which only the table interprets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId {
    place: u32,
    generation: u32,
    tag: u64,
}

/// The text is not a lease.
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

/// A lease, as its caller gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The id to report.
    pub id: LeaseId,
    /// How long the lease is open unless renewed.
    pub ttl: Duration,
}

/// Too many leases are open. The pick is valid, and its request is not counted as in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many leases are open")]
pub struct LeaseDenied;

/// The subject of a report.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) balancer: LoadBalancer,
    pub(crate) live: Arc<Live>,
}

/// A lease that a report ended.
#[derive(Debug)]
pub(crate) enum Completed {
    /// The lease was open.
    InTime(Subject),
    /// The lease had expired: the report counts as one without a lease.
    Late(Subject),
}

/// All leases of an agent.
pub(crate) struct Leases {
    key: LeaseKey,
    table: Mutex<Table>,
}

/// Each place is in exactly one of `free`, `late` and `due`.
struct Table {
    places: Vec<Place>,
    /// Free places, oldest first.
    free: VecDeque<u32>,
    /// Expired leases, oldest first, with the time at which they expired.
    late: VecDeque<(Timestamp, u32)>,
    /// Open leases, by the time at which they expire.
    due: BTreeSet<(Timestamp, u32)>,
    /// The most open leases.
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
    acquired: Acquired,
    ttl: Duration,
    expires_at: Timestamp,
}

impl Open {
    /// Ends the request in flight.
    fn end(self) -> Subject {
        let balancer = self.acquired.balancer().clone();
        balancer.lease_counts().open.fetch_sub(1, Ordering::Relaxed);
        Subject {
            balancer,
            live: Arc::clone(self.acquired.live()),
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

    /// Limits the number of open leases. Open leases stay.
    pub(crate) fn limit(&self, most: usize) {
        self.lock().most = most;
    }

    /// The most leases that may be open, over all services.
    pub(crate) fn most(&self) -> usize {
        self.lock().most
    }

    /// The number of open leases.
    pub(crate) fn open(&self) -> usize {
        self.lock().due.len()
    }

    /// The number of leases that the table holds without growing.
    pub(crate) fn capacity(&self) -> usize {
        self.lock().places.len()
    }

    /// Opens a lease, unless too many are open in all or in the service. `acquire` is called only
    /// if the lease opens.
    pub(crate) fn take(
        &self,
        balancer: &LoadBalancer,
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
            acquired: acquire(),
            ttl,
            expires_at: now + ttl,
        };
        counts.open.fetch_add(1, Ordering::Relaxed);
        let (place, generation) = table.open(open);
        Ok(Lease {
            id: self.key.sign(place, generation),
            ttl,
        })
    }

    /// Ends a lease. Of any number of concurrent calls, one gets the lease.
    pub(crate) fn complete(&self, id: LeaseId, now: Timestamp) -> Option<Completed> {
        if !self.key.signed(id) {
            return None;
        }
        let mut table = self.lock();
        table.expire(now, BATCH);
        table.complete(id, now)
    }

    /// Restarts the time of an open lease. Returns its service.
    pub(crate) fn renew(&self, id: LeaseId, now: Timestamp) -> Option<LoadBalancer> {
        if !self.key.signed(id) {
            return None;
        }
        self.lock().renew(id, now)
    }

    /// Expires the leases that are due, and forgets late leases. Returns the time at which the next
    /// lease expires.
    pub(crate) fn advance(&self, now: Timestamp) -> Option<Timestamp> {
        loop {
            // The lock is released between batches, so that callers wait for one batch at most.
            let mut table = self.lock();
            if table.expire(now, BATCH) < BATCH {
                table.forget(now);
                return table.due.first().map(|(expires_at, _)| *expires_at);
            }
        }
    }

    /// When the next late lease is forgotten.
    pub(crate) fn forgets_at(&self) -> Option<Timestamp> {
        let table = self.lock();
        table.late.front().map(|(expired_at, _)| *expired_at + REMEMBERED_FOR)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No critical section panics halfway through a change.
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
    /// Puts a lease into a free place, or into a new one.
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

    /// The place of this id, if the id belongs to the present use of the place.
    fn place(&mut self, id: LeaseId) -> Option<&mut Place> {
        let place = self.places.get_mut(id.place as usize)?;
        (place.generation == id.generation).then_some(place)
    }

    fn complete(&mut self, id: LeaseId, now: Timestamp) -> Option<Completed> {
        let place = self.place(id)?;
        match std::mem::replace(&mut place.state, State::Free) {
            State::Free => None,
            // The place stays in the queue of late leases until its turn.
            State::Late(subject) => Some(Completed::Late(subject)),
            State::Open(open) => {
                self.due.remove(&(open.expires_at, id.place));
                self.free.push_back(id.place);
                // The lease may be due, and the batch ended before it.
                if open.expires_at <= now {
                    open.acquired
                        .balancer()
                        .lease_counts()
                        .expired
                        .fetch_add(1, Ordering::Relaxed);
                    return Some(Completed::Late(open.end()));
                }
                Some(Completed::InTime(open.end()))
            }
        }
    }

    fn renew(&mut self, id: LeaseId, now: Timestamp) -> Option<LoadBalancer> {
        let State::Open(open) = &mut self.place(id)?.state else {
            return None;
        };
        if open.expires_at <= now {
            return None;
        }
        let balancer = open.acquired.balancer().clone();
        let before = std::mem::replace(&mut open.expires_at, now + open.ttl);
        let after = open.expires_at;
        self.due.remove(&(before, id.place));
        self.due.insert((after, id.place));
        Some(balancer)
    }

    /// Expires up to `most` leases that are due. Returns their number.
    fn expire(&mut self, now: Timestamp, most: usize) -> usize {
        let mut ended = 0;
        while ended < most
            && let Some((expires_at, index)) = self.due.first().copied()
            && expires_at <= now
        {
            self.due.pop_first();
            let place = &mut self.places[index as usize];
            if let State::Open(open) = std::mem::replace(&mut place.state, State::Free) {
                open.acquired
                    .balancer()
                    .lease_counts()
                    .expired
                    .fetch_add(1, Ordering::Relaxed);
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

    /// Frees the places of late leases that are too old for a report.
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

#[cfg(test)]
impl Leases {
    /// Checks that each place is in exactly one list, and that the requests in flight equal the
    /// open leases. `balancer` is the only balancer, and the caller holds no [`Acquired`] of it.
    fn assert_whole(&self, balancer: &LoadBalancer) {
        let table = self.lock();
        let mut listed: Vec<u32> = table.due.iter().map(|(_, place)| *place).collect();
        listed.extend(&table.free);
        listed.extend(table.late.iter().map(|(_, place)| *place));
        listed.sort_unstable();
        assert!(listed.into_iter().eq(0..table.places.len() as u32));
        for (expires_at, place) in &table.due {
            let open =
                matches!(&table.places[*place as usize].state, State::Open(open) if open.expires_at == *expires_at);
            assert!(open, "a place that is due is open");
        }
        let open = table
            .places
            .iter()
            .filter(|place| matches!(place.state, State::Open(_)));
        assert_eq!(open.count(), table.due.len());
        assert_eq!(balancer.leases().open, table.due.len());
        assert_eq!(balancer.in_flight(), table.due.len() as u64);
    }
}

#[cfg(test)]
mod helper {
    use super::*;
    use crate::balancer::config::LoadBalancerConfig;
    use crate::balancer::context::Context;
    use crate::balancer::instance::ServiceInstance;

    /// One service with one instance, and its leases.
    pub(super) struct World {
        pub(super) leases: Leases,
        pub(super) balancer: LoadBalancer,
    }

    pub(super) const TTL: Duration = Duration::from_secs(10);

    pub(super) fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    impl World {
        pub(super) fn new(most: usize) -> Self {
            let balancer = LoadBalancer::new("web".parse().unwrap(), LoadBalancerConfig::default());
            balancer.add_instance(ServiceInstance::new("a", "10.0.0.1", 80).unwrap());
            Self {
                leases: Leases::new(LeaseKey::new([7; 16]), most),
                balancer,
            }
        }

        pub(super) fn take(&self, now: Timestamp) -> Option<LeaseId> {
            self.take_of(usize::MAX, now)
        }

        pub(super) fn take_of(&self, most_of_service: usize, now: Timestamp) -> Option<LeaseId> {
            let acquire = || {
                let pick = self.balancer.select_instance(&Context::new()).unwrap();
                self.balancer.begin(&pick)
            };
            let lease = self.leases.take(&self.balancer, most_of_service, TTL, now, acquire);
            lease.ok().map(|lease| lease.id)
        }

        pub(super) fn assert_whole(&self) {
            self.leases.assert_whole(&self.balancer);
        }
    }
}

/// Every interleaving of a few callers, with up to three preemptions. Only with `--cfg pickd_loom`:
/// see `tests/run`.
#[cfg(all(test, pickd_loom))]
mod lease_model {
    use super::helper::{World, at};
    use super::*;
    use loom::thread;

    fn model(check: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(check);
    }

    /// Runs all functions concurrently, and returns their results.
    fn together<T: 'static, const N: usize>(
        world: &Arc<World>,
        callers: [fn(&World, LeaseId) -> T; N],
        id: LeaseId,
    ) -> [T; N] {
        let threads = callers.map(|caller| {
            let world = Arc::clone(world);
            thread::spawn(move || {
                let result = caller(&world, id);
                world.assert_whole();
                result
            })
        });
        let results = threads.map(|thread| thread.join().unwrap());
        world.assert_whole();
        results
    }

    fn complete(world: &World, id: LeaseId) -> &'static str {
        match world.leases.complete(id, at(5)) {
            Some(Completed::InTime(_)) => "in time",
            Some(Completed::Late(_)) => "late",
            None => "unknown",
        }
    }

    #[test]
    fn of_two_reports_and_an_expiry_one_ends_the_lease() {
        model(|| {
            let world = Arc::new(World::new(9));
            let id = world.take(at(0)).unwrap();
            let expire = |world: &World, _| {
                world.leases.advance(at(20));
                "-"
            };
            let mut ends = together(&world, [complete, complete, expire], id);
            ends.sort_unstable();
            let expired = world.balancer.leases().expired;
            match expired {
                0 => assert_eq!(ends, ["-", "in time", "unknown"]),
                _ => assert_eq!((ends, expired), (["-", "late", "unknown"], 1)),
            }
            assert_eq!(world.leases.open(), 0);
        });
    }

    #[test]
    fn an_id_of_an_earlier_use_ends_nobody_elses_lease() {
        model(|| {
            let world = Arc::new(World::new(9));
            let first = world.take(at(0)).unwrap();
            let twice: fn(&World, LeaseId) -> Option<LeaseId> = |world, id| {
                world.leases.complete(id, at(5));
                None
            };
            let again: fn(&World, LeaseId) -> Option<LeaseId> = |world, id| {
                world.leases.complete(id, at(5));
                world.take(at(5))
            };
            let second = together(&world, [twice, again, twice], first)[1].unwrap();
            assert_eq!(
                (first.place, world.leases.open()),
                (second.place, 1),
                "the place is used again"
            );
            assert_eq!(complete(&world, second), "in time");
            world.assert_whole();
        });
    }

    #[test]
    fn a_lease_that_says_it_was_renewed_is_open() {
        model(|| {
            let world = Arc::new(World::new(9));
            let id = world.take(at(0)).unwrap();
            let renew: fn(&World, LeaseId) -> bool = |world, id| world.leases.renew(id, at(9)).is_some();
            let expire: fn(&World, LeaseId) -> bool = |world, _| world.leases.advance(at(15)).is_some();
            let [renewed, left] = together(&world, [renew, expire], id);
            assert_eq!((renewed, renewed), (left, world.leases.open() == 1));
            assert_eq!(complete(&world, id), if renewed { "in time" } else { "late" });
        });
    }

    #[test]
    fn a_renewal_and_a_completion_leave_nothing_behind() {
        model(|| {
            let world = Arc::new(World::new(9));
            let id = world.take(at(0)).unwrap();
            let renew: fn(&World, LeaseId) -> &'static str = |world, id| {
                world.leases.renew(id, at(4));
                "-"
            };
            let expire: fn(&World, LeaseId) -> &'static str = |world, _| {
                world.leases.advance(at(11));
                "-"
            };
            together(&world, [renew, complete, expire], id);
            world.leases.advance(at(100));
            world.assert_whole();
            assert_eq!(world.leases.open(), 0);
        });
    }

    #[test]
    fn no_more_leases_are_open_than_may_be() {
        model(|| {
            let world = Arc::new(World::new(2));
            let id = world.take(at(0)).unwrap();
            let take: fn(&World, LeaseId) -> usize = |world, _| usize::from(world.take(at(5)).is_some());
            let end: fn(&World, LeaseId) -> usize = |world, id| {
                world.leases.complete(id, at(5));
                0
            };
            let taken: usize = together(&world, [take, take, end], id).iter().sum();
            assert!(taken == 1 || taken == 2);
            assert_eq!(world.leases.open(), taken);
            assert_eq!(world.balancer.leases().denied, 2 - taken as u64);
        });
    }
}

#[cfg(all(test, not(pickd_loom)))]
mod tests {
    use super::helper::{TTL, World, at};
    use super::*;

    fn completed(world: &World, id: LeaseId, now: Timestamp) -> &'static str {
        let completed = world.leases.complete(id, now);
        world.assert_whole();
        match completed {
            Some(Completed::InTime(_)) => "in time",
            Some(Completed::Late(_)) => "late",
            None => "unknown",
        }
    }

    #[test]
    fn a_lease_ends_once() {
        let world = World::new(9);
        let id = world.take(at(0)).unwrap();
        assert_eq!(world.balancer.in_flight(), 1);
        assert_eq!(completed(&world, id, at(1)), "in time");
        assert_eq!(completed(&world, id, at(1)), "unknown");
        let next = world.take(at(1)).unwrap();
        assert_eq!(next.place, id.place);
        assert_eq!(
            completed(&world, id, at(1)),
            "unknown",
            "the place is another lease's now"
        );
        assert_eq!(completed(&world, next, at(1)), "in time");
    }

    #[test]
    fn its_time_runs_from_the_last_renewal() {
        let world = World::new(9);
        let id = world.take(at(0)).unwrap();
        assert_eq!(world.leases.advance(at(9)), Some(at(10)));
        assert!(world.leases.renew(id, at(9)).is_some());
        assert_eq!(world.leases.advance(at(18)), Some(at(19)));
        assert_eq!(world.balancer.in_flight(), 1);
        assert_eq!(world.leases.advance(at(19)), None);
        assert_eq!((world.balancer.in_flight(), world.balancer.leases().expired), (0, 1));
        assert!(world.leases.renew(id, at(19)).is_none());
        assert_eq!(completed(&world, id, at(20)), "late");
        assert_eq!(completed(&world, id, at(20)), "unknown", "late once");
    }

    #[test]
    fn nobody_has_to_drive_the_time() {
        let world = World::new(1);
        let id = world.take(at(0)).unwrap();
        assert!(world.take(at(9)).is_none());
        assert!(world.take(at(10)).is_some(), "the first has expired");
        assert_eq!(completed(&world, id, at(11)), "late");
        assert!(world.leases.renew(id, at(11)).is_none());
        assert_eq!(world.balancer.leases().expired, 1);
        let world = World::new(1);
        let id = world.take(at(0)).unwrap();
        assert!(world.leases.renew(id, at(10)).is_none(), "over is over");
        assert_eq!(completed(&world, id, at(10)), "late");
    }

    #[test]
    fn a_batch_that_ends_early_leaves_the_rest_expired_all_the_same() {
        let world = World::new(10 * BATCH);
        let ids: Vec<LeaseId> = (0..3 * BATCH).map(|_| world.take(at(0)).unwrap()).collect();
        assert_eq!(completed(&world, *ids.last().unwrap(), at(10)), "late");
        assert_eq!(world.leases.open(), 2 * BATCH - 1);
        assert_eq!(world.balancer.leases().expired, BATCH as u64 + 1);
        assert_eq!(world.leases.advance(at(10)), None);
        assert_eq!(world.balancer.leases().expired, 3 * BATCH as u64);
        assert!(
            ids[..3 * BATCH - 1]
                .iter()
                .all(|id| completed(&world, *id, at(11)) == "late")
        );
    }

    #[test]
    fn the_service_and_the_table_have_each_their_limit() {
        let world = World::new(3);
        assert!(world.take_of(1, at(0)).is_some());
        assert!(world.take_of(1, at(0)).is_none());
        assert!(world.take_of(9, at(0)).is_some() && world.take_of(9, at(0)).is_some());
        assert!(world.take_of(9, at(0)).is_none());
        assert_eq!((world.leases.open(), world.balancer.leases().denied), (3, 2));
        world.leases.limit(2);
        assert_eq!(world.leases.open(), 3, "those that are open stay");
        world.assert_whole();
    }

    #[test]
    fn late_leases_are_forgotten_in_turn_and_their_places_used_again() {
        let world = World::new(4 * REMEMBERED);
        let mut last = Vec::new();
        for round in 0..6 {
            let now = at(round * 20);
            last = (0..REMEMBERED).map(|_| world.take(now).unwrap()).collect();
            world.leases.advance(now + TTL);
        }
        world.assert_whole();
        assert_eq!(world.leases.capacity(), 2 * REMEMBERED);
        assert_eq!(completed(&world, last[0], at(120)), "late");
        world.leases.advance(at(110) + REMEMBERED_FOR);
        assert_eq!(completed(&world, last[1], at(500)), "unknown");
        (0..2 * REMEMBERED).for_each(|_| assert!(world.take(at(500)).is_some()));
        assert_eq!(world.leases.capacity(), 2 * REMEMBERED);
    }

    #[test]
    fn text_is_read_back_and_nothing_else_is() {
        let id = LeaseKey::new([1; 16]).sign(0x12, 0xab);
        let text = id.to_string();
        assert_eq!(text.len(), 32);
        assert!(text.starts_with("00000012000000ab"));
        assert_eq!(text.parse(), Ok(id));
        for wrong in [
            "",
            "0",
            &text[1..],
            &format!("{text}0"),
            &text.to_uppercase(),
            &text.replace('0', "+"),
            &text.replace("00", "é"),
        ] {
            assert_eq!(wrong.parse::<LeaseId>(), Err(InvalidLease), "{wrong}");
        }
    }

    #[test]
    fn a_forged_lease_is_unknown() {
        let world = World::new(9);
        let id = world.take(at(0)).unwrap();
        for bit in 0..64 {
            let forged = LeaseId {
                tag: id.tag ^ 1 << bit,
                ..id
            };
            assert_eq!(completed(&world, forged, at(1)), "unknown");
            assert!(world.leases.renew(forged, at(1)).is_none());
        }
        let anothers = LeaseKey::new([8; 16]).sign(id.place, id.generation);
        assert_eq!(completed(&world, anothers, at(1)), "unknown");
        for (place, generation) in [(0, 0), (0, 2), (1, 1), (u32::MAX, u32::MAX)] {
            let authentic = LeaseKey::new([7; 16]).sign(place, generation);
            assert_eq!(completed(&world, authentic, at(1)), "unknown", "{place} {generation}");
        }
        assert_eq!(completed(&world, id, at(1)), "in time");
        assert_eq!(format!("{:?}", world.leases.key), "LeaseKey(..)");
    }

    #[test]
    fn many_threads_leave_as_many_in_flight_as_are_open() {
        let world = World::new(64);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let world = &world;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for round in 0..5_000_u64 {
                        let now = at(round / 100);
                        held.extend(world.take(now));
                        match (round + thread) % 4 {
                            0 => drop(held.pop()),
                            1 => world.leases.advance(now).into_iter().for_each(drop),
                            2 => held.iter().for_each(|id| drop(world.leases.renew(*id, now))),
                            _ => held.drain(..).for_each(|id| drop(world.leases.complete(id, now))),
                        }
                        if round % 64 == 0 {
                            world.assert_whole();
                        }
                    }
                });
            }
        });
        world.assert_whole();
        assert_eq!(world.leases.advance(at(10_000)), None);
        assert_eq!(world.balancer.in_flight(), 0);
    }
}
