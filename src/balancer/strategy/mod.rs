//! The six strategies.
use std::fmt;
use std::str::FromStr;

use super::config::InvalidConfig;

/// How the next instance is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadBalancingStrategy {
    /// In turn.
    #[default]
    RoundRobin,
    /// At random.
    Random,
    /// The one with the fewest requests in flight for its weight.
    LeastConnections,
    /// In turn, by weight.
    WeightedRoundRobin,
    /// By the hash of the request's key: equal keys go to the same instance, on every node.
    ConsistentHash,
    /// The one that answers fastest for its weight and load.
    LeastResponseTime,
}

impl LoadBalancingStrategy {
    /// Every strategy.
    pub const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::Random,
        Self::LeastConnections,
        Self::WeightedRoundRobin,
        Self::ConsistentHash,
        Self::LeastResponseTime,
    ];

    /// Its name in configuration and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::LeastConnections => "least_connections",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::ConsistentHash => "consistent_hash",
            Self::LeastResponseTime => "least_response_time",
        }
    }
}

impl FromStr for LoadBalancingStrategy {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let found = Self::ALL.into_iter().find(|strategy| strategy.as_str() == text);
        found.ok_or_else(|| InvalidConfig::Strategy {
            found: text.chars().take(64).collect(),
        })
    }
}

impl fmt::Display for LoadBalancingStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
