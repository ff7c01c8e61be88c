//! `pickd healthcheck`: the health check of containers, which often have no curl.

use super::Exit;
use super::agent_client::{AgentArguments, AgentClient, AgentError, Answer, one_line, problem};
use super::output::{self, message};

const EXAMPLES: &str = "\
Examples:
  pickd healthcheck         is the agent ready?
  pickd healthcheck --live  does the agent answer at all?
  HEALTHCHECK CMD [\"/pickd\", \"healthcheck\"]";

/// Ask a running agent whether it is ready.
#[derive(Debug, clap::Args)]
#[command(
    before_help = EXAMPLES,
    after_help = "Exit codes: 0 ready, 1 not ready, 69 the agent cannot be reached"
)]
pub(super) struct HealthcheckArguments {
    /// Ask only whether the agent is alive
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn execute(arguments: &HealthcheckArguments) -> Exit {
    let (path, yes, no) = match arguments.live {
        true => ("/healthz", "alive", "not alive"),
        false => ("/readyz", "ready", "not ready"),
    };
    match AgentClient::new(&arguments.agent).and_then(|client| client.request(path)) {
        Ok(Answer { status: 200..=299, .. }) => output::data(yes),
        Ok(answer) => {
            message(format_args!("{no}: {}", reason(&answer)));
            Exit::Failed
        }
        Err(error) => {
            message(&error);
            match error {
                AgentError::Unreachable { .. } => Exit::Unreachable,
                _ => Exit::Failed,
            }
        }
    }
}

/// The start of the answer. For a container, no other trace of the answer remains.
fn reason(answer: &Answer) -> String {
    let text = match problem(answer) {
        Some(problem) => problem.to_string(),
        None => one_line(&answer.body),
    };
    match text.as_str() {
        "" => format!("the status is {}", answer.status),
        text => text.chars().take(500).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::agent_client::tests::answering;
    use super::*;

    fn run(live: bool, status: u16) -> (Exit, String) {
        let (agent, server) = answering(status, "application/json", "{}");
        (execute(&HealthcheckArguments { live, agent }), server.join().unwrap())
    }

    #[test]
    fn ready_is_0_and_not_ready_is_1() {
        assert_eq!(run(false, 200), (Exit::Success, "GET /readyz HTTP/1.1".to_owned()));
        assert_eq!(run(false, 503), (Exit::Failed, "GET /readyz HTTP/1.1".to_owned()));
        assert_eq!(run(true, 200), (Exit::Success, "GET /healthz HTTP/1.1".to_owned()));
    }

    #[test]
    fn a_missing_agent_is_69() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = listener.local_addr().unwrap().to_string().parse().unwrap();
        drop(listener);
        assert_eq!(
            execute(&HealthcheckArguments {
                live: false,
                agent: AgentArguments { url }
            }),
            Exit::Unreachable
        );
    }

    #[test]
    fn the_reason_is_the_problem_detail_or_the_body() {
        let answer = |is_problem, body: &str| Answer {
            status: 503,
            is_problem,
            body: body.to_owned(),
        };
        assert_eq!(
            reason(&answer(
                true,
                r#"{"code":"not_synced","detail":"consul has not synced"}"#
            )),
            "consul has not synced"
        );
        assert_eq!(reason(&answer(false, "{\"ready\":\nfalse}\n")), "{\"ready\": false}");
        assert_eq!(reason(&answer(false, "")), "the status is 503");
        assert_eq!(reason(&answer(false, &"x".repeat(10_000))).len(), 500);
    }
}
