//! `GET /healthz`, `GET /readyz`: whether the agent is alive, and whether it is
//! [ready](super::readiness).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde_json::{Value, json};

use super::error::ApiError;
use super::query;
use super::state::Api;
use super::wire::SourceState;

/// `GET /healthz`: answers 200 while the process runs, whatever the state of the registries.
pub(super) async fn healthz(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    query::no_parameters(&uri)?;
    Ok(Json(json!({ "status": "ok", "sources": sources(&api)? })))
}

/// `GET /readyz`: answers 200 when the agent is ready, else 503 with the reason.
pub(super) async fn readyz(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    query::no_parameters(&uri)?;
    let sources = sources(&api)?;
    match api.readiness.check(&api.directory.sources(), api.clock.now()) {
        Ok(()) => Ok(Json(json!({ "ready": true, "sources": sources }))),
        Err(detail) => Err(ApiError::NotReady { detail, sources }),
    }
}

fn sources(api: &Api) -> Result<Value, ApiError> {
    let states = SourceState::all(&api.directory.sources(), api.clock.now());
    serde_json::to_value(states).map_err(|_| ApiError::Internal)
}
