//! What the tests stand on: real servers, stand-ins for what real ones cannot be made to do, and waiting with a bound.

pub(crate) mod agent;
pub(crate) mod backend;
pub(crate) mod cable;
pub(crate) mod consul;
pub(crate) mod etcd;
pub(crate) mod fake_consul;
pub(crate) mod folder;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod metrics;
pub(crate) mod pool;
pub(crate) mod programs;
pub(crate) mod proxy;

use std::future::Future;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// Tries until the condition gives a value, and fails the test when it has not within `bound`.
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

/// The same for conditions that need no runtime.
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

/// Ports that nobody listened on a moment ago.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    // All held at once, so that they differ.
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}
