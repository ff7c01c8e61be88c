//! The HTTP API: parse, ask the core, answer.
//!
//! Thin on purpose. Decisions are the core's, failing statuses are [`error`]'s, bodies are [`wire`]'s; a handler holds no
//! state and starts nothing. Knows nothing of registries: what it says of a source is what the core has on record.
//!
//! | route | file |
//! |---|---|
//! | `GET /pick/{service}`, `POST /pick/{service}` | [`pick`] |
//! | `POST /report` | [`report`] |
//! | `GET /services`, `GET /services/{service}` | [`services`] |
//! | `GET /explain/{service}` | [`explain`] |
//! | `PUT`, `DELETE /services/{service}/instances/{id}/drain`, `…/weight` | [`admin`], who may: [`authorization`](server::authorization) |
//! | `GET /healthz`, `GET /readyz` | [`ready`] |
//! | `GET /metrics` | here, from [`metrics`](crate::metrics) |
//!
//! Every route also exists under `/v1`. Connections are accepted, bounded and closed by [`server`].

mod admin;
mod body;
mod error;
mod explain;
mod pick;
mod query;
mod ready;
mod report;
pub mod server;
mod services;
mod wire;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tokio::sync::Notify;
use tower_http::catch_panic::CatchPanicLayer;

pub use self::admin::Admin;
use self::error::ApiError;
pub use self::ready::Readiness;
pub use self::server::allowed_hosts::AllowedHosts;
pub use self::server::authorization::AdminToken;
pub use self::wire::JsonBodies;
use crate::balancer::{Clock, Directory};
use crate::metrics::Metrics;

/// What the routes look at.
#[derive(Clone)]
pub struct Api {
    /// The services.
    pub directory: Arc<Directory>,
    /// For ages.
    pub clock: Arc<dyn Clock>,
    /// Whether `/readyz` says yes.
    pub readiness: Arc<Readiness>,
    /// What `/metrics` encodes.
    pub metrics: Arc<Metrics>,
    /// What overrides need besides.
    pub admin: Admin,
    /// Told when a lease is taken while none was open: from then on there is something to expire.
    pub leases_begin: Arc<Notify>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// The routes. `hosts` are checked where they are given, which is on loopback listeners.
    pub fn router(self, hosts: Option<AllowedHosts>) -> Router {
        let routes = Router::new()
            .route("/pick/{service}", any(pick::pick))
            .route("/report", any(report::report))
            .route("/services", get(services::list))
            .route("/services/{service}", get(services::show))
            .route("/services/{service}/instances/{id}/drain", any(admin::drain))
            .route("/services/{service}/instances/{id}/weight", any(admin::weight))
            .route("/explain/{service}", get(explain::explain))
            .route("/healthz", get(ready::healthz))
            .route("/readyz", get(ready::readyz))
            .route("/metrics", get(metrics));
        let router = Router::new()
            .nest("/v1", routes.clone())
            .merge(routes)
            .fallback(|| async { ApiError::NotFound })
            .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed { allow: "GET, HEAD" } })
            .layer(CatchPanicLayer::custom(internal));
        let router = match hosts {
            Some(hosts) => router.layer(middleware::from_fn_with_state(hosts, server::allowed_hosts::check)),
            None => router,
        };
        router.with_state(Arc::new(self))
    }
}

/// All series as text.
async fn metrics(State(api): State<Arc<Api>>, method: Method, uri: Uri) -> Result<Response, ApiError> {
    query::no_parameters(&uri)?;
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    if method == Method::HEAD {
        return Ok(content_type.into_response());
    }
    let encoded = aside(move || api.metrics.encode(&api.directory, api.clock.now())).await?;
    match encoded {
        Ok(text) => Ok((content_type, text).into_response()),
        Err(error) => {
            tracing::error!(%error, "metrics could not be encoded");
            Err(ApiError::Internal)
        }
    }
}

/// Does work that grows with the number of instances where it does not hold up picks.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::Internal)
}

/// The answer of a handler that panicked. The panic itself is logged by the panic hook.
fn internal(_panic: Box<dyn Any + Send>) -> Response {
    ApiError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_as_an_internal_error() {
        async fn broken() -> StatusCode {
            panic!("planted")
        }
        let router: Router = Router::new()
            .route("/", get(broken))
            .layer(CatchPanicLayer::custom(internal));
        let response = router
            .oneshot(Request::get("/").body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["code"], "internal");
    }
}
