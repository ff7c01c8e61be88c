//! SkyDNS and CoreDNS's etcd plugin: reversed labels as the key,
//! `/skydns/local/<service>/<instance>`.
//!
//! Numbers are sometimes written as text, even in CoreDNS's own documentation. A record without a
//! host or a port is an address for DNS alone, and not an instance.

use serde::Deserialize;
use serde_json::Value;

use super::registration::{Decoded, InvalidRegistration, Place, number};
use crate::balancer::{Address, Weight};
use crate::discovery::shared::or_default;

/// CoreDNS's weight of a record without one.
const DEFAULT_WEIGHT: i64 = 100;
/// CoreDNS's priority of a record without one.
const DEFAULT_PRIORITY: u16 = 10;

#[derive(Deserialize)]
struct Written {
    #[serde(default, deserialize_with = "or_default")]
    host: String,
    #[serde(default)]
    port: Value,
    #[serde(default)]
    priority: Value,
    #[serde(default)]
    weight: Value,
    #[serde(default, deserialize_with = "or_default")]
    text: String,
    #[serde(default, deserialize_with = "or_default")]
    group: String,
}

pub(super) fn read(place: &Place<'_>, value: Value) -> Decoded {
    if !value.is_object() {
        return Err(InvalidRegistration::Value("expected an object"));
    }
    let written: Written = serde_json::from_value(value)?;
    let port = numeric(&written.port, "port is not a number")?;
    if written.host.is_empty() || port == 0 {
        return Ok(Vec::new());
    }
    let weight = match numeric(&written.weight, "weight is not a number")? {
        0 => DEFAULT_WEIGHT,
        weight => weight,
    };
    let priority = numeric(&written.priority, "priority is not a number")?;
    let metadata = [
        (
            "priority",
            if priority == 0 {
                String::new()
            } else {
                priority.to_string()
            },
        ),
        ("text", written.text),
        ("group", written.group),
    ];
    let instance = place
        .instance(Address::new(&written.host, port)?)?
        .with_weight(Weight::new(weight)?)
        .with_priority(DEFAULT_PRIORITY);
    let metadata = metadata.into_iter().filter(|(_, text)| !text.is_empty());
    Ok(vec![instance.with_metadata(metadata)])
}

/// The number, or 0 if there is none.
fn numeric(value: &Value, otherwise: &'static str) -> Result<i64, InvalidRegistration> {
    match value {
        Value::Null => Ok(0),
        value => number(value).ok_or(InvalidRegistration::Value(otherwise)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{instance, metadata, read};

    const KEY: &str = "/skydns/local/web/x1";

    #[test]
    fn numbers_may_be_text() {
        let value = r#"{"host":"10.0.0.5","port":"8080","weight":"20","ttl":"60"}"#;
        assert_eq!(
            read("/skydns/local", ValueFormat::SkyDns, KEY, value),
            "web: x1=10.0.0.5:8080*20"
        );
    }

    #[test]
    fn a_record_without_host_or_port_is_no_instance() {
        for value in [
            r#"{"host":"10.0.0.5","ttl":60}"#,
            r#"{"port":80}"#,
            r#"{"text":"v=1","ttl":60}"#,
            r#"{"host":"","port":80}"#,
        ] {
            assert_eq!(
                read("/skydns/local", ValueFormat::SkyDns, KEY, value),
                "web:",
                "{value}"
            );
        }
    }

    #[test]
    fn no_weight_is_a_hundred_as_in_coredns() {
        let value = r#"{"host":"db.local","port":1,"priority":10,"text":"hello","group":"g"}"#;
        let instance = instance(ValueFormat::SkyDns, KEY, value);
        assert_eq!(instance.weight().get(), 100);
        for (key, text) in [("priority", "10"), ("text", "hello"), ("group", "g")] {
            assert_eq!(metadata(&instance, key), Some(text));
        }
    }

    #[test]
    fn no_priority_is_ten_as_in_coredns() {
        for (priority, expected) in [
            ("", 10),
            (r#","priority":0"#, 10),
            (r#","priority":"20""#, 20),
            (r#","priority":5"#, 5),
            (r#","priority":-1"#, 10),
            (r#","priority":70000"#, 10),
        ] {
            let value = format!(r#"{{"host":"db.local","port":1{priority}}}"#);
            let instance = instance(ValueFormat::SkyDns, KEY, &value);
            assert_eq!(instance.tier().priority(), expected, "{value}");
        }
    }

    #[test]
    fn wrong_types_are_refused() {
        for value in [
            r#"{"host":7,"port":80}"#,
            r#"{"host":"a","port":"http"}"#,
            r#"{"host":"a","port":70000}"#,
            r#"{"host":"a","port":80,"weight":[]}"#,
            "null",
            "[]",
        ] {
            assert!(
                read("/skydns/local", ValueFormat::SkyDns, KEY, value).starts_with("error"),
                "{value}"
            );
        }
    }
}
