//! Keys and values in etcd, as each ecosystem writes them, become services and instances.
//!
//! ```text
//! /microservices/helloworld/3f1c-a   {"id":"3f1c-a", "endpoints":["grpc://10.0.0.5:9000"]}
//! └── prefix ───┘└ service ┘└ id ┘   └ address, weight and metadata: one file a format ────┘
//! ```
//!
//! etcd itself knows neither services nor instances. All conventions have the key in common: its
//! last segment is the instance, and the segment before it the service. Folders between the prefix
//! and the service belong to the id, so that an id means one key of a prefix. If a prefix names its
//! service, every key below it is an instance, and the key without the prefix is the id. A prefix
//! ends with a slash, so that `user/` never includes keys of `user-admin/`.
//!
//! Pure. Knows nothing of revisions, of time, or of what a key held before. Values come from
//! outside: empty values, `null`, `init_dir` and binary data have all been seen. Each such value
//! costs its own key and nothing else.
//!
//! The files import only downwards: `mod`, then one file a format, then `registration`.

mod go_micro;
mod grpc;
mod json;
mod kitex;
mod kratos;
mod plain;
mod registration;
mod rpcx;
mod skydns;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use registration::{InvalidRegistration, Registration, SOURCE};

use serde_json::Value;

use self::registration::{Decoded, Place, object};
use crate::balancer::ServiceName;

/// How keys and values are written below a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ValueFormat {
    /// Recognized by each value: JSON by the fields that only one convention has, rpcx by its
    /// keys, else `host:port`.
    #[default]
    Auto,
    /// pickd's own: `{"host", "port", "weight", "tags", "metadata", "status"}`, or `address` in
    /// place of host and port.
    Json,
    /// `host:port`.
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
}

impl ValueFormat {
    /// Every format.
    pub const ALL: [Self; 10] = [
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
    #[error("{found:?}: expected auto, json, plain, grpc, kratos, go-zero, go-micro, kitex, rpcx or skydns")]
    ValueFormat {
        /// The text that was given.
        found: String,
    },
    /// An empty prefix would include every key of the cluster.
    #[error("\"\": expected the start of the keys to watch, such as \"/services/\"")]
    Empty,
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
            scheme: None,
        })
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

    /// Where an instance has several endpoints (kratos), takes the first with this URL scheme.
    #[must_use]
    pub fn with_scheme(mut self, scheme: impl Into<String>) -> Self {
        self.scheme = Some(scheme.into());
        self
    }

    /// The prefix, with a slash at the end.
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
        let place = self.place(key)?;
        let mut instances = match self.format {
            ValueFormat::Auto => read_recognized(&place, value),
            format => read_as(format, &place, value),
        }?;
        if let Some(folder) = self.folder(key) {
            for instance in &mut instances {
                let id = format!("{folder}/{}", instance.id()).parse()?;
                *instance = instance.clone().with_id(id);
            }
        }
        Ok(Registration {
            service: place.service,
            instances,
        })
    }

    /// The part of a key between the prefix and the service. It belongs to the id: two folders may
    /// have the same service and instance, and an id must not depend on what else is registered.
    fn folder<'a>(&self, key: &'a str) -> Option<&'a str> {
        if self.service.is_some() {
            return None;
        }
        let (parents, _id) = key.strip_prefix(&*self.start)?.rsplit_once('/')?;
        let (folder, _service) = parents.rsplit_once('/')?;
        Some(folder)
    }

    /// The service that a key belongs to, if the key names one, whatever its value is.
    #[must_use]
    pub fn service_of(&self, key: &[u8]) -> Option<ServiceName> {
        let place = self.place(std::str::from_utf8(key).ok()?);
        place.ok().map(|place| place.service)
    }

    fn place<'a>(&'a self, key: &'a str) -> Result<Place<'a>, InvalidRegistration> {
        let below = key.strip_prefix(&*self.start).unwrap_or_default();
        let (service, id) = match &self.service {
            Some(service) => (service.clone(), below),
            None => {
                let (parents, id) = key.rsplit_once('/').ok_or(InvalidRegistration::NoService)?;
                let service = parents.rsplit('/').next().unwrap_or_default();
                (service.parse()?, id)
            }
        };
        let scheme = self.scheme.as_deref();
        Ok(Place { service, id, scheme })
    }
}

/// A format whose values are JSON objects.
struct JsonFormat {
    format: ValueFormat,
    read: fn(&Place<'_>, Value) -> Decoded,
    /// An object with all of these fields ...
    all: &'static [&'static str],
    /// ... and at least one of these, if there are any, is recognized as this format.
    any: &'static [&'static str],
}

/// The JSON formats, in the order in which [`ValueFormat::Auto`] tries to recognize them.
const JSON_FORMATS: [JsonFormat; 6] = [
    JsonFormat {
        format: ValueFormat::Grpc,
        read: grpc::read,
        all: &["Addr"],
        any: &[],
    },
    JsonFormat {
        format: ValueFormat::GoMicro,
        read: go_micro::read,
        all: &["nodes"],
        any: &[],
    },
    JsonFormat {
        format: ValueFormat::Kratos,
        read: kratos::read,
        all: &["endpoints"],
        any: &[],
    },
    JsonFormat {
        format: ValueFormat::Kitex,
        read: kitex::read,
        all: &["network", "address"],
        any: &[],
    },
    JsonFormat {
        format: ValueFormat::SkyDns,
        read: skydns::read,
        all: &["host"],
        any: &["priority", "ttl", "text", "targetstrip"],
    },
    JsonFormat {
        format: ValueFormat::Json,
        read: json::read,
        all: &[],
        any: &["host", "address"],
    },
];

impl JsonFormat {
    fn recognizes(&self, object: &Value) -> bool {
        let has = |name: &&str| object.get(name).is_some();
        self.all.iter().all(has) && (self.any.is_empty() || self.any.iter().any(has))
    }
}

fn read_as(format: ValueFormat, place: &Place<'_>, value: &[u8]) -> Decoded {
    match format {
        ValueFormat::Plain | ValueFormat::GoZero => plain::read(place, value),
        ValueFormat::Rpcx => rpcx::read(place, value),
        _ => match JSON_FORMATS.iter().find(|json| json.format == format) {
            Some(json) => (json.read)(place, object(value)?),
            None => read_recognized(place, value),
        },
    }
}

/// Recognizes JSON by the fields that only one convention has, rpcx by the key, and takes any
/// other value for `host:port`.
fn read_recognized(place: &Place<'_>, value: &[u8]) -> Decoded {
    if value.trim_ascii_start().first() != Some(&b'{') {
        return match rpcx::address(place.id) {
            Some(_) => rpcx::read(place, value),
            None => plain::read(place, value),
        };
    }
    let object = object(value)?;
    match JSON_FORMATS.iter().find(|json| json.recognizes(&object)) {
        Some(json) => (json.read)(place, object),
        None => Err(InvalidRegistration::Unrecognized),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::ServiceInstance;

    /// What a key and a value register below a prefix, as `service: id=address*weight ...`.
    pub(super) fn read(prefix: &str, format: ValueFormat, key: &str, value: &str) -> String {
        let prefix = Prefix::new(prefix).unwrap().with_format(format);
        assert!(prefix.covers(key.as_bytes()), "{key}");
        match prefix.read(key.as_bytes(), value.as_bytes()) {
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

    /// The one instance that a key registers.
    pub(super) fn instance(format: ValueFormat, key: &str, value: &str) -> ServiceInstance {
        let (start, _) = key.rsplit_once('/').unwrap();
        let prefix = Prefix::new(start).unwrap().with_format(format);
        let mut instances = prefix.read(key.as_bytes(), value.as_bytes()).unwrap().instances;
        assert_eq!(instances.len(), 1);
        instances.remove(0)
    }

    pub(super) fn metadata<'a>(instance: &'a ServiceInstance, key: &str) -> Option<&'a str> {
        instance.metadata().get(key).map(AsRef::as_ref)
    }

    /// As the ecosystems write them: prefix, format, key, value, and the registration.
    const EXAMPLES: [(&str, ValueFormat, &str, &str, &str); 10] = [
        (
            "foo/",
            ValueFormat::Grpc,
            "foo/bar/svc/10.0.0.5:8080",
            r#"{"Op":0,"Addr":"10.0.0.5:8080","Metadata":{"weight":10}}"#,
            "svc: bar/10.0.0.5:8080=10.0.0.5:8080*10",
        ),
        (
            "/microservices",
            ValueFormat::Kratos,
            "/microservices/helloworld/3f1c-a",
            r#"{"id":"3f1c-a","name":"helloworld","version":"v1.0.0","metadata":{"weight":"10"},"endpoints":["http://10.0.0.5:8000?isSecure=false","grpc://10.0.0.5:9000?isSecure=false"]}"#,
            "helloworld: 3f1c-a=10.0.0.5:8000*10",
        ),
        (
            "user.rpc",
            ValueFormat::GoZero,
            "user.rpc/7587870460981677828",
            "10.0.0.5:8080",
            "user.rpc: 7587870460981677828=10.0.0.5:8080*1",
        ),
        (
            "/micro/registry/",
            ValueFormat::GoMicro,
            "/micro/registry/greeter/greeter-7f",
            r#"{"name":"greeter","version":"latest","metadata":null,"endpoints":[],"nodes":[{"id":"greeter-7f","address":"10.0.0.5:45123","metadata":{"protocol":"grpc"}}]}"#,
            "greeter: greeter-7f=10.0.0.5:45123*1",
        ),
        (
            "/micro-registry/",
            ValueFormat::GoMicro,
            "/micro-registry/greeter/greeter-7f",
            r#"{"name":"greeter","version":"1","metadata":{},"endpoints":[],"nodes":[{"id":"greeter-7f","address":"10.0.0.5","port":45123,"metadata":{}}]}"#,
            "greeter: greeter-7f=10.0.0.5:45123*1",
        ),
        (
            "kitex/registry-etcd",
            ValueFormat::Kitex,
            "kitex/registry-etcd/echo/10.0.0.5:8888",
            r#"{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":null}"#,
            "echo: 10.0.0.5:8888=10.0.0.5:8888*10",
        ),
        (
            "/rpcx",
            ValueFormat::Rpcx,
            "/rpcx/Arith/tcp@10.0.0.5:8972",
            "weight=7&calls=12.00&connections=3.00",
            "Arith: tcp@10.0.0.5:8972=10.0.0.5:8972*7",
        ),
        (
            "/skydns/local/",
            ValueFormat::SkyDns,
            "/skydns/local/skydns/x5",
            r#"{"host":"10.0.0.5","port":8080,"priority":10,"weight":100,"ttl":60}"#,
            "skydns: x5=10.0.0.5:8080*100",
        ),
        (
            "/services/",
            ValueFormat::Plain,
            "/services/api/0",
            "10.0.0.5:9100",
            "api: 0=10.0.0.5:9100*1",
        ),
        (
            "/services/",
            ValueFormat::Json,
            "/services/api/1",
            r#"{"host":"10.0.0.5","port":9100,"weight":3}"#,
            "api: 1=10.0.0.5:9100*3",
        ),
    ];

    #[test]
    fn each_ecosystems_example_is_read_as_that_ecosystem_does() {
        for (prefix, format, key, value, expected) in EXAMPLES {
            assert_eq!(read(prefix, format, key, value), expected);
        }
    }

    #[test]
    fn auto_recognizes_each_example() {
        for (prefix, _, key, value, expected) in EXAMPLES {
            assert_eq!(read(prefix, ValueFormat::Auto, key, value), expected);
        }
    }

    #[test]
    fn auto_recognizes_skydns_by_each_of_its_own_fields() {
        for field in ["priority", "ttl", "text", "targetstrip"] {
            let value = format!(r#"{{"host":"10.0.0.5","port":80,"{field}":null}}"#);
            let found = read("/s", ValueFormat::Auto, "/s/web/a", &value);
            assert_eq!(found, "web: a=10.0.0.5:80*100", "{field}");
        }
        let own = read("/s", ValueFormat::Auto, "/s/web/a", r#"{"host":"10.0.0.5","port":80}"#);
        assert_eq!(own, "web: a=10.0.0.5:80*1");
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
                // rpcx has its addresses in keys, and keys of folders register no instances there.
                let nothing = read
                    .as_ref()
                    .is_ok_and(|registration| registration.instances.is_empty());
                assert!(
                    read.is_err() || nothing && matches!(format, ValueFormat::Rpcx | ValueFormat::SkyDns),
                    "{format}: {}: {read:?}",
                    String::from_utf8_lossy(value)
                );
            }
            for key in [&b"/s/web/\xff"[..], b"/s/we\nb/a", b"/s//a", b"/s/web/"] {
                let read = prefix.read(key, b"10.0.0.5:80");
                assert!(
                    read.is_err() || format == ValueFormat::Rpcx,
                    "{format} {key:?}: {read:?}"
                );
            }
            assert!(prefix.read(b"/s", b"").is_err() || format == ValueFormat::Rpcx);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut random = fastrand::Rng::with_seed(7);
        for format in ValueFormat::ALL {
            let prefix = Prefix::new("/s/").unwrap().with_format(format);
            for (_, _, key, value, _) in EXAMPLES {
                for _ in 0..200 {
                    // A valid value with a few changed bytes reaches more code than random bytes
                    // do.
                    let mut mangled = value.as_bytes().to_vec();
                    for _ in 0..random.usize(1..4) {
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
    fn the_service_is_the_segment_before_the_last_however_deep() {
        for (key, service) in [("/s/web/a", "web"), ("/s/eu/web/a", "web"), ("/s/a", "s")] {
            let registration = Prefix::new("/s").unwrap().read(key.as_bytes(), b"10.0.0.5:80").unwrap();
            assert_eq!(registration.service.as_str(), service, "{key}");
        }
        let root = Prefix::new("/").unwrap();
        assert!(root.read(b"/a", b"10.0.0.5:80").is_err(), "no service stands before it");
    }

    #[test]
    fn folders_before_the_service_belong_to_the_id() {
        let id = |key: &str| {
            let read = Prefix::new("/s").unwrap().read(key.as_bytes(), b"10.0.0.5:80");
            read.unwrap().instances[0].id().to_string()
        };
        assert_eq!(id("/s/web/web-0"), "web-0");
        assert_eq!(id("/s/eu/web/web-0"), "eu/web-0");
        assert_eq!(id("/s/eu/west/web/web-0"), "eu/west/web-0");
        assert_eq!(id("/s/web-0"), "web-0");
    }

    #[test]
    fn formats_are_named_as_in_the_configuration() {
        for format in ValueFormat::ALL {
            assert_eq!(format.as_str().parse(), Ok(format));
            let refusal = InvalidPrefix::ValueFormat { found: "x".to_owned() }.to_string();
            assert!(refusal.contains(format.as_str()), "{refusal} leaves out {format}");
        }
        assert!("dubbo".parse::<ValueFormat>().is_err() && "JSON".parse::<ValueFormat>().is_err());
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
            "http://a:80",
            "a b:80",
        ] {
            assert!(plain(refused).starts_with("error"), "{refused}");
        }
    }
}
