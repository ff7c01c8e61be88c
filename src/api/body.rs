//! Bodies of requests: small, JSON, here in time, and what is not understood is refused.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, header};
use http_body_util::LengthLimitError;
use hyper::body::{Frame, Incoming, SizeHint};
use serde::de::DeserializeOwned;
use tokio::time::{self, Sleep};

use super::error::ApiError;

/// Reads all of it, but no more than `limit` bytes. One that tells its length is refused by it, before any of it comes.
pub(super) async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::TooLarge(format!("the body is larger than {limit} bytes"));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        if is_caused_by::<LengthLimitError>(&error) {
            too_large()
        } else if is_caused_by::<TooSlow>(&error) {
            ApiError::TooSlow
        } else {
            ApiError::InvalidRequest("the body did not arrive whole".to_owned())
        }
    })
}

fn is_caused_by<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|cause| cause.is::<E>())
}

/// A body that fails when it is not here in time.
pub(in crate::api) fn within(incoming: Incoming, limit: Duration) -> Body {
    if incoming.is_end_stream() {
        return Body::empty();
    }
    Body::new(Timely {
        incoming,
        limit,
        end: None,
    })
}

struct Timely {
    incoming: Incoming,
    limit: Duration,
    /// Set when there is something to wait for.
    end: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the body took too long")]
struct TooSlow;

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let limit = this.limit;
        let end = this.end.get_or_insert_with(|| Box::pin(time::sleep(limit)));
        end.as_mut().poll(context).map(|()| Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// `application/json`, which a browser sends to no stranger without asking first.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let written = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = written.unwrap_or_default().split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// An object of known fields.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::InvalidRequest(format!("the body: {error}")))
}
