//! Logs, set up once, on stderr.
//!
//! Lines for people on a terminal, one JSON object a line otherwise. State changes are logged
//! once, picks never.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::balancer::is_printable;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people on a terminal, else JSON.
    #[default]
    Auto,
    /// Lines for people.
    Human,
    /// One JSON object a line, for programs.
    Json,
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Not a valid filter.
    #[error("log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Logs were set up before.
    #[error("logs are set up already")]
    AlreadySet,
}

/// Starts logging what `filter` lets through: a level (`info`), or levels by module
/// (`warn,pickd::discovery=debug`).
///
/// # Errors
///
/// When the filter is not valid, or logs were set up before.
pub fn start(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(filter)?;
    let terminal = io::stderr().is_terminal();
    let human = match format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter);
    let started = if human {
        lines
            .with_writer(|| Escaped(io::stderr()))
            .with_ansi(terminal)
            .with_target(false)
            .compact()
            .finish()
            .try_init()
    } else {
        lines
            .with_writer(io::stderr)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .finish()
            .try_init()
    };
    started.map_err(|_| TelemetryError::AlreadySet)
}

/// Lines for people, with every character escaped that would change the direction of a line or hide.
/// (Control characters in fields are escaped before.)
struct Escaped<W>(W);

impl<W: Write> Write for Escaped<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = |character: char| character.is_control() || is_printable(character);
        match std::str::from_utf8(line) {
            Ok(text) if !text.chars().all(shown) => {
                let mut escaped = String::with_capacity(text.len());
                for character in text.chars() {
                    match shown(character) {
                        true => escaped.push(character),
                        false => escaped.extend(character.escape_default()),
                    }
                }
                self.0.write_all(escaped.as_bytes())?;
            }
            _ => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_people_shows_what_hides() {
        let mut out = Escaped(Vec::new());
        out.write_all("\u{1b}[32mINFO\u{1b}[0m web\u{202e} é\n".as_bytes())
            .unwrap();
        out.write_all(b"plain\xff\n").unwrap();
        assert_eq!(out.0, b"\x1b[32mINFO\x1b[0m web\\u{202e} \xc3\xa9\nplain\xff\n");
    }
}
