//! go-micro: `/micro/registry/<service>/<node id>`, in older versions `/micro-registry/...`. A key
//! mostly has the one node that it is named after; the older layout has the port beside the
//! address.

use serde_json::Value;

use super::fields::{self, Fields, flat, weight_in};
use super::json;
use super::registration::{Decoded, Ignored, InvalidValue, Place, readable};
use crate::balancer::ServiceInstance;

pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    let nodes = match fields.get("nodes") {
        Some(Value::Array(nodes)) => &**nodes,
        // As Go writes an empty list.
        None if fields.has("nodes") => &[],
        _ => return Err(InvalidValue::Invalid("nodes is not a list")),
    };
    let version = fields.text("version");
    match nodes {
        [node] => Ok(vec![instance(place, node, (None, version), ignored)?]),
        nodes => {
            let mut noted = Ignored::new();
            let instances = nodes.iter().map(|node| {
                let id = node.get("id").and_then(Value::as_str).unwrap_or_default();
                instance(place, node, (Some(id), version), &mut noted)
            });
            let read = readable(instances, ignored);
            ignored.append(&mut noted);
            read
        }
    }
}

fn instance(
    place: &Place<'_>,
    node: &Value,
    (id, version): (Option<&str>, Option<&str>),
    ignored: &mut Ignored,
) -> Result<ServiceInstance, InvalidValue> {
    let fields = Fields::of(node)?.in_any_case();
    let address = json::address(fields, ignored)?;
    let mut instance = match id {
        Some(id) => place.one_of(id, address)?,
        None => place.instance(address)?,
    };
    let metadata = fields.get("metadata");
    let weight = match fields.get("weight") {
        Some(weight) => fields::weight(weight, ignored),
        None => weight_in(metadata, ignored),
    };
    if let Some(weight) = weight {
        instance = instance.with_weight(weight);
    }
    let version = version.map(|version| ("version", version.to_owned()));
    Ok(instance.with_metadata(version.into_iter().chain(flat(metadata))))
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{ignored, instance, metadata, read};
    use crate::balancer::Weight;

    #[test]
    fn several_nodes_under_one_key_are_several_instances() {
        let value = r#"{"name":"g","nodes":[{"id":"n1","address":"10.0.0.5:1","metadata":{"weight":"2"}},{"id":"n2","address":"10.0.0.6","port":2}]}"#;
        assert_eq!(
            read("/micro", ValueFormat::GoMicro, "/micro/g/k", value),
            "g: k/n1=10.0.0.5:1*2 k/n2=10.0.0.6:2*1"
        );
    }

    #[test]
    fn the_version_and_the_nodes_metadata_are_kept() {
        let value = r#"{"name":"g","version":"latest","metadata":null,"endpoints":null,"nodes":[{"id":"n1","address":"10.0.0.5:1","metadata":{"protocol":"grpc"}}]}"#;
        let instance = instance(ValueFormat::GoMicro, "/micro/g/n1", value);
        assert_eq!(instance.id().as_str(), "n1");
        assert_eq!(
            (metadata(&instance, "protocol"), metadata(&instance, "version")),
            (Some("grpc"), Some("latest"))
        );
    }

    #[test]
    fn bad_nodes_are_refused() {
        for nodes in [
            "7",
            "[7]",
            r#"[{"id":"a"}]"#,
            r#"[{"id":"a","address":"10.0.0.5"}]"#,
            r#"[{"address":"a","port":70000}]"#,
        ] {
            let read = read(
                "/micro",
                ValueFormat::GoMicro,
                "/micro/g/k",
                &format!(r#"{{"nodes":{nodes}}}"#),
            );
            assert!(read.starts_with("error"), "{nodes}: {read}");
        }
    }

    #[test]
    fn a_service_without_nodes_has_no_instance() {
        for nodes in ["[]", "null"] {
            let value = format!(r#"{{"name":"g","nodes":{nodes}}}"#);
            assert_eq!(read("/micro", ValueFormat::GoMicro, "/micro/g/k", &value), "g:");
        }
    }

    #[test]
    fn one_bad_node_of_several_costs_itself_alone() {
        let value = r#"{"nodes":[{"id":"a","address":"10.0.0.5"},{"id":"b","address":"10.0.0.6:1"}]}"#;
        assert_eq!(
            read("/micro", ValueFormat::GoMicro, "/micro/g/k", value),
            "g: k/b=10.0.0.6:1*1"
        );
        assert_eq!(ignored(ValueFormat::GoMicro, "/micro/g/k", value).len(), 1);
    }

    #[test]
    fn a_weight_above_the_range_is_the_largest_and_is_noted() {
        let node = r#"{"id":"a","address":"10.0.0.5:1","metadata":{"weight":"70000"}}"#;
        let value = format!(r#"{{"nodes":[{node}]}}"#);
        let found = instance(ValueFormat::GoMicro, "/micro/g/k", &value);
        assert_eq!(found.weight(), Weight::MAX);
        assert_eq!(ignored(ValueFormat::GoMicro, "/micro/g/k", &value).len(), 1);
    }
}
