//! go-micro: `/micro/registry/<service>/<node id>`, in older versions `/micro-registry/...`. A key
//! mostly has the one node that it is named after; the older layout has the port beside the
//! address.

use serde::Deserialize;
use serde_json::Value;

use super::registration::{Decoded, InvalidRegistration, Place, flat, number, weight_in};
use crate::balancer::{Address, ServiceInstance};
use crate::discovery::shared::or_default;

#[derive(Deserialize)]
struct Written {
    #[serde(default, deserialize_with = "or_default")]
    version: String,
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default, deserialize_with = "or_default")]
    id: String,
    address: String,
    #[serde(default)]
    port: Value,
    #[serde(default)]
    metadata: Value,
}

pub(super) fn read(place: &Place<'_>, value: Value) -> Decoded {
    let written: Written = serde_json::from_value(value)?;
    match &*written.nodes {
        [] => Err(InvalidRegistration::Value("no nodes")),
        [node] => Ok(vec![instance(place, node, &written.version)?]),
        nodes => nodes
            .iter()
            .map(|node| {
                let id = format!("{}/{}", place.id, node.id).parse()?;
                Ok(instance(place, node, &written.version)?.with_id(id))
            })
            .collect(),
    }
}

fn instance(place: &Place<'_>, node: &Node, version: &str) -> Result<ServiceInstance, InvalidRegistration> {
    let address = match number(&node.port) {
        // New nodes have no port, and older ones have the address without it; 0 is how Go leaves
        // it out.
        None | Some(0) => node.address.parse()?,
        Some(port) => Address::new(&node.address, port)?,
    };
    let mut instance = place.instance(address)?;
    if let Some(weight) = weight_in(&node.metadata) {
        instance = instance.with_weight(weight);
    }
    let version = (!version.is_empty()).then(|| ("version", version.to_owned()));
    Ok(instance.with_metadata(version.into_iter().chain(flat(&node.metadata))))
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{instance, metadata, read};

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
    fn no_nodes_or_bad_ones_are_refused() {
        for nodes in [
            "[]",
            "null",
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
}
