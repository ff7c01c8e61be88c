//! rpcx: `<base>/<service>/<network>@<host:port>`, with a URL's query as the value, which rpcx
//! writes again at every interval.
//!
//! Folders have keys too (`<base>` and `<base>/<service>`): a key without a network registers no
//! instance.

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::fields;
use super::registration::{Decoded, Ignored, Place, text};
use crate::balancer::RegistryStatus;

/// Measurements, which change with every interval. pickd ignores them.
const MEASURED: [&str; 3] = ["calls", "connections", "tps"];

/// The network and the address in the last segment of a key.
pub(super) fn address(id: &str) -> Option<(&str, &str)> {
    let (network, address) = id.split_once('@')?;
    let named = !network.is_empty() && network.bytes().all(|byte| byte.is_ascii_alphanumeric());
    named.then_some((network, address))
}

pub(super) fn read(place: &Place<'_>, value: &[u8], ignored: &mut Ignored) -> Decoded {
    let Some((network, address)) = address(place.last()) else {
        return Ok(Vec::new());
    };
    let text = text(value)?;
    let mut instance = place.instance(address.parse()?)?;
    let mut metadata = vec![("network".to_owned(), network.to_owned())];
    let mut tags = Vec::new();
    for (key, value) in pairs(text, ignored) {
        match key.as_str() {
            "weight" => {
                if let Some(weight) = fields::weight(&Value::String(value), ignored) {
                    instance = instance.with_weight(weight);
                }
                continue;
            }
            // rpcx's own clients leave out such a server.
            "state" if value == "inactive" => instance = instance.with_status(RegistryStatus::Maintenance),
            "group" if !value.is_empty() => tags.push(Value::String(value.clone())),
            _ => {}
        }
        if !MEASURED.contains(&key.as_str()) {
            metadata.push((key, value));
        }
    }
    let instance = fields::with_tags(instance, &Value::Array(tags), ignored);
    Ok(vec![instance.with_metadata(metadata)])
}

/// The pairs of a URL's query. Pairs that are not UTF-8 are left out.
pub(super) fn pairs(query: &str, ignored: &mut Ignored) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match (decoded(key), decoded(value)) {
            (Some(key), Some(value)) => pairs.push((key, value)),
            _ => ignored.push("a part of the query is not UTF-8"),
        }
    }
    pairs
}

fn decoded(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    Some(percent_decode_str(&text).decode_utf8().ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ignored, instance, metadata, read};
    use super::super::{InvalidRegistration, Prefix, ValueFormat};
    use crate::balancer::{RegistryStatus, Weight};

    const KEY: &str = "/rpcx/Arith/tcp@10.0.0.5:8972";

    #[test]
    fn folders_are_no_instances() {
        for format in [ValueFormat::Rpcx, ValueFormat::Auto] {
            assert_eq!(read("/", format, "/x/rpcx", "rpcx_path"), "");
            assert_eq!(read("/rpcx", format, "/rpcx/Arith", "Arith"), "");
        }
        // A fixed service has all keys below as instances, and still has folders.
        let fixed = Prefix::new("/rpcx").unwrap().with_service("Arith".parse().unwrap());
        let fixed = fixed.with_format(ValueFormat::Rpcx);
        assert_eq!(fixed.read(b"/rpcx/Arith", b"Arith"), Err(InvalidRegistration::Folder));
        assert_eq!(fixed.read(KEY.as_bytes(), b"").unwrap().instances.len(), 1);
        // An address that is named as its key is an address.
        let named = read("/s", ValueFormat::Auto, "/s/web/10.0.0.5:80", "10.0.0.5:80");
        assert_eq!(named, "web: 10.0.0.5:80=10.0.0.5:80*1");
    }

    #[test]
    fn an_inactive_server_is_listed_and_not_picked() {
        let status = |value| instance(ValueFormat::Rpcx, KEY, value).registry_status();
        assert_eq!(status("state=inactive&weight=2"), RegistryStatus::Maintenance);
        assert_eq!(status("state=active"), RegistryStatus::Unknown);
        assert_eq!(status(""), RegistryStatus::Unknown);
    }

    #[test]
    fn what_is_measured_changes_nothing() {
        let read = |value| instance(ValueFormat::Rpcx, KEY, value);
        assert_eq!(
            read("weight=7&calls=12.00&connections=3.00"),
            read("weight=7&calls=99.00&connections=8.00")
        );
        assert_ne!(read("weight=7"), read("weight=8"));
    }

    #[test]
    fn groups_are_tags_and_the_rest_is_metadata() {
        let instance = instance(ValueFormat::Rpcx, KEY, "group=blue+green&version=1%2E2");
        assert!(instance.has_tag("blue green"));
        assert_eq!(
            (metadata(&instance, "version"), metadata(&instance, "network")),
            (Some("1.2"), Some("tcp"))
        );
    }

    #[test]
    fn a_bad_address_is_refused() {
        for id in ["tcp@10.0.0.5", "tcp@:80"] {
            let read = read("/rpcx", ValueFormat::Rpcx, &format!("/rpcx/Arith/{id}"), "");
            assert!(read.starts_with("error"), "{id}: {read}");
        }
        assert_eq!(
            read("/rpcx", ValueFormat::Rpcx, "/rpcx/Arith/quic@[::1]:80", "weight=2"),
            "Arith: quic@[::1]:80=[::1]:80*2"
        );
    }

    #[test]
    fn what_else_cannot_be_read_is_noted() {
        for (value, weight) in [
            ("weight=heavy", 1),
            ("weight=", 1),
            ("weight=-1", 1),
            ("weight=70000", Weight::MAX.get()),
            ("weight=2&a=%ff", 2),
        ] {
            assert_eq!(
                instance(ValueFormat::Rpcx, KEY, value).weight().get(),
                weight,
                "{value}"
            );
            assert_eq!(ignored(ValueFormat::Rpcx, KEY, value).len(), 1, "{value}");
        }
    }
}
