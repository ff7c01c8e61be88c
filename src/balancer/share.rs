//! Effective weight: the factors of an instance's share of picks.
//!
//! ```text
//! effective weight = weight x degraded factor x adaptive factor x slow-start factor
//! weight           = the operator's weight, else the registered weight; 1 if not weighted
//! ```
//!
//! The effective weight is counted in sixteenths, so that schedules stay short. An instance of
//! weight 0 has no share, whatever the factors are. In panic mode the factors do not apply.

use super::config::LoadBalancerConfig;
use super::health::layers::Layers;
use super::health::slow_start;
use super::instance::{RegistryStatus, ServiceInstance, Weight};

/// The factors of an instance's share of picks.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Factors {
    /// The registered weight.
    pub weight: Weight,
    /// The operator's weight, in place of the registered one.
    pub weight_override: Option<Weight>,
    /// The weight that the factors apply to: the operator's weight, else the registered one; at
    /// most 1 in strategies that are not weighted.
    pub base: u16,
    /// 1 unless the instance is degraded; then `degraded_factor`, or the registry's warning weight
    /// as a share of the registered weight.
    pub degraded: f64,
    /// The warning weight from the registry, while the registry warns.
    pub warning_weight: Option<Weight>,
    /// The factor of adaptive weights, 0.25..=4, and more than 0 with the formula `seed`; 1 while they
    /// are off or an operator's weight is in force. Applies in strategies that are not weighted, too.
    pub adaptive: f64,
    /// 1 unless the instance recovered or joined a short time ago: see [`slow_start`]. 1/16..=1, in
    /// steps of 1/16.
    pub slow_start: f64,
}

impl Factors {
    /// Computes the factors. `adaptive` is the factor of adaptive weights, `ramp` the progress of
    /// the slow start, in sixteenths.
    pub(crate) fn of(
        instance: &ServiceInstance,
        layers: &Layers,
        weight_override: Option<Weight>,
        adaptive: f64,
        ramp: u32,
        config: &LoadBalancerConfig,
    ) -> Self {
        let weight = instance.weight();
        let weighted = config.strategy().is_weighted();
        let in_force = weight_override.unwrap_or(weight).get();
        let warns = layers.registry.state == RegistryStatus::Warning;
        // If the registered weight is 0 and an operator set another weight, the warning weight has
        // no registered weight to be a share of.
        let warning = instance.warning_weight().filter(|_| warns && weight.get() > 0);
        let degraded = match warning {
            Some(warning) => {
                let share = f64::from(warning.get()) / f64::from(weight.get());
                if weighted { share } else { share.min(1.0) }
            }
            None if warns => config.degraded_factor(),
            // Outcomes never degrade an instance to weight 0: only a breaker takes an instance out
            // by outcomes, and the ejection cap limits breakers.
            None if layers.is_degraded() => config.degraded_factor().max(1.0 / 16.0),
            None => 1.0,
        };
        Self {
            weight,
            weight_override,
            base: if weighted { in_force } else { in_force.min(1) },
            degraded,
            warning_weight: warning,
            // The operator decides.
            adaptive: if weight_override.is_some() { 1.0 } else { adaptive },
            slow_start: f64::from(ramp) / f64::from(slow_start::STEPS),
        }
    }

    /// The share of picks in 1/16; 0 = never picked.
    pub(crate) fn units(&self, config: &LoadBalancerConfig) -> u32 {
        let base = u32::from(self.base);
        let units = match (self.warning_weight, self.weight_override) {
            _ if base == 0 => 0,
            // The registry's warning weight is the product of weight and degraded factor.
            (Some(warning), None) if config.strategy().is_weighted() => u32::from(warning.get()) * 16,
            (Some(_), Some(_)) if config.strategy().is_weighted() => {
                at_least_one(f64::from(base) * 16.0 * self.degraded)
            }
            _ => base * sixteenths(self.degraded),
        };
        let units = match units {
            0 => 0,
            units if self.adaptive == 1.0 => units,
            units => at_least_one(f64::from(units) * self.adaptive),
        };
        if self.slow_start < 1.0 {
            // Rounded down, so that the share never exceeds the ramp.
            let held_back = (f64::from(units) * self.slow_start) as u32;
            return held_back.max(u32::from(units > 0));
        }
        units
    }

    /// The share of picks in 1/16 in panic mode: the factors do not apply.
    pub(crate) fn units_in_panic(&self) -> u32 {
        u32::from(self.base) * 16
    }
}

/// A factor in sixteenths, so that tables stay small: at most 16, and above zero if the factor is.
fn sixteenths(factor: f64) -> u32 {
    at_least_one(factor.min(1.0) * 16.0)
}

fn at_least_one(units: f64) -> u32 {
    if units > 0.0 {
        units.round().clamp(1.0, f64::from(Weight::MAX.get()) * 16.0) as u32
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::clock::Timestamp;
    use crate::balancer::config::LoadBalancingStrategy;

    fn weight(weight: i64) -> Weight {
        Weight::new(weight).unwrap()
    }

    fn units(instance: &ServiceInstance, config: &LoadBalancerConfig, order: Option<i64>) -> u32 {
        let layers = Layers::from_registry(None, None, instance.registry_status(), false, Timestamp::default());
        Factors::of(instance, &layers, order.map(weight), 1.0, 16, config).units(config)
    }

    #[test]
    fn factors_come_in_sixteenths_and_never_vanish() {
        assert_eq!([0.0, 0.001, 0.25, 0.5, 1.0, 7.0].map(sixteenths), [0, 1, 4, 8, 16, 16]);
    }

    #[test]
    fn the_registrys_warning_weight_replaces_the_degraded_factor() {
        let weighted = LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin);
        let plain = LoadBalancerConfig::default();
        let instance = ServiceInstance::new("a", "h", 1)
            .unwrap()
            .with_weight(weight(8))
            .with_status(RegistryStatus::Warning);
        let warned = |warning: i64| instance.clone().with_warning_weight(weight(warning));
        let units = |instance: &ServiceInstance, config| units(instance, config, None);
        assert_eq!((units(&instance, &weighted), units(&instance, &plain)), (32, 4));
        assert_eq!((units(&warned(2), &weighted), units(&warned(2), &plain)), (32, 4));
        assert_eq!((units(&warned(16), &weighted), units(&warned(16), &plain)), (256, 16));
        assert_eq!((units(&warned(0), &weighted), units(&warned(0), &plain)), (0, 0));
    }

    #[test]
    fn the_adaptive_factor_acts_but_not_on_an_operators_weight() {
        let plain = LoadBalancerConfig::default();
        let weighted = LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin);
        let instance = ServiceInstance::new("a", "h", 1).unwrap().with_weight(weight(3));
        let layers = |status| Layers::from_registry(None, None, status, false, Timestamp::default());
        let units = |status, order: Option<i64>, adaptive, ramp, config: &LoadBalancerConfig| {
            Factors::of(&instance, &layers(status), order.map(weight), adaptive, ramp, config).units(config)
        };
        let passing = RegistryStatus::Passing;
        assert_eq!(
            (
                units(passing, None, 2.5, 16, &plain),
                units(passing, None, 2.5, 16, &weighted)
            ),
            (40, 120)
        );
        assert_eq!(
            (
                units(passing, None, 0.25, 16, &plain),
                units(passing, None, 0.25, 8, &plain)
            ),
            (4, 2)
        );
        assert_eq!(
            units(RegistryStatus::Warning, None, 0.01, 16, &plain),
            1,
            "never taken out"
        );
        assert_eq!(units(passing, Some(2), 2.5, 16, &weighted), 32);
        assert_eq!(units(passing, Some(0), 2.5, 16, &weighted), 0);
    }

    #[test]
    fn weight_zero_has_no_share_in_any_state() {
        for strategy in LoadBalancingStrategy::ALL {
            let config = LoadBalancerConfig::new(strategy);
            for status in [
                RegistryStatus::Passing,
                RegistryStatus::Warning,
                RegistryStatus::Unknown,
            ] {
                let one = ServiceInstance::new("a", "h", 1).unwrap().with_status(status);
                assert_eq!(units(&one, &config, Some(0)), 0);
                let drained = one.with_weight(weight(0));
                let warned = drained.clone().with_warning_weight(Weight::ONE);
                for instance in [drained, warned] {
                    assert_eq!(units(&instance, &config, None), 0);
                }
            }
        }
    }

    #[test]
    fn no_factor_overflows_at_the_largest_weight() {
        let full = u32::from(u16::MAX) * 16;
        let status = [RegistryStatus::Passing, RegistryStatus::Warning];
        for strategy in LoadBalancingStrategy::ALL {
            let config = LoadBalancerConfig::new(strategy);
            for (status, order, ramp) in status
                .into_iter()
                .flat_map(|status| [None, Some(65_535), Some(1)].map(|order| (status, order)))
                .flat_map(|(status, order)| [1, 15, 16].map(|ramp| (status, order, ramp)))
            {
                // The largest share of a registered weight: 65,535 while warning, 1 otherwise.
                for registered in [1, 65_535] {
                    let instance = ServiceInstance::new("a", "h", 1)
                        .unwrap()
                        .with_weight(weight(registered))
                        .with_warning_weight(Weight::MAX)
                        .with_status(status);
                    let layers = Layers::from_registry(None, None, status, false, Timestamp::default());
                    let factors = Factors::of(&instance, &layers, order.map(weight), 4.0, ramp, &config);
                    let units = factors.units(&config);
                    assert!((1..=full).contains(&units), "{strategy} {factors:?}: {units}");
                    assert!(factors.units_in_panic() <= full, "{strategy} {factors:?}");
                }
            }
        }
        let heaviest = ServiceInstance::new("a", "h", 1).unwrap().with_weight(Weight::MAX);
        let weighted = LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin);
        assert_eq!(units(&heaviest, &weighted, None), full);
    }

    #[test]
    fn factors_apply_to_the_operators_weight_in_place_of_the_registered_one() {
        let weighted = LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin);
        let plain = LoadBalancerConfig::default();
        let one = ServiceInstance::new("a", "h", 1).unwrap().with_weight(weight(4));
        assert_eq!(
            (units(&one, &weighted, Some(3)), units(&one, &plain, Some(3))),
            (48, 16)
        );
        let warned = one.clone().with_status(RegistryStatus::Warning);
        assert_eq!(
            (units(&warned, &weighted, Some(8)), units(&warned, &plain, Some(8))),
            (32, 4)
        );
        // The registry's warning weight 1 of 4 is a quarter of the operator's weight, too.
        let warned = warned.with_warning_weight(Weight::ONE);
        assert_eq!(
            (units(&warned, &weighted, Some(8)), units(&warned, &plain, Some(8))),
            (32, 4)
        );
        let none = one.with_weight(weight(0));
        assert_eq!(
            (units(&none, &weighted, Some(3)), units(&none, &plain, Some(3))),
            (48, 16)
        );
    }
}
