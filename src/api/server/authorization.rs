//! Who may change what picks do.
//!
//! Whoever can reach a loopback listener or a Unix socket runs on this machine, and may. Over any other listener the admin token
//! is needed, and without one configured nobody may. It is the *listener* that counts, not the peer's address: a proxy on this
//! machine that passes requests on from elsewhere has a loopback address, too.
//!
//! Nobody may from a web page of another origin, whatever the listener: a browser on this machine is within everybody's reach.

use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use crate::api::aside;
use crate::api::error::ApiError;

/// A longer token file is some other file.
const LONGEST_TOKEN: u64 = 4_096;

const NO_TOKEN: &str = "overrides over this listener need api.admin_token_file, which is not set or cannot be read; loopback \
                        listeners and Unix sockets need none";

/// Whom a listener can be reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Processes on this machine only.
    ThisMachine,
    /// Others, too.
    Network,
}

/// Who asks. Set for requests that may change something.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) reach: Reach,
    pub(crate) name: PeerName,
}

/// Whom the log names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerName {
    /// Over TCP.
    Address(SocketAddr),
    /// Over a Unix socket, with the user if the system told.
    Unix(Option<u32>),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Unix(Some(user)) => write!(f, "unix, uid {user}"),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

/// The token that overrides over the network need. Clones share it, so that a reload reaches every listener.
#[derive(Clone, Default)]
pub struct AdminToken(Arc<Mutex<Option<TokenFile>>>);

struct TokenFile {
    path: PathBuf,
    /// What it held when it was last good.
    token: Option<Box<[u8]>>,
    /// Whether it has been told that the file cannot be used.
    told: bool,
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
    /// The token is what this file holds, white space around it apart. `None`: nobody has it.
    pub fn set_file(&self, path: Option<&Path>) {
        let mut file = self.lock();
        if file.as_ref().map(|file| &*file.path) != path {
            *file = path.map(|path| TokenFile {
                path: path.to_owned(),
                token: None,
                told: false,
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

    /// Whether this is the token, as the file has it now. The time it takes tells nothing of how much of it is right.
    fn is(&self, given: &[u8]) -> Option<bool> {
        let mut file = self.lock();
        let file = file.as_mut()?;
        file.refresh();
        let token = file.token.as_deref()?;
        Some(token.ct_eq(given).into())
    }
}

impl TokenFile {
    /// Reads the file again, since it may be replaced at any time. One that is away or empty is one that is being written: what
    /// it held before still counts.
    fn refresh(&mut self) {
        match read(&self.path) {
            Ok(token) => {
                self.token = Some(token);
                self.told = false;
            }
            Err(detail) if !self.told => {
                self.told = true;
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
        .and_then(|file| file.take(LONGEST_TOKEN + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    match bytes.trim_ascii() {
        [] => Err("it is empty".to_owned()),
        _ if bytes.len() as u64 > LONGEST_TOKEN => Err(format!("it is larger than {LONGEST_TOKEN} bytes")),
        token => Ok(token.into()),
    }
}

/// Whether this request may change what picks do.
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
    match aside(move || token.is(&given)).await? {
        Some(true) => Ok(()),
        Some(false) => Err(ApiError::Forbidden("this is not the admin token")),
        None => Err(ApiError::Forbidden(NO_TOKEN)),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (given.next()?.as_bytes(), given.next()) else {
        return None;
    };
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// A browser says where a page is from that asks for anything but a simple GET.
fn is_from_another_origin(headers: &HeaderMap) -> bool {
    let site_is_foreign = headers
        .get_all("sec-fetch-site")
        .iter()
        .any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    let is_ours = |origin: &[u8]| {
        let authority = origin
            .strip_prefix(b"http://")
            .or_else(|| origin.strip_prefix(b"https://"));
        authority
            .zip(host)
            .is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    };
    let mut origins = headers.get_all(header::ORIGIN).iter();
    site_is_foreign || origins.any(|origin| !is_ours(origin.as_bytes()))
}

#[cfg(test)]
mod tests {
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
            name: PeerName::Unix(None),
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
        assert!(!may(Reach::Network, &right, &none).await, "without a token nobody may");
        assert!(!format!("{token:?}").contains("canary"));
    }

    #[test]
    fn the_token_is_read_again_and_one_that_cannot_be_read_is_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = AdminToken::default();
        token.set_file(Some(&path));
        assert_eq!(token.is(b"one"), None, "the file is not there yet");
        std::fs::write(&path, "one").unwrap();
        assert_eq!(token.is(b"one"), Some(true));
        std::fs::write(&path, "\n").unwrap();
        assert_eq!((token.is(b""), token.is(b"one")), (Some(false), Some(true)));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(token.is(b"one"), Some(true));
        std::fs::write(&path, vec![b'x'; 5_000]).unwrap();
        assert_eq!(token.is(b"one"), Some(true));
        let other = folder.path().join("other");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!((token.is(b"one"), token.is(b"two")), (Some(false), Some(true)));
        token.set_file(None);
        assert_eq!(token.is(b"two"), None);
    }

    #[tokio::test]
    async fn web_pages_of_another_origin_may_not_whatever_the_listener() {
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
