//! An agent beside a real etcd: `/pick` returns the instances that are registered in etcd.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use etcd_client::{PutOptions, Txn, TxnOp, WatchOptions};

use crate::support::agent::{Agent, SOON};
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::pool::{ids, pool, total, until_picked};
use crate::support::until;

fn beside(etcd: &Etcd, arguments: &[&str]) -> Agent {
    let urls = etcd.urls();
    let etcd = ["--etcd", &urls];
    Agent::run(etcd.iter().chain(arguments).map(OsStr::new)).ready()
}

fn errors(agent: &Agent, reason: &str) -> f64 {
    let series = format!(r#"pickd_source_errors_total{{reason="{reason}",source="etcd"}}"#);
    agent.metric(&series).unwrap()
}

#[test]
fn puts_and_deletes_are_seen_as_soon_as_by_a_bare_watch() {
    let etcd = Etcd::start();
    etcd.put("/services/web/a", "10.0.0.1:80");
    let agent = beside(&etcd, &[]);
    until_picked(&agent, "web", &["a"], SOON);

    // A plain watch over the same network, for comparison.
    let (client, runtime) = etcd.client();
    let (seen, bare) = std::sync::mpsc::channel();
    let mut watching = client.watch_client();
    runtime.spawn(async move {
        let options = WatchOptions::new().with_prefix();
        let mut stream = watching.watch("/services/", Some(options)).await.unwrap();
        while let Ok(Some(message)) = stream.message().await {
            for _ in message.events() {
                seen.send(Instant::now()).unwrap();
            }
        }
    });
    std::thread::sleep(Duration::from_millis(200));

    let (mut behind, mut by_ctl) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let both: &[&str] = &["a", "b"];
        for expected in [both, &["a"]] {
            // The changes are made one after the other, as on a quiet cluster.
            std::thread::sleep(Duration::from_millis(120));
            let is_put = expected.len() == 2;
            let started = Instant::now();
            if is_put {
                etcd.put("/services/web/b", &format!("10.0.0.2:{}", 80 + number));
            } else {
                etcd.delete("/services/web/b");
            }
            let told = started.elapsed();
            until_picked(&agent, "web", expected, SOON);
            let picked = Instant::now();
            let seen = bare.recv_timeout(SOON).unwrap();
            behind.push(picked.saturating_duration_since(seen));
            by_ctl.push(picked.duration_since(started).saturating_sub(told));
        }
    }
    behind.sort();
    by_ctl.sort();
    let (median, worst) = (behind[behind.len() / 2], *behind.last().unwrap());
    eprintln!(
        "from a bare watch's event to /pick: median {median:.1?}, worst {worst:.1?} of {}",
        behind.len()
    );
    let (median, worst) = (by_ctl[by_ctl.len() / 2], *by_ctl.last().unwrap());
    eprintln!("from the end of etcdctl put or del to /pick: median {median:.1?}, worst {worst:.1?}");
    // The test looks every 5 ms, on a machine that runs other tests.
    assert!(behind[behind.len() / 2] < Duration::from_millis(50), "{behind:?}");
}

#[test]
fn scenario_34_what_changes_while_it_is_listed_is_neither_lost_nor_kept() {
    let etcd = Etcd::start();
    let pairs: Vec<_> = (0..5_000)
        .map(|number| {
            (
                format!("/services/many/{number:04}"),
                format!("10.0.{}.{}:80", number / 250, number % 250 + 1),
            )
        })
        .collect();
    etcd.put_many(&pairs);
    let (mut client, runtime) = etcd.client();
    for round in 0..5 {
        // The list has several pages, and all of them change meanwhile.
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let mut changing = client.clone();
        let changes = runtime.spawn(async move {
            let mut number = 0;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                let key = format!("/services/many/{:04}", number * 37 % 5_000);
                changing.delete(key.clone(), None).await.unwrap();
                changing.put(format!("{key}-new"), "10.1.0.1:80", None).await.unwrap();
                changing
                    .put(key, format!("10.2.0.1:{}", 1 + number), None)
                    .await
                    .unwrap();
                changing
                    .delete(format!("/services/many/{:04}-new", number * 37 % 5_000), None)
                    .await
                    .unwrap();
                number += 1;
            }
        });
        let agent = beside(&etcd, &[]);
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        runtime.block_on(changes).unwrap();
        let count = runtime
            .block_on(client.get(
                "/services/many/",
                Some(etcd_client::GetOptions::new().with_prefix().with_count_only()),
            ))
            .unwrap()
            .count();
        assert_eq!(count, 5_000);
        // Two ids at one address are one instance, so the test compares addresses.
        let all = runtime
            .block_on(client.get("/services/many/", Some(etcd_client::GetOptions::new().with_prefix())))
            .unwrap();
        let mut expected: Vec<String> = all
            .kvs()
            .iter()
            .map(|pair| pair.value_str().unwrap().to_owned())
            .collect();
        expected.sort();
        expected.dedup();
        until(SOON, &format!("round {round}: all is as in etcd"), || {
            let service = agent.get("/services/many").json();
            let instances = service["instances"].as_object()?;
            let mut found: Vec<&str> = instances.values().map(|it| it["address"].as_str().unwrap()).collect();
            found.sort_unstable();
            (found == expected).then_some(())
        });
    }
}

#[test]
fn scenario_35_expired_leases_remove_one_instance_or_all_instances() {
    let etcd = Etcd::start();
    let agent = beside(&etcd, &[]);
    let (mut client, runtime) = etcd.client();
    let put_with_lease = |client: &mut etcd_client::Client, ttl: i64, ids: &[&str]| {
        runtime.block_on(async {
            let lease = client.lease_grant(ttl, None).await.unwrap().id();
            for id in ids {
                // Nothing listens at port 1.
                let value = format!("127.1.0.{}:1", id.as_bytes()[0]);
                let options = PutOptions::new().with_lease(lease);
                client
                    .put(format!("/services/web/{id}"), value, Some(options))
                    .await
                    .unwrap();
            }
        });
    };
    put_with_lease(&mut client, 2, &["a"]);
    put_with_lease(&mut client, 60, &["b"]);
    until_picked(&agent, "web", &["a", "b"], SOON);
    let took = until_picked(&agent, "web", &["b"], SOON);
    eprintln!("a lease of 2 s was over after {took:.1?}");
    put_with_lease(&mut client, 2, &["c", "d", "b"]);
    until_picked(&agent, "web", &["b", "c", "d"], SOON);
    // A large drop, but these instances refuse connections.
    until_picked(&agent, "web", &[], SOON);
    let answer = agent.get("/pick/web");
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (503, Some("no_instances"))
    );
}

#[test]
fn scenario_36_garbage_costs_its_own_key_and_is_counted() {
    let etcd = Etcd::start();
    etcd.put("/services/web/a", "10.0.0.1:80");
    etcd.put("/services/web/broken", "{\"host\":");
    let agent = beside(&etcd, &[]);
    until_picked(&agent, "web", &["a"], SOON);
    assert_eq!(errors(&agent, "invalid_instance"), 1.0);
    let (mut client, runtime) = etcd.client();
    let mut counted = 1.0;
    for value in [&b""[..], b"null", b"init_dir", b"\x00\xff\xfe", b"{}", b"[1]"] {
        runtime.block_on(client.put("/services/web/b", value, None)).unwrap();
        counted += 1.0;
        until(SOON, "it is counted", || {
            (errors(&agent, "invalid_instance") == counted).then_some(())
        });
        assert_eq!(ids(&agent, "web"), ["a"]);
    }
    runtime
        .block_on(client.put("/services/web/b", "10.0.0.2:80", None))
        .unwrap();
    until_picked(&agent, "web", &["a", "b"], SOON);
    // After an invalid value an instance stays as it was, until its key has a valid value again.
    runtime
        .block_on(client.put("/services/web/b", "init_dir", None))
        .unwrap();
    until(SOON, "it is counted", || {
        (errors(&agent, "invalid_instance") == counted + 1.0).then_some(())
    });
    assert_eq!(ids(&agent, "web"), ["a", "b"]);
    runtime.block_on(client.delete("/services/web/b", None)).unwrap();
    until_picked(&agent, "web", &["a"], SOON);
}

/// An agent that watches the keys of these services of go-zero.
fn watching_keys(etcd: &Etcd, keys: &[&str]) -> Agent {
    let prefixes: String = keys
        .iter()
        .map(|key| format!("{{ prefix = \"{key}\", format = \"go-zero\" }},"))
        .collect();
    let text = format!("[etcd]\nendpoints = [\"{}\"]\nprefixes = [{prefixes}]", etcd.url(0));
    let folder = Folder::new();
    let config = folder.write("pickd.toml", &text);
    Agent::run(["--config", config.to_str().unwrap()]).ready()
}

#[test]
fn scenario_38_user_and_user_admin_are_two_services_and_two_prefixes() {
    let etcd = Etcd::start();
    etcd.put("user/1", "10.0.0.1:80");
    etcd.put("user-admin/1", "10.0.0.2:80");
    let agent = watching_keys(&etcd, &["user"]);
    until_picked(&agent, "user", &["1"], SOON);
    etcd.put("user-admin/2", "10.0.0.3:80");
    etcd.put("user/2", "10.0.0.4:80");
    until_picked(&agent, "user", &["1", "2"], SOON);
    let answer = agent.get("/pick/user-admin");
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (404, Some("unknown_service"))
    );

    let both = watching_keys(&etcd, &["user", "user-admin"]);
    until_picked(&both, "user", &["1", "2"], SOON);
    until_picked(&both, "user-admin", &["1", "2"], SOON);
    // One stream has a separate watch for each prefix.
    etcd.delete("user/1");
    etcd.delete("user-admin/2");
    until_picked(&both, "user", &["2"], SOON);
    until_picked(&both, "user-admin", &["1"], SOON);
}

#[test]
fn a_transaction_is_one_step() {
    let etcd = Etcd::start();
    let agent = beside(&etcd, &[]);
    let (mut client, runtime) = etcd.client();
    let swap = |client: &mut etcd_client::Client, gone: [&str; 2], come: [&str; 2]| {
        let put = |id: &str| {
            TxnOp::put(
                format!("/services/web/{id}"),
                format!("10.0.0.{}:80", id.as_bytes()[0]),
                None,
            )
        };
        let delete = |id: &str| TxnOp::delete(format!("/services/web/{id}"), None);
        let steps = vec![delete(gone[0]), put(come[0]), delete(gone[1]), put(come[1])];
        runtime.block_on(client.txn(Txn::new().and_then(steps))).unwrap();
    };
    swap(&mut client, ["c", "d"], ["a", "b"]);
    until_picked(&agent, "web", &["a", "b"], SOON);
    let (one, two) = (["a", "b"], ["c", "d"]);
    for round in 0..20 {
        let (from, to) = if round % 2 == 0 { (one, two) } else { (two, one) };
        swap(&mut client, from, to);
        let started = Instant::now();
        loop {
            let seen = ids(&agent, "web");
            assert!(seen == from || seen == to, "half of a transaction: {seen:?}");
            if seen == to {
                break;
            }
            assert!(started.elapsed() < SOON);
        }
    }
}

#[test]
fn weights_tags_and_metadata_arrive_and_a_change_of_them_alone_too() {
    let etcd = Etcd::start();
    let agent = beside(&etcd, &["--strategy", "weighted_round_robin"]);
    etcd.put(
        "/services/web/a",
        r#"{"address":"10.0.0.1:80","weight":3,"tags":["v1"],"metadata":{"zone":"a"}}"#,
    );
    etcd.put(
        "/services/web/b",
        r#"{"host":"10.0.0.2","port":80,"status":"critical"}"#,
    );
    until_picked(&agent, "web", &["a"], SOON);
    let pick = agent.picks("web");
    assert_eq!((&pick["weight"], &pick["source"]), (&3.into(), &"etcd".into()));
    assert_eq!(
        (&pick["tags"][0], &pick["metadata"]["zone"]),
        (&"v1".into(), &"a".into())
    );
    etcd.put("/services/web/b", r#"{"host":"10.0.0.2","port":80,"status":"passing"}"#);
    until_picked(&agent, "web", &["a", "b"], SOON);
    etcd.put("/services/web/a", r#"{"address":"10.0.0.1:80","weight":0}"#);
    until_picked(&agent, "web", &["b"], SOON);
    assert_eq!(total(&agent, "web"), 2);
    // The same id at another address is an instance that moved.
    etcd.put("/services/web/b", "10.0.0.3:81");
    until(SOON, "it moves", || {
        (pool(&agent, "web").get("b")? == "10.0.0.3:81").then_some(())
    });
}

#[test]
fn nothing_is_unknown_before_etcd_has_told_everything() {
    let mut etcd = Etcd::not_started();
    let url = etcd.url(0);
    let agent = Agent::run(["--etcd", &url]);
    let answer = agent.get("/pick/web");
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (503, Some("not_synced"))
    );
    assert_eq!(agent.get("/readyz").status, 503);
    etcd.restart(0);
    etcd.put("/services/web/a", "10.0.0.1:80");
    until_picked(&agent, "web", &["a"], Duration::from_secs(30));
    assert_eq!(agent.get("/pick/other").json()["code"], "unknown_service");
    assert!(errors(&agent, "unreachable") >= 1.0);
}
