//! The whole file, and the configuration that is made of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::api::{ApiConfig, RawApi};
use super::checker::Checker;
use super::config_sources::ConfigSources;
use super::consul::RawConsul;
use super::error::{ConfigError, Place, Refusal};
use super::etcd::RawEtcd;
use super::file::{FileConfig, RawFile};
use super::metrics::{MetricsConfig, RawMetrics};
use super::probe::RawProbe;
use super::services::{RawBalancer, RawService};
use crate::balancer::{ServiceConfigs, ServiceName};
use crate::discovery::guard::HoldRules;
use crate::discovery::{consul, etcd};
use crate::probe::{HealthCheck, ProbeSettings};

/// The settings of an agent.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The HTTP interface.
    pub api: ApiConfig,
    /// The registries: at least one, in order of priority. There is one etcd and one file at most, and
    /// one Consul, or one entry for each of its datacenters. Registries in
    /// the file keep their order there. Flags add Consul before etcd before the file registry.
    pub sources: Vec<SourceConfig>,
    /// The series of `/metrics`.
    pub metrics: MetricsConfig,
    /// How services are balanced. The settings of a named service are complete: the defaults are
    /// merged into them.
    pub services: ServiceConfigs,
    /// Limits of active checks over all services.
    pub probe: ProbeSettings,
    /// The active check of each service that has one.
    pub health_checks: BTreeMap<ServiceName, Arc<HealthCheck>>,
}

/// One registry.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SourceConfig {
    /// `[consul]`. The address begins with `http://`, `https://` or `unix:///`, and has no slash at
    /// its end.
    Consul(Box<consul::ConsulSettings>),
    /// `[etcd]`. Endpoints begin with `http://` or `https://`. No prefix is below another.
    Etcd(Box<etcd::EtcdSettings>),
    /// `[file]`
    File(FileConfig),
}

impl SourceConfig {
    /// Which removals are held, and for how long. A file is written by an operator, and is believed.
    #[must_use]
    pub fn hold_rules(&self) -> HoldRules {
        match self {
            Self::Consul(settings) => HoldRules {
                hold: settings.hold,
                vanished: true,
            },
            Self::Etcd(settings) => HoldRules {
                hold: settings.hold,
                vanished: false,
            },
            Self::File(_) => HoldRules::default(),
        }
    }

    /// Whether the same watcher serves both: they differ in nothing but the hold.
    #[must_use]
    pub fn has_the_watcher_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Consul(own), Self::Consul(other)) => {
                let hold = own.hold;
                **own
                    == consul::ConsulSettings {
                        hold,
                        ..(**other).clone()
                    }
            }
            (Self::Etcd(own), Self::Etcd(other)) => {
                let hold = own.hold;
                **own
                    == etcd::EtcdSettings {
                        hold,
                        ..(**other).clone()
                    }
            }
            _ => self == other,
        }
    }
}

/// The file as it is written, before values are checked. serde refuses an unknown key. [`Spanned`]
/// keeps the place of a value, which a refusal shows.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct RawConfig {
    #[serde(default)]
    api: RawApi,
    consul: Option<Spanned<RawConsul>>,
    etcd: Option<Spanned<RawEtcd>>,
    file: Option<Spanned<RawFile>>,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    probe: RawProbe,
    #[serde(default)]
    defaults: RawBalancer,
    #[serde(default)]
    services: BTreeMap<Spanned<String>, RawService>,
}

impl Config {
    /// Reads the configuration file, if there is one, and checks everything.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, settings are wrong (all are listed), or no registry is
    /// configured.
    pub fn load(from: &ConfigSources) -> Result<Self, ConfigError> {
        match &from.file {
            Some(path) => match std::fs::read(path) {
                Ok(bytes) => Self::parse(path, &bytes, from),
                Err(source) => Err(ConfigError::Unreadable {
                    path: path.clone(),
                    source,
                }),
            },
            None => Self::parse(Path::new(""), b"", from),
        }
    }

    /// Checks the content of a configuration file together with the other sources. `path` is not
    /// read: it is named in refusals, and relative paths start at its folder.
    ///
    /// # Errors
    ///
    /// When settings are wrong (all are listed), or no registry is configured.
    pub fn parse(path: &Path, bytes: &[u8], from: &ConfigSources) -> Result<Self, ConfigError> {
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
        let api = checker.api(&raw.api, &from.flags.listen);
        let sources = checker.sources(&raw, from);
        let (probe, denied) = checker.probe(&raw.probe);
        let health_checks = checker.health_checks(&raw.services);
        let services = checker.services(&raw.defaults, &raw.services, from.flags.strategy, denied);

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

/// The text of a configuration file, without flags and variables. Relative paths start at the working
/// directory.
impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::parse(Path::new("configuration"), text.as_bytes(), &ConfigSources::default())
    }
}

/// The text of the file, without a byte order mark.
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

impl Checker<'_> {
    fn sources(&mut self, raw: &RawConfig, from: &ConfigSources) -> Vec<SourceConfig> {
        let consul = self
            .consul(raw.consul.as_ref(), from)
            .into_iter()
            .map(|settings| SourceConfig::Consul(Box::new(settings)))
            .collect();
        let etcd = self
            .etcd(raw.etcd.as_ref(), from)
            .map(|settings| SourceConfig::Etcd(Box::new(settings)))
            .into_iter()
            .collect();
        let file = self
            .file(raw.file.as_ref(), from.flags.file.as_ref())
            .map(SourceConfig::File)
            .into_iter()
            .collect();
        let in_order = [
            (raw.consul.as_ref().map(|table| table.span().start), consul),
            (raw.etcd.as_ref().map(|table| table.span().start), etcd),
            (raw.file.as_ref().map(|table| table.span().start), file),
        ];
        in_order_of_the_file(in_order)
    }
}

/// Sorts the registries of the file by their order there. A registry that a flag added keeps its
/// index. A table of several datacenters is several sources, in the order of the datacenters.
fn in_order_of_the_file<const N: usize>(sources: [(Option<usize>, Vec<SourceConfig>); N]) -> Vec<SourceConfig> {
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
        ordered.extend(index.map(|index| left.remove(index).1).unwrap_or_default());
    }
    ordered
}

/// Replaces the names of Rust's types, which serde uses, by those of TOML.
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
