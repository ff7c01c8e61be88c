//! One registered instance of a view, with the live state of its address.

use std::sync::Arc;

use super::config::LoadBalancerConfig;
use super::health::ejection::Admission;
use super::health::layers::{Layers, UnavailableReason};
use super::health::slow_start;
use super::instance::{HealthStatus, ServiceInstance, Tier};
use super::live::Live;
use super::overrides::WeightOrder;
use super::render::Bodies;
use super::share::Factors;

/// One registered instance in a view.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) instance: Arc<ServiceInstance>,
    pub(crate) status: HealthStatus,
    /// The tier of the instance, for the passes over all members.
    pub(crate) tier: Tier,
    /// Share of picks in 1/16, while the member is admitted; 0 = never picked.
    pub(crate) units: u32,
    /// The admission of the member's address when the view was made.
    pub(crate) admission: Admission,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) live: Arc<Live>,
    pub(crate) state: Arc<MemberState>,
}

/// Health layers of an instance, and the operator's weight. Stored apart from the member, because
/// picks do not read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberState {
    pub(crate) layers: Layers,
    pub(crate) weight: Option<WeightOrder>,
}

impl Member {
    pub(crate) fn instance(&self) -> &ServiceInstance {
        &self.instance
    }

    /// Whether a pick may choose the member, as of the moment when the view was made.
    pub(crate) fn can_be_picked(&self) -> bool {
        self.units > 0 && self.admission != Admission::Out
    }

    /// The weight in force: the operator's weight, else the registered one.
    pub(crate) fn weight_in_force(&self) -> u16 {
        let order = self.state.weight.as_ref();
        order.map_or(self.instance.weight(), |order| order.weight).get()
    }

    /// The health layers at this moment.
    pub(crate) fn layers_now(&self) -> Layers {
        let layers = self.state.layers.clone();
        match self.live.health() {
            Some(health) => health.add_to(layers),
            None => layers,
        }
    }
}

/// A candidate: the data of a member that a pick needs, close together.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) member: u32,
    /// Share of picks in 1/16, above zero.
    pub(crate) units: u32,
    pub(crate) live: Arc<Live>,
}

/// Why a member cannot be picked: the health layers that take the member out, and a weight of 0.
pub(crate) fn unavailable_reasons(
    member: &Member,
    layers: &Layers,
    config: &LoadBalancerConfig,
) -> Vec<UnavailableReason> {
    let mut unavailable_reasons: Vec<_> = layers.unavailable_reasons().collect();
    let order = member.state.weight.as_ref().map(|order| order.weight);
    if member.weight_in_force() == 0 {
        unavailable_reasons.push(match order {
            Some(_) => UnavailableReason::OverrideWeightZero,
            None => UnavailableReason::WeightZero,
        });
    } else if Factors::of(&member.instance, layers, order, 1.0, slow_start::STEPS, config).units(config) == 0 {
        unavailable_reasons.push(UnavailableReason::DegradedWeightZero);
    }
    unavailable_reasons
}
