//! What a TLS error means, and what to do about it.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// The TLS error among the causes of an error.
#[must_use]
pub fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error does not name the error that it wraps as its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// Which settings there are for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsSettings {
    /// All of [`Tls`](super::Tls).
    All,
    /// Files alone: another library makes the connection.
    Files,
}

/// The error with its causes, and with what to do if it is a TLS error.
#[must_use]
pub fn with_causes(error: &(dyn Error + 'static), settings: TlsSettings) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        source = error.source();
    }
    if let Some(advice) = advice(error, settings) {
        let _ = write!(text, "; {advice}");
    }
    text
}

/// What to do, if the error is a TLS error that an operator can do something about.
#[must_use]
pub fn advice(error: &(dyn Error + 'static), settings: TlsSettings) -> Option<String> {
    tls_error(error).and_then(|error| advice_on(error, settings))
}

/// Whether the certificate of a server was refused because it is a CA certificate.
pub(super) fn is_ca_certificate(error: &rustls::Error) -> bool {
    webpki_error(error) == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// The errors of webpki that rustls has no name for.
fn webpki_error(error: &rustls::Error) -> Option<&webpki::Error> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

fn advice_on(error: &rustls::Error, settings: TlsSettings) -> Option<String> {
    let all = settings == TlsSettings::All;
    let fixed = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no trusted CA has issued the server's certificate: put the CA's certificate into ca_file"
        }
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the server's certificate has expired: renew it"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "the server's certificate is not valid yet: compare the clocks of both machines",
        rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            return Some(match presented.is_empty() {
                true => String::from(
                    "the server's certificate has no subjectAltName (a common name does not count): issue it again \
                     with one, such as -addext subjectAltName=DNS:consul.example,IP:127.0.0.1",
                ),
                false if all => {
                    String::from("use a name of the server's certificate in the address, or as tls_server_name")
                }
                false => String::from("use a name of the server's certificate in the address"),
            });
        }
        error if is_ca_certificate(error) && !all => {
            "the server's certificate is a CA certificate: issue it again with -addext basicConstraints=critical,CA:FALSE"
        }
        error if is_ca_certificate(error) => {
            "the server's certificate is a CA certificate: put this very certificate into ca_file, or issue it again \
             with -addext basicConstraints=critical,CA:FALSE"
        }
        error if webpki_error(error) == Some(&webpki::Error::UnsupportedCertVersion) => {
            "the server's certificate has an old version, without extensions: issue it again with a subjectAltName"
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server wants a client certificate: set cert_file and key_file"
        }
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate,
        ) => "the server does not accept the client certificate (cert_file), or wants one",
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS at this port: use http://",
        _ => return None,
    };
    Some(fixed.to_owned())
}
