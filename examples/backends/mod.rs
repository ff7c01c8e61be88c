//! HTTP servers on 127.0.0.1 that the examples call. What a server answers is decided by the
//! example, from the number of the request: two runs see the same faults.

#![allow(dead_code, reason = "each example uses a part of this module")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use pickd::ServiceInstance;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What examples return.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A request as a backend received it.
pub(crate) struct Received<'a> {
    /// How many requests this backend received, this one among them: 1 and up.
    pub(crate) number: u64,
    /// The path, such as `/users/7`.
    pub(crate) path: &'a str,
    /// The body; `Null` if it is not JSON.
    pub(crate) body: Value,
}

/// What a backend answers.
pub(crate) struct Answer {
    status: StatusCode,
    after: Duration,
    body: Value,
}

impl Answer {
    /// Status 200 with this body, at once.
    pub(crate) fn ok(body: Value) -> Self {
        Self::status(StatusCode::OK, body)
    }

    /// Another status with this body, at once.
    pub(crate) fn status(status: StatusCode, body: Value) -> Self {
        let after = Duration::ZERO;
        Self { status, after, body }
    }

    /// The same after a while.
    pub(crate) fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }
}

/// A server, which stops when it is dropped.
pub(crate) struct Backend {
    id: &'static str,
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

type Behaviour = dyn Fn(Received<'_>) -> Answer + Send + Sync;

struct Shared {
    behaviour: Box<Behaviour>,
    received: AtomicU64,
    is_healthy: AtomicBool,
}

impl Backend {
    /// Starts a server on a free port. `GET /healthz` is answered by the server itself, and is not
    /// counted; `behaviour` answers all other requests.
    pub(crate) async fn start(
        id: &'static str,
        behaviour: impl Fn(Received<'_>) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            behaviour: Box::new(behaviour),
            received: AtomicU64::new(0),
            is_healthy: AtomicBool::new(true),
        });
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move { axum::serve(listener, routes).with_graceful_shutdown(stopped).await });
        Ok(Self {
            id,
            address,
            shared,
            stop,
            server,
        })
    }

    /// The server as an instance of a service.
    pub(crate) fn instance(&self) -> Result<ServiceInstance> {
        Ok(ServiceInstance::new(self.id, "127.0.0.1", self.address.port())?)
    }

    /// Where the server listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests received, without those of health checks.
    pub(crate) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Sets whether `GET /healthz` answers 200 or 503.
    pub(crate) fn set_healthy(&self, is_healthy: bool) {
        self.shared.is_healthy.store(is_healthy, Ordering::Relaxed);
    }

    /// Stops the server: from now on, connections are refused.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        Ok((&mut self.server).await??)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, body: Bytes) -> Response {
    if uri.path() == "/healthz" {
        let is_healthy = shared.is_healthy.load(Ordering::Relaxed);
        let status = if is_healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        return status.into_response();
    }
    let received = Received {
        number: shared.received.fetch_add(1, Ordering::Relaxed) + 1,
        path: uri.path(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let Answer { status, after, body } = (shared.behaviour)(received);
    tokio::time::sleep(after).await;
    (status, Json(body)).into_response()
}

/// A user of the path `/users/{number}`.
pub(crate) fn user(received: &Received<'_>) -> Value {
    let number = received.path.rsplit('/').next().unwrap_or_default();
    json!({ "name": format!("User {number}") })
}

/// Waits for a condition, for at most 30 seconds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), met).await;
    waited.map_err(|_| format!("no {what} within 30 s").into())
}
