//! Request bodies: JSON of limited size. A body that is not understood is refused.

use std::error::Error;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::server::body::BodyTimeout;

/// Reads the whole body, of at most `limit` bytes. A body with a known length above the limit is
/// refused before it is read.
pub(super) async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::TooLarge(format!("the body is larger than {limit} bytes"));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        if is_caused_by::<LengthLimitError>(&error) {
            too_large()
        } else if is_caused_by::<BodyTimeout>(&error) {
            ApiError::TooSlow
        } else {
            ApiError::InvalidRequest("the body is incomplete".to_owned())
        }
    })
}

fn is_caused_by<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|cause| cause.is::<E>())
}

/// Whether the body is declared as `application/json`. A browser asks a server of another origin
/// before it sends such a body.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).eq_ignore_ascii_case("application/json")
}

/// Whether the body is declared as `application/json`, or as another type that ends in `+json`.
pub(super) fn is_any_json(headers: &HeaderMap) -> bool {
    let has_suffix = |media_type: &str| {
        let parts = media_type.split_once('/');
        parts.is_some_and(|(kind, subtype)| !kind.is_empty() && subtype.to_ascii_lowercase().ends_with("+json"))
    };
    is_json(headers) || has_suffix(media_type(headers))
}

/// The declared media type, without its parameters.
fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

/// Reads a JSON object. Unknown fields are refused if `T` refuses them.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::InvalidRequest(format!("the body: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_body_is_json_as_its_media_type_says() {
        let read = |written: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(written));
            (is_json(&headers), is_any_json(&headers))
        };
        for json in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(read(json), (true, true), "{json}");
        }
        for suffix in ["application/vnd.acme+json", "Application/Problem+JSON"] {
            assert_eq!(read(suffix), (false, true), "{suffix}");
        }
        for other in [
            "",
            "json",
            "text/plain",
            "application/x-www-form-urlencoded",
            "text/json",
            "+json",
            "/+json",
        ] {
            assert_eq!(read(other), (false, false), "{other}");
        }
        assert!(!is_json(&HeaderMap::new()) && !is_any_json(&HeaderMap::new()));
    }
}
