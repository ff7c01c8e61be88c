//! Request bodies with a time limit. The time counts from the first read that has to wait for data.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{self, Sleep};

/// A request body was not complete within the time limit.
#[derive(Debug, thiserror::Error)]
#[error("the body took too long")]
pub(in crate::api) struct BodyTimeout;

/// A body that fails with [`BodyTimeout`] unless the rest of it arrives within `limit` of the first
/// wait.
pub(super) fn with_timeout(incoming: Incoming, limit: Duration) -> Body {
    if incoming.is_end_stream() {
        return Body::empty();
    }
    Body::new(TimedBody {
        incoming,
        limit,
        timeout: None,
    })
}

struct TimedBody {
    incoming: Incoming,
    limit: Duration,
    /// Set by the first poll that finds no data.
    timeout: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let limit = this.limit;
        let timeout = this.timeout.get_or_insert_with(|| Box::pin(time::sleep(limit)));
        timeout.as_mut().poll(context).map(|()| Some(Err(BodyTimeout.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
