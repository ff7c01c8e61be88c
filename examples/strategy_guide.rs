//! Which strategy fits a service: all kinds of services, with all requirements.
//!
//! ```text
//! cargo run --no-default-features --example strategy_guide
//! ```
//!
//! `pickd recommend` prints the same advice. `docs/strategies.md` says when another strategy is
//! better.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::error::Error;

use pickd::balancer::{Requirements, ServiceType, recommend_strategy};
use pickd::{Context, LoadBalancer, LoadBalancerConfig, ServiceInstance};

fn main() -> Result<(), Box<dyn Error>> {
    let none = Requirements::new();
    let all = [
        ("nothing", none),
        ("session_affinity", none.with_session_affinity()),
        ("high_throughput", none.with_high_throughput()),
    ];
    for (needs, requirements) in all {
        println!("=== A service that needs {needs} ===");
        for service_type in ServiceType::ALL {
            let recommended = recommend_strategy(service_type, requirements);
            println!("{service_type}: {} - {}", recommended.strategy, recommended.because);
        }
        println!();
    }

    // The advice is a value: a balancer is made with it.
    let strategy = recommend_strategy(ServiceType::ApiGateway, none).strategy;
    let balancer = LoadBalancer::new("gateway".parse()?, LoadBalancerConfig::new(strategy));
    balancer.add_instance(ServiceInstance::new("gateway-1", "10.0.1.10", 8080)?);
    let pick = balancer.select_instance(&Context::new())?;
    println!(
        "Picked with {}: {} at {}",
        balancer.config().strategy(),
        pick.id(),
        pick.address()
    );
    Ok(())
}
