//! The bodies of answers. Their fields are a promise to clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::layers::LayersState;
use crate::balancer::{
    Bodies, Described, FailingService, HealthStatus, InstanceStatistics, LISTED, LoadBalancer, Mode, Render,
    ServiceInstance, ServiceName, Source, SourceStatus, Sources, Timestamp,
};

/// How many failing services of a source are listed.
const FAILING_SERVICES: usize = 20;

/// Renders each instance once, as the answers to picks carry it.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonBodies;

/// An instance in the answer to a pick.
#[derive(Serialize)]
struct PickedInstance<'a> {
    service: &'a str,
    id: &'a str,
    host: &'a str,
    port: u16,
    address: &'a str,
    weight: u16,
    status: &'static str,
    tags: &'a [Box<str>],
    metadata: &'a BTreeMap<Box<str>, Box<str>>,
    source: &'static str,
}

impl Render for JsonBodies {
    fn render(&self, described: &Described<'_>) -> Bodies {
        let instance = described.instance;
        let picked = PickedInstance {
            service: described.service.as_str(),
            id: instance.id().as_str(),
            host: instance.host(),
            port: instance.port(),
            address: instance.address().as_str(),
            weight: instance.weight().get(),
            status: described.status.as_str(),
            tags: instance.tags(),
            metadata: instance.metadata(),
            source: instance.source().as_str(),
        };
        // Strings, numbers and maps of strings always serialize.
        let mut json = serde_json::to_vec(&picked).unwrap_or_default();
        json.pop();
        Bodies {
            json: json.into(),
            text: format!("{}\n", instance.address()).into_bytes().into(),
        }
    }
}

/// The body of `GET /services`.
#[derive(Serialize)]
pub(crate) struct ServiceList {
    pub(crate) services: Vec<ServiceSummary>,
    pub(crate) sources: Vec<SourceState>,
}

/// One service in the list of services.
#[derive(Serialize)]
pub(crate) struct ServiceSummary {
    service: String,
    strategy: &'static str,
    total_requests: u64,
    reported_requests: u64,
    failed_requests: u64,
    failure_rate: f64,
    available_instances: usize,
    total_instances: usize,
    /// Whether the pool is in panic mode: too few instances are usable, so all eligible instances
    /// are candidates.
    panic: bool,
    /// Whether the service fails open: the registry calls every instance critical, and the critical
    /// instances are candidates all the same.
    fail_open: bool,
    /// The place of the tier in turn, 0 for the first. Null while no instance can be picked.
    tier_in_turn: Option<usize>,
    /// The names of the sources that list instances of the service.
    sources: Vec<&'static str>,
}

/// The body of `GET /services/{service}`.
#[derive(Serialize)]
pub(crate) struct ServiceDetail {
    #[serde(flatten)]
    summary: ServiceSummary,
    /// The current mode of the strategy.
    mode: &'static str,
    instances: BTreeMap<String, InstanceDetail>,
    /// How many registrations of the service cannot be instances.
    skipped_registrations: usize,
    /// The first of these, by source.
    skipped: Vec<SkippedState>,
    source_states: Vec<SourceState>,
}

/// A registration that cannot be an instance.
#[derive(Serialize)]
struct SkippedState {
    source: &'static str,
    id: String,
    reason: &'static str,
    detail: String,
}

/// One instance of a service.
#[derive(Serialize)]
struct InstanceDetail {
    status: &'static str,
    available: bool,
    /// Why the instance cannot be picked.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    layers: LayersState,
    host: String,
    port: u16,
    address: String,
    weight: u16,
    /// The priority that the registration gives, 0 without one.
    priority: u16,
    /// Whether the tier of the instance is in turn.
    in_turn: bool,
    /// Whether the registration flaps: more than five changes within a minute.
    flapping: bool,
    effective_weight: f64,
    total_requests: u64,
    reported_requests: u64,
    failed_requests: u64,
    consecutive_failures: u32,
    active_connections: u32,
    average_response_time: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_seconds: Option<f64>,
    tags: Vec<String>,
    metadata: BTreeMap<String, String>,
    /// The source of the id and the attributes.
    source: &'static str,
    /// All sources that list the address, by priority.
    sources: Vec<&'static str>,
    /// How long the source has not listed the instance, which is held. Left out for an instance
    /// that a source lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    absent_seconds: Option<f64>,
}

/// The state of a source.
#[derive(Serialize)]
pub(crate) struct SourceState {
    source: &'static str,
    required: bool,
    up: bool,
    synced: bool,
    /// The time since the last good answer of the source. Null before the first good answer.
    age_seconds: Option<f64>,
    /// How long the source has been away. Null while the source is up.
    away_seconds: Option<f64>,
    held_removals: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    /// How many services fail alone. Left out if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    failing_services: Option<usize>,
    /// The first of them by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failing: Vec<ServiceFailure>,
}

/// Why a source gives no usable answer for one service.
#[derive(Serialize)]
pub(crate) struct ServiceFailure {
    source: &'static str,
    service: String,
    reason: &'static str,
    /// The time since the first failure in a row.
    since_seconds: f64,
    error: String,
}

impl ServiceFailure {
    fn of(source: Source, service: &ServiceName, failure: &FailingService, now: Timestamp) -> Self {
        Self {
            source: source.as_str(),
            service: service.to_string(),
            reason: failure.reason,
            since_seconds: seconds(now.since(failure.since)),
            error: failure.detail.clone(),
        }
    }

    /// The failures of one service, by source.
    pub(crate) fn of_service(service: &ServiceName, sources: &Sources, now: Timestamp) -> Vec<Self> {
        let failure = |status: &Arc<SourceStatus>| {
            let failure = status.failing_service(service)?;
            Some(Self::of(status.source(), service, &failure, now))
        };
        sources.iter().filter_map(failure).collect()
    }
}

impl SourceState {
    fn of(status: &SourceStatus, now: Timestamp) -> Self {
        let failing = status.failing_services();
        Self {
            source: status.source().as_str(),
            required: status.is_required(),
            up: status.is_up(),
            synced: status.is_synced(),
            age_seconds: status.age(now).map(seconds),
            away_seconds: status.away(now).map(seconds),
            held_removals: status.held_removals(),
            last_error: status.last_error(),
            failing_services: Some(failing.len()).filter(|count| *count > 0),
            failing: failing
                .iter()
                .take(FAILING_SERVICES)
                .map(|(service, failure)| ServiceFailure::of(status.source(), service, failure, now))
                .collect(),
        }
    }

    pub(crate) fn all(sources: &Sources, now: Timestamp) -> Vec<Self> {
        sources.iter().map(|status| Self::of(status, now)).collect()
    }
}

impl ServiceSummary {
    pub(crate) fn of(balancer: &LoadBalancer) -> Self {
        let statistics = balancer.statistics();
        let mut sources: Vec<_> = balancer
            .instances()
            .iter()
            .flat_map(|(instance, _)| instance.sources())
            .map(Source::as_str)
            .collect();
        sources.sort_unstable();
        sources.dedup();
        Self {
            service: balancer.service().to_string(),
            strategy: statistics.strategy.as_str(),
            total_requests: statistics.total_requests,
            reported_requests: statistics.reported_requests,
            failed_requests: statistics.failed_requests,
            failure_rate: statistics.failure_rate,
            available_instances: statistics.available_instances,
            total_instances: statistics.total_instances,
            panic: balancer.panics(),
            fail_open: balancer.fails_open(),
            tier_in_turn: balancer.tier_in_turn(),
            sources,
        }
    }
}

impl ServiceDetail {
    pub(crate) fn of(balancer: &LoadBalancer, sources: &Sources, now: Timestamp) -> Self {
        let statistics = balancer.statistics();
        let known = balancer.instances();
        let detail = |(instance, _): &(Arc<ServiceInstance>, HealthStatus)| {
            let numbers = statistics.instances.get(instance.id())?;
            Some((instance.id().to_string(), InstanceDetail::of(instance, numbers, now)))
        };
        let mut skipped_registrations = 0;
        let mut skipped = Vec::new();
        for status in sources.iter() {
            let Some(of_source) = status.skipped(balancer.service()) else {
                continue;
            };
            skipped_registrations += of_source.total;
            skipped.extend(of_source.listed.iter().map(|registration| SkippedState {
                source: status.source().as_str(),
                id: registration.id.clone(),
                reason: registration.reason.as_str(),
                detail: registration.detail.clone(),
            }));
        }
        skipped.truncate(LISTED);
        Self {
            summary: ServiceSummary::of(balancer),
            mode: Mode::as_str(balancer.mode()),
            instances: known.iter().filter_map(detail).collect(),
            skipped_registrations,
            skipped,
            source_states: SourceState::all(sources, now),
        }
    }
}

impl InstanceDetail {
    fn of(instance: &ServiceInstance, numbers: &InstanceStatistics, now: Timestamp) -> Self {
        Self {
            status: numbers.status.as_str(),
            available: numbers.available,
            reason: numbers.unavailable_reasons.first().map(|objection| objection.as_str()),
            layers: LayersState::of(&numbers.layers, now),
            host: instance.host().to_owned(),
            port: instance.port(),
            address: instance.address().to_string(),
            weight: instance.weight().get(),
            priority: instance.tier().priority(),
            in_turn: numbers.in_turn,
            flapping: numbers.flapping,
            effective_weight: numbers.effective_weight,
            total_requests: numbers.total_requests,
            reported_requests: numbers.reported_requests,
            failed_requests: numbers.failed_requests,
            consecutive_failures: numbers.consecutive_failures,
            active_connections: numbers.active_connections,
            average_response_time: seconds(numbers.average_response_time),
            response_seconds: numbers.response_time.map(seconds),
            tags: instance.tags().iter().map(ToString::to_string).collect(),
            metadata: instance
                .metadata()
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            source: instance.source().as_str(),
            sources: instance.sources().map(Source::as_str).collect(),
            absent_seconds: absent_seconds(instance, now),
        }
    }
}

/// How long no source has listed the instance. `None` for an instance that a source lists.
pub(crate) fn absent_seconds(instance: &ServiceInstance, now: Timestamp) -> Option<f64> {
    instance.absent_since().map(|since| seconds(now.since(since)))
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::Weight;

    #[test]
    fn a_body_is_json_without_its_closing_brace() {
        let instance = ServiceInstance::new("user-1@node-a", "10.0.1.10", 8080)
            .unwrap()
            .with_weight(Weight::new(2).unwrap())
            .with_tags(["v1"])
            .unwrap()
            .with_metadata([("zone", "us-\"west\"")])
            .with_source(Source::new("consul"));
        let service = "user-service".parse().unwrap();
        let bodies = JsonBodies.render(&Described {
            service: &service,
            instance: &instance,
            status: HealthStatus::Healthy,
        });
        let json = String::from_utf8(bodies.json.to_vec()).unwrap();
        assert_eq!(
            json,
            r#"{"service":"user-service","id":"user-1@node-a","host":"10.0.1.10","port":8080,"address":"10.0.1.10:8080","#
                .to_owned()
                + r#""weight":2,"status":"healthy","tags":["v1"],"metadata":{"zone":"us-\"west\""},"source":"consul""#
        );
        assert_eq!(&*bodies.text, b"10.0.1.10:8080\n");
    }

    #[test]
    fn ipv6_is_bracketed_in_the_address_alone() {
        let instance = ServiceInstance::new("six", "::1", 80).unwrap();
        let service = "user-service".parse().unwrap();
        let bodies = JsonBodies.render(&Described {
            service: &service,
            instance: &instance,
            status: HealthStatus::Unknown,
        });
        let text = String::from_utf8(bodies.json.to_vec()).unwrap();
        assert!(
            text.contains(r#""host":"::1","port":80,"address":"[::1]:80""#),
            "{text}"
        );
    }
}
