//! What a key registers, and what the formats share to read it.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::balancer::{Address, InstanceId, InvalidInstance, ServiceInstance, ServiceName, Source, Weight};

/// etcd, in answers and metric labels.
pub const SOURCE: Source = Source::new("etcd");

/// What a key registers: instances of one service. None at all is a key that is no instance, such as a folder's marker.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The service.
    pub service: ServiceName,
    /// Mostly one; go-micro may write several nodes under a key.
    pub instances: Vec<ServiceInstance>,
}

/// Why a key registers nothing, although it should.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRegistration {
    /// Keys may be any bytes.
    #[error("the key is not UTF-8")]
    KeyNotText,
    /// Nothing stands before the instance.
    #[error("the key names no service")]
    NoService,
    /// Neither JSON that some convention writes, nor `host:port`.
    #[error("no format that is known by its fields")]
    Unrecognized,
    /// Not an object, or with fields of the wrong type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Not UTF-8, where the format is text.
    #[error("the value is not UTF-8")]
    ValueNotText,
    /// The convention's own rules are broken.
    #[error("{0}")]
    Value(&'static str),
    /// A name, address or number that is out of range.
    #[error(transparent)]
    Instance(#[from] InvalidInstance),
}

/// Where a key stands.
pub(super) struct Place<'a> {
    pub(super) service: ServiceName,
    pub(super) id: &'a str,
}

impl Place<'_> {
    /// The instance of this key, at this address.
    pub(super) fn instance(&self, address: Address) -> Result<ServiceInstance, InvalidRegistration> {
        Ok(ServiceInstance::at(self.id.parse::<InstanceId>()?, address).with_source(SOURCE))
    }
}

pub(super) type Decoded = Result<Vec<ServiceInstance>, InvalidRegistration>;

pub(super) fn one(instance: ServiceInstance) -> Decoded {
    Ok(vec![instance])
}

/// `host:port`, as registrator, go-zero and people write it.
pub(super) fn plain(place: &Place<'_>, value: &[u8]) -> Result<ServiceInstance, InvalidRegistration> {
    let text = std::str::from_utf8(value).map_err(|_| InvalidRegistration::ValueNotText)?;
    place.instance(text.trim().parse()?)
}

pub(super) fn object(value: &[u8]) -> Result<Value, InvalidRegistration> {
    Ok(serde_json::from_slice(value)?)
}

/// `null` for an empty list, map or string is what Go writes.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A whole number, or one written as text.
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

/// Metadata of any shape: what is text, a number or a truth value is kept, as text; what is nested is left out.
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

/// `metadata.weight`, where the convention has no other place for a weight. It is only a convention, so one that is no weight
/// is ignored.
pub(super) fn weight_in(metadata: &Value) -> Option<Weight> {
    Weight::new(number(metadata.get("weight")?)?).ok()
}
