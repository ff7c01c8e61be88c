//! What an operator can set about an etcd cluster, already checked. Includes the password, which
//! `Debug` does not print.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::formats::Prefix;
use crate::discovery::guard::DEFAULT_HOLD;
use crate::http_client::Tls;

/// How to reach an etcd cluster, and what to watch there.
#[derive(Clone, Debug, PartialEq)]
pub struct EtcdSettings {
    /// `http://host:port` or `https://host:port`, at least one endpoint. One endpoint is used at a
    /// time, the next after a failure.
    pub endpoints: Vec<String>,
    /// The keys to watch. No prefix is below another.
    pub prefixes: Vec<Prefix>,
    /// The user to log in as, if etcd asks for authentication.
    pub user: Option<User>,
    /// CA, certificate and key for `https://`.
    pub tls: Tls,
    /// How often all keys are listed again (give or take half), during a watch.
    pub refresh: Duration,
    /// How long an instance that etcd has forgotten is kept at most while it accepts connections.
    /// Zero: until the removal is confirmed.
    pub hold: Duration,
    /// Whether the agent waits for this source before it is ready.
    pub required: bool,
}

impl EtcdSettings {
    /// The defaults, without a user.
    #[must_use]
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>, prefixes: Vec<Prefix>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefixes,
            user: None,
            tls: Tls::default(),
            refresh: Duration::from_secs(300),
            hold: DEFAULT_HOLD,
            required: true,
        }
    }

    /// Whether a service of this name could be below some prefix.
    #[must_use]
    pub fn could_list(&self, service: &str) -> bool {
        self.prefixes.iter().any(|prefix| prefix.could_list(service))
    }
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: Password,
}

/// A password, or the file that holds it. `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The password itself.
    Value(String),
    /// A file that holds the password. It is read for every connection.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_do_not_print_secrets() {
        let mut settings = EtcdSettings::new(["http://127.0.0.1:2379"], vec![Prefix::new("/services").unwrap()]);
        let password = Password::Value("hunter2".to_owned());
        settings.user = Some(User {
            name: "alice".to_owned(),
            password,
        });
        let text = format!("{settings:?}");
        assert!(text.contains("alice") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_cluster_could_list_what_any_of_its_prefixes_could() {
        let fixed = |prefix: &str, service: &str| Prefix::new(prefix).unwrap().with_service(service.parse().unwrap());
        let settings = |prefixes| EtcdSettings::new(["http://127.0.0.1:2379"], prefixes);
        let two = settings(vec![fixed("/a", "web"), fixed("/b", "mail")]);
        assert!(two.could_list("web") && two.could_list("mail") && !two.could_list("db"));
        assert!(settings(vec![fixed("/a", "web"), Prefix::new("/s").unwrap()]).could_list("db"));
    }
}
