//! The binary of the pick daemon. Its command line is [`pickd::cli`].

use std::process::ExitCode;

use pickd::cli::Cli;

fn main() -> ExitCode {
    Cli::read().execute()
}
