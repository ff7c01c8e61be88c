//! Several services with different strategies in one `Directory`.
//!
//! ```text
//! cargo run --no-default-features --example microservices
//! ```

#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pickd::balancer::{Clock, Environment, InvalidInstance, Monotonic, ServiceConfigs, Sources};
use pickd::{
    Context, Directory, LoadBalancerConfig, LoadBalancingStrategy, Outcome, ServiceInstance, ServiceName, Weight,
};

/// Calls the services of a shop through their balancers.
struct MicroserviceLoadBalancer {
    directory: Directory,
    clock: Monotonic,
}

impl MicroserviceLoadBalancer {
    fn new() -> Result<Self, InvalidInstance> {
        let services = BTreeMap::from([
            (
                "user-service".parse()?,
                LoadBalancerConfig::new(LoadBalancingStrategy::LeastResponseTime),
            ),
            (
                "order-service".parse()?,
                LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin),
            ),
            (
                "payment-service".parse()?,
                LoadBalancerConfig::new(LoadBalancingStrategy::RoundRobin),
            ),
        ]);
        let configs = ServiceConfigs {
            services,
            ..ServiceConfigs::default()
        };
        Ok(Self {
            // Without registries: the program registers the services.
            directory: Directory::new(configs, Sources::default(), Environment::default()),
            clock: Monotonic::start(),
        })
    }

    fn register_service(&self, service: &ServiceName, instances: impl IntoIterator<Item = ServiceInstance>) {
        self.directory.apply(service, instances.into_iter().map(Arc::new));
    }

    /// Calls an instance of the service, and records the outcome.
    fn call_service(&self, service: &str, endpoint: &str) -> Result<String, String> {
        let balancer = self
            .directory
            .get(service)
            .ok_or_else(|| format!("service {service:?} is unknown"))?;
        let request = balancer
            .acquire(&Context::new())
            .map_err(|error| format!("{service}: {error}"))?;
        let started = self.clock.now();
        let answer = http_request(&request, endpoint);
        let outcome = match answer {
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Failure,
        };
        request.finish(outcome, self.clock.now().since(started));
        answer
    }

    /// Prints a summary of all services.
    fn print_overview(&self) {
        let all: Vec<_> = self
            .directory
            .services()
            .iter()
            .map(|balancer| (balancer.service().clone(), balancer.statistics()))
            .collect();
        let total: usize = all.iter().map(|(_, statistics)| statistics.total_instances).sum();
        let healthy: usize = all.iter().map(|(_, statistics)| statistics.available_instances).sum();
        let requests: u64 = all.iter().map(|(_, statistics)| statistics.total_requests).sum();
        println!("\n=== System overview ===");
        println!("Overall health: {:.2}%", healthy as f64 / total.max(1) as f64 * 100.0);
        println!("Total instances: {total}");
        println!("Healthy instances: {healthy}");
        println!("Total requests: {requests}");
        for (service, statistics) in all {
            println!("\n{service}:");
            println!("  Strategy: {}", statistics.strategy);
            println!(
                "  Available instances: {}/{}",
                statistics.available_instances, statistics.total_instances
            );
            println!("  Total requests: {}", statistics.total_requests);
            println!("  Failure rate: {:.2}%", statistics.failure_rate * 100.0);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let balancers = MicroserviceLoadBalancer::new()?;
    balancers.register_service(
        &"user-service".parse()?,
        [
            ServiceInstance::new("user-1", "10.0.1.10", 8001)?,
            ServiceInstance::new("user-2", "10.0.1.11", 8001)?,
            ServiceInstance::new("user-3", "10.0.1.12", 8001)?.with_weight(Weight::new(2)?),
        ],
    );
    balancers.register_service(
        &"order-service".parse()?,
        [
            ServiceInstance::new("order-1", "10.0.2.10", 8002)?,
            ServiceInstance::new("order-2", "10.0.2.11", 8002)?.with_weight(Weight::new(3)?),
        ],
    );
    balancers.register_service(
        &"payment-service".parse()?,
        [
            ServiceInstance::new("payment-1", "10.0.3.10", 8003)?,
            ServiceInstance::new("payment-2", "10.0.3.11", 8003)?,
        ],
    );

    for order in 1..=10 {
        println!("=== Order {order} ===");
        if let Err(error) = process(&balancers, order) {
            println!("  failed: {error}");
        }
    }
    balancers.print_overview();
    Ok(())
}

/// Calls user, order and payment service in turn; an order without payment is cancelled.
fn process(balancers: &MicroserviceLoadBalancer, order: u32) -> Result<(), String> {
    let user = balancers.call_service("user-service", &format!("/users/{order}"))?;
    println!("  user: {user}");
    let created = balancers.call_service("order-service", "/orders")?;
    println!("  order: {created}");
    match balancers.call_service("payment-service", "/payments") {
        Ok(paid) => println!("  payment: {paid}"),
        Err(error) => {
            println!("  payment failed: {error}");
            let cancelled = balancers.call_service("order-service", &format!("/orders/{order}/cancel"))?;
            println!("  order cancelled: {cancelled}");
        }
    }
    Ok(())
}

/// Stands in for an HTTP client: a request takes 2 ms, and one request in twenty fails.
fn http_request(instance: &ServiceInstance, endpoint: &str) -> Result<String, String> {
    thread::sleep(Duration::from_millis(2));
    let url = format!("http://{}{endpoint}", instance.address());
    if fastrand::u32(..20) == 0 {
        return Err(format!("{url} answered 500"));
    }
    Ok(url)
}
