//! Where words go: data to stdout, talk to stderr.

use std::fmt;
use std::io::{self, Write};

use super::Exit;

/// The form of what a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people, and for shells: a table, or host:port lines.
    Text,
    /// The agent's own answer, on one line.
    Json,
}

/// Prints text with exactly one line end behind it.
///
/// A reader that has gone away (`pickd services | head -1`) has had what it wanted, and is no error.
pub(super) fn data(text: &str) -> Exit {
    match write(&mut io::stdout().lock(), text) {
        Ok(()) => Exit::Fine,
        Err(error) => {
            say(format_args!("cannot write the answer: {error}"));
            Exit::Failed
        }
    }
}

fn write(out: &mut impl Write, text: &str) -> io::Result<()> {
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Tells a person something.
pub(super) fn say(message: impl fmt::Display) {
    // There is nobody left to tell when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "pickd: {message}");
}

/// Tells a person as it is: for messages that begin with `file:line:column`, which editors look for.
pub(super) fn say_plainly(message: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_reader_that_left_is_no_error_and_a_full_disk_is() {
        assert!(write(&mut Broken(io::ErrorKind::BrokenPipe), "a").is_ok());
        assert!(write(&mut Broken(io::ErrorKind::StorageFull), "a").is_err());
    }
}
