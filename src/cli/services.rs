//! `pickd services`: the services that a running agent knows, as a table or as the JSON of the
//! agent.
//!
//! The agent may be older or newer than this command: the table shows a dash for a missing field,
//! and leaves out an unknown field. JSON is printed unchanged.

use std::collections::BTreeMap;

use serde_json::Value;

use super::agent_client::{AgentArguments, AgentClient, AgentError, encoded, one_line};
use super::output::{self, Output, message};
use super::table::{Column, aligned, decimal};
use super::{Exit, QUERY_EXITS};
use crate::balancer::ServiceName;

const EXAMPLES: &str = "\
Examples:
  pickd services                              all services
  pickd services user-service                 the instances of one service
  pickd services --output json | jq .sources  the sources, and their ages";

/// Show the services that a running agent knows, or the instances of one service.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = QUERY_EXITS)]
pub(super) struct ServicesArguments {
    /// Only this service, with its instances
    service: Option<ServiceName>,
    /// A table, or the JSON answer of the agent
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn execute(arguments: &ServicesArguments) -> Exit {
    match shown(arguments) {
        Ok((data, messages)) => {
            let exit = output::data(&data);
            messages.into_iter().for_each(message);
            exit
        }
        Err(error) => output::answer(Err(error)),
    }
}

/// The data to print, and messages about sources with problems.
pub(super) fn shown(arguments: &ServicesArguments) -> Result<(String, Vec<String>), AgentError> {
    let client = AgentClient::new(&arguments.agent)?;
    let path = match &arguments.service {
        Some(service) => format!("/services/{}", encoded(service.as_str())),
        None => "/services".to_owned(),
    };
    let body = client.get(&path)?;
    let answer = client.parsed(&body)?;
    Ok(match (arguments.output, &arguments.service) {
        (Output::Json, _) => (body, Vec::new()),
        (Output::Text, Some(_)) => {
            let messages = source_problems(&answer["source_states"]).into_iter();
            (instances(&answer), messages.chain(skipped(&answer)).collect())
        }
        (Output::Text, None) => (services(&answer), source_problems(&answer["sources"])),
    })
}

fn services(answer: &Value) -> String {
    let columns = [
        Column::Left("NAME"),
        Column::Left("STRATEGY"),
        Column::Right("AVAILABLE"),
        Column::Right("TOTAL"),
        Column::Right("REQUESTS"),
        Column::Right("FAILED"),
        Column::Left("SOURCES"),
    ];
    let rows: Vec<_> = list(&answer["services"])
        .map(|service| {
            [
                text(&service["service"]),
                text(&service["strategy"]),
                text(&service["available_instances"]),
                text(&service["total_instances"]),
                text(&service["total_requests"]),
                text(&service["failed_requests"]),
                joined(&service["sources"]),
            ]
        })
        .collect();
    aligned(columns, &rows)
}

fn instances(answer: &Value) -> String {
    let columns = [
        Column::Left("ID"),
        Column::Left("ADDRESS"),
        Column::Left("STATUS"),
        Column::Right("WEIGHT"),
        Column::Right("EFFECTIVE"),
        Column::Right("REQUESTS"),
        Column::Right("FAILED"),
        Column::Right("ACTIVE"),
        Column::Right("AVERAGE"),
        Column::Left("SOURCE"),
        Column::Left("TAGS"),
    ];
    let rows: Vec<_> = answer["instances"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(id, instance)| {
            [
                id.clone(),
                text(&instance["address"]),
                status(instance),
                text(&instance["weight"]),
                instance["effective_weight"]
                    .as_f64()
                    .map(|number| decimal(number, 2))
                    .unwrap_or_default(),
                text(&instance["total_requests"]),
                text(&instance["failed_requests"]),
                text(&instance["active_connections"]),
                instance["average_response_time"]
                    .as_f64()
                    .map(milliseconds)
                    .unwrap_or_default(),
                text(&instance["source"]),
                joined(&instance["tags"]),
            ]
        })
        .collect();
    aligned(columns, &rows)
}

/// One line for each reason for which registrations cannot be instances, with the first few of them.
/// The agent lists the first of many: their number is then a line of its own.
fn skipped(answer: &Value) -> Vec<String> {
    const NAMED: usize = 3;
    let mut by_reason: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut listed: u64 = 0;
    for registration in list(&answer["skipped"]) {
        listed += 1;
        let [source, reason, id] = ["source", "reason", "id"].map(|field| one_line(&text(&registration[field])));
        let detail = one_line(&text(&registration["detail"]));
        let named = match reason.as_str() {
            "no_port" => id,
            _ => format!("{id} ({detail})"),
        };
        by_reason.entry((source, reason)).or_default().push(named);
    }
    let beyond = answer["skipped_registrations"].as_u64().filter(|total| *total > listed);
    let line = |((source, reason), ids): ((String, String), Vec<String>)| {
        let more = if ids.len() > NAMED { ", ..." } else { "" };
        let named = ids
            .iter()
            .take(NAMED)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        format!("source {source}: skipped {} ({reason}): {named}{more}", ids.len())
    };
    let total = beyond.map(|total| format!("{total} registrations are skipped, {listed} of them are listed"));
    total.into_iter().chain(by_reason.into_iter().map(line)).collect()
}

/// One line for each source that has not synced, is away, or has held removals.
fn source_problems(sources: &Value) -> Vec<String> {
    list(sources).filter_map(source_problem).collect()
}

fn source_problem(source: &Value) -> Option<String> {
    let name = one_line(&text(&source["source"]));
    let mut facts = Vec::new();
    if source["synced"] == Value::Bool(false) {
        facts.push("not synced yet".to_owned());
    }
    if source["up"] == Value::Bool(false) {
        facts.push(match source["away_seconds"].as_f64() {
            Some(seconds) => format!("away for {seconds:.0} s"),
            None => "away".to_owned(),
        });
        if let Some(error) = source["last_error"].as_str() {
            facts.push(one_line(error));
        }
    }
    if let Some(held @ 1..) = source["held_removals"].as_u64() {
        facts.push(format!("{held} removals held back"));
    }
    (!facts.is_empty()).then(|| format!("source {name}: {}", facts.join(", ")))
}

/// The status of an instance, with the reason if the instance cannot be picked, and how long its
/// registry has not listed it.
fn status(instance: &Value) -> String {
    let mut notes = Vec::new();
    let reason = text(&instance["reason"]);
    if !reason.is_empty() {
        notes.push(reason);
    }
    if let Some(seconds) = instance["absent_seconds"].as_f64() {
        notes.push(format!("absent for {seconds:.0} s"));
    }
    let status = text(&instance["status"]);
    match notes.is_empty() {
        true => status,
        false => format!("{status} ({})", notes.join(", ")),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A scalar as text, without quotes. Other values are empty.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        _ => String::new(),
    }
}

fn joined(value: &Value) -> String {
    list(value).map(text).collect::<Vec<_>>().join(",")
}

/// A time in milliseconds. Empty for 0: no outcome with a latency was reported.
fn milliseconds(seconds: f64) -> String {
    if seconds == 0.0 {
        return String::new();
    }
    format!("{:.1}ms", seconds * 1_000.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::agent_client::tests::answering;
    use super::*;

    #[test]
    fn services_are_a_table() {
        let answer = json!({
            "services": [
                {"service": "user-service", "strategy": "round_robin", "total_requests": 1200, "failed_requests": 3,
                 "failure_rate": 0.0025, "available_instances": 2, "total_instances": 3, "sources": ["consul", "file"]},
                {"service": "a", "strategy": "random", "new_field": {}},
            ],
            "sources": [],
        });
        assert_eq!(
            services(&answer),
            "NAME          STRATEGY     AVAILABLE  TOTAL  REQUESTS  FAILED  SOURCES\n\
             user-service  round_robin          2      3      1200       3  consul,file\n\
             a             random               -      -         -       -  -\n"
        );
        assert!(source_problems(&answer["sources"]).is_empty());
    }

    #[test]
    fn instances_are_a_table() {
        let answer = json!({"service": "a", "instances": {
            "user-1@node-a": {"address": "10.0.0.1:80", "status": "healthy", "weight": 2, "effective_weight": 2.0,
                "total_requests": 10, "failed_requests": 0, "average_response_time": 0.01234, "active_connections": 1,
                "tags": ["v1", "eu"], "metadata": {}, "source": "consul", "layers": {}},
            "user-2@node-a": {"address": "10.0.0.2:80", "status": "unhealthy", "reason": "critical", "weight": 1, "effective_weight": 0.25,
                "average_response_time": null, "tags": []},
        }});
        assert_eq!(
            instances(&answer),
            "ID             ADDRESS      STATUS                WEIGHT  EFFECTIVE  REQUESTS  FAILED  ACTIVE  AVERAGE  SOURCE  TAGS\n\
             user-1@node-a  10.0.0.1:80  healthy                    2          2        10       0       1   12.3ms  consul  v1,eu\n\
             user-2@node-a  10.0.0.2:80  unhealthy (critical)       1       0.25         -       -       -        -  -       -\n"
        );
    }

    #[test]
    fn an_answer_of_another_form_is_an_empty_table() {
        for answer in [json!([]), json!(null), json!({"services": {}, "instances": []})] {
            assert_eq!(services(&answer).lines().count(), 1);
            assert_eq!(instances(&answer).lines().count(), 1);
        }
    }

    #[test]
    fn a_source_with_a_problem_is_reported() {
        let answer = json!({"sources": [
            {"source": "consul", "up": false, "synced": true, "age_seconds": 12.4, "away_seconds": 12.4,
             "held_removals": 3, "last_error": "connection\nrefused"},
            {"source": "etcd", "up": true, "synced": false, "held_removals": 0},
            {"source": "file", "up": true, "synced": true, "last_error": "long ago"},
        ]});
        assert_eq!(
            source_problems(&answer["sources"]),
            [
                "source consul: away for 12 s, connection refused, 3 removals held back",
                "source etcd: not synced yet",
            ]
        );
    }

    #[test]
    fn skipped_registrations_are_reported_by_reason() {
        let portless =
            |id: &str| json!({"source": "consul", "id": id, "reason": "no_port", "detail": "it has no port"});
        let invalid =
            json!({"source": "etcd", "id": "/s/web/\u{202e}", "reason": "invalid", "detail": "host: expected"});
        let answer = json!({"skipped_registrations": 5, "skipped":
            [portless("a@n"), portless("b@n"), portless("c@n"), portless("d@n"), invalid]});
        assert_eq!(
            skipped(&answer),
            [
                "source consul: skipped 4 (no_port): a@n, b@n, c@n, ...",
                "source etcd: skipped 1 (invalid): /s/web/\\u{202e} (host: expected)",
            ]
        );
        assert!(skipped(&json!({"instances": {}})).is_empty());

        let answer = json!({"skipped_registrations": 5_000, "skipped": [portless("a@n"), portless("b@n")]});
        assert_eq!(
            skipped(&answer),
            [
                "5000 registrations are skipped, 2 of them are listed",
                "source consul: skipped 2 (no_port): a@n, b@n",
            ]
        );
    }

    #[test]
    fn the_request_has_the_right_path() {
        for (service, path) in [(None, "/services"), (Some("a@b"), "/services/a%40b")] {
            let (agent, server) = answering(200, "application/json", "{}");
            let service = service.map(|name| name.parse().unwrap());
            let arguments = ServicesArguments {
                service,
                output: Output::Json,
                agent,
            };
            assert_eq!(shown(&arguments).unwrap().0, "{}");
            assert_eq!(server.join().unwrap(), format!("GET {path} HTTP/1.1"));
        }
    }
}
