//! How one service is balanced.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::denied_networks::DeniedNetworks;

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
    /// The failures in a row that take an instance out are not in 1..=1,000.
    #[error("max_consecutive_failures {found}: expected 1 to 1000")]
    MaxConsecutiveFailures {
        /// The number as it came.
        found: i64,
    },
    /// The passing checks that bring an instance back are not in 1..=1,000.
    #[error("rise {found}: expected 1 to 1000")]
    Rise {
        /// The number as it came.
        found: i64,
    },
    /// The time between checks is not in 100 ms..=1 h.
    #[error("health_check_interval {found:?}: expected 100ms to 1h")]
    HealthCheckInterval {
        /// The time as it came.
        found: Duration,
    },
    /// The time of one check is not in 10 ms..=10 min.
    #[error("health_check_timeout {found:?}: expected 10ms to 10m")]
    HealthCheckTimeout {
        /// The time as it came.
        found: Duration,
    },
    /// The share of a pool below which it panics is not in 0.0..=1.0.
    #[error("panic_threshold {found}: expected 0.0 to 1.0")]
    PanicThreshold {
        /// The number as it came.
        found: f64,
    },
    /// The share of a pool that may be held out is not in 0.0..=1.0.
    #[error("max_ejection {found}: expected 0.0 to 1.0")]
    MaxEjection {
        /// The number as it came.
        found: f64,
    },
    /// The time of the ramp is above 1 h.
    #[error("slow_start {found:?}: expected 0 (off) to 1h")]
    SlowStart {
        /// The time as it came.
        found: Duration,
    },
    /// A setting of the breaker is out of its range.
    #[error("breaker.{key} {found}: expected {expected}")]
    Breaker {
        /// Which one.
        key: &'static str,
        /// The value as it came.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// No preset has this name.
    #[error("preset {found:?}: expected one of {}", Preset::ALL.map(Preset::as_str).join(", "))]
    Preset {
        /// The name as it came.
        found: String,
    },
    /// The number of choices is not "auto", "all" or 2..=32.
    #[error("choices {found}: expected \"auto\", \"all\" or a number from 2 to 32")]
    Choices {
        /// The value as it came.
        found: String,
    },
}

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

    /// Whether registered weights count. The others use 1 for every weight above zero.
    #[must_use]
    pub fn is_weighted(self) -> bool {
        !matches!(self, Self::RoundRobin | Self::Random)
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

/// When outcomes take an instance out, and for how long. Every value that exists is in range.
///
/// ```
/// use std::time::Duration;
///
/// use pickd::balancer::BreakerConfig;
///
/// let breaker = BreakerConfig::default().with_open_times(Duration::from_secs(2), Duration::from_secs(30))?;
/// assert_eq!(breaker.open_max(), Duration::from_secs(30));
/// # Ok::<(), pickd::balancer::InvalidConfig>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerConfig {
    min_outcomes: u32,
    failure_ratio: f64,
    window: Duration,
    open_min: Duration,
    open_max: Duration,
}

impl Default for BreakerConfig {
    /// Half of at least 10 outcomes failed within 60 s; out for 1 s at first, for 60 s at most.
    fn default() -> Self {
        Self {
            min_outcomes: 10,
            failure_ratio: 0.5,
            window: Duration::from_secs(60),
            open_min: Duration::from_secs(1),
            open_max: Duration::from_secs(60),
        }
    }
}

impl BreakerConfig {
    /// Sets how many outcomes within the window it takes to judge by their ratio, 1 to 100,000.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_min_outcomes(mut self, outcomes: i64) -> Result<Self, InvalidConfig> {
        match u32::try_from(outcomes) {
            Ok(outcomes @ 1..=100_000) => self.min_outcomes = outcomes,
            _ => return Err(Self::refused("min_outcomes", outcomes, "1 to 100000")),
        }
        Ok(self)
    }

    /// Sets the share of failed outcomes that takes an instance out, above 0.0 to 1.0.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_failure_ratio(mut self, ratio: f64) -> Result<Self, InvalidConfig> {
        if !(ratio > 0.0 && ratio <= 1.0) {
            return Err(Self::refused("failure_ratio", ratio, "above 0.0, to 1.0"));
        }
        self.failure_ratio = ratio;
        Ok(self)
    }

    /// Sets how long an outcome counts, 1 s to 1 h.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_window(mut self, window: Duration) -> Result<Self, InvalidConfig> {
        if !(Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&window) {
            return Err(Self::refused("window", format!("{window:?}"), "1s to 1h"));
        }
        self.window = window;
        Ok(self)
    }

    /// Sets how long an instance is out the first time, and at most: 100 ms to 1 h, the first no longer than the second.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_open_times(mut self, least: Duration, most: Duration) -> Result<Self, InvalidConfig> {
        let range = Duration::from_millis(100)..=Duration::from_secs(3_600);
        if !range.contains(&least) {
            return Err(Self::refused("open_min", format!("{least:?}"), "100ms to 1h"));
        }
        if !range.contains(&most) || most < least {
            return Err(Self::refused("open_max", format!("{most:?}"), "open_min to 1h"));
        }
        (self.open_min, self.open_max) = (least, most);
        Ok(self)
    }

    fn refused(key: &'static str, found: impl fmt::Display, expected: &'static str) -> InvalidConfig {
        InvalidConfig::Breaker {
            key,
            found: found.to_string(),
            expected,
        }
    }

    /// How many outcomes within the window it takes to judge by their ratio.
    #[must_use]
    pub fn min_outcomes(&self) -> u32 {
        self.min_outcomes
    }

    /// The share of failed outcomes that takes an instance out.
    #[must_use]
    pub fn failure_ratio(&self) -> f64 {
        self.failure_ratio
    }

    /// How long an outcome counts.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// How long an instance is out the first time.
    #[must_use]
    pub fn open_min(&self) -> Duration {
        self.open_min
    }

    /// How long an instance is out at most, before jitter.
    #[must_use]
    pub fn open_max(&self) -> Duration {
        self.open_max
    }
}

/// How active checks of a kind of service are usually set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Often and fast: every 15 s, in 2 s, out after 2 failures.
    Database,
    /// Seldom and patient: every 60 s, in 10 s, out after 5 failures.
    ExternalApi,
    /// Strict: every 10 s, in 3 s, out after the first failure.
    Critical,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::Database, Self::ExternalApi, Self::Critical];

    /// Its name in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::ExternalApi => "external_api",
            Self::Critical => "critical",
        }
    }
}

impl FromStr for Preset {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let found = Self::ALL.into_iter().find(|preset| preset.as_str() == text);
        found.ok_or_else(|| InvalidConfig::Preset {
            found: text.chars().take(64).collect(),
        })
    }
}

/// Settings of one service's balancer. Every value that exists is in range.
///
/// ```
/// use pickd::{LoadBalancerConfig, LoadBalancingStrategy};
///
/// let config = LoadBalancerConfig::new(LoadBalancingStrategy::ConsistentHash).with_virtual_nodes(200)?;
/// assert_eq!(config.virtual_nodes(), 200);
/// # Ok::<(), pickd::balancer::InvalidConfig>(())
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
    health_check_enabled: bool,
    health_check_interval: Duration,
    health_check_timeout: Duration,
    max_consecutive_failures: u32,
    rise: u32,
    circuit_breaker_enabled: bool,
    breaker: BreakerConfig,
    max_ejection: f64,
    panic: bool,
    panic_threshold: f64,
    slow_start: Duration,
    denied: DeniedNetworks,
}

impl Default for LoadBalancerConfig {
    /// Round robin; degraded instances at a quarter; 100 virtual nodes; no bound on hash load; choices "auto"; leases of 30 s,
    /// at most 100,000. Checks every 30 s in 5 s, out after 3 failures and back after 2 that pass; breakers as in
    /// [`BreakerConfig`], for half of a pool at most; panic when nobody is left; a slow start of 30 s.
    fn default() -> Self {
        Self {
            strategy: LoadBalancingStrategy::RoundRobin,
            degraded_factor: 0.25,
            virtual_nodes: 100,
            hash_balance_factor: 0.0,
            choices: Choices::Auto,
            lease_ttl: Duration::from_secs(30),
            max_leases: 100_000,
            health_check_enabled: true,
            health_check_interval: Duration::from_secs(30),
            health_check_timeout: Duration::from_secs(5),
            max_consecutive_failures: 3,
            rise: 2,
            circuit_breaker_enabled: true,
            breaker: BreakerConfig::default(),
            max_ejection: 0.5,
            panic: true,
            panic_threshold: 0.0,
            slow_start: Duration::from_secs(30),
            denied: DeniedNetworks::default(),
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

    /// Sets interval, timeout and failures of active checks as this kind of service needs them.
    #[must_use]
    pub fn with_preset(mut self, preset: Preset) -> Self {
        let (interval, timeout, failures) = match preset {
            Preset::Database => (15, 2, 2),
            Preset::ExternalApi => (60, 10, 5),
            Preset::Critical => (10, 3, 1),
        };
        self.health_check_interval = Duration::from_secs(interval);
        self.health_check_timeout = Duration::from_secs(timeout);
        self.max_consecutive_failures = failures;
        self
    }

    /// Sets whether active checks run where a kind of check is named.
    #[must_use]
    pub fn with_health_check_enabled(mut self, enabled: bool) -> Self {
        self.health_check_enabled = enabled;
        self
    }

    /// Sets the time from one active check of an instance to the next, 100 ms to 1 h.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_health_check_interval(mut self, interval: Duration) -> Result<Self, InvalidConfig> {
        if !(Duration::from_millis(100)..=Duration::from_secs(3_600)).contains(&interval) {
            return Err(InvalidConfig::HealthCheckInterval { found: interval });
        }
        self.health_check_interval = interval;
        Ok(self)
    }

    /// Sets how long an active check waits for its answer, 10 ms to 10 min. An interval that is shorter ends it sooner.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_health_check_timeout(mut self, timeout: Duration) -> Result<Self, InvalidConfig> {
        if !(Duration::from_millis(10)..=Duration::from_secs(600)).contains(&timeout) {
            return Err(InvalidConfig::HealthCheckTimeout { found: timeout });
        }
        self.health_check_timeout = timeout;
        Ok(self)
    }

    /// Sets how many failures in a row take an instance out, 1 to 1,000: of outcomes, or of active checks (where others call it
    /// `fall`).
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_max_consecutive_failures(mut self, failures: i64) -> Result<Self, InvalidConfig> {
        match u32::try_from(failures) {
            Ok(failures @ 1..=1_000) => self.max_consecutive_failures = failures,
            _ => return Err(InvalidConfig::MaxConsecutiveFailures { found: failures }),
        }
        Ok(self)
    }

    /// Sets how many passing active checks in a row bring an instance back, 1 to 1,000.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_rise(mut self, rise: i64) -> Result<Self, InvalidConfig> {
        match u32::try_from(rise) {
            Ok(rise @ 1..=1_000) => self.rise = rise,
            _ => return Err(InvalidConfig::Rise { found: rise }),
        }
        Ok(self)
    }

    /// Sets whether one that was taken out by its outcomes comes back through a trial (a circuit breaker), or when a fixed time
    /// is over.
    #[must_use]
    pub fn with_circuit_breaker_enabled(mut self, enabled: bool) -> Self {
        self.circuit_breaker_enabled = enabled;
        self
    }

    /// Sets when outcomes take an instance out, and for how long.
    #[must_use]
    pub fn with_breaker(mut self, breaker: BreakerConfig) -> Self {
        self.breaker = breaker;
        self
    }

    /// Sets the share of a pool that outcomes may take out, 0.0 to 1.0. One may always be, the last never.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_max_ejection(mut self, share: f64) -> Result<Self, InvalidConfig> {
        if !(0.0..=1.0).contains(&share) {
            return Err(InvalidConfig::MaxEjection { found: share });
        }
        self.max_ejection = share;
        Ok(self)
    }

    /// Sets whether a pool of which too few are usable is picked from as a whole.
    #[must_use]
    pub fn with_panic(mut self, panic: bool) -> Self {
        self.panic = panic;
        self
    }

    /// Sets the share of a pool below which it panics, 0.0 (when none is usable) to 1.0.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_panic_threshold(mut self, share: f64) -> Result<Self, InvalidConfig> {
        if !(0.0..=1.0).contains(&share) {
            return Err(InvalidConfig::PanicThreshold { found: share });
        }
        self.panic_threshold = share;
        Ok(self)
    }

    /// Sets the time over which one that recovered, or joined a pool that serves, comes to its full share; 0 (off) to 1 h.
    ///
    /// # Errors
    ///
    /// Outside that range.
    pub fn with_slow_start(mut self, ramp: Duration) -> Result<Self, InvalidConfig> {
        if ramp > Duration::from_secs(3_600) {
            return Err(InvalidConfig::SlowStart { found: ramp });
        }
        self.slow_start = ramp;
        Ok(self)
    }

    /// Sets the networks whose addresses are listed, and neither picked nor checked.
    #[must_use]
    pub fn with_denied(mut self, denied: DeniedNetworks) -> Self {
        self.denied = denied;
        self
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

    /// Whether active checks run where a kind of check is named.
    #[must_use]
    pub fn health_check_enabled(&self) -> bool {
        self.health_check_enabled
    }

    /// The time from one active check of an instance to the next.
    #[must_use]
    pub fn health_check_interval(&self) -> Duration {
        self.health_check_interval
    }

    /// How long an active check waits for its answer.
    #[must_use]
    pub fn health_check_timeout(&self) -> Duration {
        self.health_check_timeout
    }

    /// How many failures in a row take an instance out.
    #[must_use]
    pub fn max_consecutive_failures(&self) -> u32 {
        self.max_consecutive_failures
    }

    /// How many passing active checks in a row bring an instance back.
    #[must_use]
    pub fn rise(&self) -> u32 {
        self.rise
    }

    /// Whether one that was taken out by its outcomes comes back through a trial.
    #[must_use]
    pub fn circuit_breaker_enabled(&self) -> bool {
        self.circuit_breaker_enabled
    }

    /// When outcomes take an instance out, and for how long.
    #[must_use]
    pub fn breaker(&self) -> &BreakerConfig {
        &self.breaker
    }

    /// The share of a pool that outcomes may take out.
    #[must_use]
    pub fn max_ejection(&self) -> f64 {
        self.max_ejection
    }

    /// Whether a pool of which too few are usable is picked from as a whole.
    #[must_use]
    pub fn panic(&self) -> bool {
        self.panic
    }

    /// The share of a pool below which it panics.
    #[must_use]
    pub fn panic_threshold(&self) -> f64 {
        self.panic_threshold
    }

    /// The time over which one that recovered comes to its full share; zero: at once.
    #[must_use]
    pub fn slow_start(&self) -> Duration {
        self.slow_start
    }

    /// The networks whose addresses are listed, and neither picked nor checked.
    #[must_use]
    pub fn denied(&self) -> &DeniedNetworks {
        &self.denied
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
