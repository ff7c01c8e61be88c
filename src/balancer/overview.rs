//! The state of all services at a glance: how much of what should serve can be picked.

use std::collections::BTreeMap;

use super::config::LoadBalancingStrategy;
use super::directory::Directory;
use super::health::layers::UnavailableReason;
use super::instance::ServiceName;
use super::statistics::{InstanceStatistics, Statistics};

/// The state of all services.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Overview {
    /// Each service, by name.
    pub services: BTreeMap<ServiceName, ServiceOverview>,
    /// Instances registered.
    pub total_instances: usize,
    /// Instances that can be picked.
    pub healthy_instances: usize,
    /// Instances that are out of service on purpose: drained by an operator, in maintenance in the
    /// registry, or of weight 0.
    pub drained_instances: usize,
    /// Picks that found an instance.
    pub total_requests: u64,
    /// Outcomes reported.
    pub reported_requests: u64,
    /// Outcomes reported as failed.
    pub total_failures: u64,
    /// `healthy_instances / max(1, total_instances - drained_instances)`, 0.0..=1.0. An instance that
    /// was taken out on purpose is no loss of health.
    pub overall_health: f64,
}

/// The state of one service.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServiceOverview {
    /// The strategy of the service.
    pub strategy: LoadBalancingStrategy,
    /// Instances registered.
    pub total_instances: usize,
    /// Instances that can be picked.
    pub available_instances: usize,
    /// Instances that are out of service on purpose, as in [`Overview::drained_instances`].
    pub drained_instances: usize,
    /// Picks that found an instance.
    pub total_requests: u64,
    /// Outcomes reported.
    pub reported_requests: u64,
    /// Outcomes reported as failed.
    pub failed_requests: u64,
    /// `failed_requests / max(1, reported_requests)`, 0.0..=1.0.
    pub failure_rate: f64,
}

impl Directory {
    /// The state of all services.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use pickd::balancer::{Environment, Order, ServiceConfigs, Sources};
    /// use pickd::{Directory, ServiceInstance};
    ///
    /// let directory = Directory::new(ServiceConfigs::default(), Sources::default(), Environment::default());
    /// let users = ["user-1", "user-2", "user-3"].map(|id| ServiceInstance::new(id, "10.0.1.10", 8080).map(Arc::new));
    /// directory.apply(&"user-service".parse()?, users.into_iter().collect::<Result<Vec<_>, _>>()?);
    /// let balancer = directory.get("user-service").ok_or("unknown")?;
    /// balancer.drain(&"user-3".parse()?, Order::by("alice"))?;
    ///
    /// let overview = directory.overview();
    /// assert_eq!((overview.total_instances, overview.healthy_instances, overview.drained_instances), (3, 2, 1));
    /// assert_eq!(overview.overall_health, 1.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn overview(&self) -> Overview {
        let mut overview = Overview::default();
        for balancer in self.services() {
            overview.add(balancer.service().clone(), &balancer.statistics());
        }
        let expected = overview.total_instances - overview.drained_instances;
        overview.overall_health = overview.healthy_instances as f64 / expected.max(1) as f64;
        overview
    }
}

impl Overview {
    /// The state of one service.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&ServiceOverview> {
        self.services.get(&name.parse().ok()?)
    }

    fn add(&mut self, service: ServiceName, statistics: &Statistics) {
        let drained = statistics
            .instances
            .values()
            .filter(|instance| is_drained(instance))
            .count();
        self.total_instances += statistics.total_instances;
        self.healthy_instances += statistics.available_instances;
        self.drained_instances += drained;
        self.total_requests += statistics.total_requests;
        self.reported_requests += statistics.reported_requests;
        self.total_failures += statistics.failed_requests;
        let service_overview = ServiceOverview {
            strategy: statistics.strategy,
            total_instances: statistics.total_instances,
            available_instances: statistics.available_instances,
            drained_instances: drained,
            total_requests: statistics.total_requests,
            reported_requests: statistics.reported_requests,
            failed_requests: statistics.failed_requests,
            failure_rate: statistics.failure_rate,
        };
        self.services.insert(service, service_overview);
    }
}

/// Whether an instance is out of service on purpose.
fn is_drained(instance: &InstanceStatistics) -> bool {
    instance.unavailable_reasons.iter().any(|reason| {
        matches!(
            reason,
            UnavailableReason::Drained
                | UnavailableReason::RegistryMaintenance
                | UnavailableReason::WeightZero
                | UnavailableReason::OverrideWeightZero
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::balancer::config::LoadBalancerConfig;
    use crate::balancer::context::Context;
    use crate::balancer::directory::ServiceConfigs;
    use crate::balancer::environment::Environment;
    use crate::balancer::health::checks::{Check, CheckFailure};
    use crate::balancer::instance::{RegistryStatus, ServiceInstance, Weight};
    use crate::balancer::outcome::Outcome;
    use crate::balancer::overrides::Order;
    use crate::balancer::sources::Sources;

    fn directory() -> Directory {
        Directory::new(ServiceConfigs::default(), Sources::default(), Environment::default())
    }

    fn instance(number: u16) -> ServiceInstance {
        ServiceInstance::new(&format!("web-{number}"), "10.0.0.1", 8_000 + number).unwrap()
    }

    fn apply(directory: &Directory, service: &str, instances: impl IntoIterator<Item = ServiceInstance>) {
        directory.apply(&service.parse().unwrap(), instances.into_iter().map(Arc::new));
    }

    #[test]
    fn what_was_taken_out_on_purpose_is_no_loss_of_health() {
        let directory = directory();
        let out = [
            instance(1).with_weight(Weight::new(0).unwrap()),
            instance(2).with_status(RegistryStatus::Maintenance),
            instance(3),
            instance(4),
        ];
        let unhealthy = [instance(5).with_status(RegistryStatus::Critical), instance(6)];
        let healthy = [instance(7), instance(8)];
        apply(&directory, "web", out.into_iter().chain(unhealthy).chain(healthy));
        let web = directory.get("web").unwrap();
        web.drain(&"web-3".parse().unwrap(), Order::by("alice")).unwrap();
        let none = Weight::new(0).unwrap();
        web.set_weight(&"web-4".parse().unwrap(), none, Order::by("alice"))
            .unwrap();
        web.observe(&"10.0.0.1:8006".parse().unwrap(), Check::Fail(CheckFailure::Timeout));

        let overview = directory.overview();
        assert_eq!(
            (
                overview.total_instances,
                overview.healthy_instances,
                overview.drained_instances
            ),
            (8, 2, 4)
        );
        assert!((overview.overall_health - 0.5).abs() < f64::EPSILON);
        let of_web = overview.service("web").unwrap();
        assert_eq!(
            (
                of_web.total_instances,
                of_web.available_instances,
                of_web.drained_instances
            ),
            (8, 2, 4)
        );
    }

    #[test]
    fn totals_are_those_of_all_services() {
        let directory = directory();
        apply(&directory, "web", [instance(1), instance(2)]);
        apply(&directory, "mail", [instance(3)]);
        for (service, outcome) in [
            ("web", Outcome::Success),
            ("web", Outcome::Failure),
            ("mail", Outcome::Failure),
        ] {
            let balancer = directory.get(service).unwrap();
            balancer
                .acquire(&Context::new())
                .unwrap()
                .finish(outcome, Duration::from_millis(1));
        }
        let _not_reported = directory
            .get("web")
            .unwrap()
            .select_instance(&Context::new())
            .unwrap()
            .id();
        let overview = directory.overview();
        assert_eq!(
            (
                overview.total_requests,
                overview.reported_requests,
                overview.total_failures
            ),
            (4, 3, 2)
        );
        let [mail, web] = ["mail", "web"].map(|service| overview.service(service).unwrap());
        assert_eq!((web.total_requests, web.failed_requests, web.failure_rate), (3, 1, 0.5));
        assert_eq!(
            (mail.total_requests, mail.failed_requests, mail.failure_rate),
            (1, 1, 1.0)
        );
        assert_eq!(mail.strategy, LoadBalancerConfig::default().strategy());
    }

    #[test]
    fn nothing_is_healthy_without_instances() {
        assert_eq!(directory().overview(), Overview::default());
        let directory = directory();
        apply(&directory, "web", [instance(1).with_weight(Weight::new(0).unwrap())]);
        assert!(directory.overview().overall_health.abs() < f64::EPSILON);
    }
}
