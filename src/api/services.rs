//! `GET /services`, `GET /services/{service}`: the known services and their instances.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;

use super::blocking::run_blocking;
use super::error::ApiError;
use super::query;
use super::state::Api;
use super::wire::{ServiceDetail, ServiceList, ServiceSummary, SourceState};

/// `GET /services`: all known services, sorted by name.
pub(super) async fn list(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ServiceList>, ApiError> {
    query::no_parameters(&uri)?;
    let list = move || ServiceList {
        services: api.directory.services().iter().map(ServiceSummary::of).collect(),
        sources: SourceState::all(&api.directory.sources(), api.clock.now()),
    };
    Ok(Json(run_blocking(list).await?))
}

/// `GET /services/{service}`: one service with its instances.
pub(super) async fn show(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ServiceDetail>, ApiError> {
    let service = query::last_segment(&uri)?;
    query::no_parameters(&uri)?;
    let balancer = api.balancer(&service)?;
    let sources = api.directory.sources();
    Ok(Json(ServiceDetail::of(&balancer, &sources, api.clock.now())))
}
