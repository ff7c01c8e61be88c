//! What each layer says of one instance, and the one status derived from them.

use std::sync::Arc;

use super::breaker::BreakerState;
use super::checks::{ActiveState, CheckFailure};
use super::grade::PassiveState;
use crate::balancer::clock::{Since, Timestamp};
use crate::balancer::instance::{HealthStatus, RegistryStatus};
use crate::balancer::overrides::StandingOrder;

/// What each layer says of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// The operator's order that takes it out; `None` while it is in service.
    pub admin: Option<Arc<StandingOrder>>,
    /// What the registry says.
    pub registry: Since<RegistryStatus>,
    /// Whether its registered address must not be contacted: see [`DeniedNetworks`](crate::balancer::DeniedNetworks).
    pub address_refused: bool,
    /// What our own checks say; `None` before the first.
    pub active: Option<Since<ActiveState>>,
    /// What outcomes say; `None` before there were enough of them.
    pub passive: Option<Since<PassiveState>>,
    /// What its breaker says; `None` before the first outcome.
    pub breaker: Option<Since<BreakerState>>,
    /// Its breaker is open, and the pool cannot do without it: picked all the same.
    pub held_by_cap: bool,
}

impl Layers {
    /// What admin and registry say now, without the others. A layer that says what it said before has said so since then.
    pub(crate) fn following(
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

    /// The status derived from all layers.
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

    /// Whether the registry warns, or outcomes speak against it.
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

    /// Whether our own checks fail.
    pub(crate) fn is_down(&self) -> bool {
        self.active.is_some_and(|said| said.state != ActiveState::Up)
    }

    /// Whether nothing but local judgement can take it out: what a pool that panics does not ask.
    pub(crate) fn is_eligible(&self) -> bool {
        self.beyond_panic().next().is_none()
    }

    /// Each layer that takes the instance out.
    pub(crate) fn unavailable_reasons(&self) -> impl Iterator<Item = UnavailableReason> {
        let active = match self.active.map(|said| said.state) {
            Some(ActiveState::Down(why)) if why != CheckFailure::AddressRefused => Some(UnavailableReason::CheckFailed),
            _ => None,
        };
        let breaker = match self.breaker.map(|said| said.state) {
            _ if self.held_by_cap => None,
            Some(BreakerState::Open { .. }) => Some(UnavailableReason::BreakerOpen),
            Some(BreakerState::HalfOpen { .. }) => Some(UnavailableReason::BreakerHalfOpen),
            Some(BreakerState::Closed) | None => None,
        };
        self.beyond_panic().chain(active).chain(breaker)
    }

    fn beyond_panic(&self) -> impl Iterator<Item = UnavailableReason> {
        let admin = self.admin.is_some().then_some(UnavailableReason::Drained);
        let registry = match self.registry.state {
            RegistryStatus::Critical => Some(UnavailableReason::RegistryCritical),
            RegistryStatus::Maintenance => Some(UnavailableReason::RegistryMaintenance),
            RegistryStatus::Unknown | RegistryStatus::Passing | RegistryStatus::Warning => None,
        };
        let resolved = ActiveState::Down(CheckFailure::AddressRefused);
        let refused = self.address_refused || self.active.is_some_and(|said| said.state == resolved);
        admin
            .into_iter()
            .chain(registry)
            .chain(refused.then_some(UnavailableReason::AddressRefused))
    }
}

/// Why an instance cannot be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnavailableReason {
    /// An operator drained it.
    Drained,
    /// The registry says critical.
    RegistryCritical,
    /// The registry says maintenance.
    RegistryMaintenance,
    /// It is at an address that must not be contacted.
    AddressRefused,
    /// Our own checks fail.
    CheckFailed,
    /// Its breaker is open.
    BreakerOpen,
    /// Its breaker is half open: only a trial is let through.
    BreakerHalfOpen,
    /// Its registered weight is 0.
    WeightZero,
    /// An operator gave it weight 0.
    OverrideWeightZero,
    /// It is degraded, and `degraded_factor` or the registry's warning weight is 0.
    DegradedWeightZero,
}

impl UnavailableReason {
    /// The word for it in answers. Words do not change.
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
            let before = Layers::following(None, None, registry, false, at(1));
            assert_eq!(before.status(), in_service);
            let out = Layers::following(Some(&before), drained(at(2)), registry, false, at(2));
            assert_eq!((out.status(), out.registry.state), (HealthStatus::Unhealthy, registry));
            assert_eq!(out.registry.since, at(1), "the registry said so before");
            let back = Layers::following(Some(&out), None, registry, false, at(3));
            assert_eq!(back, before);
        }
    }

    #[test]
    fn a_layer_keeps_the_time_at_which_its_state_began() {
        let passing = Layers::following(None, None, RegistryStatus::Passing, false, at(1));
        let still = Layers::following(Some(&passing), None, RegistryStatus::Passing, false, at(5));
        assert_eq!(still.registry.since, at(1));
        let critical = Layers::following(Some(&still), None, RegistryStatus::Critical, false, at(9));
        assert_eq!(critical.registry.since, at(9));
    }

    #[test]
    fn every_reason_is_listed() {
        let layers = Layers::following(None, drained(at(1)), RegistryStatus::Critical, false, at(1));
        let words: Vec<_> = layers.unavailable_reasons().map(UnavailableReason::as_str).collect();
        assert_eq!(words, ["drained", "registry_critical"]);
    }
}
