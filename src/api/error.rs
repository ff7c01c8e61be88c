//! Failures, as RFC 9457 problem documents. The only file that names a failing status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use crate::balancer::{InvalidInstance, PickError, UnknownInstance};

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// No instance: the service is unknown or empty, a source has not synced, or no instance is
    /// available.
    #[error(transparent)]
    Pick(#[from] PickError),
    /// The name of the service or the instance in the path is invalid.
    #[error(transparent)]
    Name(#[from] InvalidInstance),
    /// A parameter, the path or the body has an invalid value.
    #[error("{0}")]
    InvalidRequest(String),
    /// A parameter that the route does not know.
    #[error("parameter {name:?} is unknown here; known are: {known}")]
    UnknownParameter { name: String, known: &'static str },
    /// A path without a route.
    #[error("no such route; see /v1/services, /v1/pick/SERVICE, /healthz, /readyz, /metrics")]
    NotFound,
    /// A method that the route does not allow.
    #[error("this route answers {allow} only")]
    MethodNotAllowed { allow: &'static str },
    /// A body, or a list in it, that is larger than the route allows.
    #[error("{0}")]
    TooLarge(String),
    /// A body that did not arrive within the time limit.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// A body that is not declared as JSON.
    #[error("expected a body of Content-Type application/json")]
    UnsupportedMediaType,
    /// The service has no instance with this id.
    #[error(transparent)]
    Instance(#[from] UnknownInstance),
    /// No source of this name is watched.
    #[error("source {0:?} is not watched here; GET /readyz lists the sources")]
    UnknownSource(String),
    /// The client may not change overrides.
    #[error("{0}")]
    Forbidden(&'static str),
    /// A Host header that is not accepted: a web page of another origin may have sent the request.
    #[error("host {0:?} is not served here; list it in api.allowed_hosts")]
    Misdirected(String),
    /// Required sources have not synced, or the agent is shutting down.
    #[error("{detail}")]
    NotReady { detail: String, sources: Value },
    /// A defect of pickd.
    #[error("internal error; the log says more")]
    Internal,
}

/// The problem document. `code` is stable.
#[derive(Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sources: Option<Value>,
}

/// Seconds after which a retry may succeed.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Pick(PickError::NotSynced { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "not_synced"),
            Self::Pick(PickError::Unknown { .. }) => (StatusCode::NOT_FOUND, "unknown_service"),
            Self::Pick(PickError::Empty { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "no_instances"),
            Self::Pick(PickError::UnknownPort { .. }) => (StatusCode::NOT_FOUND, "unknown_port"),
            Self::Pick(PickError::NoneAvailable { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "none_available"),
            Self::Name(_) | Self::InvalidRequest(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
            Self::UnknownParameter { .. } => (StatusCode::BAD_REQUEST, "unknown_parameter"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            Self::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::Instance(_) => (StatusCode::NOT_FOUND, "unknown_instance"),
            Self::UnknownSource(_) => (StatusCode::NOT_FOUND, "unknown_source"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::Misdirected(_) => (StatusCode::MISDIRECTED_REQUEST, "misdirected_request"),
            Self::NotReady { .. } => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let service = match &self {
            Self::Pick(
                PickError::NotSynced { service, .. }
                | PickError::Unknown { service }
                | PickError::Empty { service }
                | PickError::UnknownPort { service, .. }
                | PickError::NoneAvailable { service, .. },
            )
            | Self::Instance(UnknownInstance { service, .. }) => Some(service.to_string()),
            _ => None,
        };
        let detail = self.to_string();
        let allow = if let Self::MethodNotAllowed { allow } = self {
            Some(allow)
        } else {
            None
        };
        let sources = if let Self::NotReady { sources, .. } = self {
            Some(sources)
        } else {
            None
        };
        let title = status.canonical_reason().unwrap_or("Error");
        let problem = Problem {
            r#type: "about:blank",
            title,
            status: status.as_u16(),
            detail,
            code,
            service,
            sources,
        };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::REQUEST_TIMEOUT {
            // The rest of the body would be read as the next request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(allow) = allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
