//! The health layers of one instance, and the status derived from them.

use std::sync::Arc;

use super::breaker::BreakerState;
use super::checks::{ActiveState, CheckFailure};
use super::grade::PassiveState;
use crate::balancer::clock::{Since, Timestamp};
use crate::balancer::instance::{HealthStatus, RegistryStatus};
use crate::balancer::overrides::StandingOrder;

/// The health layers of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layers {
    /// The operator's order that drains the instance; `None` while the instance is in service.
    pub admin: Option<Arc<StandingOrder>>,
    /// The status in the registry.
    pub registry: Since<RegistryStatus>,
    /// Whether the registered address must not be contacted: see
    /// [`DeniedNetworks`](crate::balancer::DeniedNetworks).
    pub address_refused: bool,
    /// The state of active checks; `None` before the first check.
    pub active: Option<Since<ActiveState>>,
    /// The passive grade from outcomes; `None` before there were enough outcomes.
    pub passive: Option<Since<PassiveState>>,
    /// The state of the breaker; `None` before the first outcome.
    pub breaker: Option<Since<BreakerState>>,
    /// The breaker is open, and the ejection cap keeps the instance in the pool: picks still choose
    /// the instance.
    pub held_by_cap: bool,
}

impl Layers {
    /// The layers of admin and registry, without the local layers. A layer whose state equals the
    /// state in `before` keeps its time.
    pub(crate) fn from_registry(
        before: Option<&Self>,
        admin: Option<Arc<StandingOrder>>,
        registry: RegistryStatus,
        address_refused: bool,
        now: Timestamp,
    ) -> Self {
        let registry = match before {
            Some(before) if before.registry.state == registry => before.registry,
            _ => Since {
                state: registry,
                since: now,
            },
        };
        Self {
            admin,
            registry,
            address_refused,
            active: None,
            passive: None,
            breaker: None,
            held_by_cap: false,
        }
    }

    /// The status derived from all layers: the worst layer counts.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        if self.unavailable_reasons().next().is_some() {
            HealthStatus::Unhealthy
        } else if self.is_degraded() {
            HealthStatus::Degraded
        } else if self.registry.state == RegistryStatus::Passing || self.active.is_some() || self.passive.is_some() {
            HealthStatus::Healthy
        } else {
            HealthStatus::Unknown
        }
    }

    /// Whether the registry warns, or the passive grade is degraded.
    pub(crate) fn is_degraded(&self) -> bool {
        self.registry.state == RegistryStatus::Warning
            || matches!(
                self.passive,
                Some(Since {
                    state: PassiveState::Degraded(_),
                    ..
                })
            )
    }

    /// Whether active checks fail.
    pub(crate) fn is_down(&self) -> bool {
        self.active.is_some_and(|layer| layer.state != ActiveState::Up)
    }

    /// Whether only active checks or the breaker can take the instance out. Panic mode ignores
    /// both.
    pub(crate) fn is_eligible(&self) -> bool {
        self.reasons_beyond_panic().next().is_none()
    }

    /// Whether the instance would be eligible if its registry did not call it critical.
    pub(crate) fn is_only_critical(&self) -> bool {
        self.reasons_beyond_panic().eq([UnavailableReason::RegistryCritical])
    }

    /// Every reason that takes the instance out.
    pub(crate) fn unavailable_reasons(&self) -> impl Iterator<Item = UnavailableReason> {
        let active = match self.active.map(|layer| layer.state) {
            Some(ActiveState::Down(why)) if why != CheckFailure::AddressRefused => Some(UnavailableReason::CheckFailed),
            _ => None,
        };
        let breaker = match self.breaker.map(|layer| layer.state) {
            _ if self.held_by_cap => None,
            Some(BreakerState::Open { .. }) => Some(UnavailableReason::BreakerOpen),
            Some(BreakerState::HalfOpen { .. }) => Some(UnavailableReason::BreakerHalfOpen),
            Some(BreakerState::Closed) | None => None,
        };
        self.reasons_beyond_panic().chain(active).chain(breaker)
    }

    fn reasons_beyond_panic(&self) -> impl Iterator<Item = UnavailableReason> {
        let admin = self.admin.is_some().then_some(UnavailableReason::Drained);
        let registry = match self.registry.state {
            RegistryStatus::Critical => Some(UnavailableReason::RegistryCritical),
            RegistryStatus::Maintenance => Some(UnavailableReason::RegistryMaintenance),
            RegistryStatus::Unknown | RegistryStatus::Passing | RegistryStatus::Warning => None,
        };
        let resolved_to_refused = ActiveState::Down(CheckFailure::AddressRefused);
        let refused = self.address_refused || self.active.is_some_and(|layer| layer.state == resolved_to_refused);
        admin
            .into_iter()
            .chain(registry)
            .chain(refused.then_some(UnavailableReason::AddressRefused))
    }
}

/// Why picks do not choose an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnavailableReason {
    /// An operator drained the instance.
    Drained,
    /// The status in the registry is critical.
    RegistryCritical,
    /// The status in the registry is maintenance.
    RegistryMaintenance,
    /// The address of the instance must not be contacted.
    AddressRefused,
    /// Active checks fail.
    CheckFailed,
    /// The breaker is open.
    BreakerOpen,
    /// The breaker is half open: only trials are let through.
    BreakerHalfOpen,
    /// The registered weight is 0.
    WeightZero,
    /// An operator set the weight to 0.
    OverrideWeightZero,
    /// The instance is degraded, and `degraded_factor` or the registry's warning weight is 0.
    DegradedWeightZero,
}

impl UnavailableReason {
    /// The word in answers. Words do not change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::RegistryCritical => "registry_critical",
            Self::RegistryMaintenance => "registry_maintenance",
            Self::AddressRefused => "address_refused",
            Self::CheckFailed => "check_failed",
            Self::BreakerOpen => "breaker_open",
            Self::BreakerHalfOpen => "breaker_half_open",
            Self::WeightZero => "weight_zero",
            Self::OverrideWeightZero => "override_weight_zero",
            Self::DegradedWeightZero => "degraded_weight_zero",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::overrides::{Order, Overrides};
    use std::time::Duration;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn drained(now: Timestamp) -> Option<Arc<StandingOrder>> {
        let (mut overrides, id) = (Overrides::default(), "a".parse().unwrap());
        overrides.drain(&id, Order::by("ops"), now);
        overrides.of(&id).drain
    }

    #[test]
    fn the_worst_layer_counts_and_none_overwrites_another() {
        for (registry, in_service) in [
            (RegistryStatus::Unknown, HealthStatus::Unknown),
            (RegistryStatus::Passing, HealthStatus::Healthy),
            (RegistryStatus::Warning, HealthStatus::Degraded),
            (RegistryStatus::Critical, HealthStatus::Unhealthy),
            (RegistryStatus::Maintenance, HealthStatus::Unhealthy),
        ] {
            let before = Layers::from_registry(None, None, registry, false, at(1));
            assert_eq!(before.status(), in_service);
            let out = Layers::from_registry(Some(&before), drained(at(2)), registry, false, at(2));
            assert_eq!((out.status(), out.registry.state), (HealthStatus::Unhealthy, registry));
            assert_eq!(out.registry.since, at(1), "the registry said so before");
            let back = Layers::from_registry(Some(&out), None, registry, false, at(3));
            assert_eq!(back, before);
        }
    }

    #[test]
    fn a_layer_keeps_the_time_at_which_its_state_began() {
        let passing = Layers::from_registry(None, None, RegistryStatus::Passing, false, at(1));
        let still = Layers::from_registry(Some(&passing), None, RegistryStatus::Passing, false, at(5));
        assert_eq!(still.registry.since, at(1));
        let critical = Layers::from_registry(Some(&still), None, RegistryStatus::Critical, false, at(9));
        assert_eq!(critical.registry.since, at(9));
    }

    #[test]
    fn every_reason_is_listed() {
        let layers = Layers::from_registry(None, drained(at(1)), RegistryStatus::Critical, false, at(1));
        let words: Vec<_> = layers.unavailable_reasons().map(UnavailableReason::as_str).collect();
        assert_eq!(words, ["drained", "registry_critical"]);
    }
}
