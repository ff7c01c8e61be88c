//! `pickd pick`: one pick at a running agent.

use super::Exit;
use super::agent_client::{AgentArguments, AgentClient, AgentError, encoded};
use super::output::{self, Output};
use crate::balancer::{Address, InstanceId, ServiceName};

const EXAMPLES: &str = "\
Examples:
  pickd pick user-service                   10.0.1.10:8080
  pickd pick user-service --key session-42  the same key, the same instance
  pickd pick user-service --n 3 --tag v2    up to three instances, best first
  curl http://$(pickd pick user-service)/";

const EXITS: &str = "\
Exit codes:
  0   an instance was picked         3   no such service, or no such port of it
  2   the request is invalid         4   the service has no instance that can be picked
  69  the agent cannot be reached    75  a registry of the agent has not synced yet";

/// Ask a running agent which instance should take the next request.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = EXITS)]
pub(super) struct PickArguments {
    /// The service
    service: ServiceName,
    /// Key of the request; equal keys get the same instance, under consistent_hash
    #[arg(long)]
    key: Option<String>,
    /// Number of different instances, in the order in which to try them [1 to 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    n: Option<u8>,
    /// Exclude this instance; may be repeated
    #[arg(long, value_name = "ID")]
    exclude: Vec<InstanceId>,
    /// Only instances with this tag; if repeated, with all of the tags
    #[arg(long)]
    tag: Vec<String>,
    /// The port of this name, as in the metadata port-NAME; only instances that have it
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// host:port lines, or the JSON answer of the agent
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn execute(arguments: &PickArguments) -> Exit {
    output::answer(picked(arguments))
}

/// The answer of the agent. A text answer must be a list of addresses, since scripts connect to
/// them.
pub(super) fn picked(arguments: &PickArguments) -> Result<String, AgentError> {
    let client = AgentClient::new(&arguments.agent)?;
    let body = client.get(&arguments.path())?;
    match arguments.output {
        Output::Text if body.lines().all(|line| line.parse::<Address>().is_ok()) => {}
        Output::Text => return Err(client.not_an_agent("the answer is not a list of addresses")),
        Output::Json => client.parsed(&body).map(drop)?,
    }
    Ok(body)
}

impl PickArguments {
    fn path(&self) -> String {
        let format = match self.output {
            Output::Text => "text",
            Output::Json => "json",
        };
        let mut path = format!("/pick/{}?format={format}", encoded(self.service.as_str()));
        if let Some(key) = &self.key {
            path.push_str(&format!("&key={}", encoded(key)));
        }
        if let Some(n) = self.n {
            path.push_str(&format!("&n={n}"));
        }
        if !self.exclude.is_empty() {
            // The agent splits the list at raw commas before it decodes the ids, so an id may have
            // a comma.
            let ids: Vec<_> = self.exclude.iter().map(|id| encoded(id.as_str())).collect();
            path.push_str(&format!("&exclude={}", ids.join(",")));
        }
        if let Some(port) = &self.port {
            path.push_str(&format!("&port={}", encoded(port)));
        }
        for tag in &self.tag {
            path.push_str(&format!("&tag={}", encoded(tag)));
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::super::agent_client::tests::answering;
    use super::super::tests::parsed;
    use super::*;

    #[test]
    fn arguments_become_the_path_of_the_request() {
        let path = |words: &[&str]| parsed::<PickArguments>(words).unwrap().path();
        assert_eq!(path(&["user-service"]), "/pick/user-service?format=text");
        assert_eq!(
            path(&[
                "a:b@c",
                "--key",
                "k&1",
                "--n",
                "3",
                "--exclude",
                "a,b",
                "--exclude",
                "c d",
                "--tag",
                "v1",
                "--tag",
                "ä",
                "--port",
                "grpc",
                "--output",
                "json",
            ]),
            "/pick/a%3Ab%40c?format=json&key=k%261&n=3&exclude=a%2Cb,c%20d&port=grpc&tag=v1&tag=%C3%A4"
        );
    }

    #[test]
    fn invalid_arguments_are_refused_without_a_request() {
        for words in [
            &["a//b"][..],
            &[".."],
            &["a", "--n", "0"],
            &["a", "--n", "17"],
            &["a", "--exclude", ""],
            &[],
        ] {
            let error = parsed::<PickArguments>(words).err().unwrap();
            assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8), "{words:?}");
        }
    }

    #[test]
    fn the_answer_gives_the_exit_code() {
        const PROBLEM: &str = "application/problem+json";
        for (status, media_type, body, exit) in [
            (200, "text/plain", "10.0.0.1:80\n", Exit::Success),
            (
                503,
                PROBLEM,
                r#"{"code":"none_available","detail":"all are critical"}"#,
                Exit::NothingToPick,
            ),
            (404, PROBLEM, r#"{"code":"unknown_service"}"#, Exit::UnknownService),
            (200, "text/html", "<html>", Exit::Unreachable),
        ] {
            let (agent, server) = answering(status, media_type, body);
            let arguments = PickArguments {
                agent,
                ..parsed(&["a"]).unwrap()
            };
            assert_eq!(execute(&arguments), exit, "{body}");
            assert_eq!(server.join().unwrap(), "GET /pick/a?format=text HTTP/1.1");
        }
    }
}
