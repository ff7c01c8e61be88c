//! One service: three backends, active checks, ten calls with retries, and the statistics.
//!
//! ```text
//! cargo run --example basic
//! ```
//!
//! The backends are HTTP servers that the program starts. `user-2` answers its third request with
//! status 500: the call goes on to another instance, and still has its answer.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

mod backends;

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use backends::{Answer, Backend, Result, until, user};
use pickd::balancer::Failure;
use pickd::http_client;
use pickd::probe::{HealthCheck, HttpCheck};
use pickd::{HealthChecks, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, ServiceInstance, Weight};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<()> {
    let config = LoadBalancerConfig::new(LoadBalancingStrategy::RoundRobin)
        .with_health_check_interval(Duration::from_secs(10))?
        .with_max_retries(2)?;
    let balancer = LoadBalancer::new("user_service".parse()?, config);

    let works = |received: backends::Received<'_>| Answer::ok(user(&received)).after(Duration::from_millis(10));
    let fails_once = move |received: backends::Received<'_>| match received.number {
        3 => Answer::status(StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": "out of luck" })),
        _ => works(received),
    };
    let backends = [
        Backend::start("user-1", works).await?,
        Backend::start("user-2", fails_once).await?,
        Backend::start("user-3", works).await?,
    ];
    // Twice the weight, which only `WeightedRoundRobin` uses.
    let weights = [1, 2, 1];
    for (backend, weight) in backends.iter().zip(weights) {
        balancer.add_instance(backend.instance()?.with_weight(Weight::new(weight)?));
    }

    let checks = HealthChecks::start_with(&balancer, HealthCheck::Http(HttpCheck::new("/healthz")?));
    until("check of each instance", || balancer.checks().passed == 3).await?;
    println!("Load balancing starts ...");

    let client = http_client::client(Duration::from_secs(5), &http_client::Tls::default())?;
    for number in 1..=10 {
        // The closure runs once for each attempt, with another instance each time.
        let answer = balancer
            .call(|instance| call_user_service(client.clone(), instance.address().to_string(), number, instance))
            .await;
        match answer {
            Ok((name, instance)) => println!("Request {number}: handled by {} - {name}", instance.id()),
            Err(error) => println!("Request {number}: failed - {error}"),
        }
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

    println!("\n=== Received by the backends ===");
    for (backend, id) in backends.iter().zip(statistics.instances.keys()) {
        println!("{id}: {} requests", backend.received());
    }
    checks.stop().await;
    Ok(())
}

type Answered = (String, Arc<ServiceInstance>);

/// Asks one instance. What the error says decides whether the call is tried again: a connection
/// that was refused sent nothing, and `?` makes every other error a failure of the instance.
async fn call_user_service(
    client: reqwest::Client,
    address: String,
    number: u32,
    instance: Arc<ServiceInstance>,
) -> std::result::Result<Answered, Failure<reqwest::Error>> {
    let sent = client.get(format!("http://{address}/users/{number}")).send().await;
    let response = match sent {
        Err(error) if error.is_connect() => return Err(Failure::NotSent(error)),
        sent => sent?.error_for_status()?,
    };
    let user: Value = response.json().await?;
    Ok((user["name"].as_str().unwrap_or("no name").to_owned(), instance))
}
