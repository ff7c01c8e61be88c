//! Every series, in one table, read from the core at each scrape.
//!
//! Nothing here is on the path of a pick: counters are kept where things happen, and added up
//! here. A service or instance that is gone has no series any more. A name that no source lists
//! never had a series.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus::core::Collector;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType, Summary};
use prometheus::{Encoder, Histogram, HistogramOpts, TextEncoder};

use crate::balancer::{
    BreakerState, Directory, HealthStatus, InstanceId, InstanceStatistics, LoadBalancer, SourceStatus, Statistics,
    Timestamp,
};

/// One family of series.
struct Series {
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    help: &'static str,
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Series {
    Series {
        name,
        kind: MetricType::GAUGE,
        labels,
        help,
    }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Series {
    Series {
        name,
        kind: MetricType::COUNTER,
        labels,
        help,
    }
}

const fn summary(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Series {
    Series {
        name,
        kind: MetricType::SUMMARY,
        labels,
        help,
    }
}

const BUILD_INFO: Series = gauge(
    "pickd_build_info",
    &["version"],
    "Always 1; the version is in the label.",
);
const READY: Series = gauge("pickd_ready", &[], "Whether /readyz answers 200.");
const PICKS: Series = counter(
    "pickd_picks_total",
    &["service", "result"],
    "Picks by result: ok, panic (answered from a pool with too few usable instances), fail_open (answered from a pool of critical instances), or the error code. Names that no source lists count under service \"(unknown)\".",
);
const POOL_INSTANCES: Series = gauge(
    "pickd_pool_instances",
    &["service", "status"],
    "Registered instances by derived status.",
);
const POOL_AVAILABLE: Series = gauge(
    "pickd_pool_available_instances",
    SERVICE,
    "Registered instances that can be picked without panic.",
);
const POOL_BREAKERS: Series = gauge(
    "pickd_pool_breakers",
    &["service", "state"],
    "Instances by the state of their circuit breaker: closed, half_open, open; those without an outcome so far are in none.",
);
const OUTCOMES: Series = counter(
    "pickd_outcomes_total",
    &["service", "result"],
    "Outcomes reported, by result: success, failure.",
);
const RESPONSE: Series = summary("pickd_response_seconds", SERVICE, "Response times reported.");
const POOL_PANIC: Series = gauge(
    "pickd_pool_panic",
    SERVICE,
    "Whether so few instances are usable that instances taken out by local health are candidates, too.",
);
const POOL_FAIL_OPEN: Series = gauge(
    "pickd_pool_fail_open",
    SERVICE,
    "Whether critical instances are candidates, because the registry calls every instance critical and fail_open is set.",
);
const POOL_TIER: Series = gauge(
    "pickd_pool_tier",
    SERVICE,
    "Place of the tier in turn, by priority and datacenter; 0 is the first; absent while no instance can be picked.",
);
const POOL_FLAPPING: Series = gauge(
    "pickd_pool_flapping_instances",
    SERVICE,
    "Registered instances whose registration changed more than five times within a minute.",
);
const ADJUSTMENTS: Series = counter(
    "pickd_adaptive_adjustments_total",
    &["service", "direction"],
    "Changes that adaptive weights made to the factor of an address, by direction: up, down.",
);
const HEALTH_CHECKS: Series = counter(
    "pickd_health_checks_total",
    &["service", "result"],
    "Active checks by result: pass, fail.",
);
const BREAKER_STATE: Series = gauge(
    "pickd_breaker_state",
    ENDPOINT,
    "State of the circuit breaker: 0 closed, 1 half open, 2 open; absent before the first outcome.",
);
const INSTANCE_PICKS: Series = counter(
    "pickd_instance_picks_total",
    ENDPOINT,
    "Picks of the instance's address.",
);
const INSTANCE_FAILURES: Series = counter(
    "pickd_instance_failures_total",
    ENDPOINT,
    "Outcomes reported as failed for the instance's address.",
);
const INSTANCE_IN_FLIGHT: Series = gauge(
    "pickd_instance_in_flight",
    ENDPOINT,
    "Requests in flight, as far as callers report when they end.",
);
const INSTANCE_WEIGHT: Series = gauge(
    "pickd_instance_weight",
    ENDPOINT,
    "Effective weight: registered weight times all factors; 0 is never picked.",
);
const INSTANCE_ADAPTIVE: Series = gauge(
    "pickd_instance_adaptive_factor",
    ENDPOINT,
    "Factor of adaptive weights on the weight of the instance; absent while they do not apply.",
);
const INSTANCE_RESPONSE: Series = gauge(
    "pickd_instance_response_seconds",
    ENDPOINT,
    "Peak EWMA of reported response times; absent before the first.",
);
const OVERRIDES: Series = gauge(
    "pickd_overrides",
    &["service", "kind"],
    "Overrides by operators in force, by kind: drain, weight.",
);
const LEASES_ACTIVE: Series = gauge("pickd_leases_active", &[], "Leases open now, over all services.");
const LEASES_CAPACITY: Series = gauge(
    "pickd_leases_capacity",
    &[],
    "Leases that memory is held for: the most that were open at a time, and expired leases that are still known.",
);
const LEASES_LIMIT: Series = gauge(
    "pickd_leases_limit",
    &[],
    "Leases that may be open at a time, over all services.",
);
const LEASES_EXPIRED: Series = counter(
    "pickd_leases_expired_total",
    SERVICE,
    "Leases that expired before a caller reported how the request ended.",
);
const LEASES_DENIED: Series = counter(
    "pickd_leases_denied_total",
    SERVICE,
    "Picks that got no lease, because too many were open.",
);
const SESSIONS: Series = gauge(
    "pickd_sessions",
    SERVICE,
    "Sticky sessions remembered now, of services with sticky_sessions.",
);
const SESSIONS_MOVED: Series = counter(
    "pickd_sessions_moved_total",
    SERVICE,
    "Sticky sessions that moved, because their instance could not be picked any more.",
);
const SESSIONS_EVICTED: Series = counter(
    "pickd_sessions_evicted_total",
    SERVICE,
    "Sticky sessions that were forgotten before their time, because of max_sessions.",
);
const SESSION_TOKENS_REJECTED: Series = counter(
    "pickd_session_tokens_rejected_total",
    SERVICE,
    "Session tokens that the session key of this agent did not sign.",
);
const RETRIES: Series = counter(
    "pickd_retries_total",
    &["service", "result"],
    "Retries of calls: allowed, or denied because the budget was spent or no attempt was left.",
);
const REPORTS: Series = counter(
    "pickd_reports_total",
    &["service", "result"],
    "Reports by result: accepted, or the code of the refusal. Reports without a known service count under service \"(unknown)\".",
);
const SERIES_DROPPED: Series = gauge(
    "pickd_series_dropped",
    &[],
    "Instances without per-instance series, because there are more than the limit.",
);
const SOURCE_UP: Series = gauge(
    "pickd_source_up",
    SOURCE,
    "Whether the source's last answer was a good one.",
);
const SOURCE_SYNCED: Series = gauge(
    "pickd_source_synced",
    SOURCE,
    "Whether the source has sent everything once.",
);
const SOURCE_AGE: Series = gauge(
    "pickd_source_age_seconds",
    SOURCE,
    "Seconds since the source's last good answer; before the first, since the agent's start.",
);
const SOURCE_UPDATES: Series = counter(
    "pickd_source_updates_total",
    SOURCE,
    "Updates received from the source.",
);
const SOURCE_ERRORS: Series = counter(
    "pickd_source_errors_total",
    &["source", "reason"],
    "Errors of the source, and registrations it skipped.",
);
const SOURCE_FAILING: Series = gauge(
    "pickd_source_failing_services",
    SOURCE,
    "Services for which the source gives no usable answer, while it answers otherwise.",
);
const SOURCE_SERVICE_FAILING: Series = gauge(
    "pickd_source_service_failing",
    &["source", "service", "reason"],
    "Always 1, for each service (at most 100) for which the source gives no usable answer.",
);
const SOURCE_LONG_POLLS: Series = gauge(
    "pickd_source_long_polls_limit",
    SOURCE,
    "Long polls that may be open at once at present; absent for sources without long polls.",
);
const SOURCE_RATE: Series = gauge(
    "pickd_source_request_rate_limit",
    SOURCE,
    "Requests a second that the source accepts, as learned from its refusals; absent without a limit.",
);
const SOURCE_WAIT: Series = gauge(
    "pickd_source_wait_limit_seconds",
    SOURCE,
    "The longest wait of a long poll, where longer ones are cut on their way; absent without a limit.",
);
const SOURCE_HELD: Series = gauge(
    "pickd_source_held_removals",
    SOURCE,
    "Removals held back, because the registry may have lost its data.",
);
const SOURCE_REMOVALS_HELD: Series = counter(
    "pickd_source_removals_held_total",
    SOURCE,
    "Removals that were held back so far, those of the past included.",
);
const SOURCE_HOLDS_ENDED: Series = counter(
    "pickd_source_holds_ended_total",
    &["source", "reason"],
    "Held removals that are held no longer, by reason: listed (again), refused or unanswered (connections), over (in time), accepted (by an operator).",
);
const SOURCE_RELISTS: Series = counter(
    "pickd_source_relists_total",
    &["source", "reason"],
    "Complete lists read from a source that is watched after a list.",
);
const SOURCE_DRIFT: Series = counter(
    "pickd_source_drift_repaired_total",
    SOURCE,
    "Registrations that had changed without an event of the source's watch, found and corrected by reading everything again.",
);
const RELOAD_SUCCESSFUL: Series = gauge(
    "pickd_config_last_reload_successful",
    &[],
    "Whether the last reload of the configuration was accepted.",
);

const SERVICE: &[&str] = &["service"];
/// The label is not called `instance`: Prometheus sets that one itself, to the address it scrapes.
const ENDPOINT: &[&str] = &["service", "endpoint"];
const SOURCE: &[&str] = &["source"];

/// How many instances get series of their own by default.
pub const INSTANCE_SERIES: usize = 2_000;

/// How many failing services of a source get a series each.
const FAILING_SERVICES: usize = 100;

/// Not a valid name of a service.
const UNKNOWN: &str = "(unknown)";

/// What is measured here, in addition to what is read from the core.
#[derive(Debug)]
pub struct Metrics {
    convergence: Histogram,
    process: prometheus::process_collector::ProcessCollector,
    reload_successful: AtomicBool,
    invalid_reports: AtomicU64,
    instance_series: AtomicU64,
    /// The reasons for which a source can fail, so that each starts at zero.
    error_reasons: Mutex<Vec<&'static str>>,
}

impl Metrics {
    /// Starts without measurements; the configuration counts as loaded.
    ///
    /// # Errors
    ///
    /// When the definition of the histogram is refused, which does not happen in practice.
    pub fn new(error_reasons: impl IntoIterator<Item = &'static str>) -> Result<Self, prometheus::Error> {
        let options = HistogramOpts::new(
            "pickd_convergence_seconds",
            "From reading a registry's answer to publishing the view that it led to.",
        )
        .buckets(vec![
            0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
        ]);
        Ok(Self {
            convergence: Histogram::with_opts(options)?,
            process: prometheus::process_collector::ProcessCollector::for_self(),
            reload_successful: AtomicBool::new(true),
            invalid_reports: AtomicU64::new(0),
            instance_series: AtomicU64::new(INSTANCE_SERIES as u64),
            error_reasons: Mutex::new(error_reasons.into_iter().collect()),
        })
    }

    /// Records how long it took from reading an answer to publishing its view.
    pub fn observe_convergence(&self, took: std::time::Duration) {
        self.convergence.observe(took.as_secs_f64());
    }

    /// Records whether the last reload was accepted.
    pub fn set_reload_successful(&self, successful: bool) {
        self.reload_successful.store(successful, Ordering::Relaxed);
    }

    /// Counts a report that could not be understood.
    pub fn count_invalid_report(&self) {
        self.invalid_reports.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets how many instances get series of their own. 0 turns those series off.
    pub fn set_instance_series(&self, most: usize) {
        self.instance_series.store(most as u64, Ordering::Relaxed);
    }

    /// All series as Prometheus text; `ready` is what `/readyz` says.
    ///
    /// # Errors
    ///
    /// When the encoder refuses a family, which would be a defect here.
    pub fn encode(&self, directory: &Directory, ready: bool, now: Timestamp) -> Result<Vec<u8>, prometheus::Error> {
        let mut families = self.process.collect();
        families.extend(self.convergence.collect());
        let mut table = Table::default();
        table.add(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
        table.add(&READY, &[], f64::from(u8::from(ready)));
        table.add(
            &RELOAD_SUCCESSFUL,
            &[],
            f64::from(u8::from(self.reload_successful.load(Ordering::Relaxed))),
        );
        self.add_sources(&mut table, directory, now);
        self.add_services(&mut table, directory);
        families.extend(table.families());
        families.retain(|family| !family.get_metric().is_empty());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }

    fn add_sources(&self, table: &mut Table, directory: &Directory, now: Timestamp) {
        let reasons = self
            .error_reasons
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for status in directory.sources().iter() {
            let source = status.source().as_str();
            let is = |yes: bool| f64::from(u8::from(yes));
            table.add(&SOURCE_UP, &[source], is(status.is_up()));
            table.add(&SOURCE_SYNCED, &[source], is(status.is_synced()));
            table.add(
                &SOURCE_AGE,
                &[source],
                status
                    .age(now)
                    .unwrap_or_else(|| now.since(Timestamp::default()))
                    .as_secs_f64(),
            );
            table.add(&SOURCE_UPDATES, &[source], status.updates() as f64);
            table.add(&SOURCE_HELD, &[source], status.held_removals() as f64);
            table.add(&SOURCE_REMOVALS_HELD, &[source], status.removals_held() as f64);
            for (reason, count) in status.holds_ended() {
                table.add(&SOURCE_HOLDS_ENDED, &[source, reason], count as f64);
            }
            table.add(&SOURCE_DRIFT, &[source], status.drift_repaired() as f64);
            add_limits(table, status);
            for (reason, count) in status.relists() {
                table.add(&SOURCE_RELISTS, &[source, reason], count as f64);
            }
            let errors = status.errors();
            for reason in &reasons {
                table.add(
                    &SOURCE_ERRORS,
                    &[source, reason],
                    errors.get(reason).copied().unwrap_or_default() as f64,
                );
            }
        }
    }

    fn add_lease_totals(&self, table: &mut Table, directory: &Directory) {
        let (unknown_lease, unknown_service) = directory.unknown_reports();
        let invalid = self.invalid_reports.load(Ordering::Relaxed);
        table.add(&LEASES_ACTIVE, &[], directory.open_leases() as f64);
        table.add(&LEASES_LIMIT, &[], directory.lease_limit() as f64);
        table.add(&LEASES_CAPACITY, &[], directory.lease_capacity() as f64);
        for (result, count) in [
            ("unknown_lease", unknown_lease),
            ("unknown_service", unknown_service),
            ("invalid", invalid),
        ] {
            table.add(&REPORTS, &[UNKNOWN, result], count as f64);
        }
    }

    fn add_services(&self, table: &mut Table, directory: &Directory) {
        let (unknown, not_synced) = directory.unknown_picks();
        table.add(&PICKS, &[UNKNOWN, "unknown_service"], unknown as f64);
        table.add(&PICKS, &[UNKNOWN, "not_synced"], not_synced as f64);
        self.add_lease_totals(table, directory);
        let mut left = self.instance_series.load(Ordering::Relaxed) as usize;
        let turned_off = left == 0;
        let mut dropped = 0;
        for balancer in directory.services() {
            let statistics = balancer.statistics();
            add_service(table, &balancer, &statistics);
            add_overrides(table, &balancer);
            add_leases(table, &balancer);
            for (id, instance) in &statistics.instances {
                match left.checked_sub(1) {
                    Some(rest) => {
                        left = rest;
                        add_instance(table, balancer.service().as_str(), id, instance);
                    }
                    None => dropped += 1,
                }
            }
        }
        table.add(&SERIES_DROPPED, &[], if turned_off { 0.0 } else { f64::from(dropped) });
    }
}

fn add_limits(table: &mut Table, status: &SourceStatus) {
    let source = status.source().as_str();
    let failing = status.failing_services();
    table.add(&SOURCE_FAILING, &[source], failing.len() as f64);
    for (service, failure) in failing.iter().take(FAILING_SERVICES) {
        table.add(
            &SOURCE_SERVICE_FAILING,
            &[source, service.as_str(), failure.reason],
            1.0,
        );
    }
    let limits = status.limits();
    for (series, value) in [
        (&SOURCE_LONG_POLLS, limits.long_polls.map(|polls| polls as f64)),
        (&SOURCE_RATE, limits.requests_per_second),
        (&SOURCE_WAIT, limits.wait.map(|wait| wait.as_secs_f64())),
    ] {
        if let Some(value) = value {
            table.add(series, &[source], value);
        }
    }
}

fn add_leases(table: &mut Table, balancer: &LoadBalancer) {
    let service = balancer.service().as_str();
    let (leases, reports) = (balancer.leases(), balancer.reports());
    table.add(&LEASES_EXPIRED, &[service], leases.expired as f64);
    table.add(&LEASES_DENIED, &[service], leases.denied as f64);
    if let Some(sessions) = balancer.sessions() {
        table.add(&SESSIONS, &[service], sessions.open as f64);
        table.add(&SESSIONS_MOVED, &[service], sessions.moved as f64);
        table.add(&SESSIONS_EVICTED, &[service], sessions.evicted as f64);
        table.add(&SESSION_TOKENS_REJECTED, &[service], sessions.rejected_tokens as f64);
    }
    let retries = balancer.retries();
    for (result, count) in [("allowed", retries.allowed), ("denied", retries.denied)] {
        table.add(&RETRIES, &[service, result], count as f64);
    }
    for (result, count) in [
        ("accepted", reports.accepted),
        ("unknown_instance", reports.unknown_instance),
        ("no_credit", reports.no_credit),
    ] {
        table.add(&REPORTS, &[service, result], count as f64);
    }
}

fn add_service(table: &mut Table, balancer: &LoadBalancer, statistics: &Statistics) {
    let service = balancer.service().as_str();
    let refusals = balancer.refusals();
    let panicked = balancer.panic_picks();
    let failed_open = balancer.fail_open_picks();
    let checks = balancer.checks();
    table.add(&POOL_FAIL_OPEN, &[service], f64::from(u8::from(balancer.fails_open())));
    if let Some(place) = balancer.tier_in_turn() {
        table.add(&POOL_TIER, &[service], place as f64);
    }
    table.add(&POOL_PANIC, &[service], f64::from(u8::from(balancer.panics())));
    table.add(&HEALTH_CHECKS, &[service, "pass"], checks.passed as f64);
    table.add(&HEALTH_CHECKS, &[service, "fail"], checks.failed as f64);
    let adjusted = balancer.adjustment_counts();
    for (direction, count) in [("up", adjusted.up), ("down", adjusted.down)] {
        table.add(&ADJUSTMENTS, &[service, direction], count as f64);
    }
    for (result, count) in [
        ("ok", statistics.total_requests.saturating_sub(panicked + failed_open)),
        ("panic", panicked),
        ("fail_open", failed_open),
        ("not_synced", refusals.not_synced),
        ("no_instances", refusals.no_instances),
        ("unknown_port", refusals.unknown_port),
        ("none_available", refusals.none_available),
    ] {
        table.add(&PICKS, &[service, result], count as f64);
    }
    for status in HealthStatus::ALL {
        let count = statistics
            .instances
            .values()
            .filter(|instance| instance.status == status)
            .count();
        table.add(&POOL_INSTANCES, &[service, status.as_str()], count as f64);
    }
    let flapping = statistics
        .instances
        .values()
        .filter(|instance| instance.flapping)
        .count();
    table.add(&POOL_FLAPPING, &[service], flapping as f64);
    table.add(&POOL_AVAILABLE, &[service], statistics.available_instances as f64);
    let mut breakers = [("closed", 0_u32), ("half_open", 0), ("open", 0)];
    for breaker in statistics
        .instances
        .values()
        .filter_map(|instance| instance.layers.breaker)
    {
        breakers[breaker_state(breaker.state)].1 += 1;
    }
    for (state, count) in breakers {
        table.add(&POOL_BREAKERS, &[service, state], f64::from(count));
    }
    let succeeded = statistics.reported_requests.saturating_sub(statistics.failed_requests);
    table.add(&OUTCOMES, &[service, "success"], succeeded as f64);
    table.add(&OUTCOMES, &[service, "failure"], statistics.failed_requests as f64);
    table.add_summary(
        &RESPONSE,
        &[service],
        statistics.timed_requests,
        statistics.total_response_time.as_secs_f64(),
    );
}

/// The value of `pickd_breaker_state`.
fn breaker_state(state: BreakerState) -> usize {
    match state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen { .. } => 1,
        BreakerState::Open { .. } => 2,
    }
}

fn add_overrides(table: &mut Table, balancer: &LoadBalancer) {
    let (service, counts) = (balancer.service().as_str(), balancer.override_counts());
    table.add(&OVERRIDES, &[service, "drain"], counts.drains as f64);
    table.add(&OVERRIDES, &[service, "weight"], counts.weights as f64);
}

fn add_instance(table: &mut Table, service: &str, id: &InstanceId, instance: &InstanceStatistics) {
    let labels = [service, id.as_str()];
    table.add(&INSTANCE_PICKS, &labels, instance.total_requests as f64);
    table.add(&INSTANCE_FAILURES, &labels, instance.failed_requests as f64);
    table.add(&INSTANCE_IN_FLIGHT, &labels, f64::from(instance.active_connections));
    table.add(&INSTANCE_WEIGHT, &labels, instance.effective_weight);
    if let Some(factor) = instance.adaptive_factor {
        table.add(&INSTANCE_ADAPTIVE, &labels, factor);
    }
    if let Some(breaker) = instance.layers.breaker {
        table.add(&BREAKER_STATE, &labels, breaker_state(breaker.state) as f64);
    }
    if let Some(response) = instance.response_time {
        table.add(&INSTANCE_RESPONSE, &labels, response.as_secs_f64());
    }
}

/// Families that are being built.
#[derive(Default)]
struct Table(BTreeMap<&'static str, MetricFamily>);

impl Table {
    fn add(&mut self, series: &Series, values: &[&str], value: f64) {
        let mut metric = labelled(series, values);
        match series.kind {
            MetricType::COUNTER => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.push(series, metric);
    }

    fn add_summary(&mut self, series: &Series, values: &[&str], count: u64, sum: f64) {
        let mut metric = labelled(series, values);
        let mut summary = Summary::default();
        summary.set_sample_count(count);
        summary.set_sample_sum(sum);
        metric.set_summary(summary);
        self.push(series, metric);
    }

    fn push(&mut self, series: &Series, metric: Metric) {
        let family = self.0.entry(series.name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(series.name.to_owned());
            family.set_help(series.help.to_owned());
            family.set_field_type(series.kind);
            family
        });
        family.mut_metric().push(metric);
    }

    fn families(self) -> impl Iterator<Item = MetricFamily> {
        self.0.into_values()
    }
}

fn labelled(series: &Series, values: &[&str]) -> Metric {
    debug_assert_eq!(series.labels.len(), values.len(), "{}", series.name);
    let mut metric = Metric::default();
    let labels = series.labels.iter().zip(values).map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    });
    metric.set_label(labels.collect());
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::{Context, Environment, ServiceConfigs, ServiceInstance, Source, SourceStatus, Sources};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn directory() -> Directory {
        let status = SourceStatus::new(Source::new("consul"), true, Box::new(|_| true));
        let directory = Directory::new(
            ServiceConfigs::default(),
            Sources::new(vec![Arc::new(status)]),
            Environment::default(),
        );
        let name = "web".parse().unwrap();
        directory.apply(
            &name,
            ["a", "b"].map(|id| Arc::new(ServiceInstance::new(id, "10.0.0.1", 80).unwrap())),
        );
        directory
    }

    fn scrape(metrics: &Metrics, directory: &Directory) -> String {
        String::from_utf8(metrics.encode(directory, false, Timestamp::default()).unwrap()).unwrap()
    }

    #[test]
    fn every_series_starts_at_zero_and_appears_once() {
        let text = scrape(&Metrics::new(["timeout", "denied"]).unwrap(), &directory());
        for line in [
            "pickd_picks_total{result=\"ok\",service=\"web\"} 0",
            "pickd_picks_total{result=\"none_available\",service=\"web\"} 0",
            "pickd_picks_total{result=\"unknown_service\",service=\"(unknown)\"} 0",
            "pickd_leases_active 0",
            "pickd_leases_capacity 0",
            "pickd_leases_expired_total{service=\"web\"} 0",
            "pickd_leases_denied_total{service=\"web\"} 0",
            "pickd_retries_total{result=\"allowed\",service=\"web\"} 0",
            "pickd_retries_total{result=\"denied\",service=\"web\"} 0",
            "pickd_reports_total{result=\"accepted\",service=\"web\"} 0",
            "pickd_reports_total{result=\"no_credit\",service=\"web\"} 0",
            "pickd_reports_total{result=\"unknown_lease\",service=\"(unknown)\"} 0",
            "pickd_reports_total{result=\"invalid\",service=\"(unknown)\"} 0",
            "pickd_adaptive_adjustments_total{direction=\"up\",service=\"web\"} 0",
            "pickd_adaptive_adjustments_total{direction=\"down\",service=\"web\"} 0",
            "pickd_pool_instances{service=\"web\",status=\"unknown\"} 2",
            "pickd_pool_instances{service=\"web\",status=\"healthy\"} 0",
            "pickd_pool_available_instances{service=\"web\"} 2",
            "pickd_pool_breakers{service=\"web\",state=\"half_open\"} 0",
            "pickd_outcomes_total{result=\"success\",service=\"web\"} 0",
            "pickd_outcomes_total{result=\"failure\",service=\"web\"} 0",
            "pickd_response_seconds_count{service=\"web\"} 0",
            "pickd_response_seconds_sum{service=\"web\"} 0",
            "pickd_ready 0",
            "pickd_leases_limit 100000",
            "pickd_source_removals_held_total{source=\"consul\"} 0",
            "pickd_overrides{kind=\"drain\",service=\"web\"} 0",
            "pickd_overrides{kind=\"weight\",service=\"web\"} 0",
            "pickd_source_up{source=\"consul\"} 0",
            "pickd_source_age_seconds{source=\"consul\"} 0",
            "pickd_source_errors_total{reason=\"denied\",source=\"consul\"} 0",
            "pickd_config_last_reload_successful 1",
            "pickd_convergence_seconds_count 0",
        ] {
            let (labelled, value) = line.rsplit_once(' ').unwrap();
            let (name, _) = labelled.split_once('{').unwrap_or((labelled, ""));
            let found = text.lines().any(|found| {
                found.starts_with(name)
                    && found.rsplit_once(' ').is_some_and(|(_, is)| is == value)
                    && labels(found) == labels(line)
            });
            assert!(found, "{line} is missing in\n{text}");
        }
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let distinct: BTreeSet<&str> = samples
            .iter()
            .filter_map(|line| Some(line.rsplit_once(' ')?.0))
            .collect();
        assert_eq!(samples.len(), distinct.len());
    }

    fn labels(line: &str) -> BTreeSet<&str> {
        let inner = line
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
            .map_or("", |(inner, _)| inner);
        inner.split(',').collect()
    }

    #[test]
    fn unknown_names_make_no_series() {
        let directory = directory();
        for name in ["stranger", "web2"] {
            let _refusal = directory.refuse_unknown(name.parse().unwrap());
        }
        let text = scrape(&Metrics::new([]).unwrap(), &directory);
        assert!(!text.contains("stranger") && !text.contains("web2"), "{text}");
        // The source has not synced, which decides the result.
        assert!(
            text.lines()
                .any(|line| line.contains("(unknown)") && line.contains("not_synced") && line.ends_with(" 2"))
        );
    }

    #[test]
    fn instances_beyond_the_limit_are_counted_not_listed() {
        let (metrics, directory) = (Metrics::new([]).unwrap(), directory());
        directory.get("web").unwrap().select_instance(&Context::new()).unwrap();
        metrics.set_instance_series(1);
        let text = scrape(&metrics, &directory);
        assert_eq!(
            text.lines()
                .filter(|line| line.starts_with("pickd_instance_picks_total{"))
                .count(),
            1
        );
        assert!(text.contains("pickd_series_dropped 1"));
        metrics.set_instance_series(0);
        let text = scrape(&metrics, &directory);
        assert!(!text.contains("pickd_instance_") && text.contains("pickd_series_dropped 0"));
    }

    #[test]
    fn a_label_from_outside_cannot_break_the_text() {
        let directory = directory();
        let nasty = ServiceInstance::new("a\"} 1 \\", "10.0.0.9", 80).unwrap();
        directory.apply(&"web".parse().unwrap(), [Arc::new(nasty)]);
        let text = scrape(&Metrics::new([]).unwrap(), &directory);
        assert!(text.contains(r#"endpoint="a\"} 1 \\""#), "{text}");
    }
}
