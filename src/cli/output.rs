//! Output of the commands: data goes to stdout, messages go to stderr.

use std::fmt;
use std::io::{self, Write};

use super::Exit;
use super::agent_client::AgentError;
use crate::balancer::is_printable;

/// The format of the data that a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// A table, or host:port lines, for people and shells.
    Text,
    /// The answer of the agent, on one line.
    Json,
}

/// Prints text to stdout, with exactly one line end behind it.
///
/// A closed pipe is not an error: in `pickd services | head -1`, the reader has read all that it
/// wanted.
pub(super) fn data(text: &str) -> Exit {
    match write(&mut io::stdout().lock(), text) {
        Ok(()) => Exit::Success,
        Err(error) => {
            message(format_args!("cannot write the answer: {error}"));
            Exit::Failed
        }
    }
}

/// Prints the answer of an agent to stdout, or the error to stderr.
pub(super) fn answer(answer: Result<String, AgentError>) -> Exit {
    match answer {
        Ok(text) => data(&text),
        Err(error) => {
            message(&error);
            error.exit()
        }
    }
}

fn write(out: &mut impl Write, text: &str) -> io::Result<()> {
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// The text with every character escaped that is not printable (`\u{202e}`): names from registries
/// must not move the cursor of a terminal, or change the direction of a line.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match is_printable(character) {
            true => escaped.push(character),
            false => escaped.extend(character.escape_default()),
        }
    }
    escaped
}

/// Each line of a message, escaped.
fn lines(text: impl fmt::Display) -> String {
    let lines: Vec<_> = text.to_string().split('\n').map(escaped).collect();
    lines.join("\n")
}

/// Prints a message for people to stderr, with the name of the program.
pub(super) fn message(text: impl fmt::Display) {
    // An error of stderr cannot be reported anywhere.
    let _ = writeln!(io::stderr().lock(), "pickd: {}", lines(text));
}

/// Prints a message to stderr without the name of the program. Editors look for messages that begin
/// with `file:line:column`.
pub(super) fn bare_message(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{}", lines(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_printable_is_escaped() {
        assert_eq!(escaped("team/a b+é\\\"漢"), "team/a b+é\\\"漢");
        assert_eq!(escaped("a\u{202e}b\x1b[2J\n"), "a\\u{202e}b\\u{1b}[2J\\n");
        assert_eq!(lines("a\nb\u{200b}"), "a\nb\\u{200b}");
    }

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn data_ends_in_one_line_end() {
        for text in ["a", "a\n", "a\n\n"] {
            let mut out = Vec::new();
            write(&mut out, text).unwrap();
            assert_eq!(out, b"a\n");
        }
    }

    #[test]
    fn a_closed_pipe_is_not_an_error_and_a_full_disk_is() {
        assert!(write(&mut Broken(io::ErrorKind::BrokenPipe), "a").is_ok());
        assert!(write(&mut Broken(io::ErrorKind::StorageFull), "a").is_err());
    }
}
