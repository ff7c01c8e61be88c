//! pickd's own format, for registrations by hand or from a script, and the shapes that other
//! programs write alike.
//!
//! ```json
//! {"host": "10.0.0.5", "port": 8080, "weight": 2, "tags": ["v1"],
//!  "metadata": {"zone": "a"}, "status": "passing", "priority": 10}
//! {"address": "10.0.0.5:8080"}
//! {"Addr": "10.0.0.5:8080", "Weight": 2}
//! ```
//!
//! Host and port, or `address` in place of both; the rest may be left out. Unknown fields are
//! ignored, so that other tools can store theirs beside them. A value with the own names in lower
//! case is read by exactly these names. Any other value is read by names in any letter case, and
//! may have `ip`, `hostname` or `addr` for its address.

use serde_json::Value;

use super::fields::{self, Fields, flat, priority, with_tags};
use super::registration::{Decoded, Ignored, InvalidValue, Place};
use crate::balancer::{Address, InvalidInstance};

/// Where an address may be, with or without a `port` beside it; first the own names.
const ADDRESSES: [&str; 5] = ["host", "address", "ip", "hostname", "addr"];

/// Whether this is a value of pickd's own format.
pub(super) fn is_own(fields: Fields<'_>) -> bool {
    fields.get("address").is_some() || fields.get("host").is_some() && fields.get("port").is_some()
}

/// Whether this value has an address in one of the shapes that are read here.
pub(super) fn has_address(fields: Fields<'_>) -> bool {
    let fields = fields.in_any_case();
    ADDRESSES.iter().any(|name| fields.get(name).is_some())
}

pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    let fields = if is_own(fields) { fields } else { fields.in_any_case() };
    let mut instance = place.instance(address(fields, ignored)?)?;
    if let Some(weight) = fields.get("weight").and_then(|value| fields::weight(value, ignored)) {
        instance = instance.with_weight(weight);
    }
    if let Some(status) = fields.get("status").and_then(|value| fields::status(value, ignored)) {
        instance = instance.with_status(status);
    }
    let tags = fields.get("tags");
    if let Some(tags) = tags {
        instance = with_tags(instance, tags, ignored);
    }
    let priority = fields.get("priority").and_then(|value| priority(value, ignored));
    let priority = priority.into_iter().map(|text| ("priority", text));
    let metadata = flat(tags).chain(priority).chain(flat(fields.get("metadata")));
    Ok(vec![instance.with_metadata(metadata)])
}

/// The first address that can be used. Other fields with an address have no effect; an `address`
/// that differs from `host` and `port` is noted.
pub(super) fn address(fields: Fields<'_>, ignored: &mut Ignored) -> Result<Address, InvalidValue> {
    let port = fields.get("port");
    let (mut wrong, mut is_host) = (None, false);
    for name in ADDRESSES {
        let Some(value) = fields.get(name) else { continue };
        let read = match value.as_str() {
            Some(text) => fields::address(text, port),
            None => Err(InvalidValue::Invalid("host or address is not a text")),
        };
        match read {
            Ok(found) => {
                let other = fields.text("address").and_then(|text| text.parse::<Address>().ok());
                if name == "host" && other.is_some_and(|other| other != found) {
                    ignored.push("address differs from host and port, which count");
                }
                return Ok(found);
            }
            Err(reason) => {
                is_host |= value.as_str().is_some_and(|text| Address::new(text, 1).is_ok());
                wrong = wrong.or(Some(reason));
            }
        }
    }
    Err(match (wrong, port) {
        (Some(reason), Some(_)) => reason,
        (Some(_), None) if is_host && fields.get("address").is_none() => {
            InvalidInstance::NoPort { found: String::new() }.into()
        }
        (Some(reason), None) => reason,
        _ => InvalidValue::Invalid("expected host and port, or address"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{ignored, instance, metadata, read};
    use crate::balancer::{RegistryStatus, Weight};

    const KEY: &str = "/s/web/a";

    fn json(value: &str) -> String {
        let own = read("/s", ValueFormat::Json, KEY, value);
        assert_eq!(read("/s", ValueFormat::Auto, KEY, value), own, "{value}");
        own
    }

    #[test]
    fn everything_can_be_said() {
        let value = r#"{"host":"::1","port":8080,"weight":0,"tags":["v2","v1"],"metadata":{"zone":"a","rack":7},"status":"warning","priority":20,"x":1}"#;
        let instance = instance(ValueFormat::Json, KEY, value);
        assert_eq!(instance.address().as_str(), "[::1]:8080");
        assert_eq!(instance.weight().get(), 0);
        assert!(instance.has_tag("v1") && instance.has_tag("v2"));
        for (key, text) in [("zone", "a"), ("rack", "7"), ("priority", "20")] {
            assert_eq!(metadata(&instance, key), Some(text));
        }
        assert_eq!(instance.registry_status(), RegistryStatus::Warning);
        assert_eq!(ignored(ValueFormat::Json, KEY, value), [""; 0]);
    }

    #[test]
    fn an_address_stands_for_host_and_port() {
        assert_eq!(json(r#"{"address":"db:1"}"#), "web: a=db:1*1");
        assert_eq!(
            json(r#"{"host":"db","port":"1","weight":"2","tags":null,"metadata":null}"#),
            "web: a=db:1*2"
        );
    }

    #[test]
    fn common_shapes_are_read_in_any_letter_case() {
        for (value, address) in [
            (r#"{"address":"10.0.0.5","port":80}"#, "10.0.0.5:80"),
            (r#"{"address":"10.0.0.5:80","port":0}"#, "10.0.0.5:80"),
            (r#"{"address":"2001:db8::5:8080","port":80}"#, "[2001:db8::5:8080]:80"),
            (r#"{"address":"[2001:db8::5]:8080"}"#, "[2001:db8::5]:8080"),
            (r#"{"Address":"10.0.0.5","Port":80}"#, "10.0.0.5:80"),
            (r#"{"ADDRESS":"10.0.0.5:80"}"#, "10.0.0.5:80"),
            (r#"{"ip":"10.0.0.5","port":80}"#, "10.0.0.5:80"),
            (r#"{"IP":"10.0.0.5","PORT":"80"}"#, "10.0.0.5:80"),
            (r#"{"Ip":"10.0.0.5","Port":80}"#, "10.0.0.5:80"),
            (r#"{"hostname":"db","port":80}"#, "db:80"),
            (r#"{"hostName":"db","port":80}"#, "db:80"),
            (r#"{"HostName":"db","IP":"10.0.0.5","Port":80}"#, "10.0.0.5:80"),
            (r#"{"addr":"10.0.0.5:80"}"#, "10.0.0.5:80"),
            (r#"{"Addr":"10.0.0.5:80"}"#, "10.0.0.5:80"),
            (r#"{"Addr":"10.0.0.5","Port":80}"#, "10.0.0.5:80"),
            (r#"{"Host":"10.0.0.5","Port":80}"#, "10.0.0.5:80"),
            (r#"{"host":"10.0.0.5:80"}"#, "10.0.0.5:80"),
            (r#"{"host":"10.0.0.5","port":80,"ip":"10.0.0.6"}"#, "10.0.0.5:80"),
        ] {
            assert_eq!(json(value), format!("web: a={address}*1"), "{value}");
            assert_eq!(ignored(ValueFormat::Json, KEY, value), [""; 0], "{value}");
        }
        let value = r#"{"Addr":"10.0.0.5:80","Weight":0,"Tags":["v1"],"Status":"UP","Metadata":{"zone":"a"}}"#;
        let found = instance(ValueFormat::Auto, KEY, value);
        assert_eq!((found.weight().get(), found.has_tag("v1")), (0, true));
        assert_eq!(
            (found.registry_status(), metadata(&found, "zone")),
            (RegistryStatus::Passing, Some("a"))
        );
    }

    #[test]
    fn host_and_port_count_before_an_address_that_differs() {
        let both = |address: &str| format!(r#"{{"host":"db","port":1,"address":"{address}"}}"#);
        for (address, noted) in [("db:1", 0), ("db:2", 1), ("nothing", 0)] {
            assert_eq!(json(&both(address)), "web: a=db:1*1");
            assert_eq!(
                ignored(ValueFormat::Json, KEY, &both(address)).len(),
                noted,
                "{address}"
            );
        }
    }

    #[test]
    fn a_status_is_read_by_the_words_of_other_registries() {
        let status = |word: &str| {
            let value = format!(r#"{{"host":"db","port":1,"status":"{word}"}}"#);
            assert_eq!(ignored(ValueFormat::Json, KEY, &value), [""; 0], "{word}");
            instance(ValueFormat::Json, KEY, &value).registry_status()
        };
        for (words, expected) in [
            ("passing UP up pass OK healthy SERVING", RegistryStatus::Passing),
            ("warning WARN degraded", RegistryStatus::Warning),
            (
                "critical DOWN fail error UNHEALTHY NOT_SERVING STARTING timeout",
                RegistryStatus::Critical,
            ),
            (
                "maintenance OUT_OF_SERVICE out-of-service DRAINING",
                RegistryStatus::Maintenance,
            ),
            ("unknown UNKNOWN SERVICE_UNKNOWN", RegistryStatus::Unknown),
        ] {
            for word in words.split(' ') {
                assert_eq!(status(word), expected, "{word}");
            }
        }
        assert_eq!(status("Out of service"), RegistryStatus::Maintenance);
        assert_eq!(status(""), RegistryStatus::Unknown);
    }

    #[test]
    fn what_cannot_be_read_is_noted_and_the_address_counts() {
        let most = Weight::MAX.get();
        for (rest, weight) in [
            (r#""weight":"""#, 1),
            (r#""weight":"heavy""#, 1),
            (r#""weight":-1"#, 1),
            (r#""weight":1.5"#, 1),
            (r#""weight":true"#, 1),
            (r#""weight":65536"#, most),
            (r#""weight":1e300"#, most),
            (r#""weight":"99999999999999999999""#, most),
            (r#""status":"decommissioned""#, 1),
            (r#""status":1"#, 1),
            (r#""tags":7"#, 1),
            (r#""tags":["",{}]"#, 1),
            (r#""tags":["a\nb"]"#, 1),
            (r#""priority":"high""#, 1),
            (r#""priority":65536"#, 1),
            (r#""address":7"#, 1),
        ] {
            let value = format!(r#"{{"host":"db","port":1,{rest}}}"#);
            let found = instance(ValueFormat::Json, KEY, &value);
            assert_eq!(
                (found.address().as_str(), found.weight().get()),
                ("db:1", weight),
                "{rest}"
            );
            assert_eq!(found.registry_status(), RegistryStatus::Unknown, "{rest}");
            assert!(found.tags().is_empty() && found.metadata().is_empty(), "{rest}");
            let noted = ignored(ValueFormat::Json, KEY, &value).len();
            assert_eq!(noted, usize::from(!rest.contains("address")), "{rest}");
        }
    }

    #[test]
    fn tags_are_a_list_or_a_text_with_commas() {
        let tags = |tags: &str| {
            let found = instance(
                ValueFormat::Json,
                KEY,
                &format!(r#"{{"address":"db:1","tags":{tags}}}"#),
            );
            found.tags().join(" ")
        };
        assert_eq!(tags(r#""a,b""#), "a b");
        assert_eq!(tags(r#"" b, a,,""#), "a b");
        assert_eq!(tags(r#"["b","a","a"]"#), "a b");
        assert_eq!(tags(r#"["a",7,true,null]"#), "7 a true");
        assert_eq!(tags(r#""""#), "");
        let value = r#"{"address":"db:1","tags":{"cluster":"blue"}}"#;
        assert_eq!(
            metadata(&instance(ValueFormat::Json, KEY, value), "cluster"),
            Some("blue")
        );
    }

    #[test]
    fn an_address_that_is_wrong_is_refused_and_the_reason_named() {
        for (value, expected) in [
            (r#"{"host":"db"}"#, "expected a port"),
            (r#"{"host":"10.0.0.5:99999"}"#, "host: expected"),
            (r#"{"addr":"a b"}"#, "host: expected"),
            (r#"{"address":"db"}"#, "host: expected"),
            (r#"{"host":"db","port":70000}"#, "port: expected"),
            (r#"{"host":"db","port":0}"#, "port: expected"),
            (r#"{"host":"db","port":"http"}"#, "port is not a number"),
            (r#"{"host":"d b","port":1}"#, "host: expected"),
            (r#"{"host":7,"port":1}"#, "not a text"),
        ] {
            let error = json(value);
            assert!(
                error.starts_with("error") && error.contains(expected),
                "{value}: {error}"
            );
        }
        let error = read("/s", ValueFormat::Json, KEY, r#"{"port":1}"#);
        assert!(error.contains("expected host and port"), "{error}");
    }
}
