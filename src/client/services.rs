//! The services of a program: registered by the program or fed by an agent, called over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::answer::{ServiceAnswer, ServiceError, attempt};
use super::health_checks::HealthChecks;
use super::request::ServiceRequest;
use crate::balancer::{
    Changes, Directory, Environment, LoadBalancer, LoadBalancerConfig, Overview, PickError, ServiceConfigs,
    ServiceInstance, ServiceName, Sources,
};
use crate::http_client::{self, HttpError, Tls};
use crate::probe::{HealthCheck, ProbeSettings};

/// The time in which a connection must be open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The most idle connections to one instance: those of a burst, without a new connection for each
/// call of the next.
const IDLE_CONNECTIONS: usize = 128;
/// The largest answer, unless the program allows another.
const LONGEST_ANSWER: usize = 8 << 20;

/// Many services, each with a balancer of its own: registration, active checks, HTTP calls with
/// retries, and an overview.
///
/// ```
/// use pickd::client::ServiceError;
/// use pickd::{LoadBalancerConfig, LoadBalancingStrategy, ServiceInstance, ServiceRequest, Services};
/// use serde_json::Value;
///
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # async fn start_backend() -> std::io::Result<u16> {
/// #     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// #     let port = listener.local_addr()?.port();
/// #     tokio::spawn(async move {
/// #         while let Ok((mut stream, _)) = listener.accept().await {
/// #             let _read = stream.read(&mut [0; 1024]).await;
/// #             let answer = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"name\":\"Ada\"}";
/// #             let _written = stream.write_all(answer.as_bytes()).await;
/// #         }
/// #     });
/// #     Ok(port)
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let port = start_backend().await?;
/// let services = Services::new()?;
/// services.register(
///     &"user-service".parse()?,
///     LoadBalancerConfig::new(LoadBalancingStrategy::LeastResponseTime),
///     [
///         ServiceInstance::new("user-1", "127.0.0.1", port)?,
///         ServiceInstance::new("user-2", "127.0.0.1", 1)?, // No process listens there.
///     ],
/// );
///
/// // Every call has its answer: a call that reaches user-2 goes on to user-1.
/// for _ in 0..4 {
///     let answer = services.call_service("user-service", ServiceRequest::get("/users/7")?).await?;
///     assert_eq!(answer.json::<Value>()?["name"], "Ada");
///     assert_eq!(answer.instance().as_str(), "user-1");
/// }
///
/// let unknown = services.call_service("mail-service", ServiceRequest::get("/")?).await;
/// assert!(matches!(unknown, Err(ServiceError::UnknownService { .. })));
///
/// let overview = services.overview();
/// assert_eq!((overview.total_instances, overview.services.len()), (2, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The value is a handle: its clones are the same services.
#[derive(Clone)]
pub struct Services {
    shared: Arc<Shared>,
    longest_answer: usize,
}

struct Shared {
    directory: Arc<Directory>,
    client: reqwest::Client,
    checks: Mutex<Checks>,
}

/// How each registered service is checked, and the checks while they run.
#[derive(Default)]
struct Checks {
    /// The services that the program has registered. Other services of the directory belong to an
    /// agent, which checks them itself: two probers of one balancer would contradict each other.
    registered: BTreeSet<ServiceName>,
    /// What the program has set, for services that are not registered yet as well.
    by_service: BTreeMap<ServiceName, HealthCheck>,
    running: Option<HealthChecks>,
}

impl Services {
    /// No services yet.
    ///
    /// # Errors
    ///
    /// When the HTTP client cannot be made.
    pub fn new() -> Result<Self, HttpError> {
        let directory = Directory::new(ServiceConfigs::default(), Sources::default(), Environment::default());
        Self::over(Arc::new(directory))
    }

    /// The services of this directory, such as that of an [embedded agent](crate::agent::EmbeddedAgent).
    ///
    /// # Errors
    ///
    /// When the HTTP client cannot be made.
    pub fn over(directory: Arc<Directory>) -> Result<Self, HttpError> {
        let shared = Shared {
            directory,
            client: http_client::builder(CONNECT_TIMEOUT, &Tls::default())?
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .build()?,
            checks: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            longest_answer: LONGEST_ANSWER,
        })
    }

    /// Refuses answers that are larger than this many bytes, after decompression. By default 8 MiB.
    #[must_use]
    pub const fn with_longest_answer(mut self, bytes: usize) -> Self {
        self.longest_answer = bytes;
        self
    }

    /// Registers a service with its settings and all of its instances, in place of those that it had
    /// before. Returns the differences. What was learned of an address stays.
    ///
    /// While checks run, the service is checked: by TCP connections, or as
    /// [`set_health_check`](Self::set_health_check) says.
    pub fn register(
        &self,
        service: &ServiceName,
        config: LoadBalancerConfig,
        instances: impl IntoIterator<Item = ServiceInstance>,
    ) -> Changes {
        self.shared.directory.configure_service(service, config);
        let changes = self
            .shared
            .directory
            .apply(service, instances.into_iter().map(Arc::new));
        let mut checks = self.shared.checks();
        checks.registered.insert(service.clone());
        self.shared.add_check(&checks, service);
        changes
    }

    /// Sets what checks of a service ask, such as the status of `GET /healthz`. The service may be
    /// registered later.
    ///
    /// Has no effect on a service that only an agent feeds: such a service is checked as the
    /// configuration of the agent says.
    pub fn set_health_check(&self, service: &ServiceName, check: HealthCheck) {
        let mut checks = self.shared.checks();
        checks.by_service.insert(service.clone(), check);
        self.shared.add_check(&checks, service);
    }

    /// Starts active checks of all services that were [registered](Self::register), and of those that
    /// are registered later. Does nothing while checks run.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start_health_checks(&self) {
        let mut checks = self.shared.checks();
        if checks.running.is_some() {
            return;
        }
        checks.running = Some(HealthChecks::start_empty(ProbeSettings::default()));
        for service in &checks.registered {
            self.shared.add_check(&checks, service);
        }
    }

    /// Stops the active checks of the registered services, and forgets their results.
    pub async fn stop_health_checks(&self) {
        let running = self.shared.checks().running.take();
        if let Some(running) = running {
            running.stop().await;
        }
    }

    /// Calls a service: picks an instance, sends the request, and tries another instance if that
    /// fails, within the settings and the retry budget of the service. Returns the answer of status
    /// 2xx. Outcome and latency of every attempt are recorded.
    ///
    /// The URL is `http://` with the address of the instance and the path of the request; `https://`
    /// if the instance has the metadata `scheme = "https"`. If the context of the request names a
    /// port, the address has that port: the metadata `port-<name>`. Health and counters still belong
    /// to the registered address. Redirects are not followed, and no proxy is used. A connection must
    /// be open within two seconds.
    ///
    /// Which failures are tried again is the table of [`Failure`](crate::balancer::Failure): 429 and
    /// 503 are `Rejected`, and keep the instance out for the time of their `Retry-After`. 408 is
    /// `TimedOut`, other 5xx are `Failed`. 3xx and other 4xx are `Client`, and so is an answer that
    /// is too large. No connection is `NotSent`.
    ///
    /// A call that is dropped ends as cancelled.
    ///
    /// # Errors
    ///
    /// [`ServiceError`]: an unknown service, no instance to call, or the failure of the last attempt
    /// with the list of all.
    pub async fn call_service(
        &self,
        service: &str,
        request: ServiceRequest<'_>,
    ) -> Result<ServiceAnswer, ServiceError> {
        let balancer = self.known(service)?;
        let answer = balancer
            .call_with(request.call(), |instance| self.send(&request, &instance))
            .await;
        answer.map_err(|error| match ServiceError::of_call(balancer.service().clone(), error) {
            ServiceError::NoInstance(error @ PickError::Empty { .. }) => {
                // Empty only because a registry has not answered yet.
                let why = self.shared.directory.why_unknown(balancer.service().clone());
                let is_early = matches!(why, PickError::NotSynced { .. });
                ServiceError::NoInstance(if is_early { why } else { error })
            }
            error => error,
        })
    }

    /// Sends a request to this instance.
    fn send(
        &self,
        request: &ServiceRequest<'_>,
        instance: &ServiceInstance,
    ) -> impl Future<Output = Result<ServiceAnswer, crate::balancer::Failure<super::RequestError>>> + use<> {
        let scheme = match instance.metadata().get("scheme") {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
            _ => "http",
        };
        let at_port = request.context.port().and_then(|port| instance.at_named_port(port));
        let address = at_port.as_ref().unwrap_or(instance).address();
        let url = format!("{scheme}://{address}{}", request.path);
        let mut builder = self
            .shared
            .client
            .request(request.method.clone(), url)
            .headers(request.headers.clone())
            .timeout(request.timeout);
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
        }
        attempt(
            builder,
            instance.id().clone(),
            request.timeout,
            self.longest_answer,
            now,
        )
    }

    fn known(&self, service: &str) -> Result<LoadBalancer, ServiceError> {
        if let Some(balancer) = self.balancer(service) {
            return Ok(balancer);
        }
        // A name that no service can have is unknown, too.
        Err(
            match service
                .parse()
                .map(|service| self.shared.directory.refuse_unknown(service))
            {
                Ok(error @ PickError::NotSynced { .. }) => ServiceError::NoInstance(error),
                _ => ServiceError::UnknownService {
                    name: service.chars().take(253).collect(),
                },
            },
        )
    }

    /// The balancer of a service, if the service is known.
    #[must_use]
    pub fn balancer(&self, service: &str) -> Option<LoadBalancer> {
        self.shared.directory.get(service)
    }

    /// All balancers.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.shared.directory
    }

    /// The state of all services: see [`Directory::overview`].
    #[must_use]
    pub fn overview(&self) -> Overview {
        self.shared.directory.overview()
    }
}

impl Shared {
    fn checks(&self) -> MutexGuard<'_, Checks> {
        // Each change is complete before the lock is released.
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a service, if checks run and the program has registered the service.
    fn add_check(&self, checks: &Checks, service: &ServiceName) {
        if !checks.registered.contains(service) {
            return;
        }
        if let (Some(running), Some(balancer)) = (&checks.running, self.directory.get(service.as_str())) {
            let check = checks.by_service.get(service).cloned();
            running.add(&balancer, check.unwrap_or(HealthCheck::Tcp));
        }
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services")
            .field("directory", &self.shared.directory)
            .finish_non_exhaustive()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a date of `Retry-After` is a date of the wall clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}
