//! `[file]` and `--file`.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::checker::Checker;

/// `[file]`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileConfig {
    /// Path of the file registry.
    pub path: PathBuf,
    /// Whether readiness waits for the file registry.
    pub required: bool,
}

/// `[file]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawFile {
    path: Spanned<String>,
    required: Option<bool>,
}

impl Checker<'_> {
    /// The settings, if there is a table or a flag.
    pub(super) fn file(&mut self, raw: Option<&Spanned<RawFile>>, flag: Option<&PathBuf>) -> Option<FileConfig> {
        let raw = raw.map(Spanned::get_ref);
        if let Some(raw) = raw
            && raw.path.get_ref().is_empty()
        {
            self.refuse(raw.path.span(), "file.path \"\": expected the path of a file");
        }
        let written = raw.map(|raw| self.path(raw.path.get_ref()));
        let path = flag.cloned().or(written)?;
        Some(FileConfig {
            path,
            required: raw.and_then(|raw| raw.required).unwrap_or(true),
        })
    }
}
