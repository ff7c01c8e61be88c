//! The command line: what is typed becomes a call, what comes of it becomes an exit code.
//!
//! Data goes to stdout, talk to stderr. `run` and `demo` start an agent in this process. `check`, `completions` and `man` need no
//! agent. Every other command asks one that is already running, over HTTP like any other client, and knows of it only what its
//! answers say.

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
mod run;
mod services;
mod table;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Environment;

/// How a command ended. The numbers are a promise to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    Fine = 0,
    /// Something failed that has no number of its own; for `check` and `healthcheck`: no.
    Failed = 1,
    /// The command line, a setting or a request is wrong: trying again will not help.
    Usage = 2,
    /// No such service, or no such instance of it.
    UnknownService = 3,
    /// The service is known, and none of its instances can be picked.
    NothingToPick = 4,
    /// `EX_UNAVAILABLE` of sysexits.h: no agent answered.
    Unreachable = 69,
    /// `EX_TEMPFAIL`: the agent has not heard of every registry yet.
    NotSynced = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

const EXAMPLES: &str = "\
Examples:
  pickd demo                                a small world, and what to try in it
  pickd run --consul http://127.0.0.1:8500  an agent beside a Consul agent
  pickd run --config pickd.toml             an agent as configured
  pickd pick user-service                   who should take the next request?
  curl localhost:7425/pick/user-service     the same, from whatever speaks HTTP
  pickd services                            what the agent knows
  pickd explain user-service                why picks go where they go
  pickd drain user-service user-1           no more picks of this instance
  pickd check pickd.toml                    is this configuration right?";

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
    Check(check::CheckArguments),
    Healthcheck(healthcheck::HealthcheckArguments),
    Completions(completions::CompletionsArguments),
    Man(man::ManArguments),
}

impl Cli {
    /// Reads the command line and the `PICKD_*` variables; ends the process when they are wrong, or ask for help only.
    #[must_use]
    pub fn read() -> Self {
        let command = without_empty_variables(Self::command(), &|name| std::env::var_os(name));
        let read = command
            .try_get_matches()
            .and_then(|matches| Self::from_arg_matches(&matches));
        read.unwrap_or_else(|error| error.exit())
    }

    /// Does what was asked, and says how it ended.
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
            Command::Check(arguments) => check::execute(&arguments).into(),
            Command::Healthcheck(arguments) => healthcheck::execute(&arguments).into(),
            Command::Completions(arguments) => completions::execute(&arguments).into(),
            Command::Man(arguments) => man::execute(&arguments).into(),
        }
    }
}

/// Scripts "unset" a variable by setting it to nothing, where clap would read an empty value: forgets those variables.
fn without_empty_variables(command: clap::Command, variable: &dyn Fn(&OsStr) -> Option<OsString>) -> clap::Command {
    let set_to_nothing = |name: &OsStr| variable(name).is_some_and(|value| value.is_empty());
    command.mut_subcommands(|command| {
        command.mut_args(|argument| match argument.get_env() {
            Some(name) if set_to_nothing(name) => argument.env(None::<&'static str>),
            _ => argument,
        })
    })
}

/// The conventional variables of the registries, read here and nowhere else. Those of pickd itself belong to flags, and clap
/// reads them.
fn environment() -> Environment {
    let lossy = |text: OsString| text.to_string_lossy().into_owned();
    std::env::vars_os()
        .map(|(name, value)| (lossy(name), lossy(value)))
        .filter(|(name, _)| name.starts_with("CONSUL_"))
        .collect()
}

#[cfg(test)]
mod tests;
