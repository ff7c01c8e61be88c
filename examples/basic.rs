//! One service, ten requests, and the statistics of their outcomes.
//!
//! ```text
//! cargo run --no-default-features --example basic
//! ```

#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::error::Error;
use std::thread;
use std::time::Duration;

use pickd::balancer::{Clock, Monotonic};
use pickd::{Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, ServiceInstance, Weight};

fn main() -> Result<(), Box<dyn Error>> {
    let config = LoadBalancerConfig::new(LoadBalancingStrategy::RoundRobin);
    let balancer = LoadBalancer::new("user_service".parse()?, config);
    for (id, host, weight) in [
        ("user-1", "10.0.1.10", 1),
        ("user-2", "10.0.1.11", 2), // Twice the weight, which only `WeightedRoundRobin` uses.
        ("user-3", "10.0.1.12", 1),
    ] {
        balancer.add_instance(ServiceInstance::new(id, host, 8080)?.with_weight(Weight::new(weight)?));
    }

    println!("Load balancing starts ...");
    let clock = Monotonic::start();
    for number in 1..=10 {
        // The request is in flight from here on, until `finish` records its outcome.
        let request = balancer.acquire(&Context::new())?;
        let started = clock.now();
        let answer = call_user_service(&request, number);
        let outcome = match &answer {
            Ok(name) => {
                println!("Request {number}: handled by {} - {name}", request.id());
                Outcome::Success
            }
            Err(error) => {
                println!("Request {number}: failed - {error}");
                Outcome::Failure
            }
        };
        request.finish(outcome, clock.now().since(started));
    }

    let statistics = balancer.statistics();
    println!("\n=== Load balancer statistics ===");
    println!("Total requests: {}", statistics.total_requests);
    println!("Failed requests: {}", statistics.failed_requests);
    println!("Failure rate: {:.2}%", statistics.failure_rate * 100.0);
    println!(
        "Available instances: {}/{}",
        statistics.available_instances, statistics.total_instances
    );

    println!("\n=== Per instance ===");
    for (id, instance) in &statistics.instances {
        println!(
            "{id}: {} - {} requests, average response time {:.3} s",
            instance.status,
            instance.total_requests,
            instance.average_response_time.as_secs_f64()
        );
    }
    Ok(())
}

/// Stands in for a real call that takes 10 ms; one call in ten fails.
fn call_user_service(instance: &ServiceInstance, number: u32) -> Result<String, String> {
    thread::sleep(Duration::from_millis(10));
    if fastrand::u32(..10) == 0 {
        return Err(format!("{} at {} did not answer", instance.id(), instance.address()));
    }
    Ok(format!("User user{number}"))
}
