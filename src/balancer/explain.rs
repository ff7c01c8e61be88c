//! Why a pick chooses an instance: every instance with the factors of its share, the state of each
//! layer, and the number that the strategy compares.
//!
//! Explaining reads one view and the live state behind it. It changes nothing: no turn advances, no
//! pick is counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::adaptive::{Adjustment, Measured, MeasuredBy};
use super::clock::Timestamp;
use super::config::{AdaptiveFormula, LoadBalancerConfig, LoadBalancingStrategy};
use super::context::Context;
use super::health::ejection::Admission;
use super::health::layers::{Layers, UnavailableReason};
use super::instance::{HealthStatus, InstanceId, ServiceInstance, Tier};
use super::live::Load;
use super::load_balancer::LoadBalancer;
use super::member::{Member, unavailable_reasons};
use super::overrides::WeightOrder;
use super::share::Factors;
use super::strategy::draw::Mode;
use super::view::View;

/// The most instances shown in ring order.
const RING_ORDER: usize = 64;

/// The explanation of one service.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// The configured strategy.
    pub strategy: LoadBalancingStrategy,
    /// What the strategy does at present.
    pub mode: Mode,
    /// Whether the pool is in panic mode: all eligible instances are candidates.
    pub panic: bool,
    /// Whether the service fails open: the registry calls every instance critical, and the critical
    /// instances are candidates all the same.
    pub fail_open: bool,
    /// Instances that only local judgement can take out.
    pub eligible_instances: usize,
    /// Eligible instances that local judgement does not take out.
    pub usable_instances: usize,
    /// The time that building the present view took.
    pub build_time: Duration,
    /// Adaptive weights. `None` while they are turned off.
    pub adaptive: Option<ExplainedAdaptive>,
    /// The tiers of the registered instances, in order.
    pub tiers: Vec<ExplainedTier>,
    /// Every registered instance, by id.
    pub instances: Vec<ExplainedInstance>,
    /// The instance of the key, if the caller gave a key, and the strategy uses keys or sessions are
    /// sticky.
    pub key: Option<ExplainedKey>,
}

/// Adaptive weights of a service.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ExplainedAdaptive {
    /// The formula.
    pub formula: AdaptiveFormula,
    /// Whether adaptive weights apply. Under `least_response_time` and `consistent_hash` they do not,
    /// and the formula `seed` does not where weights do not count.
    pub active: bool,
    /// Where the response times came from in the last round. `None` while nothing was measured.
    pub measured_by: Option<MeasuredBy>,
    /// The last 50 adjustments, oldest first.
    pub history: Vec<Adjustment>,
}

/// One tier of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExplainedTier {
    /// The tier.
    pub tier: Tier,
    /// Whether picks may choose instances of the tier at present.
    pub in_turn: bool,
    /// Registered instances of the tier.
    pub total_instances: usize,
    /// Instances of the tier that can be picked, once the tier is in turn.
    pub available_instances: usize,
}

/// The explanation of one instance.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ExplainedInstance {
    /// The instance as registered.
    pub instance: Arc<ServiceInstance>,
    /// The derived status.
    pub status: HealthStatus,
    /// The state of each layer.
    pub layers: Layers,
    /// The weight set by an operator, with origin and reason.
    pub weight_order: Option<WeightOrder>,
    /// The factors of its share.
    pub factors: Factors,
    /// What adaptive weights measured in the last round. `None` while they do not apply, or with too
    /// few outcomes.
    pub measured: Option<Measured>,
    /// Whether the tier of the instance is in turn: no lower tier can be picked.
    pub in_turn: bool,
    /// Changes of the registration within the last minute: another status, a departure or a return.
    pub registry_changes: usize,
    /// Whether the registration flaps: more than five such changes. Each return is a slow start.
    pub flapping: bool,
    /// The product of the factors, in steps of 1/16; 0 for an instance that cannot be picked, or
    /// whose tier is not in turn.
    pub effective_weight: f64,
    /// Why the instance cannot be picked outside panic mode. Empty if it can.
    pub unavailable_reasons: Vec<UnavailableReason>,
    /// The number that the strategy compares. `None` for an instance that cannot be picked, or whose
    /// tier is not in turn.
    pub score: Option<Score>,
}

/// The number that a strategy compares.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Score {
    /// Share of the picks, 0..=1: picks are divided by weight.
    Share(f64),
    /// `(in flight + 1) / effective weight`; the least is picked.
    Load(f64),
    /// Seconds of `response time x (in flight + 1) / effective weight`; the least is picked.
    Cost(f64),
    /// Share of the ring, 0..=1, and so of evenly hashed keys, before factors are applied and
    /// unavailable instances are skipped.
    RingShare(f64),
}

impl Score {
    /// The name of the number in answers.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Share(_) => "share",
            Self::Load(_) => "in_flight_by_weight",
            Self::Cost(_) => "response_seconds_by_weight",
            Self::RingShare(_) => "ring_share",
        }
    }

    /// The number.
    #[must_use]
    pub fn value(self) -> f64 {
        match self {
            Self::Share(value) | Self::Load(value) | Self::Cost(value) | Self::RingShare(value) => value,
        }
    }
}

/// The instances of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExplainedKey {
    /// The instance that a pick with this key would get now. `None` if no instance can be picked, or
    /// if the key has no session and the strategy ignores keys.
    pub instance: Option<InstanceId>,
    /// Whether the key has a session at that instance.
    pub has_session: bool,
    /// The first 64 registered instances in ring order from the place of the key, whether they can
    /// be picked or not. Instances of registered weight 0 are not on the ring.
    pub ring_order: Vec<InstanceId>,
}

impl LoadBalancer {
    /// Explains every instance, and the instance of a key. Changes nothing.
    #[must_use]
    pub fn explain(&self, key: Option<&[u8]>) -> Explanation {
        let view = self.shared.view.load_full();
        let subject = self.subject(&view);
        let hashes = view.ring().is_some();
        let key = key.filter(|_| hashes || view.is_sticky()).map(|key| {
            let in_session = view.session_of_key(key);
            let by_ring = || view.peek(&Context::new().with_key(key), &self.shared.load);
            let member = in_session.or_else(|| hashes.then(by_ring).flatten());
            ExplainedKey {
                instance: member.map(|member| member.instance.id().clone()),
                has_session: in_session.is_some(),
                ring_order: subject.ring_order(key),
            }
        });
        let instances = subject.instances(None);
        Explanation {
            strategy: view.config.strategy(),
            mode: subject.mode,
            panic: view.panic,
            fail_open: view.fail_open,
            eligible_instances: view.eligible,
            usable_instances: view.usable,
            build_time: Duration::from_nanos(self.shared.build_time.load(Ordering::Relaxed)),
            adaptive: self.explain_adaptive(&view.config),
            tiers: tiers(&view, &instances),
            instances,
            key,
        }
    }

    /// Explains one instance. `None` if it is not registered. A registered id that the pool does
    /// not use finds its instance, as in [`drain`](LoadBalancer::drain).
    #[must_use]
    pub fn explain_instance(&self, id: &InstanceId) -> Option<ExplainedInstance> {
        let view = self.shared.view.load_full();
        let [registered_as] = *view.ids_of(id) else { return None };
        self.subject(&view).instances(Some(registered_as)).pop()
    }

    fn explain_adaptive(&self, config: &LoadBalancerConfig) -> Option<ExplainedAdaptive> {
        config.adaptive_weights().then(|| ExplainedAdaptive {
            formula: config.adaptive_formula(),
            active: config.adapts(),
            measured_by: self.measured_by(),
            history: self.adjustments(),
        })
    }

    fn subject<'a>(&'a self, view: &'a View) -> Subject<'a> {
        Subject {
            view,
            load: &self.shared.load,
            mode: view.mode(&self.shared.load),
            now: self.shared.environment.clock.now(),
        }
    }
}

fn tiers(view: &View, instances: &[ExplainedInstance]) -> Vec<ExplainedTier> {
    let explained = |tier: Tier| {
        let own = || instances.iter().filter(|explained| explained.instance.tier() == tier);
        let is_available = |explained: &&ExplainedInstance| explained.unavailable_reasons.is_empty();
        ExplainedTier {
            tier,
            in_turn: own().any(|explained| explained.score.is_some()),
            total_instances: own().count(),
            available_instances: own().filter(is_available).count(),
        }
    };
    view.tiers().into_iter().map(explained).collect()
}

/// The view and the load that an explanation reads.
pub(crate) struct Subject<'a> {
    pub(crate) view: &'a View,
    pub(crate) load: &'a Load,
    pub(crate) mode: Mode,
    pub(crate) now: Timestamp,
}

impl Subject<'_> {
    /// Every instance, or only the given one.
    pub(crate) fn instances(&self, only: Option<&InstanceId>) -> Vec<ExplainedInstance> {
        let members = &self.view.members;
        let picked = |member: &&Member| member.live.admission() == Admission::In && self.view.is_in_turn(member.tier);
        let all_units: u64 = members
            .iter()
            .filter(picked)
            .map(|member| u64::from(member.units))
            .sum();
        let ring_shares = self.view.ring().map(|ring| ring.shares(members.len()));
        let explained = |(index, member): (usize, &Member)| {
            let ring_share = ring_shares.as_ref().and_then(|shares| shares.get(index).copied());
            let share = f64::from(member.units) / all_units.max(1) as f64;
            self.instance(member, share, ring_share)
        };
        let wanted = |(_, member): &(usize, &Member)| only.is_none_or(|id| member.instance.id() == id);
        members.iter().enumerate().filter(wanted).map(explained).collect()
    }

    fn instance(&self, member: &Member, share: f64, ring_share: Option<f64>) -> ExplainedInstance {
        let config = &self.view.config;
        let weight = f64::from(member.units) / 16.0;
        let load = || f64::from(member.live.in_flight()) + 1.0;
        let score = || match (config.strategy(), self.mode) {
            (LoadBalancingStrategy::ConsistentHash, _) => Score::RingShare(ring_share.unwrap_or_default()),
            (LoadBalancingStrategy::LeastConnections, Mode::Normal) => Score::Load(load() / weight),
            (LoadBalancingStrategy::LeastResponseTime, Mode::Normal) => {
                let latency = member
                    .live
                    .response_time(self.now)
                    .unwrap_or_else(|| self.load.median());
                Score::Cost(f64::from(latency) * load() / weight)
            }
            _ => Score::Share(share),
        };
        let state = &member.state;
        let weight_override = state.weight.as_ref().map(|order| order.weight);
        let layers = member.layers_now();
        let unavailable_reasons = unavailable_reasons(member, &layers, config);
        let can_be_picked = self.view.lets_through(member, &unavailable_reasons);
        let ramp = member.live.ramp(config, self.now);
        let adaptive = member.live.adaptive_factor(config);
        ExplainedInstance {
            instance: Arc::clone(&member.instance),
            status: layers.status(),
            weight_order: state.weight.clone(),
            factors: Factors::of(&member.instance, &layers, weight_override, adaptive, ramp, config),
            measured: self.measured(member),
            in_turn: self.view.is_in_turn(member.tier),
            registry_changes: member.live.registry_changes(self.now),
            flapping: member.live.is_flapping(self.now),
            effective_weight: if can_be_picked { weight } else { 0.0 },
            layers,
            unavailable_reasons,
            score: can_be_picked.then(score),
        }
    }

    fn measured(&self, member: &Member) -> Option<Measured> {
        let applies = self.view.config.adapts();
        applies.then(|| member.live.adaptive_if_any()?.measured()).flatten()
    }

    /// Members in ring order from the place of the key, each once.
    pub(crate) fn ring_order(&self, key: &[u8]) -> Vec<InstanceId> {
        let mut seen = vec![false; self.view.members.len()];
        let mut order = Vec::new();
        for owner in self.view.ring().into_iter().flat_map(|ring| ring.walk_from(key)) {
            if order.len() == RING_ORDER.min(seen.len()) {
                break;
            }
            if let (Some(member), Some(seen)) = (self.view.members.get(owner), seen.get_mut(owner))
                && !std::mem::replace(seen, true)
            {
                order.push(member.instance.id().clone());
            }
        }
        order
    }
}
