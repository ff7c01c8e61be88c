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
    ExplainedInstance, Explanation, InstanceId, Layers, LoadBalancer, Objection, RegistryStatus, Score, ServiceName,
    Standing, Timestamp, WeightOrder,
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
    /// Instances that can be picked.
    available_instances: usize,
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
            .map(|instance| InstanceState::of(instance, now))
            .collect();
        Self {
            service: service.to_string(),
            strategy: explanation.strategy.as_str(),
            mode: explanation.mode.as_str(),
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
    /// In stable words: what takes it out, or what lets it in.
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
}

#[derive(Serialize)]
struct ScoreState {
    kind: &'static str,
    value: f64,
}

impl InstanceState {
    fn of(explained: &ExplainedInstance, now: Timestamp) -> Self {
        let factors = &explained.factors;
        let why = match explained.objections.as_slice() {
            [] => vec![let_in(explained.layers.registry.state)],
            objections => objections.iter().copied().map(Objection::as_str).collect(),
        };
        let score = |score: Score| ScoreState {
            kind: score.kind(),
            value: score.value(),
        };
        Self {
            id: explained.instance.id().to_string(),
            address: explained.instance.address().to_string(),
            status: explained.status.as_str(),
            available: explained.effective_weight > 0.0,
            why,
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
            },
            score: explained.score.map(score),
            layers: LayersState::of(&explained.layers, now),
        }
    }
}

/// Why one can be picked, in a word.
fn let_in(registry: RegistryStatus) -> &'static str {
    match registry {
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
    registry: RegistryState,
}

#[derive(Serialize)]
struct AdminState {
    state: &'static str,
    #[serde(flatten)]
    order: Option<OrderState>,
}

#[derive(Serialize)]
struct RegistryState {
    state: &'static str,
    since_seconds: f64,
}

impl LayersState {
    pub(super) fn of(layers: &Layers, now: Timestamp) -> Self {
        let order = layers.admin.as_deref().map(|standing| OrderState::of(standing, now));
        Self {
            admin: AdminState {
                state: if order.is_some() { "drained" } else { "in_service" },
                order,
            },
            registry: RegistryState {
                state: layers.registry.state.as_str(),
                since_seconds: now.since(layers.registry.since).as_secs_f64(),
            },
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
    fn of(standing: &Standing, now: Timestamp) -> Self {
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
            instance: explained.map(|explained| InstanceState::of(&explained, now)),
        }
    }
}
