//! `pickd healthcheck`: for container health checks, where no curl is to be had.

use super::Exit;
use super::agent_client::{AgentArguments, AgentClient, AgentError, Answer, one_line, problem};
use super::output::{self, say};

const EXAMPLES: &str = "\
Examples:
  pickd healthcheck         does the agent have what it needs?
  pickd healthcheck --live  does it answer at all?
  HEALTHCHECK CMD [\"/pickd\", \"healthcheck\"]";

/// Ask a running agent whether it is ready.
#[derive(Debug, clap::Args)]
#[command(
    before_help = EXAMPLES,
    after_help = "Exit codes: 0 ready, 1 not ready, 69 the agent cannot be reached"
)]
pub(super) struct HealthcheckArguments {
    /// Ask only whether it is alive
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
    match AgentClient::new(&arguments.agent).and_then(|client| client.ask(path)) {
        Ok(Answer { status: 200..=299, .. }) => output::data(yes),
        Ok(answer) => {
            say(format_args!("{no}: {}", reason(&answer)));
            Exit::Failed
        }
        Err(error) => {
            say(&error);
            match error {
                AgentError::Unreachable { .. } => Exit::Unreachable,
                _ => Exit::Failed,
            }
        }
    }
}

/// The start of what it says, which for a container is all that anyone will see.
fn reason(answer: &Answer) -> String {
    let said = match problem(answer) {
        Some(problem) => problem.to_string(),
        None => one_line(&answer.body),
    };
    match said.as_str() {
        "" => format!("it answered {}", answer.status),
        said => said.chars().take(500).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::agent_client::tests::answering;
    use super::*;

    fn asked(live: bool, status: u16) -> (Exit, String) {
        let (agent, server) = answering(status, "application/json", "{}");
        (execute(&HealthcheckArguments { live, agent }), server.join().unwrap())
    }

    #[test]
    fn ready_is_0_and_not_ready_is_1() {
        assert_eq!(asked(false, 200), (Exit::Fine, "GET /readyz HTTP/1.1".to_owned()));
        assert_eq!(asked(false, 503), (Exit::Failed, "GET /readyz HTTP/1.1".to_owned()));
        assert_eq!(asked(true, 200), (Exit::Fine, "GET /healthz HTTP/1.1".to_owned()));
    }

    #[test]
    fn no_agent_is_exit_code_69() {
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
    fn the_reason_is_the_detail_or_what_was_said() {
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
        assert_eq!(reason(&answer(false, "")), "it answered 503");
        assert_eq!(reason(&answer(false, &"x".repeat(10_000))).len(), 500);
    }
}
