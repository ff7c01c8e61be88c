//! The instances of a service that can be picked, over HTTP.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::agent::Agent;
use super::until;

/// All instances that can be picked (16 at most), address by id: one pick and all its alternates.
pub(crate) fn pool(agent: &Agent, service: &str) -> BTreeMap<String, String> {
    let answer = agent.get(&format!("/pick/{service}?n=16"));
    if answer.status != 200 {
        return BTreeMap::new();
    }
    let pick = answer.json();
    let alternates = pick["alternates"].as_array().into_iter().flatten();
    let text = |pick: &serde_json::Value, key: &str| pick[key].as_str().unwrap().to_owned();
    [&pick]
        .into_iter()
        .chain(alternates)
        .map(|pick| (text(pick, "id"), text(pick, "address")))
        .collect()
}

pub(crate) fn ids(agent: &Agent, service: &str) -> Vec<String> {
    pool(agent, service).into_keys().collect()
}

/// Waits until exactly these ids can be picked, and returns the time that this took.
pub(crate) fn until_picked(agent: &Agent, service: &str, expected: &[&str], bound: Duration) -> Duration {
    let started = Instant::now();
    until(bound, &format!("{service} is {expected:?}"), || {
        (ids(agent, service) == expected).then_some(())
    });
    started.elapsed()
}

/// The number of registered instances.
pub(crate) fn total(agent: &Agent, service: &str) -> u64 {
    let answer = agent.get(&format!("/services/{service}"));
    match answer.status {
        200 => answer.json()["total_instances"].as_u64().unwrap(),
        _ => 0,
    }
}
