//! The core.
pub mod clock;
pub mod config;
pub mod instance;
pub mod sources;
pub mod strategy;

pub use clock::{Clock, Manual, Monotonic, Timestamp};
pub use config::{Choices, InvalidConfig, LoadBalancerConfig, LoadBalancingStrategy};
pub use instance::{
    Address, HealthStatus, InstanceId, InvalidInstance, RegistryStatus, ServiceInstance, ServiceName, Source, Weight,
};
pub use sources::{Scope, SourceStatus, Sources};
