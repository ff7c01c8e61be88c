//! A shop of three services: every order asks for the user, creates the order and pays for it. An
//! order that is not paid is cancelled.
//!
//! ```text
//! cargo run --example microservices
//! ```
//!
//! The backends are HTTP servers that the program starts. The card of order 4 is refused (402): a
//! client error, which no other instance would answer better. `payment-1` fails (500) at its fourth
//! request: a payment must not be made twice, so the call is not tried again.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

mod backends;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use backends::{Answer, Backend, Received, Result, until, user};
use pickd::client::ServiceAnswer;
use pickd::probe::{HealthCheck, HttpCheck};
use pickd::{LoadBalancerConfig, LoadBalancingStrategy, ServiceRequest, Services, Weight};
use serde_json::{Value, json};

/// The database of the order service: the state of each order, shared by its instances.
type Orders = Arc<Mutex<BTreeMap<u64, &'static str>>>;

#[tokio::main]
async fn main() -> Result<()> {
    let orders = Orders::default();
    let users = [
        Backend::start("user-1", |received| Answer::ok(user(&received))).await?,
        Backend::start("user-2", |received| Answer::ok(user(&received))).await?,
        Backend::start("user-3", |received| Answer::ok(user(&received))).await?,
    ];
    let order_servers = [
        Backend::start("order-1", order_service(&orders)).await?,
        Backend::start("order-2", order_service(&orders)).await?,
    ];
    let payments = [
        Backend::start("payment-1", |received| pay(&received, 4)).await?,
        Backend::start("payment-2", |received| pay(&received, u64::MAX)).await?,
    ];

    let services = Services::new()?;
    for name in ["user-service", "order-service", "payment-service"] {
        services.set_health_check(&name.parse()?, HealthCheck::Http(HttpCheck::new("/healthz")?));
    }
    let [user_1, user_2, user_3] = &users;
    services.register(
        &"user-service".parse()?,
        LoadBalancerConfig::new(LoadBalancingStrategy::LeastResponseTime)
            .with_health_check_interval(Duration::from_secs(15))?,
        [
            user_1.instance()?,
            user_2.instance()?,
            user_3.instance()?.with_weight(Weight::new(2)?), // A larger machine.
        ],
    );
    let [order_1, order_2] = &order_servers;
    services.register(
        &"order-service".parse()?,
        LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin)
            .with_health_check_interval(Duration::from_secs(20))?
            .with_max_retries(3)?,
        [order_1.instance()?, order_2.instance()?.with_weight(Weight::new(3)?)],
    );
    let [payment_1, payment_2] = &payments;
    services.register(
        &"payment-service".parse()?,
        LoadBalancerConfig::new(LoadBalancingStrategy::RoundRobin)
            .with_health_check_interval(Duration::from_secs(10))?
            .with_max_consecutive_failures(2)?,
        [payment_1.instance()?, payment_2.instance()?],
    );
    services.start_health_checks();
    until("check of each instance", || checked(&services) == 7).await?;

    for number in 1..=10 {
        println!("=== Order {number} ===");
        if let Err(error) = process(&services, number).await {
            println!("  failed: {error}");
        }
    }

    println!("\n=== Orders ===");
    for (number, state) in orders.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("order {number}: {state}");
    }
    print_overview(&services);
    let unknown = services.call_service("mail-service", ServiceRequest::get("/")?).await;
    if let Err(error) = unknown {
        println!("\n{error}");
    }
    services.stop_health_checks().await;
    Ok(())
}

/// Calls user, order and payment service in turn. An order that is not paid is cancelled.
async fn process(services: &Services, number: u64) -> Result<()> {
    let request = ServiceRequest::get(&format!("/users/{number}"))?.with_timeout(Duration::from_secs(5));
    let user = services.call_service("user-service", request).await?;
    println!("  user: {}", body(&user)?["name"]);

    let request = ServiceRequest::post("/orders")?
        .with_json(&json!({ "user_id": number, "items": [{ "product": "item1", "qty": 1 }] }))?
        .with_timeout(Duration::from_secs(10));
    let order = body(&services.call_service("order-service", request).await?)?["order_id"].clone();
    println!("  order: {order}");

    let request = ServiceRequest::post("/payments")?
        .with_json(&json!({ "order_id": order, "amount": 100.0 }))?
        .with_timeout(Duration::from_secs(15));
    match services.call_service("payment-service", request).await {
        Ok(payment) => println!("  paid: {}", body(&payment)?["paid"]),
        Err(error) => {
            let status = error
                .status()
                .map_or_else(|| "none".to_owned(), |status| status.to_string());
            println!("  payment failed: status {status}, attempts {}", error.tried().len());
            // The compensating transaction. It may be repeated: a second cancel changes nothing.
            let request = ServiceRequest::post(&format!("/orders/{order}/cancel"))?.with_idempotent(true);
            let cancelled = services.call_service("order-service", request).await?;
            println!("  cancelled: order {}", body(&cancelled)?["order_id"]);
        }
    }
    Ok(())
}

fn body(answer: &ServiceAnswer) -> Result<Value> {
    Ok(answer.json()?)
}

/// `POST /orders` creates an order, `POST /orders/{number}/cancel` cancels it.
fn order_service(orders: &Orders) -> impl Fn(Received<'_>) -> Answer + Send + Sync + 'static {
    let orders = Arc::clone(orders);
    move |received| {
        let mut orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
        let parts: Vec<&str> = received.path.split('/').skip(1).collect();
        let number = match parts[..] {
            ["orders"] => {
                let number = orders.len() as u64 + 1;
                orders.insert(number, "created");
                number
            }
            ["orders", number, "cancel"] => {
                let known = number
                    .parse()
                    .ok()
                    .and_then(|number| orders.get_mut(&number).map(|it| (number, it)));
                let Some((number, state)) = known else {
                    return Answer::status(StatusCode::NOT_FOUND, json!({ "error": "no such order" }));
                };
                *state = "cancelled";
                number
            }
            _ => return Answer::status(StatusCode::NOT_FOUND, json!({ "error": "no such path" })),
        };
        Answer::ok(json!({ "order_id": number }))
    }
}

/// Takes the money, but for order 4, and but for the request of this number.
fn pay(received: &Received<'_>, failing: u64) -> Answer {
    let order = received.body["order_id"].as_u64();
    if order == Some(4) {
        return Answer::status(StatusCode::PAYMENT_REQUIRED, json!({ "error": "the card is refused" }));
    }
    if received.number == failing {
        return Answer::status(StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": "out of order" }));
    }
    Answer::ok(json!({ "order_id": order, "paid": received.body["amount"] }))
}

/// Active checks that passed, of all services.
fn checked(services: &Services) -> u64 {
    services
        .directory()
        .services()
        .iter()
        .map(|balancer| balancer.checks().passed)
        .sum()
}

fn print_overview(services: &Services) {
    let overview = services.overview();
    println!("\n=== System overview ===");
    println!("Overall health: {:.2}%", overview.overall_health * 100.0);
    println!("Total instances: {}", overview.total_instances);
    println!("Healthy instances: {}", overview.healthy_instances);
    println!("Total requests: {}", overview.total_requests);
    println!("Total failures: {}", overview.total_failures);
    for (name, service) in &overview.services {
        println!("\n{name}:");
        println!("  Strategy: {}", service.strategy);
        println!(
            "  Available instances: {}/{}",
            service.available_instances, service.total_instances
        );
        println!("  Total requests: {}", service.total_requests);
        println!("  Failure rate: {:.2}%", service.failure_rate * 100.0);
    }
}
