//! `host:port` as text, as registrator, go-zero and people write it, or the URL of a server, as
//! go-kit and Traefik write it.

use super::registration::{Decoded, Ignored, InvalidValue, Place, text};
use super::url::Url;

/// Schemes of servers. Any other URL may be the address of a database with its password, or of
/// anything else that is no instance.
const SCHEMES: [&str; 8] = ["http", "https", "h2c", "grpc", "grpcs", "tcp", "ws", "wss"];

pub(super) fn read(place: &Place<'_>, value: &[u8], ignored: &mut Ignored) -> Decoded {
    let text = text(value)?.trim();
    let Some(url) = Url::parse(text) else {
        return Ok(vec![place.instance(text.parse()?)?]);
    };
    if !SCHEMES.iter().any(|scheme| url.scheme.eq_ignore_ascii_case(scheme)) {
        return Err(InvalidValue::Invalid("a URL of a scheme that is not of a server"));
    }
    if url.user.is_some() || url.query.is_some() || url.fragment.is_some() {
        return Err(InvalidValue::Invalid("a URL with a user, a query or a fragment"));
    }
    if !matches!(url.path, "" | "/") {
        ignored.push("the path of the URL has no effect");
    }
    let scheme = [("scheme", url.scheme.to_ascii_lowercase())];
    Ok(vec![place.instance(url.address()?)?.with_metadata(scheme)])
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{ignored, instance, metadata, read};

    const KEY: &str = "/services/web/a";

    fn both(value: &str) -> String {
        let plain = read("/services", ValueFormat::Plain, KEY, value);
        assert_eq!(read("/services", ValueFormat::Auto, KEY, value), plain, "{value}");
        plain
    }

    #[test]
    fn the_url_of_a_server_is_its_address() {
        for (value, address) in [
            ("http://10.0.0.5:8080", "10.0.0.5:8080"),
            ("http://10.0.0.5:8080/", "10.0.0.5:8080"),
            ("HTTPS://web.local:8443\n", "web.local:8443"),
            ("http://[::1]:80", "[::1]:80"),
            ("http://web.local", "web.local:80"),
            ("https://web.local/", "web.local:443"),
            ("https://[2001:db8::5]", "[2001:db8::5]:443"),
            ("h2c://10.0.0.5", "10.0.0.5:80"),
            ("grpc://10.0.0.5:9000", "10.0.0.5:9000"),
        ] {
            assert_eq!(both(value), format!("web: a={address}*1"), "{value}");
            assert_eq!(ignored(ValueFormat::Plain, KEY, value), [""; 0], "{value}");
        }
        let found = instance(ValueFormat::Plain, KEY, "HTTPS://web.local:8443");
        assert_eq!(metadata(&found, "scheme"), Some("https"));
    }

    #[test]
    fn a_path_has_no_effect_and_is_noted() {
        let value = "http://10.0.0.5:80/api";
        assert_eq!(both(value), "web: a=10.0.0.5:80*1");
        assert_eq!(ignored(ValueFormat::Plain, KEY, value).len(), 1);
    }

    #[test]
    fn addresses_of_databases_and_urls_with_secrets_are_refused() {
        for value in [
            "postgres://10.0.0.5:5432/app",
            "mysql://root:S3cr3t@10.0.0.5:3306/app",
            "http://user:S3cr3t@10.0.0.5:80",
            "http://10.0.0.5:80/?token=S3cr3t",
            "https://hooks.local:443/#S3cr3t",
            "grpc://10.0.0.5",
            "http://",
            "http://a b:80",
            "http://10.0.0.5:70000",
        ] {
            let error = both(value);
            assert!(
                error.starts_with("error") && !error.contains("S3cr3t"),
                "{value}: {error}"
            );
        }
    }
}
