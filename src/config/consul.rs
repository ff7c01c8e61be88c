//! `[consul]`, `--consul`, `--consul-service` and the `CONSUL_*` variables.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::address::ConsulAddress;
use super::checker::{Checker, DAY, Origin, RawDuration, SECOND};
use super::config_sources::{ConfigSources, Flags, Variables};
use crate::discovery::consul;
use crate::http_client::{self, Tls};

/// The flag that stands in for `consul.services`.
const CONSUL_SERVICE: Origin = Origin::Named("--consul-service");

/// The most datacenters. Each has a poll of its catalog, and long polls of its own.
const MAX_DATACENTERS: usize = 16;

const TEN_MINUTES: Duration = Duration::from_secs(600);

/// `[consul]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawConsul {
    address: Option<Spanned<String>>,
    services: Option<Spanned<Vec<Spanned<String>>>>,
    exclude: Option<Vec<Spanned<String>>>,
    token_file: Option<Spanned<String>>,
    datacenter: Option<Spanned<String>>,
    datacenters: Option<Spanned<Vec<Spanned<String>>>>,
    namespace: Option<Spanned<String>>,
    partition: Option<Spanned<String>>,
    filter: Option<Spanned<String>>,
    kinds: Option<Spanned<Vec<String>>>,
    tagged_address: Option<Spanned<String>>,
    wait: Option<RawDuration>,
    max_watches: Option<Spanned<i64>>,
    refresh: Option<RawDuration>,
    max_stale: Option<RawDuration>,
    hold: Option<RawDuration>,
    required: Option<bool>,
    ca_file: Option<Spanned<String>>,
    ca_path: Option<Spanned<String>>,
    cert_file: Option<Spanned<String>>,
    key_file: Option<Spanned<String>>,
    tls_server_name: Option<Spanned<String>>,
    tls_verify: Option<bool>,
}

impl Checker<'_> {
    pub(super) fn consul(
        &mut self,
        raw: Option<&Spanned<RawConsul>>,
        from: &ConfigSources,
    ) -> Vec<consul::ConsulSettings> {
        let ConfigSources { flags, environment, .. } = from;
        if raw.is_none() && flags.consul.is_none() {
            if !flags.consul_services.is_empty() {
                let message = "there is no Consul to take services from: give --consul or a [consul] table, too";
                self.refuse(CONSUL_SERVICE, message);
            }
            return Vec::new();
        }
        let without = RawConsul::default();
        let raw = raw.map_or(&without, Spanned::get_ref);

        let mut settings = consul::ConsulSettings::new(self.consul_address(raw, flags, environment));
        settings.services = self.consul_names(raw, flags);
        settings.token = self.consul_token(raw, environment);
        settings.basic_auth = environment.get("CONSUL_HTTP_AUTH").map(consul::BasicAuth::parse);
        settings.tls = self.consul_tls(raw, environment);
        if let Some(written) = &raw.datacenter
            && !written.get_ref().is_empty()
        {
            self.check_datacenter("consul.datacenter", written);
            settings.datacenter = Some(written.get_ref().clone());
        }
        settings.namespace = self.consul_scope("namespace", "CONSUL_NAMESPACE", raw.namespace.as_ref(), environment);
        settings.partition = self.consul_scope("partition", "CONSUL_PARTITION", raw.partition.as_ref(), environment);
        settings.filter = text(raw.filter.as_ref());
        settings.tagged_address = text(raw.tagged_address.as_ref());
        if let Some(written) = &raw.kinds {
            settings.kinds.clone_from(written.get_ref());
            if settings.kinds.is_empty() {
                let message = "consul.kinds: expected at least one kind; \"\" is the kind of an ordinary service";
                self.refuse(written.span(), message);
            }
        }
        if let Some(written) = &raw.max_watches {
            let found = *written.get_ref();
            match usize::try_from(found) {
                Ok(count @ 1..=consul::MAX_WATCHES) => settings.max_watches = count,
                _ => {
                    let message = format!("consul.max_watches {found}: expected 1 to {}", consul::MAX_WATCHES);
                    self.refuse(written.span(), message);
                }
            }
        }
        settings.wait = self.duration("consul.wait", raw.wait.as_ref(), settings.wait, (SECOND, TEN_MINUTES));
        settings.refresh = self.duration("consul.refresh", raw.refresh.as_ref(), settings.refresh, (SECOND, DAY));
        settings.max_stale = self.duration(
            "consul.max_stale",
            raw.max_stale.as_ref(),
            settings.max_stale,
            (SECOND, DAY),
        );
        settings.hold = self.duration("consul.hold", raw.hold.as_ref(), settings.hold, (Duration::ZERO, DAY));
        settings.required = raw.required.unwrap_or(settings.required);
        match &raw.datacenters {
            Some(written) => {
                if let Some(single) = raw.datacenter.as_ref().filter(|single| !single.get_ref().is_empty()) {
                    let message = "consul.datacenter: consul.datacenters is set, too: leave one of them out";
                    self.refuse(single.span(), message);
                }
                consul::of_several(&settings, &self.datacenters(written))
            }
            None => vec![settings],
        }
    }

    /// The names of several datacenters, in lower case as in Consul.
    fn datacenters(&mut self, written: &Spanned<Vec<Spanned<String>>>) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in written.get_ref() {
            self.check_datacenter("consul.datacenters", name);
            let lower = name.get_ref().to_ascii_lowercase();
            if lower.is_empty() {
                let message = "consul.datacenters \"\": expected the name of a datacenter";
                self.refuse(name.span(), message);
            } else if names.contains(&lower) {
                let message = format!("consul.datacenters {lower:?}: listed twice");
                self.refuse(name.span(), message);
            }
            names.push(lower);
        }
        if !(1..=MAX_DATACENTERS).contains(&names.len()) {
            let message = format!("consul.datacenters: expected 1 to {MAX_DATACENTERS} names");
            self.refuse(written.span(), message);
        }
        names
    }

    fn check_datacenter(&mut self, key: &str, written: &Spanned<String>) {
        let name = written.get_ref();
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
            let message = format!("{key} {name:?}: expected letters, digits, - and _ only");
            self.refuse(written.span(), message);
        }
    }

    /// `CONSUL_HTTP_SSL` adds TLS, as in Consul's own tools, but not to a URL given by a flag.
    fn consul_address(&mut self, raw: &RawConsul, flags: &Flags, environment: &Variables) -> String {
        const DEFAULT: &str = "http://127.0.0.1:8500";
        let https = self.yes_or_no("CONSUL_HTTP_SSL", environment).unwrap_or(false);
        if let Some(address) = &flags.consul {
            return address.url(https);
        }
        let (written, origin, key) = match (environment.get("CONSUL_HTTP_ADDR"), &raw.address) {
            (Some(written), _) => (written, Origin::Named("CONSUL_HTTP_ADDR"), ""),
            (None, Some(written)) => (written.get_ref().as_str(), written.span().into(), "consul.address "),
            (None, None) => (DEFAULT, Origin::Named("the default address"), ""),
        };
        match written.parse::<ConsulAddress>() {
            Ok(address) if https => address.with_https().url(true),
            Ok(address) => address.url(false),
            Err(error) => {
                self.refuse(origin, format!("{key}{error}"));
                DEFAULT.to_owned()
            }
        }
    }

    /// A variable that is true or false, written as Consul's own tools accept that.
    fn yes_or_no(&mut self, name: &'static str, environment: &Variables) -> Option<bool> {
        match environment.get(name)? {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            written => {
                self.refuse(Origin::Named(name), format!("{written:?}: expected true or false"));
                None
            }
        }
    }

    /// The namespace or the partition, from its variable or from the file.
    fn consul_scope(
        &mut self,
        key: &str,
        variable: &'static str,
        written: Option<&Spanned<String>>,
        environment: &Variables,
    ) -> Option<String> {
        let (name, origin, key) = match (environment.get(variable), written) {
            (Some(name), _) => (name, Origin::Named(variable), String::new()),
            (None, Some(written)) => (
                written.get_ref().as_str(),
                written.span().into(),
                format!("consul.{key} "),
            ),
            (None, None) => return None,
        };
        if name.is_empty() {
            return None;
        }
        // `*` asks for all namespaces, whose services may have the same names.
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.len() > 64 || !name.chars().all(valid) {
            let message = format!("{key}{name:?}: expected one name of up to 64 letters, digits, - and _");
            self.refuse(origin, message);
        }
        Some(name.to_owned())
    }

    fn consul_names(&mut self, raw: &RawConsul, flags: &Flags) -> consul::Names {
        let mut services = self.globs("consul.services", raw.services.as_ref().map(Spanned::get_ref), "*");
        let exclude = self.globs("consul.exclude", raw.exclude.as_ref(), "consul");
        if let Some(written) = &raw.services
            && services.is_empty()
        {
            self.refuse(
                written.span(),
                "consul.services: expected at least one name or glob, such as \"*\"",
            );
        }
        if !flags.consul_services.is_empty() {
            services.clone_from(&flags.consul_services);
            for glob in &services {
                if let Err(error) = glob_is_fine(glob) {
                    self.refuse(CONSUL_SERVICE, error);
                }
            }
        }
        consul::Names::new(&services, &exclude).unwrap_or_else(|error| {
            // A wrong glob is refused already. What is left is too many globs to compile together.
            if self.refusals.is_empty() {
                self.refuse(Origin::Named("consul.services and consul.exclude"), error);
            }
            consul::Names::default()
        })
    }

    fn globs(&mut self, key: &str, written: Option<&Vec<Spanned<String>>>, default: &str) -> Vec<String> {
        let Some(written) = written else {
            return vec![default.to_owned()];
        };
        for glob in written {
            if let Err(error) = glob_is_fine(glob.get_ref()) {
                self.refuse(glob.span(), format!("{key} {error}"));
            }
        }
        written.iter().map(|glob| glob.get_ref().clone()).collect()
    }

    fn consul_token(&self, raw: &RawConsul, environment: &Variables) -> Option<consul::Token> {
        if let Some(path) = environment.get("CONSUL_HTTP_TOKEN_FILE") {
            return Some(consul::Token::File(path.into()));
        }
        if let Some(token) = environment.get("CONSUL_HTTP_TOKEN") {
            return Some(consul::Token::Value(token.to_owned()));
        }
        self.path_from(None, raw.token_file.as_ref())
            .map(|given| consul::Token::File(given.value))
    }

    fn consul_tls(&mut self, raw: &RawConsul, environment: &Variables) -> Tls {
        let variable = |name| environment.get(name).map(|path| (name, path));
        let mut ca_file = self.path_from(variable("CONSUL_CACERT"), raw.ca_file.as_ref());
        let mut ca_path = self.path_from(variable("CONSUL_CAPATH"), raw.ca_path.as_ref());
        if let (Some(file), Some(folder)) = (&ca_file, &ca_path) {
            match (&file.origin, &folder.origin) {
                (Origin::File(_), Origin::File(span)) => {
                    let message = "consul.ca_path: consul.ca_file is set, too: leave one of them out";
                    self.refuse(span.clone(), message);
                }
                // A variable overrides both keys.
                (Origin::File(_), Origin::Named(_)) => ca_file = None,
                // As in Consul's own tools, CONSUL_CACERT overrides CONSUL_CAPATH.
                (Origin::Named(_), _) => ca_path = None,
            }
        }
        let certificate = self.path_from(variable("CONSUL_CLIENT_CERT"), raw.cert_file.as_ref());
        let key = self.path_from(variable("CONSUL_CLIENT_KEY"), raw.key_file.as_ref());
        let (cert_key, key_key) = (
            "consul.cert_file (or CONSUL_CLIENT_CERT)",
            "consul.key_file (or CONSUL_CLIENT_KEY)",
        );
        let verify = self.yes_or_no("CONSUL_HTTP_SSL_VERIFY", environment).or(raw.tls_verify);
        Tls {
            ca_file: ca_file.map(|given| given.value),
            ca_path: ca_path.map(|given| given.value),
            identity: self.identity((certificate, cert_key), (key, key_key)),
            server_name: self.consul_server_name(raw, environment),
            unverified: verify == Some(false),
        }
    }

    fn consul_server_name(&mut self, raw: &RawConsul, environment: &Variables) -> Option<String> {
        const VARIABLE: &str = "CONSUL_TLS_SERVER_NAME";
        let (name, origin, key) = match (environment.get(VARIABLE), &raw.tls_server_name) {
            (Some(name), _) => (name, Origin::Named(VARIABLE), ""),
            (None, Some(written)) => (
                written.get_ref().as_str(),
                written.span().into(),
                "consul.tls_server_name ",
            ),
            (None, None) => return None,
        };
        if name.is_empty() {
            return None;
        }
        if !http_client::is_server_name(name) {
            self.refuse(origin, format!("{key}{name:?}: expected a host name or an IP address"));
        }
        Some(name.to_owned())
    }
}

/// A text that is not empty.
fn text(written: Option<&Spanned<String>>) -> Option<String> {
    let text = written?.get_ref();
    (!text.trim().is_empty()).then(|| text.clone())
}

fn glob_is_fine(glob: &str) -> Result<(), String> {
    if glob.is_empty() {
        return Err("\"\": expected a service's name or a glob, such as \"*\" or \"user-*\"".to_owned());
    }
    match consul::Names::new::<&str, &str>(&[glob], &[]) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{glob:?}: {}", error.kind())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::SourceConfig;
    use super::super::tests::{config_sources, consul, consul_flag, refused_once, with};
    use super::*;
    use crate::discovery::consul;

    #[test]
    fn settings_of_consul_are_checked() {
        for (text, refusal) in [
            (
                "[consul]\naddress = \"consul\"",
                "p.toml:2:11: consul.address \"consul\": expected \"http://host:port\", \"https://host:port\", \
                 \"host:port\" or \"unix:///path/to/socket\"",
            ),
            (
                "[consul]\naddress = \"http://a:b@c:1\"",
                "p.toml:2:11: consul.address a user and password do not belong in the address: set CONSUL_HTTP_AUTH",
            ),
            (
                "[consul]\nservices = []",
                "p.toml:2:12: consul.services: expected at least one name or glob, such as \"*\"",
            ),
            (
                "[consul]\nservices = [\"a\", \"b[\"]",
                "p.toml:2:18: consul.services \"b[\": unclosed character class; missing ']'",
            ),
            (
                "[consul]\nexclude = [\"\"]",
                "p.toml:2:12: consul.exclude \"\": expected a service's name or a glob, such as \"*\" or \"user-*\"",
            ),
            (
                "[consul]\ndatacenter = \"dc 1\"",
                "p.toml:2:14: consul.datacenter \"dc 1\": expected letters, digits, - and _ only",
            ),
            (
                "[consul]\nnamespace = \"*\"",
                "p.toml:2:13: consul.namespace \"*\": expected one name of up to 64 letters, digits, - and _",
            ),
            (
                "[consul]\npartition = \"a/b\"",
                "p.toml:2:13: consul.partition \"a/b\": expected one name of up to 64 letters, digits, - and _",
            ),
            (
                "[consul]\nkinds = []",
                "p.toml:2:9: consul.kinds: expected at least one kind; \"\" is the kind of an ordinary service",
            ),
            (
                "[consul]\ntls_server_name = \"a b\"",
                "p.toml:2:19: consul.tls_server_name \"a b\": expected a host name or an IP address",
            ),
            (
                "[consul]\nca_file = \"a\"\nca_path = \"b\"",
                "p.toml:3:11: consul.ca_path: consul.ca_file is set, too: leave one of them out",
            ),
            (
                "[consul]\ndatacenters = []",
                "p.toml:2:15: consul.datacenters: expected 1 to 16 names",
            ),
            (
                "[consul]\ndatacenters = [\"dc1\", \"dc/2\"]",
                "p.toml:2:23: consul.datacenters \"dc/2\": expected letters, digits, - and _ only",
            ),
            (
                "[consul]\ndatacenters = [\"dc1\", \"DC1\"]",
                "p.toml:2:23: consul.datacenters \"dc1\": listed twice",
            ),
            (
                "[consul]\ndatacenters = [\"dc1\", \"\"]",
                "p.toml:2:23: consul.datacenters \"\": expected the name of a datacenter",
            ),
            (
                "[consul]\ndatacenter = \"dc1\"\ndatacenters = [\"dc1\"]",
                "p.toml:2:14: consul.datacenter: consul.datacenters is set, too: leave one of them out",
            ),
            ("[consul]\nwait = 0", "p.toml:2:8: consul.wait 0: expected 1s to 10m"),
            (
                "[consul]\nwait = \"11m\"",
                "p.toml:2:8: consul.wait \"11m\": expected 1s to 10m",
            ),
            (
                "[consul]\nmax_watches = 0",
                "p.toml:2:15: consul.max_watches 0: expected 1 to 64",
            ),
            (
                "[consul]\nmax_watches = 65",
                "p.toml:2:15: consul.max_watches 65: expected 1 to 64",
            ),
            (
                "[consul]\nrefresh = 0.5",
                "p.toml:2:11: consul.refresh 0.5: expected 1s to 24h",
            ),
            (
                "[consul]\nmax_stale = true",
                "p.toml:2:13: consul.max_stale true: expected a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", \
                 or seconds as a number",
            ),
            (
                "[consul]\ncert_file = \"a\"",
                "p.toml:2:13: a certificate without its key: set consul.key_file (or CONSUL_CLIENT_KEY), too",
            ),
            (
                "[consul]\nkey_file = \"a\"",
                "p.toml:2:12: a key without its certificate: set consul.cert_file (or CONSUL_CLIENT_CERT), too",
            ),
            (
                "[file]\npath = \"\"",
                "p.toml:2:8: file.path \"\": expected the path of a file",
            ),
        ] {
            assert_eq!(refused_once(text), refusal, "{text}");
        }
    }

    #[test]
    fn conventional_variables_fill_consul_and_its_secrets_are_not_shown() {
        let variables = [
            ("CONSUL_HTTP_TOKEN", "s3cret"),
            ("CONSUL_HTTP_AUTH", "me:pass:word"),
            ("CONSUL_CACERT", "ca.pem"),
            ("CONSUL_CLIENT_CERT", "cert.pem"),
            ("CONSUL_CLIENT_KEY", "key.pem"),
        ];
        let config = with("[consul]\ntoken_file = \"t\"", &variables, Flags::default()).unwrap();
        let settings = consul(&config);
        assert_eq!(settings.token, Some(consul::Token::Value("s3cret".to_owned())));
        assert_eq!(settings.basic_auth, Some(consul::BasicAuth::new("me", "pass:word")));
        assert_eq!(
            settings.tls,
            Tls {
                ca_file: Some("ca.pem".into()),
                identity: Some(("cert.pem".into(), "key.pem".into())),
                ..Tls::default()
            }
        );
        let config_sources = config_sources(&variables, Flags::default());
        for shown in [format!("{config:?}"), format!("{config_sources:?}")] {
            assert!(!shown.contains("s3cret") && !shown.contains("pass:word"), "{shown}");
        }

        let variables = [("CONSUL_HTTP_TOKEN", "s3cret"), ("CONSUL_HTTP_TOKEN_FILE", "token")];
        let config = with("[consul]", &variables, Flags::default()).unwrap();
        assert_eq!(consul(&config).token, Some(consul::Token::File("token".into())));
    }

    #[test]
    fn a_variable_overrides_its_key_and_completes_the_others() {
        let file = "[consul]\nnamespace = \"a\"\npartition = \"b\"\nca_file = \"f\"\ntls_server_name = \"n\"\ntls_verify = false";
        let plain = consul(&with(file, &[], Flags::default()).unwrap()).clone();
        assert_eq!(
            (plain.namespace.as_deref(), plain.partition.as_deref()),
            (Some("a"), Some("b"))
        );
        assert_eq!(
            plain.tls,
            Tls {
                ca_file: Some("/etc/pickd/f".into()),
                server_name: Some("n".to_owned()),
                unverified: true,
                ..Tls::default()
            }
        );
        let variables = [
            ("CONSUL_NAMESPACE", "c"),
            ("CONSUL_PARTITION", "d"),
            ("CONSUL_CAPATH", "certs"),
            ("CONSUL_TLS_SERVER_NAME", "10.0.0.1"),
            ("CONSUL_HTTP_SSL_VERIFY", "true"),
        ];
        let told = consul(&with(file, &variables, Flags::default()).unwrap()).clone();
        assert_eq!(
            (told.namespace.as_deref(), told.partition.as_deref()),
            (Some("c"), Some("d"))
        );
        assert_eq!(
            told.tls,
            Tls {
                ca_path: Some("certs".into()),
                server_name: Some("10.0.0.1".to_owned()),
                ..Tls::default()
            }
        );
        let both = [("CONSUL_CACERT", "ca.pem"), ("CONSUL_CAPATH", "certs")];
        let tls = consul(&with("[consul]\nca_path = \"f\"", &both, Flags::default()).unwrap())
            .tls
            .clone();
        assert_eq!((tls.ca_file, tls.ca_path), (Some("ca.pem".into()), None));
        let empty = "[consul]\nnamespace = \"\"\npartition = \"\"\nfilter = \" \"\ntagged_address = \"\"\ntls_server_name = \"\"";
        let empty = with(empty, &[], Flags::default()).unwrap();
        assert_eq!(empty, with("[consul]", &[], Flags::default()).unwrap());
        for (name, value, expected) in [
            (
                "CONSUL_NAMESPACE",
                "*",
                "expected one name of up to 64 letters, digits, - and _",
            ),
            (
                "CONSUL_PARTITION",
                "a b",
                "expected one name of up to 64 letters, digits, - and _",
            ),
            ("CONSUL_TLS_SERVER_NAME", "a b", "expected a host name or an IP address"),
            ("CONSUL_HTTP_SSL_VERIFY", "no", "expected true or false"),
        ] {
            let error = with("[consul]", &[(name, value)], Flags::default())
                .unwrap_err()
                .to_string();
            assert_eq!(error, format!("{name}: {value:?}: {expected}"));
        }
    }

    #[test]
    fn several_datacenters_are_several_sources_in_their_order() {
        let text = "[file]\npath = \"a\"\n[consul]\ndatacenters = [\"DC1\", \"dc2\"]\ntoken_file = \"t\"\n[etcd]";
        let config = with(text, &[], Flags::default()).unwrap();
        let shown = config.sources.iter().map(|source| match source {
            SourceConfig::Consul(settings) => {
                assert_eq!(settings.token, Some(consul::Token::File("/etc/pickd/t".into())));
                settings.source().to_string()
            }
            SourceConfig::Etcd(_) => "etcd".to_owned(),
            SourceConfig::File(_) => "file".to_owned(),
        });
        assert_eq!(shown.collect::<Vec<_>>(), ["file", "consul-dc1", "consul-dc2", "etcd"]);
        // A flag for the address leaves the list in force.
        let config = with(text, &[], consul_flag("http://b:1")).unwrap();
        assert_eq!(config.sources.len(), 4);
        assert_eq!(consul(&config).address, "http://b:1");
    }

    #[test]
    fn consul_http_ssl_asks_for_tls_unless_a_flag_says_http() {
        let address = |text, ssl, flags| {
            with(text, &[("CONSUL_HTTP_SSL", ssl)], flags).map(|config| consul(&config).address.clone())
        };
        let file = "[consul]\naddress = \"http://a:1\"";
        assert_eq!(address(file, "true", Flags::default()).unwrap(), "https://a:1");
        assert_eq!(address(file, "0", Flags::default()).unwrap(), "http://a:1");
        assert_eq!(
            address("[consul]", "1", Flags::default()).unwrap(),
            "https://127.0.0.1:8500"
        );
        assert_eq!(address(file, "1", consul_flag("http://b:1")).unwrap(), "http://b:1");
        assert_eq!(address(file, "1", consul_flag("b:1")).unwrap(), "https://b:1");
        assert_eq!(
            address(file, "maybe", Flags::default()).unwrap_err().to_string(),
            "CONSUL_HTTP_SSL: \"maybe\": expected true or false"
        );
    }

    #[test]
    fn a_wrong_variable_or_flag_is_named() {
        let error = |environment: &[_], flags| with("[consul]", environment, flags).unwrap_err().to_string();
        assert!(
            error(&[("CONSUL_HTTP_ADDR", "consul")], Flags::default())
                .starts_with("CONSUL_HTTP_ADDR: \"consul\": expected")
        );
        assert_eq!(
            error(&[("CONSUL_CLIENT_CERT", "a.pem")], Flags::default()),
            "CONSUL_CLIENT_CERT: a certificate without its key: set consul.key_file (or CONSUL_CLIENT_KEY), too"
        );
        let services = Flags {
            consul_services: vec!["a[".to_owned()],
            ..Flags::default()
        };
        assert!(error(&[], services.clone()).starts_with("--consul-service: \"a[\": unclosed character class"));
        let error = with("[file]\npath = \"a\"", &[], services).unwrap_err().to_string();
        assert!(error.starts_with("--consul-service: there is no Consul"), "{error}");
    }

    #[test]
    fn a_wrong_variable_of_a_source_that_is_off_is_no_matter() {
        let config = with(
            "[file]\npath = \"a\"",
            &[("CONSUL_HTTP_ADDR", "consul")],
            Flags::default(),
        );
        assert!(config.is_ok());
    }
}
