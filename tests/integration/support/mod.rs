//! Support of the tests: real servers, stand-ins for faults that a real server cannot show on
//! demand, and waits with a bound.

pub(crate) mod agent;
pub(crate) mod backend;
pub(crate) mod cable;
pub(crate) mod certificates;
pub(crate) mod consul;
pub(crate) mod etcd;
pub(crate) mod fake_consul;
pub(crate) mod folder;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod metrics;
pub(crate) mod pool;
pub(crate) mod programs;
pub(crate) mod prometheus;
pub(crate) mod promql;
pub(crate) mod proxy;
pub(crate) mod services;

use std::future::Future;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Waits until the condition gives a value. Fails the test after `bound`.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    bound: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(started.elapsed() < bound, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits as `eventually` does, for a condition that needs no runtime.
pub(crate) fn until<T>(bound: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < bound, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ports without a listener at the time of the call.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    // All listeners are open at the same time, so that the ports differ.
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// Sends a signal by name, such as `TERM`, to a process that the test started.
pub(crate) fn signal(process: &Child, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(process.id().to_string())
        .status()
        .unwrap();
    assert!(status.success(), "kill -{name}");
}
