//! pickd.
pub mod balancer;
#[cfg(feature = "agent")]
pub mod cli;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod discovery;
#[cfg(feature = "agent")]
pub mod http_client;

pub use balancer::{
    Address, Choices, Clock, HealthStatus, InstanceId, InvalidConfig, InvalidInstance, LoadBalancerConfig,
    LoadBalancingStrategy, Manual, Monotonic, RegistryStatus, ServiceInstance, ServiceName, Source, SourceStatus,
    Sources, Timestamp, Weight,
};
