//! go-kratos: `/microservices/<name>/<id>`. One instance may have several endpoints, each a URL
//! with a scheme of its own.

use serde::Deserialize;
use serde_json::Value;

use super::registration::{Decoded, InvalidRegistration, Place, flat, weight_in};
use crate::discovery::shared::or_default;

#[derive(Deserialize)]
struct Written {
    #[serde(default, deserialize_with = "or_default")]
    version: String,
    #[serde(default)]
    metadata: Value,
    endpoints: Vec<String>,
}

/// Takes the first endpoint with the scheme of the place, or the first endpoint if the place has
/// no scheme.
pub(super) fn read(place: &Place<'_>, value: Value) -> Decoded {
    let written: Written = serde_json::from_value(value)?;
    let (scheme, address) = written
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.split_once("://"))
        .find(|(own, _)| place.scheme.is_none_or(|wanted| wanted == *own))
        .ok_or(InvalidRegistration::Value("no endpoint of the wanted scheme"))?;
    let authority = address.split(['/', '?', '#']).next().unwrap_or_default();
    let mut instance = place.instance(authority.parse()?)?;
    if let Some(weight) = weight_in(&written.metadata) {
        instance = instance.with_weight(weight);
    }
    let own = [("version", written.version.clone()), ("scheme", scheme.to_owned())];
    let own = own.into_iter().filter(|(_, text)| !text.is_empty());
    Ok(vec![instance.with_metadata(own.chain(flat(&written.metadata)))])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{instance, metadata, read};
    use super::super::{Prefix, ValueFormat};

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
            "[]",
            r#"["10.0.0.5:80"]"#,
            r#"["http://"]"#,
            r#"["http://a b:80"]"#,
            "null",
        ] {
            let value = format!(r#"{{"id":"3f","name":"hello","endpoints":{endpoints}}}"#);
            let read = read("/m", ValueFormat::Kratos, "/m/hello/3f", &value);
            assert!(read.starts_with("error"), "{endpoints}: {read}");
        }
    }
}
