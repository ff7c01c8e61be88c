//! `pickd accept`: an operator accepts what a registry lists. One agent lets go of the instances that
//! it holds.

use std::path::PathBuf;

use serde_json::Value;

use super::Exit;
use super::agent_client::{AgentArguments, AgentClient, AgentError, Change, Method, encoded};
use super::output::{self, Output};
use super::overrides::admin_token;

const EXITS: &str = "\
Exit codes:
  0   done, in force from the next pick  3   the agent does not watch this registry
  1   not allowed, or a failure          69  the agent cannot be reached";

const EXAMPLES: &str = "\
Examples:
  pickd accept consul   let go of the instances that Consul no longer lists
  pickd accept etcd     the same for etcd";

/// Let go of instances that a registry no longer lists and that the agent holds.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = EXITS)]
pub(super) struct AcceptArguments {
    /// The registry
    #[arg(value_parser = ["consul", "etcd", "file"])]
    source: String,
    /// How many instances were let go, or the JSON answer of the agent
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// File with the admin token, for agents on other machines
    #[arg(long, value_name = "FILE", env = "PICKD_ADMIN_TOKEN_FILE", hide_env_values = true)]
    admin_token_file: Option<PathBuf>,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn execute(arguments: &AcceptArguments) -> Exit {
    output::answer(accepted(arguments))
}

/// Sends the request, and returns the text to print.
fn accepted(arguments: &AcceptArguments) -> Result<String, AgentError> {
    let token = admin_token(arguments.admin_token_file.as_deref())?;
    let client = AgentClient::new(&arguments.agent)?;
    let body = client.change(&Change {
        method: Method::POST,
        path: &format!("/sources/{}/accept", encoded(&arguments.source)),
        body: None,
        token: token.as_deref(),
    })?;
    let answer = client.parsed(&body)?;
    Ok(match arguments.output {
        Output::Json => body,
        Output::Text => text(&arguments.source, &answer),
    })
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
            line.arguments.agent = agent;
            let printed = accepted(&line.arguments).map_err(|error| error.exit());
            assert_eq!(printed.as_deref().map_err(|exit| *exit), expected, "{body}");
            assert_eq!(server.join().unwrap(), "POST /sources/etcd/accept HTTP/1.1");
        }
        assert!(Line::try_parse_from(["pickd", "zookeeper"]).is_err());
    }
}
