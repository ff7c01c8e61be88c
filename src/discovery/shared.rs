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
    fn credentials_are_cut_off_an_address() {
        assert_eq!(without_credentials("http://alice:hun@ter2@etcd:2379"), "etcd:2379");
        assert_eq!(without_credentials("http://etcd:2379"), "http://etcd:2379");
    }
}
