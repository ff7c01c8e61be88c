//! The schedule without sockets and without passing time: the tests make up every answer and every
//! moment.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::super::client::{Answer, AskError, Cause};
use super::super::settings::ConsulSettings;
use super::super::wire::{Head, SOURCE};
use super::{Consistency, Mode, Request, Schedule, Target};
use crate::balancer::{SourceStatus, Timestamp};
use crate::discovery::watcher::{CONFIRM_AFTER, Reason, Trust, Update};

/// A schedule, and the part of Consul, played by the test.
struct Fixture {
    schedule: Schedule,
    now: Timestamp,
    /// Requests without an answer yet.
    open: Vec<Request>,
    watches: usize,
}

impl Fixture {
    fn new(settings: &ConsulSettings) -> Self {
        let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
        let now = Timestamp::default() + Duration::from_secs(1);
        let schedule = Schedule::new(settings, status, Arc::new(|_| 0), true, 7, now);
        let mut fixture = Self {
            schedule,
            now,
            open: Vec::new(),
            watches: settings.max_watches,
        };
        fixture.ask();
        fixture
    }

    /// With services `s0`, `s1`, ... of one instance each, all read twice.
    fn synced(services: usize, settings: &ConsulSettings) -> Self {
        let mut fixture = Self::new(settings);
        let names: Vec<String> = (0..services).map(|i| format!("s{i}")).collect();
        for _ in 0..2 {
            fixture.answer_reads(&names);
            fixture.pass(CONFIRM_AFTER);
        }
        fixture.answer_reads(&names);
        assert!(fixture.updates().contains(&Update::Synced));
        fixture
    }

    fn answer_reads(&mut self, names: &[String]) {
        self.answer_reads_but("none", names);
    }

    /// Answers all reads except those of one service.
    fn answer_reads_but(&mut self, failing: &str, names: &[String]) {
        let is = |request: &&Request| request.mode == Mode::Read && target(request) != failing;
        while let Some(read) = self.open.iter().find(is).cloned() {
            match read.target {
                Target::Catalog => self.answer(&read, 10, &catalog(names)),
                Target::Service(ref name) => self.answer(&read, 10, &health(name.as_str(), &[name.as_str()])),
            }
        }
    }

    fn ask(&mut self) {
        while self.schedule.room_to_test(self.now).is_some() {
            self.schedule.take_room(true, self.now);
        }
        while let Some(request) = self.schedule.request(self.now) {
            self.open.push(request);
            let most = self.watches.clamp(1, 64) + 4;
            assert!(self.open.len() <= most, "{} requests at once", self.open.len());
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.ask();
    }

    fn answer(&mut self, request: &Request, index: u64, body: &str) {
        let head = Head {
            index: NonZeroU64::new(index),
            known_leader: true,
            last_contact: Duration::ZERO,
            filtered: false,
        };
        self.take(
            request,
            Ok(Answer {
                head,
                body: body.to_owned().into(),
                truly_empty: false,
            }),
        );
    }

    fn take(&mut self, request: &Request, result: Result<Answer, AskError>) {
        self.open.retain(|open| open.number != request.number);
        self.schedule.take(request, result, self.now);
        self.ask();
    }

    fn fail(&mut self, request: &Request, reason: Reason) {
        let cause = match reason {
            Reason::Unreachable => Cause::NoConnection,
            Reason::Timeout => Cause::Timeout,
            _ => Cause::Answer,
        };
        self.fail_as(request, reason, cause);
    }

    fn fail_as(&mut self, request: &Request, reason: Reason, cause: Cause) {
        self.take(
            request,
            Err(AskError {
                reason,
                cause,
                detail: String::from("made up"),
            }),
        );
    }

    fn read(&self, name: &str) -> Option<Request> {
        let is = |request: &&Request| target(request) == name && request.mode == Mode::Read;
        self.open.iter().find(is).cloned()
    }

    fn poll(&self, name: &str) -> Option<Request> {
        let is = |request: &&Request| target(request) == name && request.mode != Mode::Read;
        self.open.iter().find(is).cloned()
    }

    fn polls(&self) -> usize {
        self.open.iter().filter(|request| request.mode != Mode::Read).count()
    }

    fn updates(&mut self) -> Vec<Update> {
        self.schedule.answers.updates.drain(..).collect()
    }

    /// The updates about one service: ids and trust, or `None` for gone.
    fn updates_of(&mut self, name: &str) -> Vec<(Option<Vec<String>>, Trust)> {
        let told = |update| match update {
            Update::Service(reading) if reading.service.as_str() == name => Some((
                Some(reading.instances.iter().map(|i| i.id().to_string()).collect()),
                reading.trust,
            )),
            Update::Gone { service, trust, .. } if service.as_str() == name => Some((None, trust)),
            _ => None,
        };
        self.updates().into_iter().filter_map(told).collect()
    }
}

fn target(request: &Request) -> &str {
    match &request.target {
        Target::Catalog => "",
        Target::Service(name) => name.as_str(),
    }
}

fn catalog(names: &[String]) -> String {
    let names = names.iter().map(String::as_str).chain(["consul"]);
    serde_json::Value::Object(names.map(|name| (name.to_owned(), json!([]))).collect()).to_string()
}

fn health(service: &str, ids: &[&str]) -> String {
    let entry = |id: &&str| json!({ "Node": { "Node": "n", "Address": "10.0.0.1" }, "Service": { "ID": id, "Service": service, "Port": 80 } });
    serde_json::Value::Array(ids.iter().map(entry).collect()).to_string()
}

fn settings() -> ConsulSettings {
    ConsulSettings::new("http://unused")
}

fn ids(ids: &[&str]) -> Option<Vec<String>> {
    Some(ids.iter().map(|id| format!("{id}@n")).collect())
}

#[test]
fn the_catalog_is_tried_alone_until_it_answers() {
    let mut fixture = Fixture::new(&settings());
    assert_eq!(fixture.open.iter().map(target).collect::<Vec<_>>(), [""]);
    let read = fixture.open[0].clone();
    fixture.fail(&read, Reason::Unreachable);
    assert_eq!(
        fixture.schedule.answers.error.take().unwrap().reason,
        Reason::Unreachable
    );
    assert!(
        fixture.schedule.answers.status.errors().is_empty(),
        "counted by the caller of the watcher"
    );
    fixture.pass(Duration::from_secs(1));
    assert_eq!(fixture.open.iter().map(target).collect::<Vec<_>>(), [""]);
    assert_eq!(fixture.updates(), []);
}

#[test]
fn first_reads_are_confirmed_and_synced_is_sent_after_the_last() {
    let mut fixture = Fixture::new(&settings());
    let names = [String::from("a"), String::from("b")];
    let read = fixture.open[0].clone();
    fixture.answer(&read, 10, &catalog(&names));
    let (a, b) = (fixture.read("a").unwrap(), fixture.read("b").unwrap());
    fixture.answer(&a, 10, &health("a", &["1"]));
    assert!(!fixture.updates().contains(&Update::Synced));
    fixture.answer(&b, 10, &health("b", &["1"]));
    let news = fixture.updates();
    assert!(
        matches!(&news[..], [Update::Service(reading), Update::Synced] if reading.trust == Trust::AfterGap),
        "{news:?}"
    );
    assert!(fixture.poll("a").is_some() && fixture.poll("b").is_some() && fixture.poll("").is_some());
    fixture.pass(CONFIRM_AFTER);
    let a = fixture.read("a").unwrap();
    fixture.answer(&a, 10, &health("a", &["1"]));
    assert_eq!(fixture.updates_of("a"), [(ids(&["1"]), Trust::Steady)]);
}

#[test]
fn polls_stay_within_their_limit() {
    for watches in [1, 2, 8, 64, 1000] {
        let mut settings = settings();
        settings.max_watches = watches;
        let mut fixture = Fixture::synced(200, &settings);
        let limit = watches.min(64);
        assert_eq!(fixture.polls(), limit, "{watches}");
        for round in 0..300_u64 {
            let Some(poll) = fixture.open.iter().find(|request| request.mode != Mode::Read).cloned() else {
                break;
            };
            let body = match target(&poll) {
                "" => catalog(&(0..200).map(|i| format!("s{i}")).collect::<Vec<_>>()),
                name => health(name, &[name]),
            };
            fixture.answer(&poll, 11 + round, &body);
            assert!(fixture.polls() <= limit, "{watches}");
            fixture.pass(Duration::from_millis(100));
            assert!(fixture.open.iter().filter(|request| request.mode == Mode::Read).count() <= 4);
        }
    }
}

#[test]
fn a_failure_counts_once_and_answers_in_flight_are_discarded() {
    let mut fixture = Fixture::synced(3, &settings());
    let polls: Vec<_> = fixture.open.clone();
    assert_eq!(polls.len(), 4);
    fixture.fail(&polls[0], Reason::Unreachable);
    assert!(fixture.schedule.answers.error.take().is_some());
    fixture.fail(&polls[1], Reason::Unreachable);
    assert!(fixture.schedule.answers.error.is_none(), "the same break");
    let Target::Service(name) = &polls[2].target else {
        panic!("{polls:?}")
    };
    fixture.answer(&polls[2], 99, &health(name.as_str(), &[]));
    assert_eq!(fixture.updates(), []);
    // Only the catalog, and without an index.
    fixture.pass(Duration::from_secs(1));
    let reads: Vec<_> = fixture
        .open
        .iter()
        .filter(|request| request.generation == 1)
        .cloned()
        .collect();
    assert_eq!(
        reads
            .iter()
            .map(|request| (target(request), request.mode))
            .collect::<Vec<_>>(),
        [("", Mode::Read)]
    );
    fixture.answer(&reads[0], 5, &catalog(&[String::from("s0"), String::from("s1")]));
    assert_eq!(
        fixture.updates_of("s2"),
        [(None, Trust::AfterLoss)],
        "the index went back"
    );
    let s0 = fixture.read("s0").unwrap();
    fixture.answer(&s0, 5, &health("s0", &["s0"]));
    assert_eq!(
        fixture.updates_of("s0"),
        [(ids(&["s0"]), Trust::AfterLoss)],
        "unchanged, and sent"
    );
    fixture.pass(CONFIRM_AFTER);
    let (confirm, s0) = (fixture.read("").unwrap(), fixture.read("s0").unwrap());
    fixture.answer(&confirm, 5, &catalog(&[String::from("s0"), String::from("s1")]));
    assert_eq!(fixture.updates_of("s2"), [(None, Trust::Steady)]);
    fixture.answer(&s0, 5, &health("s0", &["s0"]));
    assert_eq!(fixture.updates_of("s0"), [(ids(&["s0"]), Trust::Steady)]);
}

#[test]
fn an_unchanged_poll_is_never_accepted_over_a_read() {
    // Scenario 9: the read sees one instance, at the same index; the poll in flight returns an
    // older body with two.
    let mut fixture = Fixture::synced(1, &settings());
    let poll = fixture.poll("s0").unwrap();
    fixture.pass(Duration::from_secs(150));
    let read = fixture.read("s0").unwrap();
    fixture.answer(&read, 10, &health("s0", &["other"]));
    assert_eq!(fixture.updates_of("s0"), [(ids(&["other"]), Trust::Steady)]);
    fixture.answer(&poll, 10, &health("s0", &["s0"]));
    assert_eq!(fixture.updates_of("s0"), []);
    let read = fixture.read("s0").expect("it is read again instead");
    assert!(fixture.poll("s0").is_none());
    fixture.answer(&read, 10, &health("s0", &["other"]));
    assert_eq!(fixture.updates_of("s0"), []);
    fixture.pass(Duration::from_secs(1));
    assert!(fixture.poll("s0").is_some());
}

#[test]
fn a_read_older_than_the_last_answer_is_discarded() {
    let mut fixture = Fixture::synced(1, &settings());
    fixture.pass(Duration::from_secs(150));
    let (poll, read) = (fixture.poll("s0").unwrap(), fixture.read("s0").unwrap());
    fixture.answer(&poll, 12, &health("s0", &["new"]));
    assert_eq!(fixture.updates_of("s0"), [(ids(&["new"]), Trust::Steady)]);
    fixture.answer(&read, 10, &health("s0", &["s0"]));
    assert_eq!(fixture.updates_of("s0"), []);
    fixture.pass(Duration::from_secs(1));
    assert!(fixture.read("s0").is_some());
}

#[test]
fn an_empty_answer_waits_for_a_catalog_that_was_asked_for_later() {
    let names = [String::from("s0"), String::from("s1")];
    let mut fixture = Fixture::synced(2, &settings());
    let (poll, older) = (fixture.poll("s0").unwrap(), fixture.poll("").unwrap());
    fixture.answer(&poll, 11, "[]");
    assert_eq!(fixture.updates_of("s0"), [], "not yet");
    fixture.answer(&older, 11, &catalog(&[&names[..], &[String::from("s9")]].concat()));
    assert_eq!(fixture.updates_of("s0"), [], "that one was asked before");
    let newer = fixture.read("").unwrap();
    fixture.answer(&newer, 12, &catalog(&names));
    assert_eq!(fixture.updates_of("s0"), [(ids(&[]), Trust::AdditionsOnly)]);
    assert_eq!(fixture.schedule.answers.status.errors().get("denied"), Some(&1));

    let poll = fixture.poll("s1").unwrap();
    fixture.answer(&poll, 13, "[]");
    fixture.pass(Duration::from_secs(1));
    let newer = fixture.read("").unwrap();
    fixture.answer(&newer, 13, &catalog(&names[..1]));
    assert_eq!(fixture.updates_of("s1"), [(None, Trust::Steady)], "really gone");
}

#[test]
fn a_service_without_a_poll_is_read_every_ten_seconds() {
    let mut settings = settings();
    settings.max_watches = 4;
    let mut fixture = Fixture::synced(50, &settings);
    let names: Vec<String> = (0..50).map(|i| format!("s{i}")).collect();
    let mut read = std::collections::BTreeSet::new();
    for _ in 0..100 {
        fixture.pass(Duration::from_millis(100));
        while let Some(request) = fixture.open.iter().find(|request| request.mode == Mode::Read).cloned() {
            read.insert(target(&request).to_owned());
            match target(&request) {
                "" => fixture.answer(&request, 10, &catalog(&names)),
                name => fixture.answer(&request, 10, &health(name, &[name])),
            }
        }
    }
    assert!(read.len() >= 47, "{}", read.len());
}

#[test]
fn the_most_picked_services_get_the_polls() {
    let mut settings = settings();
    settings.max_watches = 3;
    let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
    let interest = Arc::new(|name: &crate::balancer::ServiceName| u64::from(name.as_str() == "s7") * 100);
    let now = Timestamp::default();
    let mut fixture = Fixture {
        schedule: Schedule::new(&settings, status, interest, true, 7, now),
        now,
        open: Vec::new(),
        watches: settings.max_watches,
    };
    let names: Vec<String> = (0..10).map(|i| format!("s{i}")).collect();
    fixture.ask();
    fixture.answer_reads(&names);
    assert!(fixture.poll("s7").is_none(), "the first come first");
    for name in ["s0", "s1"] {
        let poll = fixture.poll(name).unwrap();
        fixture.pass(Duration::from_secs(6));
        fixture.answer(&poll, 11, &health(name, &[name]));
        fixture.answer_reads(&names);
    }
    assert!(fixture.poll("s7").is_some(), "{:?}", fixture.open);
    assert_eq!(fixture.polls(), 3);
}

#[test]
fn a_changed_catalog_leads_to_a_bounded_number_of_reads() {
    let mut fixture = Fixture::synced(3, &settings());
    let names: Vec<String> = (0..3).map(|i| format!("s{i}")).collect();
    let mut reads = 0;
    for round in 0..100 {
        if let Some(poll) = fixture.poll("") {
            fixture.answer(&poll, 11 + round, &catalog(&names));
        }
        fixture.pass(Duration::from_millis(200));
        while let Some(request) = fixture.open.iter().find(|request| request.mode == Mode::Read).cloned() {
            reads += usize::from(request.target != Target::Catalog);
            match target(&request) {
                "" => fixture.answer(&request, 11 + round, &catalog(&names)),
                name => fixture.answer(&request, 10, &health(name, &[name])),
            }
        }
        if round == 1 {
            assert!(reads >= 3, "at once at first: {reads}");
        }
    }
    assert!(reads <= 3 * 4, "{reads} in twenty seconds of churn");
}

#[test]
fn without_a_leader_one_read_asks_it_and_may_fail() {
    let mut fixture = Fixture::synced(1, &settings());
    let poll = fixture.poll("s0").unwrap();
    let head = Head {
        index: NonZeroU64::new(11),
        known_leader: false,
        last_contact: Duration::ZERO,
        filtered: false,
    };
    fixture.take(
        &poll,
        Ok(Answer {
            head,
            body: health("s0", &["new"]).into(),
            truly_empty: false,
        }),
    );
    assert_eq!(fixture.updates_of("s0"), [(ids(&["new"]), Trust::AdditionsOnly)]);
    assert!(!fixture.schedule.answers.status.is_up());
    let to_leader = fixture.read("").unwrap();
    assert_eq!(to_leader.consistency, Consistency::Default);
    fixture.fail(&to_leader, Reason::Unavailable);
    assert!(fixture.schedule.answers.error.is_none());
    fixture.pass(Duration::from_secs(3));
    let again = fixture.read("").unwrap();
    assert_eq!(again.consistency, Consistency::Stale);
    fixture.take(
        &again,
        Ok(Answer {
            head,
            body: "{}".into(),
            truly_empty: false,
        }),
    );
    assert!(
        fixture.schedule.answers.error.is_none() && fixture.updates().is_empty(),
        "an empty catalog without a leader means nothing"
    );
    fixture.pass(Duration::from_secs(3));
    let again = fixture.read("").unwrap();
    fixture.answer(&again, 12, &catalog(&[String::from("s0")]));
    assert!(fixture.schedule.answers.status.is_up());
    let read = fixture.read("s0").unwrap();
    fixture.answer(&read, 12, &health("s0", &["new"]));
    assert_eq!(fixture.updates_of("s0"), [(ids(&["new"]), Trust::AfterGap)]);
}

#[test]
fn an_empty_catalog_is_an_error_and_changes_nothing() {
    let mut fixture = Fixture::synced(2, &settings());
    let poll = fixture.poll("").unwrap();
    fixture.answer(&poll, 11, "{}");
    assert_eq!(fixture.schedule.answers.error.take().unwrap().reason, Reason::Denied);
    assert_eq!(fixture.updates(), []);
}

#[test]
fn there_is_always_a_next_time_to_wake() {
    let mut settings = settings();
    settings.max_watches = 4;
    let mut fixture = Fixture::synced(20, &settings);
    for _ in 0..1000 {
        let wake = fixture.schedule.wake().expect("reads come due for ever");
        assert!(
            wake > fixture.now,
            "nothing is left to ask now, so a tight loop would find nothing either"
        );
        fixture.now = wake;
        fixture.ask();
        fixture.answer_reads(&(0..20).map(|i| format!("s{i}")).collect::<Vec<_>>());
    }
}

#[test]
fn every_service_is_read_again_after_the_catalog_went_back() {
    // Scenario 10: the polls of the services may wait at indexes that lie ahead of the present
    // index.
    let names = [String::from("s0"), String::from("s1")];
    let mut fixture = Fixture::synced(2, &settings());
    let poll = fixture.poll("").unwrap();
    fixture.pass(Duration::from_millis(100));
    fixture.answer(&poll, 10, &catalog(&names));
    let read = fixture.read("").expect("woken early and without a change");
    fixture.answer(&read, 4, &catalog(&names));
    let s0 = fixture.read("s0").expect("read again");
    fixture.answer(&s0, 4, &health("s0", &["older"]));
    assert_eq!(fixture.updates_of("s0"), [(ids(&["older"]), Trust::AfterLoss)]);
    fixture.pass(CONFIRM_AFTER);
    let s0 = fixture.read("s0").unwrap();
    fixture.answer(&s0, 4, &health("s0", &["older"]));
    assert_eq!(fixture.updates_of("s0"), [(ids(&["older"]), Trust::Steady)]);
}

#[test]
fn two_spellings_of_a_name_are_one_service_and_no_change() {
    let body = |spellings: &[&str], others: &[&str]| {
        let tagged = spellings.iter().map(|name| (name.to_string(), json!([name])));
        let others = others.iter().map(|name| (name.to_string(), json!([])));
        serde_json::Value::Object(tagged.chain(others).collect()).to_string()
    };
    // The services that are read after the catalog has gained one that has nothing to do with them.
    let read_after = |spellings: &[&str]| {
        let mut fixture = Fixture::new(&settings());
        let catalog = fixture.open[0].clone();
        fixture.answer(&catalog, 10, &body(spellings, &["consul"]));
        for _ in 0..2 {
            let read = fixture.read("Redis").unwrap();
            assert!(fixture.read("redis").is_none());
            fixture.answer(&read, 10, &health("redis", &["1"]));
            fixture.pass(CONFIRM_AFTER);
        }
        let poll = fixture.poll("").unwrap();
        fixture.answer(&poll, 11, &body(spellings, &["consul", "web"]));
        fixture.pass(Duration::from_millis(50));
        let reads = fixture.open.iter().filter(|request| request.mode == Mode::Read);
        reads.map(|request| target(request).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(read_after(&["Redis", "redis"]), read_after(&["Redis"]));
    assert_eq!(read_after(&["Redis"]).iter().filter(|name| *name == "web").count(), 1);
}

fn closed() -> Cause {
    Cause::Reset
}

#[test]
fn a_service_that_fails_is_asked_again_alone_and_no_other_waits() {
    let mut fixture = Fixture::new(&settings());
    let names: Vec<String> = (0..5).map(|i| format!("s{i}")).collect();
    let read = fixture.open[0].clone();
    fixture.answer(&read, 10, &catalog(&names));
    for attempt in 0..3 {
        let s2 = fixture.read("s2").unwrap();
        fixture.fail(&s2, Reason::Unavailable);
        assert!(fixture.schedule.answers.error.is_none());
        if attempt == 0 {
            for name in ["s0", "s1", "s3", "s4"] {
                let read = fixture.read(name).unwrap();
                fixture.answer(&read, 10, &health(name, &[name]));
            }
        }
        let synced = fixture.updates().contains(&Update::Synced);
        assert_eq!(synced, attempt == 2, "three attempts delay the sync");
        assert!(
            fixture.read("s2").is_none() && fixture.poll("s2").is_none(),
            "not at once"
        );
        fixture.pass(Duration::from_secs(1 << attempt));
    }
    let failing = fixture.schedule.answers.status.failing_services();
    assert_eq!(failing.len(), 1);
    assert!(fixture.poll("s0").is_some() && fixture.poll("s4").is_some());
    // Changes of the catalog do not shorten the pause.
    fixture.pass(Duration::from_secs(60));
    fixture.answer_reads_but("s2", &names);
    let s2 = fixture.read("s2").unwrap();
    fixture.fail(&s2, Reason::Unavailable);
    let poll = fixture.poll("").unwrap();
    fixture.answer(&poll, 11, &catalog(&names));
    fixture.pass(Duration::from_secs(1));
    fixture.answer_reads_but("s2", &names);
    assert!(fixture.read("s2").is_none(), "{:?}", fixture.open);
    fixture.pass(Duration::from_secs(60));
    fixture.answer_reads_but("s2", &names);
    let s2 = fixture.read("s2").unwrap();
    fixture.answer(&s2, 11, &health("s2", &["s2"]));
    assert!(fixture.schedule.answers.status.failing_services().is_empty());
    assert!(!fixture.updates_of("s2").is_empty());
}

#[test]
fn a_service_without_rights_delays_nothing_and_a_failed_catalog_is_consul() {
    let mut fixture = Fixture::new(&settings());
    let read = fixture.open[0].clone();
    fixture.answer(&read, 10, &catalog(&[String::from("s0")]));
    let s0 = fixture.read("s0").unwrap();
    fixture.fail(&s0, Reason::Denied);
    assert!(fixture.updates().contains(&Update::Synced));
    assert_eq!(fixture.schedule.answers.status.failing_services().len(), 1);
    let poll = fixture.poll("").unwrap();
    fixture.fail(&poll, Reason::Denied);
    assert_eq!(fixture.schedule.answers.error.take().unwrap().reason, Reason::Denied);
    assert!(
        fixture.schedule.answers.status.failing_services().is_empty(),
        "Consul as a whole fails"
    );
}

#[test]
fn a_refused_request_is_sent_again_and_keeps_what_was_read() {
    let mut fixture = Fixture::synced(3, &settings());
    let poll = fixture.poll("s0").unwrap();
    let refused = Cause::Throttled {
        retry_after: Some(Duration::from_secs(2)),
    };
    fixture.fail_as(&poll, Reason::Throttled, refused);
    assert!(fixture.schedule.answers.error.is_none());
    assert!(fixture.poll("s0").is_none(), "not before the two seconds are over");
    fixture.pass(Duration::from_secs(2));
    let again = fixture.poll("s0").expect("at the same index, without a read");
    assert_eq!(fixture.read("s0"), None);
    fixture.answer(&again, 11, &health("s0", &["new"]));
    assert_eq!(fixture.updates_of("s0"), [(ids(&["new"]), Trust::Steady)]);
}

#[test]
fn a_service_that_alone_is_refused_slows_no_other() {
    let mut fixture = Fixture::synced(3, &settings());
    fixture.pass(Duration::from_secs(200));
    let refused = Cause::Throttled { retry_after: None };
    for _ in 0..10 {
        if let Some(read) = fixture.read("s0") {
            fixture.fail_as(&read, Reason::Throttled, refused);
        }
        for name in ["s1", "s2"] {
            if let Some(read) = fixture.read(name) {
                fixture.answer(&read, 10, &health(name, &[name]));
            }
        }
        if let Some(read) = fixture.read("") {
            fixture.answer(&read, 10, &catalog(&["s0", "s1", "s2"].map(String::from)));
        }
        fixture.pass(Duration::from_secs(1));
    }
    let failing = fixture.schedule.answers.status.failing_services();
    assert_eq!(failing.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["s0"]);
    assert_eq!(
        fixture.schedule.pace.ready_at(),
        fixture.schedule.pace.ready_at().min(fixture.now)
    );
}

#[test]
fn a_closed_connection_beside_open_ones_halves_the_polls() {
    let names: Vec<String> = (0..20).map(|i| format!("s{i}")).collect();
    let mut fixture = Fixture::synced(20, &settings());
    let start = fixture.now;
    let polls = fixture.polls();
    assert_eq!(polls, 21);
    fixture.pass(Duration::from_secs(150));
    let read = fixture.read("s3").unwrap();
    fixture.fail_as(&read, Reason::Unreachable, closed());
    assert!(fixture.schedule.answers.error.is_none(), "not yet known");
    fixture.pass(Duration::from_millis(300));
    assert!(fixture.schedule.answers.error.is_none(), "the polls are open");
    assert_eq!(fixture.schedule.answers.status.limits().long_polls, Some(16));
    fixture.answer_reads_but("s3", &names);
    while fixture.read("s3").is_none() {
        assert!(fixture.now.since(start) < Duration::from_secs(155), "asked again");
        fixture.pass(Duration::from_millis(100));
        fixture.answer_reads_but("s3", &names);
    }
    assert_eq!(fixture.updates(), []);
    // While the polls run out, further closed connections tell nothing new.
    let read = fixture.read("s3").unwrap();
    fixture.fail_as(&read, Reason::Unreachable, closed());
    fixture.pass(Duration::from_millis(300));
    assert_eq!(fixture.schedule.answers.status.limits().long_polls, Some(16));
}

#[test]
fn when_all_connections_are_closed_consul_is_away() {
    let mut fixture = Fixture::synced(3, &settings());
    for poll in fixture.open.clone() {
        fixture.fail_as(&poll, Reason::Unreachable, closed());
    }
    let reads = fixture.open.clone();
    for read in reads {
        fixture.fail_as(&read, Reason::Unreachable, closed());
    }
    fixture.pass(Duration::from_millis(300));
    assert_eq!(
        fixture.schedule.answers.error.take().unwrap().reason,
        Reason::Unreachable
    );
    assert_eq!(
        fixture.schedule.answers.status.limits().long_polls,
        Some(16),
        "no sign of a limit"
    );
    assert_eq!(fixture.schedule.answers.status.limits().wait, None);
}

#[test]
fn polls_that_are_cut_are_shortened_once_the_catalog_has_answered() {
    let names: Vec<String> = (0..3).map(|i| format!("s{i}")).collect();
    let mut fixture = Fixture::synced(3, &settings());
    fixture.answer_reads(&names);
    let poll = fixture.poll("s0").unwrap();
    fixture.pass(Duration::from_secs(4));
    fixture.fail_as(&poll, Reason::Unavailable, Cause::Gateway);
    let limit = |fixture: &Fixture| fixture.schedule.answers.status.limits().wait;
    assert_eq!(limit(&fixture), None);
    let read = fixture.read("s0").expect("what the poll may have missed");
    fixture.answer(&read, 10, &health("s0", &["s0"]));
    assert_eq!(limit(&fixture), None, "only the catalog speaks for Consul");
    fixture.answer_reads(&names);
    let passes = fixture.now.since(poll.asked_at).mul_f64(0.8);
    assert_eq!(limit(&fixture), Some(passes));
    assert_eq!(fixture.updates(), []);
    assert!(fixture.schedule.answers.error.is_none());
    fixture.pass(Duration::from_secs(1));
    let Mode::Poll { wait, .. } = fixture.poll("s0").unwrap().mode else {
        panic!("{:?}", fixture.open)
    };
    assert!(wait <= passes, "{wait:?}");
}

#[test]
fn a_poll_that_fails_with_consul_shortens_nothing() {
    let mut fixture = Fixture::synced(3, &settings());
    let poll = fixture.poll("s0").unwrap();
    fixture.pass(Duration::from_secs(4));
    fixture.fail_as(&poll, Reason::Unavailable, Cause::Gateway);
    let read = fixture.read("").unwrap();
    fixture.fail_as(&read, Reason::Unavailable, Cause::Gateway);
    assert!(fixture.schedule.answers.error.take().is_some());
    let read = fixture.read("").unwrap();
    fixture.answer(&read, 10, &catalog(&[String::from("s0")]));
    assert_eq!(fixture.schedule.answers.status.limits().wait, None);
}

#[test]
fn a_service_whose_poll_returns_at_once_is_asked_more_and_more_rarely() {
    let mut fixture = Fixture::synced(1, &settings());
    let mut asked = Vec::new();
    let start = fixture.now;
    let mut index = 10;
    while fixture.now.since(start) < Duration::from_secs(200) {
        while let Some(request) = fixture.poll("s0").or_else(|| fixture.read("s0")) {
            index += 1;
            asked.push(fixture.now.since(start).as_secs_f64());
            fixture.answer(&request, index, &health("s0", &["s0"]));
        }
        fixture.pass(Duration::from_millis(100));
    }
    let gaps: Vec<f64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(asked.len() < 25, "{asked:?}");
    assert!(gaps.iter().all(|gap| *gap < 15.2), "{gaps:?}");
    assert!(gaps[gaps.len() - 3..].iter().any(|gap| *gap > 14.0), "{gaps:?}");
    // News makes it fast again.
    let request = loop {
        match fixture.poll("s0").or_else(|| fixture.read("s0")) {
            Some(request) => break request,
            None => fixture.pass(Duration::from_millis(100)),
        }
    };
    fixture.answer(&request, index + 1, &health("s0", &["new"]));
    assert_eq!(fixture.updates_of("s0").len(), 1);
    fixture.pass(Duration::from_millis(300));
    assert!(fixture.poll("s0").is_some());
}
