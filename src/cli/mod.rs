//! The command line: arguments become calls, and results become exit codes.
//!
//! Data goes to stdout, messages go to stderr. `run` and `demo` start an agent in this process.
//! `check`, `recommend`, `completions` and `man` need no agent. All other commands send a request to a running
//! agent, over HTTP like any other client, and rely only on its answers.

mod accept;
mod admin;
mod agent_client;
mod check;
mod completions;
mod demo;
mod explain;
mod healthcheck;
mod man;
mod output;
mod overrides;
mod pick;
mod recommend;
mod run;
mod services;
mod table;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Variables;

/// The exit code of a command. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    /// The command succeeded.
    Success = 0,
    /// A failure without a code of its own. For `check` and `healthcheck`: the answer is no.
    Failed = 1,
    /// The command line, a setting or a request is invalid: a retry will not help.
    Usage = 2,
    /// The service, or the instance of it, does not exist.
    UnknownService = 3,
    /// The service is known, but none of its instances can be picked.
    NothingToPick = 4,
    /// No agent answered: `EX_UNAVAILABLE` of sysexits.h.
    Unreachable = 69,
    /// A registry of the agent has not synced yet: `EX_TEMPFAIL` of sysexits.h.
    NotSynced = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The exit codes of the commands that only read from an agent.
const QUERY_EXITS: &str = "Exit codes: 0 success, 3 no such service, 69 the agent cannot be reached, 75 a registry of the \
                           agent has not synced yet";

const EXAMPLES: &str = "\
Examples:
  pickd demo                                small backends and an agent, to try
  pickd run --consul http://127.0.0.1:8500  an agent beside a Consul agent
  pickd run --config pickd.toml             an agent as configured
  pickd pick user-service                   the instance for the next request
  curl localhost:7425/pick/user-service     the same over HTTP
  pickd services                            the services that the agent knows
  pickd explain user-service                why instances are picked or not
  pickd drain user-service user-1           stop picking this instance
  pickd check pickd.toml                    whether a configuration is valid";

/// The pick daemon: which instance should take the next request?
#[derive(Debug, Parser)]
#[command(name = "pickd", version, before_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArguments),
    Demo(demo::DemoArguments),
    Pick(pick::PickArguments),
    Services(services::ServicesArguments),
    Explain(explain::ExplainArguments),
    Drain(overrides::DrainArguments),
    Undrain(overrides::UndrainArguments),
    Weight(overrides::WeightArguments),
    Accept(accept::AcceptArguments),
    Check(check::CheckArguments),
    Recommend(recommend::RecommendArguments),
    Healthcheck(healthcheck::HealthcheckArguments),
    Completions(completions::CompletionsArguments),
    Man(man::ManArguments),
}

impl Cli {
    /// Reads the command line and the `PICKD_*` variables. Ends the process if they are invalid, or
    /// ask only for help.
    #[must_use]
    pub fn read() -> Self {
        let command = without_empty_variables(Self::command(), &|name| std::env::var_os(name));
        let read = command
            .try_get_matches()
            .and_then(|matches| Self::from_arg_matches(&matches));
        read.unwrap_or_else(|error| error.exit())
    }

    /// Runs the command, and returns its exit code.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        match self.command {
            Command::Run(arguments) => run::execute(&arguments).into(),
            Command::Demo(arguments) => demo::execute(&arguments).into(),
            Command::Pick(arguments) => pick::execute(&arguments).into(),
            Command::Services(arguments) => services::execute(&arguments).into(),
            Command::Explain(arguments) => explain::execute(&arguments).into(),
            Command::Drain(arguments) => overrides::execute(&arguments.request()).into(),
            Command::Undrain(arguments) => overrides::execute(&arguments.request()).into(),
            Command::Weight(arguments) => overrides::execute(&arguments.request()).into(),
            Command::Accept(arguments) => accept::execute(&arguments).into(),
            Command::Check(arguments) => check::execute(&arguments).into(),
            Command::Recommend(arguments) => recommend::execute(&arguments).into(),
            Command::Healthcheck(arguments) => healthcheck::execute(&arguments).into(),
            Command::Completions(arguments) => completions::execute(&arguments).into(),
            Command::Man(arguments) => man::execute(&arguments).into(),
        }
    }
}

/// Makes clap ignore variables that are set to an empty value: scripts "unset" a variable in this
/// way.
fn without_empty_variables(command: clap::Command, variable: &dyn Fn(&OsStr) -> Option<OsString>) -> clap::Command {
    let is_empty = |name: &OsStr| variable(name).is_some_and(|value| value.is_empty());
    command.mut_subcommands(|command| {
        command.mut_args(|argument| match argument.get_env() {
            Some(name) if is_empty(name) => argument.env(None::<&'static str>),
            _ => argument,
        })
    })
}

/// The conventional variables of the registries. No other code reads them. The variables of pickd
/// itself belong to flags, and clap reads them.
fn environment() -> Variables {
    let lossy = |text: OsString| text.to_string_lossy().into_owned();
    std::env::vars_os()
        .map(|(name, value)| (lossy(name), lossy(value)))
        .filter(|(name, _)| name.starts_with("CONSUL_") || name.starts_with("ETCDCTL_"))
        .collect()
}

#[cfg(test)]
mod tests;
