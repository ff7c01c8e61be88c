//! What an operator can set about Consul, already checked. Includes secrets, which `Debug` does
//! not print.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::datacenter::Datacenter;
use super::wire::SOURCE;
use crate::balancer::Source;
use crate::balancer::text::lower_case;
use crate::discovery::guard::DEFAULT_HOLD;
use crate::http_client::Tls;

/// The most long polls at once. Consul lets each client address hold 200 connections, which all
/// processes at that address share. Consul also counts the polls of an agent that was restarted,
/// until their wait is over.
pub const MAX_WATCHES: usize = 64;

/// The kinds of service that callers connect to directly: no proxies and no gateways.
pub const KINDS: [&str; 2] = ["", "typical"];

/// How to reach a Consul agent, and what to watch there.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsulSettings {
    /// `http://host:port`, `https://host:port`, `host:port` (plain HTTP) or `unix:///path`.
    pub address: String,
    /// The services to watch.
    pub services: Names,
    /// The ACL token.
    pub token: Option<Token>,
    /// User and password for a proxy in front of Consul.
    pub basic_auth: Option<BasicAuth>,
    /// CA, certificate and key for `https://`.
    pub tls: Tls,
    /// Another datacenter than the agent's own.
    pub datacenter: Option<String>,
    /// The place of that datacenter among several; `None` for a single one.
    pub place: Option<Datacenter>,
    /// The namespace of the services (Consul Enterprise).
    pub namespace: Option<String>,
    /// The admin partition of the services (Consul Enterprise).
    pub partition: Option<String>,
    /// An expression in Consul's filter language about the instances to take.
    pub filter: Option<String>,
    /// The kinds of service to take, as Consul names them: `""`, `"connect-proxy"` and so on.
    pub kinds: Vec<String>,
    /// The tagged address to take, such as `wan`.
    pub tagged_address: Option<String>,
    /// How long one long poll waits for a change. Shorter waits cost requests, longer waits cost
    /// connections after a restart.
    pub wait: Duration,
    /// The most long polls at once, 1..=[`MAX_WATCHES`]. The services beyond that are read in
    /// turn.
    pub max_watches: usize,
    /// How often each service is read again (give or take half), during its long poll.
    pub refresh: Duration,
    /// An answer from a server that has not heard from its leader for longer removes nothing.
    pub max_stale: Duration,
    /// How long an instance that Consul has forgotten is kept at most while it accepts connections.
    /// Zero: until the removal is confirmed.
    pub hold: Duration,
    /// Whether the agent waits for this source before it is ready.
    pub required: bool,
}

impl ConsulSettings {
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
            place: None,
            namespace: None,
            partition: None,
            filter: None,
            kinds: KINDS.map(str::to_owned).to_vec(),
            tagged_address: None,
            wait: Duration::from_secs(55),
            max_watches: MAX_WATCHES,
            refresh: Duration::from_secs(90),
            max_stale: Duration::from_secs(30),
            hold: DEFAULT_HOLD,
            required: true,
        }
    }

    /// The source of the instances: `consul`, or `consul-<datacenter>` with several datacenters.
    #[must_use]
    pub fn source(&self) -> Source {
        self.place.as_ref().map_or(SOURCE, Datacenter::source)
    }
}

/// A choice of service names: globs, and globs of names to exclude. Upper and lower case are the
/// same, as in Consul.
#[derive(Clone)]
pub struct Names {
    globs: Vec<String>,
    exclude: Vec<String>,
    wanted: GlobSet,
    refused: GlobSet,
}

impl Names {
    /// Compiles the globs. A name without `*`, `?`, `[` or `{` stands for itself.
    ///
    /// # Errors
    ///
    /// When a text is not a valid glob.
    pub fn new<G: AsRef<str>, E: AsRef<str>>(globs: &[G], exclude: &[E]) -> Result<Self, globset::Error> {
        Ok(Self {
            wanted: compile(globs)?,
            refused: compile(exclude)?,
            globs: globs.iter().map(|glob| glob.as_ref().to_owned()).collect(),
            exclude: exclude.iter().map(|glob| glob.as_ref().to_owned()).collect(),
        })
    }

    /// Whether a service with this name is wanted.
    #[must_use]
    pub fn matches(&self, service: &str) -> bool {
        let service = lower_case(service);
        self.wanted.is_match(&*service) && !self.refused.is_match(&*service)
    }

    /// What the wanted names begin with, at least: the text of each glob before its first special
    /// character.
    pub(super) fn beginnings(&self) -> Vec<String> {
        let literal = |glob: &String| {
            glob.split(['*', '?', '[', '{', '\\'])
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        self.globs.iter().map(literal).collect()
    }
}

fn compile<G: AsRef<str>>(globs: &[G]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        // globset knows the case of ASCII letters only.
        set.add(GlobBuilder::new(&lower_case(glob.as_ref())).build()?);
    }
    set.build()
}

/// Every service but `consul`, the servers' own registration.
impl Default for Names {
    fn default() -> Self {
        // Both globs are constants. If they failed to compile, no service would be wanted.
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

/// An ACL token, or the file that holds it. `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// The token itself.
    Value(String),
    /// A file that holds the token. It is read again when Consul refuses the token.
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

/// User and password. `Debug` prints neither.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicAuth {
    pub(super) user: String,
    pub(super) password: String,
}

impl BasicAuth {
    /// A user with a password.
    #[must_use]
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: password.into(),
        }
    }

    /// Parses `user:password`, the form of `CONSUL_HTTP_AUTH`. Without a colon, the whole text is
    /// the user.
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
        assert_eq!(some.beginnings(), ["web", "user-", ""]);
        assert!(!Names::new::<&str, &str>(&[], &[]).unwrap().matches("web"));
        assert!(Names::new(&["[z"], &["consul"]).is_err());
        assert_eq!(all, Names::new(&["*"], &["consul"]).unwrap());
        assert_ne!(all, some);
    }

    #[test]
    fn settings_do_not_print_secrets() {
        let mut settings = ConsulSettings::new("http://127.0.0.1:8500");
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
