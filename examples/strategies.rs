//! The same traffic under each of the six strategies: the share of each server.
//!
//! ```text
//! cargo run --example strategies
//! ```
//!
//! Twelve workers send 300 requests to three backends that the program starts. The backends differ
//! in weight and in speed.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

mod backends;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backends::{Answer, Backend, Result};
use pickd::{Context, LoadBalancerConfig, LoadBalancingStrategy, ServiceInstance, ServiceRequest, Services, Weight};
use serde_json::json;
use tokio::task::JoinSet;

const REQUESTS: u32 = 300;
const WORKERS: u32 = 12;

/// Id, weight, and duration of an answer.
const SERVERS: [(&str, i64, Duration); 3] = [
    ("server-1", 1, Duration::from_millis(5)),
    ("server-2", 3, Duration::from_millis(15)),
    ("server-3", 2, Duration::from_millis(60)),
];

#[tokio::main]
async fn main() -> Result<()> {
    for strategy in LoadBalancingStrategy::ALL {
        println!("=== {} ===", strategy.to_string().to_uppercase());
        for (id, count) in distribution(strategy).await? {
            let percentage = count as f64 / f64::from(REQUESTS) * 100.0;
            println!("{id}: {count} requests ({percentage:.1}%)");
        }
        println!();
    }
    Ok(())
}

/// Sends all requests, and returns how many of them each backend received.
async fn distribution(strategy: LoadBalancingStrategy) -> Result<Vec<(&'static str, u64)>> {
    let mut backends = Vec::new();
    let mut instances: Vec<ServiceInstance> = Vec::new();
    for (id, weight, latency) in SERVERS {
        let backend = Backend::start(id, move |_| Answer::ok(json!({ "server": id })).after(latency)).await?;
        instances.push(backend.instance()?.with_weight(Weight::new(weight)?));
        backends.push((id, backend));
    }
    let services = Services::new()?;
    // A slow instance keeps its weight here, so that the shares are those of the strategy alone.
    let config = LoadBalancerConfig::new(strategy).with_degraded_factor(1.0)?;
    services.register(&"test_service".parse()?, config, instances);

    let next = Arc::new(AtomicU32::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (services, next) = (services.clone(), Arc::clone(&next));
        workers.spawn(async move { work(&services, &next).await.map_err(|error| error.to_string()) });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(backends.iter().map(|(id, backend)| (*id, backend.received())).collect())
}

/// Takes the numbers of requests from the counter until none is left.
async fn work(services: &Services, next: &AtomicU32) -> Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= REQUESTS {
            return Ok(());
        }
        // Only `consistent_hash` uses the key: 100 sessions of three requests each.
        let session = format!("session-{}", number % 100);
        let request = ServiceRequest::get("/")?.with_context(Context::new().with_key(&session));
        services.call_service("test_service", request).await?;
    }
}
