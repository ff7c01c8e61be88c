//! `POST /report`: how requests went.
//!
//! One report or a list of them, each judged for itself. What a report says is checked here; whether it counts is the core's
//! to decide. A field that is not known makes a report invalid: a misspelt `latency_ms` must not be lost in silence.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::ApiError;
use super::query;
use super::{Api, body};
use crate::balancer::{Directory, Outcome, ReportError};

/// Most reports in one request.
const MOST: usize = 1_000;
/// Most bytes in one request: that many reports of ordinary names.
const MOST_BYTES: usize = 1 << 20;
/// Latencies above this are mistakes, such as microseconds or a point in time.
const MOST_LATENCY_MS: f64 = 3_600_000.0;

/// A report as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    lease: Option<String>,
    service: Option<String>,
    instance: Option<String>,
    outcome: Word,
    latency_ms: Option<f64>,
}

/// Outcomes as written.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Success,
    Failure,
    Timeout,
    ConnectError,
    Rejected,
    Cancelled,
    /// Still running: renews the lease.
    Open,
}

/// A report as meant.
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

/// Whom it is about.
enum Subject {
    Lease(String),
    Instance { service: String, instance: String },
}

/// What became of the reports.
#[derive(Serialize)]
pub(super) struct Judged {
    accepted: usize,
    rejected: Vec<Rejected>,
}

#[derive(Serialize)]
struct Rejected {
    index: usize,
    code: &'static str,
}

/// The route.
pub(super) async fn report(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Judged>, ApiError> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return Err(ApiError::MethodNotAllowed { allow: "POST" });
    }
    query::no_parameters(&head.uri)?;
    if !is_json(&head.headers) {
        return Err(ApiError::UnsupportedMediaType);
    }
    let body = body::read(body, MOST_BYTES).await?;
    let mut judged = Judged {
        accepted: 0,
        rejected: Vec::new(),
    };
    if let Some(written) = alone(&body) {
        judged.note(0, judge(&api, written.meant()));
    } else {
        for (index, item) in items(&body)?.into_iter().enumerate() {
            judged.note(index, judge(&api, parse(item.get())));
        }
    }
    Ok(Json(judged))
}

fn judge(api: &Api, report: Option<Report>) -> Result<(), &'static str> {
    match report {
        Some(report) => report.hand_to(&api.directory).map_err(code),
        None => {
            api.metrics.count_invalid_report();
            Err("invalid")
        }
    }
}

impl Judged {
    fn note(&mut self, index: usize, result: Result<(), &'static str>) {
        match result {
            Ok(()) => self.accepted += 1,
            Err(code) => self.rejected.push(Rejected { index, code }),
        }
    }
}

/// `application/json`, or another type that says it is JSON underneath. A browser sends neither to a stranger without asking.
fn is_json(headers: &HeaderMap) -> bool {
    let written = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if written == "application/json" {
        return true;
    }
    let essence = written
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let Some((kind, subtype)) = essence.split_once('/') else {
        return false;
    };
    (kind == "application" && subtype == "json") || (!kind.is_empty() && subtype.ends_with("+json"))
}

/// One report and nothing else, which is what most bodies are: read in one go. What this cannot read, [`items`] takes apart.
fn alone(body: &[u8]) -> Option<Written> {
    if body.first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// The reports one by one, not looked into yet: a mistake in one must not cost the others.
fn items(body: &[u8]) -> Result<Vec<&RawValue>, ApiError> {
    let broken = |error: serde_json::Error| ApiError::InvalidRequest(format!("the body is not JSON: {error}"));
    let whole: &RawValue = serde_json::from_slice(body).map_err(broken)?;
    match whole.get().as_bytes().first() {
        Some(b'{') => Ok(vec![whole]),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(whole.get()).map_err(broken)?;
            if items.len() > MOST {
                let detail = format!("{} reports: at most {MOST} at a time", items.len());
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
    serde_json::from_str::<Written>(item).ok()?.meant()
}

impl Written {
    /// `None`: it cannot be meant.
    fn meant(self) -> Option<Report> {
        let subject = match (self.lease, self.service, self.instance) {
            (Some(lease), None, None) => Subject::Lease(lease),
            (None, Some(service), Some(instance)) => Subject::Instance { service, instance },
            _ => return None,
        };
        let latency = match self.latency_ms {
            Some(latency) if !(0.0..=MOST_LATENCY_MS).contains(&latency) => return None,
            latency => latency.map(|latency| Duration::from_secs_f64(latency / 1e3)),
        };
        let outcome = match self.outcome {
            Word::Success => Outcome::Success,
            Word::Failure => Outcome::Failure,
            Word::Timeout => Outcome::Timeout,
            Word::ConnectError => Outcome::ConnectError,
            Word::Rejected => Outcome::Rejected,
            Word::Cancelled => Outcome::Cancelled,
            Word::Open => {
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
    fn hand_to(&self, directory: &Directory) -> Result<(), ReportError> {
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
    use axum::http::HeaderValue;

    #[test]
    fn only_what_calls_itself_json_is_taken() {
        let taken = |written: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(written));
            is_json(&headers)
        };
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/vnd.acme+json",
        ] {
            assert!(taken(good), "{good}");
        }
        for bad in [
            "",
            "json",
            "text/plain",
            "application/x-www-form-urlencoded",
            "text/json",
            "+json",
            "/+json",
        ] {
            assert!(!taken(bad), "{bad}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn a_report_that_cannot_be_meant_is_invalid() {
        let lease = "0123456789abcdef0123456789abcdef";
        let with = |rest: &str| parse(&format!(r#"{{"lease":"{lease}",{rest}}}"#)).is_some();
        for good in [
            r#""outcome":"success","latency_ms":12.5"#,
            r#""outcome":"success""#,
            r#""outcome":"success","latency_ms":null"#,
            r#""outcome":"connect_error","latency_ms":0"#,
            r#""outcome":"rejected","latency_ms":3600000"#,
            r#""outcome":"open""#,
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
    fn a_report_alone_is_read_in_one_go_and_anything_else_is_not() {
        let read = |body: &str| alone(body.as_bytes()).is_some();
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
    fn a_body_is_taken_apart_without_looking_into_the_reports() {
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
