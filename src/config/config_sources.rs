//! Where settings come from, besides their defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::address::{ConsulAddress, EtcdAddress};
use crate::api::server::Listen;
use crate::balancer::LoadBalancingStrategy;

/// The sources of all settings, read again on a reload.
#[derive(Clone, Debug, Default)]
pub struct ConfigSources {
    /// The flags and their `PICKD_*` variables.
    pub flags: Flags,
    /// The conventional `CONSUL_*` and `ETCDCTL_*` variables. They complete a registry that is
    /// configured, and never switch a registry on.
    pub environment: Variables,
    /// The configuration file.
    pub file: Option<PathBuf>,
}

/// Settings from flags, which win over all others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags {
    /// In place of `api.listen`, unless empty.
    pub listen: Vec<Listen>,
    /// Switches Consul on, at this address.
    pub consul: Option<ConsulAddress>,
    /// In place of `consul.services`, unless empty.
    pub consul_services: Vec<String>,
    /// Switches etcd on, with these endpoints, unless empty.
    pub etcd: Vec<EtcdAddress>,
    /// In place of `etcd.prefixes`, each in format `auto`, unless empty.
    pub etcd_prefixes: Vec<String>,
    /// Switches the file registry on, at this path.
    pub file: Option<PathBuf>,
    /// In place of `defaults.strategy`. Services that name a strategy keep their own.
    pub strategy: Option<LoadBalancingStrategy>,
}

/// Variables variables, as they were when the process started.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        // Scripts unset a variable by setting it to nothing, and Consul's own tools accept that.
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl FromIterator<(String, String)> for Variables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names only: values may be tokens.
        f.debug_set().entries(self.0.keys()).finish()
    }
}
