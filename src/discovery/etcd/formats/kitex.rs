//! Kitex (`registry-etcd`): `kitex/registry-etcd/<service>/<host:port>`, with a weight of its own.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::registration::{Decoded, Place};
use crate::balancer::Weight;
use crate::discovery::shared::or_default;

/// Kitex's weight of a registration without one.
const DEFAULT_WEIGHT: i64 = 10;

#[derive(Deserialize)]
struct Written {
    address: String,
    #[serde(default, deserialize_with = "or_default")]
    weight: i64,
    /// Pairs of key and value: metadata in pickd.
    #[serde(default, deserialize_with = "or_default")]
    tags: BTreeMap<String, String>,
}

pub(super) fn read(place: &Place<'_>, value: Value) -> Decoded {
    let written: Written = serde_json::from_value(value)?;
    let weight = match written.weight {
        ..=0 => DEFAULT_WEIGHT,
        weight => weight,
    };
    let instance = place.instance(written.address.parse()?)?;
    Ok(vec![
        instance.with_weight(Weight::new(weight)?).with_metadata(&written.tags),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{instance, metadata, read};

    #[test]
    fn no_weight_is_ten_as_in_kitex() {
        for (weight, expected) in [("7", "7"), ("0", "10"), ("-1", "10"), ("null", "10")] {
            let value = format!(r#"{{"network":"tcp","address":"10.0.0.5:80","weight":{weight},"tags":null}}"#);
            let read = read("kitex", ValueFormat::Kitex, "kitex/echo/a", &value);
            assert_eq!(read, format!("echo: a=10.0.0.5:80*{expected}"));
        }
    }

    #[test]
    fn tags_are_pairs() {
        let value = r#"{"network":"tcp","address":"10.0.0.5:80","weight":1,"tags":{"cluster":"default"}}"#;
        assert_eq!(
            metadata(&instance(ValueFormat::Kitex, "kitex/echo/a", value), "cluster"),
            Some("default")
        );
    }

    #[test]
    fn wrong_types_are_refused() {
        for value in [
            r#"{"network":"unix","address":"/run/echo.sock","weight":1}"#,
            r#"{"network":"tcp","address":"10.0.0.5:80","weight":65536}"#,
            r#"{"network":"tcp","address":"10.0.0.5:80","tags":["a"]}"#,
        ] {
            assert!(
                read("kitex", ValueFormat::Kitex, "kitex/echo/a", value).starts_with("error"),
                "{value}"
            );
        }
    }
}
