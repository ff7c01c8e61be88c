//! rpcx: `<base>/<service>/<network>@<host:port>`, with a URL's query as the value, which rpcx
//! writes again at every interval.
//!
//! Folders have keys too (`<base>` and `<base>/<service>`): a key without a network registers no
//! instance.

use percent_encoding::percent_decode_str;

use super::registration::{Decoded, InvalidRegistration, Place};
use crate::balancer::{RegistryStatus, Weight};

/// Measurements, which change with every interval. pickd ignores them.
const MEASURED: [&str; 3] = ["calls", "connections", "tps"];

/// The network and the address in the last segment of a key.
pub(super) fn address(id: &str) -> Option<(&str, &str)> {
    let (network, address) = id.split_once('@')?;
    let named = !network.is_empty() && network.bytes().all(|byte| byte.is_ascii_alphanumeric());
    named.then_some((network, address))
}

pub(super) fn read(place: &Place<'_>, value: &[u8]) -> Decoded {
    let Some((network, address)) = address(place.id) else {
        return Ok(Vec::new());
    };
    let text = std::str::from_utf8(value).map_err(|_| InvalidRegistration::ValueNotText)?;
    let mut instance = place.instance(address.parse()?)?;
    let mut metadata = vec![("network".to_owned(), network.to_owned())];
    let mut tags = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decoded(key)?, decoded(value)?);
        match key.as_str() {
            "weight" => {
                let weight: i64 = value
                    .parse()
                    .map_err(|_| InvalidRegistration::Value("weight is not a number"))?;
                instance = instance.with_weight(Weight::new(weight)?);
            }
            // rpcx's own clients leave out such a server.
            "state" if value == "inactive" => instance = instance.with_status(RegistryStatus::Maintenance),
            "group" if !value.is_empty() => tags.push(value.clone()),
            _ => {}
        }
        if !MEASURED.contains(&key.as_str()) && key != "weight" {
            metadata.push((key, value));
        }
    }
    Ok(vec![instance.with_tags(&tags)?.with_metadata(metadata)])
}

fn decoded(text: &str) -> Result<String, InvalidRegistration> {
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text)
        .decode_utf8()
        .map_err(|_| InvalidRegistration::ValueNotText)?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{instance, metadata, read};
    use crate::balancer::RegistryStatus;

    const KEY: &str = "/rpcx/Arith/tcp@10.0.0.5:8972";

    #[test]
    fn folders_are_no_instances() {
        assert_eq!(read("/", ValueFormat::Rpcx, "/x/rpcx", "rpcx_path"), "x:");
        assert_eq!(read("/rpcx", ValueFormat::Rpcx, "/rpcx/Arith", "Arith"), "rpcx:");
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
    fn a_bad_address_or_weight_is_refused() {
        for (id, value) in [
            ("tcp@10.0.0.5", ""),
            ("tcp@:80", ""),
            ("tcp@10.0.0.5:80", "weight=heavy"),
            ("tcp@10.0.0.5:80", "weight=-1"),
            ("tcp@10.0.0.5:80", "a=%ff"),
        ] {
            let read = read("/rpcx", ValueFormat::Rpcx, &format!("/rpcx/Arith/{id}"), value);
            assert!(read.starts_with("error"), "{id} {value}: {read}");
        }
        assert_eq!(
            read("/rpcx", ValueFormat::Rpcx, "/rpcx/Arith/quic@[::1]:80", "weight=2"),
            "Arith: quic@[::1]:80=[::1]:80*2"
        );
    }
}
