//! Which clients may change what picks do.
//!
//! Clients of a loopback listener or a Unix socket run on this machine, and may make changes.
//! Clients of any other listener need the admin token; if no token is configured, they are refused.
//! The listener decides, not the client's address: a proxy on this machine that forwards requests
//! from other machines has a loopback address as well.
//!
//! Requests from web pages of another origin are refused on every listener: any web page can make a
//! browser on this machine send them.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use super::peer::{Peer, Reach};
use crate::api::blocking::run_blocking;
use crate::api::error::ApiError;

/// A larger file is not a token file: its path must be a mistake.
const MAX_TOKEN_BYTES: u64 = 4_096;

const NO_TOKEN: &str = "overrides over this listener need api.admin_token_file, which is not set or cannot be read; loopback \
                        listeners and Unix sockets need none";

/// The token that clients of a network listener need for overrides. Clones share the token, so that
/// a reload reaches every listener.
#[derive(Clone, Default)]
pub struct AdminToken(Arc<Mutex<Option<TokenFile>>>);

struct TokenFile {
    path: PathBuf,
    /// The content of the file when it could last be used.
    token: Option<Box<[u8]>>,
    /// Whether the log has a warning that the file cannot be used.
    warned: bool,
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.lock().as_ref().map(|file| file.path.clone());
        f.debug_struct("AdminToken")
            .field("path", &path)
            .finish_non_exhaustive()
    }
}

impl AdminToken {
    /// Reads the token from this file, without white space around it. `None`: no token is accepted.
    pub fn set_file(&self, path: Option<&Path>) {
        let mut file = self.lock();
        if file.as_ref().map(|file| &*file.path) != path {
            *file = path.map(|path| TokenFile {
                path: path.to_owned(),
                token: None,
                warned: false,
            });
            if let Some(file) = &mut *file {
                file.refresh();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<TokenFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_set(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether `given` is the token that the file holds now; `None` if there is no token. The
    /// comparison takes constant time, so its duration does not show how much of `given` is right.
    fn matches(&self, given: &[u8]) -> Option<bool> {
        let mut file = self.lock();
        let file = file.as_mut()?;
        file.refresh();
        let token = file.token.as_deref()?;
        Some(token.ct_eq(given).into())
    }
}

impl TokenFile {
    /// Reads the file again, since it may be replaced at any time. A missing or empty file is
    /// being written, so the previous token stays valid.
    fn refresh(&mut self) {
        match read(&self.path) {
            Ok(token) => {
                self.token = Some(token);
                self.warned = false;
            }
            Err(detail) if !self.warned => {
                self.warned = true;
                let kept = self.token.is_some();
                tracing::warn!(file = %self.path.display(), detail, kept, "the admin token cannot be read");
            }
            Err(_) => {}
        }
    }
}

fn read(path: &Path) -> Result<Box<[u8]>, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    match bytes.trim_ascii() {
        [] => Err("the file is empty".to_owned()),
        _ if bytes.len() as u64 > MAX_TOKEN_BYTES => Err(format!("the file is larger than {MAX_TOKEN_BYTES} bytes")),
        token => Ok(token.into()),
    }
}

/// Refuses a request that may not change what picks do.
pub(in crate::api) async fn check(peer: &Peer, headers: &HeaderMap, token: &AdminToken) -> Result<(), ApiError> {
    if is_from_another_origin(headers) {
        return Err(ApiError::Forbidden(
            "overrides are not taken from web pages of another origin",
        ));
    }
    if peer.reach == Reach::ThisMachine {
        return Ok(());
    }
    let Some(given) = bearer(headers).map(<[u8]>::to_vec) else {
        return Err(ApiError::Forbidden(match token.is_set() {
            true => "overrides over this listener need the admin token: Authorization: Bearer TOKEN",
            false => NO_TOKEN,
        }));
    };
    let token = token.clone();
    match run_blocking(move || token.matches(&given)).await? {
        Some(true) => Ok(()),
        Some(false) => Err(ApiError::Forbidden("this is not the admin token")),
        None => Err(ApiError::Forbidden(NO_TOKEN)),
    }
}

/// The token of the Authorization header. None if there are two such headers.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (given.next()?.as_bytes(), given.next()) else {
        return None;
    };
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Whether a web page of another origin sent the request. Browsers name the page's origin in all
/// requests but simple GETs.
fn is_from_another_origin(headers: &HeaderMap) -> bool {
    let site_is_foreign = headers
        .get_all("sec-fetch-site")
        .iter()
        .any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    let is_own = |origin: &[u8]| {
        let authority = origin
            .strip_prefix(b"http://")
            .or_else(|| origin.strip_prefix(b"https://"));
        authority
            .zip(host)
            .is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    };
    let mut origins = headers.get_all(header::ORIGIN).iter();
    site_is_foreign || origins.any(|origin| !is_own(origin.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::peer::PeerAddress;
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(pair).collect()
    }

    fn peer(reach: Reach) -> Peer {
        Peer {
            reach,
            address: PeerAddress::Unix(None),
        }
    }

    async fn may(reach: Reach, lines: &[(&'static str, &'static str)], token: &AdminToken) -> bool {
        check(&peer(reach), &headers(lines), token).await.is_ok()
    }

    #[tokio::test]
    async fn this_machine_needs_no_token_and_the_network_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, " canary-1 \n").unwrap();
        let (none, token) = (AdminToken::default(), AdminToken::default());
        token.set_file(Some(&path));
        let right = [("authorization", "Bearer canary-1")];
        assert!(may(Reach::ThisMachine, &[], &none).await && may(Reach::ThisMachine, &[], &token).await);
        assert!(may(Reach::Network, &right, &token).await);
        assert!(may(Reach::Network, &[("authorization", "bearer  canary-1")], &token).await);
        for wrong in [
            &[][..],
            &[("authorization", "Bearer canary-2")],
            &[("authorization", "Bearer canary-11")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Basic canary-1")],
            &[("authorization", "canary-1")],
            &[
                ("authorization", "Bearer canary-1"),
                ("authorization", "Bearer canary-1"),
            ],
        ] {
            assert!(!may(Reach::Network, wrong, &token).await, "{wrong:?}");
            assert!(!may(Reach::Network, wrong, &none).await, "{wrong:?}");
        }
        assert!(
            !may(Reach::Network, &right, &none).await,
            "without a token all are refused"
        );
        assert!(!format!("{token:?}").contains("canary"));
    }

    #[test]
    fn the_token_is_read_again_and_kept_while_its_file_is_unreadable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = AdminToken::default();
        token.set_file(Some(&path));
        assert_eq!(token.matches(b"one"), None, "the file is not there yet");
        std::fs::write(&path, "one").unwrap();
        assert_eq!(token.matches(b"one"), Some(true));
        std::fs::write(&path, "\n").unwrap();
        assert_eq!((token.matches(b""), token.matches(b"one")), (Some(false), Some(true)));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(token.matches(b"one"), Some(true));
        std::fs::write(&path, vec![b'x'; 5_000]).unwrap();
        assert_eq!(token.matches(b"one"), Some(true));
        let other = folder.path().join("other");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(
            (token.matches(b"one"), token.matches(b"two")),
            (Some(false), Some(true))
        );
        token.set_file(None);
        assert_eq!(token.matches(b"two"), None);
    }

    #[tokio::test]
    async fn web_pages_of_another_origin_are_refused_on_every_listener() {
        let none = AdminToken::default();
        let host = ("host", "localhost:7425");
        for (fine, lines) in [
            (true, &[host][..]),
            (true, &[host, ("origin", "http://localhost:7425")]),
            (true, &[host, ("sec-fetch-site", "same-origin")]),
            (true, &[host, ("sec-fetch-site", "none")]),
            (false, &[host, ("origin", "http://evil.test")]),
            (false, &[host, ("origin", "http://localhost:8080")]),
            (false, &[host, ("origin", "null")]),
            (false, &[("origin", "http://localhost:7425")]),
            (false, &[host, ("sec-fetch-site", "cross-site")]),
            (false, &[host, ("sec-fetch-site", "same-site")]),
        ] {
            assert_eq!(may(Reach::ThisMachine, lines, &none).await, fine, "{lines:?}");
        }
    }
}
