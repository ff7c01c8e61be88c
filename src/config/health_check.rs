//! `health_check = { … }` of a service.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::Deserialize;
use toml::{Spanned, Value};

use super::checker::Checker;
use crate::probe::{HealthCheck, HttpCheck, InvalidCheck};

/// `health_check = { … }`. The keys of all types stand together, because serde loses the places of
/// values in a tagged enum.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawHealthCheck {
    #[serde(rename = "type")]
    kind: Option<Spanned<String>>,
    method: Option<Spanned<String>>,
    path: Option<Spanned<String>>,
    host: Option<Spanned<String>>,
    headers: Option<Spanned<BTreeMap<Spanned<String>, Spanned<String>>>>,
    statuses: Option<Spanned<Vec<Spanned<Value>>>>,
    service: Option<Spanned<String>>,
}

impl Checker<'_> {
    pub(super) fn health_check(&mut self, key: &str, written: &Spanned<RawHealthCheck>) -> Option<HealthCheck> {
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
            // An empty value is valid, so a refusal of an empty value is about the name.
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
            // Empty if a status was refused.
            check = check.clone().with_statuses(ranges).unwrap_or(check);
        }
        Some(check)
    }
}

/// A status or a range of statuses: `200`, `"200-299"`.
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
    use super::super::tests::{read, refused, refused_once};
    use super::*;

    fn service(text: &str) -> Option<HealthCheck> {
        let config = read(&format!("[consul]\n{text}"));
        let check = config.health_checks.get(&"web".parse().unwrap());
        check.map(|check| HealthCheck::clone(check))
    }

    #[test]
    fn a_check_is_read_as_it_is_written() {
        let check = |written: &str| service(&format!("[services.web]\nhealth_check = {written}")).unwrap();
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
    fn what_is_wrong_with_a_check_is_refused_at_its_place() {
        for (text, refusal) in [
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
