//! The settings of one service: strategy, leases, health, and the two tables of all keys.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::denied_networks::DeniedNetworks;
use super::settings::{
    self, InToml, InvalidConfig, Range, Setting, Unbounded, accepted, argument, check, default_in_words, getter, range,
    setter, settings, value,
};

/// How the next instance is chosen.
///
/// ```
/// use pickd::LoadBalancingStrategy;
///
/// let strategy: LoadBalancingStrategy = "least_connections".parse()?;
/// assert_eq!(strategy, LoadBalancingStrategy::LeastConnections);
/// assert!(strategy.is_weighted());
/// assert_eq!(LoadBalancingStrategy::ALL.len(), 6);
/// # Ok::<(), pickd::balancer::InvalidConfig>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadBalancingStrategy {
    /// Instances take turns.
    #[default]
    RoundRobin,
    /// A random instance.
    Random,
    /// The instance with the fewest requests in flight for its weight.
    LeastConnections,
    /// Instances take turns, as often as their weights say.
    WeightedRoundRobin,
    /// The hash of the request's key decides: equal keys go to the same instance, on every node.
    ConsistentHash,
    /// The instance that answers fastest for its weight and load.
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

    /// The name of the strategy in the configuration and in answers.
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

    /// Whether the strategy uses registered weights. Other strategies use 1 for every weight above
    /// zero.
    #[must_use]
    pub fn is_weighted(self) -> bool {
        !matches!(self, Self::RoundRobin | Self::Random)
    }
}

impl FromStr for LoadBalancingStrategy {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let found = Self::ALL.into_iter().find(|strategy| strategy.as_str() == text);
        found.ok_or_else(|| unknown("strategy", text, &Self::ALL.map(Self::as_str)))
    }
}

impl InToml for LoadBalancingStrategy {
    fn in_toml(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Unbounded for LoadBalancingStrategy {
    fn values() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for LoadBalancingStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many candidates the two least-loaded strategies compare for one pick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choices {
    /// Two random candidates. `least_connections` compares all candidates of a pool of up to 32.
    #[default]
    Auto,
    /// All candidates of any pool. A pick is O(n).
    All,
    /// This many random candidates, 2..=32.
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
            _ => Err(Self::refused(count)),
        }
    }

    /// The refusal of a value that is neither a word nor a number of candidates.
    pub(crate) fn refused(found: impl fmt::Display) -> InvalidConfig {
        InvalidConfig::OutOfRange {
            key: "choices",
            found: found.to_string(),
            expected: Self::values(),
        }
    }
}

impl FromStr for Choices {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        match text {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            _ => Err(Self::refused(format_args!("{text:?}"))),
        }
    }
}

impl InToml for Choices {
    fn in_toml(&self) -> String {
        match self {
            Self::Random(count) => count.to_string(),
            word => format!("\"{word}\""),
        }
    }
}

impl Unbounded for Choices {
    fn values() -> String {
        "\"auto\", \"all\" or a number from 2 to 32".to_owned()
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

/// The name of a cookie: 1 to 64 characters of `A-Z a-z 0-9` and `` !#$%&'*+-.^_`|~ `` (RFC 6265).
///
/// ```
/// use pickd::balancer::CookieName;
///
/// assert_eq!(CookieName::default().as_str(), "SESSION_ID");
/// assert!("a=b".parse::<CookieName>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(Arc<str>);

impl CookieName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_row(name: &str) -> Self {
        Self(name.into())
    }
}

impl Default for CookieName {
    /// `SESSION_ID`
    fn default() -> Self {
        LoadBalancerConfig::default().session_cookie_name
    }
}

impl FromStr for CookieName {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(allowed) {
            return Err(InvalidConfig::OutOfRange {
                key: "session_cookie_name",
                found: format!("{:?}", text.chars().take(64).collect::<String>()),
                expected: Self::values(),
            });
        }
        Ok(Self(text.into()))
    }
}

impl InToml for CookieName {
    fn in_toml(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Unbounded for CookieName {
    fn values() -> String {
        "the name of a cookie, 1 to 64 characters".to_owned()
    }
}

impl fmt::Display for CookieName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How adaptive weights compare the instances of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdaptiveFormula {
    /// Response time and errors of a recent window, relative to the pool; fractional factors.
    #[default]
    Relative,
    /// Mean response time in seconds and consecutive failures, since the start; whole weights from 1
    /// to 10. Has no effect in strategies that are not weighted.
    Seed,
}

impl AdaptiveFormula {
    /// Every formula.
    pub const ALL: [Self; 2] = [Self::Relative, Self::Seed];

    /// The name of the formula in the configuration and in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relative => "relative",
            Self::Seed => "seed",
        }
    }
}

impl FromStr for AdaptiveFormula {
    type Err = InvalidConfig;

    fn from_str(text: &str) -> Result<Self, InvalidConfig> {
        let found = Self::ALL.into_iter().find(|formula| formula.as_str() == text);
        found.ok_or_else(|| unknown("adaptive_formula", text, &Self::ALL.map(Self::as_str)))
    }
}

impl InToml for AdaptiveFormula {
    fn in_toml(&self) -> String {
        format!("\"{}\"", self.as_str())
    }
}

impl Unbounded for AdaptiveFormula {
    fn values() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

/// Usual settings of active checks for a kind of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preset {
    /// A check every 15 s with a timeout of 2 s. Two failures take an instance out.
    Database,
    /// A check every 60 s with a timeout of 10 s. Five failures take an instance out.
    ExternalApi,
    /// A check every 10 s with a timeout of 3 s. The first failure takes an instance out.
    Critical,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::Database, Self::ExternalApi, Self::Critical];

    /// The name of the preset in the configuration.
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
        found.ok_or_else(|| unknown("preset", text, &Self::ALL.map(Self::as_str)))
    }
}

/// The error for a text that is none of these names.
pub(super) fn unknown(key: &'static str, found: &str, names: &[&str]) -> InvalidConfig {
    InvalidConfig::UnknownName {
        key,
        found: found.chars().take(64).collect(),
        expected: names.join(", "),
    }
}

// The two tables. To add a key, add its row here. `config::services` reads the configuration file
// by the same rows. A test asks for the row of the key in docs/configuration.md and in README.md.

macro_rules! balancer_settings {
    ($make:ident) => {
        $make! {
            /// Settings of the balancer of one service. Every value is in its range.
            ///
            /// ```
            /// use pickd::{LoadBalancerConfig, LoadBalancingStrategy};
            ///
            /// let config = LoadBalancerConfig::new(LoadBalancingStrategy::ConsistentHash)
            ///     .with_virtual_nodes(200)?;
            /// assert_eq!(config.virtual_nodes(), 200);
            /// # Ok::<(), pickd::balancer::InvalidConfig>(())
            /// ```
            LoadBalancerConfig, "", denied: DeniedNetworks;

            strategy, with_strategy: LoadBalancingStrategy = (RoundRobin), "The strategy that chooses instances.";
            degraded_factor, with_degraded_factor: f64 = (0.25) in [0.0 to 1.0],
                "Factor on the weight of an instance while its registry warns or its outcomes are bad. Rounded to \
sixteenths, at least 1/16 if above 0; with 0 a degraded instance is not picked.";
            virtual_nodes, with_virtual_nodes: u32 = (100) in [1 to 10_000],
                "Virtual nodes, of four points each, on the hash ring for an instance of mean weight.";
            hash_balance_factor, with_hash_balance_factor: f64 = (0.0) in [0 (off) or 1.0 to 100.0],
                "Bound on the requests in flight of an instance under `consistent_hash`, as a multiple of its fair \
share (1.25: 25 % above); keys beyond the bound go to the next instance on the ring.";
            choices, with_choices: Choices = (Auto),
                "Number of candidates that `least_connections` and `least_response_time` compare for one pick.";
            lease_ttl, with_lease_ttl: Duration = (30 s) in [1 s to 1 h],
                "Time after which a lease expires, unless the lease is renewed or the pick asked for another time.";
            max_leases, with_max_leases: u32 = (100_000) in [1 to 1_000_000],
                "Open leases of one service at a time. The value in `[defaults]` also bounds all services together.";
            health_check_enabled, with_health_check_enabled: bool = (true),
                "Whether active checks run for services with `health_check`.";
            health_check_interval, with_health_check_interval: Duration = (30 s) in [100 ms to 1 h],
                "Time between active checks of an instance.";
            health_check_timeout, with_health_check_timeout: Duration = (5 s) in [10 ms to 10 min],
                "Timeout of an active check; an interval that is shorter bounds the check instead.";
            max_consecutive_failures, with_max_consecutive_failures: u32 = (3) in [1 to 1_000],
                "Consecutive failures that take an instance out: of outcomes, or of active checks.";
            rise, with_rise: u32 = (2) in [1 to 1_000],
                "Consecutive passing active checks that bring an instance back.";
            circuit_breaker_enabled, with_circuit_breaker_enabled: bool = (true),
                "Whether an ejected instance returns through a trial (true), or after 30 s times the number of \
consecutive ejections (false).";
            breaker, with_breaker: BreakerConfig = (default), "Thresholds of the breaker, and ejection times.";
            retry_enabled, with_retry_enabled: bool = (true),
                "Whether a failed call may be tried again, by `call` of the library or by a pick with `exclude`.";
            max_retries, with_max_retries: u32 = (2) in [0 to 15],
                "Attempts of one call beyond the first.";
            retry_budget, with_retry_budget: f64 = (0.2) in [0.0 to 1.0],
                "Retries that each call allows, over the last ten seconds, beside 3 a second.";
            max_ejection, with_max_ejection: f64 = (0.5) in [0.0 to 1.0],
                "Largest share of a pool that outcomes may eject. One instance may always be ejected, the last usable \
instance never.";
            panic, with_panic: bool = (true), "Whether a pool with too few usable instances enters panic mode.";
            panic_threshold, with_panic_threshold: f64 = (0.0) in [0.0 to 1.0],
                "Share of usable instances below which a pool enters panic mode; with 0, when no instance is usable.";
            fail_open, with_fail_open: bool = (false),
                "Whether critical instances are picked while no other instance is eligible. Each answer says so.";
            sticky_sessions, with_sticky_sessions: bool = (false),
                "Whether a session stays at its instance, under every strategy.";
            session_cookie_name, with_session_cookie_name: CookieName = ("SESSION_ID"),
                "Cookie with the key of the session, for picks that give no other key.";
            session_ttl, with_session_ttl: Duration = (30 min) in [1 s to 24 h],
                "Time after its last pick for which a session is remembered.";
            max_sessions, with_max_sessions: u32 = (100_000) in [1 to 1_000_000],
                "Sessions of one service that are remembered; the least recently used leaves.";
            slow_start, with_slow_start: Duration = (30 s) in [0 (off) to 1 h],
                "Time in which an instance that recovered, or that joined a pool in use, rises to its full share.";
            adaptive_weights, with_adaptive_weights: bool = (false),
                "Whether weights follow the response times and errors of instances. Has no effect with \
`least_response_time` and `consistent_hash`.";
            adaptive_formula, with_adaptive_formula: AdaptiveFormula = (Relative),
                "How adaptive weights compare instances. `relative` compares with the pool, `seed` changes whole weights.";
            adaptive_interval, with_adaptive_interval: Duration = (5 s) in [500 ms to 10 min],
                "Time between two steps of adaptive weights.";
        }
    };
}

macro_rules! breaker_settings {
    ($make:ident) => {
        $make! {
            /// When outcomes take an instance out, and for how long. Every value is in its range.
            ///
            /// ```
            /// use std::time::Duration;
            ///
            /// use pickd::balancer::BreakerConfig;
            ///
            /// let (least, most) = (Duration::from_secs(2), Duration::from_secs(30));
            /// let breaker = BreakerConfig::default().with_open_times(least, most)?;
            /// assert_eq!(breaker.open_max(), most);
            /// # Ok::<(), pickd::balancer::InvalidConfig>(())
            /// ```
            BreakerConfig, "breaker.";

            min_outcomes, with_min_outcomes: u32 = (10) in [1 to 100_000],
                "Outcomes within the window that are needed before the failure ratio counts.";
            failure_ratio, with_failure_ratio: f64 = (0.5) in [above 0.0 to 1.0],
                "Share of failed outcomes that opens the breaker.";
            window, with_window: Duration = (60 s) in [1 s to 1 h], "Time for which an outcome counts.";
            open_min, (with_open_min): Duration = (1 s) in [100 ms to 1 h],
                "Time that the breaker stays open at the first opening; doubled at each consecutive opening, with a \
jitter of up to 50 %.";
            open_max, (with_open_max): Duration = (60 s) in [100 ms to 1 h],
                "Longest time that the breaker stays open, before jitter. Not below `open_min`.";
        }
    };
}

balancer_settings!(settings);
breaker_settings!(settings);

#[cfg(feature = "agent")]
pub(crate) use {balancer_settings, breaker_settings};

impl LoadBalancerConfig {
    /// The defaults with this strategy.
    #[must_use]
    pub fn new(strategy: LoadBalancingStrategy) -> Self {
        Self::default().with_strategy(strategy)
    }

    /// Sets interval, timeout and failures of active checks for a kind of service.
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

    /// Whether adaptive weights are on, and apply to the strategy.
    #[must_use]
    pub fn adapts(&self) -> bool {
        let strategy = self.strategy;
        // These strategies compare response times themselves, or give keys fixed places.
        let compares = matches!(
            strategy,
            LoadBalancingStrategy::LeastResponseTime | LoadBalancingStrategy::ConsistentHash
        );
        let needs_weights = self.adaptive_formula == AdaptiveFormula::Seed;
        self.adaptive_weights && !compares && (strategy.is_weighted() || !needs_weights)
    }

    /// Sets the denied networks. Instances at their addresses are listed, and neither picked nor
    /// checked.
    #[must_use]
    pub fn with_denied(mut self, denied: DeniedNetworks) -> Self {
        self.denied = denied;
        self
    }

    /// The denied networks. Instances at their addresses are listed, and neither picked nor
    /// checked.
    #[must_use]
    pub fn denied(&self) -> &DeniedNetworks {
        &self.denied
    }
}

impl BreakerConfig {
    /// Sets [`open_min`](Self::open_min) and [`open_max`](Self::open_max).
    ///
    /// # Errors
    ///
    /// When a time is out of its range, or `open_min` is longer than `open_max`.
    pub fn with_open_times(self, least: Duration, most: Duration) -> Result<Self, InvalidConfig> {
        let changed = self.with_open_min(least)?.with_open_max(most)?;
        if most < least {
            return Err(InvalidConfig::OutOfRange {
                key: "breaker.open_max",
                found: format!("{most:?}"),
                expected: "open_min to 1h".to_owned(),
            });
        }
        Ok(changed)
    }
}

impl InToml for BreakerConfig {
    fn in_toml(&self) -> String {
        String::new()
    }
}

impl Unbounded for BreakerConfig {
    fn values() -> String {
        "a table".to_owned()
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
            (
                config().with_session_ttl(Duration::ZERO).unwrap_err(),
                "session_ttl 0ns",
            ),
            (config().with_max_sessions(0).unwrap_err(), "max_sessions 0"),
            ("a b".parse::<CookieName>().unwrap_err(), "session_cookie_name \"a b\""),
            (
                "a".repeat(65).parse::<CookieName>().unwrap_err(),
                "session_cookie_name \"aaaa",
            ),
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
