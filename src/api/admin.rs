//! `PUT` and `DELETE /services/{service}/instances/{id}/drain` and `.../weight`: overrides by an
//! operator.
//!
//! An override is in force from the next pick. The answer is the new state of the instance. Each
//! override is logged once, with the client that asked for it and the reason.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use axum::{Extension, extract::rejection::ExtensionRejection};
use serde::Deserialize;
use serde_json::Value;

use super::blocking::run_blocking;
use super::body;
use super::error::ApiError;
use super::explain::OverriddenInstance;
use super::query;
use super::server::authorization;
use super::server::peer::Peer;
use super::state::Api;
use crate::balancer::{InstanceId, InvalidOrder, LoadBalancer, Order, Weight};
use crate::duration::{Readable, with_unit};

/// The most bytes of a body: many times the longest reason and two numbers.
const MAX_BYTES: usize = 16 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct DrainBody {
    reason: Option<String>,
    ttl: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct WeightBody {
    weight: Value,
    reason: Option<String>,
    ttl: Option<Value>,
}

/// An authorized request to change the overrides of one instance.
struct Request {
    api: Arc<Api>,
    by: String,
    balancer: LoadBalancer,
    id: InstanceId,
}

/// The parts of a request.
type Parts = (
    State<Arc<Api>>,
    Result<Extension<Peer>, ExtensionRejection>,
    Method,
    Uri,
    HeaderMap,
    Body,
);

/// The route `.../drain`.
pub(super) async fn drain(parts: Parts) -> Result<Json<OverriddenInstance>, ApiError> {
    let (State(api), peer, method, uri, headers, body) = parts;
    let by = authorized(&api, peer, &method, &uri, &headers).await?;
    if method == Method::DELETE {
        let request = Request::new(api, by, &uri)?;
        return run_blocking(move || request.undrain()).await?;
    }
    let body = body::read(body, MAX_BYTES).await?;
    let order = if body.is_empty() {
        Order::by(&by)
    } else {
        require_json(&headers)?;
        let DrainBody { reason, ttl } = body::parse(&body)?;
        order(&by, reason.as_deref(), ttl.as_ref())?
    };
    let request = Request::new(api, by, &uri)?;
    run_blocking(move || request.drain(order)).await?
}

/// The route `.../weight`.
pub(super) async fn weight(parts: Parts) -> Result<Json<OverriddenInstance>, ApiError> {
    let (State(api), peer, method, uri, headers, body) = parts;
    let by = authorized(&api, peer, &method, &uri, &headers).await?;
    if method == Method::DELETE {
        let request = Request::new(api, by, &uri)?;
        return run_blocking(move || request.clear_weight()).await?;
    }
    require_json(&headers)?;
    let body = body::read(body, MAX_BYTES).await?;
    let WeightBody { weight, reason, ttl } = body::parse(&body)?;
    let refused = || ApiError::InvalidRequest(format!("weight {weight}: expected a whole number from 0 to 65535"));
    let weight = weight
        .as_i64()
        .and_then(|weight| Weight::new(weight).ok())
        .ok_or_else(refused)?;
    let order = order(&by, reason.as_deref(), ttl.as_ref())?;
    let request = Request::new(api, by, &uri)?;
    run_blocking(move || request.set_weight(weight, order)).await?
}

/// Checks the method, the authorization and the parameters, in this order. Returns the address of
/// the client, for the log.
async fn authorized(
    api: &Api,
    peer: Result<Extension<Peer>, ExtensionRejection>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<String, ApiError> {
    if method != Method::PUT && method != Method::DELETE {
        return Err(ApiError::MethodNotAllowed { allow: "PUT, DELETE" });
    }
    // Without a peer from the listener, authorization is not possible.
    let Extension(peer) = peer.map_err(|_| ApiError::Forbidden("the client is not known"))?;
    authorization::check(&peer, headers, &api.admin.token).await?;
    query::no_parameters(uri)?;
    Ok(peer.address.to_string())
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    match body::is_json(headers) {
        true => Ok(()),
        false => Err(ApiError::UnsupportedMediaType),
    }
}

fn order(by: &str, reason: Option<&str>, ttl: Option<&Value>) -> Result<Order, ApiError> {
    let refused = |error: InvalidOrder| ApiError::InvalidRequest(error.to_string());
    let order = Order::by(by).because(reason.unwrap_or_default()).map_err(refused)?;
    let Some(ttl) = ttl else { return Ok(order) };
    let duration = match ttl {
        Value::String(text) => with_unit(text),
        Value::Number(seconds) => seconds
            .as_f64()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        _ => None,
    };
    let duration = duration.ok_or_else(|| {
        ApiError::InvalidRequest(format!(
            "ttl {ttl}: expected a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", or seconds as a number"
        ))
    })?;
    order.for_the_next(duration).map_err(refused)
}

/// The service and the instance in a path `.../{service}/instances/{id}/...`.
fn service_and_instance(uri: &Uri) -> Result<(Cow<'_, str>, InstanceId), ApiError> {
    let mut segments = uri.path().rsplit('/').skip(1);
    let id = query::segment(segments.next().unwrap_or_default())?;
    let service = query::segment(segments.nth(1).unwrap_or_default())?;
    Ok((service, id.parse()?))
}

impl Request {
    fn new(api: Arc<Api>, by: String, uri: &Uri) -> Result<Self, ApiError> {
        let (service, id) = service_and_instance(uri)?;
        let balancer = api.balancer(&service)?;
        Ok(Self { api, by, balancer, id })
    }

    fn drain(self, order: Order) -> Result<Json<OverriddenInstance>, ApiError> {
        let (ttl, reason) = (order.ttl().map(Readable), order.reason().map(str::to_owned));
        self.balancer.drain(&self.id, order)?;
        let (service, instance, by) = (self.balancer.service(), &self.id, &self.by);
        let ttl = ttl.map(tracing::field::display);
        tracing::info!(%service, %instance, by, reason, ttl, "instance drained");
        Ok(self.state())
    }

    fn undrain(self) -> Result<Json<OverriddenInstance>, ApiError> {
        if self.balancer.undrain(&self.id)?.is_some() {
            let (service, instance, by) = (self.balancer.service(), &self.id, &self.by);
            tracing::info!(%service, %instance, by, "instance undrained");
        }
        Ok(self.state())
    }

    fn set_weight(self, weight: Weight, order: Order) -> Result<Json<OverriddenInstance>, ApiError> {
        let (ttl, reason) = (order.ttl().map(Readable), order.reason().map(str::to_owned));
        self.balancer.set_weight(&self.id, weight, order)?;
        let (service, instance, by) = (self.balancer.service(), &self.id, &self.by);
        let (ttl, weight) = (ttl.map(tracing::field::display), weight.get());
        tracing::info!(%service, %instance, weight, by, reason, ttl, "weight overridden");
        Ok(self.state())
    }

    fn clear_weight(self) -> Result<Json<OverriddenInstance>, ApiError> {
        if self.balancer.clear_weight(&self.id)?.is_some() {
            let (service, instance, by) = (self.balancer.service(), &self.id, &self.by);
            tracing::info!(%service, %instance, by, "weight of the registry restored");
        }
        Ok(self.state())
    }

    /// The answer: the state of the instance after the change.
    fn state(&self) -> Json<OverriddenInstance> {
        Json(OverriddenInstance::of(&self.balancer, &self.id, self.api.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_id_is_one_segment_of_the_path() {
        let named = |path: &str| {
            service_and_instance(&path.parse().unwrap())
                .map(|(service, id)| format!("{service} {id}"))
                .ok()
        };
        assert_eq!(
            named("/services/web/instances/a%2Fb%2Cc/drain").as_deref(),
            Some("web a/b,c")
        );
        assert_eq!(
            named("/v1/services/web/instances/a%252F/weight").as_deref(),
            Some("web a%2F")
        );
        assert_eq!(named("/services/web/instances/%ff/drain"), None);
        assert_eq!(named("/services/web/instances/%0a/drain"), None);
    }

    #[test]
    fn a_ttl_is_seconds_or_a_duration() {
        let ttl = |ttl: Value| order("ops", None, Some(&ttl)).ok().and_then(|order| order.ttl());
        assert_eq!(ttl(json!(1.5)), Some(Duration::from_millis(1_500)));
        assert_eq!(ttl(json!("10m")), Some(Duration::from_secs(600)));
        for refused in [
            json!(0),
            json!(-1),
            json!("10"),
            json!("0s"),
            json!(true),
            json!({}),
            json!(1e12),
        ] {
            assert_eq!(ttl(refused.clone()), None, "{refused}");
        }
    }
}
