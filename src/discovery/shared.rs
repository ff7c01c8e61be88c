//! What several registries read or print in the same way.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::balancer::{RegistryStatus, Timestamp};

/// Timers sometimes fire a little early. Without a minimum, a due time just ahead would be checked
/// in a tight loop.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// How long a watcher waits if no timer is due.
const IDLE_PAUSE: Duration = Duration::from_secs(60);

/// How long a watcher waits until `wake`, if no answer comes before.
pub(super) fn pause_until(wake: Option<Timestamp>, now: Timestamp) -> Duration {
    wake.map_or(IDLE_PAUSE, |at| at.since(now).max(SHORTEST_PAUSE))
}

/// The status with this name, as in files and in etcd.
pub(super) fn status_named(name: &str) -> Option<RegistryStatus> {
    [
        RegistryStatus::Passing,
        RegistryStatus::Warning,
        RegistryStatus::Critical,
        RegistryStatus::Maintenance,
        RegistryStatus::Unknown,
    ]
    .into_iter()
    .find(|status| status.as_str() == name)
}

/// Reads `null` as the default. Consul and programs in Go write `null` for an empty list, map or
/// string.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A text from outside as one line of a log: white space becomes single spaces, control characters
/// are dropped, and the text ends after `most` characters.
pub(super) fn one_line(text: &str, most: usize) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(most)
        .collect()
}

/// Why JSON was refused, without any part of it: the JSON parser repeats the values that it refuses.
pub(super) fn json_reason(error: &serde_json::Error) -> String {
    without_values(&error.to_string())
}

/// A message about a text without the values that it repeats: what stands in double quotes, and the
/// number or word that a parser found in place of another.
pub(super) fn without_values(message: &str) -> String {
    let (mut told, mut rest) = (String::new(), message);
    while let Some(start) = rest.find(['"', '`']) {
        let (before, quoted) = rest.split_at(start);
        let quote = &quoted[..1];
        let Some(end) = closing(quoted) else {
            return format!("{told}{before}...");
        };
        let inside = &quoted[1..end];
        // In backticks are names of fields and what a parser has found; the word before tells.
        let found = [
            "integer ",
            "float ",
            "floating point ",
            "boolean ",
            "character ",
            "variant ",
            "bool ",
        ];
        told += before;
        if quote == "`" && !found.iter().any(|word| before.ends_with(word)) {
            told += &quoted[..=end];
        } else {
            told += &format!("({} characters)", inside.chars().count());
        }
        rest = &quoted[end + 1..];
    }
    told + rest
}

/// Where a quoted text ends that begins with its quote.
fn closing(quoted: &str) -> Option<usize> {
    let quote = quoted.chars().next()?;
    let mut escaped = false;
    for (at, c) in quoted.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quote == '"',
            _ if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// An address without what stands before an `@`, which may be a password.
pub(super) fn without_credentials(address: &str) -> &str {
    address.rsplit_once('@').map_or(address, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_never_so_short_that_a_watcher_would_spin() {
        let now = Timestamp::default() + Duration::from_secs(5);
        assert_eq!(pause_until(None, now), IDLE_PAUSE);
        assert_eq!(pause_until(Some(now), now), SHORTEST_PAUSE);
        assert_eq!(pause_until(Some(Timestamp::default()), now), SHORTEST_PAUSE);
        let later = now + Duration::from_secs(3);
        assert_eq!(pause_until(Some(later), now), Duration::from_secs(3));
    }

    #[test]
    fn every_status_has_a_name() {
        for name in ["passing", "warning", "critical", "maintenance", "unknown"] {
            assert_eq!(status_named(name).map(RegistryStatus::as_str), Some(name));
        }
        assert_eq!(status_named("up"), None);
    }

    #[test]
    fn a_line_is_short_and_has_no_control_characters() {
        assert_eq!(
            one_line("rpc error\n making\tcall:\x1b[0m EOF", 200),
            "rpc error making call:[0m EOF"
        );
        assert_eq!(one_line(&"x".repeat(5_000), 200).len(), 200);
    }

    #[test]
    fn reasons_repeat_no_value() {
        let canary = "S3cr3t";
        let host = canary.parse::<crate::balancer::Address>().unwrap_err();
        assert!(host.to_string().contains(canary) && !host.without_value().contains(canary));
        for (json, told) in [
            (
                r#"{"a":"S3cr3t"}"#,
                "invalid type: string (6 characters), expected u16 at line 1 column 13",
            ),
            (r#"{"b":"S3cr3t"}"#, "missing field `a` at line 1 column 14"),
            ("S3cr3t", "expected value at line 1 column 1"),
            (r#"{"a":"S3cr3t"#, "EOF while parsing a string at line 1 column 12"),
        ] {
            #[derive(Debug, Deserialize)]
            #[expect(dead_code, reason = "only its errors are looked at")]
            struct Written {
                a: u16,
            }
            let error = serde_json::from_str::<Written>(json).unwrap_err();
            assert_eq!(json_reason(&error), told, "{json}");
        }
    }

    #[test]
    fn values_are_cut_out_of_a_message() {
        for (message, told) in [
            (
                r#"invalid type: string "S3c\"r3t", expected u16"#,
                "invalid type: string (8 characters), expected u16",
            ),
            (
                "invalid type: integer `80`, expected a text, in quotes",
                "invalid type: integer (2 characters), expected a text, in quotes",
            ),
            (
                "unknown field `wieght`, expected one of `id`, `host`",
                "unknown field `wieght`, expected one of `id`, `host`",
            ),
            ("missing field `name`", "missing field `name`"),
            (r#"host "a b": expected"#, "host (3 characters): expected"),
            (r#"an open "quote"#, "an open ..."),
            ("", ""),
        ] {
            assert_eq!(without_values(message), told);
        }
    }

    #[test]
    fn credentials_are_cut_off_an_address() {
        assert_eq!(without_credentials("http://alice:hun@ter2@etcd:2379"), "etcd:2379");
        assert_eq!(without_credentials("http://etcd:2379"), "http://etcd:2379");
    }
}
