//! How one service is balanced.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::strategy::LoadBalancingStrategy;

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidConfig {
    /// No strategy has this name.
    #[error("strategy {found:?}: expected one of {}", LoadBalancingStrategy::ALL.map(LoadBalancingStrategy::as_str).join(", "))]
    Strategy {
        /// The name as it came.
        found: String,
    },
    /// A factor is not in 0.0..=1.0.
    #[error("degraded_factor {found}: expected 0.0 to 1.0")]
    DegradedFactor {
        /// The number as it came.
        found: f64,
    },
    /// The number of virtual nodes is not in 1..=10,000.
    #[error("virtual_nodes {found}: expected 1 to 10000")]
    VirtualNodes {
        /// The number as it came.
        found: i64,
    },
    /// The bound on load is neither 0 nor in 1.0..=100.0.
    #[error("hash_balance_factor {found}: expected 0 (off) or 1.0 to 100.0")]
    HashBalanceFactor {
        /// The number as it came.
        found: f64,
    },
    /// The time of a lease is not in 1 s..=1 h.
    #[error("lease_ttl {found:?}: expected 1s to 1h")]
    LeaseTtl {
        /// The time as it came.
        found: Duration,
    },
    /// The number of leases is not in 1..=1,000,000.
    #[error("max_leases {found}: expected 1 to 1000000")]
    MaxLeases {
        /// The number as it came.
        found: i64,
    },
    /// The number of choices is not "auto", "all" or 2..=32.
    #[error("choices {found}: expected \"auto\", \"all\" or a number from 2 to 32")]
    Choices {
        /// The value as it came.
        found: String,
    },
}

/// How many candidates the two least-loaded strategies compare for one pick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choices {
    /// `least_connections`: all of up to 32, else 2. `least_response_time`: 2.
    #[default]
    Auto,
    /// All of them, however many: O(n) a pick.
    All,
    /// This many random ones, 2..=32.
    Random(u8),
}

impl Choices {
    /// Checks a number of random candidates.
    ///
    /// # Errors
    ///
    /// Outside 2..=32.
    pub fn random(count: i64) -> Result<Self, InvalidConfig> {
        match u8::try_from(count) {
            Ok(count @ 2..=32) => Ok(Self::Random(count)),
            _ => Err(InvalidConfig::Choices {
                found: count.to_string(),
            }),
        }
    }
}

impl FromStr for Choices {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        match text {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            _ => Err(InvalidConfig::Choices {
                found: format!("{text:?}"),
            }),
        }
    }
}

impl fmt::Display for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::All => f.write_str("all"),
            Self::Random(count) => write!(f, "{count}"),
        }
    }
}

/// Settings of one service's balancer. Every value that exists is in range.
///
/// ```
/// use pickd::{LoadBalancerConfig, LoadBalancingStrategy};
///
/// let config = LoadBalancerConfig::new(LoadBalancingStrategy::ConsistentHash).with_virtual_nodes(200)?;
/// assert_eq!(config.virtual_nodes(), 200);
/// # Ok::<(), pickd::InvalidConfig>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LoadBalancerConfig {
    strategy: LoadBalancingStrategy,
    degraded_factor: f64,
    virtual_nodes: u32,
    hash_balance_factor: f64,
    choices: Choices,
    lease_ttl: Duration,
    max_leases: u32,
}

impl Default for LoadBalancerConfig {
    /// Round robin; degraded instances at a quarter; 100 virtual nodes; no bound on hash load; choices "auto"; leases of 30 s,
    /// at most 100,000.
    fn default() -> Self {
        Self {
            strategy: LoadBalancingStrategy::RoundRobin,
            degraded_factor: 0.25,
            virtual_nodes: 100,
            hash_balance_factor: 0.0,
            choices: Choices::Auto,
            lease_ttl: Duration::from_secs(30),
            max_leases: 100_000,
        }
    }
}

impl LoadBalancerConfig {
    /// The defaults with this strategy.
    #[must_use]
    pub fn new(strategy: LoadBalancingStrategy) -> Self {
        Self::default().with_strategy(strategy)
    }

    /// Sets the strategy.
    #[must_use]
    pub fn with_strategy(mut self, strategy: LoadBalancingStrategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Sets what a degraded instance's weight is multiplied by, 0.0 (never picked) to 1.0 (as if healthy).
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_degraded_factor(mut self, factor: f64) -> Result<Self, InvalidConfig> {
        if !(0.0..=1.0).contains(&factor) {
            return Err(InvalidConfig::DegradedFactor { found: factor });
        }
        self.degraded_factor = factor;
        Ok(self)
    }

    /// Sets the points on the hash ring for an instance of mean weight, 1 to 10,000.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_virtual_nodes(mut self, nodes: i64) -> Result<Self, InvalidConfig> {
        match u32::try_from(nodes) {
            Ok(nodes @ 1..=10_000) => self.virtual_nodes = nodes,
            _ => return Err(InvalidConfig::VirtualNodes { found: nodes }),
        }
        Ok(self)
    }

    /// Sets how far above its fair share of requests in flight a hashed instance may go (1.25 = 25 % above) before its keys
    /// go to the next one on the ring; 0 = no bound.
    ///
    /// # Errors
    ///
    /// Neither 0 nor in 1.0..=100.0.
    pub fn with_hash_balance_factor(mut self, factor: f64) -> Result<Self, InvalidConfig> {
        if factor != 0.0 && !(1.0..=100.0).contains(&factor) {
            return Err(InvalidConfig::HashBalanceFactor { found: factor });
        }
        self.hash_balance_factor = factor;
        Ok(self)
    }

    /// Sets how many candidates the least-loaded strategies compare.
    #[must_use]
    pub fn with_choices(mut self, choices: Choices) -> Self {
        self.choices = choices;
        self
    }

    /// Sets how long a lease is open unless it is renewed or says otherwise, 1 s to 1 h.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_lease_ttl(mut self, ttl: Duration) -> Result<Self, InvalidConfig> {
        if !(Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&ttl) {
            return Err(InvalidConfig::LeaseTtl { found: ttl });
        }
        self.lease_ttl = ttl;
        Ok(self)
    }

    /// Sets how many leases of the service may be open, 1 to 1,000,000. In the defaults: also how many over all services.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_max_leases(mut self, leases: i64) -> Result<Self, InvalidConfig> {
        match u32::try_from(leases) {
            Ok(leases @ 1..=1_000_000) => self.max_leases = leases,
            _ => return Err(InvalidConfig::MaxLeases { found: leases }),
        }
        Ok(self)
    }

    /// The strategy.
    #[must_use]
    pub fn strategy(&self) -> LoadBalancingStrategy {
        self.strategy
    }

    /// What a degraded instance's weight is multiplied by.
    #[must_use]
    pub fn degraded_factor(&self) -> f64 {
        self.degraded_factor
    }

    /// Points on the hash ring for an instance of mean weight.
    #[must_use]
    pub fn virtual_nodes(&self) -> u32 {
        self.virtual_nodes
    }

    /// The bound on a hashed instance's load, 0 = none.
    #[must_use]
    pub fn hash_balance_factor(&self) -> f64 {
        self.hash_balance_factor
    }

    /// How many candidates the least-loaded strategies compare.
    #[must_use]
    pub fn choices(&self) -> Choices {
        self.choices
    }

    /// How long a lease is open unless it is renewed or says otherwise.
    #[must_use]
    pub fn lease_ttl(&self) -> Duration {
        self.lease_ttl
    }

    /// How many leases of the service may be open.
    #[must_use]
    pub fn max_leases(&self) -> u32 {
        self.max_leases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_range_is_refused_and_named() {
        let config = LoadBalancerConfig::default;
        for (refusal, name) in [
            (config().with_degraded_factor(1.5).unwrap_err(), "degraded_factor 1.5"),
            (
                config().with_degraded_factor(f64::NAN).unwrap_err(),
                "degraded_factor NaN",
            ),
            (config().with_virtual_nodes(0).unwrap_err(), "virtual_nodes 0"),
            (
                config().with_hash_balance_factor(0.5).unwrap_err(),
                "hash_balance_factor 0.5",
            ),
            (
                config().with_lease_ttl(Duration::from_millis(999)).unwrap_err(),
                "lease_ttl 999ms",
            ),
            (config().with_max_leases(0).unwrap_err(), "max_leases 0"),
            (config().with_max_leases(1_000_001).unwrap_err(), "max_leases 1000001"),
            (Choices::random(33).unwrap_err(), "choices 33"),
            ("some".parse::<Choices>().unwrap_err(), "choices \"some\""),
            (
                "fastest".parse::<LoadBalancingStrategy>().unwrap_err(),
                "strategy \"fastest\"",
            ),
        ] {
            assert!(refusal.to_string().starts_with(name), "{refusal}");
        }
    }
}
