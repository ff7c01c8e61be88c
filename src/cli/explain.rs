//! `pickd explain`: why each instance of a service is picked or not, as a table or as the JSON of
//! the agent.

use serde_json::Value;

use super::agent_client::{AgentArguments, AgentClient, AgentError, encoded, one_line};
use super::output::{self, Output};
use super::table::{Column, aligned, decimal};
use super::{Exit, QUERY_EXITS};
use crate::balancer::ServiceName;

const EXAMPLES: &str = "\
Examples:
  pickd explain user-service                    why instances are picked or not
  pickd explain user-service --key session-42   with the instance for this key
  pickd explain user-service --output json | jq .instances";

/// Show why the instances of a service are picked or not.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = QUERY_EXITS)]
pub(super) struct ExplainArguments {
    /// The service
    service: ServiceName,
    /// Show the instance for this key, under consistent_hash or with sticky sessions
    #[arg(long)]
    key: Option<String>,
    /// A table, or the JSON answer of the agent
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn execute(arguments: &ExplainArguments) -> Exit {
    output::answer(explained(arguments))
}

/// The text to print.
pub(super) fn explained(arguments: &ExplainArguments) -> Result<String, AgentError> {
    let client = AgentClient::new(&arguments.agent)?;
    let mut path = format!("/explain/{}", encoded(arguments.service.as_str()));
    if let Some(key) = &arguments.key {
        path.push_str(&format!("?key={}", encoded(key)));
    }
    let body = client.get(&path)?;
    let answer = client.parsed(&body)?;
    Ok(match arguments.output {
        Output::Json => body,
        Output::Text => text(&answer, arguments.key.is_some()),
    })
}

fn text(answer: &Value, with_key: bool) -> String {
    let mut text = format!(
        "{}: {} ({}), {} of {} instances can be picked{}{}\n\n",
        word(&answer["service"]),
        word(&answer["strategy"]),
        word(&answer["mode"]),
        answer["available_instances"],
        answer["total_instances"],
        if answer["fail_open"] == true {
            "; FAIL OPEN: every instance is critical, and they are picked"
        } else {
            ""
        },
        if answer["panic"] == true {
            "; PANIC: all eligible instances are picked"
        } else {
            ""
        },
    );
    for failure in answer["failing_sources"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "{} gives no usable answer for this service since {:.0} s ({}): {}\n\n",
            word(&failure["source"]),
            failure["since_seconds"].as_f64().unwrap_or_default(),
            word(&failure["reason"]),
            word(&failure["error"]),
        ));
    }
    let columns = [
        Column::Left("ID"),
        Column::Left("STATUS"),
        Column::Right("WEIGHT"),
        Column::Right("OVERRIDE"),
        Column::Right("DEGRADED"),
        Column::Right("SLOW START"),
        Column::Right("EFFECTIVE"),
        Column::Right("SCORE"),
        Column::Left("COMPARED"),
        Column::Left("WHY"),
    ];
    let instances = answer["instances"].as_array().into_iter().flatten();
    let rows: Vec<_> = instances.map(row).collect();
    text.push_str(&aligned(columns, &rows));
    text.push_str(&shared_addresses(answer));
    if with_key {
        text.push('\n');
        text.push_str(&match &answer["key"] {
            Value::Object(key) if key.get("session") == Some(&Value::Bool(true)) => {
                let instance = key.get("instance").map(word).unwrap_or_default();
                format!("the key has a session at {instance}\n")
            }
            Value::Object(_) if answer["strategy"] != "consistent_hash" => {
                "the key has no session; this strategy ignores keys\n".to_owned()
            }
            Value::Object(key) => {
                let instance = key.get("instance").map(word).filter(|id| !id.is_empty());
                let order: Vec<_> = key
                    .get("ring_order")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .map(word)
                    .collect();
                format!(
                    "the key leads to {}; ring order: {}\n",
                    instance.as_deref().unwrap_or("no instance"),
                    order.join(", ")
                )
            }
            _ => "this strategy ignores keys\n".to_owned(),
        });
    }
    text
}

/// A table of the registrations of each address that has several, or whose id in the pool is not
/// the registered one. Empty if there are none.
fn shared_addresses(answer: &Value) -> String {
    let mut rows = Vec::new();
    for instance in answer["instances"].as_array().into_iter().flatten() {
        let registrations = instance["registrations"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let renamed = |registration: &Value| registration["id"] != instance["id"];
        if registrations.len() > 1 || registrations.iter().any(renamed) {
            rows.extend(registrations.iter().map(|registration| {
                [
                    word(&instance["address"]),
                    word(&registration["id"]),
                    word(&registration["source"]),
                    word(&registration["status"]),
                ]
            }));
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let columns = [
        Column::Left("ADDRESS"),
        Column::Left("REGISTERED AS"),
        Column::Left("SOURCE"),
        Column::Left("STATUS"),
    ];
    format!("\n{}", aligned(columns, &rows))
}

fn row(instance: &Value) -> [String; 10] {
    let factors = &instance["factors"];
    [
        word(&instance["id"]),
        word(&instance["status"]),
        number(&factors["weight"]),
        number(&factors["weight_override"]["weight"]),
        number(&factors["degraded"]),
        number(&factors["slow_start"]),
        number(&instance["effective_weight"]),
        number(&instance["score"]["value"]),
        word(&instance["score"]["kind"]),
        why(instance),
    ]
}

/// The words of `why`, and the reasons that an operator, a check or a breaker has given.
fn why(instance: &Value) -> String {
    let words: Vec<_> = instance["why"].as_array().into_iter().flatten().map(word).collect();
    let reasons = [
        &instance["layers"]["admin"]["reason"],
        &instance["factors"]["weight_override"]["reason"],
        &instance["layers"]["active"]["reason"],
        &instance["layers"]["breaker"]["reason"],
    ];
    let given: Vec<_> = reasons
        .into_iter()
        .map(word)
        .filter(|reason| !reason.is_empty())
        .collect();
    match given.is_empty() {
        true => words.join(", "),
        false => format!("{} ({})", words.join(", "), given.join("; ")),
    }
}

fn word(value: &Value) -> String {
    one_line(value.as_str().unwrap_or_default())
}

/// A number with at most four digits behind the point. Other values are empty.
fn number(value: &Value) -> String {
    value.as_f64().map(|number| decimal(number, 4)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn instances_are_a_table_with_reasons() {
        let answer = json!({
            "service": "web", "strategy": "consistent_hash", "mode": "normal", "available_instances": 1, "total_instances": 2,
            "instances": [
                {"id": "a", "status": "healthy", "effective_weight": 2.0, "why": ["registry_passing"],
                 "score": {"kind": "ring_share", "value": 0.33333333}, "layers": {"admin": {"state": "in_service"}},
                 "factors": {"weight": 2, "weight_override": null, "degraded": 1.0, "slow_start": 0.125}},
                {"id": "b", "status": "unhealthy", "effective_weight": 0.0, "why": ["drained", "registry_critical"],
                 "score": null, "layers": {"admin": {"state": "drained", "reason": "update"}},
                 "factors": {"weight": 1, "weight_override": {"weight": 3}, "degraded": 1.0, "slow_start": 1.0}},
            ],
            "key": {"instance": "a", "ring_order": ["b", "a"]},
        });
        assert_eq!(
            text(&answer, true),
            "web: consistent_hash (normal), 1 of 2 instances can be picked\n\n\
             ID  STATUS     WEIGHT  OVERRIDE  DEGRADED  SLOW START  EFFECTIVE   SCORE  COMPARED    WHY\n\
             a   healthy         2         -         1       0.125          2  0.3333  ring_share  registry_passing\n\
             b   unhealthy       1         3         1           1          0       -  -           drained, registry_critical (update)\n\
             \nthe key leads to a; ring order: b, a\n"
        );
        let answer = json!({"service": "web", "instances": [
            {"id": "a", "address": "10.0.0.1:80", "registrations": [{"id": "a", "source": "file", "status": "unknown"}]},
            {"id": "b@n2", "address": "10.0.0.2:80", "registrations": [
                {"id": "b@n2", "source": "consul", "status": "passing"},
                {"id": "b@n1", "source": "consul", "status": "critical"}]},
            {"id": "c~file", "address": "10.0.0.3:80", "registrations": [{"id": "c", "source": "file", "status": "unknown"}]},
        ]});
        let shared = "\n\
            ADDRESS      REGISTERED AS  SOURCE  STATUS\n\
            10.0.0.2:80  b@n2           consul  passing\n\
            10.0.0.2:80  b@n1           consul  critical\n\
            10.0.0.3:80  c              file    unknown\n";
        assert!(text(&answer, false).ends_with(shared), "{}", text(&answer, false));
        let answer = json!({"service": "web", "fail_open": true, "panic": false});
        assert!(text(&answer, false).contains("FAIL OPEN") && !text(&answer, false).contains("PANIC"));
        let answer = json!({"service": "web", "key": {"instance": "a", "session": true, "ring_order": []}});
        assert!(text(&answer, true).ends_with("\nthe key has a session at a\n"));
        let answer = json!({"service": "web", "strategy": "random", "key": {"instance": null, "session": false}});
        assert!(text(&answer, true).ends_with("\nthe key has no session; this strategy ignores keys\n"));
        let answer = json!({"service": "web", "key": null});
        assert!(text(&answer, true).ends_with("this strategy ignores keys\n"));
        assert!(!text(&answer, false).contains("key"));
    }
}
