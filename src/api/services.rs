//! `GET /services`, `GET /services/{service}`: what is known.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;

use super::Api;
use super::error::ApiError;
use super::query;
use super::wire::{ServiceDetail, ServiceList, ServiceSummary, SourceState};
use crate::balancer::ServiceName;

/// Every known service, by name.
pub(super) async fn list(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ServiceList>, ApiError> {
    query::no_parameters(&uri)?;
    let list = move || ServiceList {
        services: api
            .directory
            .services()
            .iter()
            .map(|balancer| ServiceSummary::of(balancer))
            .collect(),
        sources: SourceState::all(&api.directory.sources(), api.clock.now()),
    };
    Ok(Json(super::aside(list).await?))
}

/// One service with its instances.
pub(super) async fn show(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ServiceDetail>, ApiError> {
    let service = query::last_segment(&uri)?;
    query::no_parameters(&uri)?;
    match api.directory.get(&service) {
        Some(balancer) => Ok(Json(ServiceDetail::of(
            &balancer,
            &api.directory.sources(),
            api.clock.now(),
        ))),
        None => {
            let service: ServiceName = service.parse()?;
            Err(api.directory.why_unknown(service).into())
        }
    }
}
