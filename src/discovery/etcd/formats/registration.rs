//! What a key registers, and what the formats share to read it.

use serde_json::Value;

use crate::balancer::{Address, InstanceId, InvalidInstance, ServiceInstance, ServiceName, Source, Weight};

/// etcd, in answers and metric labels.
pub const SOURCE: Source = Source::new("etcd");

/// The instances of one service that a key registers. A key without instances is no instance, such
/// as the key of a folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The service.
    pub service: ServiceName,
    /// Mostly one instance; go-micro may write several nodes into a key.
    pub instances: Vec<ServiceInstance>,
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

/// Why a key cannot register anything.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRegistration {
    /// Keys may be any bytes.
    #[error("the key is not UTF-8")]
    KeyNotText,
    /// The key has no segment before the instance.
    #[error("the key names no service")]
    NoService,
    /// Neither JSON of a known convention, nor `host:port`.
    #[error("no format that is known by its fields")]
    Unrecognized,
    /// Not an object, or with fields of the wrong type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Not UTF-8, where the format is text.
    #[error("the value is not UTF-8")]
    ValueNotText,
    /// A value that the convention itself does not allow.
    #[error("{0}")]
    Value(&'static str),
    /// A name, address or number out of range.
    #[error(transparent)]
    Instance(#[from] InvalidInstance),
}

/// The parts of a key, and what the prefix says about its value.
pub(super) struct Place<'a> {
    pub(super) service: ServiceName,
    pub(super) id: &'a str,
    /// The URL scheme to take, where an instance has several endpoints.
    pub(super) scheme: Option<&'a str>,
}

impl Place<'_> {
    /// The instance of this key, at this address.
    pub(super) fn instance(&self, address: Address) -> Result<ServiceInstance, InvalidRegistration> {
        Ok(ServiceInstance::at(self.id.parse::<InstanceId>()?, address).with_source(SOURCE))
    }
}

pub(super) type Decoded = Result<Vec<ServiceInstance>, InvalidRegistration>;

pub(super) fn object(value: &[u8]) -> Result<Value, InvalidRegistration> {
    Ok(serde_json::from_slice(value)?)
}

/// A whole number, or a text with a whole number.
pub(super) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            let float = number.as_f64()?;
            (float.fract() == 0.0 && float.abs() < 1e15).then_some(float as i64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// Metadata of any shape: texts, numbers and booleans are kept as text, nested values are left
/// out.
pub(super) fn flat(metadata: &Value) -> impl Iterator<Item = (&str, String)> {
    metadata
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match value {
            Value::String(text) => Some((key.as_str(), text.clone())),
            Value::Number(_) | Value::Bool(_) => Some((key.as_str(), value.to_string())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        })
}

/// `metadata.weight`, where the convention has no other place for a weight. Such a weight is
/// optional, so an invalid weight is ignored.
pub(super) fn weight_in(metadata: &Value) -> Option<Weight> {
    Weight::new(number(metadata.get("weight")?)?).ok()
}
