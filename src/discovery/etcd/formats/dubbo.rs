//! dubbo-go, in both of its layouts.
//!
//! ```text
//! /services/<application>/<host:port>            {"ID", "ServiceName", "Host", "Port", ...}
//! /dubbo/<interface>/providers/<encoded URL>     (an empty value)
//! ```
//!
//! Folders of the second layout have keys too, with empty values, and so have consumers and rules:
//! these register no instance.

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::fields::{self, Fields, flat, status_by_flags, weight_or, with_tags};
use super::registration::{Decoded, Ignored, InvalidValue, Place, named};
use super::rpcx::pairs;
use super::url::Url;
use crate::balancer::Address;

/// Dubbo's weight of a provider without one, or of 0.
const DEFAULT_WEIGHT: u16 = 100;
/// URLs of these schemes are consumers and rules.
const NOT_PROVIDERS: [&str; 8] = [
    "consumer",
    "override",
    "route",
    "router",
    "condition",
    "script",
    "configurator",
    "empty",
];
/// Parameters that tell providers apart, or that callers look for.
const KEPT: [&str; 5] = ["application", "group", "interface", "tag", "version"];
/// The metadata with one port for each protocol.
const ENDPOINTS: &str = "dubbo.endpoints";

/// Whether the value has the fields of an instance of an application.
pub(super) fn recognizes(fields: Fields<'_>) -> bool {
    ["ServiceName", "Host", "Port"].into_iter().all(|name| fields.has(name))
}

/// Whether the last segment of a key is an encoded URL.
pub(super) fn is_url(id: &str) -> bool {
    let start = id.find('%').map_or("", |start| &id[start..]);
    let colon = start.get(..9).unwrap_or_default();
    colon.eq_ignore_ascii_case("%3A%2F%2F")
}

/// A provider by its key. Any other key registers no instance.
pub(super) fn read_key(place: &Place<'_>, ignored: &mut Ignored) -> Decoded {
    if !is_url(place.last()) {
        return Ok(Vec::new());
    }
    let decoded = percent_decode_str(place.last()).decode_utf8();
    let decoded = decoded.map_err(|_| InvalidValue::Invalid("the URL in the key is not UTF-8"))?;
    let url = Url::parse(&decoded).ok_or(InvalidValue::Invalid("the key is no URL"))?;
    let other = place.scheme.is_some_and(|wanted| wanted != url.scheme);
    if other || NOT_PROVIDERS.contains(&url.scheme) {
        return Ok(Vec::new());
    }
    let parameters = pairs(url.query.unwrap_or_default(), ignored);
    let parameter = |name: &str| {
        let found = parameters.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    };
    // The whole URL is often longer than an id may be, and has the time of the start in it.
    let mut id = format!("{}://{}{}", url.scheme, url.authority, url.path);
    for part in ["group", "version"].into_iter().filter_map(parameter) {
        id = format!("{id}:{part}");
    }
    let mut instance = named(&id, url.authority.parse()?)?;
    let weight = parameter("weight").map(|weight| Value::String(weight.to_owned()));
    if let Some(weight) = weight_or(DEFAULT_WEIGHT, weight.as_ref(), ignored) {
        instance = instance.with_weight(weight);
    }
    if let Some(tag) = parameter("tag").or_else(|| parameter("dubbo.tag")) {
        instance = with_tags(instance, &Value::from(vec![tag]), ignored);
    }
    let kept = KEPT.into_iter().filter_map(|name| Some((name, parameter(name)?)));
    Ok(vec![instance.with_metadata(kept.chain([("scheme", url.scheme)]))])
}

/// An instance of an application.
pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    let host = fields.text("Host").ok_or(InvalidValue::Invalid("no Host"))?;
    let metadata = fields.get("Metadata");
    let port = match place.scheme {
        Some(scheme) => port_of(scheme, metadata).ok_or(InvalidValue::Invalid("no endpoint of the wanted scheme"))?,
        None => {
            let port = fields.get("Port").and_then(fields::number);
            port.ok_or(InvalidValue::Invalid("Port is not a number"))?
        }
    };
    let mut instance = place.instance(Address::new(host, port)?)?;
    let positive = |weight: &&Value| fields::number(weight).is_none_or(|weight| weight > 0);
    let weight = fields.get("Weight").filter(positive);
    let weight = weight.or_else(|| metadata?.get("weight").filter(|weight| !weight.is_null()));
    if let Some(weight) = weight_or(DEFAULT_WEIGHT, weight, ignored) {
        instance = instance.with_weight(weight);
    }
    if let Some(status) = status_by_flags(fields.get("Enable"), fields.get("Healthy")) {
        instance = instance.with_status(status);
    }
    if let Some(tag) = fields.text("Tag") {
        instance = with_tags(instance, &Value::from(vec![tag]), ignored);
    }
    Ok(vec![instance.with_metadata(flat(metadata))])
}

/// The port of a protocol: `[{"port":20880,"protocol":"dubbo"},{"port":50051,"protocol":"tri"}]`.
fn port_of(scheme: &str, metadata: Option<&Value>) -> Option<i64> {
    let written = metadata?.get(ENDPOINTS)?.as_str()?;
    let endpoints: Vec<Value> = serde_json::from_str(written).ok()?;
    let named = |endpoint: &&Value| endpoint.get("protocol").and_then(Value::as_str) == Some(scheme);
    fields::number(endpoints.iter().find(named)?.get("port")?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ignored, instance, metadata, read};
    use super::super::{Prefix, ValueFormat};
    use crate::balancer::{RegistryStatus, Weight};

    const KEY: &str = "/services/user-app/10.0.0.5:20000";

    fn application(rest: &str) -> String {
        format!(r#"{{"ID":"10.0.0.5:20000","ServiceName":"user-app","Host":"10.0.0.5","Port":20000{rest}}}"#)
    }

    /// The key of a provider with this URL, encoded as Go does.
    fn provider(url: &str) -> String {
        let encoded: String = url
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
                b' ' => "+".to_owned(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        format!("/dubbo/user/{encoded}")
    }

    #[test]
    fn an_application_that_is_disabled_or_unhealthy_is_not_picked() {
        let status = |rest: &str| instance(ValueFormat::Dubbo, KEY, &application(rest)).registry_status();
        assert_eq!(status(r#","Enable":true,"Healthy":true"#), RegistryStatus::Unknown);
        assert_eq!(status(""), RegistryStatus::Unknown);
        assert_eq!(status(r#","Enable":true,"Healthy":false"#), RegistryStatus::Critical);
        assert_eq!(status(r#","Enable":false,"Healthy":true"#), RegistryStatus::Maintenance);
    }

    #[test]
    fn no_weight_is_a_hundred_as_in_dubbo() {
        for (rest, weight, noted) in [
            ("", 100, 0),
            (r#","Weight":0"#, 100, 0),
            (r#","Weight":7"#, 7, 0),
            (r#","Weight":7,"Metadata":{"weight":"8"}"#, 7, 0),
            (r#","Weight":0,"Metadata":{"weight":"8"}"#, 8, 0),
            (r#","Weight":"heavy""#, 100, 1),
            (r#","Weight":70000"#, Weight::MAX.get(), 1),
        ] {
            let value = application(rest);
            assert_eq!(
                instance(ValueFormat::Dubbo, KEY, &value).weight().get(),
                weight,
                "{rest}"
            );
            assert_eq!(ignored(ValueFormat::Dubbo, KEY, &value).len(), noted, "{rest}");
        }
    }

    #[test]
    fn the_wanted_protocol_chooses_the_port() {
        let value = application(
            r#","Tag":"gray","Metadata":{"dubbo.endpoints":"[{\"port\":20000,\"protocol\":\"dubbo\"},{\"port\":50051,\"protocol\":\"tri\"}]"}"#,
        );
        let port = |scheme: &str| {
            let prefix = Prefix::new("/services").unwrap().with_format(ValueFormat::Dubbo);
            let read = prefix.with_scheme(scheme).read(KEY.as_bytes(), value.as_bytes());
            read.ok().map(|registration| registration.instances[0].port())
        };
        assert_eq!(
            (port("tri"), port("dubbo"), port("rest")),
            (Some(50051), Some(20000), None)
        );
        let found = instance(ValueFormat::Dubbo, KEY, &value);
        assert_eq!((found.port(), found.has_tag("gray")), (20000, true));
    }

    #[test]
    fn a_provider_is_read_from_its_key() {
        let url =
            "dubbo://10.0.0.5:20880/com.foo.Bar?application=a+b&group=blue&version=1.0.0&weight=7&tag=gray&timestamp=1";
        let key = provider(url);
        for format in [ValueFormat::Dubbo, ValueFormat::Auto] {
            let found = instance(format, &key, "");
            assert_eq!(found.id().as_str(), "dubbo://10.0.0.5:20880/com.foo.Bar:blue:1.0.0");
            assert_eq!((found.address().as_str(), found.weight().get()), ("10.0.0.5:20880", 7));
            assert!(found.has_tag("gray"));
            for (name, text) in [("group", "blue"), ("version", "1.0.0"), ("scheme", "dubbo")] {
                assert_eq!(metadata(&found, name), Some(text));
            }
            assert_eq!(metadata(&found, "timestamp"), None);
        }
    }

    #[test]
    fn a_restart_of_a_provider_keeps_its_id() {
        let id = |timestamp| {
            let url = format!("tri://10.0.0.5:50051/com.foo.Bar?pid={timestamp}&timestamp={timestamp}");
            instance(ValueFormat::Dubbo, &provider(&url), "").id().to_string()
        };
        assert_eq!(id(1), id(2));
    }

    #[test]
    fn consumers_rules_and_folders_register_nothing() {
        let nothing = |key: &str| {
            let prefix = Prefix::new("/dubbo").unwrap().with_format(ValueFormat::Dubbo);
            let read = prefix.read(key.as_bytes(), b"");
            read.map_or_else(|error| !error.is_counted(), |read| read.instances.is_empty())
        };
        assert!(nothing(&provider("consumer://10.0.0.9/com.foo.Bar?side=consumer")));
        assert!(nothing(&provider("override://0.0.0.0/com.foo.Bar?weight=1")));
        assert!(nothing("/dubbo/com.foo.Bar") && nothing("/dubbo/com.foo.Bar/providers"));
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused() {
        for value in [
            r#"{"ServiceName":"a","Host":"","Port":1}"#,
            r#"{"ServiceName":"a","Host":"10.0.0.5","Port":0}"#,
            r#"{"ServiceName":"a","Host":"10.0.0.5","Port":"x"}"#,
        ] {
            assert!(
                read("/services", ValueFormat::Dubbo, KEY, value).starts_with("error"),
                "{value}"
            );
        }
        for url in ["dubbo://10.0.0.5/com.foo.Bar", "dubbo://:20880/x"] {
            assert!(
                read("/dubbo", ValueFormat::Dubbo, &provider(url), "").starts_with("error"),
                "{url}"
            );
        }
    }
}
