//! Many keys, and many changes at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::agent::Agent;
use crate::support::etcd::Etcd;
use crate::support::load::{Oracle, Picker};
use crate::support::until;

/// Bound for a debug build on a busy machine.
const LATER: Duration = Duration::from_secs(180);

#[test]
fn scenario_33_a_hundred_thousand_keys_are_listed_page_by_page() {
    const SERVICES: usize = 10_000;
    const EACH: usize = 10;
    let etcd = Etcd::start();
    let pairs: Vec<_> = (0..SERVICES)
        .flat_map(|service| {
            (0..EACH).map(move |number| {
                let value = format!(
                    r#"{{"host":"10.{}.{}.{number}","port":80,"tags":["v1"],"metadata":{{"zone":"eu-1"}}}}"#,
                    service / 250,
                    service % 250
                );
                (format!("/services/service-{service:05}/{number}"), value)
            })
        })
        .collect();
    let started = Instant::now();
    etcd.put_many(&pairs);
    eprintln!("{} keys put in {:.1?}", pairs.len(), started.elapsed());

    // For comparison, a plain client reads the same keys in pages of a thousand.
    let (client, runtime) = etcd.client();
    let mut kv = client.kv_client().max_decoding_message_size(64 << 20);
    let bare = runtime.block_on(async {
        let started = Instant::now();
        let (mut from, mut revision, mut keys) = (b"/services/".to_vec(), 0, 0);
        loop {
            let options = etcd_client::GetOptions::new()
                .with_range("/services0")
                .with_limit(1_000)
                .with_revision(revision);
            let page = kv.get(from, Some(options)).await.unwrap();
            keys += page.kvs().len();
            revision = page.header().unwrap().revision();
            if !page.more() {
                break;
            }
            from = [page.kvs().last().unwrap().key(), b"\0"].concat();
        }
        assert_eq!(keys, SERVICES * EACH);
        started.elapsed()
    });

    let started = Instant::now();
    let agent = Agent::run(["--etcd", &etcd.url(0)]);
    let empty = agent.resident_bytes();
    until(LATER, "it is ready", || {
        (agent.get("/readyz").status == 200).then_some(())
    });
    let took = started.elapsed();
    let each = (agent.resident_bytes() - empty) / (SERVICES * EACH) as u64;
    eprintln!("a bare list takes {bare:.2?}; the agent is ready after {took:.2?}, and takes {each} bytes an instance");
    for service in [0, SERVICES / 2, SERVICES - 1] {
        let picked = agent.picks(&format!("service-{service:05}"));
        assert!(
            picked["host"]
                .as_str()
                .unwrap()
                .starts_with(&format!("10.{}.{}.", service / 250, service % 250))
        );
    }
    assert!(took < LATER && each < 8_192);
}

#[test]
fn scenario_40_ten_thousand_puts_end_in_the_exact_state() {
    const PUTS: usize = 10_000;
    const KEYS: usize = 256;
    let etcd = Etcd::start();
    etcd.put("/services/web/steady", "10.9.9.9:80");
    let agent = Agent::run(["--etcd", &etcd.url(0)]).ready();
    let oracle = Oracle::new(Duration::from_secs(5), ["10.9.9.9:80".to_owned()]);
    for number in 0..PUTS {
        oracle.add(&address(number));
    }
    let picker = Picker::start(agent.address, "/pick/web", 300, &oracle);
    let before = agent.resident_bytes();
    let pairs: Vec<_> = (0..PUTS)
        .map(|number| (format!("/services/web/{}", number % KEYS), address(number)))
        .collect();
    let started = Instant::now();
    // Transactions of a hundred puts; with single puts the test would measure the disk.
    etcd.put_many(&pairs);
    let took = started.elapsed();
    let put = Instant::now();
    let expected: BTreeMap<String, String> = (PUTS - KEYS..PUTS)
        .map(|number| ((number % KEYS).to_string(), address(number)))
        .chain([("steady".to_owned(), "10.9.9.9:80".to_owned())])
        .collect();
    until(LATER, "the last state", || {
        let service = agent.get("/services/web").json();
        let instances = service["instances"].as_object()?;
        let found: BTreeMap<String, String> = instances
            .iter()
            .map(|(id, it)| (id.clone(), it["address"].as_str().unwrap().to_owned()))
            .collect();
        (found == expected).then_some(())
    });
    let behind = put.elapsed();
    let updates = agent.metric(r#"pickd_source_updates_total{source="etcd"}"#).unwrap();
    let views = agent.program.logged("pool changed").len();
    let grown = agent.resident_bytes().saturating_sub(before) >> 10;
    eprintln!(
        "{PUTS} puts in {took:.1?}: exact {behind:.1?} after the last, {updates} updates, {views} views, {grown} KiB more"
    );
    // One publication every 50 ms, and some at either end.
    let most = (took + behind).as_millis() as f64 / 50.0 + 5.0;
    assert!(updates <= most, "{updates} updates");
    assert!(views as f64 <= most && grown < 64 << 10);
    picker.check("ten thousand puts", 50);
}

fn address(number: usize) -> String {
    format!("10.{}.{}.1:80", number / 250, number % 250)
}
