//! What a key registers, and what the formats share to read it.

use std::fmt;

use super::ValueFormat;
use crate::balancer::{Address, InstanceId, InvalidInstance, ServiceInstance, ServiceName, Source};

/// etcd, in answers and metric labels.
pub const SOURCE: Source = Source::new("etcd");

/// The instances of one service that a key registers. A key may register no instance, such as an
/// application without endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The service.
    pub service: ServiceName,
    /// Mostly one instance; go-micro, GoFrame and APISIX may write several into a key.
    pub instances: Vec<ServiceInstance>,
    /// Why parts of the value were left out, one entry each, without the parts themselves. The
    /// instances count without these parts.
    pub ignored: Ignored,
}

impl Registration {
    /// Sets whether the key has a lease: then the registration ends by itself unless its owner
    /// renews the lease.
    pub(in crate::discovery::etcd) fn leased(mut self, leased: bool) -> Self {
        let with_lease = |instance: ServiceInstance| instance.with_ephemeral(leased);
        self.instances = self.instances.into_iter().map(with_lease).collect();
        self
    }
}

/// Why a key cannot register anything. No message has any part of the value: a value may be a
/// secret that is none of pickd's business.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidRegistration {
    /// Keys may be any bytes.
    #[error("the key is not UTF-8")]
    KeyNotText,
    /// The key has no segment before the instance.
    #[error("directly below the prefix, without a service: set `service` or `path` for such keys")]
    NoService,
    /// The key has more than two segments below its prefix.
    #[error("deeper than <service>/<instance> below the prefix: set `path` for such keys")]
    TooDeep,
    /// A service, a folder or an instance without a name.
    #[error("a segment of the key is empty")]
    EmptySegment,
    /// The name of the service would be ambiguous.
    #[error("a colon in a name that the path joins with other names")]
    Joint,
    /// The prefix has a path, and the key does not match it. Not counted: the operator has said
    /// which keys to read.
    #[error("the key does not match the path of its prefix")]
    Elsewhere,
    /// A key that some registrars write for each folder. Not counted.
    #[error("the key of a folder")]
    Folder,
    /// The key names a service that pickd cannot name.
    #[error("{}", .0.without_value())]
    Service(#[from] InvalidInstance),
    /// The value registers no instance.
    #[error(transparent)]
    Value(#[from] InvalidValue),
}

impl InvalidRegistration {
    /// Whether the registration has no port.
    pub(crate) fn is_no_port(&self) -> bool {
        matches!(self, Self::Value(InvalidValue::Instance(error)) if error.is_no_port())
    }

    /// Whether the key counts as an invalid registration. Other keys register nothing on purpose.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        !matches!(self, Self::Elsewhere | Self::Folder)
    }

    /// The same, unless the key is one that registrars write for the folder of a service: rpcx with
    /// the name of the service as its value, dubbo-go with an empty value.
    pub(super) fn of_folder(self, format: ValueFormat, key: &str, value: &[u8]) -> Self {
        let name = key.rsplit('/').next().unwrap_or_default().as_bytes();
        let marks = value.is_empty() || value == name || format == ValueFormat::Rpcx;
        match self {
            Self::NoService if marks => Self::Folder,
            other => other,
        }
    }
}

/// What is wrong with a value, without any part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidValue {
    /// Not in any format that pickd reads.
    Unrecognized,
    /// Not UTF-8, where the format is text.
    NotText,
    /// Not JSON, where the format is JSON. JSON that ends early is one such value.
    NotJson {
        /// The line where the mistake is, from 1.
        line: usize,
        /// The column where the mistake is, from 0.
        column: usize,
    },
    /// In a known format, with something that the format does not allow.
    Invalid(&'static str),
    /// An address or an id that is not valid.
    Instance(InvalidInstance),
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unrecognized => f.write_str("no format that pickd reads"),
            Self::NotText => f.write_str("not UTF-8"),
            Self::NotJson { line, column } => write!(f, "not JSON from line {line}, column {column}"),
            Self::Invalid(reason) => f.write_str(reason),
            // Without the text that was found, which is a part of the value.
            Self::Instance(invalid) => f.write_str(&invalid.without_value()),
        }
    }
}

impl std::error::Error for InvalidValue {}

impl From<InvalidInstance> for InvalidValue {
    fn from(invalid: InvalidInstance) -> Self {
        Self::Instance(invalid)
    }
}

impl From<serde_json::Error> for InvalidValue {
    fn from(error: serde_json::Error) -> Self {
        Self::NotJson {
            line: error.line(),
            column: error.column(),
        }
    }
}

/// Why parts of a value were left out.
pub type Ignored = Vec<&'static str>;

/// The parts of a key, and what the prefix says about its value.
pub(super) struct Place<'a> {
    pub(super) service: ServiceName,
    pub(super) id: &'a str,
    /// The whole key.
    pub(super) key: &'a str,
    /// The URL scheme to take, where an instance has several endpoints.
    pub(super) scheme: Option<&'a str>,
}

impl Place<'_> {
    /// The last segment of the key, where some conventions have the address.
    pub(super) fn last(&self) -> &str {
        last_segment(self.key)
    }

    /// The instance of this key, at this address.
    pub(super) fn instance(&self, address: Address) -> Result<ServiceInstance, InvalidValue> {
        named(self.id, address)
    }

    /// One of several instances of this key. Its id does not depend on which other instances the key
    /// has, but a key with a single instance has the id of the key.
    pub(super) fn one_of(&self, id: &str, address: Address) -> Result<ServiceInstance, InvalidValue> {
        named(&format!("{}/{id}", self.id), address)
    }
}

/// The instance with an id that is not the id in the key.
pub(super) fn named(id: &str, address: Address) -> Result<ServiceInstance, InvalidValue> {
    Ok(ServiceInstance::at(id.parse::<InstanceId>()?, address).with_source(SOURCE))
}

/// What comes after the last slash of a key.
pub(super) fn last_segment(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

pub(super) type Decoded = Result<Vec<ServiceInstance>, InvalidValue>;

/// The text of a value.
pub(super) fn text(value: &[u8]) -> Result<&str, InvalidValue> {
    std::str::from_utf8(value).map_err(|_| InvalidValue::NotText)
}

/// All instances that can be read. One that cannot be read is left out; if none can be read, the
/// value is not valid.
pub(super) fn readable(
    instances: impl Iterator<Item = Result<ServiceInstance, InvalidValue>>,
    ignored: &mut Ignored,
) -> Decoded {
    let (mut read, mut wrong) = (Vec::new(), None);
    for instance in instances {
        match instance {
            Ok(instance) => read.push(instance),
            Err(reason) => {
                ignored.push("one of several addresses cannot be used");
                wrong = wrong.or(Some(reason));
            }
        }
    }
    match wrong {
        Some(reason) if read.is_empty() => Err(reason),
        _ => Ok(read),
    }
}

/// The JSON of a value.
pub(super) fn object(value: &[u8]) -> Result<serde_json::Value, InvalidValue> {
    Ok(serde_json::from_slice(value)?)
}
