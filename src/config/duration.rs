//! Durations as operators write them: `"250ms"`, `"30s"`, `"5m"`, `"1h"`, or seconds as a number.

use std::fmt;
use std::time::Duration;

use toml::Value;

/// Why a value is no duration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum InvalidDuration {
    #[error("{found}: expected a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", or seconds as a number")]
    Form { found: String },
    #[error("{found}: expected {} to {}", Readable(*.least), Readable(*.most))]
    Range {
        found: String,
        least: Duration,
        most: Duration,
    },
}

/// Reads a value and checks its range, both ends included.
pub(super) fn parse(value: &Value, least: Duration, most: Duration) -> Result<Duration, InvalidDuration> {
    let read = match value {
        Value::String(text) => with_unit(text),
        Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
        Value::Float(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
        _ => None,
    };
    let found = value.to_string();
    match read {
        None => Err(InvalidDuration::Form { found }),
        Some(read) if read < least || read > most => Err(InvalidDuration::Range { found, least, most }),
        Some(read) => Ok(read),
    }
}

/// One number, decimals allowed, and one unit right behind it.
fn with_unit(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit_at);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(milliseconds).map(Duration::from_millis),
        // Not a whole number: a float may say "1.5", and what is neither ("", ".", "1.2.3") is refused by its parser.
        Err(_) => {
            let number = number.parse::<f64>().ok()?;
            Duration::try_from_secs_f64(number * (milliseconds as f64) / 1_000.0).ok()
        }
    }
}

/// A duration in the largest unit that shows it whole.
struct Readable(Duration);

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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<Duration> {
        parse(&Value::String(text.to_owned()), Duration::ZERO, Duration::MAX).ok()
    }

    #[test]
    fn a_duration_has_one_number_and_one_unit() {
        for (written, milliseconds) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1.5s", 1_500),
            (".5m", 30_000),
            ("0s", 0),
        ] {
            assert_eq!(text(written), Some(Duration::from_millis(milliseconds)), "{written}");
        }
        for refused in [
            "", "30", "s", ".", ".s", "-1s", "+1s", "1 s", " 1s", "1m30s", "1.2.3s", "1d", "1S", "1e3s", "infs",
        ] {
            assert_eq!(text(refused), None, "{refused:?}");
        }
        assert_eq!(text("18446744073709551615h"), None);
        assert_eq!(text("99999999999999999999h"), None);
    }

    #[test]
    fn a_number_is_seconds() {
        let read = |value| parse(&value, Duration::ZERO, Duration::MAX).ok();
        assert_eq!(read(Value::Integer(30)), Some(Duration::from_secs(30)));
        assert_eq!(read(Value::Float(0.25)), Some(Duration::from_millis(250)));
        for refused in [
            Value::Integer(-1),
            Value::Float(-0.5),
            Value::Float(f64::NAN),
            Value::Float(f64::INFINITY),
            Value::Boolean(true),
        ] {
            assert_eq!(read(refused.clone()), None, "{refused}");
        }
    }

    #[test]
    fn a_refusal_says_what_would_do() {
        let refusal = |written: &str| {
            parse(
                &Value::String(written.to_owned()),
                Duration::from_secs(1),
                Duration::from_secs(600),
            )
            .unwrap_err()
            .to_string()
        };
        assert_eq!(refusal("999ms"), "\"999ms\": expected 1s to 10m");
        assert_eq!(
            refusal("ten"),
            "\"ten\": expected a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", or seconds as a number"
        );
    }
}
