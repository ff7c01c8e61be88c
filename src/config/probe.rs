//! `[probe]`: limits of active checks, and networks that pickd never contacts.

use serde::Deserialize;
use toml::Spanned;

use super::checker::Checker;
use crate::balancer::{DeniedNetworks, Network};
use crate::probe::ProbeSettings;

/// `[probe]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawProbe {
    max_rate: Option<Spanned<i64>>,
    max_concurrent: Option<Spanned<i64>>,
    #[serde(default)]
    deny: Vec<Spanned<String>>,
}

impl Checker<'_> {
    /// The limits of active checks, and the networks that pickd never contacts.
    pub(super) fn probe(&mut self, raw: &RawProbe) -> (ProbeSettings, DeniedNetworks) {
        let mut settings = ProbeSettings::default();
        if let Some(written) = &raw.max_rate {
            match u32::try_from(*written.get_ref()) {
                Ok(rate @ 1..=10_000) => settings.max_rate = rate,
                _ => {
                    let message = format!(
                        "probe.max_rate {}: expected 1 to 10000 checks per second",
                        written.get_ref()
                    );
                    self.refuse(written.span(), message);
                }
            }
        }
        if let Some(written) = &raw.max_concurrent {
            match usize::try_from(*written.get_ref()) {
                Ok(checks @ 1..=65_536) => settings.max_concurrent = checks,
                _ => {
                    let message = format!("probe.max_concurrent {}: expected 1 to 65536", written.get_ref());
                    self.refuse(written.span(), message);
                }
            }
        }
        let mut denied: Vec<Network> = Vec::new();
        for written in &raw.deny {
            match written.get_ref().parse() {
                Ok(network) => denied.push(network),
                Err(error) => self.refuse(written.span(), format!("probe.deny: {error}")),
            }
        }
        (settings, DeniedNetworks::default().and(denied))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{read, refused_once};
    use super::*;

    #[test]
    fn limits_of_checks_are_read() {
        let config = read("[consul]\n[probe]\nmax_rate = 1000\nmax_concurrent = 64");
        assert_eq!((config.probe.max_rate, config.probe.max_concurrent), (1_000, 64));
        assert_eq!(read("[consul]").probe, ProbeSettings::default());
    }

    #[test]
    fn what_is_wrong_with_probe_is_refused_at_its_place() {
        for (text, refusal) in [
            (
                "[probe]\nmax_rate = 0",
                "p.toml:3:12: probe.max_rate 0: expected 1 to 10000",
            ),
            (
                "[probe]\nmax_concurrent = 70000",
                "p.toml:3:18: probe.max_concurrent 70000",
            ),
            (
                "[probe]\ndeny = [\"10.0.0.0/8\", \"all\"]",
                "p.toml:3:23: probe.deny: network \"all\"",
            ),
            ("[probe]\nrate = 3", "p.toml:3:1: unknown field `rate`"),
        ] {
            let found = refused_once(&format!("[consul]\n{text}"));
            assert!(found.starts_with(refusal), "{found}\n{refusal}");
        }
    }
}
