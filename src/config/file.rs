//! `[file]` and `--file`.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::checker::Checker;
use crate::balancer::ServiceName;

/// `[file]`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileConfig {
    /// Path of the file registry.
    pub path: PathBuf,
    /// Whether readiness waits for the file registry.
    pub required: bool,
    /// The service of Prometheus targets without the label `job`.
    pub service: Option<ServiceName>,
}

/// `[file]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawFile {
    path: Spanned<String>,
    required: Option<bool>,
    service: Option<Spanned<String>>,
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
        let service = raw
            .and_then(|raw| raw.service.as_ref())
            .filter(|written| !written.get_ref().is_empty())
            .and_then(|written| match written.get_ref().parse() {
                Ok(name) => Some(name),
                Err(error) => {
                    self.refuse(written.span(), format!("file.service: {error}"));
                    None
                }
            });
        let written = raw.map(|raw| self.path(raw.path.get_ref()));
        let path = flag.cloned().or(written)?;
        Some(FileConfig {
            path,
            service,
            required: raw.and_then(|raw| raw.required).unwrap_or(true),
        })
    }
}
