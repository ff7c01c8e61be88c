//! Durations as people write them: `"250ms"`, `"30s"`, `"5m"`, `"1h"`. The form is the same in
//! configuration files, request bodies and flags.

use std::time::Duration;

pub(crate) use crate::balancer::settings::Readable;

/// Parses one number, which may have decimals, and one unit right after it.
pub(crate) fn with_unit(text: &str) -> Option<Duration> {
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
        // Not a whole number: a float may be "1.5", and its parser refuses everything else ("",
        // ".", "1.2.3").
        Err(_) => {
            let number = number.parse::<f64>().ok()?;
            Duration::try_from_secs_f64(number * (milliseconds as f64) / 1_000.0).ok()
        }
    }
}
