//! What an operator can set about a Consul, already checked. Secrets are here too, and none of them prints.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::http_client::Tls;

/// The most long polls at once. Consul lets one client address hold 200 connections, shared with everyone else there, and
/// counts those of an agent that restarted until their wait is over.
pub const MAX_WATCHES: usize = 64;

/// How to reach a Consul agent, and what to watch there.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `http://host:port`, `https://host:port`, `host:port` (plain HTTP) or `unix:///path`.
    pub address: String,
    /// The services to watch.
    pub services: Names,
    /// ACL token.
    pub token: Option<Token>,
    /// For a proxy in front of Consul.
    pub basic_auth: Option<BasicAuth>,
    /// CA, certificate and key for `https://`.
    pub tls: Tls,
    /// Another datacenter than the agent's own.
    pub datacenter: Option<String>,
    /// How long one long poll waits for a change. Shorter costs requests, longer costs connections after a restart.
    pub wait: Duration,
    /// Long polls at once, 1..=[`MAX_WATCHES`]; services beyond them are read in turn.
    pub max_watches: usize,
    /// Each service is read anew this often (give or take half), whatever its long poll says.
    pub refresh: Duration,
    /// An answer from a server that has not heard of its leader for so long takes nothing away.
    pub max_stale: Duration,
    /// Whether the agent is not ready without it.
    pub required: bool,
}

impl Settings {
    /// The defaults: every service but `consul` itself.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            services: Names::default(),
            token: None,
            basic_auth: None,
            tls: Tls::default(),
            datacenter: None,
            wait: Duration::from_secs(55),
            max_watches: MAX_WATCHES,
            refresh: Duration::from_secs(90),
            max_stale: Duration::from_secs(30),
            required: true,
        }
    }
}

/// A choice of service names: globs, and globs that take out again. Upper and lower case are one, as in Consul.
#[derive(Clone)]
pub struct Names {
    globs: Vec<String>,
    exclude: Vec<String>,
    wanted: GlobSet,
    refused: GlobSet,
}

impl Names {
    /// Compiles the globs. Names without `*`, `?`, `[` or `{` stand for themselves.
    ///
    /// # Errors
    ///
    /// When one is not a glob.
    pub fn new<G: AsRef<str>, E: AsRef<str>>(globs: &[G], exclude: &[E]) -> Result<Self, globset::Error> {
        Ok(Self {
            wanted: compile(globs)?,
            refused: compile(exclude)?,
            globs: globs.iter().map(|glob| glob.as_ref().to_owned()).collect(),
            exclude: exclude.iter().map(|glob| glob.as_ref().to_owned()).collect(),
        })
    }

    /// Whether a service of this name is wanted.
    #[must_use]
    pub fn matches(&self, service: &str) -> bool {
        self.wanted.is_match(service) && !self.refused.is_match(service)
    }
}

fn compile<G: AsRef<str>>(globs: &[G]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(GlobBuilder::new(glob.as_ref()).case_insensitive(true).build()?);
    }
    set.build()
}

/// Everything but `consul`, the servers' own registration.
impl Default for Names {
    fn default() -> Self {
        // Both globs are constants; should they ever fail to compile, nothing is wanted.
        Self::new(&["*"], &["consul"]).unwrap_or_else(|_| Self {
            globs: Vec::new(),
            exclude: Vec::new(),
            wanted: GlobSet::empty(),
            refused: GlobSet::empty(),
        })
    }
}

impl PartialEq for Names {
    fn eq(&self, other: &Self) -> bool {
        (&self.globs, &self.exclude) == (&other.globs, &other.exclude)
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("globs", &self.globs)
            .field("exclude", &self.exclude)
            .finish()
    }
}

/// An ACL token, or where it is kept. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// The token itself.
    Value(String),
    /// A file with the token in it, read again when Consul refuses the token.
    File(PathBuf),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// User and password. Its `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicAuth {
    pub(super) user: String,
    pub(super) password: String,
}

impl BasicAuth {
    /// From both parts.
    #[must_use]
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: password.into(),
        }
    }

    /// From `user:password`, the form of `CONSUL_HTTP_AUTH`. Without a colon, all of it is the user.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        Self::new(user, password)
    }
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BasicAuth(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_globs_less_what_is_excluded_in_any_case() {
        let all = Names::default();
        assert!(all.matches("web") && all.matches("consul-ui") && !all.matches("consul") && !all.matches("Consul"));
        let some = Names::new(&["web", "user-*", "{a,b}.x"], &["user-test-*"]).unwrap();
        for (service, wanted) in [
            ("web", true),
            ("WEB", true),
            ("web2", false),
            ("user-1", true),
            ("user-test-1", false),
            ("b.x", true),
        ] {
            assert_eq!(some.matches(service), wanted, "{service}");
        }
        assert!(!Names::new::<&str, &str>(&[], &[]).unwrap().matches("web"));
        assert!(Names::new(&["[z"], &["consul"]).is_err());
        assert_eq!(all, Names::new(&["*"], &["consul"]).unwrap());
        assert_ne!(all, some);
    }

    #[test]
    fn settings_do_not_print_secrets() {
        let mut settings = Settings::new("http://127.0.0.1:8500");
        settings.token = Some(Token::Value(String::from("s3cret")));
        settings.basic_auth = Some(BasicAuth::parse("alice:hunter2"));
        let text = format!("{settings:?}");
        assert!(
            !text.contains("s3cret") && !text.contains("hunter2") && !text.contains("alice"),
            "{text}"
        );
        assert_eq!(settings.basic_auth, Some(BasicAuth::new("alice", "hunter2")));
    }
}
