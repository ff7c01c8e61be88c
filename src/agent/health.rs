//! The health of instances, as far as tasks and time are concerned: one task that tends every service when it is due.
//!
//! ```text
//! core: "something is due" ──► Woken ──► tend ──► LoadBalancer::tend, and when to come back
//!                                         ├──► a log line for each transition
//!                                         └──► the prober: which addresses to check, and how
//! prober: result of a check ──► LoadBalancer::observe, at once
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::balancer::{
    Clock, Directory, InstanceId, LoadBalancer, Monotonic, PassiveState, ServiceName, Timestamp, Transition,
    Transitioned, Wake,
};
use crate::config::Config;
use crate::probe::{Plan, ProbeHandle};

/// Services that want to be tended.
#[derive(Debug, Default)]
pub(super) struct Woken {
    services: Mutex<HashSet<ServiceName>>,
    notify: Notify,
}

impl Wake for Woken {
    fn wake(&self, service: &ServiceName) {
        let mut services = lock(&self.services);
        if !services.contains(service) {
            services.insert(service.clone());
            self.notify.notify_one();
        }
    }
}

impl Woken {
    fn take(&self) -> HashSet<ServiceName> {
        mem::take(&mut *lock(&self.services))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Sets and maps that are written in one step each.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which services are checked, how, and what the prober was told of them.
#[derive(Default)]
pub(super) struct Checks(Mutex<Plans>);

#[derive(Default)]
struct Plans {
    /// Who is told; `None` before it was started.
    prober: Option<ProbeHandle>,
    by_service: BTreeMap<ServiceName, Plan>,
    /// The generation of the list of instances that the prober has; [`NOT_TOLD`] if its plan is another one by now.
    told: HashMap<ServiceName, u64>,
}

const NOT_TOLD: u64 = u64::MAX;

impl Checks {
    /// From now on this prober is told.
    pub(super) fn start(&self, prober: ProbeHandle, woken: &Woken) {
        let mut plans = lock(&self.0);
        plans.prober = Some(prober);
        let services: Vec<ServiceName> = plans.by_service.keys().cloned().collect();
        for service in services {
            woken.wake(&service);
            plans.told.insert(service, NOT_TOLD);
        }
    }

    /// Checks as configured from now on.
    pub(super) fn configure(&self, config: &Config, woken: &Woken) {
        let of = |(service, check): (&ServiceName, &Arc<crate::probe::HealthCheck>)| {
            let balancer = config.services.of(service);
            let plan = Plan {
                check: Arc::clone(check),
                interval: balancer.health_check_interval(),
                timeout: balancer.health_check_timeout(),
                denied: balancer.denied().clone(),
            };
            balancer.health_check_enabled().then(|| (service.clone(), plan))
        };
        let by_service: BTreeMap<_, _> = config.health_checks.iter().filter_map(of).collect();
        let mut plans = lock(&self.0);
        if let Some(prober) = &plans.prober {
            prober.configure(config.probe);
        }
        let before = mem::replace(&mut plans.by_service, by_service);
        let services: BTreeSet<ServiceName> = before.keys().chain(plans.by_service.keys()).cloned().collect();
        for service in services {
            if before.get(&service) != plans.by_service.get(&service) {
                plans.told.insert(service.clone(), NOT_TOLD);
                woken.wake(&service);
            }
        }
    }

    /// Tells the prober whom to check, if that has changed.
    fn follow(&self, balancer: &LoadBalancer) {
        let service = balancer.service();
        let mut plans = lock(&self.0);
        let Some(prober) = plans.prober.clone() else { return };
        let generation = balancer.generation();
        if let Some(plan) = plans.by_service.get(service).cloned() {
            if plans.told.insert(service.clone(), generation) != Some(generation) {
                prober.set(service, Some(&plan), balancer.addresses_to_check());
            }
        } else if plans.told.remove(service).is_some() {
            prober.set(service, None, []);
            balancer.forget_checks();
        }
    }
}

/// Tends services when they are due. Sleeps while none is.
pub(super) async fn tend(
    directory: Arc<Directory>,
    clock: Arc<Monotonic>,
    woken: Arc<Woken>,
    checks: Arc<Checks>,
    stop: CancellationToken,
) {
    let tend = async {
        let mut due = Due::default();
        // Whatever was due when the task before this one ended.
        directory
            .services()
            .iter()
            .for_each(|balancer| woken.wake(balancer.service()));
        loop {
            match due.next() {
                Some(next) => {
                    let wait = next.since(clock.now());
                    tokio::select! {
                        () = woken.notify.notified() => {}
                        () = time::sleep(wait) => {}
                    }
                }
                None => woken.notify.notified().await,
            }
            let now = clock.now();
            let mut services = woken.take();
            services.extend(due.take(now));
            for service in services {
                let Some(balancer) = directory.get(service.as_str()) else {
                    continue;
                };
                due.set(&service, balancer.tend(now));
                for transition in balancer.take_transitions() {
                    tell(&service, &transition);
                }
                checks.follow(&balancer);
            }
        }
    };
    stop.run_until_cancelled(tend).await;
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

/// One line for each transition. What an operator would be woken for is a warning.
fn tell(service: &ServiceName, transition: &Transition) {
    let ids: Vec<&str> = transition.instances.iter().map(InstanceId::as_str).collect();
    let instance = ids.join(",");
    match transition.what {
        Transitioned::Up { first: true } => tracing::debug!(%service, instance, "checks pass"),
        Transitioned::Up { first: false } => tracing::info!(%service, instance, "checks pass again, slow start"),
        Transitioned::Down(reason) => tracing::warn!(%service, instance, %reason, "checks fail, taken out"),
        Transitioned::Graded {
            grade: PassiveState::Ok,
            first: true,
        } => tracing::debug!(%service, instance, "outcomes are fine"),
        Transitioned::Graded {
            grade: PassiveState::Ok,
            first: false,
        } => tracing::info!(%service, instance, "outcomes are fine again"),
        Transitioned::Graded {
            grade: PassiveState::Degraded(reason),
            ..
        } => tracing::warn!(%service, instance, %reason, "degraded, picked less"),
        Transitioned::Opened {
            because,
            open_for,
            held_by_cap: false,
        } => tracing::warn!(%service, instance, reason = %because, ?open_for, "breaker opened, taken out"),
        Transitioned::Opened {
            because,
            open_for,
            held_by_cap: true,
        } => {
            let message = "breaker opened, and is held by the cap: still picked";
            tracing::warn!(%service, instance, reason = %because, ?open_for, "{message}");
        }
        Transitioned::HalfOpened => tracing::info!(%service, instance, "breaker half open, waiting for a trial"),
        Transitioned::Closed(because) => {
            tracing::info!(%service, instance, reason = %because, "breaker closed, slow start");
        }
        Transitioned::PanicBegan { usable, eligible } => {
            tracing::warn!(%service, usable, eligible, "too few instances are usable, picking from all of them");
        }
        Transitioned::PanicEnded => tracing::info!(%service, "enough instances are usable again"),
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
    fn a_service_is_due_once_at_the_time_said_last() {
        let (web, db): (ServiceName, ServiceName) = ("web".parse().unwrap(), "db".parse().unwrap());
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
}
