//! `POST /sources/{source}/accept`: an operator accepts what a source lists. Held instances are let
//! go.
//!
//! The agent owns the holds, so the route sends it a request and waits for its answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::extract::rejection::ExtensionRejection;
use axum::http::{HeaderMap, Method, Uri};
use axum::{Extension, Json};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::body;
use super::error::ApiError;
use super::query;
use super::server::authorization;
use super::server::peer::Peer;
use super::state::Api;
use crate::balancer::Source;

/// The most requests that wait for the agent.
const QUEUE: usize = 16;
/// No field is known, so a body is at most an empty object.
const MAX_BYTES: usize = 1 << 10;

/// A request to let go of what is held for a source.
#[derive(Debug)]
pub struct AcceptRequest {
    /// The source.
    pub source: Source,
    /// Takes the number of instances that were let go. Dropped without an answer if the source is
    /// not watched any more.
    pub answer: oneshot::Sender<usize>,
}

/// Where the route sends its requests.
pub type AcceptRequests = mpsc::Sender<AcceptRequest>;

/// A queue between the route and the agent.
#[must_use]
pub fn accept_requests() -> (AcceptRequests, mpsc::Receiver<AcceptRequest>) {
    mpsc::channel(QUEUE)
}

/// The body of the answer.
#[derive(Serialize)]
pub(super) struct Accepted {
    source: &'static str,
    /// How many held instances were let go.
    released_instances: usize,
}

/// The route.
pub(super) async fn accept(
    State(api): State<Arc<Api>>,
    peer: Result<Extension<Peer>, ExtensionRejection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Accepted>, ApiError> {
    if method != Method::POST {
        return Err(ApiError::MethodNotAllowed { allow: "POST" });
    }
    // Without a peer from the listener, authorization is not possible.
    let Extension(peer) = peer.map_err(|_| ApiError::Forbidden("the client is not known"))?;
    authorization::check(&peer, &headers, &api.admin.token).await?;
    query::no_parameters(&uri)?;
    if !body::read(body, MAX_BYTES).await?.trim_ascii().is_empty() {
        return Err(ApiError::InvalidRequest("this route takes no body".to_owned()));
    }
    let name = source_in(&uri)?;
    let sources = api.directory.sources();
    let known = sources.iter().find(|status| status.source().as_str() == name);
    let unknown = || ApiError::UnknownSource(name.chars().take(64).collect());
    let source = known.ok_or_else(unknown)?.source();
    let (answer, answered) = oneshot::channel();
    let requests = api.admin.accepts.as_ref().ok_or(ApiError::Internal)?;
    let stopping = || ApiError::NotReady {
        detail: "the agent is shutting down".to_owned(),
        sources: serde_json::Value::Array(Vec::new()),
    };
    let request = AcceptRequest { source, answer };
    requests.send(request).await.map_err(|_| stopping())?;
    let released_instances = answered.await.map_err(|_| unknown())?;
    let (source, by) = (source.as_str(), peer.address.to_string());
    tracing::info!(source, by, released_instances, "removals accepted");
    Ok(Json(Accepted {
        source,
        released_instances,
    }))
}

/// The source in a path `.../{source}/accept`.
fn source_in(uri: &Uri) -> Result<std::borrow::Cow<'_, str>, ApiError> {
    query::segment(uri.path().rsplit('/').nth(1).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_one_segment_of_the_path() {
        let named = |path: &str| source_in(&path.parse().unwrap()).map(std::borrow::Cow::into_owned).ok();
        assert_eq!(named("/sources/consul/accept").as_deref(), Some("consul"));
        assert_eq!(named("/v1/sources/a%2Fb/accept").as_deref(), Some("a/b"));
        assert_eq!(named("/sources/%ff/accept"), None);
    }
}
