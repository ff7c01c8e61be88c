//! One registered instance of a view, with the live state of its address.

use std::sync::Arc;

use super::config::LoadBalancerConfig;
use super::health::ejection::Admission;
use super::health::layers::{Layers, UnavailableReason};
use super::health::slow_start;
use super::instance::{HealthStatus, ServiceInstance};
use super::live::Live;
use super::overrides::WeightOrder;
use super::render::Bodies;
use super::share::Factors;

/// One registered instance in a view.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) instance: Arc<ServiceInstance>,
    pub(crate) status: HealthStatus,
    /// Share of picks in 1/16, while it is admitted; 0 = never picked.
    pub(crate) units: u32,
    /// What picks could do with it when the view was made.
    pub(crate) admission: Admission,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) live: Arc<Live>,
    pub(crate) verdict: Arc<Verdict>,
}

/// What is judged and ordered of one instance. Aside, since picks do not look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) layers: Layers,
    pub(crate) weight: Option<WeightOrder>,
}

impl Member {
    pub(crate) fn instance(&self) -> &ServiceInstance {
        &self.instance
    }

    /// The weight that counts: the operator's, else the registered one.
    pub(crate) fn weight_in_force(&self) -> u16 {
        let order = self.verdict.weight.as_ref();
        order.map_or(self.instance.weight(), |order| order.weight).get()
    }

    /// What the layers say at this moment.
    pub(crate) fn layers_now(&self) -> Layers {
        let said = self.verdict.layers.clone();
        match self.live.judgement() {
            Some(judgement) => judgement.judge(said),
            None => said,
        }
    }
}

/// A candidate: what a pick needs of a member, close together.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) member: u32,
    /// Share of picks in 1/16, above zero.
    pub(crate) units: u32,
    pub(crate) live: Arc<Live>,
}

/// Why a member cannot be picked: the layers that take it out, else a weight of nothing.
pub(crate) fn unavailable_reasons(
    member: &Member,
    layers: &Layers,
    config: &LoadBalancerConfig,
) -> Vec<UnavailableReason> {
    let mut unavailable_reasons: Vec<_> = layers.unavailable_reasons().collect();
    let order = member.verdict.weight.as_ref().map(|order| order.weight);
    if member.weight_in_force() == 0 {
        unavailable_reasons.push(match order {
            Some(_) => UnavailableReason::OverrideWeightZero,
            None => UnavailableReason::WeightZero,
        });
    } else if Factors::of(&member.instance, layers, order, slow_start::STEPS, config).units(config) == 0 {
        unavailable_reasons.push(UnavailableReason::DegradedWeightZero);
    }
    unavailable_reasons
}
