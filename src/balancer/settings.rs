//! The settings of a balancer as rows of a table.
//!
//! A setting is one row. The row makes the field, the default, the getter, the setter that refuses
//! a value out of range, the key of the configuration file, and the text that a test compares with
//! the documentation:
//!
//! ```text
//! rise, with_rise: u32 = (2) in [1 to 1_000], "Passing active checks in a row that bring ...";
//! key   setter     type  default  range       meaning
//! ```
//!
//! The tables are in [`config`](super::config). This file does not know their keys.

use std::fmt;
use std::time::Duration;

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidConfig {
    /// A value is out of its range.
    #[error("{key} {found}: expected {expected}")]
    OutOfRange {
        /// The setting, as in the configuration file: `max_ejection`, `breaker.window`.
        key: &'static str,
        /// The value as it came.
        found: String,
        /// The range.
        expected: String,
    },
    /// A name is not in its list.
    #[error("{key} {found:?}: expected one of {expected}")]
    UnknownName {
        /// The setting, as in the configuration file: `strategy`, `preset`.
        key: &'static str,
        /// The first 64 characters of the name.
        found: String,
        /// Every name that is known, separated by commas.
        expected: String,
    },
}

/// One setting, as the documentation describes it.
///
/// ```
/// use pickd::LoadBalancerConfig;
///
/// let settings = LoadBalancerConfig::settings();
/// let rise = settings.iter().find(|setting| setting.key == "rise").unwrap();
/// assert_eq!((rise.default.as_str(), rise.range.as_str()), ("2", "1 to 1000"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// Its key in `[defaults]` and `[services.<name>]`, or in a table there.
    pub key: &'static str,
    /// The default as TOML. Empty for a table, whose keys have defaults of their own.
    pub default: String,
    /// The values that are accepted, in the words of [`InvalidConfig::OutOfRange`].
    pub range: String,
    /// What the setting does, in Markdown.
    pub meaning: &'static str,
}

/// The values that a number or a duration may have, displayed as in a refusal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Range<T> {
    /// Both ends included.
    Within(T, T),
    /// The lower end excluded.
    Above(T, T),
    /// From zero, which switches the feature off.
    OffTo(T),
    /// Zero, which switches the feature off, or from end to end.
    OffOr(T, T),
}

/// A type that may have a range.
pub(crate) trait Bound: Copy + PartialOrd {
    /// The value that switches a feature off.
    const OFF: Self;

    /// The value as an end of a range.
    fn shown(self) -> String;
}

impl Bound for u32 {
    const OFF: Self = 0;

    fn shown(self) -> String {
        self.to_string()
    }
}

impl Bound for f64 {
    const OFF: Self = 0.0;

    fn shown(self) -> String {
        format!("{self:?}")
    }
}

impl Bound for Duration {
    const OFF: Self = Self::ZERO;

    fn shown(self) -> String {
        Readable(self).to_string()
    }
}

impl<T: Bound> Range<T> {
    fn contains(self, value: T) -> bool {
        let (least, most) = match self {
            Self::OffOr(..) if value == T::OFF => return true,
            Self::Above(least, _) if value <= least => return false,
            Self::OffTo(most) => (T::OFF, most),
            Self::Within(least, most) | Self::Above(least, most) | Self::OffOr(least, most) => (least, most),
        };
        // False for NaN.
        least <= value && value <= most
    }

    fn refuse(self, key: &'static str, found: impl fmt::Display) -> InvalidConfig {
        InvalidConfig::OutOfRange {
            key,
            found: found.to_string(),
            expected: self.to_string(),
        }
    }
}

impl<T: Bound> fmt::Display for Range<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Within(least, most) => write!(f, "{} to {}", least.shown(), most.shown()),
            Self::Above(least, most) => write!(f, "above {}, to {}", least.shown(), most.shown()),
            Self::OffTo(most) => write!(f, "0 (off) to {}", most.shown()),
            Self::OffOr(least, most) => write!(f, "0 (off) or {} to {}", least.shown(), most.shown()),
        }
    }
}

/// Checks a whole number. Callers pass an `i64`, so that every number in a file gets this refusal.
pub(super) fn count(key: &'static str, range: Range<u32>, found: i64) -> Result<u32, InvalidConfig> {
    let value = u32::try_from(found).ok().filter(|value| range.contains(*value));
    value.ok_or_else(|| range.refuse(key, found))
}

/// Checks a number.
pub(super) fn number(key: &'static str, range: Range<f64>, found: f64) -> Result<f64, InvalidConfig> {
    if range.contains(found) {
        Ok(found)
    } else {
        Err(range.refuse(key, found))
    }
}

/// Checks a duration.
pub(super) fn duration(key: &'static str, range: Range<Duration>, found: Duration) -> Result<Duration, InvalidConfig> {
    if range.contains(found) {
        Ok(found)
    } else {
        Err(range.refuse(key, format_args!("{found:?}")))
    }
}

/// A type whose rows name no range, because every value is accepted.
pub(super) trait Unbounded {
    /// All values, as the range of a row.
    fn values() -> String;
}

impl Unbounded for bool {
    fn values() -> String {
        "true or false".to_owned()
    }
}

/// A default as TOML.
pub(super) trait InToml {
    fn in_toml(&self) -> String;
}

impl InToml for u32 {
    fn in_toml(&self) -> String {
        self.shown()
    }
}

impl InToml for f64 {
    fn in_toml(&self) -> String {
        self.shown()
    }
}

impl InToml for Duration {
    fn in_toml(&self) -> String {
        format!("\"{}\"", Readable(*self))
    }
}

impl InToml for bool {
    fn in_toml(&self) -> String {
        self.to_string()
    }
}

/// A duration in the largest unit that shows it whole.
pub(crate) struct Readable(pub(crate) Duration);

impl fmt::Display for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            0 => write!(f, "0s"),
            hours if hours.is_multiple_of(3_600_000) => write!(f, "{}h", hours / 3_600_000),
            minutes if minutes.is_multiple_of(60_000) => write!(f, "{}m", minutes / 60_000),
            seconds if seconds.is_multiple_of(1_000) => write!(f, "{}s", seconds / 1_000),
            milliseconds => write!(f, "{milliseconds}ms"),
        }
    }
}

/// Makes the type that a table of settings describes.
///
/// `$prefix` stands before each key in a refusal. `$extra` are fields that are no settings.
macro_rules! settings {
    (
        $(#[$attribute:meta])*
        $config:ident, $prefix:literal $(, $extra:ident: $extra_type:ty)*;
        $($key:ident, $with:tt: $type:ident = ($($default:tt)+) $(in [$($range:tt)+])?, $meaning:literal;)+
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $config {
            $($key: $type,)+
            $($extra: $extra_type,)*
        }

        impl Default for $config {
            /// Every setting at the default that its getter names.
            fn default() -> Self {
                Self {
                    $($key: value!($type: $($default)+),)+
                    $($extra: Default::default(),)*
                }
            }
        }

        impl $config {
            /// Every setting, in the order of the documentation.
            #[must_use]
            pub fn settings() -> Vec<Setting> {
                vec![$(Setting {
                    key: stringify!($key),
                    default: value!($type: $($default)+).in_toml(),
                    range: accepted!($type $(: $($range)+)?),
                    meaning: $meaning,
                }),+]
            }

            $(
                getter! { $key: $type = ($($default)+) $(in [$($range)+])?, $meaning }
                setter! { $prefix $key, $with: $type = ($($default)+) $(in [$($range)+])?, $meaning }
            )+
        }
    };
}

/// A value of a row: `100`, `0.25`, `true`, `30 s`, the name of a variant, or `default`.
macro_rules! value {
    (Duration: $number:literal ms) => {
        Duration::from_millis($number)
    };
    (Duration: $number:literal s) => {
        Duration::from_secs($number)
    };
    (Duration: $number:literal min) => {
        Duration::from_secs($number * 60)
    };
    (Duration: $number:literal h) => {
        Duration::from_secs($number * 3_600)
    };
    ($type:ident: default) => {
        $type::default()
    };
    (CookieName: $name:literal) => {
        CookieName::of_row($name)
    };
    ($type:ident: $number:literal) => {
        $number
    };
    ($type:ident: $variant:ident) => {
        $type::$variant
    };
}

/// A range of a row: `1 to 1_000`, `10 ms to 10 min`, `above 0.0 to 1.0`, `0 (off) to 1 h`.
macro_rules! range {
    ($type:ident: $least:literal to $most:literal) => {
        Range::Within(value!($type: $least), value!($type: $most))
    };
    ($type:ident: $least:literal $unit:ident to $most:literal $most_unit:ident) => {
        Range::Within(value!($type: $least $unit), value!($type: $most $most_unit))
    };
    ($type:ident: above $least:literal to $most:literal) => {
        Range::Above(value!($type: $least), value!($type: $most))
    };
    ($type:ident: 0 (off) to $most:literal $unit:ident) => {
        Range::OffTo(value!($type: $most $unit))
    };
    ($type:ident: 0 (off) or $least:literal to $most:literal) => {
        Range::OffOr(value!($type: $least), value!($type: $most))
    };
}

/// The range of a row in words. Without a range, the values of the type.
macro_rules! accepted {
    ($type:ident: $($range:tt)+) => { range!($type: $($range)+).to_string() };
    ($type:ident) => { <$type as Unbounded>::values() };
}

/// Reads the field. A nested table is returned by reference.
macro_rules! getter {
    ($key:ident: BreakerConfig = ($($default:tt)+), $meaning:literal) => {
        #[doc = $meaning]
        #[must_use]
        pub fn $key(&self) -> &BreakerConfig {
            &self.$key
        }
    };
    ($key:ident: CookieName = ($($default:tt)+), $meaning:literal) => {
        #[doc = $meaning]
        ///
        #[doc = concat!("Default: ", stringify!($($default)+), ".")]
        #[must_use]
        pub fn $key(&self) -> &CookieName {
            &self.$key
        }
    };
    ($key:ident: $type:ident = ($($default:tt)+) $(in [$($range:tt)+])?, $meaning:literal) => {
        #[doc = $meaning]
        ///
        #[doc = concat!($("Range: ", stringify!($($range)+), ". ",)? "Default: ", stringify!($($default)+), ".")]
        #[must_use]
        pub fn $key(&self) -> $type {
            self.$key
        }
    };
}

/// Sets the field. A setter in parentheses is not public: a setter of several fields calls it.
macro_rules! setter {
    ($prefix:literal $key:ident, ($with:ident): $type:ident = ($($default:tt)+) in [$($range:tt)+], $meaning:literal) => {
        pub(crate) fn $with(mut self, $key: $type) -> Result<Self, InvalidConfig> {
            self.$key = check!($type)(concat!($prefix, stringify!($key)), range!($type: $($range)+), $key)?;
            Ok(self)
        }
    };
    ($prefix:literal $key:ident, $with:ident: $type:ident = ($($default:tt)+) in [$($range:tt)+], $meaning:literal) => {
        #[doc = concat!("Sets [`", stringify!($key), "`](Self::", stringify!($key), "). ", $meaning)]
        ///
        #[doc = concat!("Range: ", stringify!($($range)+), ". Default: ", stringify!($($default)+), ".")]
        ///
        /// # Errors
        ///
        /// Outside that range.
        pub fn $with(mut self, $key: argument!($type)) -> Result<Self, InvalidConfig> {
            self.$key = check!($type)(concat!($prefix, stringify!($key)), range!($type: $($range)+), $key)?;
            Ok(self)
        }
    };
    ($prefix:literal $key:ident, $with:ident: $type:ident = ($($default:tt)+), $meaning:literal) => {
        #[doc = concat!("Sets [`", stringify!($key), "`](Self::", stringify!($key), "). ", $meaning)]
        ///
        #[doc = concat!("Default: ", default_in_words!($($default)+), ".")]
        #[must_use]
        pub fn $with(mut self, $key: $type) -> Self {
            self.$key = $key;
            self
        }
    };
}

/// The default of a row in words.
macro_rules! default_in_words {
    (default) => { "that of each setting in it" };
    ($($default:tt)+) => { stringify!($($default)+) };
}

/// The type of the argument of a setter.
macro_rules! argument {
    (u32) => {
        i64
    };
    ($type:ident) => {
        $type
    };
}

/// The function that checks a value of this type.
macro_rules! check {
    (u32) => {
        settings::count
    };
    (f64) => {
        settings::number
    };
    (Duration) => {
        settings::duration
    };
}

pub(super) use {accepted, argument, check, default_in_words, getter, range, setter, settings, value};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_range_belong_to_it() {
        let seconds = Duration::from_secs;
        for (range, inside, outside) in [
            (Range::Within(1.0, 2.0), [1.0, 2.0], [0.9, 2.1]),
            (Range::Above(0.0, 1.0), [0.001, 1.0], [0.0, f64::NAN]),
            (Range::OffOr(1.0, 2.0), [0.0, 1.0], [0.5, 2.1]),
        ] {
            assert!(inside.into_iter().all(|value| range.contains(value)), "{range}");
            assert!(!outside.into_iter().any(|value| range.contains(value)), "{range}");
        }
        let ramp = Range::OffTo(seconds(3_600));
        assert!(ramp.contains(seconds(0)) && ramp.contains(seconds(3_600)) && !ramp.contains(seconds(3_601)));
    }

    #[test]
    fn a_number_that_no_u32_can_hold_is_refused_as_it_came() {
        for found in [-1, 0, 11, i64::from(u32::MAX) + 1, i64::MAX] {
            let refusal = count("rise", Range::Within(1, 10), found).unwrap_err();
            assert_eq!(refusal.to_string(), format!("rise {found}: expected 1 to 10"));
        }
        assert_eq!(count("rise", Range::Within(1, 10), 10), Ok(10));
    }

    #[test]
    fn a_range_is_told_in_the_units_of_the_file() {
        let range = Range::Within(Duration::from_millis(10), Duration::from_secs(600));
        assert_eq!(range.to_string(), "10ms to 10m");
        assert_eq!(Range::Above(0.0, 1.0).to_string(), "above 0.0, to 1.0");
        assert_eq!(Range::OffTo(Duration::from_secs(3_600)).to_string(), "0 (off) to 1h");
    }
}
