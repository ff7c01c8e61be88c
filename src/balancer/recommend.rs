//! Which strategy fits a service: a guide for a first choice.

use std::fmt;
use std::str::FromStr;

use super::config::{LoadBalancingStrategy, unknown};
use super::settings::InvalidConfig;

/// What a service does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceType {
    /// A database: few, long connections.
    Database,
    /// A gateway in front of other services: its response time is theirs.
    ApiGateway,
    /// Work that is bounded by processors of different sizes.
    ComputeIntensive,
    /// Anything else.
    #[default]
    General,
}

impl ServiceType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Database, Self::ApiGateway, Self::ComputeIntensive, Self::General];

    /// The name on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::ApiGateway => "api_gateway",
            Self::ComputeIntensive => "compute_intensive",
            Self::General => "general",
        }
    }
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ServiceType {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| unknown("service type", text, &Self::ALL.map(Self::as_str)))
    }
}

/// What callers need of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requirements {
    /// Equal keys must go to the same instance.
    pub session_affinity: bool,
    /// A pick must cost as little as possible.
    pub high_throughput: bool,
}

impl Requirements {
    /// No requirement.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            session_affinity: false,
            high_throughput: false,
        }
    }

    /// Equal keys must go to the same instance.
    #[must_use]
    pub const fn with_session_affinity(mut self) -> Self {
        self.session_affinity = true;
        self
    }

    /// A pick must cost as little as possible.
    #[must_use]
    pub const fn with_high_throughput(mut self) -> Self {
        self.high_throughput = true;
        self
    }
}

/// A strategy, and why it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recommendation {
    /// The strategy.
    pub strategy: LoadBalancingStrategy,
    /// One sentence without a full stop.
    pub because: &'static str,
}

/// The strategy that fits a service. Affinity decides first, then the type of the service, then
/// throughput. A guide for a first choice: `docs/strategies.md` says when another strategy is
/// better.
///
/// ```
/// use pickd::LoadBalancingStrategy;
/// use pickd::balancer::{Requirements, ServiceType, recommend_strategy};
///
/// let database = recommend_strategy(ServiceType::Database, Requirements::new());
/// assert_eq!(database.strategy, LoadBalancingStrategy::LeastConnections);
/// ```
#[must_use]
pub fn recommend_strategy(service_type: ServiceType, requirements: Requirements) -> Recommendation {
    let (strategy, because) = match service_type {
        _ if requirements.session_affinity => (
            LoadBalancingStrategy::ConsistentHash,
            "equal keys go to the same instance, on every node",
        ),
        ServiceType::Database => (
            LoadBalancingStrategy::LeastConnections,
            "connections are long and few, so the instance with the fewest has most to spare",
        ),
        ServiceType::ApiGateway => (
            LoadBalancingStrategy::LeastResponseTime,
            "response times differ with what stands behind, so the fastest instance is the least loaded",
        ),
        ServiceType::ComputeIntensive => (
            LoadBalancingStrategy::WeightedRoundRobin,
            "the weight says how large the machine is",
        ),
        ServiceType::General if requirements.high_throughput => (
            LoadBalancingStrategy::Random,
            "a random pick shares nothing with other picks",
        ),
        ServiceType::General => (
            LoadBalancingStrategy::RoundRobin,
            "every instance gets the same number of requests",
        ),
    };
    Recommendation { strategy, because }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the guide: affinity, then the type, then throughput.
    #[test]
    fn affinity_decides_first_then_the_type_then_throughput() {
        use LoadBalancingStrategy::{
            ConsistentHash, LeastConnections, LeastResponseTime, Random, RoundRobin, WeightedRoundRobin,
        };
        for (service_type, plain, fast) in [
            (ServiceType::Database, LeastConnections, LeastConnections),
            (ServiceType::ApiGateway, LeastResponseTime, LeastResponseTime),
            (ServiceType::ComputeIntensive, WeightedRoundRobin, WeightedRoundRobin),
            (ServiceType::General, RoundRobin, Random),
        ] {
            let recommended = |requirements| recommend_strategy(service_type, requirements).strategy;
            let none = Requirements::new();
            assert_eq!(recommended(none), plain, "{service_type}");
            assert_eq!(recommended(none.with_high_throughput()), fast, "{service_type}");
            assert_eq!(
                recommended(none.with_session_affinity()),
                ConsistentHash,
                "{service_type}"
            );
            let both = none.with_session_affinity().with_high_throughput();
            assert_eq!(recommended(both), ConsistentHash, "{service_type}");
            assert_eq!(service_type.as_str().parse(), Ok(service_type));
        }
        let unknown = "cache".parse::<ServiceType>().unwrap_err().to_string();
        assert!(
            unknown.starts_with("service type \"cache\": expected") && unknown.contains("api_gateway"),
            "{unknown}"
        );
    }
}
