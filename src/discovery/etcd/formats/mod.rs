//! Keys and values in etcd, as each ecosystem writes them, become services and instances.
//!
//! ```text
//! /microservices/helloworld/3f1c-a   {"id":"3f1c-a", "endpoints":["grpc://10.0.0.5:9000"]}
//! └── prefix ───┘└ service ┘└ id ┘   └ address, weight and metadata: one file a format ────┘
//! ```
//!
//! etcd itself knows neither services nor instances. Below a prefix, the first segment of a key is
//! the service and the last the instance, unless the prefix has a path that names the segments. If
//! a prefix names its service, every key below it is an instance, and the key without the prefix is
//! the id. A prefix ends with a slash, so that `user/` never includes keys of `user-admin/`.
//!
//! Pure. Knows nothing of revisions, of time, or of what a key held before. Values come from
//! outside: empty values, `null`, `init_dir` and binary data have all been seen. Each such value
//! costs its own key and nothing else.
//!
//! The files import only downwards: `mod`, `detect`, then one file a format, then `path`, `url`,
//! `fields` and `registration`.

mod apisix;
mod detect;
mod dubbo;
mod fields;
mod go_micro;
mod goframe;
mod grpc;
mod json;
mod jupiter;
mod kitex;
mod kratos;
mod path;
mod plain;
mod registration;
mod rpcx;
#[cfg(test)]
mod samples;
mod skydns;
mod url;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use path::KeyPath;
pub use registration::{Ignored, InvalidRegistration, InvalidValue, Registration, SOURCE};

use self::path::Located;
use self::registration::Place;
use crate::balancer::ServiceName;

/// How keys and values are written below a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueFormat {
    /// Recognized by each key and value, in the order of the table in `docs/etcd.md`.
    #[default]
    Auto,
    /// pickd's own: `{"host", "port", "weight", "tags", "metadata", "status", "priority"}`, or
    /// `address` in place of host and port; and what other programs write alike.
    Json,
    /// `host:port`, or the URL of a server.
    Plain,
    /// etcd's own endpoints manager, used by grpc-go: `{"Op", "Addr", "Metadata"}`.
    Grpc,
    /// go-kratos: `{"id", "name", "version", "metadata", "endpoints"}`.
    Kratos,
    /// go-zero: `host:port` below the service's key.
    GoZero,
    /// go-micro: `{"name", "version", "nodes"}`, in older versions with a port of its own.
    GoMicro,
    /// Kitex: `{"network", "address", "weight", "tags"}`.
    Kitex,
    /// rpcx: the address in the key, the rest as a URL's query.
    Rpcx,
    /// SkyDNS and CoreDNS: `{"host", "port", "priority", "weight"}` below reversed labels.
    SkyDns,
    /// dubbo-go: `{"ServiceName", "Host", "Port", "Weight"}`, or a provider's URL in the key.
    Dubbo,
    /// Apache APISIX: `{"nodes", "type"}`, where each upstream is a service.
    Apisix,
    /// GoFrame: the addresses in the key, metadata as the value.
    GoFrame,
    /// jupiter and ego: `{"name", "scheme", "address", "weight", "enable", "healthy"}`.
    Jupiter,
}

impl ValueFormat {
    /// Every format.
    pub const ALL: [Self; 14] = [
        Self::Auto,
        Self::Json,
        Self::Plain,
        Self::Grpc,
        Self::Kratos,
        Self::GoZero,
        Self::GoMicro,
        Self::Kitex,
        Self::Rpcx,
        Self::SkyDns,
        Self::Dubbo,
        Self::Apisix,
        Self::GoFrame,
        Self::Jupiter,
    ];

    /// The name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Plain => "plain",
            Self::Grpc => "grpc",
            Self::Kratos => "kratos",
            Self::GoZero => "go-zero",
            Self::GoMicro => "go-micro",
            Self::Kitex => "kitex",
            Self::Rpcx => "rpcx",
            Self::SkyDns => "skydns",
            Self::Dubbo => "dubbo",
            Self::Apisix => "apisix",
            Self::GoFrame => "goframe",
            Self::Jupiter => "jupiter",
        }
    }
}

impl fmt::Display for ValueFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a prefix was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrefix {
    /// Not the name of a format.
    #[error(
        "{found:?}: expected auto, json, plain, grpc, kratos, go-zero, go-micro, kitex, rpcx, skydns, dubbo, apisix, goframe or jupiter"
    )]
    ValueFormat {
        /// The text that was given.
        found: String,
    },
    /// An empty prefix includes every key of the cluster. Only a path says what these keys are.
    #[error("\"\": expected the start of the keys to watch, such as \"/services/\"")]
    Empty,
    /// A path that does not say where the service is.
    #[error("{found:?}: {problem}")]
    Path {
        /// The text that was given.
        found: String,
        /// What is expected instead.
        problem: &'static str,
    },
}

impl FromStr for ValueFormat {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| InvalidPrefix::ValueFormat { found: text.to_owned() })
    }
}

/// The prefixes of one cluster, shared.
pub(super) type Prefixes = Arc<[Prefix]>;

/// The keys to watch, and how to read what is below them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    start: String,
    format: ValueFormat,
    service: Option<ServiceName>,
    path: Option<KeyPath>,
    scheme: Option<String>,
}

impl Prefix {
    /// The keys with this prefix, in format [`ValueFormat::Auto`]. A slash is added at the end if there
    /// is none.
    ///
    /// # Errors
    ///
    /// When the prefix is empty.
    pub fn new(start: &str) -> Result<Self, InvalidPrefix> {
        if start.is_empty() {
            return Err(InvalidPrefix::Empty);
        }
        Ok(Self {
            start: format!("{}/", start.strip_suffix('/').unwrap_or(start)),
            format: ValueFormat::default(),
            service: None,
            path: None,
            scheme: None,
        })
    }

    /// Every key of the cluster, as far as it has this path.
    #[must_use]
    pub fn everything(path: KeyPath) -> Self {
        Self {
            start: String::new(),
            format: ValueFormat::default(),
            service: None,
            path: Some(path),
            scheme: None,
        }
    }

    /// Sets the format.
    #[must_use]
    pub fn with_format(mut self, format: ValueFormat) -> Self {
        self.format = format;
        self
    }

    /// Makes every key below the prefix an instance of this service, with the key without the
    /// prefix as its id.
    #[must_use]
    pub fn with_service(mut self, service: ServiceName) -> Self {
        self.service = Some(service);
        self
    }

    /// Reads the keys that have this path below the prefix, and no others.
    #[must_use]
    pub fn with_path(mut self, path: KeyPath) -> Self {
        self.path = Some(path);
        self
    }

    /// Where an instance has several endpoints (kratos, dubbo), takes the first with this URL
    /// scheme.
    #[must_use]
    pub fn with_scheme(mut self, scheme: impl Into<String>) -> Self {
        self.scheme = Some(scheme.into());
        self
    }

    /// The prefix, with a slash at the end. Empty if it includes every key of the cluster.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.start
    }

    /// How values are written.
    #[must_use]
    pub fn format(&self) -> ValueFormat {
        self.format
    }

    /// The service of all keys below, if it is fixed.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        self.service.as_ref()
    }

    /// Whether both prefixes include the same keys.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start.starts_with(&other.start) || other.start.starts_with(&self.start)
    }

    /// Whether a service of this name could be below.
    #[must_use]
    pub fn could_list(&self, service: &str) -> bool {
        let is_own = |own: &ServiceName| service.parse().is_ok_and(|service: ServiceName| service == *own);
        self.service.as_ref().is_none_or(is_own)
    }

    /// The key that pickd took for this service and this instance until version 0.1, if it was
    /// another than today.
    #[must_use]
    pub fn formerly(&self, key: &str) -> Option<(String, String)> {
        let former = path::former(key)?;
        let moved = self.service.is_none() && self.locate(key).ok().as_ref() != Some(&former);
        moved.then_some((former.service, former.id))
    }

    /// Whether a key is below.
    #[must_use]
    pub fn covers(&self, key: &[u8]) -> bool {
        key.len() > self.start.len() && key.starts_with(self.start.as_bytes())
    }

    /// What a key below this prefix registers with its value.
    ///
    /// # Errors
    ///
    /// When the key or the value is not valid. That has no effect on any other key.
    pub fn read(&self, key: &[u8], value: &[u8]) -> Result<Registration, InvalidRegistration> {
        let key = std::str::from_utf8(key).map_err(|_| InvalidRegistration::KeyNotText)?;
        let located = self
            .locate(key)
            .map_err(|error| error.of_folder(self.format, key, value));
        match located {
            Err(error) if !error.is_counted() => return Err(error),
            _ if detect::is_folder(self.format, key, value) => return Err(InvalidRegistration::Folder),
            _ => {}
        }
        let found = detect::format_of(self.format, key, value);
        let upstream = match &found {
            Ok(found) if found.format() == ValueFormat::Apisix => self.upstream(key),
            _ => None,
        };
        let Located { service, id } = match upstream {
            Some(upstream) => upstream,
            None => located?,
        };
        let found = found?;
        let place = Place {
            service: service.parse()?,
            id: &id,
            key,
            scheme: self.scheme.as_deref(),
        };
        let mut ignored = Ignored::new();
        let instances = detect::read(&found, &place, value, &mut ignored)?;
        Ok(Registration {
            service: place.service,
            instances,
            ignored,
        })
    }

    /// The service that a key belongs to, if the key names one, whatever its value is.
    #[must_use]
    pub fn service_of(&self, key: &[u8]) -> Option<ServiceName> {
        let located = self.locate(std::str::from_utf8(key).ok()?);
        located.ok().and_then(|located| located.service.parse().ok())
    }

    fn locate(&self, key: &str) -> Result<Located, InvalidRegistration> {
        let below = key.strip_prefix(&*self.start).unwrap_or_default();
        match (&self.service, &self.path) {
            (Some(service), _) => Ok(Located {
                service: service.as_str().to_owned(),
                id: below.to_owned(),
            }),
            (None, Some(path)) => path.locate(below),
            (None, None) if self.format == ValueFormat::GoZero => path::service_is_prefix(&self.start, below),
            (None, None) => path::two_segments(below),
        }
    }

    /// A key directly below the prefix is a service of its own if the value has the instances, as
    /// an upstream of APISIX. Rights below one service never reach such a key.
    fn upstream(&self, key: &str) -> Option<Located> {
        let below = key.strip_prefix(&*self.start)?;
        let alone = self.service.is_none() && self.path.is_none() && !below.contains('/');
        alone.then(|| Located {
            service: below.to_owned(),
            id: below.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{SAMPLES, Sample};
    use super::*;
    use crate::balancer::ServiceInstance;

    /// What a key and a value register below a prefix, as `service: id=address*weight ...`.
    pub(super) fn read(prefix: &str, format: ValueFormat, key: &str, value: &str) -> String {
        registered(&Prefix::new(prefix).unwrap().with_format(format), key, value)
    }

    fn registered(prefix: &Prefix, key: &str, value: &str) -> String {
        assert!(prefix.covers(key.as_bytes()), "{key}");
        match prefix.read(key.as_bytes(), value.as_bytes()) {
            Err(error) if !error.is_counted() => String::new(),
            Err(error) => format!("error: {error}"),
            Ok(registration) => {
                let mut text = format!("{}:", registration.service);
                for instance in registration.instances {
                    assert_eq!(instance.source(), SOURCE);
                    text += &format!(" {}={}*{}", instance.id(), instance.address(), instance.weight().get());
                }
                text
            }
        }
    }

    /// The same for a sample.
    fn text_of(sample: &Sample, format: ValueFormat) -> String {
        registered(&sample.prefix(format), sample.key, sample.value)
    }

    /// The one instance that a key registers.
    pub(super) fn instance(format: ValueFormat, key: &str, value: &str) -> ServiceInstance {
        let (start, _) = key.rsplit_once('/').unwrap();
        let (start, _) = start.rsplit_once('/').unwrap();
        let prefix = Prefix::new(start).unwrap().with_format(format);
        let mut instances = prefix.read(key.as_bytes(), value.as_bytes()).unwrap().instances;
        assert_eq!(instances.len(), 1);
        instances.remove(0)
    }

    /// Why parts of a value are left out.
    pub(super) fn ignored(format: ValueFormat, key: &str, value: &str) -> Ignored {
        let (start, _) = key.rsplit_once('/').unwrap();
        let (start, _) = start.rsplit_once('/').unwrap();
        let prefix = Prefix::new(start).unwrap().with_format(format);
        let read = prefix.read(key.as_bytes(), value.as_bytes());
        read.unwrap_or_else(|error| panic!("{value}: {error}")).ignored
    }

    pub(super) fn metadata<'a>(instance: &'a ServiceInstance, key: &str) -> Option<&'a str> {
        instance.metadata().get(key).map(AsRef::as_ref)
    }

    #[test]
    fn each_registrars_sample_is_read_in_its_format() {
        for sample in &SAMPLES {
            let Sample { source, key, .. } = sample;
            assert_eq!(text_of(sample, sample.format), sample.registers, "{source}: {key}");
        }
    }

    #[test]
    fn auto_reads_each_sample_as_its_own_format_does() {
        for sample in &SAMPLES {
            let Sample { source, key, .. } = sample;
            assert_eq!(text_of(sample, ValueFormat::Auto), sample.registers, "{source}: {key}");
            let (auto, named) = (sample.read(ValueFormat::Auto), sample.read(sample.format));
            assert_eq!(auto, named, "{source}: {key}");
        }
    }

    #[test]
    fn every_format_has_a_sample() {
        for format in ValueFormat::ALL {
            let found = SAMPLES.iter().any(|sample| sample.format == format);
            assert!(found || format == ValueFormat::Auto, "{format}");
        }
    }

    #[test]
    fn garbage_is_an_error_in_every_format_and_never_a_panic() {
        let garbage: [&[u8]; 14] = [
            b"",
            b"null",
            b"{}",
            b"[]",
            b"init_dir",
            b"42",
            b"\"10.0.0.5:80\"",
            b"\x00\xff\xfe\x80",
            b"{\"host\":",
            br#"{"host":7,"port":"x"}"#,
            br#"{"Addr":{},"Op":"0"}"#,
            br#"{"endpoints":"http://a:1","nodes":7,"address":[]}"#,
            br#"{"network":"tcp","address":"10.0.0.5"}"#,
            br#"{"nodes":[null]}"#,
        ];
        for format in ValueFormat::ALL {
            let prefix = Prefix::new("/s/").unwrap().with_format(format);
            for value in garbage {
                let read = prefix.read(b"/s/web/a", value);
                // rpcx and dubbo have addresses in keys, and keys of folders register no instances
                // there. Records of SkyDNS may be for DNS alone, and APISIX marks its folders.
                let counted = read.as_ref().is_err_and(InvalidRegistration::is_counted);
                let nothing = read
                    .as_ref()
                    .map_or(true, |registration| registration.instances.is_empty());
                let may_be_nothing = match format {
                    ValueFormat::Rpcx | ValueFormat::SkyDns => true,
                    ValueFormat::Dubbo => value.is_empty(),
                    ValueFormat::Apisix => value == b"init_dir",
                    _ => false,
                };
                assert!(
                    nothing && (counted || may_be_nothing),
                    "{format}: {}: {read:?}",
                    String::from_utf8_lossy(value)
                );
            }
            for key in [&b"/s/web/\xff"[..], b"/s/we\nb/a", b"/s//a", b"/s/web/", b"/s/web/a/b"] {
                let read = prefix.read(key, b"10.0.0.5:80");
                assert!(read.is_err(), "{format} {key:?}: {read:?}");
            }
            assert!(prefix.read(b"/s", b"").is_err());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut random = fastrand::Rng::with_seed(7);
        for format in ValueFormat::ALL {
            let prefix = Prefix::new("/s/").unwrap().with_format(format);
            for Sample { key, value, .. } in &SAMPLES {
                for _ in 0..200 {
                    // A valid value with a few changed bytes reaches more code than random bytes
                    // do.
                    let mut mangled = value.as_bytes().to_vec();
                    for _ in 0..random.usize(1..4).min(mangled.len()) {
                        let place = random.usize(..mangled.len());
                        mangled[place] = random.u8(..);
                    }
                    mangled.truncate(random.usize(..=mangled.len()));
                    let _ = prefix.read(format!("/s/{key}").as_bytes(), &mangled);
                }
            }
        }
    }

    #[test]
    fn a_prefix_ends_with_a_slash_and_excludes_its_neighbour() {
        for written in ["user", "user/"] {
            let prefix = Prefix::new(written).unwrap();
            assert_eq!(prefix.as_str(), "user/");
            assert!(prefix.covers(b"user/a") && prefix.covers(b"user/a/b"));
            for key in [&b"user-admin/a"[..], b"user", b"user/", b"use", b"/user/a", b""] {
                assert!(!prefix.covers(key), "{}", String::from_utf8_lossy(key));
            }
        }
        assert_eq!(Prefix::new("/").unwrap().as_str(), "/");
        assert_eq!(Prefix::new(""), Err(InvalidPrefix::Empty));
    }

    #[test]
    fn prefixes_overlap_when_one_is_below_the_other() {
        let overlaps = |a, b| Prefix::new(a).unwrap().overlaps(&Prefix::new(b).unwrap());
        assert!(overlaps("/services/", "/services/web/") && overlaps("/services/web", "/services"));
        assert!(overlaps("/a", "/a/") && overlaps("/", "/a"));
        assert!(!overlaps("user", "user-admin") && !overlaps("/a/b", "/a/c"));
    }

    #[test]
    fn a_fixed_service_has_every_key_below_with_the_rest_as_id() {
        let prefix = Prefix::new("/eu/").unwrap().with_service("web".parse().unwrap());
        let read = |key: &str| prefix.read(key.as_bytes(), b"10.0.0.5:80").unwrap();
        for (key, id) in [("/eu/a", "a"), ("/eu/west/1/a", "west/1/a")] {
            let registration = read(key);
            assert_eq!(
                (registration.service.as_str(), registration.instances[0].id().as_str()),
                ("web", id)
            );
        }
        assert!(prefix.could_list("web") && !prefix.could_list("eu"));
        assert!(Prefix::new("/eu/").unwrap().could_list("anything"));
    }

    #[test]
    fn a_service_is_the_first_segment_below_its_prefix_or_named_by_a_path() {
        let read = |prefix: &Prefix, key: &str| match prefix.read(key.as_bytes(), b"10.0.0.5:80") {
            Ok(read) => format!("{} {}", read.service, read.instances[0].id()),
            Err(error) => format!("error: {error}"),
        };
        let plain = Prefix::new("/services").unwrap();
        assert_eq!(read(&plain, "/services/web/a"), "web a");
        // A user who may write below `/services/team-a/` alone.
        for refused in ["/services/team-a/payments/evil", "/services/web"] {
            assert!(read(&plain, refused).starts_with("error"), "{refused}");
        }
        let path = plain
            .clone()
            .with_path("/{service}/providers/{instance}".parse().unwrap());
        assert_eq!(read(&path, "/services/web/providers/a"), "web a");
        assert!(!path.read(b"/services/web/consumers/a", b"").unwrap_err().is_counted());
        let everything = Prefix::everything("{service}/{instance}".parse().unwrap());
        assert!(everything.covers(b"a") && !everything.covers(b""));
        assert_eq!(
            read(&everything, "user.rpc/7587870460981677828"),
            "user.rpc 7587870460981677828"
        );
    }

    #[test]
    fn what_the_former_rule_read_otherwise_is_known() {
        let moved = |prefix: &Prefix, key: &str| prefix.formerly(key).map(|(service, id)| format!("{service} {id}"));
        let plain = Prefix::new("/services").unwrap();
        assert_eq!(moved(&plain, "/services/web/a"), None);
        assert_eq!(
            moved(&plain, "/services/team-a/payments/evil"),
            Some("payments evil".to_owned())
        );
        assert_eq!(moved(&plain, "/services/web"), Some("services web".to_owned()));
        let fixed = plain.with_service("web".parse().unwrap());
        assert_eq!(moved(&fixed, "/services/a/b/c"), None);
    }

    #[test]
    fn keys_of_folders_are_neither_instances_nor_errors() {
        for (format, key, value, counted) in [
            (ValueFormat::Rpcx, "/rpcx/Arith", "Arith", false),
            (ValueFormat::Auto, "/rpcx/Arith", "Arith", false),
            (ValueFormat::Auto, "/rpcx/Arith", "", false),
            (ValueFormat::Auto, "/rpcx/Arith", "10.0.0.1:80", true),
            (ValueFormat::Auto, "/rpcx/a/b/c", "", true),
        ] {
            let prefix = Prefix::new("/rpcx").unwrap().with_format(format);
            let error = prefix.read(key.as_bytes(), value.as_bytes()).unwrap_err();
            assert_eq!(error.is_counted(), counted, "{format} {key} {value}: {error}");
        }
    }

    #[test]
    fn formats_are_named_as_in_the_configuration() {
        for format in ValueFormat::ALL {
            assert_eq!(format.as_str().parse(), Ok(format));
            let refusal = InvalidPrefix::ValueFormat { found: "x".to_owned() }.to_string();
            assert!(refusal.contains(format.as_str()), "{refusal} leaves out {format}");
        }
        assert!("eureka".parse::<ValueFormat>().is_err() && "JSON".parse::<ValueFormat>().is_err());
    }

    #[test]
    fn plain_accepts_names_ipv6_and_white_space() {
        let plain = |value| read("/s", ValueFormat::Plain, "/s/api/0", value);
        assert_eq!(plain("db.local:5432"), "api: 0=db.local:5432*1");
        assert_eq!(plain(" [::1]:80\n"), "api: 0=[::1]:80*1");
        for refused in [
            "10.0.0.5",
            "10.0.0.5:",
            "10.0.0.5:0",
            "10.0.0.5:70000",
            "a b:80",
            "://a:80",
        ] {
            assert!(plain(refused).starts_with("error"), "{refused}");
        }
    }
}
