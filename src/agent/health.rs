//! Health maintenance: one task that runs the maintenance of each service when it is due.
//!
//! ```text
//! core: "maintenance is due" ──► DueServices ──► maintain ──► LoadBalancer::tend ──► next due time
//!                                                 ├──► transitions: a log line for each
//!                                                 └──► checks: which instances to check, and how
//! prober: result of a check ──► LoadBalancer::observe, at once
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::balancer::{Clock, Directory, Monotonic, ServiceName, Timestamp, Wake};

use super::checks::CheckPlans;
use super::transitions;

/// The services whose maintenance the core has asked for.
#[derive(Debug, Default)]
pub(super) struct DueServices {
    services: Mutex<HashSet<ServiceName>>,
    notify: Notify,
}

impl Wake for DueServices {
    fn wake(&self, service: &ServiceName) {
        let mut services = self.lock();
        if !services.contains(service) {
            services.insert(service.clone());
            self.notify.notify_one();
        }
    }
}

impl DueServices {
    fn take(&self) -> HashSet<ServiceName> {
        mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ServiceName>> {
        // A panic leaves the set whole: it is changed in one step.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the maintenance of services when it is due. Sleeps while none is due.
pub(super) async fn maintain(
    directory: Arc<Directory>,
    clock: Arc<Monotonic>,
    due: Arc<DueServices>,
    plans: Arc<CheckPlans>,
    stop: CancellationToken,
) {
    let maintain = async {
        let mut schedule = Schedule::default();
        // A previous task may have ended while services were due.
        directory
            .services()
            .iter()
            .for_each(|balancer| due.wake(balancer.service()));
        loop {
            match schedule.next() {
                Some(next) => {
                    let wait = next.since(clock.now());
                    tokio::select! {
                        () = due.notify.notified() => {}
                        () = time::sleep(wait) => {}
                    }
                }
                None => due.notify.notified().await,
            }
            let now = clock.now();
            let mut services = due.take();
            services.extend(schedule.take(now));
            for service in services {
                let Some(balancer) = directory.get(service.as_str()) else {
                    continue;
                };
                schedule.set(&service, balancer.tend(now));
                for transition in balancer.take_transitions() {
                    transitions::log_health(&service, &transition);
                }
                plans.update(&balancer);
            }
        }
    };
    stop.run_until_cancelled(maintain).await;
}

/// The next due time of each service.
#[derive(Default)]
struct Schedule {
    by_service: HashMap<ServiceName, Timestamp>,
    by_time: BTreeSet<(Timestamp, ServiceName)>,
}

impl Schedule {
    /// The earliest due time.
    fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(next, _)| *next)
    }

    /// Replaces the due time of a service.
    fn set(&mut self, service: &ServiceName, next: Option<Timestamp>) {
        if let Some(before) = self.by_service.remove(service) {
            self.by_time.remove(&(before, service.clone()));
        }
        if let Some(next) = next {
            self.by_service.insert(service.clone(), next);
            self.by_time.insert((next, service.clone()));
        }
    }

    /// Removes and returns the services that are due.
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
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn the_last_time_set_for_a_service_counts() {
        let (web, db): (ServiceName, ServiceName) = ("web".parse().unwrap(), "db".parse().unwrap());
        let mut schedule = Schedule::default();
        schedule.set(&web, Some(at(5)));
        schedule.set(&db, Some(at(3)));
        schedule.set(&web, Some(at(2)));
        assert_eq!(schedule.next(), Some(at(2)));
        assert_eq!(schedule.take(at(2)), std::slice::from_ref(&web));
        assert_eq!(schedule.take(at(9)), [db]);
        assert_eq!((schedule.next(), schedule.by_service.len()), (None, 0));
        schedule.set(&web, Some(at(1)));
        schedule.set(&web, None);
        assert_eq!(schedule.next(), None);
    }
}
