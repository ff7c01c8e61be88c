//! Why a configuration was refused: `file:line:column: message`, then the line with the place
//! marked.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("{}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One or more settings are wrong.
    #[error("{}", Lines(.0))]
    Refused(Vec<Refusal>),
    /// No setting is wrong, but no registry is configured.
    #[error(
        "nothing to pick from: no registry is configured\n\
         name one, as `pickd run --consul http://127.0.0.1:8500`, `pickd run --etcd http://127.0.0.1:2379` or\n\
         `pickd run --file services.toml`, or as a [consul], [etcd] or [file] table in a file given by --config; `pickd demo` brings its own"
    )]
    NoSource,
}

/// One setting that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The place of the setting.
    pub place: Place,
    /// The value, and the values that are expected.
    pub message: String,
}

/// The place of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// In the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// The line, with the place marked below it.
        excerpt: String,
    },
    /// In the flag or the environment variable of this name.
    Named(&'static str),
}

impl Place {
    /// The place of these bytes of the file.
    pub(super) fn in_file(path: &Path, text: &str, span: Range<usize>) -> Self {
        // The spans of the parser lie on character boundaries. Any other span gives a rough place.
        let before = text.get(..span.start).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[start..].chars().count() + 1;

        let whole = text[start..].lines().next().unwrap_or_default();
        let marked = text
            .get(span)
            .and_then(|marked| marked.lines().next())
            .map_or(0, |marked| marked.chars().count());
        // Tabs stay tabs, so that the marks stand below the value at any width of a tab.
        let indent: String = before[start..]
            .chars()
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let gutter = " ".repeat(line.to_string().len());
        let excerpt = format!(
            "{gutter} |\n{line} | {whole}\n{gutter} | {indent}{}",
            "^".repeat(marked.max(1))
        );
        Self::File {
            path: path.to_owned(),
            line,
            column,
            excerpt,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File {
                path,
                line,
                column,
                excerpt,
            } => {
                write!(f, "{}:{line}:{column}: {}\n{excerpt}", path.display(), self.message)
            }
            Place::Named(name) => write!(f, "{name}: {}", self.message),
        }
    }
}

struct Lines<'a>(&'a [Refusal]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{refusal}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Range<usize>) -> String {
        let place = Place::in_file(Path::new("p.toml"), text, span);
        Refusal {
            place,
            message: "wrong".to_owned(),
        }
        .to_string()
    }

    #[test]
    fn a_place_is_a_line_a_column_and_the_line_itself() {
        assert_eq!(
            shown("[a]\nb = 12\r\nc = 3\n", 8..10),
            "p.toml:2:5: wrong\n  |\n2 | b = 12\n  |     ^^"
        );
    }

    #[test]
    fn columns_count_characters_and_marks_follow_tabs() {
        assert_eq!(
            shown("\tä = \"ö\"", 6..10),
            "p.toml:1:6: wrong\n  |\n1 | \tä = \"ö\"\n  | \t    ^^^"
        );
    }

    #[test]
    fn the_end_of_the_file_and_many_lines_are_places_too() {
        assert_eq!(shown("a = [", 5..5), "p.toml:1:6: wrong\n  |\n1 | a = [\n  |      ^");
        assert_eq!(shown("", 0..0), "p.toml:1:1: wrong\n  |\n1 | \n  | ^");
        assert_eq!(
            shown("a = [\n1,\n]", 4..10),
            "p.toml:1:5: wrong\n  |\n1 | a = [\n  |     ^"
        );
    }
}
