//! Target groups, as Prometheus reads them from files (`file_sd_configs`).
//!
//! ```yaml
//! - targets: ["10.0.0.1:9100", "10.0.0.2:9100"]
//!   labels: { job: node, zone: us-west }
//! ```
//!
//! The label `job` names the service. The other labels become metadata, but those that begin with
//! `__`, which Prometheus drops, too. The id of an instance is its target.
//!
//! Source: <https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config>

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::format::{FromText, Metadata, SOURCE, Text};
use crate::balancer::{Address, ServiceInstance, ServiceName};

/// The label that names the service.
const JOB: &str = "job";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    targets: Vec<Text<Target>>,
    labels: Option<Metadata>,
}

struct Target(Address);

impl FromText for Target {
    const EXPECTED: &str = "a target `host:port`, in quotes";

    fn from_text(text: &str) -> Result<Self, impl fmt::Display> {
        text.parse()
            .map(Self)
            .map_err(|error| format!("target {text:?}: expected host:port ({error})"))
    }
}

/// The services of a list of target groups, in the order in which they are named first. An address
/// that a service lists again counts once, with the labels of its first group.
pub(super) fn read<'de, A: SeqAccess<'de>>(
    mut groups: A,
    default_service: Option<&ServiceName>,
) -> Result<Vec<(ServiceName, Vec<ServiceInstance>)>, A::Error> {
    let mut services: Vec<(ServiceName, BTreeMap<Address, ServiceInstance>)> = Vec::new();
    let mut places = HashMap::new();
    while let Some((name, instances)) = groups.next_element_seed(Group { default_service })? {
        let place = *places.entry(name.clone()).or_insert(services.len());
        if place == services.len() {
            services.push((name, BTreeMap::new()));
        }
        let listed = &mut services[place].1;
        for instance in instances {
            listed.entry(instance.address().clone()).or_insert(instance);
        }
    }
    let services = services.into_iter();
    Ok(services
        .map(|(name, instances)| (name, instances.into_values().collect()))
        .collect())
}

/// One group. A seed, so that an error has its place.
struct Group<'a> {
    default_service: Option<&'a ServiceName>,
}

impl<'de> DeserializeSeed<'de> for Group<'_> {
    type Value = (ServiceName, Vec<ServiceInstance>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Group<'_> {
    type Value = (ServiceName, Vec<ServiceInstance>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a target group: a table with `targets` and `labels`")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let RawGroup { targets, labels } = RawGroup::deserialize(MapAccessDeserializer::new(map))?;
        let mut labels = labels.unwrap_or_default().0;
        let name = match (labels.remove(JOB), self.default_service) {
            (Some(job), _) => job.parse().map_err(A::Error::custom)?,
            (None, Some(service)) => service.clone(),
            (None, None) => {
                return Err(A::Error::custom(
                    "no label `job` names the service of these targets, and `file.service` is not set",
                ));
            }
        };
        labels.retain(|label, _| !label.starts_with("__"));
        let instances = targets.into_iter().map(|Text(Target(address))| {
            let id = address.as_str().parse().map_err(A::Error::custom)?;
            Ok(ServiceInstance::at(id, address)
                .with_metadata(labels.clone())
                .with_source(SOURCE))
        });
        Ok((name, instances.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::balancer::ServiceName;
    use crate::discovery::file::parse;

    /// The example of Prometheus' guide to file-based discovery has this form.
    const JSON: &str = r#"[
  {"targets": ["10.0.0.1:9100", "10.0.0.2:9100"],
   "labels": {"job": "node", "zone": "us-west", "__meta_generator": "terraform", "__scheme__": "https"}},
  {"targets": ["db-1.example.net:9187"], "labels": {"job": "postgres"}},
  {"targets": ["10.0.0.2:9100", "[::1]:9100"], "labels": {"job": "node", "zone": "us-east"}},
  {"labels": {"job": "redis"}, "targets": []}
]"#;

    const YAML: &str = r#"
- targets: ["10.0.0.1:9100", 10.0.0.2:9100]
  labels:
    job: node
    zone: us-west
    __meta_generator: terraform
    __scheme__: https
- targets:
    - 'db-1.example.net:9187'
  labels: {job: postgres}
- targets: ["10.0.0.2:9100", "[::1]:9100"]
  labels: {job: node, zone: us-east}
- labels:
    job: redis
  targets: []
"#;

    fn services(name: &str, text: &str, default_service: Option<&str>) -> Result<String, String> {
        let default_service: Option<ServiceName> = default_service.map(|name| name.parse().unwrap());
        let services = parse(Path::new(name), text.as_bytes(), default_service.as_ref());
        let services = services.map_err(|error| error.to_string())?;
        let described = services.iter().map(|(service, instances)| {
            let instances = instances.iter().map(|instance| {
                assert_eq!(instance.id().to_string(), instance.address().to_string());
                format!(
                    " {} {:?}",
                    instance.id(),
                    instance.metadata().iter().collect::<Vec<_>>()
                )
            });
            format!("{service}:{}\n", instances.collect::<String>())
        });
        Ok(described.collect())
    }

    #[test]
    fn groups_are_services_by_their_job() {
        let expected = "node: 10.0.0.1:9100 [(\"zone\", \"us-west\")] 10.0.0.2:9100 [(\"zone\", \"us-west\")] \
                        [::1]:9100 [(\"zone\", \"us-east\")]\n\
                        postgres: db-1.example.net:9187 []\n\
                        redis:\n";
        for (name, text) in [("targets.json", JSON), ("targets.yml", YAML)] {
            assert_eq!(services(name, text, None).as_deref(), Ok(expected), "{name}");
        }
    }

    #[test]
    fn targets_without_a_job_belong_to_the_default_service() {
        let text = "- targets: [\"a:1\"]\n- targets: [\"b:1\"]\n  labels: {job: web}\n";
        assert_eq!(
            services("t.yaml", text, Some("node")).as_deref(),
            Ok("node: a:1 []\nweb: b:1 []\n")
        );
        let error = services("t.yaml", text, None).unwrap_err();
        let reason = "no label `job` names the service of these targets, and `file.service` is not set";
        assert_eq!(error, format!("t.yaml:1:3: .[0]: {reason}"));
    }

    #[test]
    fn a_mistake_in_a_group_has_its_place() {
        for (text, expected) in [
            (
                r#"[{"targets": ["a:1", "http://b/metrics"], "labels": {"job": "web"}}]"#,
                "t.json:1:22: target (16 characters): expected host:port (",
            ),
            (
                r#"[{"targets": ["a"], "labels": {"job": "web"}}]"#,
                "t.json:1:15: target (1 characters): expected host:port (",
            ),
            (
                "[\n{\"target\": [\"a:1\"]}]",
                "t.json:2:2: unknown field `target`, expected `targets` or `labels`",
            ),
            (
                "[\n{\"labels\": {\"job\": \"web\"}}]",
                "t.json:2:1: missing field `targets`",
            ),
            (
                "[{\"targets\": [], \"labels\": {\"job\": \"\"}}]",
                "t.json:1:2: service name (0 characters): expected",
            ),
            (
                "[\"a:1\"]",
                "t.json:1:2: invalid type: string (3 characters), expected a target group",
            ),
        ] {
            let error = services("t.json", text, None).unwrap_err();
            assert!(error.starts_with(expected), "{error}\n{expected}");
        }
    }
}
