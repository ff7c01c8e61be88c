//! `pickd demo`: a small world to try the agent in.

use std::net::SocketAddr;
use std::process::ExitCode;

use super::Exit;
use super::output::say;
use super::run::LogArguments;
use crate::config;

const EXAMPLES: &str = "\
Example:
  pickd demo";

/// Start small backends and an agent that picks among them, and print what to try.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(super) struct DemoArguments {
    /// Listen here; without it, on 127.0.0.1:7425 or the next port that is free
    #[arg(long, value_name = "ADDR", value_parser = config::listen)]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) log: LogArguments,
}

pub(super) fn execute(arguments: DemoArguments) -> ExitCode {
    let DemoArguments { listen: _, log: _ } = arguments;
    say("this build has no demo yet");
    Exit::Failed.into()
}
