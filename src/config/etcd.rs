//! `[etcd]`, `--etcd`, `--etcd-prefix` and the `ETCDCTL_*` variables.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::address::EtcdAddress;
use super::checker::{Checker, DAY, Given, Origin, RawDuration, SECOND};
use super::config_sources::{ConfigSources, Flags, Variables};
use crate::discovery::etcd::{EtcdSettings, InvalidPrefix, KeyPath, Password, Prefix, User, ValueFormat};
use crate::http_client::Tls;

/// The flag that stands in for `etcd.prefixes`.
const FLAG: Origin = Origin::Named("--etcd-prefix");

/// The prefix that is watched unless another is configured.
const DEFAULT_PREFIX: &str = "/services/";

/// `[etcd]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawEtcd {
    endpoints: Option<Spanned<Vec<Spanned<String>>>>,
    prefixes: Option<Spanned<Vec<RawPrefix>>>,
    username: Option<Spanned<String>>,
    password_file: Option<Spanned<String>>,
    refresh: Option<RawDuration>,
    hold: Option<RawDuration>,
    required: Option<bool>,
    ca_file: Option<Spanned<String>>,
    cert_file: Option<Spanned<String>>,
    key_file: Option<Spanned<String>>,
}

/// `[[etcd.prefixes]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawPrefix {
    prefix: Spanned<String>,
    format: Option<Spanned<String>>,
    path: Option<Spanned<String>>,
    service: Option<Spanned<String>>,
    scheme: Option<Spanned<String>>,
}

impl Checker<'_> {
    pub(super) fn etcd(&mut self, raw: Option<&Spanned<RawEtcd>>, from: &ConfigSources) -> Option<EtcdSettings> {
        let ConfigSources { flags, environment, .. } = from;
        if raw.is_none() && flags.etcd.is_empty() {
            if !flags.etcd_prefixes.is_empty() {
                let message = "there is no etcd to take keys from: give --etcd or an [etcd] table, too";
                self.refuse(FLAG, message);
            }
            return None;
        }
        let without = RawEtcd::default();
        let raw = raw.map_or(&without, Spanned::get_ref);

        self.etcd_unsupported(environment);
        let tls = self.etcd_tls(raw, environment);
        let endpoints = self.etcd_endpoints(raw, flags, environment, tls != Tls::default());
        let mut settings = EtcdSettings::new(endpoints, self.etcd_prefixes(raw, flags));
        settings.user = self.etcd_user(raw, environment);
        settings.tls = tls;
        settings.refresh = self.duration("etcd.refresh", raw.refresh.as_ref(), settings.refresh, (SECOND, DAY));
        settings.hold = self.duration("etcd.hold", raw.hold.as_ref(), settings.hold, (Duration::ZERO, DAY));
        settings.required = raw.required.unwrap_or(settings.required);
        Some(settings)
    }

    /// With certificates, pickd uses TLS for a bare `host:port`, as etcd's own tools do.
    fn etcd_endpoints(&mut self, raw: &RawEtcd, flags: &Flags, environment: &Variables, https: bool) -> Vec<String> {
        let mut addresses: Vec<Given<EtcdAddress>> = Vec::new();
        if !flags.etcd.is_empty() {
            let given = |address: &EtcdAddress| Given {
                value: address.clone(),
                origin: Origin::Named("--etcd"),
            };
            addresses.extend(flags.etcd.iter().map(given));
        } else if let Some(written) = environment.get("ETCDCTL_ENDPOINTS") {
            for address in written.split(',').map(str::trim) {
                self.etcd_address(address, "", Origin::Named("ETCDCTL_ENDPOINTS"), &mut addresses);
            }
        } else if let Some(written) = &raw.endpoints {
            if written.get_ref().is_empty() {
                self.refuse(written.span(), "etcd.endpoints: expected at least one address");
            }
            for address in written.get_ref() {
                self.etcd_address(
                    address.get_ref(),
                    "etcd.endpoints ",
                    address.span().into(),
                    &mut addresses,
                );
            }
        } else {
            let origin = Origin::Named("the default endpoint");
            self.etcd_address("127.0.0.1:2379", "", origin, &mut addresses);
        }
        let mut urls = Vec::new();
        for Given { value, origin } in addresses {
            let url = value.url(https);
            match (urls.contains(&url), origin) {
                (false, _) => urls.push(url),
                // An endpoint twice in the file is a mistake. A repeated flag is not refused.
                (true, Origin::File(span)) => {
                    self.refuse(span, format!("etcd.endpoints: {url} is listed twice"));
                }
                (true, Origin::Named(_)) => {}
            }
        }
        urls
    }

    fn etcd_address(&mut self, text: &str, key: &str, origin: Origin, into: &mut Vec<Given<EtcdAddress>>) {
        match text.parse::<EtcdAddress>() {
            Ok(value) => into.push(Given { value, origin }),
            Err(error) => self.refuse(origin, format!("{key}{error}")),
        }
    }

    fn etcd_prefixes(&mut self, raw: &RawEtcd, flags: &Flags) -> Vec<Prefix> {
        let mut prefixes: Vec<Given<Prefix>> = Vec::new();
        if !flags.etcd_prefixes.is_empty() {
            for written in &flags.etcd_prefixes {
                match Prefix::new(written) {
                    Ok(value) => prefixes.push(Given { value, origin: FLAG }),
                    Err(error) => self.refuse(FLAG, error),
                }
            }
        } else if let Some(written) = &raw.prefixes {
            if written.get_ref().is_empty() {
                self.refuse(written.span(), "etcd.prefixes: expected at least one prefix");
            }
            for written in written.get_ref() {
                if let Some(value) = self.etcd_prefix(written) {
                    let origin = written.prefix.span().into();
                    prefixes.push(Given { value, origin });
                }
            }
        } else {
            prefixes.extend(
                Prefix::new(DEFAULT_PREFIX)
                    .ok()
                    .map(|value| Given { value, origin: FLAG }),
            );
        }

        let mut apart: Vec<Prefix> = Vec::new();
        for Given { value, origin } in prefixes {
            match apart.iter().find(|other| other.overlaps(&value)) {
                None => apart.push(value),
                Some(other) => {
                    let message = format!(
                        "{:?} and {:?} share keys, which would be read twice",
                        value.as_str(),
                        other.as_str()
                    );
                    self.refuse(origin, message);
                }
            }
        }
        apart
    }

    fn etcd_prefix(&mut self, raw: &RawPrefix) -> Option<Prefix> {
        let path = raw
            .path
            .as_ref()
            .and_then(|written| match written.get_ref().parse::<KeyPath>() {
                Ok(path) => Some(path),
                Err(error) => {
                    self.refuse(written.span(), format!("etcd.prefixes.path {error}"));
                    None
                }
            });
        let prefix = match (Prefix::new(raw.prefix.get_ref()), path) {
            (Ok(prefix), Some(path)) => Ok(prefix.with_path(path)),
            (Err(InvalidPrefix::Empty), Some(path)) => Ok(Prefix::everything(path)),
            (prefix, _) => prefix,
        };
        let mut prefix = match prefix {
            Ok(prefix) => prefix,
            Err(error) => {
                self.refuse(raw.prefix.span(), format!("etcd.prefixes.prefix {error}"));
                return None;
            }
        };
        if let Some(written) = &raw.format {
            match written.get_ref().parse() {
                Ok(format) => prefix = prefix.with_format(format),
                Err(error) => {
                    let error: InvalidPrefix = error;
                    self.refuse(written.span(), format!("etcd.prefixes.format {error}"));
                }
            }
        }
        if let (Some(written), Some(_)) = (&raw.service, &raw.path) {
            let message = "etcd.prefixes.service: the path of this prefix names the services: set one of the two";
            self.refuse(written.span(), message);
        }
        if let Some(written) = &raw.service {
            match written.get_ref().parse() {
                Ok(service) => prefix = prefix.with_service(service),
                Err(error) => self.refuse(written.span(), error),
            }
        }
        if let Some(written) = &raw.scheme {
            if !matches!(
                prefix.format(),
                ValueFormat::Auto | ValueFormat::Kratos | ValueFormat::Dubbo
            ) {
                let message = format!(
                    "etcd.prefixes.scheme: format {} has one endpoint for each instance, and no scheme to choose",
                    prefix.format()
                );
                self.refuse(written.span(), message);
            }
            prefix = prefix.with_scheme(written.get_ref());
        }
        Some(prefix)
    }

    /// As etcdctl does it: the user may have the password behind a colon, unless the password is
    /// given by itself. Then a colon is part of the name.
    fn etcd_user(&mut self, raw: &RawEtcd, environment: &Variables) -> Option<User> {
        let given = environment
            .get("ETCDCTL_PASSWORD")
            .map(|password| Password::Value(password.to_owned()));
        let (name, password, origin) = match (environment.get("ETCDCTL_USER"), &raw.username) {
            (Some(written), _) => {
                let (name, password) = match (given, written.split_once(':')) {
                    (Some(given), _) => (written, Some(given)),
                    (None, Some((name, password))) => (name, Some(Password::Value(password.to_owned()))),
                    (None, None) => (written, None),
                };
                (name.to_owned(), password, Origin::Named("ETCDCTL_USER"))
            }
            (None, Some(written)) if !written.get_ref().is_empty() => {
                (written.get_ref().clone(), given, written.span().into())
            }
            (None, _) => {
                let origin = match given {
                    Some(_) => Some(Origin::Named("ETCDCTL_PASSWORD")),
                    None => self
                        .path_from(None, raw.password_file.as_ref())
                        .map(|given| given.origin),
                };
                if let Some(origin) = origin {
                    let message = "a password without its user: set etcd.username (or ETCDCTL_USER), too";
                    self.refuse(origin, message);
                }
                return None;
            }
        };
        let password = password.or_else(|| {
            self.path_from(None, raw.password_file.as_ref())
                .map(|given| Password::File(given.value))
        });
        match password {
            Some(password) => Some(User { name, password }),
            None => {
                let message = "a user without a password: set etcd.password_file (or ETCDCTL_PASSWORD), too";
                self.refuse(origin, message);
                None
            }
        }
    }

    /// Variables with which etcdctl would ask another cluster, or trust another server. Ignoring
    /// them would be an error without a message.
    fn etcd_unsupported(&mut self, environment: &Variables) {
        for (name, message) in [
            (
                "ETCDCTL_DISCOVERY_SRV",
                "pickd does not look up members in DNS: set ETCDCTL_ENDPOINTS",
            ),
            (
                "ETCDCTL_INSECURE_SKIP_TLS_VERIFY",
                "pickd always checks the certificate of etcd: set ETCDCTL_CACERT to the certificate of its CA",
            ),
        ] {
            let off = |value: &&str| value.eq_ignore_ascii_case("false") || *value == "0";
            if environment.get(name).is_some_and(|value| !off(&value)) {
                self.refuse(Origin::Named(name), message);
            }
        }
    }

    fn etcd_tls(&mut self, raw: &RawEtcd, environment: &Variables) -> Tls {
        let variable = |name| environment.get(name).map(|path| (name, path));
        let ca_file = self.path_from(variable("ETCDCTL_CACERT"), raw.ca_file.as_ref());
        let certificate = self.path_from(variable("ETCDCTL_CERT"), raw.cert_file.as_ref());
        let key = self.path_from(variable("ETCDCTL_KEY"), raw.key_file.as_ref());
        let (cert_key, key_key) = ("etcd.cert_file (or ETCDCTL_CERT)", "etcd.key_file (or ETCDCTL_KEY)");
        Tls {
            ca_file: ca_file.map(|given| given.value),
            identity: self.identity((certificate, cert_key), (key, key_key)),
            ..Tls::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{read, refused_once, with};
    use super::super::{Config, SourceConfig};
    use super::*;

    fn etcd(config: &Config) -> &EtcdSettings {
        let found = config.sources.iter().find_map(|source| match source {
            SourceConfig::Etcd(settings) => Some(&**settings),
            _ => None,
        });
        found.unwrap()
    }

    fn given(endpoints: &[&str], prefixes: &[&str]) -> Flags {
        Flags {
            etcd: endpoints.iter().map(|address| address.parse().unwrap()).collect(),
            etcd_prefixes: prefixes.iter().map(|prefix| (*prefix).to_owned()).collect(),
            ..Flags::default()
        }
    }

    fn prefix(text: &str) -> Prefix {
        Prefix::new(text).unwrap()
    }

    #[test]
    fn an_empty_table_gets_every_default() {
        let settings = EtcdSettings::new(["http://127.0.0.1:2379"], vec![prefix("/services/")]);
        assert_eq!(*etcd(&read("[etcd]")), settings);
    }

    #[test]
    fn every_key_is_read() {
        let config = read(
            r#"
            [etcd]
            endpoints = ["https://a:2379", "b:2379"]
            username = "pickd"
            password_file = "secrets/password"
            ca_file = "/ca.pem"
            cert_file = "cert.pem"
            key_file = "key.pem"
            refresh = "10m"
            required = false
            [[etcd.prefixes]]
            prefix = "/microservices"
            format = "kratos"
            scheme = "grpc"
            [[etcd.prefixes]]
            prefix = "user.rpc"
            service = "user"
            [[etcd.prefixes]]
            prefix = "/dubbo"
            path = "/{service}/providers/{instance}"
            "#,
        );
        let mut settings = EtcdSettings::new(
            ["https://a:2379", "https://b:2379"],
            vec![
                prefix("/microservices/")
                    .with_format(ValueFormat::Kratos)
                    .with_scheme("grpc"),
                prefix("user.rpc/").with_service("user".parse().unwrap()),
                prefix("/dubbo/").with_path("{service}/providers/{instance}".parse().unwrap()),
            ],
        );
        settings.user = Some(User {
            name: "pickd".to_owned(),
            password: Password::File("/etc/pickd/secrets/password".into()),
        });
        settings.tls = Tls {
            ca_file: Some("/ca.pem".into()),
            identity: Some(("/etc/pickd/cert.pem".into(), "/etc/pickd/key.pem".into())),
            ..Tls::default()
        };
        settings.refresh = Duration::from_secs(600);
        settings.required = false;
        assert_eq!(*etcd(&config), settings);
    }

    #[test]
    fn settings_are_checked() {
        for (text, refusal) in [
            (
                "endpoints = []",
                "p.toml:2:13: etcd.endpoints: expected at least one address",
            ),
            (
                "endpoints = [\"etcd\"]",
                "p.toml:2:14: etcd.endpoints \"etcd\": expected \"http://host:port\", \"https://host:port\" or \"host:port\"",
            ),
            (
                "endpoints = [\"http://a:b@c:1\"]",
                "p.toml:2:14: etcd.endpoints a user and password do not belong in the address: set etcd.username and \
                 etcd.password_file",
            ),
            (
                "endpoints = [\"a:1\", \"http://a:1\"]",
                "p.toml:2:21: etcd.endpoints: http://a:1 is listed twice",
            ),
            (
                "prefixes = []",
                "p.toml:2:12: etcd.prefixes: expected at least one prefix",
            ),
            (
                "prefixes = [{ prefix = \"\" }]",
                "p.toml:2:24: etcd.prefixes.prefix \"\": expected the start of the keys to watch, such as \"/services/\"",
            ),
            (
                "prefixes = [{ prefix = \"/a\", format = \"nacos\" }]",
                "p.toml:2:39: etcd.prefixes.format \"nacos\": expected auto, json, plain, grpc, kratos, go-zero, go-micro, \
                 kitex, rpcx, skydns, dubbo, apisix, goframe or jupiter",
            ),
            (
                "prefixes = [{ prefix = \"/a\", service = \"a//b\" }]",
                "p.toml:2:40: service name \"a//b\": expected 1 to 253 bytes without control characters, with no empty \
                 part and no \".\" or \"..\" between slashes, and not \"(unknown)\"",
            ),
            (
                "prefixes = [{ prefix = \"/a\", format = \"kitex\", scheme = \"grpc\" }]",
                "p.toml:2:57: etcd.prefixes.scheme: format kitex has one endpoint for each instance, and no scheme to choose",
            ),
            (
                "prefixes = [{ prefix = \"/a\", path = \"/{env}/{instance}\" }]",
                "p.toml:2:37: etcd.prefixes.path \"/{env}/{instance}\": expected {service} once",
            ),
            (
                "prefixes = [{ prefix = \"/a\", path = \"v{version}/{service}\" }]",
                "p.toml:2:37: etcd.prefixes.path \"v{version}/{service}\": expected each segment to be a text, * or a \
                 name in braces, as {service}",
            ),
            (
                "prefixes = [{ prefix = \"/a\", path = \"{service}/{instance}\", service = \"web\" }]",
                "p.toml:2:71: etcd.prefixes.service: the path of this prefix names the services: set one of the two",
            ),
            (
                "prefixes = [{ prefix = \"\", path = \"{service}/{instance}\" }, { prefix = \"/a/b\" }]",
                "p.toml:2:72: \"/a/b/\" and \"\" share keys, which would be read twice",
            ),
            (
                "prefixes = [{ prefix = \"/a\" }, { prefix = \"/a/b\" }]",
                "p.toml:2:43: \"/a/b/\" and \"/a/\" share keys, which would be read twice",
            ),
            (
                "prefixes = [{ prefix = \"/a\", kind = \"x\" }]",
                "p.toml:2:30: unknown field `kind`, expected one of `prefix`, `format`, `path`, `service`, `scheme`",
            ),
            (
                "prefixes = [{ format = \"json\" }]",
                "p.toml:2:13: missing field `prefix`",
            ),
            ("refresh = 0", "p.toml:2:11: etcd.refresh 0: expected 1s to 24h"),
            (
                "username = \"me\"",
                "p.toml:2:12: a user without a password: set etcd.password_file (or ETCDCTL_PASSWORD), too",
            ),
            (
                "password_file = \"p\"",
                "p.toml:2:17: a password without its user: set etcd.username (or ETCDCTL_USER), too",
            ),
            (
                "cert_file = \"a\"",
                "p.toml:2:13: a certificate without its key: set etcd.key_file (or ETCDCTL_KEY), too",
            ),
            (
                "key_file = \"a\"",
                "p.toml:2:12: a key without its certificate: set etcd.cert_file (or ETCDCTL_CERT), too",
            ),
        ] {
            assert_eq!(refused_once(&format!("[etcd]\n{text}")), refusal, "{text}");
        }
    }

    #[test]
    fn flags_beat_the_environment_which_beats_the_file() {
        let file = "[etcd]\nendpoints = [\"file:1\"]";
        let variables = [("ETCDCTL_ENDPOINTS", "environment:2, http://other:2")];
        let endpoints = |text, environment: &[_], flags| {
            let config = with(text, environment, flags).unwrap();
            etcd(&config).endpoints.clone()
        };
        let flag = given(&["flag:3", "https://flag:4", "flag:3"], &[]);
        assert_eq!(
            endpoints(file, &variables, flag.clone()),
            ["http://flag:3", "https://flag:4"]
        );
        assert_eq!(endpoints("", &variables, flag), ["http://flag:3", "https://flag:4"]);
        let others = ["http://environment:2", "http://other:2"];
        assert_eq!(endpoints(file, &variables, Flags::default()), others);
        assert_eq!(endpoints(file, &[], Flags::default()), ["http://file:1"]);
    }

    #[test]
    fn prefixes_of_flags_replace_those_of_the_file() {
        let text = "[[etcd.prefixes]]\nprefix = \"/a\"\nformat = \"json\"";
        let config = with(text, &[], given(&[], &["/b", "c/"])).unwrap();
        assert_eq!(etcd(&config).prefixes, [prefix("/b/"), prefix("c/")]);
        let error = |text, flags| with(text, &[], flags).unwrap_err().to_string();
        assert!(
            error("[etcd]", given(&[], &["/a", "/a/"])).starts_with("--etcd-prefix: \"/a/\" and \"/a/\" share keys")
        );
        assert!(error("[etcd]", given(&[], &[""])).starts_with("--etcd-prefix: \"\": expected the start"));
        assert!(error("[consul]", given(&[], &["/a"])).starts_with("--etcd-prefix: there is no etcd"));
    }

    #[test]
    fn conventional_variables_fill_etcd_and_its_secrets_are_not_shown() {
        let variables = [
            ("ETCDCTL_USER", "me:pass:word"),
            ("ETCDCTL_CACERT", "ca.pem"),
            ("ETCDCTL_CERT", "cert.pem"),
            ("ETCDCTL_KEY", "key.pem"),
        ];
        let config = with("[etcd]", &variables, Flags::default()).unwrap();
        let settings = etcd(&config);
        assert_eq!(
            settings.endpoints,
            ["https://127.0.0.1:2379"],
            "certificates ask for TLS"
        );
        let user = |password| {
            Some(User {
                name: "me".to_owned(),
                password,
            })
        };
        assert_eq!(settings.user, user(Password::Value("pass:word".to_owned())));
        assert_eq!(
            settings.tls,
            Tls {
                ca_file: Some("ca.pem".into()),
                identity: Some(("cert.pem".into(), "key.pem".into())),
                ..Tls::default()
            }
        );
        assert!(!format!("{config:?}").contains("pass:word"));

        // As in etcdctl, a colon is part of the name if the password is given by itself.
        let variables = [("ETCDCTL_USER", "a:b"), ("ETCDCTL_PASSWORD", "s3cret")];
        let config = with("[etcd]", &variables, Flags::default()).unwrap();
        assert_eq!(etcd(&config).user.as_ref().unwrap().name, "a:b");

        let variables = [("ETCDCTL_USER", "me"), ("ETCDCTL_PASSWORD", "s3cret")];
        let config = with("[etcd]\npassword_file = \"p\"", &variables, Flags::default()).unwrap();
        assert_eq!(etcd(&config).user, user(Password::Value("s3cret".to_owned())));
        let config = with("[etcd]\npassword_file = \"p\"", &variables[..1], Flags::default()).unwrap();
        assert_eq!(etcd(&config).user, user(Password::File("/etc/pickd/p".into())));
    }

    #[test]
    fn a_wrong_variable_is_named_and_none_switches_etcd_on() {
        let error = with("[etcd]", &[("ETCDCTL_ENDPOINTS", "a:1,etcd")], Flags::default()).unwrap_err();
        assert!(
            error.to_string().starts_with("ETCDCTL_ENDPOINTS: \"etcd\": expected"),
            "{error}"
        );
        let error = with("[etcd]", &[("ETCDCTL_USER", "me")], Flags::default()).unwrap_err();
        assert!(
            error.to_string().starts_with("ETCDCTL_USER: a user without a password"),
            "{error}"
        );
        for (name, value, refusal) in [
            (
                "ETCDCTL_PASSWORD",
                "S3cr3t",
                "a password without its user: set etcd.username",
            ),
            (
                "ETCDCTL_DISCOVERY_SRV",
                "example.com",
                "pickd does not look up members in DNS",
            ),
            (
                "ETCDCTL_INSECURE_SKIP_TLS_VERIFY",
                "true",
                "pickd always checks the certificate",
            ),
        ] {
            let error = with("[etcd]", &[(name, value)], Flags::default())
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(&format!("{name}: {refusal}")), "{error}");
            assert!(!error.contains("S3cr3t"), "{error}");
            // They never matter to an agent without etcd.
            assert!(with("[consul]", &[(name, value)], Flags::default()).is_ok());
        }
        let harmless = [("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "false")];
        assert!(with("[etcd]", &harmless, Flags::default()).is_ok());
        let config = with("[consul]", &[("ETCDCTL_ENDPOINTS", "a:1")], Flags::default()).unwrap();
        assert!(matches!(config.sources.as_slice(), [SourceConfig::Consul(_)]));
    }

    #[test]
    fn sources_are_in_the_order_of_the_file_and_else_consul_etcd_file() {
        let order = |text, flags| {
            let config = with(text, &[], flags).unwrap();
            let letter = |source: &SourceConfig| match source {
                SourceConfig::Consul(_) => 'c',
                SourceConfig::Etcd(_) => 'e',
                SourceConfig::File(_) => 'f',
            };
            config.sources.iter().map(letter).collect::<String>()
        };
        let all = Flags {
            consul: Some("a:1".parse().unwrap()),
            file: Some("a".into()),
            ..given(&["a:1"], &[])
        };
        assert_eq!(order("", all.clone()), "cef");
        assert_eq!(order("[file]\npath = \"a\"\n[etcd]\n[consul]", Flags::default()), "fec");
        assert_eq!(
            order("[file]\npath = \"a\"\n[consul]", all.clone()),
            "fec",
            "etcd keeps its place in the middle"
        );
        assert_eq!(order("[etcd]\n[consul]", all), "ecf");
    }
}
