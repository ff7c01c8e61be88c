//! The client of the library against real HTTP servers: calls, retries and active checks.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use pickd::balancer::{BreakerState, Call, CallError, Failure, MeasuredBy, TripReason};
use pickd::client::{RequestError, ServiceError};
use pickd::probe::{HealthCheck, HttpCheck};
use pickd::{
    Context, HealthChecks, HealthStatus, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, PickError,
    ServiceInstance, ServiceName, ServiceRequest, Services, Weight,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::agent::SOON;
use crate::support::{eventually, free_ports};

/// A request as a backend received it.
#[derive(Clone, Debug)]
struct Received {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

/// What a backend answers.
#[derive(Clone, Default)]
enum Answer {
    /// The request, as JSON.
    #[default]
    Echo,
    /// This status, header and body.
    With(u16, &'static [(&'static str, &'static str)], &'static str),
    /// A body of this many bytes.
    Large(usize),
    /// 200, after this time.
    After(Duration),
    /// Nothing.
    Hang,
}

/// A real HTTP server of this process.
struct Backend {
    port: u16,
    received: Arc<Mutex<Vec<Received>>>,
    answer: Arc<Mutex<Answer>>,
    serving: JoinHandle<()>,
}

impl Backend {
    async fn start() -> Self {
        Self::at(0).await
    }

    async fn at(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (received, answer) = (Arc::default(), Arc::default());
        let state: (Arc<Mutex<Vec<Received>>>, Arc<Mutex<Answer>>) = (Arc::clone(&received), Arc::clone(&answer));
        let router = Router::new().fallback(move |request: Request| serve(request, state.clone()));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            port,
            received,
            answer,
            serving,
        }
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    fn instance(&self, id: &str) -> ServiceInstance {
        instance(id, self.port)
    }

    /// Refuses connections from now on. Connections that are open are not closed.
    async fn stop(&mut self) {
        self.serving.abort();
        assert!((&mut self.serving).await.unwrap_err().is_cancelled());
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(request: Request, (received, answer): (Arc<Mutex<Vec<Received>>>, Arc<Mutex<Answer>>)) -> Response {
    let (parts, body) = request.into_parts();
    let request = Received {
        method: parts.method,
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: to_bytes(body, 1 << 20).await.unwrap(),
    };
    received.lock().unwrap().push(request.clone());
    let answer = answer.lock().unwrap().clone();
    match answer {
        Answer::Echo => {
            let body = String::from_utf8(request.body.to_vec()).unwrap();
            let echo = json!({ "method": request.method.as_str(), "target": request.target, "body": body });
            echo.to_string().into_response()
        }
        Answer::With(status, headers, body) => {
            let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(*name, value.parse().unwrap());
            }
            response
        }
        Answer::Large(bytes) => "x".repeat(bytes).into_response(),
        Answer::After(time) => {
            tokio::time::sleep(time).await;
            StatusCode::OK.into_response()
        }
        Answer::Hang => std::future::pending().await,
    }
}

fn instance(id: &str, port: u16) -> ServiceInstance {
    ServiceInstance::new(id, "127.0.0.1", port).unwrap()
}

fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

fn get(path: &str) -> ServiceRequest<'static> {
    ServiceRequest::get(path).unwrap()
}

fn post(path: &str) -> ServiceRequest<'static> {
    ServiceRequest::post(path).unwrap()
}

/// The service `users` of these instances, picked in turn.
fn users(instances: impl IntoIterator<Item = ServiceInstance>) -> Services {
    let services = Services::new().unwrap();
    services.register(&name("users"), LoadBalancerConfig::default(), instances);
    services
}

/// The ids that a failed call tried, and their outcomes.
fn tried(error: &ServiceError) -> Vec<(&str, Outcome)> {
    let attempts = error.tried().iter();
    attempts
        .map(|attempt| (attempt.instance.as_str(), attempt.outcome))
        .collect()
}

fn failure(error: &ServiceError) -> &Failure<RequestError> {
    match error {
        ServiceError::Failed { failure, .. } => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_call_sends_method_path_headers_and_json() {
    let backend = Backend::start().await;
    let services = users([backend.instance("user-1")]);
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST", "PATCH"] {
        let request = ServiceRequest::new(method.parse().unwrap(), "/users/7?full=1").unwrap();
        let request = request.with_json(&json!({ "name": "Ada" })).unwrap();
        let request = request.with_header("X-Trace", "42").unwrap();
        let answer = services.call_service("users", request).await.unwrap();
        assert_eq!((answer.status(), answer.instance().as_str()), (200, "user-1"));
        if method != "HEAD" {
            let echo = json!({ "method": method, "target": "/users/7?full=1", "body": r#"{"name":"Ada"}"# });
            assert_eq!(answer.json::<Value>().unwrap(), echo);
        }
        let received = backend.received().pop().unwrap();
        assert_eq!(received.method.as_str(), method);
        assert_eq!(received.headers["content-type"], "application/json");
        assert_eq!(received.headers["x-trace"], "42");
        assert_eq!(received.headers["host"], format!("127.0.0.1:{}", backend.port));
    }
    let of_user_1 = services.balancer("users").unwrap().statistics();
    assert_eq!(
        (
            of_user_1.total_requests,
            of_user_1.reported_requests,
            of_user_1.failed_requests
        ),
        (7, 7, 0)
    );
}

#[tokio::test]
async fn a_request_that_was_not_sent_goes_to_another_instance_whatever_it_is() {
    let backend = Backend::start().await;
    let [closed] = free_ports();
    for request in [get("/"), post("/")] {
        let services = users([instance("closed", closed), backend.instance("open")]);
        for _ in 0..2 {
            let answer = services.call_service("users", request.clone()).await.unwrap();
            assert_eq!(answer.instance().as_str(), "open");
        }
        let statistics = services.balancer("users").unwrap().statistics();
        let of_closed = &statistics.instances["closed"];
        assert!(of_closed.failed_requests > 0, "one of two calls in turn begins there");
        // A refused connection counts twice.
        assert_eq!(u64::from(of_closed.consecutive_failures), 2 * of_closed.failed_requests);
    }
    let services = users([instance("closed", closed)]);
    let error = services.call_service("users", post("/")).await.unwrap_err();
    assert_eq!(tried(&error), [("closed", Outcome::ConnectError); 3]);
    assert!(
        matches!(failure(&error), Failure::NotSent(RequestError::NoConnection(_))),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "service users: no connection (tried closed, closed, closed)"
    );
    assert_eq!((error.status(), backend.received().len()), (None, 4));
}

#[tokio::test]
async fn what_the_instance_may_have_done_is_repeated_only_if_it_may_be() {
    let (first, second) = (Backend::start().await, Backend::start().await);
    let repeated = post("/").with_idempotent(true);
    let once = get("/").with_idempotent(false);
    for (request, attempts) in [(get("/"), 2), (post("/"), 1), (repeated, 2), (once, 1)] {
        for (answer, outcome) in [
            (Answer::With(500, &[], "broken"), Outcome::Failure),
            (Answer::With(502, &[], ""), Outcome::Failure),
            (Answer::With(429, &[], ""), Outcome::Rejected),
            (Answer::With(503, &[], ""), Outcome::Rejected),
            (Answer::With(408, &[], ""), Outcome::Timeout),
        ] {
            first.answers(answer.clone());
            second.answers(answer);
            let services = users([first.instance("user-1"), second.instance("user-2")]);
            let config = LoadBalancerConfig::default().with_max_retries(1).unwrap();
            services.directory().configure_service(&name("users"), config);
            let error = services.call_service("users", request.clone()).await.unwrap_err();
            assert_eq!(error.tried().len(), attempts, "{request:?} {error:?}");
            assert!(
                error.tried().iter().all(|attempt| attempt.outcome == outcome),
                "{error:?}"
            );
            let distinct: std::collections::BTreeSet<&str> = tried(&error).iter().map(|(id, _)| *id).collect();
            assert_eq!(distinct.len(), attempts, "no instance twice");
            let failed = services.balancer("users").unwrap().statistics().failed_requests;
            assert_eq!(failed, attempts as u64);
        }
    }
}

#[tokio::test]
async fn a_client_error_is_an_answer_of_a_good_instance() {
    let backend = Backend::start().await;
    let services = users([backend.instance("user-1"), instance("user-2", backend.port)]);
    for status in [301, 400, 401, 404, 409, 422] {
        backend.answers(Answer::With(
            status,
            &[("x-reason", "no such user")],
            r#"{"error":"unknown"}"#,
        ));
        let error = services.call_service("users", get("/users/0")).await.unwrap_err();
        assert!(
            matches!(failure(&error), Failure::Client(RequestError::Status(_))),
            "{error:?}"
        );
        assert_eq!((error.status(), error.tried().len()), (Some(status), 1));
        let answer = error.answer().unwrap();
        assert_eq!(answer.json::<Value>().unwrap()["error"], "unknown");
        assert_eq!(answer.header("X-Reason"), Some("no such user"));
        assert!(
            error
                .to_string()
                .starts_with(&format!("service users: status {status} (tried user-"))
        );
    }
    let statistics = services.balancer("users").unwrap().statistics();
    assert_eq!((statistics.reported_requests, statistics.failed_requests), (6, 0));
    assert_eq!(backend.received().len(), 6);
}

#[tokio::test]
async fn an_attempt_ends_with_its_time_and_another_instance_is_tried() {
    let (hangs, answers) = (Backend::start().await, Backend::start().await);
    hangs.answers(Answer::Hang);
    let timeout = Duration::from_millis(100);
    let services = users([hangs.instance("hangs")]);
    let error = services
        .call_service("users", post("/").with_timeout(timeout))
        .await
        .unwrap_err();
    assert!(matches!(failure(&error), Failure::TimedOut(RequestError::TimedOut(time)) if *time == timeout));
    assert_eq!(tried(&error), [("hangs", Outcome::Timeout)]);
    assert!(error.tried()[0].latency >= timeout);

    services.register(
        &name("users"),
        LoadBalancerConfig::default(),
        [hangs.instance("hangs"), answers.instance("answers")],
    );
    for _ in 0..2 {
        let answer = services
            .call_service("users", get("/").with_timeout(timeout))
            .await
            .unwrap();
        assert_eq!(answer.instance().as_str(), "answers");
    }
}

#[tokio::test]
async fn an_instance_that_asks_for_time_gets_it() {
    for header in [("retry-after", "30"), ("retry-after", "Sun, 06 Nov 1994 08:50:00 GMT")] {
        let (busy, idle) = (Backend::start().await, Backend::start().await);
        busy.answers(match header {
            (_, "30") => Answer::With(503, &[("retry-after", "30")], ""),
            // The clock of the instance is decades behind, and says so.
            _ => Answer::With(
                429,
                &[
                    ("retry-after", "Sun, 06 Nov 1994 08:50:00 GMT"),
                    ("date", "Sun, 06 Nov 1994 08:49:30 GMT"),
                ],
                "",
            ),
        });
        let services = users([busy.instance("busy"), idle.instance("idle")]);
        for _ in 0..20 {
            let answer = services.call_service("users", get("/")).await.unwrap();
            assert_eq!(answer.instance().as_str(), "idle");
        }
        assert_eq!(busy.received().len(), 1, "{header:?}");
        let statistics = services.balancer("users").unwrap().statistics();
        let breaker = statistics.instances["busy"].layers.breaker.unwrap().state;
        let asked = Duration::from_secs(30);
        assert!(
            matches!(breaker, BreakerState::Open { because: TripReason::RetryAfter(time), .. } if time == asked),
            "{breaker:?}"
        );
    }
}

/// A server that sends these bytes to every connection after its first request, and closes it.
async fn raw(answer: &'static [u8]) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _read = stream.read(&mut [0; 4096]).await;
            let _written = stream.write_all(answer).await;
        }
    });
    (port, serving)
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_failure_of_the_instance() {
    for answer in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"cut\":",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let (port, serving) = raw(answer).await;
        let services = users([instance("user-1", port)]);
        let error = services
            .call_service("users", post("/?token=secret"))
            .await
            .unwrap_err();
        assert!(
            matches!(failure(&error), Failure::Failed(RequestError::Broken(_))),
            "{error:?}"
        );
        let chain = format!("{error:?} {:?}", std::error::Error::source(&error));
        assert!(!chain.contains("secret"), "{chain}");
        assert_eq!(tried(&error), [("user-1", Outcome::Failure)]);
        let error = services.call_service("users", get("/")).await.unwrap_err();
        assert_eq!(error.tried().len(), 3);
        serving.abort();
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused_and_not_asked_for_again() {
    let backend = Backend::start().await;
    let services = users([backend.instance("user-1")]).with_longest_answer(1_000);
    backend.answers(Answer::Large(1_000));
    let answer = services.call_service("users", get("/")).await.unwrap();
    assert_eq!(answer.body().len(), 1_000);
    backend.answers(Answer::Large(1_001));
    let error = services.call_service("users", get("/")).await.unwrap_err();
    assert!(
        matches!(
            failure(&error),
            Failure::Client(RequestError::TooLarge { limit: 1_000 })
        ),
        "{error:?}"
    );
    assert_eq!(backend.received().len(), 2);
    // The body of an error is cut.
    let (port, serving) = raw(Box::leak(
        format!("HTTP/1.1 404 Not Found\r\n\r\n{}", "x".repeat(100_000))
            .into_boxed_str()
            .into(),
    ))
    .await;
    services.register(
        &name("users"),
        LoadBalancerConfig::default(),
        [instance("user-1", port)],
    );
    let error = services.call_service("users", get("/")).await.unwrap_err();
    assert_eq!(error.answer().unwrap().body().len(), 64 << 10);
    serving.abort();
}

#[tokio::test]
async fn a_service_without_an_instance_is_not_a_service_that_is_unknown() {
    let services = Services::new().unwrap();
    for unknown in ["users", "not a name/at all", ""] {
        let error = services.call_service(unknown, get("/")).await.unwrap_err();
        assert!(
            matches!(&error, ServiceError::UnknownService { name } if name == unknown),
            "{error:?}"
        );
        assert_eq!(error.to_string(), format!("service {unknown:?} is unknown"));
    }
    services.register(&name("users"), LoadBalancerConfig::default(), []);
    let error = services.call_service("users", get("/")).await.unwrap_err();
    assert!(
        matches!(error, ServiceError::NoInstance(PickError::Empty { .. })),
        "{error:?}"
    );
    let drained = instance("user-1", 1).with_weight(Weight::new(0).unwrap());
    services.register(&name("users"), LoadBalancerConfig::default(), [drained]);
    let error = services.call_service("users", get("/")).await.unwrap_err();
    assert!(
        matches!(
            error,
            ServiceError::NoInstance(PickError::NoneAvailable { total: 1, .. })
        ),
        "{error:?}"
    );
    assert!(error.tried().is_empty() && error.status().is_none());
}

#[tokio::test]
async fn a_call_that_is_dropped_is_no_outcome() {
    let backend = Backend::start().await;
    backend.answers(Answer::Hang);
    let services = users([backend.instance("user-1")]);
    let called = tokio::time::timeout(Duration::from_millis(100), services.call_service("users", get("/"))).await;
    assert!(called.is_err());
    let balancer = services.balancer("users").unwrap();
    assert_eq!((balancer.in_flight(), balancer.statistics().reported_requests), (0, 0));
    assert_eq!(balancer.statistics().total_requests, 1);
}

#[tokio::test]
async fn keys_and_tags_of_a_call_choose_the_instance() {
    let backend = Backend::start().await;
    let services = Services::new().unwrap();
    let config = LoadBalancerConfig::new(LoadBalancingStrategy::ConsistentHash);
    let instances = ["a", "b", "c"].map(|id| backend.instance(id));
    services.register(&name("cache"), config, instances);
    for key in ["ada", "bob", "eve", "joe"] {
        let context = Context::new().with_key(key);
        let expected = services
            .balancer("cache")
            .unwrap()
            .select_instance(&context)
            .unwrap()
            .id()
            .clone();
        let answer = services
            .call_service("cache", get("/").with_context(context))
            .await
            .unwrap();
        assert_eq!(answer.instance(), &expected);
        let excluded = [expected.as_str()];
        let elsewhere = get("/").with_context(context.with_exclude(&excluded));
        let answer = services.call_service("cache", elsewhere).await.unwrap();
        assert_ne!(answer.instance(), &expected);
    }
}

#[tokio::test]
async fn a_call_goes_to_the_port_that_its_context_names() {
    let (registered, admin) = (Backend::start().await, Backend::start().await);
    let port = admin.port.to_string();
    let with_port = registered.instance("user-1").with_metadata([("port-admin", port)]);
    let services = users([with_port, registered.instance("user-2")]);
    let context = Context::new().with_port("admin");
    for _ in 0..4 {
        let request = get("/users/7?full=1").with_context(context);
        let answer = services.call_service("users", request).await.unwrap();
        assert_eq!(answer.instance().as_str(), "user-1");
    }
    let received = admin.received();
    assert_eq!((received.len(), registered.received().len()), (4, 0));
    assert_eq!(received[0].target, "/users/7?full=1");
    assert_eq!(received[0].headers["host"], format!("127.0.0.1:{}", admin.port));
    // The outcomes belong to the registered address.
    let statistics = services.balancer("users").unwrap().statistics();
    assert_eq!(statistics.instances["user-1"].reported_requests, 4);

    services.call_service("users", get("/")).await.unwrap();
    assert_eq!((admin.received().len(), registered.received().len()), (4, 1));
}

#[tokio::test]
async fn the_metadata_of_an_instance_says_whether_it_is_called_over_tls() {
    let backend = Backend::start().await;
    for (scheme, is_called) in [("http", true), ("grpc", true), ("https", false), ("HTTPS", false)] {
        let services = users([backend.instance("user-1").with_metadata([("scheme", scheme)])]);
        let called = services.call_service("users", get("/")).await;
        // The backend speaks no TLS: a handshake with it fails.
        assert_eq!(called.is_ok(), is_called, "{scheme}: {called:?}");
        if let Err(error) = called {
            assert!(
                matches!(failure(&error), Failure::NotSent(RequestError::NoConnection(_))),
                "{error:?}"
            );
        }
    }
}

#[tokio::test]
async fn calls_at_one_time_are_shared_out() {
    let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
    let services = Services::new().unwrap();
    let config = LoadBalancerConfig::new(LoadBalancingStrategy::LeastConnections);
    let instances = backends.iter().enumerate();
    let instances = instances.map(|(index, backend)| backend.instance(&format!("user-{index}")));
    services.register(&name("users"), config, instances);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..150 {
        let services = services.clone();
        calls.spawn(async move {
            let request = get(&format!("/users/{number}"));
            let answer = services.call_service("users", request).await.unwrap();
            assert!(answer.json::<Value>().unwrap()["target"] == format!("/users/{number}"));
        });
    }
    calls.join_all().await;
    for backend in &backends {
        let received = backend.received().len();
        assert!((40..=60).contains(&received), "{received}");
    }
    assert_eq!(services.balancer("users").unwrap().in_flight(), 0);
}

#[tokio::test]
async fn the_calls_of_a_burst_use_the_connections_of_the_burst_before() {
    let backend = crate::support::backend::Backend::start();
    let services = users([instance("user-1", backend.address.port())]);
    for _ in 0..6 {
        let calls = (0..50).map(|_| services.call_service("users", get("/")));
        for answer in futures_util::future::join_all(calls).await {
            answer.unwrap();
        }
    }
    assert_eq!(backend.requests(), 300);
    assert!(backend.connections() <= 75, "{}", backend.connections());
}

#[tokio::test]
async fn the_overview_counts_calls_and_failures_of_all_services() {
    let (good, bad) = (Backend::start().await, Backend::start().await);
    bad.answers(Answer::With(500, &[], ""));
    let services = Services::new().unwrap();
    let least = LoadBalancerConfig::new(LoadBalancingStrategy::LeastResponseTime);
    services.register(
        &name("users"),
        least,
        [good.instance("user-1"), good.instance("user-2")],
    );
    services.register(
        &name("orders"),
        LoadBalancerConfig::default(),
        [bad.instance("order-1")],
    );
    for _ in 0..3 {
        services.call_service("users", get("/")).await.unwrap();
    }
    services.call_service("orders", post("/")).await.unwrap_err();
    let overview = services.overview();
    assert_eq!(
        (
            overview.total_instances,
            overview.healthy_instances,
            overview.total_requests,
            overview.total_failures
        ),
        (3, 3, 4, 1)
    );
    assert!((overview.overall_health - 1.0).abs() < f64::EPSILON);
    let users = overview.service("users").unwrap();
    assert_eq!(
        (users.strategy.as_str(), users.total_requests),
        ("least_response_time", 3)
    );
    assert!((overview.service("orders").unwrap().failure_rate - 1.0).abs() < f64::EPSILON);
}

/// Waits until the instances of a balancer have these statuses, in the order of their ids.
async fn until_status(balancer: &LoadBalancer, expected: &[HealthStatus]) {
    let statuses = || {
        let found: Vec<HealthStatus> = balancer.instances().iter().map(|(_, status)| *status).collect();
        async move { (found == expected).then_some(()) }
    };
    eventually(SOON, &format!("statuses {expected:?} of {balancer:?}"), statuses).await;
}

/// Settings under which active checks decide within a fraction of a second.
fn often() -> LoadBalancerConfig {
    let config = LoadBalancerConfig::default();
    let config = config.with_health_check_interval(Duration::from_millis(100)).unwrap();
    let config = config.with_max_consecutive_failures(2).unwrap().with_rise(1).unwrap();
    config.with_slow_start(Duration::ZERO).unwrap()
}

fn picks_only(balancer: &LoadBalancer, id: &str) -> bool {
    (0..20).all(|_| balancer.select_instance(&Context::new()).unwrap().id().as_str() == id)
}

const UP: HealthStatus = HealthStatus::Healthy;
const DOWN: HealthStatus = HealthStatus::Unhealthy;

#[tokio::test]
async fn checks_take_an_instance_out_and_bring_it_back_until_they_stop() {
    let (first, mut second) = (Backend::start().await, Backend::start().await);
    let balancer = LoadBalancer::new(name("users"), often());
    balancer.add_instance(first.instance("user-1"));
    balancer.add_instance(second.instance("user-2"));
    let checks = HealthChecks::start(&balancer);
    until_status(&balancer, &[UP, UP]).await;
    second.stop().await;
    until_status(&balancer, &[UP, DOWN]).await;
    assert!(picks_only(&balancer, "user-1"));

    // A program that only selects sees the recovery, too.
    let second = Backend::at(second.port).await;
    until_status(&balancer, &[UP, UP]).await;
    assert!((0..20).any(|_| balancer.select_instance(&Context::new()).unwrap().id().as_str() == "user-2"));

    // An instance that joins is checked, and one that leaves is not.
    let [closed] = free_ports();
    balancer.add_instance(instance("user-3", closed));
    until_status(&balancer, &[UP, UP, DOWN]).await;
    balancer.remove_instance(&"user-3".parse().unwrap());

    drop(second);
    until_status(&balancer, &[UP, DOWN]).await;
    checks.stop().await;
    let made = balancer.checks();
    until_status(&balancer, &[HealthStatus::Unknown; 2]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(balancer.checks(), made, "no check after the stop");
}

#[tokio::test]
async fn checks_ask_what_they_are_told_as_often_as_the_settings_say() {
    let backend = Backend::start().await;
    backend.answers(Answer::With(500, &[], ""));
    let disabled = often().with_health_check_enabled(false);
    let balancer = LoadBalancer::new(name("users"), disabled);
    balancer.add_instance(backend.instance("user-1"));
    balancer.add_instance(instance("user-2", Backend::start().await.port));
    let check = HttpCheck::new("/healthz").unwrap().with_method("HEAD").unwrap();
    let checks = HealthChecks::start_with(&balancer, HealthCheck::Http(check));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(backend.received().is_empty(), "checks are disabled");

    balancer.configure(often());
    until_status(&balancer, &[DOWN, DOWN]).await;
    let received = backend.received().pop().unwrap();
    assert_eq!(
        (received.method.as_str(), received.target.as_str()),
        ("HEAD", "/healthz")
    );
    backend.answers(Answer::With(204, &[], ""));
    until_status(&balancer, &[UP, DOWN]).await;

    let often = often();
    balancer.configure(often.with_health_check_enabled(false));
    until_status(&balancer, &[HealthStatus::Unknown; 2]).await;
    checks.remove(&name("users"));
    drop(checks);
}

#[tokio::test]
async fn adaptive_weights_learn_from_the_time_that_checks_take() {
    let (fast, slow) = (Backend::start().await, Backend::start().await);
    fast.answers(Answer::After(Duration::from_millis(5)));
    slow.answers(Answer::After(Duration::from_millis(80)));
    let adaptive = often().with_adaptive_weights(true);
    let config = adaptive.with_adaptive_interval(Duration::from_millis(500)).unwrap();
    let balancer = LoadBalancer::new(name("users"), config);
    balancer.add_instance(fast.instance("fast"));
    balancer.add_instance(slow.instance("slow"));
    let check = HttpCheck::new("/healthz").unwrap();
    let checks = HealthChecks::start_with(&balancer, HealthCheck::Http(check));
    let learned = || {
        let instances = balancer.explain(None).instances;
        let factor = |id: &str| {
            let of = instances.iter().find(|it| it.instance.id().as_str() == id);
            of.unwrap().factors.adaptive
        };
        let differ = factor("slow") < 0.9 && factor("fast") > factor("slow");
        async move { differ.then_some(()) }
    };
    eventually(SOON, "the slow instance has a lower weight", learned).await;
    assert_eq!(balancer.measured_by(), Some(MeasuredBy::Checks));
    checks.stop().await;
}

#[tokio::test]
async fn checks_that_are_dropped_leave_no_instance_out() {
    let [closed] = free_ports();
    let backend = Backend::start().await;
    let balancer = LoadBalancer::new(name("users"), often());
    balancer.add_instance(backend.instance("user-1"));
    balancer.add_instance(instance("user-2", closed));
    let checks = HealthChecks::start(&balancer);
    until_status(&balancer, &[UP, DOWN]).await;
    drop(checks);
    until_status(&balancer, &[HealthStatus::Unknown; 2]).await;
}

#[tokio::test]
async fn checks_follow_the_balancer_that_takes_the_place_of_another() {
    let (first, second) = (Backend::start().await, Backend::start().await);
    let [closed] = free_ports();
    let of = |id, port| {
        let balancer = LoadBalancer::new(name("users"), often());
        balancer.add_instance(instance(id, port));
        balancer
    };
    let (before, after) = (of("user-1", closed), of("user-1", second.port));
    let other = LoadBalancer::new(name("mails"), often());
    other.add_instance(first.instance("mail-1"));
    let checks = HealthChecks::start(&before);
    checks.add(&other, HealthCheck::Tcp);
    until_status(&before, &[DOWN]).await;
    until_status(&other, &[UP]).await;

    checks.add(&after, HealthCheck::Tcp);
    checks.remove(&name("mails"));
    until_status(&after, &[UP]).await;
    for without_checks in [&before, &other] {
        until_status(without_checks, &[HealthStatus::Unknown]).await;
        assert_eq!(without_checks.keep_up(), None);
    }
    let made = (before.checks(), other.checks());
    let checked = after.checks().passed;
    eventually(SOON, "checks go on", || async {
        (after.checks().passed > checked + 2).then_some(())
    })
    .await;
    assert_eq!((before.checks(), other.checks()), made);
    checks.stop().await;
}

#[tokio::test]
async fn one_start_checks_all_services_and_one_stop_ends_all_checks() {
    let backend = Backend::start().await;
    let [closed] = free_ports();
    let services = Services::new().unwrap();
    let both = || [backend.instance("1"), instance("2", closed)];
    services.set_health_check(
        &name("users"),
        HealthCheck::Http(HttpCheck::new("/users/healthz").unwrap()),
    );
    services.register(&name("users"), often(), both());
    services.register(&name("orders"), often(), both());
    services.start_health_checks();
    services.start_health_checks();
    let later = name("payments");
    services.register(&later, often(), both());
    for service in ["users", "orders", "payments"] {
        until_status(&services.balancer(service).unwrap(), &[UP, DOWN]).await;
    }
    assert!(
        backend
            .received()
            .iter()
            .all(|received| received.target == "/users/healthz")
    );
    assert!(!backend.received().is_empty());
    assert_eq!(services.overview().healthy_instances, 3);

    // A service that is registered again keeps the results of its checks.
    let made = |passed: u64| {
        let checks = services.balancer("payments").unwrap().checks();
        (checks.passed > passed).then_some(checks.passed)
    };
    let before = made(0).unwrap();
    services.register(&later, often(), both());
    let kept = || {
        assert_eq!(services.overview().healthy_instances, 3);
        let made = made(before + 1);
        async move { made }
    };
    eventually(SOON, "checks go on", kept).await;

    services.stop_health_checks().await;
    assert_eq!(services.overview().healthy_instances, 6);
    services.start_health_checks();
    until_status(&services.balancer("users").unwrap(), &[UP, DOWN]).await;
    services.stop_health_checks().await;
}

/// Any future of an attempt is good for `call`, so a program can use a client of its own.
#[tokio::test]
async fn a_program_calls_with_a_client_of_its_own() {
    let backend = Backend::start().await;
    let balancer = LoadBalancer::new(name("users"), LoadBalancerConfig::default());
    balancer.add_instance(backend.instance("user-1"));
    let client = pickd::http_client::client(SOON, &Default::default()).unwrap();
    fn fetch(client: &reqwest::Client, url: String) -> impl Future<Output = reqwest::Result<String>> + use<> {
        let request = client.get(url);
        async move { request.send().await?.error_for_status()?.text().await }
    }
    let answer: Result<String, CallError<reqwest::Error>> = balancer
        .call_with(Call::new(), |instance| {
            let fetched = fetch(&client, format!("http://{}/users/7", instance.address()));
            async move { Ok(fetched.await?) }
        })
        .await;
    assert!(answer.unwrap().contains("/users/7"));
}

/// The variable that makes the next test the child process, whose files are few.
const CHILD: &str = "PICKD_TEST_WITHOUT_FILES";

#[test]
fn a_host_without_files_blames_no_instance() {
    if std::env::var_os(CHILD).is_none() {
        let test = "client::a_host_without_files_blames_no_instance";
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let backend = Backend::start().await;
        let services = users([backend.instance("user-1")]);
        let mut held = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            held.push(file);
        }
        let error = services.call_service("users", get("/")).await.unwrap_err();
        assert!(
            matches!(failure(&error), Failure::Local(RequestError::NoConnection(_))),
            "{error:?}"
        );
        assert_eq!(tried(&error), [("user-1", Outcome::Cancelled)]);
        let balancer = services.balancer("users").unwrap();
        assert_eq!((balancer.statistics().reported_requests, balancer.in_flight()), (0, 0));
        drop(held);
        services.call_service("users", get("/")).await.unwrap();
    });
}
