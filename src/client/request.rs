//! What a call of a service sends, and whether it may be sent again.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;

use crate::balancer::{Call, Context};

/// Why a request is not valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// Not a valid path.
    #[error("path {found:?}: expected a path from \"/\" on, such as \"/users/7?full=1\"")]
    Path {
        /// The first 64 characters of the path.
        found: String,
    },
    /// Not a valid header. Its value may be a secret, and is not told.
    #[error("header {name:?}: {detail}")]
    Header {
        /// The first 64 characters of the name.
        name: String,
        /// What is wrong.
        detail: &'static str,
    },
    /// The body cannot be written as JSON.
    #[error("the body cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

/// A request to a service: to any instance, and to another instance if that fails.
///
/// ```
/// use std::time::Duration;
///
/// use pickd::client::ServiceRequest;
/// use serde_json::json;
///
/// let order = ServiceRequest::post("/orders")?
///     .with_json(&json!({ "user_id": 7, "items": [{ "product": "item1", "qty": 1 }] }))?
///     .with_timeout(Duration::from_secs(10));
/// assert!(!order.is_idempotent());
///
/// // The service finds an order that it has by its number: it may get this request twice.
/// let numbered = order.with_header("Idempotency-Key", "order-7")?.with_idempotent(true);
/// assert!(numbered.is_idempotent());
/// # Ok::<(), pickd::client::InvalidRequest>(())
/// ```
#[derive(Clone)]
pub struct ServiceRequest<'a> {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) timeout: Duration,
    pub(super) context: Context<'a>,
    is_idempotent: bool,
}

impl<'a> ServiceRequest<'a> {
    /// The time that an attempt has, unless the request sets another.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// A request with this method and path, without a body.
    ///
    /// The path begins with `/`, and may have a query. `GET`, `HEAD`, `PUT`, `DELETE`, `OPTIONS` and
    /// `TRACE` are idempotent (RFC 9110, section 9.2.2), other methods are not.
    ///
    /// # Errors
    ///
    /// When the path does not begin with `/`, or has a character that is not valid in a path.
    pub fn new(method: Method, path: &str) -> Result<Self, InvalidRequest> {
        let is_sendable = |path: &str| path.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'#');
        if !path.starts_with('/') || !is_sendable(path) || path.parse::<axum::http::Uri>().is_err() {
            return Err(InvalidRequest::Path { found: shortened(path) });
        }
        Ok(Self {
            is_idempotent: method.is_idempotent(),
            method,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: None,
            timeout: Self::TIMEOUT,
            context: Context::new(),
        })
    }

    /// A `GET` of this path.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn get(path: &str) -> Result<Self, InvalidRequest> {
        Self::new(Method::GET, path)
    }

    /// A `POST` to this path.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn post(path: &str) -> Result<Self, InvalidRequest> {
        Self::new(Method::POST, path)
    }

    /// A `PUT` to this path.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn put(path: &str) -> Result<Self, InvalidRequest> {
        Self::new(Method::PUT, path)
    }

    /// A `DELETE` of this path.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn delete(path: &str) -> Result<Self, InvalidRequest> {
        Self::new(Method::DELETE, path)
    }

    /// Sends this value as JSON.
    ///
    /// # Errors
    ///
    /// When the value cannot be written as JSON, such as a map with keys that are not text.
    pub fn with_json(mut self, value: &(impl Serialize + ?Sized)) -> Result<Self, InvalidRequest> {
        self.body = Some(serde_json::to_vec(value).map_err(InvalidRequest::Json)?.into());
        self.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(self)
    }

    /// Sends these bytes. Their type is a header of its own.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sends this header, in place of an earlier one of the same name.
    ///
    /// # Errors
    ///
    /// When the name or the value cannot be sent, or the header frames the message.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, InvalidRequest> {
        let refused = |detail| InvalidRequest::Header {
            name: shortened(name),
            detail,
        };
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused("not the name of a header"))?;
        if let "connection" | "content-length" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade" =
            parsed.as_str()
        {
            return Err(refused("belongs to the connection"));
        }
        let mut value = HeaderValue::from_str(value).map_err(|_| refused("its value cannot be sent"))?;
        value.set_sensitive(true);
        self.headers.insert(parsed, value);
        Ok(self)
    }

    /// Sets the time that each attempt has, from the connection to the end of the answer. A call with
    /// retries may take as many times as long.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets key, tags, exclusions and the named port of the picks.
    #[must_use]
    pub const fn with_context(mut self, context: Context<'a>) -> Self {
        self.context = context;
        self
    }

    /// Sets whether the request may take effect twice, in place of what its method says. A request
    /// that may not is sent again only if it was not sent before.
    #[must_use]
    pub const fn with_idempotent(mut self, is_idempotent: bool) -> Self {
        self.is_idempotent = is_idempotent;
        self
    }

    /// Whether the request may take effect twice.
    #[must_use]
    pub const fn is_idempotent(&self) -> bool {
        self.is_idempotent
    }

    pub(super) fn call(&self) -> Call<'a> {
        let call = Call::new().with_context(self.context);
        if self.is_idempotent {
            call
        } else {
            call.not_idempotent()
        }
    }
}

/// Without headers and body, which may be secrets, and without the query.
impl fmt::Debug for ServiceRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.split('?').next().unwrap_or_default();
        f.debug_struct("ServiceRequest")
            .field("method", &self.method)
            .field("path", &path)
            .field("timeout", &self.timeout)
            .field("is_idempotent", &self.is_idempotent)
            .finish_non_exhaustive()
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_says_whether_to_repeat_unless_the_request_says_it() {
        for (method, repeated) in [
            ("GET", true),
            ("HEAD", true),
            ("PUT", true),
            ("DELETE", true),
            ("OPTIONS", true),
            ("POST", false),
            ("PATCH", false),
            ("PURGE", false),
        ] {
            let request = ServiceRequest::new(method.parse().unwrap(), "/").unwrap();
            assert_eq!(request.is_idempotent(), repeated, "{method}");
            assert_eq!(request.call().is_idempotent(), repeated, "{method}");
            let other = request.with_idempotent(!repeated);
            assert_eq!(other.call().is_idempotent(), !repeated, "{method}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_sent_is_refused() {
        for path in ["/", "/users/7", "/users?q=a%20b&r=1", "//x", "/a/../b"] {
            assert!(ServiceRequest::get(path).is_ok(), "{path}");
        }
        for path in [
            "",
            "users",
            "http://10.0.0.1/",
            "/a b",
            "/a#b",
            "/\u{e9}",
            "/a\r\nHost: b",
            "@10.0.0.1/",
        ] {
            let refused = ServiceRequest::get(path).unwrap_err();
            assert!(
                matches!(&refused, InvalidRequest::Path { found } if found == path),
                "{path}"
            );
        }
    }

    #[test]
    fn a_header_that_cannot_be_sent_is_refused_without_its_value() {
        for name in ["Content-Length", "transfer-encoding", "a b", ""] {
            let request = ServiceRequest::get("/").unwrap();
            assert!(request.with_header(name, "1").is_err(), "{name}");
        }
        let request = ServiceRequest::get("/").unwrap();
        let refused = request.with_header("Authorization", "secret\n").unwrap_err();
        assert!(!format!("{refused} {refused:?}").contains("secret"));
    }

    #[test]
    fn a_request_shows_neither_its_secrets_nor_its_query() {
        let request = ServiceRequest::post("/orders?token=secret").unwrap();
        let request = request.with_header("Authorization", "secret").unwrap();
        let request = request.with_json("secret").unwrap();
        let shown = format!("{request:?} {:?}", request.headers);
        assert!(shown.contains("/orders") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn a_value_that_is_no_json_is_refused() {
        let value = std::collections::BTreeMap::from([((1, 2), 3)]);
        let refused = ServiceRequest::post("/").unwrap().with_json(&value).unwrap_err();
        assert!(matches!(refused, InvalidRequest::Json(_)));
    }
}
