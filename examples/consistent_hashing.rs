//! Users stay with their server; only the users of a server that leaves move.
//!
//! ```text
//! cargo run --no-default-features --example consistent_hashing
//! ```

#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use pickd::{
    ConsistentHash, Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, PickError, ServiceInstance,
    Weight,
};

fn main() -> Result<(), Box<dyn Error>> {
    // Without slow start, an instance that joins or returns has all of its keys at once.
    let config = LoadBalancerConfig::new(LoadBalancingStrategy::ConsistentHash).with_slow_start(Duration::ZERO)?;
    let balancer = LoadBalancer::new("session_service".parse()?, config);
    for (id, host) in [
        ("cache-1", "10.0.1.20"),
        ("cache-2", "10.0.1.21"),
        ("cache-3", "10.0.1.22"),
    ] {
        balancer.add_instance(ServiceInstance::new(id, host, 6379)?);
    }

    println!("=== Consistent hashing ===");
    let users: Vec<String> = (1..=5).map(|number| format!("user{number}")).collect();
    let before = placed(&balancer, &users)?;
    for (user, server) in &before {
        println!("{user} -> {server}");
    }

    println!("\nAfter cache-2 was removed:");
    balancer.remove_instance(&"cache-2".parse()?);
    let after = placed(&balancer, &users)?;
    for (user, server) in &after {
        match before.get(user) {
            Some(old) if old != server => println!("{user}: {old} -> {server} (moved)"),
            _ => println!("{user}: {server} (stays)"),
        }
    }
    println!("\nMoved users: {}", moved(&before, &after));

    println!("\nAfter cache-4 was added:");
    balancer.add_instance(ServiceInstance::new("cache-4", "10.0.1.23", 6379)?);
    let grown = placed(&balancer, &users)?;
    for (user, server) in &grown {
        println!("{user} -> {server}");
    }
    println!("\nMoved users: {}", moved(&after, &grown));

    println!("\nWith 10,000 users:");
    let many: Vec<String> = (1..=10_000).map(|number| format!("user{number}")).collect();
    let all = placed(&balancer, &many)?;
    let on_cache_1 = all.values().filter(|server| *server == "cache-1").count();
    balancer.remove_instance(&"cache-1".parse()?);
    let without = placed(&balancer, &many)?;
    println!("Users of cache-1: {on_cache_1}");
    println!("Users that moved when cache-1 was removed: {}", moved(&all, &without));
    balancer.add_instance(ServiceInstance::new("cache-1", "10.0.1.20", 6379)?);
    let returned = placed(&balancer, &many)?;
    println!(
        "Users elsewhere than before, after cache-1 returned: {}",
        moved(&all, &returned)
    );
    ring_alone()
}

/// The ring without a balancer: ids and weights in, owners of keys out.
fn ring_alone() -> Result<(), Box<dyn Error>> {
    println!("\nThe ring alone, with a shard of twice the weight:");
    let mut shards = ConsistentHash::new();
    for (id, weight) in [("shard-1", 1), ("shard-2", 1), ("shard-3", 2)] {
        shards.add(id.parse()?, Weight::new(weight)?);
    }
    for (id, share) in shards.shares() {
        println!("{id}: {:.1}% of all keys", share * 100.0);
    }
    let owners: Vec<String> = shards.owners("user-42").map(ToString::to_string).collect();
    println!("user-42: {}", owners.join(", then "));
    let owner = owners.first().ok_or("the ring is empty")?;
    shards.remove(owner);
    let heir = shards.owner("user-42").ok_or("the ring is empty")?;
    println!("user-42 without {owner}: {heir}");
    Ok(())
}

/// The server that each user is sent to.
fn placed(balancer: &LoadBalancer, users: &[String]) -> Result<BTreeMap<String, String>, PickError> {
    let server = |user: &String| {
        let session = format!("session_{user}");
        let pick = balancer.select_instance(&Context::new().with_key(&session))?;
        Ok((user.clone(), pick.id().to_string()))
    };
    users.iter().map(server).collect()
}

fn moved(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let moved = before
        .iter()
        .filter(|(user, server)| after.get(*user) != Some(*server))
        .count();
    let percentage = moved as f64 / before.len().max(1) as f64 * 100.0;
    format!("{moved}/{} ({percentage:.1}%)", before.len())
}
