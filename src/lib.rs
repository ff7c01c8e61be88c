//! pickd.
#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
pub mod api;
pub mod balancer;
#[cfg(feature = "agent")]
pub mod cli;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod discovery;
#[cfg(feature = "agent")]
pub mod http_client;
#[cfg(feature = "agent")]
pub mod metrics;
#[cfg(feature = "agent")]
pub mod telemetry;

pub use balancer::{
    Acquired, Address, Alternate, Bodies, Changes, Choices, Clock, Context, Described, Directory, HealthStatus,
    InstanceId, InstanceStatistics, InvalidConfig, InvalidInstance, InvalidLease, Lease, LeaseDenied, LeaseId,
    LeaseKey, LeaseStatistics, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Manual, Mode, Monotonic,
    NoBodies, Outcome, Pick, PickError, Refusals, RegistryStatus, Render, ReportError, ReportStatistics,
    ServiceConfigs, ServiceInstance, ServiceName, Source, SourceStatus, Sources, Statistics, Timestamp, Tools, Weight,
};
