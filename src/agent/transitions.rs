//! One log line for each health transition, and for each override that ended by itself.

use crate::balancer::{
    Ended, EndedBecause, InstanceId, MeasuredBy, Override, PassiveState, ServiceName, Transition, Transitioned,
};

/// Logs a health transition. A transition that an operator may have to act on is a warning.
pub(super) fn log_health(service: &ServiceName, transition: &Transition) {
    let ids: Vec<&str> = transition.instances.iter().map(InstanceId::as_str).collect();
    let instance = ids.join(",");
    match transition.what {
        Transitioned::Up { first: true } => tracing::debug!(%service, instance, "checks pass"),
        Transitioned::Up { first: false } => tracing::info!(%service, instance, "checks pass again, slow start"),
        Transitioned::Down(reason) => tracing::warn!(%service, instance, %reason, "checks fail, taken out"),
        Transitioned::Graded {
            grade: PassiveState::Ok,
            first: true,
        } => tracing::debug!(%service, instance, "outcomes are good"),
        Transitioned::Graded {
            grade: PassiveState::Ok,
            first: false,
        } => tracing::info!(%service, instance, "outcomes are good again, no longer degraded"),
        Transitioned::Graded {
            grade: PassiveState::Degraded(reason),
            ..
        } => tracing::warn!(%service, instance, %reason, "degraded, picked less often"),
        Transitioned::Opened {
            because,
            open_for,
            held_by_cap: false,
        } => tracing::warn!(%service, instance, reason = %because, ?open_for, "breaker opened, taken out"),
        Transitioned::Opened {
            because,
            open_for,
            held_by_cap: true,
        } => {
            let message = "breaker opened, still picked because of max_ejection";
            tracing::warn!(%service, instance, reason = %because, ?open_for, "{message}");
        }
        Transitioned::HalfOpened => tracing::info!(%service, instance, "breaker half open, waiting for a trial"),
        Transitioned::Closed(because) => {
            tracing::info!(%service, instance, reason = %because, "breaker closed, slow start");
        }
        Transitioned::PanicBegan { usable, eligible } => {
            tracing::warn!(%service, usable, eligible, "too few instances are usable, picking from all of them");
        }
        Transitioned::PanicEnded => tracing::info!(%service, "enough instances are usable again"),
        Transitioned::FailOpenBegan { instances } => {
            tracing::warn!(%service, instances, "every instance is critical, picking from critical ones: fail_open");
        }
        Transitioned::FailOpenEnded => tracing::info!(%service, "no longer picking from critical instances"),
        Transitioned::Flapping { changes } => {
            tracing::warn!(%service, instance, changes, "registration flaps, each return is a slow start");
        }
        Transitioned::Adjusted {
            before,
            now,
            relative_score,
            measured_by,
        } => {
            let relative_score = relative_score.map(|score| score.get());
            let measured_by = measured_by.map(MeasuredBy::as_str);
            let (before, now) = (before.get(), now.get());
            tracing::info!(%service, instance, before, now, relative_score, measured_by, "adaptive weight adjusted");
        }
        Transitioned::TierChanged { before, now } if before < now => {
            let (rank, priority) = (now.rank(), now.priority());
            tracing::warn!(%service, rank, priority, "no instance of the tier can be picked, the next tier is in turn");
        }
        Transitioned::TierChanged { now, .. } => {
            let (rank, priority) = (now.rank(), now.priority());
            tracing::info!(%service, rank, priority, "an earlier tier can be picked again");
        }
    }
}

/// Logs an override that ended by itself.
pub(super) fn log_ended_override(service: &ServiceName, ended: &Ended) {
    let (instance, by, reason) = (
        &ended.id,
        ended.standing.order().operator(),
        ended.standing.order().reason(),
    );
    let (what, weight) = match ended.what {
        Override::Drain => ("drain", None),
        Override::Weight(weight) => ("weight", Some(weight.get())),
    };
    let message = match ended.because {
        EndedBecause::Expired => "override expired",
        EndedBecause::InstanceGone => "override removed, its instance was not registered for a day",
    };
    tracing::info!(%service, %instance, r#override = what, weight, by, reason, "{message}");
}
