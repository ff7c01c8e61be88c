//! The namespace and the partition that are asked for (Consul Enterprise), and whether an answer
//! is about them.
//!
//! Consul refuses a namespace if it has none, but versions before 1.11 ignore a partition, and
//! answer with the instances of the whole datacenter. Instances of another partition must not be
//! served in silence, so each answer is checked.

use serde::Deserialize;
use serde_json::{Value, json};

use super::settings::ConsulSettings;

/// What an instance without namespace or partition is in.
const DEFAULT: &str = "default";

/// The namespace and the partition of all requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    namespace: Option<String>,
    partition: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "Node")]
    node: Part,
    #[serde(rename = "Service")]
    service: Part,
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "Namespace")]
    namespace: Option<String>,
    #[serde(rename = "Partition")]
    partition: Option<String>,
}

impl Scope {
    pub(super) fn of(settings: &ConsulSettings) -> Self {
        Self {
            namespace: settings.namespace.clone(),
            partition: settings.partition.clone(),
        }
    }

    /// Checks that every instance of an answer is in the namespace and the partition that were
    /// asked for. What cannot be decoded is left to the decoder.
    ///
    /// # Errors
    ///
    /// What differs, for the operator.
    pub(super) fn check(&self, body: &[u8]) -> Result<(), String> {
        if self.namespace.is_none() && self.partition.is_none() {
            return Ok(());
        }
        let Ok(entries) = serde_json::from_slice::<Vec<Value>>(body) else {
            return Ok(());
        };
        for Entry { node, service } in entries
            .into_iter()
            .filter_map(|entry| serde_json::from_value(entry).ok())
        {
            let found = service.partition.or(node.partition);
            differs("partition", self.partition.as_deref(), found.as_deref())?;
            differs("namespace", self.namespace.as_deref(), service.namespace.as_deref())?;
        }
        Ok(())
    }

    /// The question whether the token may read services with names that begin so, for
    /// `/v1/internal/acl/authorize`.
    pub(super) fn may_read_service(&self, name: &str) -> Value {
        let mut question = json!({ "Resource": "service", "Access": "read" });
        let parts = [
            ("Segment", Some(name).filter(|name| !name.is_empty())),
            ("Namespace", self.namespace.as_deref()),
            ("Partition", self.partition.as_deref()),
        ];
        for (key, value) in parts {
            if let Some(value) = value {
                question[key] = json!(value);
            }
        }
        question
    }
}

fn differs(what: &str, asked: Option<&str>, found: Option<&str>) -> Result<(), String> {
    let Some(asked) = asked else { return Ok(()) };
    match found.filter(|found| !found.is_empty()) {
        None if asked.eq_ignore_ascii_case(DEFAULT) => Ok(()),
        None => Err(format!(
            "consul.{what} is {asked:?}, but this Consul has no {what}s (a feature of Consul Enterprise) and answers \
             with all instances: leave consul.{what} out"
        )),
        Some(found) if found.eq_ignore_ascii_case(asked) => Ok(()),
        Some(_) => Err(format!(
            "consul.{what} is {asked:?}, but the answer has instances of another {what}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(namespace: Option<&str>, partition: Option<&str>) -> Scope {
        Scope {
            namespace: namespace.map(str::to_owned),
            partition: partition.map(str::to_owned),
        }
    }

    #[test]
    fn an_answer_of_another_namespace_or_partition_is_an_error() {
        let entry = |node: Value, service: Value| json!([{ "Node": node, "Service": service }]).to_string();
        let plain = entry(json!({}), json!({}));
        let of_node = entry(json!({ "Partition": "Blue" }), json!({ "Namespace": "team" }));
        let of_service = entry(json!({}), json!({ "Namespace": "team", "Partition": "blue" }));
        for (scope, body, accepted) in [
            (scope(None, None), &of_node, true),
            (scope(None, Some("blue")), &of_node, true),
            (scope(Some("TEAM"), Some("blue")), &of_service, true),
            (scope(Some("default"), Some("default")), &plain, true),
            (scope(None, Some("blue")), &plain, false),
            (scope(Some("team"), None), &plain, false),
            (scope(Some("default"), None), &of_node, false),
            (scope(None, Some("red")), &of_service, false),
        ] {
            assert_eq!(scope.check(body.as_bytes()).is_ok(), accepted, "{scope:?} {body}");
        }
        for body in ["", "[]", "{}", "[null]"] {
            assert!(scope(None, Some("blue")).check(body.as_bytes()).is_ok(), "{body}");
        }
    }

    #[test]
    fn a_question_about_rights_names_what_is_set() {
        assert_eq!(
            scope(None, None).may_read_service(""),
            json!({ "Resource": "service", "Access": "read" })
        );
        assert_eq!(
            scope(Some("team"), None).may_read_service("web-"),
            json!({ "Resource": "service", "Access": "read", "Segment": "web-", "Namespace": "team" })
        );
    }
}
