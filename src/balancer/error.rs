//! Why there is no pick. Each variant is another answer to the caller.

use super::instance::{InstanceId, ServiceName, Source};

/// Why no instance was picked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// Nobody lists the name, and a source that could has not told everything yet: ask again soon.
    #[error("service {service}: {waiting_for} has not synced yet")]
    NotSynced {
        /// The service asked for.
        service: ServiceName,
        /// The first source that is waited for.
        waiting_for: Source,
    },
    /// Every source that could list the name has synced, and none does.
    #[error("service {service} is unknown")]
    Unknown {
        /// The service asked for.
        service: ServiceName,
    },
    /// The service is known, and has no instances at present.
    #[error("service {service} has no instances")]
    Empty {
        /// The service asked for.
        service: ServiceName,
    },
    /// Instances exist; each is down, of weight 0, excluded, or lacks a tag.
    #[error("service {service}: none of {total} instances can be picked")]
    NoneAvailable {
        /// The service asked for.
        service: ServiceName,
        /// Its instances.
        total: usize,
    },
}

/// An id that a service does not list, and has not listed within the last hour.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("service {service} has no instance {id:?}, and had none in the last hour", id = .id.as_str())]
pub struct UnknownInstance {
    /// The service asked for.
    pub service: ServiceName,
    /// The id asked for.
    pub id: InstanceId,
}

/// Why a report does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// No such lease: never handed out, reported already, or expired so long ago that it is forgotten.
    #[error("unknown lease")]
    UnknownLease,
    /// No such service.
    #[error("unknown service")]
    UnknownService,
    /// The service has no such instance, and had none lately.
    #[error("unknown instance")]
    UnknownInstance,
    /// More reports without a lease than picks in the last minute.
    #[error("no credit: more reports without a lease than picks in the last minute")]
    NoCredit,
}
