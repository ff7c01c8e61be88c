//! The one constructor of HTTP clients.
//!
//! reqwest's defaults are those of a browser: it follows redirects, honours `HTTP_PROXY`, and
//! waits for ever. An agent that asks a registry needs none of that. And a machine without a CA
//! bundle must still be able to use plain HTTP.
//!
//! ```text
//! reloading    a client whose TLS files may be replaced
//! tls          TLS files become a TLS configuration
//! tls_errors   what a TLS error means, and what to do
//! ```

mod reloading;
mod tls;
mod tls_errors;

use std::time::Duration;

use bytes::{Bytes, BytesMut};

pub use reloading::ReloadingClient;
pub use tls::{Tls, check, is_server_name};
pub use tls_errors::{TlsSettings, advice, tls_error, with_causes};

/// Why a client could not be made, or why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A certificate or key file is missing, unreadable or empty.
    #[error("{path}: {detail}")]
    TlsFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The TLS settings do not fit together.
    #[error("TLS settings: {0}")]
    Tls(#[from] rustls::Error),
    /// An address that is not valid.
    #[error("address {address:?}: {detail}")]
    Address {
        /// The address as it was given, without credentials.
        address: String,
        /// What is expected.
        detail: &'static str,
    },
    /// reqwest refused to build the client, or the transfer failed.
    #[error(transparent)]
    Request(#[from] reqwest::Error),
    /// The body is larger than allowed.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

/// A client without proxies and redirects, with this deadline for a connection. Each request sets
/// its own total deadline.
///
/// # Errors
///
/// When a certificate or key file cannot be used. Missing system CA certificates are not an error:
/// then only plain HTTP works.
pub fn client(connect_timeout: Duration, tls: &Tls) -> Result<reqwest::Client, HttpError> {
    Ok(builder(connect_timeout, tls)?.build()?)
}

/// The builder of such a client, for callers that add to it (a Unix socket, more idle
/// connections).
///
/// # Errors
///
/// When a certificate or key file cannot be used.
pub fn builder(connect_timeout: Duration, tls: &Tls) -> Result<reqwest::ClientBuilder, HttpError> {
    Ok(reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect_timeout)
        .timeout(Duration::from_secs(30))
        .tcp_keepalive(Duration::from_secs(15))
        .pool_max_idle_per_host(8)
        .user_agent(concat!("pickd/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(tls::config(tls)?))
}

/// Reads a body to its end. Fails when the body is larger than `limit` bytes (after
/// decompression).
///
/// # Errors
///
/// When the transfer fails, its deadline passes, or the body is too large.
pub async fn body(mut response: reqwest::Response, limit: usize) -> Result<Bytes, HttpError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(HttpError::TooLarge { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// A CA certificate whose key was thrown away.
#[cfg(test)]
pub(crate) const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
    MIIBdTCCARugAwIBAgIUdMeYHPLUzzjKWTKI10PhR8M5dvgwCgYIKoZIzj0EAwIw\n\
    DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjUxNzM1MDdaGA8yMTI2MTEwMTE3MzUw\n\
    N1owDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCBx\n\
    HHPZjMl6HL70+YDfrSu7ZCXUCSjNfu5pB0CT+J1xIqFlJOQX9QqJLf6+KcoH7EJu\n\
    8LrfynQU8wMqm1HZThOjUzBRMB0GA1UdDgQWBBTk0M3gYoeuwfrqVa6qJXG8I6mK\n\
    jzAfBgNVHSMEGDAWgBTk0M3gYoeuwfrqVa6qJXG8I6mKjzAPBgNVHRMBAf8EBTAD\n\
    AQH/MAoGCCqGSM49BAMCA0gAMEUCIEawVgjFx9OIODtYQgJNWBwHjGnvddOntI4B\n\
    0bHbxgJWAiEAydHt+K/YeU9G4JvQYRFklXqHJMwgAFprsQGxn634pW0=\n\
    -----END CERTIFICATE-----\n";
