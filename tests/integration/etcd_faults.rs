//! Faults of a real etcd while clients pick at a fixed rate.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use crate::support::agent::{Agent, SOON};
use crate::support::cable::Cable;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::load::{Oracle, Picker};
use crate::support::pool::{ids, until_picked};
use crate::support::until;

/// Bound for events that wait for a keep-alive, an election, or a hold.
const LATER: Duration = Duration::from_secs(45);
/// Picks per second.
const RATE: u32 = 300;

fn beside(urls: &str, arguments: &[&str]) -> Agent {
    let etcd = ["--etcd", urls];
    Agent::run(etcd.iter().chain(arguments).map(OsStr::new))
}

fn up(agent: &Agent) -> bool {
    agent.metric(r#"pickd_source_up{source="etcd"}"#) == Some(1.0)
}

fn relists(agent: &Agent, reason: &str) -> f64 {
    let series = format!(r#"pickd_source_relists_total{{reason="{reason}",source="etcd"}}"#);
    agent.metric(&series).unwrap_or_default()
}

fn held(agent: &Agent) -> f64 {
    agent.metric(r#"pickd_source_held_removals{source="etcd"}"#).unwrap()
}

fn address(id: &str) -> String {
    format!("10.0.0.{}:80", id.as_bytes()[0])
}

/// Registers instances of `web`, and returns an oracle that knows them.
fn registered(etcd: &Etcd, ids: &[&str]) -> Oracle {
    for id in ids {
        etcd.put(&format!("/services/web/{id}"), &address(id));
    }
    Oracle::new(Duration::from_secs(1), ids.iter().map(|id| address(id)))
}

/// The member that an agent lists and watches: the member in the last log line.
fn watched(agent: &Agent, etcd: &Etcd) -> usize {
    let line = agent.program.logged("listed").pop().unwrap();
    let endpoint = line["endpoint"].as_str().unwrap().to_owned();
    (0..3).find(|member| etcd.url(*member) == endpoint).unwrap()
}

#[test]
fn scenario_27_what_was_deleted_and_compacted_while_cut_off_is_gone() {
    let etcd = Etcd::start();
    let oracle = registered(&etcd, &["a", "b", "c"]);
    let cable = Cable::to(etcd.port());
    let agent = beside(&cable.url(), &[]).ready();
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    assert_eq!((relists(&agent, "start"), relists(&agent, "reconnect")), (1.0, 0.0));
    cable.cut();
    until(SOON, "the loss is noticed", || (!up(&agent)).then_some(()));
    etcd.delete("/services/web/b");
    for number in 0..20 {
        etcd.put("/services/web/c", &format!("10.0.0.99:{}", 1000 + number));
    }
    oracle.add("10.0.0.99:1019");
    let revision = revision(&etcd);
    etcd.ctl(["compact", &revision.to_string()]);
    assert_eq!(ids(&agent, "web"), ["a", "b", "c"], "what it said last");
    cable.mend();
    let took = until_picked(&agent, "web", &["a", "c"], LATER);
    eprintln!("after the cable was mended it took {took:.1?}");
    oracle.remove(&address("b"));
    oracle.remove(&address("c"));
    assert!(relists(&agent, "reconnect") >= 1.0);
    assert!(up(&agent));
    std::thread::sleep(Duration::from_secs(2));
    picker.check("compaction while cut off", 600);
}

fn revision(etcd: &Etcd) -> i64 {
    let (mut client, runtime) = etcd.client();
    let answer = runtime.block_on(client.get("x", None)).unwrap();
    answer.header().unwrap().revision()
}

#[test]
fn scenario_27_a_watch_that_falls_behind_a_compaction_starts_over() {
    let etcd = Etcd::start();
    let oracle = registered(&etcd, &["a", "b"]);
    let cable = Cable::to(etcd.port());
    let agent = beside(&cable.url(), &[]).ready();
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    // No byte passes, and the buffers of etcd fill.
    cable.stall();
    let (mut client, runtime) = etcd.client();
    let pad = format!(
        r#"{{"address":"10.0.0.1:80","metadata":{{"pad":"{}"}}}}"#,
        "x".repeat(100_000)
    );
    runtime.block_on(async {
        for _ in 0..300 {
            client.put("/services/other/x", pad.as_str(), None).await.unwrap();
        }
        client.delete("/services/web/b", None).await.unwrap();
        client.put("/services/web/c", address("c"), None).await.unwrap();
    });
    oracle.add(&address("c"));
    etcd.ctl(["compact", &revision(&etcd).to_string()]);
    // etcd catches such watches up ten times a second.
    std::thread::sleep(Duration::from_millis(500));
    cable.mend();
    until_picked(&agent, "web", &["a", "c"], LATER);
    oracle.remove(&address("b"));
    let (compacted, reconnected) = (relists(&agent, "compacted"), relists(&agent, "reconnect"));
    eprintln!("listed again: {compacted} times for compaction, {reconnected} times after a lost connection");
    assert!(compacted >= 1.0);
    std::thread::sleep(Duration::from_secs(1));
    picker.check("compaction behind a stalled watch", 300);
}

#[test]
fn scenario_28_an_etcd_that_lost_its_data_is_doubted_and_then_believed() {
    let mut etcd = Etcd::start();
    let oracle = registered(&etcd, &["a", "b", "c"]);
    for _ in 0..20 {
        etcd.put("/services/web/a", &address("a"));
    }
    // Without a hold for instances that accept connections: see `holds`.
    let folder = Folder::new();
    let config = format!("[etcd]\nendpoints = [\"{}\"]\nhold = 0\n", etcd.url(0));
    let config = folder.write("pickd.toml", &config);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    etcd.kill(0);
    etcd.wipe(0);
    etcd.restart(0);
    let back = until(LATER, "the new history is noticed", || {
        (relists(&agent, "rollback") == 1.0).then(Instant::now)
    });
    assert_eq!((held(&agent), ids(&agent, "web").len()), (3.0, 3), "held, and picked");
    // Two of the three instances register again in time.
    etcd.put("/services/web/a", &address("a"));
    etcd.put("/services/web/b", &address("b"));
    until_picked(&agent, "web", &["a", "b"], LATER);
    let held_for = back.elapsed();
    eprintln!("what did not come back was held for {held_for:.1?}");
    assert!((4.0..12.0).contains(&held_for.as_secs_f64()), "{held_for:?}");
    assert_eq!((held(&agent), relists(&agent, "confirm")), (0.0, 1.0));
    picker.check("data lost", 1_000);
}

#[test]
fn scenario_29_a_server_that_is_killed_ended_or_frozen_costs_nothing() {
    let mut etcd = Etcd::start();
    let oracle = registered(&etcd, &["a", "b"]);
    let agent = beside(&etcd.urls(), &[]).ready();
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    for (how, id) in [("killed", "c"), ("ended", "d")] {
        let started = Instant::now();
        if how == "killed" {
            etcd.kill(0);
        } else {
            etcd.terminate(0);
        }
        until(SOON, "the loss is noticed", || (!up(&agent)).then_some(()));
        eprintln!("{how}: noticed after {:.1?}", started.elapsed());
        etcd.restart(0);
        oracle.add(&address(id));
        let put = Instant::now();
        etcd.put(&format!("/services/web/{id}"), &address(id));
        until(LATER, "the new instance", || {
            ids(&agent, "web").iter().any(|found| found == id).then_some(())
        });
        eprintln!("{how}: back {:.1?} after etcd", put.elapsed());
    }
    etcd.signal(0, "STOP");
    let started = Instant::now();
    until(LATER, "the frozen server is noticed", || (!up(&agent)).then_some(()));
    let took = started.elapsed();
    eprintln!("frozen: away after {took:.1?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    etcd.signal(0, "CONT");
    oracle.add(&address("e"));
    etcd.put("/services/web/e", &address("e"));
    until_picked(&agent, "web", &["a", "b", "c", "d", "e"], LATER);
    assert!(up(&agent));
    picker.check("one server killed, ended, frozen", 3_000);
}

/// How long the only member is away. Long enough for the delays between attempts to grow to their
/// limit.
const AWAY: Duration = Duration::from_secs(20);

#[test]
fn scenario_29_an_etcd_that_is_back_is_heard_within_three_seconds() {
    let mut etcd = Etcd::start();
    let oracle = registered(&etcd, &["a", "b"]);
    let agent = beside(&etcd.urls(), &[]).ready();
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    let mut expected = vec!["a", "b"];
    for (how, id) in [("frozen", "c"), ("killed", "d")] {
        if how == "frozen" {
            etcd.signal(0, "STOP");
        } else {
            etcd.kill(0);
        }
        std::thread::sleep(AWAY);
        assert!(!up(&agent), "{how}");
        if how == "frozen" {
            etcd.signal(0, "CONT");
        } else {
            etcd.restart(0);
        }
        let back = Instant::now();
        oracle.add(&address(id));
        etcd.put(&format!("/services/web/{id}"), &address(id));
        expected.push(id);
        until_picked(&agent, "web", &expected, LATER);
        let took = back.elapsed();
        eprintln!("{how} for {AWAY:?}: a new key was seen {took:.1?} after etcd was back");
        assert!(took < Duration::from_secs(3), "{how}: {took:?}");
    }
    picker.check("the only member frozen and killed", 3_000);
}

#[test]
fn scenario_29_a_frozen_endpoint_is_not_waited_for() {
    let etcd = Etcd::cluster();
    registered(&etcd, &["a"]);
    let frozen = (0..3).find(|member| *member != etcd.leader()).unwrap();
    etcd.signal(frozen, "STOP");
    let others: Vec<String> = (0..3)
        .filter(|member| *member != frozen)
        .map(|member| etcd.url(member))
        .collect();
    // The agent asks a random endpoint first.
    for attempt in 0..4 {
        let started = Instant::now();
        let agent = beside(&format!("{},{}", etcd.url(frozen), others[0]), &[]);
        until_picked(&agent, "web", &["a"], LATER);
        let took = started.elapsed();
        eprintln!("start {attempt} beside a frozen member: picked after {took:.1?}");
        // Waiting for the frozen member would take 5 s.
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
    etcd.signal(frozen, "CONT");
}

#[test]
fn scenario_29_another_member_takes_over_within_twelve_seconds() {
    let mut etcd = Etcd::cluster();
    let oracle = registered(&etcd, &["a", "b"]);
    let agent = beside(&etcd.urls(), &[]).ready();
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    let mut expected = vec!["a", "b"];
    for (how, id) in [("killed", "c"), ("killed as leader", "d"), ("frozen", "e")] {
        if how == "killed as leader" {
            let leader = etcd.leader().to_string();
            // The watched member becomes the leader.
            let watched = watched(&agent, &etcd);
            if leader != watched.to_string() {
                let member = member_id(&etcd, watched);
                let at_leader = etcd.url(leader.parse().unwrap());
                etcd.ctl(["--endpoints", &at_leader, "move-leader", &member]);
            }
        }
        let member = watched(&agent, &etcd);
        let lists = agent.program.logged("listed").len();
        let started = Instant::now();
        if how == "frozen" {
            etcd.signal(member, "STOP");
        } else {
            etcd.kill(member);
        }
        until(LATER, "another member is listed", || {
            (agent.program.logged("listed").len() > lists).then_some(())
        });
        let took = started.elapsed();
        eprintln!("{how}: another member took over after {took:.1?}");
        // A keep-alive takes at most 9 s, and then a list follows.
        assert!(took < Duration::from_secs(12), "{took:?}");
        assert_ne!(watched(&agent, &etcd), member);
        oracle.add(&address(id));
        let other = etcd.url(watched(&agent, &etcd));
        etcd.ctl([
            "--endpoints",
            &other,
            "put",
            &format!("/services/web/{id}"),
            &address(id),
        ]);
        expected.push(id);
        until_picked(&agent, "web", &expected, LATER);
        if how == "frozen" {
            etcd.signal(member, "CONT");
        } else {
            etcd.restart(member);
        }
    }
    picker.check("members killed and frozen", 1_500);
}

fn member_id(etcd: &Etcd, member: usize) -> String {
    let list = etcd.ctl(["member", "list"]);
    let line = list
        .lines()
        .find(|line| line.contains(&format!(" m{member},")))
        .unwrap();
    line.split(',').next().unwrap().to_owned()
}

#[test]
fn scenario_30_without_quorum_agents_keep_serving_and_new_agents_start() {
    let mut etcd = Etcd::cluster();
    let oracle = registered(&etcd, &["a", "b"]);
    let agent = beside(&etcd.urls(), &[]).ready();
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    let kept = watched(&agent, &etcd);
    let others: Vec<usize> = (0..3).filter(|member| *member != kept).collect();
    let started = Instant::now();
    for member in &others {
        etcd.kill(*member);
    }
    until(LATER, "the lost quorum is noticed", || (!up(&agent)).then_some(()));
    eprintln!("a lost quorum was noticed after {:.1?}", started.elapsed());
    assert_eq!(ids(&agent, "web"), ["a", "b"]);

    let late = beside(&etcd.urls(), &[]);
    until_picked(&late, "web", &["a", "b"], LATER);
    assert_eq!((up(&late), late.get("/readyz").status), (false, 503));
    assert_eq!(
        late.get("/pick/other").json()["code"],
        "not_synced",
        "what is missing there may only be late"
    );

    for member in &others {
        etcd.restart_only(*member);
    }
    oracle.add(&address("c"));
    until(LATER, "the quorum is back", || {
        etcd.try_ctl(["put", "/services/web/c", &address("c")])
            .status
            .success()
            .then_some(())
    });
    until_picked(&agent, "web", &["a", "b", "c"], LATER);
    until_picked(&late, "web", &["a", "b", "c"], LATER);
    assert!(up(&agent) && up(&late));
    picker.check("quorum lost", 1_500);
}

#[test]
fn scenario_33_large_values_arrive_after_a_disconnection_and_a_stall() {
    let etcd = Etcd::start();
    let oracle = registered(&etcd, &["a"]);
    let cable = Cable::to(etcd.port());
    let agent = beside(&cable.url(), &[]).ready();
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    let (mut client, runtime) = etcd.client();
    let mut expected = vec!["a".to_owned()];
    for how in ["cut", "stalled"] {
        if how == "cut" {
            cable.cut();
            until(SOON, "the loss is noticed", || (!up(&agent)).then_some(()));
        } else {
            cable.stall();
        }
        // One answer names sixteen instances at most.
        let puts = if how == "cut" { 8 } else { 7 };
        for number in 0..puts {
            let port = if how == "cut" { 1000 + number } else { 2000 + number };
            let pad = "x".repeat(1_000_000);
            // An unknown field makes the value large; pickd does not keep the field.
            let value = format!(r#"{{"address":"10.0.0.1:{port}","pad":"{pad}"}}"#);
            oracle.add(&format!("10.0.0.1:{port}"));
            let id = format!("{how}-{number}");
            runtime
                .block_on(client.put(format!("/services/web/{id}"), value, None))
                .unwrap();
            expected.push(id);
        }
        cable.mend();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        let took = until_picked(&agent, "web", &expected, LATER);
        eprintln!("{puts} puts of 1 MB while {how}: there {took:.1?} after it was mended");
        // The next change arrives through the watch again.
        until(SOON, "it is up", || up(&agent).then_some(()));
    }
    let lists = agent.program.logged("listed").len();
    assert!(lists < 8, "{lists} lists: an endless loop");
    etcd.delete("/services/web/a");
    let left: Vec<&str> = expected.iter().skip(1).map(String::as_str).collect();
    until_picked(&agent, "web", &left, SOON);
    oracle.remove(&address("a"));
    picker.check("large values", 150);
}

#[test]
fn scenario_37_a_learner_is_passed_over() {
    let mut etcd = Etcd::start();
    registered(&etcd, &["a"]);
    let voter = etcd.url(0);
    let learner = etcd.add_learner();
    let learner = etcd.url(learner);
    // The agent asks a random endpoint first.
    for _ in 0..4 {
        let agent = beside(&format!("{learner},{voter}"), &[]).ready();
        until_picked(&agent, "web", &["a"], SOON);
    }
    let alone = beside(&learner, &[]);
    until(LATER, "it says why not", || {
        let error = alone.get("/readyz").json()["sources"][0]["last_error"]
            .as_str()?
            .to_owned();
        error.contains("learner").then_some(())
    });
    assert_eq!(alone.get("/pick/web").json()["code"], "not_synced");
}

#[test]
fn drift_is_none_while_everything_changes_and_is_listed_again_and_again() {
    let etcd = Etcd::start();
    let folder = Folder::new();
    let text = format!("[etcd]\nendpoints = [\"{}\"]\nrefresh = \"1s\"", etcd.url(0));
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let (mut client, runtime) = etcd.client();
    let started = Instant::now();
    let mut number = 0;
    runtime.block_on(async {
        while started.elapsed() < Duration::from_secs(8) {
            let key = format!("/services/web/{}", number % 40);
            client
                .put(key.clone(), format!("10.0.0.{}:80", 1 + number % 40), None)
                .await
                .unwrap();
            if number % 3 == 0 {
                client.delete(key, None).await.unwrap();
            }
            number += 1;
        }
    });
    let drift = agent
        .metric(r#"pickd_source_drift_repaired_total{source="etcd"}"#)
        .unwrap();
    let lists = relists(&agent, "periodic");
    eprintln!("{number} changes, {lists} lists meanwhile, {drift} keys repaired");
    assert!(lists >= 2.0 && number > 100);
    assert_eq!(drift, 0.0);
    let count = runtime
        .block_on(client.get(
            "/services/web/",
            Some(etcd_client::GetOptions::new().with_prefix().with_count_only()),
        ))
        .unwrap()
        .count();
    until(SOON, "the last state", || {
        let total = agent.get("/services/web").json()["total_instances"].as_i64();
        (total == Some(count)).then_some(())
    });
}
