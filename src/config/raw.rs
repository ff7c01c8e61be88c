//! What an operator writes: the configuration file, key by key, before anything in it is checked.
//!
//! A key that is not here is refused, so everything here works. [`super`] turns it into what is meant; [`Spanned`] keeps
//! where a value stood, so that a refusal can point at it.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Spanned, Value};

use super::services::{RawBalancer, RawService};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawConfig {
    #[serde(default)]
    pub(super) api: RawApi,
    pub(super) consul: Option<Spanned<RawConsul>>,
    pub(super) etcd: Option<Spanned<RawEtcd>>,
    pub(super) file: Option<Spanned<RawFile>>,
    #[serde(default)]
    pub(super) metrics: RawMetrics,
    #[serde(default)]
    pub(super) probe: RawProbe,
    #[serde(default)]
    pub(super) defaults: RawBalancer,
    #[serde(default)]
    pub(super) services: BTreeMap<Spanned<String>, RawService>,
}

/// `[api]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawApi {
    pub(super) listen: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    pub(super) allowed_hosts: Vec<Spanned<String>>,
    pub(super) ready_timeout: Option<RawDuration>,
    pub(super) admin_token_file: Option<Spanned<String>>,
    pub(super) socket_mode: Option<Spanned<String>>,
    pub(super) socket_group: Option<Spanned<String>>,
}

/// `[consul]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawConsul {
    pub(super) address: Option<Spanned<String>>,
    pub(super) services: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) exclude: Option<Vec<Spanned<String>>>,
    pub(super) token_file: Option<Spanned<String>>,
    pub(super) datacenter: Option<Spanned<String>>,
    pub(super) wait: Option<RawDuration>,
    pub(super) max_watches: Option<Spanned<i64>>,
    pub(super) refresh: Option<RawDuration>,
    pub(super) max_stale: Option<RawDuration>,
    pub(super) required: Option<bool>,
    pub(super) ca_file: Option<Spanned<String>>,
    pub(super) cert_file: Option<Spanned<String>>,
    pub(super) key_file: Option<Spanned<String>>,
}

/// `[etcd]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawEtcd {
    pub(super) endpoints: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) prefixes: Option<Spanned<Vec<RawPrefix>>>,
    pub(super) username: Option<Spanned<String>>,
    pub(super) password_file: Option<Spanned<String>>,
    pub(super) refresh: Option<RawDuration>,
    pub(super) required: Option<bool>,
    pub(super) ca_file: Option<Spanned<String>>,
    pub(super) cert_file: Option<Spanned<String>>,
    pub(super) key_file: Option<Spanned<String>>,
}

/// `[[etcd.prefixes]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawPrefix {
    pub(super) prefix: Spanned<String>,
    pub(super) format: Option<Spanned<String>>,
    pub(super) service: Option<Spanned<String>>,
    pub(super) scheme: Option<Spanned<String>>,
}

/// `[file]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawFile {
    pub(super) path: Spanned<String>,
    pub(super) required: Option<bool>,
}

/// `[metrics]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawMetrics {
    pub(super) instance_series: Option<Spanned<i64>>,
}

/// `health_check = { … }`: the keys of all kinds, since a tagged enum would lose their places.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawHealthCheck {
    #[serde(rename = "type")]
    pub(super) kind: Option<Spanned<String>>,
    pub(super) method: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) headers: Option<Spanned<BTreeMap<Spanned<String>, Spanned<String>>>>,
    pub(super) statuses: Option<Spanned<Vec<Spanned<Value>>>>,
    pub(super) service: Option<Spanned<String>>,
}

/// `[probe]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawProbe {
    pub(super) max_rate: Option<Spanned<i64>>,
    pub(super) max_concurrent: Option<Spanned<i64>>,
    #[serde(default)]
    pub(super) deny: Vec<Spanned<String>>,
}

/// A string with a unit, or seconds as a number. Any value at all, since serde's own words for "one of these types" help
/// nobody.
pub(super) type RawDuration = Spanned<Value>;
