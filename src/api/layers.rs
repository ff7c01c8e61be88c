//! The layers of health and the overrides of an instance, as all answers show them.
//!
//! Times are ages: a state began `since_seconds` ago, and ends in `until_seconds`.

use serde::Serialize;

use crate::balancer::{
    ActiveState, BreakerState, Layers, PassiveState, RegistryStatus, Since, StandingOrder, Timestamp, WeightOrder,
};

/// The state of each layer of health.
#[derive(Serialize)]
pub(super) struct LayersState {
    admin: AdminState,
    registry: LayerState,
    /// Null before the first check.
    active: Option<LayerState>,
    /// Null before enough outcomes were reported.
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

/// The state of one layer, its age, and its reason if the layer makes the instance unavailable or
/// degraded.
#[derive(Serialize)]
struct LayerState {
    state: &'static str,
    since_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl LayerState {
    fn of<T: Copy>(
        layer: Since<T>,
        word: impl Fn(T) -> &'static str,
        reason: impl Fn(T) -> Option<String>,
        now: Timestamp,
    ) -> Self {
        Self {
            state: word(layer.state),
            since_seconds: now.since(layer.since).as_secs_f64(),
            reason: reason(layer.state),
        }
    }
}

#[derive(Serialize)]
struct BreakerLayer {
    #[serde(flatten)]
    layer: LayerState,
    /// The time until trials begin. Left out unless the breaker is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_seconds: Option<f64>,
    /// The ejection cap of the pool keeps the instance in: it is picked although its breaker is
    /// open.
    held_by_cap: bool,
}

impl LayersState {
    pub(super) fn of(layers: &Layers, now: Timestamp) -> Self {
        let order = layers.admin.as_deref().map(|standing| OrderState::of(standing, now));
        let check_failure = |state| match state {
            ActiveState::Up => None,
            ActiveState::Down(failure) => Some(failure.to_string()),
        };
        let degraded_reason = |state| match state {
            PassiveState::Ok => None,
            PassiveState::Degraded(reason) => Some(reason.to_string()),
        };
        let trip_reason = |state: BreakerState| state.because().map(|because| because.to_string());
        let breaker = |layer: Since<BreakerState>| BreakerLayer {
            layer: LayerState::of(layer, BreakerState::as_str, trip_reason, now),
            until_seconds: match layer.state {
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
                .map(|layer| LayerState::of(layer, ActiveState::as_str, check_failure, now)),
            passive: layers
                .passive
                .map(|layer| LayerState::of(layer, PassiveState::as_str, degraded_reason, now)),
            breaker: layers.breaker.map(breaker),
            address_refused: layers.address_refused,
        }
    }
}

/// An override: its author, its reason, its age and the time until it ends.
#[derive(Serialize)]
pub(super) struct OrderState {
    by: String,
    reason: Option<String>,
    since_seconds: f64,
    /// Null if the override ends only when an operator lifts it.
    until_seconds: Option<f64>,
}

impl OrderState {
    pub(super) fn of(standing: &StandingOrder, now: Timestamp) -> Self {
        Self {
            by: standing.order().operator().to_owned(),
            reason: standing.order().reason().map(str::to_owned),
            since_seconds: now.since(standing.since()).as_secs_f64(),
            until_seconds: standing.until().map(|until| until.since(now).as_secs_f64()),
        }
    }
}

/// A weight that an operator has set, and its override.
#[derive(Serialize)]
pub(super) struct OrderedWeight {
    weight: u16,
    #[serde(flatten)]
    order: OrderState,
}

impl OrderedWeight {
    pub(super) fn of(order: &WeightOrder, now: Timestamp) -> Self {
        Self {
            weight: order.weight.get(),
            order: OrderState::of(&order.standing, now),
        }
    }
}
