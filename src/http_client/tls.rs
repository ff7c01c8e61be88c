//! TLS files become a TLS configuration.
//!
//! A server's certificate is trusted when a trusted CA has issued it. As in Consul's own tools, a
//! certificate that stands in the CA file itself is trusted, too, even if it is a CA certificate:
//! `openssl req -x509` makes such certificates, and webpki refuses them as certificates of a
//! server.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::HttpError;
use super::tls_errors::is_ca_certificate;

/// TLS files besides the system's own CA certificates, and how a server is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the CA certificates to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Folder of PEM files with the CA certificates to trust in place of the system's. `ca_file`
    /// takes precedence.
    pub ca_path: Option<PathBuf>,
    /// PEM files with the client's certificate chain and its key, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name to ask for and to verify, in place of the host of the address.
    pub server_name: Option<String>,
    /// Whether the certificate of the server is not verified at all.
    pub unverified: bool,
}

impl Tls {
    /// What the file system says about all files, to notice that a file was replaced.
    pub(super) fn stamps(&self) -> Vec<Stamp> {
        let mut paths: Vec<_> = self.ca_file.iter().cloned().collect();
        if let (None, Some(folder)) = (&self.ca_file, &self.ca_path) {
            paths.extend(files_of(folder).unwrap_or_default());
        }
        if let Some((certificate, key)) = &self.identity {
            paths.extend([certificate.clone(), key.clone()]);
        }
        paths.into_iter().map(Stamp::of).collect()
    }
}

/// What the file system says about one file. A file that is replaced or rewritten gets another
/// stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    path: PathBuf,
    /// Device, inode, length, and times of change; `None` if there is no such file.
    found: Option<[i128; 5]>,
}

impl Stamp {
    fn of(path: PathBuf) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        let found = fs::metadata(&path).ok().map(|file| {
            [
                file.dev().into(),
                file.ino().into(),
                file.len().into(),
                nanoseconds(file.mtime(), file.mtime_nsec()),
                nanoseconds(file.ctime(), file.ctime_nsec()),
            ]
        });
        Self { path, found }
    }
}

/// Whether a text can be the name of a server: a host name or an IP address.
#[must_use]
pub fn is_server_name(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
}

/// Checks whether the TLS files can be used, for callers that pass them to another library.
///
/// # Errors
///
/// When a certificate or key file cannot be used.
pub fn check(tls: &Tls) -> Result<(), HttpError> {
    config(tls).map(drop)
}

pub(super) fn config(tls: &Tls) -> Result<rustls::ClientConfig, HttpError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (roots, trusted) = roots(tls)?;
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let config = if tls.unverified {
        let verifier = Arc::new(Unverified(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier)
    } else if roots.is_empty() {
        builder.with_root_certificates(roots)
    } else {
        let name = tls.server_name.as_deref().map(server_name).transpose()?;
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let webpki = webpki.map_err(|error| rustls::Error::General(error.to_string()))?;
        let verifier = Arc::new(Verifier { webpki, trusted, name });
        builder.dangerous().with_custom_certificate_verifier(verifier)
    };
    Ok(match &tls.identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| tls_file(key, &error))?;
            let chain = certificates(certificate)?;
            config
                .with_client_auth_cert(chain, key_der)
                .map_err(|error| tls_file(certificate, &format!("{error} (its key: {})", key.display())))?
        }
    })
}

/// The trusted CAs, and the certificates of `ca_file` or `ca_path` as they are.
fn roots(tls: &Tls) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), HttpError> {
    let mut roots = RootCertStore::empty();
    let (origin, trusted) = match (&tls.ca_file, &tls.ca_path) {
        (Some(file), _) => (file, certificates(file)?),
        (None, Some(folder)) => (folder, certificates_of(folder)?),
        // An unreadable bundle leaves the store empty: https then fails with a certificate error,
        // and http works.
        (None, None) => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return Ok((roots, Vec::new()));
        }
    };
    for certificate in &trusted {
        roots
            .add(certificate.clone())
            .map_err(|error| tls_file(origin, &error))?;
    }
    Ok((roots, trusted))
}

fn server_name(text: &str) -> Result<ServerName<'static>, HttpError> {
    ServerName::try_from(text.to_owned())
        .map_err(|error| HttpError::Tls(rustls::Error::General(format!("server name {text:?}: {error}"))))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let certificates = parsed(path)?;
    if certificates.is_empty() {
        return Err(tls_file(path, &"no certificate in it"));
    }
    Ok(certificates)
}

/// The certificates of all files of a folder. Files without a certificate are passed over.
fn certificates_of(folder: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let mut found = Vec::new();
    for path in files_of(folder).map_err(|error| tls_file(folder, &error))? {
        found.extend(parsed(&path)?);
    }
    // Folders as of `openssl rehash` have each certificate under two names.
    found.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    found.dedup();
    if found.is_empty() {
        return Err(tls_file(folder, &"no certificate in any of its files"));
    }
    Ok(found)
}

/// The files of a folder, sorted. Hidden files do not count: in a mounted Kubernetes Secret they
/// are a second copy.
fn files_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && fs::metadata(entry.path()).is_ok_and(|found| found.is_file()) {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn parsed(path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| tls_file(path, &error))
}

fn tls_file(path: &Path, detail: &dyn std::fmt::Display) -> HttpError {
    HttpError::TlsFile {
        path: path.display().to_string(),
        detail: detail.to_string(),
    }
}

/// Verifies as webpki does, with the two differences that Consul's own tools have: a certificate
/// that is trusted as it is, and another name.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    /// Trusted as they are.
    trusted: Vec<CertificateDer<'static>>,
    /// The name to verify, in place of the host of the address.
    name: Option<ServerName<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = self.name.as_ref().unwrap_or(host);
        let verified = self
            .webpki
            .verify_server_cert(certificate, intermediates, name, ocsp, now);
        match verified {
            // webpki has checked the dates before, and has not checked the name.
            Err(error) if is_ca_certificate(&error) && self.trusted.contains(certificate) => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Accepts every certificate, if the server has its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
