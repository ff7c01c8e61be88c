//! The one constructor of HTTP clients.
//!
//! reqwest's defaults are those of a browser: it follows redirects, honours `HTTP_PROXY`, and
//! waits for ever. An agent that asks a registry needs none of that. And a machine without a CA
//! bundle must still be able to use plain HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// TLS files besides the system's own CA certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the CA certificates to trust in place of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// PEM files with the client's certificate chain and its key, for mutual TLS.
    pub identity: Option<(std::path::PathBuf, std::path::PathBuf)>,
}

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
        .tls_backend_preconfigured(tls_config(tls)?))
}

/// Checks whether the TLS files can be used, for callers that pass them to another library.
///
/// # Errors
///
/// When a certificate or key file cannot be used.
pub fn check(tls: &Tls) -> Result<(), HttpError> {
    tls_config(tls).map(drop)
}

fn tls_config(tls: &Tls) -> Result<rustls::ClientConfig, HttpError> {
    let mut roots = rustls::RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
        }
        // An unreadable bundle leaves the store empty: https then fails with a certificate error,
        // and http works.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match &tls.identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| tls_file(key, &error))?;
            config.with_client_auth_cert(certificates(certificate)?, key_der)?
        }
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| tls_file(path, &error))?;
    if certificates.is_empty() {
        return Err(tls_file(path, &"no certificate in it"));
    }
    Ok(certificates)
}

fn tls_file(path: &Path, detail: &dyn std::fmt::Display) -> HttpError {
    HttpError::TlsFile {
        path: path.display().to_string(),
        detail: detail.to_string(),
    }
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
