//! The three presets of active checks, and how many failed checks take an instance out with each.
//!
//! ```text
//! cargo run --example health_presets
//! ```
//!
//! For each preset the program starts a backend whose `/healthz` turns from 200 to 503. The
//! intervals are those of the presets divided by 50, so that the program ends soon.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

mod backends;

use backends::{Answer, Backend, Result, until};
use pickd::balancer::Preset;
use pickd::probe::{HealthCheck, HttpCheck};
use pickd::{HealthChecks, LoadBalancer, LoadBalancerConfig};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    for preset in Preset::ALL {
        let config = LoadBalancerConfig::default().with_preset(preset);
        println!(
            "{}: a check every {:?}, timeout {:?}, out after failures: {}",
            preset.as_str(),
            config.health_check_interval(),
            config.health_check_timeout(),
            config.max_consecutive_failures()
        );

        let interval = config.health_check_interval() / 50;
        let balancer = LoadBalancer::new(preset.as_str().parse()?, config.with_health_check_interval(interval)?);
        let sick = Backend::start("sick", |_| Answer::ok(json!({}))).await?;
        let sound = Backend::start("sound", |_| Answer::ok(json!({}))).await?;
        balancer.add_instance(sick.instance()?);
        balancer.add_instance(sound.instance()?);
        let checks = HealthChecks::start_with(&balancer, HealthCheck::Http(HttpCheck::new("/healthz")?));
        until("check of each instance", || balancer.checks().passed >= 2).await?;

        sick.set_healthy(false);
        until("instance taken out", || balancer.statistics().available_instances == 1).await?;
        println!(
            "{}: taken out after failed checks: {}",
            preset.as_str(),
            balancer.checks().failed
        );
        sick.set_healthy(true);
        until("instance taken back", || balancer.statistics().available_instances == 2).await?;
        println!("{}: taken back\n", preset.as_str());
        checks.stop().await;
    }
    Ok(())
}
