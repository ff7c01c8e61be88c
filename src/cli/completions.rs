//! `pickd completions`: a script that completes commands and flags in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::output::{self, message};
use super::{Cli, Exit};

const EXAMPLES: &str = "\
Examples:
  pickd completions bash > /etc/bash_completion.d/pickd
  pickd completions zsh > /usr/local/share/zsh/site-functions/_pickd
  pickd completions fish > ~/.config/fish/completions/pickd.fish
  source <(pickd completions bash)          in this shell only";

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(super) struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn execute(arguments: &CompletionsArguments) -> Exit {
    match script(arguments.shell) {
        Ok(script) => output::data(&script),
        Err(error) => {
            message(error);
            Exit::Failed
        }
    }
}

fn script(shell: Shell) -> Result<String, std::string::FromUtf8Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pickd", &mut script);
    String::from_utf8(script)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_gets_every_command() {
        for shell in Shell::value_variants() {
            let script = script(*shell).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("etcd-prefix"), "{shell}");
        }
    }
}
