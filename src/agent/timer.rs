//! The one timer of the core: calls `Directory::advance` when it is due, and passes on the news.
//!
//! ```text
//! core: "due earlier", "news" ──► Timer ──► Directory::advance ──► time of the next call
//!                                             └─► take_changed ──► transitions: log lines
//!                                                              └─► checks: instances to check
//! prober: result of a check ──► LoadBalancer::observe, at once
//! ```

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::balancer::{Clock, Directory, Monotonic, Wake};

use super::checks::CheckPlans;
use super::transitions;

/// Wakes the task that advances the core.
#[derive(Debug, Default)]
pub(super) struct Timer(Notify);

impl Wake for Timer {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Advances the core whenever it is due. Sleeps while nothing is due.
pub(super) async fn advance(
    directory: Arc<Directory>,
    clock: Arc<Monotonic>,
    timer: Arc<Timer>,
    plans: Arc<CheckPlans>,
    stop: CancellationToken,
) {
    let advance = async {
        // A previous task may have ended in the middle of a call.
        directory.wake_all();
        loop {
            let next = directory.advance(clock.now());
            for balancer in directory.take_changed() {
                let service = balancer.service();
                for transition in balancer.take_transitions() {
                    transitions::log_health(service, &transition);
                }
                for ended in balancer.take_ended() {
                    transitions::log_ended_override(service, &ended);
                }
                plans.update(&balancer);
            }
            match next {
                Some(next) => tokio::select! {
                    () = timer.0.notified() => {}
                    () = time::sleep(next.since(clock.now())) => {}
                },
                None => timer.0.notified().await,
            }
        }
    };
    stop.run_until_cancelled(advance).await;
}
