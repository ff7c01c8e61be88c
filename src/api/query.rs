//! Paths and query strings. A parameter that is not understood is refused, never ignored.
//!
//! Lists are split at raw commas before decoding, so a comma inside an id is written `%2C`. As in
//! forms, `+` in a query is a space. An empty value counts as not given, so that `?key=$SESSION`
//! works with an unset variable.

use std::borrow::Cow;

use axum::http::Uri;
use percent_encoding::percent_decode_str;

use super::error::ApiError;

/// The most ids or tags in one request.
const MAX_ENTRIES: usize = 64;

/// The last segment of the path, percent-decoded once.
pub(super) fn last_segment(uri: &Uri) -> Result<Cow<'_, str>, ApiError> {
    segment(uri.path().rsplit('/').next().unwrap_or_default())
}

/// One segment of a path, percent-decoded once.
pub(super) fn segment(raw: &str) -> Result<Cow<'_, str>, ApiError> {
    percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| ApiError::InvalidRequest("the path is not UTF-8 once decoded".to_owned()))
}

/// The parameters in the order of the query: raw names, raw values.
pub(super) fn parameters(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let pairs = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Refuses every parameter, for routes that have none.
pub(super) fn no_parameters(uri: &Uri) -> Result<(), ApiError> {
    match parameters(uri).next() {
        Some((name, _)) => Err(unknown(name, "none")),
        None => Ok(()),
    }
}

/// The error for a parameter that the route does not know. `known` lists the parameters that it
/// knows.
pub(super) fn unknown(name: &str, known: &'static str) -> ApiError {
    ApiError::UnknownParameter {
        name: name.chars().take(64).collect(),
        known,
    }
}

/// The decoded value, as bytes.
pub(super) fn bytes(raw: &str) -> Vec<u8> {
    let spaced = raw.replace('+', " ");
    percent_decode_str(&spaced).collect()
}

/// The decoded value, as text.
pub(super) fn text(name: &str, raw: &str) -> Result<String, ApiError> {
    String::from_utf8(bytes(raw)).map_err(|_| ApiError::InvalidRequest(format!("{name} is not UTF-8 once decoded")))
}

/// Adds the entries of a list parameter. Equal entries are added once.
pub(super) fn extend(list: &mut Vec<String>, name: &str, raw: &str) -> Result<(), ApiError> {
    for entry in raw.split(',').filter(|entry| !entry.is_empty()) {
        let entry = text(name, entry)?;
        if !list.contains(&entry) {
            list.push(entry);
        }
    }
    if list.len() > MAX_ENTRIES {
        return Err(ApiError::InvalidRequest(format!(
            "{name} has more than {MAX_ENTRIES} entries"
        )));
    }
    Ok(())
}

/// Sets a parameter that may be given only once.
pub(super) fn once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), ApiError> {
    match slot.replace(value) {
        Some(_) => Err(ApiError::InvalidRequest(format!("{name} is given more than once"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_split_before_it_is_decoded() {
        let mut list = Vec::new();
        extend(&mut list, "exclude", "a%2Cb,c+d,,a%2Cb").unwrap();
        extend(&mut list, "exclude", "e").unwrap();
        assert_eq!(list, ["a,b", "c d", "e"]);
        assert!(extend(&mut list, "exclude", "%ff").is_err());
        let many = (0..65).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
        assert!(extend(&mut Vec::new(), "exclude", &many).is_err());
    }

    #[test]
    fn a_segment_is_decoded_once() {
        let segment = |path: &str| last_segment(&path.parse().unwrap()).map(Cow::into_owned);
        assert_eq!(segment("/pick/user%2Dservice").unwrap(), "user-service");
        assert_eq!(segment("/pick/a%252Fb").unwrap(), "a%2Fb");
        assert_eq!(segment("/pick/a%2Fb").unwrap(), "a/b");
        assert!(segment("/pick/%ff").is_err());
    }
}
