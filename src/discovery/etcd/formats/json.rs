//! pickd's own format, for registrations by hand or from a script.
//!
//! ```json
//! {"host": "10.0.0.5", "port": 8080, "weight": 2, "tags": ["v1"],
//!  "metadata": {"zone": "a"}, "status": "passing"}
//! {"address": "10.0.0.5:8080"}
//! ```
//!
//! Host and port, or `address` in place of both; the rest may be left out. `status` is `passing`,
//! `warning`, `critical`, `maintenance` or `unknown`. Unknown fields are ignored, so that other
//! tools can store theirs beside them.

use serde::Deserialize;
use serde_json::Value;

use super::registration::{Decoded, InvalidRegistration, Place, flat, number};
use crate::balancer::{Address, InvalidInstance, RegistryStatus, Weight};
use crate::discovery::shared::{or_default, status_named};

#[derive(Deserialize)]
struct Written {
    host: Option<String>,
    port: Option<Value>,
    address: Option<String>,
    weight: Option<Value>,
    #[serde(default, deserialize_with = "or_default")]
    tags: Vec<String>,
    #[serde(default)]
    metadata: Value,
    status: Option<String>,
}

pub(super) fn read(place: &Place<'_>, value: Value) -> Decoded {
    let written: Written = serde_json::from_value(value)?;
    let address = match (&written.address, &written.host, &written.port) {
        (Some(address), None, None) => address.parse()?,
        (None, Some(host), Some(port)) => Address::new(
            host,
            number(port).ok_or(InvalidRegistration::Value("port is not a number"))?,
        )?,
        (None, Some(host), None) => {
            let found = host.chars().take(64).collect();
            return Err(InvalidInstance::NoPort { found }.into());
        }
        _ => return Err(InvalidRegistration::Value("expected host and port, or address")),
    };
    let mut instance = place.instance(address)?.with_tags(&written.tags)?;
    if let Some(weight) = &written.weight {
        let weight = number(weight).ok_or(InvalidRegistration::Value("weight is not a number"))?;
        instance = instance.with_weight(Weight::new(weight)?);
    }
    if let Some(status) = &written.status {
        instance = instance.with_status(self::status(status)?);
    }
    Ok(vec![instance.with_metadata(flat(&written.metadata))])
}

fn status(name: &str) -> Result<RegistryStatus, InvalidRegistration> {
    status_named(name).ok_or(InvalidRegistration::Value(
        "status: expected passing, warning, critical, maintenance or unknown",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{instance, metadata, read};
    use super::*;

    #[test]
    fn everything_can_be_said() {
        let value = r#"{"host":"::1","port":8080,"weight":0,"tags":["v2","v1"],"metadata":{"zone":"a","rack":7},"status":"warning","x":1}"#;
        let instance = instance(ValueFormat::Json, "/s/web/a", value);
        assert_eq!(instance.address().as_str(), "[::1]:8080");
        assert_eq!(instance.weight().get(), 0);
        assert!(instance.has_tag("v1") && instance.has_tag("v2"));
        assert_eq!(
            (metadata(&instance, "zone"), metadata(&instance, "rack")),
            (Some("a"), Some("7"))
        );
        assert_eq!(instance.registry_status(), RegistryStatus::Warning);
    }

    #[test]
    fn an_address_stands_for_host_and_port() {
        let json = |value| read("/s", ValueFormat::Json, "/s/web/a", value);
        assert_eq!(json(r#"{"address":"db:1"}"#), "web: a=db:1*1");
        assert_eq!(
            json(r#"{"host":"db","port":"1","weight":"2","tags":null,"metadata":null}"#),
            "web: a=db:1*2"
        );
    }

    #[test]
    fn what_is_wrong_is_refused_and_named() {
        let json = |value| read("/s", ValueFormat::Json, "/s/web/a", value);
        for (value, expected) in [
            (r#"{"host":"db"}"#, "expected a port"),
            (r#"{"port":1}"#, "host and port"),
            (r#"{"host":"db","port":1,"address":"db:1"}"#, "host and port"),
            (r#"{"host":"db","port":70000}"#, "70000"),
            (r#"{"host":"d b","port":1}"#, "d b"),
            (r#"{"host":"db","port":1,"weight":65536}"#, "65536"),
            (r#"{"host":"db","port":1,"weight":1.5}"#, "weight"),
            (r#"{"host":"db","port":1,"status":"up"}"#, "maintenance"),
            (r#"{"host":"db","port":1,"tags":[""]}"#, "tag"),
            (r#"{"host":"db","port":1,"tags":"a"}"#, "expected a sequence"),
        ] {
            let error = json(value);
            assert!(
                error.starts_with("error") && error.contains(expected),
                "{value}: {error}"
            );
        }
    }
}
