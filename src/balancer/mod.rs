//! The core: every decision, and no I/O.
//!
//! # One pick, step by step
//!
//! 1. [`Directory::get`] finds the [`LoadBalancer`] of the service: one hash, no lock.
//! 2. [`LoadBalancer::select_instance`] loads the present view from one `ArcSwap`. The view holds
//!    every registered instance, the candidates among them (available, of weight above zero, of the
//!    tier in turn) and the prepared tables of the strategy.
//! 3. The strategy chooses: a turn in a precomputed sequence, a comparison of a few atomics, or a
//!    place on a hash ring.
//! 4. The counter of the chosen instance goes up by one. The caller gets a [`Pick`] that points
//!    into the view, with bodies that were rendered when the instance last changed.
//!
//! A pick takes no lock, allocates nothing and makes no system call. It reads a clock only for
//! `least_response_time`, and for the pick that a half-open breaker lets through as its trial.
//!
//! # One outcome or check, step by step
//!
//! 1. The live state of the address records it: response time, the window of outcomes,
//!    [`breaker`](health::breaker), [`grade`](health::grade) or [`checks`](health::checks). For
//!    most outcomes that is all.
//! 2. When one of these layers changes its state, [`ejection`](health::ejection) decides which
//!    addresses of the pool are out, which ones the cap holds, and whether the pool is in panic
//!    mode. The next pick reads the result from the instances that it considers.
//! 3. A moment later one new view follows for all such steps. Its tables contain the result, so
//!    picks need not look any more.
//!
//! # What this module must not know
//!
//! Tokio, serde, HTTP, logs, metrics, files, sockets. Time comes through a [`Clock`], the place of
//! the first turn through a seed, bytes through a [`Render`]. Transitions return what happened, and
//! the caller reports it. `tests/integration/house.rs` holds this.

pub(crate) mod adaptive;
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
pub(crate) mod hash_ring;
pub(crate) mod health;
pub(crate) mod instance;
pub(crate) mod lease;
pub(crate) mod live;
pub(crate) mod load_balancer;
pub(crate) mod member;
pub(crate) mod outcome;
pub(crate) mod overrides;
pub(crate) mod overview;
pub(crate) mod recommend;
pub(crate) mod render;
pub(crate) mod report_credit;
pub(crate) mod retry;
pub(crate) mod session_token;
pub(crate) mod sessions;
pub(crate) mod settings;
pub(crate) mod share;
pub(crate) mod skipped;
pub(crate) mod sources;
pub(crate) mod statistics;
pub(crate) mod sticky;
pub(crate) mod strategy;
mod sync;
pub(crate) mod text;
pub(crate) mod view;

pub use adaptive::{Adjustment, AdjustmentCounts, Measured, MeasuredBy, Thousandths};
pub use clock::{Clock, Manual, Monotonic, Since, Timestamp};
pub use config::{AdaptiveFormula, BreakerConfig, Choices, CookieName, Preset};
pub use denied_networks::{DeniedNetworks, InvalidNetwork, Network};
pub use diff::{Changes, diff};
pub use directory::{KNOWN_FOR, ServiceConfigs};
pub use environment::{Environment, Wake};
pub use error::{ReportError, UnknownInstance};
pub use explain::{ExplainedAdaptive, ExplainedInstance, ExplainedKey, ExplainedTier, Explanation, Score};
pub use health::breaker::{BreakerState, CloseReason, TripReason};
pub use health::checks::{ActiveState, Check, CheckFailure};
pub use health::grade::{DegradedReason, PassiveState};
pub use health::layers::{Layers, UnavailableReason};
pub use instance::{Address, InvalidInstance, RegistryEntry, RegistryStatus, Source, Tier};
pub use lease::{InvalidLease, Lease, LeaseDenied, LeaseId, LeaseKey};
pub use load_balancer::call::{Attempt, Call, CallError, Failure};
pub use load_balancer::pick::Alternate;
pub use load_balancer::transitions::{Transition, Transitioned};
pub use overrides::{
    Ended, EndedBecause, InstanceOverrides, InvalidOrder, Order, Override, OverrideCounts, StandingOrder, WeightOrder,
};
pub use overview::{Overview, ServiceOverview};
pub use recommend::{Recommendation, Requirements, ServiceType, recommend_strategy};
pub use render::{Bodies, Described, NoBodies, Render};
pub use retry::RetryStatistics;
pub use session_token::{InvalidSessionKey, SessionKey, SessionToken};
pub use settings::{InvalidConfig, Setting};
pub use share::Factors;
pub use skipped::{LISTED, SkipReason, Skipped, SkippedRegistration};
pub use sources::{FailingService, Scope, SourceLimits, SourceStatus, Sources};
pub use statistics::{
    CheckStatistics, InstanceStatistics, LeaseStatistics, Refusals, ReportStatistics, SessionStatistics,
};
pub use strategy::draw::Mode;
pub use text::is_printable;

// Public at the root of the crate (see lib.rs). The other rooms import these names from here.
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
