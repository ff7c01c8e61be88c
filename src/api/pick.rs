//! `GET /pick/{service}`: which instance should take the next request? `POST` picks as well, and
//! takes a lease on the instance.

use std::borrow::Cow;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{self, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::query;
use super::state::Api;
use super::wire::JsonBodies;
use crate::balancer::{
    Bodies, Context, CookieName, Described, HealthStatus, Lease, LeaseDenied, Pick, Render, ServiceInstance,
    ServiceName, SessionToken, Source,
};

/// The parameters of `GET`.
const GET_PARAMETERS: &str = "key, session_id, user_id, session, n, exclude, tag, port, format";
/// The parameters of `POST`.
const POST_PARAMETERS: &str = "key, session_id, user_id, session, n, exclude, tag, port, format, ttl";
/// The header that carries the lease of a text answer.
const LEASE_HEADER: HeaderName = HeaderName::from_static("x-pickd-lease");
/// The header of a text answer that says whether the caller may send a retry.
const RETRY_HEADER: HeaderName = HeaderName::from_static("x-pickd-retry-allowed");
/// The header of the session token, in requests and in text answers.
const SESSION_HEADER: HeaderName = HeaderName::from_static("x-pickd-session");
/// The most characters in the name of a port.
const MAX_PORT_NAME: usize = 64;
/// The most instances in one answer, including the first.
const MAX_INSTANCES: usize = 16;

/// The parameters of a pick.
#[derive(Debug, Default, PartialEq)]
struct Request {
    /// The key, of the query or the header.
    key: Option<Vec<u8>>,
    session_id: Option<Vec<u8>>,
    user_id: Option<Vec<u8>>,
    /// The session token, of the query or the header.
    session: Option<String>,
    instances: Option<usize>,
    exclude: Vec<String>,
    tags: Vec<String>,
    port: Option<String>,
    format: Option<Format>,
    ttl: Option<Duration>,
}

/// Whether the pick takes a lease.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// `GET`: no lease.
    Plain,
    /// `POST`: with a lease.
    Leased,
}

impl Kind {
    fn parameters(self) -> &'static str {
        match self {
            Self::Plain => GET_PARAMETERS,
            Self::Leased => POST_PARAMETERS,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Json,
    Text,
}

impl Request {
    fn parse(kind: Kind, uri: &Uri, headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut request = Self::default();
        for (name, raw) in query::parameters(uri) {
            match name {
                "key" => query::once(&mut request.key, "key", query::bytes(raw))?,
                "session_id" => query::once(&mut request.session_id, "session_id", query::bytes(raw))?,
                "user_id" => query::once(&mut request.user_id, "user_id", query::bytes(raw))?,
                "session" => query::once(&mut request.session, "session", query::text("session", raw)?)?,
                "n" => query::once(&mut request.instances, "n", count(raw)?)?,
                "exclude" => query::extend(&mut request.exclude, "exclude", raw)?,
                "tag" => query::extend(&mut request.tags, "tag", raw)?,
                "port" => query::once(&mut request.port, "port", port(raw)?)?,
                "format" => query::once(&mut request.format, "format", format(raw)?)?,
                "ttl" if kind == Kind::Leased => query::once(&mut request.ttl, "ttl", ttl(raw)?)?,
                other => return Err(query::unknown(other, kind.parameters())),
            }
        }
        request.port = request.port.filter(|port| !port.is_empty());
        request.key = request.key.filter(|key| !key.is_empty());
        if request.key.is_none() {
            request.key = headers
                .get("x-pickd-key")
                .map(|key| key.as_bytes().to_vec())
                .filter(|key| !key.is_empty());
        }
        request.session = request.session.filter(|session| !session.is_empty());
        if request.session.is_none() {
            let header = headers.get(SESSION_HEADER).and_then(|token| token.to_str().ok());
            request.session = header.filter(|token| !token.is_empty()).map(str::to_owned);
        }
        if request.format.is_none() && prefers_text(headers) {
            request.format = Some(Format::Text);
        }
        Ok(request)
    }

    /// The affinity key: the key, else the cookie of a service with sticky sessions, else the id of
    /// the session, else the id of the user.
    fn affinity_key<'a>(&'a self, cookie: Option<&CookieName>, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let given = |key: &'a Option<Vec<u8>>| key.as_deref().filter(|key| !key.is_empty());
        given(&self.key)
            .or_else(|| cookie.and_then(|name| cookie_value(headers, name)))
            .or_else(|| given(&self.session_id))
            .or_else(|| given(&self.user_id))
    }
}

/// The first value of a cookie that is not empty, without quotes around it.
fn cookie_value<'a>(headers: &'a HeaderMap, name: &CookieName) -> Option<&'a [u8]> {
    let lines = headers.get_all(header::COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_str().as_bytes())?;
        let value = value.strip_prefix(b"=")?;
        let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(unquoted.unwrap_or(value))
    });
    values.find(|value| !value.is_empty())
}

fn count(raw: &str) -> Result<usize, ApiError> {
    let count = raw.parse().ok().filter(|count| (1..=MAX_INSTANCES).contains(count));
    count.ok_or_else(|| ApiError::InvalidRequest(format!("n must be a number from 1 to {MAX_INSTANCES}")))
}

/// Seconds, with or without a fraction.
fn ttl(raw: &str) -> Result<Duration, ApiError> {
    let seconds = raw.parse().ok().filter(|seconds| (0.1..=3_600.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| ApiError::InvalidRequest("ttl must be a number of seconds from 0.1 to 3600".to_owned()))
}

/// The name of a port, as in the metadata `port-<name>`. Empty: not given.
fn port(raw: &str) -> Result<String, ApiError> {
    let name = query::text("port", raw)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.len() > MAX_PORT_NAME || !name.bytes().all(allowed) {
        let message = format!("port must be a name of 1 to {MAX_PORT_NAME} characters of A-Z a-z 0-9 . _ -");
        return Err(ApiError::InvalidRequest(message));
    }
    Ok(name)
}

fn format(raw: &str) -> Result<Format, ApiError> {
    match raw {
        "json" => Ok(Format::Json),
        "text" => Ok(Format::Text),
        _ => Err(ApiError::InvalidRequest("format must be json or text".to_owned())),
    }
}

/// Whether the first media type of the Accept header is plain text.
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

/// The route. `HEAD` is refused: axum would answer it like `GET`, and count a pick that the caller
/// never sees.
pub(super) async fn pick(State(api): State<Arc<Api>>, request: extract::Request) -> Result<Response, ApiError> {
    let (uri, headers) = (request.uri(), request.headers());
    let kind = match *request.method() {
        Method::GET => Kind::Plain,
        Method::POST => Kind::Leased,
        _ => return Err(ApiError::MethodNotAllowed { allow: "GET, POST" }),
    };
    let service = query::last_segment(uri)?;
    let request = Request::parse(kind, uri, headers)?;
    let Some(balancer) = api.directory.get(&service) else {
        let service: ServiceName = service.parse()?;
        return Err(api.directory.refuse_unknown(service).into());
    };
    let exclude: Vec<&str> = request.exclude.iter().map(String::as_str).collect();
    let tags: Vec<&str> = request.tags.iter().map(String::as_str).collect();
    let mut context = Context::new().with_exclude(&exclude).with_tags(&tags);
    let cookie = balancer.session_cookie();
    if let Some(key) = request.affinity_key(cookie.as_ref(), headers) {
        context = context.with_key(key);
    }
    if let Some(session) = &request.session {
        context = context.with_session(session);
    }
    if let Some(port) = &request.port {
        context = context.with_port(port);
    }
    let (pick, lease) = match kind {
        Kind::Plain => (api.directory.select_instance(&balancer, &context)?, None),
        Kind::Leased => {
            let (pick, lease) = api.directory.lease(&balancer, &context, request.ttl)?;
            (pick, Some(lease))
        }
    };
    // A pick that excludes instances is a retry, after an attempt at each of them.
    let retry_allowed = (!exclude.is_empty()).then(|| balancer.may_retry(exclude.len()));
    let alternates = request
        .instances
        .filter(|&instances| instances > 1)
        .map(|instances| instances - 1);
    let answer = Answer {
        api: &api,
        service: balancer.service(),
        pick: &pick,
        context: &context,
        alternates,
        lease,
        session: pick.session(&context),
        retry_allowed,
    };
    Ok(match request.format {
        Some(Format::Text) => {
            let mut response = respond("text/plain; charset=utf-8", answer.text());
            if let Some(Ok(lease)) = lease
                && let Ok(id) = HeaderValue::try_from(lease.id.to_string())
            {
                response.headers_mut().insert(LEASE_HEADER, id);
            }
            if let Some(session) = answer.session
                && let Ok(session) = HeaderValue::try_from(session.to_string())
            {
                response.headers_mut().insert(SESSION_HEADER, session);
            }
            if let Some(allowed) = retry_allowed {
                let allowed = HeaderValue::from_static(if allowed { "true" } else { "false" });
                response.headers_mut().insert(RETRY_HEADER, allowed);
            }
            response
        }
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

/// The answer to a pick.
struct Answer<'a> {
    api: &'a Api,
    service: &'a ServiceName,
    pick: &'a Pick,
    context: &'a Context<'a>,
    /// The number of alternates that the caller asked for.
    alternates: Option<usize>,
    /// The lease, or its refusal. `None` for picks without a lease.
    lease: Option<Result<Lease, LeaseDenied>>,
    /// The token of the session. `None` without sticky sessions.
    session: Option<SessionToken>,
    /// Whether the caller may send the request to this instance. `None` for picks that are no retry.
    retry_allowed: Option<bool>,
}

impl Answer<'_> {
    fn text(&self) -> Vec<u8> {
        let mut body = self
            .rendered(self.pick, self.pick.status(), self.pick.bodies())
            .text
            .to_vec();
        for alternate in self.pick.alternates(self.alternates.unwrap_or(0), self.context) {
            let rendered = self.rendered(alternate.instance(), alternate.status(), alternate.bodies());
            body.extend_from_slice(&rendered.text);
        }
        body
    }

    /// The bodies of an instance: as rendered with the view, or at the port that the caller asked
    /// for.
    fn rendered<'b>(&self, instance: &ServiceInstance, status: HealthStatus, bodies: &'b Bodies) -> Cow<'b, Bodies> {
        match self.context.port().and_then(|port| instance.at_named_port(port)) {
            None => Cow::Borrowed(bodies),
            Some(instance) => Cow::Owned(JsonBodies.render(&Described {
                service: self.service,
                instance: &instance,
                status,
            })),
        }
    }

    /// The rendered instance, then the fields of this answer, then the closing brace.
    fn json(&self) -> Vec<u8> {
        let bodies = self.rendered(self.pick, self.pick.status(), self.pick.bodies());
        let rendered = &bodies.json;
        let mut body = Vec::with_capacity(rendered.len() + 96);
        body.extend_from_slice(rendered);
        match self.lease {
            None => {}
            Some(Ok(lease)) => {
                let milliseconds = lease.ttl.as_millis();
                // Writing to memory cannot fail.
                let _ok = write!(body, ",\"lease\":\"{}\",\"lease_ttl_ms\":{milliseconds}", lease.id);
            }
            Some(Err(LeaseDenied)) => body.extend_from_slice(b",\"lease_denied\":true"),
        }
        if let Some(session) = self.session {
            let _ok = write!(body, ",\"session\":\"{session}\"");
        }
        if let Some(allowed) = self.retry_allowed {
            let _ok = write!(body, ",\"retry_allowed\":{allowed}");
        }
        if let Some(count) = self.alternates {
            body.extend_from_slice(b",\"alternates\":[");
            for (index, alternate) in self.pick.alternates(count, self.context).iter().enumerate() {
                if index > 0 {
                    body.push(b',');
                }
                let rendered = self.rendered(alternate.instance(), alternate.status(), alternate.bodies());
                body.extend_from_slice(&rendered.json);
                body.push(b'}');
            }
            body.push(b']');
        }
        if self.pick.fails_open() {
            body.extend_from_slice(b",\"fail_open\":true");
        }
        if self.pick.panic() {
            body.extend_from_slice(b",\"panic\":true");
        }
        if let Some(seconds) = self.api.stale_seconds(self.pick.source()) {
            body.extend_from_slice(format!(",\"stale_seconds\":{seconds}").as_bytes());
        }
        if let Some(since) = self.pick.absent_since() {
            let seconds = self.api.clock.now().since(since).as_secs();
            body.extend_from_slice(format!(",\"absent_seconds\":{seconds}").as_bytes());
        }
        body.push(b'}');
        body
    }
}

impl Api {
    /// How long the source has been away, in whole seconds. `None` while the source is up.
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
        Request::parse(Kind::Plain, &uri.parse().unwrap(), &HeaderMap::new())
    }

    #[test]
    fn only_picks_with_a_lease_have_a_ttl() {
        let parse = |uri: &str| Request::parse(Kind::Leased, &uri.parse().unwrap(), &HeaderMap::new());
        assert_eq!(parse("/pick/a").unwrap().ttl, None);
        for (uri, milliseconds) in [("?ttl=30", 30_000), ("?ttl=0.25&n=2", 250), ("?ttl=3600", 3_600_000)] {
            let request = parse(&format!("/pick/a{uri}")).unwrap();
            assert_eq!(request.ttl, Some(Duration::from_millis(milliseconds)), "{uri}");
        }
        for uri in [
            "?ttl=0",
            "?ttl=3601",
            "?ttl=",
            "?ttl=NaN",
            "?ttl=inf",
            "?ttl=-1",
            "?ttl=5s",
            "?ttl=1&ttl=1",
        ] {
            let refusal = parse(&format!("/pick/a{uri}"));
            assert!(matches!(refusal, Err(ApiError::InvalidRequest(_))), "{uri}");
        }
        let refusal = Request::parse(Kind::Plain, &"/pick/a?ttl=3".parse().unwrap(), &HeaderMap::new());
        assert!(matches!(refusal, Err(ApiError::UnknownParameter { .. })));
    }

    #[test]
    fn each_parameter_is_read() {
        let request = parse("/pick/a?key=s%201&n=3&exclude=x%2Cy,z&tag=v1&tag=eu&port=grpc&format=text").unwrap();
        assert_eq!(request.key.as_deref(), Some(&b"s 1"[..]));
        assert_eq!(request.instances, Some(3));
        assert_eq!(request.exclude, ["x,y", "z"]);
        assert_eq!(request.tags, ["v1", "eu"]);
        assert_eq!(request.port.as_deref(), Some("grpc"));
        assert_eq!(request.format, Some(Format::Text));
        let request = parse("/pick/a?session_id=s%201&user_id=%ff&session=00ff").unwrap();
        assert_eq!(request.session_id.as_deref(), Some(&b"s 1"[..]));
        assert_eq!(request.user_id.as_deref(), Some(&b"\xff"[..]));
        assert_eq!(request.session.as_deref(), Some("00ff"));
        assert_eq!(parse("/pick/a?session=").unwrap(), Request::default());
        assert_eq!(parse("/pick/a").unwrap(), Request::default());
        assert_eq!(parse("/pick/a?key=&port=").unwrap(), Request::default());
        assert_eq!(
            parse("/pick/a?key=%ff").unwrap().key.as_deref(),
            Some(&b"\xff"[..]),
            "a key is bytes"
        );
    }

    #[test]
    fn unknown_parameters_and_invalid_values_are_refused() {
        for uri in [
            "?n=0",
            "?n=17",
            "?n=x",
            "?n=",
            "?n=1&n=1",
            "?key=a&key=a",
            "?session_id=a&session_id=a",
            "?user_id=a&user_id=a",
            "?session=a&session=a",
            "?session=%ff",
            "?format=xml",
            "?tag=%ff",
            "?port=a&port=a",
            "?port=a%20b",
            "?port=a/b",
            "?port=%ff",
            "?port=%C3%A9",
            &format!("?port={}", "x".repeat(65)),
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
    fn the_query_overrides_the_headers_for_key_and_format() {
        let mut headers = HeaderMap::new();
        headers.insert("x-pickd-key", HeaderValue::from_static("from-header"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/plain, */*"));
        let parse = |uri: &str| Request::parse(Kind::Plain, &uri.parse().unwrap(), &headers).unwrap();
        assert_eq!(parse("/pick/a").key.as_deref(), Some(&b"from-header"[..]));
        assert_eq!(parse("/pick/a?key=").key.as_deref(), Some(&b"from-header"[..]));
        assert_eq!(parse("/pick/a?key=q").key.as_deref(), Some(&b"q"[..]));
        assert_eq!(parse("/pick/a").format, Some(Format::Text));
        assert_eq!(parse("/pick/a?format=json").format, Some(Format::Json));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/plain"));
        assert_eq!(
            Request::parse(Kind::Plain, &"/pick/a".parse().unwrap(), &headers)
                .unwrap()
                .format,
            None
        );
    }

    #[test]
    fn the_cookie_is_read_as_browsers_and_proxies_send_it() {
        let name: CookieName = "SID".parse().unwrap();
        for (lines, expected) in [
            (&["SID=a"][..], Some("a")),
            (&["x=1; SID=a; y=2"], Some("a")),
            (&["x=1;SID=\"a b\""], Some("a b")),
            (&["x=1", "SID=a=b"], Some("a=b")),
            (&["SID=; SID=b"], Some("b")),
            (&["XSID=a; SIDX=b; sid=c; SID"], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::COOKIE, HeaderValue::from_static(line));
            }
            let request = Request::default();
            let key = request.affinity_key(Some(&name), &headers);
            assert_eq!(key, expected.map(str::as_bytes), "{lines:?}");
            assert_eq!(request.affinity_key(None, &headers), None);
        }
    }
}
