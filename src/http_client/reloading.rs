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
