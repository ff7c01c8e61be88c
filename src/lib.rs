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
mod duration;
#[cfg(feature = "agent")]
pub mod http_client;
#[cfg(feature = "agent")]
pub mod metrics;
#[cfg(feature = "agent")]
pub mod telemetry;

pub use balancer::{
    Acquired, Address, Alternate, Bodies, Changes, Choices, Clock, Context, Described, Directory, Ended, EndedBecause,
    ExplainedInstance, ExplainedKey, Explanation, Factors, HealthStatus, InstanceId, InstanceOverrides,
    InstanceStatistics, InvalidConfig, InvalidInstance, InvalidOrder, Layers, LoadBalancer, LoadBalancerConfig,
    LoadBalancingStrategy, Manual, Mode, Monotonic, NoBodies, Objection, Order, Outcome, Override, OverrideCounts,
    Pick, PickError, Refusals, RegistryStatus, Render, Said, Score, ServiceConfigs, ServiceInstance, ServiceName,
    Source, SourceStatus, Sources, Standing, Statistics, Timestamp, Tools, UnknownInstance, Weight, WeightOrder,
};
