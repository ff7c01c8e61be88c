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
//! 1. It is noted in the live state of its address: response time, the window of outcomes, [`breaker`], [`passive`] grade or
//!    [`active`] checks. Mostly that is all.
//! 2. A step of one of them has the pool decided about anew (`judgement`): who is out, whom the cap holds, whether the pool
//!    panics. The next pick heeds it, by a look at the instances it considers.
//! 3. A moment later one new view follows for all such steps, whose tables know; picks need not look any more.
//!
//! # What this module must not know
//!
//! Tokio, serde, HTTP, logs, metrics, files, sockets. Time comes through a [`Clock`], the first turn's place through a seed,
//! bytes through a [`Render`]. Transitions return what happened; somebody else reports it. `tests/integration/house.rs` holds this.

pub mod clock;
pub mod config;
pub mod context;
pub mod denied_networks;
pub mod diff;
pub mod directory;
pub mod environment;
pub mod error;
pub mod explain;
pub mod health;
pub mod instance;
pub mod lease;
pub(crate) mod live;
pub mod load_balancer;
pub(crate) mod member;
pub mod outcome;
pub mod overrides;
pub mod render;
pub(crate) mod report_credit;
pub mod share;
pub mod sources;
pub mod statistics;
pub mod strategy;
mod sync;
pub(crate) mod view;

pub use clock::{Clock, Manual, Monotonic, Since, Timestamp};
pub use config::{BreakerConfig, Choices, InvalidConfig, LoadBalancerConfig, LoadBalancingStrategy, Preset};
pub use context::Context;
pub use denied_networks::{DeniedNetworks, InvalidNetwork, Network};
pub use diff::{Changes, diff};
pub use directory::{Directory, KNOWN_FOR, ServiceConfigs};
pub use environment::{Environment, Wake};
pub use error::{PickError, ReportError, UnknownInstance};
pub use explain::{ExplainedInstance, ExplainedKey, Explanation, Score};
pub use health::breaker::{BreakerState, CloseReason, TripReason};
pub use health::checks::{ActiveState, Check, CheckFailure};
pub use health::grade::{DegradedReason, PassiveState};
pub use health::layers::{Layers, UnavailableReason};
pub use instance::{
    Address, HealthStatus, InstanceId, InvalidInstance, RegistryStatus, ServiceInstance, ServiceName, Source, Weight,
};
pub use lease::{InvalidLease, Lease, LeaseDenied, LeaseId, LeaseKey};
pub use load_balancer::LoadBalancer;
pub use load_balancer::pick::{Acquired, Alternate, Pick};
pub use load_balancer::transitions::{Transition, Transitioned};
pub use outcome::Outcome;
pub use overrides::{
    Ended, EndedBecause, InstanceOverrides, InvalidOrder, Order, Override, OverrideCounts, StandingOrder, WeightOrder,
};
pub use render::{Bodies, Described, NoBodies, Render};
pub use share::Factors;
pub use sources::{Scope, SourceStatus, Sources};
pub use statistics::{CheckStatistics, InstanceStatistics, LeaseStatistics, Refusals, ReportStatistics, Statistics};
pub use strategy::draw::Mode;
