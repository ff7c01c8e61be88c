//! `GET /explain/{service}`: why picks go where they go. And the layers of health as every answer has them.
//!
//! Times are ages: `since_seconds` ago something began, in `until_seconds` it ends.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;

use super::error::ApiError;
use super::query;
use super::{Api, aside};
use crate::balancer::{
    ActiveState, BreakerState, DegradedReason, ExplainedInstance, Explanation, InstanceId, Layers, LoadBalancer,
    PassiveState, RegistryStatus, Score, ServiceName, Since, StandingOrder, Timestamp, UnavailableReason, WeightOrder,
};

/// The route. Query: `key`, to be told where it leads.
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
    let Some(balancer) = api.directory.get(&service) else {
        let service: ServiceName = service.parse()?;
        return Err(api.directory.why_unknown(service).into());
    };
    let explained = move || {
        let explanation = balancer.explain(key.as_deref());
        ExplainedService::of(balancer.service(), explanation, key.is_some(), api.clock.now())
    };
    Ok(Json(aside(explained).await?))
}

/// `GET /explain/{service}`
#[derive(Serialize)]
pub(super) struct ExplainedService {
    service: String,
    strategy: &'static str,
    /// What the strategy does at present.
    mode: &'static str,
    /// So few instances are usable that all are candidates that only local judgement has taken out.
    panic: bool,
    /// Instances that can be picked without panic.
    available_instances: usize,
    /// Instances that only local judgement can take out: cap and panic are shares of these.
    eligible_instances: usize,
    total_instances: usize,
    /// How long the present view took to build.
    view_build_seconds: f64,
    /// By id.
    instances: Vec<InstanceState>,
    /// Where the key leads; left out without a key, null if the strategy does not heed keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Option<KeyState>>,
}

#[derive(Serialize)]
struct KeyState {
    instance: Option<String>,
    ring_order: Vec<String>,
}

impl ExplainedService {
    fn of(service: &ServiceName, explanation: Explanation, asked_for_key: bool, now: Timestamp) -> Self {
        let key = explanation.key.map(|key| KeyState {
            instance: key.instance.map(|id| id.to_string()),
            ring_order: key.ring_order.iter().map(InstanceId::to_string).collect(),
        });
        let instances: Vec<_> = explanation
            .instances
            .iter()
            .map(|instance| InstanceState::of(instance, explanation.panic, now))
            .collect();
        Self {
            service: service.to_string(),
            strategy: explanation.strategy.as_str(),
            mode: explanation.mode.as_str(),
            panic: explanation.panic,
            eligible_instances: explanation.eligible_instances,
            available_instances: instances.iter().filter(|instance| instance.available).count(),
            total_instances: instances.len(),
            view_build_seconds: explanation.build_time.as_secs_f64(),
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
    /// In stable words: what takes it out, or what lets it in and holds it back.
    why: Vec<&'static str>,
    effective_weight: f64,
    factors: FactorsState,
    /// What the strategy compares; null for one that cannot be picked.
    score: Option<ScoreState>,
    layers: LayersState,
}

#[derive(Serialize)]
struct FactorsState {
    /// The registered weight.
    weight: u16,
    /// The operator's in its place.
    weight_override: Option<OrderedWeight>,
    /// What the factors apply to: at most 1 in strategies that are not weighted.
    base: u16,
    degraded: f64,
    /// The registry's, while it warns: `degraded` is its share of the weight then.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning_weight: Option<u16>,
    /// Below 1 for a while after it recovered, or joined a pool that served.
    slow_start: f64,
}

#[derive(Serialize)]
struct ScoreState {
    kind: &'static str,
    value: f64,
}

impl InstanceState {
    fn of(explained: &ExplainedInstance, panic: bool, now: Timestamp) -> Self {
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
            why: why(explained, panic),
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
                slow_start: factors.slow_start,
            },
            score: explained.score.map(score),
            layers: LayersState::of(&explained.layers, now),
        }
    }
}

/// Why one can be picked or not, in words.
fn why(explained: &ExplainedInstance, panic: bool) -> Vec<&'static str> {
    let layers = &explained.layers;
    if !explained.unavailable_reasons.is_empty() {
        let words = explained
            .unavailable_reasons
            .iter()
            .copied()
            .map(UnavailableReason::as_str);
        // In a pool that panics it is picked all the same.
        return words
            .chain((panic && explained.score.is_some()).then_some("panic"))
            .collect();
    }
    let mut words = vec![let_in(layers)];
    if let Some(PassiveState::Degraded(grievance)) = layers.passive.map(|said| said.state) {
        words.push(match grievance {
            DegradedReason::Failing => "passive_failing",
            DegradedReason::Slow => "passive_slow",
        });
    }
    words.extend(layers.held_by_cap.then_some("held_by_cap"));
    words.extend((explained.factors.slow_start < 1.0).then_some("slow_start"));
    words.extend(panic.then_some("panic"));
    words
}

/// Who has an opinion on one that nobody objects to, in a word.
fn let_in(layers: &Layers) -> &'static str {
    match layers.registry.state {
        RegistryStatus::Unknown if layers.active.is_some() => "checks_passing",
        RegistryStatus::Unknown => "nobody_objects",
        RegistryStatus::Passing => "registry_passing",
        RegistryStatus::Warning => "registry_warning",
        // These object, and are not asked.
        RegistryStatus::Critical => "registry_critical",
        RegistryStatus::Maintenance => "registry_maintenance",
    }
}

/// What each layer of health says.
#[derive(Serialize)]
pub(super) struct LayersState {
    admin: AdminState,
    registry: LayerState,
    /// Null before the first check.
    active: Option<LayerState>,
    /// Null before there were enough outcomes.
    passive: Option<LayerState>,
    /// Null before the first outcome.
    breaker: Option<BreakerLayer>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    address_refused: bool,
}

#[derive(Serialize)]
struct AdminState {
    state: &'static str,
    #[serde(flatten)]
    order: Option<OrderState>,
}

/// What one layer says, since when, and why if it objects.
#[derive(Serialize)]
struct LayerState {
    state: &'static str,
    since_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl LayerState {
    fn of<T: Copy>(
        said: Since<T>,
        word: impl Fn(T) -> &'static str,
        reason: impl Fn(T) -> Option<String>,
        now: Timestamp,
    ) -> Self {
        Self {
            state: word(said.state),
            since_seconds: now.since(said.since).as_secs_f64(),
            reason: reason(said.state),
        }
    }
}

#[derive(Serialize)]
struct BreakerLayer {
    #[serde(flatten)]
    layer: LayerState,
    /// When trials begin; left out unless it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_seconds: Option<f64>,
    /// Its pool cannot do without it: picked all the same.
    held_by_cap: bool,
}

impl LayersState {
    pub(super) fn of(layers: &Layers, now: Timestamp) -> Self {
        let order = layers.admin.as_deref().map(|standing| OrderState::of(standing, now));
        let check_failure = |state| match state {
            ActiveState::Up => None,
            ActiveState::Down(why) => Some(why.to_string()),
        };
        let grievance = |state| match state {
            PassiveState::Ok => None,
            PassiveState::Degraded(grievance) => Some(grievance.to_string()),
        };
        let trip = |state: BreakerState| state.because().map(|because| because.to_string());
        let breaker = |said: Since<BreakerState>| BreakerLayer {
            layer: LayerState::of(said, BreakerState::as_str, trip, now),
            until_seconds: match said.state {
                BreakerState::Open { until, .. } => Some(until.since(now).as_secs_f64()),
                BreakerState::Closed | BreakerState::HalfOpen { .. } => None,
            },
            held_by_cap: layers.held_by_cap,
        };
        Self {
            admin: AdminState {
                state: if order.is_some() { "drained" } else { "in_service" },
                order,
            },
            registry: LayerState::of(layers.registry, RegistryStatus::as_str, |_| None, now),
            active: layers
                .active
                .map(|said| LayerState::of(said, ActiveState::as_str, check_failure, now)),
            passive: layers
                .passive
                .map(|said| LayerState::of(said, PassiveState::as_str, grievance, now)),
            breaker: layers.breaker.map(breaker),
            address_refused: layers.address_refused,
        }
    }
}

/// Who ordered it, why, and for how long still.
#[derive(Serialize)]
struct OrderState {
    by: String,
    reason: Option<String>,
    since_seconds: f64,
    /// Null until it is lifted.
    until_seconds: Option<f64>,
}

impl OrderState {
    fn of(standing: &StandingOrder, now: Timestamp) -> Self {
        Self {
            by: standing.order().who().to_owned(),
            reason: standing.order().reason().map(str::to_owned),
            since_seconds: now.since(standing.since()).as_secs_f64(),
            until_seconds: standing.until().map(|until| until.since(now).as_secs_f64()),
        }
    }
}

#[derive(Serialize)]
struct OrderedWeight {
    weight: u16,
    #[serde(flatten)]
    order: OrderState,
}

impl OrderedWeight {
    fn of(order: &WeightOrder, now: Timestamp) -> Self {
        Self {
            weight: order.weight.get(),
            order: OrderState::of(&order.standing, now),
        }
    }
}

/// The state of an instance after an override.
#[derive(Serialize)]
pub(super) struct OverriddenInstance {
    service: String,
    id: String,
    /// The order that drains it.
    drain: Option<OrderState>,
    /// The weight in place of the registered one.
    weight_override: Option<OrderedWeight>,
    /// As it is now; null while it is not registered.
    instance: Option<InstanceState>,
}

impl OverriddenInstance {
    pub(super) fn of(balancer: &LoadBalancer, id: &InstanceId, now: Timestamp) -> Self {
        let orders = balancer.overrides_of(id);
        let explained = balancer.explain_instance(id);
        Self {
            service: balancer.service().to_string(),
            id: id.to_string(),
            drain: orders.drain.as_deref().map(|standing| OrderState::of(standing, now)),
            weight_override: orders.weight.as_ref().map(|order| OrderedWeight::of(order, now)),
            instance: explained.map(|explained| InstanceState::of(&explained, balancer.panics(), now)),
        }
    }
}
