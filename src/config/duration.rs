//! Durations as operators write them: `"250ms"`, `"30s"`, `"5m"`, `"1h"`, or seconds as a number.

use std::time::Duration;

use toml::Value;

use crate::duration::{Readable, with_unit};

/// Why a value was refused as a duration.
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

/// Reads a value.
pub(super) fn read(value: &Value) -> Result<Duration, InvalidDuration> {
    let read = match value {
        Value::String(text) => with_unit(text),
        Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
        Value::Float(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
        _ => None,
    };
    read.ok_or_else(|| InvalidDuration::Form {
        found: value.to_string(),
    })
}

/// Reads a value and checks its range, both ends included.
pub(super) fn parse(value: &Value, least: Duration, most: Duration) -> Result<Duration, InvalidDuration> {
    let read = read(value)?;
    if read < least || read > most {
        let found = value.to_string();
        return Err(InvalidDuration::Range { found, least, most });
    }
    Ok(read)
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
