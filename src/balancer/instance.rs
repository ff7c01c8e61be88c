//! A registered instance, in types that cannot hold invalid values.
//!
//! Every value here is checked once, when it is made: a [`ServiceName`] can be put in a URL path
//! (percent-encoded),
//! a [`Weight`] is in range, an [`Address`] can be connected to, an [`InstanceId`] can be printed
//! on one line. Load, latency and failures are learned later and belong to the live state: see
//! `view`.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use super::clock::Timestamp;
use super::text::lower_case;

/// Why a value was refused. Each variant names the value found; its message says which values are
/// allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInstance {
    /// The service name is empty, too long, has a control character, or has an empty part, `.` or
    /// `..` between slashes. `(unknown)` is reserved.
    #[error(
        "service name {found:?}: expected 1 to 253 bytes without control characters, with no empty part and no \".\" or \"..\" between slashes, and not \"(unknown)\""
    )]
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
    /// The host is neither an IP address nor a host name. A host that ends in a number and is not an
    /// IP address in its usual form is refused, too: `127.9` or `0x7f000001`.
    #[error("host {found:?}: expected an IP address or a host name that does not end in a number")]
    Host {
        /// The host as given, shortened.
        found: String,
    },
    /// The text is an IP address or a host without a port.
    #[error("{found:?}: expected a port behind the host")]
    NoPort {
        /// The text as given, shortened.
        found: String,
    },
    /// The port is 0 or above 65,535.
    #[error("port {found}: expected 1 to 65535")]
    Port {
        /// The port as given.
        found: i64,
    },
    /// The weight is outside 0..=65,535.
    #[error("weight {found}: expected 0 to 65535")]
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

impl InvalidInstance {
    /// Whether the port is missing, or 0, which registries take for a missing one.
    #[must_use]
    pub fn is_no_port(&self) -> bool {
        matches!(self, Self::NoPort { .. } | Self::Port { found: 0 })
    }

    /// What is expected, without the value that was found: it may be a secret.
    #[must_use]
    pub fn without_value(&self) -> String {
        let subject = match self {
            Self::ServiceName { .. } => "service name",
            Self::Id { .. } => "instance id",
            Self::Host { .. } => "host",
            Self::NoPort { .. } => "address",
            Self::Tag { .. } => "tag",
            Self::Port { .. } => "port",
            Self::Weight { .. } => "weight",
        };
        let text = self.to_string();
        // No value can contain what follows it: the text of a value is quoted.
        let expected = text
            .rfind(": expected ")
            .and_then(|at| text.get(at..))
            .unwrap_or_default();
        format!("{subject}{expected}")
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Name of a service: 1 to 253 bytes of UTF-8 without control characters.
///
/// Names are compared without case, as in Consul: `Redis` is `redis`. A name keeps the spelling in
/// which it was written. A name may have any further character, such as a slash, a space or `é`; in
/// a URL path it is percent-encoded. URL paths drop empty parts, `.` and `..`, so no part between
/// slashes is one of these. `(unknown)` is what metrics call names that no registry lists.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct ServiceName {
    written: Arc<str>,
    /// The name in lower case, by which names are compared. The same text as `written` where that
    /// has no other case.
    lower: Arc<str>,
}

impl ServiceName {
    /// The name as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The name in lower case: equal names have the same.
    #[must_use]
    pub fn as_lower_case(&self) -> &str {
        &self.lower
    }

    /// Both spellings, without repetition.
    pub(crate) fn spellings(&self) -> impl Iterator<Item = &Arc<str>> {
        let other = (self.lower != self.written).then_some(&self.lower);
        std::iter::once(&self.written).chain(other)
    }
}

impl PartialEq for ServiceName {
    fn eq(&self, other: &Self) -> bool {
        self.lower == other.lower
    }
}

impl Eq for ServiceName {}

impl Ord for ServiceName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.lower.cmp(&other.lower)
    }
}

impl PartialOrd for ServiceName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for ServiceName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.lower.hash(state);
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServiceName").field(&self.written).finish()
    }
}

impl FromStr for ServiceName {
    type Err = InvalidInstance;

    fn from_str(text: &str) -> Result<Self, InvalidInstance> {
        let dropped = |part: &str| matches!(part, "" | "." | "..");
        if text.len() > 253 || text.chars().any(char::is_control) || text.split('/').any(dropped) || text == "(unknown)"
        {
            return Err(InvalidInstance::ServiceName { found: shortened(text) });
        }
        let written: Arc<str> = text.into();
        let lower = match lower_case(text) {
            Cow::Borrowed(_) => Arc::clone(&written),
            Cow::Owned(lower) => lower.into(),
        };
        Ok(Self { written, lower })
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
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
    /// When the host is neither an IP address nor a host name, or the port is not in 1..=65,535. A
    /// host that ends in a number has to be an IPv4 address of four decimal numbers.
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
            Err(_) if bare.len() == host.len() && is_host(host) => format!("{host}:{port}"),
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
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        // A word could be a host name, and could be anything else.
        if text.parse::<Ipv4Addr>().is_ok() || bare.is_some_and(|bare| bare.parse::<Ipv6Addr>().is_ok()) {
            return Err(InvalidInstance::NoPort { found: shortened(text) });
        }
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

/// An IPv4 address of four decimal numbers, or a host name.
///
/// Resolvers read `127.9`, `0x7f000001` and `0251.0376.0251.0376` as IPv4 addresses, some of them
/// in different ways (RFC 6943, section 3.1.1), so that a denied address could pass as a name. A
/// name that ends in a number is therefore none (the rule of URLs, WHATWG).
fn is_host(text: &str) -> bool {
    text.parse::<Ipv4Addr>().is_ok() || (is_host_name(text) && !ends_in_a_number(text))
}

/// Whether the last label is a number: decimal (or octal) digits, or `0x` and hexadecimal digits.
fn ends_in_a_number(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
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

/// Relative share of new picks, 0..=65,535, the range of Consul and of SRV records. An instance of
/// weight 0 is drained: no strategy ever picks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// The default weight.
    pub const ONE: Self = Self(1);
    /// The largest weight.
    pub const MAX: Self = Self(u16::MAX);

    /// Checks the range.
    ///
    /// # Errors
    ///
    /// Outside 0..=65,535.
    pub fn new(weight: impl Into<i64>) -> Result<Self, InvalidInstance> {
        let found = weight.into();
        u16::try_from(found)
            .map(Self)
            .map_err(|_| InvalidInstance::Weight { found })
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

/// The place of an instance in the order of tiers. Instances of the lowest tier are picked alone
/// while any of them can be picked (as the priority of an SRV record, RFC 2782); the next tier is
/// the reserve.
///
/// Tiers compare by rank first, then by priority.
///
/// ```
/// use pickd::ServiceInstance;
///
/// let primary = ServiceInstance::new("a", "10.0.1.10", 80)?.with_metadata([("priority", "10")]);
/// let reserve = ServiceInstance::new("b", "10.0.1.11", 80)?.with_metadata([("priority", "20")]);
/// assert!(primary.tier() < reserve.tier());
/// # Ok::<(), pickd::balancer::InvalidInstance>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tier {
    rank: u16,
    priority: u16,
}

impl Tier {
    /// The first tier: rank 0, priority 0.
    pub const FIRST: Self = Self { rank: 0, priority: 0 };

    /// The rank of the datacenter or other place that the instance comes from: 0 is the first.
    #[must_use]
    pub fn rank(self) -> u16 {
        self.rank
    }

    /// The priority that the registration gives, 0 without one.
    #[must_use]
    pub fn priority(self) -> u16 {
        self.priority
    }
}

/// The metadata that gives the priority of an instance.
const PRIORITY: &str = "priority";
/// What the metadata of a named port begins with.
const NAMED_PORT: &str = "port-";

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
    tier: Tier,
    // Shared, so that a copy of an instance (a watcher makes copies with another id or status)
    // clones counters and allocates nothing.
    tags: Arc<[Box<str>]>,
    /// `None` for an instance without metadata, which saves the map in most instances.
    metadata: Option<Arc<BTreeMap<Box<str>, Box<str>>>>,
    status: RegistryStatus,
    ephemeral: bool,
    absent_since: Option<Timestamp>,
    source: Source,
    /// `None` for the only registration of an address under its own id, as most are.
    registrations: Option<Arc<[RegistryEntry]>>,
}

/// One registration of an address. Registries may list an address several times, and several
/// registries may list the same address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RegistryEntry {
    /// The id under which the registry lists the address.
    pub id: InstanceId,
    /// The registry.
    pub source: Source,
    /// The health status of this registration alone.
    pub status: RegistryStatus,
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
            tier: Tier::FIRST,
            tags: Arc::default(),
            metadata: None,
            status: RegistryStatus::Unknown,
            ephemeral: false,
            absent_since: None,
            source: Source::LIBRARY,
            registrations: None,
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

    /// Sets the metadata. `priority` gives the [tier](Tier) of the instance: a number from 0 to
    /// 65,535. Any other value is ignored: see [`ignored_priority`](Self::ignored_priority).
    #[must_use]
    pub fn with_metadata<K: AsRef<str>, V: AsRef<str>>(mut self, entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let metadata: BTreeMap<Box<str>, Box<str>> = entries
            .into_iter()
            .map(|(key, value)| (key.as_ref().into(), value.as_ref().into()))
            .collect();
        if let Some(priority) = metadata.get(PRIORITY).and_then(|text| text.trim().parse().ok()) {
            self.tier.priority = priority;
        }
        self.metadata = (!metadata.is_empty()).then(|| Arc::new(metadata));
        self
    }

    /// Sets the priority of the instance, in place of 0, for a registry with another default. The
    /// priority in [`with_metadata`](Self::with_metadata) replaces the default if it comes later.
    #[must_use]
    pub fn with_priority(mut self, priority: u16) -> Self {
        self.tier.priority = priority;
        self
    }

    /// Sets the rank of the place that the instance comes from. All instances of a lower rank are
    /// picked before it, whatever their priorities.
    #[must_use]
    pub fn with_rank(mut self, rank: u16) -> Self {
        self.tier.rank = rank;
        self
    }

    /// Sets the health status from the registry.
    #[must_use]
    pub fn with_status(mut self, status: RegistryStatus) -> Self {
        self.status = status;
        self
    }

    /// Sets whether the registration ends by itself unless its owner renews it, as that of an etcd
    /// key with a lease.
    #[must_use]
    pub fn with_ephemeral(mut self, ephemeral: bool) -> Self {
        self.ephemeral = ephemeral;
        self
    }

    /// Sets since when no source lists the instance any more. `None`: a source lists it.
    #[must_use]
    pub fn with_absent_since(mut self, since: Option<Timestamp>) -> Self {
        self.absent_since = since;
        self
    }

    /// Sets the source of the instance.
    #[must_use]
    pub fn with_source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }

    /// Sets all registrations of the address, first the one that gave the id and the attributes.
    #[must_use]
    pub fn with_registrations(mut self, registrations: impl Into<Arc<[RegistryEntry]>>) -> Self {
        self.registrations = Some(registrations.into());
        self
    }

    /// The same registrations under another id in the pool. The registered ids stay known.
    #[must_use]
    pub fn renamed(mut self, id: InstanceId) -> Self {
        if self.registrations.is_none() {
            self.registrations = Some([self.own_registration()].into());
        }
        self.id = id;
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

    /// The tier of the instance.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Whether the metadata has a `priority` that is not a number from 0 to 65,535, and is ignored.
    #[must_use]
    pub fn ignored_priority(&self) -> bool {
        let written = self.metadata().get(PRIORITY);
        written.is_some_and(|text| text.trim().parse::<u16>().is_err())
    }

    /// The port of this name: the metadata `port-<name>`, if it is a number from 1 to 65,535.
    #[must_use]
    pub fn named_port(&self, name: &str) -> Option<u16> {
        let mut ports = self.named_ports();
        ports.find_map(|(own, port)| (own == name).then_some(port))
    }

    /// Every named port, by name: the metadata `port-<name>` with a number from 1 to 65,535.
    pub fn named_ports(&self) -> impl Iterator<Item = (&str, u16)> {
        self.metadata().iter().filter_map(|(key, text)| {
            let name = key.strip_prefix(NAMED_PORT)?;
            let port = text.trim().parse::<NonZeroU16>().ok()?;
            Some((name, port.get()))
        })
    }

    /// The same instance at the port of this name. `None` if the instance does not have the port.
    #[must_use]
    pub fn at_named_port(&self, name: &str) -> Option<Self> {
        let address = Address::new(self.host(), self.named_port(name)?).ok()?;
        Some(Self {
            address,
            ..self.clone()
        })
    }

    /// The health status from the registry.
    #[must_use]
    pub fn registry_status(&self) -> RegistryStatus {
        self.status
    }

    /// Whether the registration ends by itself unless its owner renews it.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    /// Since when no source lists the instance, which is kept all the same. `None` for an instance
    /// that a source lists.
    #[must_use]
    pub fn absent_since(&self) -> Option<Timestamp> {
        self.absent_since
    }

    /// The source of the instance: the registry that its id and attributes come from.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// All registrations of the address, first the one that gave the id and the attributes.
    #[must_use]
    pub fn registrations(&self) -> Cow<'_, [RegistryEntry]> {
        match &self.registrations {
            Some(registrations) => Cow::Borrowed(registrations),
            None => Cow::Owned(vec![self.own_registration()]),
        }
    }

    fn own_registration(&self) -> RegistryEntry {
        RegistryEntry {
            id: self.id.clone(),
            source: self.source,
            status: self.status,
        }
    }

    /// Every source that lists the address of the instance, each once, first the one that gave
    /// the attributes.
    pub fn sources(&self) -> impl Iterator<Item = Source> {
        let all = self.registrations.as_deref().unwrap_or_default();
        let first_of_source = move |(place, registration): (usize, &RegistryEntry)| {
            let is_first = all
                .iter()
                .take(place)
                .all(|earlier| earlier.source != registration.source);
            is_first.then_some(registration.source)
        };
        let alone = all.is_empty().then_some(self.source);
        alone
            .into_iter()
            .chain(all.iter().enumerate().filter_map(first_of_source))
    }

    /// Whether a registry lists the address under this id.
    #[must_use]
    pub fn is_registered_as(&self, id: &InstanceId) -> bool {
        match &self.registrations {
            Some(registrations) => registrations.iter().any(|registration| registration.id == *id),
            None => self.id == *id,
        }
    }

    /// Whether both are the same address and have a registration in common, by id and source.
    #[must_use]
    pub fn is_same_machine(&self, other: &Self) -> bool {
        let in_both = |one: &RegistryEntry| {
            let mut others = other.registrations().into_owned().into_iter();
            others.any(|other| (one.source, &one.id) == (other.source, &other.id))
        };
        self.address == other.address && self.registrations().iter().any(in_both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_is_any_text_that_a_url_path_can_carry() {
        for good in [
            "user-service",
            "a",
            "A.b_c:d@e~f-0",
            "team/api",
            "a b",
            "a+b",
            "a%2Fb",
            "é",
            "a.../...b",
            "a\u{202e}b",
            "#?&",
            &"x".repeat(253),
        ] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "/",
            "/a",
            "a/",
            "a//b",
            "a/../b",
            "./a",
            "a\0",
            "a\n",
            "a\u{85}",
            "(unknown)",
            &"x".repeat(254),
            &"é".repeat(127),
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn service_names_are_equal_but_for_case_and_keep_their_spelling() {
        let name = |text: &str| text.parse::<ServiceName>().unwrap();
        let hash = |text: &str| {
            let mut hasher = std::hash::DefaultHasher::new();
            name(text).hash(&mut hasher);
            hasher.finish()
        };
        for (a, b) in [("redis", "REDIS"), ("Redis", "rEDIS"), ("É", "é"), ("a/B c", "A/b C")] {
            assert_eq!((name(a), hash(a)), (name(b), hash(b)));
            assert_eq!(name(a).cmp(&name(b)), Ordering::Equal);
            assert_eq!(name(a).to_string(), a);
        }
        assert!(name("a") < name("B") && name("B") < name("c"));
        assert_ne!(name("redis"), name("redis2"));
        assert_eq!(
            name("Redis").spellings().map(|text| &**text).collect::<Vec<_>>(),
            ["Redis", "redis"]
        );
        assert_eq!(name("redis").spellings().count(), 1);
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
    fn a_host_that_ends_in_a_number_is_an_ipv4_address_of_four_numbers() {
        for host in [
            "0xa9fea9fe",
            "0XA9FEA9FE",
            "2852039166",
            "169.254.43518",
            "169.16689662",
            "0251.0376.0251.0376",
            "0xa9.0xfe.0xa9.0xfe",
            "169.254.169.0xfe",
            "169.254.169.254.",
            "10.0.6.256",
            "256.0.0.1",
            "127.9",
            "127.1.",
            "010.0.0.1",
            "10.0.0.01",
            "10.0.0.08",
            "0",
            "0x",
            "db.0x",
            "1.2.3.4.5",
            "db.5432",
            "db.08",
            "x.10.0.0.1",
        ] {
            let refused = Address::new(host, 80);
            assert!(matches!(refused, Err(InvalidInstance::Host { .. })), "{host}");
            assert!(format!("{host}:80").parse::<Address>().is_err(), "{host}");
        }
        for host in [
            "10.0.6.25",
            "0.0.0.0",
            "web-1",
            "1web",
            "10.0.0.1.example",
            "1.2.3.4.nip.io.",
            "0xabcg",
            "x0x1",
            "10.0.0.-1",
            "10.0.0.1_",
            "10.0.0.1e",
        ] {
            assert_eq!(Address::new(host, 80).unwrap().host(), host);
        }
    }

    #[test]
    fn no_spelling_of_a_denied_address_is_an_address_that_is_not_denied() {
        let denied = crate::balancer::DeniedNetworks::default().and(["127.0.0.0/8".parse().unwrap()]);
        for host in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "[::ffff:a9fe:a9fe]",
            "::FFFF:A9FE:A9FE",
            "0:0:0:0:0:ffff:a9fe:a9fe",
            "64:ff9b::169.254.169.254",
            "::a9fe:a9fe",
            "fe80::1",
            "127.0.0.9",
            "::ffff:127.0.0.9",
        ] {
            let ip = Address::new(host, 80).unwrap().ip();
            assert!(ip.is_some_and(|ip| denied.contains(ip)), "{host}");
        }
        for host in [
            "169.254.169.254.",
            "[169.254.169.254]",
            "fe80::1%eth0",
            "127.9",
            "127.0.0.9.",
        ] {
            assert!(Address::new(host, 80).is_err(), "{host}");
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
    fn a_host_without_a_port_is_told_from_other_texts() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        for text in ["10.0.0.1", "[::1]", "10.0.0.1:0", "db:0", "[::1]:0"] {
            assert!(error(text).is_no_port(), "{text}");
        }
        for text in [
            "",
            "a b",
            "10.0.0.1:70000",
            "10.0.0.1:x",
            "127.9",
            "db.local",
            "http://h:1",
        ] {
            assert!(!error(text).is_no_port(), "{text}");
        }
    }

    #[test]
    fn a_reason_can_be_told_without_the_value() {
        let told = |error: Result<Address, InvalidInstance>| error.unwrap_err().without_value();
        let expected = "host: expected an IP address or a host name that does not end in a number";
        assert_eq!(told(Address::new("S3cr3t!", 1)), expected);
        assert_eq!(told(Address::new("S3cr3t\": expected x", 1)), expected);
        assert_eq!(told(Address::new("h", 70_000)), "port: expected 1 to 65535");
        assert_eq!(told("S3cr3t".parse()), expected);
        assert_eq!(told("10.0.0.1".parse()), "address: expected a port behind the host");
        let id = "S3cr3t\n".parse::<InstanceId>().unwrap_err();
        assert_eq!(
            id.without_value(),
            "instance id: expected 1 to 512 bytes without control characters"
        );
    }

    #[test]
    fn a_weight_has_a_range() {
        assert_eq!(Weight::new(0).unwrap().get(), 0);
        assert_eq!(Weight::new(65_535).unwrap(), Weight::MAX);
        assert_eq!(Weight::new(65_536), Err(InvalidInstance::Weight { found: 65_536 }));
        assert_eq!(Weight::new(-1), Err(InvalidInstance::Weight { found: -1 }));
    }

    #[test]
    fn a_renamed_instance_stays_known_by_its_registered_id() {
        let registered = ServiceInstance::new("a", "h", 1).unwrap();
        let id = |text: &str| text.parse::<InstanceId>().unwrap();
        let renamed = registered.clone().renamed(id("b")).renamed(id("c"));
        assert_eq!(renamed.id().as_str(), "c");
        assert!(renamed.is_registered_as(&id("a")) && !renamed.is_registered_as(&id("b")));
        assert!(renamed.is_same_machine(&registered) && registered.is_same_machine(&renamed));
        let elsewhere = ServiceInstance::new("a", "h", 2).unwrap();
        let replaced = ServiceInstance::new("d", "h", 1).unwrap();
        assert!(!renamed.is_same_machine(&elsewhere) && !renamed.is_same_machine(&replaced));
    }

    #[test]
    fn sources_are_named_once_each_in_order() {
        let of = |source| RegistryEntry {
            id: "a".parse().unwrap(),
            source: Source::new(source),
            status: RegistryStatus::Passing,
        };
        let instance = ServiceInstance::new("a", "h", 1).unwrap();
        assert_eq!(instance.sources().collect::<Vec<_>>(), [Source::LIBRARY]);
        let listed = instance.with_registrations(["etcd", "etcd", "file", "etcd"].map(of));
        let names: Vec<_> = listed.sources().map(Source::as_str).collect();
        assert_eq!(names, ["etcd", "file"]);
    }

    #[test]
    fn metadata_gives_the_priority_and_what_is_no_number_is_ignored() {
        let with = |text: &str| {
            let instance = ServiceInstance::new("a", "h", 1).unwrap();
            let instance = instance.with_metadata([("priority", text)]);
            (instance.tier().priority(), instance.ignored_priority())
        };
        for (text, priority) in [("0", 0), ("10", 10), (" 20 ", 20), ("65535", 65_535)] {
            assert_eq!(with(text), (priority, false), "{text}");
        }
        for text in ["", "-1", "65536", "high", "1.5", "1e3"] {
            assert_eq!(with(text), (0, true), "{text}");
        }
        let without = ServiceInstance::new("a", "h", 1).unwrap();
        assert_eq!((without.tier(), without.ignored_priority()), (Tier::FIRST, false));
        let default = without.clone().with_priority(10);
        assert_eq!(default.tier().priority(), 10);
        assert_eq!(default.with_metadata([("priority", "high")]).tier().priority(), 10);
        assert!(without.clone().with_priority(9).tier() < without.with_rank(1).tier());
    }

    #[test]
    fn a_named_port_is_a_number_from_1_to_65535() {
        let instance = ServiceInstance::new("a", "::1", 80).unwrap().with_metadata([
            ("port-grpc", "9090"),
            ("port-admin", " 8081 "),
            ("port-zero", "0"),
            ("port-far", "65536"),
            ("port-word", "http"),
            ("ports", "1"),
        ]);
        assert_eq!(
            instance.named_ports().collect::<Vec<_>>(),
            [("admin", 8_081), ("grpc", 9_090)]
        );
        assert_eq!(instance.named_port("grpc"), Some(9_090));
        for name in ["zero", "far", "word", "s", "", "none"] {
            assert_eq!(instance.named_port(name), None, "{name}");
        }
        let moved = instance.at_named_port("grpc").unwrap();
        assert_eq!((moved.address().as_str(), moved.id()), ("[::1]:9090", instance.id()));
        assert_eq!(instance.at_named_port("none"), None);
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
