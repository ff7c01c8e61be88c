//! The parts of a URL, as far as registrations need them.

use super::registration::InvalidValue;
use crate::balancer::Address;

/// `scheme://user@authority/path?query#fragment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Url<'a> {
    pub(super) scheme: &'a str,
    pub(super) user: Option<&'a str>,
    pub(super) authority: &'a str,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) fragment: Option<&'a str>,
}

impl<'a> Url<'a> {
    /// The parts; `None` if the text is no URL with an authority.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(letters) {
            return None;
        }
        let (rest, fragment) = cut(rest, '#');
        let (rest, query) = cut(rest, '?');
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, authority),
        };
        Some(Self {
            scheme,
            user,
            authority,
            path,
            query,
            fragment,
        })
    }

    /// Host and port. Without a port, the port of the scheme: 80 or 443.
    pub(super) fn address(&self) -> Result<Address, InvalidValue> {
        let refused = match self.authority.parse() {
            Ok(address) => return Ok(address),
            Err(refused) => refused,
        };
        let port = match &*self.scheme.to_ascii_lowercase() {
            "http" | "h2c" | "ws" => 80,
            "https" | "wss" => 443,
            _ => return Err(refused.into()),
        };
        Ok(Address::new(self.authority, port)?)
    }
}

fn cut(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_its_parts() {
        let url = Url::parse("dubbo://user@[::1]:20880/com.foo.Bar?weight=2#x").unwrap();
        assert_eq!(
            (url.scheme, url.user, url.authority),
            ("dubbo", Some("user"), "[::1]:20880")
        );
        assert_eq!(
            (url.path, url.query, url.fragment),
            ("/com.foo.Bar", Some("weight=2"), Some("x"))
        );
        let url = Url::parse("http://a").unwrap();
        assert_eq!(
            (url.authority, url.path, url.query, url.fragment),
            ("a", "", None, None)
        );
        for text in ["", "10.0.0.5:80", "://a", "1http://a", "ht tp://a", "http:/a"] {
            assert_eq!(Url::parse(text), None, "{text}");
        }
    }
}
