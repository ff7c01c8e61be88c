//! The configuration: what an operator meant, checked.
//!
//! ```text
//! flags > environment > file > defaults ──► raw (what is written) ──► Config (what is meant) or every refusal, with its place
//! ```
//!
//! A [`Config`] that exists is right: in range, complete, with paths that start at the configuration file, and comparable, so
//! that a reload can tell what changed. Nothing here opens a socket, reads a registry or knows what its settings are for;
//! of all files it reads only the configuration file.

mod address;
mod duration;
mod error;
mod etcd_table;
mod health_table;
mod raw;
mod services;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use crate::api::server::SocketAccess;
use crate::balancer::{LoadBalancingStrategy, ServiceConfigs, ServiceName};
use crate::discovery::{consul, etcd};
use crate::http_client::Tls;
use crate::metrics::INSTANCE_SERIES;
use crate::probe::{HealthCheck, ProbeSettings};

pub use crate::api::server::Listen;
pub use address::{ConsulAddress, EtcdAddress, InvalidAddress, listen, listen_tcp, socket_path};
pub use error::{ConfigError, Place, Refusal};

use raw::{RawApi, RawConfig, RawConsul, RawDuration, RawFile, RawMetrics};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The flag that stands in for `consul.services`.
const CONSUL_SERVICE: Origin = Origin::Named("--consul-service");

/// The settings of an agent.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The HTTP interface.
    pub api: ApiConfig,
    /// Where instances come from: at least one, each kind at most once, in order of priority. That is their order in the file;
    /// for those that flags add, Consul before etcd before files.
    pub sources: Vec<SourceConfig>,
    /// What `/metrics` tells.
    pub metrics: MetricsConfig,
    /// How services are balanced: by the defaults, or as configured one by one; what those leave out is taken from the
    /// defaults already.
    pub services: ServiceConfigs,
    /// How much is checked in all.
    pub probe: ProbeSettings,
    /// The services whose instances are checked, and what they are asked.
    pub health_checks: BTreeMap<ServiceName, Arc<HealthCheck>>,
}

/// `[api]`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiConfig {
    /// Addresses to listen on, at least one, none twice (port 0 apart).
    pub listen: Vec<Listen>,
    /// Further hosts, in lower case and without a port, that requests over a loopback listener may name.
    pub allowed_hosts: Vec<String>,
    /// After this time one synced source is enough to be ready.
    pub ready_timeout: Duration,
    /// The file with the token that overrides need over listeners that are neither loopback nor Unix sockets.
    pub admin_token_file: Option<PathBuf>,
    /// Who may connect to Unix sockets.
    pub socket: SocketAccess,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// Instances that get series of their own, 0..=100,000; 0 turns those series off.
    pub instance_series: usize,
}

/// One registry.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceConfig {
    /// `[consul]`; the address is `http://…`, `https://…` or `unix:///…`, without a slash at its end.
    Consul(Box<consul::Settings>),
    /// `[etcd]`; endpoints are `http://…` or `https://…`, and no prefix is below another.
    Etcd(Box<etcd::Settings>),
    /// `[file]`
    File(FileConfig),
}

/// `[file]`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileConfig {
    /// The file registry.
    pub path: PathBuf,
    /// Whether readiness waits for it.
    pub required: bool,
}

/// All that settings are made of, to be read again on a reload.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// What flags (and their `PICKD_*` variables) say.
    pub overrides: Overrides,
    /// The conventional `CONSUL_*` and `ETCDCTL_*` variables. They fill a source that is configured, and never switch one on.
    pub environment: Environment,
    /// The configuration file.
    pub file: Option<PathBuf>,
}

/// Settings made by flags, which beat all others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// In place of `api.listen`, unless empty.
    pub listen: Vec<Listen>,
    /// Switches Consul on, at this address.
    pub consul: Option<ConsulAddress>,
    /// In place of `consul.services`, unless empty.
    pub consul_services: Vec<String>,
    /// Switches etcd on, with these endpoints, unless empty.
    pub etcd: Vec<EtcdAddress>,
    /// In place of `etcd.prefixes`, each in format `auto`, unless empty.
    pub etcd_prefixes: Vec<String>,
    /// Switches the file registry on, at this path.
    pub file: Option<PathBuf>,
    /// In place of `defaults.strategy`; services that name a strategy keep it.
    pub strategy: Option<LoadBalancingStrategy>,
}

/// Environment variables, as they were when the process started.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    fn get(&self, name: &str) -> Option<&str> {
        // Scripts "unset" a variable by setting it to nothing; Consul's own tools read that as not set, too.
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names only: values may be tokens.
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Config {
    /// Reads the configuration file, if there is one, and checks everything.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, a setting is wrong (all of them are told), or no source is configured.
    pub fn load(layers: &Layers) -> Result<Self, ConfigError> {
        match &layers.file {
            Some(path) => match std::fs::read(path) {
                Ok(bytes) => Self::parse(path, &bytes, layers),
                Err(source) => Err(ConfigError::Unreadable {
                    path: path.clone(),
                    source,
                }),
            },
            None => Self::parse(Path::new(""), b"", layers),
        }
    }

    /// Checks what a configuration file holds together with the other layers. `path` is only named, and where relative paths
    /// start.
    ///
    /// # Errors
    ///
    /// When a setting is wrong (all of them are told), or no source is configured.
    pub fn parse(path: &Path, bytes: &[u8], layers: &Layers) -> Result<Self, ConfigError> {
        let text = text(path, bytes)?;
        let mut checker = Checker {
            path,
            text,
            refusals: Vec::new(),
        };
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            checker.refuse(span, in_operators_words(error.message()));
            ConfigError::Refused(std::mem::take(&mut checker.refusals))
        })?;

        let metrics = checker.metrics(&raw.metrics);
        let api = checker.api(&raw.api, &layers.overrides);
        let sources = checker.sources(&raw, layers);
        let (probe, denied) = checker.probe(&raw.probe);
        let health_checks = checker.health_checks(&raw);
        let services = checker.services(&raw.defaults, &raw.services, layers.overrides.strategy, denied);

        if !checker.refusals.is_empty() {
            checker.refusals.sort_by_key(|refusal| match refusal.place {
                Place::Named(_) => (0, 0),
                Place::File { line, column, .. } => (line, column),
            });
            return Err(ConfigError::Refused(checker.refusals));
        }
        if sources.is_empty() {
            return Err(ConfigError::NoSource);
        }
        Ok(Self {
            api,
            sources,
            metrics,
            services,
            probe,
            health_checks,
        })
    }
}

/// The text of the file, without the mark that some editors put before it.
fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, ConfigError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let valid = String::from_utf8_lossy(valid);
            let place = Place::in_file(path, &valid, valid.len()..valid.len());
            Err(ConfigError::Refused(vec![Refusal {
                place,
                message: "not UTF-8".to_owned(),
            }]))
        }
    }
}

/// A value and where it was set.
struct Given<T> {
    value: T,
    origin: Origin,
}

/// Where a value was set.
#[derive(Clone)]
enum Origin {
    File(Range<usize>),
    Named(&'static str),
}

impl From<Range<usize>> for Origin {
    fn from(span: Range<usize>) -> Self {
        Self::File(span)
    }
}

/// Goes through the file once, and notes every refusal instead of stopping at the first: each check returns something usable,
/// which is thrown away at the end if anything was refused.
struct Checker<'a> {
    path: &'a Path,
    text: &'a str,
    refusals: Vec<Refusal>,
}

impl Checker<'_> {
    fn refuse(&mut self, origin: impl Into<Origin>, message: impl fmt::Display) {
        let place = match origin.into() {
            Origin::File(span) => Place::in_file(self.path, self.text, span),
            Origin::Named(name) => Place::Named(name),
        };
        self.refusals.push(Refusal {
            place,
            message: message.to_string(),
        });
    }

    /// Where a relative path of the file leads.
    fn path(&self, written: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(written)
    }

    fn duration(
        &mut self,
        key: &str,
        written: Option<&RawDuration>,
        default: Duration,
        (least, most): (Duration, Duration),
    ) -> Duration {
        let Some(written) = written else { return default };
        duration::parse(written.get_ref(), least, most).unwrap_or_else(|error| {
            self.refuse(written.span(), format!("{key} {error}"));
            default
        })
    }

    fn api(&mut self, raw: &RawApi, overrides: &Overrides) -> ApiConfig {
        let mut listening = Vec::new();
        if let Some(written) = &raw.listen {
            if written.get_ref().is_empty() {
                self.refuse(written.span(), "api.listen: expected at least one address");
            }
            for address in written.get_ref() {
                match listen(address.get_ref()) {
                    Ok(read) if !is_any_port(&read) && listening.contains(&read) => {
                        self.refuse(address.span(), format!("api.listen: {read} is listed twice"));
                    }
                    Ok(read) => listening.push(read),
                    Err(error) => self.refuse(address.span(), format!("api.listen {error}")),
                }
            }
        } else {
            listening.push(SocketAddr::from(([127, 0, 0, 1], 7425)).into());
        }
        if !overrides.listen.is_empty() {
            let mut seen = HashSet::new();
            listening = overrides.listen.clone();
            listening.retain(|address| is_any_port(address) || seen.insert(address.clone()));
        }

        let mut allowed_hosts = Vec::new();
        for host in &raw.allowed_hosts {
            match address::allowed_host(host.get_ref()) {
                Ok(host) => allowed_hosts.push(host),
                Err(error) => self.refuse(host.span(), format!("api.allowed_hosts: {error}, without a port")),
            }
        }
        let ready_timeout = self.duration(
            "api.ready_timeout",
            raw.ready_timeout.as_ref(),
            Duration::from_secs(30),
            (Duration::ZERO, DAY),
        );
        let socket = self.socket(raw, &listening);
        ApiConfig {
            listen: listening,
            allowed_hosts,
            ready_timeout,
            admin_token_file: self
                .path_from(None, raw.admin_token_file.as_ref())
                .map(|given| given.value),
            socket,
        }
    }

    /// Who may connect to Unix sockets. Without one these settings would do nothing, which is a mistake somewhere.
    fn socket(&mut self, raw: &RawApi, listening: &[Listen]) -> SocketAccess {
        let mut access = SocketAccess::default();
        if let Some(written) = &raw.socket_mode {
            let text = written.get_ref();
            match u32::from_str_radix(text, 8) {
                Ok(mode @ 0..=0o777) if !text.starts_with('+') => access.mode = mode,
                _ => {
                    let message = format!("api.socket_mode {text:?}: expected permissions in octal, such as \"0660\"");
                    self.refuse(written.span(), message);
                }
            }
        }
        if let Some(written) = &raw.socket_group {
            let text = written.get_ref();
            if text.chars().any(|c| c == ':' || c.is_control() || c.is_whitespace()) {
                let message = format!("api.socket_group {text:?}: expected a group's name or number");
                self.refuse(written.span(), message);
            }
            access.group = (!text.is_empty()).then(|| text.clone());
        }
        let in_file = raw.listen.iter().flat_map(|listen| listen.get_ref());
        let any = listening.iter().any(|listen| matches!(listen, Listen::Unix(_)))
            || in_file.map(Spanned::get_ref).any(|listen| listen.starts_with("unix:"));
        let default = SocketAccess::default();
        let set = [
            (&raw.socket_mode, access.mode != default.mode),
            (&raw.socket_group, access.group != default.group),
        ];
        for (written, differs) in set {
            if let Some(written) = written.as_ref().filter(|_| differs && !any) {
                let message = "there is no Unix socket in api.listen that this could be for";
                self.refuse(written.span(), message);
            }
        }
        access
    }

    fn metrics(&mut self, raw: &RawMetrics) -> MetricsConfig {
        let mut instance_series = INSTANCE_SERIES;
        if let Some(written) = &raw.instance_series {
            match usize::try_from(*written.get_ref()) {
                Ok(most @ 0..=100_000) => instance_series = most,
                _ => {
                    let found = written.get_ref();
                    self.refuse(
                        written.span(),
                        format!("metrics.instance_series {found}: expected 0 (off) to 100000"),
                    );
                }
            }
        }
        MetricsConfig { instance_series }
    }

    fn sources(&mut self, raw: &RawConfig, layers: &Layers) -> Vec<SourceConfig> {
        let consul = self
            .consul(raw.consul.as_ref(), layers)
            .map(|settings| SourceConfig::Consul(Box::new(settings)));
        let etcd = self
            .etcd(raw.etcd.as_ref(), layers)
            .map(|settings| SourceConfig::Etcd(Box::new(settings)));
        let file = self.file(raw.file.as_ref(), &layers.overrides).map(SourceConfig::File);
        let in_order = [
            (raw.consul.as_ref().map(|table| table.span().start), consul),
            (raw.etcd.as_ref().map(|table| table.span().start), etcd),
            (raw.file.as_ref().map(|table| table.span().start), file),
        ];
        in_order_of_the_file(in_order)
    }

    fn file(&mut self, raw: Option<&Spanned<RawFile>>, overrides: &Overrides) -> Option<FileConfig> {
        let raw = raw.map(Spanned::get_ref);
        if let Some(raw) = raw
            && raw.path.get_ref().is_empty()
        {
            self.refuse(raw.path.span(), "file.path \"\": expected the path of a file");
        }
        let written = raw.map(|raw| self.path(raw.path.get_ref()));
        let path = overrides.file.clone().or(written)?;
        Some(FileConfig {
            path,
            required: raw.and_then(|raw| raw.required).unwrap_or(true),
        })
    }

    fn consul(&mut self, raw: Option<&Spanned<RawConsul>>, layers: &Layers) -> Option<consul::Settings> {
        let Layers {
            overrides, environment, ..
        } = layers;
        if raw.is_none() && overrides.consul.is_none() {
            if !overrides.consul_services.is_empty() {
                let message = "there is no Consul to take services from: give --consul or a [consul] table, too";
                self.refuse(CONSUL_SERVICE, message);
            }
            return None;
        }
        let without = RawConsul::default();
        let raw = raw.map_or(&without, Spanned::get_ref);

        let mut settings = consul::Settings::new(self.consul_address(raw, overrides, environment));
        settings.services = self.consul_names(raw, overrides);
        settings.token = self.consul_token(raw, environment);
        settings.basic_auth = environment.get("CONSUL_HTTP_AUTH").map(consul::BasicAuth::parse);
        settings.tls = self.consul_tls(raw, environment);
        if let Some(written) = &raw.datacenter
            && !written.get_ref().is_empty()
        {
            let name = written.get_ref();
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
                let message = format!("consul.datacenter {name:?}: expected letters, digits, - and _ only");
                self.refuse(written.span(), message);
            }
            settings.datacenter = Some(name.clone());
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
        let ten_minutes = (SECOND, 10 * MINUTE);
        settings.wait = self.duration("consul.wait", raw.wait.as_ref(), settings.wait, ten_minutes);
        settings.refresh = self.duration("consul.refresh", raw.refresh.as_ref(), settings.refresh, (SECOND, DAY));
        settings.max_stale = self.duration(
            "consul.max_stale",
            raw.max_stale.as_ref(),
            settings.max_stale,
            (SECOND, DAY),
        );
        settings.required = raw.required.unwrap_or(settings.required);
        Some(settings)
    }

    /// A flag's scheme stands as it is written; to others, as in Consul's own tools, `CONSUL_HTTP_SSL` adds TLS.
    fn consul_address(&mut self, raw: &RawConsul, overrides: &Overrides, environment: &Environment) -> String {
        const DEFAULT: &str = "http://127.0.0.1:8500";
        let https = environment.get("CONSUL_HTTP_SSL").is_some_and(|written| match written {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => {
                self.refuse(
                    Origin::Named("CONSUL_HTTP_SSL"),
                    format!("{written:?}: expected true or false"),
                );
                false
            }
        });
        if let Some(address) = &overrides.consul {
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

    fn consul_names(&mut self, raw: &RawConsul, overrides: &Overrides) -> consul::Names {
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
        if !overrides.consul_services.is_empty() {
            services.clone_from(&overrides.consul_services);
            for glob in &services {
                if let Err(error) = glob_is_fine(glob) {
                    self.refuse(CONSUL_SERVICE, error);
                }
            }
        }
        consul::Names::new(&services, &exclude).unwrap_or_else(|error| {
            // Told already if one of them is wrong; what is left is that they are too many to be compiled together.
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

    fn consul_token(&self, raw: &RawConsul, environment: &Environment) -> Option<consul::Token> {
        if let Some(path) = environment.get("CONSUL_HTTP_TOKEN_FILE") {
            return Some(consul::Token::File(path.into()));
        }
        if let Some(token) = environment.get("CONSUL_HTTP_TOKEN") {
            return Some(consul::Token::Value(token.to_owned()));
        }
        self.path_from(None, raw.token_file.as_ref())
            .map(|given| consul::Token::File(given.value))
    }

    fn consul_tls(&mut self, raw: &RawConsul, environment: &Environment) -> Tls {
        let variable = |name| environment.get(name).map(|path| (name, path));
        let ca_file = self.path_from(variable("CONSUL_CACERT"), raw.ca_file.as_ref());
        let certificate = self.path_from(variable("CONSUL_CLIENT_CERT"), raw.cert_file.as_ref());
        let key = self.path_from(variable("CONSUL_CLIENT_KEY"), raw.key_file.as_ref());
        let (cert_key, key_key) = (
            "consul.cert_file (or CONSUL_CLIENT_CERT)",
            "consul.key_file (or CONSUL_CLIENT_KEY)",
        );
        Tls {
            ca_file: ca_file.map(|given| given.value),
            identity: self.identity((certificate, cert_key), (key, key_key)),
        }
    }

    /// Certificate and key, each with how it is set: both or none.
    fn identity(
        &mut self,
        (certificate, how_certificate): (Option<Given<PathBuf>>, &str),
        (key, how_key): (Option<Given<PathBuf>>, &str),
    ) -> Option<(PathBuf, PathBuf)> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => return Some((certificate.value, key.value)),
            (None, None) => {}
            (Some(certificate), None) => {
                let message = format!("a certificate without its key: set {how_key}, too");
                self.refuse(certificate.origin, message);
            }
            (None, Some(key)) => {
                let message = format!("a key without its certificate: set {how_certificate}, too");
                self.refuse(key.origin, message);
            }
        }
        None
    }

    /// A path from a variable, else from the file; an empty one is none.
    fn path_from(
        &self,
        variable: Option<(&'static str, &str)>,
        written: Option<&Spanned<String>>,
    ) -> Option<Given<PathBuf>> {
        if let Some((name, path)) = variable {
            return Some(Given {
                value: path.into(),
                origin: Origin::Named(name),
            });
        }
        let written = written.filter(|path| !path.get_ref().is_empty())?;
        Some(Given {
            value: self.path(written.get_ref()),
            origin: written.span().into(),
        })
    }

    /// Sets one thing, if it is written and can be; a refusal begins with `name`.
    fn set<C: Clone, T, E: fmt::Display>(
        &mut self,
        name: &str,
        config: &mut C,
        written: Option<&Spanned<T>>,
        with: impl FnOnce(C, &T) -> Result<C, E>,
    ) {
        let Some(written) = written else { return };
        match with(config.clone(), written.get_ref()) {
            Ok(changed) => *config = changed,
            Err(error) => self.refuse(written.span(), format!("{name}{error}")),
        }
    }
}

/// Whether it is a port that the system chooses, of which there may be many.
fn is_any_port(listen: &Listen) -> bool {
    matches!(listen, Listen::Tcp(address) if address.port() == 0)
}

/// Those that stand in the file change places among themselves until they are in its order; the rest stays where it is.
fn in_order_of_the_file<const N: usize>(sources: [(Option<usize>, Option<SourceConfig>); N]) -> Vec<SourceConfig> {
    let mut starts: Vec<usize> = sources.iter().filter_map(|(start, _)| *start).collect();
    starts.sort_unstable();
    let mut starts = starts.into_iter();
    let place = |start: &Option<usize>| match start {
        Some(_) => starts.next(),
        None => None,
    };
    let places: Vec<Option<usize>> = sources.iter().map(|(start, _)| start).map(place).collect();
    let mut left: Vec<_> = sources.into_iter().collect();
    let mut ordered = Vec::new();
    for place in places {
        let index = left.iter().position(|(start, _)| *start == place);
        ordered.extend(index.and_then(|index| left.remove(index).1));
    }
    ordered
}

/// serde names Rust's types where an operator knows TOML's.
fn in_operators_words(message: &str) -> String {
    for (rust, toml) in [
        ("expected i64", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected a list"),
    ] {
        if let Some(start) = message.strip_suffix(rust) {
            return format!("{start}{toml}");
        }
    }
    message.to_owned()
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
mod tests;
