//! Which Host headers a loopback listener accepts.
//!
//! The owner of a web page can make the page's name resolve to 127.0.0.1. The page can then read
//! from a local port as if the port were its own origin (DNS rebinding). The page cannot forge the
//! Host header, which carries the page's name. So a loopback listener serves only `localhost`, IP
//! addresses and configured names.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::header;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::error::ApiError;

/// The names that are accepted besides `localhost` and IP addresses. Clones share the names, so
/// that a reload reaches every listener.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts(Arc<ArcSwap<Vec<String>>>);

impl AllowedHosts {
    /// Accepts these names. Case does not matter.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let hosts = Self::default();
        hosts.replace(names);
        hosts
    }

    /// Replaces the accepted names.
    pub fn replace(&self, names: impl IntoIterator<Item = String>) {
        self.0.store(Arc::new(
            names.into_iter().map(|name| name.to_ascii_lowercase()).collect(),
        ));
    }

    fn accepts(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.0.load().contains(&name)
    }
}

/// Refuses requests with a Host header that is not accepted. A request without the header is
/// served: HTTP/1.0 does not need it, and browsers always send it.
pub(super) async fn check(State(allowed): State<AllowedHosts>, request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let refused = hosts.find(|host| !host.to_str().is_ok_and(|host| allowed.accepts(host)));
    match refused {
        Some(host) => {
            let host = String::from_utf8_lossy(host.as_bytes()).chars().take(64).collect();
            ApiError::Misdirected(host).into_response()
        }
        None => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_addresses_and_configured_names_are_accepted() {
        let allowed = AllowedHosts::new(["Pickd.internal".to_owned()]);
        for host in [
            "localhost",
            "localhost:7425",
            "127.0.0.1:1",
            "[::1]:7425",
            "10.0.0.7",
            "pickd.INTERNAL:7425",
        ] {
            assert!(allowed.accepts(host), "{host}");
        }
        for host in [
            "evil.test",
            "localhost.evil.test:7425",
            "127.0.0.1.evil.test",
            "",
            "a b",
            "other.internal",
        ] {
            assert!(!allowed.accepts(host), "{host}");
        }
    }
}
