//! What every table is checked with.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Spanned, Value};

use super::duration;
use super::error::{Place, Refusal};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A string with a unit, or seconds as a number. Any value is read at first, because serde
/// describes a choice of types in the words of Rust.
pub(super) type RawDuration = Spanned<Value>;

/// A value and its origin.
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

/// The place in the file, the flag or the variable that set a value.
#[derive(Clone)]
pub(super) enum Origin {
    File(Range<usize>),
    Named(&'static str),
}

impl From<Range<usize>> for Origin {
    fn from(span: Range<usize>) -> Self {
        Self::File(span)
    }
}

/// Goes through the file once, and notes every refusal instead of stopping at the first. Each check
/// returns a usable value, which is dropped at the end if anything was refused.
pub(super) struct Checker<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
    pub(super) refusals: Vec<Refusal>,
}

impl Checker<'_> {
    pub(super) fn refuse(&mut self, origin: impl Into<Origin>, message: impl fmt::Display) {
        let place = match origin.into() {
            Origin::File(span) => Place::in_file(self.path, self.text, span),
            Origin::Named(name) => Place::Named(name),
        };
        self.refusals.push(Refusal {
            place,
            message: message.to_string(),
        });
    }

    /// A path from the file. A relative path starts at the folder of the file.
    pub(super) fn path(&self, written: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(written)
    }

    pub(super) fn duration(
        &mut self,
        key: &str,
        written: Option<&RawDuration>,
        default: Duration,
        (least, most): (Duration, Duration),
    ) -> Duration {
        let Some(written) = written else { return default };
        duration::parse(written.get_ref(), least, most).unwrap_or_else(|error| {
            self.refuse(written.span(), format!("{key} {error}"));
            default
        })
    }

    /// A certificate and its key, each with the name of its setting. Either alone is refused.
    pub(super) fn identity(
        &mut self,
        (certificate, how_certificate): (Option<Given<PathBuf>>, &str),
        (key, how_key): (Option<Given<PathBuf>>, &str),
    ) -> Option<(PathBuf, PathBuf)> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => return Some((certificate.value, key.value)),
            (None, None) => {}
            (Some(certificate), None) => {
                let message = format!("a certificate without its key: set {how_key}, too");
                self.refuse(certificate.origin, message);
            }
            (None, Some(key)) => {
                let message = format!("a key without its certificate: set {how_certificate}, too");
                self.refuse(key.origin, message);
            }
        }
        None
    }

    /// A path from a variable, else from the file. An empty path counts as not given.
    pub(super) fn path_from(
        &self,
        variable: Option<(&'static str, &str)>,
        written: Option<&Spanned<String>>,
    ) -> Option<Given<PathBuf>> {
        if let Some((name, path)) = variable {
            return Some(Given {
                value: path.into(),
                origin: Origin::Named(name),
            });
        }
        let written = written.filter(|path| !path.get_ref().is_empty())?;
        Some(Given {
            value: self.path(written.get_ref()),
            origin: written.span().into(),
        })
    }

    /// Sets a value, if it is written and accepted. A refusal begins with `name`.
    pub(super) fn set<C: Clone, T, E: fmt::Display>(
        &mut self,
        name: &str,
        config: &mut C,
        written: Option<&Spanned<T>>,
        with: impl FnOnce(C, &T) -> Result<C, E>,
    ) {
        let Some(written) = written else { return };
        match with(config.clone(), written.get_ref()) {
            Ok(changed) => *config = changed,
            Err(error) => self.refuse(written.span(), format!("{name}{error}")),
        }
    }
}
