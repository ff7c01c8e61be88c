//! `pickd accept`: an operator accepts what a registry lists. One agent lets go of the instances that
//! it holds.

use serde_json::Value;

use super::Exit;
use super::admin::AdminArguments;
use super::agent_client::{AgentError, Method, encoded};
use super::output;

const EXITS: &str = "\
Exit codes:
  0   done, in force from the next pick  3   the agent does not watch this registry
  1   not allowed, or a failure          69  the agent cannot be reached";

const EXAMPLES: &str = "\
Examples:
  pickd accept consul      let go of the instances that Consul no longer lists
  pickd accept etcd        the same for etcd
  pickd accept consul-dc2  the same for one of several datacenters";

/// Let go of instances that a registry no longer lists and that the agent holds.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = EXITS)]
pub(super) struct AcceptArguments {
    /// The registry: consul, etcd or file; consul-DATACENTER if Consul is read in several datacenters
    #[arg(value_parser = source)]
    source: String,
    #[command(flatten)]
    admin: AdminArguments,
}

/// The name of a source that an agent can have.
fn source(text: &str) -> Result<String, String> {
    let datacenter = text.strip_prefix("consul-").is_some_and(|name| !name.is_empty());
    if datacenter || ["consul", "etcd", "file"].contains(&text) {
        return Ok(text.to_owned());
    }
    Err("expected consul, consul-DATACENTER, etcd or file".to_owned())
}

pub(super) fn execute(arguments: &AcceptArguments) -> Exit {
    output::answer(accepted(arguments))
}

/// Sends the request, and returns the text to print.
fn accepted(arguments: &AcceptArguments) -> Result<String, AgentError> {
    let AcceptArguments { source, admin } = arguments;
    let path = format!("/sources/{}/accept", encoded(source));
    admin.change(Method::POST, &path, None, |answer| text(source, answer))
}

/// `consul: 5 held instances let go`.
fn text(source: &str, answer: &Value) -> String {
    match answer["released_instances"].as_u64().unwrap_or_default() {
        0 => format!("{source}: no instance was held"),
        1 => format!("{source}: 1 held instance let go"),
        released => format!("{source}: {released} held instances let go"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::agent_client::tests::answering;
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: AcceptArguments,
    }

    #[test]
    fn the_answer_gives_the_text_and_the_exit_code() {
        const PROBLEM: &str = "application/problem+json";
        for (status, media_type, body, expected) in [
            (
                200,
                "application/json",
                r#"{"source":"etcd","released_instances":5}"#,
                Ok("etcd: 5 held instances let go"),
            ),
            (
                200,
                "application/json",
                r#"{"source":"etcd","released_instances":0}"#,
                Ok("etcd: no instance was held"),
            ),
            (404, PROBLEM, r#"{"code":"unknown_source"}"#, Err(Exit::UnknownService)),
            (403, PROBLEM, r#"{"code":"forbidden"}"#, Err(Exit::Failed)),
        ] {
            let (agent, server) = answering(status, media_type, body);
            let mut line = Line::try_parse_from(["pickd", "etcd"]).unwrap();
            line.arguments.admin.agent = agent;
            let printed = accepted(&line.arguments).map_err(|error| error.exit());
            assert_eq!(printed.as_deref().map_err(|exit| *exit), expected, "{body}");
            assert_eq!(server.join().unwrap(), "POST /sources/etcd/accept HTTP/1.1");
        }
        assert!(Line::try_parse_from(["pickd", "zookeeper"]).is_err());
        assert!(Line::try_parse_from(["pickd", "consul-"]).is_err());
        let line = Line::try_parse_from(["pickd", "consul-dc1"]).unwrap();
        assert_eq!(line.arguments.source, "consul-dc1");
    }
}
