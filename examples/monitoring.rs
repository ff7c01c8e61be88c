//! Alerts on three thresholds: availability, failure rate and response time of all services.
//!
//! ```text
//! cargo run --example monitoring
//! ```
//!
//! The program starts the backends, and asks twice: while all is well, and after one instance has
//! stopped, one fails, and one is slow.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

mod backends;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use backends::{Answer, Backend, Received, Result, until};
use pickd::{LoadBalancerConfig, ServiceRequest, Services};
use serde_json::json;

/// The limits that are watched.
struct Thresholds {
    /// The least share of instances that can be picked.
    availability: f64,
    /// The highest share of failed requests of a service.
    failure_rate: f64,
    /// The longest mean response time of an instance.
    response_time: Duration,
}

const THRESHOLDS: Thresholds = Thresholds {
    availability: 0.95,
    failure_rate: 0.05,
    response_time: Duration::from_millis(100),
};

struct Alert {
    severity: &'static str,
    metric: &'static str,
    message: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    // Every backend changes its behaviour when the trouble begins.
    let trouble = Arc::new(AtomicBool::new(false));
    let behaviour = |in_trouble: fn() -> Answer| {
        let trouble = Arc::clone(&trouble);
        move |_: Received<'_>| match trouble.load(Ordering::Relaxed) {
            true => in_trouble(),
            false => Answer::ok(json!({})),
        }
    };
    let works = || Answer::ok(json!({}));
    let fails = || Answer::status(StatusCode::INTERNAL_SERVER_ERROR, json!({}));
    let is_slow = || Answer::ok(json!({})).after(Duration::from_millis(400));
    let user_1 = Backend::start("user-1", behaviour(is_slow)).await?;
    let order_1 = Backend::start("order-1", behaviour(fails)).await?;
    let payment_1 = Backend::start("payment-1", behaviour(works)).await?;
    let payment_2 = Backend::start("payment-2", behaviour(works)).await?;

    let services = Services::new()?;
    let config = LoadBalancerConfig::default().with_health_check_interval(Duration::from_millis(100))?;
    services.register(&"user-service".parse()?, config.clone(), [user_1.instance()?]);
    services.register(&"order-service".parse()?, config.clone(), [order_1.instance()?]);
    services.register(
        &"payment-service".parse()?,
        config,
        [payment_1.instance()?, payment_2.instance()?],
    );
    services.start_health_checks();

    call_all(&services, 10).await?;
    println!("=== All is well ===");
    report(&services);

    trouble.store(true, Ordering::Relaxed);
    payment_2.stop().await?;
    until("loss of payment-2", || services.overview().healthy_instances == 3).await?;
    call_all(&services, 5).await?;
    println!("\n=== In trouble ===");
    report(&services);

    services.stop_health_checks().await;
    Ok(())
}

/// Calls each service; failures are what this program watches for.
async fn call_all(services: &Services, times: usize) -> Result<()> {
    for _ in 0..times {
        for name in ["user-service", "order-service", "payment-service"] {
            let _failed = services.call_service(name, ServiceRequest::get("/")?).await;
        }
    }
    Ok(())
}

fn report(services: &Services) {
    let alerts = alerts(services);
    println!("Alerts: {}", alerts.len());
    for alert in alerts {
        println!("{} {}: {}", alert.severity, alert.metric, alert.message);
    }
}

/// What is beyond its threshold now. A program calls this every few seconds; a Prometheus asks the
/// agent for the same numbers at `/metrics`.
fn alerts(services: &Services) -> Vec<Alert> {
    let overview = services.overview();
    let mut alerts = Vec::new();
    if overview.overall_health < THRESHOLDS.availability {
        alerts.push(Alert {
            severity: "critical",
            metric: "availability",
            message: format!(
                "{:.2}% of the instances can be picked, threshold {:.2}%",
                overview.overall_health * 100.0,
                THRESHOLDS.availability * 100.0
            ),
        });
    }
    for (name, service) in &overview.services {
        if service.failure_rate > THRESHOLDS.failure_rate {
            alerts.push(Alert {
                severity: "warning",
                metric: "failure_rate",
                message: format!("{name} fails in {:.2}% of its requests", service.failure_rate * 100.0),
            });
        }
        let Some(balancer) = services.balancer(name.as_str()) else {
            continue;
        };
        for (id, instance) in balancer.statistics().instances {
            if instance.average_response_time > THRESHOLDS.response_time {
                alerts.push(Alert {
                    severity: "warning",
                    metric: "response_time",
                    message: format!(
                        "{id} of {name} answers in {} ms",
                        instance.average_response_time.as_millis()
                    ),
                });
            }
        }
    }
    alerts
}
