//! What is missing until the watcher has sent everything once.
//!
//! Services that leave the catalog, or whose answers stay unusable, are no longer waited for.

use std::collections::BTreeSet;

use crate::balancer::ServiceName;

/// The services that have to be read before [`Update::Synced`] is sent.
///
/// [`Update::Synced`]: crate::discovery::Update::Synced
#[derive(Default)]
pub(super) enum InitialSync {
    /// No catalog that can be trusted has been read yet.
    #[default]
    NoCatalog,
    Waiting(BTreeSet<ServiceName>),
    Complete,
}

impl InitialSync {
    /// The first catalog that can be trusted has been read. What was read before counts only when
    /// it is read again, so that `known` services are waited for, too.
    pub(super) fn catalog_read<'a>(&mut self, known: impl Iterator<Item = &'a ServiceName>) {
        if matches!(self, Self::NoCatalog) {
            *self = Self::Waiting(known.cloned().collect());
        }
    }

    /// Waits for a service that the catalog lists.
    pub(super) fn wait_for(&mut self, service: &ServiceName) {
        if let Self::Waiting(missing) = self {
            missing.insert(service.clone());
        }
    }

    /// Waits no longer for a service: it was read, it left, or it cannot be read.
    pub(super) fn settled(&mut self, service: &ServiceName) {
        if let Self::Waiting(missing) = self {
            missing.remove(service);
        }
    }

    /// Completes the sync if nothing is missing. True once.
    pub(super) fn complete(&mut self) -> bool {
        let complete = matches!(self, Self::Waiting(missing) if missing.is_empty());
        if complete {
            *self = Self::Complete;
        }
        complete
    }

    pub(super) fn is_complete(&self) -> bool {
        matches!(self, Self::Complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_sync_is_complete_once_when_every_service_is_settled() {
        let mut sync = InitialSync::default();
        assert!(!sync.complete(), "no catalog yet");
        sync.wait_for(&name("early"));
        sync.catalog_read([&name("known")].into_iter());
        sync.wait_for(&name("new"));
        sync.catalog_read([&name("later")].into_iter());
        for service in ["known", "new"] {
            assert!(!sync.complete(), "{service} is missing");
            sync.settled(&name(service));
        }
        assert!(sync.complete() && sync.is_complete());
        assert!(!sync.complete(), "once");
        sync.wait_for(&name("after"));
        assert!(sync.is_complete());
    }

    #[test]
    fn an_empty_catalog_completes_at_once() {
        let mut sync = InitialSync::default();
        sync.catalog_read(std::iter::empty());
        assert!(sync.complete());
    }
}
