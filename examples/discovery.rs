//! Discovery in the program: Consul or etcd feeds the pools, and the pools stay after the stop.
//!
//! ```text
//! cargo run --example discovery consul http://127.0.0.1:8500
//! cargo run --example discovery etcd http://127.0.0.1:2379
//! ```
//!
//! The program starts two backends and registers them, as a deployment would. It calls them by the
//! name of their service, removes one from the registry, and removes the other at the end.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

mod backends;

use std::time::Duration;

use backends::{Answer, Backend, Result, until, user};
use pickd::agent::EmbeddedAgent;
use pickd::{ServiceRequest, Services, http_client};
use serde_json::json;

const SERVICE: &str = "example-user-service";

/// A registry that the program writes to.
enum Registry {
    Consul {
        client: reqwest::Client,
        address: String,
    },
    Etcd {
        client: Box<etcd_client::Client>,
        address: String,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut registry = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["consul", address] => Registry::Consul {
            client: http_client::client(Duration::from_secs(5), &http_client::Tls::default())?,
            address: address.to_owned(),
        },
        ["etcd", address] => Registry::Etcd {
            client: Box::new(etcd_client::Client::connect([address], None).await?),
            address: address.to_owned(),
        },
        _ => return Err("usage: discovery consul|etcd ADDRESS, such as http://127.0.0.1:8500".into()),
    };
    let first = Backend::start("user-1", |received| Answer::ok(user(&received))).await?;
    let second = Backend::start("user-2", |received| Answer::ok(user(&received))).await?;
    registry.register("user-1", &first).await?;
    registry.register("user-2", &second).await?;
    let shown = show(&mut registry, [&first, &second]).await;
    // Nothing stays in the registry, whatever happened.
    registry.deregister("user-1").await?;
    registry.deregister("user-2").await?;
    shown
}

async fn show(registry: &mut Registry, [first, second]: [&Backend; 2]) -> Result<()> {
    let agent = EmbeddedAgent::start(registry.config().parse()?)?;
    agent.wait_until_synced(Duration::from_secs(10)).await?;
    let services = Services::over(agent.directory())?;
    let available = || {
        services
            .overview()
            .service(SERVICE)
            .map_or(0, |service| service.available_instances)
    };
    until("pool of two", || available() == 2).await?;
    println!("Discovered: {} instances", available());
    call(&services, 10).await?;
    println!(
        "user-1 received {}, user-2 received {}",
        first.received(),
        second.received()
    );

    registry.deregister("user-2").await?;
    until("pool of one", || available() == 1).await?;
    let before = (first.received(), second.received());
    call(&services, 10).await?;
    println!("\nAfter user-2 left the registry: {} instance", available());
    println!(
        "user-1 received {}, user-2 received {}",
        first.received() - before.0,
        second.received() - before.1
    );

    agent.stop().await?;
    registry.deregister("user-1").await?;
    call(&services, 10).await?;
    println!("\nAfter the stop of discovery: {} instance", available());
    Ok(())
}

async fn call(services: &Services, times: usize) -> Result<()> {
    for number in 1..=times {
        let request = ServiceRequest::get(&format!("/users/{number}"))?;
        services.call_service(SERVICE, request).await?;
    }
    Ok(())
}

impl Registry {
    /// What the agent reads from the registry.
    fn config(&self) -> String {
        match self {
            Self::Consul { address, .. } => format!("[consul]\naddress = {address:?}"),
            Self::Etcd { address, .. } => format!("[etcd]\nendpoints = [{address:?}]"),
        }
    }

    async fn register(&mut self, id: &str, backend: &Backend) -> Result<()> {
        let address = backend.address();
        match self {
            Self::Consul {
                client,
                address: consul,
            } => {
                let definition = json!({
                    "ID": id, "Name": SERVICE, "Address": address.ip().to_string(), "Port": address.port()
                });
                let request = client
                    .put(format!("{consul}/v1/agent/service/register"))
                    .json(&definition);
                request.send().await?.error_for_status()?;
            }
            Self::Etcd { client, .. } => {
                client
                    .put(format!("/services/{SERVICE}/{id}"), address.to_string(), None)
                    .await?;
            }
        }
        Ok(())
    }

    /// Removes an instance. An instance that is not registered is no error.
    async fn deregister(&mut self, id: &str) -> Result<()> {
        match self {
            Self::Consul { client, address } => {
                let response = client
                    .put(format!("{address}/v1/agent/service/deregister/{id}"))
                    .send()
                    .await?;
                if response.status() != reqwest::StatusCode::NOT_FOUND {
                    response.error_for_status()?;
                }
            }
            Self::Etcd { client, .. } => {
                client.delete(format!("/services/{SERVICE}/{id}"), None).await?;
            }
        }
        Ok(())
    }
}
