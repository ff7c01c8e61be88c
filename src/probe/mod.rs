//! Active checks: instances are asked whether they are well, and the core is told.
//!
//! ```text
//! agent: ProbeHandle::set(service, plan, addresses) ──► Schedule ──► one task a check: http, tcp or grpc
//!                                                          ▲              │ Check, and how long it took
//!                                                          └── finished ──┴──► the agent's callback ──► LoadBalancer::observe
//! ```
//!
//! [`schedule`] says whose turn it is and is pure; [`connect`] makes connections, to allowed addresses only; [`http`], [`tcp`] and
//! [`grpc`] ask. How often a check must fail until it counts is the core's to decide, and what becomes of it too.
//!
//! Knows nothing of registries, of HTTP's front door and of pools: services, addresses and plans come in, results go out.

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

use connect::{Resolver, Trouble};
use grpc::GrpcTarget;
use http::HttpTarget;
use schedule::{Job, Schedule, TargetId};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The service.
    pub service: ServiceName,
    /// The address that was asked.
    pub address: Address,
    /// What came of it.
    pub check: Check,
    /// How long it took.
    pub took: Duration,
}

/// Told of every result, in the order in which they arrive; never of a target that was taken back before.
pub type OnChecked = Arc<dyn Fn(Checked) + Send + Sync>;

/// Checks instances for as long as it runs. Made without starting anything.
pub struct Prober {
    shared: Arc<Shared>,
    on_checked: OnChecked,
    resolver: Resolver,
    clock: Arc<Monotonic>,
    /// Connections kept between checks, at most: others need files, too.
    most_kept: usize,
}

/// Tells a prober whom to check, from anywhere.
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
        // Written in whole steps.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prober").finish_non_exhaustive()
    }
}

impl ProbeHandle {
    /// Makes these the addresses of a service that are checked, as planned; without a plan none is. Says the whole each time:
    /// those that stay keep their turns. Does not block.
    pub fn set(&self, service: &ServiceName, plan: Option<&Plan>, addresses: impl IntoIterator<Item = Address>) {
        let now = self.clock.now();
        self.shared.schedule().set(service, plan, addresses, now);
        self.shared.changed.notify_one();
    }

    /// Sets how much is checked in all.
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
            most_kept: open_files() / 2,
        }
    }

    /// Tells it whom to check.
    #[must_use]
    pub fn handle(&self) -> ProbeHandle {
        ProbeHandle {
            shared: Arc::clone(&self.shared),
            clock: Arc::clone(&self.clock),
        }
    }

    /// Checks until stopped; checks that run then are given up.
    pub async fn run(self, stop: CancellationToken) {
        let work = async {
            let mut running = Running::default();
            loop {
                // Their connections are of no use any more.
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
        // Under the lock: whoever takes a target back hears nothing of it afterwards.
        let mut schedule = self.shared.schedule();
        let is_target = schedule.finished(job.id, fastrand::f64(), self.clock.now());
        match ended {
            Ok((_, ended)) => {
                let result = ended.result;
                if let Err(number) = result {
                    // What is kept may be what is missing.
                    running.kept.clear();
                    running.own_trouble(number);
                } else {
                    running.in_trouble = false;
                }
                if let (true, Ok(check)) = (is_target, result) {
                    if running.kept.len() < self.most_kept {
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
            Err(error) => tracing::error!(service = %job.service, address = %job.address, %error, "a check broke off"),
        }
    }
}

/// Checks under way, and what is kept of targets between them.
#[derive(Default)]
struct Running {
    tasks: JoinSet<Ended>,
    jobs: HashMap<Id, Job>,
    kept: HashMap<TargetId, Kept>,
    /// We are out of something ourselves, and have said so.
    in_trouble: bool,
}

/// What is kept of a target between two checks, which is only good for the same question.
enum Kept {
    Nothing,
    Http(HttpTarget),
    Grpc(GrpcTarget),
}

struct Ended {
    /// What the instance answered; or the system's number for what we are out of ourselves, which says nothing of it.
    result: Result<Check, i32>,
    took: Duration,
    connection: Kept,
}

impl Running {
    fn own_trouble(&mut self, number: i32) {
        if !std::mem::replace(&mut self.in_trouble, true) {
            let error = std::io::Error::from_raw_os_error(number);
            tracing::error!(%error, "checks cannot be made, and say nothing until they can");
        }
    }

    fn start(&mut self, job: Job, resolver: &Resolver) {
        let kept = self.kept.remove(&job.id).unwrap_or(Kept::Nothing);
        let task = self.tasks.spawn(check(job.clone(), kept, resolver.clone()));
        self.jobs.insert(task.id(), job);
    }
}

/// How many files this process may have open; where that cannot be read, what most systems begin with.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    soft.unwrap_or(1_024)
}

/// Makes one check, within its time.
async fn check(job: Job, mut kept: Kept, resolver: Resolver) -> Ended {
    let started = time::Instant::now();
    let deadline = started + job.plan.timeout();
    let asked = ask(&job, &mut kept, &resolver, deadline);
    let result = match time::timeout_at(deadline, asked).await {
        Ok(Ok(())) => Ok(Check::Pass),
        Ok(Err(Trouble::Instance(failure))) => Ok(Check::Fail(failure)),
        Ok(Err(Trouble::Own(number))) => Err(number),
        Err(_) => Ok(Check::Fail(CheckFailure::Timeout)),
    };
    if result == Ok(Check::Fail(CheckFailure::Timeout)) {
        // Whatever is half done on it would be in the way of the next one.
        kept = Kept::Nothing;
    }
    Ended {
        result,
        took: started.elapsed(),
        connection: kept,
    }
}

async fn ask(job: &Job, kept: &mut Kept, resolver: &Resolver, deadline: time::Instant) -> Result<(), Trouble> {
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
