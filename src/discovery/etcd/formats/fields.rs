//! Fields of JSON objects, read as far as they can be read.
//!
//! Registrations come from many programs: numbers are written as text, lists as null, names in any
//! letter case. An address has to be right. Any other field that cannot be read is left out, with
//! a reason that has no part of the value.

use serde_json::{Map, Value};

use super::registration::{Ignored, InvalidValue};
use crate::balancer::{Address, RegistryStatus, ServiceInstance, Weight};

/// The fields of an object. A field that is null counts as absent.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    any_case: bool,
}

impl<'a> Fields<'a> {
    /// The fields, by their exact names.
    pub(super) fn of(value: &'a Value) -> Result<Self, InvalidValue> {
        let object = value.as_object().ok_or(InvalidValue::Invalid("expected an object"))?;
        Ok(Self {
            object,
            any_case: false,
        })
    }

    /// The same fields, by names in any letter case. The exact name has precedence.
    pub(super) fn in_any_case(self) -> Self {
        Self { any_case: true, ..self }
    }

    /// Whether there is a field of exactly this name, null or not.
    pub(super) fn has(self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    pub(super) fn get(self, name: &str) -> Option<&'a Value> {
        let exact = self.object.get(name).filter(|value| !value.is_null());
        if exact.is_some() || !self.any_case {
            return exact;
        }
        let same = |(own, value): &(&String, &Value)| own.eq_ignore_ascii_case(name) && !value.is_null();
        // By the smallest name, so that the order of the fields has no effect.
        let found = self.object.iter().filter(same).min_by_key(|(own, _)| *own);
        found.map(|(_, value)| value)
    }

    /// A text that is not empty.
    pub(super) fn text(self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str().filter(|text| !text.is_empty())
    }
}

/// A whole number, or a text with a whole number. Numbers beyond i64 are the nearest i64.
pub(super) fn number(value: &Value) -> Option<i64> {
    let whole = |float: f64| (float.is_finite() && float.fract() == 0.0).then_some(float as i64);
    match value {
        Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| whole(text.parse().ok()?))
        }
        _ => None,
    }
}

/// The weight. A weight above the range counts as the largest weight, and any other value that is
/// no weight as none: both are noted.
pub(super) fn weight(value: &Value, ignored: &mut Ignored) -> Option<Weight> {
    match number(value) {
        Some(number) if number > i64::from(Weight::MAX.get()) => {
            ignored.push("weight is above the largest weight, which counts in its place");
            Some(Weight::MAX)
        }
        Some(number) => match Weight::new(number) {
            Ok(weight) => Some(weight),
            Err(_) => {
                ignored.push("weight is negative");
                None
            }
        },
        None => {
            ignored.push("weight is not a whole number");
            None
        }
    }
}

/// The weight, where the format has a default of its own, which stands for zero and less.
pub(super) fn weight_or(default: u16, value: Option<&Value>, ignored: &mut Ignored) -> Option<Weight> {
    let own = Weight::new(default).ok();
    match value {
        Some(value) if number(value).is_none_or(|number| number > 0) => weight(value, ignored).or(own),
        _ => own,
    }
}

/// `metadata.weight`, where the convention has no other place for a weight.
pub(super) fn weight_in(metadata: Option<&Value>, ignored: &mut Ignored) -> Option<Weight> {
    match metadata?.get("weight")? {
        Value::Null => None,
        value => weight(value, ignored),
    }
}

/// Metadata of any shape: texts, numbers and booleans are kept as text, nested values are left
/// out.
pub(super) fn flat(metadata: Option<&Value>) -> impl Iterator<Item = (&str, String)> {
    metadata
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), plain_text(value)?)))
}

fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The instance with these tags: a list, or a text with commas. What cannot be a tag is noted.
pub(super) fn with_tags(instance: ServiceInstance, tags: &Value, ignored: &mut Ignored) -> ServiceInstance {
    let words: Vec<Option<String>> = match tags {
        Value::Array(tags) => tags.iter().map(plain_text).collect(),
        Value::String(text) => {
            let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
            words.map(|word| Some(word.to_owned())).collect()
        }
        // Pairs are metadata, as in Kitex.
        Value::Object(_) => Vec::new(),
        _ => vec![None],
    };
    let can_be_tag = |word: &String| !word.is_empty() && !word.chars().any(char::is_control);
    let before = words.len();
    let words: Vec<String> = words.into_iter().flatten().filter(can_be_tag).collect();
    if words.len() < before {
        ignored.push("a tag is not a word");
    }
    // All words can be tags, so none is refused.
    instance.clone().with_tags(words).unwrap_or(instance)
}

/// The status that a word stands for, in any letter case.
pub(super) fn status(value: &Value, ignored: &mut Ignored) -> Option<RegistryStatus> {
    let word = match value {
        // As Go writes a text that was never set.
        Value::String(word) if word.trim().is_empty() => return None,
        Value::String(word) => word.trim().to_ascii_lowercase().replace(['-', ' '], "_"),
        _ => String::new(),
    };
    let status = match &*word {
        // Consul; "pass" and "ok" are of the IETF's draft of health responses; UP is of Eureka and
        // Spring Boot; HEALTHY of Docker and Envoy; SERVING of gRPC.
        "passing" | "pass" | "ok" | "up" | "healthy" | "serving" => RegistryStatus::Passing,
        // Consul; the IETF's draft; Envoy.
        "warning" | "warn" | "degraded" => RegistryStatus::Warning,
        // Consul; the IETF's draft; Eureka and Spring Boot; Docker and Envoy; gRPC. STARTING of
        // Eureka and Docker takes no traffic yet.
        "critical" | "fail" | "error" | "down" | "unhealthy" | "timeout" | "not_serving" | "starting" => {
            RegistryStatus::Critical
        }
        // Consul; Eureka and Spring Boot; Envoy: each means that an operator has taken it out.
        "maintenance" | "out_of_service" | "draining" => RegistryStatus::Maintenance,
        // Consul, Eureka, Spring Boot, Envoy and gRPC.
        "unknown" | "service_unknown" => RegistryStatus::Unknown,
        _ => {
            ignored.push("status is no word that pickd knows");
            return None;
        }
    };
    Some(status)
}

/// The status by the two flags of Go frameworks, if one of them says no.
pub(super) fn status_by_flags(enabled: Option<&Value>, healthy: Option<&Value>) -> Option<RegistryStatus> {
    let says_no = |flag: Option<&Value>| flag.and_then(Value::as_bool) == Some(false);
    if says_no(enabled) {
        return Some(RegistryStatus::Maintenance);
    }
    says_no(healthy).then_some(RegistryStatus::Critical)
}

/// The priority of an SRV record (RFC 2782) as text: instances of a lower number are taken first.
pub(super) fn priority(value: &Value, ignored: &mut Ignored) -> Option<String> {
    match number(value).map(u16::try_from) {
        Some(Ok(priority)) => Some(priority.to_string()),
        _ => {
            ignored.push("priority is not a number from 0 to 65535");
            None
        }
    }
}

/// The address in a text, with the port in the text or in another field. Port 0 is how Go leaves a
/// port out.
pub(super) fn address(host: &str, port: Option<&Value>) -> Result<Address, InvalidValue> {
    let number = port.map(number);
    if let Some(Some(port)) = number
        && port != 0
        && let Ok(address) = Address::new(host, port)
    {
        return Ok(address);
    }
    let whole = host.parse::<Address>();
    match (whole, number) {
        (Ok(address), _) => Ok(address),
        (Err(_), Some(None)) => Err(InvalidValue::Invalid("port is not a number")),
        (Err(_), Some(Some(port))) => Ok(Address::new(host, port)?),
        (Err(error), None) => Err(error.into()),
    }
}
