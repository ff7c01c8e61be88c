//! The schedule without sockets and without time passing: every answer and every moment is made up here.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::super::client::{Answer, AskError};
use super::super::settings::Settings;
use super::super::wire::{Head, SOURCE};
use super::{Consistency, Mode, Request, Schedule, Target};
use crate::balancer::{SourceStatus, Timestamp};
use crate::discovery::watcher::{CONFIRM_AFTER, Reason, Trust, Update};

/// A schedule, and Consul's part played by hand.
struct Desk {
    schedule: Schedule,
    now: Timestamp,
    /// Asked, not yet answered.
    open: Vec<Request>,
    watches: usize,
}

impl Desk {
    fn new(settings: &Settings) -> Self {
        let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
        let now = Timestamp::default() + Duration::from_secs(1);
        let schedule = Schedule::new(settings, status, Arc::new(|_| 0), 7, now);
        let mut desk = Self {
            schedule,
            now,
            open: Vec::new(),
            watches: settings.max_watches,
        };
        desk.ask();
        desk
    }

    /// With services `s0`, `s1`, ... of one instance each, all read twice.
    fn synced(services: usize, settings: &Settings) -> Self {
        let mut desk = Self::new(settings);
        let names: Vec<String> = (0..services).map(|i| format!("s{i}")).collect();
        for _ in 0..2 {
            desk.answer_reads(&names);
            desk.pass(CONFIRM_AFTER);
        }
        desk.answer_reads(&names);
        assert!(desk.news().contains(&Update::Synced));
        desk
    }

    fn answer_reads(&mut self, names: &[String]) {
        while let Some(read) = self.open.iter().find(|request| request.mode == Mode::Read).cloned() {
            match read.target {
                Target::Catalog => self.answer(&read, 10, &catalog(names)),
                Target::Service(ref name) => self.answer(&read, 10, &health(name.as_str(), &[name.as_str()])),
            }
        }
    }

    fn ask(&mut self) {
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
            }),
        );
    }

    fn take(&mut self, request: &Request, result: Result<Answer, AskError>) {
        self.open.retain(|open| open.number != request.number);
        self.schedule.take(request, result, self.now);
        self.ask();
    }

    fn fail(&mut self, request: &Request, reason: Reason) {
        self.take(
            request,
            Err(AskError {
                reason,
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

    fn news(&mut self) -> Vec<Update> {
        self.schedule.answers.updates.drain(..).collect()
    }

    /// What was told of one service: ids and trust, or `None` for gone.
    fn told(&mut self, name: &str) -> Vec<(Option<Vec<String>>, Trust)> {
        let told = |update| match update {
            Update::Service(reading) if reading.service.as_str() == name => Some((
                Some(reading.instances.iter().map(|i| i.id().to_string()).collect()),
                reading.trust,
            )),
            Update::Gone { service, trust, .. } if service.as_str() == name => Some((None, trust)),
            _ => None,
        };
        self.news().into_iter().filter_map(told).collect()
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

fn settings() -> Settings {
    Settings::new("http://unused")
}

fn ids(ids: &[&str]) -> Option<Vec<String>> {
    Some(ids.iter().map(|id| format!("{id}@n")).collect())
}

#[test]
fn the_catalog_is_tried_alone_until_it_answers() {
    let mut desk = Desk::new(&settings());
    assert_eq!(desk.open.iter().map(target).collect::<Vec<_>>(), [""]);
    let read = desk.open[0].clone();
    desk.fail(&read, Reason::Unreachable);
    assert_eq!(desk.schedule.answers.error.take().unwrap().reason, Reason::Unreachable);
    assert!(
        desk.schedule.answers.status.errors().is_empty(),
        "counted by who is told of it"
    );
    desk.pass(Duration::from_secs(1));
    assert_eq!(desk.open.iter().map(target).collect::<Vec<_>>(), [""]);
    assert_eq!(desk.news(), []);
}

#[test]
fn first_looks_are_confirmed_and_synced_is_said_once_after_the_last() {
    let mut desk = Desk::new(&settings());
    let names = [String::from("a"), String::from("b")];
    let read = desk.open[0].clone();
    desk.answer(&read, 10, &catalog(&names));
    let (a, b) = (desk.read("a").unwrap(), desk.read("b").unwrap());
    desk.answer(&a, 10, &health("a", &["1"]));
    assert!(!desk.news().contains(&Update::Synced));
    desk.answer(&b, 10, &health("b", &["1"]));
    let news = desk.news();
    assert!(
        matches!(&news[..], [Update::Service(reading), Update::Synced] if reading.trust == Trust::AfterGap),
        "{news:?}"
    );
    assert!(desk.poll("a").is_some() && desk.poll("b").is_some() && desk.poll("").is_some());
    desk.pass(CONFIRM_AFTER);
    let a = desk.read("a").unwrap();
    desk.answer(&a, 10, &health("a", &["1"]));
    assert_eq!(desk.told("a"), [(ids(&["1"]), Trust::Steady)]);
}

#[test]
fn polls_stay_below_their_number_whatever_comes_back() {
    for watches in [1, 2, 8, 64, 1000] {
        let mut settings = settings();
        settings.max_watches = watches;
        let mut desk = Desk::synced(200, &settings);
        let limit = watches.min(64);
        assert_eq!(desk.polls(), limit, "{watches}");
        for round in 0..300_u64 {
            let Some(poll) = desk.open.iter().find(|request| request.mode != Mode::Read).cloned() else {
                break;
            };
            let body = match target(&poll) {
                "" => catalog(&(0..200).map(|i| format!("s{i}")).collect::<Vec<_>>()),
                name => health(name, &[name]),
            };
            desk.answer(&poll, 11 + round, &body);
            assert!(desk.polls() <= limit, "{watches}");
            desk.pass(Duration::from_millis(100));
            assert!(desk.open.iter().filter(|request| request.mode == Mode::Read).count() <= 4);
        }
    }
}

#[test]
fn one_break_is_one_error_and_what_was_on_its_way_is_not_believed() {
    let mut desk = Desk::synced(3, &settings());
    let polls: Vec<_> = desk.open.clone();
    assert_eq!(polls.len(), 4);
    desk.fail(&polls[0], Reason::Unreachable);
    assert!(desk.schedule.answers.error.take().is_some());
    desk.fail(&polls[1], Reason::Unreachable);
    assert!(desk.schedule.answers.error.is_none(), "the same break");
    let Target::Service(name) = &polls[2].target else {
        panic!("{polls:?}")
    };
    desk.answer(&polls[2], 99, &health(name.as_str(), &[]));
    assert_eq!(desk.news(), []);
    // Only the catalog, and without an index.
    desk.pass(Duration::from_secs(1));
    let reads: Vec<_> = desk
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
    desk.answer(&reads[0], 5, &catalog(&[String::from("s0"), String::from("s1")]));
    assert_eq!(desk.told("s2"), [(None, Trust::AfterGap)]);
    let s0 = desk.read("s0").unwrap();
    desk.answer(&s0, 5, &health("s0", &["s0"]));
    assert_eq!(
        desk.told("s0"),
        [(ids(&["s0"]), Trust::AfterGap)],
        "unchanged, and told"
    );
    desk.pass(CONFIRM_AFTER);
    let (confirm, s0) = (desk.read("").unwrap(), desk.read("s0").unwrap());
    desk.answer(&confirm, 5, &catalog(&[String::from("s0"), String::from("s1")]));
    assert_eq!(desk.told("s2"), [(None, Trust::Steady)]);
    desk.answer(&s0, 5, &health("s0", &["s0"]));
    assert_eq!(desk.told("s0"), [(ids(&["s0"]), Trust::Steady)]);
}

#[test]
fn a_poll_that_comes_back_unchanged_is_never_believed_over_a_read() {
    // Scenario 9: the read sees one instance, at the same index; the sleeping poll remembers two.
    let mut desk = Desk::synced(1, &settings());
    let poll = desk.poll("s0").unwrap();
    desk.pass(Duration::from_secs(150));
    let read = desk.read("s0").unwrap();
    desk.answer(&read, 10, &health("s0", &["other"]));
    assert_eq!(desk.told("s0"), [(ids(&["other"]), Trust::Steady)]);
    desk.answer(&poll, 10, &health("s0", &["s0"]));
    assert_eq!(desk.told("s0"), []);
    let read = desk.read("s0").expect("it is read again instead");
    assert!(desk.poll("s0").is_none());
    desk.answer(&read, 10, &health("s0", &["other"]));
    assert_eq!(desk.told("s0"), []);
    desk.pass(Duration::from_secs(1));
    assert!(desk.poll("s0").is_some());
}

#[test]
fn a_read_that_was_overtaken_is_not_believed() {
    let mut desk = Desk::synced(1, &settings());
    desk.pass(Duration::from_secs(150));
    let (poll, read) = (desk.poll("s0").unwrap(), desk.read("s0").unwrap());
    desk.answer(&poll, 12, &health("s0", &["new"]));
    assert_eq!(desk.told("s0"), [(ids(&["new"]), Trust::Steady)]);
    desk.answer(&read, 10, &health("s0", &["s0"]));
    assert_eq!(desk.told("s0"), []);
    desk.pass(Duration::from_secs(1));
    assert!(desk.read("s0").is_some());
}

#[test]
fn an_empty_answer_waits_for_a_catalog_that_was_asked_for_afterwards() {
    let names = [String::from("s0"), String::from("s1")];
    let mut desk = Desk::synced(2, &settings());
    let (poll, older) = (desk.poll("s0").unwrap(), desk.poll("").unwrap());
    desk.answer(&poll, 11, "[]");
    assert_eq!(desk.told("s0"), [], "not yet");
    desk.answer(&older, 11, &catalog(&[&names[..], &[String::from("s9")]].concat()));
    assert_eq!(desk.told("s0"), [], "that one was asked before");
    let newer = desk.read("").unwrap();
    desk.answer(&newer, 12, &catalog(&names));
    assert_eq!(desk.told("s0"), [(ids(&[]), Trust::AdditionsOnly)]);
    assert_eq!(desk.schedule.answers.status.errors().get("denied"), Some(&1));

    let poll = desk.poll("s1").unwrap();
    desk.answer(&poll, 13, "[]");
    desk.pass(Duration::from_secs(1));
    let newer = desk.read("").unwrap();
    desk.answer(&newer, 13, &catalog(&names[..1]));
    assert_eq!(desk.told("s1"), [(None, Trust::Steady)], "really gone");
}

#[test]
fn what_has_no_poll_is_read_every_ten_seconds() {
    let mut settings = settings();
    settings.max_watches = 4;
    let mut desk = Desk::synced(50, &settings);
    let names: Vec<String> = (0..50).map(|i| format!("s{i}")).collect();
    let mut read = std::collections::BTreeSet::new();
    for _ in 0..100 {
        desk.pass(Duration::from_millis(100));
        while let Some(request) = desk.open.iter().find(|request| request.mode == Mode::Read).cloned() {
            read.insert(target(&request).to_owned());
            match target(&request) {
                "" => desk.answer(&request, 10, &catalog(&names)),
                name => desk.answer(&request, 10, &health(name, &[name])),
            }
        }
    }
    assert!(read.len() >= 47, "{}", read.len());
}

#[test]
fn the_most_picked_get_the_polls() {
    let mut settings = settings();
    settings.max_watches = 3;
    let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
    let interest = Arc::new(|name: &crate::balancer::ServiceName| u64::from(name.as_str() == "s7") * 100);
    let now = Timestamp::default();
    let mut desk = Desk {
        schedule: Schedule::new(&settings, status, interest, 7, now),
        now,
        open: Vec::new(),
        watches: settings.max_watches,
    };
    let names: Vec<String> = (0..10).map(|i| format!("s{i}")).collect();
    desk.ask();
    desk.answer_reads(&names);
    assert!(desk.poll("s7").is_none(), "the first come first");
    for name in ["s0", "s1"] {
        let poll = desk.poll(name).unwrap();
        desk.pass(Duration::from_secs(6));
        desk.answer(&poll, 11, &health(name, &[name]));
        desk.answer_reads(&names);
    }
    assert!(desk.poll("s7").is_some(), "{:?}", desk.open);
    assert_eq!(desk.polls(), 3);
}

#[test]
fn a_woken_catalog_has_everyone_looked_at_but_not_all_the_time() {
    let mut desk = Desk::synced(3, &settings());
    let names: Vec<String> = (0..3).map(|i| format!("s{i}")).collect();
    let mut reads = 0;
    for round in 0..100 {
        if let Some(poll) = desk.poll("") {
            desk.answer(&poll, 11 + round, &catalog(&names));
        }
        desk.pass(Duration::from_millis(200));
        while let Some(request) = desk.open.iter().find(|request| request.mode == Mode::Read).cloned() {
            reads += usize::from(request.target != Target::Catalog);
            match target(&request) {
                "" => desk.answer(&request, 11 + round, &catalog(&names)),
                name => desk.answer(&request, 10, &health(name, &[name])),
            }
        }
        if round == 1 {
            assert!(reads >= 3, "at once at first: {reads}");
        }
    }
    assert!(reads <= 3 * 4, "{reads} in twenty seconds of churn");
}

#[test]
fn without_a_leader_the_leader_is_asked_once_and_its_silence_is_no_break() {
    let mut desk = Desk::synced(1, &settings());
    let poll = desk.poll("s0").unwrap();
    let head = Head {
        index: NonZeroU64::new(11),
        known_leader: false,
        last_contact: Duration::ZERO,
        filtered: false,
    };
    desk.take(
        &poll,
        Ok(Answer {
            head,
            body: health("s0", &["new"]).into(),
        }),
    );
    assert_eq!(desk.told("s0"), [(ids(&["new"]), Trust::AdditionsOnly)]);
    assert!(!desk.schedule.answers.status.is_up());
    let to_leader = desk.read("").unwrap();
    assert_eq!(to_leader.consistency, Consistency::Default);
    desk.fail(&to_leader, Reason::Unavailable);
    assert!(desk.schedule.answers.error.is_none());
    desk.pass(Duration::from_secs(3));
    let again = desk.read("").unwrap();
    assert_eq!(again.consistency, Consistency::Stale);
    desk.take(
        &again,
        Ok(Answer {
            head,
            body: "{}".into(),
        }),
    );
    assert!(
        desk.schedule.answers.error.is_none() && desk.news().is_empty(),
        "an empty catalog without a leader means nothing"
    );
    desk.pass(Duration::from_secs(3));
    let again = desk.read("").unwrap();
    desk.answer(&again, 12, &catalog(&[String::from("s0")]));
    assert!(desk.schedule.answers.status.is_up());
    let read = desk.read("s0").unwrap();
    desk.answer(&read, 12, &health("s0", &["new"]));
    assert_eq!(desk.told("s0"), [(ids(&["new"]), Trust::AfterGap)]);
}

#[test]
fn an_empty_catalog_is_trouble_and_changes_nothing() {
    let mut desk = Desk::synced(2, &settings());
    let poll = desk.poll("").unwrap();
    desk.answer(&poll, 11, "{}");
    assert_eq!(desk.schedule.answers.error.take().unwrap().reason, Reason::Denied);
    assert_eq!(desk.news(), []);
}

#[test]
fn there_is_always_a_next_moment_to_wake_at() {
    let mut settings = settings();
    settings.max_watches = 4;
    let mut desk = Desk::synced(20, &settings);
    for _ in 0..1000 {
        let wake = desk.schedule.wake().expect("reads come due for ever");
        assert!(
            wake > desk.now,
            "nothing is left to ask now, so a tight loop would find nothing either"
        );
        desk.now = wake;
        desk.ask();
        desk.answer_reads(&(0..20).map(|i| format!("s{i}")).collect::<Vec<_>>());
    }
}

#[test]
fn a_catalog_that_went_back_has_every_service_read_anew() {
    // Scenario 10: the polls of the services may sleep on, at indexes that lie ahead now.
    let names = [String::from("s0"), String::from("s1")];
    let mut desk = Desk::synced(2, &settings());
    let poll = desk.poll("").unwrap();
    desk.pass(Duration::from_millis(100));
    desk.answer(&poll, 10, &catalog(&names));
    let read = desk.read("").expect("woken early and without a change");
    desk.answer(&read, 4, &catalog(&names));
    let s0 = desk.read("s0").expect("read anew");
    desk.answer(&s0, 4, &health("s0", &["older"]));
    assert_eq!(desk.told("s0"), [(ids(&["older"]), Trust::AfterGap)]);
    desk.pass(CONFIRM_AFTER);
    let s0 = desk.read("s0").unwrap();
    desk.answer(&s0, 4, &health("s0", &["older"]));
    assert_eq!(desk.told("s0"), [(ids(&["older"]), Trust::Steady)]);
}
