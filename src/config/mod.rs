//! The configuration: what an operator meant, checked.
//!
//! ```text
//! flags > environment > file > defaults ──► raw (what is written) ──► Config (what is meant) or every refusal, with its place
//! ```
//!
//! A [`Config`] that exists is right: in range, complete, with paths that start at the configuration file, and comparable, so
//! that a reload can tell what changed. Nothing here opens a socket, reads a registry or knows what its settings are for;
//! of all files it reads only the configuration file.

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
