//! Active checks for balancers of a program: the prober of the agent, in a task of its own.
//!
//! ```text
//! add, remove, changes of a balancer ──► noted ──► task: plan and addresses ──► Prober
//! LoadBalancer::observe_timed ◄── result of a check ───────────────────────────────┘
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::balancer::{LoadBalancer, Monotonic, ServiceName, Wake};
use crate::probe::{Checked, HealthCheck, Plan, ProbeHandle, ProbeSettings, Prober};

/// Active checks of the instances of one balancer or of several, in a tokio task.
///
/// Interval, timeout, and how many failures take an instance out, are settings of each balancer:
/// `health_check_interval`, `health_check_timeout`, `max_consecutive_failures` and `rise`. A
/// balancer with `health_check_enabled = false` is not checked. Instances and settings that change
/// are followed at once. A new instance is checked at once.
///
/// ```
/// use std::time::Duration;
///
/// use pickd::probe::{HealthCheck, HttpCheck};
/// use pickd::{Context, HealthChecks, LoadBalancer, LoadBalancerConfig, ServiceInstance};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let port = listener.local_addr()?.port();
/// let config = LoadBalancerConfig::default().with_health_check_interval(Duration::from_secs(10))?;
/// let balancer = LoadBalancer::new("user-service".parse()?, config);
/// balancer.add_instance(ServiceInstance::new("user-1", "127.0.0.1", port)?);
/// balancer.add_instance(ServiceInstance::new("user-2", "127.0.0.1", 1)?); // No process listens there.
///
/// // The instances are asked whether they accept connections. To ask for a status instead:
/// // HealthChecks::start_with(&balancer, HealthCheck::Http(HttpCheck::new("/healthz")?))
/// let checks = HealthChecks::start(&balancer);
/// while balancer.checks().passed + balancer.checks().failed < 2 {
///     tokio::time::sleep(Duration::from_millis(5)).await;
/// }
/// assert_eq!(balancer.select_instance(&Context::new())?.id().as_str(), "user-1");
/// checks.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Checks end with [`stop`](Self::stop), or when the value is dropped. Their results are forgotten
/// then, so that an instance that was down can be picked again: no check would bring it back.
///
/// A balancer belongs to one `HealthChecks` at a time, and to none if an agent checks its service.
#[must_use = "checks stop when this is dropped"]
pub struct HealthChecks {
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl HealthChecks {
    /// Starts checks of whether the instances of a balancer accept TCP connections.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(balancer: &LoadBalancer) -> Self {
        Self::start_with(balancer, HealthCheck::Tcp)
    }

    /// Starts checks of the instances of a balancer, such as an HTTP check.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start_with(balancer: &LoadBalancer, check: HealthCheck) -> Self {
        let checks = Self::start_empty(ProbeSettings::default());
        checks.add(balancer, check);
        checks
    }

    /// Starts without balancers, which [`add`](Self::add) adds. The settings are the limits of all
    /// checks together.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start_empty(settings: ProbeSettings) -> Self {
        let shared = Arc::new(Shared::default());
        let observed = Arc::clone(&shared);
        let observe = move |checked: Checked| observed.observe(&checked);
        let prober = Prober::new(settings, Arc::new(Monotonic::start()), Arc::new(observe));
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(Arc::clone(&shared), prober, stop.clone()));
        Self {
            shared,
            stop,
            task: Some(task),
        }
    }

    /// Checks this balancer, too, or in another way than before. A balancer of another name is
    /// another balancer; a second balancer of a name replaces the first.
    pub fn add(&self, balancer: &LoadBalancer, check: HealthCheck) {
        let service = balancer.service().clone();
        let change: Arc<dyn Wake> = Arc::new(Change {
            shared: Arc::downgrade(&self.shared),
            service: service.clone(),
        });
        balancer.on_change(Arc::downgrade(&change));
        let target = Target {
            balancer: balancer.clone(),
            check: Arc::new(check),
            _on_change: change,
        };
        let mut state = self.shared.lock();
        if let Some(before) = state.targets.insert(service.clone(), target)
            && !Arc::ptr_eq(&before.balancer.shared, &balancer.shared)
        {
            state.left.push(before.balancer);
        }
        drop(state);
        self.shared.note(&service);
    }

    /// Checks the balancer of this name no longer, and forgets the results.
    pub fn remove(&self, service: &ServiceName) {
        let mut state = self.shared.lock();
        let Some(removed) = state.targets.remove(service) else {
            return;
        };
        state.left.push(removed.balancer);
        drop(state);
        self.shared.note(service);
    }

    /// Stops all checks, and forgets the results. Checks in progress are dropped: no result comes
    /// after this call.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "health checks ended unexpectedly");
        }
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for HealthChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthChecks")
            .field("services", &self.shared.lock().targets.len())
            .finish_non_exhaustive()
    }
}

/// What the task and the program share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    noted: Mutex<BTreeSet<ServiceName>>,
}

#[derive(Default)]
struct State {
    targets: HashMap<ServiceName, Target>,
    /// Balancers that are not checked any more, and whose results are to be forgotten.
    left: Vec<LoadBalancer>,
}

/// A balancer that is checked.
struct Target {
    balancer: LoadBalancer,
    check: Arc<HealthCheck>,
    _on_change: Arc<dyn Wake>,
}

/// A note that a service is to be looked at: its instances, its settings or its health have changed.
struct Change {
    shared: Weak<Shared>,
    service: ServiceName,
}

impl Wake for Change {
    fn wake(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.note(&self.service);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete before the lock is released.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, service: &ServiceName) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.insert(service.clone()) {
            self.changed.notify_one();
        }
    }

    fn take_noted(&self) -> BTreeSet<ServiceName> {
        mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn balancer(&self, service: &ServiceName) -> Option<LoadBalancer> {
        self.lock().targets.get(service).map(|target| target.balancer.clone())
    }

    fn observe(&self, checked: &Checked) {
        if let Some(balancer) = self.balancer(&checked.service) {
            balancer.observe_timed(&checked.address, checked.check, checked.took);
            // A recovery has steps that follow with time.
            self.note(&checked.service);
        }
    }
}

/// Runs the prober, and keeps it up to date with the balancers.
async fn run(shared: Arc<Shared>, prober: Prober, stop: CancellationToken) {
    // Dropped in any case: when stopped, on a panic, and with the runtime.
    let _forget = ForgetResults(Arc::clone(&shared));
    let handle = prober.handle();
    let mut sent = HashMap::new();
    let follow = async {
        let mut deadlines: HashMap<ServiceName, time::Instant> = HashMap::new();
        loop {
            let now = time::Instant::now();
            let mut due = shared.take_noted();
            due.extend(
                deadlines
                    .iter()
                    .filter(|(_, at)| **at <= now)
                    .map(|(service, _)| service.clone()),
            );
            for service in due {
                deadlines.remove(&service);
                update(&shared, &handle, &mut sent, &service);
                // Requests do what is due in a balancer without a timer. A program may only select
                // instances, and must see the results of checks, too.
                let next = shared.balancer(&service).and_then(|balancer| balancer.keep_up());
                if let Some(next) = next {
                    deadlines.insert(service, time::Instant::now() + next.max(LEAST_WAIT));
                }
            }
            let next = deadlines.values().min().copied();
            tokio::select! {
                () = shared.changed.notified() => {}
                () = time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    };
    tokio::select! {
        () = prober.run(stop) => {}
        () = follow => {}
    }
}

/// The least time between two looks at a balancer whose next step is due.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// What the prober has of a service: the number of changes of its instances, and the plan. `None`
/// if that does not count any more.
type Sent = Option<(u64, Plan)>;

/// Sends the instances of a service to the prober, if they or the plan have changed.
fn update(shared: &Shared, prober: &ProbeHandle, sent: &mut HashMap<ServiceName, Sent>, service: &ServiceName) {
    let mut state = shared.lock();
    let left = mem::take(&mut state.left);
    let target = state.targets.get(service);
    let target = target.map(|target| (target.balancer.clone(), Arc::clone(&target.check)));
    drop(state);
    for balancer in &left {
        // A balancer in place of this one may have the same number of changes.
        sent.insert(balancer.service().clone(), None);
    }
    let plan = target.as_ref().and_then(|(balancer, check)| plan(balancer, check));
    match (&target, plan) {
        (Some((balancer, _)), Some(plan)) => {
            let next = Some((balancer.generation(), plan.clone()));
            if sent.get(service) != Some(&next) {
                prober.set(service, Some(&plan), balancer.addresses_to_check());
                sent.insert(service.clone(), next);
            }
        }
        (target, _) if sent.remove(service).is_some() => {
            prober.set(service, None, []);
            if let Some((balancer, _)) = target {
                balancer.forget_checks();
            }
        }
        _ => {}
    }
    left.iter().for_each(LoadBalancer::forget_checks);
}

/// How the instances of a balancer are checked; `None` if its settings say not at all.
fn plan(balancer: &LoadBalancer, check: &Arc<HealthCheck>) -> Option<Plan> {
    let config = balancer.config();
    config.health_check_enabled().then(|| Plan {
        check: Arc::clone(check),
        interval: config.health_check_interval(),
        timeout: config.health_check_timeout(),
        denied: config.denied().clone(),
    })
}

/// Forgets the results of all checks when dropped.
struct ForgetResults(Arc<Shared>);

impl Drop for ForgetResults {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let targets = mem::take(&mut state.targets);
        let left = mem::take(&mut state.left);
        drop(state);
        let balancers = targets.into_values().map(|target| target.balancer);
        balancers.chain(left).for_each(|balancer| balancer.forget_checks());
    }
}
