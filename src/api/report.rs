//! `POST /report`: the outcomes of requests.
//!
//! The body is one report or a list of reports; each is accepted or rejected on its own. This file
//! checks the form of a report, and the core decides whether the report counts. An unknown field
//! makes a report invalid, so that a misspelt `latency_ms` is not ignored silently.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body;
use super::error::ApiError;
use super::query;
use super::state::Api;
use crate::balancer::{Directory, Outcome, ReportError};

/// The most reports in one request.
const MAX_REPORTS: usize = 1_000;
/// The most bytes in one request: enough for [`MAX_REPORTS`] with names of ordinary length.
const MAX_BYTES: usize = 1 << 20;
/// A larger latency is a mistake, such as microseconds or a point in time.
const MAX_LATENCY_MS: f64 = 3_600_000.0;

/// The longest `retry_after`, in seconds: a day. The open time of a breaker bounds its effect.
const MAX_RETRY_AFTER: f64 = 86_400.0;

/// A report as it stands in the body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReport {
    lease: Option<String>,
    service: Option<String>,
    instance: Option<String>,
    outcome: RawOutcome,
    latency_ms: Option<f64>,
    /// Seconds, with `rejected` only.
    retry_after: Option<f64>,
}

/// The outcome as it stands in the body.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawOutcome {
    Success,
    Failure,
    Timeout,
    ConnectError,
    Rejected,
    Cancelled,
    /// The request is still running: renews the lease.
    Open,
}

/// A valid report.
enum Report {
    Ended {
        subject: Subject,
        outcome: Outcome,
        latency: Option<Duration>,
    },
    Open {
        lease: String,
    },
}

/// What a report is about.
enum Subject {
    Lease(String),
    Instance { service: String, instance: String },
}

/// The answer: how many reports were accepted, and which were rejected.
#[derive(Serialize)]
pub(super) struct Summary {
    accepted: usize,
    rejected: Vec<Rejected>,
}

#[derive(Serialize)]
struct Rejected {
    index: usize,
    code: &'static str,
}

/// The route.
pub(super) async fn report(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Summary>, ApiError> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return Err(ApiError::MethodNotAllowed { allow: "POST" });
    }
    query::no_parameters(&head.uri)?;
    if !body::is_any_json(&head.headers) {
        return Err(ApiError::UnsupportedMediaType);
    }
    let body = body::read(body, MAX_BYTES).await?;
    let mut summary = Summary {
        accepted: 0,
        rejected: Vec::new(),
    };
    if let Some(raw) = single_report(&body) {
        summary.record(0, accept(&api, raw.validate()));
    } else {
        for (index, item) in items(&body)?.into_iter().enumerate() {
            summary.record(index, accept(&api, parse(item.get())));
        }
    }
    Ok(Json(summary))
}

/// Hands a valid report to the core, and counts an invalid one.
fn accept(api: &Api, report: Option<Report>) -> Result<(), &'static str> {
    match report {
        Some(report) => report.apply(&api.directory).map_err(code),
        None => {
            api.metrics.count_invalid_report();
            Err("invalid")
        }
    }
}

impl Summary {
    fn record(&mut self, index: usize, result: Result<(), &'static str>) {
        match result {
            Ok(()) => self.accepted += 1,
            Err(code) => self.rejected.push(Rejected { index, code }),
        }
    }
}

/// Reads a body that is one valid report, as most bodies are, in one pass. [`items`] splits all
/// other bodies.
fn single_report(body: &[u8]) -> Option<RawReport> {
    if body.first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// The reports of a body, not parsed yet: an invalid report must not invalidate the others.
fn items(body: &[u8]) -> Result<Vec<&RawValue>, ApiError> {
    let broken = |error: serde_json::Error| ApiError::InvalidRequest(format!("the body is not JSON: {error}"));
    let whole: &RawValue = serde_json::from_slice(body).map_err(broken)?;
    match whole.get().as_bytes().first() {
        Some(b'{') => Ok(vec![whole]),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(whole.get()).map_err(broken)?;
            if items.len() > MAX_REPORTS {
                let detail = format!("{} reports: at most {MAX_REPORTS} at a time", items.len());
                return Err(ApiError::TooLarge(detail));
            }
            Ok(items)
        }
        _ => Err(ApiError::InvalidRequest(
            "expected one report (an object) or a list of reports".to_owned(),
        )),
    }
}

fn parse(item: &str) -> Option<Report> {
    serde_json::from_str::<RawReport>(item).ok()?.validate()
}

impl RawReport {
    /// `None` if the report is invalid.
    fn validate(self) -> Option<Report> {
        let subject = match (self.lease, self.service, self.instance) {
            (Some(lease), None, None) => Subject::Lease(lease),
            (None, Some(service), Some(instance)) => Subject::Instance { service, instance },
            _ => return None,
        };
        let latency = match self.latency_ms {
            Some(latency) if !(0.0..=MAX_LATENCY_MS).contains(&latency) => return None,
            latency => latency.map(|latency| Duration::from_secs_f64(latency / 1e3)),
        };
        if let Some(seconds) = self.retry_after
            && !(matches!(self.outcome, RawOutcome::Rejected) && (0.0..=MAX_RETRY_AFTER).contains(&seconds))
        {
            return None;
        }
        let outcome = match self.outcome {
            RawOutcome::Success => Outcome::Success,
            RawOutcome::Failure => Outcome::Failure,
            RawOutcome::Timeout => Outcome::Timeout,
            RawOutcome::ConnectError => Outcome::ConnectError,
            RawOutcome::Rejected => match self.retry_after {
                None => Outcome::Rejected,
                Some(seconds) => Outcome::RejectedFor(Duration::from_secs_f64(seconds)),
            },
            RawOutcome::Cancelled => Outcome::Cancelled,
            RawOutcome::Open => {
                let Subject::Lease(lease) = subject else { return None };
                return Some(Report::Open { lease });
            }
        };
        Some(Report::Ended {
            subject,
            outcome,
            latency,
        })
    }
}

impl Report {
    /// Reports the outcome to the core, or renews the lease.
    fn apply(&self, directory: &Directory) -> Result<(), ReportError> {
        match self {
            Self::Open { lease } => directory.renew(directory.read_lease(lease)?),
            Self::Ended {
                subject: Subject::Lease(lease),
                outcome,
                latency,
            } => directory.report(directory.read_lease(lease)?, *outcome, *latency),
            Self::Ended {
                subject: Subject::Instance { service, instance },
                outcome,
                latency,
            } => directory.report_without_lease(service, instance, *outcome, *latency),
        }
    }
}

fn code(error: ReportError) -> &'static str {
    match error {
        ReportError::UnknownLease => "unknown_lease",
        ReportError::UnknownService => "unknown_service",
        ReportError::UnknownInstance => "unknown_instance",
        ReportError::NoCredit => "no_credit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictory_and_out_of_range_reports_are_invalid() {
        let lease = "0123456789abcdef0123456789abcdef";
        let with = |rest: &str| parse(&format!(r#"{{"lease":"{lease}",{rest}}}"#)).is_some();
        for good in [
            r#""outcome":"success","latency_ms":12.5"#,
            r#""outcome":"success""#,
            r#""outcome":"success","latency_ms":null"#,
            r#""outcome":"connect_error","latency_ms":0"#,
            r#""outcome":"rejected","latency_ms":3600000"#,
            r#""outcome":"open""#,
            r#""outcome":"rejected","retry_after":0.5"#,
            r#""outcome":"rejected","retry_after":86400,"latency_ms":1"#,
            r#""outcome":"success","retry_after":null"#,
        ] {
            assert!(with(good), "{good}");
        }
        for bad in [
            r#""latency_ms":1"#,
            r#""outcome":"fine""#,
            r#""outcome":"Success""#,
            r#""outcome":3"#,
            r#""outcome":"success","latency_ms":-0.001"#,
            r#""outcome":"success","latency_ms":3600001"#,
            r#""outcome":"success","latency_ms":1e999"#,
            r#""outcome":"success","latency_ms":"12""#,
            r#""outcome":"success","latency":12"#,
            r#""outcome":"success","retry_after":1"#,
            r#""outcome":"open","retry_after":1"#,
            r#""outcome":"rejected","retry_after":-1"#,
            r#""outcome":"rejected","retry_after":86401"#,
            r#""outcome":"rejected","retry_after":"1""#,
            r#""outcome":"success","outcome":"failure""#,
            r#""outcome":"success","service":"a""#,
            r#""outcome":"success","service":"a","instance":"b""#,
        ] {
            assert!(!with(bad), "{bad}");
        }
        let instance =
            |outcome: &str| parse(&format!(r#"{{"service":"a","instance":"b","outcome":"{outcome}"}}"#)).is_some();
        assert!(instance("timeout"));
        assert!(!instance("open"), "there is nothing to renew");
        for neither in [
            r#"{"outcome":"success"}"#,
            r#"{"service":"a","outcome":"success"}"#,
            "[]",
            "3",
            "null",
        ] {
            assert!(parse(neither).is_none(), "{neither}");
        }
    }

    #[test]
    fn only_a_single_valid_report_is_read_in_one_pass() {
        let read = |body: &str| single_report(body.as_bytes()).is_some();
        assert!(read(r#"{"lease":"x","outcome":"success"} "#));
        for other in [
            "",
            "{",
            "{}",
            r#"[{"lease":"x","outcome":"success"}]"#,
            r#"["x",null,null,"success",null]"#,
            r#"{"lease":"x","outcome":"success"}{}"#,
            r#"{"lease":"x","outcome":"success","more":1}"#,
        ] {
            assert!(!read(other), "{other}");
        }
    }

    #[test]
    fn a_body_is_split_without_parsing_its_reports() {
        let count = |body: &str| items(body.as_bytes()).map(|items| items.len()).ok();
        assert_eq!(count(" {} "), Some(1));
        assert_eq!(count("[]"), Some(0));
        assert_eq!(count(r#"[{"latency_ms":1e999}, 3, "x", {}]"#), Some(4));
        for broken in ["", "{", "[{}", "{} {}", "3", "\"x\"", "{\"latency_ms\":NaN}", "[{},]"] {
            assert_eq!(count(broken), None, "{broken}");
        }
        assert_eq!(count(&format!("[{}]", ["{}"; 1_000].join(","))), Some(1_000));
        let error = items(format!("[{}]", ["{}"; 1_001].join(",")).as_bytes()).unwrap_err();
        assert!(matches!(error, ApiError::TooLarge(_)));
    }
}
