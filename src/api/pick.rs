//! `GET /pick/{service}`: which instance should take the next request?

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::ApiError;
use super::query;
use crate::balancer::{Context, LoadBalancer, Pick, ServiceName, Source};

const KNOWN: &str = "key, n, exclude, tag, format";
/// Most instances in one answer, the primary included.
const MOST: usize = 16;

/// What a caller may ask.
#[derive(Debug, Default, PartialEq)]
struct Request {
    key: Option<Vec<u8>>,
    instances: Option<usize>,
    exclude: Vec<String>,
    tags: Vec<String>,
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Json,
    Text,
}

impl Request {
    fn parse(uri: &Uri, headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut request = Self::default();
        for (name, raw) in query::parameters(uri) {
            match name {
                "key" => query::once(&mut request.key, "key", query::bytes(raw))?,
                "n" => query::once(&mut request.instances, "n", count(raw)?)?,
                "exclude" => query::extend(&mut request.exclude, "exclude", raw)?,
                "tag" => query::extend(&mut request.tags, "tag", raw)?,
                "format" => query::once(&mut request.format, "format", format(raw)?)?,
                other => return Err(query::unknown(other, KNOWN)),
            }
        }
        request.key = request.key.filter(|key| !key.is_empty());
        if request.key.is_none() {
            request.key = headers
                .get("x-pickd-key")
                .map(|key| key.as_bytes().to_vec())
                .filter(|key| !key.is_empty());
        }
        if request.format.is_none() && prefers_text(headers) {
            request.format = Some(Format::Text);
        }
        Ok(request)
    }
}

fn count(raw: &str) -> Result<usize, ApiError> {
    let count = raw.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| ApiError::InvalidRequest(format!("n must be a number from 1 to {MOST}")))
}

fn format(raw: &str) -> Result<Format, ApiError> {
    match raw {
        "json" => Ok(Format::Json),
        "text" => Ok(Format::Text),
        _ => Err(ApiError::InvalidRequest("format must be json or text".to_owned())),
    }
}

/// Whether the first media type asked for is plain text.
fn prefers_text(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    accept
        .split([',', ';'])
        .next()
        .is_some_and(|first| first.trim().eq_ignore_ascii_case("text/plain"))
}

/// The route. `GET` only: axum would answer `HEAD` with it, and a pick without its answer is a pick for nothing.
pub(super) async fn pick(
    State(api): State<Api>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if method != Method::GET {
        return Err(ApiError::MethodNotAllowed { allow: "GET" });
    }
    let service = query::last_segment(&uri)?;
    let request = Request::parse(&uri, &headers)?;
    let Some(balancer) = api.directory.get(&service) else {
        let service: ServiceName = service.parse()?;
        return Err(api.directory.refuse_unknown(service).into());
    };
    let exclude: Vec<&str> = request.exclude.iter().map(String::as_str).collect();
    let tags: Vec<&str> = request.tags.iter().map(String::as_str).collect();
    let mut context = Context::new().with_exclude(&exclude).with_tags(&tags);
    if let Some(key) = &request.key {
        context = context.with_key(key);
    }
    let pick = api.directory.select_instance(&balancer, &context)?;
    let alternates = request
        .instances
        .filter(|&instances| instances > 1)
        .map(|instances| instances - 1);
    let answer = Answer {
        api: &api,
        balancer: &balancer,
        pick: &pick,
        context: &context,
        alternates,
    };
    Ok(match request.format {
        Some(Format::Text) => respond("text/plain; charset=utf-8", answer.text()),
        Some(Format::Json) | None => respond("application/json", answer.json()),
    })
}

fn respond(content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = Body::from(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A pick on its way out.
struct Answer<'a> {
    api: &'a Api,
    balancer: &'a LoadBalancer,
    pick: &'a Pick,
    context: &'a Context<'a>,
    /// How many alternates were asked for.
    alternates: Option<usize>,
}

impl Answer<'_> {
    fn text(&self) -> Vec<u8> {
        let mut body = self.pick.bodies().text.to_vec();
        for alternate in self
            .pick
            .alternates(self.balancer, self.alternates.unwrap_or(0), self.context)
        {
            body.extend_from_slice(&alternate.bodies().text);
        }
        body
    }

    /// The rendered body, then the fields of this answer alone, then the brace.
    fn json(&self) -> Vec<u8> {
        let rendered = &self.pick.bodies().json;
        let mut body = Vec::with_capacity(rendered.len() + 64);
        body.extend_from_slice(rendered);
        if let Some(count) = self.alternates {
            body.extend_from_slice(b",\"alternates\":[");
            for (index, alternate) in self
                .pick
                .alternates(self.balancer, count, self.context)
                .iter()
                .enumerate()
            {
                if index > 0 {
                    body.push(b',');
                }
                body.extend_from_slice(&alternate.bodies().json);
                body.push(b'}');
            }
            body.push(b']');
        }
        if let Some(seconds) = self.api.stale_seconds(self.pick.source()) {
            body.extend_from_slice(format!(",\"stale_seconds\":{seconds}").as_bytes());
        }
        body.push(b'}');
        body
    }
}

impl Api {
    /// How long the source has been away, in whole seconds; `None` while it is up.
    fn stale_seconds(&self, source: Source) -> Option<u64> {
        let sources = self.directory.sources();
        let status = sources.get(source)?;
        if status.is_up() {
            return None;
        }
        status.away(self.clock.now()).map(|away| away.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &str) -> Result<Request, ApiError> {
        Request::parse(&uri.parse().unwrap(), &HeaderMap::new())
    }

    #[test]
    fn each_parameter_is_understood() {
        let request = parse("/pick/a?key=s%201&n=3&exclude=x%2Cy,z&tag=v1&tag=eu&format=text").unwrap();
        assert_eq!(request.key.as_deref(), Some(&b"s 1"[..]));
        assert_eq!(request.instances, Some(3));
        assert_eq!(request.exclude, ["x,y", "z"]);
        assert_eq!(request.tags, ["v1", "eu"]);
        assert_eq!(request.format, Some(Format::Text));
        assert_eq!(parse("/pick/a").unwrap(), Request::default());
        assert_eq!(parse("/pick/a?key=").unwrap(), Request::default());
        assert_eq!(
            parse("/pick/a?key=%ff").unwrap().key.as_deref(),
            Some(&b"\xff"[..]),
            "a key is bytes"
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for uri in [
            "?n=0",
            "?n=17",
            "?n=x",
            "?n=",
            "?n=1&n=1",
            "?key=a&key=a",
            "?format=xml",
            "?tag=%ff",
        ] {
            assert!(
                matches!(parse(&format!("/pick/a{uri}")), Err(ApiError::InvalidRequest(_))),
                "{uri}"
            );
        }
        for uri in ["?keys=1", "?Key=1", "?a", "?n[]=1"] {
            assert!(
                matches!(parse(&format!("/pick/a{uri}")), Err(ApiError::UnknownParameter { .. })),
                "{uri}"
            );
        }
    }

    #[test]
    fn the_header_gives_the_key_and_the_format_unless_the_query_does() {
        let mut headers = HeaderMap::new();
        headers.insert("x-pickd-key", HeaderValue::from_static("from-header"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/plain, */*"));
        let parse = |uri: &str| Request::parse(&uri.parse().unwrap(), &headers).unwrap();
        assert_eq!(parse("/pick/a").key.as_deref(), Some(&b"from-header"[..]));
        assert_eq!(parse("/pick/a?key=").key.as_deref(), Some(&b"from-header"[..]));
        assert_eq!(parse("/pick/a?key=q").key.as_deref(), Some(&b"q"[..]));
        assert_eq!(parse("/pick/a").format, Some(Format::Text));
        assert_eq!(parse("/pick/a?format=json").format, Some(Format::Json));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/plain"));
        assert_eq!(
            Request::parse(&"/pick/a".parse().unwrap(), &headers).unwrap().format,
            None
        );
    }
}
