//! Which format a value has, and reading it as that format.
//!
//! One value has one meaning: the fields of pickd's own format decide, and no field of another
//! format changes what they say. Another format whose fields have the same names (SkyDNS, Kitex,
//! jupiter) is recognized by its keys.

use serde_json::Value;

use super::fields::Fields;
use super::registration::{Decoded, Ignored, InvalidValue, Place, last_segment, object};
use super::{ValueFormat, apisix, dubbo, go_micro, goframe, grpc, json, jupiter, kitex, kratos, plain, rpcx, skydns};
use crate::balancer::Address;

/// A value with its format, and what was read of it already.
pub(super) enum Found {
    Json(ValueFormat, Value),
    Text(ValueFormat),
}

impl Found {
    pub(super) fn format(&self) -> ValueFormat {
        match self {
            Self::Json(format, _) | Self::Text(format) => *format,
        }
    }
}

/// The format of a value below a prefix with this format.
pub(super) fn format_of(format: ValueFormat, key: &str, value: &[u8]) -> Result<Found, InvalidValue> {
    match format {
        ValueFormat::Auto if value.trim_ascii_start().first() == Some(&b'{') => {
            let value = object(value)?;
            Ok(Found::Json(recognize(key, &value)?, value))
        }
        ValueFormat::Auto => Ok(Found::Text(recognize_text(key, value))),
        ValueFormat::Plain | ValueFormat::GoZero | ValueFormat::Rpcx | ValueFormat::GoFrame => Ok(Found::Text(format)),
        // Providers are in the key.
        ValueFormat::Dubbo if value.trim_ascii().is_empty() || dubbo::is_url(last_segment(key)) => {
            Ok(Found::Text(format))
        }
        _ => Ok(Found::Json(format, object(value)?)),
    }
}

/// What the value registers.
pub(super) fn read(found: &Found, place: &Place<'_>, value: &[u8], ignored: &mut Ignored) -> Decoded {
    match found {
        Found::Text(ValueFormat::Rpcx) => rpcx::read(place, value, ignored),
        Found::Text(ValueFormat::GoFrame) => goframe::read(place, value, ignored),
        Found::Text(ValueFormat::Dubbo) => dubbo::read_key(place, ignored),
        Found::Json(ValueFormat::GoFrame, _) => goframe::read(place, value, ignored),
        Found::Text(_) => plain::read(place, value, ignored),
        Found::Json(format, value) => {
            let read = match format {
                ValueFormat::Grpc => grpc::read,
                ValueFormat::Kratos => kratos::read,
                ValueFormat::GoMicro => go_micro::read,
                ValueFormat::Kitex => kitex::read,
                ValueFormat::SkyDns => skydns::read,
                ValueFormat::Dubbo => dubbo::read,
                ValueFormat::Apisix => apisix::read,
                ValueFormat::Jupiter => jupiter::read,
                _ => json::read,
            };
            read(place, value, ignored)
        }
    }
}

/// The format of a JSON object, in the order of the table in `docs/etcd.md`.
fn recognize(key: &str, value: &Value) -> Result<ValueFormat, InvalidValue> {
    let fields = Fields::of(value)?;
    Ok(if skydns::recognizes(key, fields) {
        ValueFormat::SkyDns
    } else if kitex::recognizes(key, fields) {
        ValueFormat::Kitex
    } else if jupiter::recognizes(key, fields) {
        ValueFormat::Jupiter
    } else if json::is_own(fields) {
        ValueFormat::Json
    } else if grpc::recognizes(fields) {
        ValueFormat::Grpc
    } else if dubbo::recognizes(fields) {
        ValueFormat::Dubbo
    } else if apisix::recognizes(fields) {
        ValueFormat::Apisix
    } else if fields.has("nodes") {
        ValueFormat::GoMicro
    } else if fields.has("endpoints") {
        ValueFormat::Kratos
    } else if json::has_address(fields) {
        ValueFormat::Json
    } else if goframe::recognizes(key) {
        ValueFormat::GoFrame
    } else {
        return Err(InvalidValue::Unrecognized);
    })
}

/// The format of a value that is no JSON object.
fn recognize_text(key: &str, value: &[u8]) -> ValueFormat {
    let last = last_segment(key);
    if rpcx::address(last).is_some() {
        ValueFormat::Rpcx
    } else if value.is_empty() && dubbo::is_url(last) {
        ValueFormat::Dubbo
    } else if matches!(value, b"" | b"null") && goframe::recognizes(key) {
        ValueFormat::GoFrame
    } else {
        ValueFormat::Plain
    }
}

/// Whether the key is of a folder, and registers nothing whatever its prefix says: rpcx writes the
/// name of a folder as its value, and APISIX a mark at keys that end with a slash.
pub(super) fn is_folder(format: ValueFormat, key: &str, value: &[u8]) -> bool {
    let last = last_segment(key);
    match format {
        ValueFormat::Rpcx => rpcx::address(last).is_none(),
        ValueFormat::Dubbo => value.is_empty() && !dubbo::is_url(last),
        ValueFormat::Apisix => value == b"init_dir",
        ValueFormat::Auto => {
            let named = value == last.as_bytes() && last.parse::<Address>().is_err();
            !last.is_empty() && named || value == b"rpcx_path" || last.is_empty() && value == b"init_dir"
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::super::samples::SAMPLES;
    use super::super::{InvalidRegistration, Prefix};
    use super::*;

    /// Text that stands for a secret: no error and no reason may have it.
    const SECRET: &str = "S3cr3t";
    const KEY: &str = "/services/w/1";

    /// Names of fields of all formats, and some of no format.
    const NAMES: [&str; 45] = [
        "Addr",
        "Address",
        "Enable",
        "Healthy",
        "Host",
        "ID",
        "Metadata",
        "Op",
        "Port",
        "ServiceName",
        "Status",
        "Tags",
        "Weight",
        "addr",
        "address",
        "deployment",
        "enable",
        "endpoints",
        "group",
        "healthy",
        "host",
        "hostname",
        "id",
        "ip",
        "kind",
        "mail",
        "metadata",
        "name",
        "network",
        "nodes",
        "port",
        "priority",
        "region",
        "scheme",
        "service_name",
        "status",
        "tags",
        "targetstrip",
        "text",
        "ttl",
        "type",
        "version",
        "weight",
        "zone",
        "password",
    ];
    /// The fields of pickd's own format.
    const OWN: [&str; 8] = [
        "address", "host", "metadata", "port", "priority", "status", "tags", "weight",
    ];

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (0..70_000i64).prop_map(Value::from),
            "[a-z0-9:./@ %-]{0,12}".prop_map(Value::from),
            Just(Value::from("10.0.0.9:81")),
            Just(Value::from("http://10.0.0.9:81")),
            Just(Value::from("maintenance")),
            Just(Value::from("roundrobin")),
            Just(Value::from(SECRET)),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((prop::sample::select(&NAMES[..]), inner), 0..4).prop_map(object_of),
            ]
        })
    }

    fn object_of(fields: Vec<(&str, Value)>) -> Value {
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
        Value::from(fields.collect::<Map<String, Value>>())
    }

    fn objects() -> impl Strategy<Value = Value> {
        prop::collection::vec((prop::sample::select(&NAMES[..]), value()), 0..8).prop_map(object_of)
    }

    /// A value of pickd's own format.
    fn own() -> impl Strategy<Value = Map<String, Value>> {
        let at = prop_oneof![
            Just(json!({"host": "127.0.0.1", "port": 80})),
            Just(json!({"address": "127.0.0.1:80"})),
            Just(json!({"address": "127.0.0.1", "port": 80})),
        ];
        let words = vec!["passing", "warning", "critical", "maintenance", "DOWN"];
        let status = prop::option::of(prop::sample::select(words));
        let weight = prop::option::of(prop_oneof![Just(0i64), 0..100i64]);
        let tags = prop::option::of(prop::collection::vec("[a-z]{1,4}", 0..3));
        let metadata = prop::option::of("[a-z]{1,4}");
        (at, status, weight, tags, metadata).prop_map(|(at, status, weight, tags, zone)| {
            let mut fields = at.as_object().unwrap().clone();
            let mut set = |name: &str, value: Option<Value>| {
                if let Some(value) = value {
                    fields.insert(name.to_owned(), value);
                }
            };
            set("status", status.map(Value::from));
            set("weight", weight.map(Value::from));
            set("tags", tags.map(Value::from));
            set("metadata", zone.map(|zone| json!({ "zone": zone })));
            fields
        })
    }

    /// Fields as the samples of other registrars have them, in addition to those made up.
    fn fields_of_others() -> impl Strategy<Value = Vec<(String, Value)>> {
        let mut known = Vec::new();
        for sample in &SAMPLES {
            if let Ok(Value::Object(fields)) = serde_json::from_str(sample.value) {
                known.extend(fields);
            }
        }
        known.extend(["enable", "healthy", "Enable", "Healthy"].map(|name| (name.to_owned(), Value::from(false))));
        let made_up = (prop::sample::select(&NAMES[..]), value()).prop_map(|(name, value)| (name.to_owned(), value));
        prop::collection::vec(prop_oneof![prop::sample::select(known), made_up], 0..12)
    }

    fn read_below(
        format: ValueFormat,
        key: &str,
        value: &[u8],
    ) -> Result<super::super::Registration, InvalidRegistration> {
        let prefix = Prefix::new("/").unwrap().with_format(format);
        prefix.with_service("w".parse().unwrap()).read(key.as_bytes(), value)
    }

    /// Keys that some formats take their addresses from.
    const KEYS: [&str; 7] = [
        KEY,
        "/skydns/local/w/1",
        "/kitex/registry-etcd/w/10.0.0.9:81",
        "/rpcx/w/tcp@10.0.0.9:81",
        "/service/default/default/w/latest/10.0.0.9:81",
        "/dubbo/w/dubbo%3A%2F%2F10.0.0.9%3A81%2Fcom.Foo%3Fweight%3Dx",
        "/ego/w/providers/http://10.0.0.9:81",
    ];

    #[test]
    fn a_status_a_weight_of_zero_and_tags_stay_beside_a_ttl() {
        let value = br#"{"host":"127.0.0.1","port":80,"status":"maintenance","weight":0,"tags":["v1"],"ttl":30}"#;
        let registration = Prefix::new("/services/").unwrap().read(KEY.as_bytes(), value).unwrap();
        let found = &registration.instances[0];
        assert_eq!(found.registry_status().as_str(), "maintenance");
        assert_eq!((found.weight().get(), found.has_tag("v1")), (0, true));
    }

    proptest! {
        #[test]
        fn fields_of_other_formats_change_nothing_in_a_value_of_ours(
            own in own(),
            others in fields_of_others(),
        ) {
            let alone = Value::from(own.clone()).to_string();
            let mut both: Map<String, Value> = others.into_iter().filter(|(name, _)| !OWN.contains(&&**name)).collect();
            both.extend(own);
            let both = Value::from(both).to_string();
            let expected = read_below(ValueFormat::Json, KEY, alone.as_bytes()).unwrap();
            for format in [ValueFormat::Auto, ValueFormat::Json] {
                let found = read_below(format, KEY, both.as_bytes()).unwrap();
                prop_assert_eq!(&found, &expected, "{} {}", format, both);
            }
        }

        #[test]
        fn any_value_is_read_or_refused_without_repeating_it(
            object in objects(),
            text in prop_oneof!["\\PC{0,40}", Just(format!("postgres://u:{SECRET}@db:1/x")), Just(SECRET.to_owned())],
            cut in 0..200usize,
        ) {
            let json = object.to_string();
            let cut_short: String = json.chars().take(cut).collect();
            for format in ValueFormat::ALL {
                for key in KEYS {
                    for value in [&json, &cut_short, &text] {
                        let said = match read_below(format, key, value.as_bytes()) {
                            Ok(registration) => registration.ignored.join(" "),
                            Err(error) => error.to_string(),
                        };
                        prop_assert!(!said.contains(SECRET), "{}", said);
                        prop_assert!(!said.contains("10.0.0.9"), "{}", said);
                    }
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for format in ValueFormat::ALL {
                for key in KEYS {
                    let _ = read_below(format, key, &bytes);
                }
            }
        }
    }

    #[test]
    fn an_error_names_the_reason_and_never_the_value() {
        let error = |value: &str| read_below(ValueFormat::Auto, "/services/db/password", value.as_bytes());
        for value in [
            SECRET,
            "postgres://app:S3cr3t@db.local:5432/app",
            r#"{"host":"S3cr3t here","port":80}"#,
            r#"{"password":"S3cr3t"}"#,
            r#"{"host":"db","port":"S3cr3t"}"#,
            r#"{"nodes":"S3cr3t"}"#,
            r#"{"endpoints":["S3cr3t"]}"#,
            r#"{"host":S3cr3t}"#,
        ] {
            let said = error(value).unwrap_err().to_string();
            assert!(!said.contains(SECRET), "{value}: {said}");
        }
    }
}
