//! The HTTP client of the commands: sends requests to a running agent, as any other client does.

use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
pub(super) use reqwest::Method;
use reqwest::RequestBuilder;
use serde_json::Value;

use super::Exit;
use super::output::escaped;
use crate::balancer::Address;
use crate::config;
use crate::http_client::{self, HttpError, Tls};

/// The time limit of a connection. A listening agent accepts at once, and a missing agent must not
/// hold up a script.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The time limit of a request and its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes of an answer: 100,000 services fit.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// All characters that RFC 3986 does not call unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Encodes text as one segment of a path or one value of a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The agent that a command talks to.
#[derive(Debug, clap::Args)]
pub(super) struct AgentArguments {
    /// The address of the agent
    #[arg(
        long = "agent",
        value_name = "URL",
        env = "PICKD_AGENT",
        hide_env_values = true,
        default_value = "http://127.0.0.1:7425"
    )]
    pub(super) url: AgentUrl,
}

/// The address of an agent: `http(s)://host:port`, `host:port` for plain HTTP, or `unix:/path`.
/// Stored without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentUrl(String);

#[derive(Debug, thiserror::Error)]
#[error("expected \"http://host:port\", \"https://host:port\", \"host:port\" or \"unix:/path/to/socket\"")]
pub(super) struct InvalidAgentUrl;

impl AgentUrl {
    /// The path of the Unix socket, if the address is one.
    fn socket(&self) -> Option<&str> {
        self.0.strip_prefix("unix:")
    }

    /// The URL to which paths are appended.
    fn base(&self) -> &str {
        match self.socket() {
            Some(_) => "http://localhost",
            None => &self.0,
        }
    }
}

impl FromStr for AgentUrl {
    type Err = InvalidAgentUrl;

    fn from_str(text: &str) -> Result<Self, InvalidAgentUrl> {
        if text.starts_with("unix:") {
            let path = config::socket_path(text).ok_or(InvalidAgentUrl)?;
            return Ok(Self(format!("unix:{path}")));
        }
        if let Ok(address) = text.parse::<Address>() {
            return Ok(Self(format!("http://{address}")));
        }
        let url = reqwest::Url::parse(text).map_err(|_| InvalidAgentUrl)?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidAgentUrl);
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

/// Why a request to an agent has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    /// No server listens at the address, or the server is too slow.
    #[error("no agent answers at {agent}: {detail}")]
    Unreachable { agent: String, detail: String },
    /// The server at the address is not an agent: another server has the port, or a proxy is in
    /// between.
    #[error("the server at {agent} is not a pickd agent: {detail}")]
    NotAnAgent { agent: String, detail: String },
    /// The agent refused the request.
    #[error("{detail}")]
    Problem { code: String, detail: String },
    /// The request could not be sent, because of a failure in this process.
    #[error("cannot send a request: {0}")]
    Local(String),
}

impl AgentError {
    /// The exit code for this error.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::NotAnAgent { .. } => Exit::Unreachable,
            Self::Local(_) => Exit::Failed,
            Self::Problem { code, .. } => match code.as_str() {
                "unknown_service" | "unknown_instance" | "unknown_source" | "unknown_port" => Exit::UnknownService,
                "no_instances" | "none_available" => Exit::NothingToPick,
                "not_synced" => Exit::NotSynced,
                "invalid_request" | "unknown_parameter" => Exit::Usage,
                _ => Exit::Failed,
            },
        }
    }
}

/// An answer of an agent, with any status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) is_problem: bool,
    pub(super) body: String,
}

/// A request to change something.
pub(super) struct Change<'a> {
    pub(super) method: Method,
    /// The encoded path, with a slash at its start.
    pub(super) path: &'a str,
    /// The body, if the request has one.
    pub(super) body: Option<Value>,
    /// The admin token, if the request needs a token.
    pub(super) token: Option<&'a str>,
}

/// A client of one agent.
pub(super) struct AgentClient {
    agent: AgentUrl,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    timeout: Duration,
}

impl AgentClient {
    pub(super) fn new(arguments: &AgentArguments) -> Result<Self, AgentError> {
        Self::with_timeout(&arguments.url, TIMEOUT)
    }

    fn with_timeout(agent: &AgentUrl, timeout: Duration) -> Result<Self, AgentError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let local = |error: &dyn std::fmt::Display| AgentError::Local(error.to_string());
        let builder = http_client::builder(CONNECT_TIMEOUT, &Tls::default()).map_err(|error| local(&error))?;
        let builder = match agent.socket() {
            Some(path) => builder.unix_socket(path),
            None => builder,
        };
        Ok(Self {
            agent: agent.clone(),
            http: builder.build().map_err(|error| local(&error))?,
            runtime: runtime.map_err(|error| AgentError::Local(error.to_string()))?,
            timeout,
        })
    }

    /// Sends a GET request and returns the body of a successful answer. `path` is encoded, with a
    /// slash at its start.
    pub(super) fn get(&self, path: &str) -> Result<String, AgentError> {
        self.success(self.request(path)?)
    }

    /// Sends a change and returns the body of a successful answer.
    pub(super) fn change(&self, change: &Change<'_>) -> Result<String, AgentError> {
        let url = format!("{}{}", self.agent.base(), change.path);
        let mut request = self.http.request(change.method.clone(), url);
        if let Some(body) = &change.body {
            request = request.json(body);
        }
        if let Some(token) = change.token {
            request = request.bearer_auth(token);
        }
        self.success(self.send(request)?)
    }

    /// The body of a successful answer, or the error for any other answer.
    fn success(&self, answer: Answer) -> Result<String, AgentError> {
        match answer.status {
            200..=299 => Ok(answer.body),
            status => Err(problem(&answer).unwrap_or_else(|| self.not_an_agent(format!("the status is {status}")))),
        }
    }

    /// Parses the body of an answer as JSON.
    pub(super) fn parsed(&self, body: &str) -> Result<Value, AgentError> {
        serde_json::from_str(body).map_err(|error| self.not_an_agent(format!("the answer is not JSON: {error}")))
    }

    /// Sends a GET request and returns its answer, with any status.
    pub(super) fn request(&self, path: &str) -> Result<Answer, AgentError> {
        self.send(self.http.get(format!("{}{path}", self.agent.base())))
    }

    fn send(&self, request: RequestBuilder) -> Result<Answer, AgentError> {
        let answer = async {
            let response = request.timeout(self.timeout).send().await?;
            let status = response.status().as_u16();
            let media_type = response.headers().get(reqwest::header::CONTENT_TYPE);
            let is_problem = media_type.is_some_and(|value| value.as_bytes().starts_with(b"application/problem+json"));
            let body = http_client::body(response, MAX_ANSWER_BYTES).await?;
            Ok(Answer {
                status,
                is_problem,
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        self.runtime.block_on(answer).map_err(|error: HttpError| match error {
            HttpError::TooLarge { .. } => self.not_an_agent(error.to_string()),
            HttpError::Request(error) if error.is_timeout() && !error.is_connect() => {
                self.unreachable(format!("no answer within {} s", self.timeout.as_secs_f32()))
            }
            error => self.unreachable(innermost(&error)),
        })
    }

    fn unreachable(&self, detail: String) -> AgentError {
        AgentError::Unreachable {
            agent: self.agent.0.clone(),
            detail,
        }
    }

    pub(super) fn not_an_agent(&self, detail: impl Into<String>) -> AgentError {
        AgentError::NotAnAgent {
            agent: self.agent.0.clone(),
            detail: detail.into(),
        }
    }
}

/// The problem document of the answer, if the answer is one. Unknown fields are ignored: the agent
/// may be newer than this command.
pub(super) fn problem(answer: &Answer) -> Option<AgentError> {
    if !answer.is_problem {
        return None;
    }
    let body: Value = serde_json::from_str(&answer.body).ok()?;
    let code = body["code"].as_str()?.to_owned();
    let detail = body["detail"].as_str().or(body["title"].as_str()).unwrap_or(&code);
    Some(AgentError::Problem {
        detail: one_line(detail),
        code,
    })
}

/// The text in one line, with the characters escaped that are not printable.
pub(super) fn one_line(text: &str) -> String {
    escaped(&text.trim().replace(['\r', '\n', '\t'], " "))
}

/// The innermost cause of an error: "Connection refused" says more than "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Starts a server that sends this answer to one request. The thread returns the first line of
    /// the request.
    pub(in crate::cli) fn answering(
        status: u16,
        media_type: &'static str,
        body: &'static str,
    ) -> (AgentArguments, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = AgentUrl(format!("http://{}", listener.local_addr().unwrap()));
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                let read = stream.read(&mut buffer).unwrap();
                assert_ne!(read, 0, "the request is incomplete");
                request.extend_from_slice(&buffer[..read]);
            }
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status} X\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\
                 connection: close\r\n\r\n{body}"
            )
            .unwrap();
            String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
        });
        (AgentArguments { url }, server)
    }

    const PROBLEM: &str = "application/problem+json; charset=utf-8";

    fn get(status: u16, media_type: &'static str, body: &'static str) -> Result<String, AgentError> {
        let (arguments, server) = answering(status, media_type, body);
        let answer = AgentClient::new(&arguments).unwrap().get("/pick/a?key=b%20c");
        assert_eq!(server.join().unwrap(), "GET /pick/a?key=b%20c HTTP/1.1");
        answer
    }

    #[test]
    fn a_success_is_its_body() {
        assert_eq!(get(200, "application/json", "{}\n").unwrap(), "{}\n");
    }

    #[test]
    fn a_problem_shows_its_detail_and_its_code_gives_the_exit_code() {
        let error = get(
            404,
            PROBLEM,
            r#"{"code":"unknown_service","title":"T","detail":"no\nsuch"}"#,
        )
        .unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.exit()),
            ("no such", Exit::UnknownService)
        );
        let error = get(503, PROBLEM, r#"{"code":"not_synced","title":"T"}"#).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit()), ("T", Exit::NotSynced));
    }

    #[test]
    fn every_problem_code_has_an_exit_code() {
        for (code, exit) in [
            ("unknown_service", Exit::UnknownService),
            ("unknown_port", Exit::UnknownService),
            ("unknown_instance", Exit::UnknownService),
            ("forbidden", Exit::Failed),
            ("no_instances", Exit::NothingToPick),
            ("none_available", Exit::NothingToPick),
            ("not_synced", Exit::NotSynced),
            ("invalid_request", Exit::Usage),
            ("unknown_parameter", Exit::Usage),
            ("internal", Exit::Failed),
            ("something_new", Exit::Failed),
        ] {
            let problem = AgentError::Problem {
                code: code.to_owned(),
                detail: String::new(),
            };
            assert_eq!(problem.exit(), exit, "{code}");
        }
    }

    #[test]
    fn another_server_at_the_address_is_not_an_agent() {
        for (status, media_type, body) in [
            (404, "text/html", "<h1>nginx</h1>"),
            (302, "text/html", ""),
            (500, PROBLEM, "not JSON"),
            (500, PROBLEM, r#"{"title":"of another API"}"#),
        ] {
            let error = get(status, media_type, body).unwrap_err();
            assert!(matches!(error, AgentError::NotAnAgent { .. }), "{error}");
            assert_eq!(error.exit(), Exit::Unreachable);
        }
    }

    #[test]
    fn a_missing_agent_is_unreachable_with_a_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = AgentUrl(format!("http://{}", listener.local_addr().unwrap()));
        drop(listener);
        let error = AgentClient::new(&AgentArguments { url: url.clone() })
            .unwrap()
            .get("/healthz")
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("no agent answers at {}: Connection refused", url.0)),
            "{error}"
        );
        assert_eq!(error.exit(), Exit::Unreachable);
    }

    #[test]
    fn a_request_without_an_answer_times_out() {
        // The connection waits in the queue of the listener, and is never accepted.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = AgentUrl(format!("http://{}", listener.local_addr().unwrap()));
        let client = AgentClient::with_timeout(&url, Duration::from_millis(50)).unwrap();
        let error = client.get("/healthz").unwrap_err();
        assert!(error.to_string().ends_with(": no answer within 0.05 s"), "{error}");
        assert_eq!(error.exit(), Exit::Unreachable);
    }

    #[test]
    fn an_agent_address_is_a_url_a_host_and_port_or_a_socket() {
        let read = |text: &str| text.parse::<AgentUrl>().map(|url| url.0).ok();
        assert_eq!(read("localhost:7425").as_deref(), Some("http://localhost:7425"));
        assert_eq!(read("[::1]:7425").as_deref(), Some("http://[::1]:7425"));
        assert_eq!(read("http://pickd:7425/").as_deref(), Some("http://pickd:7425"));
        assert_eq!(read("https://gate/pickd/").as_deref(), Some("https://gate/pickd"));
        assert_eq!(read("unix:/run/p.sock").as_deref(), Some("unix:/run/p.sock"));
        assert_eq!(read("unix:///run/p.sock").as_deref(), Some("unix:/run/p.sock"));
        for refused in [
            "",
            "localhost",
            "unix:",
            "unix:pickd.sock",
            "ftp://a:1",
            "http://",
            "http://a?b",
        ] {
            assert_eq!(read(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn an_encoded_id_is_one_segment() {
        assert_eq!(encoded("user-1@node_a.~"), "user-1%40node_a.~");
        assert_eq!(encoded("a/b,c d?e&f=g+h%ä"), "a%2Fb%2Cc%20d%3Fe%26f%3Dg%2Bh%25%C3%A4");
    }
}
