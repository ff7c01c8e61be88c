//! `[defaults]` and `[services.<name>]`: how services are balanced.
//!
//! Both tables have the keys of the core's tables of settings, made by the same rows. A service has
//! some keys of its own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::{Spanned, Value};

use super::checker::{Checker, RawDuration};
use super::duration;
use super::health_check::RawHealthCheck;
use crate::balancer::config::{balancer_settings, breaker_settings};
use crate::balancer::{
    BreakerConfig, Choices, DeniedNetworks, InvalidConfig, LoadBalancerConfig, LoadBalancingStrategy, ServiceConfigs,
    ServiceName,
};
use crate::duration::Readable;
use crate::probe::HealthCheck;

/// Makes the tables that have the keys of a balancer. Both list all keys, because serde loses the
/// places of values in a flattened table.
macro_rules! balancer_tables {
    (
        $(#[$attribute:meta])*
        $config:ident, $prefix:literal $(, $extra:ident: $extra_type:ty)*;
        $($key:ident, $with:tt: $type:ident = ($($default:tt)+) $(in [$($range:tt)+])?, $meaning:literal;)+
    ) => {
        /// `[defaults]`
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, expecting = "a table")]
        pub(super) struct RawBalancer {
            $($key: Option<raw!($type)>,)+
        }

        /// `[services.<name>]`
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, expecting = "a table")]
        pub(super) struct RawService {
            $($key: Option<raw!($type)>,)+
            preset: Option<Spanned<String>>,
            health_check: Option<Spanned<RawHealthCheck>>,
        }

        impl RawService {
            /// The keys that `[defaults]` has, too.
            fn balancer(&self) -> RawBalancer {
                RawBalancer {
                    $($key: self.$key.clone(),)+
                }
            }
        }

        impl RawBalancer {
            /// The settings with every key that is written.
            fn apply(&self, checker: &mut Checker, section: &str, mut config: $config) -> $config {
                $(apply! { $with: $type, $config, concat!($prefix, stringify!($key)), &self.$key, checker, section, config })+
                config
            }
        }
    };
}

/// Makes the table `breaker`.
macro_rules! breaker_table {
    (
        $(#[$attribute:meta])*
        $config:ident, $prefix:literal $(, $extra:ident: $extra_type:ty)*;
        $($key:ident, $with:tt: $type:ident = ($($default:tt)+) $(in [$($range:tt)+])?, $meaning:literal;)+
    ) => {
        /// `breaker = { … }`
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, expecting = "a table")]
        pub(super) struct RawBreaker {
            $($key: Option<raw!($type)>,)+
        }

        impl RawBreaker {
            /// The settings with every key that is written, but for those that are set together.
            fn apply(&self, checker: &mut Checker, section: &str, mut config: $config) -> $config {
                $(apply! { $with: $type, $config, concat!($prefix, stringify!($key)), &self.$key, checker, section, config })+
                config
            }
        }
    };
}

/// How a setting of this type is written.
macro_rules! raw {
    (bool) => { bool };
    (u32) => { Spanned<i64> };
    (f64) => { Spanned<f64> };
    (Duration) => { RawDuration };
    (LoadBalancingStrategy) => { Spanned<String> };
    (CookieName) => { Spanned<String> };
    (AdaptiveFormula) => { Spanned<String> };
    (Choices) => { Spanned<Value> };
    (BreakerConfig) => { RawBreaker };
}

/// What reads a setting of this type.
macro_rules! reader {
    (bool) => {
        Checker::flag
    };
    (u32) => {
        Checker::number
    };
    (f64) => {
        Checker::number
    };
    (Duration) => {
        Checker::time
    };
    (LoadBalancingStrategy) => {
        Checker::name
    };
    (CookieName) => {
        Checker::name
    };
    (AdaptiveFormula) => {
        Checker::name
    };
    (Choices) => {
        Checker::choices
    };
    (BreakerConfig) => {
        Checker::breaker
    };
}

/// Sets one key, if it is written. A setter in parentheses is part of one that sets several keys.
macro_rules! apply {
    (($with:ident): $($rest:tt)+) => {};
    ($with:ident: $type:ident, $of:ident, $key:expr, $written:expr, $checker:ident, $section:ident, $config:ident) => {
        if let Some(written) = $written {
            $config = reader!($type)($checker, ($section, $key), $config, written, $of::$with);
        }
    };
}

balancer_settings!(balancer_tables);
breaker_settings!(breaker_table);

/// A table's name, such as `services.web`, and a key in it.
type Key<'a> = (&'a str, &'static str);

impl Checker<'_> {
    /// The settings of every service; `strategy` is that of a flag.
    pub(super) fn services(
        &mut self,
        raw_defaults: &RawBalancer,
        raw_services: &BTreeMap<Spanned<String>, RawService>,
        strategy: Option<LoadBalancingStrategy>,
        denied: DeniedNetworks,
    ) -> ServiceConfigs {
        let built_in = LoadBalancerConfig::default().with_denied(denied);
        let mut defaults = raw_defaults.apply(self, "defaults", built_in);
        if let Some(strategy) = strategy {
            defaults = defaults.with_strategy(strategy);
        }
        let mut services = BTreeMap::new();
        for (name, own) in raw_services {
            let section = format!("services.{}", name.get_ref());
            let mut config = defaults.clone();
            // A preset beats [defaults], and the keys beside it beat the preset.
            if let Some(preset) = &own.preset {
                config = self.name((&section, "preset"), config, preset, LoadBalancerConfig::with_preset);
            }
            config = own.balancer().apply(self, &section, config);
            match name.get_ref().parse() {
                Ok(parsed) => match services.entry(parsed) {
                    Entry::Vacant(free) => {
                        free.insert(config);
                    }
                    Entry::Occupied(other) => {
                        let message = format!("{section}: the same service as services.{}", other.key());
                        self.refuse(name.span(), message);
                    }
                },
                Err(error) => self.refuse(name.span(), error),
            }
        }
        ServiceConfigs { defaults, services }
    }

    /// The active check of each service that has one.
    pub(super) fn health_checks(
        &mut self,
        raw: &BTreeMap<Spanned<String>, RawService>,
    ) -> BTreeMap<ServiceName, Arc<HealthCheck>> {
        let mut checks = BTreeMap::new();
        for (name, service) in raw {
            let Some(written) = &service.health_check else { continue };
            let key = format!("services.{}.health_check", name.get_ref());
            let check = self.health_check(&key, written);
            // An invalid name has been refused already.
            if let (Some(check), Ok(name)) = (check, name.get_ref().parse()) {
                checks.insert(name, Arc::new(check));
            }
        }
        checks
    }

    fn flag<C>(&mut self, _: Key, config: C, written: &bool, with: impl FnOnce(C, bool) -> C) -> C {
        with(config, *written)
    }

    fn number<C: Clone, T: Copy>(
        &mut self,
        (section, _): Key,
        config: C,
        written: &Spanned<T>,
        with: impl FnOnce(C, T) -> Result<C, InvalidConfig>,
    ) -> C {
        with(config.clone(), *written.get_ref()).unwrap_or_else(|error| {
            self.refuse(written.span(), format!("{section}.{error}"));
            config
        })
    }

    fn time<C: Clone>(
        &mut self,
        (section, key): Key,
        config: C,
        written: &RawDuration,
        with: impl FnOnce(C, Duration) -> Result<C, InvalidConfig>,
    ) -> C {
        let changed = match duration::read(written.get_ref()) {
            Ok(read) => with(config.clone(), read).map_err(|error| match error {
                // In the words of the file: "90s", where the core would say 90s or 1.5s.
                InvalidConfig::OutOfRange { expected, .. } => {
                    format!("{section}.{key} {}: expected {expected}", written.get_ref())
                }
                error @ InvalidConfig::UnknownName { .. } => format!("{section}.{error}"),
            }),
            Err(error) => Err(format!("{section}.{key} {error}")),
        };
        changed.unwrap_or_else(|message| {
            self.refuse(written.span(), message);
            config
        })
    }

    fn name<C, N: FromStr<Err = InvalidConfig>>(
        &mut self,
        (section, _): Key,
        config: C,
        written: &Spanned<String>,
        with: impl FnOnce(C, N) -> C,
    ) -> C {
        match written.get_ref().parse() {
            Ok(name) => with(config, name),
            Err(error) => {
                self.refuse(written.span(), format!("{section}.{error}"));
                config
            }
        }
    }

    fn choices<C>(
        &mut self,
        (section, _): Key,
        config: C,
        written: &Spanned<Value>,
        with: impl FnOnce(C, Choices) -> C,
    ) -> C {
        let choices = match written.get_ref() {
            Value::String(word) => word.parse(),
            Value::Integer(count) => Choices::random(*count),
            other => Err(Choices::refused(other)),
        };
        match choices {
            Ok(choices) => with(config, choices),
            Err(error) => {
                self.refuse(written.span(), format!("{section}.{error}"));
                config
            }
        }
    }

    fn breaker(
        &mut self,
        (section, _): Key,
        config: LoadBalancerConfig,
        written: &RawBreaker,
        with: impl FnOnce(LoadBalancerConfig, BreakerConfig) -> LoadBalancerConfig,
    ) -> LoadBalancerConfig {
        let breaker = written.apply(self, section, config.breaker().clone());
        let breaker = self.open_times(section, breaker, written);
        with(config, breaker)
    }

    /// `open_min` and `open_max`, of which `[defaults]` may have set either.
    fn open_times(&mut self, section: &str, breaker: BreakerConfig, raw: &RawBreaker) -> BreakerConfig {
        let refused = self.refusals.len();
        let mut read = breaker.clone();
        if let Some(written) = &raw.open_min {
            read = self.time(
                (section, "breaker.open_min"),
                read,
                written,
                BreakerConfig::with_open_min,
            );
        }
        if let Some(written) = &raw.open_max {
            read = self.time(
                (section, "breaker.open_max"),
                read,
                written,
                BreakerConfig::with_open_max,
            );
        }
        if self.refusals.len() > refused {
            return breaker;
        }
        let (least, most) = (read.open_min(), read.open_max());
        match (
            breaker.clone().with_open_times(least, most),
            &raw.open_max,
            &raw.open_min,
        ) {
            (Ok(changed), ..) => changed,
            // Both are in range, so `open_min` is longer than `open_max`.
            (Err(error), Some(written), _) => {
                self.refuse(written.span(), format!("{section}.{error}"));
                breaker
            }
            (Err(_), None, Some(written)) => {
                let message = format!(
                    "{section}.breaker.open_min {}: longer than open_max ({}): set open_max, too",
                    Readable(least),
                    Readable(most)
                );
                self.refuse(written.span(), message);
                breaker
            }
            (Err(_), None, None) => breaker,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{read, refused_once};
    use super::*;

    fn service(text: &str) -> LoadBalancerConfig {
        let config = read(&format!("[consul]\n{text}"));
        config.services.of(&"web".parse().unwrap()).clone()
    }

    #[test]
    fn settings_of_services_are_checked_and_named_with_their_service() {
        let expected = "expected one of round_robin, random, least_connections, weighted_round_robin, consistent_hash, \
                        least_response_time";
        for (text, refusal) in [
            (
                "[defaults]\nstrategy = \"fastest\"",
                format!("p.toml:2:12: defaults.strategy \"fastest\": {expected}"),
            ),
            (
                "[services.a]\nstrategy = \"fastest\"",
                format!("p.toml:2:12: services.a.strategy \"fastest\": {expected}"),
            ),
            (
                "[services.a]\ndegraded_factor = 1.5",
                "p.toml:2:19: services.a.degraded_factor 1.5: expected 0.0 to 1.0".to_owned(),
            ),
            (
                "[services.a]\nvirtual_nodes = 0",
                "p.toml:2:17: services.a.virtual_nodes 0: expected 1 to 10000".to_owned(),
            ),
            (
                "[services.a]\nhash_balance_factor = 0.5",
                "p.toml:2:23: services.a.hash_balance_factor 0.5: expected 0 (off) or 1.0 to 100.0".to_owned(),
            ),
            (
                "[services.a]\nchoices = \"some\"",
                "p.toml:2:11: services.a.choices \"some\": expected \"auto\", \"all\" or a number from 2 to 32"
                    .to_owned(),
            ),
            (
                "[services.a]\nchoices = 1",
                "p.toml:2:11: services.a.choices 1: expected \"auto\", \"all\" or a number from 2 to 32".to_owned(),
            ),
            (
                "[services.a]\nlease_ttl = \"500ms\"",
                "p.toml:2:13: services.a.lease_ttl \"500ms\": expected 1s to 1h".to_owned(),
            ),
            (
                "[defaults]\nlease_ttl = 3601",
                "p.toml:2:13: defaults.lease_ttl 3601: expected 1s to 1h".to_owned(),
            ),
            (
                "[services.a]\nsession_cookie_name = \"a b\"",
                "p.toml:2:23: services.a.session_cookie_name \"a b\": expected the name of a cookie, 1 to 64 characters"
                    .to_owned(),
            ),
            (
                "[services.a]\nmax_leases = 0",
                "p.toml:2:14: services.a.max_leases 0: expected 1 to 1000000".to_owned(),
            ),
            (
                "[services.a]\nchoices = 2.5",
                "p.toml:2:11: services.a.choices 2.5: expected \"auto\", \"all\" or a number from 2 to 32".to_owned(),
            ),
            (
                "[services.\"a//b\"]",
                "p.toml:1:11: service name \"a//b\": expected 1 to 253 bytes without control characters, with no empty \
                 part and no \".\" or \"..\" between slashes, and not \"(unknown)\""
                    .to_owned(),
            ),
            (
                "[services.redis]\n[services.Redis]",
                "p.toml:1:11: services.redis: the same service as services.Redis".to_owned(),
            ),
        ] {
            assert_eq!(refused_once(text), refusal, "{text}");
        }
    }

    #[test]
    fn every_key_of_health_reaches_its_service() {
        let config = service(
            r#"
            [probe]
            deny = ["10.9.0.0/16", "fd00::/8"]
            [defaults]
            health_check_enabled = false
            health_check_interval = "7s"
            health_check_timeout = 1.5
            max_consecutive_failures = 4
            rise = 5
            circuit_breaker_enabled = false
            breaker = { min_outcomes = 20, failure_ratio = 0.4, window = "30s", open_min = "2s", open_max = "10s" }
            max_ejection = 0.25
            panic = false
            panic_threshold = 0.3
            slow_start = "0s"
            "#,
        );
        let seconds = Duration::from_secs;
        assert!(!config.health_check_enabled() && !config.circuit_breaker_enabled() && !config.panic());
        assert_eq!(config.health_check_interval(), seconds(7));
        assert_eq!(config.health_check_timeout(), Duration::from_millis(1_500));
        assert_eq!((config.max_consecutive_failures(), config.rise()), (4, 5));
        let breaker = config.breaker();
        assert_eq!((breaker.min_outcomes(), breaker.failure_ratio()), (20, 0.4));
        assert_eq!(
            (breaker.window(), breaker.open_min(), breaker.open_max()),
            (seconds(30), seconds(2), seconds(10))
        );
        assert_eq!((config.max_ejection(), config.panic_threshold()), (0.25, 0.3));
        assert_eq!(config.slow_start(), Duration::ZERO);
        assert!(config.denied().contains("10.9.1.1".parse().unwrap()));
        assert!(read("[consul]").health_checks.is_empty());
    }

    #[test]
    fn a_preset_beats_the_defaults_and_keys_beside_it_beat_the_preset() {
        let config = service(
            "[defaults]\nhealth_check_interval = \"7s\"\nhealth_check_timeout = \"1s\"\nrise = 4\n\
             [services.web]\nhealth_check_timeout = \"4s\"\npreset = \"database\"",
        );
        assert_eq!(config.health_check_interval(), Duration::from_secs(15));
        assert_eq!(config.health_check_timeout(), Duration::from_secs(4));
        assert_eq!((config.max_consecutive_failures(), config.rise()), (2, 4));
        for (preset, interval, timeout, failures) in [("external_api", 60, 10, 5), ("critical", 10, 3, 1)] {
            let config = service(&format!("[services.web]\npreset = \"{preset}\""));
            let times = (
                config.health_check_interval().as_secs(),
                config.health_check_timeout().as_secs(),
            );
            assert_eq!(
                (times, config.max_consecutive_failures()),
                ((interval, timeout), failures)
            );
        }
    }

    #[test]
    fn a_breaker_of_a_service_keeps_what_it_does_not_name() {
        let config = service(
            "[defaults.breaker]\nmin_outcomes = 50\nopen_max = \"5s\"\n[services.web.breaker]\nopen_min = \"3s\"",
        );
        let breaker = config.breaker();
        assert_eq!(breaker.min_outcomes(), 50);
        assert_eq!((breaker.open_min().as_secs(), breaker.open_max().as_secs()), (3, 5));
    }

    #[test]
    fn what_is_wrong_with_a_service_is_refused_at_its_place() {
        for (text, refusal) in [
            (
                "[defaults]\nrise = 0",
                "p.toml:3:8: defaults.rise 0: expected 1 to 1000",
            ),
            (
                "[defaults]\nmax_consecutive_failures = 0",
                "p.toml:3:28: defaults.max_consecutive_failures 0",
            ),
            (
                "[defaults]\nhealth_check_interval = \"10ms\"",
                "p.toml:3:25: defaults.health_check_interval \"10ms\": expected 100ms to 1h",
            ),
            (
                "[defaults]\nhealth_check_timeout = \"1ms\"",
                "p.toml:3:24: defaults.health_check_timeout \"1ms\"",
            ),
            (
                "[defaults]\nslow_start = \"2h\"",
                "p.toml:3:14: defaults.slow_start \"2h\"",
            ),
            (
                "[defaults]\nmax_ejection = 1.5",
                "p.toml:3:16: defaults.max_ejection 1.5",
            ),
            (
                "[defaults]\npanic_threshold = -0.1",
                "p.toml:3:19: defaults.panic_threshold -0.1",
            ),
            (
                "[defaults]\nadaptive_formula = \"fast\"",
                "p.toml:3:20: defaults.adaptive_formula \"fast\": expected one of relative, seed",
            ),
            (
                "[services.web]\nadaptive_interval = \"100ms\"",
                "p.toml:3:21: services.web.adaptive_interval \"100ms\": expected 500ms to 10m",
            ),
            ("[defaults]\npanic = 1", "p.toml:3:9: invalid type: integer `1`"),
            (
                "[services.web]\nbreaker = { failure_ratio = 0 }",
                "p.toml:3:29: services.web.breaker.failure_ratio 0: expected above 0.0",
            ),
            (
                "[services.web]\nbreaker = { open_min = \"90s\" }",
                "p.toml:3:24: services.web.breaker.open_min 90s: longer than open_max (1m): set open_max, too",
            ),
            (
                "[services.web]\nbreaker = { open_min = \"2s\", open_max = 1 }",
                "p.toml:3:41: services.web.breaker.open_max 1s: expected open_min to 1h",
            ),
            (
                "[defaults.breaker]\nopen_min = \"5s\"\n[services.web]\nbreaker = { open_max = \"4s\" }",
                "p.toml:5:24: services.web.breaker.open_max 4s: expected open_min to 1h",
            ),
            (
                "[services.web]\nbreaker = { open_min = \"90s\", open_max = \"2h\" }",
                "p.toml:3:42: services.web.breaker.open_max \"2h\": expected 100ms to 1h",
            ),
            (
                "[services.web]\nbreaker = { min_outcomes = 0 }",
                "p.toml:3:28: services.web.breaker.min_outcomes 0: expected 1 to 100000",
            ),
            (
                "[services.web]\nbreaker = { window = \"1ms\" }",
                "p.toml:3:22: services.web.breaker.window \"1ms\"",
            ),
            (
                "[services.web]\nbreaker = { half = 1 }",
                "p.toml:3:13: unknown field `half`",
            ),
            (
                "[services.web]\npreset = \"web\"",
                "p.toml:3:10: services.web.preset \"web\": expected one of database",
            ),
            (
                "[defaults]\npreset = \"critical\"",
                "p.toml:3:1: unknown field `preset`",
            ),
        ] {
            let found = refused_once(&format!("[consul]\n{text}"));
            assert!(found.starts_with(refusal), "{found}\n{refusal}");
        }
    }
}
