//! What a check asks, and how many checks an agent may make.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method};

use crate::balancer::DeniedNetworks;

/// What an active check asks. Every value is a valid check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// An HTTP/1.1 request; the status decides. Redirects are not followed: they are a status like
    /// any other.
    Http(HttpCheck),
    /// A TCP connection; the check passes if it is accepted.
    Tcp,
    /// The standard gRPC health protocol (`grpc.health.v1.Health/Check`), in plain text.
    Grpc {
        /// The service to ask for. Empty: the server as a whole.
        service: String,
    },
}

/// Why a check is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCheck {
    /// A method that a check may not use.
    #[error("method {found:?}: expected GET, HEAD, OPTIONS or POST")]
    Method {
        /// The method that was given.
        found: String,
    },
    /// Not a valid path.
    #[error("path {found:?}: expected a path from \"/\" on, such as \"/healthz\"")]
    Path {
        /// The path that was given.
        found: String,
    },
    /// Not a valid host.
    #[error("host {found:?}: expected a host name, with or without a port")]
    Host {
        /// The host that was given.
        found: String,
    },
    /// Not a valid header.
    #[error("header {name:?}: {detail}")]
    Header {
        /// The name that was given.
        name: String,
        /// What is wrong.
        detail: &'static str,
    },
    /// Neither a status nor a range of statuses.
    #[error("status {found}: expected a number from 100 to 599, or a range such as \"200-299\"")]
    Status {
        /// The status that was given.
        found: String,
    },
}

/// An HTTP check.
///
/// ```
/// let check = pickd::probe::HttpCheck::new("/healthz")?
///     .with_method("HEAD")?
///     .with_statuses([200..=204])?;
/// assert!(check.expects(204) && !check.expects(500));
/// # Ok::<(), pickd::probe::InvalidCheck>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) host: Option<HeaderValue>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    statuses: Vec<RangeInclusive<u16>>,
}

impl HttpCheck {
    /// `GET` of this path; a status from 200 to 299 passes.
    ///
    /// # Errors
    ///
    /// When the path does not begin with `/`, or has a character that is not valid in a path.
    pub fn new(path: &str) -> Result<Self, InvalidCheck> {
        let check = Self {
            method: Method::GET,
            path: "/".to_owned(),
            host: None,
            headers: Vec::new(),
            statuses: vec![200..=299],
        };
        check.with_path(path)
    }

    /// Asks for this path.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_path(mut self, path: &str) -> Result<Self, InvalidCheck> {
        let is_sendable = |path: &str| path.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'#');
        if !path.starts_with('/') || !is_sendable(path) || path.parse::<axum::http::Uri>().is_err() {
            return Err(InvalidCheck::Path {
                found: path.chars().take(64).collect(),
            });
        }
        self.path = path.to_owned();
        Ok(self)
    }

    /// Asks with this method: `GET`, `HEAD`, `OPTIONS`, or `POST` without a body.
    ///
    /// # Errors
    ///
    /// For any other method.
    pub fn with_method(mut self, method: &str) -> Result<Self, InvalidCheck> {
        self.method = match method {
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            "OPTIONS" => Method::OPTIONS,
            "POST" => Method::POST,
            _ => {
                return Err(InvalidCheck::Method {
                    found: method.chars().take(64).collect(),
                });
            }
        };
        Ok(self)
    }

    /// Sends this host in place of the instance's `host:port` in the `Host` header. The host is
    /// only sent, not resolved.
    ///
    /// # Errors
    ///
    /// When the host is empty, or has a character that is not valid in a host.
    pub fn with_host(mut self, host: &str) -> Result<Self, InvalidCheck> {
        let is_host = !host.is_empty() && host.parse::<axum::http::uri::Authority>().is_ok() && !host.contains('@');
        match HeaderValue::from_str(host) {
            Ok(value) if is_host => self.host = Some(value),
            _ => {
                return Err(InvalidCheck::Host {
                    found: host.chars().take(64).collect(),
                });
            }
        }
        Ok(self)
    }

    /// Sends this header, too.
    ///
    /// # Errors
    ///
    /// When the header is not valid, frames the message, or has a setting of its own.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, InvalidCheck> {
        let refused = |detail| InvalidCheck::Header {
            name: name.chars().take(64).collect(),
            detail,
        };
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused("not the name of a header"))?;
        match parsed.as_str() {
            "host" => return Err(refused("set host instead")),
            "connection" | "content-length" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade" => {
                return Err(refused("belongs to the connection"));
            }
            _ => {}
        }
        let value = HeaderValue::from_str(value).map_err(|_| refused("its value cannot be sent"))?;
        self.headers.push((parsed, value));
        Ok(self)
    }

    /// Expects one of these statuses.
    ///
    /// # Errors
    ///
    /// When there is no status, or a status outside 100..=599.
    pub fn with_statuses(
        mut self,
        statuses: impl IntoIterator<Item = RangeInclusive<u16>>,
    ) -> Result<Self, InvalidCheck> {
        self.statuses = statuses.into_iter().collect();
        if self.statuses.is_empty() {
            return Err(InvalidCheck::Status {
                found: "(none)".to_owned(),
            });
        }
        for range in &self.statuses {
            let (first, last) = (*range.start(), *range.end());
            if !(100..=599).contains(&first) || !(first..=599).contains(&last) {
                return Err(InvalidCheck::Status {
                    found: if first == last {
                        first.to_string()
                    } else {
                        format!("{first}-{last}")
                    },
                });
            }
        }
        Ok(self)
    }

    /// Whether this status passes.
    #[must_use]
    pub fn expects(&self, status: u16) -> bool {
        self.statuses.iter().any(|range| range.contains(&status))
    }
}

/// How one service is checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The check.
    pub check: Arc<HealthCheck>,
    /// The time from one check of an instance to the next.
    pub interval: Duration,
    /// How long an answer may take; at most the interval.
    pub timeout: Duration,
    /// The networks to which no connection may lead.
    pub denied: DeniedNetworks,
}

impl Plan {
    /// How long an answer may take: the interval, if that is shorter.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout.min(self.interval)
    }
}

/// The limits of all checks of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSettings {
    /// Checks per second, over all services, 1..=10,000. If more are due, all of them come later.
    pub max_rate: u32,
    /// Checks that wait for their answers at a time, 1..=65,536.
    pub max_concurrent: usize,
}

impl Default for ProbeSettings {
    /// 200 checks per second, 1,024 at a time.
    fn default() -> Self {
        Self {
            max_rate: 200,
            max_concurrent: 1_024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_check_is_refused_and_named() {
        let check = || HttpCheck::new("/").unwrap();
        for (refusal, start) in [
            (HttpCheck::new("healthz"), "path \"healthz\""),
            (HttpCheck::new("/a b"), "path \"/a b\""),
            (HttpCheck::new("/a#b"), "path \"/a#b\""),
            (HttpCheck::new("/a\r\nX: y"), "path"),
            (check().with_method("get"), "method \"get\""),
            (check().with_method("DELETE"), "method \"DELETE\""),
            (check().with_host(""), "host \"\""),
            (check().with_host("a\r\nb"), "host"),
            (check().with_host("user@a"), "host \"user@a\""),
            (check().with_header("Host", "a"), "header \"Host\": set host instead"),
            (
                check().with_header("Transfer-Encoding", "chunked"),
                "header \"Transfer-Encoding\": belongs",
            ),
            (check().with_header("a b", "c"), "header \"a b\""),
            (check().with_header("a", "b\nc"), "header \"a\": its value"),
            (check().with_statuses([]), "status (none)"),
            (check().with_statuses([99..=99]), "status 99"),
            (check().with_statuses([500..=600]), "status 500-600"),
        ] {
            let refusal = refusal.unwrap_err().to_string();
            assert!(refusal.starts_with(start), "{refusal}");
        }
    }

    #[test]
    fn a_check_expects_the_configured_statuses() {
        let check = HttpCheck::new("/healthz?full=1").unwrap();
        assert!(check.expects(200) && check.expects(299) && !check.expects(300) && !check.expects(199));
        let check = check.with_statuses([401..=401, 200..=204]).unwrap();
        assert!(check.expects(401) && check.expects(204) && !check.expects(205));
        assert!(check.with_host("backend:8080").is_ok());
    }
}
