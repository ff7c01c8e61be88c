//! `[probe]`, and `health_check` of a service.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use toml::{Spanned, Value};

use super::Checker;
use super::raw::{RawConfig, RawHealthCheck, RawProbe};
use crate::balancer::{DeniedNetworks, Network, ServiceName};
use crate::probe::{HealthCheck, HttpCheck, InvalidCheck, ProbeSettings};

impl Checker<'_> {
    /// How much is checked, and which networks are not.
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

    /// Which services are checked, and how.
    pub(super) fn health_checks(&mut self, raw: &RawConfig) -> BTreeMap<ServiceName, Arc<HealthCheck>> {
        let mut checks = BTreeMap::new();
        for (name, service) in &raw.services {
            let Some(written) = &service.health_check else { continue };
            let key = format!("services.{}.health_check", name.get_ref());
            let check = self.health_check(&key, written);
            // A name that is none has been refused already.
            if let (Some(check), Ok(name)) = (check, name.get_ref().parse()) {
                checks.insert(name, Arc::new(check));
            }
        }
        checks
    }

    fn health_check(&mut self, key: &str, written: &Spanned<RawHealthCheck>) -> Option<HealthCheck> {
        let raw = written.get_ref();
        let Some(kind) = &raw.kind else {
            self.refuse(
                written.span(),
                format!("{key}: expected a type: \"http\", \"tcp\" or \"grpc\""),
            );
            return None;
        };
        let of_http = [
            ("method", raw.method.as_ref().map(Spanned::span)),
            ("path", raw.path.as_ref().map(Spanned::span)),
            ("host", raw.host.as_ref().map(Spanned::span)),
            ("headers", raw.headers.as_ref().map(Spanned::span)),
            ("statuses", raw.statuses.as_ref().map(Spanned::span)),
        ];
        let of_grpc = [("service", raw.service.as_ref().map(Spanned::span))];
        let foreign = match kind.get_ref().as_str() {
            "http" => of_grpc.to_vec(),
            "grpc" => of_http.to_vec(),
            "tcp" => [&of_http[..], &of_grpc[..]].concat(),
            other => {
                let message = format!("{key}.type {other:?}: expected \"http\", \"tcp\" or \"grpc\"");
                self.refuse(kind.span(), message);
                return None;
            }
        };
        for (name, span) in foreign {
            if let Some(span) = span {
                let owner = if name == "service" { "grpc" } else { "http" };
                self.refuse(span, format!("{key}.{name}: belongs to type \"{owner}\""));
            }
        }
        Some(match kind.get_ref().as_str() {
            "http" => HealthCheck::Http(self.http_check(key, raw)?),
            "grpc" => HealthCheck::Grpc {
                service: raw
                    .service
                    .as_ref()
                    .map(|service| service.get_ref().clone())
                    .unwrap_or_default(),
            },
            _ => HealthCheck::Tcp,
        })
    }

    fn http_check(&mut self, key: &str, raw: &RawHealthCheck) -> Option<HttpCheck> {
        let named = format!("{key}.");
        let mut check = HttpCheck::new("/").ok()?;
        self.set(&named, &mut check, raw.path.as_ref(), |check, path| {
            check.with_path(path)
        });
        self.set(&named, &mut check, raw.method.as_ref(), |check, method| {
            check.with_method(method)
        });
        self.set(&named, &mut check, raw.host.as_ref(), |check, host| {
            check.with_host(host)
        });
        for (name, value) in raw.headers.iter().flat_map(Spanned::get_ref) {
            // An empty value can be sent, so what is refused with one is the name.
            let alone = check.clone().with_header(name.get_ref(), "");
            let place = if alone.is_err() { name.span() } else { value.span() };
            match check.clone().with_header(name.get_ref(), value.get_ref()) {
                Ok(changed) => check = changed,
                Err(error) => self.refuse(place, format!("{key}.headers: {error}")),
            }
        }
        if let Some(written) = &raw.statuses {
            let ranges = written.get_ref().iter().filter_map(|written| {
                let read = status(written.get_ref());
                read.map_err(|error| self.refuse(written.span(), format!("{key}.statuses: {error}")))
                    .ok()
            });
            let ranges: Vec<_> = ranges.collect();
            if written.get_ref().is_empty() {
                self.refuse(written.span(), format!("{key}.statuses: expected at least one status"));
            }
            // None where one was refused.
            check = check.clone().with_statuses(ranges).unwrap_or(check);
        }
        Some(check)
    }
}

/// A status, or a range of them: `200`, `"200-299"`.
fn status(written: &Value) -> Result<RangeInclusive<u16>, InvalidCheck> {
    let number = |text: &str| text.parse().ok().filter(|_| !text.starts_with('+'));
    let read = match written {
        Value::Integer(status) => u16::try_from(*status).ok().map(|status| status..=status),
        Value::String(range) => range
            .split_once('-')
            .and_then(|(first, last)| Some(number(first)?..=number(last)?)),
        _ => None,
    };
    let known = read.filter(|range| {
        HttpCheck::new("/")
            .and_then(|check| check.with_statuses([range.clone()]))
            .is_ok()
    });
    known.ok_or_else(|| InvalidCheck::Status {
        found: written.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{read, refused, refused_once};
    use super::*;
    use crate::balancer::LoadBalancerConfig;

    fn service(text: &str) -> (LoadBalancerConfig, Option<HealthCheck>) {
        let config = read(&format!("[consul]\n{text}"));
        let web = "web".parse().unwrap();
        let check = config.health_checks.get(&web).map(|check| HealthCheck::clone(check));
        (config.services.of(&web).clone(), check)
    }

    #[test]
    fn every_key_of_health_reaches_its_service() {
        let (config, _) = service(
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
        let config = read("[consul]\n[probe]\nmax_rate = 1000\nmax_concurrent = 64");
        assert_eq!((config.probe.max_rate, config.probe.max_concurrent), (1_000, 64));
        assert_eq!(read("[consul]").probe, ProbeSettings::default());
        assert!(read("[consul]").health_checks.is_empty());
    }

    #[test]
    fn a_preset_beats_the_defaults_and_keys_beside_it_beat_the_preset() {
        let (config, _) = service(
            "[defaults]\nhealth_check_interval = \"7s\"\nhealth_check_timeout = \"1s\"\nrise = 4\n\
             [services.web]\nhealth_check_timeout = \"4s\"\npreset = \"database\"",
        );
        assert_eq!(config.health_check_interval(), Duration::from_secs(15));
        assert_eq!(config.health_check_timeout(), Duration::from_secs(4));
        assert_eq!((config.max_consecutive_failures(), config.rise()), (2, 4));
        for (preset, interval, timeout, failures) in [("external_api", 60, 10, 5), ("critical", 10, 3, 1)] {
            let (config, _) = service(&format!("[services.web]\npreset = \"{preset}\""));
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
        let (config, _) = service(
            "[defaults.breaker]\nmin_outcomes = 50\nopen_max = \"5s\"\n[services.web.breaker]\nopen_min = \"3s\"",
        );
        let breaker = config.breaker();
        assert_eq!(breaker.min_outcomes(), 50);
        assert_eq!((breaker.open_min().as_secs(), breaker.open_max().as_secs()), (3, 5));
    }

    #[test]
    fn a_check_is_read_as_it_is_written() {
        let check = |written: &str| service(&format!("[services.web]\nhealth_check = {written}")).1.unwrap();
        assert_eq!(check("{ type = \"tcp\" }"), HealthCheck::Tcp);
        let grpc = |service: &str| HealthCheck::Grpc {
            service: service.to_owned(),
        };
        assert_eq!(check("{ type = \"grpc\" }"), grpc(""));
        assert_eq!(check("{ type = \"grpc\", service = \"a.B\" }"), grpc("a.B"));
        assert_eq!(
            check("{ type = \"http\" }"),
            HealthCheck::Http(HttpCheck::new("/").unwrap())
        );
        let written = r#"{ type = "http", path = "/up", method = "HEAD", host = "a.example", headers = { X-Check = "1" }, statuses = [204, "200-202"] }"#;
        let expected = HttpCheck::new("/up")
            .and_then(|check| check.with_method("HEAD"))
            .and_then(|check| check.with_host("a.example"))
            .and_then(|check| check.with_header("X-Check", "1"))
            .and_then(|check| check.with_statuses([204..=204, 200..=202]));
        assert_eq!(check(written), HealthCheck::Http(expected.unwrap()));
        let both = |text: &str| read(&format!("[consul]\n[services.web]\nhealth_check = {text}"));
        assert_eq!(both(written), both(written), "a reload of the same changes nothing");
        assert_ne!(both(written), both("{ type = \"tcp\" }"));
    }

    #[test]
    fn what_is_wrong_is_refused_at_its_place() {
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
            ("[defaults]\npanic = 1", "p.toml:3:9: invalid type: integer `1`"),
            (
                "[services.web]\nbreaker = { failure_ratio = 0 }",
                "p.toml:3:29: services.web.breaker.failure_ratio 0: expected above 0.0",
            ),
            (
                "[services.web]\nbreaker = { open_min = \"90s\" }",
                "p.toml:3:24: services.web.breaker.open_min 90s: longer than open_max, 1m: set that, too",
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
            (
                "[defaults]\nhealth_check = { type = \"tcp\" }",
                "p.toml:3:1: unknown field `health_check`",
            ),
            (
                "[services.web]\nhealth_check = { path = \"/\" }",
                "p.toml:3:16: services.web.health_check: expected a type",
            ),
            (
                "[services.web]\nhealth_check = { type = \"https\" }",
                "p.toml:3:25: services.web.health_check.type \"https\": expected \"http\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"tcp\", path = \"/\" }",
                "p.toml:3:39: services.web.health_check.path: belongs to type \"http\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", service = \"a\" }",
                "p.toml:3:43: services.web.health_check.service: belongs to type \"grpc\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", path = \"up\" }",
                "p.toml:3:40: services.web.health_check.path \"up\": expected a path",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", method = \"PUT\" }",
                "p.toml:3:42: services.web.health_check.method \"PUT\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", headers = { \"a b\" = \"c\" } }",
                "p.toml:3:45: services.web.health_check.headers: header \"a b\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", statuses = [200, \"2xx\"] }",
                "p.toml:3:50: services.web.health_check.statuses: status \"2xx\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", statuses = [700] }",
                "p.toml:3:45: services.web.health_check.statuses: status 700",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", statuses = [] }",
                "p.toml:3:44: services.web.health_check.statuses: expected at least one status",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", statuses = [\"+200-299\"] }",
                "p.toml:3:45: services.web.health_check.statuses: status \"+200-299\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", statuses = [\"300-200\"] }",
                "p.toml:3:45: services.web.health_check.statuses: status \"300-200\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", host = \"a b\" }",
                "p.toml:3:40: services.web.health_check.host \"a b\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", headers = { Host = \"a\" } }",
                "p.toml:3:45: services.web.health_check.headers: header \"Host\": set host instead",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", headers = { X-A = \"a\\nb\" } }",
                "p.toml:3:51: services.web.health_check.headers: header \"X-A\": its value cannot be sent",
            ),
            (
                "[services.web]\nhealth_check = { type = \"grpc\", path = \"/\" }",
                "p.toml:3:40: services.web.health_check.path: belongs to type \"http\"",
            ),
            (
                "[services.web]\nhealth_check = { type = \"http\", port = 80 }",
                "p.toml:3:33: unknown field `port`",
            ),
        ] {
            let found = refused_once(&format!("[consul]\n{text}"));
            assert!(found.starts_with(refusal), "{found}\n{refusal}");
        }
    }

    #[test]
    fn all_that_is_wrong_in_one_check_is_told_at_once() {
        let text = "[consul]\n[services.web.health_check]\ntype = \"http\"\npath = \"up\"\nstatuses = [99, 200, 600]\n\
                    headers = { Host = \"a\", te = \"b\" }\nservice = \"a.B\"\n[services.web.breaker]\n\
                    window = 0\nopen_min = \"3s\"\nopen_max = \"2s\"";
        let places: Vec<String> = refused(text).iter().map(|refusal| refusal[7..12].to_owned()).collect();
        let expected = ["4:8: ", "5:13:", "5:22:", "6:13:", "6:25:", "7:11:", "9:10:", "11:12"];
        assert_eq!(places, expected);
    }
}
