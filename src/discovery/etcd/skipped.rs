//! Keys whose values cannot be instances, by service: for answers, never for picks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::formats::InvalidRegistration;
use crate::balancer::{ServiceName, SkippedRegistration, SourceStatus};

/// The most characters of a key that are shown.
const SHOWN: usize = 200;

/// The keys that are skipped at present.
#[derive(Default)]
pub(super) struct SkippedKeys {
    by_service: HashMap<ServiceName, BTreeMap<Arc<[u8]>, SkippedRegistration>>,
    /// The services with changes that the status does not show yet.
    changed: HashSet<ServiceName>,
}

impl SkippedKeys {
    /// Adds a key. Returns whether the service had none before.
    pub(super) fn add(&mut self, service: &ServiceName, key: &Arc<[u8]>, skipped: SkippedRegistration) -> bool {
        let keys = self.by_service.entry(service.clone()).or_default();
        let is_first = keys.is_empty();
        keys.insert(Arc::clone(key), skipped);
        self.changed.insert(service.clone());
        is_first
    }

    /// Removes a key that has a valid value now, or is gone. Returns whether it was the last of the
    /// service.
    pub(super) fn remove(&mut self, service: &ServiceName, key: &[u8]) -> bool {
        let Some(keys) = self.by_service.get_mut(service) else {
            return false;
        };
        keys.remove(key);
        let is_last = keys.is_empty();
        if is_last {
            self.by_service.remove(service);
        }
        self.changed.insert(service.clone());
        is_last
    }

    /// Whether a service has such a key.
    pub(super) fn contains(&self, service: &ServiceName) -> bool {
        self.by_service.contains_key(service)
    }

    /// Shows what has changed in the status of the source.
    pub(super) fn show(&mut self, status: &SourceStatus) {
        for service in self.changed.drain() {
            let keys = self.by_service.get(&service).into_iter().flat_map(BTreeMap::values);
            status.set_skipped(&service, keys.collect());
        }
    }
}

/// A key that registers nothing, and why.
pub(super) fn skipped(key: &[u8], error: &InvalidRegistration) -> SkippedRegistration {
    let key: String = String::from_utf8_lossy(key).chars().take(SHOWN).collect();
    match error.is_no_port() {
        true => SkippedRegistration::no_port(key),
        false => SkippedRegistration::invalid(key, error.to_string()),
    }
}
