//! gRPC checks: the standard health protocol (`grpc.health.v1.Health/Check`), in plain text.
//!
//! `SERVING` passes. A service that the server does not know counts as not serving. A server
//! without the protocol fails with a protocol error. A target's channel is kept from one check to
//! the next. The channel reconnects by itself, each time to an address that was compared with the
//! denied networks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use super::connect::{ConnectError, Resolver, connect};
use crate::balancer::{Address, CheckFailure, DeniedNetworks};

/// What is kept of one target between checks.
#[derive(Debug)]
pub(super) struct GrpcTarget {
    client: HealthClient<Channel>,
    /// Why the last attempt to connect failed: tonic's own error does not say why.
    refusal: Arc<Mutex<Option<ConnectError>>>,
}

/// A failed attempt to connect.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no connection: {0:?}")]
struct ConnectFailed(ConnectError);

impl GrpcTarget {
    /// Connects at the first check. `timeout` is the time for a connection.
    pub(super) fn new(
        address: &Address,
        denied: &DeniedNetworks,
        resolver: &Resolver,
        timeout: Duration,
    ) -> Result<Self, CheckFailure> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| CheckFailure::Protocol)?;
        let endpoint = endpoint
            .user_agent(concat!("pickd/", env!("CARGO_PKG_VERSION")))
            .map_err(|_| CheckFailure::Protocol)?;
        let refusal = Arc::new(Mutex::new(None));
        let (address, denied, resolver) = (address.clone(), denied.clone(), resolver.clone());
        let recorded = Arc::clone(&refusal);
        let connector = service_fn(move |_: Uri| {
            let (address, denied, resolver) = (address.clone(), denied.clone(), resolver.clone());
            let recorded = Arc::clone(&recorded);
            async move {
                let connected = connect(&address, &denied, &resolver, Instant::now() + timeout).await;
                record(&recorded, connected.as_ref().err().copied());
                connected.map(TokioIo::new).map_err(ConnectFailed)
            }
        });
        Ok(Self {
            client: HealthClient::new(endpoint.connect_with_connector_lazy(connector)),
            refusal,
        })
    }

    pub(super) async fn check(&mut self, service: &str) -> Result<(), ConnectError> {
        record(&self.refusal, None);
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        match self.client.check(request).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
            Ok(_) => Err(CheckFailure::NotServing.into()),
            Err(status) => Err(self.failure(&status)),
        }
    }

    fn failure(&self, status: &Status) -> ConnectError {
        if let Some(refusal) = *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) {
            return refusal;
        }
        let failure = match status.code() {
            Code::NotFound => CheckFailure::NotServing,
            Code::DeadlineExceeded => CheckFailure::Timeout,
            Code::Unavailable | Code::Cancelled => CheckFailure::ConnectionFailed,
            _ => CheckFailure::Protocol,
        };
        failure.into()
    }
}

fn record(refusal: &Mutex<Option<ConnectError>>, why: Option<ConnectError>) {
    *refusal.lock().unwrap_or_else(PoisonError::into_inner) = why;
}
