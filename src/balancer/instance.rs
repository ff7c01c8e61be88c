//! A registered instance, in types that cannot hold invalid values.
//!
//! Every value here is checked once, when it is made: a [`ServiceName`] can be put in a URL path,
//! a [`Weight`] is in range, an [`Address`] can be connected to, an [`InstanceId`] can be printed
//! on one line. Load, latency and failures are learned later and belong to the live state: see
//! `view`.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

/// Why a value was refused. Each variant names the value found; its message says which values are
/// allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInstance {
    /// The service name is empty, too long, `.`, `..`, or has a character outside
    /// `[A-Za-z0-9._:@~-]`.
    #[error("service name {found:?}: expected 1 to 253 characters of A-Z a-z 0-9 . _ : @ ~ -, and not \".\" or \"..\"")]
    ServiceName {
        /// The name as given, shortened.
        found: String,
    },
    /// The instance id is empty, too long, or has a control character.
    #[error("instance id {found:?}: expected 1 to 512 bytes without control characters")]
    Id {
        /// The id as given, shortened.
        found: String,
    },
    /// The host is neither an IP address nor a host name.
    #[error("host {found:?}: expected an IP address or a host name")]
    Host {
        /// The host as given, shortened.
        found: String,
    },
    /// The port is 0 or above 65,535.
    #[error("port {found}: expected 1 to 65535")]
    Port {
        /// The port as given.
        found: i64,
    },
    /// The weight is outside 0..=10,000.
    #[error("weight {found}: expected 0 to 10000")]
    Weight {
        /// The weight as given.
        found: i64,
    },
    /// The tag is empty or has a control character.
    #[error("tag {found:?}: expected at least one character and no control characters")]
    Tag {
        /// The tag as given, shortened.
        found: String,
    },
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Name of a service: 1 to 253 characters of `[A-Za-z0-9._:@~-]`, and not `.` or `..` (URL paths
/// drop those).
///
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@~-".contains(&byte);
        if matches!(text, "" | "." | "..") || text.len() > 253 || !text.bytes().all(allowed) {
            return Err(InvalidInstance::ServiceName { found: shortened(text) });
        }
        Ok(Self(text.into()))
    }
}

impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identity of an instance within its service: the registry's key alone, 1 to 512 bytes without
/// control characters.
///
/// Consul `<ServiceID>@<Node>`, etcd the key below the service, files `id` or `host:port`. Cheap
/// to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceId {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        if text.is_empty() || text.len() > 512 || text.chars().any(char::is_control) {
            return Err(InvalidInstance::Id { found: shortened(text) });
        }
        Ok(Self(text.into()))
    }
}

impl Borrow<str> for InstanceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an instance listens: an IP address or a host name, and a port.
///
/// The address is stored as the text of answers (`10.0.1.10:8080`, `[::1]:8080`), so that a pick
/// formats nothing. Two instances with an equal address share their live state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    text: Arc<str>,
    port: NonZeroU16,
}

impl Address {
    /// Checks a host (name, IPv4, or IPv6 with or without brackets) and a port.
    ///
    /// # Errors
    ///
    /// When the host is neither an IP address nor a host name, or the port is not in 1..=65,535.
    pub fn new(host: &str, port: impl Into<i64>) -> Result<Self, InvalidInstance> {
        let found = port.into();
        let port = u16::try_from(found)
            .ok()
            .and_then(NonZeroU16::new)
            .ok_or(InvalidInstance::Port { found })?;
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        let text = match bare.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]:{port}"),
            Err(_) if bare.len() == host.len() && is_host_name(host) => format!("{host}:{port}"),
            Err(_) => return Err(InvalidInstance::Host { found: shortened(host) }),
        };
        Ok(Self {
            text: text.into(),
            port,
        })
    }

    /// `host:port`, IPv6 in brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.text.rfind(':').map_or(&*self.text, |colon| &self.text[..colon]);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, 1..=65,535.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.get()
    }

    /// The IP address, if the host is an IP address.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }
}

/// `host:port`, the form in which plain registrations are written.
impl FromStr for Address {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| InvalidInstance::Host { found: shortened(text) })?;
        let port = port
            .parse::<u16>()
            .map_err(|_| InvalidInstance::Host { found: shortened(text) })?;
        Self::new(host, port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Letters, digits, `-` and `_` in dot-separated labels of 1 to 63 (RFC 1123, and `_`, which
/// Docker hands out).
fn is_host_name(text: &str) -> bool {
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// Relative share of new picks, 0..=10,000. An instance of weight 0 is drained: no strategy ever
/// picks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// The default weight.
    pub const ONE: Self = Self(1);
    /// The largest weight.
    pub const MAX: Self = Self(10_000);

    /// Checks the range.
    ///
    /// # Errors
    ///
    /// Outside 0..=10,000.
    pub fn new(weight: impl Into<i64>) -> Result<Self, InvalidInstance> {
        let found = weight.into();
        match u16::try_from(found) {
            Ok(weight) if weight <= Self::MAX.0 => Ok(Self(weight)),
            _ => Err(InvalidInstance::Weight { found }),
        }
    }

    /// The weight as a number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

/// The source of an instance: a registry, or the library. Each registry defines its source as a
/// constant beside its watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(&'static str);

impl Source {
    /// The source of instances that a program adds through the library.
    pub const LIBRARY: Self = Self("library");

    /// Defines a source. The name is a single lower-case word; it appears in answers and as a
    /// metric label.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// The name of the source.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The health of an instance according to its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RegistryStatus {
    /// The registry has no health status (etcd, files without `status`): the instance can be
    /// picked.
    #[default]
    Unknown,
    /// All checks of the registry pass.
    Passing,
    /// A check of the registry warns: the instance is picked less.
    Warning,
    /// A check of the registry fails: the instance is not picked.
    Critical,
    /// An operator has set maintenance in the registry: the instance is not picked.
    Maintenance,
}

impl RegistryStatus {
    /// The lower-case name in answers and files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }
}

impl fmt::Display for RegistryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The status of an instance, derived from all health layers.
///
/// ```
/// use pickd::balancer::{Check, CheckFailure, RegistryStatus};
/// use pickd::{HealthStatus, LoadBalancer, LoadBalancerConfig, ServiceInstance};
///
/// let balancer = LoadBalancer::new("user-service".parse()?, LoadBalancerConfig::default());
/// for (id, host, registered) in [
///     ("user-1", "10.0.1.10", RegistryStatus::Unknown),
///     ("user-2", "10.0.1.11", RegistryStatus::Passing),
///     ("user-3", "10.0.1.12", RegistryStatus::Warning),
///     ("user-4", "10.0.1.13", RegistryStatus::Critical),
/// ] {
///     balancer.add_instance(ServiceInstance::new(id, host, 8080)?.with_status(registered));
/// }
/// let statuses: Vec<HealthStatus> = balancer.instances().into_iter().map(|(_, status)| status).collect();
/// use HealthStatus::{Degraded, Healthy, Unhealthy, Unknown};
/// assert_eq!(statuses, [Unknown, Healthy, Degraded, Unhealthy]);
///
/// // The worst layer counts: an active check that fails outweighs a registry that passes.
/// balancer.observe(&"10.0.1.11:8080".parse()?, Check::Fail(CheckFailure::Timeout));
/// let user_2 = balancer.instance_statistics(&"user-2".parse()?).ok_or("unknown")?;
/// assert_eq!(user_2.status, Unhealthy);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthStatus {
    /// The instance is picked with its full weight.
    Healthy,
    /// The instance is not picked.
    Unhealthy,
    /// The instance is picked less: its weight is multiplied by `degraded_factor`, or replaced by
    /// the registry's warning weight.
    Degraded,
    /// No health layer has a result: the instance is picked with its full weight.
    Unknown,
}

impl HealthStatus {
    /// Every status, in the order in which metrics list them.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Degraded, Self::Unknown, Self::Unhealthy];

    /// The lower-case name in answers and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
        }
    }

    /// Whether an instance of this status can be picked.
    #[must_use]
    pub fn is_available(self) -> bool {
        self != Self::Unhealthy
    }
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One instance of a service, as registered.
///
/// ```
/// use pickd::{ServiceInstance, Weight};
///
/// let instance = ServiceInstance::new("user-2", "10.0.1.11", 8080)?
///     .with_weight(Weight::new(2)?)
///     .with_metadata([("zone", "us-west")]);
/// assert_eq!(instance.address().as_str(), "10.0.1.11:8080");
/// # Ok::<(), pickd::balancer::InvalidInstance>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceInstance {
    id: InstanceId,
    address: Address,
    weight: Weight,
    warning_weight: Option<Weight>,
    // Shared, so that a copy of an instance (a watcher makes copies with another id or status)
    // clones counters and allocates nothing.
    tags: Arc<[Box<str>]>,
    /// `None` for an instance without metadata, which saves the map in most instances.
    metadata: Option<Arc<BTreeMap<Box<str>, Box<str>>>>,
    status: RegistryStatus,
    source: Source,
    also_in: Box<[Source]>,
}

static NO_METADATA: BTreeMap<Box<str>, Box<str>> = BTreeMap::new();

impl ServiceInstance {
    /// An instance of weight 1, without tags or metadata, and without a health status from a
    /// registry.
    ///
    /// # Errors
    ///
    /// When the id, the host or the port is refused.
    pub fn new(id: &str, host: &str, port: impl Into<i64>) -> Result<Self, InvalidInstance> {
        Ok(Self::at(id.parse()?, Address::new(host, port)?))
    }

    /// Like [`new`](Self::new), from parts that are already checked.
    #[must_use]
    pub fn at(id: InstanceId, address: Address) -> Self {
        Self {
            id,
            address,
            weight: Weight::ONE,
            warning_weight: None,
            tags: Arc::default(),
            metadata: None,
            status: RegistryStatus::Unknown,
            source: Source::LIBRARY,
            also_in: Box::default(),
        }
    }

    /// Sets the weight.
    #[must_use]
    pub fn with_weight(mut self, weight: Weight) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the weight that counts while the registry warns, in place of `weight` x
    /// `degraded_factor`.
    #[must_use]
    pub fn with_warning_weight(mut self, weight: Weight) -> Self {
        self.warning_weight = Some(weight);
        self
    }

    /// Sets the tags. Tags are sorted, and duplicates are removed.
    ///
    /// # Errors
    ///
    /// When a tag is empty or has a control character.
    pub fn with_tags<T: AsRef<str>>(mut self, tags: impl IntoIterator<Item = T>) -> Result<Self, InvalidInstance> {
        let mut checked = Vec::new();
        for tag in tags {
            let tag = tag.as_ref();
            if tag.is_empty() || tag.chars().any(char::is_control) {
                return Err(InvalidInstance::Tag { found: shortened(tag) });
            }
            checked.push(tag.into());
        }
        checked.sort_unstable();
        checked.dedup();
        self.tags = checked.into();
        Ok(self)
    }

    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata<K: AsRef<str>, V: AsRef<str>>(mut self, entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let metadata: BTreeMap<Box<str>, Box<str>> = entries
            .into_iter()
            .map(|(key, value)| (key.as_ref().into(), value.as_ref().into()))
            .collect();
        self.metadata = (!metadata.is_empty()).then(|| Arc::new(metadata));
        self
    }

    /// Sets the health status from the registry.
    #[must_use]
    pub fn with_status(mut self, status: RegistryStatus) -> Self {
        self.status = status;
        self
    }

    /// Sets the source of the instance.
    #[must_use]
    pub fn with_source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }

    /// Sets the other sources that list the address of the instance, in order of priority. The
    /// other sources contribute only to its health status.
    #[must_use]
    pub fn with_other_sources(mut self, sources: impl Into<Box<[Source]>>) -> Self {
        self.also_in = sources.into();
        self
    }

    /// The same instance with another id.
    #[must_use]
    pub fn with_id(mut self, id: InstanceId) -> Self {
        self.id = id;
        self
    }

    /// The id of the instance, unique within the service.
    #[must_use]
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// The address of the instance.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The host, IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.address.host()
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The registered weight.
    #[must_use]
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// The registry's warning weight, if the registry sets one.
    #[must_use]
    pub fn warning_weight(&self) -> Option<Weight> {
        self.warning_weight
    }

    /// The tags of the instance, sorted.
    #[must_use]
    pub fn tags(&self) -> &[Box<str>] {
        &self.tags
    }

    /// Whether the instance has this tag.
    #[must_use]
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.binary_search_by(|own| (**own).cmp(tag)).is_ok()
    }

    /// The metadata of the instance.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<Box<str>, Box<str>> {
        self.metadata.as_deref().unwrap_or(&NO_METADATA)
    }

    /// The health status from the registry.
    #[must_use]
    pub fn registry_status(&self) -> RegistryStatus {
        self.status
    }

    /// The source of the instance: the registry that its id and attributes come from.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// Every source that lists the address of the instance, in order of priority.
    pub fn sources(&self) -> impl Iterator<Item = Source> {
        std::iter::once(self.source).chain(self.also_in.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_is_one_url_segment() {
        for good in ["user-service", "a", "A.b_c:d@e~f-0", &"x".repeat(253)] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a%2F",
            "ä",
            "a\0",
            "(unknown)",
            &"x".repeat(254),
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_address_is_written_as_clients_dial_it() {
        let text = |host: &str, port: i64| Address::new(host, port).map(|address| address.to_string());
        assert_eq!(text("10.0.1.10", 8080).unwrap(), "10.0.1.10:8080");
        assert_eq!(text("::1", 8080).unwrap(), "[::1]:8080");
        assert_eq!(text("[2001:DB8::0:1]", 1).unwrap(), "[2001:db8::1]:1");
        assert_eq!(text("db_1.example.com.", 65_535).unwrap(), "db_1.example.com.:65535");
        for host in [
            "",
            "a b",
            "a..b",
            "[10.0.0.1]",
            "::1%eth0",
            "http://x",
            "a:b",
            "a/b",
            "é",
        ] {
            assert!(matches!(text(host, 1), Err(InvalidInstance::Host { .. })), "{host:?}");
        }
        for port in [0, -1, 65_536, 70_000] {
            assert!(matches!(text("a", port), Err(InvalidInstance::Port { .. })), "{port}");
        }
    }

    #[test]
    fn an_address_gives_its_parts_back() {
        let address: Address = "[::1]:8080".parse().unwrap();
        assert_eq!((address.host(), address.port()), ("::1", 8080));
        assert_eq!(address.ip(), Some("::1".parse().unwrap()));
        let named: Address = "db.local:5432".parse().unwrap();
        assert_eq!((named.host(), named.port(), named.ip()), ("db.local", 5432, None));
        assert!("db.local".parse::<Address>().is_err());
        assert!("db.local:http".parse::<Address>().is_err());
    }

    #[test]
    fn a_weight_has_a_range() {
        assert_eq!(Weight::new(0).unwrap().get(), 0);
        assert_eq!(Weight::new(10_000).unwrap(), Weight::MAX);
        assert_eq!(Weight::new(10_001), Err(InvalidInstance::Weight { found: 10_001 }));
        assert_eq!(Weight::new(-1), Err(InvalidInstance::Weight { found: -1 }));
    }

    #[test]
    fn tags_are_a_set() {
        let instance = ServiceInstance::new("a", "h", 1)
            .unwrap()
            .with_tags(["v2", "v1", "v2"])
            .unwrap();
        assert_eq!(instance.tags().len(), 2);
        assert!(instance.has_tag("v1") && instance.has_tag("v2") && !instance.has_tag("v"));
        assert!(ServiceInstance::new("a", "h", 1).unwrap().with_tags(["a\n"]).is_err());
    }
}
