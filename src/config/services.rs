//! `[defaults]` and `[services.<name>]`: how services are balanced.
//!
//! Both tables have the keys of the core's tables of settings, made by the same rows. A service has
//! some keys of its own.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use toml::{Spanned, Value};

use super::raw::{RawDuration, RawHealthCheck};
use super::{Checker, duration};
use crate::balancer::config::{balancer_settings, breaker_settings};
use crate::balancer::{
    BreakerConfig, Choices, DeniedNetworks, InvalidConfig, LoadBalancerConfig, LoadBalancingStrategy, ServiceConfigs,
};
use crate::duration::Readable;

/// Makes the tables that have the keys of a balancer. (serde can share keys by flattening, and then
/// forgets where the values stood.)
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
            pub(super) health_check: Option<Spanned<RawHealthCheck>>,
        }

        impl RawService {
            /// What it says of the keys of `[defaults]`.
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
                Ok(name) => {
                    services.insert(name, config);
                }
                Err(error) => self.refuse(name.span(), error),
            }
        }
        ServiceConfigs { defaults, services }
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
            // Each is in its range, so the first is longer than the second.
            (Err(error), Some(written), _) => {
                self.refuse(written.span(), format!("{section}.{error}"));
                breaker
            }
            (Err(_), None, Some(written)) => {
                let message = format!(
                    "{section}.breaker.open_min {}: longer than open_max, {}: set that, too",
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
