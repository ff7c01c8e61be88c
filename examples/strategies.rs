//! The same traffic under each of the six strategies: the share of each server.
//!
//! ```text
//! cargo run --no-default-features --example strategies
//! ```
//!
//! The program sends 100 requests per second for 12 s, on a clock that the program moves. The
//! servers differ in weight and in speed.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use pickd::balancer::{Clock, Environment, Manual, Timestamp};
use pickd::{
    Acquired, Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, ServiceInstance, Weight,
};

const REQUESTS: u32 = 1_200;
const EVERY: Duration = Duration::from_millis(10);

/// Id, weight, and duration of an answer.
const SERVERS: [(&str, i64, Duration); 3] = [
    ("server-1", 1, Duration::from_millis(150)),
    ("server-2", 3, Duration::from_millis(200)),
    ("server-3", 2, Duration::from_millis(250)),
];

fn main() -> Result<(), Box<dyn Error>> {
    for strategy in LoadBalancingStrategy::ALL {
        println!("=== {} ===", strategy.to_string().to_uppercase());
        for (id, count) in distribution(strategy)? {
            let percentage = f64::from(count) / f64::from(REQUESTS) * 100.0;
            println!("{id}: {count} requests ({percentage:.1}%)");
        }
        println!();
    }
    Ok(())
}

/// Sends all requests, finishes each request after the latency of its server, and counts the picks.
fn distribution(strategy: LoadBalancingStrategy) -> Result<BTreeMap<String, u32>, Box<dyn Error>> {
    let clock = Arc::new(Manual::default());
    let tools = Environment {
        clock: clock.clone(),
        ..Environment::default()
    };
    let config = LoadBalancerConfig::new(strategy);
    let balancer = LoadBalancer::with_environment("test_service".parse()?, config, tools, 0);
    for (index, (id, weight, _)) in (1..).zip(SERVERS) {
        let host = format!("10.0.1.{index}");
        balancer.add_instance(ServiceInstance::new(id, &host, 8080)?.with_weight(Weight::new(weight)?));
    }

    let mut counts = BTreeMap::new();
    let mut in_flight: Vec<(Timestamp, Duration, Acquired)> = Vec::new();
    for number in 0..REQUESTS {
        clock.advance(EVERY);
        for (_, latency, request) in in_flight.extract_if(.., |(ends, ..)| *ends <= clock.now()) {
            request.finish(Outcome::Success, latency);
        }
        // Only `consistent_hash` uses the key: 300 sessions of four requests each.
        let session = format!("session-{}", number % 300);
        let request = balancer.acquire(&Context::new().with_key(&session))?;
        let latency = SERVERS
            .iter()
            .find(|(id, ..)| *id == request.id().as_str())
            .map_or(Duration::ZERO, |(_, _, latency)| *latency);
        *counts.entry(request.id().to_string()).or_default() += 1;
        in_flight.push((clock.now() + latency, latency, request));
    }
    Ok(counts)
}
