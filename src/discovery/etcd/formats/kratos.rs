//! go-kratos: `/microservices/<name>/<id>`. One instance may have several endpoints, each a URL
//! with a scheme of its own.

use serde_json::Value;

use super::fields::{Fields, flat, weight_in};
use super::registration::{Decoded, Ignored, InvalidValue, Place};
use super::url::Url;
use crate::balancer::Weight;

/// Kratos's weight of an instance without one (`selector/node/direct`).
const DEFAULT_WEIGHT: u16 = 100;

/// Takes the first endpoint with the scheme of the place, or the first endpoint if the place has
/// no scheme. An application without endpoints has no instance.
pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    let endpoints = match fields.get("endpoints") {
        Some(Value::Array(endpoints)) => &**endpoints,
        None if fields.has("endpoints") => &[],
        _ => return Err(InvalidValue::Invalid("endpoints is not a list")),
    };
    if endpoints.is_empty() {
        return Ok(Vec::new());
    }
    let url = endpoints
        .iter()
        .filter_map(|endpoint| Url::parse(endpoint.as_str()?))
        .find(|url| place.scheme.is_none_or(|wanted| wanted == url.scheme))
        .ok_or(InvalidValue::Invalid("no endpoint of the wanted scheme"))?;
    let mut instance = place.instance(url.address()?)?;
    let metadata = fields.get("metadata");
    let weight = weight_in(metadata, ignored).or(Weight::new(DEFAULT_WEIGHT).ok());
    if let Some(weight) = weight {
        instance = instance.with_weight(weight);
    }
    let version = fields.text("version").map(|version| ("version", version.to_owned()));
    let own = version.into_iter().chain([("scheme", url.scheme.to_owned())]);
    Ok(vec![instance.with_metadata(own.chain(flat(metadata)))])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ignored, instance, metadata, read};
    use super::super::{Prefix, ValueFormat};
    use crate::balancer::Weight;

    const VALUE: &str = r#"{"id":"3f","name":"hello","version":"v1.0.0","metadata":{"zone":"a"},"endpoints":["http://10.0.0.5:8000?isSecure=false","grpc://[::1]:9000?isSecure=false"]}"#;

    #[test]
    fn the_wanted_scheme_chooses_the_endpoint() {
        let address = |scheme| {
            let prefix = Prefix::new("/m").unwrap().with_format(ValueFormat::Kratos);
            let prefix = match scheme {
                Some(scheme) => prefix.with_scheme(scheme),
                None => prefix,
            };
            let read = prefix.read(b"/m/hello/3f", VALUE.as_bytes());
            read.ok()
                .map(|registration| registration.instances[0].address().to_string())
        };
        assert_eq!(address(None).as_deref(), Some("10.0.0.5:8000"));
        assert_eq!(address(Some("grpc")).as_deref(), Some("[::1]:9000"));
        assert_eq!(address(Some("https")), None);
    }

    #[test]
    fn version_and_scheme_become_metadata() {
        let instance = instance(ValueFormat::Kratos, "/m/hello/3f", VALUE);
        assert_eq!(metadata(&instance, "version"), Some("v1.0.0"));
        assert_eq!(metadata(&instance, "scheme"), Some("http"));
        assert_eq!(metadata(&instance, "zone"), Some("a"));
    }

    #[test]
    fn an_instance_without_a_usable_endpoint_is_refused() {
        for endpoints in [
            r#"["10.0.0.5:80"]"#,
            r#"["http://"]"#,
            r#"["http://a b:80"]"#,
            "7",
            "[7]",
        ] {
            let value = format!(r#"{{"id":"3f","name":"hello","endpoints":{endpoints}}}"#);
            let read = read("/m", ValueFormat::Kratos, "/m/hello/3f", &value);
            assert!(read.starts_with("error"), "{endpoints}: {read}");
        }
    }

    #[test]
    fn an_application_without_endpoints_has_no_instance() {
        for endpoints in ["[]", "null"] {
            let value = format!(r#"{{"id":"3f","name":"hello","endpoints":{endpoints}}}"#);
            for format in [ValueFormat::Kratos, ValueFormat::Auto] {
                assert_eq!(
                    read("/m", format, "/m/hello/3f", &value),
                    "hello:",
                    "{format} {endpoints}"
                );
            }
        }
    }

    #[test]
    fn no_weight_is_a_hundred_as_in_kratos() {
        for (metadata, weight) in [
            ("null", 100),
            ("{}", 100),
            (r#"{"weight":null}"#, 100),
            (r#"{"weight":"10"}"#, 10),
            (r#"{"weight":"0"}"#, 0),
            (r#"{"weight":"heavy"}"#, 100),
            (r#"{"weight":"-1"}"#, 100),
            (r#"{"weight":"70000"}"#, Weight::MAX.get()),
        ] {
            let value = format!(r#"{{"name":"hello","metadata":{metadata},"endpoints":["http://10.0.0.5:80"]}}"#);
            let found = instance(ValueFormat::Kratos, "/m/hello/3f", &value);
            assert_eq!(found.weight().get(), weight, "{metadata}");
            let noted = ignored(ValueFormat::Kratos, "/m/hello/3f", &value).len();
            let readable = ["null", "{}", ":null", "\"10\"", "\"0\""];
            let expected = usize::from(!readable.iter().any(|part| metadata.contains(part)));
            assert_eq!(noted, expected, "{metadata}");
        }
    }
}
