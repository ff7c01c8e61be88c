//! jupiter and ego, which share a layout: `/<prefix>/<name>/providers/<scheme>://<host:port>`, in
//! newer versions of jupiter `<scheme>:<name>:<version>:<mode>/<host:port>`.
//!
//! Rules for callers have keys beside the providers (`configurators`, `consumers`), which register
//! no instance.

use serde_json::Value;

use super::fields::{Fields, flat, status_by_flags, weight_or};
use super::registration::{Decoded, Ignored, InvalidValue, Place};

/// The weight that both frameworks give an instance. Go writes 0 for a weight that was never set.
const DEFAULT_WEIGHT: u16 = 100;
/// Fields that are kept as metadata.
const KEPT: [&str; 7] = ["scheme", "version", "region", "zone", "deployment", "group", "mode"];

/// Whether the key repeats scheme and address of the value, as both frameworks write it.
pub(super) fn recognizes(key: &str, fields: Fields<'_>) -> bool {
    let (Some(scheme), Some(address)) = (fields.text("scheme"), fields.text("address")) else {
        return false;
    };
    let Some(before) = key.strip_suffix(address) else {
        return false;
    };
    let is_newer = |parents: &str| {
        let parent = parents.rsplit('/').next().unwrap_or_default();
        parent.split_once(':').is_some_and(|(own, _)| own == scheme)
    };
    before
        .strip_suffix("://")
        .is_some_and(|before| before.ends_with(scheme))
        || before.strip_suffix('/').is_some_and(is_newer)
}

/// Whether the key is of a rule for callers.
pub(super) fn is_rule(key: &str) -> bool {
    key.split('/')
        .any(|segment| matches!(segment, "configurators" | "configurator" | "consumers"))
}

pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    if !fields.has("address") && is_rule(place.key) {
        return Ok(Vec::new());
    }
    let address = fields.text("address").ok_or(InvalidValue::Invalid("no address"))?;
    let mut instance = place.instance(address.parse()?)?;
    if let Some(weight) = weight_or(DEFAULT_WEIGHT, fields.get("weight"), ignored) {
        instance = instance.with_weight(weight);
    }
    if let Some(status) = status_by_flags(fields.get("enable"), fields.get("healthy")) {
        instance = instance.with_status(status);
    }
    let kept = KEPT
        .into_iter()
        .filter_map(|name| Some((name, fields.text(name)?.to_owned())));
    Ok(vec![instance.with_metadata(kept.chain(flat(fields.get("metadata"))))])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ignored, instance, metadata, read};
    use super::super::{Prefix, ValueFormat};
    use crate::balancer::{RegistryStatus, Weight};

    const KEY: &str = "/jupiter/grpc:users:v1:dev/10.0.0.5:9091";

    fn value(rest: &str) -> String {
        format!(r#"{{"name":"users","scheme":"grpc","address":"10.0.0.5:9091","zone":"z1"{rest}}}"#)
    }

    #[test]
    fn an_instance_that_is_disabled_or_unhealthy_is_not_picked() {
        for (rest, status) in [
            (r#","enable":true,"healthy":true"#, RegistryStatus::Unknown),
            (r#","enable":true,"healthy":false"#, RegistryStatus::Critical),
            (r#","enable":false,"healthy":true"#, RegistryStatus::Maintenance),
        ] {
            for format in [ValueFormat::Jupiter, ValueFormat::Auto] {
                assert_eq!(instance(format, KEY, &value(rest)).registry_status(), status, "{rest}");
            }
        }
    }

    #[test]
    fn no_weight_is_a_hundred_and_fields_are_metadata() {
        for (rest, weight, noted) in [
            ("", 100, 0),
            (r#","weight":0"#, 100, 0),
            (r#","weight":7"#, 7, 0),
            (r#","weight":7.5"#, 100, 1),
            (r#","weight":70000"#, Weight::MAX.get(), 1),
        ] {
            let found = instance(ValueFormat::Jupiter, KEY, &value(rest));
            assert_eq!(found.weight().get(), weight, "{rest}");
            assert_eq!(
                (metadata(&found, "scheme"), metadata(&found, "zone")),
                (Some("grpc"), Some("z1"))
            );
            assert_eq!(ignored(ValueFormat::Jupiter, KEY, &value(rest)).len(), noted, "{rest}");
        }
    }

    #[test]
    fn rules_for_callers_register_nothing() {
        let prefix = Prefix::new("/jupiter").unwrap().with_format(ValueFormat::Jupiter);
        let prefix = prefix.with_service("users".parse().unwrap());
        let rule = br#"{"upstream":{"nodes":{"127.0.0.1:1980":1}},"uri":"/hello"}"#;
        let read = prefix.read(b"/jupiter/users/configurators/grpc:///routes/1", rule);
        assert_eq!(read.unwrap().instances, []);
        assert!(
            prefix
                .read(b"/jupiter/users/providers/grpc://10.0.0.5:1", rule)
                .is_err()
        );
    }

    #[test]
    fn auto_reads_the_same_value_below_another_key_as_pickds_own() {
        let drained = value(r#","weight":0,"enable":false"#);
        assert_eq!(
            read("/s", ValueFormat::Auto, "/s/users/a", &drained),
            "users: a=10.0.0.5:9091*0"
        );
    }
}
