//! What went wrong, as RFC 9457 problem documents. The only file that names a failing status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use crate::balancer::{InvalidInstance, PickError, UnknownInstance};

/// Why a request is not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// No instance: unknown, not synced, empty, none available.
    #[error(transparent)]
    Pick(#[from] PickError),
    /// The service's name in the path is none.
    #[error(transparent)]
    Name(#[from] InvalidInstance),
    /// A parameter, or the path, has a value that cannot be used.
    #[error("{0}")]
    InvalidRequest(String),
    /// A parameter that this route does not know.
    #[error("parameter {name:?} is unknown here; known are: {known}")]
    UnknownParameter { name: String, known: &'static str },
    /// No such route.
    #[error("no such route; see /v1/services, /v1/pick/SERVICE, /healthz, /readyz, /metrics")]
    NotFound,
    /// The route does not know this method.
    #[error("this route answers {allow} only")]
    MethodNotAllowed { allow: &'static str },
    /// A body, or a list in it, that is larger than this route takes.
    #[error("{0}")]
    TooLarge(String),
    /// A body that does not come.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// A body that does not call itself JSON.
    #[error("expected a body of Content-Type application/json")]
    UnsupportedMediaType,
    /// An id that the service does not list.
    #[error(transparent)]
    Instance(#[from] UnknownInstance),
    /// An override by somebody who may not.
    #[error("{0}")]
    Forbidden(&'static str),
    /// A Host header that a browser page of another origin may have sent.
    #[error("host {0:?} is not served here; list it in api.allowed_hosts")]
    Misdirected(String),
    /// Required sources have not synced, or the agent is shutting down.
    #[error("{detail}")]
    NotReady { detail: String, sources: Value },
    /// A defect of ours.
    #[error("internal error; the log says more")]
    Internal,
}

/// The document, with our stable `code`.
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

/// Seconds after which another try may go better.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Pick(PickError::NotSynced { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "not_synced"),
            Self::Pick(PickError::Unknown { .. }) => (StatusCode::NOT_FOUND, "unknown_service"),
            Self::Pick(PickError::Empty { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "no_instances"),
            Self::Pick(PickError::NoneAvailable { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "none_available"),
            Self::Name(_) | Self::InvalidRequest(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
            Self::UnknownParameter { .. } => (StatusCode::BAD_REQUEST, "unknown_parameter"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            Self::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::Instance(_) => (StatusCode::NOT_FOUND, "unknown_instance"),
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
            // What is left of the body would be taken for the next request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(allow) = allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
