//! Registrations that a source lists and that cannot be instances, each with its reason.
//!
//! A source skips such a registration alone. The values of a registration may be secrets, so a
//! reason names what is wrong, and never the value.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::instance::{InvalidInstance, ServiceName};

/// How many registrations of a service are listed. The rest is counted.
pub const LISTED: usize = 100;

/// The skipped registrations of one service in one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// How many there are.
    pub total: usize,
    /// The first [`LISTED`] of them, in the order of the source.
    pub listed: Vec<SkippedRegistration>,
}

/// A registration that cannot be an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedRegistration {
    /// What the registry calls the registration: Consul `<ServiceID>@<Node>`, etcd the key. Empty if
    /// it has no name.
    pub id: String,
    /// The kind of reason.
    pub reason: SkipReason,
    /// What is wrong, in one line, without the value itself.
    pub detail: String,
}

/// Why a registration cannot be an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SkipReason {
    /// It has no port: nothing listens there. That is usual, such as for batch jobs of Nomad.
    NoPort,
    /// It is not valid.
    Invalid,
}

impl SkipReason {
    /// The name in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPort => "no_port",
            Self::Invalid => "invalid",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl SkippedRegistration {
    /// A registration that is not valid.
    #[must_use]
    pub fn invalid(id: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            reason: SkipReason::Invalid,
            detail: detail.into(),
        }
    }

    /// A registration without a port.
    #[must_use]
    pub fn no_port(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            reason: SkipReason::NoPort,
            detail: String::from("it has no port"),
        }
    }

    /// A registration that these parts of it make invalid. `id` names the registration.
    #[must_use]
    pub fn refused(id: impl Into<String>, error: &InvalidInstance) -> Self {
        match error.is_no_port() {
            true => Self::no_port(id),
            false => Self::invalid(id, error.without_value()),
        }
    }
}

impl Skipped {
    /// Adds a registration.
    pub fn add(&mut self, registration: &SkippedRegistration) {
        self.total += 1;
        if self.listed.len() < LISTED {
            self.listed.push(registration.clone());
        }
    }
}

impl<'a> FromIterator<&'a SkippedRegistration> for Skipped {
    fn from_iter<I: IntoIterator<Item = &'a SkippedRegistration>>(registrations: I) -> Self {
        let mut skipped = Self::default();
        registrations
            .into_iter()
            .for_each(|registration| skipped.add(registration));
        skipped
    }
}

/// The skipped registrations of a source, by service.
#[derive(Debug, Default)]
pub(crate) struct SkippedByService(Mutex<HashMap<ServiceName, Arc<Skipped>>>);

impl SkippedByService {
    pub(crate) fn set(&self, service: &ServiceName, skipped: Skipped) {
        let mut by_service = self.lock();
        if skipped.total == 0 {
            by_service.remove(service);
        } else {
            by_service.insert(service.clone(), Arc::new(skipped));
        }
    }

    pub(crate) fn of(&self, service: &ServiceName) -> Option<Arc<Skipped>> {
        self.lock().get(service).map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceName, Arc<Skipped>>> {
        // Entries are written in one step each.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hundred_are_listed_and_all_are_counted() {
        let all: Vec<_> = (0..250)
            .map(|number| SkippedRegistration::no_port(number.to_string()))
            .collect();
        let skipped: Skipped = all.iter().collect();
        assert_eq!((skipped.total, skipped.listed.len()), (250, 100));
        assert_eq!(skipped.listed[99].id, "99");
    }

    #[test]
    fn a_service_without_skipped_registrations_has_no_entry() {
        let all = SkippedByService::default();
        let web = "web".parse().unwrap();
        all.set(&web, [SkippedRegistration::invalid("a", "broken")].iter().collect());
        assert_eq!(all.of(&"WEB".parse().unwrap()).unwrap().total, 1);
        all.set(&web, Skipped::default());
        assert!(all.of(&web).is_none() && all.lock().is_empty());
    }
}
