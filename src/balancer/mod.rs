//! The core: everything that decides, and nothing that talks.
//!
//! # The story of one pick
//!
//! 1. [`Directory::get`] finds the service's [`LoadBalancer`]: one hash, no lock.
//! 2. [`LoadBalancer::select_instance`] loads the present view from one `ArcSwap`. The view holds every registered instance, the
//!    candidates among them (available, of weight above zero) and the strategy's tables, all prepared beforehand.
//! 3. The strategy chooses: a turn in a precomputed sequence, a look at two atomics, a place on a ring.
//! 4. The chosen instance's counter goes up by one, and a [`Pick`] that points into the view is handed back, with bodies
//!    that were rendered when the instance last changed.
//!
//! No lock, no allocation, no syscall; a clock only for `least_response_time`, and for the one pick that is let through as a
//! trial.
//!
//! # The story of one outcome, or of one check
//!
//! 1. It is noted in the live state of its address: response time, the window of outcomes, [`breaker`](health::breaker), [`grade`](health::grade) grade or
//!    [`checks`](health::checks) checks. Mostly that is all.
//! 2. A step of one of them has the pool decided about anew ([`ejection`](health::ejection)): who is out, whom the cap holds, whether the pool
//!    panics. The next pick heeds it, by a look at the instances it considers.
//! 3. A moment later one new view follows for all such steps, whose tables know; picks need not look any more.
//!
//! # What this module must not know
//!
//! Tokio, serde, HTTP, logs, metrics, files, sockets. Time comes through a [`Clock`], the first turn's place through a seed,
//! bytes through a [`Render`]. Transitions return what happened; somebody else reports it. `tests/integration/house.rs` holds this.

pub(crate) mod agenda;
pub(crate) mod clock;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod denied_networks;
pub(crate) mod diff;
pub(crate) mod directory;
pub(crate) mod environment;
pub(crate) mod error;
pub(crate) mod explain;
pub(crate) mod health;
pub(crate) mod instance;
pub(crate) mod lease;
pub(crate) mod live;
pub(crate) mod load_balancer;
pub(crate) mod member;
pub(crate) mod outcome;
pub(crate) mod overrides;
pub(crate) mod render;
pub(crate) mod report_credit;
pub(crate) mod share;
pub(crate) mod sources;
pub(crate) mod statistics;
pub(crate) mod strategy;
mod sync;
pub(crate) mod view;

pub use clock::{Clock, Manual, Monotonic, Since, Timestamp};
pub use config::{BreakerConfig, Choices, InvalidConfig, Preset};
pub use denied_networks::{DeniedNetworks, InvalidNetwork, Network};
pub use diff::{Changes, diff};
pub use directory::{KNOWN_FOR, ServiceConfigs};
pub use environment::{Environment, Wake};
pub use error::{ReportError, UnknownInstance};
pub use explain::{ExplainedInstance, ExplainedKey, Explanation, Score};
pub use health::breaker::{BreakerState, CloseReason, TripReason};
pub use health::checks::{ActiveState, Check, CheckFailure};
pub use health::grade::{DegradedReason, PassiveState};
pub use health::layers::{Layers, UnavailableReason};
pub use instance::{Address, InvalidInstance, RegistryStatus, Source};
pub use lease::{InvalidLease, Lease, LeaseDenied, LeaseId, LeaseKey};
pub use load_balancer::pick::Alternate;
pub use load_balancer::transitions::{Transition, Transitioned};
pub use overrides::{
    Ended, EndedBecause, InstanceOverrides, InvalidOrder, Order, Override, OverrideCounts, StandingOrder, WeightOrder,
};
pub use render::{Bodies, Described, NoBodies, Render};
pub use share::Factors;
pub use sources::{Scope, SourceStatus, Sources};
pub use statistics::{CheckStatistics, InstanceStatistics, LeaseStatistics, Refusals, ReportStatistics};
pub use strategy::draw::Mode;

// Public at the root of the crate (see lib.rs). The rooms around the core name them here.
#[cfg(feature = "agent")]
pub(crate) use self::{
    config::{LoadBalancerConfig, LoadBalancingStrategy},
    context::Context,
    directory::Directory,
    error::PickError,
    instance::{HealthStatus, InstanceId, ServiceInstance, ServiceName, Weight},
    load_balancer::LoadBalancer,
    load_balancer::pick::Pick,
    outcome::Outcome,
    statistics::Statistics,
};
