//! The plans of active checks: which instances the prober checks, and how.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::balancer::{Directory, LoadBalancer, ServiceName};
use crate::config::Config;
use crate::probe::{HealthCheck, Plan, ProbeHandle};

/// The plans of active checks, and the state that the prober has of them.
#[derive(Default)]
pub(super) struct CheckPlans(Mutex<Plans>);

#[derive(Default)]
struct Plans {
    /// The prober that gets the plans. `None` before the prober has started.
    prober: Option<ProbeHandle>,
    by_service: BTreeMap<ServiceName, Plan>,
    /// The generation of the list of instances that the prober has. [`OUTDATED`] if the plan has
    /// changed since.
    sent: HashMap<ServiceName, u64>,
}

/// The generation of a plan that the prober does not have.
const OUTDATED: u64 = u64::MAX;

impl CheckPlans {
    /// Sends all plans to this prober from now on.
    pub(super) fn start(&self, prober: ProbeHandle, directory: &Directory) {
        let mut plans = self.lock();
        plans.prober = Some(prober);
        let services: Vec<ServiceName> = plans.by_service.keys().cloned().collect();
        plans
            .sent
            .extend(services.iter().map(|service| (service.clone(), OUTDATED)));
        drop(plans);
        self.update_all(&services, directory);
    }

    /// Replaces the plans by those of this configuration.
    pub(super) fn configure(&self, config: &Config, directory: &Directory) {
        let plan = |(service, check): (&ServiceName, &Arc<HealthCheck>)| {
            let balancer = config.services.of(service);
            let plan = Plan {
                check: Arc::clone(check),
                interval: balancer.health_check_interval(),
                timeout: balancer.health_check_timeout(),
                denied: balancer.denied().clone(),
            };
            balancer.health_check_enabled().then(|| (service.clone(), plan))
        };
        let by_service: BTreeMap<_, _> = config.health_checks.iter().filter_map(plan).collect();
        let mut plans = self.lock();
        if let Some(prober) = &plans.prober {
            prober.configure(config.probe);
        }
        let before = mem::replace(&mut plans.by_service, by_service);
        let services: BTreeSet<ServiceName> = before.keys().chain(plans.by_service.keys()).cloned().collect();
        let changed = |service: &ServiceName| before.get(service) != plans.by_service.get(service);
        let changed: Vec<ServiceName> = services.into_iter().filter(changed).collect();
        plans
            .sent
            .extend(changed.iter().map(|service| (service.clone(), OUTDATED)));
        drop(plans);
        self.update_all(&changed, directory);
    }

    fn update_all(&self, services: &[ServiceName], directory: &Directory) {
        let balancers = services.iter().filter_map(|service| directory.get(service.as_str()));
        balancers.for_each(|balancer| self.update(&balancer));
    }

    /// Sends the instances of a service to the prober, if they or the plan have changed.
    pub(super) fn update(&self, balancer: &LoadBalancer) {
        let service = balancer.service();
        let mut plans = self.lock();
        let Some(prober) = plans.prober.clone() else { return };
        let generation = balancer.generation();
        if let Some(plan) = plans.by_service.get(service).cloned() {
            if plans.sent.insert(service.clone(), generation) != Some(generation) {
                prober.set(service, Some(&plan), balancer.addresses_to_check());
            }
        } else if plans.sent.remove(service).is_some() {
            prober.set(service, None, []);
            balancer.forget_checks();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Plans> {
        // A panic leaves the maps whole: each is changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
