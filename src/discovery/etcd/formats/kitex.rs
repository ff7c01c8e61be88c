//! Kitex (`registry-etcd`): `kitex/registry-etcd/<service>/<host:port>`, with a weight of its own.

use serde_json::Value;

use super::fields::{Fields, flat, weight_or};
use super::registration::{Decoded, Ignored, InvalidValue, Place};

/// Kitex's weight of a registration without one, or with one of 0 or less.
const DEFAULT_WEIGHT: u16 = 10;

/// Kitex's own prefix.
const PREFIX: &str = "kitex/registry-etcd/";

/// Whether the key is Kitex's, and the value has none of the fields that pickd's own format has
/// and Kitex has not.
pub(super) fn recognizes(key: &str, fields: Fields<'_>) -> bool {
    let own = ["host", "status", "metadata"].into_iter().any(|name| fields.has(name));
    let own = own || fields.get("tags").is_some_and(|tags| !tags.is_object());
    key.trim_start_matches('/').starts_with(PREFIX) && !own && fields.has("address")
}

pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    let address = fields.text("address").ok_or(InvalidValue::Invalid("no address"))?;
    let mut instance = place.instance(address.parse()?)?;
    if let Some(weight) = weight_or(DEFAULT_WEIGHT, fields.get("weight"), ignored) {
        instance = instance.with_weight(weight);
    }
    // Pairs of key and value: metadata in pickd.
    let tags = fields.get("tags");
    if tags.is_some_and(|tags| !tags.is_object()) {
        ignored.push("tags are not pairs of key and value");
    }
    Ok(vec![instance.with_metadata(flat(tags))])
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{ignored, instance, metadata, read};
    use crate::balancer::Weight;

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
    fn an_address_that_cannot_be_used_is_refused() {
        for value in [
            r#"{"network":"unix","address":"/run/echo.sock","weight":1}"#,
            r#"{"network":"tcp","weight":1}"#,
            r#"{"network":"tcp","address":7}"#,
        ] {
            assert!(
                read("kitex", ValueFormat::Kitex, "kitex/echo/a", value).starts_with("error"),
                "{value}"
            );
        }
    }

    #[test]
    fn what_else_cannot_be_read_is_noted() {
        for (rest, weight) in [
            (r#""weight":"heavy""#, 10),
            (r#""weight":99999999"#, Weight::MAX.get()),
            (r#""weight":3,"tags":["a"]"#, 3),
        ] {
            let value = format!(r#"{{"network":"tcp","address":"10.0.0.5:80",{rest}}}"#);
            let found = instance(ValueFormat::Kitex, "kitex/echo/a", &value);
            assert_eq!(found.weight().get(), weight, "{rest}");
            assert_eq!(ignored(ValueFormat::Kitex, "kitex/echo/a", &value).len(), 1, "{rest}");
        }
    }
}
