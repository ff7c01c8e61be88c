//! What an answer, or its absence, says about the request and about the instance.
//!
//! | attempt | failure | sent again |
//! |---|---|---|
//! | no connection: refused, unreachable, name not resolved, not open within 2 s | `NotSent` | always |
//! | no whole answer in time; 408 | `TimedOut` | if idempotent |
//! | the connection broke; 5xx but 503 | `Failed` | if idempotent |
//! | 429, 503 | `Rejected`, with the time of `Retry-After` | if idempotent |
//! | 3xx, 4xx but 408 and 429; an answer that is too large | `Client` | never |
//! | no connection, because this host lacks files, ports or memory | `Local` | never |

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::HeaderMap;
use serde::de::DeserializeOwned;

use super::retry_after::retry_after;
use crate::balancer::{Attempt, CallError, Failure, InstanceId, PickError, ServiceName};
use crate::http_client::{self, HttpError};
use crate::local_error;

/// How many bytes of the body of an error are kept.
const LONGEST_ERROR: usize = 64 << 10;

/// The answer of an instance.
#[derive(Clone)]
pub struct ServiceAnswer {
    instance: InstanceId,
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl ServiceAnswer {
    /// The instance that answered.
    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// The HTTP status, 100..=599 as a rule.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first header of this name, if its value is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body. The body of an error ends after 64 KiB.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    ///
    /// When the body is not JSON, or not of this type. That is no failure of the call: it is neither
    /// repeated nor counted.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

/// Without headers and body, which may be secrets.
impl fmt::Debug for ServiceAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAnswer")
            .field("instance", &self.instance)
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Why an attempt has no good answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There was no connection to the instance: the request was not sent.
    #[error("no connection")]
    NoConnection(#[source] reqwest::Error),
    /// There was no whole answer within the time of the request.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The connection broke, or the answer does not follow the protocol.
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
    /// The status is not 2xx.
    #[error("status {}", .0.status())]
    Status(Box<ServiceAnswer>),
    /// The answer is larger than allowed.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The instance has an address that no URL can have.
    #[error("the address of the instance is not valid in a URL")]
    Address(#[source] reqwest::Error),
}

/// Why a call of a service has no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServiceError {
    /// No service of this name is registered, and no registry lists it.
    UnknownService {
        /// The first 253 characters of the name.
        name: String,
    },
    /// The service is known, and there was no instance to call.
    NoInstance(PickError),
    /// Every attempt failed.
    Failed {
        /// The service.
        service: ServiceName,
        /// How the last attempt failed.
        failure: Failure<RequestError>,
        /// Every attempt, in order; the last one is that of `failure`.
        tried: Vec<Attempt>,
    },
}

impl ServiceError {
    /// The last answer, if an instance gave any.
    #[must_use]
    pub fn answer(&self) -> Option<&ServiceAnswer> {
        match self {
            Self::Failed { failure, .. } => match failure.error() {
                RequestError::Status(answer) => Some(answer),
                _ => None,
            },
            _ => None,
        }
    }

    /// The HTTP status of the last answer, if an instance gave any.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.answer().map(ServiceAnswer::status)
    }

    /// The attempts, in order.
    #[must_use]
    pub fn tried(&self) -> &[Attempt] {
        match self {
            Self::UnknownService { .. } | Self::NoInstance(_) => &[],
            Self::Failed { tried, .. } => tried,
        }
    }

    pub(super) fn of_call(service: ServiceName, error: CallError<RequestError>) -> Self {
        match error {
            CallError::NoInstance(error) => Self::NoInstance(error),
            CallError::Failed { failure, tried } => Self::Failed {
                service,
                failure,
                tried,
            },
        }
    }
}

/// The service, the last error, then the instances in the order in which they were tried.
impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownService { name } => write!(f, "service {name:?} is unknown"),
            Self::NoInstance(error) => error.fmt(f),
            Self::Failed {
                service,
                failure,
                tried,
            } => {
                write!(f, "service {service}: {} (tried", failure.error())?;
                for (index, attempt) in tried.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "," };
                    write!(f, "{separator} {}", attempt.instance)?;
                }
                f.write_str(")")
            }
        }
    }
}

impl std::error::Error for ServiceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::UnknownService { .. } => None,
            Self::NoInstance(error) => std::error::Error::source(error),
            Self::Failed { failure, .. } => std::error::Error::source(failure.error()),
        }
    }
}

/// Sends a request to an instance, and judges the answer.
pub(super) async fn attempt(
    request: reqwest::RequestBuilder,
    instance: InstanceId,
    timeout: Duration,
    longest_body: usize,
    now: impl FnOnce() -> SystemTime,
) -> Result<ServiceAnswer, Failure<RequestError>> {
    let response = request.send().await.map_err(|error| without_answer(error, timeout))?;
    let status = response.status();
    let mut answer = ServiceAnswer {
        instance,
        status: status.as_u16(),
        headers: response.headers().clone(),
        body: Bytes::new(),
    };
    if status.is_success() {
        answer.body = http_client::body(response, longest_body)
            .await
            .map_err(|error| match error {
                HttpError::Request(error) => without_answer(error, timeout),
                _ => Failure::Client(RequestError::TooLarge { limit: longest_body }),
            })?;
        return Ok(answer);
    }
    answer.body = beginning(response).await;
    let retry_after = retry_after(&answer.headers, now());
    Err(judged(answer, retry_after))
}

/// What a status that is not 2xx says.
fn judged(answer: ServiceAnswer, retry_after: Option<Duration>) -> Failure<RequestError> {
    let status = answer.status;
    let error = RequestError::Status(Box::new(answer));
    match status {
        429 | 503 => Failure::Rejected { error, retry_after },
        408 => Failure::TimedOut(error),
        100..=499 => Failure::Client(error),
        _ => Failure::Failed(error),
    }
}

fn without_answer(error: reqwest::Error, timeout: Duration) -> Failure<RequestError> {
    // A path may hold a secret.
    let error = error.without_url();
    if error.is_builder() {
        Failure::NotSent(RequestError::Address(error))
    } else if error.is_connect() && local_error::is_lack(&error) {
        Failure::Local(RequestError::NoConnection(error))
    } else if error.is_connect() {
        Failure::NotSent(RequestError::NoConnection(error))
    } else if error.is_timeout() {
        Failure::TimedOut(RequestError::TimedOut(timeout))
    } else {
        Failure::Failed(RequestError::Broken(error))
    }
}

/// The beginning of the body of an error; less of it if the connection breaks.
async fn beginning(mut response: reqwest::Response) -> Bytes {
    let mut body = BytesMut::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = LONGEST_ERROR - body.len();
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        if body.len() == LONGEST_ERROR {
            break;
        }
    }
    body.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::Outcome;

    fn answer(status: u16) -> ServiceAnswer {
        ServiceAnswer {
            instance: "user-1".parse().unwrap(),
            status,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"a secret"),
        }
    }

    #[test]
    fn a_status_blames_the_request_the_instance_or_its_load() {
        for (statuses, outcome) in [
            (
                &[300, 301, 304, 400, 401, 404, 409, 418, 422, 499][..],
                Outcome::Success,
            ),
            (&[408], Outcome::Timeout),
            (&[429, 503], Outcome::Rejected),
            (&[500, 501, 502, 504, 599, 600, 999], Outcome::Failure),
        ] {
            for status in statuses {
                let failure = judged(answer(*status), None);
                assert_eq!(failure.outcome(), outcome, "{status}");
            }
        }
        let wait = Duration::from_secs(3);
        let rejected = judged(answer(503), Some(wait));
        assert_eq!(rejected.outcome(), Outcome::RejectedFor(wait));
    }

    #[test]
    fn an_error_names_service_status_and_attempts_and_no_secrets() {
        let attempt = |error: Failure<RequestError>| CallError::Failed {
            failure: error,
            tried: Vec::new(),
        };
        let error = ServiceError::of_call("users".parse().unwrap(), attempt(judged(answer(500), None)));
        assert_eq!(error.to_string(), "service users: status 500 (tried)");
        assert_eq!(error.status(), Some(500));
        assert_eq!(error.answer().map(|answer| answer.body().len()), Some(8));
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}
