//! `pickd drain`, `undrain` and `weight`: overrides by an operator, at one agent.

use serde_json::{Value, json};

use super::Exit;
use super::admin::AdminArguments;
use super::agent_client::{AgentError, Method, encoded, one_line};
use super::output;
use crate::balancer::{InstanceId, Order, ServiceName};
use crate::duration::with_unit;

const EXITS: &str = "\
Exit codes:
  0   done, in force from the next pick  3   no such service or instance
  1   not allowed, or a failure          69  the agent cannot be reached
  2   the request is invalid             75  a registry of the agent has not synced yet";

const DRAIN: &str = "\
Examples:
  pickd drain user-service user-1@node-a
  pickd drain user-service user-1 --reason 'kernel update' --ttl 10m";

const UNDRAIN: &str = "\
Example:
  pickd undrain user-service user-1@node-a";

const WEIGHT: &str = "\
Examples:
  pickd weight user-service user-1 3         replace the registered weight
  pickd weight user-service user-1 0         stop picking the instance
  pickd weight user-service user-1 --clear   restore the registered weight";

/// The instance to change, and the agent to change it at.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// The service
    service: ServiceName,
    /// The id of the instance
    instance: InstanceId,
    #[command(flatten)]
    admin: AdminArguments,
}

/// The reason and the duration of an override.
#[derive(Debug, clap::Args)]
struct OrderArguments {
    /// Reason, for the log and for other operators
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
    /// Duration, such as 30s, 10m or 2h; without it, until undone
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    ttl: Option<String>,
}

/// Stop picking an instance, whatever its registry says.
#[derive(Debug, clap::Args)]
#[command(before_help = DRAIN, after_help = EXITS)]
pub(super) struct DrainArguments {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    order: OrderArguments,
}

/// End the drain of an instance.
#[derive(Debug, clap::Args)]
#[command(before_help = UNDRAIN, after_help = EXITS)]
pub(super) struct UndrainArguments {
    #[command(flatten)]
    target: Target,
}

/// Override the registered weight of an instance.
#[derive(Debug, clap::Args)]
#[command(before_help = WEIGHT, after_help = EXITS)]
pub(super) struct WeightArguments {
    #[command(flatten)]
    target: Target,
    /// The weight, 0 to 65535
    #[arg(value_parser = clap::value_parser!(i64).range(0..=65_535), required_unless_present = "clear")]
    weight: Option<i64>,
    /// Restore the registered weight
    #[arg(long, conflicts_with_all = ["weight", "reason", "ttl"])]
    clear: bool,
    #[command(flatten)]
    order: OrderArguments,
}

fn reason(text: &str) -> Result<String, String> {
    let checked = Order::by("").because(text).map_err(|error| error.to_string());
    checked.map(|_| text.to_owned())
}

fn ttl(text: &str) -> Result<String, String> {
    let read = with_unit(text).ok_or_else(|| "expected a number with a unit, such as 30s, 10m or 2h".to_owned())?;
    let checked = Order::by("").for_the_next(read).map_err(|error| error.to_string());
    checked.map(|_| text.to_owned())
}

impl OrderArguments {
    fn body(&self) -> serde_json::Map<String, Value> {
        let fields = [("reason", &self.reason), ("ttl", &self.ttl)];
        let given = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), Value::String(value.clone()?))));
        given.collect()
    }
}

/// The request to the agent.
pub(super) struct Request<'a> {
    target: &'a Target,
    /// The last segment of the path.
    kind: &'static str,
    body: Option<Value>,
}

impl DrainArguments {
    pub(super) fn request(&self) -> Request<'_> {
        Request {
            target: &self.target,
            kind: "drain",
            body: Some(Value::Object(self.order.body())),
        }
    }
}

impl UndrainArguments {
    pub(super) fn request(&self) -> Request<'_> {
        Request {
            target: &self.target,
            kind: "drain",
            body: None,
        }
    }
}

impl WeightArguments {
    pub(super) fn request(&self) -> Request<'_> {
        let with_weight = |weight: i64| {
            let mut body = self.order.body();
            body.insert("weight".to_owned(), json!(weight));
            Value::Object(body)
        };
        Request {
            target: &self.target,
            kind: "weight",
            body: self.weight.map(with_weight),
        }
    }
}

pub(super) fn execute(request: &Request<'_>) -> Exit {
    output::answer(changed(request))
}

/// Sends the request, and returns the text to print.
pub(super) fn changed(request: &Request<'_>) -> Result<String, AgentError> {
    let Target {
        service,
        instance,
        admin,
    } = request.target;
    let path = format!(
        "/services/{}/instances/{}/{}",
        encoded(service.as_str()),
        encoded(instance.as_str()),
        request.kind
    );
    let method = match &request.body {
        Some(_) => Method::PUT,
        None => Method::DELETE,
    };
    admin.change(method, &path, request.body.clone(), state)
}

/// The state of the instance: `user-1: unhealthy (drained), effective weight 0`.
fn state(answer: &Value) -> String {
    let id = one_line(answer["id"].as_str().unwrap_or_default());
    let instance = &answer["instance"];
    if instance.is_null() {
        return format!("{id}: not registered; the override applies when the instance registers");
    }
    let words: Vec<_> = instance["why"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let status = one_line(instance["status"].as_str().unwrap_or("-"));
    let why = one_line(&words.join(", "));
    format!(
        "{id}: {status} ({why}), effective weight {}",
        instance["effective_weight"]
    )
}

#[cfg(test)]
mod tests {
    use clap::{Parser, Subcommand};

    use super::super::agent_client::tests::answering;
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Override,
    }

    #[derive(Subcommand)]
    enum Override {
        Drain(DrainArguments),
        Undrain(UndrainArguments),
        Weight(WeightArguments),
    }

    impl Override {
        fn request(&self) -> Request<'_> {
            match self {
                Self::Drain(arguments) => arguments.request(),
                Self::Undrain(arguments) => arguments.request(),
                Self::Weight(arguments) => arguments.request(),
            }
        }
    }

    fn parsed(line: &str) -> Result<Override, clap::Error> {
        Line::try_parse_from(["pickd"].into_iter().chain(line.split(' '))).map(|line| line.command)
    }

    #[test]
    fn arguments_become_the_body_of_the_request() {
        let body = |line: &str| parsed(line).unwrap().request().body;
        assert_eq!(body("drain web a"), Some(json!({})));
        assert_eq!(
            body("drain web a --reason update --ttl 10m"),
            Some(json!({"reason": "update", "ttl": "10m"}))
        );
        assert_eq!(body("undrain web a"), None);
        assert_eq!(body("weight web a 3 --ttl 1s"), Some(json!({"weight": 3, "ttl": "1s"})));
        assert_eq!(body("weight web a --clear"), None);
    }

    #[test]
    fn invalid_arguments_are_refused_without_a_request() {
        for line in [
            "drain web",
            "drain a//b c",
            "drain web a --ttl 10",
            "drain web a --ttl 0s",
            "weight web a",
            "weight web a 65536",
            "weight web a -1",
            "weight web a 1.5",
            "weight web a 3 --clear",
            "weight web a --clear --ttl 1m",
            "undrain web a --ttl 1m",
        ] {
            let error = parsed(line).err().unwrap();
            assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8), "{line}");
        }
    }

    #[test]
    fn the_answer_gives_the_text_and_the_exit_code() {
        const PROBLEM: &str = "application/problem+json";
        for (status, media_type, body, expected) in [
            (
                200,
                "application/json",
                r#"{"id":"a/b","instance":{"status":"unhealthy","why":["drained"],"effective_weight":0.0}}"#,
                Ok("a/b: unhealthy (drained), effective weight 0.0"),
            ),
            (
                200,
                "application/json",
                r#"{"id":"a/b","instance":null}"#,
                Ok("a/b: not registered; the override applies when the instance registers"),
            ),
            (
                404,
                PROBLEM,
                r#"{"code":"unknown_instance"}"#,
                Err(Exit::UnknownService),
            ),
            (403, PROBLEM, r#"{"code":"forbidden"}"#, Err(Exit::Failed)),
            (400, PROBLEM, r#"{"code":"invalid_request"}"#, Err(Exit::Usage)),
        ] {
            let (agent, server) = answering(status, media_type, body);
            let mut command = parsed("drain web a/b").unwrap();
            if let Override::Drain(arguments) = &mut command {
                arguments.target.admin.agent = agent;
            }
            let printed = changed(&command.request()).map_err(|error| error.exit());
            assert_eq!(printed.as_deref().map_err(|exit| *exit), expected, "{body}");
            assert_eq!(
                server.join().unwrap(),
                "PUT /services/web/instances/a%2Fb/drain HTTP/1.1"
            );
        }
    }
}
