//! Why there is no pick, and why a report does not count. Each variant is another answer to the
//! caller.

use std::fmt;

use super::instance::{InstanceId, ServiceName, Source};

/// Why no instance was picked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickError {
    /// No source lists the name, and a source that could list it has not synced yet: try again
    /// soon.
    #[error("service {service}: {waiting_for} has not synced yet")]
    NotSynced {
        /// The requested service.
        service: ServiceName,
        /// The first source that has not synced.
        waiting_for: Source,
    },
    /// Every source that could list the name has synced, and none lists it.
    #[error("service {service} is unknown")]
    Unknown {
        /// The requested service.
        service: ServiceName,
    },
    /// The service is known, and has no instances at present.
    #[error("service {service} has no instances")]
    Empty {
        /// The requested service.
        service: ServiceName,
    },
    /// The service has instances, and none has the requested port.
    #[error("service {service}: none of {total} instances has the port {port:?}")]
    UnknownPort {
        /// The requested service.
        service: ServiceName,
        /// The requested port, shortened.
        port: String,
        /// The number of its instances.
        total: usize,
    },
    /// The service has instances. Each is down, of weight 0, excluded, or without a requested tag or
    /// port.
    #[error("service {service}: none of {total} instances can be picked")]
    NoneAvailable {
        /// The requested service.
        service: ServiceName,
        /// The number of its instances.
        total: usize,
    },
}

/// An id that a service does not list, and has not listed within the last hour; or an id that
/// registries list at several addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct UnknownInstance {
    /// The requested service.
    pub service: ServiceName,
    /// The requested id.
    pub id: InstanceId,
    /// The instances that are registered under this id. Mostly none.
    pub registered_as: Vec<InstanceId>,
}

impl fmt::Display for UnknownInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (service, id) = (&self.service, self.id.as_str());
        if self.registered_as.is_empty() {
            return write!(
                f,
                "service {service} has no instance {id:?}, and had none in the last hour"
            );
        }
        let instances: Vec<_> = self.registered_as.iter().map(InstanceId::as_str).collect();
        write!(
            f,
            "service {service} lists {id:?} at several addresses: expected one of {instances:?}"
        )
    }
}

/// Why a report does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// No such lease: never given out, reported before, or expired so long ago that it is
    /// forgotten.
    #[error("unknown lease")]
    UnknownLease,
    /// No such service.
    #[error("unknown service")]
    UnknownService,
    /// The service has no such instance, and had none in the last hour.
    #[error("unknown instance")]
    UnknownInstance,
    /// More reports without a lease than picks in the last minute.
    #[error("no credit: more reports without a lease than picks in the last minute")]
    NoCredit,
}
