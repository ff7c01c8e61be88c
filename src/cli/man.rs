//! `pickd man`: manual pages, made from the same definitions as `--help`.
//!
//! `pickd(1)` describes the whole command and names a page for each of its commands: `pickd-run(1)`
//! and so on.

use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::output::{self, message};
use super::{Cli, Exit};

const EXAMPLES: &str = "\
Examples:
  pickd man | man -l -                      read pickd(1)
  pickd man run | man -l -                  read pickd-run(1)
  pickd man --directory /usr/local/share/man/man1";

/// Print a manual page, or write all of them.
#[derive(Debug, clap::Args)]
#[command(
    before_help = EXAMPLES,
    after_help = "Exit codes: 0 fine, 1 a page cannot be written, 2 no such command"
)]
pub(super) struct ManArguments {
    /// The command to describe; without it, pickd as a whole
    #[arg(conflicts_with = "directory")]
    command: Option<String>,
    /// Write pickd.1 and a page for each command into this folder
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn execute(arguments: &ManArguments) -> Exit {
    if let Some(directory) = &arguments.directory {
        return match write_all(directory) {
            Ok(()) => Exit::Success,
            Err(error) => {
                message(format_args!("{}: {error}", directory.display()));
                Exit::Failed
            }
        };
    }
    let root = root();
    let described = match &arguments.command {
        None => Some(&root),
        Some(name) => root.find_subcommand(name),
    };
    match described {
        Some(command) => output::data(&String::from_utf8_lossy(&page(command))),
        None => {
            let name = arguments.command.as_deref().unwrap_or_default();
            message(format_args!("there is no command {name:?}"));
            Exit::Usage
        }
    }
}

/// The command line, complete with the full name of each command.
fn root() -> clap::Command {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    root
}

fn write_all(directory: &Path) -> io::Result<()> {
    let root = root();
    std::fs::create_dir_all(directory)?;
    for command in root.get_subcommands().chain([&root]) {
        let file = Man::new(command.clone()).get_filename();
        std::fs::write(directory.join(file), page(command))?;
    }
    Ok(())
}

/// One page, in the order of man-pages(7). The help's examples keep their lines.
fn page(command: &clap::Command) -> Vec<u8> {
    let mut page = Vec::new();
    // Writing to memory cannot fail.
    let _ = render(command, &mut page);
    page
}

fn render(command: &clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone())
        .source(format!("pickd {version}"))
        .manual("pickd manual");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    if let Some(notes) = command.get_after_help() {
        let notes = notes.to_string();
        let (heading, text) = match notes.strip_prefix("Exit codes: ") {
            Some(codes) => ("EXIT STATUS", codes),
            None => ("NOTES", notes.as_str()),
        };
        Roff::new()
            .control("SH", [heading])
            .text([roman(text)])
            .to_writer(page)?;
    }
    if let Some(examples) = command.get_before_help() {
        let mut roff = Roff::new();
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples.to_string().lines().skip(1) {
            roff.text([roman(line)]);
        }
        roff.control("fi", []).to_writer(page)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(command: &clap::Command) -> String {
        String::from_utf8(page(command)).unwrap()
    }

    #[test]
    fn the_page_of_the_whole_names_the_page_of_each_command() {
        let root = root();
        let page = text(&root);
        for command in root.get_subcommands() {
            let name = format!("pickd\\-{}(1)", command.get_name());
            assert!(page.contains(&name), "{name} in {page}");
        }
    }

    #[test]
    fn the_page_of_a_command_has_its_flags_variables_notes_and_examples() {
        let root = root();
        let page = text(root.find_subcommand("run").unwrap());
        for part in [
            ".TH pickd-run 1",
            "pickd\\-run \\- Run an agent",
            "etcd\\-prefix",
            "PICKD_ETCD_PREFIX",
            ".SH NOTES",
            ".SH EXAMPLES",
            "  pickd run \\-\\-file services.toml            from a file, read again on changes",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        let page = text(root.find_subcommand("healthcheck").unwrap());
        assert!(page.contains(".SH \"EXIT STATUS\"\n0 ready, 1 not ready"), "{page}");
    }

    #[test]
    fn all_pages_are_written_into_a_folder_that_need_not_be_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("share/man1");
        write_all(&pages).unwrap();
        let mut written: Vec<String> = std::fs::read_dir(&pages)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        written.sort();
        let root = root();
        let mut expected: Vec<String> = root
            .get_subcommands()
            .map(|command| format!("pickd-{}.1", command.get_name()))
            .chain(["pickd.1".to_owned()])
            .collect();
        expected.sort();
        assert_eq!(written, expected);
    }
}
