//! Apache APISIX: `/apisix/upstreams/<id>`. An upstream is a service, and its nodes are the
//! instances.
//!
//! ```text
//! {"nodes": {"10.0.0.5:80": 1, "10.0.0.6:80": 2}, "type": "roundrobin", ...}
//! {"nodes": [{"host": "10.0.0.5", "port": 80, "weight": 1, "priority": 0}], ...}
//! ```

use serde_json::Value;

use super::fields::{self, Fields, flat, number};
use super::registration::{Decoded, Ignored, InvalidValue, Place, readable};
use super::url::Url;
use crate::balancer::{Address, ServiceInstance};

/// The balancing algorithms of an upstream. Each upstream names its algorithm.
const TYPES: [&str; 4] = ["roundrobin", "chash", "ewma", "least_conn"];

/// Whether the value has the fields of an upstream.
pub(super) fn recognizes(fields: Fields<'_>) -> bool {
    let algorithm = fields.text("type").is_some_and(|name| TYPES.contains(&name));
    let discovered = fields.has("service_name") && fields.has("discovery_type");
    algorithm && (fields.has("nodes") || discovered) || fields.get("nodes").is_some_and(Value::is_object)
}

pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    let scheme = fields.text("scheme").unwrap_or("http");
    let mut noted = Ignored::new();
    let read = match fields.get("nodes") {
        Some(Value::Object(nodes)) => {
            let instances = nodes.iter().map(|(written, weight)| {
                let instance = place.one_of(written, address(scheme, written)?)?;
                Ok(weighted(instance, Some(weight), &mut noted))
            });
            readable(instances, ignored)
        }
        Some(Value::Array(nodes)) => {
            // APISIX takes the highest priority first, and pickd the lowest.
            let of = |node: &Value| node.get("priority").and_then(number).unwrap_or(0);
            let highest = nodes.iter().map(of).max().unwrap_or(0).max(0);
            let instances = nodes
                .iter()
                .map(|node| instance(place, node, scheme, highest.saturating_sub(of(node)), &mut noted));
            readable(instances, ignored)
        }
        Some(_) => Err(InvalidValue::Invalid("nodes is neither a list nor pairs")),
        // The nodes of such an upstream are in another registry.
        None if fields.has("nodes") || fields.has("service_name") => Ok(Vec::new()),
        None => Err(InvalidValue::Invalid("no nodes")),
    };
    ignored.append(&mut noted);
    read
}

fn instance(
    place: &Place<'_>,
    node: &Value,
    scheme: &str,
    behind: i64,
    ignored: &mut Ignored,
) -> Result<ServiceInstance, InvalidValue> {
    let fields = Fields::of(node)?;
    let host = fields
        .text("host")
        .ok_or(InvalidValue::Invalid("a node without host"))?;
    let address = match fields.get("port") {
        Some(_) => fields::address(host, fields.get("port"))?,
        None => address(scheme, host)?,
    };
    let instance = place.one_of(address.as_str(), address.clone())?;
    let instance = weighted(instance, fields.get("weight"), ignored);
    let priority = match behind {
        0 => None,
        behind => fields::priority(&Value::from(behind), ignored),
    };
    let priority = priority.map(|priority| ("priority", priority));
    Ok(instance.with_metadata(priority.into_iter().chain(flat(fields.get("metadata")))))
}

/// A node without a port has the port of the upstream's scheme.
fn address(scheme: &str, written: &str) -> Result<Address, InvalidValue> {
    let scheme = match scheme {
        "https" | "grpcs" => "https",
        _ => "http",
    };
    let url = format!("{scheme}://{written}");
    Url::parse(&url)
        .ok_or(InvalidValue::Invalid("a node without host"))?
        .address()
}

fn weighted(instance: ServiceInstance, weight: Option<&Value>, ignored: &mut Ignored) -> ServiceInstance {
    match weight.and_then(|weight| fields::weight(weight, ignored)) {
        Some(weight) => instance.with_weight(weight),
        None => instance,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ignored, metadata, read};
    use super::super::{Prefix, ValueFormat};
    use crate::balancer::ServiceInstance;

    const KEY: &str = "/apisix/upstreams/7";

    fn instances(value: &str) -> Vec<ServiceInstance> {
        let prefix = Prefix::new("/apisix/upstreams").unwrap();
        prefix.read(KEY.as_bytes(), value.as_bytes()).unwrap().instances
    }

    #[test]
    fn each_upstream_is_a_service_of_its_own() {
        let value = r#"{"type":"roundrobin","nodes":{"10.0.0.5:80":1,"10.0.0.6:80":2}}"#;
        for format in [ValueFormat::Auto, ValueFormat::Apisix] {
            assert_eq!(
                read("/apisix/upstreams", format, KEY, value),
                "7: 7/10.0.0.5:80=10.0.0.5:80*1 7/10.0.0.6:80=10.0.0.6:80*2"
            );
        }
        // Rights below `/services/team-a/` alone must not register an instance of `payments`.
        let deeper = read("/services", ValueFormat::Auto, "/services/team-a/payments", value);
        assert!(deeper.starts_with("team-a: payments/10.0.0.5:80="), "{deeper}");
        let fixed = Prefix::new("/apisix").unwrap().with_service("web".parse().unwrap());
        let read = fixed.read(KEY.as_bytes(), value.as_bytes()).unwrap();
        assert_eq!(read.service.as_str(), "web");
    }

    #[test]
    fn a_node_without_a_port_has_the_port_of_the_scheme() {
        let address = |scheme: &str| {
            let value = format!(r#"{{"type":"chash",{scheme}"nodes":{{"web.local":1}}}}"#);
            instances(&value)[0].address().to_string()
        };
        assert_eq!(address(""), "web.local:80");
        assert_eq!(address(r#""scheme":"https","#), "web.local:443");
        assert_eq!(address(r#""scheme":"grpcs","#), "web.local:443");
        let list = r#"{"type":"ewma","scheme":"https","nodes":[{"host":"web.local","weight":1}]}"#;
        assert_eq!(instances(list)[0].address().as_str(), "web.local:443");
    }

    #[test]
    fn the_highest_priority_of_apisix_is_the_lowest_of_pickd() {
        let node = |host: u8, priority: &str| format!(r#"{{"host":"10.0.0.{host}","port":80,"weight":1{priority}}}"#);
        let priorities = |nodes: [String; 3]| {
            let found = instances(&format!(r#"{{"type":"roundrobin","nodes":[{}]}}"#, nodes.join(",")));
            let one = |it: &ServiceInstance| metadata(it, "priority").unwrap_or("none").to_owned();
            found.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let backup = [node(1, ""), node(2, r#","priority":0"#), node(3, r#","priority":-1"#)];
        assert_eq!(priorities(backup), "none none 1");
        let first = [node(1, ""), node(2, r#","priority":5"#), node(3, r#","priority":-1"#)];
        assert_eq!(priorities(first), "5 none 6");
    }

    #[test]
    fn an_upstream_without_nodes_has_no_instance() {
        for nodes in ["{}", "[]", "null"] {
            let value = format!(r#"{{"type":"roundrobin","nodes":{nodes}}}"#);
            assert_eq!(
                read("/apisix/upstreams", ValueFormat::Auto, KEY, &value),
                "7:",
                "{nodes}"
            );
        }
        assert_eq!(
            read("/apisix", ValueFormat::Apisix, "/apisix/upstreams/", "init_dir"),
            ""
        );
        assert_eq!(read("/apisix", ValueFormat::Auto, "/apisix/upstreams/", "init_dir"), "");
    }

    #[test]
    fn one_bad_node_costs_itself_alone() {
        let value = r#"{"type":"roundrobin","nodes":{"a b:80":1,"10.0.0.6:80":"heavy"}}"#;
        assert_eq!(
            read("/apisix/upstreams", ValueFormat::Apisix, KEY, value),
            "7: 7/10.0.0.6:80=10.0.0.6:80*1"
        );
        assert_eq!(ignored(ValueFormat::Apisix, KEY, value).len(), 2);
        for nodes in [r#"{"a b:80":1}"#, r#"[{"port":80}]"#, "7"] {
            let value = format!(r#"{{"type":"roundrobin","nodes":{nodes}}}"#);
            assert!(
                read("/apisix", ValueFormat::Apisix, KEY, &value).starts_with("error"),
                "{nodes}"
            );
        }
    }
}
