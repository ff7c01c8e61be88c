//! The HTTP API: parse the request, ask the core, answer.
//!
//! A handler holds no state and starts nothing. The core decides, [`error`] knows the status of
//! each failure, and [`wire`] knows the bodies of answers. Knows nothing of registries: the state
//! of a source comes from the core.
//!
//! | route | file |
//! |---|---|
//! | `GET /pick/{service}`, `POST /pick/{service}` | [`pick`] |
//! | `POST /report` | [`report`] |
//! | `GET /services`, `GET /services/{service}` | [`services`] |
//! | `GET /explain/{service}` | [`explain`] |
//! | `PUT`, `DELETE /services/{service}/instances/{id}/drain`, `/weight` | [`admin`] |
//! | `POST /sources/{source}/accept` | [`accept`] |
//! | `GET /healthz`, `GET /readyz` | [`ready`] |
//! | `GET /metrics` | here, from [`metrics`](crate::metrics) |
//!
//! Every route also exists under `/v1`. Imports inside this folder point down:
//!
//! ```text
//! mod                                        the table of routes
//! admin                                      routes; the instance as explain shows it
//! pick  report  services  explain            routes
//! accept  ready                              routes
//! state  wire                                what routes share; bodies of answers
//! layers  query  body  readiness             parts of answers and requests; readiness
//! server/                                    listeners and connections; knows nothing of routes
//! blocking                                   work that would hold up picks
//! error                                      the status of each failure
//! ```

mod accept;
mod admin;
mod blocking;
mod body;
mod error;
mod explain;
mod layers;
mod pick;
mod query;
mod readiness;
mod ready;
mod report;
pub mod server;
mod services;
mod state;
mod wire;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tower_http::catch_panic::CatchPanicLayer;

pub use self::accept::{AcceptRequest, AcceptRequests, accept_requests};
use self::blocking::run_blocking;
use self::error::ApiError;
pub use self::readiness::Readiness;
pub use self::server::allowed_hosts::AllowedHosts;
pub use self::server::authorization::AdminToken;
pub use self::state::{Admin, Api};
pub use self::wire::JsonBodies;

impl Api {
    /// The routes.
    pub fn router(self) -> Router {
        let routes = Router::new()
            .route("/pick/{service}", any(pick::pick))
            .route("/report", any(report::report))
            .route("/services", get(services::list))
            .route("/services/{service}", get(services::show))
            .route("/services/{service}/instances/{id}/drain", any(admin::drain))
            .route("/services/{service}/instances/{id}/weight", any(admin::weight))
            .route("/sources/{source}/accept", any(accept::accept))
            .route("/explain/{service}", get(explain::explain))
            .route("/healthz", get(ready::healthz))
            .route("/readyz", get(ready::readyz))
            .route("/metrics", get(metrics));
        Router::new()
            .nest("/v1", routes.clone())
            .merge(routes)
            .fallback(|| async { ApiError::NotFound })
            .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed { allow: "GET, HEAD" } })
            .layer(CatchPanicLayer::custom(answer_panic))
            .with_state(Arc::new(self))
    }

    /// Which requests are of routes that check their client: those of an operator.
    #[must_use]
    pub fn checks_client(method: &Method, uri: &Uri) -> bool {
        match *method {
            Method::PUT | Method::DELETE => true,
            Method::POST => uri.path().ends_with("/accept"),
            _ => false,
        }
    }
}

/// `GET /metrics`: all series as text.
async fn metrics(State(api): State<Arc<Api>>, method: Method, uri: Uri) -> Result<Response, ApiError> {
    query::no_parameters(&uri)?;
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    if method == Method::HEAD {
        return Ok(content_type.into_response());
    }
    let encode = move || {
        let now = api.clock.now();
        let ready = api.readiness.is_reached(&api.directory.sources(), now);
        api.metrics.encode(&api.directory, ready, now)
    };
    let encoded = run_blocking(encode).await?;
    match encoded {
        Ok(text) => Ok((content_type, text).into_response()),
        Err(error) => {
            tracing::error!(%error, "metrics could not be encoded");
            Err(ApiError::Internal)
        }
    }
}

/// The answer to a request whose handler panicked. The panic hook logs the panic itself.
fn answer_panic(_panic: Box<dyn Any + Send>) -> Response {
    ApiError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[test]
    fn only_the_routes_of_an_operator_check_their_client() {
        for (method, path, expected) in [
            (Method::PUT, "/services/web/instances/a/drain", true),
            (Method::DELETE, "/v1/services/web/instances/a/weight", true),
            (Method::POST, "/sources/consul/accept", true),
            (Method::POST, "/v1/sources/consul/accept", true),
            (Method::POST, "/pick/web", false),
            (Method::POST, "/report", false),
            (Method::GET, "/pick/web", false),
            (Method::GET, "/services/web", false),
        ] {
            let uri = path.parse().unwrap();
            assert_eq!(Api::checks_client(&method, &uri), expected, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_as_an_internal_error() {
        async fn broken() -> StatusCode {
            panic!("planted")
        }
        let router: Router = Router::new()
            .route("/", get(broken))
            .layer(CatchPanicLayer::custom(answer_panic));
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
