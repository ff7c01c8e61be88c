//! SkyDNS and CoreDNS's etcd plugin: reversed labels as the key,
//! `/skydns/local/<service>/<instance>`.
//!
//! Numbers are sometimes written as text, even in CoreDNS's own documentation. A record without a
//! host or a port is an address for DNS alone, and not an instance.

use serde_json::Value;

use super::fields::{self, Fields, number, weight_or};
use super::registration::{Decoded, Ignored, InvalidValue, Place};
use crate::balancer::Address;

/// CoreDNS's weight of a record without one, or of 0.
const DEFAULT_WEIGHT: u16 = 100;
/// CoreDNS's priority of a record without one, or of 0.
const DEFAULT_PRIORITY: u16 = 10;

/// The first segment of the keys of SkyDNS and CoreDNS.
const PREFIX: &str = "skydns/";

/// Whether the key is SkyDNS's, and the value has none of the fields that pickd's own format has
/// and SkyDNS has not.
pub(super) fn recognizes(key: &str, fields: Fields<'_>) -> bool {
    let own = ["address", "status", "tags", "metadata"];
    key.trim_start_matches('/').starts_with(PREFIX) && !own.into_iter().any(|name| fields.has(name))
}

pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    let host = match fields.get("host") {
        Some(host) => host.as_str().ok_or(InvalidValue::Invalid("host is not a text"))?,
        None => "",
    };
    let port = match fields.get("port") {
        Some(port) => number(port).ok_or(InvalidValue::Invalid("port is not a number"))?,
        None => 0,
    };
    if host.is_empty() || port == 0 {
        return Ok(Vec::new());
    }
    let mut instance = place.instance(Address::new(host, port)?)?;
    if let Some(weight) = weight_or(DEFAULT_WEIGHT, fields.get("weight"), ignored) {
        instance = instance.with_weight(weight);
    }
    let priority = fields.get("priority").filter(|priority| number(priority) != Some(0));
    let priority = priority.and_then(|priority| fields::priority(priority, ignored));
    let priority = priority.unwrap_or_else(|| DEFAULT_PRIORITY.to_string());
    let texts = ["text", "group"]
        .into_iter()
        .filter_map(|name| Some((name, fields.text(name)?.to_owned())));
    Ok(vec![instance.with_metadata(texts.chain([("priority", priority)]))])
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{ignored, instance, metadata, read};
    use crate::balancer::RegistryStatus;

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
    fn the_priority_is_metadata_and_ten_by_default_as_in_coredns() {
        for (priority, expected) in [
            ("20", "20"),
            (r#""20""#, "20"),
            ("0", "10"),
            ("null", "10"),
            ("65535", "65535"),
        ] {
            let value = format!(r#"{{"host":"10.0.0.5","port":80,"weight":7,"priority":{priority}}}"#);
            let found = instance(ValueFormat::SkyDns, KEY, &value);
            assert_eq!(metadata(&found, "priority"), Some(expected), "{priority}");
            assert_eq!(found.weight().get(), 7, "{priority}");
        }
        let without = instance(ValueFormat::SkyDns, KEY, r#"{"host":"10.0.0.5","port":80}"#);
        assert_eq!(metadata(&without, "priority"), Some("10"));
    }

    #[test]
    fn what_else_cannot_be_read_is_noted() {
        for rest in [
            r#""weight":[]"#,
            r#""weight":"heavy""#,
            r#""priority":"high""#,
            r#""priority":-1"#,
        ] {
            let value = format!(r#"{{"host":"10.0.0.5","port":80,{rest}}}"#);
            let found = instance(ValueFormat::SkyDns, KEY, &value);
            assert_eq!(found.weight().get(), 100, "{rest}");
            assert_eq!(metadata(&found, "priority"), Some("10"), "{rest}");
            assert_eq!(ignored(ValueFormat::SkyDns, KEY, &value).len(), 1, "{rest}");
        }
    }

    #[test]
    fn auto_recognizes_records_by_their_keys() {
        let value = r#"{"host":"10.0.0.5","port":80}"#;
        for key in ["/skydns/local/web/x1", "skydns/local/web/x1"] {
            assert_eq!(
                read("/", ValueFormat::SkyDns, "/web/x1", value),
                "web: x1=10.0.0.5:80*100"
            );
            let (prefix, _) = key.split_once("/web").unwrap();
            assert_eq!(read(prefix, ValueFormat::Auto, key, value), "web: x1=10.0.0.5:80*100");
        }
        // Fields of pickd's own format decide here, too.
        let own = r#"{"host":"10.0.0.5","port":80,"weight":0,"status":"maintenance","ttl":60}"#;
        let found = instance(ValueFormat::Auto, KEY, own);
        assert_eq!(
            (found.weight().get(), found.registry_status()),
            (0, RegistryStatus::Maintenance)
        );
    }

    #[test]
    fn wrong_types_are_refused() {
        for value in [
            r#"{"host":7,"port":80}"#,
            r#"{"host":"a","port":"http"}"#,
            r#"{"host":"a","port":70000}"#,
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
