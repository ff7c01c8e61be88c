//! GoFrame (`contrib/registry/etcd`), with the metadata as the value:
//! `/service/<deployment>/<namespace>/<name>/<version>/<host:port>[,<host:port>]`.

use serde_json::Value;

use super::fields::{flat, weight_in};
use super::registration::{Decoded, Ignored, InvalidValue, Place, object, readable};
use crate::balancer::{Address, ServiceInstance};

/// GoFrame's own clients refuse a key with fewer segments.
const SEGMENTS: usize = 6;

/// Whether the key is GoFrame's: deep enough, and with addresses at its end.
pub(super) fn recognizes(key: &str) -> bool {
    let mut segments = key.trim_matches('/').rsplit('/');
    let last = segments.next().unwrap_or_default();
    segments.count() + 1 >= SEGMENTS && last.split(',').all(|text| text.parse::<Address>().is_ok())
}

pub(super) fn read(place: &Place<'_>, value: &[u8], ignored: &mut Ignored) -> Decoded {
    let metadata = match value.trim_ascii() {
        b"" => Value::Null,
        written => object(written)?,
    };
    if !metadata.is_null() && !metadata.is_object() {
        return Err(InvalidValue::Invalid("expected metadata: an object, null or nothing"));
    }
    let weight = weight_in(Some(&metadata), ignored);
    let with_both = |instance: ServiceInstance| {
        let instance = instance.with_metadata(flat(Some(&metadata)));
        match weight {
            Some(weight) => instance.with_weight(weight),
            None => instance,
        }
    };
    let written = place.last();
    if !written.contains(',') {
        return Ok(vec![with_both(place.instance(written.parse()?)?)]);
    }
    let instances = written.split(',').map(|written| {
        let address: Address = written.parse()?;
        Ok(with_both(place.one_of(written, address)?))
    });
    readable(instances, ignored)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ignored, instance, metadata, read};
    use super::super::{Prefix, ValueFormat};
    use crate::balancer::Weight;

    const KEY: &str = "/service/default/default/hello/latest/10.0.0.5:8888";

    #[test]
    fn the_value_is_metadata_with_a_weight() {
        let found = instance(ValueFormat::GoFrame, KEY, r#"{"protocol":"https","weight":7}"#);
        assert_eq!((found.address().as_str(), found.weight().get()), ("10.0.0.5:8888", 7));
        assert_eq!(metadata(&found, "protocol"), Some("https"));
        let value = r#"{"weight":70000}"#;
        assert_eq!(instance(ValueFormat::GoFrame, KEY, value).weight(), Weight::MAX);
        assert_eq!(ignored(ValueFormat::GoFrame, KEY, value).len(), 1);
        for nothing in ["", "null", "{}"] {
            assert_eq!(
                instance(ValueFormat::GoFrame, KEY, nothing).weight(),
                Weight::ONE,
                "{nothing}"
            );
        }
    }

    #[test]
    fn auto_takes_keys_of_six_segments_that_end_with_addresses() {
        let auto = |key: &str, value: &str| {
            let prefix = Prefix::new("/").unwrap().with_service("hello".parse().unwrap());
            prefix.read(key.as_bytes(), value.as_bytes()).is_ok()
        };
        for value in ["null", "{}", r#"{"protocol":"https"}"#, ""] {
            assert!(auto(KEY, value), "{value}");
            assert!(!auto("/services/hello/10.0.0.5:8888", value), "{value}");
            assert!(!auto("/service/default/default/hello/latest/a", value), "{value}");
        }
    }

    #[test]
    fn a_key_without_addresses_is_refused() {
        for (key, value) in [
            ("/service/default/default/hello/latest/a", "{}"),
            ("/service/default/default/hello/latest/", "{}"),
            (KEY, "7"),
            (KEY, "[]"),
        ] {
            assert!(
                read("/service", ValueFormat::GoFrame, key, value).starts_with("error"),
                "{key} {value}"
            );
        }
    }
}
