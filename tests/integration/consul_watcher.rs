//! The Consul watcher against a real Consul, and against a stand-in for faults that a real Consul
//! cannot show on demand.
//!
//! "Scenario n" is a row of `scenarios.md`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pickd::ServiceInstance;
use pickd::balancer::{Clock, Monotonic, RegistryStatus, SourceStatus};
use pickd::discovery::consul::{ConsulSettings, ConsulWatcher, Names, SOURCE, Token};
use pickd::discovery::{Reason, Trust, Update, WatchError, Watcher};
use serde_json::json;

use crate::support::consul::Consul;
use crate::support::fake_consul::{FakeConsul, Fault, entry};
use crate::support::proxy::Proxy;

/// Bound for events that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// Bound for events that wait for a timer of the watcher.
pub(crate) const LATER: Duration = Duration::from_secs(30);

/// A watcher and its updates.
pub(crate) struct Watched {
    watcher: ConsulWatcher,
    pub(crate) status: Arc<SourceStatus>,
    clock: Arc<Monotonic>,
    pub(crate) picks: Arc<Mutex<HashMap<String, u64>>>,
    /// Instances by id of each service, by the last update. `AdditionsOnly` removes no instance.
    pub(crate) view: BTreeMap<String, BTreeMap<String, ServiceInstance>>,
    pub(crate) updates: Vec<Update>,
    pub(crate) errors: Vec<WatchError>,
}

impl Watched {
    pub(crate) fn new(settings: ConsulSettings) -> Self {
        let names = settings.services.clone();
        let status = Arc::new(SourceStatus::new(
            SOURCE,
            true,
            Box::new(move |name| names.matches(name)),
        ));
        let clock = Arc::new(Monotonic::start());
        let picks = Arc::new(Mutex::new(HashMap::<String, u64>::new()));
        let interest = {
            let picks = Arc::clone(&picks);
            Arc::new(move |name: &pickd::ServiceName| picks.lock().unwrap().get(name.as_str()).copied().unwrap_or(0))
        };
        let watcher = ConsulWatcher::new(settings, Arc::clone(&status), clock.clone(), interest).unwrap();
        Self {
            watcher,
            status,
            clock,
            picks,
            view: BTreeMap::new(),
            updates: Vec::new(),
            errors: Vec::new(),
        }
    }

    pub(crate) fn at(address: String) -> Self {
        Self::new(ConsulSettings::new(address))
    }

    /// Runs until the condition holds, and returns the time that this took. Fails after `bound`.
    pub(crate) async fn until(&mut self, bound: Duration, what: &str, condition: impl Fn(&Self) -> bool) -> Duration {
        let started = Instant::now();
        while !condition(self) {
            let left = bound.saturating_sub(started.elapsed());
            assert!(
                !left.is_zero(),
                "not within {bound:?}: {what}; view {:#?}, errors {:?}",
                self.lines(),
                self.errors
            );
            // The future is cancelled often, as by a busy supervisor; no update may be lost.
            match tokio::time::timeout(left.min(Duration::from_millis(300)), self.watcher.next()).await {
                Err(_) => {}
                Ok(Ok(update)) => self.apply(update),
                Ok(Err(error)) => {
                    self.status.lost(self.clock.now(), &error);
                    self.errors.push(error);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        started.elapsed()
    }

    /// Runs for this time.
    pub(crate) async fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.until(time + SOON, "the clock", |_| Instant::now() >= end).await;
    }

    pub(crate) async fn synced(&mut self) {
        self.until(LATER, "synced", |watched| watched.updates.contains(&Update::Synced))
            .await;
    }

    /// Runs until all services are read with `Trust::Steady`, so that no further update is due.
    pub(crate) async fn settled(&mut self) {
        self.settled_but(&[]).await;
    }

    /// The same without these services, which fail.
    pub(crate) async fn settled_but(&mut self, failing: &[&str]) {
        self.synced().await;
        self.until(LATER, "second looks", |watched| {
            watched
                .view
                .keys()
                .filter(|name| !failing.contains(&name.as_str()))
                .all(|name| watched.last_trust(name) == Some(Trust::Steady))
        })
        .await;
    }

    fn apply(&mut self, update: Update) {
        match &update {
            Update::Service(reading) => {
                let known = self.view.entry(reading.service.to_string()).or_default();
                if reading.trust != Trust::AdditionsOnly {
                    known.clear();
                }
                known.extend(
                    reading
                        .instances
                        .iter()
                        .map(|instance| (instance.id().to_string(), instance.clone())),
                );
            }
            Update::Gone { service, trust, .. } => {
                if *trust != Trust::AdditionsOnly {
                    self.view.remove(service.as_str());
                }
            }
            Update::Synced => {}
        }
        self.updates.push(update);
    }

    pub(crate) fn instance(&self, service: &str, id: &str) -> Option<&ServiceInstance> {
        self.view.get(service)?.get(id)
    }

    pub(crate) fn ids(&self, service: &str) -> Vec<&str> {
        self.view
            .get(service)
            .into_iter()
            .flatten()
            .map(|(id, _)| id.as_str())
            .collect()
    }

    pub(crate) fn last_trust(&self, service: &str) -> Option<Trust> {
        self.trusts(service).pop()
    }

    /// The trust of each update of a service.
    pub(crate) fn trusts(&self, service: &str) -> Vec<Trust> {
        let trust = |update: &Update| match update {
            Update::Service(reading) if reading.service.as_str() == service => Some(reading.trust),
            Update::Gone {
                service: gone, trust, ..
            } if gone.as_str() == service => Some(*trust),
            _ => None,
        };
        self.updates.iter().filter_map(trust).collect()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |(name, instances): (&String, &BTreeMap<String, ServiceInstance>)| {
            let each = |i: &ServiceInstance| {
                format!(
                    "{}={} {} w{}",
                    i.id(),
                    i.address(),
                    i.registry_status(),
                    i.weight().get()
                )
            };
            format!(
                "{name}: {}",
                instances.values().map(each).collect::<Vec<_>>().join(", ")
            )
        };
        self.view.iter().map(line).collect()
    }

    pub(crate) fn errors_of(&self, reason: Reason) -> u64 {
        self.status.errors().get(reason.as_str()).copied().unwrap_or(0)
    }

    /// The first update that left a service without instances.
    pub(crate) fn emptied(&self) -> Option<&Update> {
        self.updates.iter().find(|update| match update {
            Update::Service(reading) => reading.instances.is_empty(),
            Update::Gone { .. } => true,
            Update::Synced => false,
        })
    }
}

// ---- A real Consul ----------------------------------------------------------------------------

#[tokio::test]
async fn what_is_registered_changed_and_deregistered_is_seen_at_once() {
    let consul = Consul::start().await;
    consul
        .register(
            "a",
            "web",
            "w1",
            8001,
            json!({ "Tags": ["v1"], "Meta": { "zone": "x" } }),
        )
        .await;
    let mut watched = Watched::at(consul.address());
    watched.settled().await;
    let first = watched.instance("web", "w1@a").unwrap();
    assert_eq!(first.address().as_str(), "10.0.0.1:8001");
    assert_eq!(first.registry_status(), RegistryStatus::Passing);
    assert!(first.has_tag("v1"));
    assert_eq!(first.metadata().get("zone").map(AsRef::as_ref), Some("x"));
    assert_eq!(watched.ids("consul"), Vec::<&str>::new(), "consul itself is left out");

    consul
        .register("b", "web", "w2", 8002, json!({ "Address": "::1" }))
        .await;
    let mut took = watched
        .until(SOON, "a second instance", |w| w.instance("web", "w2@b").is_some())
        .await;
    assert_eq!(
        watched.instance("web", "w2@b").unwrap().address().as_str(),
        "[::1]:8002"
    );
    consul
        .register(
            "b",
            "web",
            "w2",
            8002,
            json!({ "Weights": { "Passing": 7, "Warning": 2 } }),
        )
        .await;
    took = took.max(
        watched
            .until(SOON, "a weight", |w| {
                w.instance("web", "w2@b").unwrap().weight().get() == 7
            })
            .await,
    );
    consul.register("b", "web", "w2", 8003, json!({})).await;
    took = took.max(
        watched
            .until(SOON, "a port", |w| w.instance("web", "w2@b").unwrap().port() == 8003)
            .await,
    );
    consul.register("b", "web", "w2", 8003, json!({ "Tags": ["v2"] })).await;
    took = took.max(
        watched
            .until(SOON, "a tag", |w| w.instance("web", "w2@b").unwrap().has_tag("v2"))
            .await,
    );
    consul.register("b", "other", "o1", 9000, json!({})).await;
    took = took.max(
        watched
            .until(SOON, "a new service", |w| w.ids("other") == ["o1@b"])
            .await,
    );
    consul.deregister("b", Some("w2")).await;
    took = took.max(
        watched
            .until(SOON, "a deregistration", |w| w.ids("web") == ["w1@a"])
            .await,
    );
    consul.deregister("b", Some("o1")).await;
    took = took.max(
        watched
            .until(SOON, "the last of a service", |w| !w.view.contains_key("other"))
            .await,
    );
    assert_eq!(watched.last_trust("other"), Some(Trust::Steady));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(
        watched.errors.is_empty() && watched.status.errors().is_empty(),
        "{:?}",
        watched.errors
    );
}

/// Scenarios 21 and 22.
#[tokio::test]
async fn checks_maintenance_and_weights_are_followed() {
    let consul = Consul::start().await;
    let ttl = |weights: serde_json::Value, meta: serde_json::Value| {
        json!({ "Name": "web", "ID": "w1", "Port": 80, "Address": "10.0.0.9", "Weights": weights, "Meta": meta,
                "Check": { "CheckID": "ttl", "TTL": "10m", "Status": "passing" } })
    };
    consul
        .put(
            "/v1/agent/service/register",
            ttl(json!({ "Passing": 10, "Warning": 2 }), json!({})),
        )
        .await;
    let mut watched = Watched::at(consul.address());
    watched.settled().await;
    let is =
        |status: RegistryStatus| move |w: &Watched| w.instance("web", "w1@server").unwrap().registry_status() == status;
    let mut slowest = Duration::ZERO;
    for (path, status) in [
        ("/v1/agent/check/fail/ttl", RegistryStatus::Critical),
        ("/v1/agent/check/pass/ttl", RegistryStatus::Passing),
        ("/v1/agent/check/warn/ttl", RegistryStatus::Warning),
        (
            "/v1/agent/service/maintenance/w1?enable=true",
            RegistryStatus::Maintenance,
        ),
        ("/v1/agent/service/maintenance/w1?enable=false", RegistryStatus::Warning),
        ("/v1/agent/maintenance?enable=true", RegistryStatus::Maintenance),
        ("/v1/agent/maintenance?enable=false", RegistryStatus::Warning),
        ("/v1/agent/check/pass/ttl", RegistryStatus::Passing),
    ] {
        consul.put(path, json!(null)).await;
        slowest = slowest.max(watched.until(SOON, path, is(status)).await);
        let instance = watched.instance("web", "w1@server").unwrap();
        assert_eq!(
            (instance.weight().get(), instance.warning_weight().map(|w| w.get())),
            (10, Some(2)),
            "{path}"
        );
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");

    let warning = |weight: Option<u16>| {
        move |w: &Watched| {
            w.instance("web", "w1@server")
                .unwrap()
                .warning_weight()
                .map(|w| w.get())
                == weight
        }
    };
    consul
        .put(
            "/v1/agent/service/register",
            ttl(json!({ "Passing": 10, "Warning": 0 }), json!({})),
        )
        .await;
    watched
        .until(SOON, "a warning weight that drains", warning(Some(0)))
        .await;
    consul
        .put(
            "/v1/agent/service/register",
            ttl(json!({ "Passing": 1, "Warning": 1 }), json!({ "weight": "5" })),
        )
        .await;
    watched.until(SOON, "default weights", warning(None)).await;
    assert_eq!(
        watched.instance("web", "w1@server").unwrap().weight().get(),
        5,
        "Meta.weight counts then"
    );
}

#[tokio::test]
async fn a_unix_socket_is_as_good_as_a_port() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", directory.path().join("http.sock").display());
    let consul = Consul::start_with(json!({ "addresses": { "http": format!("127.0.0.1 {socket}") } })).await;
    consul.register("a", "web", "w1", 80, json!({})).await;
    let mut settings = ConsulSettings::new(socket);
    settings.datacenter = Some(String::from("dc1"));
    let mut watched = Watched::new(settings);
    watched.settled().await;
    assert_eq!(watched.ids("web"), ["w1@a"]);
    consul.register("a", "web", "w2", 81, json!({})).await;
    watched.until(SOON, "a change", |w| w.ids("web").len() == 2).await;
}

/// Scenario 24.
#[tokio::test]
async fn one_id_on_two_nodes_is_two_instances_and_a_node_takes_its_own_along() {
    let consul = Consul::start().await;
    consul.register("a", "web", "w1", 80, json!({})).await;
    consul.register("b", "web", "w1", 80, json!({})).await;
    let mut watched = Watched::at(consul.address());
    watched.settled().await;
    assert_eq!(watched.ids("web"), ["w1@a", "w1@b"]);
    consul.check("b", "", "node", "critical", "").await;
    let down = |w: &Watched| w.instance("web", "w1@b").unwrap().registry_status() == RegistryStatus::Critical;
    watched.until(SOON, "a check of the node", down).await;
    assert_eq!(
        watched.instance("web", "w1@a").unwrap().registry_status(),
        RegistryStatus::Passing
    );
    consul.deregister("b", None).await;
    watched.until(SOON, "a node gone", |w| w.ids("web") == ["w1@a"]).await;
    consul.deregister("a", None).await;
    watched
        .until(SOON, "the last node gone", |w| !w.view.contains_key("web"))
        .await;
}

/// Scenario 9: the long poll of the old name misses the change.
#[tokio::test]
async fn an_instance_that_moves_to_another_service_leaves_the_old_one() {
    let consul = Consul::start().await;
    consul.register("a", "old", "r1", 1, json!({})).await;
    consul.register("b", "old", "r2", 2, json!({})).await;
    consul.register("c", "known", "k1", 3, json!({})).await;
    let mut watched = Watched::at(consul.address());
    watched.settled().await;
    consul.register("a", "new", "r1", 1, json!({})).await;
    let took = watched
        .until(SOON, "into a new service", |w| {
            w.ids("old") == ["r2@b"] && w.ids("new") == ["r1@a"]
        })
        .await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    consul.register("b", "known", "r2", 2, json!({})).await;
    watched
        .until(LATER, "into a known service", |w| {
            !w.view.contains_key("old") && w.ids("known") == ["k1@c", "r2@b"]
        })
        .await;
    // The view stays right when the poll returns with its old body, after more than five seconds.
    watched.run_for(Duration::from_secs(7)).await;
    assert!(!watched.view.contains_key("old"), "{:?}", watched.lines());
}

#[tokio::test]
async fn a_hundred_services_are_chosen_by_glob() {
    let consul = Consul::start().await;
    for i in 0..100 {
        consul
            .register("a", &format!("team-{i}"), &format!("t{i}"), 1000 + i, json!({}))
            .await;
    }
    for name in ["team-secret", "other", "bad//name"] {
        consul.register("a", name, name, 80, json!({})).await;
    }
    let mut settings = ConsulSettings::new(consul.address());
    settings.services = Names::new(&["team-*", "bad*"], &["team-secret", "team-99"]).unwrap();
    let mut watched = Watched::new(settings);
    let took = watched
        .until(LATER, "synced", |w| w.updates.contains(&Update::Synced))
        .await;
    assert_eq!(watched.view.len(), 99, "{:?}", watched.lines());
    assert!(!watched.view.contains_key("team-99") && !watched.view.contains_key("other"));
    assert_eq!(
        watched.errors_of(Reason::InvalidInstance),
        1,
        "a name that cannot be asked for"
    );
    assert_eq!(
        watched
            .updates
            .iter()
            .filter(|update| **update == Update::Synced)
            .count(),
        1
    );
    println!("100 services synced after {took:?}");
}

/// Scenario 18: connections stay bounded, and all services are seen.
#[tokio::test]
async fn more_services_than_polls_are_read_in_turn_over_few_connections() {
    let consul = Consul::start().await;
    for i in 0..30 {
        consul
            .register("a", &format!("s{i:02}"), &format!("i{i}"), 1000 + i, json!({}))
            .await;
    }
    let proxy = Proxy::to(consul.port()).await;
    let mut settings = ConsulSettings::new(proxy.address());
    settings.max_watches = 8;
    let mut watched = Watched::new(settings);
    watched.settled().await;
    assert_eq!(watched.view.len(), 30);
    for i in 0..30 {
        consul
            .register("a", &format!("s{i:02}"), &format!("i{i}"), 2000 + i, json!({}))
            .await;
    }
    let moved = |w: &Watched| {
        w.view
            .values()
            .flat_map(|instances| instances.values())
            .all(|i| i.port() >= 2000)
    };
    // The catalog wakes, and then all services without a poll are read, before the next sweep.
    let took = watched.until(Duration::from_secs(12), "all changes", moved).await;
    println!("all 30 changes seen after {took:?}");
    for i in 15..30 {
        consul.deregister("a", Some(&format!("i{i}"))).await;
    }
    watched
        .until(Duration::from_secs(12), "half of them gone", |w| w.view.len() == 15)
        .await;
    // At most 8 + 4 requests run at once. At times a connection opens while another becomes idle.
    assert!(proxy.most_connections() <= 8 + 4 + 6, "{}", proxy.most_connections());
    println!(
        "30 services, 8 polls: {} connections at most, {} requests",
        proxy.most_connections(),
        proxy.requests()
    );
}

#[tokio::test]
async fn services_without_polls_are_read_in_turn_and_picked_services_get_polls() {
    let consul = Consul::start().await;
    for i in 0..20 {
        consul
            .register("a", &format!("s{i:02}"), &format!("i{i}"), 1000 + i, json!({}))
            .await;
        consul
            .check("a", &format!("i{i}"), &format!("c{i}"), "passing", "")
            .await;
    }
    let mut settings = ConsulSettings::new(consul.address());
    settings.max_watches = 4;
    let mut watched = Watched::new(settings);
    watched.settled().await;
    // A check does not wake the catalog: only a poll or a sweep shows the change.
    consul.check("a", "i19", "c19", "critical", "").await;
    let down = |i: usize| {
        move |w: &Watched| {
            w.instance(&format!("s{i:02}"), &format!("i{i}@a"))
                .unwrap()
                .registry_status()
                == RegistryStatus::Critical
        }
    };
    let swept = watched.until(Duration::from_secs(12), "a sweep", down(19)).await;
    watched.picks.lock().unwrap().insert(String::from("s18"), 1000);
    // The first polls are short, so that a slot becomes free; the ranking runs every ten seconds.
    watched.run_for(Duration::from_secs(22)).await;
    consul.check("a", "i18", "c18", "critical", "").await;
    let polled = watched.until(Duration::from_secs(12), "a poll", down(18)).await;
    assert!(polled < Duration::from_secs(1), "{polled:?}");
    println!("without a poll {swept:?}, with one {polled:?}");
}

/// Scenarios 1, 3 and 8.
#[tokio::test]
async fn a_consul_that_is_down_at_first_or_killed_later_empties_nothing() {
    let mut consul = Consul::not_started();
    let mut watched = Watched::at(consul.address());
    watched.until(SOON, "an error", |w| w.errors.len() >= 2).await;
    assert_eq!(watched.errors[0].reason, Reason::Unreachable, "{:?}", watched.errors);
    assert!(watched.updates.is_empty());
    consul.restart().await;
    for i in 1..=3 {
        consul.register("a", "web", &format!("w{i}"), 8000 + i, json!({})).await;
    }
    consul.register("a", "api", "a1", 9000, json!({})).await;
    watched.settled().await;
    assert_eq!(watched.ids("web").len(), 3);

    consul.kill();
    let before = watched.updates.len();
    let errors = watched.errors.len();
    watched.until(SOON, "the loss", |w| w.errors.len() > errors).await;
    watched.run_for(Duration::from_secs(2)).await;
    assert!(!watched.status.is_up());
    consul.restart().await;
    watched
        .until(LATER, "both looks", |w| {
            ["web", "api"].iter().all(|name| {
                w.trusts(name).ends_with(&[Trust::AfterGap, Trust::Steady]) && w.updates.len() >= before + 4
            })
        })
        .await;
    assert!(watched.status.is_up());
    assert_eq!(watched.emptied(), None);
    assert_eq!(watched.ids("web").len(), 3);
    // A disconnection is one error for all its polls, since the backoff grows with each error.
    let told = watched.errors.len() - errors;
    assert!(told <= 40, "{told}");
}

/// Scenario 11: a server that restarts empty. The removals are reported twice, first with
/// `Trust::AfterLoss`, then with `Trust::Steady`.
#[tokio::test]
async fn after_a_loss_of_all_data_the_drop_is_told_twice() {
    let mut consul = Consul::start().await;
    for i in 0..5 {
        consul.register("a", "web", &format!("w{i}"), 8000 + i, json!({})).await;
    }
    consul.register("a", "api", "a1", 9000, json!({})).await;
    let mut watched = Watched::at(consul.address());
    watched.settled().await;
    consul.kill();
    consul.wipe();
    consul.restart().await;
    consul.register("a", "web", "w0", 8000, json!({})).await;
    let both = |w: &Watched| {
        ["web", "api"]
            .iter()
            .all(|name| w.trusts(name).last() == Some(&Trust::Steady))
            && w.ids("web") == ["w0@a"]
            && !w.view.contains_key("api")
    };
    watched.until(LATER, "both looks", both).await;
    // For five seconds, no update about the drop was `Trust::Steady`.
    let gone: Vec<_> = watched
        .updates
        .iter()
        .filter_map(|update| match update {
            Update::Gone {
                service,
                read_at,
                trust,
            } if service.as_str() == "api" => Some((*trust, *read_at)),
            _ => None,
        })
        .collect();
    let [(Trust::AfterLoss, first), (Trust::Steady, second)] = gone[..] else {
        panic!("{gone:?}")
    };
    assert!(
        second.since(first) >= pickd::discovery::CONFIRM_AFTER,
        "{:?}",
        second.since(first)
    );
    assert!(watched.trusts("web").contains(&Trust::AfterLoss));
}

/// Scenario 10: the long polls wake with the state before the snapshot.
#[tokio::test]
async fn a_restored_snapshot_is_read_and_not_what_the_polls_remember() {
    let consul = Consul::start().await;
    for i in 0..4 {
        consul.register("a", "web", &format!("w{i}"), 8000 + i, json!({})).await;
    }
    let snapshot = consul.snapshot().await;
    for i in 4..20 {
        consul.register("a", "web", &format!("w{i}"), 8000 + i, json!({})).await;
    }
    let mut watched = Watched::at(consul.address());
    watched.settled().await;
    assert_eq!(watched.ids("web").len(), 20);
    consul.restore(snapshot).await;
    let took = watched.until(LATER, "the snapshot", |w| w.ids("web").len() == 4).await;
    assert_eq!(watched.last_trust("web"), Some(Trust::AfterLoss), "an index went back");
    watched
        .until(LATER, "a second look", |w| w.last_trust("web") == Some(Trust::Steady))
        .await;
    assert_eq!(watched.ids("web").len(), 4);
    assert!(took < Duration::from_secs(2), "{took:?}");
    println!("restored after {took:?}");
}

/// Scenario 16, and the token file.
#[tokio::test]
async fn a_wrong_token_keeps_what_is_known_and_its_file_is_read_again() {
    let consul = Consul::start_with_acl().await;
    consul.register("a", "web", "w1", 80, json!({})).await;
    let good = consul
        .token(
            "good",
            r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"#,
        )
        .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "11111111-2222-3333-4444-555555555555\n").unwrap();
    let mut settings = ConsulSettings::new(consul.address());
    settings.token = Some(Token::File(file.path().to_owned()));
    let mut watched = Watched::new(settings);
    watched.until(SOON, "a refusal", |w| w.errors.len() >= 2).await;
    assert!(
        watched.errors.iter().all(|error| error.reason == Reason::Denied),
        "{:?}",
        watched.errors
    );
    assert!(watched.updates.is_empty());
    std::fs::write(file.path(), format!("{good}\n")).unwrap();
    watched.settled().await;
    assert_eq!(watched.ids("web"), ["w1@a"]);
}

/// Scenario 15: a token without permissions gets 200 and an empty catalog.
#[tokio::test]
async fn an_empty_catalog_is_denied_and_not_synced() {
    let consul = Consul::start_with_acl().await;
    consul.register("a", "web", "w1", 80, json!({})).await;
    let mut settings = ConsulSettings::new(consul.address());
    settings.token = Some(Token::Value(
        consul.token("nothing", r#"key_prefix "" { policy = "read" }"#).await,
    ));
    let mut watched = Watched::new(settings);
    watched.until(SOON, "a refusal", |w| w.errors.len() >= 3).await;
    assert!(
        watched.errors.iter().all(|error| error.reason == Reason::Denied),
        "{:?}",
        watched.errors
    );
    assert!(watched.updates.is_empty());
}

/// Scenario 17: with `service:read` and without `node:read`, the catalog lists the service, and the
/// service has no instances.
#[tokio::test]
async fn a_listed_service_that_answers_with_nothing_loses_nothing() {
    let consul = Consul::start_with_acl().await;
    consul.register("a", "web", "w1", 80, json!({})).await;
    let blind = consul.token("blind", r#"service_prefix "" { policy = "read" }"#).await;
    let good = consul
        .token(
            "good",
            r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"#,
        )
        .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &good).unwrap();
    let mut settings = ConsulSettings::new(consul.address());
    settings.token = Some(Token::File(file.path().to_owned()));
    settings.refresh = Duration::from_secs(4);
    let mut watched = Watched::new(settings);
    let reloader = watched.watcher.reloader();
    watched.settled().await;
    std::fs::write(file.path(), &blind).unwrap();
    reloader.reload();
    watched
        .until(LATER, "the doubt", |w| {
            w.last_trust("web") == Some(Trust::AdditionsOnly)
        })
        .await;
    assert_eq!(watched.ids("web"), ["w1@a"]);
    assert!(watched.errors_of(Reason::Denied) >= 1);
    watched.run_for(Duration::from_secs(6)).await;
    assert_eq!(watched.ids("web"), ["w1@a"]);
    assert!(watched.errors.is_empty(), "{:?}", watched.errors);
    std::fs::write(file.path(), &good).unwrap();
    reloader.reload();
    watched
        .until(LATER, "rights again", |w| w.last_trust("web") == Some(Trust::Steady))
        .await;
}

/// Scenario 23.
#[tokio::test]
async fn garbage_costs_only_itself() {
    let consul = Consul::start().await;
    consul.register("a", "web", "good", 80, json!({})).await;
    consul
        .register(
            "a",
            "web",
            "null",
            81,
            json!({ "Meta": null, "Tags": null, "Weights": null, "Address": "" }),
        )
        .await;
    consul.register("a", "web", "port0", 0, json!({})).await;
    consul.register("a", "web", "port70000", 70_000, json!({})).await;
    consul
        .register(
            "a",
            "web",
            "heavy",
            82,
            json!({ "Weights": { "Passing": 65_535, "Warning": 1 } }),
        )
        .await;
    // Consul itself answers with the weights 1 and 1.
    let beyond = json!({ "Weights": { "Passing": 65_536, "Warning": 20_000 } });
    consul.register("a", "web", "heavier", 85, beyond).await;
    consul
        .register("a", "web", "host", 83, json!({ "Address": "not a host" }))
        .await;
    consul
        .register("a", "web", "bogus", 84, json!({ "Meta": { "weight": "heavy" } }))
        .await;
    consul.check("a", "bogus", "c", "bogus", "").await;
    let mut watched = Watched::at(consul.address());
    watched.settled().await;
    assert_eq!(
        watched.ids("web"),
        ["bogus@a", "good@a", "heavier@a", "heavy@a", "null@a"]
    );
    let weight = |id: &str| watched.instance("web", id).unwrap().weight().get();
    assert_eq!((weight("heavy@a"), weight("heavier@a")), (65_535, 1));
    assert_eq!(
        watched.instance("web", "bogus@a").unwrap().registry_status(),
        RegistryStatus::Critical
    );
    assert_eq!(
        watched.instance("web", "null@a").unwrap().address().as_str(),
        "10.0.0.1:81"
    );
    assert!(
        watched.errors_of(Reason::InvalidInstance) >= 3 && watched.errors_of(Reason::NoPort) >= 1,
        "{:?}",
        watched.status.errors()
    );
}

/// Scenario 25.
#[tokio::test]
async fn a_check_with_ever_changing_output_costs_few_answers_and_no_update() {
    let consul = Consul::start().await;
    consul.register("a", "web", "w1", 80, json!({})).await;
    consul.check("a", "w1", "c", "passing", "0").await;
    let proxy = Proxy::to(consul.port()).await;
    let mut watched = Watched::at(proxy.address());
    watched.settled().await;
    let (updates, requests) = (watched.updates.len(), proxy.requests());
    let started = Instant::now();
    let flap = async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        for i in 0..500 {
            tick.tick().await;
            consul.check("a", "w1", "c", "passing", &i.to_string()).await;
        }
    };
    tokio::join!(flap, watched.run_for(Duration::from_secs(5)));
    let (seconds, fetched) = (started.elapsed().as_secs_f64(), proxy.requests() - requests);
    println!("500 changes of output in {seconds:.1} s: {fetched} requests");
    assert_eq!(watched.updates.len(), updates);
    assert!((fetched as f64) < 5.0 * seconds + 5.0, "{fetched} requests");
}

/// Scenario 20.
#[tokio::test]
async fn a_service_that_does_not_exist_yet_costs_nothing_and_appears_at_once() {
    let consul = Consul::start().await;
    let proxy = Proxy::to(consul.port()).await;
    let mut settings = ConsulSettings::new(proxy.address());
    settings.services = Names::new(&["later"], &["consul"]).unwrap();
    let mut watched = Watched::new(settings);
    watched.synced().await;
    watched.run_for(Duration::from_secs(6)).await;
    let (requests, started) = (proxy.requests(), Instant::now());
    let churn = async {
        for i in 0..200 {
            consul
                .register("a", &format!("other{i}"), &format!("o{i}"), 1000 + i, json!({}))
                .await;
        }
        consul.register("a", "later", "l1", 80, json!({})).await;
        Instant::now()
    };
    let seen = watched.until(LATER, "later", |w| w.ids("later") == ["l1@a"]);
    let (registered, _) = tokio::join!(churn, seen);
    let took = registered.elapsed();
    let (seconds, fetched) = (started.elapsed().as_secs_f64(), proxy.requests() - requests);
    println!("200 registrations in {seconds:.1} s: {fetched} requests; seen after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!((fetched as f64) < 5.0 * seconds + 10.0, "{fetched} requests");
}

/// A frozen Consul: connections stay open, and no request is answered.
#[tokio::test]
async fn a_frozen_consul_is_noticed_and_the_view_stays() {
    let consul = Consul::start().await;
    consul.register("a", "web", "w1", 80, json!({})).await;
    let mut settings = ConsulSettings::new(consul.address());
    settings.refresh = Duration::from_secs(4);
    let mut watched = Watched::new(settings);
    watched.settled().await;
    consul.signal("STOP");
    watched
        .until(LATER, "a timeout", |w| {
            w.errors.iter().any(|error| error.reason == Reason::Timeout)
        })
        .await;
    consul.signal("CONT");
    let back = |w: &Watched| w.status.is_up() && w.trusts("web").ends_with(&[Trust::AfterGap, Trust::Steady]);
    watched.until(LATER, "its return", back).await;
    assert_eq!(watched.emptied(), None);
}

// ---- A stand-in -------------------------------------------------------------------------------

/// Scenarios 4 and 7, and resets: data and index stay, and all services are read again.
#[tokio::test]
async fn transport_errors_lose_nothing_and_the_next_request_has_no_index() {
    for (fault, reason) in [
        (Fault::Status(500), Reason::Unavailable),
        (Fault::Status(403), Reason::Denied),
        (Fault::Reset, Reason::Unreachable),
        (Fault::CutShort, Reason::Unreachable),
    ] {
        let fake = FakeConsul::start(&[("web", 3), ("api", 2)]).await;
        let mut watched = Watched::at(fake.address());
        watched.settled().await;
        fake.change(|state| state.fault = Some(fault));
        watched.until(SOON, "errors", |w| w.errors.len() >= 2).await;
        assert!(
            watched.errors.iter().all(|error| error.reason == reason),
            "{fault:?}: {:?}",
            watched.errors
        );
        assert_eq!(watched.emptied(), None, "{fault:?}");
        let asked = fake.asked().len();
        fake.change(|state| state.fault = None);
        let looks = |w: &Watched| {
            ["web", "api"]
                .iter()
                .all(|s| w.trusts(s).ends_with(&[Trust::AfterGap, Trust::Steady]))
        };
        watched
            .until(LATER, "both looks", |w| w.status.is_up() && looks(w))
            .await;
        let asked = fake.asked().split_off(asked);
        assert!(!asked[0].query.contains("index="), "{fault:?}: {:?}", asked[0]);
        let health = asked.iter().find(|asked| asked.path.contains("/health/")).unwrap();
        assert!(!health.query.contains("index="), "{fault:?}: {health:?}");
        assert_eq!(watched.emptied(), None, "{fault:?}");
    }
}

/// Scenario 4: a complete answer that is not JSON affects its own service only.
#[tokio::test]
async fn half_an_answer_of_one_service_leaves_the_others_alone() {
    let fake = FakeConsul::start(&[("web", 3), ("api", 2)]).await;
    fake.change(|state| (state.fault, state.fault_at) = (Some(Fault::HalfJson), "/web"));
    let mut watched = Watched::at(fake.address());
    watched.synced().await;
    assert_eq!((watched.ids("web").len(), watched.ids("api").len()), (0, 2));
    assert_eq!(
        watched.trusts("web"),
        [Trust::AdditionsOnly],
        "the name is known, and nothing is removed"
    );
    assert!(watched.errors.is_empty() && watched.errors_of(Reason::Protocol) >= 3);
    fake.change(|state| state.fault = None);
    watched.until(LATER, "its return", |w| w.ids("web").len() == 3).await;
    fake.change(|state| (state.fault, state.index) = (Some(Fault::HalfJson), 101));
    let count = watched.errors_of(Reason::Protocol);
    watched
        .until(LATER, "trouble again", |w| w.errors_of(Reason::Protocol) > count)
        .await;
    assert_eq!(watched.ids("web").len(), 3);
}

/// Scenario 5.
#[tokio::test]
async fn an_index_that_goes_back_is_read_anew_and_confirmed() {
    let fake = FakeConsul::start(&[("web", 5)]).await;
    let mut watched = Watched::at(fake.address());
    watched.settled().await;
    fake.change(|state| {
        state.index = 40;
        state
            .services
            .insert(String::from("web"), vec![entry("web", "web-1", 8001)]);
    });
    watched.until(SOON, "the drop", |w| w.ids("web") == ["web-1@n1"]).await;
    assert_eq!(watched.last_trust("web"), Some(Trust::AfterLoss));
    watched
        .until(LATER, "the second look", |w| w.last_trust("web") == Some(Trust::Steady))
        .await;
    fake.change(|state| {
        state.index = 41;
        state
            .services
            .insert(String::from("web"), vec![entry("web", "web-2", 8002)]);
    });
    watched
        .until(SOON, "a change at the new index", |w| w.ids("web") == ["web-2@n1"])
        .await;
    assert_eq!(watched.last_trust("web"), Some(Trust::Steady));
    assert!(watched.errors.is_empty());
}

/// Scenario 6.
#[tokio::test]
async fn without_a_usable_index_it_reads_now_and_then_and_never_in_a_loop() {
    for index in ["0", "", "abc", "-5"] {
        let fake = FakeConsul::start(&[("web", 1)]).await;
        fake.change(|state| state.index_text = Some(index.to_owned()));
        let mut watched = Watched::at(fake.address());
        watched.settled().await;
        let before = fake.asked().len();
        watched.run_for(Duration::from_secs(2)).await;
        let after = fake.asked().len();
        assert!(after - before <= 4, "{index:?}: {} requests in 2 s", after - before);
        assert!(
            fake.asked().iter().all(|asked| !asked.query.contains("index=")),
            "{index:?}"
        );
    }
    // The index becomes invalid during the watch.
    let fake = FakeConsul::start(&[("web", 1)]).await;
    let mut watched = Watched::at(fake.address());
    watched.settled().await;
    fake.change(|state| {
        (state.index, state.index_text) = (101, Some(String::from("NaN")));
        state
            .services
            .insert(String::from("web"), vec![entry("web", "web-2", 8002)]);
    });
    watched
        .until(SOON, "the change", |w| w.ids("web") == ["web-2@n1"])
        .await;
}

/// Scenario 8.
#[tokio::test]
async fn a_wake_with_the_same_body_says_nothing() {
    let fake = FakeConsul::start(&[("web", 2)]).await;
    let mut watched = Watched::at(fake.address());
    watched.settled().await;
    let updates = watched.updates.len();
    for index in 101..105 {
        fake.change(|state| state.index = index);
        watched.run_for(Duration::from_millis(400)).await;
    }
    let followed = |_: &Watched| {
        let mut polls = fake.asked().into_iter().filter(|asked| asked.path.ends_with("/web"));
        polls.any(|asked| asked.query.contains("index=104"))
    };
    watched.until(LATER, "a poll at the last index", followed).await;
    assert_eq!(watched.updates.len(), updates);
}

/// Scenario 9: no poll wakes, and the periodic full read finds the change.
#[tokio::test]
async fn what_no_poll_shows_the_next_full_reading_does() {
    let fake = FakeConsul::start(&[("web", 3)]).await;
    let mut settings = ConsulSettings::new(fake.address());
    settings.refresh = Duration::from_secs(3);
    let mut watched = Watched::new(settings);
    watched.settled().await;
    fake.change_silently(|state| {
        state.services.get_mut("web").unwrap().pop();
    });
    let took = watched
        .until(SOON, "the dead one gone", |w| w.ids("web").len() == 2)
        .await;
    assert!(took < Duration::from_millis(4700), "{took:?}");
    assert_eq!(watched.last_trust("web"), Some(Trust::Steady));
    watched.run_for(Duration::from_secs(6)).await;
    assert_eq!(
        watched.ids("web").len(),
        2,
        "the poll's old body does not bring it back"
    );
}

/// Scenarios 13 and 14: without a leader no instance is removed, the leader is asked once, and the
/// source counts as lost.
#[tokio::test]
async fn without_a_leader_only_additions_count() {
    for lagging in [false, true] {
        let fake = FakeConsul::start(&[("web", 3), ("api", 1)]).await;
        let mut watched = Watched::at(fake.address());
        watched.settled().await;
        fake.change(|state| {
            (state.index, state.fault) = (101, Some(Fault::NotWithoutStale));
            match lagging {
                true => state.last_contact = Duration::from_secs(31),
                false => state.known_leader = false,
            }
            state
                .services
                .insert(String::from("web"), vec![entry("web", "web-9", 8009)]);
            state.services.remove("api");
        });
        watched.until(SOON, "the addition", |w| w.ids("web").len() == 4).await;
        assert_eq!(watched.last_trust("web"), Some(Trust::AdditionsOnly));
        watched.run_for(Duration::from_secs(5)).await;
        assert_eq!(
            (watched.ids("web").len(), watched.ids("api").len()),
            (4, 1),
            "{:?}",
            watched.lines()
        );
        assert!(!watched.status.is_up() && watched.status.last_error().unwrap().contains("leader"));
        assert!(watched.errors.is_empty(), "{:?}", watched.errors);
        assert_eq!(watched.errors_of(Reason::NoLeader), 1, "told once");
        let to_leader = fake
            .asked()
            .iter()
            .filter(|asked| !asked.query.contains("stale"))
            .count();
        assert_eq!(to_leader, 1, "the leader itself is asked once");

        fake.change(|state| {
            (state.index, state.fault) = (102, None);
            (state.known_leader, state.last_contact) = (true, Duration::ZERO);
        });
        let back = |w: &Watched| w.ids("web") == ["web-9@n1"] && !w.view.contains_key("api") && w.status.is_up();
        watched.until(LATER, "the leader's return", back).await;
        let told = |w: &Watched| {
            ["web", "api"]
                .iter()
                .all(|s| w.trusts(s).ends_with(&[Trust::AfterGap, Trust::Steady]))
        };
        watched.until(LATER, "second looks", told).await;
    }
}

/// Scenario 14: if servers lag and the leader answers, the watcher asks the leader.
#[tokio::test]
async fn where_servers_lag_the_leader_is_asked() {
    let fake = FakeConsul::start(&[("web", 2)]).await;
    fake.change(|state| state.last_contact = Duration::from_secs(60));
    let mut watched = Watched::at(fake.address());
    watched.settled().await;
    assert!(watched.status.is_up() && watched.errors.is_empty());
    let stale = |fake: &FakeConsul| {
        fake.asked()
            .iter()
            .filter(|asked| asked.query.contains("stale"))
            .count()
    };
    let before = stale(&fake);
    fake.change(|state| {
        state.index = 101;
        state
            .services
            .insert(String::from("web"), vec![entry("web", "web-1", 8001)]);
    });
    watched.until(SOON, "a change", |w| w.ids("web") == ["web-1@n1"]).await;
    assert_eq!(stale(&fake), before, "no more questions to servers that lag");
}

/// Scenario 26.
#[tokio::test]
async fn headers_and_then_nothing_is_a_timeout() {
    let fake = FakeConsul::start(&[("web", 2)]).await;
    let mut settings = ConsulSettings::new(fake.address());
    settings.wait = Duration::from_secs(1);
    let mut watched = Watched::new(settings);
    watched.settled().await;
    fake.change(|state| state.fault = Some(Fault::Stall));
    let took = watched.until(LATER, "a timeout", |w| !w.errors.is_empty()).await;
    assert_eq!(watched.errors[0].reason, Reason::Timeout, "{:?}", watched.errors);
    assert!(
        // A poll that is cut counts when a read of the catalog has no answer either.
        took > Duration::from_secs(8) && took < Duration::from_secs(25),
        "{took:?}"
    );
    assert_eq!(watched.emptied(), None);
}

/// Consul 1.11 and later mark a filtered answer with a header. A removed service is still removed.
#[tokio::test]
async fn an_answer_that_says_it_leaves_things_out_takes_nothing_away() {
    let fake = FakeConsul::start(&[("web", 3), ("api", 1)]).await;
    fake.change(|state| state.filtered = true);
    let mut watched = Watched::at(fake.address());
    watched.synced().await;
    fake.change(|state| {
        state.index = 101;
        state
            .services
            .insert(String::from("web"), vec![entry("web", "web-1", 8001)]);
        state.services.remove("api");
    });
    watched.until(SOON, "the news", |w| w.trusts("web").len() >= 2).await;
    watched.run_for(Duration::from_secs(1)).await;
    assert!(
        watched
            .updates
            .iter()
            .all(|update| !matches!(update, Update::Gone { .. }))
    );
    assert_eq!((watched.ids("web").len(), watched.ids("api").len()), (3, 1));
    assert!(watched.errors_of(Reason::Denied) >= 1 && watched.errors.is_empty());
    assert!(watched.status.is_up());
    fake.change(|state| (state.index, state.filtered) = (102, false));
    watched
        .until(LATER, "all rights", |w| {
            w.ids("web").len() == 1 && !w.view.contains_key("api")
        })
        .await;
}

/// There are never more long polls than allowed, and a poll is never abandoned for a new request.
#[tokio::test]
async fn sixty_four_polls_are_never_exceeded() {
    let names: Vec<String> = (0..150).map(|i| format!("s{i:03}")).collect();
    let services: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let fake = FakeConsul::start(&services).await;
    let mut watched = Watched::at(fake.address());
    watched.settled().await;
    watched.run_for(Duration::from_secs(3)).await;
    for index in 101..106 {
        fake.change(|state| state.index = index);
        watched.run_for(Duration::from_secs(1)).await;
    }
    let most = fake.asked().iter().map(|asked| asked.at_once).max().unwrap();
    assert!((60..=64 + 4).contains(&most), "{most}");
    println!(
        "150 services: {most} requests at once at most, {} in all",
        fake.asked().len()
    );
}
