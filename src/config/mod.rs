//! The configuration of an agent, read and checked.
//!
//! ```text
//! flags > environment > file > defaults ──► raw tables ──► Config, or every refusal with its place
//! ```
//!
//! Each table of the file is one file here, with its keys, what they mean and how they are checked.
//! The keys of `[defaults]` and `[services.<name>]` come from the table of settings in the core.
//!
//! A [`Config`] is always valid: values are in range, nothing is missing, and paths start at the
//! configuration file. Two of them can be compared, so a reload finds what changed. This module
//! opens no socket, reads no file but the configuration file, and does not know what the settings
//! are for.

mod address;
mod api;
mod checker;
mod config_sources;
mod consul;
mod document;
mod duration;
mod error;
mod etcd;
mod file;
mod health_check;
mod metrics;
mod probe;
mod services;

pub use crate::api::server::Listen;
pub use address::{ConsulAddress, EtcdAddress, InvalidAddress, listen, listen_tcp, socket_path};
pub use api::ApiConfig;
pub use config_sources::{ConfigSources, Flags, Variables};
pub use document::{Config, SourceConfig};
pub use error::{ConfigError, Place, Refusal};
pub use file::FileConfig;
pub use metrics::MetricsConfig;

#[cfg(test)]
mod tests;
