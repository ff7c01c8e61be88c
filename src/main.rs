//! The pick daemon's binary: arguments in, exit code out. Everything else is [`pickd::cli`].

use std::process::ExitCode;

use pickd::cli::Cli;

fn main() -> ExitCode {
    Cli::read().execute()
}
