//! Active checks: pickd asks instances whether they are healthy, and tells the core.
//!
//! ```text
//! agent: ProbeHandle::set(service, plan, addresses) ──► Schedule ──► one task a check
//!                                                          ▲              │
//!                                                          └── finished ──┤ Check, duration
//!                                                                         ▼
//!                     LoadBalancer::observe ◄── the agent's callback ─────┘
//! ```
//!
//! [`schedule`] decides which target is checked next, and is pure. [`connect`] makes connections,
//! to allowed addresses only. [`http`], [`tcp`] and [`grpc`] ask. The core decides how many failed
//! checks count, and what follows.
//!
//! Knows nothing of registries, of pickd's own HTTP interface and of pools: services, addresses
//! and plans come in, results go out. The files import only downwards: `mod`, then `schedule` and
//! `http`, `tcp`, `grpc`, then `connect`, then `settings`.

mod connect;
mod grpc;
mod http;
mod schedule;
mod settings;
mod tcp;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::balancer::{Address, Check, CheckFailure, Clock, Monotonic, ServiceName};

pub use settings::{HealthCheck, HttpCheck, InvalidCheck, Plan, ProbeSettings};

pub use connect::{TrialConnection, attempt};

use connect::{ConnectError, Resolver};
use grpc::GrpcTarget;
use http::HttpTarget;
use schedule::{Job, Schedule, TargetId};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The service.
    pub service: ServiceName,
    /// The address that was checked.
    pub address: Address,
    /// The result.
    pub check: Check,
    /// How long the check took.
    pub took: Duration,
}

/// Called with every result, in the order in which the results arrive. Never called for a target
/// that was removed before.
pub type OnChecked = Arc<dyn Fn(Checked) + Send + Sync>;

/// Checks instances as long as it runs. The constructor starts nothing.
pub struct Prober {
    shared: Arc<Shared>,
    on_checked: OnChecked,
    resolver: Resolver,
    clock: Arc<Monotonic>,
    /// The most connections that are kept between checks. Other parts of pickd need files, too.
    max_kept: usize,
}

/// Sets the targets of a prober, from anywhere.
#[derive(Clone, Debug)]
pub struct ProbeHandle {
    shared: Arc<Shared>,
    clock: Arc<Monotonic>,
}

#[derive(Debug)]
struct Shared {
    schedule: Mutex<Schedule>,
    changed: Notify,
}

impl Shared {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        // Each change is complete before the lock is released.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prober").finish_non_exhaustive()
    }
}

impl ProbeHandle {
    /// Sets the addresses of a service that are checked, and how; without a plan, no address is
    /// checked. Takes all addresses each time: an address that stays keeps its place in the
    /// schedule. Does not block.
    pub fn set(&self, service: &ServiceName, plan: Option<&Plan>, addresses: impl IntoIterator<Item = Address>) {
        let now = self.clock.now();
        self.shared.schedule().set(service, plan, addresses, now);
        self.shared.changed.notify_one();
    }

    /// Sets the limits of all checks together.
    pub fn configure(&self, settings: ProbeSettings) {
        self.shared.schedule().configure(settings);
        self.shared.changed.notify_one();
    }
}

impl Prober {
    /// A prober without targets.
    #[must_use]
    pub fn new(settings: ProbeSettings, clock: Arc<Monotonic>, on_checked: OnChecked) -> Self {
        let shared = Shared {
            schedule: Mutex::new(Schedule::new(settings, clock.now())),
            changed: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
            on_checked,
            resolver: Resolver::default(),
            clock,
            max_kept: open_files() / 2,
        }
    }

    /// A handle that sets the targets.
    #[must_use]
    pub fn handle(&self) -> ProbeHandle {
        ProbeHandle {
            shared: Arc::clone(&self.shared),
            clock: Arc::clone(&self.clock),
        }
    }

    /// Runs checks until stopped. Checks that run at that time are dropped.
    pub async fn run(self, stop: CancellationToken) {
        let work = async {
            let mut running = Running::default();
            loop {
                // The connections to removed targets are not needed any more.
                for id in self.shared.schedule().take_removed() {
                    running.kept.remove(&id);
                }
                while let Some(job) = self.next() {
                    running.start(job, &self.resolver);
                }
                let next = self.shared.schedule().next(self.clock.now());
                let wait = next.map(|next| next.since(self.clock.now()));
                tokio::select! {
                    () = self.shared.changed.notified() => {}
                    Some(ended) = running.tasks.join_next_with_id() => self.finish(&mut running, ended),
                    () = time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    fn next(&self) -> Option<Job> {
        self.shared.schedule().take(self.clock.now())
    }

    fn finish(&self, running: &mut Running, ended: Result<(Id, Ended), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(job) = running.jobs.remove(&id) else { return };
        // Under the lock, so that there is no result for a target after its removal.
        let mut schedule = self.shared.schedule();
        let is_target = schedule.finished(job.id, fastrand::f64(), self.clock.now());
        match ended {
            Ok((_, ended)) => {
                let result = ended.result;
                if let Err(number) = result {
                    // The kept connections may use the resource that is missing.
                    running.kept.clear();
                    running.log_local_failure(number);
                } else {
                    running.lacks_resources = false;
                }
                if let (true, Ok(check)) = (is_target, result) {
                    if running.kept.len() < self.max_kept {
                        running.kept.insert(job.id, ended.connection);
                    }
                    (self.on_checked)(Checked {
                        service: job.service,
                        address: job.address,
                        check,
                        took: ended.took,
                    });
                }
            }
            Err(error) => tracing::error!(service = %job.service, address = %job.address, %error, "check task failed"),
        }
    }
}

/// Checks in progress, and what is kept of targets between checks.
#[derive(Default)]
struct Running {
    tasks: JoinSet<Ended>,
    jobs: HashMap<Id, Job>,
    kept: HashMap<TargetId, Kept>,
    /// Whether a lack of resources on this host was logged and still lasts.
    lacks_resources: bool,
}

/// What is kept of a target between two checks, for the same kind of check.
enum Kept {
    Nothing,
    Http(HttpTarget),
    Grpc(GrpcTarget),
}

struct Ended {
    /// The answer of the instance, or the number of the system's error if this host lacks a
    /// resource. Such an error says nothing about the instance.
    result: Result<Check, i32>,
    took: Duration,
    connection: Kept,
}

impl Running {
    fn log_local_failure(&mut self, number: i32) {
        if !std::mem::replace(&mut self.lacks_resources, true) {
            let error = std::io::Error::from_raw_os_error(number);
            tracing::error!(%error, "checks cannot run: this host lacks files, ports or memory");
        }
    }

    fn start(&mut self, job: Job, resolver: &Resolver) {
        let kept = self.kept.remove(&job.id).unwrap_or(Kept::Nothing);
        let task = self.tasks.spawn(check(job.clone(), kept, resolver.clone()));
        self.jobs.insert(task.id(), job);
    }
}

/// How many files this process may open; 1,024, a common default, if that cannot be read.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    soft.unwrap_or(1_024)
}

/// Makes one check, within its timeout.
async fn check(job: Job, mut kept: Kept, resolver: Resolver) -> Ended {
    let started = time::Instant::now();
    let deadline = started + job.plan.timeout();
    let asked = ask(&job, &mut kept, &resolver, deadline);
    let result = match time::timeout_at(deadline, asked).await {
        Ok(Ok(())) => Ok(Check::Pass),
        Ok(Err(ConnectError::Instance(failure))) => Ok(Check::Fail(failure)),
        Ok(Err(ConnectError::Local(number))) => Err(number),
        Err(_) => Ok(Check::Fail(CheckFailure::Timeout)),
    };
    if result == Ok(Check::Fail(CheckFailure::Timeout)) {
        // A half-finished exchange on this connection would disturb the next check.
        kept = Kept::Nothing;
    }
    Ended {
        result,
        took: started.elapsed(),
        connection: kept,
    }
}

async fn ask(job: &Job, kept: &mut Kept, resolver: &Resolver, deadline: time::Instant) -> Result<(), ConnectError> {
    let (address, denied) = (&job.address, &job.plan.denied);
    match &*job.plan.check {
        HealthCheck::Tcp => tcp::check(address, denied, resolver, deadline).await,
        HealthCheck::Http(check) => {
            if !matches!(kept, Kept::Http(_)) {
                *kept = Kept::Http(HttpTarget::default());
            }
            match kept {
                Kept::Http(target) => target.check(check, address, denied, resolver, deadline).await,
                Kept::Nothing | Kept::Grpc(_) => Err(CheckFailure::ConnectionFailed.into()),
            }
        }
        HealthCheck::Grpc { service } => {
            if !matches!(kept, Kept::Grpc(_)) {
                *kept = Kept::Grpc(GrpcTarget::new(address, denied, resolver, job.plan.timeout())?);
            }
            match kept {
                Kept::Grpc(target) => target.check(service).await,
                Kept::Nothing | Kept::Http(_) => Err(CheckFailure::ConnectionFailed.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
