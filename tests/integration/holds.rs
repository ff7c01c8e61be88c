//! Registries that lose their memory or drop a service while its instances live: real registries,
//! real instances, and clients that pick at a fixed rate.

use std::time::{Duration, Instant};

use etcd_client::PutOptions;
use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON, pickd};
use crate::support::backend::Backend;
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::load::{Oracle, Picker};
use crate::support::pool::{ids, until_picked};
use crate::support::until;

/// Bound for events that wait for a timer of the watcher, or for a hold.
const LATER: Duration = Duration::from_secs(45);
/// Picks per second.
const RATE: u32 = 150;
/// How long registrations are away. Longer than a registry needs to confirm that it is empty.
const AWAY: Duration = Duration::from_secs(12);
/// A drop in an unbroken watch is held for at most 30 s.
const LONGEST_DROP: Duration = Duration::from_secs(30);

/// Instances of `web`, `w1` to `w<count>`.
struct Instances(Vec<Backend>);

impl Instances {
    fn start(count: usize) -> Self {
        Self((0..count).map(|_| Backend::start()).collect())
    }

    fn address(&self, index: usize) -> String {
        self.0[index].address.to_string()
    }

    fn oracle(&self) -> Oracle {
        Oracle::new(
            Duration::from_secs(2),
            (0..self.0.len()).map(|index| self.address(index)),
        )
    }

    async fn register(&self, consul: &Consul) {
        for (index, backend) in self.0.iter().enumerate() {
            let fields = json!({ "Address": "127.0.0.1" });
            let (id, port) = (format!("w{}", index + 1), i64::from(backend.address.port()));
            consul.register("n1", "web", &id, port, fields).await;
        }
    }

    fn put(&self, etcd: &Etcd) {
        for index in 0..self.0.len() {
            etcd.put(&format!("/services/web/w{}", index + 1), &self.address(index));
        }
    }

    /// Puts each instance with a lease of its own, or all with one lease. Nothing renews it.
    fn put_with_lease(&self, etcd: &Etcd, seconds: i64) {
        let (mut client, runtime) = etcd.client();
        runtime.block_on(async {
            let lease = client.lease_grant(seconds, None).await.unwrap().id();
            for index in 0..self.0.len() {
                let (key, options) = (
                    format!("/services/web/w{}", index + 1),
                    PutOptions::new().with_lease(lease),
                );
                client.put(key, self.address(index), Some(options)).await.unwrap();
            }
        });
    }
}

/// An agent with a configuration file, which can be changed.
struct World {
    agent: Agent,
    folder: Folder,
}

impl World {
    fn with(config: &str) -> Self {
        let folder = Folder::new();
        let path = folder.write("pickd.toml", config);
        let agent = Agent::run(["--config", path.to_str().unwrap()]).ready();
        Self { agent, folder }
    }

    fn beside_consul(consul: &Consul, more: &str) -> Self {
        Self::with(&consul_config(&consul.address(), more))
    }

    fn beside_etcd(etcd: &Etcd, more: &str) -> Self {
        Self::with(&format!("[etcd]\nendpoints = [\"{}\"]\n{more}", etcd.url(0)))
    }

    fn held(&self) -> f64 {
        let held = |source: &str| {
            let series = format!("pickd_source_held_removals{{source=\"{source}\"}}");
            self.agent.metric(&series)
        };
        held("consul").or_else(|| held("etcd")).unwrap()
    }

    fn ended(&self, source: &str, reason: &str) -> f64 {
        let series = format!("pickd_source_holds_ended_total{{reason=\"{reason}\",source=\"{source}\"}}");
        self.agent.metric(&series).unwrap()
    }

    fn until_held(&self, count: usize) {
        until(LATER, &format!("{count} removals are held"), || {
            (self.held() == count as f64).then_some(())
        });
    }

    /// `absent_seconds` of each instance, in the services, in the explanation, and in a pick.
    fn absent_seconds(&self) -> [Vec<Option<f64>>; 3] {
        let of = |instance: &Value| instance.get("absent_seconds").and_then(Value::as_f64);
        let services = self.agent.get("/services/web").json();
        let explained = self.agent.get("/explain/web").json();
        let pick = self.agent.get("/pick/web?n=16").json();
        [
            services["instances"].as_object().unwrap().values().map(of).collect(),
            explained["instances"].as_array().unwrap().iter().map(of).collect(),
            vec![of(&pick)],
        ]
    }

    fn accept(&self, source: &str) -> String {
        let agent = format!("http://{}", self.agent.address);
        let output = pickd().args(["accept", source, "--agent", &agent]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn code(&self) -> (u16, String) {
        let answer = self.agent.get("/pick/web");
        let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
        (answer.status, code)
    }
}

fn consul_config(address: &str, more: &str) -> String {
    format!("[consul]\naddress = \"{address}\"\n{more}")
}

fn gone() -> (u16, String) {
    (503, "no_instances".to_owned())
}

#[tokio::test]
async fn consul_comes_back_empty_and_registrations_12_s_later() {
    let mut consul = Consul::start().await;
    let instances = Instances::start(4);
    instances.register(&consul).await;
    let world = World::beside_consul(&consul, "");
    until_picked(&world.agent, "web", &["w1@n1", "w2@n1", "w3@n1", "w4@n1"], SOON);
    assert_eq!(world.absent_seconds().concat(), [None; 9]);
    let picker = Picker::start(world.agent.address, "/pick/web", RATE, &instances.oracle());
    consul.kill();
    consul.wipe();
    consul.restart().await;
    world.until_held(4);
    let empty = Instant::now();
    until(LATER, "twelve seconds have passed", || {
        (empty.elapsed() > AWAY).then_some(())
    });
    for absent in world.absent_seconds().concat() {
        let absent = absent.unwrap();
        assert!((AWAY.as_secs_f64() - 1.0..40.0).contains(&absent), "{absent}");
    }
    let explained = world.agent.get("/explain/web").json();
    assert_eq!(explained["instances"][0]["why"], json!(["registry_passing", "absent"]));
    instances.register(&consul).await;
    world.until_held(0);
    assert_eq!(world.absent_seconds().concat(), [None; 9]);
    assert_eq!(world.ended("consul", "listed"), 4.0);
    // What is listed again leaves in an unbroken watch at once, although it accepts connections.
    consul.deregister("n1", Some("w1")).await;
    until_picked(
        &world.agent,
        "web",
        &["w2@n1", "w3@n1", "w4@n1"],
        Duration::from_secs(3),
    );
    picker.check("Consul came back empty, registrations 12 s later", 2_000);
}

#[tokio::test]
async fn consul_comes_back_empty_and_registrations_never() {
    let mut consul = Consul::start().await;
    let instances = Instances::start(5);
    instances.register(&consul).await;
    let world = World::beside_consul(&consul, "");
    until_picked(
        &world.agent,
        "web",
        &["w1@n1", "w2@n1", "w3@n1", "w4@n1", "w5@n1"],
        SOON,
    );
    let oracle = instances.oracle();
    let picker = Picker::start(world.agent.address, "/pick/web", RATE, &oracle);
    consul.kill();
    consul.wipe();
    consul.restart().await;
    world.until_held(5);
    let empty = Instant::now();
    until(LATER, "longer than any removal was held without `hold`", || {
        (empty.elapsed() > Duration::from_secs(32)).then_some(())
    });
    assert_eq!(world.held(), 5.0);

    instances.0[0].stop();
    let stopped = Instant::now();
    until_picked(&world.agent, "web", &["w2@n1", "w3@n1", "w4@n1", "w5@n1"], SOON);
    eprintln!("an instance that stopped was gone after {:.1?}", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(3), "{:?}", stopped.elapsed());
    assert_eq!(world.ended("consul", "refused"), 1.0);
    oracle.remove(&instances.address(0));

    // Consul is lost a second time during the hold.
    consul.kill();
    until(LATER, "Consul is away", || {
        (world.agent.metric(r#"pickd_source_up{source="consul"}"#) == Some(0.0)).then_some(())
    });
    consul.wipe();
    consul.restart().await;
    until(LATER, "Consul is back", || {
        (world.agent.metric(r#"pickd_source_up{source="consul"}"#) == Some(1.0)).then_some(())
    });
    let back = Instant::now();
    until(LATER, "the second loss is confirmed", || {
        (back.elapsed() > Duration::from_secs(7)).then_some(())
    });
    assert_eq!((world.held(), ids(&world.agent, "web").len()), (4.0, 4));
    picker.check("Consul came back empty, registrations never", 4_500);

    assert_eq!(world.accept("consul"), "consul: 4 held instances let go\n");
    assert_eq!(world.code(), gone(), "from the next pick on");
    assert_eq!((world.held(), world.ended("consul", "accepted")), (0.0, 4.0));
    let told = world.agent.program.wait_for_log("removals accepted", |_| true);
    assert_eq!(
        (&told["source"], &told["released_instances"]),
        (&json!("consul"), &json!(4))
    );
    assert_eq!(world.accept("consul"), "consul: no instance was held\n");
}

#[tokio::test]
async fn absent_instances_that_live_are_not_kept_for_ever() {
    let mut consul = Consul::start().await;
    let instances = Instances::start(3);
    instances.register(&consul).await;
    let world = World::beside_consul(&consul, "hold = \"9s\"\n");
    until_picked(&world.agent, "web", &["w1@n1", "w2@n1", "w3@n1"], SOON);
    consul.kill();
    consul.wipe();
    consul.restart().await;
    world.until_held(3);
    let held = Instant::now();
    until(LATER, "the hold is over", || (world.code() == gone()).then_some(()));
    assert!(
        (7.0..14.0).contains(&held.elapsed().as_secs_f64()),
        "{:?}",
        held.elapsed()
    );
    assert_eq!(world.ended("consul", "over"), 3.0);

    // The same with the rule that counts without a hold, set by a reload during a hold.
    let address = consul.address();
    let rewrite = |more: &str| world.folder.write("pickd.toml", &consul_config(&address, more));
    rewrite("hold = \"10m\"\n");
    world.agent.program.signal("HUP");
    instances.register(&consul).await;
    until_picked(&world.agent, "web", &["w1@n1", "w2@n1", "w3@n1"], SOON);
    consul.kill();
    consul.wipe();
    consul.restart().await;
    world.until_held(3);
    let held = Instant::now();
    until(LATER, "the removal is confirmed", || {
        (held.elapsed() > Duration::from_secs(8)).then_some(())
    });
    assert_eq!(world.held(), 3.0);
    // Another setting replaces the watcher. The hold outlives that.
    let synced = || world.agent.program.logged("synced").len();
    let before = synced();
    rewrite("hold = \"10m\"\nwait = \"30s\"\n");
    world.agent.program.signal("HUP");
    until(LATER, "the new watcher has synced", || {
        (synced() > before).then_some(())
    });
    assert_eq!((world.held(), ids(&world.agent, "web").len()), (3.0, 3));
    rewrite("hold = 0\nwait = \"30s\"\n");
    world.agent.program.signal("HUP");
    until(SOON, "the hold is over", || (world.code() == gone()).then_some(()));
}

#[tokio::test]
async fn a_catalog_that_flaps_loses_no_pick() {
    let consul = Consul::start().await;
    let instances = Instances::start(2);
    instances.register(&consul).await;
    let world = World::beside_consul(&consul, "");
    until_picked(&world.agent, "web", &["w1@n1", "w2@n1"], SOON);
    let oracle = instances.oracle();
    let picker = Picker::start(world.agent.address, "/pick/web", RATE, &oracle);
    for round in 0..4 {
        consul.deregister("n1", None).await;
        world.until_held(2);
        let held = Instant::now();
        until(SOON, "two seconds without the service", || {
            (held.elapsed() > Duration::from_secs(2)).then_some(())
        });
        instances.register(&consul).await;
        until(SOON, &format!("round {round}"), || (world.held() == 0.0).then_some(()));
    }
    picker.check("a service there and gone four times", 1_200);

    // An instance that was deregistered and has stopped goes at once, and one that does not stop
    // goes in time.
    consul.deregister("n1", None).await;
    let deregistered = Instant::now();
    world.until_held(2);
    instances.0[0].stop();
    until_picked(&world.agent, "web", &["w2@n1"], Duration::from_secs(3));
    until(LATER, "the last is gone", || (world.code().0 != 200).then_some(()));
    let took = deregistered.elapsed();
    eprintln!("an instance that was deregistered and did not stop was gone after {took:.1?}");
    assert!(took < LONGEST_DROP + Duration::from_secs(3), "{took:?}");
}

#[test]
fn etcd_is_wiped_and_the_instances_register_late_or_never() {
    let mut etcd = Etcd::start();
    let instances = Instances::start(5);
    for _ in 0..10 {
        etcd.put("/services/other/o1", "127.0.0.1:1");
    }
    instances.put(&etcd);
    let world = World::beside_etcd(&etcd, "");
    until_picked(&world.agent, "web", &["w1", "w2", "w3", "w4", "w5"], SOON);
    let oracle = instances.oracle();
    let picker = Picker::start(world.agent.address, "/pick/web", RATE, &oracle);
    etcd.kill(0);
    etcd.wipe(0);
    etcd.restart(0);
    world.until_held(5);
    let empty = Instant::now();
    // What registers before the others does not end the hold of the others.
    etcd.put("/services/web/w1", &instances.address(0));
    etcd.put("/services/web/w2", &instances.address(1));
    etcd.put("/services/web/w3", &instances.address(2));
    until(LATER, "longer than any removal was held without `hold`", || {
        (empty.elapsed() > Duration::from_secs(32)).then_some(())
    });
    assert_eq!((world.held(), ids(&world.agent, "web").len()), (2.0, 5));
    instances.0[3].stop();
    until_picked(&world.agent, "web", &["w1", "w2", "w3", "w5"], Duration::from_secs(3));
    oracle.remove(&instances.address(3));
    assert_eq!(world.accept("etcd"), "etcd: 1 held instance let go\n");
    assert_eq!(ids(&world.agent, "web"), ["w1", "w2", "w3"]);
    picker.check("etcd wiped, two of five never register again", 4_500);
}

#[test]
fn scenario_35_a_lease_of_five_live_instances_that_expires_costs_no_pick() {
    let etcd = Etcd::start();
    let instances = Instances::start(5);
    instances.put_with_lease(&etcd, 3);
    let world = World::beside_etcd(&etcd, "");
    until_picked(
        &world.agent,
        "web",
        &["w1", "w2", "w3", "w4", "w5"],
        Duration::from_secs(2),
    );
    let oracle = instances.oracle();
    let picker = Picker::start(world.agent.address, "/pick/web", RATE, &oracle);
    world.until_held(5);
    let expired = Instant::now();
    let absent = world.absent_seconds();
    assert!(absent.iter().flatten().all(Option::is_some), "{absent:?}");
    instances.0[0].stop();
    until_picked(&world.agent, "web", &["w2", "w3", "w4", "w5"], Duration::from_secs(3));
    oracle.remove(&instances.address(0));
    // A registrar that has noticed registers again.
    etcd.put("/services/web/w2", &instances.address(1));
    until(SOON, "one is no longer held", || (world.held() == 3.0).then_some(()));
    until(LATER, "twelve seconds have passed", || {
        (expired.elapsed() > AWAY).then_some(())
    });
    assert_eq!(ids(&world.agent, "web"), ["w2", "w3", "w4", "w5"]);
    until_picked(&world.agent, "web", &["w2"], LATER);
    let took = expired.elapsed();
    assert!((25.0..33.0).contains(&took.as_secs_f64()), "{took:?}");
    for index in 2..5 {
        oracle.remove(&instances.address(index));
    }
    picker.check("a lease of five live instances expired", 2_500);
}

#[test]
fn keys_without_a_lease_and_small_changes_go_at_once() {
    let etcd = Etcd::start();
    let instances = Instances::start(5);
    instances.put(&etcd);
    let world = World::beside_etcd(&etcd, "");
    until_picked(&world.agent, "web", &["w1", "w2", "w3", "w4", "w5"], SOON);
    etcd.ctl(["del", "--prefix", "/services/web/"]);
    until(SOON, "all are gone", || (world.code() == gone()).then_some(()));
    assert_eq!(
        world.agent.metric(r#"pickd_source_removals_held_total{source="etcd"}"#),
        Some(0.0)
    );
    // A rolling restart: each instance deletes its key, and registers again.
    instances.put_with_lease(&etcd, 60);
    until_picked(&world.agent, "web", &["w1", "w2", "w3", "w4", "w5"], SOON);
    let (mut client, runtime) = etcd.client();
    let lease = runtime.block_on(client.lease_grant(60, None)).unwrap().id();
    for index in 0..5 {
        let key = format!("/services/web/w{}", index + 1);
        runtime.block_on(client.delete(key.as_str(), None)).unwrap();
        until(SOON, "the instance is gone", || {
            (ids(&world.agent, "web").len() == 4).then_some(())
        });
        let options = PutOptions::new().with_lease(lease);
        let value = instances.address(index);
        runtime.block_on(client.put(key, value, Some(options))).unwrap();
        until(SOON, "the instance is back", || {
            (ids(&world.agent, "web").len() == 5).then_some(())
        });
    }
    assert_eq!(
        world.agent.metric(r#"pickd_source_removals_held_total{source="etcd"}"#),
        Some(0.0)
    );
}
