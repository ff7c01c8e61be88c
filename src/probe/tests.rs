//! Checks of backends in this process that answer, hang, refuse, disconnect and send invalid
//! answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic_health::ServingStatus;

use super::*;
use crate::balancer::DeniedNetworks;

const SOON: Duration = Duration::from_secs(10);

/// A backend with a given answer to every request. Counts connections and requests.
#[derive(Clone, Debug)]
struct Backend {
    address: Address,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    /// The answer to each request. After an empty answer the backend closes the connection.
    answer: Arc<Mutex<Vec<u8>>>,
    /// Whether the backend closes the connection after each answer.
    closes: Arc<AtomicBool>,
}

impl Backend {
    async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = Self {
            address: target(listener.local_addr().unwrap()),
            connections: Arc::default(),
            requests: Arc::default(),
            answer: Arc::new(Mutex::new(answer.into())),
            closes: Arc::default(),
        };
        let served = backend.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                served.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(served.clone().serve(stream));
            }
        });
        backend
    }

    async fn status(status: u16) -> Self {
        Self::answering(format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 2\r\n\r\nok")).await
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while let Ok(byte) = stream.read_u8().await {
            head.push(byte);
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            self.requests
                .lock()
                .unwrap()
                .push(String::from_utf8(std::mem::take(&mut head)).unwrap());
            let answer = self.answer.lock().unwrap().clone();
            let written = stream.write_all(&answer).await;
            if answer.is_empty() || written.is_err() || self.closes.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn answers(&self, answer: impl Into<Vec<u8>>) {
        *self.answer.lock().unwrap() = answer.into();
    }

    fn requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn target(address: SocketAddr) -> Address {
    Address::new(&address.ip().to_string(), i64::from(address.port())).unwrap()
}

fn plan(check: HealthCheck) -> Plan {
    Plan {
        check: Arc::new(check),
        // The second check comes at any time within the interval: not during a test.
        interval: Duration::from_secs(24 * 3_600),
        timeout: Duration::from_secs(5),
        denied: DeniedNetworks::default(),
    }
}

fn http() -> HttpCheck {
    HttpCheck::new("/healthz").unwrap()
}

/// Checks one address again and again, and keeps what the prober keeps.
struct RepeatedCheck {
    plan: Plan,
    address: Address,
    kept: Kept,
}

impl RepeatedCheck {
    fn new(check: HealthCheck, address: &Address) -> Self {
        Self {
            plan: plan(check),
            address: address.clone(),
            kept: Kept::Nothing,
        }
    }

    fn within(mut self, timeout: Duration) -> Self {
        self.plan.timeout = timeout;
        self
    }

    async fn ask(&mut self) -> Check {
        let mut schedule = Schedule::new(ProbeSettings::default(), crate::balancer::Timestamp::default());
        let service = "web".parse().unwrap();
        let now = crate::balancer::Timestamp::default();
        schedule.set(&service, Some(&self.plan), [self.address.clone()], now);
        let kept = std::mem::replace(&mut self.kept, Kept::Nothing);
        let ended = check(schedule.take(now).unwrap(), kept, Resolver::System).await;
        self.kept = ended.connection;
        ended.result.unwrap()
    }
}

async fn check_once(check: HealthCheck, address: &Address) -> Check {
    RepeatedCheck::new(check, address).ask().await
}

async fn refusing() -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    target(listener.local_addr().unwrap())
}

/// Accepts connections (into its backlog) and never answers.
async fn silent() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target(listener.local_addr().unwrap());
    (listener, address)
}

#[tokio::test]
async fn the_status_decides_and_a_redirect_is_a_status() {
    for (status, check) in [
        (200, Check::Pass),
        (204, Check::Pass),
        (301, Check::Fail(CheckFailure::Status(301))),
        (404, Check::Fail(CheckFailure::Status(404))),
        (500, Check::Fail(CheckFailure::Status(500))),
    ] {
        let backend = Backend::status(status).await;
        assert_eq!(check_once(HealthCheck::Http(http()), &backend.address).await, check);
    }
    let elsewhere = Backend::status(200).await;
    let location = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://{}/\r\nContent-Length: 0\r\n\r\n",
        elsewhere.address
    );
    let backend = Backend::answering(location).await;
    let expected = http().with_statuses([302..=302]).unwrap();
    assert_eq!(
        check_once(HealthCheck::Http(expected), &backend.address).await,
        Check::Pass
    );
    assert_eq!(elsewhere.requests(), 0);
}

#[tokio::test]
async fn the_request_is_as_configured() {
    let backend = Backend::status(200).await;
    check_once(HealthCheck::Http(http()), &backend.address).await;
    let check = HttpCheck::new("/status?full=1")
        .and_then(|check| check.with_method("HEAD"))
        .and_then(|check| check.with_host("shop.example"))
        .and_then(|check| check.with_header("X-Check", "pickd"))
        .and_then(|check| check.with_header("User-Agent", "mine"))
        .unwrap();
    backend.answers("HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n");
    assert_eq!(
        check_once(HealthCheck::Http(check), &backend.address).await,
        Check::Pass
    );
    backend.answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let check = http().with_method("POST").unwrap();
    assert_eq!(
        check_once(HealthCheck::Http(check), &backend.address).await,
        Check::Pass
    );
    let requests = backend.requests.lock().unwrap().clone();
    assert!(requests[2].contains("content-length: 0\r\n"), "{}", requests[2]);
    assert!(requests[0].starts_with("GET /healthz HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests[0].contains(&format!("host: {}\r\n", backend.address)));
    assert!(requests[0].contains(concat!("user-agent: pickd/", env!("CARGO_PKG_VERSION"))));
    assert!(
        requests[1].starts_with("HEAD /status?full=1 HTTP/1.1\r\n"),
        "{}",
        requests[1]
    );
    for line in ["host: shop.example\r\n", "x-check: pickd\r\n", "user-agent: mine\r\n"] {
        assert!(requests[1].contains(line), "{}", requests[1]);
    }
}

#[tokio::test]
async fn a_failed_check_has_its_reason() {
    let failed = |failure| Check::Fail(failure);
    let refusing = refusing().await;
    for check in [
        HealthCheck::Tcp,
        HealthCheck::Http(http()),
        HealthCheck::Grpc { service: String::new() },
    ] {
        assert_eq!(
            check_once(check, &refusing).await,
            failed(CheckFailure::ConnectionRefused)
        );
    }
    let nowhere: Address = "no-such-host.invalid:80".parse().unwrap();
    assert_eq!(
        check_once(HealthCheck::Tcp, &nowhere).await,
        failed(CheckFailure::NameNotResolved)
    );
    let metadata: Address = "169.254.169.254:80".parse().unwrap();
    for check in [
        HealthCheck::Tcp,
        HealthCheck::Http(http()),
        HealthCheck::Grpc { service: String::new() },
    ] {
        assert_eq!(check_once(check, &metadata).await, failed(CheckFailure::AddressRefused));
    }
    let (_listener, silent) = silent().await;
    for check in [HealthCheck::Http(http()), HealthCheck::Grpc { service: String::new() }] {
        let mut repeated = RepeatedCheck::new(check, &silent).within(Duration::from_millis(100));
        assert_eq!(repeated.ask().await, failed(CheckFailure::Timeout));
    }
    for (answer, failure) in [
        ("", CheckFailure::ConnectionFailed),
        ("SSH-2.0-OpenSSH_9.2\r\n", CheckFailure::Protocol),
        ("HTTP/1.1 abc\r\n\r\n", CheckFailure::Protocol),
        ("HTTP/9.9 200 OK\r\n\r\n", CheckFailure::Protocol),
    ] {
        let backend = Backend::answering(answer).await;
        assert_eq!(
            check_once(HealthCheck::Http(http()), &backend.address).await,
            failed(failure),
            "{answer:?}"
        );
    }
    let backend = Backend::answering("HTTP/1.1 200 OK\r\nContent-Le").await;
    let mut repeated =
        RepeatedCheck::new(HealthCheck::Http(http()), &backend.address).within(Duration::from_millis(100));
    assert_eq!(
        repeated.ask().await,
        failed(CheckFailure::Timeout),
        "a head that never ends"
    );
    backend.closes.store(true, Ordering::Relaxed);
    assert_eq!(
        repeated.ask().await,
        failed(CheckFailure::ConnectionFailed),
        "a head that breaks off"
    );
}

#[tokio::test]
async fn a_connection_is_used_again_until_its_server_closes_it() {
    let backend = Backend::status(200).await;
    let mut repeated = RepeatedCheck::new(HealthCheck::Http(http()), &backend.address);
    for _ in 0..5 {
        assert_eq!(repeated.ask().await, Check::Pass);
    }
    assert_eq!(
        (backend.connections.load(Ordering::Relaxed), backend.requests()),
        (1, 5)
    );
    // The backend closes after each answer, without saying so in the answer: the next check
    // notices that, and connects again.
    backend.closes.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(repeated.ask().await, Check::Pass);
    }
    assert_eq!(backend.requests(), 8);
    // A connection with `Connection: close` is not used again.
    backend.answers("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    for _ in 0..3 {
        assert_eq!(repeated.ask().await, Check::Pass);
    }
    assert_eq!(backend.requests(), 11);
}

#[tokio::test]
async fn a_large_or_endless_body_does_not_matter() {
    let mut large = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n".to_vec();
    large.resize(large.len() + 10_000_000, b'x');
    let backend = Backend::answering(large).await;
    let mut repeated = RepeatedCheck::new(HealthCheck::Http(http()), &backend.address);
    assert_eq!(repeated.ask().await, Check::Pass);
    assert_eq!(repeated.ask().await, Check::Pass);
    assert_eq!(backend.connections.load(Ordering::Relaxed), 2, "not worth reading");
    let started = time::Instant::now();
    let backend = Backend::answering("HTTP/1.1 500 Oh\r\nContent-Length: 10\r\n\r\nx").await;
    let check = check_once(HealthCheck::Http(http()), &backend.address).await;
    assert_eq!(check, Check::Fail(CheckFailure::Status(500)));
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "the status counts, although the rest never came"
    );
    // Also if the check's own time ends sooner.
    let mut hasty = RepeatedCheck::new(HealthCheck::Http(http()), &backend.address).within(Duration::from_millis(300));
    assert_eq!(hasty.ask().await, Check::Fail(CheckFailure::Status(500)));
}

/// A gRPC server with the standard health service.
async fn grpc_server() -> (Address, tonic_health::server::HealthReporter) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target(listener.local_addr().unwrap());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    (address, reporter)
}

#[tokio::test]
async fn grpc_serving_passes_and_nothing_else() {
    let (address, reporter) = grpc_server().await;
    let mut whole = RepeatedCheck::new(HealthCheck::Grpc { service: String::new() }, &address);
    let mut shop = RepeatedCheck::new(
        HealthCheck::Grpc {
            service: "shop.Cart".to_owned(),
        },
        &address,
    );
    assert_eq!(whole.ask().await, Check::Pass);
    assert_eq!(
        shop.ask().await,
        Check::Fail(CheckFailure::NotServing),
        "unknown to the server"
    );
    reporter.set_service_status("shop.Cart", ServingStatus::Serving).await;
    assert_eq!(shop.ask().await, Check::Pass);
    reporter
        .set_service_status("shop.Cart", ServingStatus::NotServing)
        .await;
    assert_eq!(shop.ask().await, Check::Fail(CheckFailure::NotServing));
    assert_eq!(whole.ask().await, Check::Pass);
    // A server with another protocol.
    let backend = Backend::status(200).await;
    let check = check_once(HealthCheck::Grpc { service: String::new() }, &backend.address).await;
    assert!(
        matches!(
            check,
            Check::Fail(CheckFailure::Protocol | CheckFailure::ConnectionFailed)
        ),
        "{check:?}"
    );
}

/// A running prober, and its results.
struct Running {
    handle: ProbeHandle,
    results: mpsc::UnboundedReceiver<Checked>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(settings: ProbeSettings) -> Self {
        let (sender, results) = mpsc::unbounded_channel();
        let tell: OnChecked = Arc::new(move |checked| drop(sender.send(checked)));
        let prober = Prober::new(settings, Arc::new(Monotonic::start()), tell);
        let (handle, stop) = (prober.handle(), CancellationToken::new());
        let task = tokio::spawn(prober.run(stop.clone()));
        Self {
            handle,
            results,
            stop,
            task,
        }
    }

    fn set(&self, service: &str, plan: Option<&Plan>, addresses: &[Address]) {
        self.handle
            .set(&service.parse().unwrap(), plan, addresses.iter().cloned());
    }

    async fn next(&mut self) -> Checked {
        time::timeout(SOON, self.results.recv()).await.unwrap().unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        time::timeout(SOON, self.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_new_instance_is_checked_at_once_although_another_hangs() {
    let mut prober = Running::start(ProbeSettings::default());
    let (_listener, hangs) = silent().await;
    let backends = [Backend::status(200).await, Backend::status(500).await];
    let mut addresses: Vec<Address> = backends.iter().map(|backend| backend.address.clone()).collect();
    addresses.insert(0, hangs.clone());
    let started = time::Instant::now();
    prober.set("web", Some(&plan(HealthCheck::Http(http()))), &addresses);
    let mut found = HashMap::new();
    for _ in 0..2 {
        let checked = prober.next().await;
        found.insert(checked.address, checked.check);
    }
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "long before the timeout of the one that hangs"
    );
    assert_eq!(found[&addresses[1]], Check::Pass);
    assert_eq!(found[&addresses[2]], Check::Fail(CheckFailure::Status(500)));
    let late = Backend::status(204).await;
    addresses.push(late.address.clone());
    prober.set("web", Some(&plan(HealthCheck::Http(http()))), &addresses);
    assert_eq!(
        prober.next().await.address,
        late.address,
        "although the next turn is hours away"
    );
    let last = prober.next().await;
    assert_eq!((last.address, last.check), (hangs, Check::Fail(CheckFailure::Timeout)));
    assert_eq!(backends.map(|backend| backend.requests()), [1, 1]);
    prober.stop().await;
}

#[tokio::test]
async fn a_removed_target_has_no_more_results() {
    let mut prober = Running::start(ProbeSettings::default());
    let mut often = plan(HealthCheck::Http(http()));
    often.interval = Duration::from_millis(100);
    let backends = [Backend::status(200).await, Backend::status(200).await];
    let addresses = backends.clone().map(|backend| backend.address);
    prober.set("web", Some(&often), &addresses);
    prober.set("db", Some(&often), &addresses[1..]);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 3 {
        let checked = prober.next().await;
        seen.insert((checked.service.to_string(), checked.address.to_string()));
    }
    prober.set("web", None, &[]);
    // The results from before the removal.
    while let Ok(checked) = prober.results.try_recv() {
        drop(checked);
    }
    for _ in 0..10 {
        assert_eq!(prober.next().await.service.as_str(), "db");
    }
    prober.stop().await;
}

#[tokio::test]
async fn the_rate_of_all_checks_is_bounded() {
    let settings = ProbeSettings {
        max_rate: 20,
        ..ProbeSettings::default()
    };
    let mut prober = Running::start(settings);
    let backend = Backend::status(200).await;
    let mut often = plan(HealthCheck::Http(http()));
    often.interval = Duration::from_millis(100);
    let started = time::Instant::now();
    for number in 0..10 {
        prober.set(
            &format!("service-{number}"),
            Some(&often),
            std::slice::from_ref(&backend.address),
        );
    }
    // Without the limit, a hundred checks a second would be due.
    for _ in 0..22 {
        prober.next().await;
    }
    assert!(
        started.elapsed() >= Duration::from_millis(950),
        "{:?}",
        started.elapsed()
    );
    prober.stop().await;
}
