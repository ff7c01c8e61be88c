//! What an operator can set about an etcd, already checked. The password is here too, and does not print.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::formats::Prefix;
use crate::http_client::Tls;

/// How to reach an etcd cluster, and what to watch there.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `http://host:port` or `https://host:port`, at least one. One is asked at a time, the next when that fails.
    pub endpoints: Vec<String>,
    /// The keys to watch, none below another.
    pub prefixes: Vec<Prefix>,
    /// Whom to log in as, where etcd asks for it.
    pub user: Option<User>,
    /// CA, certificate and key for `https://`.
    pub tls: Tls,
    /// Everything is read anew this often (give or take half), whatever the watch says.
    pub refresh: Duration,
    /// Whether the agent is not ready without it.
    pub required: bool,
}

impl Settings {
    /// The defaults, without a user.
    #[must_use]
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>, prefixes: Vec<Prefix>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefixes,
            user: None,
            tls: Tls::default(),
            refresh: Duration::from_secs(300),
            required: true,
        }
    }

    /// Whether some prefix could have a service of this name below it.
    #[must_use]
    pub fn could_list(&self, service: &str) -> bool {
        self.prefixes.iter().any(|prefix| prefix.could_list(service))
    }
}

/// A user of etcd's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: Password,
}

/// A password, or where it is kept. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The password itself.
    Value(String),
    /// A file with the password in it, read for every connection.
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
        let mut settings = Settings::new(["http://127.0.0.1:2379"], vec![Prefix::new("/services").unwrap()]);
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
        let settings = |prefixes| Settings::new(["http://127.0.0.1:2379"], prefixes);
        let two = settings(vec![fixed("/a", "web"), fixed("/b", "mail")]);
        assert!(two.could_list("web") && two.could_list("mail") && !two.could_list("db"));
        assert!(settings(vec![fixed("/a", "web"), Prefix::new("/s").unwrap()]).could_list("db"));
    }
}
