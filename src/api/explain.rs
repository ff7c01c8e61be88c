//! `GET /explain/{service}`: why each instance of a service is picked or not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;

use super::blocking::run_blocking;
use super::error::ApiError;
use super::layers::{LayersState, OrderState, OrderedWeight};
use super::query;
use super::state::Api;
use super::wire::{ServiceFailure, absent_seconds};
use crate::balancer::{
    Adjustment, DegradedReason, ExplainedAdaptive, ExplainedInstance, ExplainedTier, Explanation, InstanceId, Layers,
    LoadBalancer, Measured, MeasuredBy, PassiveState, RegistryEntry, RegistryStatus, Score, ServiceName, Timestamp,
    UnavailableReason,
};

/// The route. With the query parameter `key`, the answer says which instance the key leads to.
pub(super) async fn explain(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ExplainedService>, ApiError> {
    let service = query::last_segment(&uri)?;
    let mut key = None;
    for (name, raw) in query::parameters(&uri) {
        match name {
            "key" => query::once(&mut key, "key", query::bytes(raw))?,
            other => return Err(query::unknown(other, "key")),
        }
    }
    let key = key.filter(|key| !key.is_empty());
    let balancer = api.balancer(&service)?;
    let explained = move || {
        let (explanation, now) = (balancer.explain(key.as_deref()), api.clock.now());
        ExplainedService {
            failing_sources: ServiceFailure::of_service(balancer.service(), &api.directory.sources(), now),
            ..ExplainedService::of(balancer.service(), explanation, key.is_some(), now)
        }
    };
    Ok(Json(run_blocking(explained).await?))
}

/// The body of the answer.
#[derive(Serialize)]
pub(super) struct ExplainedService {
    service: String,
    strategy: &'static str,
    /// The current mode of the strategy.
    mode: &'static str,
    /// Whether the pool is in panic mode: too few instances are usable, so all eligible instances
    /// are candidates.
    panic: bool,
    /// Whether the service fails open: the registry calls every instance critical, and the critical
    /// instances are candidates all the same.
    fail_open: bool,
    /// Instances that can be picked outside of panic mode, once their tier is in turn.
    available_instances: usize,
    /// Instances of weight above 0 that are neither drained nor rejected by the registry. The
    /// ejection cap and the panic threshold are shares of this number.
    eligible_instances: usize,
    total_instances: usize,
    /// The time it took to build the current view.
    view_build_seconds: f64,
    /// Adaptive weights. Null while they are turned off.
    adaptive: Option<AdaptiveState>,
    /// In order: the first tier that can be picked is picked alone.
    tiers: Vec<TierState>,
    /// The sources that give no usable answer for this service. Their last instances stay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failing_sources: Vec<ServiceFailure>,
    /// By id.
    instances: Vec<InstanceState>,
    /// The instance that the key leads to. Left out if the request has no key; null if the strategy
    /// ignores keys and sessions are not sticky.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Option<KeyState>>,
}

#[derive(Serialize)]
struct AdaptiveState {
    formula: &'static str,
    /// Whether adaptive weights apply to the strategy.
    active: bool,
    /// `reports` or `checks`. Null while nothing was measured.
    measured_by: Option<&'static str>,
    /// The last 50 changes of factors, oldest first.
    history: Vec<AdjustmentState>,
}

impl AdaptiveState {
    fn of(explained: &ExplainedAdaptive, now: Timestamp) -> Self {
        Self {
            formula: explained.formula.as_str(),
            active: explained.active,
            measured_by: explained.measured_by.map(MeasuredBy::as_str),
            history: explained
                .history
                .iter()
                .map(|adjustment| AdjustmentState::of(adjustment, now))
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct AdjustmentState {
    age_seconds: f64,
    /// The instances at the address.
    instances: Vec<String>,
    before: f64,
    now: f64,
    /// Null if too few outcomes were known.
    relative_score: Option<f64>,
    measured_by: Option<&'static str>,
}

impl AdjustmentState {
    fn of(adjustment: &Adjustment, now: Timestamp) -> Self {
        Self {
            age_seconds: now.since(adjustment.at).as_secs_f64(),
            instances: adjustment.instances.iter().map(InstanceId::to_string).collect(),
            before: adjustment.before.get(),
            now: adjustment.now.get(),
            relative_score: adjustment.relative_score.map(|score| score.get()),
            measured_by: adjustment.measured_by.map(MeasuredBy::as_str),
        }
    }
}

/// What adaptive weights measured of an instance.
#[derive(Serialize)]
struct MeasuredState {
    requests: u64,
    response_seconds: Option<f64>,
    error_ratio: f64,
    relative_score: Option<f64>,
}

impl MeasuredState {
    fn of(measured: &Measured) -> Self {
        Self {
            requests: measured.requests,
            response_seconds: measured.response_time.map(|time| time.as_secs_f64()),
            error_ratio: measured.error_ratio,
            relative_score: measured.relative_score,
        }
    }
}

#[derive(Serialize)]
struct TierState {
    /// The place of the datacenter or other source of the instances.
    rank: u16,
    priority: u16,
    /// Whether picks may choose instances of the tier.
    in_turn: bool,
    available_instances: usize,
    total_instances: usize,
}

impl TierState {
    fn of(explained: &ExplainedTier) -> Self {
        Self {
            rank: explained.tier.rank(),
            priority: explained.tier.priority(),
            in_turn: explained.in_turn,
            available_instances: explained.available_instances,
            total_instances: explained.total_instances,
        }
    }
}

#[derive(Serialize)]
struct KeyState {
    instance: Option<String>,
    /// Whether the key has a sticky session at the instance.
    session: bool,
    ring_order: Vec<String>,
}

impl ExplainedService {
    fn of(service: &ServiceName, explanation: Explanation, asked_for_key: bool, now: Timestamp) -> Self {
        let key = explanation.key.map(|key| KeyState {
            instance: key.instance.map(|id| id.to_string()),
            session: key.has_session,
            ring_order: key.ring_order.iter().map(InstanceId::to_string).collect(),
        });
        let instances: Vec<_> = explanation
            .instances
            .iter()
            .map(|instance| InstanceState::of(instance, explanation.panic, explanation.fail_open, now))
            .collect();
        Self {
            service: service.to_string(),
            strategy: explanation.strategy.as_str(),
            mode: explanation.mode.as_str(),
            panic: explanation.panic,
            fail_open: explanation.fail_open,
            adaptive: explanation
                .adaptive
                .as_ref()
                .map(|adaptive| AdaptiveState::of(adaptive, now)),
            tiers: explanation.tiers.iter().map(TierState::of).collect(),
            eligible_instances: explanation.eligible_instances,
            available_instances: instances.iter().filter(|instance| instance.available).count(),
            total_instances: instances.len(),
            view_build_seconds: explanation.build_time.as_secs_f64(),
            failing_sources: Vec::new(),
            instances,
            key: asked_for_key.then_some(key),
        }
    }
}

/// One instance, explained.
#[derive(Serialize)]
struct InstanceState {
    id: String,
    address: String,
    status: &'static str,
    available: bool,
    /// The priority that the registration gives, 0 without one.
    priority: u16,
    /// Whether the tier of the instance is in turn.
    in_turn: bool,
    /// Changes of the registration within the last minute.
    registry_changes: usize,
    /// Stable words: why the instance is unavailable, or why it is available and what reduces its
    /// weight.
    why: Vec<&'static str>,
    effective_weight: f64,
    factors: FactorsState,
    /// What adaptive weights measured in their last round. Left out while they do not apply, or with
    /// too few outcomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<MeasuredState>,
    /// The value that the strategy compares. Null for an instance that cannot be picked.
    score: Option<ScoreState>,
    layers: LayersState,
    /// How long the source has not listed the instance, which is held. Left out for an instance
    /// that a source lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    absent_seconds: Option<f64>,
    /// Every registration of the address, first the one that gave the id and the attributes.
    registrations: Vec<RegistrationState>,
}

#[derive(Serialize)]
struct RegistrationState {
    /// The registered id, which may differ from the id of the instance.
    id: String,
    source: &'static str,
    /// The status of this registration alone.
    status: &'static str,
}

#[derive(Serialize)]
struct FactorsState {
    /// The registered weight.
    weight: u16,
    /// The weight that an operator has set in place of the registered weight.
    weight_override: Option<OrderedWeight>,
    /// The weight to which the factors apply. At most 1 in strategies that ignore weights.
    base: u16,
    degraded: f64,
    /// The warning weight of the registry, while the registry status is warning. `degraded` is then
    /// its share of the weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning_weight: Option<u16>,
    /// The factor of adaptive weights.
    adaptive: f64,
    /// Below 1 for a while after the instance has recovered, or has joined a pool in use.
    slow_start: f64,
}

#[derive(Serialize)]
struct ScoreState {
    kind: &'static str,
    value: f64,
}

impl InstanceState {
    fn of(explained: &ExplainedInstance, panic: bool, fail_open: bool, now: Timestamp) -> Self {
        let factors = &explained.factors;
        let score = |score: Score| ScoreState {
            kind: score.kind(),
            value: score.value(),
        };
        Self {
            id: explained.instance.id().to_string(),
            address: explained.instance.address().to_string(),
            status: explained.status.as_str(),
            available: explained.unavailable_reasons.is_empty(),
            priority: explained.instance.tier().priority(),
            in_turn: explained.in_turn,
            registry_changes: explained.registry_changes,
            why: why(explained, panic, fail_open),
            effective_weight: explained.effective_weight,
            factors: FactorsState {
                weight: factors.weight.get(),
                weight_override: explained
                    .weight_order
                    .as_ref()
                    .map(|order| OrderedWeight::of(order, now)),
                base: factors.base,
                degraded: factors.degraded,
                warning_weight: factors.warning_weight.map(|weight| weight.get()),
                adaptive: factors.adaptive,
                slow_start: factors.slow_start,
            },
            measured: explained.measured.as_ref().map(MeasuredState::of),
            score: explained.score.map(score),
            layers: LayersState::of(&explained.layers, now),
            absent_seconds: absent_seconds(&explained.instance, now),
            registrations: explained
                .instance
                .registrations()
                .iter()
                .map(RegistrationState::of)
                .collect(),
        }
    }
}

impl RegistrationState {
    fn of(entry: &RegistryEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            source: entry.source.as_str(),
            status: entry.status.as_str(),
        }
    }
}

/// The words of `why`: why the instance can be picked or not.
fn why(explained: &ExplainedInstance, panic: bool, fail_open: bool) -> Vec<&'static str> {
    let layers = &explained.layers;
    let absent = explained.instance.absent_since().map(|_| "absent");
    let flapping = explained.flapping.then_some("flapping");
    let ignored_priority = explained.instance.ignored_priority().then_some("priority_ignored");
    if !explained.unavailable_reasons.is_empty() {
        let words = explained
            .unavailable_reasons
            .iter()
            .copied()
            .map(UnavailableReason::as_str);
        // The instance is picked although it is unavailable.
        let is_picked = explained.score.is_some();
        return words
            .chain(absent)
            .chain((fail_open && is_picked).then_some("fail_open"))
            .chain((panic && is_picked).then_some("panic"))
            .chain((!explained.in_turn).then_some("not_in_turn"))
            .chain(flapping)
            .chain(ignored_priority)
            .collect();
    }
    let mut words = vec![reason_for_availability(layers)];
    if let Some(PassiveState::Degraded(reason)) = layers.passive.map(|layer| layer.state) {
        words.push(match reason {
            DegradedReason::Failing => "passive_failing",
            DegradedReason::Slow => "passive_slow",
        });
    }
    words.extend(absent);
    words.extend(layers.held_by_cap.then_some("held_by_cap"));
    words.extend((explained.factors.adaptive < 1.0).then_some("adaptive_weight"));
    words.extend((explained.factors.slow_start < 1.0).then_some("slow_start"));
    words.extend(panic.then_some("panic"));
    words.extend((!explained.in_turn).then_some("not_in_turn"));
    words.extend(flapping);
    words.extend(ignored_priority);
    words
}

/// The first word of `why` for an available instance: the layer that speaks for the instance.
fn reason_for_availability(layers: &Layers) -> &'static str {
    match layers.registry.state {
        RegistryStatus::Unknown if layers.active.is_some() => "checks_passing",
        RegistryStatus::Unknown => "nobody_objects",
        RegistryStatus::Passing => "registry_passing",
        RegistryStatus::Warning => "registry_warning",
        // An instance with these statuses is unavailable, so this function is not called for it.
        RegistryStatus::Critical => "registry_critical",
        RegistryStatus::Maintenance => "registry_maintenance",
    }
}

/// The state of an instance after an override.
#[derive(Serialize)]
pub(super) struct OverriddenInstance {
    service: String,
    id: String,
    /// The override that drains the instance.
    drain: Option<OrderState>,
    /// The weight in place of the registered weight.
    weight_override: Option<OrderedWeight>,
    /// The current state of the instance. Null while the instance is not registered.
    instance: Option<InstanceState>,
}

impl OverriddenInstance {
    pub(super) fn of(balancer: &LoadBalancer, id: &InstanceId, now: Timestamp) -> Self {
        let orders = balancer.overrides_of(id);
        let explained = balancer.explain_instance(id);
        // The operator may have named the instance by another of its registered ids.
        let id = explained.as_ref().map_or(id, |explained| explained.instance.id());
        Self {
            service: balancer.service().to_string(),
            id: id.to_string(),
            drain: orders.drain.as_deref().map(|standing| OrderState::of(standing, now)),
            weight_override: orders.weight.as_ref().map(|order| OrderedWeight::of(order, now)),
            instance: explained
                .map(|explained| InstanceState::of(&explained, balancer.panics(), balancer.fails_open(), now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::{LoadBalancerConfig, ServiceInstance};

    #[test]
    fn a_held_instance_is_absent_whether_it_can_be_picked_or_not() {
        let balancer = LoadBalancer::new("web".parse().unwrap(), LoadBalancerConfig::default());
        let held = |id: &str, port, status| {
            let instance = ServiceInstance::new(id, "10.0.0.1", port).unwrap();
            instance
                .with_status(status)
                .with_absent_since(Some(Timestamp::default()))
        };
        balancer.add_instance(held("a", 80, RegistryStatus::Passing));
        balancer.add_instance(held("b", 81, RegistryStatus::Critical));
        balancer.add_instance(held("c", 82, RegistryStatus::Maintenance).with_absent_since(None));
        let words = |explained: &ExplainedInstance| why(explained, false, false);
        let shown: Vec<_> = balancer.explain(None).instances.iter().map(words).collect();
        assert_eq!(
            shown,
            [
                vec!["registry_passing", "absent"],
                vec!["registry_critical", "absent"],
                vec!["registry_maintenance"],
            ]
        );
    }
}
