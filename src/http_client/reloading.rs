//! A client whose TLS files may be replaced while it is in use.
//!
//! ```text
//! a file changed (looked at every 5 s) ─┐
//! a TLS error ──────────────────────────┼─► read all files ─► a new client for the next requests
//! a reload was asked for ───────────────┘          └─ a file is not valid: the old client stays
//! ```
//!
//! Requests in flight keep the client that they were sent with, and its connections. Files that
//! belong together are often replaced one after the other. A certificate with another
//! certificate's key is not valid, so the old client stays until both files are there.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::tls::Stamp;
use super::{HttpError, Tls, builder};
use crate::balancer::Timestamp;

/// How often the files are looked at, if requests are sent.
const LOOK_EVERY: Duration = Duration::from_secs(5);

type Customize = Box<dyn Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder + Send + Sync>;

/// A client that reads its TLS files again.
pub struct ReloadingClient {
    connect_timeout: Duration,
    tls: Tls,
    customize: Customize,
    state: Mutex<State>,
}

struct State {
    client: reqwest::Client,
    /// The files as they were when they were last read, with success or without.
    stamps: Vec<Stamp>,
    looked_at: Option<Timestamp>,
    /// Whether to read the files before the next request, changed or not.
    due: bool,
    /// Why the files could not be used when they were last read.
    problem: Option<String>,
}

impl ReloadingClient {
    /// Reads the files. `customize` adds to the builder of each client.
    ///
    /// # Errors
    ///
    /// When a certificate or key file cannot be used.
    pub fn new(
        connect_timeout: Duration,
        tls: Tls,
        customize: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, HttpError> {
        // The stamps come first: a file that is replaced meanwhile is read once more.
        let stamps = tls.stamps();
        let client = customize(builder(connect_timeout, &tls)?).build()?;
        Ok(Self {
            connect_timeout,
            tls,
            customize: Box::new(customize),
            state: Mutex::new(State {
                client,
                stamps,
                looked_at: None,
                due: false,
                problem: None,
            }),
        })
    }

    /// The client for a request that is sent now.
    pub fn client(&self, now: Timestamp) -> reqwest::Client {
        let mut state = self.state();
        let look = state.looked_at.is_none_or(|at| now.since(at) >= LOOK_EVERY);
        if look || state.due {
            state.looked_at = Some(now);
            let stamps = self.tls.stamps();
            if state.due || stamps != state.stamps {
                self.read(&mut state, stamps);
            }
        }
        state.client.clone()
    }

    fn read(&self, state: &mut State, stamps: Vec<Stamp>) {
        let changed = stamps != state.stamps;
        (state.due, state.stamps) = (false, stamps);
        let made = builder(self.connect_timeout, &self.tls).and_then(|builder| Ok((self.customize)(builder).build()?));
        match made {
            Ok(client) => {
                if changed {
                    tracing::info!("TLS files read again");
                }
                (state.client, state.problem) = (client, None);
            }
            Err(error) => {
                let problem = error.to_string();
                if state.problem.as_ref() != Some(&problem) {
                    tracing::warn!(error = %problem, "TLS files cannot be used, keeping the previous ones");
                }
                state.problem = Some(problem);
            }
        }
    }

    /// Has the files read again before the next request.
    pub fn reload(&self) {
        self.state().due = true;
    }

    /// Why the files could not be used when they were last read.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ReloadingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadingClient")
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::CERTIFICATE;
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    /// A client that trusts this file, and how many clients were made.
    fn trusting(ca_file: &Path) -> (ReloadingClient, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let tls = Tls {
            ca_file: Some(ca_file.to_owned()),
            ..Tls::default()
        };
        let client = ReloadingClient::new(Duration::from_secs(1), tls, move |builder| {
            count.fetch_add(1, Ordering::Relaxed);
            builder
        });
        (client.unwrap(), made)
    }

    #[test]
    fn files_are_read_again_when_one_has_changed_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, CERTIFICATE).unwrap();
        let (client, made) = trusting(&file);
        let made_at = |seconds| {
            client.client(at(seconds));
            made.load(Ordering::Relaxed)
        };
        assert_eq!([made_at(0), made_at(5), made_at(100)], [1, 1, 1]);
        std::fs::write(&file, CERTIFICATE.repeat(2)).unwrap();
        assert_eq!([made_at(104), made_at(105), made_at(200)], [1, 2, 2]);
        // Another file under the same name, of the same length.
        let new = folder.path().join("new");
        std::fs::write(&new, CERTIFICATE.repeat(2)).unwrap();
        std::fs::rename(&new, &file).unwrap();
        assert_eq!([made_at(205), made_at(300)], [3, 3]);
    }

    #[test]
    fn files_that_cannot_be_used_leave_the_client_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, CERTIFICATE).unwrap();
        let (client, made) = trusting(&file);
        for (seconds, text) in [
            (10, ""),
            (20, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ] {
            std::fs::write(&file, text).unwrap();
            client.client(at(seconds));
            assert!(client.problem().unwrap().contains("ca.pem"));
        }
        std::fs::remove_file(&file).unwrap();
        client.client(at(30));
        assert!(client.problem().unwrap().contains("ca.pem"));
        assert_eq!(made.load(Ordering::Relaxed), 1);
        std::fs::write(&file, CERTIFICATE).unwrap();
        client.client(at(40));
        assert_eq!((client.problem(), made.load(Ordering::Relaxed)), (None, 2));
    }

    #[test]
    fn a_reload_reads_the_files_before_the_next_request() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), CERTIFICATE).unwrap();
        let (client, made) = trusting(file.path());
        client.client(at(1));
        client.reload();
        assert_eq!(made.load(Ordering::Relaxed), 1);
        for _ in 0..3 {
            client.client(at(1));
        }
        assert_eq!(made.load(Ordering::Relaxed), 2, "once");
    }
}
