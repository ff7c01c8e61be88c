//! What is due in a directory, and when: services by the time that they asked for, and services
//! that asked for attention at once.
//!
//! ```text
//! a service: "due earlier, or news" ──► woken ─┐
//! a lease: "expires earlier" ────────────────► ├──► Directory::advance ──► time of the next call
//! services by the time they returned ──► due ──┘        └──► told: services with news
//! ```
//!
//! Each lock is held for one step, and taken inside the locks of services, never around them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::clock::Timestamp;
use super::environment::Wake;
use super::instance::ServiceName;

#[derive(Default)]
pub(crate) struct Agenda {
    /// The timer that calls `advance`.
    timer: Option<Arc<dyn Wake>>,
    /// Nanoseconds of the next call, as returned by the last one. `u64::MAX` while a call is in
    /// progress.
    next: AtomicU64,
    /// Whether a call is in progress: its end returns what was asked for during the call.
    in_call: AtomicBool,
    woken: Mutex<HashSet<ServiceName>>,
    due: Mutex<Due>,
    told: Mutex<HashSet<ServiceName>>,
}

impl Agenda {
    pub(crate) fn new(timer: Option<Arc<dyn Wake>>) -> Self {
        Self {
            timer,
            ..Self::default()
        }
    }

    /// Has the next `advance` look at this service, and asks for that call now.
    pub(crate) fn wake(&self, service: &ServiceName) {
        let mut woken = lock(&self.woken);
        if !woken.contains(service) {
            woken.insert(service.clone());
            drop(woken);
            self.call();
        }
    }

    /// Asks for a call of `advance` at this time or before.
    pub(crate) fn call_at(&self, at: Timestamp) {
        let at = at.as_nanos();
        let is_earlier = at < self.next.load(Ordering::SeqCst) && at < self.next.fetch_min(at, Ordering::SeqCst);
        if is_earlier && !self.in_call.load(Ordering::SeqCst) {
            self.call();
        }
    }

    fn call(&self) {
        if let Some(timer) = &self.timer {
            timer.wake();
        }
    }

    /// Begins a call of `advance`: the services to look at.
    pub(crate) fn begin(&self, now: Timestamp) -> HashSet<ServiceName> {
        self.in_call.store(true, Ordering::SeqCst);
        self.next.store(u64::MAX, Ordering::SeqCst);
        let mut services = mem::take(&mut *lock(&self.woken));
        lock(&self.told).extend(services.iter().cloned());
        services.extend(lock(&self.due).take(now));
        services
    }

    /// Records when a service is due next, and whether it has news.
    pub(crate) fn set(&self, service: &ServiceName, next: Option<Timestamp>, has_news: bool) {
        lock(&self.due).set(service, next);
        if has_news {
            lock(&self.told).insert(service.clone());
        }
    }

    /// Ends a call of `advance`. `other` is due besides the services. Returns the time of the next
    /// call.
    pub(crate) fn end(&self, other: Option<Timestamp>) -> Option<Timestamp> {
        let next = other.into_iter().chain(lock(&self.due).next()).min();
        let nanos = next.map_or(u64::MAX, Timestamp::as_nanos);
        // In this order: a time that comes before the flag is seen here, and a later one asks for a call.
        self.in_call.store(false, Ordering::SeqCst);
        match nanos.min(self.next.fetch_min(nanos, Ordering::SeqCst)) {
            u64::MAX => None,
            nanos => Some(Timestamp::from_nanos(nanos)),
        }
    }

    /// Drops a service that the directory forgets.
    pub(crate) fn forget(&self, service: &ServiceName) {
        lock(&self.due).set(service, None);
        lock(&self.told).remove(service);
    }

    /// The services with news since the last call.
    pub(crate) fn take_told(&self) -> HashSet<ServiceName> {
        mem::take(&mut *lock(&self.told))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Sets and maps that are written in one step each.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wake of one service.
pub(crate) struct ServiceWake {
    pub(crate) agenda: Arc<Agenda>,
    pub(crate) service: ServiceName,
}

impl Wake for ServiceWake {
    fn wake(&self) {
        self.agenda.wake(&self.service);
    }
}

/// When each service is due.
#[derive(Default)]
struct Due {
    by_service: HashMap<ServiceName, Timestamp>,
    by_time: BTreeSet<(Timestamp, ServiceName)>,
}

impl Due {
    fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(next, _)| *next)
    }

    fn set(&mut self, service: &ServiceName, next: Option<Timestamp>) {
        if let Some(before) = self.by_service.remove(service) {
            self.by_time.remove(&(before, service.clone()));
        }
        if let Some(next) = next {
            self.by_service.insert(service.clone(), next);
            self.by_time.insert((next, service.clone()));
        }
    }

    fn take(&mut self, now: Timestamp) -> Vec<ServiceName> {
        let mut taken = Vec::new();
        while let Some((next, service)) = self.by_time.pop_first() {
            if next > now {
                self.by_time.insert((next, service));
                break;
            }
            self.by_service.remove(&service);
            taken.push(service);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[derive(Default)]
    struct Timer(AtomicUsize);

    impl Wake for Timer {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn agenda() -> (Agenda, Arc<Timer>) {
        let timer = Arc::new(Timer::default());
        (Agenda::new(Some(Arc::clone(&timer) as Arc<dyn Wake>)), timer)
    }

    #[test]
    fn a_service_is_due_once_at_the_time_set_last() {
        let (web, db) = (name("web"), name("db"));
        let mut due = Due::default();
        due.set(&web, Some(at(5)));
        due.set(&db, Some(at(3)));
        due.set(&web, Some(at(2)));
        assert_eq!(due.next(), Some(at(2)));
        assert_eq!(due.take(at(2)), std::slice::from_ref(&web));
        assert_eq!(due.take(at(9)), [db]);
        assert_eq!((due.next(), due.by_service.len()), (None, 0));
        due.set(&web, Some(at(1)));
        due.set(&web, None);
        assert_eq!(due.next(), None);
    }

    #[test]
    fn a_service_that_wakes_is_looked_at_once_and_has_something_to_tell() {
        let (agenda, timer) = agenda();
        let web = name("web");
        agenda.wake(&web);
        agenda.wake(&web);
        assert_eq!(timer.0.load(Ordering::Relaxed), 1);
        assert_eq!(agenda.begin(at(1)), HashSet::from([web.clone()]));
        agenda.set(&web, Some(at(6)), false);
        assert_eq!(agenda.end(None), Some(at(6)));
        assert_eq!(agenda.take_told(), HashSet::from([web.clone()]));
        // Due by time alone: nothing to tell unless it says so.
        assert_eq!(agenda.begin(at(6)), HashSet::from([web.clone()]));
        assert!(agenda.take_told().is_empty());
        agenda.set(&web, None, true);
        assert_eq!((agenda.end(None), agenda.take_told()), (None, HashSet::from([web])));
    }

    #[test]
    fn a_call_is_asked_for_only_if_it_is_earlier_than_the_next_one() {
        let (agenda, timer) = agenda();
        let calls = || timer.0.load(Ordering::Relaxed);
        agenda.begin(at(1));
        assert_eq!(agenda.end(Some(at(10))), Some(at(10)));
        agenda.call_at(at(30));
        assert_eq!(calls(), 0);
        agenda.call_at(at(4));
        agenda.call_at(at(5));
        assert_eq!(calls(), 1);
        // What is asked for during a call is not lost.
        agenda.begin(at(4));
        agenda.call_at(at(6));
        assert_eq!((calls(), agenda.end(Some(at(20)))), (1, Some(at(6))));
        agenda.call_at(at(7));
        agenda.call_at(at(5));
        assert_eq!(calls(), 2);
    }
}
